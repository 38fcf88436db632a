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
                    floor: float | None = None) -> Solution:
    """The image that minimises ½‖A x − y‖² + weight · Σ |∇x|, |∇x| over all axes of a cell (isotropic), by the
    primal-dual method of Chambolle & Pock (J. Math. Imaging Vis. 40, 120, 2011, Algorithm 1).

    ∇: forward differences in cells, none across the border. floor: the least value that the (real) image may have.
    Starts from the adjoint over ‖A‖²; both step sizes are 0.99 / √(‖A‖² + 4 axes).
    """
    with torch.no_grad():
        start = observation.adjoint(measurement)
        size = norm(observation, start).max() * 1.05  # the power iteration comes from below
        image = start / size.square().clamp_min(1e-12)
        step = 0.99 / float((size.square() + 4 * (start.ndim - 1)).sqrt())
        ahead, fit, dual = image, torch.zeros_like(measurement), torch.zeros_like(slopes(image))
        for _ in range(iterations):
            fit = (fit + step * (observation.forward(ahead) - measurement)) / (1 + step)
            dual = dual + step * slopes(ahead)
            dual = dual / (lengths(dual) / weight).clamp_min(1).unsqueeze(1) if weight > 0 else dual * 0
            later = image - step * (observation.adjoint(fit) + divergence_adjoint(dual))
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
