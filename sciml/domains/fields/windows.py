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


@dataclass(frozen=True)
class Frame:
    """What all samples of a store share: coordinates, dims and attributes of variables, axes that may be rolled."""

    store: Store
    space: tuple[str, ...]
    clock: np.ndarray
    coords: xr.Coordinates
    shared: dict[str, tuple[tuple[str, ...], dict[str, Any]]]
    periodic: tuple[bool, ...]

    @classmethod
    def of(cls, store: Store, space: Sequence[str]) -> Frame:
        meta = store.meta
        coords = {}
        for name in space:
            axis = meta.axes[name]
            attrs: dict[str, Any] = {"units": axis.unit} | ({} if axis.period is None else {"period": axis.period})
            coords[name] = xr.Variable((name,), store.coord(name).astype(np.float64), attrs)
        variables = {}
        for name, variable in meta.variables.items():
            if set(variable.dims) <= {"time", *space}:
                described = {"long_name": variable.long_name} if variable.long_name else {}
                variables[name] = (variable.dims, {"units": variable.unit} | described)
        shared = xr.Dataset(coords=coords).coords
        wraps = tuple(meta.axes[n].period is not None and _uniform(coords[n].values) for n in space)
        return cls(store, tuple(space), store.coord("time").astype(np.float64), shared, variables, wraps)

    def sample(self, group: int, times: Sequence[int], shift: Sequence[int] | None = None) -> xr.Dataset:
        """The trajectory `group` at ascending indices of time, rolled by `shift` cells along the axes of space."""
        store, meta = self.store, self.store.meta
        lattice = {}
        for name, (dims, attrs) in self.shared.items():
            values = self._read(name, group, times) if dims[:1] == ("time",) else store.read(name, group)
            if shift is not None and len(dims) > 0:
                places = tuple(i for i, dim in enumerate(dims) if dim in self.space)
                moved = tuple(shift[self.space.index(dims[i])] for i in places)
                values = np.roll(values, moved, places)
            lattice[name] = xr.Variable(dims, values, attrs)
        clock = PandasIndex(self.clock[list(times)], "time")
        now = clock.create_variables()
        now["time"].attrs["units"] = meta.axes["time"].unit
        coords = xr.Coordinates({**self.coords.variables, **now}, indexes={**self.coords.xindexes, "time": clock})
        at = f"{meta.dataset}/{meta.group_dim} {group} @ {times[0]}"
        return xr.Dataset(lattice, coords=coords, attrs={
            "domain": "fields", "dataset": meta.dataset, "source": at, "dt": meta.dt})

    def _read(self, name: str, group: int, times: Sequence[int]) -> np.ndarray:
        first, last = times[0], times[-1]
        if last - first == len(times) - 1:
            return self.store.read(name, group, first, last + 1)
        return np.concatenate([self.store.read(name, group, t, t + 1) for t in times])


def _uniform(place: np.ndarray) -> bool:
    steps = np.diff(place)
    return len(steps) == 0 or bool(np.allclose(steps, steps[0], rtol=1e-4, atol=0))


@dataclass(frozen=True)
class Pairs:
    """Two states of a trajectory, `leads` steps apart: all that fit into the blocks.

    In training an index names the trajectory and the earlier time, the lead and a shift along periodic axes are drawn;
    otherwise it names the lead as well.
    """

    frame: Frame
    leads: tuple[int, ...]
    items: np.ndarray
    random: bool = False
    shift: bool = False

    @classmethod
    def of(cls, frame: Frame, blocks: Sequence[Block], leads: tuple[int, ...], *, random: bool = False,
           shift: bool = False) -> Pairs:
        asked = leads[:1] if random else leads
        rows = [(block.group, t, lead, block.stop) for lead in asked for block in blocks
                for t in range(block.start, block.stop - lead)]
        return cls(frame, leads, np.array(rows, dtype=np.int64).reshape(-1, 4), random, shift)

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        group, start, lead, stop = self.items[index].tolist()
        if self.random:
            fitting = [lead for lead in self.leads if start + lead < stop]
            lead = fitting[int(rng.integers(len(fitting)))]
        moved = None
        if self.shift:
            sizes = [len(self.frame.coords[name]) for name in self.frame.space]
            moved = [int(rng.integers(n)) if wraps else 0 for n, wraps in zip(sizes, self.frame.periodic)]
        return self.frame.sample(group, (start, start + lead), moved)


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
