"""Readers of traces and discrete states, starters whose gaps are marked wherever they are, and archives of counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import xarray as xr
import yaml

from sciml.data.build import build
from sciml.data.readers import read, recognise
from sciml.data.source import SourceSpec
from sciml.errors import InputError
from sciml.recipe import validate

RNG = np.random.default_rng(0)
DFF = RNG.normal(size=(300, 4)).astype(np.float32)
PHASE = np.repeat([0, 1, 2, -1, 1, 0], 50)


def source(path: Path, **options: Any) -> SourceSpec:
    split = {"by": "time", "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}}
    return validate(SourceSpec, {"name": "lab", "domain": "spikes", "files": [{"path": str(path)}], "split": split,
                                 "missing": "mask", "licence": "CC0-1.0", "options": options}, where="test")


def look(path: Path, **options: Any) -> xr.Dataset:
    return read(source(path, **options), [path])


@pytest.mark.parametrize("kind", ["npz", "mat", "csv"])
def test_traces_and_states(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"lab.{kind}"
    states = {"phase": {"names": ["rest", "run", "groom"]}}
    chosen: dict[str, Any] = {"format": {"npz": "spikes_npz", "mat": "matlab", "csv": "spike_table"}[kind],
                              "traces": "dff", "trace_unit": "1", "bin_s": 0.1, "states": states,
                              "behaviour": {"speed": {"unit": "cm/s"}}}
    speed = np.linspace(0, 1, 300)
    if kind == "npz":
        np.savez(path, dff=DFF, phase=PHASE, speed=speed)
    elif kind == "mat":
        scipy.io.savemat(path, {"dff": DFF, "phase": PHASE, "speed": speed})
    else:
        columns = [*(f"roi_{i}" for i in range(4)), "phase", "speed", "t_ms"]
        rows = np.column_stack([DFF, PHASE, speed, 1000 + 100 * np.arange(300)])
        path.write_text(",".join(columns) + "\n" + "\n".join(",".join(f"{x:.9g}" for x in row) for row in rows))
        chosen |= {"traces": columns[:4], "time_column": "t_ms", "time_unit": "ms"}
        chosen.pop("bin_s")
    store = build(source(path, **chosen), str(tmp_path / "lab.zarr"))
    assert store.meta.variables["trace"].role == "state"
    assert store.meta.variables["state_value"].role == "label"
    assert store.members("state") == ("rest", "run", "groom")
    assert store.members("unit") == (tuple(f"roi_{i}" for i in range(4)) if kind == "csv" else ("u0", "u1", "u2", "u3"))
    np.testing.assert_allclose(store.read("trace", 0), DFF, rtol=1e-6)
    shares = store.read("state_value", 0)
    assert np.isnan(shares[150:200]).all()
    np.testing.assert_array_equal(shares[PHASE >= 0], np.eye(3)[PHASE[PHASE >= 0]])
    assert store.meta.dt == pytest.approx(0.1)
    assert float(store.coord("time")[0]) == pytest.approx(1.0 if kind == "csv" else 0.0)


def test_states_beside_spike_times_are_shares_of_bins(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, spike_times=np.sort(RNG.uniform(0, 10, 200)), spike_units=RNG.integers(0, 3, 200),
             code=np.repeat([0, 1], 500), when=np.arange(1000) * 0.01)
    data = look(path, format="spikes_npz", spike_times="spike_times", spike_units="spike_units", bin_s=2.0,
                states={"code": {"names": ["quiet", "active"], "times": "when"}})
    shares = data["state_value"].values[0]
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=1e-6)
    assert shares[2].tolist() == pytest.approx([0.5, 0.5])
    assert shares[[0, 4]].tolist() == [[1, 0], [0, 1]]


def test_traces_keep_gaps_and_say_who_is_silent(tmp_path: Path) -> None:
    values = DFF.copy()
    values[10:20] = np.nan
    values[:, 2] = np.nan
    np.savez(tmp_path / "a.npz", dff=values)
    data = look(tmp_path / "a.npz", format="spikes_npz", traces="dff", bin_s=0.1)
    np.testing.assert_array_equal(np.isnan(data["trace"].values[0]), np.isnan(values))
    assert [note for note in data.attrs["notes"] if "no values" in note] == ["1 units have no values: u2"]
    assert not any("no spikes" in note for note in data.attrs["notes"])
    assert "count" not in data


@pytest.mark.parametrize(("change", "says"), [
    ({"counts": "dff"}, "one of them"), ({"states": {"phase": {}}}, "names"),
    ({"states": {"phase": {"names": ["rest"]}}}, "number of names"), ({"states": {"speed": {"names": ["a"]}}}, "whole"),
    ({"traces": ["phase", "short"]}, "as many bins"), ({"traces": "inf", "orientation": "bins_by_units"}, "infinite"),
    ({"time_unit": "ms"}, "none beside traces")])
def test_what_is_no_trace_or_state_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", dff=DFF, phase=PHASE, speed=np.linspace(0, 0.9, 300), short=np.zeros(7),
             inf=np.full((300, 2), np.inf))
    with pytest.raises(InputError, match=says):
        look(tmp_path / "a.npz", **{"format": "spikes_npz", "traces": "dff", "bin_s": 0.1, **change})


def test_tables_of_uneven_bins_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a,b\n0,1,2\n0.1,1,2\n0.3,1,2\n")
    with pytest.raises(InputError, match="one width"):
        look(tmp_path / "a.csv", format="spike_table", traces=["a", "b"], time_column="t")
    with pytest.raises(InputError, match="time_column"):
        look(tmp_path / "a.csv", format="spike_table", counts=["a", "b"])
    data = look(tmp_path / "a.csv", format="spike_table", counts=["a", "b"], bin_s=0.1)
    assert data["count"].values[0].tolist() == [[1, 2]] * 3


@pytest.mark.parametrize(("name", "key"), [("spikes", "counts"), ("dff", "traces")])
def test_archives_of_counts_and_traces_are_recognised(name: str, key: str, tmp_path: Path) -> None:
    values = RNG.poisson(1.0, (300, 20)) if key == "counts" else RNG.normal(size=(300, 20))
    held: dict[str, Any] = {name: values, "vel": RNG.normal(size=(300, 2)), "seed": np.array(3)}
    np.savez(tmp_path / "a.npz", **held)
    found = recognise(str(tmp_path / "a.npz"))
    assert found.format == "spikes_npz"
    assert found.domain == "spikes"
    text = found.source_yaml("lab")
    marked = [line.strip() for line in text.splitlines() if "FILL IN" in line and not line.startswith("#")]
    assert "bin_s: null  # FILL IN" in marked
    assert '"unit": null  # FILL IN' in marked
    options = yaml.safe_load(text)["options"]
    assert options[key] == name
    assert options["orientation"] == "bins_by_units"
    assert options["behaviour"] == {"vel": {"unit": None}}
    np.savez(tmp_path / "b.npz", series=values)
    assert recognise(str(tmp_path / "b.npz")).format == "numpy"


def test_a_network_of_one_unit_has_no_delays(tmp_path: Path) -> None:
    options = {"units": 1, "duration_s": 20.0, "bin_ms": 20.0, "rate_hz": 8.0}
    spec = validate(SourceSpec, {"name": "one", "domain": "spikes", "builder": "spiking_network", "options": options,
                                 "missing": "mask", "licence": "CC0-1.0"}, where="test")
    store = build(spec, str(tmp_path / "one.zarr"))
    assert "delay" not in store.meta.variables
    assert store.read("weight", 0).tolist() == [[0.0]]
    assert 40 < len(store.read("spike_time", 0)) < 400
