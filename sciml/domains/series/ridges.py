"""What one data set's forecasts correct: a ridge, where it helps with the mean course of a cycle taken out, and the
plain ridge beside it, which is the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.domains.series.baseline import Moments, Ridge, moments
from sciml.domains.series.calendar import Clock, resolvable
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.cycle import Cycle
from sciml.domains.series.encode import LEAST_SPREAD
from sciml.domains.series.known import Known, Pieces
from sciml.domains.series.layout import Layout
from sciml.domains.series.windows import split_windows

LEAST_GAIN = 0.005
LEAST_BLOCKS = 10


@dataclass(frozen=True)
class Ridges:
    """plain: the ridge without a cycle, the floor of every score. ridge: what is corrected; if there is a cycle, fitted
    to values less that."""

    plain: Ridge
    ridge: Ridge
    cycle: Cycle | None
    horizons: tuple[int, ...]

    def floor(self) -> Ridges:
        """The same with the plain ridge for a baseline."""
        return replace(self, ridge=self.plain, cycle=None)

    def course(self, ticks: np.ndarray, members: np.ndarray) -> Tensor:
        """``(B, V, T)`` the cycle at ``(B, T)`` ticks, ``(1, 1, 1)`` of zero without one."""
        if self.cycle is None:
            return torch.zeros(1, 1, 1)
        return self.cycle.at(ticks, members)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts = {"plain": self.plain.state()}
        if self.ridge is not self.plain:
            parts["ridge"] = self.ridge.state()
        if self.cycle is not None:
            parts["cycle"] = self.cycle.state()
        config = {"horizons": list(self.horizons), **{name: part[0] for name, part in parts.items()}}
        return config, {f"{name}.{key}": array for name, part in parts.items() for key, array in part[1].items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Ridges:
        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{prefix}."): v for k, v in arrays.items() if k.startswith(f"{prefix}.")}
        cycle = Cycle.restore(config["cycle"], part("cycle")) if "cycle" in config else None
        plain = Ridge.restore(config["plain"], part("plain"))
        ridge = Ridge.restore(config["ridge"], part("ridge")) if "ridge" in config else plain
        return cls(plain, ridge, cycle, tuple(config["horizons"]))


def fit(layout: Layout, known: Known, config: SeriesConfig) -> Ridges:
    """Ridge and cycle from training, the ridge's strengths and the choice of cycle from validation.

    Nothing of the test split is read. Raises `InputError` if training is too short. Where look-backs are divided by
    their spread, so is every stretch of time here.
    """
    splits, look_back = layout.store.meta.splits, config.look_back_of(known.name)
    horizons = split_windows(layout, "train", config, config.horizons_of(known.name), train=True).horizons
    train = Pieces.of(layout, known, splits.train)
    validation = Pieces.of(layout, known, splits.validation, look_back)
    if config.inputs.spread:
        validation = validation.over_spread(LEAST_SPREAD, train)
        train = train.over_spread(LEAST_SPREAD)
    return _select(train, validation, look_back, horizons, config, known.clock)


def _select(train: Pieces, validation: Pieces, look_back: int, horizons: Sequence[int], config: SeriesConfig,
            clock: Clock) -> Ridges:
    """The plain ridge; and the ridge and cycle with the least validation error relative to it, mean over ranges.

    A longer cycle has more to learn: it must lower the error by `LEAST_GAIN` below what the shorter ones reach. With
    fewer than `LEAST_BLOCKS` independent blocks (look-back and shortest horizon) validation can't tell: none is taken.
    """
    def fitted(a: Pieces, b: Pieces) -> Ridge:
        return Ridge.fit(of(a), of(b), config.ridge.strengths)

    def of(pieces: Pieces) -> Moments:
        return moments(pieces.values, look_back, horizons)

    plain = fitted(train, validation)
    best, best_cycle, errors = plain, None, {"none": 1.0}
    reference = plain.provenance["validation_mse"]
    known = [i for i, e in enumerate(reference) if e]
    blocks = sum(max(len(v) - look_back, 0) // (look_back + horizons[0]) for v in validation.values)
    named = resolvable(clock, train.longest, config.ridge.cycles)
    for name in named if known and blocks >= LEAST_BLOCKS else ():
        cycle = Cycle.fit(name, train.values, train.ticks, clock.step)
        ridge = fitted(_without(train, cycle), _without(validation, cycle))
        tried = ridge.provenance["validation_mse"]
        errors[name] = float(np.mean([tried[i] / reference[i] for i in known]))
        if errors[name] < (1 - LEAST_GAIN) * min(e for n, e in errors.items() if n != name):
            best, best_cycle = ridge, cycle
    noted = best.noted(cycles_tried=errors, independent_blocks=blocks)
    return Ridges(noted if best is plain else plain, noted, best_cycle, tuple(horizons))


def _without(pieces: Pieces, cycle: Cycle) -> Pieces:
    return replace(pieces, values=[cycle.remove(v, t) for v, t in zip(pieces.values, pieces.ticks)])
