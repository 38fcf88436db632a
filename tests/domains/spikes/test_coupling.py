"""Classical estimates of connectivity on spike trains with planted links."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sciml.domains.spikes import coupling
from sciml.domains.spikes.coupling import Coupling, bumps, cross_correlation, cross_correlogram, poisson_glm
from sciml.errors import InputError

BIN_S = 0.001
Estimate = Callable[..., Coupling]
estimators = pytest.mark.parametrize("estimate", [cross_correlation, poisson_glm], ids=["correlogram", "glm"])


def planted(seconds: float = 60.0, units: int = 8, rate_hz: float = 15.0, seed: int = 0,
            modulation: float = 0.0) -> np.ndarray:
    """Poisson trains ``(time, unit)``: 1 follows 0 after 3 ms; 3 is silenced for 12 ms from 2 ms after 2; all share a
    slow modulation of their logarithmic rates."""
    rng, steps = np.random.default_rng(seed), round(seconds / BIN_S)
    slow = np.repeat(rng.standard_normal(steps // 500 + 1), 500)
    slow = np.convolve(slow, np.hanning(500) / np.hanning(500).sum(), mode="same")[:steps, None]
    rate = rate_hz * BIN_S * np.exp(modulation * slow)
    spikes = rng.random((steps, units)) < rate
    spikes[3:, 1] |= spikes[:-3, 0] & (rng.random(steps - 3) < 0.15)
    for lag in range(2, 14):
        spikes[lag:, 3] &= ~(spikes[:-lag, 2] & (rng.random(steps - lag) < 0.8))
    return spikes.astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 12), lags=st.integers(0, 15), seed=st.integers(0, 99))
def test_the_correlogram_is_the_sum_it_is_defined_by(steps: int, lags: int, seed: int) -> None:
    counts = np.random.default_rng(seed).poisson(0.7, (steps, 3)).astype(float)
    counts[seed % steps, 1] = np.nan
    known = np.nan_to_num(counts)
    expected = np.zeros((2 * lags + 1, 3, 3))
    for lag in range(-lags, lags + 1):
        for t in range(steps):
            if 0 <= t + lag < steps:
                expected[lags + lag] += np.outer(known[t + lag], known[t])
    np.testing.assert_allclose(cross_correlogram(counts, lags), expected)


@estimators
def test_planted_links_stand_out_with_sign_delay_and_significance(estimate: Estimate) -> None:
    found = estimate(planted(), BIN_S)
    assert found.score.shape == found.delay.shape == found.p.shape == (8, 8)
    order = np.argsort(-np.abs(found.score), axis=None)[:2]
    assert {divmod(int(i), 8) for i in order} == {(1, 0), (3, 2)}
    assert found.score[1, 0] > 4
    assert found.score[3, 2] < -4
    assert found.p[1, 0] < 1e-3
    assert found.p[3, 2] < 1e-3
    assert found.delay[1, 0] == pytest.approx(0.003, abs=0.0021)
    assert (found.score.diagonal() == 0).all()
    assert np.isnan(found.delay.diagonal()).all()
    assert (found.p.diagonal() == 1).all()


@estimators
def test_independent_trains_are_rarely_called_linked(estimate: Estimate) -> None:
    rng = np.random.default_rng(4)
    found = estimate((rng.random((40_000, 20)) < 0.02).astype(np.float32), BIN_S)
    assert (found.p < 0.05).mean() < 0.08
    assert np.abs(found.score).max() < 5


def test_the_correlogram_ignores_a_slow_rate_that_all_share() -> None:
    """Without the smoothed predictor the modulation would lift all pairs."""
    counts = planted(seconds=60.0, modulation=1.5)[:, 4:]
    found = cross_correlation(counts, BIN_S)
    raw = cross_correlogram(counts, 150)
    near, far = raw[155:161].mean(axis=0), raw[:10].mean(axis=0)
    assert np.median((near / far)[~np.eye(4, dtype=bool)]) > 1.1
    assert np.abs(found.score).max() < 5


def test_the_glm_explains_away_a_common_source_and_the_correlogram_does_not() -> None:
    rng, steps = np.random.default_rng(2), 80_000
    spikes = rng.random((steps, 3)) < 0.015
    for target, lag in ((1, 2), (2, 7)):
        spikes[lag:, target] |= spikes[:-lag, 0] & (rng.random(steps - lag) < 0.3)
    counts = spikes.astype(np.float32)
    plain = cross_correlation(counts, BIN_S)
    partial = poisson_glm(counts, BIN_S, num_bumps=6, prior=2.0)
    assert plain.score[2, 1] > 0.25 * plain.score[2, 0]
    assert plain.p[2, 1] < 1e-3
    assert partial.score[2, 0] > 4
    assert abs(partial.score[2, 1]) < 0.25 * partial.score[2, 0]


def test_the_glm_is_the_most_probable_one() -> None:
    """Against BFGS in float64 on the same posterior, written out."""
    counts = planted(seconds=4.0, units=4)
    basis, prior = bumps(BIN_S, 0.02, 2), 0.5
    design = coupling._Design.of(counts, basis, prior)
    weight, _, _ = coupling._fit(design)
    past = np.stack([[np.convolve(c, np.r_[0, b])[:len(counts)] for c in counts.T] for b in basis]).reshape(8, -1).T
    columns = np.c_[prior * past, np.full(len(counts), coupling.LEVEL)]
    np.testing.assert_allclose(design.columns(0), columns[:coupling.CHUNK], atol=1e-6)

    def minus_log_posterior(w: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        level = columns @ w
        return (np.exp(level) - y * level).sum() + 0.5 * w @ w, columns.T @ (np.exp(level) - y) + w

    for unit in range(4):
        best = minimize(minus_log_posterior, np.r_[np.zeros(8), -0.4], args=(counts[:, unit],), jac=True)
        assert minus_log_posterior(weight[:, unit], counts[:, unit])[0] - best.fun < 2 * coupling.TOLERANCE
        np.testing.assert_allclose(weight[:, unit], best.x, atol=0.3)


def test_chunks_of_the_design_know_the_past_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = planted(seconds=1.0)
    design = coupling._Design.of(counts, bumps(BIN_S, 0.02, 2), 0.3)
    whole = design.columns(0)
    monkeypatch.setattr(coupling, "CHUNK", 130)
    np.testing.assert_array_equal(np.concatenate([design.columns(s) for s in range(0, 1000, 130)]), whole)


@estimators
def test_recordings_don_t_see_one_another(estimate: Estimate) -> None:
    """Two recordings are as one with a gap that isn't recorded; in another order nothing changes."""
    counts = planted(seconds=20.0, units=5)
    both = counts.reshape(2, -1, 5)
    apart = np.concatenate([both[0], np.full((400, 5), np.nan, np.float32), both[1]])
    first, second, turned = estimate(both, BIN_S), estimate(apart, BIN_S), estimate(both[::-1], BIN_S)
    np.testing.assert_allclose(first.score, second.score, atol=0.05)
    np.testing.assert_allclose(first.score, turned.score, atol=0.05)


