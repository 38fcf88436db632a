"""Penalised Poisson regression of many units on shared features, solved to the optimum for all of them at once.

Per unit: min over (w, b) of mean over its bins of exp(η) − y η, η = x·w + b, plus ½ Σ p w²; strictly convex if p > 0.
Limited-memory BFGS (Nocedal & Wright, Numerical Optimization, §7.2) with, as initial inverse Hessian, that of a unit
whose rate never leaves its mean m: (m G + diag p)⁻¹, from one eigendecomposition of the Gram matrix G for all units
and all penalties, corrected by Woodbury for the unit's own, weakly penalised features. The line search is Newton's
in one variable and needs no product with the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MEMORY, MAX_LOG_RATE = 12, 30.0


class Weights(NamedTuple):
    """``(F, N)`` and ``(N,)``."""

    slope: Tensor
    bias: Tensor


class Solution(NamedTuple):
    """Weights, and how far each unit is from its optimum: sqrt(gᵀ H⁻¹ g) per spike and bin ``(N,)``."""

    weights: Weights
    decrement: Tensor
    iterations: int


@dataclass(frozen=True)
class Problem:
    """features ``(T, F)``, target ``(T, N)``, share ``(T, N)`` of each bin in its unit's mean (0 where not recorded),
    own ``(N, J)`` features under the weaker penalty, and values ``(F,)`` and vectors ``(F, F)`` of the Gram matrix."""

    features: Tensor
    target: Tensor
    share: Tensor
    own: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, features: Tensor, counts: Tensor, own: Tensor) -> Problem:
        """counts ``(T, N)``: NaN where not recorded. The dtype of the features is that of the work."""
        seen = torch.isfinite(counts)
        gram = (features.T @ features).double() / max(1, len(features))
        values, vectors = torch.linalg.eigh(gram)
        kind = features.dtype
        share = seen.to(kind) / seen.sum(0).clamp_min(1)
        return cls(features, torch.where(seen, counts, 0.0).to(kind), share, own, values.clamp_min(0).to(kind),
                   vectors.to(kind))

    def double(self) -> Problem:
        names = ("features", "target", "share", "own", "values", "vectors")
        return Problem(*(x.double() if (x := getattr(self, n)).is_floating_point() else x for n in names))

    def empty_rate(self) -> Tensor:
        """``(N,)`` mean count, at least half a spike in all recorded bins."""
        half = 0.5 / (self.share > 0).sum(0).clamp_min(1)
        return (self.target * self.share).sum(0).maximum(half)

    def penalties(self, strength: float, own: Tensor) -> Tensor:
        """``(F, N)``: strength, and own ``(J,)`` for each unit's own features."""
        units = torch.arange(self.target.shape[1])[:, None].expand(self.own.shape)
        full = self.features.new_full((self.features.shape[1], self.target.shape[1]), strength)
        full[self.own, units] = own.to(full).expand(self.own.shape)
        return full


def gradient(problem: Problem, weights: Weights, penalties: Tensor) -> Tensor:
    """``(F + 1, N)``, the bias last."""
    return _gradient(problem, problem.features @ weights.slope + weights.bias, weights.slope, penalties)


def _gradient(problem: Problem, eta: Tensor, slope: Tensor, penalties: Tensor) -> Tensor:
    error = (eta.clamp_max(MAX_LOG_RATE).exp() - problem.target) * problem.share
    return torch.cat([problem.features.T @ error + penalties * slope, error.sum(0, keepdim=True)])


