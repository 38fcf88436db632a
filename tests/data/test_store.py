"""Stores: what is written is read back, in bounded memory, or nothing is there."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data import statistics
from sciml.data.chunks import PATIENCE
from sciml.data.layout import CHUNK_BYTES, SHARD_BYTES, chunks_and_shards
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, open_store, write_store
from sciml.errors import InputError


def fields(groups: int = 10, steps: int = 7, n: int = 64) -> tuple[xr.Dataset, StoreDraft]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(groups, steps, n, n)).astype(np.float32).cumsum(1)
    data = xr.Dataset(
        {"w": (("trajectory", "time", "x", "y"), values), "f": (("trajectory", "x", "y"), values[:, 0]),
         "nu": (("trajectory",), np.linspace(0.0, 1.0, groups))},
        coords={"time": np.arange(steps) * 0.5, "x": np.arange(n) / n, "y": np.arange(n) / n})
    space = AxisMeta(kind="space", unit="m", period=1.0)
    whole = [Block(group=i, start=0, stop=steps) for i in range(groups)]
    return data, StoreDraft(
        domain="fields", dataset="toy", group_dim="trajectory", groups=groups, dt=0.5,
        variables={"w": Variable(role="state", unit="1/s", dims=("time", "x", "y")),
                   "f": Variable(role="forcing", unit="1/s2", dims=("x", "y")),
                   "nu": Variable(role="parameter", unit="m2/s", dims=())},
        axes={"time": AxisMeta(kind="time", unit="s"), "x": space, "y": space},
        splits=Splits(key="trajectory", train=whole[:-2], validation=whole[-2:-1], test=whole[-1:]),
        provenance=Provenance(builder="toy"))


def series(values: np.ndarray, train: int) -> tuple[xr.Dataset, StoreDraft]:
    steps, variates = values.shape
    data = xr.Dataset({"value": (("series", "time", "variate"), values[None])},
                      coords={"time": np.datetime64("2001-01-01", "ns") + np.arange(steps) * np.timedelta64(7, "D"),
                              "variate": [f"v{i}" for i in range(variates)],
                              "variate_unit": ("variate", ["K"] * variates)})
    return data, StoreDraft(
        domain="series", dataset="toy", group_dim="series", groups=1, dt=1.0,
        variables={"value": Variable(role="state", unit="K", dims=("time", "variate"))},
        axes={"time": AxisMeta(kind="time", unit="week"), "variate": AxisMeta(kind="set", unit="1")},
        splits=Splits(key="time", train=(Block(group=0, start=0, stop=train),), validation=(), test=()),
        provenance=Provenance(builder="toy"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, xr.Dataset]:
    data, draft = fields()
    return write_store(data, draft, tmp_path_factory.mktemp("store") / "toy.zarr"), data


def test_what_is_written_is_read_back(toy: tuple[Store, xr.Dataset]) -> None:
    store, data = toy
    w, f = data["w"].values, data["f"].values
    np.testing.assert_array_equal(store.read("w", 3, 2, 6), w[3, 2:6])
    np.testing.assert_array_equal(store.read("w", 9), w[9])
    np.testing.assert_array_equal(store.read("f", 4), f[4])
    assert store.read("w", 0, 3, 3).shape == (0, 64, 64)
    assert store.read("nu", 9) == 1.0
    assert store.read("w", 1).dtype == np.float32
    xr.testing.assert_equal(store.dataset().load(), data)
    np.testing.assert_array_equal(store.coord("x"), data["x"].values)
    assert store.dataset()["x"].attrs == {"units": "m", "period": 1.0}
    assert store.dataset()["w"].attrs["units"] == "1/s"


def test_series_keep_dates_labels_and_missing_values(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    values[4, 1] = np.nan
    data, draft = series(values, train=10)
    store = write_store(data, draft, tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("value", 0, 2, 8), values[2:8])
    assert store.members("variate") == ("v0", "v1", "v2")
    assert store.coord("variate_unit").tolist() == ["K"] * 3
    np.testing.assert_array_equal(store.coord("time"), data["time"].values)
    assert store.meta.moments["value/v1"].missing == 1
    assert store.meta.moments["value/v1"].count == 9
    assert store.meta.moments["value/v2"].mean == pytest.approx(values[:10, 2].mean())


def test_plain_xarray_reads_a_store(toy: tuple[Store, xr.Dataset]) -> None:
    store, data = toy
    xr.testing.assert_equal(xr.open_zarr(store.url, consolidated=True).load(), data)


def test_a_store_can_live_behind_a_url() -> None:
    data, draft = fields(groups=4, n=8)
    store = write_store(data, draft, "memory://stores/url.zarr")
    np.testing.assert_array_equal(store.read("w", 2, 1, 3), data["w"].values[2, 1:3])
    assert open_store("memory://stores/url.zarr").meta == store.meta
    with pytest.raises(InputError, match="it exists"):
        write_store(data, draft, "memory://stores/url.zarr", overwrite=True)


def test_a_file_url_is_a_path(toy: tuple[Store, xr.Dataset]) -> None:
    store, data = toy
    np.testing.assert_array_equal(open_store(f"file://{store.url}").read("w", 1), data["w"].values[1])


@pytest.mark.parametrize(("group", "start", "stop"), [(10, 0, 1), (-1, 0, 1), (0, 0, 8), (0, -1, 2), (0, 3, 2)])
def test_reading_outside_the_store_is_an_index_error(toy: tuple[Store, xr.Dataset], group: int, start: int,
                                                     stop: int) -> None:
    with pytest.raises(IndexError, match=r"toy\.zarr"):
        toy[0].read("w", group, start, stop)


def test_unknown_names_are_refused(toy: tuple[Store, xr.Dataset]) -> None:
    with pytest.raises(InputError, match=r"\[v\]: found no such variable; expected one of w, f, nu"):
        toy[0].read("v", 0)
    with pytest.raises(InputError, match=r"\[z\]: found no such coordinate"):
        toy[0].coord("z")


def test_the_cache_is_bounded_and_amplification_counts_what_is_decoded(toy: tuple[Store, xr.Dataset]) -> None:
    frame = 64 * 64 * 4
    store = open_store(toy[0].url, cache_bytes=3 * frame)
    assert store.amplification == 0.0
    store.read("w", 0, 0, 2)
    assert store.amplification == 1.0
    store.read("w", 0, 0, 2)
    assert store.amplification == 0.5
    for group in range(10):
        store.read("w", group)
        assert store.cached_bytes <= 3 * frame
    store.read("w", 9, 6, 7)
    before = store.amplification
    store.read("w", 0, 0, 1)
    assert store.amplification > before, "the first frame was evicted and is decoded again"
    none = open_store(toy[0].url, cache_bytes=0)
    none.read("w", 0)
    none.read("w", 0)
    assert none.amplification == 1.0
    assert none.cached_bytes == 0


def test_what_fits_into_the_cache_is_soon_read_in_whole(toy: tuple[Store, xr.Dataset]) -> None:
    url, data = toy[0].url, toy[1]
    order = np.random.default_rng(0).permutation(data.sizes["trajectory"] * data.sizes["time"])
    places = [divmod(int(i), data.sizes["time"]) for i in order]
    assert len(places) > 4 * PATIENCE, "the array has too few frames for this test"
    store, one_by_one = open_store(url), open_store(url, cache_bytes=0)
    for group, time in places[:2 * PATIENCE]:
        for each in (store, one_by_one):
            assert (each.read("w", group, time, time + 1) == data["w"][group, time].values).all()
    held = store.cached_bytes
    assert one_by_one.amplification == 1.0
    assert held >= data["w"].nbytes
    for group, time in places:
        assert (store.read("w", group, time, time + 1) == data["w"][group, time].values).all()
    assert store.cached_bytes == held, "nothing was left to read"


def test_what_is_read_is_a_copy(toy: tuple[Store, xr.Dataset]) -> None:
    store, data = toy
    store.read("w", 2, 0, 1)[:] = 0
    store.read("f", 2)[:] = 0
    np.testing.assert_array_equal(store.read("w", 2, 0, 1), data["w"].values[2, :1])
    np.testing.assert_array_equal(store.read("f", 2), data["f"].values[2])


def _sum_in_child(store: Store, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put(float(store.read("w", 5).sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_works_in_another_process(toy: tuple[Store, xr.Dataset], method: str) -> None:
    store = toy[0]
    expected = float(store.read("w", 5).sum())
    if method == "spawn":
        again = pickle.loads(pickle.dumps(store))  # noqa: S301 our own bytes
        assert again.meta == store.meta
        assert float(again.read("w", 5).sum()) == expected
        return
    fresh = open_store(store.url, cache_bytes=0)
    fresh.read("w", 4)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(fresh, queue))
    child.start()
    assert queue.get(timeout=30) == expected
    child.join(10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([4, 8]), st.booleans())
def test_shards_are_whole_chunks_and_both_are_bounded(shape: list[int], item: int, time: bool) -> None:
    if time and len(shape) < 2:
        shape = [*shape, 3]
    scaled = [n * (40 if i > 1 else 1) for i, n in enumerate(shape)]
    chunk, shard = chunks_and_shards(scaled, item, time=time)
    assert len(chunk) == len(shard) == len(scaled)
    assert all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
    assert np.prod(shard) * item <= SHARD_BYTES
    if time:
        assert chunk[0] == 1
        assert chunk[1] == 1 or np.prod(chunk) * item <= CHUNK_BYTES


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 20), st.integers(1, 3), st.integers(0, 2**31), st.floats(0, 1e6))
def test_statistics_equal_a_direct_float64_computation(groups: int, steps: int, n: int, seed: int,
                                                       offset: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(offset, rng.uniform(0.1, 10), size=(groups, steps, n))
    values[rng.random(values.shape) < 0.1] = np.nan
    values[0, 0, 0] = offset
    blocks = [Block(group=g, start=0, stop=steps) for g in range(groups) if g == 0 or rng.random() < 0.7]
    data = xr.Dataset({"u": (("g", "time", "x"), values)})
    axes = {"time": AxisMeta(kind="time", unit="s"), "x": AxisMeta(kind="space", unit="m")}
    variables = {"u": Variable(role="state", unit="1", dims=("time", "x"))}
    moments, tendency = statistics.compute(data, variables, axes, blocks)
    train = values[[b.group for b in blocks]]
    scale = max(np.nanstd(train), 1e-9 * max(offset, 1))
    assert moments["u"].mean == pytest.approx(np.nanmean(train), abs=1e-9 * scale + 1e-13 * offset)
    assert moments["u"].std == pytest.approx(np.nanstd(train), rel=1e-7, abs=1e-12 * max(offset, 1))
    assert moments["u"].minimum == np.nanmin(train)
    assert moments["u"].maximum == np.nanmax(train)
    assert moments["u"].missing == np.isnan(train).sum()
    leads = sorted({*(2**i for i in range(5) if 2**i < steps), steps - 1})
    changes = {lead: train[:, lead:] - train[:, :-lead] for lead in leads}
    direct = {lead: np.nanstd(change) for lead, change in changes.items() if np.isfinite(change).any()}
    found = dict(zip(tendency["u"].lead, tendency["u"].std, strict=True)) if direct else {}
    assert found == pytest.approx(direct, rel=1e-7, abs=1e-12 * max(offset, 1))


def test_statistics_do_not_depend_on_how_values_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    data, draft = fields(groups=5, steps=9, n=6)
    arguments = (data, draft.variables, draft.axes, draft.splits.train)
    whole = statistics.compute(*arguments)
    monkeypatch.setattr(statistics, "PIECE_BYTES", 300)
    monkeypatch.setattr(statistics, "RESIDENT_BYTES", 1000)
    moments, tendency = statistics.compute(*arguments)
    for key, value in whole[0].items():
        assert moments[key].model_dump() == pytest.approx(value.model_dump(), rel=1e-12, abs=1e-15)
    assert tendency["w"].std == pytest.approx(whole[1]["w"].std, rel=1e-12)


def test_statistics_see_the_training_split_only(tmp_path: Path) -> None:
    data, draft = fields(n=8)
    first = write_store(data, draft, tmp_path / "a.zarr").meta
    data["w"][8:] = 1e9
    data["nu"][8:] = -1e9
    assert write_store(data, draft, tmp_path / "b.zarr").meta.moments == first.moments


def test_a_variable_without_training_values_is_refused(tmp_path: Path) -> None:
    values = np.ones((10, 2), np.float32)
    values[:6, 1] = np.nan
    with pytest.raises(InputError, match=r"\[value/v1\]: found no finite value"):
        write_store(*series(values, train=6), tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "message"), [
    (lambda data, draft: (data.transpose("time", ...), draft), r"\[w\]: found \('time'"),
    (lambda data, draft: (data.drop_vars("f"), draft), r"\[f\]: found no such variable"),
    (lambda data, draft: (data.drop_vars("x"), draft), r"\[x\]: found no coordinate"),
    (lambda data, draft: (data.isel(trajectory=slice(5)), draft), r"\[trajectory\]: found 5; expected 10 groups"),
    (lambda data, draft: (data.assign(nu=data["nu"].astype(str)), draft), r"\[nu\]: found values of type"),
    (lambda data, draft: (data.assign(nu=data["nu"] * 1j), draft), r"\[nu\]: found values of type complex"),
])
def test_a_dataset_that_does_not_fit_its_description_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        write_store(*change(*fields(n=4)), tmp_path / "bad.zarr")
    assert list(tmp_path.iterdir()) == []


def test_big_endian_and_packed_encodings_are_not_carried_over(tmp_path: Path) -> None:
    data, draft = fields(n=4)
    data["w"].encoding = {"scale_factor": 0.5, "dtype": "int16", "chunks": (1, 1, 1, 1), "compressor": None}
    data["time"].encoding = {"dtype": "int32", "units": "years"}
    store = write_store(data, draft, tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("w", 3), data["w"].values[3])
    np.testing.assert_array_equal(store.coord("time"), data["time"].values)


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_store(*fields(n=4), tmp_path / "s.zarr", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)


MEMORY = """
import resource, sys
import dask.array as da, numpy as np, xarray as xr
sys.path.insert(0, {folder!r})
from test_store import fields
from sciml.data import layout, statistics
from sciml.data.schema import Block, Splits
from sciml.data.store import open_store, write_store
layout.SHARD_BYTES, statistics.RESIDENT_BYTES = 2 << 20, 2 << 20
groups = int(sys.argv[1])
data, draft = fields(groups=4, steps=12, n=128)
values = da.random.default_rng(0).normal(size=(groups, 12, 128, 128), chunks=(2, 12, 128, 128)).astype(np.float32)
data = data.drop_vars(["w", "f", "nu"]).assign(w=(("trajectory", "time", "x", "y"), values))
blocks = tuple(Block(group=g, start=0, stop=12) for g in range(groups))
splits = Splits(key="t", train=blocks[:-2], validation=blocks[-2:-1], test=blocks[-1:])
draft = draft.model_copy(update=dict(groups=groups, variables={{"w": draft.variables["w"]}}, splits=splits))
store = open_store(write_store(data, draft, sys.argv[2]).url, cache_bytes=8 << 20)
for group in range(groups):
    store.read("w", group)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    script = MEMORY.format(folder=str(Path(__file__).parent))

    def peak(groups: int) -> float:
        done = subprocess.run([sys.executable, "-c", script, str(groups), str(tmp_path / f"{groups}.zarr")],
                              capture_output=True, text=True, check=True)
        return float(done.stdout)

    small, large = peak(40), peak(400)
    assert large < small + 64, f"peak {small:.0f} MiB for 30 MiB of data, {large:.0f} MiB for 300 MiB"


def test_the_attribute_is_json_that_others_can_read(toy: tuple[Store, xr.Dataset]) -> None:
    root = json.loads((Path(toy[0].url) / "zarr.json").read_text())
    assert root["attributes"]["sciml"]["schema_version"] == 1
    assert root["attributes"]["sciml"]["splits"]["test"] == [{"group": 9, "start": 0, "stop": 7}]


def test_writing_in_parallel_gives_the_same_store(tmp_path: Path) -> None:
    data, draft = fields(groups=40, steps=3, n=8)
    lazy = data.assign(w=(data["w"].dims, da.from_array(data["w"].values, chunks=(3, 1, 5, 8))))
    store = write_store(lazy, draft, tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.dataset()["w"].values, data["w"].values)
