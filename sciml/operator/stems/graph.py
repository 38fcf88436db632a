"""The graph stem: points of a mesh are gathered on a latent lattice, grids are cut into patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.named import NamedTables
from sciml.operator.scatter import Kernel, Latent, corners_of, latent_of, point_axis, spread, to_nodes
from sciml.operator.stems.patch import PatchStem
from sciml.tokens import Axis, TokenBatch, TokenSpec


class GraphStem(nn.Module):
    """The columns of the patch stem on both: a channel means the same on a mesh and on a grid.

    Of points the tokens are nodes, as far apart as tokens of a grid are (`TokenSpec.patch_length`); points that nothing
    is observed at are queries and don't count. Heads find the points' own features ``(1 or B, n, stem_width)`` as fine
    ones.
    """

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        self.patch = PatchStem(spec, config)
        self.kernel = Kernel(config.stem_width)
        self.mass = nn.Parameter(torch.zeros(config.levels[0].width))
        self.multiple = 2 ** (len(config.levels) - 1)
        self.length = spec.patch_length

    @property
    def identities(self) -> NamedTables:
        return self.patch.identities

    def extend(self, spec: TokenSpec) -> None:
        self.patch.extend(spec)

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of the tokens."""
        points = point_axis(axes)
        return self.patch.axes(axes, sizes) if points is None else self.latent(points).axes

    def latent(self, points: Axis) -> Latent:
        if self.length is None:
            raise InputError("operator", key="patch_length", found="None", expected="the distance of latent nodes",
                             fix="declare patch_length in the domain's TokenSpec")
        return latent_of(points, self.length, self.multiple)

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """``(S, *nodes, width)`` and the points' features; of grids ``(B, *lattice / sizes, width)``."""
        points = point_axis(batch.axes)
        if points is None:
            return self.patch(batch, sizes)
        points = spread(points, len(batch.values))
        latent = self.latent(points)
        features = self.patch.columns(batch)  # (B, n, w)
        mass = points.weights().expand(len(batch.values), -1)
        if batch.observed is not None:
            mass = mass * batch.observed.expand_as(batch.values).any(-1)
        samples = len(latent.origin)
        nodes = int(torch.tensor(latent.counts).prod()) * samples
        gathered, share = to_nodes(features.flatten(0, 1), mass.reshape(-1, 1), corners_of(points, latent), self.kernel,
                                   nodes, samples)
        tokens = self.patch.widen(gathered) + share * self.mass
        return tokens.view(len(latent.origin), *latent.counts, -1), (features,)


PLUGIN = GraphStem
