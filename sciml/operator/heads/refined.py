"""A value per cell and named output, from tokens repeated step by step beside the stem's finer features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.operator.convolution import (
    Convolution,
    Narrow,
    channels_first,
    channels_last,
    leading,
    repeat,
    scales,
    strides,
)
from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedRows
from sciml.tokens import HeadSpec, TokenSpec

DEEP = "refined_deep"


class RefinedHead(nn.Module):
    """The way back of the convolution stem: ``(B, *lattice, len(outputs))``.

    From the tokens' resolution to the cells', two convolutions of what the coarser one has in a cell's place beside
    what the stem saw there. The last map, one row per output, starts at zero, hence at the baseline. The kind
    ``refined_deep`` (deep supervision) is asked at every resolution: in training its last dimension has the outputs of
    each, finest first, coarser ones repeated to the cells.
    """

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.widths = widths = [stem_width * 2**i for i in range(1 + scales(spec.patch))]
        self.narrow = nn.ModuleList(Narrow(coarse, own) for own, coarse in zip(widths, [*widths[1:], width]))
        self.convolutions = nn.ModuleList(nn.Sequential(Convolution(2 * own, own), Convolution(own, own))
                                          for own in widths)
        self.names = list(head.outputs)
        self.outputs = NamedRows(head.outputs, stem_width, std=0.0)
        self.offsets = NamedRows(head.outputs, 1, std=0.0)
        self.coarse, self.coarse_offsets = nn.ModuleList(), nn.ModuleList()
        self._ask(head, widths[1:])

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        for rows in (self.outputs, self.offsets, *self.coarse, *self.coarse_offsets):
            rows.extend(head.outputs)
        self.names = list(dict.fromkeys((*self.names, *head.outputs)))
        self._ask(head, self.widths[1:])

    def _ask(self, head: HeadSpec, widths: Sequence[int]) -> None:
        """Rows and offsets for each coarser resolution, finest first, or for none, as the head's kind says."""
        if head.kind != DEEP:
            self.coarse, self.coarse_offsets = nn.ModuleList(), nn.ModuleList()
        elif not len(self.coarse):
            self.coarse = nn.ModuleList(NamedRows(self.names, width, std=0.0) for width in widths)
            self.coarse_offsets = nn.ModuleList(NamedRows(self.names, 1, std=0.0) for _ in widths)

    def forward(self, given: HeadInput) -> Tensor:
        """Raises `InputError` if the stem has no finer features."""
        if not given.fine:
            raise InputError(given.batch.domain, key="head", found="refined on a stem without fine features",
                             expected="the stem convolution", fix="set stem: convolution, or use the head lattice")
        lead = leading(given.batch.axes)
        rank, steps = len(given.sizes) - lead, strides(given.sizes[lead:], len(self.narrow) - 1)
        x, seen = channels_first(given.tokens, lead), list[Tensor]()
        scales_up = reversed(list(zip(self.narrow, self.convolutions, [*steps, (1,) * rank], given.fine, strict=True)))
        for narrow, convolution, step, fine in scales_up:
            x = convolution(torch.cat([repeat(narrow(x), step).to(fine.dtype), fine], 1))
            seen.insert(0, x)
        x = channels_last(x, rank, given.batch.lattice[:lead])
        found = [nn.functional.linear(x, self.outputs(self.names), self.offsets(self.names)[:, 0])]
        coarse = zip(self.coarse, self.coarse_offsets, strict=True) if self.training else ()
        for level, (rows, offsets) in enumerate(coarse, 1):
            y = nn.functional.conv3d(seen[level], rows(self.names)[..., None, None, None], offsets(self.names)[:, 0])
            cells = [math.prod(step[axis] for step in steps[:level]) for axis in range(rank)]
            found.append(channels_last(repeat(y, cells), rank, given.batch.lattice[:lead]).to(found[0].dtype))
        return torch.cat(found, -1) if len(found) > 1 else found[0]


PLUGIN = RefinedHead
