"""Shared by the readers: lazy arrays of sensible chunks, and the attributes of the canonical data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.files import local_path
from sciml.data.safety import raw_hdf5
from sciml.errors import InputError

CHUNK_BYTES = 16 << 20
EDGES = ("wall", "open", "periodic", "dirichlet", "neumann")
"""What the codes of a boundary mean, from 0."""


@dataclass(frozen=True)
class H5Array:
    """One data set of a guarded HDF5 file, opened when it is indexed; picklable."""

    url: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            if local_path(self.url) is None:
                return np.asarray(_remote(self.url)[self.key][index])
            with raw_hdf5(self.url) as file:
                return np.asarray(file[self.key][index])
        except OSError as error:
            raise InputError(self.url, key=self.key, found=" ".join(str(error).split())[:160],
                             expected="readable chunks", fix="the file is damaged: copy it again") from None


@lru_cache(maxsize=8)
def _remote(url: str) -> Any:
    return raw_hdf5(url)


def h5_array(url: str, item: Any) -> H5Array:
    return H5Array(url, item.name, tuple(item.shape), item.dtype, item.chunks)


def lazy(array: Any, *, where: object, key: str, lead: int = 1) -> da.Array:
    """A dask array of float32 or float64: along the first `lead` axes one storage chunk, then as many frames as fit
    16 MiB. Raises `InputError` for types that are not real numbers."""
    kind = number_type(array.dtype, where, key)
    stored = getattr(array, "chunks", None) or (1,) * len(array.shape)
    chunks = chunk_shape(array.shape, array.dtype.itemsize, stored, lead)
    result = da.from_array(array, chunks=chunks, name=False, asarray=True)
    return result if result.dtype == kind else result.astype(kind)


def number_type(dtype: Any, where: object, key: str) -> np.dtype:
    """float32 for what it holds exactly, float64 otherwise.

    >>> number_type(np.dtype("int16"), "f", "v"), number_type(np.dtype(">f8"), "f", "v")
    (dtype('float32'), dtype('float64'))
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        fix = "store real and imaginary part as two variables" if dtype.kind == "c" else "store numbers"
        raise InputError(where, key=key, found=f"type {dtype}", expected="real numbers", fix=fix)
    small = dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.dtype(np.float32 if small else np.float64)


def chunk_shape(shape: Sequence[int], item: int, stored: Sequence[int], lead: int = 1) -> tuple[int, ...]:
    """One group (or one storage chunk of groups, if that fits), then whole storage chunks up to 16 MiB.

    >>> chunk_shape((100, 21, 64, 64), 4, (1, 1, 1, 1))
    (1, 21, 64, 64)
    >>> chunk_shape((100, 201, 512, 512), 4, (1, 1, 1, 1))
    (1, 16, 512, 512)
    """
    chunk = [min(max(n, 1), max(s, 1)) for n, s in zip(shape, stored)]
    if math.prod(chunk) * item > 4 * CHUNK_BYTES:
        chunk[:lead] = [1] * lead
    for axis in (*range(lead + 1, len(shape)), lead):
        if axis >= len(shape):
            continue
        room = max(1, CHUNK_BYTES // max(math.prod(chunk) * item, 1))
        chunk[axis] = min(max(shape[axis], 1), chunk[axis] * room)
    return tuple(chunk)


def repeat(array: da.Array, shape: Sequence[int], absent: Iterable[int]) -> da.Array:
    """Broadcast to `shape`, the axes in `absent` being ones the array does not have; nothing is copied."""
    for axis in sorted(absent):
        array = da.expand_dims(array, axis)
    chunks = tuple(have if n == want else (1,) * want if axis == 0 else (want,)
                   for axis, (have, n, want) in enumerate(zip(array.chunks, array.shape, shape)))
    return da.broadcast_to(array, tuple(shape), chunks=chunks)


def variable(dims: Sequence[str], data: Any, role: str, unit: str | None = None, **attrs: Any) -> xr.Variable:
    """A variable with its role and, if known, its unit."""
    units = {} if unit is None else {"units": unit}
    return xr.Variable(tuple(dims), data, {"role": role, **units, **attrs})


def coordinate(dim: str, values: Any, kind: str, unit: str | None = None, *, period: float | None = None,
               **attrs: Any) -> xr.Variable:
    """A coordinate variable in float64 (or dates), with kind and, if known, unit and period."""
    values = np.asarray(values)
    values = values if values.dtype.kind == "M" or kind == "set" else _exact(values)
    extra = {"units": unit} if unit is not None else {}
    if period is not None:
        extra["period"] = float(period)  # type: ignore[assignment]
    return xr.Variable((dim,), values, {"kind": kind, **extra, **attrs})


def _exact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype == np.float32 else np.float64)


def edge_codes(dim: str, kinds: Sequence[str], group: str, groups: int) -> dict[str, xr.Variable]:
    """``boundary_x_low``, ``boundary_x_high (group,)``: what an axis ends in, as an index into `EDGES`."""
    codes = [np.full(groups, EDGES.index(kind), dtype=np.float32) for kind in kinds]
    return {f"boundary_{dim}_{side}": variable((group,), code, "boundary", "1", flag_meanings=" ".join(EDGES))
            for side, code in zip(("low", "high"), codes)}


def canonical(variables: dict[str, xr.Variable], coords: dict[str, xr.Variable], *, domain: str, format: str,
              group_dim: str, notes: Iterable[str] = (), missing: Iterable[str] = (),
              suspicious: Iterable[str] = ()) -> xr.Dataset:
    """The data set that every reader returns."""
    attrs = {"domain": domain, "format": format, "group_dim": group_dim, "notes": tuple(notes),
             "missing": tuple(missing), "suspicious": tuple(suspicious)}
    return xr.Dataset(variables, coords, attrs)


def as_text(value: Any) -> str:
    """An HDF5 string attribute, which may be bytes, an array of one, or a string."""
    value = np.asarray(value).reshape(-1)[0] if np.size(value) else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def as_names(value: Any) -> list[str]:
    """An HDF5 attribute that lists names."""
    return [as_text(item) for item in np.asarray(value).reshape(-1)]


def is_netcdf4(file: Any) -> bool:
    """Whether an open HDF5 file is NetCDF-4: it says so, or its data sets have dimension scales."""
    import h5py

    if "_NCProperties" in file.attrs:
        return True
    arrays = [item for item in file.values() if isinstance(item, h5py.Dataset)]
    return any("DIMENSION_LIST" in item.attrs or item.is_scale for item in arrays)
