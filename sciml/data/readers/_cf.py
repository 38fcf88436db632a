"""From a CF data set (dimensions by name, attributes with units) to the canonical one.

``options: {flatten: level}`` makes every entry of a dimension a variable of its own (``geopotential_500``), as models
do that see levels as channels; so a dimension `channel` without meaning of its own. A uniform longitude whose steps add
up to 360 degrees is periodic. Components are told by standard name (``eastward_wind``) or name
(``u_component_of_wind``).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.readers import _lattice as lattice
from sciml.errors import InputError

GROUPS = frozenset({"trajectory", "trajectories", "sample", "samples", "realization", "realisation", "member",
                    "ensemble", "number", "run", "seed", "batch", "simulation", "case", "series"})
TIMES = frozenset({"time", "t", "valid_time", "date", "datetime"})
SPACES = {"x": 0, "lon": 0, "longitude": 0, "projection_x_coordinate": 0, "y": 1, "lat": 1, "latitude": 1,
          "projection_y_coordinate": 1, "z": 2, "lev": 2, "level": 2, "height": 2, "depth": 2, "altitude": 2,
          "pressure_level": 2, "plev": 2}
NORTH, EAST = ("degrees_north", "degree_north", "degreesN"), ("degrees_east", "degree_east", "degreesE")
ENTRY = "entry"
"""Attribute of what was flattened: the end of its name."""
COMPONENT = re.compile(r"(?P<before>.*?)(?P<which>eastward|northward|upward|[uvw]_component_of)_(?P<vector>.+)")
WHICH = {"eastward": "x", "u": "x", "northward": "y", "v": "y", "upward": "z", "w": "z"}
PURE = ("(0 - 1)", "~", "(0-1)", "Dimensionless", "dimensionless", "unitless", "-")
"""How files say that a quantity is a pure number."""
SUBSTANCE = re.compile(r" of [a-z ]+$")
"""``m of water equivalent`` is in m."""
UNITS = {"seconds": "s", "second": "s", "minutes": "min", "minute": "min", "hours": "h", "hour": "h", "days": "d",
         "day": "d", "milliseconds": "ms", "microseconds": "us"}


def kind_of(dataset: xr.Dataset, dim: Hashable, source: Any) -> str | None:
    """``group``, ``time``, ``x``, ``y``, ``z``, ``space``, ``set`` or None if nothing says what a dimension is."""
    if source is not None and dim == source.options.get("group"):
        return "group"
    if source is not None and dim in source.axes:
        told, place = source.axes[dim].kind, SPACES.get(str(dim).lower())
        if told is not None:
            return str(told) if told != "space" or place is None else "xyz"[place]
    attrs = dataset[dim].attrs if dim in dataset.variables else {}
    axis, standard = str(attrs.get("axis", "")).upper(), str(attrs.get("standard_name", "")).lower()
    if axis == "T" or standard == "time" or " since " in str(attrs.get("units", "")):
        return "time"
    if standard == "realization" or str(attrs.get("cf_role", "")).endswith("_id") or str(dim).lower() in GROUPS:
        return "group"
    if axis in ("X", "Y", "Z"):
        return axis.lower()
    for name in (standard, str(dim).lower()):
        if name in SPACES:
            return "xyz"[SPACES[name]]
        if name in TIMES:
            return "time"
    return None


def from_cf(dataset: xr.Dataset, where: str, source: Any, *, format: str, chunk_key: str) -> xr.Dataset:
    """Canonical data set: fields if a variable that varies in time has a space axis (or nothing varies in time), else
    series. `dataset` is opened lazily with undecoded times. Raises `InputError` for dimensions of unknown meaning."""
    wanted = {spec.key or name for name, spec in source.variables.items()} if source is not None else set()
    told = source.options.get("flatten", ()) if source is not None else _uneven(dataset)
    dataset, notes = _drop_helpers(_flattened(dataset, told, where), wanted)
    if source is None and told:
        notes.append(f"not all fields have {', '.join(map(str, told))}: each of its entries is read as a variable "
                     "(options.flatten); or leave out the ones without it")
    kinds = {dim: kind_of(dataset, dim, source) for dim in dataset.sizes}
    unknown = [str(dim) for dim, kind in kinds.items() if kind is None]
    if source is not None and unknown:
        raise InputError(where, key=unknown[0], found="a dimension of unknown meaning",
                         expected="a CF attribute (axis, standard_name, units) or a usual name",
                         fix=f"say what it is: axes: {{{unknown[0]}: {{kind: space, unit: m}}}}, or options: {{group: "
                             f"{unknown[0]}}}")
    one = {kind: [dim for dim, k in kinds.items() if k == kind] for kind in ("group", "time")}
    for kind, dims in one.items():
        if len(dims) > 1:
            raise InputError(where, key=kind, found=f"several {kind} dimensions: {', '.join(map(str, dims))}",
                             expected="one", fix="select the variables that share one under variables")
    if not dataset.data_vars:
        raise InputError(where, found="no numeric variables", expected="at least one", fix="check the file")
    time, group = next(iter(one["time"]), None), next(iter(one["group"]), None)
    space = sorted((dim for dim, kind in kinds.items() if kind in ("x", "y", "z", "space")),
                   key=lambda dim: ("x", "y", "z", "space").index(kinds[dim] or "space"))
    moving = [v for v in dataset.data_vars.values() if time in v.dims]
    fields = bool(space) and (not moving or any(set(space) & set(v.dims) for v in moving))
    chosen = source.domain if source is not None else None
    dataset = _chunked(dataset, chunk_key, group, where)
    missing = [f"meaning of dimension {dim}: list it under axes with its kind, or as options.group" for dim in unknown]
    if (chosen or ("fields" if fields else "series")) == "fields":
        found = _fields(dataset, where, time, group, space, format, notes, missing)
        if source is None and told:
            found.attrs["flatten"] = list(map(str, told))
        return _with_vectors(found, {str(kinds[dim]): str(dim) for dim in space})
    return _series(dataset, where, time, group, space, format, notes, missing)


def _uneven(dataset: xr.Dataset) -> list[Hashable]:
    """Vertical dimensions that some of the fields that vary in time have and others lack."""
    kinds = {dim: kind_of(dataset, dim, None) for dim in dataset.sizes}
    moving = [set(item.dims) for item in dataset.data_vars.values()
              if item.dtype.kind in "biuf" and {"time", "x", "y"} <= {kinds[dim] for dim in item.dims}]
    return [dim for dim, kind in kinds.items() if kind == "z" and 0 < sum(dim in dims for dims in moving) < len(moving)]


def flattened(found: xr.Dataset) -> dict[str, Any]:
    """The option by which a build reads what was flattened while the file was looked at."""
    dims = found.attrs.get("flatten", [])
    return {"flatten": dims[0] if len(dims) == 1 else dims} if dims else {}


def _flattened(dataset: xr.Dataset, told: str | Sequence[Hashable], where: str) -> xr.Dataset:
    """Each entry of the dimensions `told` as a variable: by its coordinate, else by its number."""
    for dim in (told,) if isinstance(told, str) else told:
        if dim not in dataset.sizes:
            raise InputError(where, key="options.flatten", found=repr(dim),
                             expected=f"dimensions among {', '.join(map(str, dataset.sizes))}", fix="correct the name")
        labels = dataset[dim].values if dim in dataset.coords else np.arange(dataset.sizes[dim])
        parts: dict[str, xr.DataArray] = {}
        for name, item in dataset.data_vars.items():
            if dim not in item.dims:
                parts[str(name)] = item
            for at, label in enumerate(labels if dim in item.dims else ()):
                part = item.isel({dim: at}, drop=True)
                stored = item.encoding.get("chunks"), item.encoding.get("chunksizes")
                axis = item.dims.index(dim)
                part.encoding = {**item.encoding, **{key: (*size[:axis], *size[axis + 1:]) for key, size in
                                                     zip(("chunks", "chunksizes"), stored) if size}}
                ending = f"_{label:g}" if labels.dtype.kind in "fiu" else f"_{label}"
                parts[f"{name}{ending}"] = part.assign_attrs({ENTRY: ending})
        dataset = xr.Dataset(parts, {key: coord for key, coord in dataset.coords.items() if dim not in coord.dims})
    return dataset


def _with_vectors(data: xr.Dataset, axes: Mapping[str, str]) -> xr.Dataset:
    """Attributes `vector` and `along` of what is a component by standard name or name; where two variables would be
    the same component, neither is."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, item in data.data_vars.items():
        match = COMPONENT.fullmatch(str(item.attrs.pop("standard_name", ""))) or COMPONENT.fullmatch(str(name))
        label = str(item.attrs.pop(ENTRY, ""))
        axis = axes.get(WHICH[match["which"].partition("_")[0]]) if match else None
        if match and axis in item.dims:
            vector = match["before"] + match["vector"].removesuffix(label) + label
            found.setdefault((vector, str(axis)), []).append(str(name))
    for (vector, axis), names in found.items():
        if len(names) == 1:
            data[names[0]].attrs |= {"vector": vector, "along": axis}
    return data


