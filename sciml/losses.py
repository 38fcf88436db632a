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

from sciml.tokens import Axis, TokenBatch

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


def relative_l1(prediction: Tensor, target: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``Σ |p − t| / Σ |t|`` over the cells of each channel (last dimension), mean over channels that count.

    Weighs a few large errors (at a shock that is a cell off) less than squares do. A channel whose target is zero
    everywhere is measured against 1e-6 per cell. ``(B,)`` or ``(S,)``. Source: as in Poseidon, Herde et al., NeurIPS
    2024.

    >>> there = torch.ones(1, 2, 1, dtype=torch.bool)
    >>> relative_l1(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0], [-3.0]]]), there).tolist()
    [1.25]
    """
    weight = mask.to(prediction.dtype).expand_as(prediction)
    count = _total(weight, segments)
    error = _total(weight * (prediction - target).abs(), segments)
    size = _total(weight * target.abs(), segments).clamp_min(1e-6 * count.clamp_min(1.0))
    counts = (count > 0).to(prediction.dtype)
    return (error / size * counts).sum(-1) / counts.sum(-1).clamp_min(1.0)


def relative_h1(prediction: Tensor, target: Tensor, mask: Tensor, axes: Sequence[Axis]) -> Tensor:
    """``√(Σ (e² + Σ_i (∂_i e)²) / Σ (t² + Σ_i (∂_i t)²))``, e = p − t ``(B, *lattice, C)``, over the cells of each
    channel, mean over channels that count: ``(B,)``.

    Derivatives are along the axes of space, in reference lengths (`slope`); cells whose neighbours don't count have
    none. Source: the Sobolev norm as a loss is of Czarnecki et al., "Sobolev training for neural networks", NeurIPS
    2017; of operators, Li et al., "Learning dissipative dynamics in chaotic systems", NeurIPS 2022.
    """
    known = mask.expand_as(prediction)
    error = torch.where(known, prediction - target, 0.0)
    truth = torch.where(known, target, 0.0)
    count = _total(known.to(prediction.dtype), None)
    above, below = _total(error**2, None), _total(truth**2, None)
    for place, axis in enumerate(axes):
        if axis.kind == "space" and axis.size > 1:
            above = above + _total(slope(error, known, place + 1, axis) ** 2, None)
            below = below + _total(slope(truth, known, place + 1, axis) ** 2, None)
    ratio = above / below.clamp_min(1e-12 * count.clamp_min(1.0))
    counts = (count > 0).to(prediction.dtype)
    root = ratio.clamp_min(torch.finfo(prediction.dtype).tiny).sqrt()
    return (root * counts).sum(-1) / counts.sum(-1).clamp_min(1.0)


def slope(x: Tensor, known: Tensor, dim: int, axis: Axis) -> Tensor:
    """∂x along a lattice dimension: exact for waves on even periodic axes, where a sample's channel has no gaps, else
    from the neighbours at their coordinates (second order inside, first at ends); 0 where one of them isn't known.

    >>> from sciml.tokens import space
    >>> x = torch.tensor([0.0, 1.0, 4.0]).view(1, 3, 1)
    >>> slope(x, torch.ones_like(x) > 0, 1, space("x", torch.tensor([0.0, 1.0, 2.0])))[0, :, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    place, period = axis.coord[0, :, 0], None if axis.period is None else float(axis.period.flatten()[0])
    whole = known.flatten(1, -2).all(1).view(len(x), *(1,) * (x.ndim - 2), -1)
    if period is not None and _even(place, period):
        n = axis.size
        k = torch.arange(n // 2 + 1, device=x.device)
        wave = torch.where(2 * k == n, 0, k).to(x.dtype) * (2 * math.pi / period)
        shape = [-1 if d == dim else 1 for d in range(x.ndim)]
        waves = torch.fft.irfft(torch.fft.rfft(x, dim=dim) * 1j * wave.view(shape), n=n, dim=dim)
        if bool(whole.all()):
            return waves
        return torch.where(whole, waves, _differences(x, known, dim, place, period))
    return _differences(x, known, dim, place, period)


def _even(place: Tensor, period: float) -> bool:
    return bool(((place.diff() - period / len(place)).abs() <= 1e-3 * period / len(place)).all())


def _differences(x: Tensor, known: Tensor, dim: int, place: Tensor, period: float | None) -> Tensor:
    if period is not None:
        ends = [slice(-1, None), slice(None), slice(0, 1)]
        x, known = (torch.cat([t.movedim(dim, 0)[end] for end in ends]).movedim(0, dim) for t in (x, known))
        place = torch.cat([place[-1:] - period, place, place[:1] + period])
    (found,) = torch.gradient(x, spacing=(place,), dim=dim)
    along = known.movedim(dim, 0)
    beside = torch.cat([along[:1], along[:-1]]) & along & torch.cat([along[1:], along[-1:]])
    found = torch.where(beside.movedim(0, dim), found, 0.0)
    return found if period is None else found.movedim(dim, 0)[1:-1].movedim(0, dim)


def log_spectrum(prediction: Tensor, target: Tensor, mask: Tensor, axes: Sequence[Axis], floor: float = 1e-8) -> Tensor:
    """``mean_k (ln (P_k + ε) − ln (T_k + ε))²`` over the shells k ≥ 1 of the periodic axes, up to the lowest Nyquist
    wavenumber, P and T the power there, ε = `floor` times the truth's mean; mean over channels, ``(B,)``.

    Compares how much there is at every scale, not where: for beside a loss of the fields. Samples with gaps give 0.
    Raises ValueError without a periodic axis. Source: after Chakraborty, Mohan & Maulik, "Binned spectral power loss
    for improved prediction of chaotic systems", 2025.
    """
    dims = [place + 1 for place, axis in enumerate(axes) if axis.kind == "space" and axis.period is not None
            and axis.size > 2]
    if not dims:
        raise ValueError("a spectrum needs a periodic axis of space")
    periods = [float(axes[d - 1].period.flatten()[0]) for d in dims]  # type: ignore[union-attr]
    sizes = [prediction.shape[d] for d in dims]
    cycles = [torch.fft.fftfreq(n, 1 / n) * max(periods) / p for n, p in zip(sizes, periods)]
    waves = torch.meshgrid(*cycles, indexing="ij")
    shell = torch.stack([w**2 for w in waves]).sum(0).sqrt().round().long().flatten().to(prediction.device)
    limit = int(min(n // 2 * max(periods) / p for n, p in zip(sizes, periods)))

    def power(x: Tensor) -> Tensor:
        square = torch.fft.fftn(x, dim=dims, norm="forward").abs().square()
        square = square.movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)  # (waves, B, others, C)
        square = square.flatten(2, -2).mean(2) if square.ndim > 3 else square
        shells = square.new_zeros(int(shell.max()) + 1, *square.shape[1:]).index_add(0, shell, square)
        return shells[1: limit + 1]

    ours, theirs = power(prediction), power(target)
    least = floor * theirs.mean(0).clamp_min(torch.finfo(theirs.dtype).tiny / floor)
    each = ((ours + least).log() - (theirs + least).log()).square().mean(0).mean(-1)
    return each * mask.expand_as(prediction).flatten(1).all(1).to(each.dtype)


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
