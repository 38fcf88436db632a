"""A hazard that is constant between log-spaced edges of the time since the last event.

λ_n(τ) = exp(x[n, j]) for edge_j ≤ τ < edge_{j+1}, the last interval without end. The likelihood of a point process with
that hazard is the Poisson likelihood of one count per unit and interval with mean λ_n Δ_j(w), where Δ_j(w) is the time
that a wait w spends in interval j (piecewise exponential model; Holford, Biometrics 36 (1980) 299).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.sampling import nucleus


def make_edges(shortest_s: float, longest_s: float, count: int) -> Tensor:
    """``(count,)`` left edges in seconds: 0, then log-spaced from `shortest_s` to `longest_s`.

    >>> make_edges(0.001, 0.1, 4).tolist()
    [0.0, 0.0010000000474974513, 0.009999999776482582, 0.10000000149011612]
    """
    inner = torch.logspace(torch.tensor(shortest_s).log10().item(), torch.tensor(longest_s).log10().item(), count - 1)
    return torch.cat([torch.zeros(1), inner])


def exposure(low: Tensor, high: Tensor, edges: Tensor) -> Tensor:
    """``(..., J)`` seconds that the stretch of times since the last event, low … high ``(...)``, spends in each interval."""
    right = torch.cat([edges[1:], edges.new_full((1,), torch.inf)])
    return (torch.minimum(high[..., None], right) - torch.maximum(low[..., None], edges)).clamp_min(0.0)


def place(wait: Tensor, edges: Tensor) -> Tensor:
    """``(...)`` the interval that a wait ends in."""
    return torch.searchsorted(edges, wait.contiguous(), right=True).clamp_min(1) - 1


def draw_event(log_hazard: Tensor, edges: Tensor, sampling: SamplingConfig,
               generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Wait in seconds ``(1,)``, differentiable in the hazard, and unit ``(1,)`` of the next event, from ``(N, J)``.

    The wait is where the integrated total hazard reaches an exponential number; the unit is drawn in proportion to its
    hazard there.
    """
    total = log_hazard.logsumexp(0).exp()  # (J,)
    widths = edges.diff()
    passed = torch.cat([total.new_zeros(1), (total[:-1] * widths).cumsum(0)])  # integrated at each left edge
    level = -torch.log1p(-torch.rand(1, generator=generator)).to(total)
    j = place(level, passed.detach())
    wait = edges[j] + (level - passed[j]) / total[j].clamp_min(1e-12)
    chance = nucleus(log_hazard.detach()[:, int(j)], sampling)
    return wait, torch.multinomial(chance, 1, generator=generator)
