"""A tiny recipe over stores of different shape and kind, for tests and for the processes that they start and kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.recipe import Recipe

OPERATOR = {"levels": [{"width": 16, "depth": 1, "mixers": ["axial", "local"], "head_width": 8}],
            "stem_width": 8, "condition_width": 16}


def navier_stokes(path: Path, *, name: str = "ns_a", resolution: int = 16, trajectories: int = 8, frames: int = 8,
                  viscosity: float | list[float] = 1e-3, frame_dt: float = 0.5) -> Store:
    """Trajectories of vorticity ``(8, 8, n, n)``; six to train on, one to validate, one to test."""
    options = {"trajectories": trajectories, "frames": frames, "resolution": resolution, "viscosity": viscosity,
               "spin_up": 0.0, "frame_dt": frame_dt, "initial_amplitude": 30.0}
    counts = {"train": trajectories - 2, "validation": 1, "test": 1}
    source = SourceSpec.model_validate({"name": name, "domain": "fields", "builder": "navier_stokes",
                                        "options": options, "split": {"by": "group", "counts": counts}})
    return build(source, path)


def panel(folder: Path, *, name: str = "panel", variates: tuple[str, ...] = ("load", "oil"), hours: int = 400) -> Store:
    """Noisy daily courses, hourly, one a variate, from a CSV file; split in time 240 : 80 : 80."""
    rng = np.random.default_rng(3)
    time = pd.date_range("2020-01-01", periods=hours, freq="h")
    day = 2 * np.pi * np.arange(hours) / 24
    columns = {v: 5 + np.sin(day + i) + 0.3 * rng.standard_normal(hours) for i, v in enumerate(variates)}
    path = folder / f"{name}.csv"
    pd.DataFrame({"date": time, **columns}).to_csv(path, index=False)
    source = SourceSpec.model_validate({
        "name": name, "domain": "series", "files": [str(path)],
        "options": {"format": "csv", "time_column": "date", "units": dict.fromkeys(variates, "1")},
        "split": {"by": "time", "counts": {"train": hours - 160, "validation": 80, "test": 80}}})
    return build(source, folder / f"{name}.zarr")


def recipe(*stores: str, **train: Any) -> Recipe:
    """Twelve steps of two micro-batches with averaged weights, validated and saved often; `train` changes that."""
    settings = {"steps": 12, "micro_batches": 2, "ema": 0.9, "validate_every": 4, "checkpoint_every": 3,
                "validation_windows": 4, **train}
    return Recipe.model_validate({
        "name": "tiny", "seed": 5, "data": [{"store": store, "batch": 2} for store in stores],
        "domains": {"fields": {"patch": 4}, "series": {"look_back": 24, "horizons": [6, 12], "patch": 6}},
        "operator": OPERATOR, "train": settings})
