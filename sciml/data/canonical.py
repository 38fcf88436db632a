"""What a reader or builder returned, made complete from the source file and held against it; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sciml.data import ragged, rhythm, units
from sciml.data.conventions import convention_of
from sciml.data.schema import AxisMeta, Role, Variable
from sciml.data.source import SourceAxis, SourceSpec, SourceVariable
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

UNIFORM = 1e-3
WHOLE = ("boundary", "mask", "event", "rows")
"""Roles whose integers stay integers."""


def group_dim_of(dataset: xr.Dataset, spec: SourceSpec) -> str:
    """The dimension of the groups, as the data say or as is usual in the domain; raises `InputError` if the domain is
    another than the source's."""
    domain = dataset.attrs.get("domain", spec.domain)
    if domain != spec.domain:
        raise InputError(spec.name, key="domain", found=f"{spec.domain} in the source file, {domain} in the data",
                         expected="one domain", fix=f"set domain: {domain}")
    return str(dataset.attrs.get("group_dim", convention_of(spec.domain).group_dim))


def select(dataset: xr.Dataset, spec: SourceSpec, group_dim: str) -> tuple[xr.Dataset, dict[str, str]]:
    """Only the variables of the source file (all if it names none; readers have left others out), descending axes
    flipped where it says so, numbers in types that a store has; and the ragged dimensions, each with its variable of
    role rows.

    Raises `InputError` for names that are not in the data and as `sciml.data.ragged.declared` does.
    """
    for name in spec.variables:
        if name not in dataset.data_vars:
            raise InputError(spec.name, key=name, found="no such variable in the data",
                             expected=f"one of {', '.join(map(str, dataset.data_vars))}",
                             fix="correct the name or its key")
    whole = dataset.assign({name: array.assign_attrs(role=given.role) for name, array in dataset.data_vars.items()
                            if (given := spec.variables.get(str(name))) is not None and given.role is not None})
    chosen = list(spec.variables) if spec.builder != "file" else []
    dataset = whole[chosen].assign_attrs(dataset.attrs) if chosen else whole
    uneven = ragged.declared(dataset, group_dim, spec.name)
    if uneven:
        dataset = dataset.assign_coords(whole.coords)
    for axis in spec.axes:
        if axis not in dataset.dims or axis == group_dim or axis in uneven:
            known = (str(d) for d in dataset.dims if d != group_dim and d not in uneven)
            raise InputError(spec.name, key=f"axes.{axis}", found="no such dimension in the data",
                             expected=f"one of {', '.join(known)}", fix="correct the name")
    flipped = {axis: slice(None, None, -1) for axis, given in spec.axes.items() if given.reverse}
    dataset = dataset.isel(flipped)
    ragged.offsets_of(dataset, uneven, spec.name)
    return dataset.assign({name: _storable(array, spec) for name, array in dataset.data_vars.items()}), uneven


def _storable(array: xr.DataArray, spec: SourceSpec) -> xr.DataArray:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub":
        raise InputError(spec.name, key=array.name, found=f"values of type {array.dtype}", expected="real numbers",
                         fix="leave it out of variables, or split complex numbers into two variables")
    role = array.attrs.get("role")
    if kind != "f" and role in WHOLE:
        return array.astype("int64" if role == "rows" else array.dtype.newbyteorder("="), copy=False)
    wide = size >= 8 if kind == "f" else size >= 4
    return array.astype("float64" if wide else "float32", copy=False)


def describe_variables(dataset: xr.Dataset, spec: SourceSpec, group_dim: str) -> dict[str, Variable]:
    """Role, unit and dims of each variable; what source file and data both say must agree. Raises `InputError`."""
    described = {}
    for key, array in dataset.data_vars.items():
        name = str(key)
        given = spec.variables.get(name, SourceVariable())
        role: Any = given.role or array.attrs.get("role")
        if role not in get_args(Role):
            raise InputError(spec.name, key=name, found=f"role {role!r}",
                             expected=f"one of {', '.join(get_args(Role))}",
                             fix=f"in the source file: variables: {{{name}: {{role: state}}}}")
        dims = tuple(str(d) for d in array.dims if d != group_dim)
        if given.dims is not None and {*given.dims, group_dim} != {*dims, group_dim}:
            raise InputError(spec.name, key=name, found=f"dimensions {dims}", expected=f"{given.dims} as declared",
                             fix="correct dims in the source file")
        unit = _unit(spec, name, given.unit, array.attrs.get("units"), _member_units(dataset, dims))
        described[name] = Variable(role=role, unit=unit, dims=dims,
                                   long_name=given.long_name or str(array.attrs.get("long_name", "")),
                                   vector=given.vector or str(array.attrs.get("vector", "")),
                                   along=given.along or tuple(str(array.attrs.get("along", "")).split()))
        others = [str(d) for d in dataset.dims if d != group_dim]
        places = [axis for dim in others for axis in "xyz" if f"{dim}_{axis}" in dataset.coords]
        _check_components(spec, name, described[name], (*others, *places))
    return described


