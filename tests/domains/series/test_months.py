"""Steps of the calendar: months, quarters and years are one step each, from the table to the dates of a forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sciml.data import rhythm
from sciml.data.check import validate
from sciml.data.frames import tables_of_frame
from sciml.domains.series.adapter import Series
from sciml.domains.series.calendar import Clock
from sciml.domains.series.cycle import Cycle
from sciml.domains.series.known import Pieces, learn
from sciml.domains.series.layout import Layout
from sciml.errors import InputError
from sciml.handles.series import forecast
from sciml.handles.series_backtest import season_of
from sciml.handles.series_intervals import model_of_store
from tests.domains.series.irregular import store_of
from tests.handles.plant import predictor_of

FREQUENCIES = {"MS": "MS", "ME": "ME", "QS": "3MS", "QE": "3ME", "YS": "12MS", "QS-FEB": "3MS", "YE-JUN": "12ME"}


def table(freq: str, rows: int = 240, **columns: Any) -> pd.DataFrame:
    """Two variates with a yearly course."""
    when = pd.date_range("1900-01-01", periods=rows, freq=freq)
    season = np.cos(2 * np.pi * (when.month.to_numpy()[:, None] - 1) / 12) * [1.0, 2.0]
    noise = 0.1 * np.random.default_rng(0).normal(size=(rows, 2))
    return pd.DataFrame({"time": when, "a": (season + noise)[:, 0], "b": (season + noise)[:, 1], **columns})


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_steps_agree_with_pandas(freq: str) -> None:
    when = pd.date_range("1999-01-15 06:00", periods=60, freq=freq)
    stamps = when.to_numpy().astype("datetime64[ns]")
    assert rhythm.calendar(stamps) == FREQUENCIES[freq]
    clock = Clock.of(stamps, "s", where="here")
    assert Clock.restore(clock.state()) == clock
    ticks = clock.ticks(stamps[:20], where="here")
    np.testing.assert_array_equal(clock.times(clock.later(ticks[-1], np.arange(1, 41))), stamps[20:])
    np.testing.assert_array_equal(clock.later(ticks[10:], -np.full(10, 10)), ticks[:10])
    with pytest.raises(InputError, match=f"expected steps of {FREQUENCIES[freq]}"):
        clock.ticks(stamps[[0, 1, 3]], where="here")


@pytest.mark.parametrize("when", [
    pd.date_range("2024-01-01", periods=9, freq="D"), pd.date_range("2024-01-01", periods=9, freq="28D"),
    pd.to_datetime(["2024-01-30", "2024-02-29", "2024-03-30"]), pd.to_datetime(["2024-01-01", "2024-02-01"]),
    pd.to_datetime(["2024-01-01", "2024-02-01", "2024-04-01"])], ids=["days", "weeks", "thirtieth", "two", "gap"])
def test_other_times_are_no_months(when: pd.DatetimeIndex) -> None:
    assert rhythm.calendar(when.to_numpy().astype("datetime64[ns]")) == ""


@pytest.mark.parametrize(("freq", "season"), [("MS", 12), ("ME", 12), ("QS", 4), ("YS", 1)])
def test_a_monthly_table_builds_and_has_its_season(tmp_path: Path, freq: str, season: int) -> None:
    store = store_of(tmp_path, table(freq), irregular="refuse")
    predictor = predictor_of(store, look_back=24, horizons=[6, 12], patch=6)
    assert season_of(model_of_store(predictor, store)) == season
    known = predictor.adapter("series").datasets["walk"]  # type: ignore[attr-defined]
    assert known.clock.freq == FREQUENCIES[freq]
    assert known.calendar == (() if season == 1 else ("year",))
    frame = table(freq).rename(columns={"time": "timestamp"}).iloc[:100]
    made = forecast(predictor, frame, horizon=20)
    following = pd.date_range(frame["timestamp"].iloc[-1], periods=21, freq=freq)[1:]
    assert (made["timestamp"].to_numpy().reshape(2, 20) == following.to_numpy()).all()
    with pytest.raises(InputError, match="row"):
        forecast(predictor, frame.drop(index=50), horizon=20)


def test_long_tables_and_rollouts_step_by_months(tmp_path: Path) -> None:
    frame = pd.concat([table("ME", 200, id="x"), table("ME", 150, id="y")])
    store = store_of(tmp_path, frame, id_column="id", irregular="refuse")
    assert store.lazy()["step_time"].attrs["freq"] == "ME"
    assert [f.key for f in validate(store) if f.key not in ("licence", "citation", "splits, value")] == []
    predictor = predictor_of(store, look_back=24, horizons=[6], patch=6)
    start = predictor.adapter("series").starts(store, "test")[0]
    rolled = predictor.rollout(start, steps=3)
    first = pd.Timestamp(start["time"].values[23])
    assert (rolled["time"].values == pd.date_range(first, periods=19, freq="ME")[1:].to_numpy()).all()


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_months_that_are_missing_are_filled_in_and_other_times_are_not(freq: str) -> None:
    whole = table(freq, 60)
    gone = whole.drop(index=[10, 11, 40])
    both = pd.concat([gone.assign(id="x"), whole.assign(id="y")])
    for irregular, words in (("refuse", "irregular: fill"), ("fill", "off the rhythm")):
        odd = gone if irregular == "refuse" else gone.assign(time=gone["time"] + pd.to_timedelta(gone.index % 7, "D"))
        with pytest.raises(InputError, match=words):
            tables_of_frame(odd, timestamp_column="time", options={"irregular": irregular})
    filled, _ = tables_of_frame(both, timestamp_column="time", id_column="id", options={"irregular": "fill"})
    assert (filled.time.reshape(2, 60) == whole["time"].to_numpy()).all()
    assert np.flatnonzero(np.isnan(filled.value).all(1)).tolist() == [10, 11, 40]
    np.testing.assert_array_equal(filled.value[60:], whole[["a", "b"]])


def test_a_day_that_not_every_month_has_is_no_beginning(tmp_path: Path) -> None:
    predictor = predictor_of(store_of(tmp_path, table("MS"), irregular="refuse"), look_back=24, horizons=[6], patch=6)
    frame = pd.DataFrame({"timestamp": [pd.Timestamp("2024-01-31")], "a": [0.0], "b": [1.0]})
    with pytest.raises(InputError, match="a day that every month has, counted in steps of MS"):
        forecast(predictor, frame, horizon=3)
    made = forecast(predictor, frame.assign(timestamp=pd.Timestamp("2024-01-28")), horizon=2)
    assert made["timestamp"][:2].tolist() == [pd.Timestamp("2024-02-28"), pd.Timestamp("2024-03-28")]


def test_a_course_of_the_year_has_a_place_for_every_month(tmp_path: Path) -> None:
    layout = Layout.of(store_of(tmp_path, table("MS"), irregular="refuse"))
    known = learn(layout)
    pieces = Pieces.of(layout, known, layout.store.meta.splits.train)
    cycle = Cycle.fit("year", pieces.values, pieces.ticks, known.clock.step)
    assert cycle.table.shape == (12, 2)
    course = np.cos(2 * np.pi * np.arange(12) / 12)
    np.testing.assert_allclose(cycle.table * known.std / [1.0, 2.0], np.stack([course] * 2, 1), atol=0.12)
    left = cycle.remove(pieces.values[0], pieces.ticks[0])
    assert left.var() < 0.05 * pieces.values[0].var()
    adapter = Series.create({"look_back": 12, "horizons": [3], "patch": 3, "task": "stream"}).fit(layout.store)
    sample = layout.sample(0, 0, 24, look_back=24)
    state = adapter.initial(sample)
    assert state.extra["ticks"].shape[1] == 12
