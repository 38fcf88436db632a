"""The samples of a split: whole volumes, or patches for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import xarray as xr

from sciml.data import affines, bricks
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.volumes import geometry
from sciml.domains.volumes.augment import LABEL, changed
from sciml.domains.volumes.config import CATEGORY, CLASS, Known, VolumesConfig
from sciml.domains.volumes.encode import DOMAIN, intensity
from sciml.errors import InputError

if TYPE_CHECKING:
    from sciml.domains.volumes.tasks import Task

MARGIN = 0.15
"""What a patch is larger by on each side before it is augmented, as a share of the window."""
MOST_PLACES = 512
"""Voxels of each structure of a volume that patches are centred on."""


@dataclass(frozen=True)
class Subjects:
    """A store's volumes as samples."""

    store: Store
    known: Known
    config: VolumesConfig

    def groups(self, split: SplitName) -> tuple[int, ...]:
        return tuple(block.group for block in self.store.meta.splits.of(split))

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities, and the label where there is one."""
        return (*self.known.modalities, *([LABEL] if self.known.structures else []))

    def sample(self, group: int, low: Sequence[int] = (0, 0, 0), high: Sequence[int] | None = None) -> xr.Dataset:
        """A box of a volume, in the orientation of its file, with the numbers of the whole volume's intensities."""
        return self.made({name: bricks.read(self.store, name, group, low, high) for name in self.names},
                         geometry.shifted(bricks.affine(self.store, group), low), group)

    def made(self, arrays: Mapping[str, np.ndarray], affine: np.ndarray, group: int,
             times: np.ndarray | None = None) -> xr.Dataset:
        """Arrays of a subject as a sample, with its class where it has one; times: of its frames, if not all."""
        when = bricks.times(self.store, group) if times is None else times
        sample = geometry.dataset_of(arrays, affine, self.attrs(group), units=self.known.modalities, times=when)
        if not self.known.classes or CATEGORY not in self.store.meta.variables:
            return sample
        return sample.assign({CATEGORY: ((), self.category(group), {"units": "1"})})

    def category(self, group: int) -> float:
        """The number of a subject's class among those the adapter knows. Raises `InputError` for another one."""
        code = float(self.store.read(CATEGORY, group))
        if not np.isfinite(code):
            return code
        name = self.store.members(CLASS)[int(code)]
        if name not in self.known.classes:
            raise InputError(self.store.url, key=CLASS, found=name, expected=f"one of {', '.join(self.known.classes)}",
                             fix="name classes as in training, or train on a data set that has them all")
        return float(self.known.classes.index(name))

    def attrs(self, group: int) -> dict[str, Any]:
        dataset = self.store.meta.dataset
        return {"domain": DOMAIN, "dataset": dataset, "source": f"{dataset}/{bricks.subjects(self.store)[group]}",
                "intensity": self.intensities(group)}

    def intensities(self, group: int) -> dict[str, list[float]]:
        found = _NUMBERS.get(self._key(group))
        if found is None:
            found = {name: list(intensity(bricks.read(self.store, name, group), self.config.intensity))
                     for name in self.known.modalities}
            _NUMBERS[self._key(group)] = found
        return found

    def places(self, group: int) -> list[np.ndarray]:
        """``(n, 3)`` voxels of every structure that a volume has, ``(n, 4)`` with the frame where they move; background
        left out."""
        found = _PLACES.get(self._key(group))
        if found is None:
            label, found = bricks.read(self.store, LABEL, group), []
            for value in range(1, len(self.known.structures)):
                voxels = np.argwhere(label == value)
                if len(voxels):
                    found.append(voxels[np.linspace(0, len(voxels) - 1, min(len(voxels), MOST_PLACES)).astype(int)])
            _PLACES[self._key(group)] = found
        return found

    def _key(self, group: int) -> tuple[str, str, str, int]:
        return self.store.url, self.store.meta.split_identity(), self.config.intensity.model_dump_json(), group


_NUMBERS: dict[tuple[str, str, str, int], dict[str, list[float]]] = {}
_PLACES: dict[tuple[str, str, str, int], list[np.ndarray]] = {}
"""Of volumes read before in this process: reading a volume whole costs more than a patch of it."""


