"""What mixers with a decaying memory share: links between neighbours on an axis, linear recurrences, decaying products.

Between index t − 1 and t lies a link of physical length `gap`. A memory decays over a link by exp(−gap · rate), so that
it means the same on a finer lattice, on events at irregular times, and across padding, whose links have no length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.mixers.contract import MixerState
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis

FIRST_GAP = 1.0
"""Reference lengths for which the first index of a sample is held to have lasted: before it there is no link."""

BLOCK_BYTES = 1 << 19
"""Size of the part of the weights between indices that is worked on at a time, so that it stays in cache."""


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


def one_way(axes: Iterable[Axis]) -> bool:
    """Whether every axis with an order is causal: then no gain of a side is used."""
    return all(axis.causal for axis in axes if ordered(axis))


def over_axes(axes: list[int], geometry: Geometry, state: MixerState,
              along: Callable[[int, Links, Tensor | None], tuple[Tensor, Tensor | None]]) -> tuple[Tensor, MixerState]:
    """Σ over at least one axis of what `along(index, links, memory before)` gives with the memory after; the new state.

    Only causal axes remember, and only with a state: there the links reach back to what came before.
    """
    memory: Memory | None = None if state is None else dict(state)
    total: Tensor | None = None
    for index in axes:
        chain, first = _recall(geometry, index, memory)
        y, last = along(index, chain, first)
        if memory is not None and geometry.axes[index].causal:
            assert last is not None
            memory[index] = (last, chain.last)
        total = y if total is None else total + y
    assert total is not None
    return total, None if memory is None else tuple(memory.items())


def _recall(geometry: Geometry, index: int, memory: Memory | None) -> tuple[Links, Tensor | None]:
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
    total = weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)  # a sample may be nothing but padding
    weight = weight * (weight > 0).sum(1, keepdim=True) / total
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


def decayed(q: Tensor, k: Tensor, v: Tensor, b: Tensor, gain: Tensor, rest: Tensor | None = None) -> Tensor:
    """y_i = Σ_j w_ij (q_i · k_j) v_j with w_ij = gain_ij e^{−|b_i − b_j|} + rest_ij e^{b_c + |b_i − b_j|}.

    q, k, v ``(R, H, M, c, D)``; b ``(R, H, M, c)``, log decay since a chunk began, which falls with the index; gain,
    rest ``(H or 1, M or 1, c, c)``; rest: what comes the other way around a ring of c indices, or None. The weights are
    made for a few rows at a time, in cache, and made anew for the backward pass instead of being kept. Any derivative;
    compilers and autocast are handed the formula.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return decayed_plain(q, k, v, b, gain, rest)
    y: Tensor = _Decayed.apply(*(t.contiguous() for t in (q, k, v, b)), gain, rest)
    return y


def decayed_plain(q: Tensor, k: Tensor, v: Tensor, b: Tensor, gain: Tensor, rest: Tensor | None) -> Tensor:
    """`decayed` as a formula."""
    near, far = _decays(b, _signs(b), ring=rest is not None)
    weights = near * gain
    if far is not None and rest is not None:
        weights = weights + far * rest
    return (q @ k.mT * weights) @ v


class _Decayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, b: Tensor, gain: Tensor, rest: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, b, gain, rest)
        y, signs = torch.empty_like(v), _signs(b)
        for part in _blocks(b):
            near, far = _decays(b[part], signs, ring=rest is not None)
            weights = near.mul_(gain)
            if far is not None and rest is not None:
                weights.addcmul_(far, rest)
            pairs = torch.bmm(_matrices(q[part]), _matrices(k[part]).mT).mul_(_matrices(weights))
            torch.bmm(pairs, _matrices(v[part]), out=_matrices(y[part]))
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (g,), tensors = slopes, ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _slopes(g.contiguous(), *tensors)
        leaves: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
        wanted = [leaf for leaf, needed in zip(leaves, ctx.needs_input_grad) if needed]
        found = iter(torch.autograd.grad(decayed_plain(*leaves), wanted, g, create_graph=True))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _slopes(g: Tensor, q: Tensor, k: Tensor, v: Tensor, b: Tensor, gain: Tensor,
            rest: Tensor | None) -> tuple[Tensor | None, ...]:
    """The first derivative: with S = q kᵀ, A = g vᵀ, e the two decays and w the weights: ∂v = (S ∘ w)ᵀ g,
    ∂q = (A ∘ w) k, ∂k = (A ∘ w)ᵀ q, ∂gain = Σ S ∘ A ∘ e, and S ∘ A ∘ gain ∘ e for the exponents ±s_ij (b_i − b_j)."""
    dq, dk, dv, db = (torch.empty_like(t) for t in (q, k, v, b))
    dgain, drest = torch.zeros_like(gain), None if rest is None else torch.zeros_like(rest)
    signs = _signs(b)
    for part in _blocks(b):
        own_q, own_k, own_v, own_g = (_matrices(t[part]) for t in (q, k, v, g))
        near, far = _decays(b[part], signs, ring=rest is not None)  # (r, H, M, c, c)
        weights = near * gain
        if far is not None and rest is not None:
            weights.addcmul_(far, rest)
        pairs, slope = torch.bmm(own_q, own_k.mT), torch.bmm(own_g, own_v.mT)  # (r H M, c, c)
        both = (pairs * slope).view(near.shape)
        torch.bmm(pairs.mul_(_matrices(weights)).mT, own_g, out=_matrices(dv[part]))
        slope.mul_(_matrices(weights))
        torch.bmm(slope, own_k, out=_matrices(dq[part]))
        torch.bmm(slope.mT, own_q, out=_matrices(dk[part]))
        dgain += near.mul_(both).sum(0).sum_to_size(dgain.shape)
        exponents = near.mul_(gain)
        end = None
        if far is not None and rest is not None and drest is not None:
            drest += far.mul_(both).sum(0).sum_to_size(drest.shape)
            end = far.mul_(rest).sum((-1, -2))  # of b_c
            exponents.sub_(far)
        exponents.mul_(signs)
        own_db = torch.sub(exponents.sum(-1), exponents.sum(-2), out=db[part])
        if end is not None:
            own_db[..., -1] += end
    return dq, dk, dv, db, dgain, drest


def _decays(b: Tensor, signs: Tensor, *, ring: bool) -> tuple[Tensor, Tensor | None]:
    """e^{−|b_i − b_j|} and, on a ring, e^{b_c + |b_i − b_j|}, each ``(R, H, M, c, c)``."""
    falls = (b[..., :, None] - b[..., None, :]) * signs
    return falls.exp(), (b[..., -1:, None] - falls).exp() if ring else None


def _signs(b: Tensor) -> Tensor:
    """``(c, c)``: 1 where index i follows j, −1 where j follows i."""
    after = torch.ones(b.shape[-1], b.shape[-1], dtype=b.dtype, device=b.device).tril(-1)
    return after - after.T


def _matrices(t: Tensor) -> Tensor:
    return t.view(-1, *t.shape[-2:])


def _blocks(b: Tensor) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // max(b[:1].numel() * b.shape[-1] * b.element_size(), 1))
    return (slice(start, start + size) for start in range(0, b.shape[0], size))