def _drop_helpers(dataset: xr.Dataset, wanted: set[str]) -> tuple[xr.Dataset, list[str]]:
    """Without bounds, grid mappings, text and auxiliary coordinates; each noted."""
    bounds = {item.attrs.get("bounds") or item.encoding.get("bounds") for item in dataset.variables.values()}
    notes, drop = [], []
    for name, item in dataset.variables.items():
        if name in dataset.sizes:
            continue
        helper = name in bounds or "grid_mapping_name" in item.attrs or item.dtype.kind not in "biuf"
        if helper or name in dataset.coords or (wanted and name not in wanted):
            drop.append(name)
            if not wanted:
                notes.append(f"{name} ({item.dtype}) is not read: it is no numeric variable on the lattice")
    return dataset.drop_vars(drop), notes


def _chunked(dataset: xr.Dataset, key: str, group: Hashable | None, where: str) -> xr.Dataset:
    kept = {}
    for name, item in dataset.data_vars.items():
        kind = lattice.number_type(item.dtype, where, str(name))
        fill = item.encoding.get("_FillValue", item.attrs.get("_FillValue"))
        lead = int(bool(item.dims) and item.dims[0] == group)
        stored = item.encoding.get(key) or (1,) * item.ndim
        shape = lattice.chunk_shape(item.shape, item.dtype.itemsize, stored, lead)
        units = item.attrs.get("units")
        units = units if units is None else "1" if str(units).strip() in PURE else SUBSTANCE.sub("", str(units))
        lazy = item.variable.chunk(dict(zip(item.dims, shape))).astype(kind)
        told = {key: str(item.attrs[key]) for key in ("standard_name", "long_name", ENTRY) if key in item.attrs}
        lazy.attrs = {**({} if units is None else {"units": str(units)}), **told,
                      **({} if fill is None else {"fill": float(np.asarray(fill).reshape(-1)[0])})}
        kept[name] = lazy
    coords = {name: dataset[name].variable for name in dataset.sizes if name in dataset.coords}
    return xr.Dataset(kept, coords)