@dataclass(frozen=True)
class Whole(Sequence[xr.Dataset]):
    """Every volume of a split, whole, asked the task's question."""

    subjects: Subjects
    members: tuple[int, ...]
    task: Task

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        return self.task.draw(self.subjects.sample(self.members[index]), rng, train=False)

    @overload
    def __getitem__(self, index: int) -> xr.Dataset: ...

    @overload
    def __getitem__(self, index: slice) -> Whole: ...

    def __getitem__(self, index: int | slice) -> xr.Dataset | Whole:
        if isinstance(index, slice):
            return Whole(self.subjects, self.members[index], self.task)
        return self.draw(index, *(np.random.default_rng([0, index]) for _ in range(2)))


@dataclass(frozen=True)
class Patches:
    """Boxes of one size, drawn around structures or anywhere, augmented, all frames alike; NaN beyond the volume."""

    subjects: Subjects
    members: tuple[int, ...]
    task: Task
    augmented: dict[str, Any] | None = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members) * self.subjects.config.patches.per_volume

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        group, config = self.members[index % len(self.members)], self.subjects.config
        affine = bricks.affine(self.subjects.store, group)
        window = in_order(config.drawn[:3], affine)
        arrays, affine, times = self._box(group, affine, rng)
        if config.spacing_mm is not None:
            arrays, affine = resampled(arrays, affine, in_order(config.spacing_mm, affine))
        if self.augmented is None:
            arrays, affine = fitted(arrays, affine, window, rng)
        else:
            arrays, affine = changed(arrays, affine, window, rng, self.augmented)
        return self.task.draw(self.subjects.made(arrays, affine, group, times), rng, train=True)

    def _box(self, group: int, affine: np.ndarray,
             rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
        """The file's voxels around the centre of a patch, a little more than the window, and the times of its frames.
        """
        subjects, config = self.subjects, self.subjects.config
        size, wide = np.array(bricks.size(subjects.store, group)), np.array(in_order(config.drawn[:3], affine), float)
        if config.spacing_mm is not None:
            wide *= np.array(in_order(config.spacing_mm, affine)) / affines.spacing(affine)
        reach = np.ceil(wide * (0.5 + (MARGIN if self.augmented is not None else 0.0))).astype(int)
        centre, frame = self._centre(group, size, wide, rng)
        low, high = np.clip(centre - reach, 0, size), np.clip(centre + reach, 0, size)
        frames, times, count = slice(None), None, config.drawn[3:]
        if bricks.FRAME in subjects.store.meta.ragged:
            frames, times = in_time(bricks.times(subjects.store, group), count[0] if count else None, frame, rng)
        arrays = {name: bricks.read(subjects.store, name, group, low, high, frames) for name in subjects.names}
        made = {name: later(array, len(times)) if times is not None and array.ndim == 4 else array
                for name, array in arrays.items()}
        return made, geometry.shifted(affine, low), times

    def _centre(self, group: int, size: np.ndarray, wide: np.ndarray,
                rng: np.random.Generator) -> tuple[np.ndarray, int | None]:
        """A voxel, and the frame in which it is of a structure, where one was chosen that moves."""
        patches, frame = self.subjects.config.patches, None
        if self.task.labelled and rng.random() < patches.foreground and (places := self.subjects.places(group)):
            chosen = places[int(rng.integers(len(places)))]
            centre = chosen[int(rng.integers(len(chosen)))]
            centre, frame = centre[:3], int(centre[3]) if len(centre) > 3 else None
        else:
            centre = rng.integers(size)
        half = np.minimum(wide, size) / 2  # a window that fits lies inside
        return np.clip(centre, np.floor(half), np.ceil(size - half)).astype(int), frame


def in_time(times: np.ndarray, count: int | None, frame: int | None, rng: np.random.Generator,
            ) -> tuple[slice, np.ndarray]:
    """Which of the frames a patch has, `count` that follow one another with `frame` among them, and the seconds of
    them; where there are fewer, all, and seconds that go on. None: all."""
    total = len(times)
    if count is None or count == total:
        return slice(None), times
    if total < count:
        step = times[-1] - times[-2] if total > 1 else 1.0
        return slice(None), np.concatenate([times, times[-1] + step * np.arange(1, count - total + 1)])
    least, most = (0, total - count) if frame is None else (max(0, frame - count + 1), min(frame, total - count))
    start = int(rng.integers(least, most + 1))
    return slice(start, start + count), times[start:start + count]


def later(array: np.ndarray, count: int) -> np.ndarray:
    """``(i, j, k, t)`` lengthened to `count` frames by NaN."""
    if array.shape[3] == count:
        return array
    return np.concatenate([array, np.full((*array.shape[:3], count - array.shape[3]), np.nan, array.dtype)], 3)


def in_order(numbers: Sequence[Any], affine: np.ndarray) -> tuple[Any, ...]:
    """What is given for x, y, z, in the order of the array's axes."""
    return tuple(numbers[geometry.NAMES.index(name)] for name in geometry.anatomy(affine))


def resampled(arrays: Mapping[str, np.ndarray], affine: np.ndarray, spacing: Sequence[float],
              ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``(i, j, k)`` or ``(i, j, k, t)`` arrays on a grid of that spacing over the same extent, linear; a label is the
    structure with the largest share."""
    shape, own = next(iter(arrays.values())).shape[:3], affines.spacing(affine)
    old = [np.arange(n) * step for n, step in zip(shape, own)]
    new = [geometry.grid_at(*each) for each in zip(old, own, spacing)]
    moved = np.array(affine)
    moved[:3, 3] += affine[:3, :3] @ np.array([place[0] / step for place, step in zip(new, own)])
    moved[:3, :3] *= np.array([1.0 if place is before else step / mm
                               for place, before, step, mm in zip(new, old, spacing, own)])
    return {name: (nearest(array, old, new) if name == LABEL else geometry.regridded(array.astype(np.float64), old, new)
                   ).astype(array.dtype) for name, array in arrays.items()}, moved


def nearest(label: np.ndarray, own: Sequence[np.ndarray], places: Sequence[np.ndarray]) -> np.ndarray:
    """The structure with the largest linear share; NaN where that share is of what isn't known."""
    values = np.unique(label[np.isfinite(label)])
    shares = [geometry.regridded((label == value).astype(np.float64), own, places) for value in values]
    shares.append(geometry.regridded(np.isnan(label).astype(np.float64), own, places))
    return np.append(values, np.nan)[np.argmax(np.stack(shares), 0)]


def fitted(arrays: Mapping[str, np.ndarray], affine: np.ndarray, window: Sequence[int], rng: np.random.Generator,
           ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Cut to the window about the middle, or lengthened to it by NaN: where the volume lies in it is drawn."""
    shape = next(iter(arrays.values())).shape[:3]
    cut = [max(0, (n - size) // 2) for n, size in zip(shape, window)]
    before = [int(rng.integers(max(0, size - n) + 1)) for n, size in zip(shape, window)]
    kept = tuple(slice(a, a + size) for a, size in zip(cut, window))
    put = tuple(slice(b, b + min(n, size)) for b, n, size in zip(before, shape, window))
    made = {}
    for name, array in arrays.items():
        made[name] = np.full((*window, *array.shape[3:]), np.nan, array.dtype)
        made[name][put] = array[kept]
    return made, geometry.shifted(affine, np.array(cut) - np.array(before))


def subjects_of(store: Store, known: Known, config: VolumesConfig) -> Subjects:
    """Raises `InputError` if the store is of another domain or has other modalities than the adapter knows."""
    missing = [name for name in known.modalities if name not in store.meta.variables]
    if store.meta.domain != DOMAIN or missing:
        found = f"domain {store.meta.domain}, {', '.join(store.meta.variables)}"
        raise InputError(store.url, key="modalities", found=found,
                         expected=f"volumes with {', '.join(known.modalities)}", fix="use a store of these modalities")
    return Subjects(store, known, config)
