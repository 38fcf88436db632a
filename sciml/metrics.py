"""Scores, in float64 and physical units. Each formula is defined here once, with its source.

Field and series scores take `prediction` and `truth` of equal shape, keep the first `keep` dimensions (1: one value per
sample) and reduce over all others at once. Cells where the truth is NaN are missing and don't count; a prediction that
is NaN where the truth is known makes the score NaN. Of nothing, every score is NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

Array = np.ndarray[Any, Any]
NEGLIGIBLE = 1e-12
"""Share of a spectrum's power, mean included, that a computation in float32 doesn't reach: some hundred roundings of
2⁻²⁴ leave an error of 10⁻⁶ of the field, white, of which every shell has a part."""


def mse(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """Mean squared error, ``mean (p − t)²``, in the unit squared. Lower is better; null: the variance of the truth.

    >>> mse([[1.0, 2.0]], [[1.0, 4.0]]).tolist()
    [2.0]
    """
    p, t, known = _flat(prediction, truth, keep)
    return _ratio(_sum((p - t) ** 2, known), known.sum(-1))


def rmse(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """Root of the mean squared error, in the unit. Root after the mean over cells, so keep channels apart: per
    sample and channel, each in its own unit. Null: the standard deviation of the truth."""
    return np.sqrt(mse(prediction, truth, keep=keep))


def mae(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """Mean absolute error, ``mean |p − t|``, in the unit. Null: the mean absolute deviation of the truth."""
    p, t, known = _flat(prediction, truth, keep)
    return _ratio(_sum(np.abs(p - t), known), known.sum(-1))


def relative_l2(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """``√(Σ (p − t)² / Σ t²)``, unit 1; null: 1 (predicting zero). Per sample, then mean over samples.

    Zero over zero is 0, anything else over zero is infinite. Source: Li et al., ICLR 2021.
    """
    p, t, known = _flat(prediction, truth, keep)
    return _ratio(_sum((p - t) ** 2, known), _sum(t**2, known), empty=~known.any(-1)) ** 0.5


def wape(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """Weighted absolute percentage error ``Σ |p − t| / Σ |t|``, unit 1; null: 1 (predicting zero). Sums run over
    everything that isn't kept before the division. Source: Hyndman & Koehler, Int. J. Forecasting 22 (2006)."""
    p, t, known = _flat(prediction, truth, keep)
    return _ratio(_sum(np.abs(p - t), known), _sum(np.abs(t), known), empty=~known.any(-1))


def weighted_quantile_loss(prediction: ArrayLike, truth: ArrayLike, levels: Sequence[float], *, keep: int = 1) -> Array:
    """Mean over levels q of ``2 Σ ρ_q(t − p_q) / Σ |t|`` with ``ρ_q(e) = max(q e, (q − 1) e)``; unit 1; null: 1.

    prediction has the levels last. With the one level 0.5 it is `wape`. Source: Gasthaus et al., AISTATS 2019; GluonTS.
    """
    values = np.asarray(prediction, np.float64)
    losses = []
    for index, level in enumerate(levels):
        p, t, known = _flat(values[..., index], truth, keep)
        losses.append(_ratio(2 * _sum(_pinball(p, t, level), known), _sum(np.abs(t), known), empty=~known.any(-1)))
    return np.mean(losses, axis=0)


def _pinball(prediction: Array, truth: Array, level: float) -> Array:
    return np.maximum(level * (truth - prediction), (level - 1) * (truth - prediction))


def crps_of_quantiles(prediction: ArrayLike, truth: ArrayLike, levels: Sequence[float], *, keep: int = 1) -> Array:
    """Continuous ranked probability score, ``mean Σ w_k 2 ρ_q(t − p_q)`` over ascending levels q_k, in the unit; null:
    the mean absolute deviation of the truth.

    prediction has the levels last; w_k is the part of [0, 1] that is nearest to q_k. Of the one level 0.5 it is `mae`.
    Source: Laio & Tamea, Hydrol. Earth Syst. Sci. 11 (2007); Gneiting & Ranjan, J. Bus. Econ. Stat. 29 (2011).
    """
    values, q = np.asarray(prediction, np.float64), np.asarray(levels, np.float64)
    share = np.diff(np.concatenate([[0.0], (q[1:] + q[:-1]) / 2, [1.0]]))
    total = np.zeros(())
    for index, (level, weight) in enumerate(zip(q, share)):
        p, t, known = _flat(values[..., index], truth, keep)
        total = total + 2 * weight * _ratio(_sum(_pinball(p, t, level), known), known.sum(-1))
    return total


