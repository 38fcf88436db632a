"""Points to and from a latent lattice: every point and the corners of the cell that it lies in.

A kernel integral over a neighbourhood (the graph neural operator of Li et al., arXiv:2003.03485) whose neighbourhood is
the 2ᵈ nearest nodes, weighted by the hat functions of the lattice: found without a search, continuous as points move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.tokens import Axis, cell_widths

MOST_DIMENSIONS = 3
FAINT = 0.05
"""Share of the mean mass of a node below which what a few far points say fades."""


@dataclass(frozen=True)
class Latent:
    """A regular lattice around the points of every sample: origin ``(S, d)``, spacing ``(d,)``, counts of nodes; all in
    reference lengths. wraps: which dimensions are periodic."""

    origin: Tensor
    spacing: Tensor
    counts: tuple[int, ...]
    wraps: tuple[bool, ...]
    axes: tuple[Axis, ...]


def latent_of(axis: Axis, length: float, multiple: int) -> Latent:
    """The lattice of about `length` between nodes, a multiple of `multiple` of them along each dimension.

    Samples of a batch have lattices of one shape, each centred on its own points; a periodic one spans the period.
    Raises `InputError` for points without a place, or in more than three dimensions.
    """
    dims = axis.coord.shape[-1]
    if not 1 <= dims <= MOST_DIMENSIONS or (axis.period is not None and axis.period.ndim != 1):
        raise InputError("operator", key=axis.name, found=f"{dims} coordinates, period {axis.period}",
                         expected="points in one to three dimensions, with a period of each or none",
                         fix="use the stem of points for molecules")
    place, sample = flattened(axis)
    count = int(sample[-1]) + 1
    index = sample[:, None].expand(-1, dims)
    low = place.new_full((count, dims), torch.inf).scatter_reduce(0, index, place, "amin")
    high = place.new_full((count, dims), -torch.inf).scatter_reduce(0, index, place, "amax")
    periods = [0.0] * dims if axis.period is None else [float(p) for p in axis.period]
    counts, origins, spacings = [], [], []
    for d, period in enumerate(periods):
        extent = float((high - low)[:, d].max())
        nodes = max(1, round(period / length)) if period else int(extent / length) + 2
        nodes += -nodes % multiple
        spacing = period / nodes if period else length
        slack = 0.0 if period else (nodes - 1) * spacing - (high - low)[:, d]
        origins.append(place.new_zeros(count) if period else low[:, d] - slack / 2)
        counts.append(nodes)
        spacings.append(spacing)
    origin = torch.stack(origins, 1)
    axes = tuple(_axis(axis, d, origin[:, d], spacings[d], counts[d], periods[d]) for d in range(dims))
    return Latent(origin, place.new_tensor(spacings), tuple(counts), tuple(p > 0 for p in periods), axes)


def _axis(points: Axis, d: int, origin: Tensor, spacing: float, nodes: int, period: float) -> Axis:
    steps = spacing * torch.arange(nodes, dtype=origin.dtype, device=origin.device)
    made = replace(points, name=f"{points.name}_{'xyz'[d]}", kind="space", coord=(origin[:, None] + steps)[..., None],
                   coarsen=True, ids=None, namespace=None, segment=None,
                   measure=cell_widths(steps, period or None)[None])
    return replace(made, period=origin.new_tensor([period]) if period else None)


def spread(axis: Axis, rows: int) -> Axis:
    """The axis with coordinates of their own for that many rows, where rows are samples."""
    if axis.segment is not None or len(axis.coord) == rows:
        return axis
    return replace(axis, coord=axis.coord.expand(rows, -1, -1))


def flattened(axis: Axis) -> tuple[Tensor, Tensor]:
    """Points ``(N, d)`` of all samples one after the other, and which sample ``(N,)`` each is of."""
    rows, size, _ = axis.coord.shape
    if axis.segment is not None:
        return axis.coord[0], axis.segment[0]
    return axis.coord.flatten(0, 1), torch.arange(rows, device=axis.coord.device).repeat_interleave(size)


@dataclass(frozen=True)
class Corners:
    """P pairs of a point and a node: their numbers ``(P,)``, counted through all samples, offset ``(P, 3)`` of the
    point from the node in spacings (zero beyond d), hat weight ``(P, 1)``. The weights of a point sum to 1."""

    point: Tensor
    node: Tensor
    offset: Tensor
    hat: Tensor


def corners_of(axis: Axis, latent: Latent) -> Corners:
    """Of every point the 2ᵈ nodes around it."""
    place, sample = flattened(axis)
    dims, nodes = place.shape[1], torch.tensor(latent.counts, device=place.device)
    relative = (place - latent.origin[sample]) / latent.spacing
    below = relative.floor()
    strides = [int(torch.tensor(latent.counts[d + 1:]).prod()) if d + 1 < dims else 1 for d in range(dims)]
    whole = int(nodes.prod())
    points, numbers, offsets, hats = [], [], [], []
    for corner in product((0, 1), repeat=dims):
        node = below + place.new_tensor(corner)
        offset = relative - node
        index = torch.stack([node[:, d].long() % latent.counts[d] if latent.wraps[d]
                             else node[:, d].long().clamp(0, latent.counts[d] - 1) for d in range(dims)])
        points.append(torch.arange(len(place), device=place.device))
        numbers.append(sample * whole + sum(index[d] * strides[d] for d in range(dims)))
        offsets.append(nn.functional.pad(offset, (0, MOST_DIMENSIONS - dims)))
        hats.append((1 - offset.abs()).clamp_min(0).prod(1, keepdim=True))
    return Corners(torch.cat(points), torch.cat(numbers), torch.cat(offsets), torch.cat(hats))


class Kernel(nn.Module):
    """``κ(offset) (P, width)``: what a point means to a node at that offset, channel by channel; near 1 at first."""

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(MOST_DIMENSIONS, hidden), nn.Linear(hidden, width)

    def forward(self, offset: Tensor) -> Tensor:
        values: Tensor = 1 + self.out(nn.functional.gelu(self.into(offset)))
        return values


def to_nodes(features: Tensor, mass: Tensor, pairs: Corners, kernel: Kernel, nodes: int,
             samples: int) -> tuple[Tensor, Tensor]:
    """``Σ m h κ(r) f / Σ m h`` at every node ``(nodes, w)``, and its share of the mass ``(nodes, 1)``, 0 to 1.

    features ``(N, w)``; mass ``(N, 1)``: quadrature weights, 0 of points that say nothing. nodes: of all samples, as
    many of each; a node is compared with those of its own sample.
    """
    weight = mass[pairs.point] * pairs.hat
    total = features.new_zeros(nodes, 1).index_add(0, pairs.node, weight)
    given = features.new_zeros(nodes, features.shape[1]).index_add(
        0, pairs.node, weight * kernel(pairs.offset) * features[pairs.point])
    mean = total.view(samples, -1).mean(1).repeat_interleave(nodes // samples)[:, None]
    tiny = torch.finfo(total.dtype).tiny
    return given / (total + FAINT * mean + tiny), total / (total + mean + tiny)


def to_points(tokens: Tensor, pairs: Corners, kernel: Kernel, points: int) -> Tensor:
    """``Σ h κ(r) T`` at every point ``(points, w)`` of tokens ``(nodes, w)``."""
    return tokens.new_zeros(points, tokens.shape[1]).index_add(
        0, pairs.point, pairs.hat * kernel(pairs.offset) * tokens[pairs.node])


def point_axis(axes: Sequence[Axis]) -> Axis | None:
    """The axis of points of a lattice that is nothing else; None of a grid."""
    return axes[0] if len(axes) == 1 and axes[0].kind == "set" else None
