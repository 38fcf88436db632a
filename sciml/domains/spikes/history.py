"""What a bin knows of the counts before it (or around it): bumps of recent bins and slow averages of each unit.

Counts are raised to a power (½ steadies the variance of a Poisson count; Bartlett, J. R. Stat. Soc. Suppl. 3, 1936),
standardised per unit, and weighted by bumps, the log-spaced raised cosines of Pillow et al., Nature 454 (2008) 995.
Slow drift is the log of exponential averages of the count. A bin that was not recorded counts as the training mean.
Traces (fluorescence, field potentials) have any sign: they are standardised as they are, and so are their averages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sciml.errors import InputError

CHUNK = 64


@dataclass(frozen=True)
class Basis:
    """Which features: `bins` of history on each side, seen through `bumps` (0: each bin by itself), and slow averages.

    Causal: bins t − `bins` … t − 1. `both_sides`: also t and t + 1 … t + `bins`. Slow averages always use bins < t;
    `slow_scale` multiplies their logs: couplings through them are penalised by its inverse square as much. `signed`: of
    traces, which are raised to no power and whose averages stay linear, in training spreads.
    """

    bins: int = 20
    bumps: int = 8
    power: float = 0.5
    time_constants_s: tuple[float, ...] = ()
    slow_scale: float = 1.0
    both_sides: bool = False
    signed: bool = False

    def __post_init__(self) -> None:
        if self.bins < (0 if self.both_sides else 1) or not 0 <= self.bumps <= self.bins:
            raise InputError("Basis", key="bins, bumps", found=(self.bins, self.bumps), expected="0 ≤ bumps ≤ bins",
                             fix="use at least one bin of history, and no more bumps than bins")
        if min(self.power, self.slow_scale) <= 0 or any(tau <= 0 for tau in self.time_constants_s):
            raise InputError("Basis", key="power, slow_scale, time_constants_s", expected="positive numbers",
                             found=(self.power, self.slow_scale, self.time_constants_s), fix="give seconds")

    def kernels(self) -> np.ndarray:
        """``(K, L)`` weights that sum to 1; columns are the bins in the order of time, the last one t − 1 if causal.

        >>> Basis(bins=2, bumps=0).kernels().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
        """
        past = (_raised_cosines(self.bins, self.bumps) if self.bumps else np.eye(self.bins))[:, ::-1]
        if not self.both_sides:
            return past
        count, none = len(past), np.zeros((len(past), self.bins + 1))
        now = np.zeros((1, 2 * self.bins + 1))
        now[0, self.bins] = 1.0
        kernels = np.concatenate([now, np.concatenate([past, none], 1), np.concatenate([none, past[:, ::-1]], 1)])
        assert kernels.shape == (2 * count + 1, 2 * self.bins + 1)
        return kernels

    def per_unit(self) -> int:
        """Features per unit: kernels and slow averages."""
        return len(self.kernels()) + len(self.time_constants_s)


def _raised_cosines(bins: int, bumps: int) -> np.ndarray:
    """``(bumps, bins)`` over lags l: ½ (1 + cos(π (log(l + ½) − c)/(2 w))) within 2 w of the centres c, w apart."""
    if bumps == 1:
        return np.full((1, bins), 1 / bins)
    where = np.log(np.arange(1, bins + 1) + 0.5)
    centres = np.linspace(where[0], where[-1], bumps)
    phase = np.clip((where - centres[:, None]) * np.pi / (2 * (centres[1] - centres[0])), -np.pi, np.pi)
    weights = (1 + np.cos(phase)) / 2
    return np.asarray(weights / weights.sum(1, keepdims=True))


@lru_cache(maxsize=64)
def _scan_weights(time_constants_s: tuple[float, ...], dt_s: float, dtype: torch.dtype,
                  device: torch.device) -> tuple[Tensor, Tensor]:
    """``(S, CHUNK + 1, CHUNK)``: what each bin of a chunk is worth before each of its bins and after the last; ``(S,
    CHUNK + 1)``: what is left of the averages at its start."""
    keep = torch.tensor([math.exp(-dt_s / tau) for tau in time_constants_s], dtype=torch.float64)[:, None, None]
    ago = torch.arange(CHUNK + 1)[:, None] - 1 - torch.arange(CHUNK)
    weights = torch.where(ago >= 0, (1 - keep) * keep ** ago.clamp_min(0), 0.0)
    fade = keep[..., 0] ** torch.arange(CHUNK + 1)
    return weights.to(device, dtype), fade.to(device, dtype)


class HistoryState(NamedTuple):
    """All that later bins need: recent ``(..., L, N)`` standardised bins, averages ``(..., N, S)`` of count − rate."""

    recent: Tensor
    averages: Tensor


@dataclass(frozen=True)
class Recording:
    """Counts ``(T, N)`` of one continuous recording, NaN where not recorded, and which bins ``(T,)`` fit and select."""

    counts: Tensor
    train: Tensor
    validation: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(x.shape) for x in (self.counts, self.train, self.validation)]
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1] or shapes[2] != shapes[0][:1]:
            raise InputError("Recording", found=shapes, expected="(T, N), (T,), (T,)", fix="pass masks over the bins")
        if bool((self.train & self.validation).any()):
            raise InputError("Recording", key="validation", found="bins that are also in train",
                             expected="bins of one split each", fix="select on bins that were not fitted on")


@dataclass(frozen=True)
class History:
    """Basis and the training moments per unit: mean count (or trace) ``rate``, mean and spread of count ** power (or of
    the trace); float64 (N,)."""

    basis: Basis
    dt_s: float
    rate: Tensor
    centre: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, recordings: Sequence[Recording], basis: Basis, dt_s: float) -> History:
        """Moments of the training bins. A spread is at least that of ten spikes in as many bins: rarer units don't get
        louder than their evidence, and silent ones stay finite."""
        counts = torch.cat([r.counts[r.train] for r in recordings]).double()
        seen = torch.isfinite(counts)
        if not bool(seen.any()):
            raise InputError("History.fit", key="train", found="no recorded bin", expected="counts to fit on",
                             fix="check the split and the recording's gaps")
        if not basis.signed and bool((counts < 0).any()):
            raise InputError("History.fit", key="counts", found=float(counts[seen].min()), expected="counts ≥ 0",
                             fix="pass spikes per bin, not standardised values")
        num = seen.sum(0).clamp_min(1)
        known = torch.where(seen, counts, 0.0)
        powered = known if basis.signed else known.pow(basis.power)
        centre = powered.sum(0) / num
        variance = torch.where(seen, powered - centre, 0.0).square().sum(0) / num
        variance = torch.where(variance > 0, variance, 1.0) if basis.signed else variance.clamp_min(10 / len(counts))
        return cls(basis, float(dt_s), known.sum(0) / num, centre, variance.sqrt())

    def of(self, members: Sequence[int] | np.ndarray) -> History:
        """The history of some of the units, in their order."""
        place = torch.as_tensor(np.array(members, dtype=np.int64))
        return History(self.basis, self.dt_s, self.rate[place], self.centre[place], self.spread[place])

    @property
    def num_units(self) -> int:
        return len(self.rate)

    @property
    def num_features(self) -> int:
        return self.num_units * self.basis.per_unit()

    def start(self, *batch: int, dtype: torch.dtype = torch.float32) -> HistoryState:
        """As if the mean of training had always been: nothing is known."""
        length = self.basis.bins
        slow = len(self.basis.time_constants_s)
        return HistoryState(torch.zeros(*batch, length, self.num_units, dtype=dtype),
                            torch.zeros(*batch, self.num_units, slow, dtype=dtype))

    def features(self, counts: Tensor, state: HistoryState | None = None, after: Tensor | None = None,
                 ) -> tuple[Tensor, HistoryState]:
        """``(..., T, N · per_unit)``, unit by unit, of counts ``(..., T, N)``, and the state after the last bin.

        `state` holds what came before (default: nothing known), `after` ``(..., ≤ bins, N)`` the counts that follow, of
        which only a basis of both sides makes use.
        """
        state = state or self.start(*counts.shape[:-2], dtype=counts.dtype)
        z, excess = self.prepared(counts)
        averages, last = self.averages(excess, state.averages)
        both = torch.cat([state.recent.to(z), z], -2)
        recent = both[..., both.shape[-2] - self.basis.bins:, :]
        if self.basis.both_sides:
            follow = z[..., :0, :] if after is None else self.prepared(after[..., :self.basis.bins, :])[0]
            blank = z.new_zeros(*z.shape[:-2], self.basis.bins - follow.shape[-2], z.shape[-1])
            both = torch.cat([both, follow, blank], -2)
        else:
            both = both[..., :-1, :]
        fast = self._convolved(both).unflatten(-1, (self.num_units, -1))
        return torch.cat([fast, self.logs(averages)], -1).flatten(-2), HistoryState(recent, last)

    def now(self, state: HistoryState) -> Tensor:
        """``(..., N · per_unit)`` features of the next bin; the basis must be causal."""
        if self.basis.both_sides:
            raise InputError("History.now", key="both_sides", found=True, expected="a causal basis",
                             fix="a bin that hasn't happened yet has no bins after it")
        kernels = torch.as_tensor(self.basis.kernels().copy()).to(state.recent)
        fast = torch.einsum("...ln,kl->...nk", state.recent, kernels)
        return torch.cat([fast, self.logs(state.averages)], -1).flatten(-2)

    def push(self, state: HistoryState, counts: Tensor) -> HistoryState:
        """The state one bin later, after counts ``(..., N)``."""
        z, excess = self.prepared(counts)
        keep = self._keep(excess)
        averages = keep * state.averages + (1 - keep) * excess[..., None]
        return HistoryState(torch.cat([state.recent, z[..., None, :]], -2)[..., 1:, :], averages)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {name: getattr(self, name).numpy() for name in ("rate", "centre", "spread")}
        return {"basis": asdict(self.basis), "dt_s": self.dt_s}, arrays

    @classmethod
    def restore(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        basis = Basis(**{**config["basis"], "time_constants_s": tuple(config["basis"]["time_constants_s"])})
        known = (torch.tensor(np.asarray(arrays[name]), dtype=torch.float64) for name in ("rate", "centre", "spread"))
        return cls(basis, float(config["dt_s"]), *known)

    def prepared(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised counts ** power, and count − rate; 0 where not recorded."""
        seen = torch.isfinite(counts)
        known = torch.where(seen, counts, 0.0)
        some = known > 0  # the slope of a root is infinite at 0
        powered = known if self.basis.signed else torch.where(
            some, torch.where(some, known, 1.0).pow(self.basis.power), 0.0)
        z = (powered - self.centre.to(counts)) / self.spread.to(counts)
        return torch.where(seen, z, 0.0), torch.where(seen, known - self.rate.to(counts), 0.0)

    def _convolved(self, z: Tensor) -> Tensor:
        kernels = torch.as_tensor(self.basis.kernels().copy()).to(z)
        if z.shape[-2] < kernels.shape[1]:
            return z.new_zeros(*z.shape[:-2], 0, z.shape[-1] * len(kernels))
        flat = z.movedim(-1, -2).reshape(-1, 1, z.shape[-2])
        out = torch.nn.functional.conv1d(flat, kernels[:, None])
        return out.reshape(*z.shape[:-2], z.shape[-1], len(kernels), -1).movedim(-1, -3).flatten(-2)

    def _keep(self, like: Tensor) -> Tensor:
        return self._weights(like)[1][:, 1]

    def _weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return _scan_weights(self.basis.time_constants_s, self.dt_s, like.dtype, like.device)

    def scan(self, excess: Tensor, start: Tensor) -> Tensor:
        """Exponential averages ``(..., T + 1, N, S)`` of count − rate ``(..., T, N)``: before each bin and after the
        last, from `start` ``(..., N, S)`` on, by matrices over chunks."""
        weights, fade = self._weights(excess)
        length, slow = excess.shape[-2], len(fade)
        if not slow:
            return excess.new_zeros(*excess.shape[:-2], length + 1, excess.shape[-1], 0)
        pieces = length // CHUNK + 1
        padded = torch.nn.functional.pad(excess, (0, 0, 0, pieces * CHUNK - length)).unflatten(-2, (pieces, CHUNK))
        inside = (weights.flatten(0, 1) @ padded).unflatten(-2, (slow, CHUNK + 1))  # (..., pieces, S, CHUNK + 1, N)
        current, rows = start.to(excess).mT, []
        for c in range(pieces):
            rows.append(inside[..., c, :, :, :] + fade[..., None] * current[..., None, :])
            current = rows[-1][..., -1, :]
        joined = torch.cat([r[..., :-1, :] for r in rows], -2)[..., :length + 1, :]
        return joined.movedim(-3, -1)

    def carry(self, excess: Tensor, start: Tensor) -> Tensor:
        """Averages ``(..., N, S)`` after the last bin of at most `CHUNK`: the last row of `scan`."""
        weights, fade = self._weights(excess)
        length = excess.shape[-2]
        return (weights[:, length, :length] @ excess + fade[:, length, None] * start.to(excess).mT).mT

    def averages(self, excess: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Of `scan`, those before each bin ``(..., T, N, S)``, and those after the last ``(..., N, S)``."""
        found = self.scan(excess, start)
        return found[..., :-1, :, :], found[..., -1, :, :]

    def logs(self, averages: Tensor) -> Tensor:
        """scale · log((rate + average + h)/(rate + h)), h half a spike per time constant: 0 at the mean. Signed: scale
        · average / spread."""
        if self.basis.signed:
            return averages / self.spread.to(averages)[:, None] * self.basis.slow_scale
        rate = self.rate.to(averages)[:, None]
        half = torch.tensor([self.dt_s / (2 * tau) for tau in self.basis.time_constants_s]).to(averages)
        return torch.log(((rate + averages).clamp_min(0) + half) / (rate + half)) * self.basis.slow_scale
