"""Poisson GLM with coupling: log λ[n, t] = b[n] + Σ x[m, k](t) W[m, k, n] + covariates, fitted to its optimum.

Forward: x are features of the bins before t of all units, and a unit's own are penalised less than the couplings.
Held-out (co-smoothing): x are those of the held-in units on both sides of t, for the rates of the others.
Truccolo et al., J. Neurophysiol. 93 (2005) 1074; Pillow et al., Nature 454 (2008) 995; co-smoothing: Pei & Ye et al.,
"Neural Latents Benchmark '21", NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.history import Basis, History, HistoryState, Recording
from sciml.domains.spikes.poisson import Problem, Solution, Weights, solve
from sciml.errors import InputError

ROWS = 8192
FINAL_TOLERANCE = 1e-7
SLOW_S = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)
FORWARD_BASES = (Basis(5, 0), Basis(10, 6, time_constants_s=SLOW_S, slow_scale=0.5),
                 Basis(20, 8, time_constants_s=SLOW_S, slow_scale=0.5),
                 Basis(30, 10, time_constants_s=SLOW_S, slow_scale=0.5))
HELD_OUT_BASES = (Basis(3, 0, both_sides=True), Basis(20, 6, both_sides=True),
                  Basis(20, 6, time_constants_s=(4.0, 64.0), slow_scale=2.0, both_sides=True),
                  Basis(40, 8, time_constants_s=(4.0, 64.0), slow_scale=2.0, both_sides=True))
STRENGTHS = (0.4, 0.2, 0.1, 0.05, 0.025)
OWN_SHARES = (0.1,)
SLOW_PENALTY = 1e-3


@dataclass(frozen=True)
class Penalty:
    """½ Σ p w² beside the mean log-likelihood of a bin: p of the couplings, of a unit's own bins and the covariates,
    and of its own slow averages (w of their logs, before `Basis.slow_scale`)."""

    coupling: float
    own: float
    slow: float

    def of(self, model: GLM) -> Tensor:
        """``(J,)`` for a unit's own features, in the order of `Problem.own`."""
        basis = model.history.basis
        kernels, slow = (len(basis.kernels()), len(basis.time_constants_s)) if model.forward() else (0, 0)
        return torch.tensor([self.own] * kernels + [self.slow * basis.slow_scale ** 2] * slow
                            + [self.own] * len(model.covariates.mean), dtype=torch.float64)


