"""What is wrong with a store of spikes is found, each with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml import registry
from sciml.cli import run
from sciml.data.check import inspect, validate
from sciml.data.store import Store

Make = Callable[..., Any]
Change = Callable[[xr.Dataset], Any]


def findings(store: Store) -> dict[str, str]:
    return {f.key: f"{f.level}: {f.found}" for f in validate(store)}


def changed(**values: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    """The first recording's spikes, by index."""
    def change(data: xr.Dataset) -> xr.Dataset:
        for name, places in values.items():
            array = data[name].values.copy()
            for at, value in places.items():
                array[at] = value
            data = data.assign({name: data[name].copy(data=array)})
        return data
    return change


def recorded(values: np.ndarray) -> Change:
    return lambda data: data.assign(recorded=(("recording", "time"), values.astype(np.float32),
                                              {"role": "mask", "units": "1"}))


def gap(first: int, last: int, value: float = 0.0) -> np.ndarray:
    mask = np.ones((3, 400))
    mask[0, first:last] = value
    return mask


@pytest.mark.parametrize(("change", "key", "found"), [
    (changed(spike_time={10: np.nan}), "spike_time finite", "error: 1, first recording 0 (day0), spike 10: nan"),
    (changed(spike_time={10: 0.0}), "spike_time order", "error: 1, first recording 0 (day0), spike 10: 0.0 after 0."),
    (changed(spike_time={299: 8.5}), "spike_time extent", "spike 299: 8.5, bins from 0.0 to 8.0"),
    (changed(spike_time={300: -0.5}), "spike_time extent", "error: 1, first recording 2 (day2), spike 0: -0.5"),
    (changed(spike_unit={7: 4}), "spike_unit range", "error: 1, first recording 0 (day0), spike 7: 4 of 4 units"),
    (changed(spike_unit={7: -1}), "spike_unit range", "spike 7: -1 of 4"),
    (changed(spike_time={0: 0.001, 1: 0.001, 2: 0.001}, spike_unit={0: 2, 1: 0, 2: 2}), "spike_time twice",
     "error: 1, first recording 0 (day0), spike 2: 0.001 of unit 2"),
    (changed(spike_unit={...: 1}), "unit", "warning: 3 without any spike: u00, u02, u03"),
    (recorded(gap(100, 200)), "spike_time recorded", "first recording 0 (day0), spike "),
    (recorded(gap(103, 106)), "spike_time edge", "warning: "),
    (recorded(gap(5, 9, 0.5)), "recorded", "error: 4, first recording 0 (day0), bin 5: 0.5"),
    (changed(behaviour_value={(1, ..., 1): np.nan}), "behaviour_value", "no value of vel_y in recording 1 (day1)"),
    (lambda d: d.drop_vars("spike_unit"), "domain spikes", "error: no spike_unit along the ragged dimension"),
    (lambda d: d.assign(weight=(("recording", "unit", "source"), np.ones((3, 4, 4)),
                                {"role": "parameter", "units": "1"}))
     .assign_coords(source=list("abcd")), "source", "error: other labels than unit"),
])
def test_what_is_wrong_with_spikes_is_found(built: Make, spikes: Make, change: Change, key: str,
                                            found: str) -> None:
    told = findings(built(change(spikes()), missing="mask"))
    assert found in told[key]
    assert set(told) - {key} <= {"spike_time order", "spike_time edge", "spike_time recorded"}


def test_sound_spikes_have_no_findings(built: Make, spikes: Make, capsys: pytest.CaptureFixture[str]) -> None:
    store = built(spikes())
    assert validate(store) == []
    assert run(["data", "validate", store.url]) == 0
    assert run(["data", "inspect", store.url]) == 0
    assert "ragged dimensions" in capsys.readouterr().out
    assert inspect(store)["ragged"] == [{"ragged": "spike", "counted_by": "spike_count", "rows": 470, "fewest": 0,
                                         "most": 300}]
    assert findings(built(spikes(), "n", split={"by": "time", "gap": 0})) == {
        "splits": "warning: no gap between blocks of one recording"}


def test_pieces_do_not_hide_what_lies_between_them(built: Make, spikes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = changed(spike_time=dict.fromkeys(range(5), 0.001), spike_unit={0: 3, 1: 0, 2: 1, 3: 2, 4: 3})(spikes())
    data = changed(spike_time={100: 0.0015})(data)
    store = built(data)
    monkeypatch.setattr("sciml.data.checks.spikes.PIECE", 2)
    told = findings(store)
    assert "1, first recording 0 (day0), spike 4: 0.001 of unit 3" in told["spike_time twice"]
    assert "1, first recording 0 (day0), spike 100: 0.0015 after" in told["spike_time order"]


def test_counts_are_checked(built: Make, spikes: Make) -> None:
    base = spikes()
    values = np.random.default_rng(0).poisson(0.5, (3, 400, 4)).astype(np.float32)
    values[..., 2] = 0
    values[1, 5, 0] = np.nan
    data = xr.Dataset({"count": (("recording", "time", "unit"), values, {"role": "state", "units": "1"})},
                      {name: base.coords[name].variable for name in ("time", "unit", "recording")}, base.attrs)
    assert findings(built(data, missing="mask")) == {"unit": "warning: 1 without any spike: u02"}
    values[0, 7, 1], values[2, 9, 3], values[0, 20, 0] = -1, 0.5, 3
    data = recorded(gap(20, 21))(data)
    told = findings(built(data, "wrong", missing="mask"))
    assert told["count"] == "error: 2, first recording 0 (day0), bin 7, unit u01: -1.0"
    assert told["count recorded"].startswith("error: ")
    assert "bin 20, unit u00: 3.0" in told["count recorded"]


def test_a_domain_without_checks_and_one_whose_checks_fail(built: Make, spikes: Make,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    store = built(spikes().assign_attrs(domain="laboratory"), split={"by": "group", "seed": None})
    assert validate(store) == []

    def broken(store: Store) -> list[Any]:
        raise RuntimeError("no")
    monkeypatch.setattr(registry, "names", lambda group: ("laboratory",) if group == "sciml.data.checks" else ())
    monkeypatch.setattr(registry, "find", lambda group, name, *, where="": broken)
    assert findings(store) == {"domain laboratory": "error: RuntimeError: no"}
