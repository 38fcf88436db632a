"""Meshes: VTK (.vti, .vtr, .vts, .vtu, .vtp, legacy .vtk, .pvd), XDMF and OpenFOAM cases, through pyvista.

Image data and rectilinear grids are ordinary lattices. Everything else becomes points, which all groups share: states
``(trajectory, time, point)``, their places in the coordinates ``point_x``, ``point_y``, ``point_z`` (without an axis in
which the mesh is flat), the share of the domain that each stands for in ``cell_measure``. Values are taken at points or
at the centres of cells (option `at`; of OpenFOAM always cells). A collection, XDMF with times and a case are one
trajectory each; of single files, several are times or trajectories, as ``stack`` says. One frame only is steady.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.readers import _lattice as lattice
from sciml.data.readers import _mesh_guard as guard
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import limits_of
from sciml.errors import InputError

GROUP, AXES = "trajectory", "xyz"
SERIES = ("Collection", "xdmf", "openfoam")
READERS = {"ImageData": "XMLImageDataReader", "RectilinearGrid": "XMLRectilinearGridReader", "xdmf": "XdmfReader",
           "StructuredGrid": "XMLStructuredGridReader", "UnstructuredGrid": "XMLUnstructuredGridReader",
           "PolyData": "XMLPolyDataReader", "legacy": "VTKDataSetReader", "openfoam": "OpenFOAMReader"}
SYMMETRIC = ("xx", "yy", "zz", "xy", "yz", "xz")
FULL = tuple(a + b for a in AXES for b in AXES)
FLAT = 1e-9


@dataclass(frozen=True)
class Frame:
    """One time of a mesh file: its kind, and the time to ask the file for (None: it has one)."""

    path: str
    kind: str
    time: float | None
    at: str


@dataclass(frozen=True)
class Grid:
    """Where values are. shape: of a lattice, in the order x, y, z without flat axes, else None; measure: what each
    point stands for, and in which power of a length; flat: axes left out."""

    places: tuple[np.ndarray, ...]
    shape: tuple[int, ...] | None
    measure: tuple[np.ndarray, int] | None
    flat: frozenset[str]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in AXES if axis not in self.flat)


@dataclass(frozen=True)
class Mesh:
    """Reads mesh files; a collection, case or file is one group, or a file one time."""

    options: frozenset[str] = frozenset({"at", "stack", "length_unit"})

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        kind = guard.kind_of(path)
        if kind is None:
            return None
        found = _part([path], "trajectory", {})
        points = "point" in found.dims and "units" not in found["point_x"].attrs
        missing = ("options.length_unit: the unit of the points' places",) if points else ()
        found.attrs["missing"] = (*missing, *found.attrs["missing"])
        if kind not in SERIES:
            found.attrs["notes"] = (*found.attrs["notes"], "one frame; if it is one of several, list all under files "
                                    "(out_*.vtu) and say what they are: options: {stack: time}, or trajectory")
        return guess(found, path, options={"length_unit": None} if points else {}, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """State ``(trajectory, time, x…)`` or ``(trajectory, time, point)``; no time of steady ones; lazily."""
        options, where = options_of(source), "" if source is None else source.name
        stack, single = options.get("stack"), [path for path in paths if guard.kind_of(path) not in SERIES]
        if stack not in ("time", "trajectory", None) or (len(single) > 1 and stack is None):
            raise InputError(where, key="options.stack", found=f"{len(single)} files" if stack is None else repr(stack),
                             expected="time or trajectory: what several files are", fix="options: {stack: time}")
        whole = stack == "time" and bool(single)
        groups = [list(paths)] if whole else [[path] for path in paths]
        parts = [_part(sorted(group, key=_numeric), "time" if whole else "trajectory", options) for group in groups]
        for part, group in zip(parts[1:], groups[1:]):
            _same_points(parts[0], part, group[0])
        found = combine(parts, [group[0] for group in groups], source)
        if source is not None and "point" in found.dims and "units" not in found["point_x"].attrs:
            raise InputError(where, key="options.length_unit", found="none", expected="the unit of the points' places",
                             fix="options: {length_unit: m}")
        return found


PLUGIN = Mesh()


def _numeric(path: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _pyvista(where: object) -> Any:
    try:
        import pyvista
    except ImportError:
        raise InputError(where, found="a mesh, and no pyvista", expected="the package that reads it",
                         fix='pip install "sciml[meshes]"') from None
    return pyvista


def _reader(path: str, kind: str) -> Any:
    pyvista = _pyvista(path)
    if kind != "openfoam":
        return getattr(pyvista, READERS[kind])(path)
    reader = pyvista.OpenFOAMReader(str(guard.case_of(path) / "system/controlDict"))
    reader.skip_zero_time, reader.cell_to_point_creation = False, False
    return reader


def _frames(path: str, options: Mapping[str, Any]) -> list[Frame]:
    """What is to be read of one file, guarded."""
    kind, limits, at = guard.kind_of(path), limits_of(options, path), options.get("at", "")
    if at not in ("", "points", "cells"):
        raise InputError(path, key="options.at", found=repr(at), expected="points or cells", fix="correct it")
    if kind is None:
        raise InputError(path, found="no VTK, XDMF or OpenFOAM", expected="a mesh on this machine's disk",
                         fix="see docs/formats.md")
    guard.check(path, kind, limits)
    if kind == "Collection":
        frames = []
        for member in guard.members(path):
            own = guard.kind_of(member.path) or "nothing known"
            guard.check(member.path, own, limits)
            frames.append(Frame(member.path, own, member.time, at))
        return frames
    if kind in ("xdmf", "openfoam"):
        times = _asked(path, lambda: [float(time) for time in _reader(path, kind).time_values])
        return [Frame(path, kind, time, "cells" if kind == "openfoam" else at) for time in times] or [
            Frame(path, kind, None, at)]
    return [Frame(path, kind, None, at)]


def _asked(path: str, ask: Any) -> Any:
    """What VTK answers; its complaints as `InputError`."""
    try:
        return ask()
    except InputError:
        raise
    except Exception as error:
        raise InputError(path, found=" ".join(str(error).split())[:160], expected="a mesh that VTK can read",
                         fix="the file is damaged: copy it again, or see what ParaView makes of it") from None


def _mesh(frame: Frame) -> Any:
    """The data set of a frame: of several blocks the mesh inside, or the one that all the others equal."""
    def ask() -> Any:
        reader = _reader(frame.path, frame.kind)
        if frame.kind in ("xdmf", "openfoam") and frame.time is not None:
            reader.set_active_time_value(frame.time)
        return reader.read()

    data = _asked(frame.path, ask)
    if not hasattr(data, "keys") or hasattr(data, "points"):
        return data
    blocks = {str(key): data[key] for key in data.keys() if data[key] is not None}  # noqa: SIM118
    if frame.kind == "openfoam" and "internalMesh" in blocks:
        return blocks["internalMesh"]
    first = next(iter(blocks.values()), None)
    if first is None or any(not np.array_equal(first.points, block.points) for block in blocks.values()):
        raise InputError(frame.path, found=f"blocks {', '.join(blocks) or 'none'}", expected="one mesh",
                         fix="merge them, or keep one, for example with pyvista")
    return first


@lru_cache(maxsize=4)
def _loaded(frame: Frame) -> tuple[np.ndarray, dict[str, np.ndarray], float | None]:
    """Places ``(n, 3)``, values by array ``(n,)`` or ``(n, k)`` in the order of the file, and the time it states."""
    mesh = _mesh(frame)
    at = frame.at or ("points" if len(mesh.point_data) or not len(mesh.cell_data) else "cells")
    data = mesh.point_data if at == "points" else mesh.cell_data
    places = np.array(mesh.points if at == "points" else mesh.cell_centers().points, np.float64)
    stated = np.asarray(mesh.field_data["TimeValue"]) if "TimeValue" in mesh.field_data else np.zeros(0)
    values = {str(name): np.array(data[name]) for name in data.keys() if not str(name).startswith("vtk")}  # noqa: SIM118
    return places, values, float(stated[0]) if stated.size else frame.time


def _grid(frame: Frame) -> tuple[Grid, str]:
    """Where the values of a frame are, and whether at points or cells."""
    mesh = _mesh(frame)
    at = frame.at or ("points" if len(mesh.point_data) or not len(mesh.cell_data) else "cells")
    places = _loaded(frame)[0]
    size = float(np.ptp(places, axis=0).max(initial=0.0))
    flat = frozenset(axis for i, axis in enumerate(AXES) if np.ptp(places[:, i]) <= FLAT * size)
    kept = [i for i, axis in enumerate(AXES) if axis not in flat]
    if type(mesh).__name__ in ("ImageData", "RectilinearGrid") and len(kept):
        shape = tuple(n if at == "points" else max(1, n - 1) for n in mesh.dimensions)
        lines = [places[:, i].reshape(shape, order="F")[tuple(slice(None) if j == i else 0 for j in range(3))]
                 for i in kept]
        return Grid(tuple(lines), tuple(shape[i] for i in kept), None, flat), at
    return Grid(tuple(places[:, i] for i in kept), None, _measure(mesh, at), flat), at


def _measure(mesh: Any, at: str) -> tuple[np.ndarray, int] | None:
    """The length, area or volume of every cell, and its power; of points their equal share of the cells around."""
    sizes = mesh.compute_cell_sizes(length=True, area=True, volume=True).cell_data
    found = next(((np.abs(np.asarray(sizes[key], np.float64)), power) for key, power in
                  (("Volume", 3), ("Area", 2), ("Length", 1)) if key in sizes and np.abs(sizes[key]).sum() > 0), None)
    if found is None or at == "cells":
        return found
    grid = mesh.cast_to_unstructured_grid()
    corners = np.diff(np.asarray(grid.cell_offsets))
    share = np.zeros(mesh.n_points)
    np.add.at(share, np.asarray(grid.cell_connectivity), np.repeat(found[0] / np.maximum(corners, 1), corners))
    return (share, found[1]) if (share > 0).all() else None


def _part(paths: Sequence[str], stack: str, options: Mapping[str, Any]) -> xr.Dataset:
    """One trajectory: the frames of a file, or of several that are its times."""
    frames = [frame for path in paths for frame in _frames(path, options)]
    first = frames[0]
    grid, at = _grid(first)
    frames = [Frame(frame.path, frame.kind, frame.time, at) for frame in frames]
    places, values, _ = _loaded(frames[0])
    times = [_loaded(frame)[2] if frame.time is None and stack == "time" else frame.time for frame in frames]
    steady = len(frames) == 1
    units = guard.foam_units(first.path, float(times[-1] or 0.0)) if first.kind == "openfoam" else {}
    length = options.get("length_unit") or ("m" if first.kind == "openfoam" else None)
    notes = [f"mesh of {first.kind}: values at {at}"]
    coords = {GROUP: lattice.coordinate(GROUP, np.zeros(1, np.int64), "set")}
    if not steady:
        unstated = any(time is None for time in times)
        notes += ["times are not stated: files are counted"] * unstated
        coords["time"] = lattice.coordinate("time", np.arange(len(frames)) if unstated else times, "time",
                                            "s" if first.kind == "openfoam" else None)
    space = grid.axes if grid.shape is not None else ("point",)
    if grid.shape is None:
        extra = {} if length is None else {"units": length}
        coords["point"] = lattice.coordinate("point", np.arange(len(grid.places[0])), "set")
        coords |= {f"point_{axis}": xr.Variable(("point",), line, extra) for axis, line in zip(grid.axes, grid.places)}
        if grid.measure is not None:
            size, power = grid.measure
            coords["cell_measure"] = xr.Variable(("point",), size, {"units": f"{length}{power}"} if length else {})
    else:
        coords |= {axis: lattice.coordinate(axis, line, "space", length) for axis, line in zip(grid.axes, grid.places)}
    variables = {}
    for name, column, extra in _components(values, _loaded(frames[-1])[1], grid, notes):
        made = [da.from_delayed(dask.delayed(_column)(frame, name[0], column, grid, places.shape), grid.shape or (
            len(places),), np.float64 if values[name[0]].dtype.itemsize > 4 else np.float32) for frame in frames]
        stacked = made[0][None] if steady else da.stack(made)[None]
        dims = (GROUP, *(() if steady else ("time",)), *space)
        variables[name[1]] = lattice.variable(dims, stacked, "state", units.get(name[0]), **extra)
    if not variables:
        raise InputError(first.path, key=at, found="no arrays", expected=f"numbers at {at}",
                         fix="options: {at: cells}, or write the file with its data")
    found = lattice.canonical(variables, coords, domain="fields", format="mesh", group_dim=GROUP, notes=notes)
    return found.assign_attrs(steady=steady)


def _components(values: Mapping[str, np.ndarray], last: Mapping[str, np.ndarray], grid: Grid,
                notes: list[str]) -> Iterator[tuple[tuple[str, str], int | None, dict[str, str]]]:
    """(array, variable), column and attributes of each variable; vectors lose a component along a flat axis if it is
    zero in the first frame and in the last."""
    for name, array in values.items():
        if array.dtype.kind not in "biuf":
            notes.append(f"{name} ({array.dtype}) is not read: it is no number")
            continue
        if array.ndim == 1:
            yield (name, name), None, {}
            continue
        labels = {3: tuple(AXES), 6: SYMMETRIC, 9: FULL}.get(array.shape[1])
        for column, label in enumerate(labels or map(str, range(array.shape[1]))):
            off = bool(labels) and bool(set(label) & grid.flat)
            if off and not array[:, column].any() and not (name in last and last[name][:, column].any()):
                notes.append(f"{name}_{label} is not read: it is zero, and the mesh is flat in it")
                continue
            vector = labels is not None and not off
            yield (name, f"{name}_{label}"), column, {"vector": name, "along": " ".join(label)} if vector else {}


def _column(frame: Frame, name: str, column: int | None, grid: Grid, shape: tuple[int, int]) -> np.ndarray:
    """One variable of one frame. Raises `InputError` if the mesh, or what it holds, is another than the first's."""
    places, values, _ = _loaded(frame)
    own = [places[:, AXES.index(axis)] for axis in grid.axes]
    if places.shape != shape or (grid.shape is None and not all(map(np.allclose, own, grid.places))):
        raise InputError(frame.path, key="points", found=f"{len(places)} at other places, time {frame.time}",
                         expected=f"the {shape[0]} points of the first frame",
                         fix="interpolate to one mesh; meshes that move or differ are not read")
    if name not in values:
        raise InputError(frame.path, key=name, found=f"{', '.join(values) or 'nothing'}", expected="the arrays of the "
                         "first frame", fix="write all arrays at all times, or select times")
    found = values[name] if column is None else values[name][:, column]
    if grid.shape is None:
        return found
    return np.ascontiguousarray(found.reshape(grid.shape[::-1]).transpose())


def _same_points(first: xr.Dataset, part: xr.Dataset, path: str) -> None:
    """Raises `InputError` unless the points of two trajectories are at the same places."""
    for name, coord in first.coords.items():
        if str(name).startswith("point_") and not (name in part.coords and part[name].shape == coord.shape
                                                   and np.allclose(part[name].values, coord.values)):
            raise InputError(path, key="points", found=f"{part.sizes.get('point', 0)} points at other places",
                             expected=f"the {first.sizes['point']} of the first file, as all groups share a mesh",
                             fix="one store per mesh, or interpolate to one")
