"""A hazard per unit that corrects the floor's by a factor, constant between log-spaced edges of the time since the last
event.

λ_n(τ) = exp(x[n, j]) φ_n(τ) for edge_j ≤ τ < edge_{j+1}, the last interval without end, φ the floor's. The likelihood
of a point process with that hazard is, but for a constant, the Poisson likelihood of one count per unit and interval
with mean exp(x[n, j]) ∫ φ_n over the part of the wait that lies in interval j (piecewise exponential model; Holford,
Biometrics 36 (1980) 299).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.event_exposure import After, ages, exposure, interval, waits
from sciml.domains.spikes.sampling import nucleus
from sciml.tokens import Target

TINY_S = 1e-12
"""Stands for no time at all in a logarithm."""
LEAST, MOST = -30.0, 12.0
"""Bounds of a drawn unit's log-hazard, before what changes while one waits."""


@dataclass(frozen=True)
class Hazard:
    """edges: ``(J,)`` left edges in s, float64. What is predicted is the log of expected events per unit and interval,
    that of the floor plus the output."""

    edges: Tensor
    objective = "poisson"

    def target(self, after: After, low: Tensor, high: Tensor, unit: Tensor) -> Target:
        """Of waits from low to high ``(E,)`` that ended with an event of `unit` (−1: none), ``(1, E, N, J)``. All
        intervals count of a wait that is scored, so that the loss is the likelihood over a number that doesn't depend
        on what happened."""
        spent = exposure(after, low, high, self.edges)
        ended = unit >= 0
        value = torch.zeros(spent.shape, dtype=torch.float32)
        rows = torch.arange(len(low))[ended]
        value[rows, unit[ended], interval(high, self.edges)[ended]] = 1.0
        scored = (ended | (high > low))[:, None, None].expand(value.shape)
        base = after.log_rate[:, :, None] + spent.clamp_min(TINY_S).log()
        parts = (value, scored, torch.where(scored, base, 0.0).float(), torch.ones_like(value))
        return Target(*(t[None] for t in parts))

    def gain(self, target: Target, predicted: Tensor) -> Tensor:
        """``(E,)`` nats, the log-likelihood of what came less that of the floor."""
        base, came, x = target.baseline.double(), target.value.double(), predicted.double()
        mean, null = (torch.where(target.mask, t.exp(), 0.0).sum((2, 3))[0] for t in (x, base))
        return (came * (x - base)).sum((2, 3))[0] - mean + null

    def floor_likelihood(self, after: After, low: Tensor, high: Tensor, unit: Tensor) -> Tensor:
        """``(E,)`` nats (times in s) of the floor alone: ``log φ_unit(high) − Σ_n ∫ φ_n``."""
        spent = exposure(after, low, high, self.edges[:1])[:, :, 0]
        at = after.log_hazard(high).gather(1, unit.clamp_min(0)[:, None])[:, 0]
        return torch.where(unit >= 0, at, 0.0) - (after.log_rate.exp() * spent).sum(1)

    def likely(self, target: Target, predicted: Tensor) -> Tensor:
        """``(E,)`` the unit with the most expected events."""
        return torch.where(target.mask, predicted.exp(), 0.0).sum(-1).argmax(-1)[0]

    def integrated(self, after: After, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``(E, N)`` expected events from low to high seconds ``(E,)`` after each event if none comes between; x:
        outputs ``(E, N, J)``."""
        return ((after.log_rate[:, :, None] + x).exp() * exposure(after, low, high, self.edges)).sum(-1)

    def draw(self, after: After, x: Tensor, sampling: SamplingConfig,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Wait in seconds ``(1,)``, differentiable in the outputs x ``(N, J)``, and unit ``(1,)`` of the event after
        the one that `after` holds.

        The wait is where the integrated hazard of all units reaches an exponential number; the unit is drawn in
        proportion to its hazard there.
        """
        rate = (after.log_rate[0][:, None] + x).clamp(LEAST, MOST)  # (N, J)
        level = -torch.log1p(-torch.rand(1, generator=generator, dtype=torch.float64)).to(rate)
        low, high, passed = torch.zeros_like(level), self.edges[-1:], torch.zeros_like(level)
        while True:
            parts, spent = waits(after.at(torch.zeros(1, dtype=torch.long)), low, high, self.edges)
            total = passed + (spent * rate.T[interval(parts.middle, self.edges)].exp()).sum(-1).cumsum(0)  # (M,)
            if bool(total[-1] > level):
                break
            passed, low, high = total[-1:], high, 2 * high
        m = int((total <= level).sum())
        j = interval(parts.middle[m], self.edges)
        log_rate = rate[:, int(j)] + after.clock.at(after.time + parts.middle[m])[0]
        missing = level - (total[m - 1] if m else passed)
        wait = _reach(missing, log_rate, after, parts.low[m], parts.high[m])
        chance = nucleus((log_rate + after.renewal.at(after.age[0] + wait)).detach(), sampling)
        return wait, torch.multinomial(chance, 1, generator=generator)


def _reach(level: Tensor, log_rate: Tensor, after: After, low: Tensor, high: Tensor) -> Tensor:
    """``(1,)`` when, in a segment from low to high where log_rate ``(N,)`` holds, the integrated hazard of all units
    reaches `level` ``(1,)``: it is linear between the times at which any unit's age enters another cell."""
    age = after.age[0]
    enters = (ages(age)[1:] - age[:, None]).flatten()
    at = torch.cat([low[None], enters[(enters > low) & (enters < high)].sort().values, high[None]])
    since = after.renewal.until(age + at[:, None]) - after.renewal.until(age + low)
    total = (log_rate.exp() * since).sum(-1)
    k = int((total[1:-1] <= level).sum())
    middle = (at[k] + at[k + 1]) / 2
    slope = (log_rate + after.renewal.at(age + middle)).exp().sum()
    return torch.minimum(at[k] + (level - total[k]).clamp_min(0.0) / slope, at[k + 1])


def make_edges(shortest_s: float, longest_s: float, count: int) -> Tensor:
    """``(count,)`` left edges in seconds, float64: 0, then log-spaced from `shortest_s` to `longest_s`.

    >>> make_edges(0.001, 0.1, 4).numpy().round(6).tolist()
    [0.0, 0.001, 0.01, 0.1]
    """
    inner = torch.logspace(torch.tensor(shortest_s).log10().item(), torch.tensor(longest_s).log10().item(), count - 1,
                           dtype=torch.float64)
    return torch.cat([inner.new_zeros(1), inner])
