"""Attention to the tokens of one's own window and to a summary of every other one (after Combiner, 2021)."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from sciml.kernels.attend import attend
from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry
from sciml.mixers.groups import Cut, by_sample, folded_rotary, group_rows, log_weights, make_cut, out_of_groups, restore
from sciml.mixers.projections import Projections
from sciml.mixers.rows import both_ways
from sciml.tokens import Axis


class PooledTables(NamedTuple):
    """rotary: as of `groups.Tables`. bias: ``(G, Y or 1, 1, S + G)`` of own tokens, then regions; or None.

    share: ``(G, Y or 1, S, 1)`` of a region's measure that its token has, or None where there is one region.
    """

    rotary: tuple[Tensor, Tensor] | None
    bias: Tensor | None
    share: Tensor | None


class Pooled(Mixer):
    """yᵢ = (Σ_{j in R(i)} wⱼ exp(sᵢⱼ) vⱼ + Σ_{R ≠ R(i)} w_R exp(s_iR) v_R) / (the same sum without v and v_R).

    Regions R are windows as of `window`, at most `size` tokens along each axis; sᵢⱼ = qᵢ·kⱼ/√D; w_R = Σ_{j in R} wⱼ;
    k_R, v_R = Σ_{j in R} wⱼ (kⱼ, vⱼ) / w_R, keys rotated before they are averaged; s_iR = qᵢ·k_R/√D, which is the mean
    of sᵢⱼ over R. It is full attention with each far region's Σ wⱼ exp(sᵢⱼ) vⱼ replaced by w_R exp(mean sᵢⱼ) v_R: exact
    where keys are equal within a region, and by Jensen's inequality never more weight than the region had. (Combiner
    factorises attention over the same regions, with other summaries and no measure.) Every token that has a weight has
    an influence on every other. Sets, causal and packed axes join the batch. Cost: tokens × (window + number of
    windows), and number of windows² summaries in memory.
    """

    def __init__(self, width: int, heads: int, *, size: Annotated[int, Field(ge=2)] = 8) -> None:
        super().__init__(width, heads)
        self.size = size
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return both_ways(axis)

    def prepare(self, geometry: Geometry) -> None:
        if self.axes(geometry):
            self._tables(geometry, self._cut(geometry))

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        if not self.axes(geometry):
            return torch.zeros_like(x), state
        cut = self._cut(geometry)
        tables = self._tables(geometry, cut)
        (q, k, v), shape = group_rows(x, cut, tables.rotary, self.projections)
        if tables.share is not None:
            k, v = (torch.cat([t, _summaries(t, tables.share)], 2) for t in (k, v))  # (G, Y, S + G, D)
        y = attend(q, k, v, bias=tables.bias, second_order=geometry.second_order)
        return self.projections.out(restore(out_of_groups(y, cut, shape), cut)), state

    def _cut(self, geometry: Geometry) -> Cut:
        return make_cut(geometry, self.axes(geometry), self.size)

    def _tables(self, geometry: Geometry, cut: Cut) -> PooledTables:
        width = self.projections.head_width
        return geometry.once(("pooled", self.size, self.heads, width),
                             lambda: _make_tables(geometry, cut, self.heads, width))

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x)
        region = torch.zeros(1, dtype=torch.long)
        for n in (geometry.axes[i].size for i in axes):
            count = -(-n // self.size)
            region = (region[:, None] * count + torch.arange(n) // -(-n // count)).flatten()

        def within(q: Tensor, k: Tensor, v: Tensor, log_weight: Tensor | float) -> Tensor:
            w = torch.ones(len(region)) if isinstance(log_weight, float) else log_weight.exp()
            rows = []
            for i in range(len(region)):
                keys, values, weights = [], [], []
                for r in range(int(region.max()) + 1):
                    own = w * (region == r)
                    if r == region[i]:
                        keys.append(k[:, region == r])
                        values.append(v[:, region == r])
                        weights.append(w[region == r])
                    elif own.sum() > 0:
                        keys.append((own / own.sum() @ k)[:, None])
                        values.append((own / own.sum() @ v)[:, None])
                        weights.append(own.sum()[None])
                logits = torch.cat(keys, 1) @ q[:, i, :, None] / math.sqrt(q.shape[-1])  # (H, M, 1)
                chance = torch.cat(weights)[:, None] * (logits - logits.amax(1, keepdim=True)).exp()
                rows.append((chance * torch.cat(values, 1)).sum(1) / chance.sum(1))
            return torch.stack(rows, 1)

        return by_sample(x, geometry, axes, self.projections, within)


def _make_tables(geometry: Geometry, cut: Cut, heads: int, head_width: int) -> PooledTables:
    rotary, weight, groups = folded_rotary(geometry, cut, head_width), log_weights(geometry, cut, heads), cut.num_groups
    if groups == 1:
        return PooledTables(rotary, None if weight is None else weight[:, :, None, :], None)
    if weight is None:
        weight = geometry.axes[cut.axes[0]].coord.new_zeros(groups, 1, cut.num_slots)
    total = weight.logsumexp(-1, keepdim=True)  # (G, Y or 1, 1)
    share = (weight - total.masked_fill(total.isneginf(), 0.0)).exp()  # an empty region shares nothing
    own = torch.eye(groups, dtype=torch.bool, device=weight.device)[:, None, None, :]
    others = total.permute(2, 1, 0)[:, :, None, :].expand(groups, -1, -1, -1).masked_fill(own, -math.inf)
    return PooledTables(rotary, torch.cat([weight[:, :, None, :], others], -1), share[..., None])


def _summaries(t: Tensor, share: Tensor) -> Tensor:
    """Means over regions of ``(G, Y, S, D)``, given to every group: ``(G, Y, G, D)``."""
    means = (share * t).sum(2).to(t.dtype)  # (G, Y, D)
    return means.transpose(0, 1).expand(len(means), -1, -1, -1)


PLUGIN = Pooled
