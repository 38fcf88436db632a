"""Means over the cells of one grid from those of another, as finite volumes need them; differentiable."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def _weights(factor: int) -> Tensor:
    """``(factor, 5)``: means over the parts of a cell from those of five cells, the cell in the middle: differences of
    the polynomial of degree five through the integrals up to their six edges; they average to the cell's own mean."""
    edges = np.arange(6) - 2.5
    parts = np.linspace(-0.5, 0.5, factor + 1)
    lagrange = np.linalg.solve(np.vander(edges).T, np.vander(parts, 6).T).T
    steps = factor * np.diff(lagrange, axis=0)
    with torch.inference_mode(False):
        return torch.from_numpy(np.stack([steps[:, i + 1:].sum(1) for i in range(5)], 1))


def finer(means: Tensor, factor: int, periodic: tuple[bool, bool]) -> Tensor:
    """Of parts of cells ``(…, factor n, factor m)``, from means over cells ``(…, n, m)``: of order five where they are
    smooth; at ends as if mirrored, as at a wall without flux. The means of the parts are those of the cells.

    >>> cells = torch.cos(2 * torch.pi * (torch.arange(16).double() + 0.5) / 16).expand(4, 16)
    >>> parts = finer(cells, 3, (False, True))
    >>> bool((coarser(parts, 3) - cells).abs().max() < 1e-12), parts.shape
    (True, torch.Size([12, 48]))
    """
    if factor == 1:
        return means
    weights = _weights(factor).to(means)
    for wraps in reversed(periodic):  # the last axis, and by turning the one before
        low, high = (means[..., -2:], means[..., :2]) if wraps else (means[..., :2].flip(-1), means[..., -2:].flip(-1))
        windows = torch.cat([low, means, high], -1).unfold(-1, 5, 1)
        means = (windows @ weights.T).flatten(-2).transpose(-1, -2)
    return means


def coarser(means: Tensor, factor: int) -> Tensor:
    """Over cells `factor` times as long in both directions: ``(…, n, m)`` → ``(…, n / factor, m / factor)``."""
    if factor == 1:
        return means
    return means.unflatten(-1, (-1, factor)).mean(-1).unflatten(-2, (-1, factor)).mean(-2)
