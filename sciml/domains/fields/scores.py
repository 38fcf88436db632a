"""How predictions of fields are scored, per sample (and step), beside which the baseline is printed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from sciml import metrics as formulas
from sciml.adapter import Metric
from sciml.domains.fields import measures
from sciml.domains.fields.config import Contract
from sciml.domains.fields.grids import is_even
from sciml.domains.fields.trust import ESTIMATE, RANKS, SPLIT, error_estimate

CHANNELS = "per sample and channel over space, mean over channels, then over samples"
STEPS = "per sample, channel and step over space, mean over channels, "
OWN = "per sample over space, then mean"


def metrics(datasets: Mapping[str, Contract]) -> tuple[Metric, ...]:
    """All metrics of fields of these data sets; those of a variable in its own unit end in its name."""
    states = {n: s.unit for c in datasets.values() for n, s in c.states.items()}
    times = {c.time_unit for c in datasets.values() if not c.steady}
    time_unit = times.pop() if len(times) == 1 else "time"
    own = [Metric(f"{kind}/{name}", unit, OWN) for name, unit in states.items() for kind in (
        "rmse", "mean_error", "boundary_rmse", *(f"rmse_{band}" for band in measures.BANDS))]
    flows = [Metric(f"{kind}/{vector}", "1", OWN) for vector in dict.fromkeys(v for c in datasets.values()
                                                                              for v in c.vectors)
             for kind in ("energy_error", "enstrophy_error", "divergence", "energy_spectrum_ratio")]
    return (
        Metric("relative_l2", "1", CHANNELS, null=1.0),
        Metric("vrmse", "1", CHANNELS, null=1.0), *own, *flows,
        Metric("gmean_relative_l2", "1", STEPS + "geometric mean over steps, then mean over samples", null=1.0),
        Metric("correlation", "1", STEPS + "then mean over samples", higher=True, null=0.0),
        Metric("correlation_time", time_unit, STEPS + "time at or above 0.8, then mean over samples", higher=True,
               null=0.0),
        Metric("spectrum_ratio", "1", STEPS + "largest factor between power spectra up to half the Nyquist wavenumber, "
               "then mean over samples"),
        Metric(f"{SPLIT}_relative_l2", "1", CHANNELS, null=1.0),
        Metric(ESTIMATE, "1", CHANNELS, higher=None),
        Metric(RANKS, "1", "Spearman's rank correlation of error_estimate and relative_l2 over samples", higher=True,
               null=0.0),
    )


def score(known: Contract, steps: int, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
    """Metric → ``(samples,)`` for the direct prediction; ``(samples, steps)`` for a rollout, but for its summaries."""
    keep, rank = 2 if steps else 1, len(known.names)
    dims = (*(("sample", "step") if steps else ("sample",)), *known.names)
    pairs = {name: tuple(d[name].transpose(*dims).values.astype(np.float64) for d in (prediction, truth))
             for name in known.states}
    grid = not known.scattered
    ends, even = [axis.period is None for axis in known.axes], grid and _even(truth, known)
    result: dict[str, np.ndarray] = {}
    collected: dict[str, list[np.ndarray]] = {}
    for name, (p, t) in pairs.items():
        result[f"rmse/{name}"] = formulas.rmse(p, t, keep=keep)
        result[f"mean_error/{name}"] = measures.mean_error(p, t, rank)
        if any(ends) and grid:
            result[f"boundary_rmse/{name}"] = measures.boundary_rmse(p, t, ends)
        if even and np.isfinite(t).all():
            result |= {f"rmse_{band}/{name}": x for band, x in measures.band_rmse(p, t, rank).items()}
        collected.setdefault("relative_l2", []).append(formulas.relative_l2(p, t, keep=keep))
        collected.setdefault("vrmse", []).append(measures.vrmse(p, t, rank))
        collected.setdefault("correlation", []).append(formulas.correlation(p, t, keep=keep))
        if not any(ends):
            ours, theirs = (formulas.power_spectrum(x, _periods(known))[1] for x in (p, t))
            ratio = formulas.spectrum_ratio(ours, theirs, (ours.shape[-1] - 1) // 2)
            collected.setdefault("spectrum_ratio", []).append(ratio)
        if f"{name}_{SPLIT}" in prediction:
            split = prediction[f"{name}_{SPLIT}"].transpose(*dims).values
            collected.setdefault(f"{SPLIT}_relative_l2", []).append(formulas.relative_l2(split, t, keep=keep))
    result |= {name: np.asarray(np.mean(parts, axis=0)) for name, parts in collected.items()}
    if f"{SPLIT}_relative_l2" in result:
        result[ESTIMATE] = error_estimate(prediction)
    for vector, parts in known.vectors.items():
        if not any(ends) and even and set(parts) == set(known.names):
            p, t = (np.stack([pairs[parts[axis]][which] for axis in known.names], -1) for which in (0, 1))
            if np.isfinite(t).all():
                result |= {f"{name}/{vector}": x for name, x in measures.flow_scores(p, t, _periods(known)).items()}
    if steps:
        result["gmean_relative_l2"] = formulas.gmean(result["relative_l2"])
        result["correlation_time"] = formulas.correlation_time(result["correlation"], known.dt)
    return result


def _periods(known: Contract) -> list[float]:
    return [axis.period for axis in known.axes if axis.period is not None]


def _even(dataset: xr.Dataset, known: Contract) -> bool:
    """Whether all axes of space are evenly spaced, of what has no coordinates too."""
    return all(is_even(dataset[axis.name].values, axis.period) for axis in known.axes)
