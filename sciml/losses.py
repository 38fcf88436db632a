"""Training losses in link space. Each returns one value per sample, or per packed segment, never a mean over them.

`prediction` and `target` are ``(B, …)`` in normalised units; `mask` broadcasts to them: bool, True where a cell counts,
or non-negative weights. A sample in which nothing counts has loss 0 and no gradient. All have the floor 0 at truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Segments:
    """Packed samples along dimension `dim` of a ``(1, *lattice, C)`` tensor: ``(n,)`` whose each cell is, how many."""

    index: Tensor
    count: int
    dim: int

    @classmethod
    def of(cls, batch: TokenBatch) -> Segments | None:
        """Of a batch with a packed axis; None if every row is a sample."""
        packed = batch.packed_axis
        if packed is None:
            return None
        index = batch.axes[packed].segment
        assert index is not None
        return cls(index[0], batch.num_segments, packed + 1)

    def total(self, cells: Tensor) -> Tensor:
        """Sum over everything but the segments and the last dimension: ``(count, C)``."""
        rows = cells.movedim(self.dim, 0)
        rows = rows.reshape(len(rows), -1, rows.shape[-1]).sum(1)
        return rows.new_zeros((self.count, rows.shape[-1])).index_add(0, self.index, rows)


def mse(prediction: Tensor, target: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """Mean of ``(p − t)²`` over the cells and channels that count, ``(B,)`` or ``(S,)``.

    >>> mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 9.0]]), torch.tensor([[True, False]])).tolist()
    [1.0]
    """
    return _mean((prediction - target) ** 2, mask, segments)


def mae(prediction: Tensor, target: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """Mean of ``|p − t|`` over the cells and channels that count, ``(B,)`` or ``(S,)``."""
    return _mean((prediction - target).abs(), mask, segments)


def relative_l2(prediction: Tensor, target: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``√(Σ (p − t)² / Σ t²)`` over the cells of each channel (last dimension), mean over channels that count.

    The loss of Li et al., "Fourier Neural Operator", ICLR 2021, for one channel. A channel whose target is zero
    everywhere is measured against 1e-6 per cell. ``(B,)`` or ``(S,)``.
    """
    weight = mask.to(prediction.dtype).expand_as(prediction)
    count = _total(weight, segments)
    error = _total(weight * (prediction - target) ** 2, segments)
    power = _total(weight * target**2, segments).clamp_min(1e-12 * count.clamp_min(1.0))
    # a clamp passes no gradient below its bound: the root has none that is infinite at a perfect prediction
    ratio = (error / power).clamp_min(torch.finfo(prediction.dtype).tiny).sqrt()
    counts = (count > 0).to(prediction.dtype)
    return (ratio * counts).sum(-1) / counts.sum(-1).clamp_min(1.0)


def poisson(log_rate: Tensor, count: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """Mean of ``λ − y + y (log y − log λ)`` in nats, half the Poisson deviance (McCullagh & Nelder 1989, §2.3).

    Equals the negative log-likelihood less that of λ = y. ``(B,)`` or ``(S,)``.
    """
    return _mean(log_rate.exp() - count + torch.xlogy(count, count) - count * log_rate, mask, segments)


def _total(cells: Tensor, segments: Segments | None) -> Tensor:
    """``(B or S, C)``: summed over what is between the first and the last dimension."""
    if segments is not None:
        return segments.total(cells)
    return cells if cells.ndim <= 2 else cells.flatten(1, -2).sum(1)


def _mean(cells: Tensor, mask: Tensor, segments: Segments | None) -> Tensor:
    cells = cells[:, None] if cells.ndim == 1 else cells
    mask = mask[:, None] if mask.ndim == 1 and cells.ndim == 2 else mask
    weight = mask.to(cells.dtype).expand_as(cells)
    total, norm = _total(weight * cells, segments).sum(-1), _total(weight, segments).sum(-1)
    return total / torch.where(norm > 0, norm, torch.ones_like(norm))
