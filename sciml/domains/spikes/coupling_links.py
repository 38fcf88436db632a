"""Links of a recording by a hierarchical Poisson model: a pair by itself says little, all of them say how links are.

    log λ_n(t) = b_n + s_n(t) + Σ_l h(l) x_n(t − l) + Σ_m Σ_l f_nm(l) x_m(t − l),    f_nm = c + w_nm k(· − d_nm)

s: what all units share, from elsewhere (`sciml.domains.spikes.coupling_shared`, or `population_rate`); h: own history;
c: how every unit follows every other; w, k, d: size, kernel and delay of links, whose prior is learnt
(`sciml.domains.spikes.coupling_prior`). Variational: pairs have posteriors of their own given the mean response of all
others, and are updated in blocks of sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sciml.domains.spikes.coupling import joined
from sciml.domains.spikes.coupling_prior import STEPS, LinkPrior, Posterior, Sums, posterior, sums_of
from sciml.errors import InputError

REACH_S, LONGEST_DELAY_S, OWN_S, WIDEST_S = 0.045, 0.006, 0.1, 0.003
LATE_S = (0.003, 0.005, 0.007, 0.010)
"""Delays of effects that pass through units that were not recorded."""
SWEEPS, BLOCKS, DAMPING, LARGEST = 8, 6, 0.7, 6.0
POPULATION_S, LOADING, CERTAINTY = 0.002, 0.5, 4.0
"""Width over which the population is averaged; mean and inverse variance of the prior of a unit's loading on it."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Links:
    """Of every unit (row) and source (column), NaN on the diagonal. probability: of a link; effect: expected change of
    the log-rate at its peak, signed, if there is one; delay: s until the kernel
    begins, posterior median. inhibitory
    ``(source,)``: probability that the source inhibits; kernel ``(lag,)``: time course of all links, bin by bin."""

    probability: np.ndarray
    effect: np.ndarray
    delay: np.ndarray
    inhibitory: np.ndarray
    kernel: np.ndarray


@dataclass(frozen=True)
class _Trains:
    """counts and known ``(time, unit)`` float32, 0 where not recorded; bins and units ``(event,)`` in which something
    is counted; per block of sources their places and the lagged counts ``(time, lag · source)``; seen ``(lag, unit,
    source)`` coincidences."""

    counts: np.ndarray
    known: np.ndarray
    events: tuple[np.ndarray, np.ndarray]
    sources: tuple[np.ndarray, ...]
    lagged: tuple[Any, ...]
    seen: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, lags: int) -> _Trains:
        known = np.isfinite(counts)
        silent = np.where(known, counts, 0.0).astype(np.float32)
        units = counts.shape[1]
        order = np.random.default_rng(0).permutation(units)
        sources = tuple(np.array_split(order, min(BLOCKS, units)))
        lagged = tuple(_lagged(silent, own, lags) for own in sources)
        seen = np.zeros((lags, units, units), np.float32)
        for own, design in zip(sources, lagged):
            seen[:, :, own] = _unfolded(design.T @ silent, lags)
        bins, members = np.nonzero(silent)
        return cls(silent, known.astype(np.float32), (bins, members), sources, lagged, seen)

    @property
    def total(self) -> np.ndarray:
        """``(unit,)`` spikes."""
        return self.counts.sum(0, dtype=np.float64)


@dataclass
class _State:
    """level ``(time, unit)``: log-rates up to a constant of each unit; response ``(lag, unit, source)`` f, own
    ``(lag,)`` h, common ``(lag,)`` c."""

    level: np.ndarray
    response: np.ndarray
    own: np.ndarray
    common: np.ndarray


def find_links(counts: np.ndarray, bin_s: float, log_rate: np.ndarray | None = None, *,
               progress: Progress | None = None) -> Links:
    """counts ``(time, unit)`` or ``(recording, time, unit)``, NaN where not recorded; log_rate of the same shape: what
    of each unit's log-rate is shared input, up to a constant. Raises `InputError` on counts of another shape and on
    bins wider than `WIDEST_S`."""
    if bin_s > WIDEST_S * (1 + 1e-9):
        raise InputError("connectivity", key="bin_s", found=f"bins of {1e3 * bin_s:g} ms",
                         expected=f"at most {1e3 * WIDEST_S:g} ms: delays are of some ms",
                         fix="build the store with narrower bins, or from spike times")
    lags, own = round(REACH_S / bin_s), round(OWN_S / bin_s)
    given = np.zeros_like(counts) if log_rate is None else log_rate
    counts, given = joined(counts, own), np.nan_to_num(joined(given, own))
    trains = _Trains.of(counts, lags)
    units = counts.shape[1]
    state = _State(given.astype(np.float32), np.zeros((lags, units, units), np.float32), np.zeros(own, np.float32),
                   np.zeros(lags, np.float32))
    late = tuple(sorted({max(2, round(s / bin_s)) for s in LATE_S}))
    prior = LinkPrior.start(bin_s, lags, max(1, round(LONGEST_DELAY_S / bin_s)), late)
    for sweep in range(SWEEPS):
        _follow_own(trains, state)
        links, sums = _sweep(trains, state, prior, bin_s)
        _follow_common(trains, state, sums)
        prior = prior if sweep == 0 else prior.learnt(sums)
        if progress is not None:
            progress(sweep + 1, SWEEPS)
    return links


