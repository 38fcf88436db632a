"""Recordings that are wrong, on another clock, or made to harm: refused, saying what, where and how to mend it."""

from __future__ import annotations

import datetime
import pickle
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from sciml.data.readers import matlab, nwb, phy, read, spike_table, spikes_npz
from sciml.data.readers._guarded import open_with_references
from sciml.data.readers._spikes import Beside, Rules, Signal, Trial, counts_dataset, events_dataset
from sciml.data.safety import Limits
from sciml.data.source import SourceSpec
from sciml.errors import InputError

A, B = np.array([0.031, 0.3, 0.31, 1.7]), np.array([0.05, 0.9])
STAMPS = np.arange(0, 2, 0.01)


def look(path: Path, **options: object) -> Any:
    source = SourceSpec.model_validate({"name": "lab", "domain": "spikes", "files": [str(path)], "options": options})
    return read(source, [path])


def refused(words: str, call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert caught.value.fix
    assert caught.value.expected
    return caught.value


def events(*trains: Any, beside: Beside | None = None, **rules: Any) -> Any:
    return events_dataset(trains, [f"u{i}" for i in range(len(trains))], Rules(**rules), where="lab.nwb", format="test",
                          beside=beside)


TIMES = [((np.array([0.2, 0.1]),), {}, r"\[spike times of u0\]: found 0.1 s at place 1 after 0.2 s.*sort: true"),
         ((A, np.array([0.2, 0.2])), {}, r"\[spike times of u1\]: found 0.2 s twice.*duplicates: drop"),
         ((np.array([-0.5, 0.1]),), {}, r"\[times\]: found -0.5 s, before the recording's start.*start: -1"),
         ((np.array([0.1, np.nan]),), {}, r"\[spike times of u0\]: found nan at place 1"),
         ((A,), {"stop": 1.0}, r"\[spike times of u0\]: found 1.7 s \(1 such\), outside.*outside: drop"),
         ((A,), {"start": 0.1}, r"\[spike times of u0\]: found 0.031 s"),
         ((A,), {"start": 3, "stop": 2}, r"\[stop\]|outside what was recorded"),
         ((np.array([0.1, 1e12]),), {}, r"\[bin_s\]: found 5e\+13 bins.*time_unit"),
         ((np.zeros(0), np.zeros(0)), {}, r"\[spikes\]: found none in any unit"),
         ((np.array([[0.1, 0.2]]),), {}, r"\[spike times of u0\]: found shape \(1, 2\)"),
         ((np.array(["a", "b"]),), {}, r"\[spike times of u0\]: found shape \(2,\) of <U1")]


@pytest.mark.parametrize(("trains", "rules", "words"), TIMES)
def test_times_are_refused(trains: tuple[Any, ...], rules: dict[str, Any], words: str) -> None:
    assert refused(words, lambda: events(*trains, **rules)).where == "lab.nwb"


def test_what_the_fixes_name_mends_it() -> None:
    assert events(np.array([0.2, 0.1]), sort=True)["spike_time"].values.tolist() == [0.1, 0.2]
    dropped = events(np.array([0.2, 0.2, 0.3]), duplicates="drop")
    assert dropped["spike_time"].values.tolist() == [0.2, 0.3]
    assert "u0: 1 repeated spikes are dropped" in dropped.attrs["notes"]
    outside = events(A, stop=1.0, outside="drop")
    assert outside["spike_time"].values.tolist() == A[:3].tolist()
    assert "u0: 1 spikes outside what was recorded are dropped" in outside.attrs["notes"]
    assert events(np.array([-0.5, 0.1]), start=-1)["time"].values[0] == -1


def signal(times: np.ndarray) -> Beside:
    return Beside(behaviour=[Signal("x", "1", times, STAMPS)])


BESIDE = [(signal(STAMPS + 100), r"\[behaviour.x\]: found 100 … 101.99 s, 0%.*clock"),
          (signal(STAMPS * 1000), r"\[behaviour.x\]: found 0 … 1990 s.*clock"),
          (signal(STAMPS[::-1]), r"\[behaviour.x\].*ascending timestamps"),
          (signal(STAMPS * np.nan), r"\[behaviour.x\]: found time nan at sample 0"),
          (signal(STAMPS[:3]), r"\[behaviour.x\]: found \(200,\) values at \(3,\)"),
          (Beside(behaviour=[Signal("x", "1", STAMPS, STAMPS)] * 2), r"found x twice"),
          (Beside(trials=[Trial(0, 1), Trial(0.5, 1.5)]), r"\[trial 1\]: found start 0.5 s, before the stop 1 s of "),
          (Beside(trials=[Trial(1, 0.5)]), r"\[trial 0\]: found 1 … 0.5 s"),
          (Beside(trials=[Trial(900, 1500)]), r"\[trials\]: found 900 … 1500 s.*clock of the spikes"),
          (Beside(recorded=[(0, 0.2), (0.5, 2)]), r"\[spike times of u0\]: found 0.3 s \(2 such\), outside"),
          (Beside(recorded=[(2, 0)]), r"\[recorded interval 0\]")]


@pytest.mark.parametrize(("beside", "words"), BESIDE)
def test_what_lies_beside_is_refused(beside: Beside, words: str) -> None:
    refused(words, lambda: events(A, beside=beside))


def test_gaps_and_nan_of_behaviour_are_counted() -> None:
    times = np.delete(np.arange(0, 2, 0.01) + 0.005, np.arange(100, 150))
    values = np.ones(150)
    values[:10] = np.nan
    data = events(A, B, bin_s=0.1, beside=Beside(behaviour=[Signal("x", "1", times, values)]))
    unknown = np.isnan(data["behaviour_value"].values[0, :, 0])
    np.testing.assert_array_equal(np.flatnonzero(unknown), [0, *range(10, 15)])
    assert {"x: 10 of 150 samples are NaN", "x: 6 of 20 bins are NaN"} <= set(data.attrs["notes"])


def test_silent_units_stay_and_are_noted() -> None:
    data = events(A, np.zeros(0), B)
    assert data.sizes["unit"] == 3
    assert np.unique(data["spike_unit"].values).tolist() == [0, 2]
    assert "1 units have no spikes: u1" in data.attrs["notes"]


COUNTS = [(np.array([[0.0, -1.0]] * 3), r"found -1 in bin 0 of unit u1"),
          (np.array([[0.0, 0.5]] * 3), r"found 0.5 in bin 0.*not rates"),
          (np.zeros((3, 3)), r"found shape \(3, 3\) for 2 units"), (np.zeros((0, 2)), r"found shape \(0, 2\)")]


@pytest.mark.parametrize(("values", "words"), COUNTS)
def test_counts_are_refused(values: np.ndarray, words: str) -> None:
    refused(words, lambda: counts_dataset(values, ["u0", "u1"], Rules(bin_s=0.1), where="a.mat", format="test"))


OPTIONS = [({"bin_s": 0}, r"options.bin_s"), ({"bin_s": "wide"}, r"options.bin_s"), ({"sort": 1}, r"options.sort"),
           ({"duplicates": "keep"}, r"options.duplicates"), ({"time_unit": "h"}, r"options.time_unit"),
           ({"time_unit": "samples"}, r"options.time_unit.*sample_rate"),
           ({"spike_units": None}, r"options.spike_units"),
           ({"spike_times": "nothing"}, r"options.spike_times.*one of t, u"), ({"counts": "t"}, r"options.counts"),
           ({"behaviour": {"t": {"kind": "x"}}}, r"options.behaviour.t.*names, unit, times"),
           ({"behaviour": {"t": {"names": ["a", "b"], "times": "t"}}}, r"behaviour.t.names.*1, one per column"),
           ({"behaviour": {"t": {}}}, r"options.behaviour.t.times"), ({"trials": {"start": "t"}}, r"options.trials"),
           ({"select": {"time": [5, 2]}}, r"options.select.time"),
           ({"select": {"spike": [0, 2]}}, r"options.select.spike"),
           ({"limits": {"chunk_bytes": 8}}, r"at most 8 bytes"), ({"colour": 1}, r"options.colour")]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", t=A, u=np.zeros(4, dtype=int))
    given = {"format": "spikes_npz", "spike_times": "t", "spike_units": "u"}
    assert look(tmp_path / "a.npz", **given).sizes["spike"] == 4
    refused(words, lambda: look(tmp_path / "a.npz", **{**given, **options}))


def test_recordings_that_don_t_go_together(tmp_path: Path) -> None:
    given = {"format": "spikes_npz", "spike_times": "t", "spike_units": "u", "bin_s": 0.1}
    np.savez(tmp_path / "a.npz", t=A, u=[0, 0, 1, 1])
    np.savez(tmp_path / "b.npz", t=A, u=[0, 0, 2, 2])
    np.savez(tmp_path / "c.npz", t=A + 1e9, u=[0, 0, 1, 1])
    for other, words in (("b", r"b.npz.*\[unit\].*recordings of the same units"), ("c", r"c.npz.*\[time\].*near 0")):
        source = SourceSpec.model_validate({"name": "lab", "domain": "spikes", "files": ["a"], "options": given})
        paths = [tmp_path / "a.npz", tmp_path / f"{other}.npz"]
        refused(words, partial(read, source, paths))


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_pickles_in_archives_are_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    held: dict[str, Any] = {"type": np.array(["TsGroup"]), "t": A, "index": np.zeros(4, int), "keys": np.array([0]),
                            "start": np.array([0.0]), "end": np.array([2.0])}
    box = np.empty((), dtype=object)
    box[()] = Bomb(trap)
    np.savez(tmp_path / "a.npz", allow_pickle=True, _metadata=box, **held)
    np.savez(tmp_path / "b.npz", allow_pickle=True, extra=box, **held)
    assert look(tmp_path / "a.npz", format="spikes_npz").sizes["spike"] == 4
    refused("object type", lambda: look(tmp_path / "b.npz", format="spikes_npz"))
    np.save(tmp_path / "c.npy", box, allow_pickle=True)
    refused("object type", lambda: look(tmp_path / "c.npy", format="spikes_npz", counts="array", bin_s=0.1))
    assert not trap.exists()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        pickled = archive.read("_metadata.npy")
    pickle.loads(pickled[pickled.index(b"\x80"):]).item().close()  # noqa: S301
    assert trap.exists(), "the trap would have worked"


def test_npz_that_is_no_tsgroup_or_is_cut(tmp_path: Path) -> None:
    held: dict[str, Any] = {"type": np.array(["TsdFrame"]), "t": A, "index": np.zeros(4, int), "keys": np.array([0]),
                            "start": np.zeros(1), "end": np.ones(1)}
    np.savez(tmp_path / "a.npz", **held)
    refused(r"\[type\]: found TsdFrame", lambda: look(tmp_path / "a.npz", format="spikes_npz"))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:-30])
    refused("complete .npz", lambda: spikes_npz.PLUGIN.recognise(str(tmp_path / "a.npz")))


