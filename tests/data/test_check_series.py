"""What `validate` finds in stores of series."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data.checks.series import check
from sciml.data.store import Store

HOUR = 3_600_000_000_000
Make = Callable[..., Any]
SPLIT = {"by": "group", "counts": {"train": 2, "validation": 1, "test": 1}, "seed": None}


def ragged(count: tuple[int, ...] = (6, 5, 7, 6)) -> xr.Dataset:
    rng = np.random.default_rng(0)
    times = np.concatenate([np.arange(n) * HOUR for n in count])
    return xr.Dataset(
        {"value": (("step", "variate"), rng.normal(size=(sum(count), 2)), {"role": "state"}),
         "step_time": ("step", times, {"role": "event", "units": "ns"}),
         "step_count": ("series", np.array(count, np.int64),
                        {"role": "rows", "units": "1", "sample_dimension": "step"}),
         "label": ("series", np.array([0.0, 1, np.nan, 1]), {"role": "label", "units": "1"}),
         "part": ("series", np.array([0.0, 0, 0, 2]), {"role": "parameter", "units": "1"})},
        coords={"series": list("abcd"), "variate": ["x", "y"], "variate_unit": ("variate", ["m", "K"]),
                "class": ["ill", "well"]},
        attrs={"domain": "series", "group_dim": "series"})


def keys(store: Store) -> list[tuple[str, str]]:
    return [(finding.level, finding.key) for finding in check(store)]


def test_a_sound_store_has_no_findings(built: Make) -> None:
    assert keys(built(ragged(), split=SPLIT)) == []


def _unsorted(data: xr.Dataset) -> None:
    data["step_time"].values[8] = 0


def _jump(data: xr.Dataset) -> None:
    data["step_time"].values[8:11] += HOUR


def _half(data: xr.Dataset) -> None:
    data["step_time"].values[6:11] //= 2


def _still(data: xr.Dataset) -> None:
    data["value"].values[6:11, 1] = 3.0


def _constant(data: xr.Dataset) -> None:
    data["value"].values[:11, 1] = 3.0


def _classless(data: xr.Dataset) -> None:
    data["label"].values[0] = 5.0


def _untaught(data: xr.Dataset) -> None:
    data["label"].values[:2] = 0.0


def _copied(data: xr.Dataset) -> None:
    data["value"].values[18:24] = data["value"].values[:6]


def _moved(data: xr.Dataset) -> None:
    data["part"].values[0] = 2.0


@pytest.mark.parametrize(("spoil", "found", "words"), [
    (_unsorted, ("error", "step_time"), r"series 1 \(b\), row 3: 1970-01-01T00:00:00"),
    (_jump, ("warning", "rhythm"), r"series 1 \(b\), row 3.*usually 3.6e\+12"),
    (_half, ("warning", "step_time"), r"1 series of another step.*series 1 \(b\)"),
    (_still, ("warning", "value"), r"series 1 \(b\), variate y: always 3"),
    (_constant, ("warning", "variate"), "y constant in the training split"),
    (_classless, ("error", "label"), r"series 0 \(a\): 5"),
    (_untaught, ("warning", "label"), "no series of well"),
    (_copied, ("error", "splits, value"), r"series 0 \(a\) and series 3 \(d\)"),
    (_moved, ("warning", "splits, part"), r"series 0 \(a\)")])
def test_mistakes_are_named(built: Make, spoil: Callable[[xr.Dataset], None], found: tuple[str, str],
                            words: str) -> None:
    data = ragged()
    spoil(data)
    store = built(data, split=SPLIT)
    assert found in keys(store)
    [finding] = [one for one in check(store) if (one.level, one.key) == found]
    assert re.search(words, finding.found)


def test_a_series_of_one_row(built: Make) -> None:
    assert keys(built(ragged((6, 1, 7, 6)), split=SPLIT)) == [("warning", "rows")]


def test_other_layouts_are_no_series(built: Make) -> None:
    data = ragged().rename(step_time="when")
    assert keys(built(data, split=SPLIT)) == [("error", "domain series")]


def test_common_axes_are_looked_at_for_variation_and_summer_time(built: Make) -> None:
    times = np.datetime64("2024-03-30", "ns") + np.arange(48) * np.timedelta64(1, "h")
    data = xr.Dataset({"value": (("series", "time", "variate"), np.random.default_rng(0).normal(size=(1, 48, 2)),
                                 {"role": "state"})},
                      coords={"series": [0], "time": times, "variate": ["x", "y"],
                              "variate_unit": ("variate", ["m", "K"])},
                      attrs={"domain": "series", "group_dim": "series"})
    split = {"by": "time", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}}
    assert keys(built(data, "sound", split=split)) == []
    data["value"].values[..., 0] = 1.0
    jumped = data.assign_coords(time=np.where(np.arange(48) < 26, times, times + np.timedelta64(1, "h")))
    store = built(jumped, "jumped", split=split, axes={"time": {"uniform": False}})
    assert keys(store) == [("warning", "variate"), ("warning", "time")]
    assert "Europe/Berlin" in list(check(store))[-1].fix
