"""The stem of points: who they are. Where they are, mixers read from the axis, so that it can be differentiated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sciml.operator.config import OperatorConfig
from sciml.operator.named import NamedTables
from sciml.tokens import Axis, TokenBatch, TokenSpec


class PointsStem(nn.Module):
    """One embedding row per identity, of standard deviation 1; tokens are the points."""

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        self.identities = NamedTables(config.levels[0].width, std=1.0)
        self.extend(spec)

    def extend(self, spec: TokenSpec) -> None:
        for namespace, members in spec.identities.items():
            self.identities.extend(namespace, len(members))

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        return tuple(axes)

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> Tensor:
        """``(1, n, width)``"""
        axis, = batch.axes
        assert axis.namespace is not None
        assert axis.ids is not None
        return self.identities(axis.namespace)[axis.ids]


PLUGIN = PointsStem
