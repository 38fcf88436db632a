"""Merging and splitting patches of a lattice with weights that don't depend on its rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml.mixers.radial import along
from sciml.tokens import Axis


class Taps(nn.Module):
    """p matrices ``(C, C)``, one per place in a patch, shared by all axes.

    The kernel of a patch of rank r is their product over the axes, T[i₁] T[i₂] … T[iᵣ]: matrices don't commute, so the
    axes stay distinguishable, and the same p·C² weights serve every rank.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        noise = torch.randn(patch, width, width) / width**0.5
        self.weight = nn.Parameter(0.7 * torch.eye(width) + 0.7 * noise)

    def kernel(self, sizes: Sequence[int]) -> Tensor:
        """``(Π sizes, C, C)``, first axis slowest, for patches of p cells along some axes and 1 along the others, where
        the first tap acts."""
        product = torch.eye(self.weight.shape[-1], dtype=self.weight.dtype, device=self.weight.device)[None]
        for size in sizes:
            product = torch.einsum("aij,bjk->abik", product, self.weight[:size]).flatten(0, 1)
        return product


def fold(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """``(B, *lattice, C)`` → ``(B, *lattice / sizes, Π sizes · C)``; sizes must divide the lattice."""
    if all(size == 1 for size in sizes):
        return x
    rank = len(sizes)
    shape = [x.shape[0]]
    for n, size in zip(x.shape[1:-1], sizes):
        shape += [n // size, size]
    x = x.reshape(*shape, x.shape[-1])
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    return x.permute(order).flatten(rank + 1)


def unfold(x: Tensor, sizes: Sequence[int], channels: int) -> Tensor:
    """The inverse of `fold`."""
    if all(size == 1 for size in sizes):
        return x
    rank = len(sizes)
    x = x.reshape(*x.shape[:-1], *sizes, channels)
    order = [0]
    for i in range(rank):
        order += [1 + i, 1 + rank + i]
    lattice = [n * size for n, size in zip(x.shape[1: rank + 1], sizes)]
    return x.permute([*order, 2 * rank + 1]).reshape(x.shape[0], *lattice, channels)


def cells_of(axes: Sequence[Axis], patch: int) -> list[int]:
    """Cells of the stem's own grid in a token: `patch` along the axes that are merged."""
    return [patch if axis.coarsen else 1 for axis in axes]


def regrid(x: Tensor, axes: Sequence[Axis], have: Sequence[int], want: Sequence[int], whole: bool) -> Tensor:
    """``(B, *lattice, C)`` at other points of the same function: `want` cells along each axis where it has `have`.

    A periodic axis keeps its first point, and its Fourier series is cut or continued, which is exact for what both
    grids resolve. Where cells are missing (not `whole`) or the end was padded, and along other axes, whose first points
    are the middles of their first cells, it is cubic convolution.
    """
    with torch.autocast(x.device.type, enabled=False):  # products in bfloat16 would blur what is exact
        for index, (axis, a, b) in enumerate(zip(axes, have, want)):
            if a != b:
                n, first = x.shape[1 + index], 0.0 if axis.period is not None else 0.5
                wraps = axis.period is not None and (torch.compiler.is_exporting() or not _padded(axis))
                place = (torch.arange(n // a * b, dtype=torch.float64, device=x.device) + first) * (a / b) - first
                weights = _series(place, n, finer=a < b) if wraps and whole else _cubic(place, n, a / b, wraps)
                x = along(weights.to(axis.coord.dtype), x.to(axis.coord.dtype), index)
    return x


def _padded(axis: Axis) -> bool:
    return bool((axis.weights()[:, -1] == 0).any())


def _series(place: Tensor, n: int, finer: bool) -> Tensor:
    """Weights ``(m, n)`` that evaluate the Fourier series of n values of a period at `place` ``(m,)``, in cells; on a
    coarser grid (not `finer`) without its Nyquist wavenumber and what is above."""
    top = n if finer else place.shape[0]  # no len(): it fixes an exported size
    waves = torch.arange(top // 2 + 1, dtype=torch.float64, device=place.device)
    share = (2.0 - (waves == 0).double() - (2 - finer) * (2 * waves == top).double()) / n
    there, here = (2 * math.pi / n * x[:, None] * waves for x in (place, torch.arange(n).to(place)))
    return (share * there.cos()) @ here.cos().T + (share * there.sin()) @ here.sin().T


def _cubic(place: Tensor, n: int, step: float, wraps: bool) -> Tensor:
    """Weights ``(m, n)`` of cubic convolution at `place` ``(m,)``, in cells, that lie `step` cells apart; stretched
    where these are coarser, so that finer waves are averaged away.

    Source: Keys, IEEE Trans. Acoust. Speech Signal Process. 29 (1981), with a = −1/2.
    """
    gap = place[:, None] - torch.arange(n).to(place)
    gap = ((gap - n * (gap / n).round() if wraps else gap) / max(step, 1.0)).abs()
    near, far = 1 + gap**2 * (1.5 * gap - 2.5), 2 - gap * (4 - gap * (2.5 - 0.5 * gap))
    weights = torch.where(gap < 1, near, torch.where(gap < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


class Merge(nn.Module):
    """A level down: patches of `patch` cells along each coarsened axis become one token of another width."""

    def __init__(self, width: int, width_out: int, patch: int = 2) -> None:
        super().__init__()
        self.taps = Taps(width, patch)
        self.widen = nn.Linear(width, width_out)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        taps = self.taps.kernel(sizes)  # (P, C, C)
        kernel = torch.einsum("oc,pck->opk", self.widen.weight, taps) * len(taps) ** -0.5
        return nn.functional.linear(fold(x, sizes), kernel.flatten(1), self.widen.bias)


class Split(nn.Module):
    """A level up: the transpose of `Merge`."""

    def __init__(self, width: int, width_out: int, patch: int = 2) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, width_out)
        self.taps = Taps(width_out, patch)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        taps = self.taps.kernel(sizes)
        kernel, bias = taps @ self.narrow.weight, taps @ self.narrow.bias  # (P, C_out, C), (P, C_out)
        y = nn.functional.linear(x, kernel.flatten(0, 1), bias.flatten())
        return unfold(y, sizes, kernel.shape[1])
