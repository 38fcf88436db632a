"""A value per cell and named output, from tokens repeated step by step beside the stem's finer features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.operator.convolution import Convolution, Narrow, channels_first, channels_last, repeat, scales, strides
from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedRows
from sciml.tokens import HeadSpec, TokenSpec


class RefinedHead(nn.Module):
    """The way back of the convolution stem: ``(B, *lattice, len(outputs))``.

    From the tokens' resolution to the cells', two convolutions of what the coarser one has in a cell's place beside
    what the stem saw there. The last map, one row per output, starts at zero, hence at the baseline.
    """

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        widths = [stem_width * 2**i for i in range(1 + scales(spec.patch))]
        self.narrow = nn.ModuleList(Narrow(coarse, own) for own, coarse in zip(widths, [*widths[1:], width]))
        self.convolutions = nn.ModuleList(nn.Sequential(Convolution(2 * own, own), Convolution(own, own))
                                          for own in widths)
        self.names = list(head.outputs)
        self.outputs = NamedRows(head.outputs, stem_width, std=0.0)
        self.offsets = NamedRows(head.outputs, 1, std=0.0)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        self.outputs.extend(head.outputs)
        self.offsets.extend(head.outputs)
        self.names = list(dict.fromkeys((*self.names, *head.outputs)))

    def forward(self, given: HeadInput) -> Tensor:
        """Raises `InputError` if the stem has no finer features."""
        if not given.fine:
            raise InputError(given.batch.domain, key="head", found="refined on a stem without fine features",
                             expected="the stem convolution", fix="set stem: convolution, or use the head lattice")
        rank, steps = len(given.sizes), strides(given.sizes, len(self.narrow) - 1)
        x = channels_first(given.tokens)
        scales_up = reversed(list(zip(self.narrow, self.convolutions, [*steps, (1,) * rank], given.fine, strict=True)))
        for narrow, convolution, step, fine in scales_up:
            x = convolution(torch.cat([repeat(narrow(x), step).to(fine.dtype), fine], 1))
        x = channels_last(x, rank)
        return nn.functional.linear(x, self.outputs(self.names), self.offsets(self.names)[:, 0])


PLUGIN = RefinedHead
