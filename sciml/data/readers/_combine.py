"""Several files as one data set, and what a source.yaml says about it put onto it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sciml.data import units
from sciml.data.ragged import dims_of
from sciml.data.readers._lattice import EDGES, edge_codes
from sciml.data.readers.guess import UNIFORM, numbers
from sciml.errors import InputError


def options_of(source: Any) -> Mapping[str, Any]:
    """The reader's options of a source; none while a file is only being looked at."""
    return {} if source is None else dict(source.options)


def combine(parts: Sequence[xr.Dataset], paths: Sequence[str], source: Any) -> xr.Dataset:
    """Files with the same time axis are joined along the group dimension, files that follow one another along time.

    Raises `InputError` naming the file whose variables or grid differ from the first one's.
    """
    if not parts:
        raise InputError("source", key="files", found="no files", expected="at least one", fix="list them under files")
    first, group = parts[0], parts[0].attrs["group_dim"]
    for part, path in zip(parts[1:], paths[1:]):
        _check_alike(first, part, path, group)
    if len(parts) == 1:
        joined = first
    elif all(_same_time(first, part) for part in parts[1:]):
        joined = _along(parts, group)
        numbered = xr.Variable((group,), np.arange(joined.sizes[group]), first[group].attrs)
        joined = joined.assign_coords({group: numbered})
    else:
        order = sorted(range(len(parts)), key=lambda i: parts[i]["time"].values[0])
        _check_consecutive(parts, paths, order, group)
        if first.attrs["domain"] == "fields" and not (source is not None and "time" in source.axes
                                                      and not source.axes["time"].uniform):
            _check_steps([parts[i] for i in order], [paths[i] for i in order])
        joined = _along([parts[i] for i in order], "time")
    return _select(joined, options_of(source), paths[0]).assign_attrs(_merged_attrs(parts))


def _along(parts: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    return xr.concat(parts, dim=dim, data_vars="minimal", coords="minimal", compat="override", join="override",
                     combine_attrs="override")


def _merged_attrs(parts: Sequence[xr.Dataset]) -> dict[str, Any]:
    lists = {key: tuple(dict.fromkeys(text for part in parts for text in part.attrs[key]))
             for key in ("notes", "missing", "suspicious")}
    return {**parts[0].attrs, **lists}


def _check_alike(first: xr.Dataset, part: xr.Dataset, path: str, group: str) -> None:
    if set(first.data_vars) != set(part.data_vars):
        differing = ", ".join(sorted(map(str, set(first.data_vars) ^ set(part.data_vars))))
        raise InputError(path, found=f"other variables than the first file: {differing}",
                         expected=f"{', '.join(map(str, first.data_vars))}", fix="list only files of one kind")
    for name in first.data_vars:
        if first[name].dims != part[name].dims:
            raise InputError(path, key=name, found=f"dimensions {part[name].dims}", expected=f"{first[name].dims}",
                             fix="list only files of one kind")
    _check_described(first, part, path)
    for dim in first.sizes:
        if dim in (group, "time"):
            continue
        same = first.sizes[dim] == part.sizes[dim]
        if same and dim in first.coords and dim in part.coords:
            same = _close(first[dim].values, part[dim].values)
        if not same:
            ours, theirs = (f"{one.sizes[dim]} points" + (f", {one[dim].values[0]} … {one[dim].values[-1]}"
                            if dim in one.coords else "") for one in (part, first))
            raise InputError(path, key=dim, found=f"another grid ({ours})", expected=f"the first file's ({theirs})",
                             fix="one store per grid; turn or sort files whose axis runs another way")


def _check_described(first: xr.Dataset, part: xr.Dataset, path: str) -> None:
    """Raises `InputError` where a variable or axis is in another unit, along another axis, or of another period."""
    for name in [str(name) for name in first.variables if name in part.variables]:
        for attr in ("units", "vector", "along", "period"):
            theirs, ours = (one[name].attrs.get(attr) for one in (first, part))
            if theirs is None or ours is None or theirs == ours or (
                    attr == "units" and units.same(str(theirs), str(ours), where=path, key=name)) or (
                    attr == "period" and np.isclose(theirs, ours)):
                continue
            raise InputError(path, key=f"{name}, {attr}", found=repr(ours), expected=f"{theirs!r}, the first file's",
                             fix="convert or mend the file (values are never converted); if channels are swapped, "
                             "build these files by themselves with the keys exchanged under variables")


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        return bool(np.allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max(initial=0.0)))
    return bool(np.array_equal(a, b))


def _same_time(first: xr.Dataset, part: xr.Dataset) -> bool:
    if "time" not in first.coords:
        return True
    return first.sizes["time"] == part.sizes["time"] and _close(first["time"].values, part["time"].values)


def _check_consecutive(parts: Sequence[xr.Dataset], paths: Sequence[str], order: Sequence[int], group: str) -> None:
    for before, after in itertools.pairwise(order):
        a, b = parts[before], parts[after]
        if a.sizes[group] != b.sizes[group] or not a["time"].values[-1] < b["time"].values[0]:
            raise InputError(paths[after], key="time",
                             found=f"{b['time'].values[0]} … {b['time'].values[-1]} in {b.sizes[group]} groups",
                             expected=f"the same times as {paths[before]}, or times after {a['time'].values[-1]} "
                                      f"in {a.sizes[group]} groups", fix="one store per time axis, or mend the times")