@estimators
def test_links_are_found_beside_a_gap_in_one_unit(estimate: Estimate) -> None:
    counts = planted(seconds=60.0, units=4)
    counts[20_000:30_000, 0] = np.nan
    found = estimate(counts, BIN_S)
    assert np.isfinite(found.score).all()
    assert found.score[1, 0] > 4
    assert found.score[3, 2] < -4


def test_a_unit_that_never_fires_has_no_links() -> None:
    counts = planted(seconds=5.0, units=4)
    counts[:, 2] = 0
    for found in (cross_correlation(counts, BIN_S), poisson_glm(counts, BIN_S)):
        assert np.isfinite(found.score).all()
        assert found.p[:, 2].min() > 0.1


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (0, 3)])
@estimators
def test_counts_of_another_shape_are_refused(estimate: Estimate, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="time, unit"):
        estimate(np.zeros(shape), BIN_S)


def test_bumps_cover_the_lags_and_add_up_between_their_centres() -> None:
    basis = bumps(0.002, 0.04, 4)
    assert basis.shape == (4, 20)
    assert basis[0, 0] == pytest.approx(1.0)
    assert (np.diff(basis.argmax(axis=1)) > 0).all()
    inside = slice(0, basis[-1].argmax())
    np.testing.assert_allclose(basis[:, inside].sum(axis=0), 1.0)
