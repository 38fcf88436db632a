"""Merging and splitting patches of a lattice with weights that don't depend on its rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Taps(nn.Module):
    """p matrices ``(C, C)``, one per place in a patch, shared by all axes.

    The kernel of a patch of rank r is their product over the axes, T[i₁] T[i₂] … T[iᵣ]: matrices don't commute, so the
    axes stay distinguishable, and the same p·C² weights serve every rank. A tap is a function of the place within the
    patch, known at p points. On another grid, where a patch of the same physical size has more or fewer cells, a stem
    needs its mean over each cell (it integrates), a head its value at each (it evaluates).
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        noise = torch.randn(patch, width, width) / width**0.5
        self.weight = nn.Parameter(0.7 * torch.eye(width) + 0.7 * noise)

    def kernel(self, sizes: Sequence[int], *, mean: bool = False) -> Tensor:
        """``(Π sizes, C, C)`` for patches of that many cells along each axis, first axis slowest."""
        product = torch.eye(self.weight.shape[-1], dtype=self.weight.dtype, device=self.weight.device)[None]
        for size in sizes:
            taps = average(self.weight, size) if mean else resample(self.weight, size)
            product = torch.einsum("aij,bjk->abik", product, taps).flatten(0, 1)
        return product


def resample(taps: Tensor, size: int) -> Tensor:
    """Taps at `size` equally spaced places instead of p: linear interpolation, constant beyond the last one."""
    patch = taps.shape[0]
    if size == patch:
        return taps
    place = torch.arange(size, dtype=taps.dtype, device=taps.device) * (patch / size)
    place = place.clamp(max=patch - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=patch - 1)
    part = (place - low)[:, None, None]
    return taps[low] * (1 - part) + taps[high] * part


def average(taps: Tensor, size: int) -> Tensor:
    """Means over `size` equal parts of the patch of taps that are constant over each of their p parts; for size 1, an
    axis that isn't coarsened, the first tap. The mean over all of them stays what it was."""
    patch = taps.shape[0]
    if size in (1, patch):
        return taps[:size]
    left = torch.arange(size, dtype=taps.dtype, device=taps.device)[:, None] * (patch / size)
    edges = torch.arange(patch + 1, dtype=taps.dtype, device=taps.device)
    overlap = (torch.minimum(left + patch / size, edges[1:]) - torch.maximum(left, edges[:-1])).clamp_min(0)
    return torch.einsum("sp,pij->sij", overlap * (size / patch), taps)


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
