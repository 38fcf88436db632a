"""What a learned restoration is held against: the adjoint (zero-filled, back-projected), least squares by gradient
descent, and total variation, for any observation. Images are ``(B, *lattice)`` tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.observations.contract import Observation, gradient, inner, norm


@dataclass(frozen=True)
class Solution:
    """image: ``(B, *lattice)``; dual: ``(B, axes, *lattice)``, of length at most the weight, the slopes'
    multipliers."""

    image: Tensor
    dual: Tensor


def least_squares(observation: Observation, measurement: Tensor, image: Tensor, steps: int,
                  step: Tensor | float) -> Tensor:
    """`steps` of gradient descent on ½‖A x − y‖² from `image`; step: ``(B,)`` or one, below 2 / ‖A‖²."""
    size = torch.as_tensor(step, dtype=image.real.dtype, device=image.device).view(-1, *[1] * (image.ndim - 1))
    for _ in range(steps):
        image = image - size * gradient(observation, image, measurement)
    return image


def total_variation(observation: Observation, measurement: Tensor, weight: float, *, iterations: int = 200,
                    floor: float | None = None, start: Tensor | None = None, step: float | None = None,
                    imaginary: float = 0.0) -> Solution:
    """The image that minimises ½‖A x − y‖² + weight · Σ |∇x| + ½ imaginary · ‖Im x‖², |∇x| over all axes of a cell
    (isotropic), by the primal-dual method of Condat (J. Optim. Theory Appl. 158, 460, 2013, Algorithm 3.1) and Vũ.

    ∇: forward differences in cells, none across the border. floor: the least value that the (real) image may have.
    start: from where, else the adjoint over ‖A‖². step: of the image, at most 1 / ‖A‖², which is found if it isn't
    given; that of the dual is 1 / (8 axes step).
    """
    with torch.no_grad():
        back = observation.adjoint(measurement)
        if step is None:
            step = 1 / max((float(norm(observation, back).max()) * 1.05) ** 2, 1e-12)  # power iteration: from below
        image = back * step if start is None else start
        rise = 1 / (8 * (image.ndim - 1) * step)
        ahead, dual = image, torch.zeros_like(slopes(image))
        for _ in range(iterations):
            dual = dual + rise * slopes(ahead)
            dual = dual / (lengths(dual) / weight).clamp_min(1).unsqueeze(1) if weight > 0 else dual * 0
            later = image - step * (gradient(observation, image, measurement) + divergence_adjoint(dual))
            if imaginary:
                later = torch.complex(later.real, later.imag / (1 + step * imaginary))
            if floor is not None:
                later = later.clamp_min(floor)
            image, ahead = later, 2 * later - image
    return Solution(image, dual)


def optimality(observation: Observation, measurement: Tensor, weight: float, found: Solution) -> tuple[Tensor, Tensor]:
    """Two ``(B,)`` numbers that are zero at the minimum without a floor: ‖A*(A x − y) + ∇*q‖ / ‖A*y‖, and
    (weight Σ |∇x| − Re⟨q, ∇x⟩) / (weight Σ |∇x|), which is never negative for a dual q of length at most the weight."""
    x, q = found.image, found.dual
    off = gradient(observation, x, measurement) + divergence_adjoint(q)
    start = observation.adjoint(measurement)
    total = weight * lengths(slopes(x)).flatten(1).sum(1)
    return (inner(off, off) / inner(start, start)).sqrt(), (total - inner(q, slopes(x))) / total.clamp_min(1e-30)


def slopes(image: Tensor) -> Tensor:
    """``(B, axes, *lattice)`` forward differences; zero at the last cell of an axis.

    >>> slopes(torch.tensor([[1.0, 3.0, 6.0]])).tolist()
    [[[2.0, 3.0, 0.0]]]
    """
    parts = []
    for dim in range(1, image.ndim):
        parts.append(torch.cat([image.diff(dim=dim), torch.zeros_like(image.narrow(dim, 0, 1))], dim))
    return torch.stack(parts, 1)


def divergence_adjoint(field: Tensor) -> Tensor:
    """The adjoint of `slopes`: minus the divergence, ``(B, *lattice)``."""
    total = torch.zeros_like(field[:, 0])
    for dim, part in enumerate(field.unbind(1), start=1):
        inside = part.narrow(dim, 0, part.shape[dim] - 1)
        edge = torch.zeros_like(part.narrow(dim, 0, 1))
        total = total + torch.cat([edge, inside], dim) - torch.cat([inside, edge], dim)
    return total


def lengths(field: Tensor) -> Tensor:
    """``(B, *lattice)`` of the vectors of a field, both parts of complex ones counted."""
    return field.abs().square().sum(1).sqrt()
