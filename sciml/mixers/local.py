"""Local convolution: a short depthwise filter along each axis, the same weights on every axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis

TAPS = 5


class Local(Mixer):
    """Σ over axes a of gainₐ ⊙ (kernel ∗ₐ x), then a projection. Periodic axes wrap, causal ones look back only.

    Acts on ordered axes (space, time) that are not packed. The state along a causal axis is its last taps − 1 inputs.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.kernel = nn.Parameter(torch.randn(TAPS, width) / TAPS**0.5)
        self.gain = RoleGain(width)
        self.out = nn.Linear(width, width, bias=False)

    def admits(self, axis: Axis) -> bool:
        return axis.kind != "set" and axis.segment is None

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        memory = None if state is None else dict(state)
        total: Tensor | None = None
        for index in axes:
            axis, dim = geometry.axes[index], index + 1
            longer = extend_back(x, dim, index, memory) if axis.causal else extend(x, dim, axis.period is not None)
            y = Stencil.apply(longer, self.gain(self.kernel, geometry.role(index)), dim)
            total = y if total is None else total + y
        assert total is not None
        return self.out(total), None if memory is None else tuple(memory.items())

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        total = torch.zeros_like(x)
        for index in axes:
            axis, line = geometry.axes[index], x.movedim(index + 1, 0)  # (n, …, C)
            n, first = len(line), TAPS - 1 if axis.causal else TAPS // 2
            y = []
            for i in range(n):
                seen = [(t, i + t - first) for t in range(TAPS)]
                places = [(t, j % n if axis.period is not None and not axis.causal else j) for t, j in seen]
                y.append(sum((self.kernel[t] * line[j] for t, j in places if 0 <= j < n), torch.zeros_like(line[0])))
            total = total + self.gain(torch.stack(y).movedim(0, index + 1), geometry.role(index))
        return self.out(total) if axes else total


class Stencil(torch.autograd.Function):
    """y_i = Σ_t kernel_t ⊙ x_{i+t} along one dimension, ``(…, n + taps − 1, …, C) → (…, n, …, C)``; kernel (taps, C).

    One pass over memory per tap, forward and backward; what autograd would make of the sum of slices takes five. Can be
    differentiated any number of times: the backward of a stencil is the stencil reversed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.dim = dim
        n = x.shape[dim] - len(kernel) + 1
        y = x.narrow(dim, 0, n) * kernel[0]
        for t in range(1, len(kernel)):
            y.addcmul_(x.narrow(dim, t, n), kernel[t])
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (x, kernel), dim = slopes, ctx.saved_tensors, ctx.dim
        n, outer = g.shape[dim], tuple(range(g.ndim - 1))
        of_x = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_x = Stencil.apply(_zeros_around(g, dim, len(kernel) - 1), kernel.flip(0), dim)
        if ctx.needs_input_grad[1]:
            of_kernel = torch.stack([(x.narrow(dim, t, n) * g).sum(outer) for t in range(len(kernel))])
        return of_x, of_kernel, None


def extend(x: Tensor, dim: int, wraps: bool) -> Tensor:
    """`x` with taps // 2 cells more at both ends: its own other end where it wraps, else zeros."""
    half, n = TAPS // 2, x.shape[dim]
    if not wraps:
        return _zeros_around(x, dim, half)
    if n < half:
        return x.index_select(dim, torch.arange(-half, n + half, device=x.device) % n)
    return torch.cat([x.narrow(dim, n - half, half), x, x.narrow(dim, 0, half)], dim)


def extend_back(x: Tensor, dim: int, index: int, memory: dict[int, Tensor] | None) -> Tensor:
    """`x` with the taps − 1 cells before it: what the memory holds of them, else zeros; the memory moves on."""
    past = None if memory is None else memory.get(index)
    if past is None:
        past = x.new_zeros([TAPS - 1 if d == dim else n for d, n in enumerate(x.shape)])
    longer = torch.cat([past, x], dim)
    if memory is not None:
        memory[index] = longer.narrow(dim, x.shape[dim], TAPS - 1)
    return longer


def _zeros_around(x: Tensor, dim: int, count: int) -> Tensor:
    zeros = x.new_zeros([count if d == dim else n for d, n in enumerate(x.shape)])
    return torch.cat([zeros, x, zeros], dim)


PLUGIN = Local
