"""The classical floor of events: every unit a renewal process with drift, driven by known signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.event_exposure import (
    KNOTS_S,
    After,
    Clock,
    Renewal,
    ages,
    cell,
    cut,
    marks,
)

PENALTY = 4.0
"""Of the floor's squared weights, in nats: the precision of a normal prior."""


class Stretch(NamedTuple):
    """Events of one stretch of recording without gaps: times (s) ascending and units ``(E,)``; seconds after each, from
    low to high, that are fitted on, and the unit that ended them, −1 if none did ``(E,)``; what is known beside."""

    time: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor
    following: Tensor
    clock: Clock


@dataclass(frozen=True)
class RenewalRate:
    """log λ_n: Poisson regression on unit n's own past, in continuous time.

    Features: logs of exponential averages of the unit's events, held since the last event of any unit; hat functions of
    the log of the time since its own last one, which goes on while one waits. rate: ``(N,)`` mean rates in 1/s, with
    which an unknown past begins; weight: ``(N, F)``; the constant first.
    """

    slow_s: tuple[float, ...]
    rate: Tensor
    weight: Tensor

    @classmethod
    def fit(cls, stretches: Sequence[Stretch], rate: Tensor, slow_s: tuple[float, ...]) -> Self:
        """Newton's method, unit by unit: strictly convex. rate: ``(N,)`` float64, positive."""
        blank = cls(slow_s, rate, rate.new_zeros(len(rate), 1 + len(slow_s) + len(KNOTS_S)))
        fitted = []
        for index in range(len(rate)):
            rows = [blank._rows(stretch, index) for stretch in stretches]
            x, came, exposed = (torch.cat(part) for part in zip(*rows))
            fitted.append(newton(x, came, rate[index] * exposed))
        return cls(slow_s, rate, torch.stack(fitted))

    def _rows(self, stretch: Stretch, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, whether it fired, seconds: waits cut where the unit's age enters another cell, then its events."""
        averages, age = self.past(stretch, index)
        parts = cut(stretch.low, stretch.high, marks(stretch.low, stretch.high, ages(age)[1:], age))
        begin = stretch.time[parts.event]
        exposed = stretch.clock.between(begin + parts.low, begin + parts.high, index)
        fired = (stretch.following == index).nonzero()[:, 0]
        event, since = torch.cat([parts.event, fired]), torch.cat([parts.middle, stretch.high[fired]])
        x = torch.cat([self.features(averages, index)[event], hats(age[event] + since)], 1)
        none = exposed.new_zeros(len(fired))
        return x, torch.cat([torch.zeros_like(exposed), none + 1]), torch.cat([exposed, none])

    def past(self, stretch: Stretch, index: int) -> tuple[Tensor, Tensor]:
        """After each event, averages ``(E, S)`` in 1/s of one unit's events and the time since its last ``(E,)``; where
        there was none, the first event of all is held to be a long time (the last knot) after it."""
        tau = self.slow_s
        mine = stretch.unit == index
        own, value, last = stretch.time[mine], [float(self.rate[index])] * len(tau), float(stretch.time[0])
        kept = [value]
        for now in own.tolist():
            value = [v * math.exp((last - now) / t) + 1 / t for v, t in zip(value, tau)]
            kept.append(value)
            last = now
        count = mine.cumsum(0)  # by order, not by time: of simultaneous events, the later ones haven't happened
        since = stretch.time - torch.cat([stretch.time[:1], own])[count]
        keep = torch.exp(-since[:, None] / torch.tensor(tau, dtype=since.dtype))
        averages = torch.tensor(kept, dtype=since.dtype).view(-1, len(tau))[count] * keep
        return averages, since + KNOTS_S[-1] * (count == 0)

    def features(self, averages: Tensor, index: int | slice = slice(None)) -> Tensor:
        """``(…, 1 + S)`` of averages ``(…, S)``; index: whose they are."""
        half = 0.5 / torch.tensor(self.slow_s, dtype=averages.dtype)
        rate = self.rate[index].to(averages)[..., None]
        slow = torch.log((averages + half) / (rate + half))
        return torch.cat([torch.ones_like(slow[..., :1]), slow], -1)

    def log_rate(self, averages: Tensor) -> Tensor:
        """``(N,)`` log of 1/s, of all units' averages ``(N, S)``."""
        return self.rate.log() + (self.features(averages) * self.weight[:, :1 + len(self.slow_s)]).sum(-1)

    @cached_property
    def renewal(self) -> Renewal:
        left = ages(self.weight)
        middle = torch.cat([left[:1], (left[1:-1] * left[2:]).sqrt(), left[-1:]])
        return Renewal.of(self.weight[:, 1 + len(self.slow_s):] @ hats(middle).T)

    def after(self, stretch: Stretch) -> After:
        """Of all events of a stretch."""
        columns = []
        for index in range(len(self.rate)):
            averages, age = self.past(stretch, index)
            columns.append((self.features(averages, index) @ self.weight[index, :1 + len(self.slow_s)], age))
        log_rate, age = (torch.stack(part, -1) for part in zip(*columns))
        return After(stretch.time, log_rate + self.rate.log(), age, self.renewal, stretch.clock)

    def advance(self, averages: Tensor, wait: Tensor, unit: Tensor) -> Tensor:
        """Averages ``(N, S)`` after one more event of `unit` ``(1,)``, a wait ``(1,)`` later."""
        tau = torch.tensor(self.slow_s, dtype=averages.dtype)
        jump = torch.zeros_like(averages).index_fill(0, unit, 1.0) / tau
        return averages * torch.exp(-wait[:, None] / tau) + jump

    def state(self) -> dict[str, np.ndarray]:
        return {"rate": self.rate.numpy(), "weight": self.weight.numpy()}


def hats(age: Tensor) -> Tensor:
    """``(…, K)`` hat functions of the log of an age ``(…)``, taken in the middle of its cell."""
    left = ages(age)
    middle = torch.cat([left[:1], (left[1:-1] * left[2:]).sqrt(), left[-1:]])[cell(age)]
    knots = torch.arange(len(KNOTS_S), dtype=age.dtype)
    where = (2 * torch.log2(middle.clamp_min(1e-9) / KNOTS_S[0])).clamp(0, len(KNOTS_S) - 1)
    return (1 - (where[..., None] - knots).abs()).clamp_min(0)


def newton(x: Tensor, came: Tensor, expected: Tensor, steps: int = 20) -> Tensor:
    """argmin_w Σ expected · exp(x w) − came · x w + ½ PENALTY w²: ``(F,)``."""
    ridge = PENALTY * torch.eye(x.shape[1], dtype=x.dtype)
    counted, fired = expected > 0, came > 0
    exposed, expected, events = x[counted], expected[counted], (came[fired, None] * x[fired]).sum(0)

    def loss(w: Tensor) -> Tensor:
        return (expected * (exposed @ w).exp()).sum() - events @ w + PENALTY / 2 * w.square().sum()

    w = x.new_zeros(x.shape[1])
    current = loss(w)
    for _ in range(steps):
        mean = expected * (exposed @ w).exp()
        move = torch.linalg.solve(exposed.T @ (mean[:, None] * exposed) + ridge,
                                  exposed.T @ mean - events + PENALTY * w)
        share = 1.0
        while not bool((now := loss(w - share * move)) <= current) and share > 1e-6:
            share /= 2
        if share <= 1e-6 or float(current - now) < 1e-6 * (1 + float(came.sum())):
            break
        w, current = w - share * move, now
    return w
