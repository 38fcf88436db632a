"""The samples of a split: pairs of states a lead time apart, or stretches of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import xarray as xr
from xarray.indexes import PandasIndex

from sciml.data.schema import Block
from sciml.data.store import Store
from sciml.domains.fields.config import Leads, fitting
from sciml.domains.fields.mesh import MEASURE
from sciml.domains.fields.resolutions import Resolution, coarser
from sciml.domains.fields.symmetry import Motion, Symmetries
from sciml.errors import InputError

Resolutions = tuple[Resolution | None, ...]
"""Grids that training draws from; None is the stored one."""


@dataclass(frozen=True)
class Frame:
    """What all samples of a store share: coordinates, dims and attributes of variables; clock ``(times,)``, None where
    the data are steady."""

    store: Store
    space: tuple[str, ...]
    clock: np.ndarray | None
    coords: xr.Coordinates
    shared: dict[str, tuple[tuple[str, ...], dict[str, Any]]]

    @classmethod
    def of(cls, store: Store, space: Sequence[str]) -> Frame:
        meta = store.meta
        coords = {}
        for name in space:
            axis = meta.axes[name]
            attrs: dict[str, Any] = {"units": axis.unit} | ({} if axis.period is None else {"period": axis.period})
            coords[name] = xr.Variable((name,), store.coord(name).astype(np.float64), attrs)
            if axis.places:
                given = store.lazy().coords
                coords |= {key: given[key].variable.load() for key in (*axis.places, MEASURE) if key in given}
        variables = {}
        for name, variable in meta.variables.items():
            if set(variable.dims) <= {"time", *space}:
                described = {"long_name": variable.long_name} if variable.long_name else {}
                variables[name] = (variable.dims, {"units": variable.unit} | described)
        clock = store.coord("time").astype(np.float64) if "time" in meta.axes else None
        return cls(store, tuple(space), clock, xr.Dataset(coords=coords).coords, variables)

    def symmetries(self, augment: Sequence[str]) -> Symmetries | None:
        """What samples of training are moved by; None if nothing is asked for, or points that have no order."""
        if any(self.store.meta.axes[name].places for name in self.space):
            if set(augment) - {"shift"}:
                raise InputError(self.store.url, key="augment", found=", ".join(augment),
                                 expected="none: points aren't mirrored or turned", fix="domains.fields.augment: []")
            return None
        places = {name: self.coords[name].values for name in self.space}
        return Symmetries.of(self.store.meta, places, augment, self.store.url) if augment else None

    def resolutions(self, shares: Sequence[float]) -> Resolutions:
        return coarser(self.store.meta, self.coords, self.space, shares, self.store.url)

    def sample(self, group: int, times: Sequence[int] = (), motion: Motion | None = None,
               resolution: Resolution | None = None) -> xr.Dataset:
        """The trajectory `group` at ascending indices of time (none of steady data), moved, then filtered."""
        meta, lattice = self.store.meta, {}
        for name, (dims, attrs) in self.shared.items():
            source, sign = (name, 1) if motion is None else motion.part(name)
            values = self._read(source, group, times, self.shared[source][0])
            if motion is not None:
                dims = self.shared[source][0]
                values = motion.move(values, dims)
                values = -values if sign < 0 else values
            values = values if resolution is None else resolution.filtered(values, dims)
            lattice[name] = xr.Variable(dims, values, attrs)
        attrs = {"domain": "fields", "dataset": meta.dataset, "source": f"{meta.dataset}/{meta.group_dim} {group}"}
        space = self.coords if resolution is None else resolution.coords
        if self.clock is None:
            return xr.Dataset(lattice, coords=space, attrs=attrs)
        clock = PandasIndex(self.clock[list(times)], "time")
        now = clock.create_variables()
        now["time"].attrs["units"] = meta.axes["time"].unit
        coords = xr.Coordinates({**space.variables, **now}, indexes={**space.xindexes, "time": clock})
        return xr.Dataset(lattice, coords=coords, attrs={**attrs, "source": f"{attrs['source']} @ {times[0]}",
                                                         "dt": meta.dt})

    def _read(self, name: str, group: int, times: Sequence[int], dims: Sequence[str]) -> np.ndarray:
        if dims[:1] != ("time",):
            return self.store.read(name, group)
        first, last = times[0], times[-1]
        if last - first == len(times) - 1:
            return self.store.read(name, group, first, last + 1)
        return np.concatenate([self.store.read(name, group, t, t + 1) for t in times])


@dataclass(frozen=True)
class Pairs:
    """`steps` + 1 states of a trajectory, neighbours `lead` steps of the data apart: every one that fits into a block,
    the shortest lead first.

    In training (`random`) an index stands for a share of them, as many indices as there are at the shortest lead, and
    the sample is drawn from its share: uniformly over all (ordered) pairs of states, if all leads are allowed, and
    every epoch has every lead about as often as it has pairs. rows ``(R, 3)``: lead, group, first time; ends ``(R,)``:
    how many samples there are up to the end of a row. resolutions: of which a batch draws one for all its samples.
    """

    frame: Frame
    rows: np.ndarray
    ends: np.ndarray
    length: int
    steps: int = 1
    random: bool = False
    symmetries: Symmetries | None = None
    resolutions: Resolutions = (None,)

    @classmethod
    def of(cls, frame: Frame, blocks: Sequence[Block], leads: Leads, *, steps: int = 1, random: bool = False,
           augment: Sequence[str] = (), resolutions: Sequence[float] = (1,)) -> Pairs:
        longest = max((block.stop - block.start for block in blocks), default=0)
        places = [(lead, block, block.stop - block.start - lead * steps)
                  for lead in fitting(leads, (longest - 1) // steps) for block in blocks]
        rows = [(lead, block.group, block.start) for lead, block, count in places if count > 0]
        counts = np.array([count for *_, count in places if count > 0], dtype=np.int64)
        shortest = sum(count for lead, _, count in places if count > 0 and lead == rows[0][0])
        return cls(frame, np.array(rows, dtype=np.int64).reshape(-1, 3), counts.cumsum(),
                   shortest if random else int(counts.sum()), steps, random, frame.symmetries(augment),
                   frame.resolutions(resolutions))

    def __len__(self) -> int:
        return self.length

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        """Raises `InputError` if no block is as long as the shortest lead."""
        if not len(self.ends):
            raise InputError(self.frame.store.url, key="splits", found="a part with less time than a lead",
                             expected=f"{self.steps + 1} states, a lead apart each, in train, validation and test",
                             fix="give that part more time in the source file, split by group, or take shorter leads")
        total = int(self.ends[-1])
        if self.random and total > len(self):
            index = (index * total + int(rng.integers(total))) // len(self)
        row = int(np.searchsorted(self.ends, index, side="right"))
        lead, group, first = self.rows[row].tolist()
        start = first + index - (int(self.ends[row - 1]) if row else 0)
        motion = self.symmetries.draw(rng) if self.symmetries is not None else None
        times = range(start, start + self.steps * lead + 1, lead)
        return self.frame.sample(group, times, motion, _common(self.resolutions, batch_rng))


def _common(resolutions: Resolutions, batch_rng: np.random.Generator) -> Resolution | None:
    """The one of a batch: its samples are stacked, on all ranks alike."""
    return resolutions[int(batch_rng.integers(len(resolutions)))] if len(resolutions) > 1 else resolutions[0]


@dataclass(frozen=True)
class Cases:
    """The trajectories of steady data: a problem with its solution each."""

    frame: Frame
    groups: tuple[int, ...]
    symmetries: Symmetries | None = None
    resolutions: Resolutions = (None,)

    @classmethod
    def of(cls, frame: Frame, blocks: Sequence[Block], augment: Sequence[str] = (),
           resolutions: Sequence[float] = (1,)) -> Cases:
        return cls(frame, tuple(dict.fromkeys(block.group for block in blocks)), frame.symmetries(augment),
                   frame.resolutions(resolutions))

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        motion = self.symmetries.draw(rng) if self.symmetries is not None else None
        return self.frame.sample(self.groups[index], (), motion, _common(self.resolutions, batch_rng))


@dataclass(frozen=True)
class Stretches:
    """`steps` + 1 consecutive states, one stretch after the other without overlap, from the start of every block."""

    frame: Frame
    steps: int
    items: np.ndarray

    @classmethod
    def of(cls, frame: Frame, blocks: Sequence[Block], steps: int) -> Stretches:
        rows = [(block.group, t) for block in blocks for t in range(block.start, block.stop - steps, steps)]
        return cls(frame, steps, np.array(rows, dtype=np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        group, start = self.items[index].tolist()
        return self.frame.sample(group, range(start, start + self.steps + 1))


@dataclass(frozen=True)
class Blocks(Sequence[xr.Dataset]):
    """All the states of each block, read when it is asked for."""

    frame: Frame
    blocks: Sequence[Block]

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, index: int) -> xr.Dataset: ...

    @overload
    def __getitem__(self, index: slice) -> Blocks: ...

    def __getitem__(self, index: int | slice) -> xr.Dataset | Blocks:
        if isinstance(index, slice):
            return Blocks(self.frame, self.blocks[index])
        block = self.blocks[index]
        return self.frame.sample(block.group, range(block.start, block.stop))
