"""Top-k attention: every query attends to the keys of highest score, in memory that grows with tokens × block."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections
from sciml.mixers.rows import fold, spread, spread_pair, unfold
from sciml.tokens import Axis


class TopK(Mixer):
    """yᵢ = Σ over j in S(i) of pⱼ vⱼ, p the softmax of qᵢ·kⱼ/√D + bias over S(i): the `num_keys` highest of query i.

    The selection (Gupta et al. 2021, "Memory-efficient Transformers via Top-k Attention") is exact, made `block`
    queries at a time and not differentiated; logits and values are. A key's logit includes the log of its quadrature
    weight, so that padding has no influence. With `num_keys` ≥ N this is `full`; below that it is no quadrature:
    refining a lattice narrows what so many keys cover. Causal axes are left alone: each of their indices is a lattice
    of its own.
    """

    def __init__(self, width: int, heads: int, *, num_keys: Annotated[int, Field(ge=1)] = 32,
                 block: Annotated[int, Field(ge=1)] = 256) -> None:
        super().__init__(width, heads)
        self.num_keys, self.block = num_keys, block
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return not axis.causal

    def prepare(self, geometry: Geometry) -> None:
        axes = tuple(self.axes(geometry))
        geometry.key_bias(axes)
        geometry.check_pair(axes)
        geometry.rotary(axes, self.projections.head_width)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        folded = fold(x, axes)  # (B', *admitted, C)
        q, k, v = self._heads(folded, geometry, axes)  # (B', H, N, D)
        with torch.autocast(x.device.type, enabled=False):  # scores rounded to bfloat16 have ties
            y = self._attend(q, k, v.to(q.dtype), geometry, axes)
        y = self.projections.out(y.transpose(1, 2).reshape(folded.shape))
        return unfold(y, x.shape, axes), state

    def _heads(self, folded: Tensor, geometry: Geometry, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        table = spread_pair(geometry.rotary(tuple(axes), self.projections.head_width), len(folded))
        q, k, v = (t.transpose(1, 2) for t in self.projections.split(folded.flatten(1, -2)))
        return rotate(q, table), rotate(k, table), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, axes: list[int]) -> Tensor:
        """``(B, H, N, D)`` from three of the same."""
        q = q / math.sqrt(q.shape[-1])
        batch, heads, n, _ = q.shape
        pair = geometry.pair_term(tuple(axes), heads)
        chosen, extra = [], []  # per block of queries: (B, H, block, k) indices of keys, and their bias
        for start in range(0, n, self.block):
            rows = slice(start, start + self.block)
            bias = _bias(geometry, axes, rows, batch, pair)
            with torch.no_grad():
                logits = q[:, :, rows] @ k.transpose(-1, -2)
                logits = logits if bias is None else logits + bias
                chosen.append(logits.topk(min(self.num_keys, n), dim=-1, sorted=False).indices)
            if bias is not None:
                extra.append(bias.expand_as(logits).gather(-1, chosen[-1]))
        first = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1) * n
        keys = (torch.cat(chosen, 2) + first).flatten(0, 2)  # (B * H * N, k) rows of the flattened keys
        scores = Dots.apply(q.flatten(0, 2), k.flatten(0, 2), keys, self.block)
        if extra:
            scores = scores + torch.cat(extra, 2).flatten(0, 2)
        return WeightedSum.apply(scores.softmax(-1), v.flatten(0, 2), keys, self.block).view(q.shape)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x)
        folded = fold(x, axes)
        q, k, v = self._heads(folded, geometry, axes)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        pair = geometry.pair_term(tuple(axes), self.heads)
        bias = _bias(geometry, axes, slice(None), len(folded), pair)
        logits = logits if bias is None else logits + bias
        if self.num_keys < logits.shape[-1]:
            least = logits.sort(-1, descending=True).values[..., self.num_keys - 1, None].detach()
            logits = logits.masked_fill(logits < least, -math.inf)
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(folded.shape)
        return unfold(self.projections.out(y), x.shape, axes)


def _bias(geometry: Geometry, axes: list[int], rows: slice, batch: int, pair: Tensor | None) -> Tensor | None:
    """Quadrature, segments and pair bias of some queries: broadcastable to ``(B, H, rows, N)``, or None."""
    weight, sample = geometry.key_bias(tuple(axes)), geometry.sample_of_token(tuple(axes))
    bias = None if weight is None else spread(weight, batch)[:, None, None, :]
    if sample is not None:
        none = geometry.axes[axes[0]].coord.new_zeros(())
        apart = none.where(sample[rows, None] == sample, -math.inf)
        bias = apart if bias is None else bias + apart
    if pair is not None:
        pair = spread(pair, batch)[:, :, rows]
        bias = pair if bias is None else bias + pair
    return bias


class Dots(torch.autograd.Function):
    """``(R, k)`` products of row r of `one` with rows keys[r] of `many`.

    Together with `WeightedSum` and `ScatteredSum` closed under differentiation, so that to any order no more than one
    block of gathered rows exists at a time. A gradient may be asked for under autocast: the backwards switch it off.
    """

    @staticmethod
    def forward(ctx: Any, one: Tensor, many: Tensor, keys: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(one, many, keys)
        ctx.block = block
        return torch.cat([torch.bmm(F.embedding(own, many), r[:, :, None])[..., 0]
                          for own, r in zip(keys.split(block), one.split(block))])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        one, many, keys = ctx.saved_tensors
        with torch.autocast(slope.device.type, enabled=False):
            return (WeightedSum.apply(slope, many, keys, ctx.block),
                    ScatteredSum.apply(slope, one, keys, ctx.block, len(many)), None, None)


class WeightedSum(torch.autograd.Function):
    """``(R, D)``: Σⱼ weights[r, j] · many[keys[r, j]]."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, many: Tensor, keys: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(weights, many, keys)
        ctx.block = block
        return F.embedding_bag(keys, many, per_sample_weights=weights.contiguous(), mode="sum")

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, many, keys = ctx.saved_tensors
        with torch.autocast(slope.device.type, enabled=False):
            return (Dots.apply(slope, many, keys, ctx.block),
                    ScatteredSum.apply(weights, slope, keys, ctx.block, len(many)), None, None)


class ScatteredSum(torch.autograd.Function):
    """``(M, D)``: Σ over (r, j) with keys[r, j] = m of weights[r, j] · one[r]; the transpose of `WeightedSum`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, one: Tensor, keys: Tensor, block: int, size: int) -> Tensor:
        ctx.save_for_backward(weights, one, keys)
        ctx.block = block
        total = one.new_zeros(size, one.shape[1])
        for w, r, own in zip(weights.split(block), one.split(block), keys.split(block)):
            total.index_add_(0, own.flatten(), (w[:, :, None] * r[:, None, :]).flatten(0, 1))
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        weights, one, keys = ctx.saved_tensors
        with torch.autocast(slope.device.type, enabled=False):
            return (Dots.apply(one, slope, keys, ctx.block), WeightedSum.apply(weights, slope, keys, ctx.block),
                    None, None, None)


PLUGIN = TopK
