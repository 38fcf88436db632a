"""The harness of the benchmarks of spikes: seeds are measured once, a committee says the mean, generated activity is
held against stretches as long. No accuracy is asserted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sciml.cli.bench import load_script
from sciml.domains.spikes.matching import activity_of_counts
from sciml.predictor import Predictor
from sciml.report.bench import Bench, Row
from sciml.tokens import Outputs

HERE = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench() -> Any:
    return load_script(HERE / "spikes.py")


class Says(nn.Module):
    specs: Mapping[str, Any] = {}

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: Any) -> Outputs:
        return Outputs({"behaviour": torch.full((1, 2), self.value)})


def test_a_committee_says_the_mean(bench: Any) -> None:
    committee = bench.Committee([Says(1.0), Says(2.0), Says(6.0)])
    torch.testing.assert_close(committee(None)["behaviour"], torch.full((1, 2), 3.0))


def test_a_seed_that_was_measured_is_not_trained_again(bench: Any, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def train(recipe: str, seed: int, assigned: Any) -> tuple[Predictor, float]:
        trained.append(seed)
        return Predictor(Says(0.0), {}), 10.0 + seed  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "scores", lambda predictor, store: ({"r2": 0.5}, {"r2": 0.25}))
    results = Bench.load_or_new("spikes", seeds=bench.SEEDS, place=tmp_path)
    for key, value, peer in (("cpu_seconds_seed1", 40.0, None), ("r2_seed1", 0.8, "floor")):
        results.add(Row(metric=f"s1/velocity/{key}", unit="1", ours=value, peer=None if peer is None else 0.25,
                        peer_name=peer))
    rows = bench.measure(results, None, "velocity", "s1_velocity_causal", (), "r2")
    assert trained == [0, 2]
    assert [row.ours for row in rows] == [0.5, 0.8, 0.5]
    assert bench.seconds_of(results, "velocity", 2) == 12.0
    mean = next(row.ours for row in results.results.rows if row.metric == "s1/velocity/cpu_seconds")
    assert mean == pytest.approx(np.mean([10.0, 40.0, 12.0]))


def test_generated_activity_is_held_against_stretches_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = load_script(HERE / "spikes_generation.py")
    rng = np.random.default_rng(0)
    rates = np.array([0.2, 0.5, 1.0, 0.0])  # the last unit is silent: its figures are undefined, not NaN in the file

    def activity(bins: int) -> Any:
        return activity_of_counts(rng.poisson(rates, (bins, 4)), 0.05)

    recorded = {"test": activity(3000), "train": activity(6000)}
    monkeypatch.setattr(generation, "trained", lambda name, store: None)
    monkeypatch.setattr(generation, "recorded_of", lambda store, split="test": recorded[split])
    monkeypatch.setattr(generation, "drawn", lambda predictor, store, seed: (activity(1200), xr.Dataset()))
    monkeypatch.setattr(generation, "predicted", lambda predictor, store: [True, False])
    bench = Bench.load_or_new("spikes_generation", place=tmp_path)
    generation.measure(bench, "s1", None)
    found = {(row.metric, row.peer_name): row for row in bench.results.rows}
    drift, error = found["s1/train_60s/rate_error", "60 s"], found["s1/generated_60s/rate_error", "60 s"]
    assert 0 < drift.ours < 0.15  # one process draws all three: they differ by chance alone
    assert 0 < error.ours < 0.15
    assert error.peer == pytest.approx(found["s1/train_60s/rate_error", "60 s"].peer)
    assert found["s1/generated_60s/rate_error", "halves"].peer != error.peer
    assert found["s1/recorded/rescaled", None].ours == 0.5
    assert generation.part(recorded["test"], 60.0, 120.0).counts.shape == (1200, 4)
    assert np.isnan(generation.without(recorded["test"], 60.0, 120.0).counts).sum() == 4 * 1200
