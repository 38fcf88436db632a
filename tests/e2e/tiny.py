"""A tiny recipe over two stores of different shape, for tests and for the processes that they start and kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def recipe(*stores: str, **train: Any) -> Recipe:
    """Twelve steps of two micro-batches with averaged weights, validated and saved often; `train` changes that."""
    settings = {"steps": 12, "micro_batches": 2, "ema": 0.9, "validate_every": 4, "checkpoint_every": 3,
                "validation_windows": 4, **train}
    return Recipe.model_validate({
        "name": "tiny", "seed": 5, "data": [{"store": store, "batch": 2} for store in stores],
        "domains": {"fields": {"patch": 4}}, "operator": OPERATOR, "train": settings})