def solve(problem: Problem, strength: float, own: Tensor, start: Weights | None = None, tolerance: float = 1e-3,
          max_iterations: int = 200) -> Solution:
    """The optimum at these penalties. A unit without a spike keeps the rate of half a spike and no weights: its
    likelihood has no maximum. A start with log-rates over `MAX_LOG_RATE` is not used."""
    rate = problem.empty_rate()
    active = (problem.target * problem.share).sum(0) > 0
    penalties = problem.penalties(strength, own)
    slope, bias = start or Weights(torch.zeros_like(penalties), rate.log())
    slope, bias = torch.where(active, slope, 0.0).to(rate), torch.where(active, bias.to(rate), rate.log())
    wild = (problem.features @ slope + bias).amax(0) > MAX_LOG_RATE
    slope, bias = torch.where(wild, 0.0, slope), torch.where(wild, rate.log(), bias)
    invert = _inverse(problem, rate, strength, own)
    eta = problem.features @ slope + bias
    g = _gradient(problem, eta, slope, penalties) * active
    past: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(max_iterations + 1):
        decrement = ((g * invert(g)).sum(0).clamp_min(0) / rate).sqrt()
        active = active & (decrement > tolerance)
        if not bool(active.any()) or iteration == max_iterations:
            break
        move = -_two_loops(g, past, invert) * active
        change = problem.features @ move[:-1] + move[-1]
        alpha = _line_search(problem, eta, change, (penalties * slope * move[:-1]).sum(0),
                             (penalties * move[:-1].square()).sum(0)) * active
        step = alpha * move
        slope, bias, eta = slope + step[:-1], bias + step[-1], eta + alpha * change
        later = _gradient(problem, eta, slope, penalties)
        past = [*past, _pair(step, later - g)][-MEMORY:]
        g = torch.where(alpha > 0, later, g)
    return Solution(Weights(slope, bias), decrement, iteration)


def _pair(step: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step, change of the gradient and 1/(their product); 0 where the product isn't safely positive."""
    product = (step * change).sum(0)
    safe = product > 1e-7 * step.norm(dim=0) * change.norm(dim=0)
    return step, change, torch.where(safe, 1 / torch.where(safe, product, 1.0), 0.0)


def _two_loops(g: Tensor, past: list[tuple[Tensor, Tensor, Tensor]], invert: Callable[[Tensor], Tensor]) -> Tensor:
    q, factors = g, []
    for step, change, rho in reversed(past):
        factors.append(rho * (step * q).sum(0))
        q = q - factors[-1] * change
    q = invert(q)
    for (step, change, rho), factor in zip(past, reversed(factors)):
        q = q + step * (factor - rho * (change * q).sum(0))
    return q


def _inverse(problem: Problem, rate: Tensor, strength: float, own: Tensor) -> Callable[[Tensor], Tensor]:
    """g ``(F + 1, N)`` ↦ (m G + diag p)⁻¹ g, and 1/m for the bias."""
    values, vectors, units = problem.values[:, None], problem.vectors, torch.arange(len(rate))
    scale = 1 / (rate * values + max(strength, 1e-9))
    delta = strength - own.double()
    delta = torch.where(delta == 0, 1e-6 * strength + 1e-12, delta)
    near = far = None
    if problem.own.shape[1]:
        far = torch.stack([vectors @ (scale[:, n, None] * vectors[problem.own[n]].T) for n in units.tolist()])
        inner = far[units[:, None], problem.own]
        near = torch.linalg.inv(torch.diag(1 / delta) - inner.double()).to(rate)

    def invert(g: Tensor) -> Tensor:
        flat = vectors @ (scale * (vectors.T @ g[:-1]))
        if near is not None and far is not None:
            chosen = flat[problem.own, units[:, None]]
            flat = flat + torch.einsum("nfj,njk,nk->fn", far, near, chosen)
        return torch.cat([flat, g[-1:] / rate])

    return invert


def _line_search(problem: Problem, eta: Tensor, change: Tensor, slope: Tensor, curve: Tensor) -> Tensor:
    """``(N,)`` step lengths: Newton's method on the convex function of one variable, halved until it descends."""
    pull = (problem.target * change * problem.share).sum(0)
    alpha = torch.ones_like(pull)
    for _ in range(3):
        rate = (eta + alpha * change).clamp_max(MAX_LOG_RATE).exp() * problem.share
        first = (rate * change).sum(0) - pull + slope + alpha * curve
        second = (rate * change.square()).sum(0) + curve
        alpha = (alpha - first / second.clamp_min(1e-30)).clamp(0.05, 4.0)
    before = eta.clamp_max(MAX_LOG_RATE).exp()
    base = (before * problem.share).sum(0)
    slack = 4 * torch.finfo(base.dtype).eps * base
    for _ in range(30):
        moved = (eta + alpha * change).clamp_max(MAX_LOG_RATE).exp()
        gain = ((moved - before) * problem.share).sum(0) + alpha * (slope - pull) + alpha.square() * curve / 2
        worse = ~(gain <= slack)
        if not bool(worse.any()):
            return alpha
        alpha = torch.where(worse, alpha / 2, alpha)
    return torch.where(worse, 0.0, alpha)
