"""Does generated activity look like the recording? Statistics of both; the recording's own variability as yardstick.

Distances are 0 and correlations 1 between equal activities. Generated and recorded activity have the same units, in the
same order, and the same bins; they need not have the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sciml import metrics
from sciml.domains.spikes.metrics import Array, evaluation_mean, rates_and_counts
from sciml.errors import InputError

HIGHER = ("rate_correlation", "pairwise_correlation")
"""Statistics that are correlations, best at 1; all others are distances, best at 0."""


@dataclass(frozen=True)
class Activity:
    """Spikes of a population. counts: ``(time, unit)`` per bin of dt seconds, NaN where not recorded; times: per unit,
    ascending seconds since the left edge of bin 0, of the spikes in recorded bins."""

    counts: Array
    dt: float
    times: tuple[Array, ...]


@dataclass(frozen=True)
class Comparison:
    """One statistic between generated and recorded activity, and the same between halves of the recording."""

    name: str
    value: float
    split_half: float

    @property
    def within(self) -> bool | None:
        """As near as the halves are to one another; None if either value is undefined."""
        if np.isnan(self.value) or np.isnan(self.split_half):
            return None
        return self.value >= self.split_half if self.name in HIGHER else self.value <= self.split_half


def activity_of_counts(counts: ArrayLike, dt: float) -> Activity:
    """From counts ``(…, time, unit)``; leading dimensions are trials, kept apart by a bin that isn't recorded.

    The n spikes of a bin are put at its ``(j + ½)/n``: intervals are right to a bin. InputError unless counts are
    integers ≥ 0 or NaN and dt > 0.
    """
    n = np.asarray(counts, np.float64)
    rates_and_counts(n, n)
    if n.ndim < 2 or not dt > 0 or (n[np.isfinite(n)] % 1 != 0).any():
        raise InputError("counts", found=f"shape {n.shape}, dt {dt}", expected="integers (…, time, unit), dt > 0",
                         fix="give spikes per bin, and the bin width in seconds")
    if n.ndim > 2:
        trials = n.reshape(-1, *n.shape[-2:])
        n = np.concatenate([trials, np.full((len(trials), 1, n.shape[-1]), np.nan)], axis=1).reshape(-1, n.shape[-1])
    whole = np.where(np.isfinite(n), n, 0).astype(np.int64)
    return Activity(n, dt, tuple(_spread(whole[:, unit], dt) for unit in range(n.shape[1])))


def activity_of_spikes(spike_time: ArrayLike, spike_unit: ArrayLike, recorded: ArrayLike, start: float,
                       dt: float) -> Activity:
    """From exact times (s) and unit indices, counted in bins of dt seconds from `start`, ``[left, right)``.

    recorded: ``(time, unit)`` boolean, which also says how many bins and units there are. Spikes outside the bins or
    in unrecorded ones are left out. InputError if a unit's index is outside.
    """
    time, unit, known = np.asarray(spike_time, np.float64) - start, np.asarray(spike_unit), np.asarray(recorded, bool)
    if known.ndim != 2 or not dt > 0 or time.shape != unit.shape or ((unit < 0) | (unit >= known.shape[1])).any():
        raise InputError("spikes", found=f"{time.shape} times, {unit.shape} units, recorded {known.shape}, dt {dt}",
                         expected="one index < unit per time, recorded (time, unit), dt > 0", fix="check the indices")
    # Decimal bin widths are rounded: a spike within 1e-9 of a bin before an edge is on it.
    place = np.floor(time / dt + 1e-9).astype(np.int64)
    inside = (place >= 0) & (place < len(known))
    inside[inside] = known[place[inside], unit[inside]]
    time, unit, place = time[inside], unit[inside], place[inside]
    counts = np.where(known, 0.0, np.nan)
    np.add.at(counts, (place, unit), 1.0)
    return Activity(counts, dt, tuple(np.sort(time[unit == index]) for index in range(known.shape[1])))


def interspike_intervals(activity: Activity) -> list[Array]:
    """Per unit, seconds between consecutive spikes; intervals across a bin that wasn't recorded are left out."""
    breaks = np.cumsum(~np.isfinite(activity.counts), axis=0)
    return [_intervals(times, breaks[:, unit], activity.dt) for unit, times in enumerate(activity.times)]


