"""A lattice as groups of tokens, runs or strided combs along some of its axes, for mixers that attend within groups.

The folded layout is ``(G, Y, S, D)``: G groups, Y = batch × other axes × heads, S slots of a group. Groups come first
so that a bias per group, ``(G, 1, 1 or S, S)``, is shared by all samples and heads without being copied for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sciml.kernels.attend import attend
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections


@dataclass(frozen=True)
class Cut:
    """How some axes of a lattice are cut into groups; a group of the lattice is a product of one group per axis.

    axes: their indices in the lattice. sizes: tokens n. counts: groups m. lengths: slots ⌈n / m⌉ of each, those beyond
    n stay empty. shifts: tokens by which the grid of groups is moved. strided: group g is g, g + m, g + 2m, …, else a
    run of neighbours.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    shifts: tuple[int, ...]
    strided: bool = False

    @property
    def num_groups(self) -> int:
        return math.prod(self.counts)

    @property
    def num_slots(self) -> int:
        return math.prod(self.lengths)

    @property
    def excess(self) -> tuple[int, ...]:
        """Empty slots at the end of each axis."""
        return tuple(m * s - n for m, s, n in zip(self.counts, self.lengths, self.sizes))


def make_cut(geometry: Geometry, axes: list[int], size: int, *, shift: bool = False, strided: bool = False) -> Cut:
    """Groups of at most `size` tokens along each axis, as even as ⌈n / ⌈n / size⌉⌉ makes them.

    shift: moved by half a group along every axis that has more than one.
    """
    sizes = tuple(geometry.axes[i].size for i in axes)
    counts = tuple(-(-n // size) for n in sizes)
    lengths = tuple(-(-n // m) for n, m in zip(sizes, counts))
    shifts = tuple(s // 2 if shift and m > 1 else 0 for m, s in zip(counts, lengths))
    return Cut(tuple(axes), sizes, counts, lengths, shifts, strided)


def arrange(t: Tensor, cut: Cut, fill: float = 0.0) -> Tensor:
    """``(B, *lattice, K)`` with empty slots appended, and rolled so that the moved grid begins at index 0."""
    if any(cut.excess):
        pad = [0] * (2 * t.ndim)
        for i, more in zip(cut.axes, cut.excess):
            pad[2 * (t.ndim - 2 - i) + 1] = more
        t = F.pad(t, pad, value=fill)
    if any(cut.shifts):
        t = t.roll([-s for s in cut.shifts], [i + 1 for i in cut.axes])
    return t


def restore(t: Tensor, cut: Cut) -> Tensor:
    """The inverse of `arrange`."""
    if any(cut.shifts):
        t = t.roll(list(cut.shifts), [i + 1 for i in cut.axes])
    if any(cut.excess):
        for i, n in zip(cut.axes, cut.sizes):
            t = t.narrow(i + 1, 0, n)
    return t


def into_groups(t: Tensor, cut: Cut) -> Tensor:
    """Arranged ``(B, *lattice, H, K)`` → view ``(*counts, B, *others, H, *lengths, K)``."""
    shape, groups, slots, others = [t.shape[0]], [], [], [0]
    for i in range(t.ndim - 3):
        if i in cut.axes:
            m, s = cut.counts[cut.axes.index(i)], cut.lengths[cut.axes.index(i)]
            shape += [s, m] if cut.strided else [m, s]
            groups.append(len(shape) - (1 if cut.strided else 2))
            slots.append(len(shape) - (2 if cut.strided else 1))
        else:
            others.append(len(shape))
            shape.append(t.shape[i + 1])
    last = len(shape)
    return t.reshape(*shape, *t.shape[-2:]).permute(*groups, *others, last, *slots, last + 1)


def out_of_groups(y: Tensor, cut: Cut, shape: torch.Size) -> Tensor:
    """``(G, Y, S, D)`` → arranged ``(B, *lattice, H * D)``; shape: of what was folded, ``(B, *lattice, H, D)``."""
    others = [shape[i + 1] for i in range(len(shape) - 3) if i not in cut.axes]
    t = y.reshape(*cut.counts, shape[0], *others, shape[-2], *cut.lengths, shape[-1])
    rank, order = len(cut.axes), [len(cut.axes)]
    head, seen = rank + 1 + len(others), 0
    for i in range(len(shape) - 3):
        if i in cut.axes:
            place = cut.axes.index(i)
            pair = (place, head + 1 + place)
            order += pair[::-1] if cut.strided else pair
        else:
            seen += 1
            order.append(rank + seen)
    return t.permute(*order, head, t.ndim - 1).reshape(*shape[:-2], shape[-2] * shape[-1])


class Tables(NamedTuple):
    """What attention in groups looks up.

    rotary: cos and sin, ``(G, B or 1, 1, S, D / 2)``. bias: ``(G, Y or 1, 1 or S, M)``, M the S keys of the group, then
    the summaries if there are any. blind: queries that would see no weight at all, ``(G, Y or 1, 1 or S, 1)``; they get
    zeros. share: ``(G, Y or 1, S, 1)`` of a group's measure that its token has, where every group also sees a summary
    of every other one: the means of keys and values by these shares.
    """

    rotary: tuple[Tensor, Tensor] | None
    bias: Tensor | None
    blind: Tensor | None = None
    share: Tensor | None = None


def make_tables(geometry: Geometry, cut: Cut, heads: int, head_width: int) -> Tables:
    """Rotary angles, quadrature weights, empty slots and seams of one lattice, in the folded layout."""
    weight, seam = log_weights(geometry, cut, heads), seams(geometry, cut)
    bias = None if weight is None else weight[:, :, None, :]
    if seam is not None:
        bias = seam if bias is None else bias + seam
    blind = None
    if bias is not None:
        hidden = bias.isneginf().all(-1, keepdim=True)
        if bool(hidden.any()):
            bias, blind = bias.masked_fill(hidden, 0.0), hidden
    return Tables(folded_rotary(geometry, cut, head_width), bias, blind)


def folded_rotary(geometry: Geometry, cut: Cut, head_width: int) -> tuple[Tensor, Tensor] | None:
    """cos and sin of every slot, ``(G, B or 1, 1, S, D / 2)``, or None without coordinates."""
    table = geometry.rotary(cut.axes, head_width)
    if table is None:
        return None
    cos, sin = (into_groups(arrange(_as_lattice(t[:, 0], geometry, cut), cut), cut)
                .reshape(cut.num_groups, t.shape[0], 1, cut.num_slots, t.shape[-1]) for t in table)
    return cos, sin


def log_weights(geometry: Geometry, cut: Cut, heads: int) -> Tensor | None:
    """Log quadrature weight of every slot, ``(G, Y or 1, S)``, −inf where empty; None where all weigh the same."""
    weight = geometry.key_bias(cut.axes)
    if weight is None:
        if not any(cut.excess):
            return None
        weight = geometry.axes[cut.axes[0]].coord.new_zeros(1, math.prod(cut.sizes))
    t = into_groups(arrange(_as_lattice(weight[..., None], geometry, cut), cut, fill=-math.inf), cut)
    if t.shape[len(cut.axes)] > 1:  # a weight per sample: one per row of Y
        others = [axis.size for i, axis in enumerate(geometry.axes) if i not in cut.axes]
        t = t.expand(*cut.counts, -1, *others, heads, *cut.lengths, 1)
    return t.reshape(cut.num_groups, -1, cut.num_slots)


def seams(geometry: Geometry, cut: Cut) -> Tensor | None:
    """``(G, 1, S, S)`` −inf between tokens that only the roll made neighbours, at the ends of non-periodic axes."""
    walls = [place for place, (i, s) in enumerate(zip(cut.axes, cut.shifts)) if s and geometry.axes[i].period is None]
    if not walls:
        return None
    coord = geometry.axes[cut.axes[0]].coord
    lattice = [1] * len(geometry.axes)
    for i, m, s in zip(cut.axes, cut.counts, cut.lengths):
        lattice[i] = m * s
    side = torch.zeros(1, *lattice, 1, 1, dtype=torch.long, device=coord.device)  # one bit per axis: beyond its seam
    for place in walls:
        i = cut.axes[place]
        beyond = torch.arange(lattice[i], device=coord.device) >= lattice[i] - cut.shifts[place]
        side = side + (beyond.long() * 2**place).view(*[-1 if j == i + 1 else 1 for j in range(side.ndim)])
    side = into_groups(side, cut).reshape(cut.num_groups, 1, cut.num_slots)
    apart = side[..., :, None] != side[..., None, :]
    return torch.zeros(apart.shape, dtype=coord.dtype, device=coord.device).masked_fill(apart, -math.inf)


def _as_lattice(t: Tensor, geometry: Geometry, cut: Cut) -> Tensor:
    """``(B or 1, N, K)`` over the flattened axes of the cut → ``(B or 1, *lattice or 1, 1, K)``."""
    shape = [axis.size if i in cut.axes else 1 for i, axis in enumerate(geometry.axes)]
    return t.reshape(t.shape[0], *shape, 1, t.shape[-1])


def group_rows(x: Tensor, cut: Cut, rotary: tuple[Tensor, Tensor] | None,
               projections: Projections) -> tuple[tuple[Tensor, Tensor, Tensor], torch.Size]:
    """Rotated queries, keys, and values of ``(B, *lattice, C)`` as contiguous ``(G, Y, S, D)``; shape for
    `out_of_groups`.

    They are folded before they are rotated: over contiguous rows the rotation takes half the time.
    """
    q, k, v = projections.split(arrange(x, cut))  # each (B, *arranged lattice, H, D)
    shape = (cut.num_groups, x.shape[0], -1, cut.num_slots, q.shape[-1])  # (G, B, others * H, S, D)
    query, key, value = (into_groups(t, cut).reshape(shape).contiguous() for t in (q, k, v))
    return (rotate(query, rotary).flatten(1, 2), rotate(key, rotary).flatten(1, 2), value.flatten(1, 2)), q.shape


@dataclass(frozen=True)
class Grouping:
    """How a mixer attends in groups: which it cuts (`make_cut`) and what it looks up there. name: of its tables."""

    name: str
    size: int
    shift: bool = False
    strided: bool = False
    make: Callable[[Geometry, Cut, int, int], Tables] = make_tables

    def prepare(self, geometry: Geometry, axes: list[int], projections: Projections) -> None:
        """The tables of `mix`, if there are axes to act along."""
        if axes:
            self._look_up(geometry, axes, projections)

    def mix(self, x: Tensor, geometry: Geometry, axes: list[int], projections: Projections) -> Tensor:
        """Attention of every token of ``(B, *lattice, C)`` in its group, projected; zeros where no axis is cut."""
        if not axes:
            return torch.zeros_like(x)
        cut, tables = self._look_up(geometry, axes, projections)
        (q, k, v), shape = group_rows(x, cut, tables.rotary, projections)
        if tables.share is not None:
            k, v = (torch.cat([t, summaries(t, tables.share)], 2) for t in (k, v))  # (G, Y, S + G, D)
        y = attend(q, k, v, bias=tables.bias, second_order=geometry.second_order)
        if tables.blind is not None:
            y = y.masked_fill(tables.blind, 0.0)
        return projections.out(restore(out_of_groups(y, cut, shape), cut))

    def _look_up(self, geometry: Geometry, axes: list[int], projections: Projections) -> tuple[Cut, Tables]:
        cut = make_cut(geometry, axes, self.size, shift=self.shift, strided=self.strided)
        heads, width = projections.heads, projections.head_width
        tables = geometry.once((self.name, self.size, self.shift, heads, width),
                               lambda: self.make(geometry, cut, heads, width))
        return cut, tables


def summaries(t: Tensor, share: Tensor) -> Tensor:
    """Means over groups of ``(G, Y, S, D)``, given to every group: ``(G, Y, G, D)``."""
    means = (share * t).sum(2).to(t.dtype)  # (G, Y, D)
    return means.transpose(0, 1).expand(len(means), -1, -1, -1)


def attend_by_labels(x: Tensor, geometry: Geometry, axes: list[int], labels: list[Tensor],
                     projections: Projections) -> Tensor:
    """The definition: a token sees those whose label agrees with its own along every axis; explicit N × N matrices.

    labels: ``(n,)`` per axis. Keys are weighed by quadrature; a token that sees no weight gets zero.
    """
    apart = torch.zeros(1, 1, dtype=torch.bool)
    for label in labels:
        own = label[:, None] != label[None, :]
        apart = (apart[:, None, :, None] | own[None, :, None, :]).reshape([len(apart) * len(own)] * 2)

    def within(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | float) -> Tensor:
        logits = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + weight).masked_fill(apart, -math.inf)
        blind = logits.isneginf().all(-1, keepdim=True)
        return logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) @ v

    return by_sample(x, geometry, axes, projections, within)


def by_sample(x: Tensor, geometry: Geometry, axes: list[int], projections: Projections,
              within: Callable[[Tensor, Tensor, Tensor, Tensor | float], Tensor]) -> Tensor:
    """`within(q, k, v, log weight)`, ``(H, N, D)`` each and ``(N,)``, for every sample and index of the other axes,
    projected; zeros without axes."""
    if not axes:
        return torch.zeros_like(x)
    ends = list(range(-2 - len(axes), -2))
    lines = [t.movedim([i + 1 for i in axes], ends) for t in projections.split(x)]  # (B, *others, *axes, H, D)
    moved = lines[0].shape
    tokens = math.prod(geometry.axes[i].size for i in axes)
    q, k, v = (t.reshape(x.shape[0], -1, tokens, *t.shape[-2:]) for t in lines)  # (B, O, N, H, D)
    table, weight = geometry.rotary(tuple(axes), projections.head_width), geometry.key_bias(tuple(axes))
    outputs = []
    for b in range(x.shape[0]):
        own = None if table is None else (table[0][min(b, len(table[0]) - 1)], table[1][min(b, len(table[1]) - 1)])
        log_weight = 0.0 if weight is None else weight[min(b, len(weight) - 1)]
        for o in range(q.shape[1]):
            one, two, three = (t[b, o].transpose(0, 1) for t in (q, k, v))
            outputs.append(within(rotate(one, own), rotate(two, own), three, log_weight).transpose(0, 1))
    y = torch.stack(outputs).reshape(moved).movedim(ends, [i + 1 for i in axes])
    return projections.out(y.flatten(-2))
