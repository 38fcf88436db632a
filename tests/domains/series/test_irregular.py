"""Times that follow no step, from the file to the forecast: nothing is imputed, refused or taken for what it is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sciml.data.check import validate
from sciml.data.frames import series_of_frame
from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.domains.series.encode import GAP, past_of
from sciml.domains.series.kriging import Kriging
from sciml.domains.series.layout import Layout
from sciml.domains.series.tasks.anomaly import SCORE
from sciml.domains.series.tasks.impute import HIDDEN
from sciml.errors import InputError
from sciml.handles.series import forecast
from sciml.handles.series_backtest import backtest
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.testing import check_domain
from tests.domains.series.irregular import TAU, frame_of, store_of, walk, walk_store
from tests.domains.series.test_series_tasks import plain
from tests.handles.plant import predictor_of

RNG = np.random.default_rng
CONFIG: dict[str, Any] = {"look_back": 24, "horizons": [4, 8], "patch": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return walk_store(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two series, long, at dates of their own."""
    folder = tmp_path_factory.mktemp("dated")
    parts = [frame_of(*walk(count, seed=count), dates=True, id=name) for name, count in (("p", 700), ("q", 500))]
    return store_of(folder, pd.concat(parts), "dated", id_column="id")


@pytest.fixture(scope="module")
def predictor(store: Store) -> Predictor:
    return predictor_of(store, **CONFIG)


def fitted(store: Store, task: Any = "forecast", **config: Any) -> Series:
    return Series.create({**CONFIG, "task": task, **config}).fit(store)


def drawn(adapter: Series, store: Store, index: int = 0, which: int = 0) -> xr.Dataset:
    return adapter.questions(store, "test")[which].windows.draw(index, RNG(0), RNG(0))


def test_only_a_source_that_says_so_may_be_irregular(tmp_path: Path) -> None:
    wide, long = frame_of(*walk(60)), frame_of(*walk(60), dates=True, id="p")
    for frame, told in ((wide, {}), (long, {"id_column": "id"})):
        with pytest.raises(InputError, match=r"irregular: fill.*keep"):
            store_of(tmp_path, frame, **told, irregular="refuse")
    assert store_of(tmp_path / "wide", wide).meta.dt is None
    even = store_of(tmp_path / "even", frame_of(np.arange(60.0), walk(60)[1]))
    assert even.meta.dt == 1.0
    assert not Layout.of(even).irregular


def test_a_store_keeps_every_time_and_validates(store: Store, dated: Store) -> None:
    assert Layout.of(store).irregular
    assert Layout.of(dated).irregular
    assert dated.lazy()["step_time"].attrs["freq"] == "irregular"
    np.testing.assert_array_equal(store.coord("time"), walk()[0])
    assert [f.key for f in validate(dated) if f.key not in ("licence", "citation")] == []
    clock = fitted(dated).datasets["dated"].clock
    assert clock.kind == "calendar"
    assert clock.dt == pytest.approx(1.0, rel=0.1)
    times = Layout.of(dated).times(1, 5, 30)
    np.testing.assert_array_equal(clock.times(clock.ticks(times, where="")), times)
    numeric = fitted(store).datasets["walk"].clock
    np.testing.assert_allclose(numeric.times(numeric.ticks(store.coord("time")[3:9], where="")),
                               store.coord("time")[3:9], rtol=0, atol=1e-8)


def test_parquet_and_lines_with_times_are_as_csv(tmp_path: Path) -> None:
    frame = frame_of(*walk(80, 1), dates=True)
    frame.to_parquet(tmp_path / "walk.parquet")
    wide = store_of(tmp_path / "csv", frame)
    entry = {"timestamp": frame["time"].astype(str).tolist(), "target": frame["a"].tolist(), "item_id": "p"}
    (tmp_path / "a.json").write_bytes(gzip.compress(json.dumps(entry).encode()))
    from tests.data.test_readers_series import look, spec

    lines = look(tmp_path / "a.json", format="gluonts", irregular="keep", units="1")
    assert lines["step_time"].attrs["freq"] == "irregular"
    np.testing.assert_array_equal(lines["step_time"].values.astype("datetime64[ns]"), frame["time"])
    with pytest.raises(InputError, match=r"row 10 \(item_id p\), column timestamp.*irregular: fill"):
        look(tmp_path / "a.json", format="gluonts", units="1")
    short = {**entry, "timestamp": entry["timestamp"][:-1]}
    (tmp_path / "b.json").write_text(json.dumps(short))
    with pytest.raises(InputError, match=r"line 1, timestamp.*79 times.*80"):
        look(tmp_path / "b.json", format="gluonts", irregular="keep")
    from sciml.data.build import build

    split = {"by": "time", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}}
    other = build(spec([tmp_path / "walk.parquet"], split, irregular="keep", units="1"), tmp_path / "p.zarr")
    assert other.meta.dt is None
    np.testing.assert_array_equal(other.coord("time"), wide.coord("time"))