def _sweep(trains: _Trains, state: _State, prior: LinkPrior, bin_s: float) -> tuple[Links, Sums]:
    units, kernels, lags = len(trains.total), prior.kernels(), len(prior.kernel)
    chance, effect, delay = np.full((3, units, units), np.nan)
    links = Links(chance, effect, delay, np.zeros(units), prior.kernel)
    totals: list[Sums] = []
    for own, design in zip(trains.sources, trains.lagged):
        pairs, rates = np.arange(units)[:, None] != own, _rates(trains, state)
        expected = _unfolded(design.T @ rates, lags)
        expected = expected / np.exp(state.response[:, :, own] - state.common[:, None, None])
        seen = trains.seen[:, :, own]
        found = posterior(_evidence(seen, expected, kernels), prior, pairs)
        totals.append(sums_of(found, prior.kernel, seen, expected, pairs))
        wanted = _response(found, kernels) + state.common[:, None, None] * pairs
        change = wanted - state.response[:, :, own]
        ahead = design @ change.transpose(0, 2, 1).reshape(-1, units)
        step = _step(trains, rates, ahead)
        state.response[:, :, own] += step[:, None] * change
        state.level += step * ahead
        _note(links, found, own, pairs, bin_s)
    total = totals[0]
    for more in totals[1:]:
        total = total + more
    return links, total


