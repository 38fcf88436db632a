"""The Well's HDF5 layout (PolymathicAI/the_well, docs/data_format.md).

``t0_fields``, ``t1_fields``, ``t2_fields`` hold scalars, vectors, tensors ``(sample?, time?, x?, y?, z?[, D[, D]])``;
the attributes ``sample_varying``, ``time_varying`` and ``dim_varying`` say which axes an array has. Absent attributes
are read off the rank. What varies in time is state, the rest forcing; ``scalars`` and root attributes named in
``simulation_parameters`` are parameters, and scalars that vary in time become forcing, constant in space. A vector
``velocity`` becomes ``velocity_x, velocity_y`` (attributes ``vector``, ``along``), a tensor ``D_xx, D_xy, …``,
symmetric ones the upper triangle only. A dimension whose periodic boundary covers both ends has a period of n spacings
(point n + 1 would be point 1 again); other boundaries become codes ``boundary_x_low``, ``boundary_x_high``: 0 wall,
1 open, 2 periodic, 3 Dirichlet, 4 Neumann. An end that no boundary names is open where the other end of its axis is
named, as in the_well's own reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.files import head
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, limits_of, open_hdf5
from sciml.errors import InputError

GROUP = "trajectory"
PERIODIC = ("periodic", "periodic")
ORDERS = ("t0_fields", "t1_fields", "t2_fields")


@dataclass(frozen=True)
class Layout:
    """Sizes shared by all arrays of one file."""

    url: str
    samples: int
    steps: int
    space: Mapping[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def full(self) -> tuple[int, ...]:
        return (self.samples, self.steps, *self.space.values())


@dataclass(frozen=True)
class TheWell:
    """Reads The Well's files; one trajectory is one group."""

    options: frozenset[str] = frozenset()

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if head(path, 8) != HDF5_MAGIC:
            return None
        with open_hdf5(path) as file:
            if not any(order in file for order in ORDERS):
                return None
        return guess(self.read([path], None), path, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """State ``(trajectory, time, x[, y[, z]])``, forcing ``(trajectory, x…)``, parameters, lazily."""
        return combine([_read(str(path), options_of(source)) for path in paths], paths, source)


PLUGIN = TheWell()


def _read(url: str, options: Mapping[str, Any]) -> xr.Dataset:
    with open_hdf5(url, limits_of(options, url)) as file:
        layout = _layout(url, file)
        coords = {GROUP: lattice.coordinate(GROUP, np.arange(layout.samples), "set"), "time": _time(url, file, layout)}
        variables: dict[str, xr.Variable] = {}
        for order, group in enumerate(ORDERS):
            for name in _names(file, group):
                variables.update(_field(url, file[group][name], name, order, layout))
        variables.update(_scalars(url, file, layout))
        edges = _boundaries(file, layout)
        for dim in layout.space:
            coords[dim] = _space(url, file, dim, edges.get(dim))
            if edges.get(dim, PERIODIC) != PERIODIC:
                variables.update(lattice.edge_codes(dim, edges[dim], GROUP, layout.samples))
        notes = [*layout.notes]
        if "grid_type" in file.attrs and lattice.as_text(file.attrs["grid_type"]) != "cartesian":
            notes.append(f"grid_type {lattice.as_text(file.attrs['grid_type'])}: coordinates are not Cartesian")
        missing = () if "time" in file.get("dimensions", {}) else ("time axis: steps are counted 0, 1, …",)
    return lattice.canonical(variables, coords, domain="fields", format="the_well", group_dim=GROUP, notes=notes,
                             missing=missing)


def _names(file: Any, group: str) -> list[str]:
    if group not in file:
        return []
    listed = file[group].attrs.get("field_names")
    names = lattice.as_names(listed) if listed is not None else sorted(file[group])
    absent = [name for name in names if name not in file[group]]
    if absent:
        raise InputError(file.filename, key=f"{group}.field_names", found=f"{absent[0]!r} without a data set",
                         expected=f"names among {', '.join(file[group])}", fix="correct the attribute or add the data")
    return names


def _layout(url: str, file: Any) -> Layout:
    dimensions = file.get("dimensions", {})
    arrays = [(order, file[group][name]) for order, group in enumerate(ORDERS) for name in _names(file, group)]
    if not arrays:
        raise InputError(url, key="t0_fields", found="no fields", expected="at least one array in t0_fields, "
                         "t1_fields or t2_fields", fix="check that the file was written completely")
    fullest = max(arrays, key=lambda pair: pair[1].ndim - pair[0])
    order, array = fullest
    lattice_shape = array.shape[: array.ndim - order]
    if "spatial_dims" in getattr(dimensions, "attrs", {}):
        names = lattice.as_names(dimensions.attrs["spatial_dims"])
    else:
        names = list("xyz")[: len(lattice_shape) - 2]
    if len(lattice_shape) != 2 + len(names):
        raise InputError(url, key=array.name, found=f"shape {array.shape}",
                         expected=f"(trajectory, time, {', '.join(names)}{', D' * order})",
                         fix="correct dimensions.spatial_dims, or keep the axes that do not vary with size 1")
    if int(file.attrs.get("n_spatial_dims", len(names))) != len(names):
        raise InputError(url, key="n_spatial_dims", found=file.attrs["n_spatial_dims"],
                         expected=f"{len(names)}, as {array.name} {array.shape} has", fix="correct the attribute")
    samples = int(file.attrs.get("n_trajectories", lattice_shape[0]))
    layout = Layout(url, samples, lattice_shape[1], dict(zip(names, lattice_shape[2:])))
    for dim, size in layout.space.items():
        if dim in dimensions and dimensions[dim].shape[-1] != size:
            raise InputError(url, key=f"dimensions/{dim}", found=f"{dimensions[dim].shape[-1]} coordinates",
                             expected=f"{size}, as in {array.name}", fix="write the coordinates of this grid")
    return layout


def _flag(item: Any, name: str, default: bool) -> bool:
    return bool(np.asarray(item.attrs.get(name, default)).reshape(-1)[0])


def _varies(url: str, item: Any, rank: int, layout: Layout) -> tuple[bool, bool, list[bool]]:
    """Whether an array varies by sample and in time, and which of the space axes it has."""
    space = len(layout.space)
    varying = [bool(v) for v in np.asarray(item.attrs.get("dim_varying", [True] * space)).reshape(-1)]
    if len(varying) != space:
        raise InputError(url, key=f"{item.name}@dim_varying", found=varying,
                         expected=f"one truth value for each of {', '.join(layout.space)}", fix="correct the attribute")
    leading = rank - (space if rank >= space + 2 else sum(varying))
    steps_first = leading == 1 and item.shape[0] == layout.steps != layout.samples
    by_sample = _flag(item, "sample_varying", leading >= 2 or (leading == 1 and not steps_first))
    in_time = _flag(item, "time_varying", leading - by_sample >= 1)
    kept = rank == by_sample + in_time + space
    return by_sample, in_time, [True] * space if kept else varying


def _full_lattice(url: str, item: Any, order: int, layout: Layout) -> tuple[da.Array, bool]:
    """The array on (trajectory, time?, *space, *components) and whether it varies in time."""
    rank = item.ndim - order
    by_sample, in_time, space = _varies(url, item, rank, layout)
    has = [by_sample, *([True] if in_time else []), *space]
    want = [layout.samples, *([layout.steps] if in_time else []), *layout.space.values()]
    expected = [n for n, here in zip(want, has) if here]
    if rank != len(expected) or any(a not in (1, b) for a, b in zip(item.shape, expected)):
        raise InputError(url, key=item.name, found=f"shape {item.shape}",
                         expected=f"{tuple(expected)} and {order} component axes, by its *_varying attributes",
                         fix="correct the attributes or the array")
    array = lattice.lazy(lattice.h5_array(url, item), where=url, key=item.name, lead=int(by_sample))
    absent = [axis for axis, here in enumerate(has) if not here]
    return lattice.repeat(array, [*want, *item.shape[rank:]], absent), in_time


def _field(url: str, item: Any, name: str, order: int, layout: Layout) -> Iterator[tuple[str, xr.Variable]]:
    array, in_time = _full_lattice(url, item, order, layout)
    dims = (GROUP, *(["time"] if in_time else []), *layout.space)
    role, unit = "state" if in_time else "forcing", _unit(item)
    if order == 0:
        yield name, lattice.variable(dims, array, role, unit)
        return
    axes = list(layout.space)
    if any(n != len(axes) for n in item.shape[item.ndim - order:]):
        raise InputError(url, key=item.name, found=f"{item.shape[item.ndim - order:]} components",
                         expected=f"{len(axes)} for each of the {order} component axes", fix="write one per dimension")
    if order == 1:
        for i, axis in enumerate(axes):
            yield f"{name}_{axis}", lattice.variable(dims, array[..., i], role, unit, vector=name, along=axis)
        return
    symmetric, antisymmetric = _flag(item, "symmetric", False), _flag(item, "antisymmetric", False)
    for i, first in enumerate(axes):
        for j, second in enumerate(axes):
            if (symmetric and i > j) or (antisymmetric and i >= j):
                continue
            yield f"{name}_{first}{second}", lattice.variable(dims, array[..., i, j], role, unit, vector=name,
                                                              along=f"{first} {second}")


def _unit(item: Any) -> str | None:
    for key in ("units", "unit"):
        if key in item.attrs:
            return lattice.as_text(item.attrs[key])
    return None


def _scalars(url: str, file: Any, layout: Layout) -> Iterator[tuple[str, xr.Variable]]:
    done = set()
    for name in _names(file, "scalars"):
        item, values = file["scalars"][name], np.asarray(file["scalars"][name][()], dtype=np.float64)
        done.add(name)
        in_time = _flag(item, "time_varying", values.size == layout.steps > 1 and values.ndim == 1)
        by_sample = _flag(item, "sample_varying", not in_time and values.size == layout.samples > 1)
        want = ([layout.samples] if by_sample else []) + ([layout.steps] if in_time else [])
        if values.size != int(np.prod(want, dtype=int)):
            raise InputError(url, key=f"scalars/{name}", found=f"shape {values.shape}", expected=f"{tuple(want) or 1}",
                             fix="correct sample_varying and time_varying, or the array")
        values = values.reshape([layout.samples if by_sample else 1, *([layout.steps] if in_time else [])])
        if not in_time:
            yield name, lattice.variable((GROUP,), np.broadcast_to(values, (layout.samples,)).copy(), "parameter",
                                         _unit(item))
            continue
        spread = values.reshape(*values.shape, *[1] * len(layout.space)).astype(np.float32)
        field_like = da.from_array(spread, chunks=(1, *spread.shape[1:]))
        yield name, lattice.variable((GROUP, "time", *layout.space), lattice.repeat(field_like, layout.full, ()),
                                     "forcing", _unit(item))
    for name in lattice.as_names(file.attrs.get("simulation_parameters", [])):
        value = np.asarray(file.attrs.get(name, np.nan))
        if name not in done and value.size == 1 and value.dtype.kind in "biuf" and np.isfinite(value).all():
            yield name, lattice.variable((GROUP,), np.full(layout.samples, float(value.reshape(()))), "parameter")


def _time(url: str, file: Any, layout: Layout) -> xr.Variable:
    dimensions = file.get("dimensions", {})
    if "time" not in dimensions:
        return lattice.coordinate("time", np.arange(layout.steps), "time")
    item = dimensions["time"]
    values = np.asarray(item[()])
    if values.shape[-1] != layout.steps:
        raise InputError(url, key="dimensions/time", found=f"{values.shape[-1]} times", expected=f"{layout.steps}",
                         fix="write one time per step")
    if values.ndim == 2:
        rows = values.astype(np.float64) - values[:, :1].astype(np.float64)
        tolerance = 1e-3 * np.abs(np.diff(rows[0])).max(initial=0.0)
        if np.abs(rows - rows[0]).max(initial=0.0) > tolerance:
            row = int(np.abs(rows - rows[0]).max(axis=1).argmax())
            raise InputError(url, key="dimensions/time", found=f"other steps in trajectory {row} than in trajectory 0",
                             expected="one time axis for all trajectories of a store",
                             fix="build one store per time axis: options: {select: {trajectory: [start, stop]}}")
        if (values != values[0]).any():
            layout.notes.append("trajectories start at different times; time counts from each start")
            values = rows
        values = values[0]
    return lattice.coordinate("time", values, "time", _unit(item))


def _space(url: str, file: Any, dim: str, edges: tuple[str, str] | None) -> xr.Variable:
    dimensions = file.get("dimensions", {})
    attrs: dict[str, Any] = {} if edges is None or "periodic" in edges else {"bounded": " ".join(edges)}
    if dim not in dimensions:
        size = _layout(url, file).space[dim]
        return lattice.coordinate(dim, np.arange(size), "space", **attrs)
    item = dimensions[dim]
    values = np.asarray(item[()])
    if values.ndim > 1 and (values != values[0]).any():
        raise InputError(url, key=item.name, found="coordinates that differ between trajectories",
                         expected="one grid for all trajectories of a store", fix="build one store per grid")
    values = values.reshape(-1, values.shape[-1])[0]
    period = None
    if edges == PERIODIC and len(values) > 1:
        wide = values.astype(np.float64)
        period = float(abs(wide[-1] - wide[0]) * len(wide) / (len(wide) - 1))
    return lattice.coordinate(dim, values, "space", _unit(item), period=period, **attrs)


def _boundaries(file: Any, layout: Layout) -> dict[str, tuple[str, str]]:
    """Dimension → kinds at its low and high end. A boundary inside the domain, or at part of an end, is a note."""
    edges: dict[str, list[str]] = {}
    for name, item in file.get("boundary_conditions", {}).items():
        kind = lattice.as_text(item.attrs.get("bc_type", "")).lower()
        dims = lattice.as_names(item.attrs.get("associated_dims", []))
        known = kind in lattice.EDGES and bool(dims) and all(dim in layout.space for dim in dims)
        ends = _ends(item, dims, kind, layout) if known else {}
        if not ends:
            told = f"{kind or 'no bc_type'} on {', '.join(dims) or 'no dims'}"
            layout.notes.append(f"boundary {name} ({told}) is not read")
        for dim, at in ends.items():
            now = edges.setdefault(dim, ["", ""])
            now[:] = [kind if here else before for here, before in zip(at, now)]
    return {dim: (low or "open", high or "open") for dim, (low, high) in edges.items()}


def _ends(item: Any, dims: Sequence[str], kind: str, layout: Layout) -> dict[str, tuple[bool, bool]]:
    """Dimension → whether a boundary's mask holds all of its low and of its high end; without a mask it holds both, as
    does a periodic one, which can't hold one end only. The_well's dummy data has periodic masks that are empty."""
    shape = tuple(layout.space[dim] for dim in dims)
    mask = np.asarray(item["mask"][()]).astype(bool) if "mask" in item else np.ones(shape, bool)
    lead = mask.ndim - len(shape)
    if lead < 0 or mask.shape[lead:] != shape:
        return {}
    mask = mask.reshape(-1, *shape)
    if not mask.size or (mask != mask[:1]).any():
        return {}
    found = {dim: (bool(mask[0].take(0, axis).all()), bool(mask[0].take(-1, axis).all()))
             for axis, dim in enumerate(dims)}
    if kind == "periodic" and len(dims) == 1:
        return {dims[0]: (True, True)}
    return {dim: at for dim, at in found.items() if any(at)}