def _time_numbers(dataset: xr.Dataset, time: Hashable) -> tuple[xr.Variable, list[str]]:
    """A numeric time axis; ``hours since 2000-01-01`` becomes hours, the origin a note."""
    if time not in dataset.coords:
        return lattice.coordinate("time", np.arange(dataset.sizes[time]), "time"), []
    coord = dataset[time]
    unit, _, origin = str(coord.attrs.get("units", "")).partition(" since ")
    if coord.dtype.kind == "M":
        seconds = (coord.values - coord.values[0]) / np.timedelta64(1, "s")
        return lattice.coordinate("time", seconds, "time", "s"), [f"time counts from {coord.values[0]}"]
    notes = [f"time counts from {origin}"] if origin else []
    return lattice.coordinate("time", coord.values, "time", UNITS.get(unit, unit) or None), notes


def _space(dataset: xr.Dataset, dim: Hashable) -> xr.Variable:
    if dim not in dataset.coords:
        return lattice.coordinate(str(dim), np.arange(dataset.sizes[dim]), "space")
    attrs, values = dataset[dim].attrs, dataset[dim].values
    unit = attrs.get("units")
    period = attrs.get("period", _circle(values, str(unit)))
    bounded = {"bounded": "poles"} if str(unit).startswith(NORTH) else {}
    return lattice.coordinate(str(dim), values, "space", unit, period=None if period is None else float(period),
                              **bounded)


def _circle(values: np.ndarray, unit: str) -> float | None:
    """360 degrees, if equal steps to the east go once around the globe."""
    steps = np.diff(values.astype(np.float64)) if values.dtype.kind in "fiu" else np.zeros(0)
    if not unit.startswith(EAST) or not len(steps):
        return None
    even = np.allclose(steps, steps[0], rtol=1e-3) and np.isclose(abs(steps[0]) * len(values), 360.0, rtol=1e-3)
    return 360.0 if even else None


