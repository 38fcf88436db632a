"""Who drives whom, estimated from spike trains by the classical ways: cross-correlograms and a Poisson GLM.

Both take counts in narrow bins (1–5 ms) and return a `Coupling` for all ordered pairs. They are what in-silico ablation
of a fitted model is compared with. Neither sees units that weren't recorded: common input from them looks like a link.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sciml.errors import InputError

CHUNK, LARGEST_STEPS, TOLERANCE, LEVEL = 8192, 60, 0.1, 10.0
"""Bins whose features are held at once; steps of the fit, and the gain in log-likelihood per unit below which it ends;
prior standard deviation of the logarithm of a unit's count per bin."""
HOLLOW = 0.6
"""Share by which the predictor's window leaves out its own middle (Stark and Abeles 2009)."""


@dataclass(frozen=True)
class Coupling:
    """Estimates for every unit (row) and source (column), each ``(unit, source)`` float64.

    score: signed, in standard errors: positive if the unit fires more after the source; 0 on the diagonal. delay: in s
    from a spike of the source to the beginning of its effect, NaN on the diagonal. p: two-sided, of no effect, for each
    pair by itself; 1 on the diagonal.
    """

    score: np.ndarray
    delay: np.ndarray
    p: np.ndarray


def cross_correlogram(counts: np.ndarray, lags: int) -> np.ndarray:
    """``C[l, n, m] = Σ_t x_n(t + l − lags) x_m(t)``, ``(2·lags + 1, unit, source)`` float32, of counts ``(time,
    unit)``; bins that aren't finite count as empty.

    >>> cross_correlogram(np.array([[1, 0], [0, 1], [0, 0]]), 1)[:, 1, 0].tolist()
    [0.0, 0.0, 1.0]
    """
    from scipy.sparse import csr_array

    known = np.where(np.isfinite(counts), counts, 0.0)
    later, earlier = csr_array(known.T, dtype=np.float32), csr_array(known, dtype=np.float32)
    units = known.shape[1]
    found = np.empty((2 * lags + 1, units, units), dtype=np.float32)
    for lag in range(min(lags + 1, len(known))):
        pairs = (later[:, lag:] @ earlier[:len(known) - lag]).toarray()
        found[lags + lag], found[lags - lag] = pairs, pairs.T
    found[lags + len(known):] = 0.0
    found[:max(0, lags + 1 - len(known))] = 0.0
    return found


def cross_correlation(counts: np.ndarray, bin_s: float, *, window_s: float = 0.015, longest_delay_s: float = 0.006,
                      smoothing_s: float = 0.04) -> Coupling:
    """Peaks and troughs of the cross-correlogram over what its slow part predicts.

    counts ``(time, unit)`` or ``(recording, time, unit)``, NaN where not recorded. In windows of `window_s` that begin
    up to `longest_delay_s` after the source's spike, never in the bin of the spike itself, the coincidences C are held
    against the correlogram smoothed by a Gaussian of `smoothing_s` with a hollow middle, P: the score is the signed
    ``(C − P) / √P`` of the window with the largest deviation, p the Poisson tail, corrected for the number of windows.
    Method: Stark and Abeles, J. Neurosci. Methods 179, 2009. Raises `InputError` on counts of another shape.
    """
    from scipy.stats import poisson

    counts = joined(counts, round(5 * smoothing_s / bin_s))
    width, starts = max(1, round(window_s / bin_s)), max(1, round(longest_delay_s / bin_s))
    reach = round(3 * smoothing_s / bin_s) + 1
    lags = starts + width + reach
    found = cross_correlogram(counts, lags)
    kernel = _hollow(smoothing_s / bin_s, reach)
    units = counts.shape[1]
    predicted = np.zeros((starts + width - 1, units, units), dtype=np.float64)
    for i in range(len(predicted)):
        first = lags + 1 + i - reach
        predicted[i] = np.tensordot(kernel, found[first:first + len(kernel)], axes=(0, 0))
    excess = np.cumsum(np.pad(found[lags + 1:lags + starts + width] - predicted, ((1, 0), (0, 0), (0, 0))), axis=0)
    total = np.cumsum(np.pad(predicted, ((1, 0), (0, 0), (0, 0))), axis=0)
    deviation, expected = excess[width:] - excess[:-width], np.maximum(total[width:] - total[:-width], 1e-3)
    score = deviation / np.sqrt(expected)
    best = np.abs(score).argmax(axis=0)[None]
    score, expected, deviation = (np.take_along_axis(a, best, 0)[0] for a in (score, expected, deviation))
    seen = np.rint(expected + deviation)
    upper = poisson.sf(seen, expected) + 0.5 * poisson.pmf(seen, expected)
    p = 2 * np.minimum(upper, 1 - upper)
    return _off_diagonal(score, (best[0] + 1) * bin_s, 1 - (1 - np.clip(p, 0, 1)) ** starts)


