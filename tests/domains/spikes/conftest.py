"""Small stores of simulated recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.source import SourceSpec
from sciml.data.store import Store, StoreDraft, write_store
from sciml.recipe import validate


def network(path: Path, name: str = "net", **options: Any) -> Store:
    """12 units at 8 Hz for 40 s in bins of 20 ms, with behaviour and stimulus."""
    chosen = {"units": 12, "duration_s": 40.0, "bin_ms": 20.0, "rate_hz": 8.0, "behaviour": 2, "calibration_s": 5.0,
              "stimulus": {"signals": 2}, **options}
    spec = validate(SourceSpec, {"name": name, "domain": "spikes", "builder": "spiking_network", "options": chosen,
                                 "missing": "mask", "licence": "CC0-1.0"}, where="test")
    return build(spec, path / f"{name}.zarr", overwrite=True)


@pytest.fixture(scope="session")
def network_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """``network_store(name, **options)``, each made once."""
    made: dict[str, Store] = {}

    def make(name: str = "net", **options: Any) -> Store:
        if name not in made:
            made[name] = network(tmp_path_factory.mktemp("spikes"), name, **options)
        return made[name]

    return make


@pytest.fixture(scope="session")
def population_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """``population_store(name, **options)``: 6 units driven by a circle, with counts or traces, behaviour, states, two
    kinds of covariates and gaps. Bins of 0.1 s: 680 of training, 100, 200 of test, 10 between. Each is made once,
    but where `change` alters its variables."""
    made: dict[str, Store] = {}

    def make(name: str, *, signal: str = "count", states: bool = False, lfp: bool = False, gaps: bool = False,
             seed: int = 0, units: int = 6, change: Callable[[dict[str, Any]], None] | None = None) -> Store:
        if name in made and change is None:
            return made[name]
        data = recorded(signal, states, lfp, gaps, seed, units)
        (change or (lambda values: None))(data)
        store = written(tmp_path_factory.mktemp("population") / f"{name}.zarr", name, data)
        if change is None:
            made[name] = store
        return store

    return make


def recorded(signal: str, states: bool, lfp: bool, gaps: bool, seed: int, units: int) -> dict[str, Any]:
    """Variables ``(time, dim)`` by name."""
    rng = np.random.default_rng(seed)
    phase = np.cumsum(0.15 + 0.2 * rng.normal(size=1000))
    circle = np.stack([np.cos(phase), np.sin(phase)], 1)
    drive = circle @ rng.normal(size=(2, units))
    lfp_values = rng.normal(size=(1000, 2)) + np.roll(circle, -1, 0)
    values: dict[str, Any] = {"behaviour_value": circle}
    if signal == "count":
        values["count"] = rng.poisson(np.exp(drive - 0.3)).astype(float)
    else:
        values["trace"] = 50 + 10 * drive + 3 * rng.normal(size=drive.shape)
    if states:
        values["state_value"] = np.eye(3)[(np.floor(phase / 2.1) % 3).astype(int)]
    if lfp:
        values |= {"lfp_value": 1e-3 * lfp_values, "stimulus_value": rng.normal(size=(1000, 1))}
    if gaps:
        values[signal][300:330] = np.nan
        values[signal][700:, 2] = np.nan
        values["behaviour_value"][150:180, 0] = np.nan
    return values


def written(path: Path, name: str, values: dict[str, Any]) -> Store:
    roles: dict[str, Any] = {"count": "state", "trace": "state", "behaviour_value": "label", "state_value": "label"}
    dims = {key: "unit" if key in ("count", "trace") else key.removesuffix("_value") for key in values}
    data = {key: (("recording", "time", dims[key]), x[None].astype(np.float32)) for key, x in values.items()}
    variables = {key: Variable(role=roles.get(key, "covariate"), unit="mV" if key == "trace" else "1",
                               dims=("time", dims[key])) for key in values}
    coords = {"time": 5.0 + np.arange(1000) * 0.1} | {
        dim: [f"{dim[0]}{i}" for i in range(values[key].shape[1])] for key, dim in dims.items()}
    axes = {"time": AxisMeta(kind="time", unit="s"), **{dim: AxisMeta(kind="set", unit="1") for dim in dims.values()}}
    parts = [(Block(group=0, start=a, stop=b),) for a, b in ((0, 680), (690, 790), (800, 1000))]
    splits = Splits(key="time", gap=10, train=parts[0], validation=parts[1], test=parts[2])
    draft = StoreDraft(domain="spikes", dataset=name, group_dim="recording", groups=1, variables=variables, axes=axes,
                       dt=0.1, splits=splits, provenance=Provenance(builder="test"))
    return write_store(xr.Dataset(data, coords=coords), draft, path)
