"""Local convolution: a short depthwise filter along each axis, the same weights on every axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis

TAPS = 5


class Local(Mixer):
    """Σ over axes a of gainₐ ⊙ (kernel ∗ₐ x), then a projection. Periodic axes wrap, causal ones look back only.

    Acts on ordered axes (space, time). The state along a causal axis is its last taps − 1 inputs.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.kernel = nn.Parameter(torch.randn(TAPS, width) / TAPS**0.5)
        self.gain = RoleGain(width)
        self.out = nn.Linear(width, width, bias=False)

    def admits(self, axis: Axis) -> bool:
        return axis.kind != "set"

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x), state
        if len(axes) > 3 or any(geometry.axes[i].causal for i in axes):
            return self._axis_by_axis(x, geometry, axes, state)
        return self.out(self._convolve(x, geometry, axes)), state

    def _convolve(self, x: Tensor, geometry: Geometry, axes: list[int]) -> Tensor:
        """A depthwise convolution per axis (a cross-shaped kernel costs twice as much); other axes join the batch."""
        rank, half = len(axes), TAPS // 2
        order = [i for i in range(x.ndim - 1) if i - 1 not in axes] + [i + 1 for i in axes] + [x.ndim - 1]
        moved = x.permute(order)
        lines = moved.flatten(0, -rank - 2).movedim(-1, 1)
        total: Tensor | None = None
        for place, index in enumerate(axes):
            pad = [0, 0] * rank
            pad[2 * (rank - 1 - place): 2 * (rank - place)] = [half, half]
            wraps = geometry.axes[index].period is not None
            long = lines.shape[2 + place] >= half
            y = F.pad(lines, pad, mode="circular") if wraps and long else _pad(lines, pad, 2 + place, wraps)
            kernel = self.gain(self.kernel, geometry.role(index)).T
            shape = [TAPS if i == place else 1 for i in range(rank)]
            y = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](y, kernel.reshape(-1, 1, *shape), groups=self.width)
            total = y if total is None else total + y
        assert total is not None
        inverse = sorted(range(x.ndim), key=order.__getitem__)
        return total.movedim(1, -1).reshape(moved.shape).permute(inverse)

    def _axis_by_axis(self, x: Tensor, geometry: Geometry, axes: list[int],
                      state: MixerState) -> tuple[Tensor, MixerState]:
        memory = None if state is None else dict(state)
        total = torch.zeros_like(x)
        for index in axes:
            axis, line = geometry.axes[index], x.movedim(index + 1, -2)
            if axis.causal:
                past = memory.get(index) if memory else None
                before = line.new_zeros(*line.shape[:-2], TAPS - 1, line.shape[-1]) if past is None else past
                padded = torch.cat([before, line], -2)
                if memory is not None:
                    memory[index] = padded[..., -(TAPS - 1):, :]
            else:
                padded = _extend(line, TAPS // 2, axis.period is not None)
            y = sum(self.kernel[t] * padded[..., t: t + line.shape[-2], :] for t in range(TAPS))
            total = total + self.gain(y, geometry.role(index)).movedim(-2, index + 1)
        return self.out(total), None if memory is None else tuple(memory.items())

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        return self._axis_by_axis(x, geometry, axes, None)[0] if axes else torch.zeros_like(x)


def _extend(line: Tensor, half: int, wraps: bool) -> Tensor:
    n = line.shape[-2]
    if wraps:
        index = torch.arange(-half, n + half, device=line.device) % n
        return line.index_select(-2, index)
    zeros = line.new_zeros(*line.shape[:-2], half, line.shape[-1])
    return torch.cat([zeros, line, zeros], -2)


def _pad(y: Tensor, pad: list[int], dim: int, wraps: bool) -> Tensor:
    if not wraps:
        return F.pad(y, pad)
    index = torch.arange(-(TAPS // 2), y.shape[dim] + TAPS // 2, device=y.device) % y.shape[dim]
    return y.index_select(dim, index)


PLUGIN = Local
