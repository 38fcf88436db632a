"""What a source file may say of recordings: which variables, what may be unknown in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml import registry
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.errors import InputError

TIMES = np.sort(np.random.default_rng(0).uniform(0, 20, 200))
SPLIT = {"by": "time", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}, "gap": 2}


def built(folder: Path, **source: Any) -> Store:
    np.savez(folder / "a.npz", t=TIMES, u=np.arange(200) % 3)
    spec = SourceSpec.model_validate({
        "name": "lab", "domain": "spikes", "files": [{"path": str(folder / "a.npz")}], "split": SPLIT, "options": {
            "format": "spikes_npz", "spike_times": "t", "spike_units": "u", "bin_s": 0.1, "stop": 20.0}, **source})
    return build(spec, folder / "lab.zarr", overwrite=True)


def test_a_source_that_names_events_alone_keeps_time_and_units(tmp_path: Path) -> None:
    whole = built(tmp_path)
    units, steps = whole.members("unit"), len(whole.coord("time"))
    named: dict[str, Any] = {name: {"role": v.role, "unit": v.unit} for name, v in whole.meta.variables.items()
             if v.role in ("event", "rows")}
    named["spike_time"]["dims"] = ["spike"]
    part = built(tmp_path, variables=named)
    assert set(part.meta.variables) == {"spike_time", "spike_unit", "spike_count"}
    assert (part.members("unit"), len(part.coord("time")), part.meta.dt) == (units, steps, whole.meta.dt)
    np.testing.assert_array_equal(part.read("spike_time", 0), TIMES)


def test_dimensions_that_a_variable_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variables.spike_time.dims.*expected \('spike',\)"):
        built(tmp_path, variables={"spike_time": {"role": "event", "unit": "s", "dims": ["time"]},
                                   "spike_unit": {"role": "event", "unit": "1"},
                                   "spike_count": {"role": "rows", "unit": "1"}})


def described(**holes: bool) -> xr.Dataset:
    rng = np.random.default_rng(1)
    values = {"count": rng.poisson(1.0, (1, 60, 3)).astype(np.float32),
              "behaviour_value": rng.normal(size=(1, 60, 2)).astype(np.float32),
              "delay": np.full((1, 3, 3), 0.002, np.float32)}
    for name, hole in holes.items():
        if hole:
            values[name][0, 1, 1] = np.nan
    dims = {"count": ("time", "unit"), "behaviour_value": ("time", "behaviour"), "delay": ("unit", "source")}
    roles = {"count": ("state", "1"), "behaviour_value": ("label", "1"), "delay": ("parameter", "s")}
    data = {name: (("recording", *dims[name]), x, {"role": roles[name][0], "units": roles[name][1]})
            for name, x in values.items()}
    members = {dim: (dim, [f"{dim[0]}{i}" for i in range(n)], {"kind": "set"})
               for dim, n in (("unit", 3), ("source", 3), ("behaviour", 2))}
    return xr.Dataset(data, coords={"time": ("time", np.arange(60) * 0.1, {"units": "s"}), **members},
                      attrs={"domain": "spikes", "group_dim": "recording"})


@pytest.mark.parametrize(("hole", "passes"), [("behaviour_value", True), ("delay", True), ("count", False)])
def test_unknown_labels_and_delays_are_noted_but_unknown_counts_refused(
        hole: str, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda group, name, *, where="": (
        (lambda options: described(**{hole: True})) if group == "sciml.data.builders" else find(group, name)))
    spec = SourceSpec.model_validate({"name": "lab", "domain": "spikes", "builder": "made", "split": SPLIT})
    if not passes:
        with pytest.raises(InputError, match=r"\[count\]: found 1 of 180 values not finite"):
            build(spec, tmp_path / "s.zarr")
        return
    store = build(spec, tmp_path / "s.zarr")
    assert any(note.startswith(f"{hole}: 1 of ") for note in store.meta.notes)
    assert np.isnan(store.read(hole, 0)).sum() == 1
