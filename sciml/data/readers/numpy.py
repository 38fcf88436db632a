"""NumPy .npy and .npz, local, memory-mapped where not compressed; what the axes are is said in source.yaml.

    options:
      layout: {w: [trajectory, time, x, y], nu: [trajectory]}   # array → its dimensions
      coords: {time: {start: 0, step: 0.1}, x: grid}            # a range, or the name of a 1-D array

The array of a .npy file is called ``array``. A layout with `variate` makes series (``[series?, time, variate]``,
options `variates`: names, `units`: a unit for all or by variate; a start ``2020-01-01`` and a step ``1h`` make dates),
any other fields. A dimension ``channel`` splits an array into ``w_0, w_1, …`` or the names in `channels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.files import head, local_path
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._cf import series
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers._units import units_by_name
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import Limits, NpyHeader, check_npy, check_npz, limits_of
from sciml.errors import InputError

SPACE = ("x", "y", "z")
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"


@dataclass(frozen=True)
class NumPy:
    """Reads arrays whose layout the source describes."""

    options: frozenset[str] = frozenset({"layout", "coords", "channels", "variates", "units"})

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        start = head(path, 8)
        if not start.startswith((NPY, ZIP)) or local_path(path) is None:
            return None
        headers = _headers(path, Limits())
        options = {"layout": _suppose(headers)}
        found = guess(_read(path, options, ""), path, options=options, limit_bytes=limit_bytes)
        told = "layout: NumPy files don't say what their axes are; options.layout is supposed from the ranks, check it"
        return replace(found, missing=(told, *found.missing))

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Fields ``(trajectory, time, x…)`` or series ``(series, time, variate)``, lazily."""
        options = options_of(source)
        return combine([_read(str(path), options, source.name) for path in paths], paths, source)


PLUGIN = NumPy()


def _headers(path: str, limits: Limits) -> tuple[NpyHeader, ...]:
    local = local_path(path)
    if local is None:
        raise InputError(path, found="a remote NumPy file", expected="a local one (it is memory-mapped)",
                         fix="copy it to a disk of this machine, or convert it to Zarr")
    return (check_npy(local, limits),) if head(path, 6) == NPY else check_npz(local, limits)


def _suppose(headers: Sequence[NpyHeader]) -> dict[str, list[str]]:
    """A layout by rank: the array of the highest rank sets the sizes."""
    fullest = max(headers, key=lambda header: len(header.shape))
    rank = len(fullest.shape)
    names = {1: ["time"], 2: ["time", "variate"]}.get(rank, ["trajectory", "time", *SPACE][:rank])
    names += [f"axis_{i}" for i in range(len(names), rank)]
    layout = {fullest.name: names}
    for header in headers:
        if header.shape == fullest.shape:
            layout[header.name] = names
        elif len(header.shape) == rank - 1 and rank > 3 and header.shape == (fullest.shape[0], *fullest.shape[2:]):
            layout[header.name] = [names[0], *names[2:]]
        elif header.shape == fullest.shape[:1] and rank > 2:
            layout[header.name] = names[:1]
    return layout


def _read(path: str, options: Mapping[str, Any], where: str) -> xr.Dataset:
    layout = options.get("layout")
    headers = {header.name: header for header in _headers(path, limits_of(options, path))}
    if not isinstance(layout, Mapping) or not layout:
        raise InputError(where or path, key="options.layout", found=repr(layout), expected="array → dimensions for "
                         + ", ".join(f"{n} {h.shape}" for n, h in headers.items()),
                         fix=f"for example layout: {{{next(iter(headers))}: [trajectory, time, x, y]}}")
    arrays: dict[str, tuple[list[str], da.Array]] = {}
    for name, dims in layout.items():
        header = headers.get(name)
        if header is None or len(dims) != len(header.shape):
            raise InputError(where or path, key=f"options.layout.{name}", found=f"{list(dims)}",
                             expected=f"dimensions of {header.shape}" if header else f"one of {', '.join(headers)}",
                             fix="name one dimension per axis of an array of the file")
        arrays[name] = ([str(dim) for dim in dims], _lazy(path, header))
    sizes = _sizes(arrays, where or path)
    coords = {dim: _coordinate(path, headers, dim, size, options) for dim, size in sizes.items() if dim != "channel"}
    if any("variate" in dims for dims, _ in arrays.values()) or set(sizes) == {"time"}:
        return _series(arrays, coords, options, where or path)
    return _fields(arrays, coords, sizes, options, where or path)


def _lazy(path: str, header: NpyHeader) -> da.Array:
    local = local_path(path)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    if header.offset is not None:
        if 0 in header.shape:
            return da.zeros(header.shape, dtype=lattice.number_type(header.dtype, path, header.name))
        mapped = np.memmap(str(local), dtype=header.dtype, mode="r", offset=header.offset, shape=header.shape or (1,),
                           order=order)
        return lattice.lazy(mapped.reshape(header.shape), where=path, key=header.name)
    kind = lattice.number_type(header.dtype, path, header.name)
    whole = da.from_delayed(dask.delayed(_member)(str(local), header.name), header.shape, header.dtype)
    chunks = lattice.chunk_shape(header.shape, header.dtype.itemsize, (1,) * len(header.shape))
    return whole.astype(kind).rechunk(chunks)


