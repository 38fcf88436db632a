"""The lines of k-space of an ISMRMRD file: which belong to the image, where each goes, and where its slice lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.files import size_of
from sciml.data.readers import _guarded
from sciml.data.readers._ismrmrd_header import Steps
from sciml.data.safety import GIB, Limits, check_size
from sciml.errors import InputError

ASIDE = {19: "noise", 20: "calibration", 23: "navigation", 24: "phase correction", 26: "feedback", 27: "dummy",
         28: "feedback", 29: "surface coil correction", 30: "phase stabilisation", 31: "phase stabilisation"}
"""Flags of lines that are no part of the image, and what they are of."""
REFUSED = {22: "read backwards", 53: "compressed", 54: "compressed", 55: "compressed", 56: "compressed"}
COUNTERS = ("contrast", "phase", "repetition", "set")
"""Of which an image has one each; averages are averaged, segments are one scan in pieces."""
HEAD = ("flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample",
        "encoding_space_ref", "position", "read_dir", "phase_dir", "slice_dir", "idx")
APART = 1e-3
BLOCK = 256
"""Lines that are read at once at most; fewer of large files, since a list may claim to be as long as its file."""


@dataclass(frozen=True)
class Lines:
    """What a file's lines are. index: rows in the file; layer, row, depth ``(lines,)``: slice, phase encoding 1 and 2
    as numbers of cells; kept: samples of a line that count, which go to columns from `first` on."""

    index: np.ndarray
    layer: np.ndarray
    row: np.ndarray
    depth: np.ndarray
    channels: int
    samples: int
    kept: slice
    first: int


def open_lines(path: str | Path, limits: Limits) -> Any:
    """A guarded ``h5py.File`` as of `sciml.data.safety.open_hdf5`, records with lists of numbers let through."""
    return _guarded.open_checked(path, limits, _check_array)


def _check_array(where: str, name: str, array: Any, limits: Limits) -> int:
    """Lists are in the file's own heap, uncompressed: none is longer than the file."""
    if _lists(array.dtype) and not array.is_virtual and not array.external:
        check_size(where, name, array.chunks or (), array.dtype.itemsize, limits.chunk_bytes, "a chunk")
        return check_size(where, name, array.shape or (), array.dtype.itemsize, limits.total_bytes, "an array")
    return _guarded.check_array(where, name, array, limits)


def _lists(dtype: Any) -> bool:
    """Records of numbers and lists of numbers."""
    import h5py

    if not dtype.names:
        return False
    parts = [dtype[name] for name in dtype.names if dtype[name].hasobject]
    bases = [h5py.check_vlen_dtype(part) for part in parts]
    return bool(bases) and all(isinstance(base, np.dtype) and base.kind in "iuf" for base in bases)


def group_of(file: Any) -> str | None:
    """The first group that has ``xml`` and ``data`` of heads and lists, None if there is none."""
    for name in file:
        group = file[name]
        if not hasattr(group, "keys") or not {"xml", "data"} <= set(group.keys()):
            continue
        names = getattr(group["data"], "dtype", np.dtype("f4")).names or ()
        if {"head", "data"} <= set(names) and set(HEAD) <= set(group["data"].dtype["head"].names or ()):
            return str(name)
    return None