@dataclass(frozen=True)
class Covariates:
    """Mean and spread ``(P,)`` over the training bins of stimulus or behaviour; an unknown value counts as the mean."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> Covariates:
        """Of ``(T, P)``."""
        seen = torch.isfinite(values)
        num, known = seen.sum(0).clamp_min(1), torch.where(seen, values, 0.0).double()
        mean = known.sum(0) / num
        variance = torch.where(seen, values.double() - mean, 0.0).square().sum(0) / num
        return cls(mean, torch.where(variance > 0, variance.sqrt(), 1.0))

    def standard(self, values: Tensor) -> Tensor:
        z = (values - self.mean.to(values)) / self.spread.to(values)
        return torch.where(torch.isfinite(z), z, 0.0)


@dataclass(frozen=True)
class GLM:
    """The fitted model: history of the `sources`, float64 ``slope (F, N)`` and ``bias (N,)`` of the `targets`.

    Rows of the slope are the features of `History.features`, source by source, then the covariates. Log-rates stop at
    ``ceiling (N,)``, the log of one more than the training maximum: a rollout can't run away.
    """

    history: History
    covariates: Covariates
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    slope: Tensor
    bias: Tensor
    ceiling: Tensor
    provenance: Mapping[str, Any]

    def log_rates(self, counts: Tensor, covariates: Tensor | None = None, state: HistoryState | None = None) -> Tensor:
        """``(..., T, targets)`` of all units' counts ``(..., T, units)`` and covariates ``(..., T, P)``, in log spikes
        per bin and the dtype of the counts; `state` is what came before (default: nothing known)."""
        rows, used = [], counts[..., list(self.sources)]
        ahead = self.history.basis.bins if self.history.basis.both_sides else 0
        for low in range(0, counts.shape[-2], ROWS):
            here = slice(low, low + ROWS)
            after = used[..., low + ROWS:low + ROWS + ahead, :]
            x, state = self.history.features(used[..., here, :], state, after)
            rows.append(self._linear(x, None if covariates is None else covariates[..., here, :]))
        return torch.cat(rows, -2)

    def next_log_rates(self, state: HistoryState, covariates: Tensor | None = None) -> Tensor:
        """``(..., targets)`` of the bin after `state`; with ``history.push`` this is the step of a rollout."""
        return self._linear(self.history.now(state), covariates)

    def forward(self) -> bool:
        """Whether units are predicted from their own past too."""
        return self.sources == self.targets

    def coupling(self) -> Tensor:
        """``(targets, sources, K)``: the weight of each bump or bin of a source."""
        count = self.history.num_features
        blocks = self.slope[:count].unflatten(0, (len(self.sources), -1))
        return blocks[:, :len(self.history.basis.kernels())].permute(2, 0, 1)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.history.state()
        weights = {"slope": self.slope, "bias": self.bias, "ceiling": self.ceiling,
                   "covariate_mean": self.covariates.mean, "covariate_spread": self.covariates.spread}
        return ({"kind": "glm", "history": config, "sources": list(self.sources), "targets": list(self.targets),
                 "provenance": dict(self.provenance)}, {**arrays, **{name: w.numpy() for name, w in weights.items()}})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        def read(name: str) -> Tensor:
            return torch.tensor(np.asarray(arrays[name]), dtype=torch.float64)

        return cls(History.restore(config["history"], dict(arrays)),
                   Covariates(read("covariate_mean"), read("covariate_spread")), tuple(config["sources"]),
                   tuple(config["targets"]), read("slope"), read("bias"), read("ceiling"), config["provenance"])

    def _linear(self, features: Tensor, covariates: Tensor | None) -> Tensor:
        expected = len(self.covariates.mean)
        if (0 if covariates is None else covariates.shape[-1]) != expected:
            raise InputError("GLM", key="covariates", found=None if covariates is None else covariates.shape[-1],
                             expected=f"{expected} covariates", fix="pass those that the model was fitted with")
        if covariates is not None:
            features = torch.cat([features, self.covariates.standard(covariates).to(features)], -1)
        return (features @ self.slope.to(features) + self.bias.to(features)).minimum(self.ceiling.to(features))


@dataclass(frozen=True)
class Design:
    """What a basis makes of the recordings: the problem on training bins, and rows to select on."""

    problem: Problem
    features: Tensor
    target: Tensor
    model: GLM


def design(recordings: Sequence[Recording], basis: Basis, dt_s: float, held_in: Sequence[int] | None = None,
           covariates: Sequence[Tensor] | None = None, dtype: torch.dtype = torch.float32) -> Design:
    """Features of every recorded bin from its whole past (or, both sides, its surroundings), whatever split that is in.

    held_in: the sources of a held-out model, whose targets are all other units; None: forward, all units from all.
    """
    units = recordings[0].counts.shape[1]
    sources = tuple(range(units)) if held_in is None else tuple(sorted(held_in))
    targets = sources if held_in is None else tuple(sorted(set(range(units)) - set(sources)))
    if not sources or not targets or (held_in is None and basis.both_sides):
        raise InputError("design", key="held_in", found=held_in, expected="units to read and units to predict",
                         fix="a basis of both sides sees bin t itself: hold units out")
    chosen = [replace(r, counts=r.counts[:, list(sources)]) for r in recordings]
    history = History.fit(chosen, basis, dt_s)
    beside = [r.counts.new_zeros(len(r.counts), 0) for r in recordings] if covariates is None else covariates
    scale = Covariates.fit(torch.cat([c[r.train] for r, c in zip(recordings, beside, strict=True)]))
    rows = [torch.cat([history.features(r.counts.to(dtype))[0], scale.standard(c.to(dtype))], 1)
            for r, c in zip(chosen, beside)]
    first = history.num_features
    per_unit = basis.per_unit() if held_in is None else 0
    own = torch.arange(len(targets))[:, None] * per_unit + torch.arange(per_unit)
    own = torch.cat([own, torch.arange(first, first + len(scale.mean)).expand(len(targets), -1)], 1)
    train, valid = (torch.cat([x[m] for x, m in zip(rows, masks)]) for masks in
                    ([r.train for r in recordings], [r.validation for r in recordings]))
    target, asked = (torch.cat([r.counts[m][:, list(targets)] for r, m in zip(recordings, masks)]) for masks in
                     ([r.train for r in recordings], [r.validation for r in recordings]))
    top = torch.nan_to_num(target, nan=0.0).amax(0).double()
    problem = Problem.of(train, target, own)
    blank = GLM(history, scale, sources, targets, torch.zeros(train.shape[1], len(targets), dtype=torch.float64),
                problem.empty_rate().double().log(), (top + 1).log(), {})
    return Design(problem, valid, asked, blank)


def fit(work: Design, penalty: Penalty, start: Weights | None = None) -> GLM:
    """To the optimum: float32 first, then float64 until the Newton decrement is `FINAL_TOLERANCE` of a spike."""
    rough = _rough(work, penalty, start)
    final = solve(work.problem.double(), penalty.coupling, penalty.of(work.model), rough.weights, FINAL_TOLERANCE)
    provenance = {"coupling": penalty.coupling, "own": penalty.own, "slow": penalty.slow,
                  "train_bins": len(work.problem.features),
                  "iterations": [rough.iterations, final.iterations], "decrement": float(final.decrement.max()),
                  "selected_on": "nothing"}
    return _with(work.model, final.weights, provenance)


def select(recordings: Sequence[Recording], dt_s: float, bases: Sequence[Basis] = FORWARD_BASES,
           strengths: Sequence[float] = STRENGTHS, own_shares: Sequence[float] = OWN_SHARES,
           held_in: Sequence[int] | None = None, covariates: Sequence[Tensor] | None = None) -> GLM:
    """The basis and penalties with the greatest likelihood of the validation bins; strengths are walked from strong to
    weak, each from the last one's weights, until validation turns. Provenance lists what was tried."""
    if not any(bool(r.validation.any()) for r in recordings):
        raise InputError("select", key="validation", found="no bin", expected="bins to select on",
                         fix="call fit with a penalty of your own choice")
    best: tuple[float, Basis, Penalty, Weights] | None = None
    tried = []
    for basis in bases:
        work = design(recordings, basis, dt_s, held_in, covariates)
        for share in own_shares:
            weights, scores = None, list[float]()
            for strength in sorted(strengths, reverse=True):
                penalty = Penalty(strength, strength * share, SLOW_PENALTY)
                weights = _rough(work, penalty, weights).weights
                scores.append(_bits(_with(work.model, weights, {}), work))
                tried.append({"bins": basis.bins, "bumps": basis.bumps, "power": basis.power,
                              "time_constants_s": list(basis.time_constants_s), "coupling": strength,
                              "own": penalty.own, "validation_bits_per_spike": scores[-1]})
                if best is None or scores[-1] > best[0]:
                    best = scores[-1], basis, penalty, weights
                if len(scores) > 1 and scores[-1] < scores[-2]:
                    break
    assert best is not None
    final = fit(design(recordings, best[1], dt_s, held_in, covariates), best[2], best[3])
    return replace(final, provenance={**final.provenance, "selected_on": "validation", "tried": tried,
                                      "validation_bits_per_spike": best[0]})


def _rough(work: Design, penalty: Penalty, start: Weights | None) -> Solution:
    return solve(work.problem, penalty.coupling, penalty.of(work.model), start)


def _with(model: GLM, weights: Weights, provenance: Mapping[str, Any]) -> GLM:
    return replace(model, slope=weights.slope.double(), bias=weights.bias.double(), provenance=provenance)


def _bits(model: GLM, work: Design) -> float:
    """Bits per spike of the validation rows over the training mean rates; 0 if there is no spike."""
    log_rate = (work.features.double() @ model.slope + model.bias).minimum(model.ceiling)
    seen = torch.isfinite(work.target)
    y, null = torch.where(seen, work.target, 0.0).double(), work.problem.empty_rate().double().log()
    gain = ((y * (log_rate - null) - (log_rate.exp() - null.exp())) * seen).sum()
    return float(gain / y.sum().clamp_min(1) / math.log(2))
