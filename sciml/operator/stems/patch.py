"""The patch stem: one linear map of every patch of cells, summed over named channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sciml.operator.config import OperatorConfig
from sciml.operator.lattice import coarsen
from sciml.operator.named import NamedRows, NamedTables
from sciml.operator.patch import Taps, cells_of, fold, regrid
from sciml.tokens import Axis, TokenBatch, TokenSpec


class PatchStem(nn.Module):
    """Per channel: a column for its values and one for where it was not observed; per lattice condition: a column.

    Columns live in a narrow space of `stem_width` channels that the taps mix over the places of a patch; columns, taps
    and the widening are multiplied into a single matrix before they meet the data. A lattice whose tokens have another
    number of cells than the taps is read at the points that would have them (`sciml.operator.patch.regrid`).
    """

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        stem_width, width = config.stem_width, config.levels[0].width
        self.values = NamedRows(spec.channels, stem_width, std=1.0)
        self.missing = NamedRows(spec.channels, stem_width, std=0.5)
        self.given = NamedRows(spec.lattice_conditions, stem_width, std=1.0)
        self.taps = Taps(stem_width, spec.patch)
        self.widen = nn.Linear(stem_width, width)
        self.identities = NamedTables(width)
        self.extend(spec)

    def extend(self, spec: TokenSpec) -> None:
        self.values.extend(spec.channels)
        self.missing.extend(spec.channels)
        self.given.extend(spec.lattice_conditions)
        for namespace, members in spec.identities.items():
            self.identities.extend(namespace, len(members))

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of the tokens: in the middle of the points that are read."""
        moved = []
        for axis, size, cells in zip(axes, sizes, cells_of(axes, self.taps.patch)):
            if axis.period is not None and size != cells:
                axis = replace(axis, coord=axis.coord + axis.period * ((1 - size / cells) / (2 * axis.size)))
            moved.append(axis)
        return coarsen(moved, sizes)

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> Tensor:
        """``(B, *lattice / sizes, width)``; the lattice must be a multiple of `sizes`."""
        x, columns = self._inputs(batch)
        cells = cells_of(batch.axes, self.taps.patch)
        x = regrid(x, batch.axes, sizes, cells, batch.observed is None)
        taps = self.taps.kernel(cells)  # (P, w, w)
        kernel = torch.einsum("ow,pwk,ck->opc", self.widen.weight, taps, columns) / taps.shape[0]
        tokens = nn.functional.linear(fold(x, cells), kernel.flatten(1), self.widen.bias)
        return tokens + self._identities(batch, tokens)

    def columns(self, batch: TokenBatch) -> Tensor:
        """``(B, *lattice, stem_width)``: what is known of every cell, before patches are made."""
        x, columns = self._inputs(batch)
        return x @ columns

    def _inputs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """``(B, *lattice, c)`` of all that is known of a cell, and the columns ``(c, stem_width)`` of it."""
        inputs, columns = [batch.values], [self.values(batch.channels)]
        if batch.observed is not None:
            inputs.append((~batch.observed).to(batch.values.dtype).expand_as(batch.values))
            columns.append(self.missing(batch.channels))
        for name, value in batch.conditions.lattice.items():
            inputs.append(value.expand(batch.values.shape[:-1])[..., None])
            columns.append(self.given([name]))
        return (torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0]), torch.cat(columns)

    def _identities(self, batch: TokenBatch, tokens: Tensor) -> Tensor:
        total = tokens.new_zeros(())
        for place, axis in enumerate(batch.axes):
            if axis.ids is not None and axis.namespace is not None:
                rows = self.identities(axis.namespace)[axis.ids]  # (B or 1, n, width)
                shape = [rows.shape[0], *[1] * len(batch.axes), rows.shape[-1]]
                shape[1 + place] = rows.shape[1]
                total = total + rows.view(shape)
        return total


PLUGIN = PatchStem
