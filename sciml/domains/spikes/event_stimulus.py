"""What known signals (stimulus, LFP, temperature) do to the rate of each unit: a Poisson regression in their bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.event_floor import newton
from sciml.domains.spikes.fitted import Columns

FARTHEST = 4.0
"""Standard deviations at which a signal's value is cut: what lies beyond was hardly seen in training."""

NO_SIGNALS = Columns((), (), np.zeros(0), np.zeros(0))


class Driven(NamedTuple):
    """A recording in bins: signals ``(T, P)`` in their own units, counts ``(T, N)``, NaN where unknown, and which bins
    are of training and of validation ``(T,)``."""

    signals: np.ndarray
    counts: np.ndarray
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Drive:
    """g_n(t) = ⟨weight[n], features(signals up to t)⟩, a log gain on the rate of unit n.

    Features: 1, every signal z, standardised by `columns` and cut at `FARTHEST`, its square less 1, and its averages
    over the time constants `slow_s`; 0 where a signal isn't known. weight: ``(N, F)``, without a signal ``(N, 0)``.
    """

    columns: Columns
    bin_s: float
    slow_s: tuple[float, ...]
    weight: Tensor

    @classmethod
    def fit(cls, recordings: Sequence[Driven], columns: Columns, bin_s: float, rate: Tensor,
            slow_s: tuple[float, ...]) -> Self:
        """Newton's method on training bins, unit by unit; a unit that it doesn't predict better on validation (if
        there is any) than its mean rate does has no drive. rate: ``(N,)`` in 1/s."""
        blank = cls(columns, bin_s, slow_s, rate.new_zeros(len(rate), 0))
        if not columns.labels:
            return blank
        x = torch.cat([blank.features(r.signals) for r in recordings])
        counts = torch.from_numpy(np.concatenate([r.counts for r in recordings])).double()
        train, validation = (torch.from_numpy(np.concatenate([getattr(r, name) for r in recordings]))
                             for name in ("train", "validation"))
        weight = rate.new_zeros(len(rate), x.shape[1])
        for unit, expected in enumerate((rate * bin_s).tolist()):
            seen = torch.isfinite(counts[:, unit])
            fitted, held = (seen & part for part in (train, validation))
            w = newton(x[fitted], counts[fitted, unit], x.new_full((int(fitted.sum()),), expected))
            gain = x[held] @ w
            if not bool(held.any()) or float((counts[held, unit] * gain - expected * torch.expm1(gain)).sum()) > 0:
                weight[unit] = w
        return cls(columns, bin_s, slow_s, weight)

    def standardised(self, signals: np.ndarray) -> np.ndarray:
        """``(T, P)`` float64; 0 where not known."""
        z = (np.asarray(signals, np.float64) - self.columns.mean) / self.columns.std
        return np.clip(np.nan_to_num(z), -FARTHEST, FARTHEST)

    def features(self, signals: np.ndarray) -> Tensor:
        """``(T, F)`` float64 of signals ``(T, P)`` in bins without a gap."""
        from scipy.signal import lfilter

        z = self.standardised(signals)
        parts = [np.ones((len(z), 1)), z, np.where(np.isfinite(signals), z**2 - 1, 0.0)]
        for tau in self.slow_s:
            keep = np.exp(-self.bin_s / tau)
            parts.append(lfilter([1 - keep], [1, -keep], z, axis=0, zi=keep * z[:1])[0] if len(z) else z)
        return torch.from_numpy(np.concatenate(parts, 1))

    def gain(self, signals: np.ndarray) -> Tensor:
        """``(T, N)`` float32; no bins where no signal drives anything."""
        if not self.weight.shape[1]:
            return torch.zeros(0, len(self.weight))
        return (self.features(signals) @ self.weight.T).float()
