"""Windows of a split: targets inside its blocks, the look-back before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import xarray as xr

from sciml.adapter import Windows
from sciml.data.schema import Block, SplitName
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.layout import VARIABLE, Layout
from sciml.errors import InputError

Pattern = Literal["random", "blocks"]


@dataclass(frozen=True)
class SeriesWindows:
    """Every window of some blocks, in order of time.

    horizons: one, or in training several, of which the batch draws one (`batch_rng`). inside: the look-back, too, lies
    in the block. shortest: the batch draws its look-back from there on. missing: the largest share of the look-back
    that training hides, as one gap in all variates or cell by cell. mixed: look-backs and horizons, of which every
    window has one pair, by its index.
    """

    layout: Layout
    blocks: tuple[Block, ...]
    look_back: int
    horizons: tuple[int, ...]
    inside: bool = False
    shortest: int | None = None
    missing: float = 0.0
    mixed: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return self.count(self.horizons[0])

    def count(self, horizon: int) -> int:
        """How many windows reach that far."""
        ends = self._ends[horizon]
        return int(ends[-1]) if len(ends) else 0

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        """Window `index`; for a longer horizon, which has fewer windows, the one at the same relative place."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        horizon, look_back = self.horizons[0], self.look_back
        if len(self.horizons) > 1:
            horizon = self.horizons[int(batch_rng.integers(len(self.horizons)))]
        if self.shortest is not None:
            look_back = int(batch_rng.integers(self.shortest, self.look_back + 1))
        if self.mixed:
            look_back, horizon = self.mixed[int(np.random.default_rng([0, index]).integers(len(self.mixed)))]
        place, ends = index * self.count(horizon) // len(self), self._ends[horizon]
        which = int(np.searchsorted(ends, place, side="right"))
        block = self.blocks[which]
        now = block.stop - horizon - int(ends[which] - 1 - place)
        sample = self._sample(block, now - look_back, now, now + horizon)
        return hide(sample, look_back, self.missing, rng) if self.missing else sample

    def whole_blocks(self) -> list[xr.Dataset]:
        """For every block with a window: its first look-back and all that follows in the block."""
        counts = np.diff(self._ends[self.horizons[0]], prepend=0)
        kept = [b for b, count in zip(self.blocks, counts) if count]
        return [self._sample(b, self._first(b) - self.look_back, self._first(b), b.stop) for b in kept]

    def _sample(self, block: Block, start: int, now: int, stop: int) -> xr.Dataset:
        return self.layout.sample(block.group, start, stop, look_back=now - start, horizon=stop - now)

    def _first(self, block: Block) -> int:
        return block.start + self.look_back if self.inside else max(block.start, self.look_back)

    @cached_property
    def _ends(self) -> dict[int, np.ndarray]:
        """By horizon, how many windows there are up to and with each block."""
        first = np.array([self._first(block) for block in self.blocks], np.int64)
        stop = np.array([block.stop for block in self.blocks], np.int64)
        return {h: np.cumsum(np.maximum(stop - h - first + 1, 0)) for h in self.horizons}


def split_windows(layout: Layout, split: SplitName, config: SeriesConfig, horizons: Sequence[int], *,
                  train: bool = False) -> SeriesWindows:
    """The windows of a split; horizons for which it is too short are left out, but for the longest that fits unless
    `train`.

    Training windows lie in their blocks altogether. Raises `InputError` if no horizon has a window.
    """
    look_back = config.look_back_of(layout.name)
    windows = SeriesWindows(layout, layout.store.meta.splits.of(split), look_back, tuple(horizons), split == "train",
                            config.shortest if train else None, config.missing if train else 0.0)
    fitting = tuple(h for h in horizons if windows.count(h) > 0)
    if not fitting:
        longest = max((b.stop - b.start for b in windows.blocks), default=0)
        raise InputError(layout.store.url, key=f"{split} split", found=f"blocks of at most {longest} steps",
                         expected=f"room for look-back {look_back} and horizon {min(horizons)}",
                         fix=f"set look_back and horizons under domains.series.datasets.{layout.name}")
    return replace(windows, horizons=fitting if train else fitting[-1:])


