"""The store: one Zarr v3 group that says of itself what it holds, written atomically, read chunk by chunk.

Written: to a hidden sibling folder, statistics from what was written, the attribute ``sciml`` last, then renamed. Read:
nothing is decoded before sizes, codecs and files were checked (`sciml.data.guard`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.chunks import ChunkReader, zarr_store
from sciml.data.guard import check_arrays, check_read_whole, chunk_shapes, local_path, read_metadata, refuse_links
from sciml.data.ragged import check_described, offsets
from sciml.data.schema import STORE_SCHEMA, StoreMeta, array_dims
from sciml.data.withheld import Stretch, Withheld, refusal, without_values
from sciml.data.write import Accept, Progress, StoreDraft, write_group
from sciml.errors import InputError
from sciml.recipe import validate

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Store", "StoreDraft", "open_store", "write_store"]
CACHE_BYTES = 256 << 20


def write_store(dataset: xr.Dataset, draft: StoreDraft, path: str | os.PathLike[str], *, overwrite: bool = False,
                progress: Progress | None = None,
                accept: Accept | None = None) -> Store:
    """Write a (lazy) dataset of variables ``(group_dim, *dims)`` or ``(ragged_dim, *dims)`` with `draft`'s description;
    returns the store, open.

    Computed shard by shard by dask, in constant memory. `accept` sees what was written before it becomes visible: it
    may raise, and returns notes to keep. Whatever fails or is killed leaves `path` as it was; the next writing of the
    same path removes what was left beside it. Raises `InputError` if `path` exists and not `overwrite`, if the dataset
    doesn't fit the draft, or if the disk is full.
    """
    write_group(dataset, draft, os.fspath(path), overwrite=overwrite, progress=progress, accept=accept)
    return open_store(path)


def open_store(url: str | os.PathLike[str], *, cache_bytes: int = CACHE_BYTES) -> Store:
    """A store at a local path or fsspec URL (``memory://``, ``s3://`` …); `cache_bytes` bounds decoded chunks kept.

    Raises `InputError` if there is no store, it is half-written, of a newer schema, has symbolic links, codecs or data
    types that are not allowed, declares sizes beyond the limits of `sciml.data.guard`, or has numbers of rows that
    don't add up to the size of their ragged dimension (they are read here, nothing else is).
    """
    text = os.fspath(url)
    root = read_metadata(text)
    attributes = root.get("attributes")
    raw = attributes.get("sciml") if isinstance(attributes, dict) else None
    if not isinstance(raw, dict):
        raise InputError(text, key="sciml", found="no such attribute", expected="a finished store",
                         fix="it is half-written or not a store; build it: sciml data build SOURCE STORE")
    version = raw.get("schema_version")
    if not isinstance(version, int) or version > STORE_SCHEMA:
        raise InputError(text, key="schema_version", found=version, expected=f"at most {STORE_SCHEMA}",
                         fix="upgrade sciml: pip install -U sciml")
    meta = validate(StoreMeta, raw, where=f"{text} attribute sciml")
    arrays = check_arrays(text, root)
    path = local_path(text)
    if path is not None:
        refuse_links(path)
    _check_consistent(text, meta, arrays)
    layout = {name: chunk_shapes(arrays[name]) for name in meta.variables}
    reader = ChunkReader(text, layout, cache_bytes)
    return Store(meta, reader, {dim: _offsets(text, meta, reader, dim, arrays) for dim in meta.ragged})


def _offsets(url: str, meta: StoreMeta, reader: ChunkReader, dim: str, arrays: dict[str, Any]) -> np.ndarray:
    name = meta.ragged[dim]
    check_read_whole(url, name, arrays[name])
    size = next((int(arrays[n]["shape"][0]) for n, v in meta.variables.items() if v.dims[:1] == (dim,)), 0)
    try:
        rows = reader.whole(name)
    except Exception as error:
        raise InputError(url, key=name, found=f"{type(error).__name__}: {str(error)[:120]}",
                         expected="chunks that can be decoded",
                         fix="the files are damaged: copy them again, or build the store anew") from error
    return offsets(rows, size, dim=dim, name=name, where=url)


def _check_consistent(url: str, meta: StoreMeta, arrays: dict[str, Any]) -> None:
    check_described(meta.variables, meta.axes, meta.ragged, url)
    sizes = {meta.group_dim: meta.groups}
    for name, variable in meta.variables.items():
        dims = array_dims(variable, meta.group_dim, meta.ragged)
        array = arrays.get(name)
        if array is None or tuple(array.get("dimension_names") or ()) != dims:
            raise InputError(url, key=name, found="no such array" if array is None else array.get("dimension_names"),
                             expected=f"dimensions {dims}", fix="build the store anew")
        for dim, size in zip(dims, array["shape"], strict=True):
            if sizes.setdefault(dim, size) != size:
                raise InputError(url, key=name, found=f"{size} along {dim}", expected=f"{sizes[dim]}",
                                 fix="build the store anew")


class Store:
    """A checked store, open for reading. Cheap to pickle: a copy reopens by URL, with an empty cache."""

    def __init__(self, meta: StoreMeta, reader: ChunkReader, offsets: dict[str, np.ndarray],
                 withheld: Withheld | None = None) -> None:
        self.meta, self.url, self.cache_bytes, self.layout = meta, reader.url, reader.cache_bytes, reader.layout
        self._reader, self._offsets, self._withheld = reader, offsets, withheld
        self._lazy: xr.Dataset | None = None
        self._visible: dict[tuple[str, int], tuple[Stretch, ...]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self.cache_bytes, self._withheld is not None)

    def for_training(self) -> Store:
        """The same, whose test split can't be read: `read` and the variables of `lazy` raise `InputError` there."""
        return Store(self.meta, self._reader, self._offsets, Withheld.of(self.meta))

    def __repr__(self) -> str:
        return f"Store({self.url!r}, {self.meta.domain}/{self.meta.dataset}, {self.meta.groups} {self.meta.group_dim})"

    def lazy(self) -> xr.Dataset:
        """All variables and coordinates, decoded, without dask: what is indexed is what is read."""
        if self._lazy is None:
            dataset = _open_dataset(self.url)
            hidden = self.meta.variables if self._withheld is not None and self._withheld.test else {}
            self._lazy = without_values(dataset, list(hidden), self.url) if hidden else dataset
        return self._lazy

    def dataset(self) -> xr.Dataset:
        """All variables as dask arrays, one dask chunk per shard (at most about 16 MiB)."""
        dataset = self.lazy()
        chunked = {name: dataset[name].chunk(dict(zip(dataset[name].dims, self.layout[name][1], strict=True)))
                   for name in self.meta.variables}
        return dataset.assign(chunked)

    def read(self, variable: str, group: int, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """One group's values ``(time, ...)`` for start ≤ t < stop, or ``(...)`` of a variable without time; of a ragged
        variable the group's own rows start … stop, ``(rows, ...)``; a copy.

        Raises `InputError` on an unknown variable, or on what is `for_training` and of test, and `IndexError` outside
        the store.
        """
        known = self.meta.variables.get(variable)
        if known is None:
            raise InputError(self.url, key=variable, found="no such variable",
                             expected=f"one of {', '.join(self.meta.variables)}", fix="correct the name")
        if not 0 <= group < self.meta.groups:
            raise IndexError(f"{self.url}: {self.meta.group_dim} {group} of {self.meta.groups}")
        if self._withheld is not None and group in self._withheld.test:
            self._check_visible(variable, group, start, stop)
        if known.dims and known.dims[0] in self._offsets:
            low, high = (int(at) for at in self._offsets[known.dims[0]][group:group + 2])
            start, stop = 0 if start is None else start, high - low if stop is None else stop
            if not 0 <= start <= stop <= high - low:
                raise IndexError(f"{self.url} {variable}: rows {start}:{stop} of {high - low}")
            return self._reader.rows(variable, low + start, low + stop)
        if self.meta.evolves(variable):
            return self._reader.evolving(variable, group, start, stop)
        return self._reader.constant(variable, group)

    def visible(self, variable: str, group: int) -> tuple[Stretch, ...]:
        """Stretches ``start ≤ t < stop`` of a group's steps or rows that `read` gives; ``(0, 1)`` of a variable without
        either. All there are, unless the store is `for_training`."""
        if (variable, group) not in self._visible:
            length = self._length(variable, group)
            self._visible[variable, group] = ((0, length),) if self._withheld is None else self._withheld.visible(
                self.meta, variable, group, length, lambda: self._event_steps(variable, group))
        return self._visible[variable, group]

    def _check_visible(self, variable: str, group: int, start: int | None, stop: int | None) -> None:
        low, high = 0 if start is None else start, self._length(variable, group) if stop is None else stop
        if low < high and not any(a <= low and high <= b for a, b in self.visible(variable, group)):
            raise refusal(self.url, variable, f"{self.meta.group_dim} {group}, {low}:{high}")

    def _length(self, variable: str, group: int) -> int:
        """Of a group's steps or rows; 1 of a variable without either."""
        dims = self.meta.variables[variable].dims
        if dims and dims[0] in self._offsets:
            return int(self.rows(dims[0])[group])
        return len(self.coord(dims[0])) if self.meta.evolves(variable) else 1

    def _event_steps(self, variable: str, group: int) -> np.ndarray:
        """``(rows,)`` the step of time in which each event of a group is. Raises `InputError` if no variable tells."""
        dim, (clock, axis) = self.meta.variables[variable].dims[0], next(
            (name, axis) for name, axis in self.meta.axes.items() if axis.kind == "time")
        named = [name for name, v in self.meta.variables.items() if v.role == "event" and v.dims == (dim,)
                 and v.unit == axis.unit]
        if len(named) != 1:
            raise refusal(self.url, variable, f"{self.meta.group_dim} {group}, rows of unknown time,")
        low, high = (int(at) for at in self._offsets[dim][group:group + 2])
        return np.searchsorted(self.coord(clock), self._reader.rows(named[0], low, high), side="right") - 1

    def rows(self, dim: str) -> np.ndarray:
        """How many rows of a ragged dimension each group has, ``(groups,)`` int64; raises `InputError` if there is no
        such dimension."""
        if dim not in self._offsets:
            raise InputError(self.url, key=dim, found="no ragged dimension",
                             expected=f"one of {', '.join(self._offsets) or 'none'}", fix="correct the name")
        return np.diff(self._offsets[dim])

    def coord(self, name: str) -> np.ndarray:
        """Values of a coordinate ``(n,)``; labels as numpy strings. Raises `InputError` if there is none."""
        coords = self.lazy().coords
        if name not in coords:
            raise InputError(self.url, key=name, found="no such coordinate",
                             expected=f"one of {', '.join(map(str, coords))}", fix="correct the name")
        return np.asarray(coords[name].values)

    def members(self, dim: str) -> tuple[str, ...]:
        """Labels of a set dimension, in order."""
        return tuple(str(label) for label in self.coord(dim))

    @property
    def amplification(self) -> float:
        """Bytes decoded over bytes asked for, since opening; 0 before anything was read, below 1 if the cache helps."""
        return self._reader.decoded / self._reader.asked if self._reader.asked else 0.0

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded chunks held, never above `cache_bytes`."""
        return self._reader.held


def _reopen(url: str, cache_bytes: int, training: bool) -> Store:
    store = open_store(url, cache_bytes=cache_bytes)
    return store.for_training() if training else store


def _open_dataset(url: str) -> xr.Dataset:
    import xarray as xr

    dataset = xr.open_zarr(zarr_store(url, read_only=True), chunks=None, consolidated=True)
    dataset.attrs.pop("sciml", None)
    labels = {name: (coord.dims, coord.values.astype(object).astype(str), coord.attrs)
              for name, coord in dataset.coords.items() if coord.dtype.kind in "OT"}
    return dataset.assign_coords(labels)
