"""What a block divides by: the size of each token, that of a sample's whole lattice, or nothing."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sciml.kernels.fused import EPSILON, scaled_norm
from sciml.mixers.geometry import Geometry
from sciml.mixers.rows import both_ways

Norm = Literal["token", "sample", "bounded"]
BOUND = 1.0
"""Root mean square that what a feed-forward layer adds to a token doesn't exceed where blocks divide by nothing."""


def prepare(geometry: Geometry, norm: Norm) -> None:
    """Make the geometry's table of shares ahead: it is asked what weighs alike, which no compiled block can be."""
    if axes := _pooled(geometry, norm):
        _shares(geometry, axes)


def normed(x: Tensor, scale: Tensor, shift: Tensor, geometry: Geometry, norm: Norm) -> Tensor:
    """x / rms · scale + shift, x ``(B, *lattice, C)``, scale and shift broadcast to it.

    ``token``: rms over the channels of each token (Zhang & Sennrich, "Root mean square layer normalization", 2019).
    ``sample``: over these and over all axes that are read in both directions, weighted by their quadrature; what is
    large in one place and small in another stays so, which a state of a partial differential equation needs, whose
    rates of change grow with what is there (docs/design/0031-norm.md).
    ``bounded``: by nothing. Blocks stay nearly polynomials of the state, which hold beyond the sizes that they were
    trained at; what keeps them from running away there is `bound` (docs/design/0035-bounded.md).
    """
    if norm == "bounded":
        return torch.addcmul(shift, x, scale)
    axes = _pooled(geometry, norm)
    if not axes:
        return scaled_norm(x, scale, shift)
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return torch.addcmul(shift, x, scale * _mean_square(x, geometry, axes).add(EPSILON).rsqrt())


def unit(x: Tensor, geometry: Geometry, norm: Norm) -> Tensor:
    """x / rms, as in `normed`: what heads read. With ``bounded`` they read x."""
    if norm == "bounded":
        return x
    axes = _pooled(geometry, norm)
    return x * _mean_square(x, geometry, axes).add(EPSILON).rsqrt() if axes else F.rms_norm(x, x.shape[-1:])


def bound(y: Tensor, norm: Norm) -> Tensor:
    """With ``bounded`` y / √(1 + mean y² / BOUND²), the mean over a token's channels: y itself where it is small, never
    larger than BOUND. Otherwise y, since what it was made of had been divided."""
    return scaled_norm(y, y.new_full((1,), BOUND), eps=BOUND**2) if norm == "bounded" else y


def _pooled(geometry: Geometry, norm: Norm) -> list[int]:
    return [i for i, axis in enumerate(geometry.axes) if both_ways(axis)] if norm == "sample" else []


def _mean_square(x: Tensor, geometry: Geometry, axes: list[int]) -> Tensor:
    """``(B, *lattice, 1)`` with size 1 along the axes that it is over."""
    shares = _shares(geometry, axes)
    if not shares:
        return x.square().mean((*(i + 1 for i in axes), -1), keepdim=True)
    total = x.square().mean(-1, keepdim=True)
    for index, share in shares.items():
        shape = [share.shape[0], *[1] * len(geometry.axes), 1]
        shape[index + 1] = share.shape[1]
        total = (total * share.view(shape)).sum(index + 1, keepdim=True)
    return total


def _shares(geometry: Geometry, axes: list[int]) -> dict[int, Tensor]:
    """Axis → ``(B or 1, n)`` of its quadrature that a token has; nothing where all tokens have the same."""
    def make() -> dict[int, Tensor]:
        weights = {index: geometry.axes[index].weights() for index in axes}
        known = not torch.compiler.is_exporting()  # an exported graph can't ask, and its shares always enter
        if known and all(torch.allclose(w, w[:, :1].expand_as(w), rtol=1e-4, atol=0) for w in weights.values()):
            return {}
        return {index: w / w.sum(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny) for index, w in weights.items()}

    return geometry.once(("shares", tuple(axes)), make)