def _check_components(spec: SourceSpec, name: str, variable: Variable, dims: tuple[str, ...]) -> None:
    if bool(variable.vector) != bool(variable.along) or not set(variable.along) <= set(dims):
        raise InputError(spec.name, key=name, found=f"vector {variable.vector!r} along {variable.along}",
                         expected=f"the name of a vector, and which of {dims} this is its component along",
                         fix=f"in the source file: variables: {{{name}: {{vector: velocity, along: [x]}}}}")


def _member_units(dataset: xr.Dataset, dims: tuple[str, ...]) -> tuple[str, ...]:
    for dim in dims:
        if f"{dim}_unit" in dataset.coords:
            return tuple(str(u) for u in dataset.coords[f"{dim}_unit"].values)
    return ()


def _unit(spec: SourceSpec, name: str, given: str | None, found: str | None, members: tuple[str, ...]) -> str:
    if members:
        for unit in dict.fromkeys(members):
            if not unit:
                raise InputError(spec.name, key=name, found=f"{members.count('')} members without a unit",
                                 expected="a unit for each, 1 if it has none",
                                 fix=f"in the source file: options: {{units: {{MEMBER: UNIT}}}} ({name})")
            units.parse(unit, where=spec.name, key=name)
        return members[0] if len(set(members)) == 1 else units.MIXED
    if given is None and not found:
        raise InputError(spec.name, key=name, found="no unit", expected="a unit, 1 if it has none",
                         fix=f"in the source file: variables: {{{name}: {{unit: …}}}}")
    if given is None:
        assert found is not None
        units.parse(found, where=spec.name, key=name)
        return found
    units.parse(given, where=spec.name, key=name)
    if found and not units.same(given, found, where=spec.name, key=name):
        raise InputError(spec.name, key=name, found=f"unit {found!r} in the data, {given!r} in the source file",
                         expected="one unit", fix=f"write unit: {found!r} (values are never converted)")
    return given


def describe_axes(dataset: xr.Dataset, spec: SourceSpec, group_dim: str,
                  uneven: Mapping[str, str]) -> dict[str, AxisMeta]:
    """Kind, unit and period of every dimension of a variable but the group and ragged (`uneven`) ones; its coordinate
    must exist and ascend. Beside ragged dimensions a coordinate alone makes an axis: the bins that events fall into,
    the members that they are of.

    Raises `InputError` on coordinates that are missing, not finite, repeated, reversed or out of order, on uneven time
    (unless ``uniform: false``, or a reader was told to keep it; months are even), on an endpoint that repeats the first
    point of a period, on units that are missing or contradictory.
    """
    dims = dict.fromkeys(str(d) for array in dataset.data_vars.values() for d in array.dims)
    dims |= dict.fromkeys(str(d) for d in dataset.dims if uneven and d in dataset.coords)
    return {dim: _axis(dataset, spec, dim) for dim in dims if dim != group_dim and dim not in uneven}


def _axis(dataset: xr.Dataset, spec: SourceSpec, dim: str) -> AxisMeta:
    given = spec.axes.get(dim, SourceAxis())
    if dim not in dataset.coords:
        raise InputError(spec.name, key=dim, found="no coordinate", expected="one value per index",
                         fix="add it to the file, or name it in the source file's options")
    coord = dataset.coords[dim]
    values = np.asarray(coord.values)
    kind = given.kind or coord.attrs.get("kind") or _kind(dim, values)
    if kind == "set":
        labels = [str(v) for v in values]
        if len(set(labels)) < len(labels):
            twice = next(v for v in labels if labels.count(v) > 1)
            raise InputError(spec.name, key=dim, found=f"member {twice!r} twice", expected="each member once",
                             fix="rename or drop one")
        places = tuple(name for name in (f"{dim}_{axis}" for axis in "xyz") if name in dataset.coords)
        lengths = {str(dataset.coords[name].attrs.get("units", "")) for name in places}
        if len(lengths) > 1 or "" in lengths:
            raise InputError(spec.name, key=", ".join(places), found=f"units {sorted(lengths)}",
                             expected="one unit of length", fix="give the coordinates their unit")
        return AxisMeta(kind="set", unit=given.unit or next(iter(lengths), "1"), places=places)
    unit = given.unit or coord.attrs.get("units") or ("s" if values.dtype.kind == "M" else None)
    if values.dtype.kind != "M":
        unit = _axis_unit(spec, dim, given.unit, coord.attrs.get("units"))
    elif kind == "time":
        units.seconds_per(str(unit), where=spec.name, key=dim)
    found = coord.attrs.get("period")
    if given.period is not None and found is not None and not np.isclose(given.period, found):
        raise InputError(spec.name, key=dim, found=f"period {found} in the data, {given.period} in the source file",
                         expected="one period", fix="correct the source file")
    period = given.period if given.period is not None else None if found is None else float(found)
    check_ascending(spec, dim, values, period)
    if kind == "time" and given.uniform and coord.attrs.get("freq") != rhythm.IRREGULAR:
        _uniform(spec, dim, values)
    return AxisMeta(kind=kind, unit=str(unit), period=period)


