"""Reading slices of a store's arrays through a bounded cache of decoded chunks."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.guard import local_path

if TYPE_CHECKING:
    import zarr

Layout = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
READ_BYTES = 16 << 20
PATIENCE = 16
"""Misses after which an array is read in blocks of `READ_BYTES`, if all arrays fit into the cache."""
_Column = tuple[str, int | None, int]
"""Array, chunk of groups (None: an array without groups), chunk of time or rows."""


def zarr_store(url: str, *, read_only: bool) -> Any:
    """The zarr storage object behind a local path or fsspec URL."""
    from zarr.storage import FsspecStore, LocalStore

    path = local_path(url)
    return FsspecStore.from_url(url, read_only=read_only) if path is None else LocalStore(path, read_only=read_only)


class ChunkReader:
    """Slices of arrays ``(group, time, ...)``, ``(group, ...)`` or ``(row, ...)``; `layout` has their chunk and shard
    shapes.

    What is cached is a column: all of space for one chunk of group and time, or of rows. Columns that are missing and
    follow one another are read in one call of at most about 16 MiB. If all arrays fit
    into the cache, one that is asked for again and again (training) is soon read in such blocks of whole trajectories:
    a call costs as much as decoding ten frames of 64². Safe in threads; after a fork files are opened anew.
    """

    def __init__(self, url: str, layout: Layout, cache_bytes: int) -> None:
        self.url, self.layout, self.cache_bytes = url, layout, cache_bytes
        self.held = self.decoded = self.asked = 0
        self._columns: OrderedDict[_Column, np.ndarray] = OrderedDict()
        self._arrays: dict[str, zarr.Array] = {}
        self._misses: Counter[str] = Counter()
        self._fits: bool | None = None
        self._lock, self._process = threading.Lock(), os.getpid()

    def constant(self, name: str, group: int) -> np.ndarray:
        """``(...)`` of one group of an array without time."""
        with self._unforked():
            rows = self.layout[name][0][0]
            row = group // rows
            column = self._cached(name, row, 0)
            if column is None:
                column = self._keep((name, row, 0), np.asarray(self._array(name)[row * rows:(row + 1) * rows]))
            values = np.array(column[group % rows])
            self.asked += values.nbytes
            return values

    def evolving(self, name: str, group: int, start: int | None, stop: int | None) -> np.ndarray:
        """``(stop - start, ...)`` of one group; raises `IndexError` outside the array."""
        return self._slice(name, (group,), start, stop)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """``(stop - start, ...)`` of an array without groups; raises `IndexError` outside the array."""
        return self._slice(name, (), start, stop)

    def whole(self, name: str) -> np.ndarray:
        """All of an array, past the cache and uncounted."""
        with self._unforked():
            return np.asarray(self._array(name)[...])

    def _slice(self, name: str, group: tuple[int, ...], start: int | None, stop: int | None) -> np.ndarray:
        with self._unforked():
            array, axis = self._array(name), len(group)
            length = array.shape[axis]
            start, stop = 0 if start is None else start, length if stop is None else stop
            if not 0 <= start <= stop <= length:
                raise IndexError(f"{self.url} {name}: {start}:{stop} of {length}")
            chunk = self.layout[name][0]
            row, span = group[0] // chunk[0] if group else None, chunk[axis]
            values = np.empty((stop - start, *array.shape[axis + 1:]), dtype=array.dtype)
            index, last = start // span, -(-stop // span) if stop > start else 0
            while index < last:
                column = self._cached(name, row, index)
                for part in [column] if column is not None else self._read(name, row, index, last):
                    low, high = max(start, index * span), min(stop, (index + 1) * span)
                    line = part[group[0] % chunk[0]] if group else part
                    values[low - start:high - start] = line[low - index * span:high - index * span]
                    index += 1
            self.asked += values.nbytes
            return values

    def _unforked(self) -> threading.Lock:
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
            self._arrays.clear()
        return self._lock

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            import zarr

            group = zarr.open_group(zarr_store(self.url, read_only=True), mode="r", use_consolidated=True)
            self._arrays[name] = group[name]
        return self._arrays[name]

    def _cached(self, name: str, row: int | None, index: int) -> np.ndarray | None:
        column = self._columns.get((name, row, index))
        if column is not None:
            self._columns.move_to_end((name, row, index))
        return column

    def _read(self, name: str, row: int | None, index: int, last: int) -> list[np.ndarray]:
        """The missing column `index` and the missing ones right after it, before `last`."""
        array, axis = self._array(name), 0 if row is None else 1
        chunk = self.layout[name][0][:axis + 1]
        self._misses[name] += 1
        if row is not None and self._misses[name] > PATIENCE and self._keep_block(name, row):
            return [self._columns[name, row, index]]
        span, front = chunk[-1], () if row is None else (slice(row * chunk[0], (row + 1) * chunk[0]),)
        together = max(1, READ_BYTES // max(1, math.prod((*chunk, *array.shape[axis + 1:])) * array.dtype.itemsize))
        stop = index + 1
        while stop < min(last, index + together) and (name, row, stop) not in self._columns:
            stop += 1
        block = np.asarray(array[(*front, slice(index * span, stop * span))])
        if stop == index + 1:
            return [self._keep((name, row, index), block)]
        every = (slice(None),) * axis
        return [self._keep((name, row, i), block[(*every, slice((i - index) * span, (i + 1 - index) * span))].copy())
                for i in range(index, stop)]

    def _keep_block(self, name: str, row: int) -> bool:
        """Cache the chunks of groups around `row`, in all their times, that make about `READ_BYTES`; whether it did,
        since all arrays fit into the cache."""
        if self._fits is None:
            self._fits = sum(self._array(each).nbytes for each in self.layout) <= self.cache_bytes
        if not self._fits:
            return False
        array, (groups, span) = self._array(name), self.layout[name][0][:2]
        line = math.prod((groups, *array.shape[1:])) * array.dtype.itemsize
        together = max(1, READ_BYTES // max(1, line))
        first = row - row % together
        block = np.asarray(array[first * groups:(first + together) * groups])
        for own in range(-(-len(block) // groups)):
            part = block[own * groups:(own + 1) * groups]
            for index in range(-(-array.shape[1] // span)):
                if (name, first + own, index) not in self._columns:
                    self._keep((name, first + own, index), part[:, index * span:(index + 1) * span].copy())
        return True

    def _keep(self, key: _Column, column: np.ndarray) -> np.ndarray:
        self.decoded += column.nbytes
        if column.nbytes <= self.cache_bytes:
            self._columns[key] = column
            self.held += column.nbytes
            while self.held > self.cache_bytes:
                self.held -= self._columns.popitem(last=False)[1].nbytes
        return column
