"""Scores of rates, traces, behaviour, states and embeddings, per window, so that their mean over the windows is the
score of the split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.adapter import Metric
from sciml.domains.spikes.config import Task
from sciml.domains.spikes.floors import state_codes
from sciml.domains.spikes.windows import SpikeWindows

FLOOR = 1e-9
LEAST_EXPECTED = 1e-3
"""Spikes per bin, for the dispersion: one spike where none was expected would else be all of it."""
METRICS = (
    Metric("bits_per_spike", "bit/spike", "sum over bins and units of a window over the mean number of spikes of a "
           "window, then mean over windows: the ratio of the sums", higher=True, null=0.0),
    Metric("dispersion", "1", "Pearson's sum of (n − rate)²/rate over bins and units of a window, over their mean "
           "number in a window, then mean over windows: 1 where Poisson is adequate, above where counts vary more",
           higher=None),
    Metric("r2", "1", "1 − squared error of a window over the mean squared deviation of a window, mean over components "
           "(units, of traces), then over windows: the ratio of the sums", higher=True, null=0.0),
    Metric("balanced_accuracy", "1", "bins of a window whose likeliest state is the true one over the mean number of "
           "that state's bins in a window, mean over states, then over windows: mean recall", higher=True),
    Metric("alignment", "nat", "KL divergence of neighbourhoods in the embedding from those in behaviour, pairs of "
           "bins of the same window, mean over bins, then over windows"))


def normaliser(windows: SpikeWindows, task: Task) -> dict[str, Any]:
    """A question's options: what turns a window's sums into its share of the split's score, each per window. Of counts,
    the spikes and the number of cells; of traces and behaviour, per component, the squared deviation from the split's
    mean; of states, the bins in each."""
    fit, num = windows.source.fit, len(windows)
    name = {"behaviour": "behaviour", "state": "state", "embedding": "behaviour"}.get(task, "count")
    parts = [getattr(windows.source.layout.recorded(b.group), name)[b.start:b.stop] for b in windows.blocks]
    values = np.concatenate(parts).astype(np.float64)
    if task == "masked" and not fit.held_out:
        values = np.where(np.concatenate(windows.asked()), values, np.nan)
    if task == "embedding":
        return {"kind": "embedding"}
    if task == "state":
        codes = state_codes(torch.from_numpy(values)).numpy()
        return {"kind": "state", "bins": np.array([(codes == c).sum() for c in range(values.shape[1])]) / num}
    units = list(fit.held_out) if task == "masked" and fit.held_out else list(range(len(fit.units)))
    if name == "count" and fit.signal == "count":
        seen = np.isfinite(values[:, units])
        return {"kind": "count", "spikes": float(np.nansum(values[:, units])) / num, "cells": float(seen.sum()) / num,
                "null": fit.history.rate.numpy()}
    seen = np.isfinite(values)
    mean = np.where(seen, values, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    deviation = np.where(seen, np.square(values - mean), 0.0).sum(0) / num
    if name == "count":
        deviation[[n for n in range(len(fit.units)) if n not in units]] = 0.0
    return {"kind": "trace" if name == "count" else "behaviour", "deviation": deviation}


def score(options: dict[str, Any], prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
    """Name → ``(sample,)``. Cells that are NaN in the truth don't count.

    bits/spike: Σ [y log(λ/λ₀) − (λ − λ₀)] / (S ln 2), λ₀ the training mean, S the spikes, rates at least 1e-9 (Pei &
    Ye et al., "Neural Latents Benchmark '21", NeurIPS 2021). dispersion: McCullagh & Nelder (1989), §6.2.
    """
    kind = options["kind"]
    if kind in ("behaviour", "trace"):
        name = "behaviour_value" if kind == "behaviour" else "trace"
        p, t = (_values(data, name) for data in (prediction, truth))
        error = np.where(np.isfinite(t), np.square(p - t), 0.0).sum(1)  # (sample, K)
        used = options["deviation"] > 0
        return {"r2": (1 - error[:, used] / options["deviation"][used]).mean(1)}
    if kind == "state":
        p, t = (_values(data, "state_value") for data in (prediction, truth))
        return {"balanced_accuracy": _recalls(options["bins"], p, t)}
    if kind == "embedding":
        return {"alignment": _alignment(*(_values(d, "embedding") for d in (prediction, truth)))}
    rate, count = (_values(data, "count") for data in (prediction, truth))
    null = np.maximum(options["null"], FLOOR)
    rate, seen = np.maximum(rate, FLOOR), np.isfinite(count)
    gain = np.where(seen, count * np.log(rate / null) - (rate - null), 0.0)
    likely = np.maximum(rate, LEAST_EXPECTED)
    excess = np.where(seen, np.square(count - likely) / likely, 0.0)
    return {"bits_per_spike": gain.sum((1, 2)) / (max(options["spikes"], FLOOR) * math.log(2)),
            "dispersion": excess.sum((1, 2)) / max(options["cells"], FLOOR)}


def _recalls(bins: np.ndarray, chance: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``(sample,)`` of ``(sample, time, state)``."""
    codes = state_codes(torch.from_numpy(truth)).numpy()
    right = codes == np.nan_to_num(chance, nan=-1.0).argmax(-1)
    used = np.flatnonzero(bins)
    return np.mean([(right & (codes == c)).sum(1) / bins[c] for c in used], 0)


def _alignment(place: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``(sample,)`` mean KL(p ‖ q) of ``(sample, time, axis)``, 0 with fewer than three known
    bins. Neighbours are bins of the same window; in training (`sciml.objectives.population`) of the whole batch."""
    found = []
    for z, y in zip(place, truth):
        known = np.isfinite(y).all(-1)
        if known.sum() < 3:
            found.append(0.0)
            continue
        others = ~np.eye(int(known.sum()), dtype=bool)
        log_q, log_p = (_log_neighbours(x[known])[others] for x in (z, y))
        found.append(float((np.exp(log_p) * (log_p - log_q)).sum() / len(others)))
    return np.array(found)


def _log_neighbours(x: np.ndarray) -> np.ndarray:
    """``(n, n)`` log-softmax of −|x_i − x_j|²/2 over j ≠ i."""
    from scipy.special import log_softmax

    away = -np.square(x[:, None] - x).sum(-1) / 2
    np.fill_diagonal(away, -np.inf)
    return np.asarray(log_softmax(away, -1))


def _values(data: xr.Dataset, name: str) -> np.ndarray:
    values = data[name]
    if "known" in data:
        values = values.where(data["known"])
    return np.asarray(values.transpose("sample", "time", ...).values, np.float64)