def folder(path: Path, **files: Any) -> Path:
    path.mkdir()
    held = {"spike_times": np.array([30, 60, 900]), "spike_clusters": np.array([0, 0, 2]), **files}
    for name in ("spike_times", "spike_clusters"):
        np.save(path / f"{name}.npy", held[name], allow_pickle=True)
    (path / "params.py").write_text(held.get("params", "sample_rate = 30000.\n"))
    (path / "cluster_group.tsv").write_text(held.get("group", "cluster_id\tgroup\n0\tgood\n2\tmua\n"))
    return path


PHY = [({"params": "sample_rate = __import__('os').system('touch ran')\n"}, r"\[sample_rate\].*0 lines.*not run"),
       ({"params": "sample_rate = 1\nsample_rate = 2\n"}, r"\[sample_rate\]: found 2 lines"),
       ({"params": "dtype = 'int16'\n"}, r"\[sample_rate\]"), ({"params": "sample_rate = 0\n"}, r"\[sample_rate\]"),
       ({"spike_times": np.array([60, 30, 900])}, r"spike times of u0.*sort: true"),
       ({"spike_times": np.array([0.1, 0.2, 0.3])}, r"spike_times.npy.*whole numbers"),
       ({"spike_times": np.array([None, 1, 2], dtype=object)}, r"spike_times.npy.*object type"),
       ({"spike_clusters": np.array([0, 2])}, r"found 2 clusters for 3 spikes"),
       ({"group": "cluster_id\tgroup\n0\tnoise\n"}, r"\[group\]: found 1 noise"),
       ({"group": "cluster_id\tgroup\n0\tgood\n0\tmua\n"}, r"\[cluster_id\]: found 0 twice"),
       ({"group": "cluster\tlabel\n0\tgood\n"}, r"a table with cluster_id"),
       ({"group": "cluster_id\tamplitude\n0\t3\n"}, r"\[group\]: found no table.*labels: all")]


