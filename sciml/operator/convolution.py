"""Dense 3-D convolutions at resolutions finer than the tokens': what a stem and a head of images are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml.errors import InputError
from sciml.tokens import Axis

TAPS = 3
SLOPE = 0.01
EPSILON = 1e-5


class Convolution(nn.Module):
    """Leaky ReLU of the instance norm of a 3×3×3 convolution with zeros around: ``(B, c, X, Y, Z) → (B, c', X, Y, Z)``.

    Its weights are kept as the matrix ``(c', 27 c)`` that Muon makes orthogonal steps of: after 330 updates hippocampi
    are segmented at Dice .83, with AdamW on the kernels at .78 (docs/design/0023).
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        fan = width_in * TAPS**3
        self.kernel_matrix = nn.Parameter(torch.randn(width_out, fan) * (2 / fan) ** 0.5)
        self.gain, self.shift = nn.Parameter(torch.ones(width_out)), nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel_matrix.view(-1, x.shape[1], TAPS, TAPS, TAPS)
        return activate(F.conv3d(x, kernel, padding=TAPS // 2), self.gain, self.shift)

    @torch.no_grad()
    def refresh(self) -> None:
        """Give every row the size of a new one. The norm that follows takes it away again, so that the answer stays;
        but the longer a row has grown, the less a step turns it."""
        size = self.kernel_matrix.square().mean(1, keepdim=True).sqrt().clamp_min(EPSILON)
        self.kernel_matrix.mul_((2 / self.kernel_matrix.shape[1]) ** 0.5 / size)


class Narrow(nn.Module):
    """A linear map of channels, ``(B, c, X, Y, Z) → (B, c', X, Y, Z)``."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.kernel_matrix = nn.Parameter(torch.randn(width_out, width_in) / width_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.kernel_matrix[..., None, None, None])


def repeat(x: Tensor, step: Sequence[int]) -> Tensor:
    """``(B, c, X, Y, Z)`` with every cell repeated `step` times along each axis; axes that it doesn't name stay."""
    if max(step) == 1:
        return x
    return F.interpolate(x, scale_factor=[*map(float, step), *[1.0] * (3 - len(step))], mode="nearest")


def activate(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Leaky ReLU of the instance norm of ``(B, c, X, Y, Z)``, whose channels get mean `shift` and deviation `gain`."""
    return F.leaky_relu(F.instance_norm(x, weight=gain.to(x.dtype), bias=shift.to(x.dtype), eps=EPSILON), SLOPE)


def leading(axes: Sequence[Axis]) -> int:
    """How many axes come before the ones that convolutions act along: those in front that are not merged (frames). What
    lies along them is folded into the batch, so that it is treated alike."""
    return next((i for i, axis in enumerate(axes) if axis.coarsen), 0)


def channels_first(x: Tensor, lead: int = 0) -> Tensor:
    """``(B, *lead, *lattice, c)``, a lattice of one to three axes → ``(B · lead, c, X, Y, Z)``, missing axes of size 1.
    """
    x = x.flatten(0, lead)
    missing = 5 - x.ndim
    return x.reshape(*x.shape[:-1], *[1] * missing, x.shape[-1]).movedim(-1, 1).contiguous()


def channels_last(x: Tensor, rank: int, lead: Sequence[int] = ()) -> Tensor:
    """The inverse of `channels_first`; lead: sizes of the axes that were folded."""
    y = x.movedim(1, -1).reshape(x.shape[0], *x.shape[2: 2 + rank], x.shape[1])
    return y.unflatten(0, (-1, *lead)) if lead else y


def scales(patch: int) -> int:
    """How many resolutions are finer than tokens of `patch` cells: one per factor of two.

    >>> [scales(patch) for patch in (1, 2, 4, 5, 8)]
    [1, 1, 2, 3, 3]
    """
    return max(1, math.ceil(math.log2(patch)))


def strides(sizes: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Cells per token along each axis as a product of `count` steps from one resolution to the next, near-equal ones.

    >>> strides([4, 4, 1], 2), strides([6, 3, 2], 2)
    ([(2, 2, 1), (2, 2, 1)], [(3, 3, 2), (2, 1, 1)])
    """
    steps = []
    for size in sizes:
        own = []
        for left in range(count, 0, -1):
            own.append(next(f for f in range(1, size + 1) if size % f == 0 and f**left >= size))
            size //= own[-1]
        steps.append(own)
    return list(zip(*steps, strict=True))


def refuse_axes(axes: Sequence[Axis], where: str) -> None:
    """Raises `InputError` unless there are one to three axes behind the `leading` ones, all ordered, and none is causal
    or packed."""
    bad = [axis.name for axis in axes if axis.kind == "set" or axis.causal or axis.segment is not None]
    if bad or not 1 <= len(axes) - leading(axes) <= 3:
        raise InputError(where, key="stem", found=f"convolution over {', '.join(axis.name for axis in axes)}",
                         expected="one to three axes of space, or of time that is not causal; before them such as are "
                                  "not merged", fix="use the stem patch")
