"""Ragged dimensions: groups with unequal numbers of spikes or atoms, from a description to a store and back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import registry
from sciml.data import ragged, statistics
from sciml.data.build import prepare
from sciml.data.check import validate
from sciml.data.readers.guess import guess
from sciml.data.schema import AxisMeta, Block, Variable
from sciml.data.source import SourceSpec, read_source
from sciml.data.store import open_store, write_store
from sciml.errors import InputError

Make = Callable[..., Any]
Change = Callable[[xr.Dataset], Any]


def molecules(atoms: tuple[int, ...] = (3, 5, 4, 0, 5)) -> xr.Dataset:
    """Frames with so many atoms each."""
    rng, total = np.random.default_rng(1), sum(atoms)
    return xr.Dataset(
        {"position": (("atom", "xyz"), rng.normal(size=(total, 3)), {"role": "state", "units": "angstrom"}),
         "force": (("atom", "xyz"), rng.normal(size=(total, 3)).astype(np.float32),
                   {"role": "label", "units": "eV/angstrom"}),
         "element": ("atom", rng.integers(1, 9, total).astype(np.int32), {"role": "event", "units": "1"}),
         "energy": ("frame", rng.normal(size=len(atoms)), {"role": "label", "units": "eV"}),
         "atoms": ("frame", np.array(atoms, np.int32), {"role": "rows", "units": "1", "sample_dimension": "atom"})},
        coords={"xyz": list("xyz")}, attrs={"domain": "laboratory", "group_dim": "frame"})


def parts(array: np.ndarray, rows: Any) -> list[np.ndarray]:
    return np.split(array, np.cumsum(rows)[:-1])


def test_spikes_are_read_back_by_recording(built: Make, spikes: Make) -> None:
    data = spikes()
    store = built(data)
    assert store.meta.ragged == {"spike": "spike_count"}
    assert set(store.meta.axes) == {"time", "unit", "behaviour"}
    assert store.meta.dt == 0.02
    assert store.rows("spike").tolist() == [300, 0, 170]
    for group, (times, units) in enumerate(zip(parts(data["spike_time"].values, (300, 0, 170)),
                                               parts(data["spike_unit"].values, (300, 0, 170)), strict=True)):
        np.testing.assert_array_equal(store.read("spike_time", group), times)
        np.testing.assert_array_equal(store.read("spike_unit", group), units)
    np.testing.assert_array_equal(store.read("spike_time", 2, 5, 9), data["spike_time"].values[305:309])
    assert store.read("spike_unit", 0).dtype == np.int32
    assert store.read("spike_count", 2) == 170
    assert store.members("unit") == ("u00", "u01", "u02", "u03")
    np.testing.assert_array_equal(store.read("behaviour_value", 1, 3, 9), data["behaviour_value"].values[1, 3:9])
    assert {(v.role, v.unit) for n, v in store.meta.variables.items() if n == "behaviour_value"} == {("label", "m/s")}
    for call in (lambda: store.read("spike_time", 1, 0, 1), lambda: store.read("spike_time", 2, 0, 171),
                 lambda: store.read("spike_time", 3), lambda: store.read("spike_time", 0, -1, 2)):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(InputError, match=r"\[time\]: found no ragged dimension; expected one of spike"):
        store.rows("time")


def test_frames_of_unequal_size_are_read_back(built: Make, spikes: Make) -> None:
    data = molecules()
    store = built(data, split={"by": "group", "counts": {"train": 3, "validation": 1, "test": 1}, "seed": None})
    assert store.rows("atom").dtype == np.int64
    assert store.rows("atom").tolist() == [3, 5, 4, 0, 5]
    for name in ("position", "force", "element"):
        for group, values in enumerate(parts(data[name].values, (3, 5, 4, 0, 5))):
            np.testing.assert_array_equal(store.read(name, group), values)
    assert store.read("energy", 3) == data["energy"].values[3]
    assert store.meta.dt is None
    assert set(store.meta.axes) == {"xyz"}
    train = data["position"].values[:12]
    for i, axis in enumerate("xyz"):
        moments = store.meta.moments[f"position/{axis}"]
        assert (moments.count, moments.mean, moments.std) == pytest.approx((12, train[:, i].mean(), train[:, i].std()))
    assert {key.partition("/")[0] for key in store.meta.moments} == {"position", "force", "energy"}
    assert [f for f in validate(store) if f.level == "error"] == []


def test_what_was_written_opens_everywhere(built: Make, spikes: Make) -> None:
    data = spikes()
    store = built(data)
    names = ["spike_time", "spike_unit", "spike_count", "behaviour_value"]
    plain = xr.open_zarr(store.url, consolidated=True).load()
    assert plain["spike_count"].attrs["sample_dimension"] == "spike"
    assert [str(plain[n].dtype) for n in names] == ["float64", "int32", "int64", "float32"]
    for found in (plain, store.dataset().load(), store.lazy()):
        for name in names:
            np.testing.assert_array_equal(found[name].values, data[name].values)
        assert found["unit_area"].values.tolist() == list("aabb")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 our own bytes
    np.testing.assert_array_equal(again.read("spike_time", 2), store.read("spike_time", 2))
    assert again.rows("spike").tolist() == [300, 0, 170]


def test_events_alone_keep_their_bins_and_units(built: Make, spikes: Make) -> None:
    names = ["spike_time", "spike_unit", "spike_count"]
    for i, source in enumerate(({}, {"variables": {name: {} for name in names}})):
        store = built(spikes(behaviour=i == 1), f"s{i}", **source)
        assert {"time", "unit"} <= set(store.meta.axes)
        assert len(store.coord("time")) == 400
        assert store.meta.moments == {}
        assert [f.key for f in validate(store) if f.level == "error"] == []


def test_statistics_of_labels_are_of_the_training_blocks(built: Make, spikes: Make) -> None:
    data = spikes()
    store = built(data)
    train = data["behaviour_value"].values[:, :store.meta.splits.train[0].stop].astype(np.float64)
    assert store.meta.moments["behaviour_value/vel_y"].mean == pytest.approx(train[..., 1].mean(), rel=1e-12)
    assert store.meta.moments["behaviour_value/vel_y"].std == pytest.approx(train[..., 1].std(), rel=1e-12)
    assert set(store.meta.moments) == {"behaviour_value/vel_x", "behaviour_value/vel_y"}
    assert store.meta.tendency == {}


def test_a_ragged_state_has_no_statistics_where_blocks_are_stretches_of_time() -> None:
    data = molecules().assign_coords(time=np.arange(4.0))
    axes = {"time": AxisMeta(kind="time", unit="s"), "xyz": AxisMeta(kind="set", unit="1")}
    variables = {"position": Variable(role="state", unit="m", dims=("atom", "xyz")),
                 "atoms": Variable(role="rows", unit="1", dims=())}
    half, whole = [Block(group=0, start=0, stop=2)], [Block(group=g, start=0, stop=4) for g in (0, 2)]
    assert statistics.compute(data, variables, axes, half, ragged={"atom": "atoms"}) == ({}, {})
    moments, _ = statistics.compute(data, variables, axes, whole, ragged={"atom": "atoms"})
    kept = np.concatenate([data["position"].values[:3], data["position"].values[8:12]])
    assert moments["position/y"].mean == pytest.approx(kept[:, 1].mean(), rel=1e-12)
    with pytest.raises(InputError, match=r"\[position\]: found no finite value"):
        statistics.compute(data, variables, axes, [Block(group=3, start=0, stop=4)], ragged={"atom": "atoms"})


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.data())
def test_any_numbers_of_rows_survive(tmp_path_factory: pytest.TempPathFactory, spikes: Make, rows: list[int],
                                     draw: Any) -> None:
    data = spikes(tuple(rows), behaviour=False)
    data["trace"] = (("spike", "unit"), np.arange(4.0 * sum(rows)).reshape(-1, 4), {"role": "event", "units": "1"})
    data = data.chunk({"spike": 37} if sum(rows) else {})
    spec = SourceSpec(name="toy", domain="spikes", builder="toy")
    with pytest.MonkeyPatch.context() as patch:
        find = registry.find
        patch.setattr(registry, "find", lambda group, name, *, where="": (
            (lambda options: data) if group == "sciml.data.builders" else find(group, name, where=where)))
        lazy, draft = prepare(spec, [])
    store = write_store(lazy, draft, tmp_path_factory.mktemp("rows") / "s.zarr")
    group = draw.draw(st.integers(0, len(rows) - 1))
    start = draw.draw(st.integers(0, rows[group]))
    stop = draw.draw(st.integers(start, rows[group]))
    for name in ("spike_time", "trace"):
        expected = parts(data[name].values, rows)[group][start:stop]
        np.testing.assert_array_equal(store.read(name, group, start, stop), expected)
    assert store.rows("spike").tolist() == rows


def test_reading_a_few_rows_decodes_a_chunk_and_no_more(built: Make, spikes: Make) -> None:
    store = built(spikes((40_000, 30_000), behaviour=False))
    fresh = open_store(store.url)
    assert fresh.amplification == 0.0
    fresh.read("spike_time", 1, 100, 8292)
    chunk = fresh.layout["spike_time"][0][0]
    assert fresh.amplification == 2 * chunk / 8192
    before = fresh.cached_bytes
    fresh.read("spike_time", 1, 200, 300)
    assert fresh.cached_bytes == before
    np.testing.assert_array_equal(fresh.read("spike_time", 0), spikes((40_000, 30_000))["spike_time"].values[:40_000])


def test_writing_computes_one_shard_at_a_time(built: Make, spikes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from sciml.data import layout

    monkeypatch.setattr(layout, "SHARD_BYTES", 1 << 16)
    seen: list[int] = []

    def piece(block: np.ndarray) -> np.ndarray:
        seen.append(len(block))
        return block
    data = spikes((40_000, 30_000), behaviour=False)
    times = data["spike_time"]
    lazy = da.from_array(times.values, chunks=4096).map_blocks(piece, dtype=times.dtype, meta=np.zeros(0))
    store = built(data.assign(spike_time=times.copy(data=lazy)))
    assert store.layout["spike_time"][1] == (8192,)
    assert max(seen) == 4096
    np.testing.assert_array_equal(store.read("spike_time", 1), times.values[40_000:])


def drop(name: str) -> Change:
    return lambda data: data.drop_vars(name)


def attribute(name: str, **attrs: Any) -> Change:
    return lambda data: data[name].attrs.update(attrs)


def counts(*values: Any) -> Change:
    return lambda data: data.assign(spike_count=data["spike_count"].copy(data=np.array(values)))


def second(data: xr.Dataset) -> xr.Dataset:
    return data.assign(again=data["spike_count"].copy())


@pytest.mark.parametrize(("change", "message"), [
    (counts(300, 0, 171), r"\[spike_count\]: found 471 rows of spike in all; expected 470, its size"),
    (counts(300, -1, 171), r"\[spike_count\]: found -1 rows of spike in group 1; expected at least 0"),
    (counts(1 << 62, 1 << 62, 470), r"\[spike_count\]: found 9\d+ rows"),
    (counts(300.0, 0.0, 170.0), r"\[spike_count\]: found float64 \('recording',\), expected whole numbers"),
    (drop("spike_count"), r"\[spike_time, spike_unit\]: found spike_time: dimensions \('spike',\); spike_unit: dimens"),
    (attribute("spike_count", sample_dimension=None), r"\[spike_count, spike_time, spike_unit\]: found spike_c"),
    (attribute("spike_count", sample_dimension="atom"), r"sample_dimension 'atom', which is no dimension of rows"),
    (attribute("spike_count", sample_dimension="recording"), r"'recording', which is no dimension of rows"),
    (second, r"\[again\]: found rows of spike, as spike_count has"),
    (attribute("spike_time", role="rows", sample_dimension="spike"), r"spike_time: float64 \('spike',\), expected"),
    (lambda d: d.assign(x=(("recording", "spike"), np.zeros((3, 470)), {"role": "event", "units": "1"})),
     r"\[x\]: found dimensions \('recording', 'spike'\), both recording and spike"),
    (lambda d: d.assign(x=(("spike", "recording"), np.zeros((470, 3)), {"role": "event", "units": "1"})),
     r"\[x\]: found dimensions \('spike', 'recording'\); expected recording first, or a ragged"),
    (lambda d: d.assign(x=(("unit", "spike"), np.zeros((4, 470)), {"role": "event", "units": "1"})),
     r"\[x\]: found dimensions \('unit', 'spike'\)"),
    (lambda d: d.assign_coords(spike=np.arange(470)), r"\[spike\]: found a coordinate along the ragged dim"),
    (lambda d: d.assign(x=(("spike", "time"), np.zeros((470, 400)), {"role": "event", "units": "1"})),
     r"\[x\]: found dimensions \('time', 'spike'\); expected dims among"),
    (attribute("spike_time", units=None), r"\[spike_time\]: found no unit"),
])
def test_mistakes_are_named(built: Make, spikes: Make, tmp_path: Path, change: Change, message: str) -> None:
    data = spikes()
    changed = change(data)
    with pytest.raises(InputError, match=message):
        built(data if changed is None else changed)
    assert list(tmp_path.iterdir()) == []


def test_a_source_file_can_say_the_role_but_not_describe_a_ragged_axis(built: Make, spikes: Make) -> None:
    data = spikes(behaviour=False)
    del data["spike_count"].attrs["role"]
    named: dict[str, Any] = {name: {} for name in ("spike_time", "spike_unit")}
    assert built(data, variables=named | {"spike_count": {"role": "rows"}}).rows("spike").tolist() == [300, 0, 170]
    with pytest.raises(InputError, match=r"\[axes.spike\]: found no such dimension in the data; expected one of u"):
        built(spikes(), "t", axes={"spike": {"unit": "s"}})
    with pytest.raises(InputError, match=r"\[spike_time, spike_unit\]"):
        built(spikes(), "t", variables=named)


def test_a_look_at_spikes_needs_no_units_and_no_coordinate_of_rows(tmp_path: Path, spikes: Make) -> None:
    found = guess(spikes(), "lab.nwb")
    assert (found.axes["spike"].kind, found.axes["spike"].size) == ("ragged", 470)
    assert ("axis", "spike", "ragged, 470 rows in all") in found.table()
    assert found.missing == ()
    (tmp_path / "source.yaml").write_text(found.source_yaml())
    spec = read_source(tmp_path / "source.yaml")
    assert spec.variables == {}
    assert spec.split is not None
    assert spec.split.by == "time"
    unknown = spikes()
    del unknown["spike_time"].attrs["units"]
    text = guess(unknown, "lab.nwb").source_yaml()
    assert '"spike_time": {role: event, unit: null}  # FILL IN' in text
    assert '"behaviour_value": {role: label, dims: [time, behaviour]}' in text


def test_offsets_need_whole_numbers() -> None:
    with pytest.raises(InputError, match=r"found values of type float64; expected whole numbers"):
        ragged.offsets(np.array([1.0]), 1, dim="spike", name="n", where="t")
    assert ragged.offsets(np.zeros(0, np.int64), 0, dim="spike", name="n", where="t").tolist() == [0]


def test_there_may_be_no_rows_at_all(built: Make, spikes: Make) -> None:
    store = built(spikes((0, 0)))
    assert store.read("spike_time", 1).shape == (0,)
    assert {f.key for f in validate(store)} == {"unit"}
    xr.testing.assert_equal(store.dataset().load()["spike_time"], spikes((0, 0))["spike_time"])
