"""The convolution stem: features at every resolution from the cells' to the tokens'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml.operator.config import OperatorConfig
from sciml.operator.convolution import (
    TAPS,
    Convolution,
    Narrow,
    activate,
    channels_first,
    channels_last,
    leading,
    refuse_axes,
    scales,
    strides,
)
from sciml.operator.lattice import coarsen
from sciml.operator.named import NamedRows, NamedTables
from sciml.tokens import Axis, TokenBatch, TokenSpec


class ConvolutionStem(nn.Module):
    """Two convolutions at every resolution from the cells' to the tokens', `stem_width` channels at the finest and
    twice as many at each coarser one, maxima of cells between them; a linear map makes tokens.

    The first kernel is a sum over named channels: 27 taps for their values and 27 for where they were not observed. On
    a lattice of fewer than three axes, or one that is a single cell thick, the taps in the plane act. Axes in front
    that are not merged (frames) are folded into the batch.
    """

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        widths = [config.stem_width * 2**i for i in range(1 + scales(spec.patch))]
        taps = config.stem_width * TAPS**3
        self.values = NamedRows(spec.channels, taps, std=0.2)
        self.missing = NamedRows(spec.channels, taps, std=0.2)
        self.given = NamedRows(spec.lattice_conditions, taps, std=0.2)
        self.gain = nn.Parameter(torch.ones(config.stem_width))
        self.shift = nn.Parameter(torch.zeros(config.stem_width))
        self.convolutions = nn.ModuleList(
            nn.Sequential(*([Convolution(before, width)] if i else []), Convolution(width, width))
            for i, (before, width) in enumerate(zip([0, *widths], widths)))
        self.tokens = Narrow(widths[-1], config.levels[0].width)
        self.identities = NamedTables(config.levels[0].width)

    def extend(self, spec: TokenSpec) -> None:
        self.values.extend(spec.channels)
        self.missing.extend(spec.channels)
        self.given.extend(spec.lattice_conditions)

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of the tokens."""
        return coarsen(axes, sizes)

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens ``(B, *lattice / sizes, width)`` and the features of every resolution, finest first, channels first,
        frames in the batch.

        The lattice must be a multiple of `sizes`. Raises `InputError` for axes without an order, causal or packed ones.
        """
        refuse_axes(batch.axes, batch.domain)
        lead = leading(batch.axes)
        rank, steps = len(sizes) - lead, strides(sizes[lead:], len(self.convolutions) - 1)
        x, fine = self._first(batch, lead), []
        for convolution, step in zip(self.convolutions, [None, *steps]):
            if step is not None:
                x = F.max_pool3d(x, [*step, *[1] * (3 - rank)])
            x = convolution(x)
            fine.append(x)
        return channels_last(self.tokens(x), rank, batch.lattice[:lead]), tuple(fine)

    def _first(self, batch: TokenBatch, lead: int) -> Tensor:
        inputs, taps = [batch.values], [self.values(batch.channels)]
        if batch.observed is not None:
            inputs.append((~batch.observed).to(batch.values.dtype).expand_as(batch.values))
            taps.append(self.missing(batch.channels))
        for name, value in batch.conditions.lattice.items():
            inputs.append(value.expand(batch.values.shape[:-1])[..., None])
            taps.append(self.given([name]))
        x = channels_first(torch.cat(inputs, -1), lead)
        kernel = torch.cat(taps).view(x.shape[1], -1, TAPS, TAPS, TAPS).transpose(0, 1)
        return activate(F.conv3d(x, kernel, padding=TAPS // 2), self.gain, self.shift)


PLUGIN = ConvolutionStem
