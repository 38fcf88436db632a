"""Attention within windows of neighbours along every ordered axis (Swin Transformer, 2021, in any rank)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry
from sciml.mixers.groups import Cut, Tables, attend_by_labels, attend_in_groups, make_cut, make_tables
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
        self.size, self.shift = size, shift
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
        return attend_in_groups(x, geometry, cut, self._tables(geometry, cut), self.projections), state

    def _cut(self, geometry: Geometry) -> Cut:
        return make_cut(geometry, self.axes(geometry), self.size, shift=self.shift)

    def _tables(self, geometry: Geometry, cut: Cut) -> Tables:
        width = self.projections.head_width
        return geometry.once(("window", self.size, self.shift, self.heads, width),
                             lambda: make_tables(geometry, cut, self.heads, width))

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x)
        labels = []
        for i in axes:
            n = geometry.axes[i].size
            count = -(-n // self.size)
            length = -(-n // count)
            token = torch.arange(n) - (length // 2 if self.shift and count > 1 else 0)
            if geometry.axes[i].period is not None:
                token = token % (count * length)
            labels.append(token // length)
        return attend_by_labels(x, geometry, axes, labels, self.projections)


PLUGIN = Window
