"""What mixers with a decaying memory share: the links between neighbours on an axis, and linear recurrences in chunks.

Between index t − 1 and t lies a link of physical length `gap`. A memory decays over a link by exp(−gap · rate), so that
it means the same on a finer lattice, on events at irregular times, and across padding, whose links have no length.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis

FIRST_GAP = 1.0
"""Reference lengths for which the first index of a sample is held to have lasted: before it there is no link."""

FORGET = -50.0
"""Log decay that stands for none left, and the least one: e⁻⁵⁰ is nothing, yet far from float32's underflow."""


class Links(NamedTuple):
    """gap: ``(B or 1, n)`` length of the link before each index, 0 before padding. start: ``(B or 1, n)`` bool, True
    where a sample begins. last: ``(B or 1, 2)`` place of the last index that is no padding and whether there is one."""

    gap: Tensor
    start: Tensor
    last: Tensor


Memory = dict[int, tuple[Tensor, Tensor]]
"""By axis: the memory after the last index, and `Links.last`."""


def ordered(axis: Axis) -> bool:
    """Whether the axis has an order in which something can be remembered: one coordinate, and something to remember."""
    return axis.coord.shape[-1] == 1 and (axis.size > 1 or axis.causal)


def ring(axis: Axis) -> Tensor | None:
    """The period, if the axis closes on itself. Causal axes have a beginning, packed samples no common seam."""
    closed = axis.period is not None and axis.period.ndim == 1 and not axis.causal and axis.segment is None
    return axis.period if closed else None


def links(axis: Axis, before: Tensor | None = None, *, mirrored: bool = False) -> Links:
    """Links along an axis with one coordinate, in the order of its indices.

    A link reaches to the last index that is no padding; on a ring the first index is linked to the last one. before:
    `Links.last` of the indices that came before; mirrored: the links of the axis run through from its end.
    """
    if mirrored:
        axis = replace(axis, coord=-axis.coord.flip(1), segment=_flip(axis.segment), measure=_flip(axis.measure))
    coord, period = axis.coord[..., 0], ring(axis)
    real = torch.ones_like(coord, dtype=torch.bool) if axis.measure is None else axis.measure > 0
    coord, real = torch.broadcast_tensors(coord, real)
    place = torch.arange(axis.size, device=coord.device).expand(coord.shape)
    latest = torch.where(real, place, -1).cummax(1).values  # the last real index up to here
    none = latest.new_full((len(latest), 1), -1) if period is None else latest[:, -1:]
    previous = torch.cat([none, latest[:, :-1]], 1)
    if period is not None:
        previous = torch.where(previous < 0, latest[:, -1:], previous)
    start, origin = previous < 0, coord.gather(1, previous.clamp(min=0))
    if before is not None:
        origin, start = torch.where(start, before[:, :1], origin), start & (before[:, 1:] == 0)
    if axis.segment is not None:
        start = start | (axis.segment != axis.segment.expand(coord.shape).gather(1, previous.clamp(min=0)))
    gap = (coord - origin).abs() if period is None else torch.remainder(coord - origin, period)
    if period is not None:
        gap = torch.where(previous == place, period, gap)  # alone on the ring
    gap = torch.where(start, FIRST_GAP, gap).where(real, 0.0)
    return Links(gap, start & real, _last(coord, latest, before))


def recall(geometry: Geometry, index: int, memory: Memory | None) -> tuple[Links, Tensor | None]:
    """The links of an axis and, if it is causal and something is remembered of what came before, that memory."""
    axis = geometry.axes[index]
    if memory is not None and axis.causal:
        geometry.check_alone(index)
        if index in memory:
            first, last = memory[index]
            return links(axis, last), first
    return links_of(geometry, index), None


def links_of(geometry: Geometry, index: int, *, mirrored: bool = False) -> Links:
    """`links` of one axis, computed once."""
    return geometry.once(("links", index, mirrored), lambda: links(geometry.axes[index], mirrored=mirrored))


def _last(coord: Tensor, latest: Tensor, before: Tensor | None) -> Tensor:
    index = latest[:, -1:]
    last = torch.cat([coord.gather(1, index.clamp(min=0)), (index >= 0).to(coord.dtype)], 1)
    return last if before is None else torch.where(index >= 0, last, before)


def _flip(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.flip(1)


def key_weights(geometry: Geometry, index: int) -> Tensor | None:
    """Quadrature weights of one axis ``(B or 1, n)`` over their mean, padding apart; None if all are 1.

    Along causal and packed axes a mean would look ahead or mix samples: there the measure itself, 1 without one.
    """
    return geometry.once(("key_weights", index), lambda: _key_weights(geometry.axes[index]))


def _key_weights(axis: Axis) -> Tensor | None:
    weight = axis.measure
    if weight is None:
        return None
    if axis.causal or axis.segment is not None:
        return weight
    weight = weight * (weight > 0).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return None if torch.allclose(weight, torch.ones_like(weight), rtol=1e-4, atol=0) else weight


def geometric(smallest: float, largest: float, count: int) -> Tensor:
    """``(count,)`` numbers from smallest to largest, evenly spaced in their logarithm, as softplus⁻¹."""
    rates = torch.logspace(math.log10(smallest), math.log10(largest), count)
    return rates + torch.log(-torch.expm1(-rates))


def entering(z: Tensor, a: Tensor, chunk: int, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The memory before each index (here usually a chunk of indices), ``(R, M, …)``, and after the last, ``(R, …)``.

    z: what every index adds; a: log decay over the links of that index; first: the memory before index 0, or None.
    """
    if first is None:
        h = inclusive(z, a, chunk)
        return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1), h[:, -1]
    h = inclusive(torch.cat([z[:, :1] + a[:, :1].exp() * first.unsqueeze(1), z[:, 1:]], 1), a, chunk)
    return torch.cat([first.unsqueeze(1), h[:, :-1]], 1), h[:, -1]


def inclusive(z: Tensor, a: Tensor, chunk: int) -> Tensor:
    """h_t = e^{a_t} h_{t−1} + z_t along dimension 1 of ``(R, n, …)``, 0 before; a broadcasts beyond that dimension.

    In chunks of at least 2: the loop runs over the places in a chunk, for all chunks at once, then by the same function
    over chunks.
    """
    n = z.shape[1]
    if n <= chunk:
        return _loop(z, a)
    z, a = in_chunks(z, 1, chunk), in_chunks(a, 1, chunk)  # (R, M, c, …)
    own, decay = _loop(z.flatten(0, 1), a.flatten(0, 1)).view(z.shape), a.cumsum(2)
    enter, _ = entering(own[:, :, -1], decay[:, :, -1], chunk)
    return (own + decay.exp() * enter.unsqueeze(2)).flatten(1, 2)[:, :n]


def in_chunks(t: Tensor, dim: int, chunk: int) -> Tensor:
    """Dimension n → (M, c), as few as there can be of equal size c ≤ chunk; zeros at the end decay and add nothing."""
    n = t.shape[dim]
    num_chunks = -(-n // chunk)
    size = -(-n // num_chunks)
    if size * num_chunks > n:
        t = torch.cat([t, t.new_zeros(*t.shape[:dim], size * num_chunks - n, *t.shape[dim + 1:])], dim)
    return t.unflatten(dim, (num_chunks, size))


def _loop(z: Tensor, a: Tensor) -> Tensor:
    steps: list[Tensor] = []
    for add, decay in zip(z.unbind(1), a.exp().unbind(1)):
        steps.append(add if not steps else torch.addcmul(add, decay, steps[-1]))
    return torch.stack(steps, 1)
