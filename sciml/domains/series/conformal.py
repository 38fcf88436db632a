"""Intervals that hold what they promise, from how far off forecasts have been: split and adaptive conformal prediction.

A score says how far a truth lay from its forecast; a margin is a score that the next truth stays below with the
coverage asked for. ``cells`` are whatever has scores of its own: (horizon step, variate). Neighbouring windows overlap,
so that scores are not exchangeable as theory wants them: what coverage comes out is measured (`sciml backtest`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]
STEP_SIZES = (0.001, 0.002, 0.004, 0.008)
"""Larger ones serve the truths that come at once, and overshoot where they come late."""
MEMORY = 500
"""Over so many scores the step size that served best is sought."""


def absolute(prediction: ArrayLike, truth: ArrayLike, scale: ArrayLike = 1.0) -> Array:
    """``|truth − prediction| / scale``; the interval is prediction ± margin · scale. Source: Papadopoulos et al., ECML
    2002; with a scale: Lei et al., J. Am. Stat. Assoc. 113 (2018), §5.2."""
    p, t, unit = (np.asarray(x, np.float64) for x in (prediction, truth, scale))
    return np.abs(t - p) / unit


def outside(low: ArrayLike, high: ArrayLike, truth: ArrayLike) -> Array:
    """``max(low − t, t − high) / (high − low)``: how far a truth lies outside, in widths, negative inside.

    Conformalised quantile regression: Romano, Patterson & Candès, NeurIPS 2019; relative to the width: Sesia & Candès,
    Stat 9 (2020). `widened` is the interval of a margin.
    """
    bottom, top, t = (np.asarray(x, np.float64) for x in (low, high, truth))
    return np.maximum(bottom - t, t - top) / np.maximum(top - bottom, np.finfo(np.float32).tiny)


def widened(low: ArrayLike, high: ArrayLike, margin: ArrayLike) -> tuple[Array, Array]:
    """[low, high] moved outwards by `margin` widths; a margin below −½, which would turn it over, is taken as −½.

    >>> widened(0.0, 2.0, outside(0.0, 2.0, 3.0))
    (np.float64(-1.0), np.float64(3.0))
    """
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    more = np.maximum(margin, -0.5) * (top - bottom)
    return bottom - more, top + more


@dataclass(frozen=True)
class Split:
    """Split conformal prediction. scores: ``(*cells, n)`` ascending, NaN (unknown) last."""

    scores: Array

    @classmethod
    def of(cls, scores: ArrayLike) -> Self:
        """From ``(n, *cells)`` scores of data that nothing was trained on."""
        return cls(np.sort(np.moveaxis(np.asarray(scores, np.float32), 0, -1), -1))

    def margin(self, coverage: float) -> Array:
        """``(*cells)``: the ⌈(n + 1) coverage⌉-th smallest of n known scores, infinite where n is too small for that.

        An exchangeable truth lies within it with at least that probability. Source: Vovk, Gammerman & Shafer,
        Algorithmic Learning in a Random World (2005), §4.2.

        >>> Split.of([[float(i)] for i in range(19)]).margin(0.9), Split.of([[1.0]]).margin(0.9)
        (array([17.], dtype=float32), array([inf], dtype=float32))
        """
        return _smallest(self.scores, np.full(self.scores.shape[:-1], coverage), np.inf)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"kind": "split"}, {"scores": self.scores}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(np.asarray(arrays["scores"]))


@dataclass(frozen=True)
class Adaptive:
    """Adaptive conformal inference: the miscoverage asked of the most recent scores follows the one that is seen.

    Per cell, ``α ← α + γ (1 − coverage − err)`` with every score that becomes known (Gibbs & Candès, NeurIPS 2021),
    for several step sizes γ at once, averaged by weights that follow how well each did (Gibbs & Candès, "Conformal
    inference for online prediction with arbitrary distribution shifts", JMLR 25 (2024), DtACI). One step size: the
    plain method. scores: ``(*cells, window)`` the most recent, NaN before there were as many; alphas, weights:
    ``(γ, *cells)``; oldest: ``(*cells)`` place in the window that the next score takes.
    """

    coverage: float
    step_sizes: tuple[float, ...]
    scores: Array
    oldest: Array
    alphas: Array
    weights: Array

    @classmethod
    def of(cls, scores: ArrayLike, coverage: float, *, window: int = 500,
           step_sizes: tuple[float, ...] = STEP_SIZES) -> Self:
        """From ``(n, *cells)`` scores in order of time, n ≥ 0, of which the last `window` are kept."""
        known = np.asarray(scores, np.float32)
        cells, room = known.shape[1:], np.full((*known.shape[1:], window), np.nan, np.float32)
        recent = np.moveaxis(known[max(0, len(known) - window):], 0, -1)
        room[..., :recent.shape[-1]] = recent
        many = (len(step_sizes), *cells)
        return cls(coverage, tuple(step_sizes), room, np.full(cells, recent.shape[-1] % window),
                   np.full(many, 1 - coverage), np.full(many, 1 / len(step_sizes)))

    def margin(self) -> Array:
        """``(*cells)`` for the next forecast; the largest score known where more is asked for than any of them, so that
        intervals stay finite; infinite before the first score."""
        alpha = (self.weights * self.alphas).sum(0)
        ordered = np.sort(self.scores, -1)
        most = np.fmax.reduce(ordered, -1, initial=-np.inf)
        return _smallest(ordered, np.clip(1 - alpha, 0.0, 1.0), np.where(np.isfinite(most), most, np.inf))

    def learn(self, score: ArrayLike, asked: Array | None = None) -> Self:
        """Of the scores ``(*cells)`` that became known last, NaN where none did. asked: ``(γ, *cells)`` the alphas when
        their forecasts were made, if not these: an error is one of what was promised then."""
        now = np.asarray(score, np.float32)
        asked = self.alphas if asked is None else asked
        there = np.isfinite(now)
        known = np.isfinite(self.scores).sum(-1)
        beta = (1 + (self.scores >= now[..., None]).sum(-1)) / (known + 1)  # the least α that leaves this score out
        target = 1 - self.coverage
        alphas = self.alphas + np.where(there, _column(self.step_sizes, now.ndim) * (
            target - (beta <= asked)), 0.0)
        gap = beta - asked
        loss = target * gap - np.minimum(gap, 0.0)
        weights = self.weights * np.exp(-_rate(self.coverage, len(self.step_sizes)) * (loss - loss.min(0)))
        weights = weights / weights.sum(0)
        weights = (1 - 1 / (2 * MEMORY)) * weights + 1 / (2 * MEMORY * len(weights))
        place = np.where(there, self.oldest, 0)[..., None]
        scores = self.scores.copy()
        kept = np.take_along_axis(scores, place, -1)
        np.put_along_axis(scores, place, np.where(there[..., None], now[..., None], kept), -1)
        return replace(self, scores=scores, alphas=alphas, weights=np.where(there, weights, self.weights),
                       oldest=np.where(there, (self.oldest + 1) % scores.shape[-1], self.oldest))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {name: getattr(self, name) for name in ("scores", "oldest", "alphas", "weights")}
        return {"kind": "adaptive", "coverage": self.coverage, "step_sizes": list(self.step_sizes)}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(float(config["coverage"]), tuple(config["step_sizes"]), *(
            np.asarray(arrays[name]) for name in ("scores", "oldest", "alphas", "weights")))


def follow(method: Adaptive, scores: ArrayLike, *, stride: int = 1) -> tuple[Array, Adaptive]:
    """Margins ``(T, H, *cells)`` of forecasts at T origins, `stride` steps apart, and what was learnt on the way.

    scores: ``(T, H, *cells)`` of the same forecasts, step h at place h − 1. A truth is known h steps after its origin
    and not before: at origin i, step h learns of origin i − ⌈h / stride⌉, each score once and in order.
    """
    given = np.asarray(scores, np.float32)
    horizon = given.shape[1]
    delays, steps = -(-np.arange(1, horizon + 1) // stride), np.arange(horizon)
    margins = np.empty_like(given)
    made = np.repeat(method.alphas[None].astype(np.float32), int(delays[-1]) + 1, 0)
    for origin in range(len(given)):
        due = origin - delays
        known = given[np.maximum(due, 0), steps]
        known[due < 0] = np.nan
        if np.isfinite(known).any():
            method = method.learn(known, np.moveaxis(made[due % len(made), :, steps], 0, 1))
        made[origin % len(made)] = method.alphas
        margins[origin] = method.margin()
    return margins, method


def _smallest(ordered: Array, share: Array, beyond: ArrayLike) -> Array:
    """``(*cells)``: the ⌈(n + 1) share⌉-th smallest of the n known of ``(*cells, window)``; `beyond` if there is none
    such, the smallest if that is the 0-th."""
    known = np.isfinite(ordered).sum(-1)
    rank = np.ceil(np.round((known + 1) * share, 9)).astype(np.int64)
    place = np.clip(rank - 1, 0, np.maximum(known - 1, 0))
    found = np.take_along_axis(ordered, place[..., None], -1)[..., 0]
    return np.where((rank > known) | (known == 0), np.asarray(beyond, ordered.dtype), found)


def _rate(coverage: float, count: int) -> float:
    """The learning rate of the weights, as the paper sets it for a memory of `MEMORY` scores."""
    a = 1 - coverage
    power = (1 - a) ** 2 * a**3 + a**2 * (1 - a) ** 3
    return math.sqrt(3 / MEMORY * (math.log(MEMORY * count) + 2) / power)


def _column(values: tuple[float, ...], ndim: int) -> Array:
    return np.asarray(values).reshape(-1, *[1] * ndim)
