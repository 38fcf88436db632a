"""Readers of neural recordings: what they make of each format, on one layout."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.readers import matlab, nwb, phy, read, spike_table, spikes_npz
from sciml.data.readers._spikes import Beside, Rules, Signal, Trial, events_dataset
from sciml.data.readers.pynapple import from_pynapple
from sciml.data.source import SourceSpec
from sciml.errors import InputError

SHARED = Path("/work/shared/data")
A, B = np.array([0.031, 0.3, 0.31, 1.7]), np.array([0.05, 0.9])


def look(path: Path | Sequence[Path], **options: object) -> xr.Dataset:
    paths = [path] if isinstance(path, Path) else list(path)
    source = SourceSpec.model_validate({"name": "lab", "domain": "spikes", "files": [str(p) for p in paths],
                                        "options": options})
    return read(source, paths)


def events(*trains: np.ndarray, beside: Beside | None = None, **rules: Any) -> xr.Dataset:
    return events_dataset(trains, [f"u{i}" for i in range(len(trains))], Rules(**rules), where="lab", format="test",
                          beside=beside)


def check_events(data: xr.Dataset, trains: Sequence[np.ndarray], scale: float = 1.0) -> None:
    """Times, units and bins of one recording are those of `trains`."""
    times, units = data["spike_time"].values, data["spike_unit"].values
    assert (np.diff(times) >= 0).all()
    for index, train in enumerate(trains):
        np.testing.assert_allclose(times[units == index], np.asarray(train) * scale, rtol=1e-12)
    assert data["spike_count"].values.tolist() == [sum(map(len, trains))]
    assert data["spike_count"].attrs["sample_dimension"] == "spike"
    width = float(data["time"].attrs["bin_s"])
    assert data["time"].values[0] <= times.min()
    assert times.max() < data["time"].values[-1] + width
    np.testing.assert_allclose(np.diff(data["time"].values), width)
    assert {str(n): v.attrs["role"] for n, v in data.data_vars.items()}.items() >= {
        "spike_time": "event", "spike_unit": "event", "spike_count": "rows"}.items()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4000), unique=True, max_size=30), min_size=1, max_size=4),
       st.sampled_from([0.001, 0.01, 0.02, 0.1]))
def test_events_keep_every_spike_inside_the_bins(ticks: list[list[int]], width: float) -> None:
    trains = [np.sort(np.array(t, dtype=float)) / 1000 for t in ticks]
    if any(map(len, trains)):
        check_events(events(*trains, bin_s=width), trains)


def test_limits_are_the_stated_ones_and_else_reach_over_everything() -> None:
    assert events(A, B, bin_s=0.1)["time"].values[[0, -1]] == pytest.approx([0.0, 1.7])
    stated = events(A, B, bin_s=0.1, start=0.03, stop=2.03)
    assert stated["time"].values[[0, -1]] == pytest.approx([0.03, 1.93])
    assert stated.sizes["time"] == 20
    assert events(np.array([5.0]), bin_s=0.02)["time"].values == pytest.approx([5.0])
    assert events(np.array([-1.5, 2.0]), bin_s=0.5, start=-2.0)["time"].values[0] == -2
    assert any("0.02 s, the default" in note for note in events(A).attrs["notes"])


def test_behaviour_is_the_mean_over_the_bin_or_between_slow_samples() -> None:
    fast = Signal("x", "cm", np.arange(0, 2, 0.01) + 0.005, np.arange(200.0))
    slow = Signal("y", "1", np.arange(0, 2, 0.15), 10 * np.arange(0, 2, 0.15))
    data = events(A, B, bin_s=0.1, beside=Beside(behaviour=[fast, slow]))
    assert data["behaviour_value"].dims == ("recording", "time", "behaviour")
    assert data["behaviour_unit"].values.tolist() == ["cm", "1"]
    np.testing.assert_allclose(data["behaviour_value"].values[0, :, 0], np.arange(20) * 10 + 4.5)
    y = data["behaviour_value"].values[0, :, 1]
    np.testing.assert_allclose(y[[2, 5]], [2.5, 5.5], rtol=1e-5)
    np.testing.assert_allclose(y[[0, 3]], [0.0, 3.0], atol=1e-6)
    assert any(note.startswith("y: ") and "interpolated" in note for note in data.attrs["notes"])


def test_trials_conditions_and_gaps() -> None:
    trials = [Trial(1.0, 1.5, "left"), Trial(0.2, 0.6, "right hand"), Trial(0.61, 0.62)]
    data = events(A, B, bin_s=0.1, beside=Beside(trials=trials, recorded=[(0, 0.95), (1.0, 1.9)]))
    number = data["trial"].values[0]
    assert number.tolist() == [-1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 0, 0, 0, 0, 0, -1, -1, -1, -1]
    assert data["trial_condition"].values[0][[0, 2, 10]].tolist() == [-1, 1, 0]
    assert data["trial_condition"].attrs["flag_meanings"] == "left right_hand"
    assert np.flatnonzero(data["recorded"].values[0] == 0).tolist() == [9]
    assert any("1 of 3 hold the middle of no bin" in note for note in data.attrs["notes"])
    assert "recorded" not in events(A, B, bin_s=0.1, start=0, stop=1.8)


def written(path: Path, fill: Callable[[Any, Any], None]) -> Path:
    """An NWB file; `fill` gets pynwb and the session before it is written."""
    pynwb = pytest.importorskip("pynwb", reason="pynwb (the extra `spikes`) is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pynwb.NWBFile("s", "lab-1", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
        fill(pynwb, made)
        with pynwb.NWBHDF5IO(path, "w") as io:
            io.write(made)
    return path


def session(path: Path, observed: bool = True) -> Path:
    """Three units, behaviour, a stimulus and trials."""
    def fill(pynwb: Any, made: Any) -> None:
        from pynwb.behavior import Position, SpatialSeries

        made.add_unit_column("quality", "how well sorted")
        for i, (train, quality) in enumerate(((A, "good"), (B, "mua"), (A + 0.01, "good"))):
            extra = {"obs_intervals": [[0.0, 1.0], [1.2 if i else 1.1, 2.0]]} if observed else {}
            made.add_unit(spike_times=train, quality=quality, id=3 * i, **extra)
        times = np.arange(0, 2, 0.01)
        xy = SpatialSeries("hand", data=np.stack([times, -times], 1) * 100, timestamps=times, reference_frame="table",
                           unit="meters", conversion=0.01)
        made.create_processing_module("behavior", "b").add(Position(spatial_series=xy))
        made.add_acquisition(pynwb.TimeSeries("pupil", data=np.ones(40), rate=20.0, starting_time=0.0, unit="pixels"))
        made.add_acquisition(pynwb.TimeSeries("raw", data=np.ones((40, 32)), rate=20.0, unit="V"))
        made.add_stimulus(pynwb.TimeSeries("tone", data=np.arange(40.0), rate=20.0, unit="Hz"))
        made.add_trial_column("trial_type", "where to")
        made.add_trial(start_time=0.0, stop_time=0.5, trial_type="left")
        made.add_trial(start_time=0.5, stop_time=0.9, trial_type="right")

    return written(path, fill)


def test_nwb(tmp_path: Path) -> None:
    path = session(tmp_path / "a.nwb")
    data = look(path, format="nwb", bin_s=0.1, stimulus=["tone"])
    check_events(data, [A, B, A + 0.01])
    assert data["unit"].values.tolist() == ["u0", "u3", "u6"]
    assert data["unit_quality"].values.tolist() == ["good", "mua", "good"]
    assert dict(zip(data["behaviour"].values.tolist(), data["behaviour_unit"].values.tolist())) == {
        "pupil": "1", "hand_x": "m", "hand_y": "m"}
    hand = data["behaviour_value"].sel(behaviour="hand_y").values[0]
    np.testing.assert_allclose(hand[3], -np.arange(0.3, 0.395, 0.01).mean(), rtol=1e-5)
    assert data["stimulus_value"].values[0, 4, 0] == 8.5
    assert np.flatnonzero(data["recorded"].values[0] == 0).tolist() == [10, 11]
    assert data["trial"].values[0][[0, 7, 12]].tolist() == [0, 1, -1]
    assert data["trial_condition"].attrs["flag_meanings"] == "left right"
    told = " ".join(data.attrs["notes"])
    for words in ("raw is not read", "unit 'pixels' is read as 1", "session lab-1", "observed at different times"):
        assert words in told


def test_nwb_options_choose(tmp_path: Path) -> None:
    path = session(tmp_path / "a.nwb", observed=False)
    data = look(path, format="nwb", behaviour=["hand"], trials=False, label_column="quality", labels=["good"])
    check_events(data, [A, A + 0.01])
    assert data["unit"].values.tolist() == ["u0", "u6"]
    assert data["behaviour"].values.tolist() == ["hand_x", "hand_y"]
    assert not {"trial", "recorded"} & set(data.data_vars)
    guess = nwb.PLUGIN.recognise(str(path))
    assert guess is not None
    assert (guess.format, guess.dims["unit"], guess.missing) == ("nwb", 3, ())


def test_nwb_takes_the_place_of_a_unit_from_its_electrodes(tmp_path: Path) -> None:
    def fill(_: Any, made: Any) -> None:
        group = made.create_electrode_group("shank", "s", "CA1", made.create_device("probe"))
        for place in ("CA1", "CA3"):
            made.add_electrode(location=place, group=group)
        made.add_unit(spike_times=A, electrodes=[0])
        made.add_unit(spike_times=B, electrodes=[0, 1])

    data = look(written(tmp_path / "a.nwb", fill), format="nwb")
    assert data["unit_location"].values.tolist() == ["CA1", "CA1, CA3"]


def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, size=(50, 7))


@pytest.mark.parametrize("transposed", [False, True])
def test_matlab_counts(tmp_path: Path, transposed: bool) -> None:
    held = counts()
    velocity = np.random.default_rng(1).normal(size=(50, 2))
    scipy.io.savemat(tmp_path / "a.mat", {"spikes": held.T if transposed else held, "vel": velocity, "name": "lab"},
                     do_compression=True)
    data = look(tmp_path / "a.mat", counts="spikes", bin_s=0.05, behaviour={"vel": {"unit": "cm/s"}})
    np.testing.assert_array_equal(data["count"].values[0], held)
    np.testing.assert_allclose(data["behaviour_value"].values[0], velocity, rtol=1e-6)
    assert data["behaviour"].values.tolist() == ["vel_x", "vel_y"]
    assert data["time"].values[:2] == pytest.approx([0, 0.05])
    guess = matlab.PLUGIN.recognise(str(tmp_path / "a.mat"))
    assert guess is not None
    assert guess.options == {"counts": "spikes", "orientation": "units_by_bins" if transposed else "bins_by_units",
                             "bin_s": None, "behaviour": {"vel": {"unit": None}}}
    assert any("bin_s" in text for text in guess.missing)
    assert "bin_s: null" in guess.source_yaml("lab")


def test_matlab_cells_of_spike_times(tmp_path: Path) -> None:
    cells = np.empty((3, 1), dtype=object)
    cells[:, 0] = [A[:, None] * 1000, B[None] * 1000, np.zeros((0, 0))]
    scipy.io.savemat(tmp_path / "a.mat", {"times": cells, "x": np.arange(20.0), "when": np.arange(20) * 100.0,
                                          "go": [0.0, 900.0], "end": [500.0, 1400.0], "target": [3, 1]})
    data = look(tmp_path / "a.mat", spike_times="times", time_unit="ms", bin_s=0.1,
                behaviour={"x": {"unit": "cm", "times": "when"}},
                trials={"start": "go", "stop": "end", "condition": "target"})
    check_events(data, [A, B, np.zeros(0)])
    np.testing.assert_array_equal(data["behaviour_value"].values[0, :, 0], np.arange(20))
    assert data["trial_condition"].values[0][[0, 6, 10]].tolist() == [3, -1, 1]


def mat73(path: Path) -> Path:
    """What ``save -v7.3`` writes: a header of 512 bytes, transposed arrays, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        def put(name: str, values: np.ndarray, kind: str = "double") -> h5py.Dataset:
            item = file.create_dataset(name, data=values.T)
            item.attrs["MATLAB_class"] = np.bytes_(kind)
            return item

        put("spikes", counts().astype(float))
        put("vel", np.ones((50, 2)))
        put("title", np.array([[108, 97]], dtype=np.uint16), "char")
        cells = [put(f"#refs#/{i}", train[:, None]) for i, train in enumerate((A, B))]
        refs = file.create_dataset("times", (1, 2), dtype=h5py.ref_dtype)
        refs[0] = [cell.ref for cell in cells]
        refs.attrs["MATLAB_class"] = np.bytes_("cell")
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def test_matlab_73(tmp_path: Path) -> None:
    path = mat73(tmp_path / "a.mat")
    data = look(path, counts="spikes", bin_s=0.05, behaviour={"vel": "1"})
    np.testing.assert_array_equal(data["count"].values[0], counts())
    assert data["behaviour_value"].shape == (1, 50, 2)
    check_events(look(path, format="matlab", spike_times="times"), [A, B])


