"""A value per point of a mesh, or cell of a grid, and named output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.operator.heads.lattice import LatticeHead, outputs_of
from sciml.operator.scatter import Kernel, corners_of, latent_of, point_axis, spread, to_points
from sciml.tokens import HeadSpec, TokenSpec


class GraphHead(nn.Module):
    """Of points: the nodes around each and its own features, through a small network; of grids the lattice head, whose
    rows of outputs are shared. Starts at zero, hence at the baseline."""

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.lattice = LatticeHead(spec, head, stem_width, width)
        self.kernel = Kernel(stem_width)
        self.mix = nn.Linear(2 * stem_width, stem_width)
        self.length = spec.patch_length

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        self.lattice.extend(head, spec)

    def forward(self, given: HeadInput) -> Tensor:
        """``(B, n, C)`` of points, queries included, else ``(B, *lattice, C)``."""
        points = point_axis(given.batch.axes)
        if points is None:
            return self.lattice(given)
        assert self.length is not None
        features, = given.fine
        points, multiple = spread(points, len(features)), 2 ** (len(given.levels) - 1)
        pairs = corners_of(points, latent_of(points, self.length, multiple))
        own = features.flatten(0, 1)
        nodes = self.lattice.narrow(given.tokens).flatten(0, -2)
        around = to_points(nodes, pairs, self.kernel, len(own))
        mixed = around + nn.functional.gelu(self.mix(torch.cat([around, own], 1)))
        rows = self.lattice.outputs(outputs_of(given.batch, self.lattice.outputs.names))
        return (mixed @ rows.T).view(*features.shape[:-1], -1)


PLUGIN = GraphHead