def _hollow(width: float, reach: int) -> np.ndarray:
    """A normalised Gaussian of that standard deviation in bins, its middle lowered by `HOLLOW`; ``(2·reach + 1,)``."""
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel[reach] *= 1 - HOLLOW
    return kernel / kernel.sum()


def joined(counts: np.ndarray, gap: int) -> np.ndarray:
    """Recordings one after another with `gap` bins that aren't recorded between, ``(time, unit)`` float64."""
    if counts.ndim not in (2, 3) or not counts.size:
        raise InputError("counts", found=f"shape {counts.shape}", expected="(time, unit) or (recording, time, unit)",
                         fix="give counts in bins of time")
    if counts.ndim == 2:
        return counts.astype(np.float64)
    return np.pad(counts.astype(np.float64), ((0, 0), (0, gap), (0, 0)),
                  constant_values=np.nan).reshape(-1, counts.shape[2])


def _off_diagonal(score: np.ndarray, delay: np.ndarray, p: np.ndarray) -> Coupling:
    score, delay, p = score.astype(np.float64), delay.astype(np.float64), p.astype(np.float64)
    for array, value in ((score, 0.0), (delay, np.nan), (p, 1.0)):
        np.fill_diagonal(array, value)
    return Coupling(score, delay, p)


def bumps(bin_s: float, longest_s: float, count: int) -> np.ndarray:
    """Raised cosines in the logarithm of the lag, ``(count, lags)`` for lags 1, 2, … bins up to `longest_s`.

    ``½ (1 + cos(π clip((log lag − c_k) / w, −1, 1)))`` with centres c_k evenly spaced by w (Pillow et al., Nature 454,
    2008).
    """
    lag = np.arange(1, max(count, round(longest_s / bin_s)) + 1)
    place = np.log(lag + 1.0)
    centres, spacing = np.linspace(place[0], place[-1], count + 1, retstep=True)
    return 0.5 * (1 + np.cos(np.pi * np.clip((place[None] - centres[:-1, None]) / spacing, -1, 1)))


def poisson_glm(counts: np.ndarray, bin_s: float, *, longest_s: float = 0.04, num_bumps: int = 2,
                prior: float = 0.3) -> Coupling:
    """A Poisson GLM of each unit on the recent past of all units at once.

    ``log λ_n(t) = b_n + Σ_m Σ_k W[n, m, k] (bump_k ∗ x_m)(t)`` with Gaussian priors of standard deviation `prior` on W:
    the most probable W (Pillow et al., Nature 454, 2008). counts ``(time, unit)`` or ``(recording, time, unit)``, NaN
    where not recorded. The score is the area under the pair's filter over its standard error (Laplace, at the unit's
    mean rate), p normal, the delay where the filter first reaches half its extreme. Raises `InputError` on counts of
    another shape, `FloatingPointError` if the fit doesn't end.
    """
    from scipy.stats import norm

    basis = bumps(bin_s, longest_s, num_bumps)
    counts = joined(counts, basis.shape[1])
    units = counts.shape[1]
    design = _Design.of(counts, basis, prior)
    weight, directions, curvature = _fit(design)
    filters = (weight[:num_bumps * units] * prior).reshape(num_bumps, units, units)
    kernel = np.einsum("kms,kl->msl", filters.transpose(0, 2, 1), basis)
    area = prior * basis.sum(axis=1)
    along = np.einsum("k,kmp->mp", area, directions[:num_bumps * units].reshape(num_bumps, units, -1))
    error = np.sqrt(np.stack([(along**2 / row).sum(axis=1) for row in curvature]))
    score = kernel.sum(axis=2) / error
    height = np.abs(kernel)
    first = (height >= 0.5 * height.max(axis=2, keepdims=True)).argmax(axis=2)
    return _off_diagonal(score, (first + 1) * bin_s, 2 * norm.sf(np.abs(score)))


