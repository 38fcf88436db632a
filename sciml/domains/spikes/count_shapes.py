"""Distributions of a count around its mean: broader or narrower than Poisson, with more or fewer silent bins.

p(k) ∝ exp(θ k) s^[k = 0] / k!^ν for 0 ≤ k ≤ K, with whatever θ gives the mean: Poisson at ν = 1, s = 1, broader below
ν = 1, geometric at 0, narrower above (Conway & Maxwell, J. Ind. Eng. 12, 1962; of spikes: Stevenson, J. Comput.
Neurosci. 41, 2016); s weighs silence, for bursts and refractoriness. One of the generalised counts of Gao et al.,
NeurIPS 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS, STEPS, NEWTON = 32, 40, 60
PRIOR, SHARPEST = 4.0, 8.0
"""Precision of the prior of log s and ν around Poisson; largest ν."""
FULLEST, CLOSE = 0.9, 1e-9
"""A mean is at most this share of K, and met to this relative precision."""


class Shape(NamedTuple):
    """Per unit ``(N,)`` float64: silence, log s, and sharpness, ν."""

    silence: Tensor
    sharpness: Tensor

    @classmethod
    def poisson(cls, units: int) -> Shape:
        return cls(torch.zeros(units, dtype=torch.float64), torch.ones(units, dtype=torch.float64))

    def log_weights(self, most: int) -> Tensor:
        """``(N, most + 1)`` log of what exp(θ k) is multiplied by."""
        return torch.stack(list(self)).T @ _statistics(most)


class Levels(NamedTuple):
    """Bins by their expected count, unit by unit: place ``(T, N)`` of each bin among at most 32 levels of as many bins,
    mean ``(L, N)`` of a level, seen ``(L, N, K + 1)`` how many of its bins held each count."""

    place: Tensor
    mean: Tensor
    seen: Tensor

    @classmethod
    def of(cls, rate: Tensor, counts: Tensor, most: int) -> Levels:
        """Of ``(T, N)``, float64; bins of unknown (NaN) counts have a place, too."""
        bins, units = rate.shape
        num = min(LEVELS, bins)
        place = torch.empty_like(rate, dtype=torch.long)
        rank = (torch.arange(bins) * num // max(bins, 1))[:, None].expand(bins, units)
        place.scatter_(0, rate.argsort(0), rank.contiguous())
        mean = rate.new_zeros(num, units).scatter_reduce_(0, place, rate, "mean", include_self=False)
        known = torch.isfinite(counts)
        cell = (place * units + torch.arange(units)) * (most + 1) + counts.nan_to_num(0.0).long().clamp(max=most)
        seen = torch.bincount(cell[known], minlength=num * units * (most + 1)).view(num, units, most + 1)
        return cls(place, mean.clamp_min(1e-9), seen.to(rate))


def log_chances(mean: Tensor, log_weights: Tensor) -> Tensor:
    """``(..., N, K + 1)`` log p(k) of these means ``(..., N)``, float64, by Newton's method on the log of the mean with
    bisection where it would leave what brackets θ.

    >>> weights = Shape.poisson(1).log_weights(9)
    >>> log_chances(torch.tensor([0.5], dtype=torch.float64), weights).exp()[0, :2].numpy().round(4).tolist()
    [0.6065, 0.3033]
    """
    k = torch.arange(log_weights.shape[-1], dtype=torch.float64)
    target = mean.double().clamp(1e-9, FULLEST * (len(k) - 1)).log()
    theta = target + (log_weights[..., 0] - log_weights[..., 1])
    low, high = torch.full_like(theta, -torch.inf), torch.full_like(theta, torch.inf)
    for _ in range(NEWTON):
        chance = (log_weights + k * theta[..., None]).softmax(-1)
        first, second = (chance * k).sum(-1), (chance * k.square()).sum(-1)
        missing = target - first.log()
        if not bool((missing.abs() > CLOSE).any()):
            break
        low, high = torch.where(missing > 0, theta, low), torch.where(missing > 0, high, theta)
        step = (missing * first / (second - first.square()).clamp_min(1e-300)).clamp(-2.0, 2.0)
        inside = (theta + step > low) & (theta + step < high) | (missing.abs() <= CLOSE)
        middle = torch.where(torch.isfinite(low + high), (low + high) / 2, theta + step)
        theta = torch.where(inside, theta + step, middle)
    return (log_weights + k * theta[..., None]).log_softmax(-1)


def fit_shape(levels: Levels) -> Shape:
    """The most likely shape of each unit at given means, under a normal prior of precision 4 around Poisson.

    Levenberg and Marquardt's method for all units at once, on the expected curvature: the covariance of the two
    statistics that the mean leaves free.
    """
    most = levels.seen.shape[-1] - 1
    k, statistics = torch.arange(most + 1, dtype=torch.float64), _statistics(most)
    num, centre = levels.seen.sum(-1), torch.stack(list(Shape.poisson(1)))[:, 0]  # (L, N), (2,)
    eye = torch.eye(2, dtype=torch.float64)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p = log_chances(levels.mean, x @ statistics)
        return log_p, (levels.seen * log_p).sum((0, 2)) - PRIOR / 2 * (x - centre).square().sum(-1)

    x = centre.expand(levels.seen.shape[1], 2).clone()
    damping = torch.full((len(x),), 1e-2, dtype=torch.float64)
    log_p, reached = objective(x)
    for _ in range(STEPS):
        p = log_p.exp()
        mean = p @ k
        spread = (p @ k.square() - mean.square()).clamp_min(1e-12)
        expected = torch.einsum("lnk,sk->sln", p, statistics)
        with_k = torch.einsum("lnk,sk->sln", p * k, statistics) - expected * mean
        both = torch.einsum("lnk,sk,rk->srln", p, statistics, statistics) - expected[:, None] * expected[None]
        curve = ((both - with_k[:, None] * with_k[None] / spread) * num).sum(2).permute(2, 0, 1) + PRIOR * eye
        surplus = with_k / spread * (levels.seen @ k - num * mean)
        slope = torch.einsum("lnk,sk->sn", levels.seen, statistics) - (expected * num + surplus).sum(1)
        move = torch.linalg.solve(curve + damping[:, None, None] * curve * eye,
                                  (slope.T - PRIOR * (x - centre))[..., None])[..., 0]
        tried = torch.stack([x[:, 0] + move[:, 0], (x[:, 1] + move[:, 1]).clamp(0.0, SHARPEST)], 1)
        log_q, value = objective(tried)
        if bool(((value - reached).abs() < 1e-6).all()):
            break
        better = value > reached
        x, log_p = torch.where(better[:, None], tried, x), torch.where(better[:, None], log_q, log_p)
        damping = torch.where(better, damping / 5, damping * 8)
        reached = torch.where(better, value, reached)
    return Shape(x[:, 0].contiguous(), x[:, 1].contiguous())


def _statistics(most: int) -> Tensor:
    """``(2, most + 1)`` what silence and sharpness weigh: whether k is 0, and −log k!."""
    k = torch.arange(most + 1, dtype=torch.float64)
    return torch.stack([(k == 0).double(), -torch.lgamma(k + 1)])