def _member(path: str, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[name])


def _sizes(arrays: Mapping[str, tuple[list[str], da.Array]], where: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, (dims, array) in arrays.items():
        for dim, size in zip(dims, array.shape):
            if sizes.setdefault(dim, size) != size:
                raise InputError(where, key=f"options.layout.{name}", found=f"{dim} of {size}",
                                 expected=f"{sizes[dim]}, as in the other arrays", fix="correct the layout")
    return sizes


def _coordinate(path: str, headers: Mapping[str, NpyHeader], dim: str, size: int,
                options: Mapping[str, Any]) -> xr.Variable:
    kind = "time" if dim == "time" else "set" if dim in ("trajectory", "series", "variate") else "space"
    given = options.get("coords", {}).get(dim)
    if given is None:
        return lattice.coordinate(dim, np.arange(size), kind)
    if isinstance(given, str) and given in headers and headers[given].shape == (size,):
        return lattice.coordinate(dim, _lazy(path, headers[given]).compute(), kind)
    if isinstance(given, Mapping) and set(given) == {"start", "step"}:
        try:
            if isinstance(given["step"], str):
                dates = pd.date_range(str(given["start"]), periods=size, freq=given["step"])
                return lattice.coordinate(dim, dates.to_numpy(), kind)
            return lattice.coordinate(dim, float(given["start"]) + float(given["step"]) * np.arange(size), kind)
        except (ValueError, TypeError):
            pass
    raise InputError(path, key=f"options.coords.{dim}", found=repr(given)[:80],
                     expected=f"{{start: …, step: …}}, or a 1-D array of {size} among {', '.join(headers)}",
                     fix="numbers, or a date and a step like 1h")


def _fields(arrays: Mapping[str, tuple[list[str], da.Array]], coords: dict[str, xr.Variable], sizes: Mapping[str, int],
            options: Mapping[str, Any], where: str) -> xr.Dataset:
    groups, variables = sizes.get("trajectory", 1), {}
    coords.setdefault("trajectory", lattice.coordinate("trajectory", np.arange(groups), "set"))
    space = [dim for dim in sizes if dim not in ("trajectory", "time", "channel")]
    for name, (dims, array) in arrays.items():
        for label, here, part in _channels(name, dims, array, options, where):
            if "trajectory" not in here:
                part = da.broadcast_to(part[None], (groups, *part.shape), chunks=((1,) * groups, *part.chunks))
                here = ["trajectory", *here]
            order = [*(d for d in ("trajectory", "time") if d in here), *(d for d in space if d in here)]
            part = part.transpose([here.index(dim) for dim in order])
            in_time, in_space = "time" in order, any(dim in order for dim in space)
            role = "state" if in_time and in_space else "forcing" if in_time or in_space else "parameter"
            variables[label] = lattice.variable(order, part, role)
    return lattice.canonical(variables, coords, domain="fields", format="numpy", group_dim="trajectory")


def _channels(name: str, dims: list[str], array: da.Array, options: Mapping[str, Any],
              where: str) -> Iterator[tuple[str, list[str], da.Array]]:
    if "channel" not in dims:
        yield name, dims, array
        return
    axis = dims.index("channel")
    names = options.get("channels") or [f"{name}_{i}" for i in range(array.shape[axis])]
    if len(names) != array.shape[axis]:
        raise InputError(where, key="options.channels", found=f"{len(names)} names",
                         expected=f"{array.shape[axis]}, one per channel of {name}", fix="correct the list")
    for index, label in enumerate(names):
        yield str(label), [dim for dim in dims if dim != "channel"], array[(slice(None),) * axis + (index,)]


def _series(arrays: Mapping[str, tuple[list[str], da.Array]], coords: dict[str, xr.Variable],
            options: Mapping[str, Any], where: str) -> xr.Dataset:
    if len(arrays) != 1:
        raise InputError(where, key="options.layout", found=f"{len(arrays)} arrays with variates", expected="one array",
                         fix="stack them along variate, or leave the others out of the layout")
    name, (dims, array) = next(iter(arrays.items()))
    for missing, axis in (("series", 0), ("variate", len(dims))):
        if missing not in dims:
            array, dims = da.expand_dims(array, axis), [*dims[:axis], missing, *dims[axis:]]
    wanted = ["series", "time", "variate"]
    if sorted(dims) != sorted(wanted):
        raise InputError(where, key=f"options.layout.{name}", found=f"{dims}", expected="[series?, time, variate]",
                         fix="name these dimensions only")
    array = array.transpose([dims.index(dim) for dim in wanted])
    names = [str(n) for n in options.get("variates") or range(array.shape[-1])]
    if len(names) != array.shape[-1]:
        raise InputError(where, key="options.variates", found=f"{len(names)} names", expected=f"{array.shape[-1]}",
                         fix="one name per variate")
    units = units_by_name(names, options, where)
    return series(array, coords["time"], names, units, format="numpy")
