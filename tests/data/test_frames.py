"""Frames in memory as series: what becomes of rows, times, covariates and static columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.frames import series_of_frame, tables_of_frame
from sciml.data.readers._table import stamps
from sciml.errors import InputError

BERLIN = {"timezone": "Europe/Berlin"}


def long(names: str = "ba", rows: int = 24) -> pd.DataFrame:
    parts = [pd.DataFrame({"id": name, "timestamp": pd.date_range("2024-01-01", periods=rows, freq="h"),
                           "load": np.arange(rows) + 100.0 * i, "promo": np.arange(rows) % 2, "region": f"r{i}"})
             for i, name in enumerate(names)]
    return pd.concat(parts).sort_values("timestamp", kind="stable").reset_index(drop=True)


def ahead(names: str = "ab", rows: int = 3) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"id": name, "timestamp": pd.date_range("2024-01-02", periods=rows, freq="h"),
                                    "promo": np.arange(rows) + 10.0}) for name in names]).reset_index(drop=True)


def refused(words: str, frame: pd.DataFrame, **arguments: object) -> None:
    with pytest.raises(InputError, match=words):
        series_of_frame(frame, **arguments)  # type: ignore[arg-type]


def test_a_long_frame_with_a_future() -> None:
    first, second = series_of_frame(long(), id_column="id", known=["promo"], static=["region"], future=ahead())
    assert [first.attrs["series"], second.attrs["series"]] == ["b", "a"]
    assert (first.attrs["look_back"], first.attrs["horizon"]) == (24, 3)
    assert dict(first.sizes) == {"time": 27, "variate": 1, "covariate": 1, "static": 2}
    np.testing.assert_array_equal(second["value"].values[:24, 0], np.arange(24) + 100.0)
    assert np.isnan(first["value"].values[24:]).all()
    np.testing.assert_array_equal(second["covariate_value"].values[23:, 0], [1, 10, 11, 12])
    assert first["static"].values.tolist() == ["region=r0", "region=r1"]
    assert [one["static_value"].values.tolist() for one in (first, second)] == [[1, 0], [0, 1]]
    assert first["time"].values[-1] == np.datetime64("2024-01-02T02")


def test_wide_frames_and_frames_by_index_are_the_same() -> None:
    frame = long("a").drop(columns=["id", "region"])
    [column] = series_of_frame(frame)
    [index] = series_of_frame(frame.set_index("timestamp"))
    [unnamed] = series_of_frame(frame.set_index(frame["timestamp"].to_numpy())[["load", "promo"]])
    assert column.identical(index)
    assert column.identical(unnamed)
    assert column["variate"].values.tolist() == ["load", "promo"]
    [multi] = series_of_frame(long("a").set_index(["id", "timestamp"])[["load", "promo"]], id_column="id")
    assert multi["value"].identical(column["value"])


def test_static_may_be_a_frame_of_its_own() -> None:
    static = pd.DataFrame({"id": ["a", "b", "c"], "area": [1.0, 2.0, 3.0]})
    frame = long()[["id", "timestamp", "load"]]
    first, second = series_of_frame(frame, id_column="id", static=static)
    assert (first["static_value"].item(), second["static_value"].item()) == (2.0, 1.0)
    refused(r"static.*none of series b", frame, id_column="id", static=static[:1])
    refused(r"static.*a twice", frame, id_column="id", static=pd.concat([static, static[:1]]))


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_any_mixture_of_rows_is_sorted_out(counts: list[int], seed: int) -> None:
    """Rows of series in any mixture come back by series, in their order."""
    which = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(which)
    place = pd.Series(which).groupby(which).cumcount().to_numpy()
    frame = pd.DataFrame({"id": which, "timestamp": np.datetime64("2024-01-01") + place * np.timedelta64(1, "h"),
                          "y": 10.0 * which + place})
    table, _ = tables_of_frame(frame, id_column="id")
    assert sorted(table.count.tolist()) == sorted(counts)
    for i, name in enumerate(table.names):
        own = slice(table.offset[i], table.offset[i + 1])
        np.testing.assert_array_equal(table.value[own, 0], 10.0 * int(name) + np.arange(counts[int(name)]))
        np.testing.assert_array_equal(frame["y"].to_numpy()[table.row[own]], table.value[own, 0])


@pytest.mark.parametrize(("change", "words"), [
    ({"load": ["x", *range(47)]}, r"row 1, column load.*'x'"),
    ({"id": ["b", None, *["b"] * 46]}, r"row 2, column id.*no name"),
    ({"timestamp": ["soon"] * 48}, r"row 1, column timestamp.*'soon'"),
    ({"region": ["r0"] * 47 + ["r9"]}, r"row 48, column region.*'r9' in series a, 'r0' before")])
def test_row_and_column_are_named(change: dict[str, list[object]], words: str) -> None:
    refused(words, long().assign(**change), id_column="id", static=["region"], known=["promo"])


def test_times_are_held_against_their_own_series() -> None:
    frame = long()
    shuffled = frame.iloc[[*range(10), 12, 11, 10, *range(13, 48)]].reset_index(drop=True)
    told = {"id_column": "id", "known": ["promo"], "static": ["region"]}
    refused(r"row 13 \(id b\), column timestamp.*sort the rows", shuffled, **told)
    refused(r"row 49 \(id a\), column timestamp.*again.*duplicates", pd.concat([frame, frame[-1:]]), **told)
    gap = frame.drop(index=20).reset_index(drop=True)
    refused(r"row 22 \(id b\), column timestamp.*7200.*usually 3600", gap, **told)
    filled = series_of_frame(gap, id_column="id", known=["promo"], static=["region"], options={"irregular": "fill"})[0]
    assert np.isnan(filled["value"].values[10, 0])
    assert filled.sizes["time"] == 24
    daily = long("c").assign(timestamp=pd.date_range("2024-01-01", periods=24, freq="D"))
    refused(r"\(id c\).*steps of 86400.*3600", pd.concat([frame, daily]).reset_index(drop=True), **told)


@pytest.mark.parametrize(("future", "words"), [
    (ahead("a"), r"future \[id\].*no rows of series b"), (ahead("abc"), r"future \[id\].*rows of series c"),
    (ahead().drop(columns="promo"), r"future \[columns\].*no promo"),
    (ahead().assign(promo=[1, 2, None, 1, 2, 3]), r"future \[row 3, column promo\].*no value"),
    (ahead().drop(index=1), r"future \[row 1 \(id a\), column timestamp\].*same steps"),
    (ahead().assign(timestamp=lambda f: f["timestamp"] + pd.Timedelta("1h")), r"future.*right after the history")])
def test_a_future_follows_and_is_complete(future: pd.DataFrame, words: str) -> None:
    refused(words, long(), id_column="id", known=["promo"], static=["region"], future=future)


def test_columns_are_in_one_part() -> None:
    refused(r"known.*'sale'", long(), id_column="id", known=["sale"])
    refused(r"static.*promo, the known too", long(), id_column="id", known=["promo"], static=["promo"])
    refused(r"no rows", long()[:0], id_column="id")


def test_local_times_become_utc_through_both_changes_of_the_clock() -> None:
    for day in ("2024-03-30", "2024-10-26"):
        local = pd.date_range(day, periods=288, freq="15min", tz="Europe/Berlin")
        frame = pd.DataFrame({"timestamp": local.tz_localize(None).astype(str), "y": 1.0})
        [made] = series_of_frame(frame, options=BERLIN)
        np.testing.assert_array_equal(made["time"].values, local.tz_convert("UTC").tz_localize(None).to_numpy())
        [aware] = series_of_frame(frame.assign(timestamp=local))
        [text] = series_of_frame(frame.assign(timestamp=local.astype(str)))
        assert made.identical(aware)
        assert made.identical(text)
        refused(r"summer time, name the zone: options: \{timezone", frame)


def test_each_series_has_the_hour_that_comes_twice() -> None:
    local = pd.date_range("2024-10-26 22:00", periods=8, freq="h", tz="Europe/Berlin").tz_localize(None)
    frame = pd.concat([pd.DataFrame({"id": name, "timestamp": local, "y": 1.0}) for name in "ab"])
    frame = frame.iloc[np.argsort(np.tile(np.arange(8), 2), kind="stable")].reset_index(drop=True)
    for one in series_of_frame(frame, id_column="id", options=BERLIN):
        assert (np.diff(one["time"].values) == np.timedelta64(1, "h")).all()


def test_days_of_a_zone_stay_days() -> None:
    days = pd.date_range("2024-03-29", periods=5, tz="Europe/Berlin")
    for column, options in ((days, {}), (days.tz_localize(None), BERLIN)):
        [made] = series_of_frame(pd.DataFrame({"timestamp": column, "y": 1.0}), options=options)
        np.testing.assert_array_equal(made["time"].values, days.tz_localize(None).to_numpy())


@pytest.mark.parametrize(("texts", "options", "words"), [
    (["2024-03-31 01:30", "2024-03-31 02:30"], BERLIN, r"row 2, column t.*02:30.*clocks go forward"),
    (["2024-10-27 02:30", "2024-10-27 04:30"], BERLIN, r"row 1, column t.*comes twice.*\+01:00"),
    (["2024-03-31T01:30Z", "2024-03-31T02:30Z"], BERLIN, r"options.timezone.*leave timezone out"),
    (["2024-03-31 01:30", "2024-03-31 02:30"], {"timezone": "Mars/Olympus"}, r"options.timezone.*IANA")])
def test_times_that_a_zone_has_not_are_refused(texts: list[str], options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        stamps(pd.Series(texts), "t", options, "frame")
