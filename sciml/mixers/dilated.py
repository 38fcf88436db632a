"""Attention within strided groups (D-Former, 2022, and the long-distance half of CrossFormer, 2021, in any rank)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry
from sciml.mixers.groups import Grouping, attend_by_labels
from sciml.mixers.projections import Projections
from sciml.mixers.rows import both_ways
from sciml.tokens import Axis


class Dilated(Mixer):
    """yᵢ = Σ_{j in group of i} softmaxⱼ(qᵢ·kⱼ/√D + log wⱼ) vⱼ; a group is every m-th token along each axis.

    size: at most that many tokens of a group along each axis; an axis of n tokens has m = ⌈n / size⌉ groups, the tokens
    with equal index modulo m. So every group reaches along the whole axis and has the same cost per token on every
    lattice; with a fixed stride (which is a fixed number of groups) the cost would grow with n. Groups do not see each
    other: combine with `window` or `local`. Sets, causal and packed axes join the batch. A token that sees no
    quadrature weight gets zero. Cost: tokens × group.
    """

    def __init__(self, width: int, heads: int, *, size: Annotated[int, Field(ge=2)] = 8) -> None:
        super().__init__(width, heads)
        self.grouping = Grouping("dilated", size, strided=True)
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return both_ways(axis)

    def prepare(self, geometry: Geometry) -> None:
        self.grouping.prepare(geometry, self.axes(geometry), self.projections)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        return self.grouping.mix(x, geometry, self.acting(x, geometry), self.projections), state

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        labels = [torch.arange(n) % -(-n // self.grouping.size) for n in (geometry.axes[i].size for i in axes)]
        return attend_by_labels(x, geometry, axes, labels, self.projections)


PLUGIN = Dilated
