"""A value per cell and named output, smoothed and sharpened among neighbouring cells: no seams between patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.mixers.geometry import Geometry
from sciml.mixers.local import Local
from sciml.operator.feed_forward import FeedForward
from sciml.operator.heads.contract import HeadInput
from sciml.operator.heads.lattice import outputs_of
from sciml.operator.named import NamedRows
from sciml.operator.patch import Taps, cells_of, regrid, unfold
from sciml.tokens import HeadSpec, TokenSpec

DEPTH, RATIO = 2, 2.0


class CellsHead(nn.Module):
    """``(B, *lattice, C)``. Every token says `stem_width` features of each of its cells, to which what the stem knows
    of the cell is added. Twice, x + local(norm(x)), then x + ffn(norm(x)), along all axes that a local convolution
    takes; then a row per output. Rows start at zero, hence at the baseline.

    The answer of one token ends at its edge, and what moves across it would have to be known to both sides alike;
    convolutions of cells know no edges. The work is on the grid of p cells per token, as the stem's.
    """

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, stem_width)
        self.taps = Taps(stem_width, spec.patch)
        self.local = nn.ModuleList(Local(stem_width, 1) for _ in range(DEPTH))
        self.ffn = nn.ModuleList(FeedForward(stem_width, RATIO) for _ in range(DEPTH))
        self.outputs = NamedRows(head.outputs, stem_width, std=0.0)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        self.outputs.extend(head.outputs)

    def forward(self, given: HeadInput) -> Tensor:
        """Raises `InputError` if the stem has no features of cells."""
        batch, cells = given.batch, cells_of(given.batch.axes, self.taps.patch)
        if len(given.fine) != 1:
            raise InputError(batch.domain, key="head", found="cells on a stem without features of cells",
                             expected="the stem cells", fix="use the stem cells, or the head lattice")
        place = self.taps.kernel(cells)  # (P, w, w)
        kernel, bias = place @ self.narrow.weight, place @ self.narrow.bias
        told = nn.functional.linear(given.tokens, kernel.flatten(0, 1), bias.flatten())
        x = unfold(told, cells, len(self.narrow.bias)) + given.fine[0]  # (B, *cells, w)
        geometry = Geometry(batch.axes)
        for local, ffn in zip(self.local, self.ffn):
            x = x + local(F.rms_norm(x, x.shape[-1:]), geometry)[0]
            x = x + ffn(F.rms_norm(x, x.shape[-1:]))
        y = nn.functional.linear(x, self.outputs(outputs_of(batch, self.outputs.names)))
        return regrid(y, batch.axes, cells, given.sizes, batch.observed is None)


PLUGIN = CellsHead