@dataclass(frozen=True)
class _Design:
    """counts ``(time, unit)`` float32 with 0 where `known` is 0. Columns are scaled so that the prior of every
    coefficient is of unit variance; the last one is the constant `LEVEL`."""

    counts: np.ndarray
    known: np.ndarray
    basis: np.ndarray
    prior: float

    @classmethod
    def of(cls, counts: np.ndarray, basis: np.ndarray, prior: float) -> _Design:
        known = np.isfinite(counts)
        silent = np.where(known, counts, 0.0).astype(np.float32)
        return cls(silent, known.astype(np.float32), basis.astype(np.float32), prior)

    @property
    def rate(self) -> np.ndarray:
        """Mean count per bin of each unit, at least one spike in all."""
        return (np.maximum(self.counts.sum(axis=0), 1.0) / np.maximum(self.known.sum(axis=0), 1.0)).astype(np.float64)

    def columns(self, start: int) -> np.ndarray:
        """Features of `CHUNK` bins from `start`, ``(time, bump · unit + 1)`` float32."""
        stop, lags = min(start + CHUNK, len(self.counts)), self.basis.shape[1]
        count, units = len(self.basis), self.counts.shape[1]
        begin = max(0, start - lags)
        at, unit = np.nonzero(self.counts[begin:stop])
        size = self.counts[begin:stop][at, unit] * self.prior
        made = np.zeros((stop - start + 2 * lags, count * units + 1), dtype=np.float32)
        for lag in range(1, lags + 1):
            row = at + begin - start + lag + lags - 1
            for k in range(count):
                made[row, k * units + unit] += size * self.basis[k, lag - 1]
        made = made[lags - 1:lags - 1 + stop - start]
        made[:, -1] = LEVEL
        return made


def _fit(design: _Design) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scaled coefficients ``(feature, unit)``, and the curvature of each unit's posterior at its mean rate as
    directions ``(feature, direction)`` and its value along them ``(unit, direction)``.

    Conjugate gradients (Polak and Ribière) with that curvature as preconditioner, which all units share but for a
    factor; steps by the true curvature along the move, shortened until the posterior rises.
    """
    values, directions = np.linalg.eigh(_gram(design))
    curvature = design.rate[:, None] * np.maximum(values, 0.0)[None] + 1.0
    weight = np.zeros((len(values), len(curvature)))
    weight[-1] = np.log(design.rate) / LEVEL
    best, gradient = _posterior(design, weight)
    move, before, last = np.zeros_like(weight), np.ones(len(best)), np.zeros_like(weight)
    shorten = np.ones(len(best))
    for _ in range(LARGEST_STEPS):
        newton = directions @ ((directions.T @ gradient) / curvature.T)
        gain = (newton * gradient).sum(axis=0)
        if np.all(gain < 2 * TOLERANCE):
            return weight, directions, curvature
        mixing = np.where(shorten < 1, 0.0, np.maximum(0.0, (gain - (newton * last).sum(axis=0)) / before))
        move = mixing * move - newton
        move = np.where((move * gradient).sum(axis=0) < 0, move, -newton)
        slope = (move * gradient).sum(axis=0)
        trial = weight + move * (-shorten * slope / _curvature_along(design, weight, move))
        reached, slopes = _posterior(design, trial)
        better = reached <= best + 1e-9 * np.abs(best)
        before, last = np.where(better, gain, before), np.where(better, gradient, last)
        weight[:, better], gradient[:, better], best[better] = trial[:, better], slopes[:, better], reached[better]
        shorten = np.where(better, 1.0, shorten / 4)
    raise FloatingPointError(f"the GLM of {int((gain >= 2 * TOLERANCE).sum())} units hasn't converged in "
                             f"{LARGEST_STEPS} steps")


def _gram(design: _Design) -> np.ndarray:
    columns = design.columns(0)
    gram = (columns.T @ columns).astype(np.float64)
    for start in range(CHUNK, len(design.counts), CHUNK):
        columns = design.columns(start)
        gram += columns.T @ columns
    return gram


def _curvature_along(design: _Design, weight: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Second derivative of minus the log posterior along each unit's `move`, ``(unit,)``."""
    both, units = np.concatenate([weight, move], axis=1).astype(np.float32), weight.shape[1]
    value = (move**2).sum(axis=0)
    for start in range(0, len(design.counts), CHUNK):
        level, change = np.split(design.columns(start) @ both, [units], axis=1)
        expected = np.exp(np.minimum(level, 20.0)) * design.known[start:start + CHUNK]
        value += (expected * change**2).sum(axis=0, dtype=np.float64)
    return value


def _posterior(design: _Design, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minus the log posterior of each unit, but for a constant ``(unit,)``, and its gradient ``(feature, unit)``."""
    value, gradient = 0.5 * (weight**2).sum(axis=0), weight.copy()
    single = weight.astype(np.float32)
    for start in range(0, len(design.counts), CHUNK):
        columns = design.columns(start)
        seen, known = design.counts[start:start + CHUNK], design.known[start:start + CHUNK]
        level = np.minimum(columns @ single, 20.0)
        expected = np.exp(level) * known
        value += (expected - seen * level).sum(axis=0, dtype=np.float64)
        gradient += columns.T @ (expected - seen)
    return value, gradient
