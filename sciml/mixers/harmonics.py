"""Functions on the sphere: real harmonics up to degree 3 and a quadrature that is exact for products of three."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

HIGHEST = 2
"""Degree up to which the quadrature integrates products of three harmonics exactly (3 · 2 ≤ 7)."""


def harmonics(direction: Tensor, degree: int) -> Tensor:
    """``(..., 3)`` unit vectors → ``(..., (degree + 1)²)`` real spherical harmonics, Σ_m Y_lm² = 2l + 1, degree ≤ 2.

    >>> harmonics(torch.tensor([0.0, 0.0, 1.0]), 2).round(decimals=3).tolist()
    [1.0, 0.0, 0.0, 1.7319999933242798, 0.0, 0.0, 0.0, 0.0, 2.2360000610351562]
    """
    if degree == 0:
        return torch.ones_like(direction[..., :1])
    extended = torch.nn.functional.pad(direction, (1, 0), value=1.0)  # (1, x, y, z)
    if degree == 1:
        return extended * extended.new_tensor([1.0, *[3**0.5] * 3])
    products = (extended[..., None] * extended[..., None, :]).flatten(-2)
    return products @ _quadratic_forms(direction.dtype, direction.device)


@cache
def _quadratic_forms(dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(16, 9)``: the harmonics up to degree 2 as combinations of the products of (1, x, y, z)."""
    made, s, t = torch.zeros(9, 4, 4, dtype=torch.float64), 15**0.5 / 2, 5**0.5 / 2
    made[0, 0, 0] = 1
    for k in range(3):
        made[1 + k, 0, 1 + k] = 3**0.5
    for m, (i, j) in zip((4, 5, 6), ((1, 2), (2, 3), (1, 3))):
        made[m, i, j] = made[m, j, i] = s
    made[7].diagonal().copy_(torch.tensor([0.0, s, -s, 0.0], dtype=torch.float64))
    made[8].diagonal().copy_(torch.tensor([0.0, -t, -t, 2 * t], dtype=torch.float64))
    return made.view(9, 16).T.to(device, dtype).contiguous()


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
