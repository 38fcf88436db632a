"""What validation decides: at which look-backs it is asked, which cycle helps, and whether the floor answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.domains.series.config import SeriesConfig
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.tokens import Outputs, TokenBatch
from tests.domains.series.stores import NAMES, gestures_store
from tests.domains.series.test_agreement import store_of

SMALL = {"levels": [{"width": 8, "depth": 1, "mixers": ["local"], "head_width": 8}], "stem_width": 8,
         "condition_width": 8}
WITHIN = {"look_back": 96, "shortest": 24, "horizons": [12, 24], "patch": 6}


def rngs() -> list[np.random.Generator]:
    return [np.random.default_rng(0)] * 2


@pytest.fixture(scope="module")
def daily(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A daily course of any shape under noise: a look-back of one day tells little of it, one of four days more."""
    rng = np.random.default_rng(0)
    value = np.tile(rng.normal(size=(24, 2)), (200, 1)) + rng.normal(size=(4800, 2))
    return store_of(tmp_path_factory.mktemp("daily"), "daily", value)


def test_validation_asks_at_the_look_backs_and_horizons_that_training_draws(daily: Store) -> None:
    adapter = Series.create(WITHIN).fit(daily)
    windows = adapter.open(daily, "validation")
    block, = daily.meta.splits.validation
    seen = set()
    for index in (*range(60), len(windows) - 1):
        sample = windows.draw(index, *rngs())
        seen.add((sample.attrs["look_back"], sample.attrs["horizon"]))
        if index in (0, len(windows) - 1):
            origin = sample["time"].values[sample.attrs["look_back"]:]
            assert daily.coord("time")[block.start] <= origin[0]
            assert origin[-1] <= daily.coord("time")[block.stop - 1]
    assert seen == {(n, h) for n in (24, 48, 72, 96) for h in (12, 24)}
    again = adapter.open(daily, "validation").draw(7, *[np.random.default_rng(5)] * 2)
    assert again.identical(windows.draw(7, *rngs()))


def test_one_look_back_is_asked_as_before(daily: Store) -> None:
    adapter = Series.create({key: value for key, value in WITHIN.items() if key != "shortest"}).fit(daily)
    windows = adapter.open(daily, "validation")
    assert {windows.draw(i, *rngs()).attrs["look_back"] for i in (0, 5)} == {96}
    assert {windows.draw(i, *rngs()).attrs["horizon"] for i in (0, 5)} == {24}
    assert adapter.task.ridges["daily"].ridge.provenance["look_backs"] == [96]


def test_a_cycle_that_helps_short_look_backs_is_taken_where_they_are_asked(daily: Store) -> None:
    found = Series.create(WITHIN).fit(daily).task.ridges["daily"]
    assert found.cycle is not None
    tried = found.ridge.provenance["cycles_tried"]
    assert tried["none"] == [1.0] * 4
    assert tried["day"][0] == min(tried["day"]) < 0.995
    assert max(tried["day"]) <= 1
    own = SeriesConfig.model_validate(WITHIN).look_backs_of("daily")
    assert own == tuple(found.ridge.provenance["look_backs"]) == (24, 48, 72, 96)


def answering(store: Store, knows: float, corrects: str = "ridge") -> tuple[Predictor, Any]:
    """A predictor of gestures that knows that share of them, whatever the ridge says, and the adapter that judged it.
    """
    adapter = Series.create({"look_back": 24, "patch": 4, "task": {"classify": {"corrects": corrects}}}).fit(store)
    torch.manual_seed(0)
    predictor = Predictor(Operator(validate(OperatorConfig, SMALL, where="test"), {"series": adapter.spec()}).eval(),
                          {"series": adapter})
    asked = iter(range(10_000))

    def forward(batch: TokenBatch) -> Outputs:
        (head, target), = batch.targets.items()
        right = next(asked) < knows * len(store.meta.splits.validation)
        truth = target.value.argmax(-1) + (0 if right else 1)
        wanted = 9.0 * torch.nn.functional.one_hot(truth % len(NAMES), len(NAMES)).to(target.value)
        return Outputs({head: wanted - target.baseline})

    return predictor, adapter.calibrated(forward, adapter.open(store, "train", train=True))


@pytest.mark.parametrize("corrects", ["ridge", "frequency"])
def test_an_operator_that_knows_no_more_than_its_floor_is_not_asked(corrects: str, tmp_path: Path) -> None:
    store = gestures_store(tmp_path)
    predictor, judged = answering(store, 0.4, corrects)
    assert judged.notes
    assert "knew" in judged.notes[0]
    predictor = Predictor(predictor.operator, {"series": judged})
    found = evaluate(predictor, store, "test")
    assert {row.value - row.baseline for row in found.scores} == {0.0}
    assert found.warnings == judged.notes
    config, arrays = judged.state()
    again = Series.restore(json.loads(json.dumps(config)), arrays)
    assert again.notes == judged.notes
    assert Series.restore(config, arrays).fit(store).notes == []  # trained again, judged again


def test_one_that_knows_more_is(tmp_path: Path) -> None:
    store = gestures_store(tmp_path, count=60, steps=6)
    _, judged = answering(store, 1.0)
    floor = judged.floor()
    right = []
    for index in range(len(store.meta.splits.validation)):
        sample = judged.open(store, "validation").draw(index, *rngs())
        right.append(int(floor.encode(sample).targets["class/gestures"].baseline.argmax()) == int(sample["label"]))
    assert bool(judged.notes) == all(right)  # equal is not more


def test_other_tasks_are_not_judged(daily: Store) -> None:
    adapter = Series.create(WITHIN).fit(daily)
    assert adapter.calibrated(lambda batch: Outputs({}), adapter.open(daily, "train", train=True)) is adapter
