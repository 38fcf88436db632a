"""Linear attention: all keys and values of a sample in one matrix per head, at a cost that grows with tokens alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import HeadNorm, Projections
from sciml.mixers.rows import fold, spread, spread_pair, unfold
from sciml.tokens import Axis

BLOCK = 16
"""Tokens of one packed sample that are multiplied at once; a sample's last block is filled up with zeros."""


class Linear(Mixer):
    """φ(Q) (φ(K)ᵀ W V) over all axes but the causal ones at once, W the quadrature weights, which sum to 1 per sample.

    kind "flow": Flow-Attention (Wu et al. 2022), φ = sigmoid; sinks compete for the sources through flows that are
    conserved: I_i = φ(q_i)·Σ w φ(k), O_j = φ(k_j)·Σ w φ(q), v̂_j = v_j softmax_j(φ(k_j)·Σ w φ(q)/I), y_i =
    sigmoid(φ(q_i)·Σ w φ(k)/O) φ(q_i)/I_i · Σ φ(k) v̂. "elu": φ = elu + 1 with the denominator φ(q_i)·Σ w φ(k)
    (Katharopoulos et al. 2020). "normalised": the same without denominator, normalised per head (Qin et al. 2022).
    Without positions a sum over keys knows none: φ(Q) and φ(K) are rotated where they meet the values, and not in flows
    and denominators, which have to stay positive (Su et al. 2021). Packed samples have sums of their own.
    """

    def __init__(self, width: int, heads: int, *, kind: Literal["flow", "normalised", "elu"] = "flow") -> None:
        super().__init__(width, heads)
        self.kind = kind
        self.projections = Projections(width, heads)
        if kind == "normalised":
            self.norm = HeadNorm(width // heads)

    def admits(self, axis: Axis) -> bool:
        return not axis.causal

    def prepare(self, geometry: Geometry) -> None:
        indices = tuple(self.axes(geometry))
        if not indices:
            return
        geometry.rotary(indices, self.projections.head_width)
        _weights(geometry, indices)
        _samples(geometry, indices)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        indices = tuple(self.acting(x, geometry))
        if not indices:
            return torch.zeros_like(x), state
        q, k, v = self._heads(x, indices)
        table = spread_pair(geometry.rotary(indices, self.projections.head_width), q.shape[0])
        weight = spread(_weights(geometry, indices)[:, None, :, None], q.shape[0])
        y = self._mix(q, k, v.to(q.dtype), weight, table, _samples(geometry, indices))
        return self.projections.out(unfold(y.transpose(1, 2).flatten(-2), x.shape, indices)), state

    def _heads(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(R, H, N, D)``: N tokens along `indices`, R samples times the other axes."""
        q, k, v = self.projections.split(fold(x, indices).flatten(1, -2))
        return q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, table: tuple[Tensor, Tensor] | None,
             samples: Samples | None) -> Tensor:
        q, k = features(q, self.kind), features(k, self.kind)
        if self.kind == "flow":
            flows = flow(q, k, weight, samples)
            share = softmax(flows.outgoing + weight.log(), samples)
            y = aggregate(rotate(q, table), rotate(k, table), v * share, samples)
            return y * (torch.sigmoid(flows.incoming) / flows.sink)
        y = aggregate(rotate(q, table), rotate(k, table), v * weight, samples)
        if self.kind == "normalised":
            return self.norm(y)
        return y / (q * total(k * weight, samples)).sum(-1, keepdim=True)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        indices = tuple(self.axes(geometry))
        if not indices:
            return torch.zeros_like(x)
        q, k, v = self._heads(x, indices)
        table, weight = geometry.rotary(indices, self.projections.head_width), _weights(geometry, indices)
        segment = geometry.sample_of_token(indices)
        segment = torch.zeros(q.shape[2], dtype=torch.long) if segment is None else segment
        y, repeats = torch.zeros_like(v), q.shape[0] // x.shape[0]
        for row in range(q.shape[0]):
            b = row // repeats
            own = None if table is None else (table[0][min(b, len(table[0]) - 1)], table[1][min(b, len(table[1]) - 1)])
            phi = [features(t[row], self.kind) for t in (q, k)]
            pairs = phi[0] @ phi[1].transpose(-1, -2)  # (H, N, N), φ(q_i)·φ(k_j)
            turned = rotate(phi[0], own) @ rotate(phi[1], own).transpose(-1, -2)
            for sample in segment.unique():
                at = (segment == sample).nonzero()[:, 0]
                w, f, r = weight[min(b, len(weight) - 1), at], pairs[:, at][:, :, at], turned[:, at][:, :, at]
                y[row, :, at] = self._of_pairs(f, r, v[row][:, at], w)
        return self.projections.out(unfold(y.transpose(1, 2).flatten(-2), x.shape, indices))

    def _of_pairs(self, f: Tensor, r: Tensor, v: Tensor, w: Tensor) -> Tensor:
        sink = (f * w).sum(-1, keepdim=True)  # (H, n, 1) incoming flow
        if self.kind == "elu":
            return r / sink * w @ v
        if self.kind == "normalised":
            return self.norm(r * w @ v)
        source = (f * w[:, None]).sum(-2, keepdim=True)  # (H, 1, n) outgoing flow
        incoming, outgoing = (f / source * w).sum(-1, keepdim=True), (f / sink * w[:, None]).sum(-2, keepdim=True)
        share = w * outgoing.exp() / (w * outgoing.exp()).sum(-1, keepdim=True)
        return torch.sigmoid(incoming) * (r / sink * share @ v)


class Flows(NamedTuple):
    """sink, source: raw incoming flow of every query and outgoing flow of every key; incoming, outgoing: the same once
    the other side's flows have been normalised to 1 each; all ``(R, H, N, 1)``."""

    sink: Tensor
    source: Tensor
    incoming: Tensor
    outgoing: Tensor


class Samples(NamedTuple):
    """segment, slot: ``(N,)`` sample of every token, and its place in blocks of `BLOCK` that hold one sample each;
    block: ``(M,)`` sample of every block; size: ``(S,)`` tokens per sample."""

    segment: Tensor
    slot: Tensor
    block: Tensor
    size: Tensor


def features(x: Tensor, kind: str) -> Tensor:
    """The positive φ of a kind."""
    return torch.sigmoid(x) if kind == "flow" else F.elu(x) + 1


def flow(q: Tensor, k: Tensor, weight: Tensor, samples: Samples | None) -> Flows:
    """Conserved flows between sinks q and sources k, positive ``(R, H, N, D)``, weights ``(R or 1, 1, N, 1)``."""
    sink = (q * total(k * weight, samples)).sum(-1, keepdim=True)
    source = (k * total(q * weight, samples)).sum(-1, keepdim=True)
    incoming = (q * total(k * (weight / source), samples)).sum(-1, keepdim=True)
    outgoing = (k * total(q * (weight / sink), samples)).sum(-1, keepdim=True)
    return Flows(sink, source, incoming, outgoing)


def total(t: Tensor, samples: Samples | None) -> Tensor:
    """``(R, H, N, D)`` summed over each token's sample, broadcastable to the tokens."""
    if samples is None:
        return t.sum(2, keepdim=True)
    sums = t.new_zeros(*t.shape[:2], len(samples.size), t.shape[-1]).index_add(2, samples.segment, t)
    return sums.index_select(2, samples.segment)


def softmax(logits: Tensor, samples: Samples | None) -> Tensor:
    """Over the tokens of each sample, ``(R, H, N, 1)``."""
    if samples is None:
        return logits.softmax(2)
    highest = logits.detach().new_full((*logits.shape[:2], len(samples.size), 1), -torch.inf)
    index = samples.segment[:, None].expand_as(logits)
    top = highest.scatter_reduce(2, index, logits.detach(), "amax").index_select(2, samples.segment)
    return (logits - top).exp() / total((logits - top).exp(), samples)


def aggregate(q: Tensor, k: Tensor, v: Tensor, samples: Samples | None) -> Tensor:
    """q_i · Σ k_j v_jᵀ over each token's sample, ``(R, H, N, D)``."""
    if samples is None:
        return q @ (k.transpose(-1, -2) @ v)
    q, k, v = (_blocks(t, samples) for t in (q, k, v))  # (R, H, M, BLOCK, D)
    each = k.transpose(-1, -2) @ v
    sums = each.new_zeros(*each.shape[:2], len(samples.size), *each.shape[3:]).index_add(2, samples.block, each)
    return (q @ sums.index_select(2, samples.block)).flatten(2, 3).index_select(2, samples.slot)


def _blocks(t: Tensor, samples: Samples) -> Tensor:
    room = t.new_zeros(*t.shape[:2], len(samples.block) * BLOCK, t.shape[-1])
    return room.index_copy(2, samples.slot, t).unflatten(2, (-1, BLOCK))


def _weights(geometry: Geometry, indices: tuple[int, ...]) -> Tensor:
    """``(B or 1, N)`` quadrature weights of the flattened axes, summing to 1 over each sample."""
    return geometry.once(("linear weights", indices), lambda: _make_weights(geometry, indices))


def _make_weights(geometry: Geometry, indices: tuple[int, ...]) -> Tensor:
    bias, segment = geometry.key_bias(indices), geometry.sample_of_token(indices)
    tokens = math.prod(geometry.axes[i].size for i in indices)
    weight = geometry.axes[indices[0]].coord.new_ones(1, tokens) if bias is None else bias.exp()
    if segment is None:
        return weight / weight.sum(1, keepdim=True)
    sums = weight.new_zeros(len(weight), int(segment.max()) + 1).index_add(1, segment, weight)
    return weight / sums[:, segment]


def _samples(geometry: Geometry, indices: tuple[int, ...]) -> Samples | None:
    return geometry.once(("linear samples", indices), lambda: _make_samples(geometry.sample_of_token(indices)))


def _make_samples(segment: Tensor | None) -> Samples | None:
    if segment is None:
        return None
    size = torch.bincount(segment)
    blocks = (size + BLOCK - 1) // BLOCK
    order = segment.argsort(stable=True)
    rank = torch.empty_like(order)  # place within its sample
    rank[order] = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[segment[order]]
    slot = (blocks.cumsum(0) - blocks)[segment] * BLOCK + rank
    return Samples(segment, slot, torch.arange(len(size), device=size.device).repeat_interleave(blocks), size)


PLUGIN = Linear
