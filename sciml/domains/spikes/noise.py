"""What a bin holds beyond what is expected of it: the scatter of each unit, and how units scatter together.

Units that share input fire together within a bin, which rates that depend on earlier bins can't say. Together: a
Gaussian copula. Each unit turns a normal number into a count (or trace) by the quantiles of its own distribution, and
the normal numbers of a bin are correlated (for spikes: Macke et al., Neural Comput. 21, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.count_shapes import Levels, Shape, fit_shape, log_chances
from sciml.domains.spikes.sampling import nucleus

TERMS = 8
"""Of the Hermite expansion of a count in its normal number."""
HALVINGS, STRONGEST, LEAST_EIGENVALUE = 40, 0.95, 1e-3


@dataclass(frozen=True)
class CountNoise:
    """shape: of each unit's distribution; most: the largest count of a bin; factor ``(N, N)``: its rows have length 1,
    and its product with its transpose are the correlations of the normal numbers. All float64."""

    shape: Shape
    most: int
    factor: Tensor

    @classmethod
    def poisson(cls, units: int, most: int) -> CountNoise:
        """Independent Poisson counts."""
        return cls(Shape.poisson(units), most, torch.eye(units, dtype=torch.float64))

    @classmethod
    def fit(cls, rate: Tensor, counts: Tensor, most: int) -> CountNoise:
        """Of expected ``(T, N)`` and recorded counts, NaN where not recorded.

        Correlations are such that the covariances of the units are, on average over bins, those recorded. With c_m(t)
        the Hermite coefficients of a unit's quantile function in bin t, the covariance of two is Σ_m ρ^m c_m c'_m.
        """
        rate, counts = rate.double().clamp_min(1e-9), counts.double()
        levels = Levels.of(rate, counts, most)
        shape = fit_shape(levels)
        known = torch.isfinite(counts).double()
        of_level = _hermite(log_chances(levels.mean, shape.log_weights(most)))
        terms = [c.gather(0, levels.place) * known for c in of_level]
        return cls(shape, most, _factor(*_correlations(terms, (counts - rate).nan_to_num(0.0), known)))

    def draw(self, log_rate: Tensor, members: np.ndarray, sampling: SamplingConfig,
             generator: torch.Generator) -> Tensor:
        """``(B, N)`` counts of the units at these places. Their gradient is that of the rate (straight through; Bengio
        et al., arXiv:1308.3432)."""
        rate = log_rate.clamp(-20.0, math.log(self.most)).exp()
        weights = Shape(*(x[members] for x in self.shape)).log_weights(self.most)
        chance = nucleus(log_chances(rate.detach(), weights), sampling)
        place = torch.special.ndtr(_normal(self.factor, members, len(log_rate), generator))
        drawn = (place[..., None] > chance.cumsum(-1)[..., :-1]).sum(-1)
        return drawn.to(log_rate) + (rate - rate.detach())

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {"silence": self.shape.silence, "sharpness": self.shape.sharpness, "factor": self.factor}
        return {"most": self.most}, {name: x.numpy() for name, x in arrays.items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> CountNoise:
        silence, sharpness, factor = (_tensor(arrays[name]) for name in ("silence", "sharpness", "factor"))
        return cls(Shape(silence, sharpness), int(config["most"]), factor)


@dataclass(frozen=True)
class TraceNoise:
    """Normal: spread ``(N,)``, standard deviations of standardised traces; factor as of `CountNoise`. float64."""

    spread: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, mean: Tensor, traces: Tensor) -> TraceNoise:
        """Of predicted ``(T, N)`` and recorded standardised traces, NaN where not recorded."""
        known = torch.isfinite(traces).double()
        error = (traces.double() - mean.double()).nan_to_num(0.0)
        spread = (error.square().sum(0) / known.sum(0).clamp_min(1)).sqrt()
        return cls(spread, _factor(*_correlations([known], error / spread.clamp_min(1e-12), known)))

    def draw(self, mean: Tensor, members: np.ndarray, sampling: SamplingConfig, generator: torch.Generator) -> Tensor:
        """``(B, N)`` around means, both standardised, differentiable in them. The variance is multiplied by the
        temperature; of the normal distribution, the middle that holds `top_p` is kept."""
        normal = _normal(self.factor, members, len(mean), generator)
        kept = torch.special.ndtri(0.5 + sampling.top_p * (torch.special.ndtr(normal) - 0.5))
        noise = kept.clamp(-6.0, 6.0) * sampling.temperature**0.5
        return mean + (self.spread[members] * noise).to(mean)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {"spread": self.spread.numpy(), "factor": self.factor.numpy()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TraceNoise:
        return cls(_tensor(arrays["spread"]), _tensor(arrays["factor"]))


Noise = CountNoise | TraceNoise


def restore(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Noise:
    return (CountNoise if "most" in config else TraceNoise).restore(config, arrays)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def _normal(factor: Tensor, members: np.ndarray, batch: int, generator: torch.Generator) -> Tensor:
    """``(B, N)`` correlated normal numbers of some units."""
    return torch.randn(batch, factor.shape[1], generator=generator, dtype=torch.float64) @ factor[members].T


def _hermite(log_chance: Tensor) -> list[Tensor]:
    """Coefficients ``(...)`` of a count as a function of its normal number in normalised Hermite polynomials, from the
    first on, of log p(k) ``(..., K + 1)``: Σ_j φ(z_j) He_{m−1}(z_j)/√m!, z_j where the count reaches j + 1."""
    edges = torch.special.ndtri(log_chance.exp().cumsum(-1)[..., :-1].clamp(1e-12, 1 - 1e-12))
    density = (-edges.square() / 2).exp() / math.sqrt(2 * math.pi)
    before, now, found = torch.zeros_like(edges), torch.ones_like(edges), []
    for m in range(1, TERMS + 1):
        found.append((density * now).sum(-1) / math.sqrt(math.factorial(m)))
        before, now = now, edges * now - (m - 1) * before
    return found


def _correlations(terms: list[Tensor], error: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations ``(N, N)`` of the normal numbers whose expansions ``(T, N)`` give the errors' covariances, between
    ±.95, and the variance that chance alone would give them, infinite where nothing is known."""
    num = (known.T @ known).clamp_min(1)
    covariance = error.T @ error / num
    gains = [c.T @ c / num for c in terms]
    low, high = (torch.full_like(covariance, sign * STRONGEST) for sign in (-1, 1))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        made = torch.zeros_like(middle)
        for gain in reversed(gains):
            made = (made + gain) * middle
        low, high = torch.where(made < covariance, middle, low), torch.where(made < covariance, high, middle)
    power = error.square().sum(0) / known.sum(0).clamp_min(1)
    chance = power[:, None] * power / (num * gains[0].square()).clamp_min(1e-300)
    return (low + high) / 2, torch.where(chance > 0, chance, torch.inf)


def _factor(correlations: Tensor, chance: Tensor) -> Tensor:
    """``(N, N)`` factor of correlations, each first shrunk by τ²/(τ² + its variance by chance): its posterior mean were
    all normal around 0 with variance τ², which is estimated by the weighted mean of what squares exceed chance by."""
    others = ~torch.eye(len(chance), dtype=torch.bool)
    weight = torch.where(others, chance.square().reciprocal(), 0.0)
    excess = torch.where(weight > 0, (correlations.square() - chance) * weight, 0.0).sum()
    usual = excess.clamp_min(0) / weight.sum().clamp_min(1e-300)
    shrunk = torch.where(others, correlations * usual / (usual + chance), 1.0)
    values, vectors = torch.linalg.eigh((shrunk + shrunk.T) / 2)
    factor = vectors * values.clamp_min(LEAST_EIGENVALUE).sqrt()
    return factor / factor.norm(dim=1, keepdim=True)
