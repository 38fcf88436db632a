"""Attention within windows of neighbours along every ordered axis (Swin Transformer, 2021, in any rank)."""

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


class Window(Mixer):
    """yᵢ = Σ_{j in window of i} softmaxⱼ(qᵢ·kⱼ/√D + log wⱼ) vⱼ, with windows of at most `size` tokens along each axis.

    An axis of n tokens has m = ⌈n / size⌉ windows of ⌈n / m⌉. shift: they begin half a window later wherever there are
    several; on a periodic axis the last one goes around the end, elsewhere the two ends do not see each other. Sets,
    causal and packed axes join the batch. Positions are rotary, in physical coordinates. A token that sees no
    quadrature weight gets zero. Cost: tokens × window.
    """

    def __init__(self, width: int, heads: int, *, size: Annotated[int, Field(ge=2)] = 8, shift: bool = False) -> None:
        super().__init__(width, heads)
        self.grouping = Grouping("window", size, shift=shift)
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return both_ways(axis)

    def prepare(self, geometry: Geometry) -> None:
        self.grouping.prepare(geometry, self.axes(geometry), self.projections)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        return self.grouping.mix(x, geometry, self.acting(x, geometry), self.projections), state

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes, labels = self.axes(geometry), []
        for i in axes:
            n = geometry.axes[i].size
            count = -(-n // self.grouping.size)
            length = -(-n // count)
            token = torch.arange(n) - (length // 2 if self.grouping.shift and count > 1 else 0)
            if geometry.axes[i].period is not None:
                token = token % (count * length)
            labels.append(token // length)
        return attend_by_labels(x, geometry, axes, labels, self.projections)


PLUGIN = Window
