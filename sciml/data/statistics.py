"""Statistics of the training split, exact, in float64, in constant memory: moments of values and of their tendency.

Pieces of at most 4 MiB are read, reduced to (count, mean, sum of squared deviations, minimum, maximum) and combined
pairwise (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance"), which doesn't cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.ragged import offsets_of
from sciml.data.schema import AxisMeta, Block, Moments, Tendency, Variable, evolves, identity_dim
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

PIECE_BYTES = 4 << 20
RESIDENT_BYTES = 32 << 20


@dataclass(frozen=True)
class Partial:
    """Reduced values, one entry per member of the identity dimension (or one): m2 is Σ(x − mean)²."""

    count: np.ndarray
    missing: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


def reduce_values(values: np.ndarray, member_axis: int | None = None) -> Partial:
    """`values` of any shape reduced over all axes but `member_axis`; what is not finite counts as missing."""
    x = np.asarray(values, dtype=np.float64)
    rows = x.reshape(1, -1) if member_axis is None else np.moveaxis(x, member_axis, 0).reshape(x.shape[member_axis], -1)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = None if np.isfinite(rows.sum()) else np.isfinite(rows)
    kept = rows if finite is None else np.where(finite, rows, 0.0)
    count = np.full(len(rows), rows.shape[1]) if finite is None else finite.sum(axis=1)
    safe = np.maximum(count, 1)
    mean = kept.sum(axis=1) / safe
    deviation = rows - mean[:, None] if finite is None else np.where(finite, rows - mean[:, None], 0.0)
    shift = deviation.sum(axis=1) / safe
    m2 = np.einsum("ij,ij->i", deviation, deviation) - count * shift * shift
    low, high = (rows, rows) if finite is None else (np.where(finite, rows, np.inf), np.where(finite, rows, -np.inf))
    return Partial(count, rows.shape[1] - count, mean + shift, np.maximum(m2, 0.0), low.min(axis=1, initial=np.inf),
                   high.max(axis=1, initial=-np.inf))


def combine(a: Partial, b: Partial) -> Partial:
    """The reduction of both sets of values together.

    >>> both = combine(reduce_values(np.array([1.0, 2.0])), reduce_values(np.array([6.0])))
    >>> both.mean.item(), both.m2.item()
    (3.0, 14.0)
    """
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    gap = b.mean - a.mean
    return Partial(count, a.missing + b.missing, a.mean + gap * share, a.m2 + b.m2 + gap * gap * a.count * share,
                   np.minimum(a.minimum, b.minimum), np.maximum(a.maximum, b.maximum))


def combine_all(parts: Iterable[Partial]) -> Partial:
    """Pairwise, in order: the result depends neither on threads nor, beyond rounding, on how values were cut."""
    level = list(parts)
    while len(level) > 1:
        level = [combine(level[i], level[i + 1]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


def summarised(dataset: xr.Dataset, variables: Mapping[str, Variable], axes: Mapping[str, AxisMeta],
               train: Sequence[Block], ragged: Mapping[str, str], own: str | None = None) -> tuple[str, ...]:
    """Variables that have statistics: all but events and rows; ragged ones only if the training blocks are whole
    groups, or rows (`own`: as of `sciml.data.schema.paced`), as which rows lie in a stretch of time is not the store's
    to know."""
    time = next((dim for dim, axis in axes.items() if axis.kind == "time"), None)
    steps = 1 if time is None else dataset.sizes[time]
    whole = own is not None or all(b.start == 0 and b.stop == steps for b in train)
    return tuple(name for name, variable in variables.items() if variable.role not in ("event", "rows")
                 and (whole or variable.dims[:1] == () or variable.dims[0] not in ragged))


def compute(dataset: xr.Dataset, variables: Mapping[str, Variable], axes: Mapping[str, AxisMeta],
            train: Sequence[Block], *, ragged: Mapping[str, str] | None = None, own: str | None = None,
            ) -> tuple[dict[str, Moments], dict[str, Tendency]]:
    """Moments of every `summarised` variable and, in space, the tendency of every state variable, over the training
    blocks (of ragged variables: over all rows of their groups, or where blocks count the rows of `own`, over those).

    `dataset` is lazy (``xr.open_zarr(..., chunks=None)``): only pieces of the training blocks are read. Keys are
    ``variable`` or ``variable/member``. ragged: as in `StoreMeta`. Raises `InputError` if a variable or member has no
    finite training value.
    """
    if not train:
        raise InputError("training split", key="splits.train", found="no block", expected="at least one",
                         fix="give it a share in the source file")
    ragged = ragged or {}
    spatial = any(axis.kind == "space" or axis.places for axis in axes.values())
    moments: dict[str, Moments] = {}
    tendency: dict[str, Tendency] = {}
    for name in summarised(dataset, variables, axes, train, ragged, own):
        array, variable = dataset[name], variables[name]
        timed, member_dim = evolves(variable, axes), identity_dim(variable, axes)
        members = None if member_dim is None else [str(m) for m in dataset[member_dim].values]
        axis = None if member_dim is None else array.dims.index(member_dim)
        longest = max(block.stop - block.start for block in train)
        leads = _leads(longest) if timed and spatial and variable.role == "state" else ()
        regions = _regions(array, cells(dataset, variable, axes, train, ragged, own))
        if not regions:
            raise _nothing(name)
        jobs: list[tuple[Any, ...]] = [(array, region, timed, axis, leads) for region in regions]
        parts = _map(_region_partials, jobs) if variable.dims[:1] != (own,) else \
            _map(_row_partials, [(array, near, axis) for near in _bundles(array, regions)])
        changes = [combine_all(part[1][i] for part in parts) for i in range(len(leads))]
        for key, index in _keys(name, members):
            moments[key] = _moments(key, combine_all(part[0] for part in parts), index)
            seen = [(lead, _std(change, index)) for lead, change in zip(leads, changes, strict=True)
                    if change.count[index]]
            if seen:
                tendency[key] = Tendency(lead=tuple(lead for lead, _ in seen), std=tuple(std for _, std in seen))
    return moments, tendency


def cells(dataset: xr.Dataset, variable: Variable, axes: Mapping[str, AxisMeta], blocks: Sequence[Block],
          ragged: Mapping[str, str], own: str | None = None) -> list[tuple[int, int, int, int]]:
    """What `blocks` hold of a variable's array: ``(first, last + 1, start, stop)`` along its first axis (groups, or
    rows of a ragged dimension) and along time (0, 0 without). own: the dimension whose rows they count."""
    timed = evolves(variable, axes)
    if not variable.dims or variable.dims[0] not in ragged:
        return runs(blocks, timed)
    dim = variable.dims[0]
    at = offsets_of(dataset, {dim: ragged[dim]}, "store")[dim]
    found = [(int(at[first]), int(at[last]), 0, 0) for first, last, _, _ in runs(blocks, False)] if dim != own else \
        _joined(sorted((int(at[b.group]) + b.start, int(at[b.group]) + b.stop) for b in blocks))
    return [cell for cell in found if cell[0] < cell[1]]


def _joined(rows: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    joined: list[tuple[int, int, int, int]] = []
    for start, stop in rows:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop, 0, 0)
        else:
            joined.append((start, stop, 0, 0))
    return joined


def _keys(name: str, members: Sequence[str] | None) -> Iterator[tuple[str, int]]:
    if members is None:
        yield name, 0
        return
    for index, member in enumerate(members):
        yield f"{name}/{member}", index


def _leads(steps: int) -> tuple[int, ...]:
    """Powers of two, and the longest there is.

    >>> _leads(8), _leads(1)
    ((1, 2, 4, 7), ())
    """
    longest = steps - 1
    return tuple(sorted({*(1 << i for i in range(max(longest, 0).bit_length())), longest} - {0, -1}))


def runs(blocks: Sequence[Block], timed: bool) -> list[tuple[int, int, int, int]]:
    """Blocks as ``(first group, last group + 1, start, stop)``, neighbouring groups with the same times joined.

    >>> runs([Block(group=0, start=0, stop=5), Block(group=1, start=0, stop=5), Block(group=3, start=0, stop=5)], True)
    [(0, 2, 0, 5), (3, 4, 0, 5)]
    """
    joined: list[tuple[int, int, int, int]] = []
    for start, stop, group in sorted({(b.start, b.stop, b.group) if timed else (0, 0, b.group) for b in blocks}):
        if joined and joined[-1][1:] == (group, start, stop):
            joined[-1] = (joined[-1][0], group + 1, start, stop)
        else:
            joined.append((group, group + 1, start, stop))
    return joined


def _map(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    import dask

    return list(dask.compute(*[dask.delayed(function, pure=False)(*a) for a in _undasked(arguments)],
                             scheduler="threads"))


def _undasked(arguments: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(_Lazy(array), *rest) for array, *rest in arguments]


@dataclass(frozen=True)
class _Lazy:
    """Hides a lazy array from dask, which would load it; reads slices of it as numpy."""

    array: xr.DataArray

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        part = self.array[key]
        return np.asarray(part.values)


def read_through(array: xr.DataArray, within: Sequence[tuple[int, int, int, int]], timed: bool) -> None:
    """Decode every value of some `cells` (and what lies between those that are near each other), 4 MiB at a time;
    raises what decoding raises."""
    near = within if timed else [(group[0][0], group[-1][1], 0, 0) for group in _bundles(array, within)]
    for first, last, start, stop in near:
        part = array[first:last, start:stop] if timed else array[first:last]
        for piece in pieces(part.shape, part.dtype.itemsize):
            part[piece].load()


def _bundles(array: xr.DataArray, regions: Sequence[tuple[int, int, int, int]]) -> list[Sequence[tuple[int, ...]]]:
    """Regions of rows that lie together within 32 MiB, in order."""
    rows = max(1, RESIDENT_BYTES * array.shape[0] // max(array.nbytes, 1))
    bundled: list[list[tuple[int, ...]]] = []
    for region in regions:
        if bundled and region[1] - bundled[-1][0][0] <= rows:
            bundled[-1].append(region)
        else:
            bundled.append([region])
    return list(bundled)


def _row_partials(source: _Lazy, near: Sequence[tuple[int, ...]], member_axis: int | None) -> tuple[Partial, list[Any]]:
    """Stretches of rows that lie near each other: read as one and reduced in memory."""
    first = near[0][0]
    values = source[slice(first, near[-1][1]),]
    kept = np.concatenate([values[low - first:high - first] for low, high, *_ in near])
    return combine_all(reduce_values(kept[piece], member_axis) for piece in pieces(kept.shape, kept.dtype.itemsize)), []


def _regions(array: xr.DataArray, within: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Cells cut along groups (or rows) so that each fits in 32 MiB, or is one group."""
    together = max(1, RESIDENT_BYTES * array.shape[0] // max(array.nbytes, 1))
    return [(low, min(low + together, last), start, stop)
            for first, last, start, stop in within for low in range(first, last, together)]


def _region_partials(source: _Lazy, region: tuple[int, int, int, int], timed: bool, member_axis: int | None,
                     leads: Sequence[int]) -> tuple[Partial, list[Partial]]:
    """A region that fits is read once and reduced in memory; a larger one is read piece by piece, twice per lead."""
    low, high, start, stop = region
    part = source.array[low:high, start:stop] if timed else source.array[low:high]
    item = part.dtype.itemsize
    view = part.values if part.nbytes <= RESIDENT_BYTES else _Lazy(part)
    values = [reduce_values(view[piece], member_axis) for piece in pieces(part.shape, item)]
    steps: list[list[Partial]] = [[] for _ in leads]
    for i, lead in enumerate(leads):
        for piece in pieces((part.shape[0], part.shape[1] - lead, *part.shape[2:]), item):
            later = (piece[0], slice(piece[1].start + lead, piece[1].stop + lead), *piece[2:])
            steps[i].append(reduce_values(view[later].astype(np.float64) - view[piece], member_axis))
    return combine_all(values), [combine_all(s) for s in steps]


def pieces(shape: Sequence[int], item: int) -> Iterator[tuple[slice, ...]]:
    """Cut a shape into pieces of at most 4 MiB, along the leading axes first."""
    steps = [max(n, 1) for n in shape]
    for axis in range(len(steps)):
        size = math.prod(steps) * item
        if size <= PIECE_BYTES:
            break
        steps[axis] = max(1, steps[axis] * PIECE_BYTES // size)
    for corner in np.ndindex(*[-(-n // s) for n, s in zip(shape, steps, strict=True)]):
        yield tuple(slice(i * s, min((i + 1) * s, n)) for i, s, n in zip(corner, steps, shape, strict=True))


def _moments(key: str, total: Partial, index: int) -> Moments:
    count = int(total.count[index])
    if count == 0:
        raise _nothing(key)
    return Moments(mean=float(total.mean[index]), std=_std(total, index), minimum=float(total.minimum[index]),
                   maximum=float(total.maximum[index]), count=count, missing=int(total.missing[index]))


def _nothing(key: str) -> InputError:
    return InputError("training split", key=key, found="no finite value", expected="at least one",
                      fix="leave the variable or member out, or change the split")


def _std(total: Partial, index: int) -> float:
    return math.sqrt(float(total.m2[index]) / max(int(total.count[index]), 1))
