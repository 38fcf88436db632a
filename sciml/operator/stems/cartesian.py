"""The stem of points without a graph: who they are and where, by coordinates alone; symmetries are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml.operator.config import OperatorConfig
from sciml.operator.stems.points import PointsStem
from sciml.tokens import Axis, TokenBatch, TokenSpec

OCTAVES = (-2, -1, 0, 1, 2, 3)
"""Waves of the coordinates have 2ᵏ periods per reference length."""


class CartesianStem(PointsStem):
    """An embedding row per identity plus an MLP of that row's and the coordinates' continuous features: x, sin 2πκx and
    cos 2πκx, relative to the sample's mean, differentiable in the coordinates."""

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__(spec, config)
        width = config.levels[0].width
        self.enter = nn.Linear(3 * (1 + 2 * len(OCTAVES)), width)
        self.leave = nn.Linear(width, width)
        self.register_buffer("waves", 2 * math.pi * 2.0 ** torch.tensor(OCTAVES), persistent=False)

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> Tensor:
        """``(1, n, width)``"""
        axis, = batch.axes
        who, place = super().forward(batch, sizes), axis.coord - mean_place(axis)
        waves: Tensor = self.waves  # type: ignore[assignment]
        phase = (place[..., None] * waves.to(place.dtype)).flatten(-2)  # (1, n, 3 * octaves)
        features = torch.cat([place, phase.sin(), phase.cos()], -1)
        return who + self.leave(nn.functional.silu(self.enter(features) + who))


def mean_place(axis: Axis) -> Tensor:
    """``(1, n, 3)``: of every point, the mean of its sample."""
    if axis.segment is None:
        return axis.coord.mean(1, keepdim=True)
    segment = axis.segment[0]
    count = segment.bincount()
    total = axis.coord.new_zeros(len(count), 3).index_add(0, segment, axis.coord[0])
    return (total / count[:, None].to(total.dtype))[segment][None]


PLUGIN = CartesianStem
