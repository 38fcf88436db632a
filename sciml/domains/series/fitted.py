"""What the adapter knows of one data set, learnt from its store: variates, statistics, clock, ridge and cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.data.schema import Block
from sciml.data.store import Store
from sciml.domains.series.baseline import Moments, Ridge, moments
from sciml.domains.series.calendar import PERIODS_NS, Clock, resolvable
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.cycle import Cycle
from sciml.domains.series.windows import VARIABLE, Layout, split_windows
from sciml.errors import InputError

LEAST_GAIN = 0.005
LEAST_BLOCKS = 10


@dataclass(frozen=True)
class Fitted:
    """One data set. scale: mean, std and naive ``(V,)``, over training, in the variate's unit; naive is the mean of
    |x_t − x_{t − season}|.

    plain: the ridge without a cycle, the floor of every score. ridge: what is corrected; if there is a cycle, fitted to
    values less that. calendar: periods given to the operator.
    """

    name: str
    variates: tuple[str, ...]
    units: tuple[str, ...]
    scale: tuple[np.ndarray, np.ndarray, np.ndarray]
    clock: Clock
    plain: Ridge
    ridge: Ridge
    cycle: Cycle | None
    horizons: tuple[int, ...]
    calendar: tuple[str, ...]

    @property
    def mean(self) -> np.ndarray:
        return self.scale[0]

    @property
    def std(self) -> np.ndarray:
        return self.scale[1]

    @property
    def naive(self) -> np.ndarray:
        return self.scale[2]

    @property
    def look_back(self) -> int:
        return self.ridge.look_back

    def floor(self) -> Fitted:
        """The same with the plain ridge for a baseline."""
        return replace(self, ridge=self.plain, cycle=None)

    def course(self, ticks: np.ndarray, members: np.ndarray) -> Tensor:
        """``(B, V, T)`` the cycle at ``(B, T)`` ticks, zero without one."""
        if self.cycle is None:
            return torch.zeros(len(ticks), len(members), ticks.shape[1])
        return self.cycle.at(ticks, members)

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
        parts = {"plain": self.plain.state(), "ridge": self.ridge.state()}
        if self.cycle is not None:
            parts["cycle"] = self.cycle.state()
        config = {"variates": list(self.variates), "units": list(self.units), "clock": self.clock.state(),
                  "horizons": list(self.horizons), "calendar": list(self.calendar),
                  **{name: part[0] for name, part in parts.items()}}
        arrays = {f"{name}.{key}": array for name, part in parts.items() for key, array in part[1].items()}
        return config, {**arrays, "scale": np.stack(self.scale)}

    @classmethod
    def restore(cls, name: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Fitted:
        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{prefix}."): v for k, v in arrays.items() if k.startswith(f"{prefix}.")}
        mean, std, naive = np.asarray(arrays["scale"], np.float64)
        cycle = Cycle.restore(config["cycle"], part("cycle")) if "cycle" in config else None
        return cls(name, tuple(config["variates"]), tuple(config["units"]), (mean, std, naive),
                   Clock.restore(config["clock"]), Ridge.restore(config["plain"], part("plain")),
                   Ridge.restore(config["ridge"], part("ridge")), cycle, tuple(config["horizons"]),
                   tuple(config["calendar"]))


@dataclass(frozen=True)
class Pieces:
    """Standardised values ``(T, V)`` and ticks ``(T,)`` of the blocks of a split, float64."""

    values: list[np.ndarray]
    ticks: list[np.ndarray]

    def without(self, cycle: Cycle) -> Pieces:
        return Pieces([cycle.remove(v, t) for v, t in zip(self.values, self.ticks)], self.ticks)


def fit(store: Store, config: SeriesConfig) -> Fitted:
    """Statistics, ridge and cycle from training, the ridge's strengths and the choice of cycle from validation.

    Nothing of the test split is read. Raises `InputError` if time isn't uniform or training is too short.
    """
    layout = Layout.of(store)
    meta = store.meta
    unit = meta.axes["time"].unit
    clock = Clock.of(layout.time, unit, where=store.url)
    ticks = clock.ticks(layout.time, where=store.url)
    look_back = config.look_back_of(meta.dataset)
    windows = split_windows(layout, "train", look_back, config.horizons_of(meta.dataset), train=True)
    found = [meta.moments[f"{VARIABLE}/{label}"] for label in layout.variates]
    mean = np.array([m.mean for m in found])
    std = np.array([m.std if m.std > 0 else 1.0 for m in found])

    def read(blocks: Sequence[Block], before: int) -> Pieces:
        spans = [(b.group, max(b.start - before, 0), b.stop) for b in blocks]
        return Pieces([(store.read(VARIABLE, g, lo, hi).astype(np.float64) - mean) / std for g, lo, hi in spans],
                      [ticks[lo:hi] for _, lo, hi in spans])

    train, validation = read(meta.splits.train, 0), read(meta.splits.validation, look_back)
    steps = sum(len(v) for v in train.values)
    named = resolvable(clock, max(len(v) for v in train.values), config.ridge.cycles)
    plain, ridge, cycle = _select(train, validation, look_back, windows.horizons, config, clock, named)
    calendar = resolvable(clock, steps, tuple(PERIODS_NS)) if config.calendar else ()
    naive = _naive(train.values, _season(clock, cycle, named)) * std
    return Fitted(meta.dataset, tuple(map(str, layout.variates)), tuple(map(str, layout.units)), (mean, std, naive),
                  clock, plain, ridge, cycle, windows.horizons, calendar)


def _select(train: Pieces, validation: Pieces, look_back: int, horizons: Sequence[int], config: SeriesConfig,
            clock: Clock, cycles: Sequence[str]) -> tuple[Ridge, Ridge, Cycle | None]:
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
    blocks = sum((len(v) - look_back) // (look_back + horizons[0]) for v in validation.values)
    for name in cycles if known and blocks >= LEAST_BLOCKS else ():
        cycle = Cycle.fit(name, train.values, train.ticks, clock.step)
        ridge = fitted(train.without(cycle), validation.without(cycle))
        tried = ridge.provenance["validation_mse"]
        errors[name] = float(np.mean([tried[i] / reference[i] for i in known]))
        if errors[name] < (1 - LEAST_GAIN) * min(e for n, e in errors.items() if n != name):
            best, best_cycle = ridge, cycle
    return plain, best.noted(cycles_tried=errors, independent_blocks=blocks), best_cycle


def _season(clock: Clock, cycle: Cycle | None, named: Sequence[str]) -> int:
    """Steps of the season of MASE: of the cycle in use, else the shortest that the series resolves, else 1."""
    name = cycle.name if cycle is not None else next(iter(named), None)
    return 1 if name is None else max(1, round(PERIODS_NS[name] / clock.step))


def _naive(pieces: Sequence[np.ndarray], season: int) -> np.ndarray:
    """``(V,)`` mean |z_t − z_{t − season}| over known pairs; NaN for a variate without one."""
    change = np.concatenate([np.abs(p[season:] - p[:-season]) for p in pieces])
    there = np.isfinite(change)
    total, count = np.where(there, change, 0.0).sum(0), there.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
