"""Attention to the tokens of one's own window and to a summary of every other one (after Combiner, 2021)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry
from sciml.mixers.groups import Cut, Grouping, Tables, by_sample, folded_rotary, log_weights
from sciml.mixers.projections import Projections
from sciml.mixers.rows import both_ways
from sciml.tokens import Axis


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
        self.grouping = Grouping("pooled", size, make=make_tables)
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return both_ways(axis)

    def prepare(self, geometry: Geometry) -> None:
        self.grouping.prepare(geometry, self.axes(geometry), self.projections)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        return self.grouping.mix(x, geometry, self.acting(x, geometry), self.projections), state

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes, region = self.axes(geometry), torch.zeros(1, dtype=torch.long)
        for n in (geometry.axes[i].size for i in axes):
            count = -(-n // self.grouping.size)
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


def make_tables(geometry: Geometry, cut: Cut, heads: int, head_width: int) -> Tables:
    """As `groups.make_tables`, with keys for the other regions; one region alone sees only itself."""
    rotary, weight, groups = folded_rotary(geometry, cut, head_width), log_weights(geometry, cut, heads), cut.num_groups
    if groups == 1:
        return Tables(rotary, None if weight is None else weight[:, :, None, :])
    if weight is None:
        weight = geometry.axes[cut.axes[0]].coord.new_zeros(groups, 1, cut.num_slots)
    total = weight.logsumexp(-1, keepdim=True)  # (G, Y or 1, 1)
    share = (weight - total.masked_fill(total.isneginf(), 0.0)).exp()  # an empty region shares nothing
    own = torch.eye(groups, dtype=torch.bool, device=weight.device)[:, None, None, :]
    others = total.permute(2, 1, 0)[:, :, None, :].expand(groups, -1, -1, -1).masked_fill(own, -math.inf)
    return Tables(rotary, torch.cat([weight[:, :, None, :], others], -1), share=share[..., None])


PLUGIN = Pooled
