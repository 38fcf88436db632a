"""Training losses in link space. Each returns one value per sample, or per packed segment, never a mean over them.

`prediction` and `target` are ``(B, …)`` in normalised units; `mask` broadcasts to them: bool, True where a cell counts,
or non-negative weights. A sample in which nothing counts has loss 0 and no gradient. All have the floor 0 at truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from sciml.tokens import TokenBatch

STUDENT_T = "student_t"
"""The head whose outputs are the parameters of a t distribution, named `STUDENT_T_OUTPUTS`."""
STUDENT_T_OUTPUTS = ("loc", "log_scale", "log_df")
LEAST_LOG_SCALE, MOST_LOG_DF = math.log(1e-3), 10.0
"""What lies beyond is taken as these: no sharper distribution is rewarded. A target's value is (truth, these two)."""


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


def student_t_surprise(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``: mean over cells of the negative log-likelihood of the value ``(…, 1)`` less its least, that
    of the sharpest distribution allowed, at the truth.

    −ln p = ln Γ(ν/2) − ln Γ((ν + 1)/2) + ½ ln πν + ln σ + (ν + 1)/2 ln(1 + z²/ν) with z = (y − μ)/σ; at z = 0 it grows
    with σ and falls with ν. Source: Lange, Little & Taylor, J. Am. Stat. Assoc. 84 (1989). Computed in float64.

    >>> there, sharpest = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[3.0, LEAST_LOG_SCALE, MOST_LOG_DF]])
    >>> student_t_surprise(sharpest, torch.tensor([[3.0]]), there).item()
    0.0
    """
    loc, log_scale, log_df = prediction.double().unbind(-1)
    log_scale, df = log_scale.clamp_min(LEAST_LOG_SCALE), 2 + log_df.clamp_max(MOST_LOG_DF).exp()
    z = (value.double()[..., 0] - loc) / log_scale.exp()
    cells = _at_mode(df) + log_scale + (df + 1) / 2 * torch.log1p(z.square() / df)
    least = _at_mode(torch.full_like(df, 2 + math.exp(MOST_LOG_DF))) + LEAST_LOG_SCALE
    cells = (cells - least).to(prediction)[..., None]  # never negative: its mean is its mean absolute value
    return mae(cells, torch.zeros_like(cells), mask, segments)


def student_t_quantiles(prediction: Tensor, levels: Sequence[float]) -> Tensor:
    """``(…, A)`` of the distributions ``(…, 3)`` at these levels."""
    loc, log_scale, log_df = prediction.detach().cpu().double().unbind(-1)
    df = 2 + log_df.clamp_max(MOST_LOG_DF).exp()
    t = torch.from_numpy(stdtrit(df[..., None].numpy(), np.asarray(levels, np.float64)))
    return (loc[..., None] + log_scale.clamp_min(LEAST_LOG_SCALE).exp()[..., None] * t).to(prediction)


def _at_mode(df: Tensor) -> Tensor:
    """−ln p of the standard distribution at 0."""
    return torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + (math.pi * df).log() / 2
