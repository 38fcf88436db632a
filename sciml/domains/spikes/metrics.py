"""Scores of rates, decoded behaviour and condition averages, with the definitions of the Neural Latents Benchmark.

Rates are expected spikes per bin, counts spikes per bin, both ``(…, time, unit)``. NaN in the counts (or behaviour) is
not recorded and never counts; a prediction that is NaN where the truth is known makes the score NaN. Scores of models
compare on the same bins only. Source, unless a formula names another: Pei et al., "Neural Latents Benchmark '21",
NeurIPS 2021 Datasets and Benchmarks, and the evaluation code of its package nlb_tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from sciml import metrics
from sciml.errors import InputError

Array = np.ndarray[Any, Any]
FLOOR = 1e-9
"""Smallest rate, in spikes per bin, that a likelihood is computed with."""
PENALTIES = np.logspace(-4, 0, 9)
"""Ridge penalties tried in decoding, as in nlb_tools."""
FOLDS = 5


def rates_and_counts(rate: ArrayLike, counts: ArrayLike) -> tuple[Array, Array]:
    """Both as ``(unit, cells)`` float64. InputError if shapes differ, or a known count or its rate is negative."""
    mu, n = np.asarray(rate, np.float64), np.asarray(counts, np.float64)
    if mu.shape != n.shape or n.ndim < 1:
        raise InputError("rates", key="shape", found=f"{mu.shape} for counts {n.shape}", expected="the same",
                         fix="give one rate per counted bin and unit")
    mu, n = (np.moveaxis(x, -1, 0).reshape(x.shape[-1], int(np.prod(x.shape[:-1]))) for x in (mu, n))
    known = np.isfinite(n)
    for name, values in (("rates", mu), ("counts", n)):
        if (values[known] < 0).any():
            raise InputError(name, found=f"{values[known].min():g}", expected="values ≥ 0 where counts are known",
                             fix="take exp of log-rates; mark bins that weren't recorded with NaN")
    return mu, n


def evaluation_mean(counts: ArrayLike) -> Array:
    """``(unit,)`` mean count per bin over the known bins: nlb_tools' null model. NaN for a unit without known bins."""
    n = np.asarray(counts, np.float64)
    known = np.isfinite(n)
    axes = tuple(range(n.ndim - 1))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, n, 0.0).sum(axes) / known.sum(axes))


def poisson_log_likelihood(rate: ArrayLike, counts: ArrayLike) -> Array:
    """``(unit,)`` nats, ``Σ n ln μ − μ − ln n!`` over known bins; rates below 1e-9 are raised to it.

    nlb_tools raises exact zeros alone, so that it differs where 0 < μ < 1e-9. 0 for a unit without known bins.
    """
    mu, n = rates_and_counts(rate, counts)
    mu = np.maximum(mu, FLOOR)
    return np.asarray(np.where(np.isfinite(n), n * np.log(mu) - mu - gammaln(n + 1), 0.0).sum(-1))


def bits_per_spike(rate: ArrayLike, counts: ArrayLike, null_rate: ArrayLike | None = None) -> float:
    """``(LL(rate) − LL(null)) / (number of spikes · ln 2)``, Poisson, all units pooled. Higher is better; null: 0.

    null_rate: ``(unit,)`` spikes per bin, such as the training mean; None: `evaluation_mean` of these counts, as in
    nlb_tools (the best constant, hence never the more flattering). Rates and null are floored at 1e-9. NaN without
    spikes; exactly 0 if the rate is the null. InputError on negative rates or counts and on unequal shapes.

    >>> bits_per_spike([[1.0], [3.0]], [[1], [3]], null_rate=[2.0]) > 0
    True
    """
    mu, n, null = _with_null(rate, counts, null_rate)
    return float(metrics.poisson_bits(mu, n, null, keep=0, floor=FLOOR))


