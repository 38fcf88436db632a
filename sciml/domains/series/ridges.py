"""What one data set's forecasts correct: a ridge, where it helps with the mean course of a cycle taken out, and the
plain ridge beside it, which is the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.domains.series import kriging
from sciml.domains.series.baseline import Moments, Ridge, moments
from sciml.domains.series.calendar import Clock, resolvable
from sciml.domains.series.config import DatasetConfig, SeriesConfig
from sciml.domains.series.cycle import Cycle
from sciml.domains.series.encode import LEAST_SPREAD, Window
from sciml.domains.series.known import Known, Pieces
from sciml.domains.series.kriging import Kriging
from sciml.domains.series.layout import Layout
from sciml.domains.series.transform import Transform
from sciml.domains.series.windows import split_windows
from sciml.errors import InputError

LEAST_GAIN = 0.005
LEAST_BLOCKS = 10


@dataclass(frozen=True)
class Ridges:
    """plain: the ridge of the values as they are, the floor of every score. ridge: what is corrected; if there is a
    transform, fitted to transformed values, and if there is a cycle, to values less that."""

    plain: Ridge
    ridge: Ridge
    cycle: Cycle | None
    horizons: tuple[int, ...]
    transform: Transform | None = None

    def floor(self) -> Ridges:
        """The same with the plain ridge for a baseline."""
        return replace(self, ridge=self.plain, cycle=None, transform=None)

    @property
    def look_back(self) -> int:
        return self.ridge.look_back

    @property
    def horizon(self) -> int:
        return self.ridge.horizon

    def ahead(self, window: Window, history: Tensor) -> tuple[Tensor, Tensor]:
        """Forecast ``(B, V, H)`` of a window from its ``(B, V, L)`` values less their course, and the standard
        deviation ``(H,)`` of its error."""
        past = window.past
        return (self.ridge.forecast(history, window.given[..., :past], window.horizon),
                self.ridge.scale(past, window.horizon).to(history))

    def completed(self, window: Window, history: Tensor) -> Tensor:
        """``(B, V, T)`` what is expected of every cell, given those that are."""
        return self.ridge.completed(history, window.given)

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
        if self.transform is not None:
            parts["transform"] = self.transform.state()
        config = {"horizons": list(self.horizons), **{name: part[0] for name, part in parts.items()}}
        return config, {f"{name}.{key}": array for name, part in parts.items() for key, array in part[1].items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Ridges:
        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{prefix}."): v for k, v in arrays.items() if k.startswith(f"{prefix}.")}
        cycle = Cycle.restore(config["cycle"], part("cycle")) if "cycle" in config else None
        plain = Ridge.restore(config["plain"], part("plain"))
        ridge = Ridge.restore(config["ridge"], part("ridge")) if "ridge" in config else plain
        transform = Transform.restore(config["transform"], part("transform")) if "transform" in config else None
        return cls(plain, ridge, cycle, tuple(config["horizons"]), transform)


Fitted = Ridges | Kriging
"""What a task needs of either: `look_back`, `horizon`, `horizons`, `floor`, `course`, `ahead`, `completed`, `state`."""


def restore(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Fitted:
    """What `state` gave."""
    return (Kriging if config.get("kind") == "kriging" else Ridges).restore(config, arrays)


def fit(layout: Layout, known: Known, config: SeriesConfig, *, transforms: bool = False) -> Fitted:
    """Ridge and cycle from training, the ridge's strengths and the choice of cycle from validation; kriging where times
    follow no step.

    Nothing of the test split is read. Where look-backs are divided by their spread, so is every stretch of time here.
    Raises `InputError` if training is too short, and on a transform where the task has no use for it (`transforms`).
    """
    if known.clock.stepless:
        return kriging.fit(layout, known, config)
    splits, look_back, own = layout.store.meta.splits, config.look_back_of(known.name), config.of(known.name)
    if own.transform != "none" and not transforms:
        raise InputError("domains.series", key=f"datasets.{known.name}.transform", found=own.transform,
                         expected="none", fix="transforms are for the task forecast")
    horizons = split_windows(layout, "train", config, config.horizons_of(known.name), train=True).horizons
    train = Pieces.of(layout, known, splits.train)
    validation = Pieces.of(layout, known, splits.validation, look_back)
    fitted = _Fitter(config.look_backs_of(known.name), horizons, config, own, known.clock)
    plain = fitted.ridge(train, validation)
    if own.transform == "none":
        return fitted.select(plain, plain, train, validation)
    transform = Transform.fit(own.transform, known, train)
    train, validation = (transform.pieces(pieces, layout.store.url) for pieces in (train, validation))
    return replace(fitted.select(plain, fitted.ridge(train, validation), train, validation), transform=transform)


@dataclass(frozen=True)
class _Fitter:
    """look_backs: those that choices are made at, ascending."""

    look_backs: Sequence[int]
    horizons: Sequence[int]
    config: SeriesConfig
    own: DatasetConfig
    clock: Clock

    @property
    def look_back(self) -> int:
        return self.look_backs[-1]

    def ridge(self, train: Pieces, validation: Pieces) -> Ridge:
        train, validation = self._over_spread(train, validation)
        return self._fit(train, validation)

    def without(self, name: str, train: Pieces, validation: Pieces) -> tuple[Ridge, Cycle]:
        """The ridge of what is left when a cycle is taken out."""
        train, validation = self._over_spread(train, validation)
        cycle = Cycle.fit(name, train.values, train.ticks, self.clock.step)
        return self._fit(_without(train, cycle), _without(validation, cycle)), cycle

    def _fit(self, train: Pieces, validation: Pieces) -> Ridge:
        return Ridge.fit(self._moments(train), self._moments(validation), self.config.ridge.strengths, self.look_backs)

    def select(self, plain: Ridge, first: Ridge, train: Pieces, validation: Pieces) -> Ridges:
        """The ridge and cycle with the least validation error relative to the `first`, without one; mean over ranges.

        A longer cycle has more to learn: at one of the look-backs it must lower the error by `LEAST_GAIN` below what
        the shorter ones reach, and raise it at none. With fewer than `LEAST_BLOCKS` independent blocks (shortest
        look-back and horizon) validation can't tell: none is taken. Raises `InputError` on a cycle that is asked for
        and that training doesn't cover.
        """
        best, best_cycle, errors = first, None, {"none": np.ones(len(self.look_backs))}
        known = [i for i, e in enumerate(first.provenance["validation_mse"]) if e]
        length = self.look_backs[0] + self.horizons[0]
        blocks = sum(max(len(v) - self.look_back, 0) // length for v in validation.values)
        for name in self._cycles(train, bool(known) and blocks >= LEAST_BLOCKS):
            ridge, cycle = self.without(name, train, validation)
            ratio = np.mean([_by_look_back(ridge)[i] / _by_look_back(first)[i] for i in known], 0) if known else 1.0
            least, errors[name] = np.min(list(errors.values()), 0), ratio * np.ones(len(self.look_backs))
            if name == self.own.cycle or ((ratio < (1 - LEAST_GAIN) * least).any() and (ratio <= least).all()):
                best, best_cycle = ridge, cycle
        noted = best.noted(cycles_tried={name: found.tolist() for name, found in errors.items()},
                           independent_blocks=blocks)
        return Ridges(noted if best is plain else plain, noted, best_cycle, tuple(self.horizons))

    def _cycles(self, train: Pieces, enough: bool) -> tuple[str, ...]:
        asked = self.own.cycle
        if asked == "auto":
            return resolvable(self.clock, train.longest, self.config.ridge.cycles) if enough else ()
        if asked != "none" and asked not in resolvable(self.clock, train.longest, (asked,)):
            raise InputError("domains.series", key="cycle", found=asked, expected="a period that training has thrice",
                             fix="set it to auto or none")
        return () if asked == "none" else (asked,)

    def _moments(self, pieces: Pieces) -> Moments:
        return moments(pieces.values, self.look_back, self.horizons)

    def _over_spread(self, train: Pieces, validation: Pieces) -> tuple[Pieces, Pieces]:
        if not self.config.inputs.spread:
            return train, validation
        return train.over_spread(LEAST_SPREAD), validation.over_spread(LEAST_SPREAD, train)


def _without(pieces: Pieces, cycle: Cycle) -> Pieces:
    return replace(pieces, values=[cycle.remove(v, t) for v, t in zip(pieces.values, pieces.ticks)])


def _by_look_back(ridge: Ridge) -> list[np.ndarray]:
    """Of every range, the validation error at each look-back that was asked at."""
    return [np.asarray(found) for found in ridge.provenance["validation_mse_by_look_back"]]
