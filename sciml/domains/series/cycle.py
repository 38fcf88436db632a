"""The mean course of a day, a week or a year, per variate: taken out of the look-back and put back into the forecast.

As in Lin et al., "CycleNet", NeurIPS 2024, but estimated in closed form: values less their moving mean over one period,
averaged by phase over the training split (classical decomposition, Hyndman & Athanasopoulos, Forecasting, §3.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.series.calendar import PERIODS_NS, phase


@dataclass(frozen=True)
class Cycle:
    """name: day, week or year. table: ``(bins, V)`` in standardised units, with mean 0 over the bins."""

    name: str
    table: np.ndarray

    @classmethod
    def fit(cls, name: str, pieces: Sequence[np.ndarray], ticks: Sequence[np.ndarray], step: int) -> Cycle:
        """From training pieces ``(T, V)`` of standardised values (NaN is missing) at ``(T,)`` nanosecond ticks."""
        bins = round(PERIODS_NS[name] / step)
        num_variates = pieces[0].shape[1]
        total, count = np.zeros((bins, num_variates)), np.zeros((bins, num_variates))
        for values, when in zip(pieces, ticks):
            if len(values) < bins:
                continue
            change, inner = _less_moving_mean(values, bins)
            place, there = _bins(when[inner], name, bins), np.isfinite(change)
            np.add.at(total, place, np.where(there, change, 0.0))
            np.add.at(count, place, there)
        table = total / np.maximum(count, 1)
        return cls(name, table - table.mean(0))

    def at(self, ticks: np.ndarray, members: Sequence[int] | np.ndarray) -> Tensor:
        """``(B, V, T)`` float32 at ``(B, T)`` ticks for these variates."""
        rows = self.table[_bins(ticks, self.name, len(self.table))][..., members]
        return torch.from_numpy(np.ascontiguousarray(np.swapaxes(rows, -1, -2), dtype=np.float32))

    def remove(self, values: np.ndarray, ticks: np.ndarray) -> np.ndarray:
        """``(T, V)`` standardised values without their cycle, float64."""
        return np.asarray(values - self.table[_bins(ticks, self.name, len(self.table))])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"name": self.name}, {"table": self.table}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(config["name"], np.asarray(arrays["table"]))


def _bins(ticks: np.ndarray, name: str, bins: int) -> np.ndarray:
    if name == "year" and 12 % bins == 0:  # months are not equally long
        return np.asarray(ticks.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64) % 12 * bins // 12)
    return np.minimum((phase(ticks, name) * bins + 1e-6).astype(np.int64), bins - 1)


def _less_moving_mean(values: np.ndarray, width: int) -> tuple[np.ndarray, slice]:
    """Values less the centred mean of `width` of them, where that lies inside; missing ones left out of the mean."""
    def window_sums(x: np.ndarray) -> np.ndarray:
        sums = np.cumsum(np.concatenate([np.zeros((1, x.shape[1])), x]), axis=0)
        return np.asarray(sums[width:] - sums[:-width])
    there = np.isfinite(values)
    mean = window_sums(np.where(there, values, 0.0)) / np.maximum(window_sums(there.astype(np.float64)), 1.0)
    inner = slice(width // 2, width // 2 + len(mean))
    return values[inner] - mean, inner
