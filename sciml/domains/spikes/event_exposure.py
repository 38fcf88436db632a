"""What one waits through after an event: time cut where any factor of the hazard changes, and its exact integral.

After event i the floor's hazard of unit n is ``exp(log_rate[i, n] + r_n(age + τ) + g_n(t_i + τ))``: a level held since
the event, an effect r of the time since the unit's own last event, and one g of known signals. r is constant between
`AGE_EDGES_S`, g in the bins of the signals, so that all integrals are sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

KNOTS_S = tuple(2.5e-4 * 2.0 ** (k / 2) for k in range(25))
"""Where the effect of the time since a unit's own last event has its knots: 0.25 ms to 1 s, two per octave."""
PER_KNOT = 2
AGE_EDGES_S = (0.0, *(KNOTS_S[0] * 2.0 ** (k / 2 / PER_KNOT) for k in range(PER_KNOT * (len(KNOTS_S) - 1) + 1)))
"""Left edges of the cells in which that effect is constant; the last one is without end."""
ROUNDING = 1e-9
"""Of a bin: an event so near before an edge is on it."""


class Renewal(NamedTuple):
    """Effect of the time since a unit's own last event: log gain ``(N, cells)``, its integral up to each left edge."""

    gain: Tensor
    passed: Tensor

    @classmethod
    def of(cls, gain: Tensor) -> Renewal:
        widths = ages(gain).diff()
        passed = (gain[:, :-1].exp() * widths).cumsum(1)
        return cls(gain, torch.cat([gain.new_zeros(len(gain), 1), passed], 1))

    def at(self, age: Tensor) -> Tensor:
        """``(…, N)`` log gain at ages ``(…, N)`` in seconds."""
        return self._take(self.gain, cell(age))

    def until(self, age: Tensor) -> Tensor:
        """``(…, N)`` integral of the gain from age 0, s."""
        place = cell(age)
        return self._take(self.passed, place) + (age - ages(age)[place]) * self._take(self.gain, place).exp()

    def _take(self, table: Tensor, place: Tensor) -> Tensor:
        units = torch.arange(len(table))
        return table.flatten()[place + units * table.shape[1]]


def ages(like: Tensor) -> Tensor:
    return torch.tensor(AGE_EDGES_S, dtype=like.dtype)


def cell(age: Tensor) -> Tensor:
    """``(…)`` which cell of `AGE_EDGES_S` an age ≥ 0 is in; up to rounding, where one ends and the next begins."""
    octaves = torch.log2(age.detach().clamp_min(KNOTS_S[0] / 2) / KNOTS_S[0])
    return (2 * PER_KNOT * octaves + 1).clamp(0, len(AGE_EDGES_S) - 1).long()


class Clock(NamedTuple):
    """Effect of known signals: log gain ``(T, N)`` in bins of `bin_s` from `start_s`; before and after them 0."""

    start_s: float
    bin_s: float
    gain: Tensor

    @property
    def edges(self) -> Tensor:
        """``(T + 1,)`` s; empty without a signal."""
        bins = len(self.gain) + 1 if len(self.gain) else 0
        return self.start_s + self.bin_s * torch.arange(bins, dtype=torch.float64)

    def bins(self, when: Tensor) -> Tensor:
        """``(…)`` in which bin times (s) are; T outside."""
        place, num = torch.floor((when - self.start_s) / self.bin_s + ROUNDING).long(), len(self.gain)
        return torch.where((place >= 0) & (place < num), place, num)

    def at(self, when: Tensor) -> Tensor:
        """``(…, N)`` log gain at times ``(…)`` in seconds."""
        place = self.bins(when)
        inside = place < len(self.gain)
        known = self.gain.new_zeros(*when.shape, self.gain.shape[1])
        known[inside] = self.gain[place[inside]]
        return known

    def between(self, low: Tensor, high: Tensor, unit: int) -> Tensor:
        """``(…)`` seconds from low to high ``(…)``, weighted by one unit's gain."""
        if not len(self.gain):
            return high - low
        edges = self.edges
        passed = torch.cat([edges.new_zeros(1), (self.gain[:, unit].double().exp() * self.bin_s).cumsum(0)])

        def until(when: Tensor) -> Tensor:
            outside = (when - edges[0]).clamp_max(0.0) + (when - edges[-1]).clamp_min(0.0)
            return torch.from_numpy(np.interp(when.numpy(), edges.numpy(), passed.numpy())) + outside
        return until(high) - until(low)