def _step(trains: _Trains, rates: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """``(unit,)`` how far to go along a change of the log-rates ``(time, unit)``: where the likelihood is largest to
    second order, its constant following, but at most `DAMPING`. Sources that fire together each claim what they do
    together."""
    spikes = np.maximum(trains.total, 1.0)
    mean = (rates * ahead).sum(0, dtype=np.float64) / spikes
    slope = (trains.counts * ahead).sum(0, dtype=np.float64) - spikes * mean
    curvature = (rates * ahead**2).sum(0, dtype=np.float64) - spikes * mean**2
    return np.clip(slope / np.maximum(curvature, 1e-9), 0.0, DAMPING).astype(np.float32)


def _note(links: Links, found: Posterior, own: np.ndarray, pairs: np.ndarray, bin_s: float) -> None:
    """Writes a block's posterior into the matrices."""
    chance, delays = found.probability, found.direct.sum(1)
    total = np.maximum(chance, 1e-300)
    median = (np.cumsum(delays, 0) < 0.5 * total).sum(0)
    values = (chance, np.einsum("s,dsnm->nm", STEPS, found.direct) / total, (1 + median) * bin_s)
    for matrix, value in zip((links.probability, links.effect, links.delay), values):
        matrix[:, own] = np.where(pairs, value, np.nan)
    links.inhibitory[own] = found.sign[1]


def _rates(trains: _Trains, state: _State) -> np.ndarray:
    """``(time, unit)`` expected counts, in all those that were seen."""
    rate = np.exp(np.minimum(state.level - state.level.mean(0), LARGEST)) * trains.known
    return np.asarray(rate * (trains.total / np.maximum(rate.sum(0, dtype=np.float64), 1e-9)).astype(np.float32))


def _evidence(seen: np.ndarray, expected: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """``(kernel, step, unit, source)`` log-likelihood over that without an effect, of seen and expected coincidences
    ``(lag, unit, source)``: Σ_l C f − E (e^f − 1) of an effect f.

    As if every spike of the source acted alone and the unit's constant rate were known: where spikes come as a Poisson
    process, effects that overlap and the constant that makes up for them cancel out.
    """
    lags, units, sources = seen.shape
    linear, expected = kernels @ seen.reshape(lags, -1), expected.reshape(lags, -1)
    made = np.empty((len(kernels), len(STEPS), units * sources), np.float64)
    for i, step in enumerate(STEPS.astype(np.float32)):
        made[:, i] = step * linear - np.expm1(step * kernels) @ expected
    return made.reshape(len(kernels), len(STEPS), units, sources)


def _response(found: Posterior, kernels: np.ndarray) -> np.ndarray:
    """``(lag, unit, source)`` logarithm of the factor by which a link is expected to change the rate."""
    chance = np.concatenate([found.direct, found.late]).astype(np.float32)
    flat = chance.reshape(len(kernels) * len(STEPS), -1)
    factor = np.expm1(kernels[:, None] * STEPS[:, None].astype(np.float32)).reshape(len(flat), -1)
    change = (factor.T @ flat).reshape(-1, *chance.shape[2:])
    return np.asarray(np.log1p(np.maximum(change, -0.98)))


def _follow_common(trains: _Trains, state: _State, sums: Sums) -> None:
    """c from pairs in so far as they have no link: also undoes what s knows of the source's own spikes.

    A Newton step on all sources together, whose curvature is the autocovariance of the population, smoothed over a
    tenth of the lag.
    """
    lag, population = np.arange(len(state.common)), trains.counts.sum(1, dtype=np.float64)
    population -= population.mean()
    covariance = np.array([population[k:] @ population[:len(population) - k] for k in lag])
    curvature = covariance[np.abs(lag[:, None] - lag)] * (trains.total.sum() / len(population))
    curvature[lag, lag] += 0.05 * curvature[0, 0] + 1.0
    window = np.exp(-0.5 * ((lag[:, None] - lag) / (1 + 0.1 * lag[:, None])) ** 2)
    change = window @ np.linalg.solve(curvature, sums.seen - sums.expected) / window.sum(1)
    state.common += (DAMPING * change).astype(np.float32)


def _follow_own(trains: _Trains, state: _State) -> None:
    """h, the same for all units, from how often they fire again; smoothed over a third of the lag."""
    rate, (bins, units), lags = _rates(trains, state), trains.events, len(state.own)
    size = trains.counts[bins, units]
    places = [bins < len(rate) - lag for lag in range(1, lags + 1)]
    seen, expected = (np.array([(x[bins[ok] + lag, units[ok]] * size[ok]).sum() for lag, ok in enumerate(places, 1)])
                      for x in (trains.counts, rate))
    window = np.abs(np.arange(lags)[:, None] - np.arange(lags)) <= 0.15 * np.arange(lags)[:, None]
    wanted = np.maximum(state.own + np.log((window @ seen + 1) / (window @ expected + 1)), -LARGEST)
    change = (wanted - state.own).astype(np.float32)
    for lag, ok in enumerate(places, 1):
        state.level[bins[ok] + lag, units[ok]] += change[lag - 1] * size[ok]
    state.own += change


def _lagged(counts: np.ndarray, sources: np.ndarray, lags: int) -> Any:
    """``(time, lag · source)`` sparse: counts of the sources 1 … `lags` bins before."""
    from scipy.sparse import csr_array

    bins, place = np.nonzero(counts[:, sources])
    rows = (bins + np.arange(1, lags + 1)[:, None]).ravel()
    columns = (np.arange(lags)[:, None] * len(sources) + place).ravel()
    values = np.tile(counts[bins, sources[place]], lags)
    inside = rows < len(counts)
    return csr_array((values[inside], (rows[inside], columns[inside])), shape=(len(counts), lags * len(sources)))


def _unfolded(product: np.ndarray, lags: int) -> np.ndarray:
    """``(lag · source, unit)`` → ``(lag, unit, source)``."""
    return np.asarray(product.reshape(lags, -1, product.shape[1]).transpose(0, 2, 1))


def population_rate(counts: np.ndarray, bin_s: float) -> np.ndarray:
    """Shared input without a trained model, in the shape of the counts: each unit's loading times the logarithm of how
    much all others fire within `POPULATION_S`, before and after. The loading is the most probable one (Newton)."""
    from scipy.ndimage import gaussian_filter1d

    if counts.ndim == 3:
        return np.stack([population_rate(recording, bin_s) for recording in counts])
    known = np.nan_to_num(counts).astype(np.float32)
    smooth = gaussian_filter1d(known, POPULATION_S / bin_s, axis=0, mode="nearest")
    others = smooth.sum(1, keepdims=True) - smooth
    mean = np.maximum(others.mean(0), 1e-9)
    signal = np.log(others + 0.02 * mean) - np.log(mean)
    signal -= signal.mean(0)
    spikes, loading = known.sum(0), np.full(known.shape[1], LOADING, np.float32)
    for _ in range(8):
        weight = np.exp(loading * signal)
        weight /= weight.sum(0)
        first = (weight * signal).sum(0)
        variance = (weight * signal**2).sum(0) - first**2
        slope = (known * signal).sum(0) - spikes * first - CERTAINTY * (loading - LOADING)
        loading = loading + slope / (spikes * variance + CERTAINTY)
    return np.asarray(loading * signal)
