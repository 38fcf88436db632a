"""Kriging: exact where the covariance is known, near the optimum where it is learnt, near the ridge on a grid."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.series.baseline import Ridge, moments
from sciml.domains.series.covariance import Covariance, Lags
from sciml.domains.series.encode import Window
from sciml.domains.series.kriging import Kriging, _residuals, _spread, last_value
from tests.domains.series.irregular import TAU, walk

RNG = np.random.default_rng


def exponential(noise: float = 0.0, tau: float = TAU) -> Covariance:
    """Of an Ornstein–Uhlenbeck process of variance 1, observed with noise of that variance."""
    return Covariance(np.array([1 / tau]), np.zeros(1), np.ones((1, 1)), np.array([noise]))


def kriging(covariance: Covariance, width: int = 2) -> Kriging:
    return Kriging(covariance, 1, 64, (64,), np.ones(width), {})


def expected(found: Kriging, values: np.ndarray, times: np.ndarray, first: int, seen: np.ndarray | None = None,
             length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of one window ``(T, V)``, of which `length` cells are given but for those not seen: ``(T − first, V)`` each."""
    past = first if length is None else length
    given = torch.ones(1, values.shape[1], past, dtype=torch.bool) if seen is None else torch.from_numpy(seen.T)[None]
    history = torch.from_numpy(values[:past].T.copy())[None]
    made = found.expected(torch.where(given, history, 0.0), given, times[None], np.arange(values.shape[1]), first)
    return made[0][0].T.numpy(), made[1][0].T.numpy()


def test_a_markov_process_is_forecast_by_its_last_value() -> None:
    times, values = walk(40)
    mean, variance = expected(kriging(exponential()), values, times, 32)
    kept = np.exp(-(times[32:] - times[31]) / TAU)[:, None]
    np.testing.assert_allclose(mean, kept * values[31], rtol=1e-9)
    np.testing.assert_allclose(variance, np.broadcast_to(1 - kept**2, variance.shape), rtol=1e-8)


def test_between_two_values_it_is_the_bridge() -> None:
    """x(t) given its neighbours a and b: sinh of the times to them, over sinh of the whole (e.g. Corlay, 2013)."""
    times, values = np.array([0.0, 1.0, 2.5, 3.0, 9.0]), RNG(0).normal(size=(5, 1))
    seen = np.array([[True], [True], [False], [True], [True]])
    mean, variance = expected(kriging(exponential(), 1), values, times, 0, seen, 5)
    a, b, whole = (np.sinh(x / TAU) for x in (1.5, 0.5, 2.0))
    np.testing.assert_allclose(mean[2], (b * values[1] + a * values[3]) / whole, rtol=1e-9)
    np.testing.assert_allclose(variance[2], 2 * a * b / whole, rtol=1e-6)
    np.testing.assert_allclose(mean[seen[:, 0]], values[seen[:, 0]], rtol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), shift=st.floats(-1e6, 1e6), lost=st.integers(0, 19))
def test_times_count_from_each_other_and_what_is_missing_is_as_if_it_never_was(seed: int, shift: float,
                                                                               lost: int) -> None:
    times, values = walk(24, 1, seed)
    found = kriging(exponential(0.1), 1)
    plain = expected(found, values, times, 20)
    np.testing.assert_allclose(expected(found, values, times + shift, 20)[0], plain[0], atol=1e-6)
    seen = np.ones((20, 1), bool)
    seen[lost] = False
    kept = np.delete(np.arange(24), lost)
    masked, dropped = expected(found, values, times, 20, seen), expected(found, values[kept], times[kept], 19)
    for one, other in zip(masked, dropped):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert (masked[1] >= plain[1] - 1e-12).all()
    alone = expected(found, values[np.r_[:20, 22]], times[np.r_[:20, 22]], 20)
    np.testing.assert_allclose(alone[0][0], plain[0][2], rtol=1e-9)


def test_variates_that_are_known_at_other_times_are_solved_apart() -> None:
    times, values = walk(24, 3)
    seen = RNG(1).random((20, 3)) < 0.7
    table = Covariance(np.array([0.2, 0.05]), np.zeros(2), RNG(2).random((3, 2)), np.array([0.1, 0.2, 0.3]))
    for covariance in (exponential(0.1), table):
        together = expected(kriging(covariance, 3), values, times, 20, seen)
        for v in range(3):
            apart = kriging(covariance.of(np.array([v])), 1)
            one = expected(apart, values[:, [v]], times, 20, seen[:, [v]])
            for a, b in zip(together, one):
                np.testing.assert_allclose(a[:, v], b[:, 0], rtol=1e-9)


def test_a_covariance_is_found_again() -> None:
    times, values = walk(6000, 2, seed=3)
    noisy = values + 0.5 * RNG(4).normal(size=values.shape)
    found = Covariance.fit(Lags.of([noisy], [times], 40).together())
    lag = torch.linspace(0, 30, 60, dtype=torch.float64)[None, None]
    curve = found.at(lag)[0, 0, 0].numpy()
    np.testing.assert_allclose(curve, np.exp(-lag[0, 0].numpy() / TAU), atol=0.12)
    assert found.nugget[0] == pytest.approx(0.25, abs=0.08)
    again = Covariance.restore(*(lambda state: (json.loads(json.dumps(state[0])), state[1]))(found.state()))
    assert torch.equal(again.at(lag), found.at(lag))