def no_clock(units: int) -> Clock:
    return Clock(0.0, 1.0, torch.zeros(0, units))


class After(NamedTuple):
    """What the floor says after each of E events at `time` ``(E,)`` in s: log_rate ``(E, N)`` in log of 1/s, held until
    the next event; age ``(E, N)`` seconds since each unit's own last event; what changes while one waits."""

    time: Tensor
    log_rate: Tensor
    age: Tensor
    renewal: Renewal
    clock: Clock

    def log_hazard(self, wait: Tensor) -> Tensor:
        """``(E, N)`` log of 1/s, `wait` ``(E,)`` seconds after each event."""
        return self.log_rate + self.renewal.at(self.age + wait[:, None]) + self.clock.at(self.time + wait)

    def at(self, rows: Tensor) -> After:
        """Of some of the events, in any order."""
        return self._replace(time=self.time[rows], log_rate=self.log_rate[rows], age=self.age[rows])


class Segments(NamedTuple):
    """Parts of waits within which nothing but ages changes: of which event ``(M,)``, from low to high seconds after
    it, in order."""

    event: Tensor
    low: Tensor
    high: Tensor

    @property
    def middle(self) -> Tensor:
        return (self.low + self.high) / 2


def marks(low: Tensor, high: Tensor, grid: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ascending grid less the offset is inside waits from low to high ``(E,)``: events and waits ``(M,)``."""
    first = torch.searchsorted(grid, low + offset, right=True)
    count = (torch.searchsorted(grid, high + offset) - first).clamp_min(0)
    event = torch.repeat_interleave(count)
    within = torch.arange(len(event)) - (count.cumsum(0) - count)[event]
    return event, grid[first[event] + within] - offset[event]


def cut(low: Tensor, high: Tensor, *places: tuple[Tensor, Tensor]) -> Segments:
    """Waits from low to high ``(E,)`` cut at all `places`, as `marks` gives them."""
    waiting = (high > low).nonzero()[:, 0]
    event = torch.cat([waiting, *(e for e, _ in places)])
    begin = torch.cat([low[waiting], *(at for _, at in places)])
    order = torch.from_numpy(np.lexsort((begin.detach().numpy(), event.numpy())))
    event, begin = event[order], begin[order]
    end = high[event]
    if len(event) > 1:
        following = torch.cat([begin[1:], end[-1:]])
        end = torch.where(torch.cat([event[1:] == event[:-1], event.new_zeros(1, dtype=torch.bool)]), following, end)
    kept = end > begin
    return Segments(event[kept], begin[kept], end[kept])


def waits(after: After, low: Tensor, high: Tensor, edges: Tensor) -> tuple[Segments, Tensor]:
    """Waits from low to high ``(E,)`` cut at edges ``(J,)`` and at the bins of known signals; the seconds spent in each
    part, weighted by the floor's gains, ``(M, N)``."""
    parts = cut(low, high, marks(low, high, edges, torch.zeros_like(low)),
                marks(low, high, after.clock.edges, after.time))
    age = after.age[parts.event]
    spent = after.renewal.until(age + parts.high[:, None]) - after.renewal.until(age + parts.low[:, None])
    if len(after.clock.gain):
        spent = spent * after.clock.at(after.time[parts.event] + parts.middle).exp()
    return parts, spent.clamp_min(0.0)


def exposure(after: After, low: Tensor, high: Tensor, edges: Tensor) -> Tensor:
    """``(E, N, J)`` the same per interval between edges: ``∫ exp(r_n + g_n)`` over what a wait spends in each."""
    parts, spent = waits(after, low, high, edges)
    place = parts.event * len(edges) + interval(parts.middle, edges)
    total = spent.new_zeros(len(low) * len(edges), spent.shape[1]).index_add(0, place, spent)
    return total.view(len(low), len(edges), -1).transpose(1, 2)


def interval(wait: Tensor, edges: Tensor) -> Tensor:
    """``(…)`` between which edges a wait lies."""
    return torch.searchsorted(edges, wait.contiguous(), right=True).clamp_min(1) - 1
