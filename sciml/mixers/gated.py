"""Gated linear attention: along each axis a memory of keys and values that decays by as much as the input says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sciml.kernels.fused import scaled_norm
from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import HeadNorm, Projections
from sciml.mixers.recurrence import (
    FORGET,
    Links,
    Memory,
    decayed,
    entering,
    geometric,
    in_chunks,
    key_weights,
    links,
    links_of,
    ordered,
    recall,
    ring,
)
from sciml.mixers.rows import axis_lattice, axis_rows, spread
from sciml.tokens import Axis

LEAST_SQUARE = 1e-12
"""ε of the output's normalisation: how much a memory holds depends on spacing and decay; what it holds shall matter."""


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
        own = [axis for axis in axes if self.admits(axis)]
        return super().parameters_of(axes) - ({"sides"} if all(axis.causal for axis in own) else set())

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            links_of(geometry, index)
            key_weights(geometry, index)
            self._tables(geometry, index)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        memory: Memory | None = None if state is None else dict(state)
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x), state
        q, k, v = self.projections.split(x)  # each (B, *lattice, H, D)
        rate = F.softplus(self.rate(x).to(self.sides.dtype))[..., None]  # (B, *lattice, H, 1)
        total: Tensor | None = None
        for index in axes:
            rows = [axis_rows(t, index) for t in (q, k, v, rate)]  # each (B * others, H, n, D), rate (…, n, 1)
            y = self._along(index, rows, q.shape, geometry, memory)
            gain = self.gain.weight[geometry.role(index)].view(self.heads, 1, -1) / len(axes)
            y = axis_lattice(self._normed(y, gain), q.shape, index)
            total = y if total is None else total + y
        assert total is not None
        y = self.projections.out(total * F.silu(self.gate(x)))
        return y, None if memory is None else tuple(memory.items())

    def _along(self, index: int, rows: list[Tensor], shape: torch.Size, geometry: Geometry,
               memory: Memory | None) -> Tensor:
        axis = geometry.axes[index]
        chain, first = recall(geometry, index, memory)
        q, k, v, a = self._terms(index, rows, shape, geometry, chain)
        if not axis.causal:
            return both_sides(q, k, v, a, self.sides, self.chunk, closed=ring(axis) is not None)
        y, last = one_side(q, k, v, a, self.chunk, first)
        if memory is not None:
            memory[index] = (last, chain.last)
        return y

    def _terms(self, index: int, rows: list[Tensor], shape: torch.Size, geometry: Geometry,
               chain: Links) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotated queries, rotated and weighted keys, values ``(R, H, n, D)``, log decay of each link ``(R, H, n)``."""
        q, k, v, rate = rows
        tables, weight = self._tables(geometry, index), key_weights(geometry, index)
        gap, start = (spread(t[:, None, :], shape, index) for t in (chain.gap, chain.start))
        a = (-gap * rate.squeeze(-1)).clamp(min=FORGET).masked_fill(start, FORGET)
        if tables is not None:
            cos, sin, weighted_cos, weighted_sin = (spread(t, shape, index) for t in tables)
            return rotate(q, (cos, sin)), rotate(k, (weighted_cos, weighted_sin)), v, a
        return q, k if weight is None else k * spread(weight[:, None, :, None], shape, index), v, a

    def _tables(self, geometry: Geometry, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """cos and sin for queries, and for keys times their quadrature weights: a pass over the keys less."""
        table, weight = geometry.rotary((index,), self.projections.head_width), key_weights(geometry, index)
        if table is None or weight is None:
            return None if table is None else (*table, *table)
        w = weight[:, None, :, None]
        return geometry.once(("weighted rotary", index, self.projections.head_width),
                             lambda: (*table, table[0] * w, table[1] * w))

    def _normed(self, y: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """``(R, H, n, D)`` normalised per head."""
        return scaled_norm(y.to(self.norm.gain.dtype), self.norm.gain * gain, eps=LEAST_SQUARE)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        q, k, v = self.projections.split(x)
        rate, outputs = F.softplus(self.rate(x))[..., None], []
        for index in self.axes(geometry):
            axis = geometry.axes[index]
            query, key, value, a = self._terms(index, [axis_rows(t, index) for t in (q, k, v, rate)], q.shape, geometry,
                                               links(axis))
            columns = []
            for i in range(axis.size):
                sides = [self._walk(i, side, key, value, a, axis) for side in range(1 if axis.causal else 2)]
                gains = value.new_ones(1, self.heads) if axis.causal else self.sides
                memory = sum(gain[:, None, None] * side for gain, side in zip(gains, sides))
                columns.append((query[:, :, i, None] @ memory).squeeze(2))
            y = self._normed(torch.stack(columns, 2))
            outputs.append(self.gain(axis_lattice(y, q.shape, index), geometry.role(index)))
        if not outputs:
            return torch.zeros_like(x)
        return self.projections.out(sum(outputs[1:], outputs[0]) / len(outputs) * F.silu(self.gate(x)))

    def _walk(self, i: int, side: int, k: Tensor, v: Tensor, a: Tensor, axis: Axis) -> Tensor:
        """The memory with which index i is met from the left (side 0) or right, step by step, ``(R, H, D, D)``."""
        n, memory = axis.size, k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
        if ring(axis) is not None:
            path = range(i, i + n + 1) if side == 0 else range(i + n, i - 1, -1)  # a lap from i to i
        else:
            path = range(i + 1) if side == 0 else range(n - 1, i - 1, -1)
        for m in path:
            crossed = (m + side) % n  # the link before index m, or the one after
            share = 0.5 if m % n == i and not axis.causal else 1.0
            memory = a[:, :, crossed, None, None].exp() * memory
            memory = memory + share * k[:, :, m % n, :, None] * v[:, :, m % n, None, :]
        return memory


def one_side(q: Tensor, k: Tensor, v: Tensor, a: Tensor, chunk: int,
             first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """o_i = Σ_{j ≤ i} exp(a_{j+1} + … + a_i) (q_i · k_j) v_j for ``(R, H, n, D)``, a ``(R, H, n)``, by chunks.

    Within a chunk as a masked matrix, between chunks through the memory S ``(R, H, D, D)``. Returns S after the last
    index as well; `first` is S before index 0.
    """
    n = q.shape[2]
    q, k, v, b = (in_chunks(t, 2, chunk) for t in (q, k, v, a))  # (R, H, M, c, D), b (R, H, M, c)
    b = b.cumsum(-1)
    y = decayed(q, k, v, b, torch.ones(1, b.shape[-1], b.shape[-1], dtype=b.dtype, device=b.device).tril())
    own = _outer(k, (b[..., -1:] - b).exp(), v)  # (R, M, H, D, D)
    enter, last = entering(own, _per_chunk(b), chunk, first)
    if enter.shape[1] > 1 or first is not None:
        y = y + (q * b.exp()[..., None]) @ enter.transpose(1, 2)
    return y.flatten(2, 3)[:, :, :n], last


def both_sides(q: Tensor, k: Tensor, v: Tensor, a: Tensor, gains: Tensor, chunk: int, *, closed: bool) -> Tensor:
    """`one_side` from the left times gains[0] plus that from the right times gains[1], an index itself at ½ of each.

    ½ is the trapezoidal rule of a kernel with a kink: a cell cut into two of half the weight hardly changes anything
    (nothing, where the gains are equal). closed: a ring, where a_0 links the first index to the last, and every index
    is met once from either side.
    """
    n = q.shape[2]
    q, k, v, b = (in_chunks(t, 2, chunk) for t in (q, k, v, a))
    b = b.cumsum(-1)  # log decay from the end of the chunk before; ``(R, H, M, c)``
    past, future = gains[:, :, None, None]  # (H, 1, 1)
    half = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device) / 2
    after = torch.ones_like(half).tril(-1) + half  # 1 where i follows j
    alone = b.shape[2] == 1
    rest = past * after.T + future * after if closed and alone else None  # of the lap, met from the other side
    y = decayed(q, k, v, b, past * after + future * after.T, rest)
    if alone:
        return y.flatten(2, 3)[:, :, :n]
    left, right = b.exp(), (b[..., -1:] - b).exp()  # decay since the chunk began, until it ends
    whole = _per_chunk(b)
    leftward, rightward = _outer(k, left, v).flip(1), _outer(k, right, v)
    enter, last = entering(rightward, whole, chunk)
    leave, first = entering(leftward, whole.flip(1), chunk)
    if closed:
        enter, lap = around(enter, last, whole)
        leave, _ = around(leave, first, whole.flip(1))
        y = y * lap.transpose(1, 2)
    memories = torch.cat([enter.transpose(1, 2), leave.flip(1).transpose(1, 2)], -2)  # (R, H, M, 2 D, D)
    queries = torch.cat([q * (past * left)[..., None], q * (future * right)[..., None]], -1)
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


def _per_chunk(b: Tensor) -> Tensor:
    return b[..., -1].transpose(1, 2)[..., None, None]  # (R, M, H, 1, 1)


PLUGIN = Gated
