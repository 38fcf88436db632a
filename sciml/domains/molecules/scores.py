"""Errors of energies, forces and other properties, in the units that the field's papers use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from sciml.adapter import Metric

MILLI = {"energy": ("meV", 1e3), "forces": ("meV/angstrom", 1e3), "stress": ("meV/angstrom^3", 1e3)}
_EACH = "mean over a configuration's known values, then over configurations"


def metrics_of(units: Mapping[str, str]) -> tuple[Metric, ...]:
    """``<name>_mae`` and ``<name>_rmse`` of every label, energies in meV per configuration.

    >>> [metric.name for metric in metrics_of({"energy": "eV"})]
    ['energy_mae', 'energy_rmse']
    """
    made = []
    for name, unit in units.items():
        shown = MILLI.get(name, (unit, 1.0))[0]
        made += [Metric(f"{name}_mae", shown, _EACH), Metric(f"{name}_rmse", shown, f"root of: {_EACH}", root=True)]
    return tuple(made)


def score_labels(units: Mapping[str, str], prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
    """Metric → one number for every configuration that knows a truth; of a root mean square, the squares."""
    scores: dict[str, Any] = {}
    for name in units:
        if name not in prediction or name not in truth:
            continue
        factor = MILLI.get(name, ("", 1.0))[1]
        error = (prediction[name].values - truth[name].values) * factor
        error = error.reshape(len(error), -1)
        known = truth[f"{name}_known"].values.reshape(len(error), -1)
        error, known = error[known.any(1)], known[known.any(1)]
        scores[f"{name}_mae"] = np.where(known, np.abs(error), 0).sum(1) / known.sum(1)
        scores[f"{name}_rmse"] = np.where(known, error**2, 0).sum(1) / known.sum(1)
    return scores
