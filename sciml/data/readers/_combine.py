"""Several files as one data set, and what a source.yaml says about it put onto it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.readers.guess import is_uniform, numbers
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
        joined = joined.assign_coords({group: first[group].variable.copy(data=np.arange(joined.sizes[group]))})
    else:
        order = sorted(range(len(parts)), key=lambda i: parts[i]["time"].values[0])
        _check_consecutive(parts, paths, order, group)
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
    for dim in first.sizes:
        if dim in (group, "time"):
            continue
        same = first.sizes[dim] == part.sizes[dim]
        if same and dim in first.coords and dim in part.coords:
            same = _close(first[dim].values, part[dim].values)
        if not same:
            raise InputError(path, key=dim, found=f"another grid ({part.sizes[dim]} points)",
                             expected=f"that of the first file ({first.sizes[dim]} points)", fix="one store per grid")


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        return bool(np.allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max(initial=0.0)))
    return bool(np.array_equal(a, b))


def _same_time(first: xr.Dataset, part: xr.Dataset) -> bool:
    if "time" not in first.coords:
        return True
    return first.sizes["time"] == part.sizes["time"] and _close(first["time"].values, part["time"].values)


def _check_consecutive(parts: Sequence[xr.Dataset], paths: Sequence[str], order: Sequence[int], group: str) -> None:
    for before, after in zip(order, order[1:]):
        a, b = parts[before], parts[after]
        if a.sizes[group] != b.sizes[group] or not a["time"].values[-1] < b["time"].values[0]:
            raise InputError(paths[after], key="time",
                             found=f"{b['time'].values[0]} … {b['time'].values[-1]} in {b.sizes[group]} groups",
                             expected=f"the same times as {paths[before]}, or times after {a['time'].values[-1]} "
                                      f"in {a.sizes[group]} groups", fix="one store per time axis, or mend the times")


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


def describe(dataset: xr.Dataset, source: Any, where: object) -> xr.Dataset:
    """Names, roles, units, axes and periods of `source` put onto a reader's data set.

    Only the variables that the source lists are kept (all, if it lists none). Raises `InputError` for a key that the
    files lack, and for a unit or a period that contradicts the file's.
    """
    dataset = _axes(dataset, source, where)
    if not source.variables:
        return dataset
    kept = {}
    for name, spec in source.variables.items():
        key = spec.key or name
        found = _pick(dataset, key, where)
        unit = _agree(where, key, found.attrs.get("units"), spec.unit)
        dims = (dataset.attrs["group_dim"], *spec.dims) if spec.dims else found.dims
        if set(dims) != set(found.dims):
            raise InputError(where, key=f"variables.{name}.dims", found=f"{tuple(spec.dims)}",
                             expected=f"{found.dims[1:]} in some order", fix="list the dimensions that the file has")
        attrs = {**found.attrs, "role": spec.role, "units": unit}
        kept[name] = found.transpose(*dims).variable.copy(deep=False)
        kept[name].attrs = attrs
    dims = {dim for item in kept.values() for dim in item.dims}
    coords = {name: coord.variable for name, coord in dataset.coords.items() if set(coord.dims) <= dims}
    return xr.Dataset(kept, coords, dataset.attrs)


def _pick(dataset: xr.Dataset, key: str, where: object) -> xr.DataArray:
    if key in dataset.data_vars:
        return dataset[key]
    known = [*map(str, dataset.data_vars)]
    raise InputError(where, key=f"variables.{key}", found="no such variable in the files",
                     expected=f"one of {', '.join(known)}", fix="set key to the file's name, or see sciml data sniff")


def _axes(dataset: xr.Dataset, source: Any, where: object) -> xr.Dataset:
    for dim, spec in source.axes.items():
        if dim not in dataset.sizes:
            raise InputError(where, key=f"axes.{dim}", found="no such dimension in the files",
                             expected=f"one of {', '.join(map(str, dataset.sizes))}", fix="correct the name")
        if dim not in dataset.coords:
            dataset = dataset.assign_coords({dim: xr.Variable((dim,), np.arange(dataset.sizes[dim]))})
        coord = dataset[dim].variable.copy(deep=False)
        given, stated = spec.period, coord.attrs.get("period")
        if given is not None and stated is not None and not np.isclose(given, stated, rtol=1e-3):
            raise InputError(where, key=f"axes.{dim}.period", found=f"{given:g} in the source, {stated:g} in the file",
                             expected="one period", fix="correct the source, or leave the period out")
        coord.attrs = {**coord.attrs, "kind": spec.kind}
        if coord.dtype.kind != "M":
            coord.attrs["units"] = _agree(where, f"axes.{dim}", coord.attrs.get("units"), spec.unit)
        if given is not None:
            coord.attrs["period"] = float(given)
        dataset = dataset.assign_coords({dim: coord})
    return dataset


def _agree(where: object, key: str, stated: str | None, given: str | None) -> str:
    if stated in (None, "step", "cell") or not stated:
        if given is None:
            raise InputError(where, key=key, found="no unit in the file or the source", expected="a unit",
                             fix='add unit: "m/s" (or "1") to the source')
        return given
    if given is None or same_unit(stated, given):
        return stated if given is None else given
    raise InputError(where, key=key, found=f"unit {given!r} in the source, {stated!r} in the file",
                     expected="the same unit", fix="correct the source; values are never converted silently")


def same_unit(a: str, b: str) -> bool:
    """Whether two spellings mean one unit; CF's ``m s-1`` and pint's ``m/s`` do.

    >>> same_unit("m s-1", "m/s"), same_unit("m/s", "cm/s"), same_unit("degrees_north", "degrees_north")
    (True, False, True)
    """
    if a == b:
        return True
    import pint

    try:
        ratio = pint.UnitRegistry().Quantity(1.0, _spelt(a)) / pint.UnitRegistry().Quantity(1.0, _spelt(b))
    except Exception:
        return False
    return bool(ratio.dimensionless and np.isclose(ratio.to_base_units().magnitude, 1.0))


def _spelt(unit: str) -> str:
    text = re.sub(r"(?<=[A-Za-z])(-?\d+)", r"**\1", unit.strip())
    return re.sub(r"(?<=[\w)])\s+(?=[A-Za-z(])", "*", text)


def check_axes(dataset: xr.Dataset, options: Mapping[str, Any], where: object) -> xr.Dataset:
    """Ascending, finite, uniform coordinates. Descending ones are turned round (noted); ``irregular: keep`` in the
    options admits a time axis that is not uniform. Raises `InputError` naming the axis and the index."""
    notes = list(dataset.attrs["notes"])
    for dim, coord in dataset.coords.items():
        if coord.dims != (dim,) or dim == dataset.attrs["group_dim"] or coord.dtype.kind not in "fiuM" or coord.size < 2:
            continue
        if (np.diff(numbers(coord.values)) < 0).all():
            dataset = dataset.isel({dim: slice(None, None, -1)})
            notes.append(f"axis {dim} was descending and is stored ascending")
        values = numbers(dataset[dim].values)
        gaps = np.diff(values)
        bad = np.flatnonzero(~(gaps > 0))
        if len(bad):
            at = int(bad[0]) + 1
            raise InputError(where, key=dim, found=f"{coord.values[at]} at index {at} after {coord.values[at - 1]}",
                             expected="strictly ascending coordinates", fix="sort the file and drop duplicates")
        kind = coord.attrs.get("kind")
        if kind == "time" and options.get("irregular") != "keep" and not is_uniform(gaps, coord.values):
            at = int(np.argmax(np.abs(gaps - np.median(gaps)))) + 1
            raise InputError(where, key=dim, found=f"a step of {gaps[at - 1]:g} before index {at}, {np.median(gaps):g} "
                             "elsewhere", expected="a uniform time axis",
                             fix="resample, or set options: {irregular: keep}")
    return dataset.assign_attrs(notes=tuple(notes))
