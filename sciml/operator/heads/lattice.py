"""A value per cell of the lattice and named output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedRows
from sciml.operator.patch import Taps, cells_of, regrid, unfold
from sciml.tokens import HeadSpec, TokenBatch, TokenSpec


class LatticeHead(nn.Module):
    """The transpose of the patch stem: ``(B, *lattice, C)``, an output per channel of the batch, or all of them where
    outputs are no channels (structures). Starts at zero, hence at the baseline."""

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, stem_width)
        self.taps = Taps(stem_width, spec.patch)
        self.outputs = NamedRows(head.outputs, stem_width, std=0.0)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        self.outputs.extend(head.outputs)

    def forward(self, given: HeadInput) -> Tensor:
        rows = self.outputs(outputs_of(given.batch, self.outputs.names))  # (C, w)
        batch, cells = given.batch, cells_of(given.batch.axes, self.taps.patch)
        place = torch.einsum("cw,pwk->pck", rows, self.taps.kernel(cells))  # (P, C, w)
        kernel = (place @ self.narrow.weight).flatten(0, 1)
        y = nn.functional.linear(given.tokens, kernel, (place @ self.narrow.bias).flatten())
        return regrid(unfold(y, cells, len(rows)), batch.axes, cells, given.sizes, batch.observed is None)


def outputs_of(batch: TokenBatch, names: Sequence[str]) -> Sequence[str]:
    """The outputs that a batch asks for: its channels, or all where outputs are no channels."""
    return batch.channels if set(batch.channels) <= set(names) else names


PLUGIN = LatticeHead