def firing_rates(activity: Activity) -> Array:
    """``(unit,)`` spikes per recorded second; NaN for a unit that was never recorded."""
    return evaluation_mean(activity.counts) / activity.dt


def interval_cv(intervals: Sequence[Array]) -> Array:
    """``(unit,)`` coefficient of variation, standard deviation (n) over mean, unit 1; 1 for Poisson; NaN below two."""
    return np.array([x.std() / x.mean() if len(x) > 1 and x.mean() > 0 else np.nan for x in intervals])


def interval_distances(generated: Sequence[Array], recorded: Sequence[Array]) -> Array:
    """``(unit,)`` Wasserstein-1 distance between two interval distributions, over the mean recorded interval; unit 1.

    Not Kolmogorov–Smirnov's, which calls intervals in whole bins far from exact ones; here a bin costs a bin at most.
    NaN for a unit without intervals in either.
    """
    return np.array([_wasserstein(g, r, float(r.mean()) if len(r) else 0.0) for g, r in zip(generated, recorded)])


def count_correlations(counts: ArrayLike) -> Array:
    """``(unit, unit)`` Pearson correlations of counts per bin, over the bins where both are known, diagonal 1.

    NaN for a unit that is constant over a pair's common bins, or with fewer than two of them. Depends on the bin width.
    """
    n = rates_and_counts(counts, counts)[1]
    known = np.isfinite(n).astype(np.float64)
    mean = (np.nan_to_num(n) * known).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    x = np.where(known > 0, n - mean, 0.0)
    common = np.maximum(known @ known.T, 1)
    sums, squares = x @ known.T, x**2 @ known.T
    covariance, variance = x @ x.T - sums * sums.T / common, squares - sums**2 / common
    varied = (variance > 1e-12 * squares) & (variance.T > 1e-12 * squares.T) & (squares > 0) & (squares.T > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(varied, covariance / np.sqrt(variance * variance.T), np.nan)
    np.fill_diagonal(r, np.where(np.isnan(np.diagonal(r)), np.nan, 1.0))
    return np.clip(r, -1.0, 1.0)


def population_sums(counts: ArrayLike) -> Array:
    """Spikes of all units per bin, for the bins in which every unit is known."""
    n = rates_and_counts(counts, counts)[1]
    return np.asarray(n[:, np.isfinite(n).all(0)].sum(0))


def distances(generated: Activity, recorded: Activity) -> dict[str, float]:
    """Name → figure of unit 1, NaN where it is undefined (what is undefined in either doesn't count).

    rate_correlation: Pearson over units of mean rates (NaN for one unit, or equal rates); rate_error: relative RMS
    error ``√(Σ (g − r)² / Σ r²)``. interval_distance: mean of `interval_distances` over units with
    intervals in both; cv_error: RMS difference of their CV.
    pairwise_correlation and pairwise_error: Pearson and RMS difference of the upper triangles of `count_correlations`.
    population_distance: Wasserstein-1 between distributions of `population_sums`, over the recorded standard deviation.
    Not symmetric: the recorded activity is the scale. InputError if units or bin widths differ.
    """
    if generated.counts.shape[1] != recorded.counts.shape[1] or not np.isclose(generated.dt, recorded.dt, rtol=1e-6):
        raise InputError("generated", found=f"{generated.counts.shape[1]} units in bins of {generated.dt} s",
                         expected=f"{recorded.counts.shape[1]} units in bins of {recorded.dt} s",
                         fix="generate the recorded units in the recording's bins")
    g_rate, r_rate = firing_rates(generated), firing_rates(recorded)
    g_gaps, r_gaps = interspike_intervals(generated), interspike_intervals(recorded)
    upper = np.triu_indices(len(r_rate), 1)
    g_pairs, r_pairs = (count_correlations(a.counts)[upper] for a in (generated, recorded))
    return {"rate_correlation": _correlation(g_rate, r_rate), "rate_error": _relative(g_rate, r_rate),
            "interval_distance": _mean(interval_distances(g_gaps, r_gaps)),
            "cv_error": _rms(interval_cv(g_gaps) - interval_cv(r_gaps)),
            "pairwise_correlation": _correlation(g_pairs, r_pairs), "pairwise_error": _rms(g_pairs - r_pairs),
            "population_distance": _population(population_sums(generated.counts), population_sums(recorded.counts))}


def halves(activity: Activity, num_blocks: int = 20) -> tuple[Activity, Activity]:
    """The even and the odd ones of `num_blocks` contiguous blocks of bins, each with the other's bins unrecorded.

    InputError unless num_blocks is even, ≥ 2 and at most the number of bins.
    """
    bins = len(activity.counts)
    if num_blocks < 2 or num_blocks % 2 or num_blocks > bins:
        raise InputError("halves", key="num_blocks", found=f"{num_blocks} for {bins} bins",
                         expected="an even number from 2 to the number of bins", fix="take fewer, longer blocks")
    odd = np.arange(bins) * num_blocks // bins % 2 == 1
    return _part(activity, ~odd), _part(activity, odd)


def split_half(recorded: Activity, num_blocks: int = 20) -> dict[str, float]:
    """`distances` between the `halves` of a recording: what it differs by from itself.

    Interleaved blocks share slow drift, which contiguous halves would count as variability. Each half has half the
    spikes, so that the yardstick is wider than the noise between two full recordings (of independent bins, by √2).
    """
    return distances(*halves(recorded, num_blocks))


def match(generated: Activity, recorded: Activity, num_blocks: int = 20) -> tuple[Comparison, ...]:
    """Every statistic of `distances` beside its `split_half` value of the recording."""
    yardstick = split_half(recorded, num_blocks)
    return tuple(Comparison(name, value, yardstick[name]) for name, value in distances(generated, recorded).items())


def _spread(counts: Array, dt: float) -> Array:
    bins = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(bins)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray((bins + (rank + 0.5) / counts[bins]) * dt)


def _intervals(times: Array, breaks: Array, dt: float) -> Array:
    place = np.clip(np.floor(times / dt + 1e-9).astype(np.int64), 0, max(len(breaks) - 1, 0))
    return np.asarray(np.diff(times)[np.diff(breaks[place]) == 0])


def _part(activity: Activity, kept: Array) -> Activity:
    places = [np.clip(np.floor(t / activity.dt + 1e-9).astype(np.int64), 0, len(kept) - 1) for t in activity.times]
    return Activity(np.where(kept[:, None], activity.counts, np.nan), activity.dt,
                    tuple(times[kept[place]] for times, place in zip(activity.times, places)))


def _both(a: Array, b: Array) -> tuple[Array, Array]:
    defined = np.isfinite(a) & np.isfinite(b)
    return a[defined], b[defined]


def _correlation(a: Array, b: Array) -> float:
    x, y = _both(a, b)
    return float(metrics.correlation(x, y, keep=0)) if len(x) > 1 else float("nan")


def _relative(a: Array, b: Array) -> float:
    x, y = _both(a, b)
    return float(metrics.relative_l2(x, y, keep=0))


def _mean(values: ArrayLike) -> float:
    defined = np.asarray(values, np.float64)
    defined = defined[np.isfinite(defined)]
    return float(defined.mean()) if len(defined) else float("nan")


def _rms(difference: Array) -> float:
    return float(np.sqrt(_mean(difference**2)))


def _wasserstein(a: Array, b: Array, scale: float) -> float:
    from scipy.stats import wasserstein_distance
    if len(a) == 0 or len(b) == 0 or not scale > 0:
        return float("nan")
    return float(wasserstein_distance(a, b)) / scale


def _population(a: Array, b: Array) -> float:
    return _wasserstein(a, b, float(b.std()) if len(b) else 0.0)
