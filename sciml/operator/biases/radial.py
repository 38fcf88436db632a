"""A smooth function of the distance between two points, per head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.tokens import Axis

NUM_BASIS = 16
CUTOFF = 1.0


class Radial(nn.Module):
    """Gaussians of r = |x_i − x_j| (reference lengths), through a linear map to one value per head (a constant would
    drop out of the softmax).

    r² is offset by a tiny constant so that the derivative at coincident points (i = j) exists; distances in a periodic
    cell are to the nearest image.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_BASIS, heads, bias=False)
        self.register_buffer("centers", torch.linspace(0, CUTOFF, NUM_BASIS), persistent=False)

    def forward(self, axis: Axis) -> Tensor:
        """``(1, H, n, n)``"""
        difference = axis.coord[:, :, None, :] - axis.coord[:, None, :, :]
        if axis.period is not None:
            difference = _nearest_image(difference, axis.period)
        distance = (difference.square().sum(-1) + 1e-8).sqrt()
        centers: Tensor = self.centers  # type: ignore[assignment]
        basis = torch.exp(-((distance[..., None] - centers.to(distance.dtype)) * (NUM_BASIS / CUTOFF)).square())
        return self.linear(basis).permute(0, 3, 1, 2)


def _nearest_image(difference: Tensor, period: Tensor) -> Tensor:
    if period.ndim == 1:
        return difference - period * (difference / period).round()
    fractional = difference @ torch.linalg.inv(period)[:, None]
    return (fractional - fractional.round()) @ period[:, None]


PLUGIN = Radial