def folder(path: Path, rows: Sequence[tuple[int, int]] = ((30, 2), (60, 0), (61, 2), (90, 5), (900, 0)),
           rate: str = "sample_rate = 30000.") -> Path:
    path.mkdir()
    times, clusters = np.array(rows).T
    np.save(path / "spike_times.npy", times.astype(np.uint64)[:, None])
    np.save(path / "spike_clusters.npy", clusters.astype(np.int32))
    (path / "params.py").write_text(f"raise SystemExit('was run')\ndat_path = 'a.dat'\n{rate}  # Hz\n")
    (path / "cluster_group.tsv").write_text("cluster_id\tgroup\n0\tgood\n2\tmua\n5\tnoise\n7\tgood\n")
    return path


def test_phy_reads_good_clusters_and_never_runs_params(tmp_path: Path) -> None:
    path = folder(tmp_path / "sorted")
    data = look(path)
    check_events(data, [np.array([60, 900]), np.zeros(0)], 1 / 30000)
    assert data["unit"].values.tolist() == ["u0", "u7"]
    assert data["time"].values[0] == 0
    assert "1 listed clusters have no spikes" in data.attrs["notes"]
    check_events(look(path, labels=["good", "mua"]), [np.array([60, 900]), np.array([30, 61]), np.zeros(0)],
                 1 / 30000)
    assert look(path, labels="all").sizes["unit"] == 4
    guess = phy.PLUGIN.recognise(str(path))
    assert guess is not None
    assert guess.format == "phy"


