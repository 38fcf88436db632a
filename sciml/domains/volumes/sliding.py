"""A lattice that is larger than the operator's window: overlapping windows, blended by Gaussian weights.

Windows are spread evenly from one end of an axis to the other. Along every axis the weights of the windows over a cell
sum to one, so their products over axes do: a sum of weighed outputs is the blend, and nothing has to be divided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sciml.adapter import Operate
from sciml.tokens import Axis, Outputs, Target, TokenBatch

Tile = tuple[slice, ...]
SIGMA = 1 / 8
"""Standard deviation of the weights, as a share of the window."""


def starts(size: int, window: int, overlap: float) -> list[int]:
    """Where the windows of one axis begin: neighbours share at least `overlap` of a window.

    >>> starts(10, 4, 0.5), starts(3, 4, 0.5)
    ([0, 2, 4, 6], [0])
    """
    if window < 1 or not 0 <= overlap < 1:
        raise ValueError(f"a window of {window} cells with overlap {overlap}: at least 1, and from 0 to below 1")
    if size <= window:
        return [0]
    step = max(1, math.floor(window * (1 - overlap)))
    count = math.ceil((size - window) / step) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def tiles(lattice: Sequence[int], window: Sequence[int], overlap: float) -> list[Tile]:
    """The boxes that cover a lattice, the last axis fastest; one box if all fits into the window.

    >>> tiles((6, 3), (4, 4), 0.5)
    [(slice(0, 4, None), slice(0, 3, None)), (slice(2, 6, None), slice(0, 3, None))]
    """
    along = [[slice(a, min(a + w, n)) for a in starts(n, w, overlap)] for n, w in zip(lattice, window, strict=True)]
    return list(itertools.product(*along))


def shares(size: int, window: int, overlap: float) -> Tensor:
    """``(windows, min(window, size))`` weights of one axis, Gaussian about the middle of each window; over every cell
    they sum to one."""
    begins, length = starts(size, window, overlap), min(window, size)
    place = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    bell = torch.exp(-0.5 * (place / (SIGMA * length)) ** 2)
    total = torch.zeros(size, dtype=torch.float64)
    for a in begins:
        total[a: a + length] += bell
    return torch.stack([bell / total[a: a + length] for a in begins]).float()


def weights(lattice: Sequence[int], window: Sequence[int], overlap: float) -> Iterator[tuple[Tile, Tensor]]:
    """Every tile with its weights, of the tile's shape, in the order of `tiles`."""
    each = [shares(n, w, overlap) for n, w in zip(lattice, window, strict=True)]
    rows = itertools.product(*(range(len(rows)) for rows in each))
    for tile, picked in zip(tiles(lattice, window, overlap), rows, strict=True):
        yield tile, outer([rows[i] for rows, i in zip(each, picked)])


def outer(factors: Sequence[Tensor]) -> Tensor:
    """The product over axes of factors that each have axes of their own, of all their sizes one after the other."""
    product = factors[0]
    for factor in factors[1:]:
        product = product[(..., *[None] * factor.ndim)] * factor
    return product


def blended(batch: TokenBatch, operate: Operate, window: Sequence[int], overlap: float = 0.5,
            mirrors: Collection[str] = ()) -> Outputs:
    """What `operate` says of a batch, window by window; one call where the lattice fits into the window.

    Heads on the lattice, ``(B, *lattice, C)``, are blended in link space, so that an operate that is pointwise gives
    what it gives of the whole; pooled heads ``(S, C)`` are averaged over the windows. Heads on a coarser lattice (deep
    supervision) serve training and are left out as soon as there are two windows. window: cells per axis of the
    lattice; mirrors: axes to also flip (`mirrored`).
    """
    turned = mirrored(operate, mirrors) if mirrors else operate
    if all(n <= w for n, w in zip(batch.lattice, window, strict=True)):
        return turned(batch)
    cut = list(weights(batch.lattice, window, overlap))
    heads: dict[str, Tensor] = {}
    for tile, weight in cut:
        part = box(batch, tile)
        for name, output in turned(part).heads.items():
            if output.shape[1:-1] == part.lattice:
                if name not in heads:
                    heads[name] = output.new_zeros(output.shape[0], *batch.lattice, output.shape[-1])
                heads[name][:, *tile] += weight.to(output)[..., None] * output
            elif output.ndim == 2:
                heads[name] = heads.get(name, 0) + output / len(cut)
    return Outputs(heads)


