"""The patch stem that also tells heads what is known of every cell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sciml.operator.config import OperatorConfig
from sciml.operator.named import NamedTables
from sciml.operator.patch import cells_of, regrid
from sciml.operator.stems.patch import PatchStem
from sciml.tokens import Axis, TokenBatch, TokenSpec


class CellsStem(nn.Module):
    """Tokens of the patch stem, and its columns ``(B, *lattice, stem_width)`` on the grid of p cells per token that it
    reads (`sciml.operator.patch.regrid`), for the head `cells`."""

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        self.patches = PatchStem(spec, config)

    @property
    def identities(self) -> NamedTables:
        return self.patches.identities

    def extend(self, spec: TokenSpec) -> None:
        self.patches.extend(spec)

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of the tokens."""
        return self.patches.axes(axes, sizes)

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens ``(B, *lattice / sizes, width)`` and the columns of every cell."""
        cells = cells_of(batch.axes, self.patches.taps.patch)
        fine = regrid(self.patches.columns(batch), batch.axes, sizes, cells, batch.observed is None)
        return self.patches(batch, sizes), (fine,)


PLUGIN = CellsStem
