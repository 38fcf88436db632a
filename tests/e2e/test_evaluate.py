"""Evaluation: every score beside the baseline's, with an interval; what blew up is not forgiven."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sciml
from sciml.data.store import Store
from sciml.evaluate import evaluate, zero_outputs
from sciml.predictor import Predictor
from sciml.tokens import Cache, Outputs, TokenBatch
from tests.e2e import tiny


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return sciml.load(str(trained))


class Silent(torch.nn.Module):
    """An operator that says nothing, from the `quiet`-th call on NaN."""

    def __init__(self, predictor: Predictor, quiet: int | None = None) -> None:
        super().__init__()
        self.specs, self.quiet, self.calls = predictor.operator.specs, quiet, 0

    def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> Outputs:
        self.calls += 1
        outputs = zero_outputs(batch)
        if self.quiet is not None and self.calls >= self.quiet:
            outputs = Outputs({name: torch.full_like(value, torch.nan) for name, value in outputs.heads.items()})
        return outputs


def silent(predictor: Predictor, quiet: int | None = None) -> Predictor:
    return replace(predictor, operator=Silent(predictor, quiet))  # type: ignore[arg-type]


@pytest.mark.parametrize("which", [0, 1], ids=["16", "24"])
def test_rows_stand_beside_the_baseline_with_intervals(predictor: Predictor, stores: tuple[Store, ...],
                                                       which: int) -> None:
    result = evaluate(predictor, stores[which])
    assert {row.question for row in result.scores} == {"one_step", "rollout_7"}
    for row in result.rows:
        assert row["baseline_name"]
        assert math.isfinite(row["value"])
        assert math.isfinite(row["baseline"])
        assert row["low"] <= row["value"] - row["baseline"] <= row["high"] or row["blocks"] < 2
        assert row["blocks"] >= 1
        assert row["verdict"] == "too few independent blocks"
        assert row["domain"] == "fields"
        assert row["dataset"] == stores[which].meta.dataset
    curves = result.curves["rollout_7/relative_l2"]
    assert curves["step"] == [1, 2, 3, 4, 5, 6, 7]
    assert len(curves["ours"]) == len(curves["baseline"]) == 7
    assert result.warnings == []


def test_series_too(predictor: Predictor, stores: tuple[Store, ...]) -> None:
    result = evaluate(predictor, stores[2])
    assert {row.question for row in result.scores} == {"6", "12"}
    assert {row.baseline_name for row in result.scores} == {"ridge"}
    assert all(math.isfinite(row.value) and math.isfinite(row.baseline) for row in result.scores)


def test_the_baseline_alone_scores_its_baseline(predictor: Predictor, stores: tuple[Store, ...]) -> None:
    """Against the floor, wherever the adapter's own baseline is the floor."""
    adapter = predictor.adapters["fields"].floor()
    plain = replace(silent(predictor), adapters={**predictor.adapters, "fields": adapter})
    rows = evaluate(plain, stores[0], "train").scores
    assert {row.question for row in rows} == {"one_step", "rollout_7"}
    for row in rows:
        assert row.value == row.baseline
        assert row.interval.low == row.interval.high == 0
        assert row.ratio == 1 or row.value == 0


def test_a_rollout_that_blows_up_is_not_forgiven(predictor: Predictor, stores: tuple[Store, ...]) -> None:
    result = evaluate(silent(predictor, quiet=4), stores[0], questions=["rollout_7"])
    curve = result.curves["rollout_7/relative_l2"]
    assert np.isfinite(curve["ours"][:3]).all()
    assert np.isnan(curve["ours"][3:]).all()
    assert np.isfinite(curve["baseline"]).all()
    row = next(row for row in result.scores if row.metric == "relative_l2")
    assert math.isnan(row.value)
    assert row.verdict == "worse"


def test_windows_can_be_limited(predictor: Predictor, stores: tuple[Store, ...]) -> None:
    result = evaluate(predictor, stores[0], questions=["one_step"], max_windows=3)
    assert {row.samples for row in result.scores} == {3}


def test_another_split_of_a_data_set_that_was_trained_on_is_told(predictor: Predictor, tmp_path: Path) -> None:
    store = tiny.navier_stokes(tmp_path / "a.zarr", trajectories=3)
    result = evaluate(predictor, store, max_windows=1, questions=["one_step"])
    assert len(result.warnings) == 1
    assert "test samples may have been seen in training" in result.warnings[0]


def test_evaluation_leaves_the_model_as_it_is(predictor: Predictor, stores: tuple[Store, ...]) -> None:
    before = copy.deepcopy(predictor.operator.state_dict())
    one = evaluate(predictor, stores[0], max_windows=2).json()
    two = evaluate(predictor, stores[0], max_windows=2).json()
    assert one == two
    assert all(torch.equal(value, before[name]) for name, value in predictor.operator.state_dict().items())
