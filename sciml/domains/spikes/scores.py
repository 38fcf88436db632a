"""Scores of rates and of behaviour, per window, so that their mean over the windows is the score of the split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from sciml.adapter import Metric
from sciml.domains.spikes.windows import SpikeWindows

FLOOR = 1e-9
METRICS = (
    Metric("bits_per_spike", "bit/spike", "sum over bins and units of a window over the mean number of spikes of a "
           "window, then mean over windows: the ratio of the sums", higher=True, null=0.0),
    Metric("r2", "1", "1 − squared error of a window over the mean squared deviation of a window, mean over components, "
           "then over windows: the ratio of the sums", higher=True, null=0.0))


def normaliser(windows: SpikeWindows, task: str) -> dict[str, Any]:
    """What turns a window's sums into its share of the split's score: mean spikes per window, or per component the mean
    squared deviation per window from the split's mean, as a question's options."""
    fit, name = windows.source.fit, "behaviour" if task == "behaviour" else "count"
    parts = [getattr(windows.source.layout.recorded(b.group), name)[b.start:b.stop] for b in windows.blocks]
    values, num = np.concatenate(parts).astype(np.float64), len(windows)
    if task == "behaviour":
        seen = np.isfinite(values)
        mean = np.where(seen, values, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
        spread = np.where(seen, np.square(values - mean), 0.0).sum(0)
        return {"task": task, "labels": fit.behaviour.labels, "deviation": spread / num}
    units = list(fit.held_out) if task == "masked" and fit.held_out else list(range(len(fit.units)))
    spikes = float(np.nansum(values[:, units]))
    return {"task": task, "spikes": spikes / num, "null": fit.history.rate.numpy()}


def score(options: dict[str, Any], prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
    """Name → ``(sample,)``. Cells that are NaN in the truth don't count.

    bits/spike: Σ [y log(λ/λ₀) − (λ − λ₀)] / (S ln 2), λ₀ the training mean, S the spikes, rates at least 1e-9 (Pei &
    Ye et al., "Neural Latents Benchmark '21", NeurIPS 2021).
    """
    if options["task"] == "behaviour":
        p, t = (_values(data, "behaviour_value") for data in (prediction, truth))
        error = np.where(np.isfinite(t), np.square(p - t), 0.0).sum(1)  # (sample, K)
        used = options["deviation"] > 0
        return {"r2": (1 - error[:, used] / options["deviation"][used]).mean(1)}
    rate, count = (_values(data, "count") for data in (prediction, truth))
    null = np.maximum(options["null"], FLOOR)
    rate = np.maximum(rate, FLOOR)
    gain = np.where(np.isfinite(count), count * np.log(rate / null) - (rate - null), 0.0)
    return {"bits_per_spike": gain.sum((1, 2)) / (max(options["spikes"], FLOOR) * math.log(2))}


def _values(data: xr.Dataset, name: str) -> np.ndarray:
    values = data[name]
    if "known" in data:
        values = values.where(data["known"])
    return np.asarray(values.transpose("sample", "time", ...).values, np.float64)
