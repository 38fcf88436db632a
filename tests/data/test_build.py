"""From a description to a store: every way in which data can contradict it, and the ways in which files are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray as xr

from sciml import registry
from sciml.cli import run
from sciml.data.build import build
from sciml.data.source import FileSource, SourceSpec, find_files, read_source
from sciml.data.split_config import Counts, Fractions, GroupSplit, TimeSplit
from sciml.data.splits import make_splits
from sciml.data.store import Store, open_store
from sciml.errors import InputError

Change = Callable[[xr.Dataset], Any]


def canonical() -> xr.Dataset:
    values = np.random.default_rng(0).normal(size=(10, 6, 8, 4)).astype(np.float32)
    return xr.Dataset(
        {"w": (("trajectory", "time", "x", "y"), values, {"role": "state", "units": "1/s"}),
         "nu": (("trajectory",), np.linspace(1, 2, 10), {"role": "parameter", "units": "m2 s-1"})},
        coords={"time": ("time", np.arange(6) * 0.1, {"units": "s"}),
                "x": ("x", np.arange(8) / 8, {"units": "m", "period": 1.0}),
                "y": ("y", np.array([0.0, 1.0, 3.0, 4.0]), {"units": "m"})},
        attrs={"domain": "fields", "group_dim": "trajectory", "notes": ("made up",)})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Store]:
    """Build from the canonical dataset after a change, with source fields given by name."""
    def make(change: Change = lambda d: None, **source: Any) -> Store:
        data = canonical()
        data = data if (changed := change(data)) is None else changed
        find = registry.find
        monkeypatch.setattr(registry, "find", lambda group, name, *, where="": (
            (lambda options: data) if group == "sciml.data.builders" else find(group, name, where=where)))
        return build(SourceSpec(**{"name": "toy", "domain": "fields", "builder": "toy", **source}), tmp_path / "s.zarr")
    return make


def test_a_dataset_becomes_a_store(made: Callable[..., Store]) -> None:
    store = made(licence="CC0", options={"n": 3})
    meta = store.meta
    assert (meta.dt, meta.groups, meta.group_dim, meta.notes) == (0.1, 10, "trajectory", ("made up",))
    assert meta.axes["x"].period == 1.0
    assert (meta.axes["y"].kind, meta.axes["time"].kind) == ("space", "time")
    assert meta.variables["nu"].unit == "m2 s-1"
    assert sorted(meta.provenance.versions) == ["numpy", "sciml", "xarray", "zarr"]
    assert meta.provenance.options == {"n": 3}
    assert meta.provenance.created.endswith("+00:00")
    np.testing.assert_array_equal(store.read("w", 7), canonical()["w"].values[7])
    assert {len(meta.splits.of(name)) for name in ("validation", "test")} == {1}


def nan(data: xr.Dataset) -> None:
    data["w"][3, 5, 0, 2] = np.nan
    data["w"][4, 0, 1, 1] = np.inf


def coordinate(name: str, values: Any, **attrs: Any) -> Change:
    return lambda data: data.assign_coords({name: (name, np.asarray(values), {**data[name].attrs, **attrs})})


def attribute(name: str, **attrs: Any) -> Change:
    def change(data: xr.Dataset) -> None:
        data[name].attrs.update(attrs)
    return change


WEEKS = np.datetime64("2000-01-01", "ns") + np.array([0, 7, 14, 28, 35, 42]) * np.timedelta64(1, "D")


@pytest.mark.parametrize(("change", "message"), [
    (nan, r"toy \[w\]: found 2 of 1920 values not finite \(NaN or Inf\), first at trajectory 3, time 5, x 0, y 2; "
          r"trajectory 4, time 0, x 1, y 1; expected finite values. Fix: .*missing: mask"),
    (attribute("w", units=""), r"\[w\]: found no unit; .* Fix: .*variables: {w: {unit: "),
    (attribute("w", units="furlongs per whim"), r"\[w\]: found unit 'furlongs per whim'"),
    (attribute("w", role=None), r"\[w\]: found role None; expected one of state"),
    (attribute("w", role="velocity"), r"\[w\]: found role 'velocity'"),
    (attribute("x", units=""), r"\[x\]: found no unit; .* Fix: .*axes: {x: {unit: "),
    (attribute("time", units=None), r"\[time\]: found no unit"),
    (lambda d: d.drop_vars("x"), r"\[x\]: found no coordinate"),
    (coordinate("time", [0, 1, 2, 2, 3, 4.0]), r"\[time\]: found 1 repeated values, first 2.0 at indices 2 and 3"),
    (coordinate("time", [0, 1, 3, 2, 4, 5.0]), r"\[time\]: found 2.0 at index 3 after 3.0; .* Fix: sort"),
    (coordinate("time", [0, 1, 2, 3, 4, 9.0]), r"\[time\]: found a step of 5 after index 4 \(4.0\), elsewhere 1"),
    (coordinate("time", WEEKS), r"\[time\]: found a step of 1.2096e\+06 after index 2 \(2000-01-15T.*elsewhere 604800"),
    (coordinate("time", [0, 1, np.nan, 3, 4, 5.0]), r"\[time\]: found 1 values that are not finite, first at index 2"),
    (coordinate("y", [4, 3, 1, 0.0]), r"\[y\]: found descending from 4.0 to 0.0; .* Fix: axes: {y: {reverse: true}}"),
    (coordinate("y", [0, 3, 1, 4.0]), r"\[y\]: found 1.0 at index 2 after 3.0"),
    (coordinate("x", np.linspace(0, 1, 8)), r"\[x\]: found 0.0 … 1.0; expected less than a period of 1.0"),
    (coordinate("y", list("abca"), kind="set"), r"\[y\]: found member 'a' twice"),
    (coordinate("y", list("abcd"), kind="space"), r"\[y\]: found values of type <U1"),
    (lambda d: d.transpose("time", ...), r"found dimensions \('time', .*; expected trajectory first"),
    (lambda d: d.assign_attrs(domain="series"), r"\[domain\]: found fields in the source file, series in the data"),
    (lambda d: d.assign(w=d["w"].astype(complex)), r"\[w\]: found values of type complex128"),
    (attribute("x", kind="time", units="s", period=None), r"\[axes\]: found several time axes: time, x"),
])
def test_data_that_cannot_be_used_are_refused(made: Callable[..., Store], tmp_path: Path, change: Change,
                                              message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("source", "message"), [
    ({"variables": {"v": {}}}, r"\[v\]: found no such variable in the data; expected one of w, nu"),
    ({"variables": {"w": {"unit": "km"}}}, r"\[w\]: found unit '1/s' in the data, 'km' in the source file"),
    ({"variables": {"w": {"unit": "1/ms"}}}, r"\[w\]: found unit '1/s' in the data, '1/ms' in the source file"),
    ({"variables": {"w": {"dims": ["x", "y"]}}}, r"\[w\]: found dimensions \('time', 'x', 'y'\)"),
    ({"variables": {"w": {"vector": "velocity"}}}, r"\[w\]: found vector 'velocity' along \(\); expected the name"),
    ({"variables": {"w": {"vector": "velocity", "along": ["z"]}}}, r"along \('z',\); expected .* \('time', 'x', 'y'\)"),
    ({"axes": {"z": {}}}, r"\[axes.z\]: found no such dimension"),
    ({"axes": {"x": {"unit": "km"}}}, r"\[x\]: found unit 'm' in the data, 'km' in the source file"),
    ({"axes": {"x": {"period": 2.0}}}, r"\[x\]: found period 1.0 in the data, 2.0 in the source file"),
    ({"split": {"by": "group", "counts": {"train": 9, "validation": 1, "test": 1}}}, r"\[split\]: found 10 trajectory"),
    ({"split": {"by": "time", "gap": 3}}, r"\[split\]: found 0 time steps to split"),
])
def test_a_source_that_contradicts_the_data_is_refused(made: Callable[..., Store], source: dict[str, Any],
                                                       message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**source)


def test_missing_values_can_be_masked(made: Callable[..., Store]) -> None:
    store = made(nan, missing="mask", split={"by": "group", "seed": None})
    assert np.isnan(store.read("w", 4, 0, 1)[0, 1, 1])
    assert store.meta.moments["w"].missing == 2
    assert store.meta.notes[-1].startswith("w: 2 of 1920 values not finite")


def test_the_source_file_completes_and_mends(made: Callable[..., Store]) -> None:
    def change(data: xr.Dataset) -> xr.Dataset:
        del data["w"].attrs["units"], data["w"].attrs["role"], data["x"].attrs["period"]
        return data.isel(y=slice(None, None, -1)).transpose("trajectory", "x", "time", "y")

    store = made(change, variables={"w": {"role": "state", "unit": "s-1", "long_name": "vorticity", "vector": "spin",
                                "along": ["x", "y"]}},
                 axes={"x": {"period": 2.0}, "y": {"reverse": True, "unit": "meter"}})
    assert tuple(store.meta.variables) == ("w",)
    assert store.meta.variables["w"].dims == ("time", "x", "y")
    assert (store.meta.variables["w"].vector, store.meta.variables["w"].along) == ("spin", ("x", "y"))
    assert store.meta.axes["x"].period == 2.0
    np.testing.assert_array_equal(store.read("w", 2), canonical()["w"].values[2])
    np.testing.assert_array_equal(store.coord("y"), [0, 1, 3, 4])


def test_uneven_time_can_be_accepted(made: Callable[..., Store]) -> None:
    assert made(coordinate("time", [0, 1, 2, 3, 4, 9.0]), axes={"time": {"uniform": False}}).meta.dt is None


def test_dates_give_a_step_in_the_declared_unit(made: Callable[..., Store]) -> None:
    dates = np.datetime64("2000-01-01", "ns") + np.arange(6) * np.timedelta64(7, "D")
    assert made(lambda d: d.assign_coords(time=dates), axes={"time": {"unit": "week"}}).meta.dt == 1.0


def test_whole_numbers_become_floats_and_codes_stay(made: Callable[..., Store]) -> None:
    def change(data: xr.Dataset) -> xr.Dataset:
        codes = ("trajectory", np.arange(10, dtype=">i2"), {"role": "boundary", "units": "1"})
        counts = ("trajectory", np.arange(10), {"role": "parameter", "units": "count"})
        return data.assign(code=codes, counts=counts, w=data["w"].astype(">f4"))

    data = made(change).dataset()
    assert [str(data[name].dtype) for name in ("code", "counts", "w")] == ["int16", "float64", "float32"]


def test_members_with_units_of_their_own(made: Callable[..., Store]) -> None:
    def change(data: xr.Dataset) -> xr.Dataset:
        named = data.assign_coords(y=("y", list("abcd")), y_unit=("y", ["K", "m", "m", "s"]))
        del named["w"].attrs["units"]
        return named

    with pytest.raises(InputError, match=r"\[w\]: found 1 members without a unit"):
        made(lambda d: change(d).assign_coords(y_unit=("y", ["K", "", "m", "s"])))
    store = made(change)
    assert store.meta.variables["w"].unit == "mixed"
    assert store.members("y") == tuple("abcd")
    assert set(store.meta.moments) == {"w/a", "w/b", "w/c", "w/d", "nu"}


def test_an_existing_store_is_refused_before_anything_is_computed(made: Callable[..., Store]) -> None:
    made()
    with pytest.raises(InputError, match="it exists"):
        made(lambda d: d.drop_vars("x"))


@pytest.mark.parametrize(("split", "groups", "steps", "expected"), [
    (GroupSplit(), 10, 5, (8, 1, 1)),
    (GroupSplit(), 3, 5, (1, 1, 1)),
    (GroupSplit(fractions=Fractions(train=0.7, validation=0.2, test=0.1)), 10, 5, (7, 2, 1)),
    (GroupSplit(fractions=Fractions(train=0.5, validation=0.0, test=0.5)), 8, 5, (4, 0, 4)),
    (GroupSplit(counts=Counts(train=4, validation=2, test=1), seed=None), 10, 5, (4, 2, 1)),
    (TimeSplit(by="time", counts=Counts(train=5, validation=2, test=2), gap=1), 2, 12, (5, 2, 2)),
    (TimeSplit(by="time", gap=5), 1, 110, (80, 10, 10)),
])
def test_splits_hold_what_was_asked_for_and_nothing_twice(split: GroupSplit | TimeSplit, groups: int, steps: int,
                                                          expected: tuple[int, int, int]) -> None:
    made = make_splits(split, groups, steps, group_dim="g", where="t")
    cells = [{(b.group, t) for b in made.of(name) for t in range(b.start, b.stop)}
             for name in ("train", "validation", "test")]
    unit = steps if isinstance(split, GroupSplit) else groups
    assert tuple(len(c) // unit for c in cells) == expected
    assert sum(map(len, cells)) == len(set.union(*cells))
    if isinstance(split, TimeSplit):
        assert made.validation[0].start - made.train[0].stop == split.gap
        assert made.test[0].start - made.validation[0].stop == split.gap


def test_a_split_is_the_same_every_time_and_another_with_another_seed() -> None:
    one, again, other = (make_splits(GroupSplit(seed=s), 40, 2, group_dim="g", where="t") for s in (1, 1, 2))
    assert one == again != other
    with pytest.raises(InputError, match=r"found 2 groups to split"):
        make_splits(GroupSplit(), 2, 5, group_dim="g", where="t")


def write(folder: Path, **source: Any) -> Path:
    path = folder / "source.yaml"
    path.write_text(json.dumps({"name": "toy", "domain": "fields", **source}))
    return path


@pytest.mark.parametrize(("source", "message"), [
    ({}, "builder `file` needs `files`"),
    ({"files": ["a"], "name": "My Data"}, r"\[name\]: found 'My Data'"),
    ({"files": [{"path": "a", "sha256": "abc"}]}, r"\[files.0.sha256\]"),
    ({"files": ["a"], "colour": "red"}, r"\[colour\]: found 'red'"),
    ({"files": ["a"], "split": {"by": "coin"}}, r"\[split\]"),
    ({"files": ["a"], "split": {"fractions": {"train": 0.9, "validation": 0.9}}}, "fractions add up to more than 1"),
    ({"files": ["a"], "split": {"by": "time", "fractions": {}, "counts": {"train": 1, "validation": 1, "test": 1}}},
     "fractions or counts, not both"),
    ({"files": ["a"], "missing": "ignore"}, r"\[missing\]: found 'ignore'"),
    ({"files": ["a"], "axes": {"x": {"period": -1}}}, r"\[axes.x.period\]: found -1"),
])
def test_a_wrong_source_file_is_refused(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source(write(tmp_path, **source))


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SCIML_MIRROR", str(tmp_path / "mirror"))
    return tmp_path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_files_lie_beside_the_source_file_or_in_the_mirror(places: Path) -> None:
    (places / "a.bin").write_bytes(b"a")
    (places / "mirror" / "toy").mkdir(parents=True)
    (places / "mirror" / "toy" / "b.bin").write_bytes(b"b")
    spec = read_source(write(places, files=["a.bin", "sub/b.bin"]))
    found = find_files(spec)
    assert [(f.declared, f.sha256) for f in found] == [("a.bin", digest(b"a")), ("b.bin", digest(b"b"))]
    assert found[1].path == str(places / "mirror" / "toy" / "b.bin")


def test_a_pattern_names_files_in_order(places: Path) -> None:
    for name in ("t_2", "t_0", "t_1"):
        (places / name).write_text(name)
    assert [f.declared for f in find_files(read_source(write(places, files="t_*")))] == ["t_0", "t_1", "t_2"]
    with pytest.raises(InputError, match="a pattern with a sha256"):
        find_files(read_source(write(places, files=[{"path": "t_*", "sha256": "0" * 64}])))
    with pytest.raises(InputError, match="t_0 twice"):
        find_files(read_source(write(places, files=["t_*", "t_0"])))


def test_files_of_one_name_in_several_folders_are_told_apart_by_folder(places: Path) -> None:
    for folder in ("run1", "run2", "other"):
        (places / "data" / folder).mkdir(parents=True)
        (places / "data" / folder / "out.pvd").write_text(folder)
    (places / "notes.txt").write_text("notes")
    found = find_files(read_source(write(places, files=["data/run*/out.pvd", "notes.txt"])))
    assert [f.declared for f in found] == ["run1/out.pvd", "run2/out.pvd", "notes.txt"]
    with pytest.raises(InputError, match=r"found run1/out.pvd twice"):
        find_files(read_source(write(places, files=["data/run*/out.pvd", "data/run1/out.pvd"])))
    (places / "mirror" / "toy").mkdir(parents=True)
    (places / "mirror" / "toy" / "lost.bin").write_text("one of the two")
    with pytest.raises(InputError, match=r"found b/lost.bin twice"):
        find_files(read_source(write(places, files=["a/lost.bin", "b/lost.bin"])))


def test_a_missing_file_is_named_with_every_place_searched(places: Path) -> None:
    with pytest.raises(InputError, match=r"toy \[no.bin\]: found no such file \(.*mirror.*cache.*Fix: put it there"):
        find_files(read_source(write(places, files=["no.bin"])))


def test_another_file_than_declared_is_refused(places: Path) -> None:
    (places / "a.bin").write_bytes(b"a")
    with pytest.raises(InputError, match=rf"\[sha256\]: found {digest(b'a')}; expected {'0' * 64}"):
        find_files(read_source(write(places, files=[{"path": "a.bin", "sha256": "0" * 64}])))


def test_a_url_is_fetched_once(places: Path) -> None:
    url = "memory://remote/c.bin"
    fsspec.filesystem("memory").pipe("/remote/c.bin", b"c")
    spec = SourceSpec(name="toy", domain="fields", files=(FileSource(path=url, sha256=digest(b"c")),))
    first = find_files(spec)
    fsspec.filesystem("memory").rm("/remote/c.bin")
    assert find_files(spec) == first
    assert Path(first[0].path).parent == places / "cache" / "toy"
    assert [p.name for p in Path(first[0].path).parent.iterdir()] == [Path(first[0].path).name]
    with pytest.raises(InputError, match=r"toy \[memory://remote/d.bin\]: found FileNotFoundError"):
        find_files(SourceSpec(name="toy", domain="fields", files=(FileSource(path="memory://remote/d.bin"),)))


def test_a_folder_behind_a_url_is_read_in_place(places: Path) -> None:
    fsspec.filesystem("memory").pipe({"/remote/d.zarr/zarr.json": b"{}", "/remote/d.zarr/c/0": b"12"})
    spec = SourceSpec(name="toy", domain="fields", files=(FileSource(path="memory://remote/d.zarr"),))
    assert [f.path for f in find_files(spec)] == ["memory://remote/d.zarr"]


def test_a_changed_folder_has_another_hash(places: Path) -> None:
    folder = places / "d.zarr"
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "0").write_bytes(b"12")
    spec = read_source(write(places, files=["d.zarr"]))
    before = find_files(spec)[0].sha256
    (folder / "c" / "0").write_bytes(b"13")
    assert find_files(spec)[0].sha256 != before


@pytest.fixture
def lab_file(places: Path) -> Path:
    rng = np.random.default_rng(0)
    data = xr.Dataset({"temperature": (("time", "lat", "lon"), rng.normal(280, 5, (12, 6, 8)).astype("f4"),
                                       {"units": "K", "standard_name": "air_temperature"})},
                      coords={"time": ("time", np.arange(12) * 6.0, {"units": "hours since 2020-01-01"}),
                              "lat": ("lat", np.linspace(60, -60, 6), {"units": "degrees_north"}),
                              "lon": ("lon", np.arange(8) * 45.0, {"units": "degrees_east"})})
    data.to_netcdf(places / "lab.nc")
    return places / "lab.nc"


def test_the_commands_from_a_file_to_a_checked_store(lab_file: Path, places: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    source, store = str(places / "source.yaml"), str(places / "lab.zarr")
    Path(source).write_text(json.dumps({
        "name": "lab", "domain": "fields", "files": ["lab.nc"], "licence": "CC0", "citation": "us",
        "split": {"by": "time", "counts": {"train": 8, "validation": 2, "test": 2}},
        "axes": {"lat": {"reverse": True}, "lon": {"period": 360.0}, "time": {"unit": "h"}}}))
    assert run(["data", "build", source, store]) == 0
    assert "next: sciml data inspect" in capsys.readouterr().out
    assert run(["data", "build", source, store]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert run(["data", "build", source, store, "--overwrite"]) == 0
    capsys.readouterr()
    assert run(["data", "inspect", store]) == 0
    shown = capsys.readouterr().out
    assert "temperature" in shown
    assert f"next: sciml data validate {store}" in shown
    assert run(["data", "inspect", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dt"] == 6.0
    assert run(["data", "validate", store, "--source", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"store": store, "ok": True, "findings": []}
    assert open_store(store).meta.provenance.files == {"lab.nc": digest(lab_file.read_bytes())}
    lab_file.write_bytes(lab_file.read_bytes() + b"0")
    assert run(["data", "validate", store, "--source", source]) == 1
    assert "files.lab.nc" in capsys.readouterr().out


def test_usage_errors_exit_with_2(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "build", "no_such_source", str(places / "s.zarr")]) == 2
    assert run(["data", "build"]) == 2
    assert run(["data", "inspect", str(places / "s.zarr")]) == 1
    assert "no zarr.json" in capsys.readouterr().err