@pytest.mark.parametrize(("task", "config"), [
    ("forecast", {}), ({"forecast": {"quantiles": [0.1, 0.5, 0.9]}}, {"patch": 1}), ("impute", {}),
    ({"anomaly": {"block": 3}}, {}), ("forecast", {"shortest": 12, "missing": 0.3, "inputs": {"spread": True}})],
    ids=["forecast", "quantiles", "impute", "anomaly", "drawn"])
def test_tasks_conform(store: Store, task: Any, config: dict[str, Any]) -> None:
    check_domain("series", [store], config={**CONFIG, "task": task, **config})


def test_tasks_conform_at_dates(dated: Store) -> None:
    check_domain("series", [dated], config=CONFIG)


def test_the_floor_reaches_what_theory_allows(store: Store) -> None:
    adapter, errors, best = fitted(store), [], []
    known = adapter.datasets["walk"]
    windows = adapter.questions(store, "test")[0].windows
    for i in range(0, len(windows), 2):
        sample = windows.draw(i, RNG(0), RNG(0))
        target = adapter.encode(sample).targets["value"]
        errors.append((target.baseline - target.value)[:, :, 24:].square().mean().item())
        kept = np.exp(-(sample["time"].values[24:] - sample["time"].values[23]) / TAU)[:, None]
        exact = (kept * sample["value"].values[23] - sample["value"].values[24:]) / known.std
        best.append(np.square(exact).mean())
    assert np.mean(errors) < 1.04 * np.mean(best)
    found = adapter.task.ridges["walk"]  # type: ignore[attr-defined]
    assert isinstance(found, Kriging)
    assert found.provenance["validation_mse"] < found.provenance["last_value_mse"]


def test_tokens_are_at_their_own_times(store: Store) -> None:
    adapter = fitted(store)
    samples = [drawn(adapter, store, i) for i in (0, 7)]
    batch = collate([adapter.encode(sample) for sample in samples])
    axis, clock = batch.axes[1], adapter.datasets["walk"].clock
    assert axis.coord.shape == (2, 28, 1)
    for row, sample in zip(axis.coord[..., 0].numpy(), samples):
        when = sample["time"].values
        np.testing.assert_allclose(row, (when - when[23]) / clock.dt / 24, atol=1e-5)
    assert past_of(batch) == 24
    gap = (batch.conditions.lattice[GAP][:, 0] + np.log(2)).exp() - 1
    np.testing.assert_allclose(gap[0, 1:].numpy() * clock.dt, np.diff(samples[0]["time"].values), rtol=1e-4, atol=1e-5)
    assert batch.conditions.vector["log_horizon"][0] != batch.conditions.vector["log_horizon"][1]


def test_shifted_in_time_nothing_changes(predictor: Predictor, store: Store) -> None:
    adapter = predictor.adapter("series")
    sample = drawn(adapter, store, 3)  # type: ignore[arg-type]
    moved = sample.assign_coords(time=sample["time"] + 12345.0)
    one, other = (predictor.predict(each)["value"].values for each in (sample, moved))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_fewer_observations_are_a_wider_forecast(store: Store) -> None:
    adapter = fitted(store)
    sample = drawn(adapter, store, 3)
    thinned = sample.isel(time=np.r_[0:24:2, 24:28]).assign_attrs(look_back=12)
    whole, part = (adapter.encode(each).targets["value"] for each in (sample, thinned))
    assert (part.scale[:, :, 12:] >= whole.scale[:, :, 24:] - 1e-6).all()
    hidden = sample.copy(deep=True)
    hidden["value"].values[np.r_[1:24:2]] = np.nan
    torch.testing.assert_close(adapter.encode(hidden).targets["value"].baseline[:, :, 24:], part.baseline[:, :, 12:])