def test_mean_products_are_those_of_all_pairs() -> None:
    times, values = walk(60, 2)
    values[RNG(0).random(values.shape) < 0.2] = np.nan
    lags = Lags.of([values], [times], 60)
    i, j = np.triu_indices(60, 1)
    near = times[j] - times[i] <= lags.reach
    pairs = np.isfinite(values[i] * values[j]) & near[:, None]
    assert lags.count[1:].sum(0).tolist() == pairs.sum(0).tolist()
    np.testing.assert_allclose((lags.product[1:] * lags.count[1:]).sum(0),
                               np.where(pairs, values[i] * values[j], 0).sum(0))
    np.testing.assert_allclose(lags.product[0], np.nanmean(values**2, 0))
    assert lags.lag[0] == 0.0
    assert (np.diff(lags.lag) > 0).all()


def test_periods_and_smoothness_are_covariances() -> None:
    times = np.cumsum(RNG(0).exponential(1.0, 2000))
    values = np.cos(2 * np.pi * times / 12)[:, None] + 0.1 * RNG(1).normal(size=(2000, 1))
    lags = Lags.of([values], [times], 60)
    plain, periodic = Covariance.fit(lags), Covariance.fit(lags, [12.0], smooth=True, level=2.0)
    assert (periodic.weight >= 0).all()
    assert periodic.weight[0, 0] >= 2 * lags.product[0, 0]
    grid = torch.from_numpy(RNG(2).uniform(0, 90, 80))
    for found in (plain, periodic):
        matrix = found.at((grid[:, None] - grid)[None])[0, 0]
        assert torch.linalg.eigvalsh(matrix).min() > -1e-8
    errors = []
    for found in (plain, periodic):
        mean, _ = expected(kriging(found, 1), values[-80:], times[-80:], 60)
        errors.append(np.square(mean - values[-20:]).mean())
    assert errors[1] < 0.05 < errors[0]


def test_on_a_regular_grid_it_is_nearly_the_ridge() -> None:
    """With a level that nothing is known of: the ridge, too, is the best of what moves along with the look-back."""
    steps, rng = 6000, RNG(5)
    x = np.zeros((steps, 1))
    for t in range(1, steps):
        x[t] = np.exp(-1 / TAU) * x[t - 1] + np.sqrt(1 - np.exp(-2 / TAU)) * rng.normal()
    train, test = x[:4500], x[4500:]
    found = moments([train], 24, (4, 8))
    ridge = Ridge.fit(found, found, [1e-3])
    lags = Lags.of([train], [np.arange(4500.0)], 32)
    starts = np.arange(0, len(test) - 32, 7)
    history = torch.from_numpy(np.stack([test[s:s + 24].T for s in starts]))
    truth = np.stack([test[s + 24:s + 32].T for s in starts])
    seen, when = torch.ones_like(history, dtype=torch.bool), np.broadcast_to(np.arange(32.0), (len(starts), 32))
    known, free = (kriging(Covariance.fit(lags, level=level), 1).expected(
        history, seen, when, np.zeros(1, int), 24)[0].numpy() for level in (0.0, 100.0))
    theirs = ridge.forecast(history, seen, 8).numpy()
    errors = [np.square(made - truth).mean() for made in (known, free, theirs)]
    best = np.square(np.exp(-np.arange(1, 9) / TAU) * history[..., -1:].numpy() - truth).mean()
    assert errors[0] < 1.01 * best
    assert errors[1] == pytest.approx(errors[2], rel=0.02)
    assert np.square(free - theirs).mean() < 0.02


def test_state_comes_back_and_gradients_are_those_of_its_weights() -> None:
    times, values = walk(12, 2)
    found = kriging(exponential(0.1))
    config, arrays = found.state()
    again = Kriging.restore(json.loads(json.dumps(config)), arrays)
    history = torch.from_numpy(values[:8].T.copy())[None].requires_grad_()
    seen = torch.ones(1, 2, 8, dtype=torch.bool)
    mean = again.expected(history, seen, times[None], np.arange(2), 8)[0]
    assert torch.equal(mean, found.expected(history, seen, times[None], np.arange(2), 8)[0])
    slope = torch.autograd.grad(mean[0, 0, 1], history)[0]
    np.testing.assert_allclose((slope * history).sum().item(), mean[0, 0, 1].item())


def test_errors_of_training_are_as_large_as_they_are_said_to_be_however_far_off_the_covariance() -> None:
    """A hundredth of the variance, and a variate of which nothing is known."""
    covariance = exponential()
    found = kriging(Covariance(covariance.rate, covariance.frequency, covariance.weight / 1e4, covariance.nugget))
    times, values = walk(400)
    cells = np.arange(0, 380, 20)[:, None] + np.arange(20)
    known = torch.ones(19, 2, 20, dtype=torch.bool)
    known[:, 1] = False
    window = Window(torch.from_numpy(values[cells].swapaxes(1, 2)), known, known & (torch.arange(20) < 16), 16,
                    times[cells], np.arange(2), ("",) * 19)
    spread = _spread(found, window)
    assert spread[0] > 50
    assert spread[1] == 1
    error, scale, _ = _residuals(replace(found, spread=spread), window)
    np.testing.assert_allclose((error / scale)[:, 0].square().mean(), 1, rtol=1e-5)


def test_the_last_value_is_the_last_one_known() -> None:
    values, seen = torch.arange(8.0).reshape(1, 2, 4), torch.tensor([[[True, True, False, False], [False] * 4]])
    assert last_value(values, seen).flatten().tolist() == [1.0, 0.0]
