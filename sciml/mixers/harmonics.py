"""Functions on the sphere: real harmonics up to degree 3 and a quadrature that is exact for products of three."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

HIGHEST = 2
"""Degree up to which the quadrature integrates products of three harmonics exactly (3 · 2 ≤ 7)."""


def harmonics(direction: Tensor, degree: int) -> Tensor:
    """``(..., 3)`` unit vectors → ``(..., (degree + 1)²)`` real spherical harmonics, Σ_m Y_lm² = 2l + 1, degree ≤ 2.

    >>> harmonics(torch.tensor([0.0, 0.0, 1.0]), 2).round(decimals=3).tolist()
    [1.0, 0.0, 0.0, 1.7319999933242798, 0.0, 0.0, 0.0, 0.0, 2.2360000610351562]
    """
    parts = [torch.ones_like(direction[..., :1])]
    if degree >= 1:
        parts.append(3**0.5 * direction)
    if degree >= 2:
        x, y, z = direction.unbind(-1)
        s = 15**0.5
        parts.append(torch.stack([s * x * y, s * y * z, s * x * z, s / 2 * (x * x - y * y),
                                  5**0.5 / 2 * (3 * z * z - 1)], -1))
    return torch.cat(parts, -1)


def degrees(degree: int) -> Tensor:
    """``((degree + 1)²,)`` the degree of every harmonic."""
    return torch.cat([torch.full((2 * n + 1,), n) for n in range(degree + 1)])


def lebedev() -> tuple[Tensor, Tensor]:
    """26 directions ``(26, 3)`` and weights that sum to 1, exact for polynomials of degree 7: the vertices, edges' and
    faces' centres of an octahedron (Lebedev, Zh. Vychisl. Mat. Mat. Fiz. 16, 293, 1976)."""
    points, weights = [], []
    for nonzero, weight in ((1, 1 / 21), (2, 4 / 105), (3, 9 / 280)):
        for places in itertools.combinations(range(3), nonzero):
            for signs in itertools.product((1.0, -1.0), repeat=nonzero):
                point = [0.0, 0.0, 0.0]
                for place, sign in zip(places, signs):
                    point[place] = sign * nonzero**-0.5
                points.append(point)
                weights.append(weight)
    return torch.tensor(points, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