def unit_bits_per_spike(rate: ArrayLike, counts: ArrayLike, null_rate: ArrayLike | None = None) -> Array:
    """``(unit,)`` `bits_per_spike` of each unit; NaN for a unit without spikes. Weighted by spikes they pool to it."""
    mu, n, null = _with_null(rate, counts, null_rate)
    return metrics.poisson_bits(mu, n, null, keep=1, floor=FLOOR)


def co_bps(rate: ArrayLike, counts: ArrayLike, held_out: ArrayLike, null_rate: ArrayLike | None = None) -> float:
    """Co-smoothing: `bits_per_spike` of the held-out units, whose counts the model hasn't seen.

    held_out: ``(unit,)`` boolean, or indices. null_rate: ``(unit,)`` over all units. NaN if none is held out.
    """
    units = np.arange(np.shape(counts)[-1])[np.asarray(held_out)] if np.size(held_out) else np.arange(0)
    null = None if null_rate is None else np.asarray(null_rate)[units]
    return bits_per_spike(np.asarray(rate)[..., units], np.asarray(counts)[..., units], null)


def fp_bps(rate: ArrayLike, counts: ArrayLike, forward: ArrayLike, null_rate: ArrayLike | None = None) -> float:
    """Forward prediction: `bits_per_spike` of all units in the bins after those that the model has seen.

    forward: ``(time,)`` boolean, or indices. The mean null is of these bins alone, as in nlb_tools. NaN of no bins.
    """
    bins = np.arange(np.shape(counts)[-2])[np.asarray(forward)] if np.size(forward) else np.arange(0)
    return bits_per_spike(np.asarray(rate)[..., bins, :], np.asarray(counts)[..., bins, :], null_rate)


def r2(prediction: ArrayLike, truth: ArrayLike) -> Array:
    """``(component,)`` coefficients of determination, ``1 − Σ (t − p)² / Σ (t − t̄)²``, of ``(…, time, component)``.

    Not a squared correlation: scale and offset count, and it may be negative. Null: 0 (the mean of the truth). NaN with
    fewer than two known cells. A constant truth gives 1 if met exactly and 0 otherwise, as in scikit-learn.
    """
    p, t = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if p.shape != t.shape or t.ndim < 1:
        raise InputError("prediction", key="shape", found=p.shape, expected=f"the truth's {t.shape}",
                         fix="give one prediction per known value, components last")
    p, t = (x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1]) for x in (p, t))
    return np.array([_r2(p[:, i], t[:, i]) for i in range(t.shape[1])])


def mean_r2(prediction: ArrayLike, truth: ArrayLike) -> float:
    """`r2`, then the plain mean over the components with two or more known cells; NaN if there is none."""
    t = np.asarray(truth, np.float64)
    scored = np.isfinite(t).sum(tuple(range(t.ndim - 1))) >= 2
    return float(r2(prediction, t)[scored].mean()) if scored.any() else float("nan")


@dataclass(frozen=True)
class Ridge:
    """A linear read-out ``y = x · weight + intercept``. weight: ``(unit, component)``; penalty: the one selected."""

    weight: Array
    intercept: Array
    penalty: float

    def predict(self, rates: ArrayLike) -> Array:
        """``(…, unit)`` → ``(…, component)``."""
        return np.asarray(np.asarray(rates, np.float64) @ self.weight + self.intercept)


def fit_ridge(rates: ArrayLike, behaviour: ArrayLike) -> Ridge:
    """Ridge regression of behaviour ``(…, time, component)`` on rates ``(…, time, unit)``, as in nlb_tools' decoder.

    Minimises ``Σ |y − x w − b|² + penalty |w|²`` (sums, not means; b free). The penalty of `PENALTIES` has the largest
    mean R² over 5 contiguous folds of the known rows, sizes as equal as can be, the first of equals; fitted on all.
    Rows with any NaN in the behaviour are left out. InputError with fewer than 10 such rows or on NaN in their rates.
    """
    x, y = _rows(rates, behaviour)
    scores = np.zeros(len(PENALTIES))
    for fold in np.array_split(np.arange(len(x)), FOLDS):
        inside = np.ones(len(x), bool)
        inside[fold] = False
        fits = _ridges(x[inside], y[inside], PENALTIES)
        scores += [r2(fit.predict(x[fold]), y[fold]).mean() for fit in fits]
    return _ridges(x, y, PENALTIES[[np.argmax(scores)]])[0]


