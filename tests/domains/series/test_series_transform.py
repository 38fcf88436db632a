"""Square root and logarithm before cycle and ridge: what comes back is a mean, in the units that went in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.series.adapter import Series
from sciml.domains.series.encode import HEAD
from sciml.domains.series.known import Known, Pieces, learn
from sciml.domains.series.layout import Layout
from sciml.domains.series.ridges import Ridges
from sciml.domains.series.tasks.forecast import Forecast
from sciml.domains.series.transform import Transform
from sciml.errors import InputError

WEEKS, TRAIN = 420, 300


def season_store(folder: Path, power: int = 2, least: float = 4.0) -> Store:
    """Weekly visits whose season and noise grow with their level: the square root has a steady season and noise."""
    rng, t = np.random.default_rng(3), np.arange(WEEKS)
    root = least + t[:, None] / 100 + 1.5 * np.sin(2 * np.pi * (t[:, None] / 52.1775 + [0.0, 0.1])) + 0.2 * rng.normal(
        size=(WEEKS, 2))
    made = xr.Dataset({"value": (("series", "time", "variate"), (root**power)[None])}, coords={
        "time": np.datetime64("2003-01-07") + 7 * t, "variate": ["visits", "doctors"],
        "variate_unit": ("variate", ["1", "1"])})
    cuts = (0, TRAIN, 340, WEEKS)
    train, validation, test = ((Block(group=0, start=a, stop=b),) for a, b in pairwise(cuts))
    return write_store(made, StoreDraft(
        domain="series", dataset="visits", group_dim="series", groups=1,
        variables={"value": Variable(role="state", unit="1", dims=("time", "variate"))},
        axes={"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1")},
        dt=7 * 86_400.0, splits=Splits(key="time", train=train, validation=validation, test=test),
        provenance=Provenance(builder="test")), folder / "visits.zarr")


def adapter_of(store: Store, task: str = "forecast", **own: Any) -> Series:
    config = {"task": task, "look_back": 24, "horizons": [8, 16], "patch": 8, "datasets": {"visits": own}}
    return Series.create(config).fit(store)


def ridges_of(adapter: Series) -> Ridges:
    assert isinstance(adapter.task, Forecast)
    return adapter.task.of("visits")


def error_of(adapter: Series, store: Store) -> float:
    """Mean squared error of the baseline over the test split, in standardised units."""
    windows, rng = adapter.open(store, "test"), np.random.default_rng(0)
    found = []
    for i in range(len(windows)):
        target = adapter.encode(windows.draw(i, rng, rng)).targets[HEAD]
        found.append(float((target.baseline - target.value)[target.mask].square().mean()))
    return float(np.mean(found))


@pytest.mark.parametrize("name", ["sqrt", "log"])
def test_what_comes_back_is_the_mean_of_the_gaussian(name: Any) -> None:
    known = Known("made", ("a", "b"), ("1", "1"), np.array([[9.0, 30.0], [4.0, 11.0]]), np.ones(2), None)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    raw = (3.0 + rng.uniform(0, 2, (500, 2)))**2
    transform = Transform.fit(name, known, Pieces([(raw - known.mean) / known.std], [np.arange(500)], [0]))
    members, forecast, sigma = np.arange(2), torch.tensor([[[0.4], [-0.3]]]).double(), torch.tensor([[[0.5]]]).double()
    mean, _ = transform.back(forecast, sigma.expand_as(forecast), members)
    drawn = forecast + 0.5 * torch.from_numpy(rng.normal(size=(1, 2, 400_000)))
    points, _ = transform.back(drawn, torch.zeros_like(drawn), members)
    torch.testing.assert_close(mean, points.mean(-1, keepdim=True), atol=4e-3, rtol=0)
    torch.testing.assert_close(transform.forward(points, members, "here"), drawn, atol=1e-6, rtol=1e-6)


def test_scale_is_the_spread_that_comes_back() -> None:
    known = Known("made", ("a",), ("1",), np.array([[9.0], [4.0]]), np.ones(1), None)  # type: ignore[arg-type]
    values = np.linspace(4, 25, 50)[:, None]
    transform = Transform.fit("sqrt", known, Pieces([(values - 9) / 4], [np.arange(50)], [0]))
    low, high = (transform.back(torch.full((1, 1, 1), f), torch.full((1, 1, 1), 0.1), np.arange(1))[1].item()
                 for f in (-1.0, 1.0))
    assert high > 1.5 * low


def test_a_season_that_grows_with_its_level_is_forecast_better(tmp_path: Path) -> None:
    store = season_store(tmp_path)
    plain, root = adapter_of(store, cycle="year"), adapter_of(store, transform="sqrt", cycle="year")
    assert error_of(root, store) < 0.85 * error_of(plain, store)
    assert error_of(root.floor(), store) == pytest.approx(error_of(adapter_of(store, cycle="none"), store), rel=1e-6)


def test_a_cycle_is_taken_as_asked_and_by_validation_alone_otherwise(tmp_path: Path) -> None:
    store = season_store(tmp_path)
    found = {each: ridges_of(adapter_of(store, cycle=each)).cycle for each in ("auto", "none", "year")}
    assert found["auto"] is None  # one independent block of validation can't tell
    assert found["none"] is None
    assert found["year"] is not None
    with pytest.raises(InputError, match="thrice"):
        adapter_of(store, cycle="day")


def test_it_is_restored(tmp_path: Path) -> None:
    store = season_store(tmp_path)
    adapter = adapter_of(store, transform="sqrt", cycle="year")
    config, arrays = adapter.state()
    again = Series.restore(config, arrays)
    assert error_of(again, store) == error_of(adapter, store)
    assert ridges_of(again).transform is not None
    assert ridges_of(again.floor()).transform is None


def test_values_that_have_no_root_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sqrt of -"):
        adapter_of(season_store(tmp_path, power=1, least=0.0), transform="sqrt")
    store = season_store(tmp_path / "more")
    sample = adapter_of(store).open(store, "test").draw(0, *[np.random.default_rng(0)] * 2)
    sample["value"][3, 1] = -2.0
    with pytest.raises(InputError, match=r"visits.*sqrt of -2"):
        adapter_of(store, transform="sqrt").encode(sample)


def test_tasks_without_a_use_for_it_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="forecast"):
        adapter_of(season_store(tmp_path), task="impute", transform="sqrt")


def test_only_training_is_read(tmp_path: Path) -> None:
    store = season_store(tmp_path)
    layout = Layout.of(store)
    known = learn(layout)
    train = Pieces.of(layout, known, store.meta.splits.train)
    found = ridges_of(adapter_of(store, transform="sqrt")).transform
    assert found is not None
    np.testing.assert_array_equal(found.table, Transform.fit("sqrt", known, train).table)
    half = replace(train, values=[train.values[0][:150]])
    assert not np.allclose(found.table, Transform.fit("sqrt", known, half).table)
