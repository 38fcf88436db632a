"""How predictions of fields are scored, per sample (and step), beside which persistence is printed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from sciml import metrics as formulas
from sciml.adapter import Metric
from sciml.domains.fields.config import Contract

CHANNELS = "per sample and channel over space, mean over channels, then over samples"
STEPS = "per sample, channel and step over space, mean over channels, "


def metrics(states: Mapping[str, str], time_unit: str) -> tuple[Metric, ...]:
    """All metrics of fields with these state variables (name → unit)."""
    own = tuple(Metric(f"rmse/{name}", unit, "per sample over space, then mean") for name, unit in states.items())
    return (
        Metric("relative_l2", "1", CHANNELS, null=1.0), *own,
        Metric("gmean_relative_l2", "1", STEPS + "geometric mean over steps, then mean over samples", null=1.0),
        Metric("correlation", "1", STEPS + "then mean over samples", higher=True, null=0.0),
        Metric("correlation_time", time_unit, STEPS + "time at or above 0.8, then mean over samples", higher=True,
               null=0.0),
        Metric("spectrum_ratio", "1", STEPS + "largest factor between power spectra up to half the Nyquist wavenumber, "
               "then mean over samples"),
    )


def score(known: Contract, steps: int, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
    """Metric → ``(samples,)`` for the direct prediction; ``(samples, steps)`` for a rollout, but for its summaries."""
    keep = 2 if steps else 1
    lead = ("sample", "step") if steps else ("sample",)
    result: dict[str, np.ndarray] = {}
    collected: dict[str, list[np.ndarray]] = {}
    for name in known.states:
        p, t = (d[name].transpose(*lead, *known.names).values for d in (prediction, truth))
        result[f"rmse/{name}"] = formulas.rmse(p, t, keep=keep)
        collected.setdefault("relative_l2", []).append(formulas.relative_l2(p, t, keep=keep))
        collected.setdefault("correlation", []).append(formulas.correlation(p, t, keep=keep))
        periods = [axis.period for axis in known.axes if axis.period is not None]
        if len(periods) == len(known.axes):
            ours, theirs = (formulas.power_spectrum(x, periods)[1] for x in (p, t))
            ratio = formulas.spectrum_ratio(ours, theirs, (ours.shape[-1] - 1) // 2)
            collected.setdefault("spectrum_ratio", []).append(ratio)
    result |= {name: np.asarray(np.mean(parts, axis=0)) for name, parts in collected.items()}
    if steps:
        result["gmean_relative_l2"] = formulas.gmean(result["relative_l2"])
        result["correlation_time"] = formulas.correlation_time(result["correlation"], known.dt)
    return result