def test_phy_info_table_gives_depth(tmp_path: Path) -> None:
    path = folder(tmp_path / "sorted")
    (path / "cluster_info.tsv").write_text("cluster_id\tch\tdepth\tgroup\tKSLabel\n"
                                           "0\t4\t120.0\tgood\tgood\n2\t5\t80\t\tgood\n")
    data = look(path)
    assert data["unit_depth"].values.tolist() == [120.0]
    assert look(path, label_column="KSLabel").sizes["unit"] == 2
    assert any("1 clusters with spikes are in no table" in note for note in data.attrs["notes"])


def test_npz_of_counts_and_of_times(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", n=counts(), vel=np.ones(50))
    np.savez_compressed(tmp_path / "t.npz", spike_times=np.array([0.1, 0.2, 0.2]), spike_units=np.array([4, 9, 4]))
    np.save(tmp_path / "a.npy", counts())
    data = look(tmp_path / "c.npz", format="spikes_npz", counts="n", bin_s=0.01, behaviour={"vel": {"unit": "m/s"}})
    np.testing.assert_array_equal(data["count"].values[0], counts())
    assert data["behaviour"].values.tolist() == ["vel"]
    data = look(tmp_path / "t.npz", format="spikes_npz", spike_times="spike_times", spike_units="spike_units")
    check_events(data, [np.array([0.1, 0.2]), np.array([0.2])])
    assert data["unit"].values.tolist() == ["u4", "u9"]
    one = look(tmp_path / "a.npy", format="spikes_npz", counts="array", orientation="bins_by_units", bin_s=0.01)
    assert one.sizes["unit"] == 7
    assert spikes_npz.PLUGIN.recognise(str(tmp_path / "c.npz")) is None
    assert spikes_npz.PLUGIN.recognise(str(tmp_path / "t.npz")) is not None


def saved_by_pynapple(path: Path) -> Path:
    """The archive that ``TsGroup.save`` writes, with its pickled metadata."""
    metadata = np.array({"place": ["CA1"]}, dtype=object)
    np.savez(path, allow_pickle=True, type=np.array(["TsGroup"]), _metadata=metadata, t=np.array([0.1, 0.2, 0.3, 1.5]),
             index=np.array([0, 6, 0, 0]), keys=np.array([0, 6]), start=np.array([0.0, 1.0]), end=np.array([0.5, 2.0]))
    return path


def test_npz_of_pynapple(tmp_path: Path) -> None:
    data = look(saved_by_pynapple(tmp_path / "a.npz"), format="spikes_npz", bin_s=0.1)
    check_events(data, [np.array([0.1, 0.3, 1.5]), np.array([0.2])])
    assert data["unit"].values.tolist() == ["u0", "u6"]
    assert data["recorded"].values[0].tolist() == [1] * 5 + [0] * 5 + [1] * 10
    assert any("not read" in note for note in data.attrs["notes"])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_spike_tables(tmp_path: Path, form: str) -> None:
    frame = pd.DataFrame({"unit": ["b", "a", "b"], "spike_time_ms": [30.0, 10.0, 90.0], "amplitude": [1, 2, 3]})
    path = tmp_path / f"a.{form}"
    frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
    guess = spike_table.PLUGIN.recognise(str(path))
    assert guess is not None
    assert guess.options == {"unit_column": "unit", "time_column": "spike_time_ms", "time_unit": "ms"}
    data = look(path, format="spike_table", **guess.options)
    check_events(data, [np.array([0.01]), np.array([0.03, 0.09])])
    assert data["unit"].values.tolist() == ["a", "b"]
    samples = look(path, format="spike_table", time_column="amplitude", time_unit="samples", sample_rate=10)
    check_events(samples, [np.array([2]), np.array([1, 3])], 0.1)


@pytest.mark.parametrize("text", ["unit,time\n1,2\n1,3\n", "date,spike_time\n2020,1\n2021,2\n",
                                  "time,unit,value\n1,2,3\n"])
def test_ordinary_tables_are_left_to_csv(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert spike_table.PLUGIN.recognise(str(tmp_path / "a.csv")) is None


class Group(dict[int, Any]):
    """As much of pynapple's TsGroup as is needed."""

    time_support = SimpleNamespace(start=np.array([0.0]), end=np.array([2.0]))


def test_pynapple_objects() -> None:
    group = Group({2: SimpleNamespace(t=A), 5: SimpleNamespace(t=B)})
    times = np.arange(0, 2, 0.01)
    speed = SimpleNamespace(t=times, values=times * 2)
    place = SimpleNamespace(t=times, values=np.stack([times, times], 1), columns=["x", "z"])
    data = from_pynapple(group, {"speed": speed, "place": place}, bin_s=0.1, units={"speed": "cm/s"})
    check_events(data, [A, B])
    assert data["behaviour"].values.tolist() == ["speed", "place_x", "place_z"]
    assert data.attrs["missing"] == ("unit of behaviour place_x", "unit of behaviour place_z")
    part = from_pynapple(group, epochs=SimpleNamespace(start=[0.0], end=[0.5]), bin_s=0.1,
                         trials=SimpleNamespace(start=[0.1], end=[0.3]))
    check_events(part, [A[:3], B[:1]])
    assert part["trial"].values[0].tolist() == [-1, 0, 0, -1, -1]
    with pytest.raises(InputError, match="expected a TsGroup"):
        from_pynapple(5)
    with pytest.raises(InputError, match="expected an IntervalSet"):
        from_pynapple(group, epochs=5)


def test_recordings_of_the_same_units_are_joined_and_cut(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.5)):
        np.savez(tmp_path / f"{name}.npz", t=np.concatenate([A, B]) + shift, u=[0] * len(A) + [1] * len(B))
    options = {"format": "spikes_npz", "spike_times": "t", "spike_units": "u", "bin_s": 0.1}
    both = look([tmp_path / "a.npz", tmp_path / "b.npz"], **options)
    assert both["spike_count"].values.tolist() == [6, 6]
    assert both["time"].values[[0, -1]] == pytest.approx([0, 2.2])
    assert both["recorded"].values.sum(axis=1).tolist() == [18, 18]
    assert both["recorded"].values[1, :5].sum() == 0
    np.testing.assert_allclose(both["spike_time"].values[6:], both["spike_time"].values[:6] + 0.5)
    part = look([tmp_path / "a.npz", tmp_path / "b.npz"], **options, select={"recording": [1, 2], "time": [5, 9],
                                                                           "unit": [0, 1]})
    np.testing.assert_allclose(part["spike_time"].values, [0.531, 0.8, 0.81])
    assert part["spike_count"].values.tolist() == [3]
    assert part.sizes["unit"] == 1


def test_counts_of_two_lengths_are_padded(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"n": counts()})
    scipy.io.savemat(tmp_path / "b.mat", {"n": counts()[:40]})
    data = look([tmp_path / "a.mat", tmp_path / "b.mat"], counts="n", bin_s=0.1, orientation="bins_by_units")
    assert data["count"].shape == (2, 50, 7)
    assert np.isnan(data["count"].values[1, 40:]).all()
    assert data["recorded"].values.sum(axis=1).tolist() == [50, 40]


@pytest.mark.skipif(not (SHARED / "s1").exists(), reason="needs the S1 file of the mirror")
def test_s1() -> None:
    data = look(SHARED / "s1" / "s1_data.mat", counts="spikes", bin_s=0.05, behaviour={"vel": "1", "pos": "1"})
    assert data["count"].shape == (1, 35129, 52)
    assert float(data["count"].sum()) == 842910
    assert float(data["time"][-1]) == pytest.approx(35128 * 0.05)


@pytest.mark.skipif(not (SHARED / "nwb").exists(), reason="needs the NWB session of the mirror")
def test_a_real_nwb_session() -> None:
    pytest.importorskip("pynwb")
    data = look(SHARED / "nwb" / "A8604-211122.nwb", format="nwb", start=0, stop=1087.52)
    assert data.sizes["spike"] == int(data["spike_count"].sum()) == 21354
    assert np.bincount(data["spike_unit"].values).tolist() == [11020, 4690, 5644]
    assert data.sizes["time"] == 54376
