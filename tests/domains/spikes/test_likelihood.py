"""The negative binomial as likelihood: dispersions are fitted, trained beside the rates, and leave scores alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.errors import InputError
from sciml.evaluate import evaluate, zero_outputs
from sciml.objectives.population import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor, predictions
from sciml.recipe import validate

TASKS: dict[str, Any] = {"next": {"before": 8, "scored": 24}}
BROAD: dict[str, Any] = {"floor": "smoothed", "slow_s": [1.0], "tasks": TASKS, "likelihood": "negative_binomial"}


def broaden(values: dict[str, Any]) -> None:
    """Half of the units vary more than Poisson: dispersion 1 around the rates they had."""
    rng = np.random.default_rng(3)
    mean = np.full((1000, 6), 1.2)
    mean[:, 3:] *= rng.gamma(1.0, 1.0, (1000, 3))
    values["count"] = rng.poisson(mean).astype(float)


@pytest.fixture
def broad(population_store: Callable[..., Store]) -> Store:
    return population_store("broad", change=broaden)


def predictor_of(adapter: Binned) -> Predictor:
    torch.manual_seed(0)
    level = {"width": 16, "depth": 1, "mixers": ["local"], "head_width": 16}
    config = validate(OperatorConfig, {"stem_width": 16, "condition_width": 16, "levels": [level]}, where="test")
    return Predictor(Operator(config, {"spikes": adapter.spec()}), {"spikes": adapter})


def test_dispersions_are_those_of_the_units(broad: Store) -> None:
    fit = Binned.create(BROAD).fit(broad).datasets["broad"]
    assert fit.dispersion is not None
    assert (fit.dispersion[:3] < 0.2).all()
    assert ((fit.dispersion[3:] > 0.6) & (fit.dispersion[3:] < 1.6)).all()
    assert Binned.create({**BROAD, "likelihood": "poisson"}).fit(broad).datasets["broad"].dispersion is None


def test_the_floor_is_better_with_its_dispersions_and_training_improves_on_it(broad: Store) -> None:
    adapter = Binned.create(BROAD).fit(broad)
    predictor = predictor_of(adapter)
    windows, rng = adapter.open(broad, "train", train=True), np.random.default_rng(0)
    batch = collate([adapter.encode(windows.draw(int(i), rng, rng)) for i in range(0, len(windows), 40)])
    zero = zero_outputs(batch)
    with_dispersions = float(objective(zero, batch).mean())
    none = zero_outputs(batch)
    none.heads["dispersion"] = none.heads["dispersion"] - 30.0
    assert with_dispersions < float(objective(none, batch).mean()) - 0.05
    optimizer = torch.optim.Adam(predictor.operator.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss = objective(predictor.operator(batch), batch).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < with_dispersions
    table = predictor.operator.ports["spikes"].heads["dispersion"].rows  # type: ignore[union-attr, index]
    assert any(float(p.detach().abs().max()) > 0 for p in table.parameters())


def test_scores_and_generation_stay_those_of_the_rates(broad: Store) -> None:
    adapter = Binned.create(BROAD).fit(broad)
    predictor = predictor_of(adapter)
    rows = {row.metric: row.value for row in evaluate(predictor, broad, "validation").scores}
    assert set(rows) == {"bits_per_spike", "dispersion"}
    assert rows["bits_per_spike"] == pytest.approx(0.0, abs=0.02)
    sample = adapter.starts(broad, "validation")[0]
    batch = adapter.encode(sample)
    assert adapter.decode(batch, predictions(batch, predictor.forward(batch)))["count"].shape[-1] == 6
    assert predictor.rollout(sample, 3)["count"].shape == (3, 6)
    again = Binned.restore(*adapter.state())
    np.testing.assert_array_equal(again.datasets["broad"].dispersion, adapter.datasets["broad"].dispersion)
    assert adapter.calibrated(predictor.forward, adapter.open(broad, "train")).noises


def test_data_fitted_under_poisson_are_refused(broad: Store) -> None:
    adapter = Binned.create({**BROAD, "likelihood": "poisson"}).fit(broad).reconfigured(BROAD)
    with pytest.raises(InputError, match="dispersions"):
        adapter.encode(adapter.open(broad, "train").draw(0, np.random.default_rng(0), np.random.default_rng(0)))
