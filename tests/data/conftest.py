"""Data sets of spikes in memory, and stores built from data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml import registry
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store

DT, BINS = 0.02, 400


def _spikes(rows: tuple[int, ...] = (300, 0, 170), *, behaviour: bool = True) -> xr.Dataset:
    """Recordings of 8 s with so many spikes each, and a velocity."""
    rng = np.random.default_rng(0)
    times = np.concatenate([np.sort(rng.uniform(0, BINS * DT, n)) for n in rows]) if rows else np.zeros(0)
    data = xr.Dataset(
        {"spike_time": ("spike", times, {"role": "event", "units": "s"}),
         "spike_unit": ("spike", rng.integers(0, 4, sum(rows), np.int32), {"role": "event", "units": "1"}),
         "spike_count": ("recording", np.array(rows, np.int64),
                         {"role": "rows", "units": "1", "sample_dimension": "spike"})},
        coords={"time": ("time", np.arange(BINS) * DT, {"units": "s"}), "unit": ["u00", "u01", "u02", "u03"],
                "unit_area": ("unit", list("aabb")),
                "recording": ("recording", [f"day{i}" for i in range(len(rows))])},
        attrs={"domain": "spikes", "group_dim": "recording", "format": "toy"})
    if behaviour:
        values = rng.normal(2.0, 1.0, (len(rows), BINS, 2)).astype(np.float32)
        data["behaviour_value"] = (("recording", "time", "behaviour"), values, {"role": "label"})
        data = data.assign_coords(behaviour=["vel_x", "vel_y"], behaviour_unit=("behaviour", ["m/s", "m/s"]))
    return data


@pytest.fixture(scope="session")
def spikes() -> Callable[..., xr.Dataset]:
    """`_spikes`: three recordings of 8 s in bins of 0.02 s with 300, 0 and 170 spikes of 4 units."""
    return _spikes


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Store]:
    """A store built from a dataset, with source fields by name."""
    find = registry.find

    def make(data: xr.Dataset, name: str = "s", **source: Any) -> Store:
        monkeypatch.setattr(registry, "find", lambda group, name, *, where="": (
            (lambda options: data) if group == "sciml.data.builders" else find(group, name, where=where)))
        spec = {"name": "toy", "builder": "toy", "domain": data.attrs["domain"], "licence": "CC0", "citation": "us"}
        return build(SourceSpec(**spec | source), tmp_path / f"{name}.zarr")
    return make
