"""How far gates are open, by variate and block, and what `sciml evaluate` says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sciml import registry
from sciml.cards import card
from sciml.cards.series import openness
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.series.adapter import Series
from sciml.errors import InputError
from sciml.handles._series import Histories, Made
from sciml.mixers.variate_gate import VariateGate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor

NAMES = ("load", "oil", "wind")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One series of three variates, each a wave in noise, 400 steps."""
    noise = np.random.default_rng(0).normal(size=(1, 400, 3))
    waves = np.sin(2 * np.pi * np.arange(400)[:, None] / np.array([12.0, 20.0, 31.0]))
    value = (waves + 0.3 * noise).astype(np.float32)
    blocks = {name: (Block(group=0, start=start, stop=stop),)
              for name, start, stop in (("train", 0, 260), ("validation", 260, 330), ("test", 330, 400))}
    draft = StoreDraft(
        domain="series", dataset="power", group_dim="series", groups=1, dt=1.0,
        variables={"value": Variable(role="state", unit="1", dims=("time", "variate"))},
        axes={"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1")},
        splits=Splits(key="time", **blocks), provenance=Provenance(builder="test"))
    data = xr.Dataset({"value": (("series", "time", "variate"), value)},
                      coords={"time": np.arange(400.0), "variate": list(NAMES),
                              "variate_unit": ("variate", ["1"] * 3)})
    return write_store(data, draft, tmp_path_factory.mktemp("power") / "power.zarr")


def predictor_of(store: Store, mixers: list[Any], **changes: Any) -> Predictor:
    adapter = Series.create({"look_back": 24, "horizons": [12], "patch": 6, **changes}).fit(store)
    levels = [{"width": 16, "depth": 1, "depth_up": 1, "head_width": 8, "mixers": mixers},
              {"width": 16, "depth": 1, "head_width": 8, "mixers": mixers}]
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate({"levels": levels}), {"series": adapter.spec()})
    for parameter in operator.ports["series"].heads["value"].outputs.parameters():  # type: ignore[union-attr, index]
        nn.init.normal_(parameter)
    return Predictor(operator, {"series": adapter})


def shut(predictor: Predictor, logit: float) -> None:
    for gate in (m for m in predictor.operator.modules() if isinstance(m, VariateGate)):
        nn.init.zeros_(gate.gate.weight)
        nn.init.constant_(gate.gate.bias, logit)


def samples(predictor: Predictor, store: Store, count: int = 3) -> list[xr.Dataset]:
    windows = predictor.adapter("series").open(store, "test")
    return [windows.draw(i, np.random.default_rng(0), np.random.default_rng(0)) for i in range(count)]


def test_openness_is_by_variate_and_block(store: Store) -> None:
    predictor = predictor_of(store, ["variate_gate", "local"])
    found = openness(predictor, samples(predictor, store))
    assert found.dims == ("block", "variate")
    assert list(found["variate"].values) == list(NAMES)
    assert list(found["block"].values) == ["level 0, down 0", "level 0, up 0", "level 1, down 0"]
    assert ((found > 0) & (found < 1)).all()
    assert found.std("variate").min() > 1e-4
    each = [openness(predictor, [one]) for one in samples(predictor, store)]
    xr.testing.assert_allclose(found, xr.concat(each, "sample").mean("sample"))
    shut(predictor, -3.0)
    assert (openness(predictor, samples(predictor, store)) == 0).all()
    shut(predictor, 0.0)
    np.testing.assert_allclose(openness(predictor, samples(predictor, store)), 0.5, atol=1e-6)


def test_reading_it_changes_nothing_and_a_permuted_sample_is_told_by_name(store: Store) -> None:
    predictor = predictor_of(store, ["variate_gate"])
    one, = samples(predictor, store, 1)
    before = predictor.predict(one)["value"]
    found = openness(predictor, [one])
    xr.testing.assert_identical(predictor.predict(one)["value"], before)
    turned = openness(predictor, [one.isel(variate=[2, 0, 1])])
    xr.testing.assert_allclose(turned.sel(variate=list(NAMES)), found.sel(variate=list(NAMES)), atol=1e-6)
    alone = openness(predictor, [one, one.isel(variate=[1])])
    assert list(alone["variate"].values) == list(NAMES)


