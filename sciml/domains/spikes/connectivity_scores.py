"""How well was connectivity recovered? Scores of ``(target, source)`` matrices against a known network.

score: larger where a link is likelier. weight: the signed truth, 0 where there is no link. Pairs count if they are off
the diagonal (a unit's effect on itself is not a link) and neither matrix is NaN there (a unit that was not observed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sciml.domains.spikes.metrics import Array
from sciml.errors import InputError
from sciml.metrics import auroc, average_precision


@dataclass(frozen=True)
class Estimate:
    """What a method says of each pair ``(target, source)``; NaN where it says nothing.

    score: larger where a link is likelier; effect: signed, None if the method has no sign; delay: seconds; p_value;
    probability: posterior, of a link.
    """

    score: Array
    effect: Array | None = None
    delay: Array | None = None
    p_value: Array | None = None
    probability: Array | None = None


@dataclass(frozen=True)
class Detected:
    """Links detected by one rule: how many, the share of them that is true, the share of the true ones that they are.

    Signs and delays are judged on the true links among them: share of right signs, share of delays within a bin and
    root mean square of their error; NaN where nothing was given to judge, or no true link was detected.
    """

    num_detected: int
    precision: float
    recall: float
    sign_accuracy: float
    delay_accuracy: float
    delay_rms_ms: float


@dataclass(frozen=True)
class ConnectivityScores:
    """auprc's null is `density`, the share of pairs that are linked; auroc's and direction_accuracy's is ½.

    by_p_value, by_probability: detected at a false-discovery rate expected from p values or from posteriors alone (None
    without them). by_truth: the most that the ranking can give at that rate, which takes the truth to find: an upper
    bound, not a rule for a lab.
    """

    num_pairs: int
    density: float
    auroc: float
    auprc: float
    direction_accuracy: float
    by_p_value: Detected | None
    by_probability: Detected | None
    by_truth: Detected


def pairs(score: ArrayLike, weight: ArrayLike) -> Array:
    """``(target, source)`` boolean: which pairs count. InputError unless both are square and of equal shape."""
    s, w = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    if s.shape != w.shape or s.ndim != 2 or s.shape[0] != s.shape[1]:
        raise InputError("score", key="shape", found=f"{s.shape} for weights {w.shape}",
                         expected="equal square (target, source)", fix="keep the observed units of the truth alone")
    return np.asarray(~np.isnan(s) & ~np.isnan(w) & ~np.eye(len(s), dtype=bool))


def detected_by_p_value(p_value: ArrayLike, rate: float = 0.1) -> Array:
    """``(target, source)`` boolean: Benjamini–Hochberg over the finite p values off the diagonal.

    All with ``p ≤ p_(k)``, k the largest with ``p_(k) ≤ rate · k / m``. The expected share of false links among them is
    at most `rate` for independent (or positively dependent) tests. Source: J. R. Stat. Soc. B 57 (1995).
    """
    p = np.asarray(p_value, np.float64)
    tested = pairs(p, p)
    ordered = np.sort(p[tested])
    passed = np.flatnonzero(ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1))
    return tested & (p <= ordered[passed[-1]]) if len(passed) else np.zeros(p.shape, bool)


def detected_by_probability(probability: ArrayLike, rate: float = 0.1) -> Array:
    """``(target, source)`` boolean: the likeliest links, as many as have a mean of 1 − probability of at most `rate`.

    That mean is the expected share of false links among them if the posteriors are right (Newton et al., Biostatistics
    5, 2004). Equal probabilities go together.
    """
    p = np.asarray(probability, np.float64)
    counted = pairs(p, p)
    thresholds, _, taken = _ranking(p[counted], np.ones(int(counted.sum()), bool))
    doubt = np.cumsum(1 - np.sort(p[counted])[::-1])[taken - 1] / taken
    allowed = np.flatnonzero(doubt <= rate)
    return counted & (p >= thresholds[allowed[-1]]) if len(allowed) else np.zeros(p.shape, bool)


def detected_by_truth(score: ArrayLike, weight: ArrayLike, rate: float = 0.1) -> Array:
    """``(target, source)`` boolean: the largest set above a threshold on the score whose share of false links ≤ rate.

    The threshold is found with the truth: an upper bound on what the ranking can give. Equal scores go together.
    """
    s, w = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    counted = pairs(s, w)
    thresholds, found, taken = _ranking(s[counted], w[counted] != 0)
    allowed = np.flatnonzero((taken - found) <= rate * taken)
    return counted & (s >= thresholds[allowed[-1]]) if len(allowed) else np.zeros(s.shape, bool)


def direction_accuracy(score: ArrayLike, weight: ArrayLike) -> float:
    """Where exactly one of i → j and j → i exists: share of pairs that score it above the other, ties half; null: ½.

    NaN without such a pair (a score that is symmetric gets ½).
    """
    s, w = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    counted = pairs(s, w)
    one_way = counted & counted.T & (w != 0) & (w.T == 0)
    if not one_way.any():
        return float("nan")
    return float(((s > s.T) + 0.5 * (s == s.T))[one_way].mean())


def sign_accuracy(effect: ArrayLike, weight: ArrayLike, detected: ArrayLike) -> float:
    """Share of detected true links whose effect has the sign of the weight; an effect of 0 is wrong. NaN of none."""
    e, w = np.asarray(effect, np.float64), np.asarray(weight, np.float64)
    judged = pairs(e, w) & np.asarray(detected, bool) & (w != 0)
    return float((np.sign(e) == np.sign(w))[judged].mean()) if judged.any() else float("nan")


def delay_errors(delay: ArrayLike, true_delay: ArrayLike, detected: ArrayLike) -> Array:
    """``(n,)`` seconds, estimated less true delay, of the detected links with a true delay (NaN: no link)."""
    d, t = np.asarray(delay, np.float64), np.asarray(true_delay, np.float64)
    judged = pairs(d, t) & np.asarray(detected, bool)
    return np.asarray((d - t)[judged])


def score_connectivity(estimate: Estimate, weight: ArrayLike, delay: ArrayLike | None = None, *, dt: float,
                       rate: float = 0.1) -> ConnectivityScores:
    """All scores of an estimate against true weights and delays (s); dt: the bin (s) that a delay may be off by."""
    s, w = np.asarray(estimate.score, np.float64), np.asarray(weight, np.float64)
    counted = pairs(s, w)
    linked = w[counted] != 0

    def judged(values: Array | None, rule: Callable[[ArrayLike, float], Array]) -> Detected | None:
        if values is None:
            return None
        inside = np.where(counted, np.asarray(values, np.float64), np.nan)
        return _judge(rule(inside, rate), estimate, w, delay, dt)

    return ConnectivityScores(
        num_pairs=int(counted.sum()), density=float(linked.mean()) if linked.size else float("nan"),
        auroc=auroc(s[counted], linked), auprc=average_precision(s[counted], linked),
        direction_accuracy=direction_accuracy(s, w),
        by_p_value=judged(estimate.p_value, detected_by_p_value),
        by_probability=judged(estimate.probability, detected_by_probability),
        by_truth=_judge(detected_by_truth(s, w, rate), estimate, w, delay, dt))


def _judge(detected: Array, estimate: Estimate, weight: Array, delay: ArrayLike | None, dt: float) -> Detected:
    counted = pairs(estimate.score, weight)
    true, links = detected & (weight != 0), counted & (weight != 0)
    num, right = int(detected.sum()), int(true.sum())
    errors = np.empty(0) if estimate.delay is None or delay is None else delay_errors(estimate.delay, delay, true)
    # Decimal delays are rounded: an error within 1e-9 of a bin is a bin.
    near, rms = (float((np.abs(errors) <= dt * (1 + 1e-9)).mean()), 1e3 * float(np.sqrt((errors**2).mean()))) \
        if len(errors) else (float("nan"), float("nan"))
    return Detected(
        num_detected=num, precision=right / num if num else float("nan"),
        recall=right / int(links.sum()) if links.any() else float("nan"),
        sign_accuracy=float("nan") if estimate.effect is None else sign_accuracy(estimate.effect, weight, true),
        delay_accuracy=near, delay_rms_ms=rms)


def _ranking(score: Array, linked: Array) -> tuple[Array, Array, Array]:
    """Distinct scores falling, and how many linked pairs and pairs in all are at or above each."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], np.ones(min(len(ordered), 1), bool)))
    return ordered[last], np.cumsum(linked[order])[last], last + 1
