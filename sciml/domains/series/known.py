"""What is known of one data set, whatever is asked of it: variates and their scale, clock, covariates, classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from sciml.data.schema import Block
from sciml.domains.series.calendar import PERIODS_NS, Clock, resolvable
from sciml.domains.series.layout import CLOCK, CONSTANT, KNOWN_AHEAD, VARIABLE, Layout
from sciml.errors import InputError

SCALED_ON = 4096
"""Blocks of training by whose values variates are standardised, where a store has no statistics of them."""


@dataclass(frozen=True)
class Numbers:
    """Named numbers given along with the series, less `mean`, over `std`: ``(K,)`` each."""

    names: tuple[str, ...] = ()
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    std: np.ndarray = field(default_factory=lambda: np.ones(0))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """``(…, K)`` float32."""
        return np.asarray((values - self.mean) / self.std, np.float32)

    @classmethod
    def of(cls, names: Sequence[str], values: np.ndarray) -> Self:
        """From ``(N, K)`` known ones, NaN left out."""
        if not names:
            return cls()
        mean, std = _moments(values)
        return cls(tuple(names), mean, std)

    def state(self) -> dict[str, Any]:
        return {"names": list(self.names), "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> Self:
        return cls(tuple(config["names"]), np.asarray(config["mean"], float), np.asarray(config["std"], float))


@dataclass(frozen=True)
class Known:
    """One data set. scale: mean and std of each variate ``(2, V)`` over training, in its unit. naive: ``(V,)`` the mean
    of |x_t − x_{t − season}| over training, NaN where there is none, season 1 (the last value) where times follow no
    step. calendar: periods that training covers."""

    name: str
    variates: tuple[str, ...]
    units: tuple[str, ...]
    scale: np.ndarray
    naive: np.ndarray
    clock: Clock
    calendar: tuple[str, ...] = ()
    covariates: Numbers = field(default_factory=Numbers)
    static: Numbers = field(default_factory=Numbers)
    classes: tuple[str, ...] = ()

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self.scale[0])

    @property
    def std(self) -> np.ndarray:
        return np.asarray(self.scale[1])

    def members(self, labels: Sequence[str], *, where: object) -> np.ndarray:
        """Places of these labels among the variates. Raises `InputError` on one that was not fitted."""
        if tuple(labels) == self.variates:
            return np.arange(len(self.variates))
        unknown = [label for label in labels if label not in self.variates]
        if unknown:
            raise InputError(where, key="variate", found=", ".join(unknown),
                             expected=f"some of {', '.join(self.variates)}",
                             fix="rename them, or fit the data set first (sciml finetune)")
        return np.array([self.variates.index(label) for label in labels])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config = {"variates": list(self.variates), "units": list(self.units), "clock": self.clock.state(),
                  "calendar": list(self.calendar), "classes": list(self.classes),
                  "covariates": self.covariates.state(), "static": self.static.state()}
        return config, {"scale": np.concatenate([self.scale, self.naive[None]])}

    @classmethod
    def restore(cls, name: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Known:
        scale = np.asarray(arrays["scale"], np.float64)
        return cls(name, tuple(config["variates"]), tuple(config["units"]), scale[:2], scale[2],
                   Clock.restore(config["clock"]), tuple(config["calendar"]), Numbers.restore(config["covariates"]),
                   Numbers.restore(config["static"]), tuple(config["classes"]))


@dataclass(frozen=True)
class Pieces:
    """Standardised values ``(T, V)`` and ticks ``(T,)`` of stretches of time of these groups, float64; NaN is missing.
    """

    values: list[np.ndarray]
    ticks: list[np.ndarray]
    groups: list[int]

    @classmethod
    def of(cls, layout: Layout, known: Known, blocks: Iterable[Block], before: int = 0) -> Pieces:
        """Of these blocks and up to `before` steps ahead of each."""
        values, ticks, groups = [], [], []
        for block in blocks:
            groups.append(block.group)
            start = max(block.start - before, 0)
            values.append((layout.values(block.group, start, block.stop).astype(np.float64) - known.mean) / known.std)
            ticks.append(known.clock.ticks(layout.times(block.group, start, block.stop), where=layout.store.url))
        return cls(values, ticks, groups)

    def over_spread(self, least: float, like: Pieces | None = None) -> Pieces:
        """Every piece and variate over its own standard deviation (at least `least`), or over that of the first piece
        of its group in `like`."""
        others = {} if like is None else dict(zip(reversed(like.groups), reversed(like.values)))
        return replace(self, values=[v / np.maximum(_moments(others.get(g, v))[1], least)
                                     for v, g in zip(self.values, self.groups)])

    @property
    def steps(self) -> int:
        return sum(len(values) for values in self.values)

    @property
    def longest(self) -> int:
        return max((len(values) for values in self.values), default=0)


def learn(layout: Layout) -> Known:
    """Of the training split only. Raises `InputError` if time isn't uniform, or not equally so in all series, unless
    the store says that it is irregular."""
    meta, train = layout.store.meta, layout.store.meta.splits.train
    picked = [train[i] for i in np.unique(np.linspace(0, len(train) - 1, min(len(train), SCALED_ON)).astype(int))]
    clock = _clock(layout, picked)
    found = [meta.moments.get(f"{VARIABLE}/{label}") for label in layout.variates]
    if all(found):
        mean = np.array([m.mean for m in found if m])
        std = np.array([m.std if m.std > 0 else 1.0 for m in found if m])
    else:
        mean, std = _moments(np.concatenate([layout.values(b.group, b.start, b.stop) for b in picked]))
    known = Known(layout.name, layout.variates, layout.units, np.stack([mean, std]), np.full(len(mean), np.nan), clock,
                  classes=layout.classes)
    pieces = Pieces.of(layout, known, picked)
    names = () if clock.stepless else resolvable(clock, pieces.longest, tuple(PERIODS_NS))
    season = max(1, round(PERIODS_NS[names[0]] / clock.step)) if names else 1
    return replace(known, naive=_naive(pieces.values, season) * std,
                   calendar=resolvable(clock, pieces.steps if layout.time is not None else pieces.longest,
                                       tuple(PERIODS_NS)),
                   covariates=_numbers(layout, layout.covariates, picked, KNOWN_AHEAD),
                   static=_numbers(layout, layout.static, picked, CONSTANT))


def _clock(layout: Layout, blocks: Sequence[Block]) -> Clock:
    store = layout.store
    if layout.irregular:
        unit = store.meta.axes["time"].unit if layout.time is not None else store.meta.variables[CLOCK].unit
        return Clock.irregular([layout.times(b.group, b.start, b.stop) for b in blocks], unit, where=store.url)
    if layout.time is not None:
        return Clock.of(layout.time, store.meta.axes["time"].unit, where=store.url)
    unit = store.meta.variables[CLOCK].unit
    longest = max(blocks, key=lambda block: block.stop - block.start)
    return Clock.of(layout.times(longest.group, 0, layout.length(longest.group)), unit, where=store.url)


def _numbers(layout: Layout, names: Sequence[str], blocks: Sequence[Block], variable: str) -> Numbers:
    if not names:
        return Numbers()
    if variable == CONSTANT:
        values = np.stack([layout.store.read(CONSTANT, group) for group in dict.fromkeys(b.group for b in blocks)])
    else:
        values = np.concatenate([layout.store.read(variable, b.group, b.start, b.stop) for b in blocks])
    return Numbers.of(names, values)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``(K,)`` of the known of ``(N, K)``; 0 and 1 where nothing is known or varies."""
    there = np.isfinite(values)
    count = np.maximum(there.sum(0), 1)
    mean = np.where(there, values, 0.0).sum(0) / count
    std = np.sqrt(np.square(np.where(there, values - mean, 0.0)).sum(0) / count)
    return mean, np.where(std > 1e-12 * (1 + np.abs(mean)), std, 1.0)


def _naive(pieces: Sequence[np.ndarray], season: int) -> np.ndarray:
    """``(V,)`` mean |z_t − z_{t − season}| over known pairs; NaN for a variate without one."""
    change = np.concatenate([np.abs(p[season:] - p[:-season]) for p in pieces])
    there = np.isfinite(change)
    total, count = np.where(there, change, 0.0).sum(0), there.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