@pytest.mark.parametrize(("files", "words"), PHY)
def test_phy_is_refused(tmp_path: Path, files: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(words, lambda: phy.PLUGIN.recognise(str(folder(tmp_path / "sorted", **files))))
    assert not (tmp_path / "ran").exists()


def test_spike_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, words in (("unit,spike_time\na,0.1\na,\n", r"\[row 2\]: found an empty cell"),
                        ("unit,spike_time\na,0.1\na,soon\n", r"row 2, column spike_time.*'soon'"),
                        ("unit,spike_time\n", r"\[rows\]: found none"), ("unit,spike_time\na,2\na,1\n", r"sort: true")):
        path.write_text(text)
        refused(words, lambda: spike_table.PLUGIN.recognise(str(path)))
    path.write_text("cell,when\na,0.1\n")
    refused(r"options.unit_column.*one of cell, when", lambda: look(path, format="spike_table"))


def test_matlab_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    cells = np.empty((1, 2), dtype=object)
    cells[0] = [np.array([[0.1]]), "text"]
    square = np.ones((4, 4))
    scipy.io.savemat(path, {"n": square, "cells": cells, "s": {"a": 1}, "text": "spikes", "vel": square})
    refused(r"options.orientation.*bins_by_units \(4 bins\) or units_by_bins",
            lambda: look(path, format="matlab", counts="n", bin_s=0.1))
    refused(r"options.orientation", lambda: look(path, format="matlab", counts="n", bin_s=0.1, behaviour=["vel"]))
    refused(r"options.bin_s", lambda: look(path, format="matlab", counts="n", orientation="bins_by_units"))
    refused(r"cells\{2\}", lambda: look(path, format="matlab", spike_times="cells"))
    for name in ("s", "text"):
        refused(r"options.counts.*one of n, cells, vel", partial(look, path, format="matlab", counts=name, bin_s=0.1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused("complete MATLAB file", lambda: look(path, format="matlab", counts="n", bin_s=0.1))
    path.write_bytes(whole[:300] + bytes(100) + whole[400:])
    with pytest.raises(InputError):
        look(path, format="matlab", counts="vel", bin_s=0.1, orientation="bins_by_units")
    scipy.io.savemat(path, {"s": {"a": 1}})
    refused("a matrix of counts", lambda: matlab.PLUGIN.recognise(str(path)))


def test_matlab_that_inflates_without_end(tmp_path: Path) -> None:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    squeezed = zlib.compress(bytes(64 << 20), 9)
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 15, len(squeezed)) + squeezed)
    refused("inflated elements", lambda: look(tmp_path / "a.mat", format="matlab", counts="n", bin_s=0.1,
                                              limits={"chunk_bytes": 1 << 20}))


def file_with(path: Path, change: Callable[[h5py.File], None], header: bytes = b"") -> Path:
    with h5py.File(path, "w", userblock_size=512 if header else 0) as file:
        file.attrs["nwb_version"] = "2.7.0"
        change(file)
    if header:
        with open(path, "r+b") as stream:
            stream.write(header)
    return path


def outside(file: h5py.File) -> None:
    file["units"] = h5py.ExternalLink("/etc/passwd", "/")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "data", (4,))
    file.create_virtual_dataset("n", layout)