def check_ascending(spec: SourceSpec, dim: str, values: np.ndarray, period: float | None) -> None:
    """Raises `InputError` unless coordinates are finite, strictly ascending and span less than a period."""
    _ascends(spec, dim, values)
    if period is not None and _numbers(values)[-1] - _numbers(values)[0] > period * (1 - 1e-6):
        raise InputError(spec.name, key=dim, found=f"{values[0]} … {values[-1]}",
                         expected=f"less than a period of {period}",
                         fix="leave out the endpoint that repeats the first point, or correct the period")


def _kind(dim: str, values: np.ndarray) -> Literal["space", "time", "set"]:
    if dim == "time" or values.dtype.kind == "M":
        return "time"
    return "space" if values.dtype.kind in "fiu" else "set"


def _axis_unit(spec: SourceSpec, dim: str, given: str | None, found: Any) -> str:
    if given is None and not found:
        raise InputError(spec.name, key=dim, found="no unit", expected="a unit, 1 if it has none",
                         fix=f"in the source file: axes: {{{dim}: {{unit: …}}}}")
    return _unit(spec, dim, given, found, ())


def _numbers(values: np.ndarray) -> np.ndarray:
    """Coordinates as float64; dates as seconds since the first."""
    if values.dtype.kind == "M":
        return (values - values[0]) / np.timedelta64(1, "ns") * 1e-9 if len(values) else np.zeros(0)
    return values.astype(np.float64)


def _ascends(spec: SourceSpec, dim: str, values: np.ndarray) -> None:
    def refuse(found: str, fix: str) -> InputError:
        return InputError(spec.name, key=dim, found=found, expected="strictly ascending coordinates", fix=fix)

    if values.dtype.kind not in "fiuM":
        raise refuse(f"values of type {values.dtype}", "give numbers or dates, or declare kind: set")
    broken = np.isnat(values) if values.dtype.kind == "M" else ~np.isfinite(values)
    if broken.any():
        raise refuse(f"{int(broken.sum())} values that are not finite, first at index {int(np.argmax(broken))}",
                     "drop or repair these indices")
    steps = np.diff(_numbers(values))
    if len(steps) and (steps < 0).all():
        raise refuse(f"descending from {values[0]} to {values[-1]}", f"axes: {{{dim}: {{reverse: true}}}}")
    if (steps == 0).any():
        at = int(np.argmax(steps == 0))
        raise refuse(f"{int((steps == 0).sum())} repeated values, first {values[at]} at indices {at} and {at + 1}",
                     "drop the duplicates")
    if (steps < 0).any():
        at = int(np.argmax(steps < 0)) + 1
        raise refuse(f"{values[at]} at index {at} after {values[at - 1]}", "sort the file along this axis")


def _uniform(spec: SourceSpec, dim: str, values: np.ndarray) -> None:
    steps = np.diff(_numbers(values))
    if not len(steps) or _even(steps, values) or rhythm.calendar(values):
        return
    usual = float(np.median(steps))
    at = int(np.argmax(np.abs(steps - usual) > UNIFORM * usual))
    found = f"a step of {steps[at]:g} after index {at} ({values[at]}), elsewhere {usual:g}"
    raise InputError(spec.name, key=dim, found=found, expected="uniform steps",
                     fix=f"fill or resample the gaps, or axes: {{{dim}: {{uniform: false}}}}")


def _even(steps: np.ndarray, values: np.ndarray) -> bool:
    usual = float(np.median(steps))
    rounding = float(np.finfo(values.dtype).eps * np.abs(values).max() * 4) if values.dtype.kind == "f" else 0.0
    return bool(np.all(np.abs(steps - usual) <= max(UNIFORM * usual, rounding)))


def time_step(dataset: xr.Dataset, axes: dict[str, AxisMeta]) -> float | None:
    """The uniform step of the time axis in its unit; None without a time axis, with one time, or with uneven steps."""
    dim = next((d for d, axis in axes.items() if axis.kind == "time"), None)
    if dim is None or dataset.sizes[dim] < 2:
        return None
    values = np.asarray(dataset.coords[dim].values)
    steps = np.diff(_numbers(values))
    if not _even(steps, values) or dataset.coords[dim].attrs.get("freq") == rhythm.IRREGULAR:
        return None
    step = float(_numbers(values)[-1] - _numbers(values)[0]) / len(steps)
    per = units.seconds_per(axes[dim].unit, where=dim, key="unit") if values.dtype.kind == "M" else 1.0
    return float(f"{step / per:.9g}")