def test_scores_stand_beside_the_last_value(store: Store) -> None:
    adapter = fitted(store)
    question = adapter.questions(store, "test")[0]
    assert (question.name, question.baseline_name) == ("4", "kriging")
    sample = drawn(adapter, store, 5)
    batch = adapter.encode(sample)
    target = batch.targets["value"]
    found, truth = (adapter.decode(batch, each) for each in (plain(batch), {"value": target.value}))
    score = adapter.score(question, found, truth)
    assert set(score) == {metric.name for metric in adapter.metrics()}
    last = (target.value[:, :, 23:24] - target.value[:, :, 24:]).square().mean()
    assert score["mse_last_value"][0] == pytest.approx(last.item(), rel=1e-5)
    assert "mse_last_value" not in {metric.name for metric in fitted(store, "impute").metrics()}


def test_a_row_of_nothing_at_any_time_is_filled_in(store: Store) -> None:
    adapter = fitted(store, "impute")
    sample = drawn(adapter, store, 2).drop_vars(HIDDEN)
    when = sample["time"].values
    between = float(when[10] + 0.3 * (when[11] - when[10]))
    asked = sample.reindex(time=np.sort([*when, between])).isel(time=slice(1, None))
    batch = adapter.encode(asked.assign_attrs(sample.attrs))
    filled = adapter.decode(batch, plain(batch))
    place = int(np.abs(filled["valid_time"].values[0] - between).argmin())
    near = filled["value"].values[0]
    low, high = np.minimum(near[place - 1], near[place + 1]), np.maximum(near[place - 1], near[place + 1])
    assert (near[place] > low - 0.3).all()
    assert (near[place] < high + 0.3).all()
    kept = np.isfinite(asked["value"].values)
    np.testing.assert_allclose(near[kept], asked["value"].values[kept], rtol=1e-4, atol=1e-5)


def test_an_event_stands_out_at_uneven_times(store: Store) -> None:
    adapter = fitted(store, {"anomaly": {"block": 2}})
    sample = adapter.open(store, "test").draw(0, RNG(0), RNG(0)).copy(deep=True)
    sample["value"].values[12, 0] += 8.0
    batch = adapter.encode(sample)
    found = adapter.decode(batch, plain(batch))[SCORE].values[0]
    assert np.nanargmax(found[:, 0]) == 12


@pytest.mark.parametrize(("config", "words"), [
    ({"task": "stream"}, r"stream, of times that follow no step.*forecast, impute"),
    ({"datasets": {"walk": {"transform": "sqrt"}}}, r"walk.transform.*sqrt.*kriging"),
    ({"datasets": {"walk": {"cycle": "day"}}}, r"walk.cycle.*day.*kriging")])
def test_what_needs_a_step_is_refused(store: Store, config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Series.create({**CONFIG, **config}).fit(store)


def test_others_are_not_asked_about(store: Store, dated: Store) -> None:
    adapter = fitted(store, inputs={"identity": False})
    with pytest.raises(InputError, match=r"dated.*times that follow no step"):
        adapter.meeting(dated)


def test_rollouts_and_backtests_ask_for_times(predictor: Predictor, store: Store) -> None:
    adapter = predictor.adapter("series")
    assert list(adapter.starts(store, "test")) == []
    sample = drawn(adapter, store)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="future=times"):
        predictor.rollout(sample, steps=1)
    with pytest.raises(InputError, match="future=times"):
        backtest(predictor, store, horizon=4)
    with pytest.raises(InputError, match=r"0 times after the look-back.*append them"):
        predictor.predict(sample.isel(time=slice(0, 24)).assign_attrs(horizon=4))
    unordered = sample.isel(time=np.r_[1, 0, 2:28])
    with pytest.raises(InputError, match="expected ascending times"):
        predictor.predict(unordered)


