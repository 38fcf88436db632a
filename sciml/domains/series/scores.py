"""Scores of forecasts and of cells filled in, per window."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sciml import metrics
from sciml.adapter import Metric
from sciml.domains.series.known import Known

QUANTILES, LAST = "quantiles", "last"
REDUCTION = "mean over variates, times and steps of a window, then over windows"


def declared(unit: str | None, *, seasonal: bool = True, quantiles: bool = False,
             last: bool = False) -> tuple[Metric, ...]:
    """mse and mae in standardised units, mase if `seasonal`, the weighted quantile loss and the share of truths between
    the outer `quantiles`, and mae in the variates' own unit if they share one; `last`: beside them the mse of the last
    value known, which is what it is whatever is forecast."""
    found = [Metric("mse", "1", REDUCTION, null=1.0), Metric("mae", "1", REDUCTION)]
    if seasonal:
        found.append(Metric("mase", "1", "mean over variates of error over seasonal naive error, then over windows",
                            null=1.0))
    if quantiles:
        found += [Metric("wql", "1", "2 Σ pinball / Σ |truth − mean| of a window, mean over levels, then over windows"),
                  Metric("coverage", "1", REDUCTION, higher=None)]
    if last:
        found.append(Metric("mse_last_value", "1", REDUCTION, higher=None))
    return tuple(found) if unit is None else (*found, Metric("mae_physical", unit, REDUCTION))


def score(known: Known, unit: str | None, prediction: xr.Dataset, truth: xr.Dataset, *,
          seasonal: bool = True) -> dict[str, np.ndarray]:
    """Name → ``(sample,)``. `truth` may hold the look-back, too; NaN and cells whose ``known`` is False don't count."""
    p, t = _cells(prediction), _cells(truth)
    members = known.members([str(v) for v in prediction["variate"].values], where="prediction")
    t = t[..., t.shape[-2] - p.shape[-2]:, :]
    std, mean, naive = known.std[members], known.mean[members], known.naive[members]
    scaled = (p - mean) / std, (t - mean) / std
    result = {"mse": metrics.mse(*scaled), "mae": metrics.mae(*scaled)}
    if seasonal:
        absolute = metrics.mae(np.moveaxis(p, -1, 1), np.moveaxis(t, -1, 1), keep=2)
        ratio = np.where(naive > 0, absolute / np.where(naive > 0, naive, 1.0), np.nan)
        counted = np.isfinite(ratio)
        mase = np.where(counted, ratio, 0.0).sum(1) / np.maximum(counted.sum(1), 1)
        result["mase"] = np.where(counted.any(1), mase, np.nan)
    if LAST in prediction:
        result["mse_last_value"] = metrics.mse((_last(prediction) - mean) / std, scaled[1])
    if QUANTILES in prediction:
        asked = prediction[QUANTILES].transpose("sample", ..., "time", "variate", "quantile")
        q = (np.asarray(asked.values, np.float64) - mean[:, None]) / std[:, None]
        result["wql"] = metrics.weighted_quantile_loss(q, scaled[1], asked["quantile"].values.tolist())
        result["coverage"] = metrics.coverage(q[..., 0], q[..., -1], scaled[1])
    if unit is not None:
        result["mae_physical"] = metrics.mae(p, t)
    return result


def _last(data: xr.Dataset) -> np.ndarray:
    """``(sample, time, variate)``, the same at all times."""
    last = data[LAST].expand_dims(time=data.sizes["time"]).transpose("sample", "time", "variate")
    return np.asarray(last.values, np.float64)


def _cells(data: xr.Dataset) -> np.ndarray:
    """``(sample, …, time, variate)`` float64, NaN where not known."""
    values = data["value"]
    if "known" in data:
        values = values.where(data["known"])
    return np.asarray(values.transpose("sample", ..., "time", "variate").values, np.float64)
