"""A hazard that is constant between log-spaced edges of the time since the last event, and its classical floor.

λ_n(τ) = exp(x[n, j]) for edge_j ≤ τ < edge_{j+1}, the last interval without end. The likelihood of a point process with
that hazard is the Poisson likelihood of one count per unit and interval with mean λ_n Δ_j(w), where Δ_j(w) is the time
that a wait w spends in interval j (piecewise exponential model; Holford, Biometrics 36 (1980) 299).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.sampling import nucleus

AGES_S = tuple(1e-3 * 2.0**k for k in range(11))
"""Where the effect of the time since a unit's own last event has its knots: 1 ms to 1 s."""
PENALTY = 4.0
"""Of the floor's squared weights, in nats: the precision of a normal prior."""


class Stretch(NamedTuple):
    """Events of one stretch of recording without gaps: times (s) ascending and units ``(E,)``; `exposed`: the seconds
    after each that are fitted on, `following`: the unit that ended them, −1 if none did ``(E,)``."""

    time: Tensor
    unit: Tensor
    exposed: Tensor
    following: Tensor


@dataclass(frozen=True)
class HeldRate:
    """log λ_n after an event: Poisson regression on unit n's own past at that event, held until the next event.

    Features: logs of exponential averages of the unit's events, and hat functions of the log of the time since its last
    one (a renewal process with drift). rate: ``(N,)`` mean rates in 1/s, with which an unknown past begins; weight:
    ``(N, F)``; the constant first.
    """

    slow_s: tuple[float, ...]
    rate: Tensor
    weight: Tensor

    @classmethod
    def fit(cls, stretches: Sequence[Stretch], rate: Tensor, slow_s: tuple[float, ...]) -> Self:
        """Newton's method, unit by unit: strictly convex. rate: ``(N,)`` float64, positive."""
        blank = cls(slow_s, rate, rate.new_zeros(len(rate), 1 + len(slow_s) + len(AGES_S)))
        rows = []
        for index in range(len(rate)):
            features = torch.cat([blank.features(*blank.past(s, index), index) for s in stretches])
            exposed = torch.cat([s.exposed for s in stretches])
            came = torch.cat([s.following == index for s in stretches]).to(rate)
            used = (exposed > 0) | (came > 0)
            rows.append(_newton(features[used], came[used], rate[index] * exposed[used]))
        return cls(slow_s, rate, torch.stack(rows))

    def past(self, stretch: Stretch, index: int) -> tuple[Tensor, Tensor]:
        """After each event, averages ``(E, S)`` in 1/s of one unit's events and the time since its last ``(E,)``; since
        the first event of all where there was none."""
        tau = self.slow_s
        mine = stretch.unit == index
        own, value, last = stretch.time[mine], [float(self.rate[index])] * len(tau), float(stretch.time[0])
        kept = [value]
        for now in own.tolist():
            value = [v * math.exp((last - now) / t) + 1 / t for v, t in zip(value, tau)]
            kept.append(value)
            last = now
        count = mine.cumsum(0)  # by order, not by time: of simultaneous events, the later ones haven't happened
        age = stretch.time - torch.cat([stretch.time[:1], own])[count]
        keep = torch.exp(-age[:, None] / torch.tensor(tau, dtype=age.dtype))
        return torch.tensor(kept, dtype=age.dtype).view(-1, len(tau))[count] * keep, age

    def features(self, averages: Tensor, age: Tensor, index: int | slice = slice(None)) -> Tensor:
        """``(…, F)`` of averages ``(…, S)`` and ages ``(…)``; index: whose they are."""
        half = 0.5 / torch.tensor(self.slow_s, dtype=averages.dtype)
        rate = self.rate[index].to(averages)[..., None]
        slow = torch.log((averages + half) / (rate + half))
        knots = len(AGES_S)
        where = (torch.log2(age.clamp_min(1e-9) / AGES_S[0])).clamp(0, knots - 1)[..., None]
        hats = (1 - (where - torch.arange(knots)).abs()).clamp_min(0)
        return torch.cat([torch.ones_like(where), slow, hats], -1)

    def log_rate(self, averages: Tensor, age: Tensor) -> Tensor:
        """``(N,)`` log of 1/s, of all units' averages ``(N, S)`` and ages ``(N,)``."""
        return self.rate.log() + (self.features(averages, age) * self.weight).sum(-1)

    def after(self, stretch: Stretch) -> Tensor:
        """``(E, N)`` log of 1/s after each event."""
        columns = [self.features(*self.past(stretch, n), n) @ self.weight[n] for n in range(len(self.rate))]
        return torch.stack(columns, -1) + self.rate.log()

    def advance(self, averages: Tensor, wait: Tensor, unit: Tensor) -> Tensor:
        """Averages ``(N, S)`` after one more event of `unit` ``(1,)``, a wait ``(1,)`` later."""
        tau = torch.tensor(self.slow_s, dtype=averages.dtype)
        jump = torch.zeros_like(averages).index_fill(0, unit, 1.0) / tau
        return averages * torch.exp(-wait[:, None] / tau) + jump

    def state(self) -> dict[str, np.ndarray]:
        return {"rate": self.rate.numpy(), "weight": self.weight.numpy()}


def _newton(x: Tensor, came: Tensor, expected: Tensor, steps: int = 20) -> Tensor:
    """argmin_w Σ expected · exp(x w) − came · x w + ½ PENALTY w²: ``(F,)``."""
    ridge = PENALTY * torch.eye(x.shape[1], dtype=x.dtype)

    def loss(w: Tensor) -> Tensor:
        eta = x @ w
        return (expected * eta.exp() - came * eta).sum() + PENALTY / 2 * w.square().sum()

    w = x.new_zeros(x.shape[1])
    current = loss(w)
    for _ in range(steps):
        mean = expected * (x @ w).exp()
        move = torch.linalg.solve(x.T @ (mean[:, None] * x) + ridge, x.T @ (mean - came) + PENALTY * w)
        share = 1.0
        while not bool((now := loss(w - share * move)) <= current) and share > 1e-6:
            share /= 2
        if share <= 1e-6 or float(current - now) < 1e-6 * (1 + float(came.sum())):
            break
        w, current = w - share * move, now
    return w


def make_edges(shortest_s: float, longest_s: float, count: int) -> Tensor:
    """``(count,)`` left edges in seconds: 0, then log-spaced from `shortest_s` to `longest_s`.

    >>> make_edges(0.001, 0.1, 4).tolist()
    [0.0, 0.0010000000474974513, 0.009999999776482582, 0.10000000149011612]
    """
    inner = torch.logspace(torch.tensor(shortest_s).log10().item(), torch.tensor(longest_s).log10().item(), count - 1)
    return torch.cat([torch.zeros(1), inner])


def exposure(low: Tensor, high: Tensor, edges: Tensor) -> Tensor:
    """``(..., J)`` seconds that times since the last event, from low to high ``(...)``, spend in each interval."""
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
    level = -torch.log1p(-torch.rand(1, generator=generator, dtype=torch.float64)).to(total)
    j = place(level, passed.detach())
    wait = edges[j] + (level - passed[j]) / total[j].clamp_min(1e-12)
    chance = nucleus(log_hazard.detach()[:, int(j)], sampling)
    return wait, torch.multinomial(chance, 1, generator=generator)
