"""Forecasts of frames: the operator's own numbers in the frame's own words, whatever the length, order and zone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.stats import norm

from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.errors import InputError
from sciml.handles._series import Model, interpolation, quantiles
from sciml.handles.series import forecast
from sciml.handles.series_intervals import Calibration, calibrate, pairs, windows_of
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from tests.handles.plant import HOURS, LOOK_BACK, VARIATES, frame_of, long_of, plant, predictor_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return plant(tmp_path_factory.mktemp("plant"))


@pytest.fixture(scope="module")
def predictor(store: Store) -> Predictor:
    return predictor_of(store)


def wide(made: pd.DataFrame, column: str = "predictions") -> np.ndarray:
    """``(H, V)``."""
    return made[column].to_numpy().reshape(len(VARIATES), -1).T


@pytest.mark.parametrize(("horizon", "steps"), [(12, 1), (30, 3)])
def test_a_frame_is_forecast_as_its_window_is_rolled_out(predictor: Predictor, store: Store, horizon: int,
                                                         steps: int) -> None:
    frame = frame_of(store)
    made = forecast(predictor, frame, horizon=horizon)
    assert list(made.columns) == ["timestamp", "target_name", "predictions"]
    sample = xr.Dataset({"value": (("time", "variate"), frame[list(VARIATES)])}, {
        "time": frame["timestamp"].to_numpy(), "variate": list(VARIATES)},
        {"domain": "series", "look_back": LOOK_BACK, "horizon": 12})
    expected = predictor.rollout(sample, steps)["value"].values[:horizon]
    np.testing.assert_allclose(wide(made), expected, rtol=1e-5)
    hours = pd.date_range(frame["timestamp"].iloc[-1], periods=horizon + 1, freq="h")[1:]
    for name, rows in made.groupby("target_name", sort=False):
        assert (rows["timestamp"].to_numpy() == hours.to_numpy()).all(), name


def test_a_horizon_between_is_the_beginning_of_the_next_one_fitted(predictor: Predictor, store: Store) -> None:
    frame = frame_of(store)
    np.testing.assert_allclose(wide(forecast(predictor, frame, horizon=9)),
                               wide(forecast(predictor, frame, horizon=12))[:9], rtol=1e-6)


def test_only_the_fitted_look_back_is_looked_at_and_shorter_ones_are_taken_as_they_are(predictor: Predictor,
                                                                                       store: Store) -> None:
    long, exact = frame_of(store, 600, 124), frame_of(store, 700)
    np.testing.assert_allclose(wide(forecast(predictor, long, horizon=6)), wide(forecast(predictor, exact, horizon=6)))
    short = exact.iloc[-7:]
    sample = xr.Dataset({"value": (("time", "variate"), short[list(VARIATES)])}, {
        "time": short["timestamp"].to_numpy(), "variate": list(VARIATES)},
        {"domain": "series", "look_back": 7, "horizon": 6})
    np.testing.assert_allclose(wide(forecast(predictor, short, horizon=6)), predictor.predict(sample)["value"][0],
                               rtol=1e-5)
    assert forecast(predictor, exact.iloc[-1:], horizon=6)["predictions"].notna().all()


def test_many_series_are_forecast_as_each_alone_in_their_order(predictor: Predictor, store: Store) -> None:
    names, lengths = [30, 10, 20, 40], [24, 40, 9, 9]
    frame = long_of(store, names, lengths)
    shuffled = frame.sample(frac=1.0, random_state=1).sort_values("timestamp", kind="stable")
    made = forecast(predictor, frame, horizon=20, quantiles=[0.9, 0.1])
    assert list(made.columns) == ["id", "timestamp", "target_name", "predictions", "0.1", "0.9"]
    assert pd.unique(made["id"]).tolist() == names
    assert made["id"].dtype == frame["id"].dtype
    for name in names:
        alone = forecast(predictor, frame[frame["id"] == name].drop(columns="id"), horizon=20, quantiles=[0.1, 0.9])
        pd.testing.assert_frame_equal(made[made["id"] == name].drop(columns="id").reset_index(drop=True), alone,
                                      rtol=1e-5)
    order = ["id", "target_name", "timestamp"]
    other = forecast(predictor, shuffled, horizon=20, quantiles=[0.1, 0.9])
    pd.testing.assert_frame_equal(*(x.sort_values(order, ignore_index=True) for x in (other, made)))


def test_a_long_frame_of_variates_is_the_wide_one(predictor: Predictor, store: Store) -> None:
    frame = frame_of(store)
    long = frame.melt("timestamp", var_name="unique_id", value_name="y")
    made = forecast(predictor, long, horizon=12, id_column="unique_id", quantiles=[0.5])
    assert list(made.columns) == ["unique_id", "timestamp", "predictions", "0.5"]
    expected = forecast(predictor, frame, horizon=12, quantiles=[0.5])
    pd.testing.assert_frame_equal(made.rename(columns={"unique_id": "target_name"})[list(expected.columns)], expected)
    swapped = forecast(predictor, frame[["oil", "timestamp", "load"]], horizon=12)
    np.testing.assert_allclose(wide(swapped)[:, ::-1], wide(expected), rtol=1e-5)


def test_times_come_back_in_their_zone(predictor: Predictor, store: Store) -> None:
    frame = frame_of(store)
    plain = forecast(predictor, frame, horizon=6)
    berlin = frame.assign(timestamp=frame["timestamp"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"))
    made = forecast(predictor, berlin, horizon=6)
    assert str(made["timestamp"].dt.tz) == "Europe/Berlin"
    assert (made["timestamp"].dt.tz_convert("UTC").dt.tz_localize(None) == plain["timestamp"]).all()
    np.testing.assert_array_equal(made["predictions"], plain["predictions"])


def test_quantiles_of_the_ridge_are_those_of_its_residuals(predictor: Predictor, store: Store) -> None:
    made = forecast(predictor, frame_of(store), horizon=12, quantiles=[0.05, 0.5, 0.975])
    adapter = predictor.adapter("series")
    assert isinstance(adapter, Series)
    known = adapter.datasets["plant"]
    spread = Model(predictor, adapter, known).task.of("plant").ridge.scale(LOOK_BACK, 12).numpy()[:, None] * known.std
    np.testing.assert_allclose(made["0.5"], made["predictions"], rtol=1e-5)
    for level in (0.05, 0.975):
        np.testing.assert_allclose(wide(made, f"{level:g}") - wide(made), norm.ppf(level) * spread, rtol=1e-3)


def test_quantiles_of_a_head_are_used_sorted_and_interpolated(store: Store) -> None:
    task = {"forecast": {"quantiles": [0.1, 0.5, 0.9]}}
    untrained = predictor_of(store, size=0.0, task=task)
    asked = [0.02, 0.1, 0.3, 0.5, 0.9]
    plain, made = (forecast(p, frame_of(store), horizon=12, quantiles=asked)
                   for p in (predictor_of(store, 0.0), untrained))
    pd.testing.assert_frame_equal(plain, made, rtol=1e-4)
    stirred = forecast(predictor_of(store, size=1.0, task=task), frame_of(store), horizon=12, quantiles=asked)
    values = stirred[[f"{level:g}" for level in asked]].to_numpy()
    assert (np.diff(values, axis=1) >= 0).all()
    assert not np.allclose(values, made[[f"{level:g}" for level in asked]], rtol=1e-3)


def test_quantiles_of_a_t_head_and_between_levels() -> None:
    head = torch.tensor([[[[1.0, np.log(0.5), np.log(3.0)]]]])
    found = quantiles({"value": head[..., :1], "student_t": head}, torch.ones(1, 1, 1, 1), [0.1, 0.5], ())
    from scipy.stats import t

    np.testing.assert_allclose(found[0, 0, 0], t.ppf([0.1, 0.5], 5.0, 1.0, 0.5), rtol=1e-5)
    np.testing.assert_allclose(np.array([2.0]) @ interpolation(np.array([0.3]), np.array([0.1, 0.9])), 2.0)


def test_errors_of_parts_add_up_in_a_rollout(predictor: Predictor, store: Store) -> None:
    made = forecast(predictor, frame_of(store), horizon=36, quantiles=[0.1, 0.9])
    off = wide(made, "0.9") - wide(made)
    np.testing.assert_allclose(off[12:24] ** 2, off[:12] ** 2 + off[11] ** 2, rtol=1e-3)
    np.testing.assert_allclose(off[24:] ** 2, off[:12] ** 2 + 2 * off[11] ** 2, rtol=1e-3)


def test_covariates_reach_the_operator_and_are_asked_for_by_name(tmp_path: Path) -> None:
    store = plant(tmp_path, covariate=True)
    predictor = predictor_of(store, size=0.3)
    times, shift = store.coord("time"), store.read("covariate_value", 0, 0, HOURS)[:, 0]
    frame = frame_of(store).assign(id="a", shift=shift[700:724])
    future = pd.DataFrame({"id": "a", "timestamp": times[724:740], "shift": shift[724:740]})
    static = pd.DataFrame({"id": ["a"], "size": [2.0]})
    made = forecast(predictor, frame, horizon=16, future=future, static=static)
    sample = xr.Dataset(
        {"value": (("time", "variate"), store.read("value", 0, 700, 736)), "static_value": (("static",), [2.0]),
         "covariate_value": (("time", "covariate"), shift[700:736, None])},
        {"time": times[700:736], "variate": list(VARIATES), "covariate": ["shift"], "static": ["size"]},
        {"domain": "series", "look_back": LOOK_BACK, "horizon": 12})
    np.testing.assert_allclose(wide(made)[:12], predictor.predict(sample)["value"][0], rtol=1e-4)
    late = forecast(predictor, frame, horizon=16, future=future.assign(shift=[*shift[724:739], 9.0]), static=static)
    assert not np.allclose(late["predictions"], made["predictions"])
    with pytest.raises(InputError, match=r"future \[columns\]: found none; expected shift"):
        forecast(predictor, frame.drop(columns="shift"), horizon=16, static=static)
    with pytest.raises(InputError, match=r"static \[columns\]: found none; expected size"):
        forecast(predictor, frame, horizon=16, future=future)
    with pytest.raises(InputError, match="16 rows; expected a row for each of 17 steps"):
        forecast(predictor, frame, horizon=17, future=future, static=static)


def test_a_guest_is_forecast_in_its_own_scale_and_clock(store: Store) -> None:
    predictor = predictor_of(store, inputs={"identity": False, "spread": True, "calendar": False})
    days = pd.date_range("1999-01-01", periods=50, freq="D")
    x = np.sin(np.arange(50) / 3) + np.random.default_rng(0).normal(size=50) * 0.1
    small, large = (forecast(predictor, pd.DataFrame({"timestamp": days, "sales": a * x + b}), horizon=14,
                             quantiles=[0.1, 0.9]) for a, b in ((1.0, 0.0), (1e4, 3e5)))
    columns = ["predictions", "0.1", "0.9"]
    np.testing.assert_allclose(large[columns], 1e4 * small[columns] + 3e5, rtol=1e-4)
    assert small["timestamp"].iloc[0] == pd.Timestamp("1999-02-20")
    constant = forecast(predictor, pd.DataFrame({"timestamp": days, "sales": 7.0}), horizon=3)
    assert np.isfinite(constant["predictions"]).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "horizon": ({"horizon": 0}, r"frame \[horizon\]: found 0"),
    "levels": ({"quantiles": [0.1, 1.2]}, r"frame \[quantiles\]: found 0.1, 1.2"),
    "twice": ({"quantiles": [0.1, 0.1]}, r"quantiles"),
    "future": ({"future": pd.DataFrame({"timestamp": pd.to_datetime(["2020-01-30 04:00"]), "x": [1.0]})}, "x"),
    "id": ({"id_column": "name"}, "name"), "target": ({"target": "heat"}, "heat")}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_calls_are_named(predictor: Predictor, store: Store, name: str) -> None:
    arguments, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        forecast(predictor, frame_of(store), **{"horizon": 6, **arguments})


def test_wrong_frames_are_named(predictor: Predictor, store: Store) -> None:
    frame = frame_of(store)
    for bad, message in (
            (frame.drop(index=5), "row"), (frame.iloc[::2], "uniform step of 3600"),
            (frame.iloc[[0, 1, 1, 2]], "row 3"),
            (frame.assign(load=frame["load"].astype(object).where(frame.index != 3, "n/a?")), "row 4, column load"),
            (frame.rename(columns={"load": "heat"}), "heat, oil of none"),
            (frame.assign(timestamp=np.arange(len(frame))), "calendar")):
        with pytest.raises(InputError, match=message):
            forecast(predictor, bad, horizon=6)


def test_of_two_data_sets_with_the_columns_one_has_to_be_named(store: Store, tmp_path: Path) -> None:
    predictor = predictor_of(store)
    both = predictor.adapter("series").fit(plant(tmp_path, name="other"))
    operator = Operator(predictor.operator.config, {"series": both.spec()})
    predictor = Predictor(operator, {"series": both})
    frame = frame_of(store)
    with pytest.raises(InputError, match="plant and other"):
        forecast(predictor, frame, horizon=6)
    frame.attrs["dataset"] = "other"
    assert len(forecast(predictor, frame, horizon=6)) == 12


def test_calibrated_intervals_cover_and_survive_a_file(predictor: Predictor, store: Store, tmp_path: Path) -> None:
    made = calibrate(predictor, store, coverages=[0.8, 0.9])
    assert made.margins.shape == (2, 12, 2)
    assert made.windows == 200 - 12 + 1
    again = Calibration.load(made.save(tmp_path / "calibration" / "series.safetensors"))
    assert (again.dataset, again.variates, again.coverages) == ("plant", VARIATES, (0.8, 0.9))
    np.testing.assert_array_equal(again.margins, made.margins)
    frame = frame_of(store)
    plain, kept = (forecast(predictor, frame, horizon=20, quantiles=[0.05, 0.1, 0.5, 0.9, 0.95], calibration=c)
                   for c in (None, again))
    np.testing.assert_array_equal(plain["0.5"], kept["0.5"])
    width, moved = (wide(x, "0.95") - wide(x, "0.05") for x in (plain, kept))
    np.testing.assert_allclose(moved[:12] / width[:12], 1 + 2 * again.margins[1], rtol=1e-3)
    np.testing.assert_allclose(moved[12:] / width[12:], np.tile(1 + 2 * again.margins[1, -1], (8, 1)), rtol=1e-3)
    model = Model(predictor, predictor.adapter("series"), predictor.adapter("series").datasets["plant"])  # type: ignore
    found = windows_of(model, store, "test", 12, stride=5)
    assert found.given.values.shape == (38, 2, LOOK_BACK)
    np.testing.assert_array_equal(found.truth[-1].T, store.read("value", 0, HOURS - 12, HOURS))
    np.testing.assert_array_equal(found.given.values[-1].T, store.read("value", 0, HOURS - 36, HOURS - 12))
    for other, message in ((replace(again, dataset="x"), "dataset"), (replace(again, coverages=(0.8, 0.7)), "0.9")):
        with pytest.raises(InputError, match=message):
            forecast(predictor, frame, horizon=6, quantiles=[0.05, 0.95], calibration=other)
    with pytest.raises(InputError, match="both ends"):
        pairs([0.1, 0.5])
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="expected a calibration"):
        Calibration.load(tmp_path / "bad")