def ridge_decode_r2(rates: ArrayLike, behaviour: ArrayLike,
                    test: tuple[ArrayLike, ArrayLike] | None = None) -> Array:
    """``(component,)`` R² of behaviour decoded linearly from rates; its mean is nlb_tools' "vel R2". Null: 0.

    test: (rates, behaviour) that the read-out of `fit_ridge` is scored on. None: 5 contiguous folds, each decoded by a
    read-out whose penalty was selected on the other four; one R² over all decoded bins (not a mean over folds, which a
    fold of rest would dominate), and no gap between folds, so that slow signals flatter it a little.
    """
    if test is not None:
        x, y = _rows(*test, fewest=2)
        return r2(fit_ridge(rates, behaviour).predict(x), y)
    x, y = _rows(rates, behaviour, fewest=4 * FOLDS)
    decoded = np.empty_like(y)
    for fold in np.array_split(np.arange(len(x)), FOLDS):
        decoded[fold] = fit_ridge(np.delete(x, fold, 0), np.delete(y, fold, 0)).predict(x[fold])
    return r2(decoded, y)


def smooth(counts: ArrayLike, sd_bins: float) -> Array:
    """Counts ``(…, time, unit)`` convolved over time with a Gaussian of ``int(6 sd)`` taps of sum 1, as in nlb_tools.

    Each stretch between NaN is smoothed by itself with zeros beyond its ends (so that its ends are low); NaN stays NaN.
    Smooth the whole recording, then cut trials out of it. InputError if the window has no tap (sd < 1/6 of a bin).
    """
    taps = int(6 * sd_bins)
    if taps < 1:
        raise InputError("smooth", key="sd_bins", found=sd_bins, expected="at least 1/6", fix="widen the kernel")
    window = np.exp(-0.5 * ((np.arange(taps) - (taps - 1) / 2) / sd_bins) ** 2)
    window /= window.sum()
    n = np.asarray(counts, np.float64)
    columns = np.moveaxis(n, -2, -1)
    result = np.full(columns.shape, np.nan)
    for row in np.ndindex(columns.shape[:-1]):
        edges = np.flatnonzero(np.diff(np.isfinite(columns[row]), prepend=False, append=False))
        for start, stop in zip(edges[::2], edges[1::2]):
            result[row][start:stop] = correlate1d(columns[row][start:stop], window, mode="constant")
    return np.moveaxis(result, -1, -2)


def psth(values: ArrayLike, condition: ArrayLike) -> Array:
    """Peristimulus time histogram: mean over trials of each condition, ``(trial, time, unit)`` → ``(condition, …)``.

    condition: ``(trial,)`` integers ≥ 0, −1 for trials to leave out. NaN doesn't count; a cell without trials is NaN.
    """
    x, group = np.asarray(values, np.float64), _conditions(condition, values)
    result = np.full((group.max(initial=-1) + 1, *x.shape[1:]), np.nan)
    for index in np.unique(group[group >= 0]):
        member = x[group == index]
        known = np.isfinite(member).sum(0)
        result[index] = np.where(known > 0, np.nansum(member, 0) / np.maximum(known, 1), np.nan)
    return result