def heads_of(data: Any, path: str, limits: Limits, only: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Heads of the lines that make the image, and their rows in the file. Raises `InputError` where they make several,
    or none, or are read backwards or compressed."""
    check_size(path, "data", data.shape, data.dtype["head"].itemsize, limits.chunk_bytes, "the heads of all lines")
    heads = data.fields("head")[:]
    flags = heads["flags"].astype(np.uint64)
    rows = np.flatnonzero(~_flagged(flags, ASIDE))
    heads, flags = heads[rows], flags[rows]
    for bit, what in REFUSED.items():
        if _flagged(flags, {bit: what}).any():
            raise InputError(path, key="flags", found=f"lines {what} (flag {bit})",
                             expected="plain lines, read forwards",
                             fix="convert the file with lines decompressed, turned and corrected")
    chosen = np.ones(len(rows), bool)
    for key, value in only.items():
        chosen &= heads["idx"][key] == value
    heads, rows = heads[chosen], rows[chosen]
    if not len(rows):
        told = f" with {dict(only)}" if only else ""
        raise InputError(path, key="data", found=f"no line of an image among {len(flags)}{told}",
                         expected="lines of k-space", fix="correct options.only, or the file")
    for key in COUNTERS:
        values = np.unique(heads["idx"][key])
        if len(values) > 1:
            raise InputError(path, key=key, found=f"{len(values)} of them: {', '.join(map(str, values[:8].tolist()))}",
                             expected="one image a file", fix=f"choose: options: {{only: {{{key}: {values[0]}}}}}")
    return heads, rows


def _flagged(flags: np.ndarray, bits: Mapping[int, str]) -> np.ndarray:
    """Where one of the flags, counted from 1, is set."""
    mask = np.uint64(sum(1 << (bit - 1) for bit in bits))
    return np.asarray((flags & mask) != 0)


def same(heads: np.ndarray, key: str, path: str) -> Any:
    """What all heads say. Raises `InputError` if they differ."""
    values = np.unique(heads[key], axis=0)
    if len(values) > 1:
        raise InputError(path, key=key, found=f"{len(values)} of them: {values[:4].tolist()}",
                         expected="one for all lines of an image", fix="split the file into scans of one kind each")
    return values[0]


def placed(heads: np.ndarray, rows: np.ndarray, grid: tuple[int, int, int], along: tuple[Steps, Steps],
           path: str) -> Lines:
    """Where lines go on a grid of ``(readout, phase encoding 1, 2)`` cells. Raises `InputError` for lines beyond it."""
    samples, before, after, centre = (int(same(heads, key, path)) for key in (
        "number_of_samples", "discard_pre", "discard_post", "center_sample"))
    kept = slice(before, samples - after)
    first = grid[0] // 2 - centre + before
    places = [heads["idx"][f"kspace_encode_step_{i + 1}"].astype(np.int64) for i in range(2)]
    cells = [place - limit.center + n // 2 for place, limit, n in zip(places, along, grid[1:])]
    where = {"kspace_encode_step_1": (cells[0], grid[1]), "kspace_encode_step_2": (cells[1], grid[2]),
             "center_sample": (np.array([first, first + kept.stop - kept.start - 1]), grid[0])}
    for key, (at, n) in where.items():
        if kept.stop <= kept.start or at.min() < 0 or at.max() >= n:
            raise InputError(path, key=key, found=f"cells {int(at.min())} to {int(at.max())} of {n}",
                             expected=f"cells from 0 to {n - 1} of the encoded matrix",
                             fix="header and lines contradict one another: convert the scan again")
    layer = np.unique(heads["idx"]["slice"], return_inverse=True)[1]
    return Lines(rows, layer, cells[0], cells[1], int(same(heads, "active_channels", path)), samples, kept, first)


def share(lines: Lines, grid: tuple[int, int, int], along: tuple[Steps, Steps]) -> float:
    """Of the cells that a full scan has, as far from frequency zero on one side as on the other: how many were measured
    in the slice that has least."""
    wanted = [max(limit.maximum - limit.minimum + 1, 2 * max(limit.center - limit.minimum,
                                                             limit.maximum + 1 - limit.center) - 1) for limit in along]
    left, right = grid[0] // 2 - lines.first, lines.first + lines.kept.stop - lines.kept.start - grid[0] // 2
    readout = min(1.0, (left + right) / max(left + right, 2 * max(left, right) - 1))
    found = min(len(np.unique(np.stack([lines.row, lines.depth])[:, lines.layer == i], axis=1).T)
                for i in range(int(lines.layer.max()) + 1))
    return readout * min(1.0, found / (wanted[0] * wanted[1]))


def kspace_of(data: Any, lines: Lines, layer: int, grid: tuple[int, int, int], path: str) -> np.ndarray:
    """complex64 ``(coil, depth, column, row)`` of a slice: means over averages, 0 where nothing was measured."""
    nx, ny, nz = grid
    total, count = np.zeros((lines.channels, nz, nx, ny), np.complex64), np.zeros((nz, ny), np.int64)
    columns = slice(lines.first, lines.first + lines.kept.stop - lines.kept.start)
    mine, block = np.flatnonzero(lines.layer == layer), max(1, min(BLOCK, GIB // max(1, size_of(path))))
    for run in np.split(mine, np.flatnonzero(np.diff(lines.index[mine]) != 1) + 1):
        for some in (run[i:i + block] for i in range(0, len(run), block)):
            start = int(lines.index[some[0]])
            for at, values in zip(some, data.fields("data")[start:start + len(some)]):
                if values.size != 2 * lines.channels * lines.samples:
                    raise InputError(path, key=f"data {int(lines.index[at])}", found=f"{values.size} numbers",
                                     expected=f"{lines.channels} coils of {lines.samples} samples",
                                     fix="the file is damaged: copy it again")
                row, depth = int(lines.row[at]), int(lines.depth[at])
                line = np.ascontiguousarray(values, np.float32).view(np.complex64).reshape(lines.channels, -1)
                total[:, depth, columns, row] += line[:, lines.kept]
                count[depth, row] += 1
    if not np.isfinite(total).all():
        raise InputError(path, key="data", found="numbers that are not finite", expected="finite k-space",
                         fix="mend the scan, or leave it out")
    return total / np.maximum(count, 1)[None, :, None, :].astype(np.float32)


def directions(heads: np.ndarray, path: str) -> np.ndarray | None:
    """``(3, 3)`` in RAS: columns are the units along slices, readout and phase encoding; None where the file has none.
    Raises `InputError` for what is no unit."""
    found = np.stack([same(heads, key, path) for key in ("slice_dir", "read_dir", "phase_dir")], 1).astype(np.float64)
    if not found.any():
        return None
    if np.abs(np.linalg.norm(found, axis=0) - 1).max() > APART:
        raise InputError(path, key="slice_dir, read_dir, phase_dir", found=found.T.tolist(),
                         expected="three unit vectors",
                         fix="header and scan contradict one another: convert the scan again")
    return np.diag([-1.0, -1.0, 1.0]) @ found


def middles(heads: np.ndarray, lines: Lines, path: str) -> np.ndarray:
    """``(slices, 3)`` mm in RAS, where the middle of each slice or slab is. Raises `InputError` if one has several."""
    return np.stack([np.asarray(same(heads[lines.layer == i], "position", path), np.float64) * [-1, -1, 1]
                     for i in range(int(lines.layer.max()) + 1)])