def _fields(dataset: xr.Dataset, where: str, time: Hashable | None, group: Hashable | None, space: list[Hashable],
            format: str, notes: list[str], missing: list[str]) -> xr.Dataset:
    groups = dataset.sizes[group] if group is not None else 1
    variables, coords = {}, {"trajectory": lattice.coordinate("trajectory", np.arange(groups), "set")}
    steady = time is None
    if steady:
        missing.append("time axis: none, so read as steady: give what is known the role forcing, the solution state")
    else:
        coords["time"], more = _time_numbers(dataset, time)
        missing += [] if time in dataset.coords else ["coordinates of axis time: counted 0, 1, …"]
        notes = [*notes, *more]
    for dim in space:
        coords[str(dim)] = _space(dataset, dim)
    for name, item in dataset.data_vars.items():
        array = item
        if group is None or group not in array.dims:
            array = array.expand_dims({group or "trajectory": groups})
        on_lattice = bool(set(space) & set(array.dims))
        in_time = time is not None and time in array.dims
        others = [dim for dim in array.dims if dim not in (group or "trajectory", time, *space)]
        array = array.transpose(group or "trajectory", *([time] if in_time else []), *others,
                                *(dim for dim in space if dim in array.dims))
        evolves = on_lattice and (in_time or steady)
        role = "state" if evolves else "forcing" if on_lattice or in_time else "parameter"
        dims = ["trajectory" if dim == group else "time" if dim == time else str(dim) for dim in array.dims]
        variables[str(name)] = lattice.variable(dims, array.data, role, **array.attrs)
    return lattice.canonical(variables, coords, domain="fields", format=format, group_dim="trajectory", notes=notes,
                             missing=missing).assign_attrs(steady=steady)


def _series(dataset: xr.Dataset, where: str, time: Hashable | None, group: Hashable | None, space: list[Hashable],
            format: str, notes: list[str], missing: list[str]) -> xr.Dataset:
    if time is None:
        raise InputError(where, key="time", found=f"dimensions {', '.join(map(str, dataset.sizes))}",
                         expected="a time axis", fix="name it: axes: {n: {kind: time, unit: s}}")
    groups, columns, names, units = dataset.sizes[group] if group is not None else 1, [], [], []
    for name, item in dataset.data_vars.items():
        if time not in item.dims:
            notes = [*notes, f"{name} is not read: it does not vary in time"]
            continue
        array = item if group in item.dims else item.expand_dims({group or "series": groups})
        extra = [dim for dim in array.dims if dim not in (group or "series", time)]
        array = array.transpose(group or "series", time, *extra)
        labels = _labels(dataset, extra)
        data = array.data.reshape((*array.shape[:2], -1)) if extra else array.data[..., None]
        columns.append(data)
        names += [f"{name}_{label}" if label and len(dataset.data_vars) > 1 else label or str(name) for label in labels]
        units += [str(item.attrs.get("units", ""))] * len(labels)
    time_coord = dataset[time] if time in dataset.coords else None
    coords = {"time": _dates(time_coord) if time_coord is not None
              else lattice.coordinate("time", np.arange(dataset.sizes[time]), "time")}
    return series(da.concatenate(columns, axis=-1), coords["time"], names, units, format=format, notes=notes,
                  missing=missing)


def _labels(dataset: xr.Dataset, extra: list[Hashable]) -> list[str]:
    labels = [""]
    for dim in extra:
        values = dataset[dim].values if dim in dataset.coords else np.arange(dataset.sizes[dim])
        labels = [f"{label}_{value}".strip("_") for label in labels for value in values]
    return labels


def _dates(coord: xr.DataArray) -> xr.Variable:
    decoded = xr.decode_cf(coord.to_dataset(name="time_"), decode_timedelta=False)[coord.name]
    if decoded.dtype.kind == "M":
        return lattice.coordinate("time", decoded.values, "time")
    unit = str(coord.attrs.get("units", "")).partition(" since ")[0]
    return lattice.coordinate("time", coord.values, "time", UNITS.get(unit, unit) or None)


def series(values: da.Array, time: xr.Variable, names: list[str], units: list[str], *, format: str,
           notes: Any = (), missing: Any = (), covariates: Sequence[str] = ()) -> xr.Dataset:
    """The canonical series: ``value (series, time, variate)`` with ``variate`` and ``variate_unit`` coordinates; the
    last ones, if they are `covariates`, as ``covariate_value (series, time, covariate)``."""
    if covariates:
        split = len(names) - len(covariates)
        own = series(values[..., :split], time, names[:split], units[:split], format=format, notes=notes,
                     missing=missing)
        return own.assign(covariate_value=lattice.variable(("series", "time", "covariate"), values[..., split:],
                                                           "forcing")).assign_coords(
            covariate=xr.Variable(("covariate",), np.array(names[split:], dtype=str), {"kind": "set"}),
            covariate_unit=xr.Variable(("covariate",), np.array(units[split:], dtype=str)))
    variables = {"value": lattice.variable(("series", "time", "variate"), values, "state")}
    coords: Mapping[str, xr.Variable] = {
        "series": lattice.coordinate("series", np.arange(values.shape[0]), "set"), "time": time,
        "variate": xr.Variable(("variate",), np.array(names, dtype=str), {"kind": "set"}),
        "variate_unit": xr.Variable(("variate",), np.array(units, dtype=str))}
    return lattice.canonical(variables, dict(coords), domain="series", format=format, group_dim="series", notes=notes,
                             missing=missing)
