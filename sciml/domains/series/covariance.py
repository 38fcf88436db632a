"""How values of a series go together over time: mean products of training pairs by lag, and a curve through them.

The curve ``C(Δ) = Σ w_k m(|Δ| r_k) cos(2π f_k Δ) + nugget [Δ = 0]`` has weights of at least 0, found by non-negative
least squares over a dictionary of rates r and frequencies f; m is exp(−x), or (1 + √3 x) exp(−√3 x). Every term is a
covariance (a product of two), and so is the sum. Pairs are weighed by how many there are and how little they vary, as
in Cressie, Statistics for Spatial Data (1993), §2.6; m of smoothness 3/2: Rasmussen & Williams, Gaussian Processes for
Machine Learning (2006), §4.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

PER_STEP = 4
"""Bins of lag in a mean step."""
MOST_PRODUCTS = 1 << 26
DECAYS, HARMONICS = 16, 3
LASTING = (0.0, 1 / 20, 1 / 3)
"""Of a period, by how much of itself it decays in a cycle."""
LEAST_NUGGET = 1e-4
"""Of the variance."""
CLOSE = 0.05
"""Of the variance: lags that vary less than that don't weigh more."""


@dataclass(frozen=True)
class Lags:
    """Of pairs of training values, standardised: mean lag ``(N,)`` in mean steps (the first is 0: each value with
    itself), mean product ``(N, V)`` and how many ``(N, V)``; reach: the longest lag that was looked for."""

    lag: np.ndarray
    product: np.ndarray
    count: np.ndarray
    reach: float

    @classmethod
    def of(cls, values: Sequence[np.ndarray], times: Sequence[np.ndarray], rows: int) -> Self:
        """Of pieces ``(T, V)`` (NaN is missing) at ``(T,)`` times in mean steps: pairs up to `rows` rows apart.

        Where there are more than `MOST_PRODUCTS`, only every so many-th row is a first one.
        """
        width, total = values[0].shape[1], sum(map(np.size, values))
        stride, reach = max(1, -(-total * rows // MOST_PRODUCTS)), 2.0 * rows
        bins = int(reach * PER_STEP) + 2
        lag, pairs = np.zeros(bins), np.zeros(bins)
        product, count = np.zeros((bins, width)), np.zeros((bins, width))
        for x, t in zip(values, times):
            there = np.isfinite(x)
            z = np.where(there, x, 0.0)
            for apart in range(min(rows, len(x))):
                first = np.arange(0, len(x) - apart, stride)
                gap = t[first + apart] - t[first]
                place = np.minimum(np.ceil(gap * PER_STEP).astype(np.int64), bins - 1) if apart else first * 0
                lag += np.bincount(place, gap, bins)
                pairs += np.bincount(place, minlength=bins)
                for v in range(width):
                    product[:, v] += np.bincount(place, z[first, v] * z[first + apart, v], bins)
                    count[:, v] += np.bincount(place, there[first, v] * there[first + apart, v], bins)
        kept = np.flatnonzero((count.max(1) > 0) & (np.arange(bins) < bins - 1))
        return cls(lag[kept] / pairs[kept], product[kept] / np.maximum(count[kept], 1), count[kept], reach)

    def together(self) -> Lags:
        """Of all variates as if they were one."""
        count = self.count.sum(1, keepdims=True)
        total = (self.product * self.count).sum(1, keepdims=True)
        return replace(self, product=total / np.maximum(count, 1), count=count)


@dataclass(frozen=True)
class Covariance:
    """rate, frequency ``(K,)`` per mean step; weight ``(G, K)`` and nugget ``(G,)`` of G variates, or of all in one;
    smooth: whether m is the one that is differentiable at 0."""

    rate: np.ndarray
    frequency: np.ndarray
    weight: np.ndarray
    nugget: np.ndarray
    smooth: bool = False

    @classmethod
    def fit(cls, lags: Lags, periods: Sequence[float] = (), *, smooth: bool = False, level: float = 0.0) -> Self:
        """periods: in mean steps, whose harmonics the curve may have. level: the variance, relative to that of the
        values, of a constant that nothing is known of; the larger, the more a window's own mean is gone by."""
        rate, frequency = _dictionary(lags.reach, periods)
        columns = np.concatenate([_shape(torch.from_numpy(lags.lag)[None], rate, frequency, smooth)[:, 0].numpy().T,
                                  (lags.lag == 0)[:, None]], 1)
        weights = []
        for v in range(lags.product.shape[1]):
            product, power = lags.product[:, v], max(float(lags.product[0, v]), 1e-12)
            importance = np.sqrt(lags.count[:, v]) / np.maximum(1 - product / power, CLOSE)
            q, r = np.linalg.qr(columns * importance[:, None])
            found = nnls(r, q.T @ (product / power * importance))[0]
            found[-1] = max(found[-1], LEAST_NUGGET)
            found[0] += level
            weights.append(found * power)
        table = np.stack(weights)
        used = table[:, :-1].max(0) > 0
        return cls(rate[used], frequency[used], table[:, :-1][:, used], table[:, -1], smooth)

    def of(self, members: np.ndarray) -> Covariance:
        """That of some variates."""
        if len(self.weight) == 1:
            return self
        return replace(self, weight=self.weight[members], nugget=self.nugget[members])

    @property
    def variance(self) -> np.ndarray:
        """``(G,)`` of what is not noise."""
        return np.asarray(self.weight.sum(1))

    def at(self, lag: Tensor) -> Tensor:
        """``(B, G, n, m)`` without the nugget, of lags ``(B, n, m)`` in mean steps, float64."""
        shapes = _shape(lag, self.rate, self.frequency, self.smooth)
        return torch.einsum("gk,kbnm->bgnm", torch.from_numpy(self.weight), shapes)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        names = ("rate", "frequency", "weight", "nugget")
        return {"smooth": self.smooth}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        rate, frequency, weight, nugget = (np.asarray(arrays[n]) for n in ("rate", "frequency", "weight", "nugget"))
        return cls(rate, frequency, weight, nugget, bool(config["smooth"]))


def _dictionary(reach: float, periods: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rates and frequencies; the first of each is that of a constant."""
    terms = [(0.0, 0.0), *((1 / decay, 0.0) for decay in np.geomspace(0.25, 2 * reach, DECAYS))]
    terms += [(lasting / period, order / period) for period in periods for order in range(1, HARMONICS + 1)
              for lasting in LASTING if period / order >= 1]
    rate, frequency = zip(*terms)
    return np.array(rate), np.array(frequency)


def _shape(lag: Tensor, rate: np.ndarray, frequency: np.ndarray, smooth: bool) -> Tensor:
    """``(K, …)`` terms of weight 1 at lags ``(…)``."""
    distance, made = lag.abs(), []
    for r, f in zip(rate.tolist(), frequency.tolist()):
        x = distance * (r * (math.sqrt(3) if smooth else 1.0))
        term = torch.exp(-x) if r else torch.ones_like(x)
        term = term * (1 + x) if smooth and r else term
        made.append(term * torch.cos(2 * math.pi * f * distance) if f else term)
    return torch.stack(made)
