"""Backtests: every origin is forecast as from a frame that ends there; floors as in textbooks, scores, a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sciml import metrics
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.handles._series import Histories
from sciml.handles.series import forecast
from sciml.handles.series_backtest import _ets, _naive, backtest, scores
from sciml.predictor import Predictor
from sciml.report import backtest as drawn
from tests.handles.plant import HOURS, LOOK_BACK, VARIATES, frame_of, long_of, plant, predictor_of

LEVELS = [0.05, 0.5, 0.95]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return plant(tmp_path_factory.mktemp("plant"))


@pytest.fixture(scope="module")
def predictor(store: Store) -> Predictor:
    return predictor_of(store)


@pytest.fixture(scope="module")
def tested(predictor: Predictor, store: Store) -> pd.DataFrame:
    return backtest(predictor, store, horizon=12, stride=4, quantiles=LEVELS)


def test_every_origin_is_forecast_as_from_a_frame_that_ends_there(predictor: Predictor, store: Store,
                                                                  tested: pd.DataFrame) -> None:
    ours = tested[tested["model"] == "sciml"]
    assert ours["cutoff"].nunique() == len(range(HOURS - 12, 699, -4))
    assert ours["cutoff"].min() >= pd.Timestamp(store.coord("time")[699])
    for cutoff in (ours["cutoff"].min(), ours["cutoff"].max()):
        stop = int(np.flatnonzero(store.coord("time") == cutoff.to_datetime64())[0]) + 1
        made = forecast(predictor, frame_of(store, stop - LOOK_BACK), horizon=12, quantiles=LEVELS)
        rows = ours[ours["cutoff"] == cutoff].reset_index(drop=True)
        columns = ["timestamp", "target_name", "predictions", "0.05", "0.5", "0.95"]
        pd.testing.assert_frame_equal(rows[columns], made[columns], rtol=1e-5)
        truth = store.read("value", 0, stop, stop + 12)
        np.testing.assert_array_equal(rows["truth"].to_numpy().reshape(2, 12).T, truth)


def test_floors_and_intervals_stand_beside(tested: pd.DataFrame) -> None:
    rows = {row["model"]: row for row in scores(tested)}
    assert list(rows) == ["sciml", "split_conformal", "adaptive_conformal", "ridge", "seasonal_naive"]
    for name in ("split_conformal", "adaptive_conformal"):
        assert rows[name]["mse"] == rows["sciml"]["mse"]
        assert 0.85 < rows[name]["coverage"] < 0.95
    assert rows["ridge"]["mse"] < rows["seasonal_naive"]["mse"]
    part = tested[tested["model"] == "ridge"]
    scale = part["target_name"].map(tested.attrs["scale"])
    assert rows["ridge"]["mse"] == pytest.approx((((part["predictions"] - part["truth"]) / scale) ** 2).mean())
    inside = (part["0.05"] <= part["truth"]) & (part["truth"] <= part["0.95"])
    assert rows["ridge"]["coverage"] == pytest.approx(inside.mean())
    assert rows["ridge"]["width"] == pytest.approx(((part["0.95"] - part["0.05"]) / scale).mean())
    q = part[["0.05", "0.5", "0.95"]].to_numpy() / scale.to_numpy()[:, None]
    assert rows["ridge"]["wql"] == pytest.approx(
        metrics.weighted_quantile_loss(q[None], (part["truth"] / scale).to_numpy()[None], LEVELS)[0])


def test_the_naive_forecast_repeats_the_last_season_and_skips_gaps() -> None:
    history = np.array([[[9.0, 1, 2, 3, 4, 2, np.nan, 5]]])
    given = Histories(history, np.zeros(1), np.zeros(1, int))
    made = _naive(given, 5, 3, [0.5, 0.841344746])
    assert made.mean[0, 0].tolist() == [2.0, 3.0, 5.0, 2.0, 3.0]
    spread = np.sqrt(((2 - 2) ** 2 + (5 - 4) ** 2) / 2)
    off = made.quantiles[0, 0, :, 1] - made.mean[0, 0]
    np.testing.assert_allclose(off, spread * np.sqrt([1, 1, 1, 2, 2]), rtol=1e-6)
    np.testing.assert_array_equal(made.quantiles[0, 0, :, 0], made.mean[0, 0])


def test_series_of_a_frame_are_tested_each_on_its_own_end(predictor: Predictor, store: Store) -> None:
    frame = long_of(store, ["b", "a", "c"], [120, 90, 40])
    made = backtest(predictor, frame, horizon=6, stride=5, windows=3, quantiles=LEVELS)
    assert set(made["model"]) == {"sciml", "ridge", "seasonal_naive"}
    for name, rows in frame.groupby("id"):
        found = made[(made["id"] == name) & (made["model"] == "sciml")]
        assert found["timestamp"].max() == rows["timestamp"].max()
        assert found["cutoff"].nunique() == (3 if name != "c" else len(range(40 - 6, 24 - 1, -5)))
        alone = forecast(predictor, rows.iloc[:-6].drop(columns="id"), horizon=6)
        last = found[found["cutoff"] == found["cutoff"].max()]
        np.testing.assert_allclose(last["predictions"], alone["predictions"], rtol=1e-5)
        long = rows.melt(["id", "timestamp"], list(VARIATES), "target_name")
        both = last.merge(long, on=["timestamp", "target_name"])
        assert len(both) == len(last)
        np.testing.assert_array_equal(both["truth"], both["value"])
    with pytest.raises(InputError, match="at least 224"):
        backtest(predictor, frame, horizon=200)


def test_the_picture_is_written_whole_in_any_of_its_kinds(tested: pd.DataFrame, tmp_path: Path) -> None:
    png = drawn.write(tested, tmp_path / "a.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = drawn.write(tested, tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "adaptive conformal" in svg
    for placeholder in ("#010101", "#040404", "#0c0c0c"):
        assert placeholder not in svg
    with pytest.raises(InputError, match=r"\.png"):
        drawn.write(tested, tmp_path / "a.gif")


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("statsforecast") is None, reason="statsforecast is absent")
def test_autoets_follows_a_trend() -> None:
    history = np.arange(60.0)[None, None] + np.random.default_rng(0).normal(size=(1, 1, 60)) * 0.1
    made = _ets(Histories(history, np.zeros(1), np.zeros(1, int)), 5, 1, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(made.mean[0, 0], np.arange(60, 65), atol=0.5)
    assert (np.diff(made.quantiles, axis=-1) > 0).all()


@pytest.mark.skipif(importlib.util.find_spec("statsforecast") is not None, reason="statsforecast is there")
def test_without_statsforecast_it_is_said(predictor: Predictor, store: Store) -> None:
    with pytest.raises(InputError, match="pip install statsforecast"):
        backtest(predictor, store, horizon=6, windows=1, ets=True)
