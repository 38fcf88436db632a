"""Periods of a data set, found in its training split, and tokens that are whole cycles or parts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from sciml.domains.series.calendar import MIN_CYCLES

LONGEST = 1 << 14
"""Steps that are transformed at once; longer pieces are several, half overlapping."""
CHANCE = 0.01
"""That noise without any period shows one."""
LEAST_SHARE = 0.01
LOBE = 2
"""Frequencies to either side of a line that the Hann window spreads it over."""
TYPICAL_PATCH = 24


@dataclass(frozen=True)
class Period:
    """steps: its length. share: of the variance, its harmonics included."""

    steps: float
    share: float


@dataclass(frozen=True)
class Spectrum:
    """Of variance 1. frequency: cycles per step ``(F,)``, from the first with three cycles on; power, background:
    ``(F,)``, what red noise would have; freedom: of each power, as χ²; width: of a frequency."""

    frequency: np.ndarray
    power: np.ndarray
    background: np.ndarray
    freedom: float
    width: float


def discover(pieces: Sequence[np.ndarray], *, most: int = 3) -> tuple[Period, ...]:
    """At most so many, the largest share first, of pieces ``(T, V)`` in any unit (NaN is missing); perhaps none.

    Peaks of the mean spectrum of all pieces and variates that red noise exceeds anywhere with a chance of 1 % only, and
    that hold 1 % of the variance. A multiple of a stronger period's frequency is counted with that one.

    >>> hours = np.arange(24 * 60)
    >>> [round(p.steps) for p in discover([np.cos(2 * np.pi * hours / 24)[:, None]])]
    [24]
    """
    found = spectrum(pieces)
    if found is None:
        return ()
    limit = chi2.isf(CHANCE / len(found.power), found.freedom) / found.freedom
    excess, total = np.maximum(found.power - found.background, 0.0), found.power.sum()
    peaks = [(float(excess[max(i - LOBE, 0):i + LOBE + 1].sum() / total), _refined(found, i))
             for i in range(len(excess)) if found.power[i] > limit * found.background[i] and _is_peak(found.power, i)]
    kept: list[list[float]] = []  # share, frequency
    for share, frequency in sorted(peaks, reverse=True):
        stronger = next((line for line in kept if _same(frequency, line[1], found.width)), None)
        if stronger is not None:
            stronger[0] += share
        elif share >= LEAST_SHARE:
            kept.append([share, frequency])
    return tuple(Period(1 / frequency, share) for share, frequency in sorted(kept, reverse=True)[:most])


def spectrum(pieces: Sequence[np.ndarray]) -> Spectrum | None:
    """The mean over pieces and variates, each less its line and of variance 1, under a Hann window (Welch, 1967); None
    where nothing varies or no piece has room for three cycles of two steps.

    Background: an AR(1) process fitted to medians of the logarithm, which lines don't move (Mann & Lees, "Robust
    estimation of background noise", 1996), nowhere less than those medians. Variates that go together count as fewer:
    V² / Σ ρᵢⱼ² of them.
    """
    length = min(max((len(piece) for piece in pieces), default=0), LONGEST)
    first = MIN_CYCLES
    if length < 2 * 2 * MIN_CYCLES:
        return None
    total, weight, alike = np.zeros(length // 2 + 1), 0.0, []
    for part in (part for piece in pieces for part in _parts(piece, length)):
        rows = _whitened(part)
        if rows.shape[1]:
            window = np.hanning(len(rows) + 2)[1:-1, None]
            power = np.abs(np.fft.rfft(rows * window, length, axis=0)) ** 2 / np.square(window).sum()
            total += len(rows) * power.mean(1)
            weight += len(rows)
            correlation = rows.T @ rows / len(rows)
            alike.append((len(rows), rows.shape[1] ** 2 / np.square(correlation).sum()))
    if not weight:
        return None
    segments = max(sum(map(len, pieces)) / length, 1.0)
    freedom = 2 * segments * sum(n * v for n, v in alike) / weight
    frequency, power = np.arange(first, length // 2) / length, (total / weight)[first:length // 2]
    return Spectrum(frequency, power, _background(frequency, power, freedom), freedom, 1 / length)


def _parts(piece: np.ndarray, length: int) -> list[np.ndarray]:
    starts = range(0, max(len(piece) - length, 0) + 1, max(length // 2, 1))
    return [piece[start:start + length] for start in starts]


def _whitened(part: np.ndarray) -> np.ndarray:
    """``(T, V')`` less a line each and of variance 1, 0 where missing; variates half missing or constant left out."""
    columns = []
    when = np.arange(len(part)) - (len(part) - 1) / 2
    for values in part.T.astype(np.float64):
        there = np.isfinite(values)
        if there.sum() < max(len(part) / 2, 2 * MIN_CYCLES):
            continue
        slope, level = np.polyfit(when[there], values[there], 1)
        rest = np.where(there, values - slope * when - level, 0.0)
        spread = math.sqrt(np.square(rest).sum() / there.sum())
        if spread > 1e-9 * (1 + abs(level)):
            columns.append(rest / spread)
    return np.stack(columns, 1) if columns else np.zeros((len(part), 0))


def _background(frequency: np.ndarray, power: np.ndarray, freedom: float) -> np.ndarray:
    edges = np.geomspace(frequency[0], frequency[-1] * (1 + 1e-9), max(4, int(6 * math.log(len(frequency) + 1))))
    place = np.digitize(frequency, edges)
    log, centre = np.log(np.maximum(power, 1e-12 * power.max())), np.log(frequency)
    bins = [place == b for b in np.unique(place)]
    x, y = (np.array([np.median(of[b]) for b in bins]) for of in (centre, log))
    y = y - math.log(chi2.median(freedom) / freedom)
    weight = np.sqrt([b.sum() for b in bins])
    best, fitted = math.inf, log
    for memory in 1 - np.geomspace(1e-3, 1.0, 60):
        shape = -np.log(1 + memory**2 - 2 * memory * np.cos(2 * np.pi * np.exp(x)))
        offset = np.average(y - shape, weights=weight)
        error = float(np.average(np.square(y - shape - offset), weights=weight))
        if error < best:
            best = error
            fitted = offset - np.log(1 + memory**2 - 2 * memory * np.cos(2 * np.pi * frequency))
    robust = np.array([b.sum() >= 7 for b in bins])
    local = np.interp(centre, x[robust], y[robust]) if robust.any() else fitted
    return np.asarray(np.exp(np.maximum(fitted, local)))


def _is_peak(power: np.ndarray, i: int) -> bool:
    return bool(i > 0 and power[i] == power[max(i - LOBE, 0):i + LOBE + 1].max())


def _refined(found: Spectrum, i: int) -> float:
    """The frequency of a peak between those of the transform: the top of a parabola through three logarithms."""
    if not 0 < i < len(found.power) - 1:
        return float(found.frequency[i])
    left, top, right = np.log(np.maximum(found.power[i - 1:i + 2], 1e-300))
    bend = left - 2 * top + right
    return float(found.frequency[i] + (0.5 * (left - right) / bend if bend < 0 else 0.0) * found.width)


def _same(frequency: float, stronger: float, width: float) -> bool:
    """Whether a line is the stronger one's, or of its harmonics."""
    order = max(1, round(frequency / stronger))
    return abs(frequency - order * stronger) <= max((1.5 + 0.5 * order) * width, 0.02 * stronger)


def patch_of(periods: Sequence[Period], *, most: int, near: int = TYPICAL_PATCH) -> int:
    """Steps per token: of the strongest period and its divisors (2 and above), at most `most`, the one nearest to
    `near` by ratio, the larger of two equally near; `near` itself, or `most`, without a period.

    >>> patch_of([Period(168.2, 0.3)], most=96), patch_of([Period(52.1, 0.5)], most=36), patch_of([], most=96)
    (24, 26, 24)
    """
    whole = round(periods[0].steps) if periods else 0
    candidates = [d for d in range(2, min(whole, most) + 1) if whole % d == 0]
    return min(candidates, key=lambda d: (abs(math.log(d / near)), -d), default=min(near, most))