def mixed_windows(layout: Layout, split: SplitName, config: SeriesConfig, horizons: Sequence[int]) -> SeriesWindows:
    """To select on: where training draws look-backs, windows of all horizons that fit the split and look-backs from the
    shortest to the longest; else those of the longest horizon that fits."""
    found = split_windows(layout, split, config, horizons)
    if config.shortest is None:
        return found
    fitting = split_windows(layout, split, without_draws(config), horizons, train=True).horizons
    lengths = config.look_backs_of(layout.name)
    return replace(found, horizons=fitting[::-1], mixed=tuple((n, h) for n in lengths for h in fitting))


def without_draws(config: SeriesConfig) -> SeriesConfig:
    """The section without what training draws."""
    return config.model_copy(update={"shortest": None, "missing": 0.0})


@dataclass(frozen=True)
class Pages:
    """Stretches of `length` steps of some blocks, every `stride`-th; a block that is shorter is one of its own, whole.
    """

    layout: Layout
    blocks: tuple[Block, ...]
    length: int
    stride: int

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        return self.layout.sample(*self.place(index))

    def place(self, index: int) -> tuple[int, int, int]:
        """Group, start and stop of a stretch."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        block = self.blocks[which]
        last = int(self._ends[which] - 1 - index)
        start = max(block.start, block.stop - self.length - last * self.stride)
        return block.group, start, min(start + self.length, block.stop)

    @cached_property
    def _ends(self) -> np.ndarray:
        sizes = np.array([block.stop - block.start for block in self.blocks], np.int64)
        return np.cumsum(np.maximum(sizes - self.length, 0) // self.stride + 1)


@dataclass(frozen=True)
class Hidden:
    """Windows of forecasts whose look-backs miss a share of their cells, the same ones in every epoch."""

    windows: Windows
    share: float
    pattern: Pattern

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        sample, fixed = self.windows.draw(index, rng, batch_rng), np.random.default_rng([0, index])
        shape = (int(sample.attrs["look_back"]), sample.sizes["variate"])
        return without(sample, hidden(shape, self.share, self.pattern, fixed))


def hide(sample: xr.Dataset, look_back: int, share: float, rng: np.random.Generator) -> xr.Dataset:
    """Half of the time one gap in all variates, else single cells, of at most that share of the look-back."""
    if rng.random() < 0.5:
        return without(sample, hidden((look_back, sample.sizes["variate"]), share * rng.random(), "random", rng))
    gap = int(rng.integers(0, int(share * look_back) + 1))
    start = int(rng.integers(0, look_back - gap + 1))
    mask = np.zeros((look_back, sample.sizes["variate"]), bool)
    mask[start:start + gap] = True
    return without(sample, mask)


def hidden(shape: tuple[int, int], share: float, pattern: Pattern, rng: np.random.Generator) -> np.ndarray:
    """``(T, V)`` bool, True for that share of the cells: at random, or for every variate in blocks of a twelfth of T.
    """
    if pattern == "random":
        return np.asarray(rng.random(shape) < share)
    length, num_variates = shape
    block = max(1, length // 12)
    count = -(-length // block)
    chosen = rng.random((count, num_variates)).argsort(0) < round(share * count)
    shift = int(rng.integers(block))
    return np.roll(np.repeat(chosen, block, 0), shift, 0)[:length]


def without(sample: xr.Dataset, mask: np.ndarray) -> xr.Dataset:
    """The sample with the first cells of time, where `mask` says so, missing."""
    values = np.array(sample[VARIABLE].values)
    values[:len(mask)][mask] = np.nan
    return sample.assign({VARIABLE: (("time", "variate"), values)})
