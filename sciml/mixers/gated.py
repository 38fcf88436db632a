"""Gated linear attention: along each axis a memory of keys and values that decays by as much as the input says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sciml.kernels.fused import scaled_norm
from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import HeadNorm, Projections
from sciml.mixers.recurrence import (
    Links,
    decayed,
    entering,
    geometric,
    in_chunks,
    key_weights,
    links,
    links_of,
    one_way,
    ordered,
    over_axes,
    ring,
)
from sciml.mixers.rows import axis_lattice, axis_rows, spread
from sciml.tokens import Axis

LEAST = -50.0
"""Least log decay of a link: e⁻⁵⁰ is nothing, and sums of many links stay numbers."""


class Gated(Mixer):
    """S_t = e^{−gap_t · rate_t} S_{t−1} + w_t k_t v_tᵀ, o_t = S_tᵀ q_t along each axis; mean over axes, gated, out.

    Gated linear attention (Yang et al. 2023) with one decay per head, as in RetNet (Sun et al. 2023) and Mamba-2 (Dao &
    Gu 2024): no quotient of decays is ever formed, so that any decay is safe. rate = softplus(Wx + b) per reference
    length; gap is the distance to the neighbour, w its quadrature weight; queries and keys are rotated by position, o
    is normalised per head. An axis that is not causal is seen from both sides, with a gain per head and side, an index
    itself at their mean; a periodic axis is a ring. Packed samples start anew. Acts on axes with one coordinate, in the
    order of their indices. Cost is tokens × width × (chunk + head width). The state along a causal axis is S and the
    last coordinate.
    """

    def __init__(self, width: int, heads: int, *, chunk: Annotated[int, Field(ge=2)] = 64) -> None:
        super().__init__(width, heads)
        self.chunk = chunk
        self.projections = Projections(width, heads)
        self.rate = nn.Linear(width, heads)
        self.gate = nn.Linear(width, width, bias=False)
        self.norm = HeadNorm(width // heads)
        self.sides = nn.Parameter(1 + 0.5 * torch.randn(2, heads))
        self.gain = RoleGain(width)
        with torch.no_grad():
            self.rate.bias.copy_(geometric(0.25, 32.0, heads))

    def admits(self, axis: Axis) -> bool:
        return ordered(axis)

    def parameters_of(self, axes: Sequence[Axis]) -> set[str]:
        return super().parameters_of(axes) - ({"sides"} if one_way(axes) else set())

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            links_of(geometry, index)
            key_weights(geometry, index)
            self._tables(geometry, index)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        q, k, v = self.projections.split(x)  # each (B, *lattice, H, D)
        rate = F.softplus(self.rate(x).to(self.sides.dtype))[..., None]  # (B, *lattice, H, 1)

        def along(index: int, chain: Links, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
            rows = [axis_rows(t, index) for t in (q, k, v, rate)]  # each (B * others, H, n, D), rate (…, n, 1)
            y, last = self._along(index, rows, geometry, chain, first)
            gain = self.gain.weight[geometry.role(index)].view(self.heads, 1, -1) / len(axes)
            return axis_lattice(self._normed(y, gain), q.shape, index), last

        total, state = over_axes(axes, geometry, state, along)
        return self.projections.out(total * F.silu(self.gate(x))), state

    def _along(self, index: int, rows: list[Tensor], geometry: Geometry, chain: Links,
               first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        axis = geometry.axes[index]
        q, k, v, a = self._terms(index, rows, geometry, chain)
        spans = make_spans(a, None if axis.segment is None else chain.start[:, None], self.chunk)
        if axis.causal:
            return one_side(q, k, v, spans, self.chunk, first)
        return both_sides(q, k, v, spans, self.sides, self.chunk, closed=ring(axis) is not None), None

    def _terms(self, index: int, rows: list[Tensor], geometry: Geometry,
               chain: Links) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotated queries, rotated and weighted keys, values ``(R, H, n, D)``, log decay of each link ``(R, H, n)``."""
        (q, k, v, rate), num = rows, rows[0].shape[0]
        tables, weight = self._tables(geometry, index), key_weights(geometry, index)
        a = (-spread(chain.gap[:, None], num) * rate.squeeze(-1)).clamp(min=LEAST)
        if tables is not None:
            cos, sin, weighted_cos, weighted_sin = (spread(t, num) for t in tables)
            return rotate(q, (cos, sin)), rotate(k, (weighted_cos, weighted_sin)), v, a
        return q, k if weight is None else k * spread(weight[:, None, :, None], num), v, a

    def _tables(self, geometry: Geometry, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """cos and sin for queries, and for keys times their quadrature weights: a pass over the keys less."""
        table, weight = geometry.rotary((index,), self.projections.head_width), key_weights(geometry, index)
        if table is None or weight is None:
            return None if table is None else (*table, *table)
        w = weight[:, None, :, None]
        return geometry.once(("weighted rotary", index, self.projections.head_width),
                             lambda: (*table, table[0] * w, table[1] * w))

    def _normed(self, y: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """``(R, H, n, D)`` normalised per head, as far as it is more than rounding.

        ε = 1e-6 is an output of 1e-3, with normalised queries and keys and values of order 1. What an integral over an
        axis holds is larger; what float32 leaves of terms that cancel, 1e-6 to 1e-5, is not made large.
        """
        return scaled_norm(y.to(self.norm.gain.dtype), self.norm.gain * gain)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        q, k, v = self.projections.split(x)
        rate, outputs = F.softplus(self.rate(x))[..., None], []
        for index in self.axes(geometry):
            axis = geometry.axes[index]
            chain = links(axis)
            query, key, value, a = self._terms(index, [axis_rows(t, index) for t in (q, k, v, rate)], geometry, chain)
            keep = a.exp() if axis.segment is None else a.exp() * ~chain.start
            columns = []
            for i in range(axis.size):
                sides = [self._walk(i, side, key, value, keep, axis) for side in range(1 if axis.causal else 2)]
                gains = value.new_ones(1, self.heads) if axis.causal else self.sides
                memory = sum(gain[:, None, None] * side for gain, side in zip(gains, sides))
                columns.append((query[:, :, i, None] @ memory).squeeze(2))
            y = self._normed(torch.stack(columns, 2))
            outputs.append(self.gain(axis_lattice(y, q.shape, index), geometry.role(index)))
        if not outputs:
            return torch.zeros_like(x)
        return self.projections.out(sum(outputs[1:], outputs[0]) / len(outputs) * F.silu(self.gate(x)))

    def _walk(self, i: int, side: int, k: Tensor, v: Tensor, keep: Tensor, axis: Axis) -> Tensor:
        """The memory with which index i is met from the left (side 0) or right, step by step, ``(R, H, D, D)``."""
        n, memory = axis.size, k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
        if ring(axis) is not None:
            path = range(i, i + n + 1) if side == 0 else range(i + n, i - 1, -1)  # a lap from i to i
        else:
            path = range(i + 1) if side == 0 else range(n - 1, i - 1, -1)
        for m in path:
            crossed = (m + side) % n  # the link before index m, or the one after
            share = 0.5 if m % n == i and not axis.causal else 1.0
            memory = keep[:, :, crossed, None, None] * memory
            memory = memory + share * k[:, :, m % n, :, None] * v[:, :, m % n, None, :]
        return memory


class Spans(NamedTuple):
    """Log decays along rows that are cut into M chunks of c indices.

    within: ``(R, H, M, c)`` since the chunk began. since, until: the same, and until the chunk ends; whole:
    ``(R, M, H, 1, 1)`` over all of it: −∞ across the start of a packed sample. together: ``(1, M, c, c)`` 1 where two
    indices are of one sample, else 0; None where nothing is packed.
    """

    within: Tensor
    since: Tensor
    until: Tensor
    whole: Tensor
    together: Tensor | None


def make_spans(a: Tensor, start: Tensor | None, chunk: int) -> Spans:
    """From the log decay of each link ``(R, H, n)``; start: ``(1, 1, n)`` True where a packed sample begins, or None.

    What separates samples is kept out of `within`, whose differences are taken: they stay exact, and numbers.
    """
    within = in_chunks(a, 2, chunk).cumsum(-1)
    since, until, whole, together = within, within[..., -1:] - within, within[..., -1], None
    if start is not None:
        begun = in_chunks(start, 2, chunk).cumsum(-1)  # samples in this chunk so far, (1, 1, M, c)
        since = since.masked_fill(begun > 0, -math.inf)
        until = until.masked_fill(begun < begun[..., -1:], -math.inf)
        whole = whole.masked_fill(begun[..., -1] > 0, -math.inf)
        together = (begun[0, ..., :, None] == begun[0, ..., None, :]).to(a.dtype)
    return Spans(within, since, until, whole.transpose(1, 2)[..., None, None], together)


def one_side(q: Tensor, k: Tensor, v: Tensor, spans: Spans, chunk: int,
             first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """o_i = Σ_{j ≤ i} exp(a_{j+1} + … + a_i) (q_i · k_j) v_j for ``(R, H, n, D)``, a the log decays, by chunks.

    Within a chunk as a masked matrix, between chunks through the memory S ``(R, H, D, D)``. Returns S after the last
    index as well; `first` is S before index 0.
    """
    n, b = q.shape[2], spans.within
    q, k, v = (in_chunks(t, 2, chunk) for t in (q, k, v))  # (R, H, M, c, D)
    gain = torch.ones(1, 1, b.shape[-1], b.shape[-1], dtype=b.dtype, device=b.device).tril()
    y = decayed(q, k, v, b, gain if spans.together is None else gain * spans.together)
    own = _outer(k, spans.until.exp(), v)  # (R, M, H, D, D)
    enter, last = entering(own, spans.whole, chunk, first)
    if enter.shape[1] > 1 or first is not None:
        y = y + (q * spans.since.exp()[..., None]) @ enter.transpose(1, 2)
    return y.flatten(2, 3)[:, :, :n], last


def both_sides(q: Tensor, k: Tensor, v: Tensor, spans: Spans, gains: Tensor, chunk: int, *, closed: bool) -> Tensor:
    """`one_side` from the left times gains[0] plus that from the right times gains[1], an index itself at ½ of each.

    ½ is the trapezoidal rule of a kernel with a kink: a cell cut into two of half the weight hardly changes anything
    (nothing, where the gains are equal). closed: a ring, where a_0 links the first index to the last, and every index
    is met once from either side.
    """
    n, b, whole = q.shape[2], spans.within, spans.whole
    q, k, v = (in_chunks(t, 2, chunk) for t in (q, k, v))
    past, future = gains[:, :, None, None, None]  # (H, 1, 1, 1)
    half = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device) / 2
    after = torch.ones_like(half).tril(-1) + half  # 1 where i follows j
    alone = b.shape[2] == 1
    rest = past * after.T + future * after if closed and alone else None  # of the lap, met from the other side
    gain = past * after + future * after.T
    y = decayed(q, k, v, b, gain if spans.together is None else gain * spans.together, rest)
    if alone:
        return y.flatten(2, 3)[:, :, :n]
    left, right = spans.since.exp(), spans.until.exp()  # (R, H, M, c)
    leftward, rightward = _outer(k, left, v).flip(1), _outer(k, right, v)
    enter, last = entering(rightward, whole, chunk)
    leave, first = entering(leftward, whole.flip(1), chunk)
    if closed:
        enter, lap = around(enter, last, whole)
        leave, _ = around(leave, first, whole.flip(1))
        y = y * lap.transpose(1, 2)
    memories = torch.cat([enter.transpose(1, 2), leave.flip(1).transpose(1, 2)], -2)  # (R, H, M, 2 D, D)
    queries = torch.cat([q * (past[..., 0] * left)[..., None], q * (future[..., 0] * right)[..., None]], -1)
    return (y + queries @ memories).flatten(2, 3)[:, :, :n]


def around(enter: Tensor, last: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """`entering` on a ring, where index 0 follows the last: the memory of one full lap before each index.

    Counting all laps gives 1 + e^{−C} + e^{−2C} + … of it, C the decay around the ring; that factor is divided out, so
    that weak decay stays finite: own lap · (1 − e^{−C}) + what was left at the seam · decay since. Returns that, and
    the factor 1 − e^{−C}, ``(R, 1, …)``, by which a chunk's own contributions are to be multiplied.
    """
    since = a.cumsum(1)
    own = -torch.expm1(since[:, -1:])
    return own * enter + (since - a).exp() * last.unsqueeze(1), own


def _outer(k: Tensor, decay: Tensor, v: Tensor) -> Tensor:
    """Σ over a chunk of decay · k vᵀ, ``(R, M, H, D, D)``, in the precision of the decay."""
    return ((k * decay[..., None]).transpose(-1, -2) @ v).to(decay.dtype).transpose(1, 2)


PLUGIN = Gated