def psth_r2(rates: ArrayLike, condition: ArrayLike, reference: ArrayLike) -> Array:
    """``(unit,)`` R² of condition-averaged rates against a PSTH, all conditions and times; mean: "psth R2". Null: 0.

    rates: ``(trial, time, unit)``; condition: ``(trial,)`` rows of reference, −1 for none; reference: ``(condition,
    time, unit)``, the `psth` of spikes under `smooth` in the rates' unit (nlb_tools: over all trials, sd 40–70 ms,
    smoothed in 1 ms bins before rebinning). Cells where it is NaN and conditions without trials don't count.
    """
    x, group, truth = np.asarray(rates, np.float64), _conditions(condition, rates), np.asarray(reference, np.float64)
    if truth.shape[1:] != x.shape[1:] or group.max(initial=-1) >= len(truth):
        raise InputError("psth", key="shape", found=truth.shape, expected=f"every condition, then {x.shape[1:]}",
                         fix="number conditions by the rows of the reference")
    shown = np.unique(group[group >= 0])
    means = [x[group == index].mean(0) for index in shown]
    return r2(np.reshape(means, (len(shown), *x.shape[1:])), truth[shown])


def _with_null(rate: ArrayLike, counts: ArrayLike, null_rate: ArrayLike | None) -> tuple[Array, Array, Array]:
    mu, n = rates_and_counts(rate, counts)
    null = evaluation_mean(counts) if null_rate is None else np.asarray(null_rate, np.float64)
    if null.shape not in ((), (len(n),)) or (null < 0).any():
        raise InputError("null_rate", found=f"shape {null.shape}, values {null}", expected=f"{len(n)} values ≥ 0",
                         fix="give the mean count per bin of each unit")
    return mu, n, np.broadcast_to(null, len(n))[:, None]


def _r2(p: Array, t: Array) -> float:
    known = np.isfinite(t)
    p, t = p[known], t[known]
    if len(t) < 2:
        return float("nan")
    error = ((t - p) ** 2).sum()
    if t.min() == t.max():
        return float("nan") if np.isnan(error) else float(error == 0)
    return float(1 - error / ((t - t.mean()) ** 2).sum())


def _rows(rates: ArrayLike, behaviour: ArrayLike, fewest: int = 2 * FOLDS) -> tuple[Array, Array]:
    x, y = np.asarray(rates, np.float64), np.asarray(behaviour, np.float64)
    if x.ndim < 2 or x.shape[:-1] != y.shape[:-1]:
        raise InputError("behaviour", key="shape", found=f"{y.shape} for rates {x.shape}",
                         expected="(…, time, component) for (…, time, unit)", fix="bin both on the same clock")
    x, y = (v.reshape(int(np.prod(v.shape[:-1])), v.shape[-1]) for v in (x, y))
    known = np.isfinite(y).all(1)
    if known.sum() < fewest:
        raise InputError("behaviour", found=f"{known.sum()} known bins", expected=f"at least {fewest}",
                         fix="decode from a longer recording")
    if not np.isfinite(x[known]).all():
        raise InputError("rates", found="NaN where behaviour is known", expected="finite rates",
                         fix="mark these bins of the behaviour with NaN")
    return x[known], y[known]


def _ridges(x: Array, y: Array, penalties: Array) -> list[Ridge]:
    """One eigendecomposition of the Gram matrix serves all penalties."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - mean_x).T @ (x - mean_x))
    moment = vectors.T @ ((x - mean_x).T @ (y - mean_y))
    weights = [vectors @ (moment / (np.maximum(values, 0.0) + penalty)[:, None]) for penalty in penalties]
    return [Ridge(w, mean_y - mean_x @ w, float(penalty)) for w, penalty in zip(weights, penalties)]


def _conditions(condition: ArrayLike, trials: ArrayLike) -> Array:
    group = np.asarray(condition)
    if np.ndim(trials) != 3 or group.shape != np.shape(trials)[:1] or group.dtype.kind not in "iu":
        raise InputError("condition", found=f"{group.dtype} {group.shape} for {np.shape(trials)}",
                         expected="one integer per trial of (trial, time, unit)", fix="number conditions from 0")
    return group