def _check_steps(parts: Sequence[xr.Dataset], paths: Sequence[str]) -> None:
    """Raises `InputError` naming the first file whose time step is another than that of the files before."""
    steps = [(path, float(np.median(np.diff(numbers(part["time"].values))))) for part, path in zip(parts, paths)
             if part.sizes["time"] > 1]
    for path, step in steps[1:]:
        if not np.isclose(step, steps[0][1], rtol=UNIFORM, atol=0):
            raise InputError(path, key="time", found=f"steps of {step:g}", expected=f"{steps[0][1]:g}, as in "
                             f"{steps[0][0]}", fix="one store per time step, or resample; axes: {time: {uniform: "
                             "false}} keeps them, and can't be trained on")


def _select(dataset: xr.Dataset, options: Mapping[str, Any], where: object) -> xr.Dataset:
    """``select: {trajectory: [0, 100], time: [0, 50]}``: start and stop indices per dimension."""
    ranges = {}
    for dim, bounds in options.get("select", {}).items():
        if dim not in dataset.sizes or not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
            raise InputError(where, key=f"options.select.{dim}", found=repr(bounds),
                             expected=f"[start, stop] of one of {', '.join(map(str, dataset.sizes))}", fix="correct it")
        start, stop = (int(b) for b in bounds)
        if not 0 <= start < stop <= dataset.sizes[dim]:
            raise InputError(where, key=f"options.select.{dim}", found=f"[{start}, {stop}]",
                             expected=f"0 ≤ start < stop ≤ {dataset.sizes[dim]}", fix="correct it")
        ranges[dim] = slice(start, stop)
    return dataset.isel(ranges)


def bounds(dataset: xr.Dataset, source: Any) -> dict[str, xr.Variable]:
    """The boundary codes that ``boundaries: {x: wall, y: [open, dirichlet]}`` gives for files that state none.

    Raises `InputError` for an unknown axis or kind, and for what the files state themselves.
    """
    added: dict[str, xr.Variable] = {}
    for dim, given in options_of(source).get("boundaries", {}).items():
        kinds, group = [given, given] if isinstance(given, str) else given, dataset.attrs["group_dim"]
        key = f"options.boundaries.{dim}"
        space = [str(name) for name, coord in dataset.coords.items() if coord.attrs.get("kind") == "space"]
        told = [kind for kind in EDGES if kind != "periodic"]
        if dim not in space or not isinstance(kinds, list) or len(kinds) != 2 or not set(map(str, kinds)) <= set(told):
            raise InputError(source.name, key=key, found=repr(given), expected=f"of an axis among {', '.join(space)} "
                             f"one of {', '.join(told)}, or two for its low and high end",
                             fix=f"correct it; of periodic ones axes: {{{dim}: {{period: …}}}}")
        codes = edge_codes(str(dim), kinds, group, dataset.sizes[group])
        stated = [name for name in codes if name in dataset or "period" in dataset[dim].attrs]
        if stated:
            raise InputError(source.name, key=key, found=f"{kinds} where the files state what axis {dim} ends in",
                             expected="boundaries of axes that have none", fix="remove it")
        added |= codes
    return added


def named(dataset: xr.Dataset, source: Any, where: object) -> xr.Dataset:
    """The variables that the source lists (all, if none) under its names and in its order of dimensions.

    Of events all coordinates are kept: time and units are what they are read by, though no variable has them. A
    variable read as steady loses its single frame where the source leaves time out of its dims, or calls it forcing.
    Raises `InputError` for a key or a dimension that the files lack.
    """
    if not source.variables:
        return dataset
    ragged, group, kept = dims_of(dataset), dataset.attrs["group_dim"], {}
    for name, spec in source.variables.items():
        key = spec.key or name
        if key not in dataset.data_vars:
            raise InputError(where, key=f"variables.{name}", found=f"no variable {key!r} in the files",
                             expected=f"one of {', '.join(map(str, dataset.data_vars))}",
                             fix="set key to the file's name; sciml data sniff lists them")
        item = dataset[key]
        if _steady(dataset, spec) and "time" in item.dims:
            item = item.isel(time=0)
        if spec.dims is not None:
            own = tuple(str(d) for d in item.dims if d != group)
            if sorted(spec.dims) != sorted(own):
                raise InputError(where, key=f"variables.{name}.dims", found=f"{spec.dims}",
                                 expected=f"{own} in some order", fix="list the dimensions that the file has")
            item = item.transpose(*(d for d in (group,) if d in item.dims), *spec.dims)
        kept[name] = item.variable
    dims = {dim for item in kept.values() for dim in item.dims}
    coords = {name: coord.variable for name, coord in dataset.coords.items() if ragged or set(coord.dims) <= dims}
    return xr.Dataset(kept, coords, dataset.attrs)


def _steady(dataset: xr.Dataset, spec: Any) -> bool:
    left_out = spec.role in ("forcing", "mask") if spec.dims is None else "time" not in spec.dims
    return dataset.sizes.get("time") == 1 and left_out