def huge(file: h5py.File) -> None:
    file.create_dataset("n", (1 << 40, 1 << 10), "f4", chunks=(1, 1 << 10))


def huge_references(file: h5py.File) -> None:
    file.create_dataset("n", (1 << 40,), h5py.ref_dtype, chunks=(1 << 10,))


HDF5 = [(outside, "external link to /etc/passwd"), (virtual, "virtual data set"), (huge, "an array of shape"),
        (huge_references, "an array of shape")]


@pytest.mark.parametrize(("change", "words"), HDF5, ids=[change.__name__ for change, _ in HDF5])
def test_hdf5_that_points_outside_or_lies(tmp_path: Path, change: Callable[[h5py.File], None], words: str) -> None:
    path = file_with(tmp_path / "a.nwb", change)
    refused(words, lambda: open_with_references(path, Limits()))
    mat = file_with(tmp_path / "a.mat", change, b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    refused(words, lambda: look(mat, format="matlab", counts="n", bin_s=0.1))
    pytest.importorskip("pynwb")
    refused(words, lambda: nwb.PLUGIN.recognise(str(path)))


def test_nwb_without_pynwb_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_with(tmp_path / "a.nwb", lambda file: None)
    monkeypatch.setitem(sys.modules, "pynwb", None)
    refused(r'pip install "sciml\[spikes\]"', lambda: nwb.PLUGIN.recognise(str(path)))


def session(path: Path, change: Callable[[Any, Any], None]) -> Path:
    pynwb = pytest.importorskip("pynwb", reason="pynwb (the extra `spikes`) is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pynwb.NWBFile("s", "lab-1", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
        change(pynwb, made)
        with pynwb.NWBHDF5IO(path, "w") as io:
            io.write(made)
    return path


def one(_: Any, made: Any) -> None:
    made.add_unit(spike_times=A)


def overlapping(_: Any, made: Any) -> None:
    made.add_unit(spike_times=A)
    for start in (0.0, 0.5):
        made.add_trial(start_time=start, stop_time=start + 1)


def late(pynwb: Any, made: Any) -> None:
    made.add_unit(spike_times=A)
    made.add_acquisition(pynwb.TimeSeries("pupil", data=np.ones(9), timestamps=np.arange(9) + 1e6, unit="m"))


NWB: list[tuple[Callable[[Any, Any], None], dict[str, Any], str]] = [
    (lambda _, made: None, {}, r"\[units\]: found no table"),
    (lambda _, made: made.add_unit(spike_times=A[::-1]), {}, r"spike times of u0.*sort: true"),
    (lambda _, made: made.add_unit(spike_times=A, obs_intervals=[[0.0, 1.0]]), {}, r"u0.*1.7 s.*0 … 1 s.*drop"),
    (overlapping, {}, r"\[trial 1\].*trials: false"), (late, {}, r"\[behaviour.pupil\].*clock"),
    (one, {"behaviour": ["hand"]}, r"options.behaviour.*'hand'"),
    (one, {"condition": "side"}, r"options.condition.*no trials table"),
    (one, {"label_column": "quality", "labels": "good"}, r"options.label_column"),
]


@pytest.mark.parametrize(("change", "options", "words"), NWB)
def test_nwb_is_refused(tmp_path: Path, change: Callable[[Any, Any], None], options: dict[str, Any],
                        words: str) -> None:
    path = session(tmp_path / "a.nwb", change)
    refused(words, lambda: look(path, format="nwb", **options))


def test_hdf5_that_only_says_it_is_nwb(tmp_path: Path) -> None:
    pytest.importorskip("pynwb")
    path = file_with(tmp_path / "a.nwb", lambda file: file.create_group("units"))
    refused("a file that pynwb reads", lambda: nwb.PLUGIN.recognise(str(path)))