@pytest.mark.parametrize("identity", [True, False])
def test_with_closed_gates_a_forecast_is_the_variates_own(store: Store, identity: bool) -> None:
    """Of the whole predictor, baseline included: what the others were doesn't matter; with open gates it does."""
    predictor = predictor_of(store, ["variate_gate", "local"], inputs={"identity": identity})
    one, = samples(predictor, store, 1)
    other = one.copy(deep=True)
    other["value"][:24, 1:] = np.random.default_rng(1).normal(size=(24, 2))
    for logit, same in ((-3.0, True), (3.0, False)):
        shut(predictor, logit)
        forecast = [predictor.predict(sample)["value"].sel(variate="load").values
                    for sample in (one, other, one.isel(variate=[1, 0, 2]), one.isel(variate=[0]))]
        assert np.array_equal(forecast[0], forecast[1]) is same
        np.testing.assert_allclose(forecast[2], forecast[0], atol=1e-6)
        assert bool(np.allclose(forecast[3], forecast[0], atol=1e-6)) is same


def test_the_card_names_variates_in_their_order(store: Store, tmp_path: Path) -> None:
    assert "series" in registry.names("sciml.cards")
    predictor = predictor_of(store, ["variate_gate"])
    rows = [row for row in card(predictor, store) if row["limit"] is None]
    assert [row["name"] for row in rows] == [f"openness to other variates, {block}" for block in
                                             ("level 0, down 0", "level 0, up 0", "level 1, down 0")]
    for row in rows:
        told = [part.rsplit(" ", 1) for part in row["note"].split(", ")]
        values = [float(value) for _, value in told]
        assert sorted(name for name, _ in told) == sorted(NAMES)
        assert values == sorted(values, reverse=True)
        assert row["value"] == pytest.approx(np.mean(values), abs=0.01)
        assert row["verdict"] == ""


def test_forecasts_stand_beside_floors_that_need_no_training(store: Store) -> None:
    """Untrained, ours is the ridge, which follows waves of 12 to 31 steps better than the last value does."""
    predictor = predictor_of(store, ["axial"])
    for parameter in predictor.operator.ports["series"].heads["value"].outputs.parameters():  # type: ignore[union-attr, index]
        nn.init.zeros_(parameter)
    row, = card(predictor, store)
    assert row["name"] == "12 steps: mse over that of the seasonal naive"
    told = dict(part.rsplit(" ", 1) for part in row["note"].split(", ")[1:])
    assert told["ours"] == told["ridge"]
    assert row["value"] == pytest.approx(float(told["ours"]) / float(told["the seasonal naive"]), rel=1e-3)
    assert (row["value"] < 1, row["limit"], row["verdict"]) == (True, 1.0, "holds")
    assert "5 origins 12 steps apart" in row["note"]


def test_a_forecast_that_is_behind_them_is_said_to_fail(store: Store) -> None:
    predictor = predictor_of(store, ["axial"])
    for parameter in predictor.operator.ports["series"].heads["value"].outputs.parameters():  # type: ignore[union-attr, index]
        nn.init.constant_(parameter, 9.0)
    row, = card(predictor, store)
    assert row["value"] > 1
    assert row["verdict"] == "fails"


def test_a_split_without_room_is_open_and_other_tasks_have_no_floors(store: Store) -> None:
    predictor = predictor_of(store, ["axial"], look_back=24, horizons=[70])
    row, = card(predictor, store)
    assert row["verdict"] in ("holds", "fails")  # one window of 70 steps
    assert card(predictor_of(store, ["axial"], task="impute"), store) == []


def test_auto_ets_is_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from sciml.handles import series_backtest

    histories = []

    def ets(given: Histories, horizon: int, season: int, levels: Sequence[float]) -> Made:
        histories.append(given.values.shape[2])
        return series_backtest._naive(given, horizon, season, levels)

    monkeypatch.setattr(series_backtest, "_ets", ets)
    for cells in (480, 100):  # of 480 there are 330, all that lies before the split
        monkeypatch.setattr(series_backtest, "ETS_CELLS", cells)
        rows = card(predictor_of(store, ["axial"]), store, assignments=["ets=true"])
        assert [row["name"].split("of ")[-1] for row in rows] == ["the seasonal naive", "AutoETS"]
        assert rows[0]["value"] == rows[1]["value"]
        assert "5 origins 12 steps apart" in rows[0]["note"]
    assert histories == [330, 100]


def test_without_gates_openness_says_why(store: Store) -> None:
    predictor = predictor_of(store, ["axial"])
    assert not [row for row in card(predictor, store) if "openness" in row["name"]]
    with pytest.raises(InputError, match="variate_gate"):
        openness(predictor, samples(predictor, store))
    with pytest.raises(InputError, match="no samples"):
        openness(predictor_of(store, ["variate_gate"]), [])
    with pytest.raises(InputError, match="windows=3"):
        card(predictor, store, assignments=["windows=3"])