def coverage(low: ArrayLike, high: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """Share of the truths in [low, high], unit 1; best is what the interval promises."""
    bottom, t, known = _flat(low, truth, keep)
    top = _flat(high, truth, keep)[0]
    inside = np.where(np.isnan(bottom) | np.isnan(top), np.nan, (bottom <= t) & (t <= top))
    return _ratio(_sum(inside, known), known.sum(-1))


def interval_width(low: ArrayLike, high: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """``mean (high − low)`` where the truth is known, in the unit; lower is better at equal `coverage`."""
    bottom, _, known = _flat(low, truth, keep)
    return _ratio(_sum(_flat(high, truth, keep)[0] - bottom, known), known.sum(-1))


def interval_score(low: ArrayLike, high: ArrayLike, truth: ArrayLike, level: float, *, keep: int = 1) -> Array:
    """``mean (u − l) + 2/α ((l − t)₊ + (t − u)₊)`` with α = 1 − level, the coverage that [l, u] promises; in the unit.

    Lower is better; it is least at the quantiles α/2 and 1 − α/2. Source: Gneiting & Raftery, J. Am. Stat. Assoc. 102
    (2007), §6.2. Over the scale of `mase` it is the MSIS of Makridakis et al., Int. J. Forecasting 36 (2020).
    """
    bottom, t, known = _flat(low, truth, keep)
    top = _flat(high, truth, keep)[0]
    beyond = np.maximum(bottom - t, 0.0) + np.maximum(t - top, 0.0)
    return _ratio(_sum(top - bottom + 2 / (1 - level) * beyond, known), known.sum(-1))


def msis(low: ArrayLike, high: ArrayLike, truth: ArrayLike, history: ArrayLike, level: float, season: int = 1, *,
         keep: int = 1) -> Array:
    """`interval_score` over the mean ``|h_i − h_{i − season}|`` of `history`, as `mase`; unit 1."""
    return _over_naive(interval_score(low, high, truth, level, keep=keep), history, season)


def mase(prediction: ArrayLike, truth: ArrayLike, history: ArrayLike, season: int = 1, *, keep: int = 1) -> Array:
    """``mean |p − t|`` over the mean ``|h_i − h_{i − season}|`` along the last dimension of `history`; unit 1; null: 1.

    The scale is of the training history of each kept series, known pairs only; keep series apart, then mean over them.
    Source: Hyndman & Koehler 2006. A history with no change gives infinity (0 if the forecast is right).
    """
    return _over_naive(mae(prediction, truth, keep=keep), history, season)


def _over_naive(error: Array, history: ArrayLike, season: int) -> Array:
    past = np.asarray(history, np.float64)
    change = np.abs(past[..., season:] - past[..., :-season])
    known = np.isfinite(change)
    scale = _ratio(_sum(change, known), known.sum(-1))
    return _ratio(error, np.broadcast_to(scale, error.shape), empty=np.isnan(error) | np.isnan(scale))


def poisson_bits(rate: ArrayLike, count: ArrayLike, null_rate: ArrayLike, *, keep: int = 1,
                 floor: float = 1e-9) -> Array:
    """Bits per spike: log₂-likelihood of the rates less that of `null_rate` (the training mean per unit), per spike.

    Higher is better; null: 0; NaN without spikes. Rates are per bin and floored; models compare on equal bins only.
    Source: Pei et al., Neural Latents Benchmark, NeurIPS 2021 (co-smoothing).
    """
    model, spikes, known = _flat(rate, count, keep)
    null = _flat(np.broadcast_to(null_rate, np.shape(count)), count, keep)[0]
    model, null = np.maximum(model, floor), np.maximum(null, floor)
    gain = spikes * (np.log2(model) - np.log2(null)) - (model - null) / np.log(2)
    total = _sum(spikes, known)
    return _ratio(_sum(gain, known), total, empty=total == 0)


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the receiver operating characteristic of ``(N,)`` scores against bool labels: the chance that a
    positive scores higher than a negative, ties half. NaN unless there are both.
    Source: Hanley & McNeil, Radiology 143, 1982.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    scores, positive = np.asarray(score, np.float64), np.asarray(label, bool)
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return float("nan")
    rank = rankdata(scores)
    return float((rank[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, from the highest down: precision P and recall R of all that score as
    much. NaN without a positive. Source: Su, Yuan & Zhu, ICTIR 2015.

    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [False, False, True, True]), 4)
    0.8333
    """
    scores, positive = np.asarray(score, np.float64), np.asarray(label, bool)
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last]
    precision, recall = hits / (np.flatnonzero(last) + 1), hits / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def correlation(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 1) -> Array:
    """Pearson's correlation over the cells, unit 1, higher is better; null: 0. NaN if either is constant."""
    p, t, known = _flat(prediction, truth, keep)
    count = known.sum(-1)[..., None]
    dp, dt = p - _ratio(_sum(p, known)[..., None], count), t - _ratio(_sum(t, known)[..., None], count)
    pp, tt = _sum(dp**2, known), _sum(dt**2, known)
    constant = (pp <= 1e-24 * _sum(p**2, known)) | (tt <= 1e-24 * _sum(t**2, known))
    return _ratio(_sum(dp * dt, known), np.sqrt(pp * tt), empty=constant)


def correlation_time(correlations: ArrayLike, dt: float = 1.0, threshold: float = 0.8) -> Array:
    """Time for which ``(…, steps)`` correlations have stayed at or above the threshold, in the unit of dt.

    Steps are at dt, 2 dt, …; no interpolation; 0 if the first is below, steps · dt if none is. Higher is better. NaN
    counts as below. Source: Lippe et al., "PDE-Refiner", NeurIPS 2023 (high-correlation time).

    >>> float(correlation_time([0.99, 0.9, 0.7, 0.85], dt=0.5))
    1.0
    """
    values = np.asarray(correlations, np.float64)
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    return np.cumprod(values >= threshold, axis=-1).sum(-1) * dt


def gmean(errors: ArrayLike, *, axis: int = -1) -> Array:
    """Geometric mean of non-negative errors, as over the steps of a rollout; 0 if one is 0, NaN of nothing."""
    values = np.asarray(errors, np.float64)
    if values.shape[axis] == 0:
        return np.full(np.delete(values.shape, axis), np.nan)
    with np.errstate(divide="ignore"):
        return np.exp(np.log(values).mean(axis))


def power_spectrum(field: ArrayLike, periods: Sequence[float]) -> tuple[Array, Array]:
    """Isotropic power spectrum over the last ``len(periods)`` dimensions: ``(k,)`` and ``(…, k)``.

    Shell n holds the Fourier modes with ``n − ½ ≤ |k| L < n + ½``, k in cycles per length, L the longest period; the
    sum over shells is the mean square of the field, but for modes beyond the lowest Nyquist wavenumber: only complete
    shells are given. Unit: the field's, squared; k in radians per length. Source: Pope, Turbulent Flows (2000), §6.5.
    """
    values = np.asarray(field, np.float64)
    rank, longest = len(periods), max(periods)
    sizes = values.shape[-rank:]
    power = np.abs(np.fft.fftn(values, axes=range(-rank, 0), norm="forward")) ** 2
    waves = np.meshgrid(*(np.fft.fftfreq(n, p / n) * longest for n, p in zip(sizes, periods)), indexing="ij")
    shell = np.floor(np.sqrt(sum(w**2 for w in waves)) + 0.5).astype(int).ravel()
    limit = int(min(n // 2 * longest / p for n, p in zip(sizes, periods)))
    inside = shell <= limit
    flat = power.reshape(*values.shape[:-rank], -1)[..., inside]
    order = np.argsort(shell[inside], kind="stable")
    starts = np.searchsorted(shell[inside][order], np.arange(limit + 1))
    return 2 * np.pi * np.arange(limit + 1) / longest, np.add.reduceat(flat[..., order], starts, axis=-1)


def energy_spectrum(vorticity: ArrayLike, periods: Sequence[float]) -> tuple[Array, Array]:
    """Kinetic energy per shell of a 2-D periodic flow from its vorticity, ``½ Σ |ω̂|² / |k|²``: ``(k,)`` and ``(…, k)``.

    Unit: (length/time)². The sum over shells is the mean of ½|u|² of what they hold; shell 0 is 0.
    """
    values = np.asarray(vorticity, np.float64)
    kx, ky = (2 * np.pi * np.fft.fftfreq(n, p / n) for n, p in zip(values.shape[-2:], periods))
    wavenumber = np.sqrt(kx[:, None] ** 2 + ky**2)
    wavenumber[0, 0] = np.inf
    speed = np.fft.ifft2(np.fft.fft2(values) / wavenumber).real
    k, power = power_spectrum(speed, periods)
    return k, power / 2


def shell_factors(prediction: ArrayLike, truth: ArrayLike) -> Array:
    """``max(P/T, T/P)`` of two spectra ``(…, k)``, shell by shell; unit 1; best is 1.

    A shell with less than `NEGLIGIBLE` of the truth's power doesn't count and is 1, unless the prediction isn't finite.
    """
    p, t = (np.asarray(spectrum, np.float64) for spectrum in (prediction, truth))
    factors = np.maximum(_ratio(p, t, zero=1.0), _ratio(t, p, zero=1.0))
    return np.where((t < NEGLIGIBLE * t.sum(-1, keepdims=True)) & np.isfinite(p), 1.0, factors)


def spectrum_ratio(prediction: ArrayLike, truth: ArrayLike, limit: int | None = None) -> Array:
    """Largest of `shell_factors` over shells 1 … limit; unit 1; best is 1.

    limit: default all shells; half the Nyquist shell is where fields are usually compared. NaN without shells.
    """
    factors = shell_factors(prediction, truth)[..., 1: None if limit is None else limit + 1]
    return factors.max(-1) if factors.shape[-1] else np.full(factors.shape[:-1], np.nan)


@dataclass(frozen=True)
class Interval:
    """Mean paired difference, ours − baseline, its 95 % interval and the number of independent blocks behind it."""

    difference: float
    low: float
    high: float
    blocks: int

    def verdict(self, *, higher: bool = False) -> str:
        """``better``, ``worse`` or ``no difference seen``; with fewer than ten blocks, that they are too few."""
        if self.blocks < 10:
            return "too few independent blocks"
        if self.low <= 0 <= self.high:
            return "no difference seen"
        return "better" if (self.difference > 0) == higher else "worse"


def paired_blocks(ours: ArrayLike, baseline: ArrayLike, block: int = 1, seed: int = 0, *,
                  draws: int = 2000) -> Interval:
    """Moving-block bootstrap of the mean difference of paired scores ``(n,)`` in the order of their windows.

    `block` consecutive windows are taken as dependent; pairs with a NaN are left out of the means. Percentile interval;
    its bounds are NaN with fewer than two blocks. Source: Künsch, Ann. Stat. 17 (1989).
    """
    difference = np.asarray(ours, np.float64) - np.asarray(baseline, np.float64)
    n = len(difference)
    blocks = n // block
    known = np.isfinite(difference)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan, blocks)
    mean = float(difference[known].mean())
    if blocks < 2:
        return Interval(mean, np.nan, np.nan, blocks)
    sums, counts = (np.convolve(x, np.ones(block), "valid") for x in (np.where(known, difference, 0.0), known))
    picks = np.random.default_rng(seed).integers(0, n - block + 1, (draws, blocks))
    means = _ratio(sums[picks].sum(-1), counts[picks].sum(-1))
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return Interval(mean, float(low), float(high), blocks)


def _flat(prediction: ArrayLike, truth: ArrayLike, keep: int) -> tuple[Array, Array, Array]:
    """Both as ``(*kept, cells)`` float64, and which cells are known."""
    p, t = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} differ in shape")
    shape = (*t.shape[:keep], int(np.prod(t.shape[keep:])))
    return p.reshape(shape), t.reshape(shape), np.isfinite(t.reshape(shape))


def _sum(values: Array, known: Array) -> Array:
    return np.where(known, values, 0.0).sum(-1)


def _ratio(top: Array, bottom: Array, *, zero: float | None = None, empty: Any = None) -> Array:
    """top / bottom; 0/0 is `zero`, by default NaN where nothing was counted and 0 otherwise."""
    a, b = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        result = np.asarray(a / b)
    if zero is not None:
        return np.where((a == 0) & (b == 0), zero, result)
    if empty is None:
        return result
    return np.where(empty, np.nan, np.where((a == 0) & (b == 0), 0.0, result))
