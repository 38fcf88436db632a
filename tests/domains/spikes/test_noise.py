"""The scatter of a bin: counts keep their mean whatever their shape, and fitted noise draws what it was fitted to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from sciml import checkpoint
from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.count_shapes import Levels, Shape, fit_shape, log_chances
from sciml.domains.spikes.matching import count_correlations
from sciml.domains.spikes.noise import CountNoise, TraceNoise, restore
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate

MOST = 20


def correlated(units: int, rho: float) -> torch.Tensor:
    """Factor of correlations of `rho` between neighbouring pairs 0–1, 2–3, …"""
    matrix = torch.eye(units, dtype=torch.float64)
    for n in range(0, units - 1, 2):
        matrix[n, n + 1] = matrix[n + 1, n] = rho
    return torch.linalg.cholesky(matrix)


def rates(bins: int, units: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(bins, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 * drawn + torch.linspace(-1.5, 0.7, units, dtype=torch.float64)).exp()


def draw(noise: Any, mean: torch.Tensor, seed: int = 1, **sampling: float) -> torch.Tensor:
    members = np.arange(mean.shape[1])
    generator = torch.Generator().manual_seed(seed)
    return noise.draw(mean, members, validate(SamplingConfig, sampling, where="test"), generator)


@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2), st.floats(0, 6), st.floats(-6, 2))
def test_a_shape_keeps_the_mean(silence: float, sharpness: float, log_mean: float) -> None:
    shape = Shape(*(torch.tensor([x], dtype=torch.float64) for x in (silence, sharpness)))
    mean = torch.tensor([log_mean], dtype=torch.float64).exp()
    chance = log_chances(mean, shape.log_weights(MOST)).exp()
    assert float(chance.sum()) == pytest.approx(1)
    assert float((chance * torch.arange(MOST + 1)).sum()) == pytest.approx(float(mean), rel=1e-8)


def test_the_plain_shape_is_poisson() -> None:
    chance = log_chances(torch.tensor([1.7], dtype=torch.float64), Shape.poisson(1).log_weights(40)).exp()[0]
    np.testing.assert_allclose(chance.numpy(), poisson.pmf(np.arange(41), 1.7), atol=1e-12)


def test_sharpness_narrows_and_silence_empties() -> None:
    mean = torch.full((3,), 1.5, dtype=torch.float64)
    shape = Shape(torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor([0.3, 3.0, 1.0]).double())
    chance = log_chances(mean, shape.log_weights(MOST)).exp()
    k = torch.arange(MOST + 1, dtype=torch.float64)
    fano = ((chance @ k.square()) / 1.5 - 1.5).tolist()
    assert fano[0] > 1.3
    assert fano[1] < 0.6
    assert float(chance[2, 0]) > np.exp(-1.5) + 0.05


def test_shapes_are_found_again() -> None:
    shape = Shape(torch.tensor([0.0, 1.0, 0.0, -1.0]).double(), torch.tensor([2.5, 1.0, 0.4, 1.0]).double())
    rate = rates(6000, 4).clamp(0.8, 3.0)
    counts = draw(CountNoise(shape, MOST, torch.eye(4, dtype=torch.float64)), rate.log())
    counts[::7, 1] = torch.nan
    found = fit_shape(Levels.of(rate, counts, MOST))
    for mean in (1.0, 2.0):
        chances = [log_chances(torch.full((4,), mean).double(), x.log_weights(MOST)).exp() for x in (shape, found)]
        assert float((chances[0] - chances[1]).abs().sum(-1).max()) < 0.1


@pytest.mark.parametrize("rho", [0.6, -0.4])
def test_correlations_are_found_again_although_counts_hide_them(rho: float) -> None:
    """Sparse counts correlate far less than the normal numbers that they come from."""
    rate = rates(8000, 6)
    truth = CountNoise(Shape.poisson(6), MOST, correlated(6, rho))
    counts = draw(truth, rate.log())
    noise = CountNoise.fit(rate, counts, MOST)
    found = (noise.factor @ noise.factor.T).numpy()
    assert found[0, 1] == pytest.approx(rho, abs=0.12)
    assert found[4, 5] == pytest.approx(rho, abs=0.06)
    assert abs(found[0, 3]) < 0.06
    plain = np.corrcoef((counts - rate).T.numpy())[0, 1]
    assert abs(plain) < 0.8 * abs(found[0, 1])
    again = draw(noise, rate.log(), seed=2)
    covariances = [np.cov((c - rate).T.numpy())[np.triu_indices(6, 1)] for c in (counts, again)]
    np.testing.assert_allclose(covariances[1], covariances[0], atol=0.05)


def test_chance_correlations_are_shrunk_away() -> None:
    rate = rates(400, 30)
    counts = draw(CountNoise.poisson(30, MOST), rate.log())
    counts[:, 7] = 0.0
    counts[:, 8] = torch.nan
    noise = CountNoise.fit(rate, counts, MOST)
    off = (noise.factor @ noise.factor.T - torch.eye(30)).abs()
    assert bool(torch.isfinite(off).all())
    assert float(off.mean()) < 0.01
    torch.testing.assert_close(noise.factor.norm(dim=1), torch.ones(30, dtype=torch.float64))


def test_some_of_the_units_scatter_as_among_all() -> None:
    noise = CountNoise(Shape.poisson(4), MOST, correlated(4, 0.9))
    generator = torch.Generator().manual_seed(0)
    drawn = noise.draw(torch.zeros(2000, 2), np.array([3, 2]), SamplingConfig(), generator)
    assert np.corrcoef(drawn.T.numpy())[0, 1] > 0.7


def test_temperature_and_nucleus_of_noise() -> None:
    mean = torch.full((2000, 2), 0.8)
    cold = draw(CountNoise.poisson(2, MOST), mean.log(), temperature=0.2)
    assert float(cold.var()) < 0.5
    noise = TraceNoise(torch.ones(2, dtype=torch.float64), correlated(2, 0.8))
    traces = draw(noise, torch.zeros(2000, 2), temperature=4.0)
    assert float(traces.std()) == pytest.approx(2.0, rel=0.05)
    assert np.corrcoef(traces.T.numpy())[0, 1] == pytest.approx(0.8, abs=0.03)
    assert float(draw(noise, torch.zeros(2000, 2), top_p=0.5).abs().max()) < 0.68


def test_noise_of_traces_is_found_again() -> None:
    truth = TraceNoise(torch.tensor([0.5, 1.5, 1.0, 0.2]).double(), correlated(4, -0.7))
    mean = rates(3000, 4)
    traces = draw(truth, mean)
    traces[:500, 2] = torch.nan
    noise = TraceNoise.fit(mean, traces)
    np.testing.assert_allclose(noise.spread, truth.spread, rtol=0.05)
    np.testing.assert_allclose(noise.factor @ noise.factor.T, truth.factor @ truth.factor.T, atol=0.05)
    config, arrays = noise.state()
    torch.testing.assert_close(restore(config, arrays).factor, noise.factor)


@pytest.mark.parametrize("signal", ["count", "trace"])
def test_calibrated_activity_correlates_as_recorded(signal: str, population_store: Callable[..., Store],
                                                    tmp_path: Path) -> None:
    """Of an untrained operator, whose rates are constant: all that units share is in the noise of a bin."""
    store = population_store(f"noise_{signal}", signal=signal)
    tasks = {"next": {"before": 8, "scored": 24}}
    adapter = Binned.create({"floor": "smoothed", "slow_s": [1.0], "tasks": tasks}).fit(store)
    level = {"width": 16, "depth": 1, "mixers": ["local"], "head_width": 16}
    config = validate(OperatorConfig, {"stem_width": 16, "condition_width": 16, "levels": [level]}, where="test")
    predictor = Predictor(Operator(config, {"spikes": adapter.spec()}), {"spikes": adapter})
    known = adapter.calibrated(predictor.forward, adapter.open(store, "train", train=True))
    assert not adapter.noises
    upper = np.triu_indices(6, 1)

    def pairs(values: np.ndarray) -> np.ndarray:
        made = count_correlations(values) if signal == "count" else np.corrcoef(values.T)
        return np.asarray(made[upper])

    recorded = pairs(store.read(signal, 0)[:680])
    start = adapter.starts(store, "test")[0]
    plain = pairs(predictor.rollout(start, 200)[signal].values)
    predictor.adapters["spikes"] = known
    made = predictor.rollout(start, 200)[signal].values
    assert np.abs(plain - recorded).mean() > 2 * np.abs(pairs(made) - recorded).mean()
    assert np.corrcoef(pairs(made), recorded)[0, 1] > 0.75
    again = checkpoint.load(checkpoint.save(tmp_path / "kept", predictor))
    np.testing.assert_array_equal(again.rollout(start, 5)[signal].values, made[:5])


def test_without_next_bins_there_is_no_noise(population_store: Callable[..., Store]) -> None:
    store = population_store("count")
    adapter = Binned.create({"floor": "smoothed", "tasks": {"masked": {"before": 8, "scored": 8}}}).fit(store)
    assert adapter.calibrated(lambda batch: pytest.fail("not asked"), adapter.open(store, "train")) is adapter
