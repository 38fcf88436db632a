"""Stores whose times follow no step, or the calendar's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store

SPLIT = {"by": "time", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}}
TAU = 5.0


def walk(count: int = 900, width: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times a Poisson process gives, in mean steps, and at them ``(count, width)`` an Ornstein–Uhlenbeck process of
    variance 1 and correlation time `TAU`."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1.0, count))
    values = rng.normal(size=(count, width))
    for i in range(1, count):
        kept = np.exp(-(times[i] - times[i - 1]) / TAU)
        values[i] = kept * values[i - 1] + np.sqrt(1 - kept**2) * values[i]
    return times, values


def frame_of(times: np.ndarray, values: np.ndarray, *, dates: bool = False, **columns: Any) -> pd.DataFrame:
    """Columns a, b, … at seconds since 2020, or numbers; ``**columns``: constants, such as a name."""
    when = pd.Timestamp("2020-01-01") + pd.to_timedelta((times * 1e9).astype(np.int64), "ns") if dates else times
    return pd.DataFrame({"time": when, **{"abcdefg"[i]: values[:, i] for i in range(values.shape[1])}, **columns})


def store_of(folder: Path, frame: pd.DataFrame, name: str = "walk", **options: Any) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    frame.to_csv(path, index=False)
    told: dict[str, Any] = {"format": "csv", "units": "1", "irregular": "keep", **options}
    spec: dict[str, Any] = {"name": name, "domain": "series", "files": [str(path)], "options": told, "split": SPLIT}
    if "id_column" not in told and frame["time"].dtype.kind == "f":
        spec["axes"] = {"time": {"unit": "s"}}
    return build(SourceSpec.model_validate(spec), folder / f"{name}.zarr")


def walk_store(folder: Path, *, dates: bool = False, count: int = 900) -> Store:
    return store_of(folder, frame_of(*walk(count), dates=dates))
