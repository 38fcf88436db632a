"""Sensors at points: what a few stations know of a field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subsample:
    """The image at places ``(B or 1, n, axes)``, counted in cells from the first (0 is its centre), multilinear between
    cells; measurements are ``(B, n)``.

    lattice: the image's. Places outside are those of the nearest cell; along `periodic` axes they are wrapped.
    """

    places: Tensor
    lattice: tuple[int, ...]
    periodic: bool = False
    complex_image: ClassVar[bool] = False

    def forward(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        total = flat.new_zeros(len(flat), self.places.shape[1])
        for index, weight in self._corners(image):
            total = total + flat.gather(1, index.expand(len(flat), -1)) * weight
        return total

    def adjoint(self, measurement: Tensor) -> Tensor:
        total = measurement.new_zeros(len(measurement), math.prod(self.lattice))
        for index, weight in self._corners(measurement):
            total = total.scatter_add(1, index.expand(len(measurement), -1), measurement * weight)
        return total.view(len(measurement), *self.lattice)

    def _corners(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Flat index and weight ``(B or 1, n)`` of the 2^axes cells around every place."""
        sizes = torch.tensor(self.lattice, device=self.places.device)
        places = self.places % sizes if self.periodic else self.places.clamp_min(0).minimum(sizes - 1.0)
        low = places.floor()
        share, found = (places - low).to(like.real.dtype), []
        for corner in product((0, 1), repeat=len(self.lattice)):
            step = torch.tensor(corner, device=low.device)
            cell = low.long() + step
            cell = cell % sizes if self.periodic else cell.minimum(sizes - 1)
            flat = torch.zeros_like(cell[..., 0])
            for axis, size in enumerate(self.lattice):
                flat = flat * size + cell[..., axis]
            found.append((flat, torch.where(step.bool(), share, 1 - share).prod(-1)))
        return found

    @classmethod
    def example(cls, lattice: Sequence[int], generator: torch.Generator) -> Self:
        places = torch.rand(1, 7, len(lattice), generator=generator, dtype=torch.float64) * torch.tensor(lattice)
        return cls(places, tuple(lattice))


PLUGIN = Subsample
