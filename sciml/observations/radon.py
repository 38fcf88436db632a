"""Parallel-beam projections of every slice: what a CT scan measures, after the logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor

SMALLEST = 1e-5
"""Width of a cell's shadow below which it is taken for that wide, relative to the detector bin."""


@dataclass(frozen=True)
class Radon:
    """Mean over every detector bin of the line integrals through a slice, exact for images that are constant in a cell.

    A cell's shadow on the detector is a trapezoid, the convolution of the shadows of its two sides (Long, Fessler &
    Balter, IEEE Trans. Med. Imaging 29, 1839, 2010, in two dimensions). size: cells along the two axes `plane` of the
    lattice; spacing: their size along both, in the unit of bin_width; angles first_deg + span_deg · i / angles: few are
    sparse view, span_deg below 180 is limited angle. bins: 0 for as many as cover the slice's diagonal. Measurements
    are ``(B, *other axes, angles, bins)``, image value times length.
    """

    size: tuple[int, int]
    angles: int
    span_deg: float = 180.0
    first_deg: float = 0.0
    bins: int = 0
    bin_width: float = 1.0
    spacing: tuple[float, float] = (1.0, 1.0)
    plane: tuple[int, int] = (0, 1)
    complex_image: ClassVar[bool] = False

    def forward(self, image: Tensor) -> Tensor:
        slices = image.movedim([axis + 1 for axis in self.plane], [-2, -1])
        flat, bins, views = slices.flatten(-2), self.num_bins, []
        for index, weight in shadows(self):
            terms = (flat[..., None] * weight.to(flat)).flatten(-2)  # (B, *others, cells * K)
            views.append(flat.new_zeros(*flat.shape[:-1], bins).index_add(-1, index.flatten().to(flat.device), terms))
        return torch.stack(views, -2)

    def adjoint(self, measurement: Tensor) -> Tensor:
        total: Tensor | None = None
        for (index, weight), view in zip(shadows(self), measurement.unbind(-2)):
            part = (view[..., index.to(view.device)] * weight.to(view)).sum(-1)  # (B, *others, cells)
            total = part if total is None else total + part
        assert total is not None
        return total.unflatten(-1, self.size).movedim([-2, -1], [axis + 1 for axis in self.plane])

    @property
    def num_bins(self) -> int:
        diagonal = math.hypot(*(n * s for n, s in zip(self.size, self.spacing)))
        return self.bins or math.ceil(diagonal / self.bin_width) + 1

    @classmethod
    def example(cls, lattice: Sequence[int], generator: torch.Generator) -> Self:
        return cls((lattice[-2], lattice[-1]), angles=5, span_deg=150.0, first_deg=7.0, spacing=(1.0, 1.3),
                   plane=(len(lattice) - 2, len(lattice) - 1))


@lru_cache(maxsize=8)
def shadows(scan: Radon) -> list[tuple[Tensor, Tensor]]:
    """Per angle: the bins ``(cells, K)`` that a cell's shadow meets, and its share of them, float64; 0 off the
    detector."""
    x, y = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * s for n, s in zip(scan.size, scan.spacing))
    found, bins, width = [], scan.num_bins, scan.bin_width
    for i in range(scan.angles):
        angle = math.radians(scan.first_deg + scan.span_deg * i / scan.angles)
        sides = sorted(max(abs(s * f(angle)), SMALLEST * width) for s, f in zip(scan.spacing, (math.cos, math.sin)))
        place = (x[:, None] * math.cos(angle) + y * math.sin(angle)).flatten()[:, None]  # (cells, 1)
        first = torch.floor((place - sum(sides) / 2) / width + bins / 2)
        index = first + torch.arange(math.ceil(sum(sides) / width) + 1)
        edge = (index - bins / 2) * width - place
        share = _below(edge + width, *sides) - _below(edge, *sides)
        weight = share * math.prod(scan.spacing) / width
        found.append((index.clamp(0, bins - 1).long(), weight.where((index >= 0) & (index < bins), 0.0)))
    return found


def _below(t: Tensor, short: float, long: float) -> Tensor:
    """Share of a trapezoid's area to the left of t: the integral of the convolution of two boxes of these widths."""
    t = t.clamp(-(short + long) / 2, (short + long) / 2)
    total = torch.zeros_like(t)
    for sign, edge in ((1, -(short + long) / 2), (-1, -(long - short) / 2), (-1, (long - short) / 2)):
        total = total + sign * (t - edge).clamp_min(0) ** 2
    return total / (2 * short * long)


PLUGIN = Radon
