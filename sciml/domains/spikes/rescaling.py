"""Time rescaling: do spikes come as the intensities say? Rescaled intervals against the unit exponential.

If the intensity is right, the intervals between spikes, measured in its integral, are independent and exponential with
mean 1. Source: Brown et al., "The time-rescaling theorem", Neural Computation 14 (2002); for bins, Haslinger, Pipa &
Brown, "Discrete time rescaling theorem", Neural Computation 22 (2010).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sciml.domains.spikes.metrics import Array, rates_and_counts
from sciml.errors import InputError

STREAM = 2010
"""Keeps these draws apart from those of spikes that were simulated with the same small seed."""


@dataclass(frozen=True)
class KSTest:
    """Kolmogorov–Smirnov distance of rescaled intervals, its 95 % band 1.36/√n, p value and number of intervals."""

    statistic: float
    band: float
    p_value: float
    num_intervals: int

    @property
    def within_band(self) -> bool:
        """False, too, where there is no interval to judge by."""
        return self.statistic <= self.band


def binned_intervals(rate: ArrayLike, counts: ArrayLike, seed: int = 0) -> list[Array]:
    """Rescaled intervals of each unit, corrected for bins: ``ξ = Σ q_k + δ``, exponential whatever the bin width.

    The sum is over bins between two occupied ones, with ``q = −ln(1 − P(occupied))``; δ stands for the bin of the later
    spike, ``−ln(1 − r (1 − e^−q))`` with r uniform, keyed by (seed, unit). rate: expected spikes per bin, for which
    ``q = rate`` (Poisson; of Bernoulli probabilities p give ``−log1p(−p)``); counts likewise ``(…, time, unit)``. Bins
    with several spikes count as occupied, as the source assumes one at most: `dispersion_test` judges how many.
    Leading dimensions are trials, which follow one another, as do the sides of a NaN gap: rescaled time stands still
    where nothing is recorded, and the exponential has no memory. This spares short trials the bias of their cut
    intervals (Wiener, Neural Computation 15, 2003). The first interval runs from the start; the last, cut, is left out.
    """
    q, n = rates_and_counts(rate, counts)
    if not np.isfinite(q[np.isfinite(n)]).all():
        raise InputError("rates", found="NaN or infinity where counts are known", expected="finite rates",
                         fix="mark these bins of the counts with NaN")
    return [_intervals(q[unit], n[unit], np.random.default_rng([STREAM, seed, unit])) for unit in range(len(n))]


def cumulative_intensity(edges: ArrayLike, intensity: ArrayLike) -> Callable[[ArrayLike], Array]:
    """``Λ(t)``, the integral from the first edge of an intensity (1/s) that is constant between edges (s).

    edges: ``(n + 1,)`` ascending; intensity: ``(n,)`` ≥ 0. Times outside the edges raise InputError.

    >>> float(cumulative_intensity([0.0, 1.0, 2.0], [3.0, 5.0])(1.5))
    5.5
    """
    at, height = np.asarray(edges, np.float64), np.asarray(intensity, np.float64)
    if at.shape != (len(height) + 1,) or not (np.diff(at) > 0).all() or not (height >= 0).all():
        raise InputError("intensity", found=f"{height.shape} for edges {at.shape}",
                         expected="values ≥ 0 between ascending edges, one fewer than edges", fix="check both")
    total = np.concatenate([[0.0], np.cumsum(height * np.diff(at))])

    def integral(time: ArrayLike) -> Array:
        t = np.asarray(time, np.float64)
        if t.size and not (t.min() >= at[0] and t.max() <= at[-1]):
            raise InputError("time", found=f"{t.min():g} to {t.max():g} s", expected=f"{at[0]:g} to {at[-1]:g} s",
                             fix="integrate the intensity over all spikes")
        return np.asarray(np.interp(t, at, total))
    return integral


def event_intervals(spike_time: ArrayLike, cumulative: Callable[[ArrayLike], ArrayLike], start: float) -> Array:
    """``(n,)`` rescaled intervals ``Λ(t_k) − Λ(t_{k−1})`` of exact times (s, ascending), the first from `start` (s)."""
    times = np.concatenate([[start], np.asarray(spike_time, np.float64)])
    intervals = np.diff(np.asarray(cumulative(times), np.float64))
    if not (np.diff(times) >= 0).all() or not (intervals >= 0).all():
        raise InputError("spike_time", found="a time or integral that falls, or NaN", expected="both ascending",
                         fix="sort the spikes after start; integrate an intensity ≥ 0")
    return intervals


def ks_test(intervals: ArrayLike) -> KSTest:
    """Of ``z = 1 − e^−ξ`` against the uniform distribution, the same as ξ against the exponential.

    ``D = max |F_n(z) − z|``, 95 % band 1.36/√n, p value exact as in scipy.stats.kstest. All NaN without intervals.
    """
    from scipy.stats import kstest
    values = np.asarray(intervals, np.float64)
    if values.size == 0:
        return KSTest(np.nan, np.nan, np.nan, 0)
    result = kstest(-np.expm1(-values), "uniform")
    return KSTest(float(result.statistic), 1.36 / float(np.sqrt(values.size)), float(result.pvalue), values.size)


def rescaling_test(rate: ArrayLike, counts: ArrayLike, seed: int = 0) -> tuple[KSTest, ...]:
    """`ks_test` of the `binned_intervals` of each unit."""
    return tuple(ks_test(intervals) for intervals in binned_intervals(rate, counts, seed))


def event_rescaling_test(spike_time: ArrayLike, spike_unit: ArrayLike,
                         cumulative: Sequence[Callable[[ArrayLike], ArrayLike]], start: float) -> tuple[KSTest, ...]:
    """`ks_test` of the `event_intervals` of each unit, which has its own Λ. spike_unit: ``(spike,)`` indices."""
    times, unit = np.asarray(spike_time, np.float64), np.asarray(spike_unit)
    return tuple(ks_test(event_intervals(times[unit == index], integral, start))
                 for index, integral in enumerate(cumulative))


def _intervals(q: Array, n: Array, rng: np.random.Generator) -> Array:
    known = np.isfinite(n)
    q, occupied = q[known], np.flatnonzero(n[known] > 0)
    before = np.concatenate([[0.0], np.cumsum(q)])
    previous = np.concatenate([[0], occupied[:-1] + 1])[: len(occupied)]
    inside = -np.log1p(rng.random(len(occupied)) * np.expm1(-q[occupied]))
    return np.asarray(before[occupied] - before[previous] + inside)
