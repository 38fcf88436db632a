"""Volumes in a store: each subject's voxels in bricks, so that a patch touches few chunks whatever its place.

A volume ``(I, J, K)`` is cut into bricks of `brick` voxels an axis; those at the far edges are smaller, nothing is
padded. Bricks follow one another in C order, and so do the voxels inside a brick: brick (a, b, c), whose extent is
(h, w, d), starts at voxel ``a·brick·J·K + h·b·brick·K + h·w·c·brick``. All of a row of bricks (a, b, ·) is one stretch.

A store with frames has them one after the other, each a volume in bricks: a subject has ``I·J·K·T`` rows of the ragged
dimension ``voxel``, and ``T`` of ``frame``, of which ``frame_time`` are the seconds. What is the same in all frames has
``I·J·K`` rows of the ragged dimension ``place``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from sciml.data.store import Store
from sciml.errors import InputError

VOXEL, FRAME, PLACE, TIME = "voxel", "frame", "place", "frame_time"
BRICK = 32
"""Voxels an axis: 128 KiB of float32, two chunks of a ragged variable."""
Stretch = tuple[int, int, slice]
"""First voxel of the subject, last + 1, and the rows of the second axis that they cover."""


def pack(volume: np.ndarray, brick: int) -> np.ndarray:
    """``(I, J, K)`` as ``(I·J·K,)`` in bricks; a slab of whole layers of bricks is packed as it lies in the volume.

    >>> pack(np.arange(12).reshape(1, 3, 4), 2).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]
    """
    flat, start = np.empty(volume.size, volume.dtype), 0
    for at in _bricks(volume.shape, brick):
        part = volume[at]
        flat[start:start + part.size].reshape(part.shape)[...] = part
        start += part.size
    return flat


def unpack(flat: np.ndarray, shape: Sequence[int], brick: int) -> np.ndarray:
    """The volume ``(I, J, K)`` that `pack` made ``(I·J·K,)`` of.

    >>> unpack(pack(np.arange(12).reshape(1, 3, 4), 2), (1, 3, 4), 2).ravel().tolist() == list(range(12))
    True
    """
    volume, start = np.empty(tuple(shape), flat.dtype), 0
    for at in _bricks(shape, brick):
        part = volume[at]
        part[...] = flat[start:start + part.size].reshape(part.shape)
        start += part.size
    return volume


def _bricks(shape: Sequence[int], brick: int) -> Iterator[tuple[slice, slice, slice]]:
    for corner in np.ndindex(*(-(-n // brick) for n in shape)):
        i, j, k = (slice(c * brick, min((c + 1) * brick, n)) for c, n in zip(corner, shape, strict=True))
        yield i, j, k


def read(store: Store, name: str, subject: int, low: Sequence[int] = (0, 0, 0), high: Sequence[int] | None = None,
         frames: slice = slice(None)) -> np.ndarray:
    """The box ``low ≤ (i, j, k) < high`` of a subject's variable, ``(i, j, k)``; without `high`, up to the far corner.
    Of what has frames these, ``(i, j, k, t)``.

    Only bricks that the box meets are read, those that lie one after the other in one call. Raises `IndexError` for a
    box outside the volume and `InputError` as `sciml.data.store.Store.read` does.
    """
    if name not in store.meta.variables:
        store.read(name, subject)
    shape, brick = size(store, subject), _brick(store, subject)
    start, stop = tuple(map(int, low)), shape if high is None else tuple(map(int, high))
    if len(start) != 3 or len(stop) != 3 or not all(0 <= a <= b <= n for a, b, n in zip(start, stop, shape)):
        raise IndexError(f"{store.url} {name}: box {start} … {stop} of a volume {shape}")
    chosen = range(len(times(store, subject)))[frames] if timed(store, name) else range(1)
    boxes = np.empty([len(chosen), *(b - a for a, b in zip(start, stop))], store.lazy()[name].dtype)
    for box, frame in zip(boxes, chosen):
        base = frame * math.prod(shape)
        for layer in range(start[0] // brick, -(-stop[0] // brick)) if box.size else ():
            across = slice(layer * brick, min((layer + 1) * brick, shape[0]))
            for first, last, rows in _stretches(shape, brick, across, start, stop):
                _place(box, store.read(name, subject, base + first, base + last), (across, rows), shape, brick, start,
                       stop)
    return np.moveaxis(boxes, 0, -1) if timed(store, name) else boxes[0]


def _stretches(shape: tuple[int, ...], brick: int, across: slice, start: tuple[int, ...],
               stop: tuple[int, ...]) -> Iterator[Stretch]:
    """The stretches of one layer of bricks that the box meets: one per row of bricks, or one in all if the box takes
    whole rows."""
    _, columns, depth = shape
    height = across.stop - across.start
    near, far = start[2] // brick * brick, min(-(-stop[2] // brick) * brick, depth)
    begin, end = start[1] // brick * brick, min(-(-stop[1] // brick) * brick, columns)
    base = across.start * columns * depth
    if near == 0 and far == depth:
        yield base + height * begin * depth, base + height * end * depth, slice(begin, end)
        return
    for row in range(begin, end, brick):
        width = min(brick, columns - row)
        at = base + height * row * depth
        yield at + height * width * near, at + height * width * far, slice(row, row + width)


def _place(box: np.ndarray, flat: np.ndarray, where: tuple[slice, slice], shape: tuple[int, ...], brick: int,
           start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    """Write a stretch of voxels, whole bricks of one layer, into the box."""
    across, rows = where
    first, used = start[2] // brick * brick, 0
    far = min(-(-stop[2] // brick) * brick, shape[2])
    for row in range(rows.start, rows.stop, brick):
        for column in range(first, far, brick):
            extent = (across, slice(row, min(row + brick, rows.stop)), slice(column, min(column + brick, far)))
            sizes = [part.stop - part.start for part in extent]
            values = flat[used:used + int(np.prod(sizes))].reshape(sizes)
            used += values.size
            inner = [slice(max(a, p.start), min(b, p.stop)) for a, b, p in zip(start, stop, extent)]
            target = tuple(slice(p.start - a, p.stop - a) for p, a in zip(inner, start))
            box[target] = values[tuple(slice(p.start - e.start, p.stop - e.start) for p, e in zip(inner, extent))]


def size(store: Store, subject: int) -> tuple[int, int, int]:
    """Voxels along the axes of the array, as the file has them."""
    i, j, k = (int(n) for n in store.read("size", subject))
    return i, j, k


def timed(store: Store, name: str) -> bool:
    """Whether a variable has a value in every frame."""
    return FRAME in store.meta.ragged and store.meta.variables[name].dims[:1] == (VOXEL,)


def times(store: Store, subject: int) -> np.ndarray:
    """``(T,)`` float64: seconds of a subject's frames, ascending; empty in a store without frames."""
    if FRAME not in store.meta.ragged:
        return np.zeros(0)
    return np.asarray(store.read(TIME, subject), np.float64)


def affine(store: Store, subject: int) -> np.ndarray:
    """``(4, 4)`` float64: from voxel indices (i, j, k, 1) to millimetres towards right, anterior, superior."""
    return np.asarray(store.read("affine", subject), np.float64)


def subjects(store: Store) -> tuple[str, ...]:
    """The subjects' ids, in order."""
    return store.members("subject")


def _brick(store: Store, subject: int) -> int:
    brick = int(store.read("brick", subject))
    if brick < 1:
        raise InputError(store.url, key="brick", found=f"{brick} of subject {subject}", expected="at least 1",
                         fix="build the store anew")
    return brick
