"""A value per cell and named output, from tokens unfolded step by step beside the stem's finer features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.operator.convolution import Convolution, channels_first, channels_last, scales, strides
from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedRows
from sciml.operator.patch import Split
from sciml.tokens import HeadSpec, TokenSpec


class RefinedHead(nn.Module):
    """The way back of the convolution stem: ``(B, *lattice, len(outputs))``.

    At every resolution two convolutions of what the coarser one split into beside what the stem saw. The last map, one
    row per output, starts at zero, hence at the baseline.
    """

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        widths = [stem_width * 2**i for i in range(scales(spec.patch))]
        self.splits = nn.ModuleList(Split(coarse, own) for own, coarse in zip(widths, [*widths[1:], width]))
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
        rank, steps, x = len(given.sizes), strides(given.sizes, len(self.splits)), given.tokens
        for split, convolution, step, fine in reversed(list(zip(self.splits, self.convolutions, steps, given.fine))):
            finer = channels_first(split(x, step)).to(fine.dtype)
            x = channels_last(convolution(torch.cat([finer, fine], 1)), rank)
        return nn.functional.linear(x, self.outputs(self.names), self.offsets(self.names)[:, 0])


PLUGIN = RefinedHead
