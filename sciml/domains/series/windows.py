"""Windows of a split: targets inside its blocks, the look-back before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from sciml.data.schema import Block, SplitName, StoreMeta
from sciml.data.store import Store
from sciml.errors import InputError

VARIABLE = "value"


@dataclass(frozen=True)
class Layout:
    """What every sample of a store shares: labels, units, times and where its values are."""

    store: Store
    coords: xr.Dataset

    @classmethod
    def of(cls, store: Store) -> Layout:
        """Raises `InputError` unless the store holds one variable ``value (time, variate)``."""
        known = store.meta.variables.get(VARIABLE)
        if known is None or known.dims != ("time", "variate"):
            raise InputError(store.url, key=VARIABLE, found=_found(store.meta),
                             expected="a state variable value (time, variate)",
                             fix="build the store as domain series, or pass it to its own domain")
        return cls(store, xr.Dataset(coords={
            "time": store.coord("time"), "variate": np.array(store.members("variate")),
            "variate_unit": ("variate", store.coord("variate_unit"))}))

    @property
    def time(self) -> np.ndarray:
        return np.asarray(self.coords["time"].values)

    @property
    def variates(self) -> np.ndarray:
        return np.asarray(self.coords["variate"].values)

    @property
    def units(self) -> np.ndarray:
        return np.asarray(self.coords["variate_unit"].values)

    def sample(self, group: int, start: int, now: int, stop: int) -> xr.Dataset:
        """``value (time, variate)`` for start ≤ t < stop, of which t < now is the look-back."""
        name = self.store.meta.dataset
        sample = self.coords.isel(time=slice(start, stop))
        sample[VARIABLE] = ("time", "variate"), self.store.read(VARIABLE, group, start, stop)
        sample.attrs = {"domain": "series", "dataset": name, "look_back": now - start, "horizon": stop - now,
                        "source": f"{name}/{self.store.meta.group_dim} {group} @ {now}"}
        return sample


def _found(meta: StoreMeta) -> str:
    return f"domain {meta.domain} with {', '.join(f'{n} {v.dims}' for n, v in meta.variables.items())}"


@dataclass(frozen=True)
class SeriesWindows:
    """Every window of some blocks, in order of time.

    horizons: one, or in training several, of which the batch draws one (`batch_rng`). inside: the look-back, too, lies
    in the block. missing: the largest share of the look-back that training hides as one gap in all variates.
    """

    layout: Layout
    blocks: tuple[Block, ...]
    look_back: int
    horizons: tuple[int, ...]
    inside: bool = False
    missing: float = 0.0

    def __len__(self) -> int:
        return sum(self._counts(self.horizons[0]))

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        """Window `index`; for a longer horizon, which has fewer windows, the one at the same relative place."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        horizon = self.horizons[0]
        if len(self.horizons) > 1:
            horizon = self.horizons[int(batch_rng.integers(len(self.horizons)))]
        counts = self._counts(horizon)
        place, ends = index * sum(counts) // len(self), np.cumsum(counts)
        which = int(np.searchsorted(ends, place, side="right"))
        block = self.blocks[which]
        now = self._first(block) + place - int(ends[which]) + counts[which]
        sample = self.layout.sample(block.group, now - self.look_back, now, now + horizon)
        return _hide(sample, self.look_back, self.missing, rng) if self.missing else sample

    def whole_blocks(self) -> list[xr.Dataset]:
        """For every block with a window: its first look-back and all that follows in the block."""
        kept = [b for b, count in zip(self.blocks, self._counts(self.horizons[0])) if count]
        return [self.layout.sample(b.group, self._first(b) - self.look_back, self._first(b), b.stop) for b in kept]

    def _first(self, block: Block) -> int:
        return block.start + self.look_back if self.inside else max(block.start, self.look_back)

    def _counts(self, horizon: int) -> list[int]:
        return [max(0, b.stop - horizon - self._first(b) + 1) for b in self.blocks]


def split_windows(layout: Layout, split: SplitName, look_back: int, horizons: Sequence[int], *, train: bool = False,
                  missing: float = 0.0) -> SeriesWindows:
    """The windows of a split; horizons for which it is too short are left out.

    Training windows lie in their blocks altogether. Raises `InputError` if no horizon has a window.
    """
    meta = layout.store.meta
    windows = SeriesWindows(layout, meta.splits.of(split), look_back, tuple(horizons), split == "train",
                            missing if train else 0.0)
    fitting = tuple(h for h in horizons if sum(windows._counts(h)) > 0)
    if not fitting:
        longest = max((b.stop - b.start for b in windows.blocks), default=0)
        raise InputError(layout.store.url, key=f"{split} split", found=f"blocks of at most {longest} steps",
                         expected=f"room for look-back {look_back} and horizon {min(horizons)}",
                         fix=f"set look_back and horizons under domains.series.datasets.{meta.dataset}")
    return SeriesWindows(layout, windows.blocks, look_back, fitting if train else fitting[-1:], windows.inside,
                         windows.missing)


def _hide(sample: xr.Dataset, look_back: int, share: float, rng: np.random.Generator) -> xr.Dataset:
    gap = int(rng.integers(0, int(share * look_back) + 1))
    start = int(rng.integers(0, look_back - gap + 1))
    values = sample[VARIABLE].values.copy()
    values[start:start + gap] = np.nan
    return sample.assign({VARIABLE: (("time", "variate"), values)})