def box(batch: TokenBatch, tile: Tile) -> TokenBatch:
    """The cells of a tile, with all that is known of them; vectors, context and pooled targets stay as they are."""
    rank = len(tile)

    def cut(x: Tensor) -> Tensor:
        """Of ``(B, *lattice)`` or ``(B, *lattice, C)``; an axis of size 1 is shared by all cells."""
        return x[:, *(part if n > 1 else slice(None) for part, n in zip(tile, x.shape[1: 1 + rank]))]

    def target(given: Target) -> Target:
        if given.value.shape[1:-1] != batch.lattice:
            return given
        parts = {name: cut(x) if x.ndim == rank + 2 else x for name, x in
                 (("value", given.value), ("mask", given.mask), ("baseline", given.baseline), ("scale", given.scale))}
        return replace(given, **parts)

    axes = tuple(replace(axis, coord=axis.coord[:, part], ids=None if axis.ids is None else axis.ids[:, part],
                         measure=None if axis.measure is None else axis.measure[:, part])
                 for axis, part in zip(batch.axes, tile, strict=True))
    conditions = replace(batch.conditions, lattice={name: cut(x) for name, x in batch.conditions.lattice.items()})
    return replace(batch, values=cut(batch.values), axes=axes, conditions=conditions,
                   observed=None if batch.observed is None else cut(batch.observed),
                   targets={name: target(each) for name, each in batch.targets.items()})


def mirrored(operate: Operate, names: Collection[str]) -> Operate:
    """The mean of what `operate` says of a batch flipped along none, one and several of the named axes, flipped back.

    Coordinates stay ascending: they are mirrored about the middle of the axis. Left and right change places under
    ``x``, so structures named by their side can't be mirrored there. Raises ValueError on an axis that is not there.
    """
    def run(batch: TokenBatch) -> Outputs:
        places = [i for i, axis in enumerate(batch.axes) if axis.name in names]
        if len(places) != len(set(names)):
            raise ValueError(f"mirrors {sorted(names)} are no axes of {[axis.name for axis in batch.axes]}")
        chosen = [each for n in range(len(places) + 1) for each in itertools.combinations(places, n)]
        heads: dict[str, Tensor] = {}
        for turned in chosen:
            for name, output in operate(flip(batch, turned)).heads.items():
                back = output.flip([1 + i for i in turned]) if output.ndim > 2 else output
                heads[name] = heads.get(name, 0) + back / len(chosen)
        return Outputs(heads)

    return run


def flip(batch: TokenBatch, places: Sequence[int]) -> TokenBatch:
    """Values, what is observed and known, turned around along these axes; targets stay behind."""
    dims = [1 + i for i in places]

    def axis(given: Axis) -> Axis:
        ends = given.coord[:, :1] + given.coord[:, -1:]
        return replace(given, coord=ends - given.coord.flip(1),
                       measure=None if given.measure is None else given.measure.flip(1))

    lattice = {name: x.flip(dims) for name, x in batch.conditions.lattice.items()}
    return replace(batch, values=batch.values.flip(dims), targets={},
                   observed=None if batch.observed is None else batch.observed.flip(dims),
                   axes=tuple(axis(a) if i in places else a for i, a in enumerate(batch.axes)),
                   conditions=replace(batch.conditions, lattice=lattice))


def planes(lattice: Sequence[int], window: Sequence[int], overlap: float, channels: int,
           run: Callable[[Tile], Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """The blend of ``run(tile) → (*tile, channels)``, given out along the last axis as soon as it is complete.

    Yields which planes they are, in order, and their ``(*others, planes, channels)``, valid until the next is asked
    for. What is held is one window's depth of planes, however deep the lattice is.
    """
    *across, depth = lattice
    *wide, high = window
    begins, bells = starts(depth, high, overlap), shares(depth, high, overlap)
    held = torch.zeros(min(high, depth), *across, channels)
    for i, (begin, bell) in enumerate(zip(begins, bells)):
        deep = slice(begin, begin + len(bell))
        for tile, weight in weights(across, wide, overlap):
            held[:, *tile] += outer([bell, weight])[..., None] * run((*tile, deep)).movedim(-2, 0)
        done = (begins[i + 1] if i + 1 < len(begins) else deep.stop) - begin
        yield slice(begin, begin + done), held[:done].movedim(0, -2)
        for row in range(0, len(held), done):
            later = held[row + done: row + 2 * done]
            held[row: row + len(later)] = later
        held[-done:] = 0
