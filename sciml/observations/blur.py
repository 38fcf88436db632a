"""A Gaussian point-spread function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blur:
    """Along every axis of the lattice a Gaussian of that standard deviation in cells (0: not blurred), cut at four of
    them, of sum one; nothing lies outside the image."""

    width_cells: tuple[float, ...]
    complex_image: ClassVar[bool] = False

    def forward(self, image: Tensor) -> Tensor:
        if len(self.width_cells) != image.ndim - 1:
            raise ValueError(f"{len(self.width_cells)} widths for a lattice of {image.ndim - 1} axes")
        for dim, width in enumerate(self.width_cells, start=1):
            if width > 0:
                kernel = _toeplitz(image.shape[dim], width).to(image)
                image = torch.tensordot(image, kernel, dims=([dim], [0])).movedim(-1, dim)
        return image

    def adjoint(self, measurement: Tensor) -> Tensor:
        return self.forward(measurement)

    @classmethod
    def example(cls, lattice: Sequence[int], generator: torch.Generator) -> Self:
        return cls(tuple(0.5 + 0.4 * i for i in range(len(lattice))))


@lru_cache(maxsize=32)
def _toeplitz(size: int, width: float) -> Tensor:
    """``(size, size)`` float64, symmetric: row i is the Gaussian around cell i."""
    cells = torch.arange(size, dtype=torch.float64)
    reach = torch.arange(-int(4 * width) - 1, int(4 * width) + 2, dtype=torch.float64)
    total = torch.exp(-((reach / width) ** 2) / 2)[reach.abs() <= 4 * width].sum()
    apart = cells[:, None] - cells
    return torch.exp(-((apart / width) ** 2) / 2).where(apart.abs() <= 4 * width, 0.0) / total


PLUGIN = Blur