def test_a_frame_is_forecast_at_the_times_it_asks_for(predictor: Predictor, store: Store) -> None:
    times, values = walk()
    frame = frame_of(times, values).rename(columns={"time": "timestamp"}).iloc[700:740]
    asked = times[740:748]
    made = forecast(predictor, frame, future=asked, quantiles=[0.1, 0.5, 0.9])
    coords = {"time": times[716:748], "variate": ["a", "b"]}
    sample = xr.Dataset({"value": (("time", "variate"), values[716:748])}, coords,
                        {"domain": "series", "look_back": 24, "horizon": 8})
    direct = predictor.predict(sample)["value"].values[0]
    assert made["target_name"].tolist() == ["a"] * 8 + ["b"] * 8
    np.testing.assert_allclose(made["predictions"].to_numpy().reshape(2, 8).T, direct, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made["timestamp"][:8], asked, atol=1e-8)
    assert (np.diff(made[["0.1", "0.5", "0.9"]], axis=1) > 0).all()
    more = forecast(predictor, frame, future=pd.DataFrame({"timestamp": times[740:760]}))
    np.testing.assert_allclose(more["predictions"][:8], made["predictions"][:8], rtol=1e-4, atol=1e-5)
    assert len(more) == 40
    assert more["predictions"].notna().all()


def test_every_series_is_asked_at_times_of_its_own(dated: Store) -> None:
    predictor = predictor_of(dated, **CONFIG)
    parts = [frame_of(*walk(60, seed=i), dates=True, id=name).rename(columns={"time": "timestamp"})
             for i, name in enumerate("xy")]
    past, later = (pd.concat([part.iloc[rows] for part in parts], ignore_index=True)
                   for rows in (slice(0, 40), slice(40, 44)))
    later = later.drop(index=[0, 1])[["id", "timestamp"]]
    made = forecast(predictor, past, future=later)
    assert made.groupby("id", sort=False).size().tolist() == [4, 8]
    for name, rows in made.groupby("id"):
        alone = forecast(predictor, past[past["id"] == name], future=later[later["id"] == name])
        np.testing.assert_allclose(rows["predictions"], alone["predictions"], rtol=1e-4, atol=1e-5)
        asked = later["timestamp"][later["id"] == name]
        assert rows["timestamp"][rows["target_name"] == "a"].tolist() == asked.tolist()


@pytest.mark.parametrize(("arguments", "words"), [
    ({"horizon": 4}, r"frame \[horizon\].*those of walk follow no step"), ({}, r"frame \[future\]: found none"),
    ({"future": [1.0]}, "expected times after the last one"), ({"future": pd.DataFrame({"when": [9e9]})}, "'when'")])
def test_wrong_questions_are_named(predictor: Predictor, arguments: dict[str, Any], words: str) -> None:
    frame = frame_of(*walk(40)).rename(columns={"time": "timestamp"})
    with pytest.raises(InputError, match=words):
        forecast(predictor, frame, **arguments)


def test_times_to_come_are_of_the_kind_and_zone_of_the_history(dated: Store) -> None:
    predictor = predictor_of(dated, **CONFIG)
    frame = frame_of(*walk(60), dates=True, id="x").rename(columns={"time": "timestamp"})
    last = frame["timestamp"].iloc[-1]
    with pytest.raises(InputError, match="expected a time as those of the history"):
        forecast(predictor, frame, future=[5.0])
    zoned = frame.assign(timestamp=frame["timestamp"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    asked = [last + pd.Timedelta(days=1)]
    for bare in (asked, [str(asked[0])], pd.DataFrame({"id": ["x"], "timestamp": asked})):
        with pytest.raises(InputError, match=r"without a time zone.*Asia/Tokyo"):
            forecast(predictor, zoned, future=bare)
    plain = forecast(predictor, frame, future=asked)
    for same in (pd.DatetimeIndex(asked).tz_localize("UTC"), [f"{asked[0]}+00:00"]):
        made = forecast(predictor, zoned, future=same)
        assert (made["timestamp"].dt.tz_convert("UTC").dt.tz_localize(None) == plain["timestamp"]).all()
        np.testing.assert_array_equal(made["predictions"], plain["predictions"])


def test_steps_are_still_asked_for_where_there_are_some(tmp_path: Path) -> None:
    times = np.arange(300.0)
    even = predictor_of(store_of(tmp_path, frame_of(times, walk(300)[1])), **CONFIG)
    frame = frame_of(times, walk(300)[1]).rename(columns={"time": "timestamp"})
    with pytest.raises(InputError, match="expected a number of steps"):
        forecast(even, frame)
    with pytest.raises(InputError, match="row 6"):
        series_of_frame(frame.drop(index=5))
    assert len(series_of_frame(frame.drop(index=5), options={"irregular": "keep"})[0]["time"]) == 299
