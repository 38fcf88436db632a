"""Bits per spike, R², decoding and PSTHs: nlb_tools' figures, and defined values where there is nothing to score."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from sciml.domains.spikes import metrics as m
from sciml.errors import InputError

RNG = np.random.default_rng


def spikes(seed: int, *shape: int, mean: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Rates, and counts with some bins not recorded."""
    rng = RNG(seed)
    rate = rng.gamma(2.0, mean / 2, shape)
    counts = rng.poisson(rate).astype(float)
    counts[rng.random(shape) < 0.1] = np.nan
    return rate, counts


@pytest.fixture(scope="module")
def nlb() -> Any:
    pytest.importorskip("sklearn", reason="scikit-learn isn't installed")
    return pytest.importorskip("nlb_tools.evaluation", reason="nlb_tools isn't installed")


@pytest.mark.parametrize("seed", range(3))
def test_bits_per_spike_is_that_of_nlb_tools(nlb: ModuleType, seed: int) -> None:
    rate, counts = spikes(seed, 7, 20, 5)
    rate[0, :3] = 0.0
    counts[..., 4] = np.where(np.isnan(counts[..., 4]), np.nan, 0.0)
    assert m.bits_per_spike(rate, counts) == pytest.approx(nlb.bits_per_spike(rate.copy(), counts.copy()), rel=1e-10)
    expected = -nlb.neg_log_likelihood(rate.copy(), counts.copy())
    assert m.poisson_log_likelihood(rate, counts).sum() == pytest.approx(expected, rel=1e-12)
    heldout = nlb.bits_per_spike(rate[..., 3:], counts[..., 3:])
    assert m.co_bps(rate, counts, [False] * 3 + [True] * 2) == pytest.approx(heldout, rel=1e-10)
    forward = nlb.bits_per_spike(rate[:, 15:], counts[:, 15:])
    assert m.fp_bps(rate, counts, np.arange(15, 20)) == pytest.approx(forward, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), units=st.integers(1, 5))
def test_laws_of_bits_per_spike(seed: int, units: int) -> None:
    rate, counts = spikes(seed, 3, 30, units)
    null = RNG(seed).gamma(3.0, 0.3, units)
    assert m.bits_per_spike(np.broadcast_to(null, counts.shape), counts, null) == 0
    order, shuffled = RNG(seed).permutation(units), RNG(seed).permutation(30)
    total = m.bits_per_spike(rate, counts, null)
    assert m.bits_per_spike(rate[..., order], counts[..., order], null[order]) == pytest.approx(total)
    assert m.bits_per_spike(rate[:, shuffled], counts[:, shuffled], null) == pytest.approx(total)
    own, number = m.unit_bits_per_spike(rate, counts, null), np.nansum(counts, (0, 1))
    assert np.nansum(own * number) / number.sum() == pytest.approx(total)
    best = m.evaluation_mean(counts)
    assert m.bits_per_spike(np.broadcast_to(best, counts.shape), counts, null) >= 0
    assert m.bits_per_spike(rate, counts) <= total + 1e-12
    assert m.co_bps(rate, counts, np.arange(units), null) == m.fp_bps(rate, counts, np.ones(30, bool), null) == total


def test_bits_per_spike_by_hand() -> None:
    """Two bins, rates 1 and 3, null 2: Σ n log₂(μ/2) is 3 log₂ 1.5 − 1, and the means cancel."""
    assert m.bits_per_spike([[1.0], [3.0]], [[1], [3]], [2.0]) == pytest.approx((3 * np.log2(1.5) - 1) / 4)
    floored = m.bits_per_spike([[0.0]], [[1]], [1.0])
    assert floored == pytest.approx(np.log2(1e-9) - (1e-9 - 1) / np.log(2))


def test_without_spikes_or_bins_or_units_there_is_no_figure() -> None:
    silent = np.zeros((4, 2))
    silent[:, 1] = [0, 1, 0, 1]
    assert np.isnan(m.bits_per_spike(np.ones((4, 1)), np.zeros((4, 1)), [1.0]))
    assert np.isnan(m.unit_bits_per_spike(np.ones((4, 2)), silent)).tolist() == [True, False]
    for shape in ((0, 3), (4, 0)):
        assert np.isnan(m.bits_per_spike(np.ones(shape), np.zeros(shape)))
    assert np.isnan(m.bits_per_spike(np.ones((4, 1)), np.full((4, 1), np.nan)))
    assert np.isnan(m.co_bps(np.ones((4, 2)), silent, []))
    assert np.isnan(m.fp_bps(np.ones((4, 2)), silent, []))
    assert np.isnan(m.evaluation_mean(np.full((4, 1), np.nan))).all()


def test_rates_are_checked_where_counts_are_known() -> None:
    with pytest.raises(InputError, match="the same"):
        m.bits_per_spike(np.ones((3, 1)), np.ones((4, 1)))
    with pytest.raises(InputError, match="log-rates"):
        m.bits_per_spike([[-1.0], [1.0]], [[0], [1]])
    with pytest.raises(InputError, match="counts"):
        m.bits_per_spike([[1.0], [1.0]], [[0], [-1]])
    with pytest.raises(InputError, match="null_rate"):
        m.bits_per_spike([[1.0]], [[1]], [1.0, 2.0])
    assert m.bits_per_spike([[-1.0], [1.0]], [[np.nan], [1.0]], [1.0]) == 0
    assert np.isnan(m.bits_per_spike([[np.nan], [1.0]], [[0], [1]], [1.0]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_laws_of_r2(seed: int, scale: float, shift: float) -> None:
    p, t = RNG(seed).normal(size=(2, 4, 25, 3))
    t[RNG(seed).random(t.shape) < 0.1] = np.nan
    np.testing.assert_allclose(m.r2(np.nan_to_num(t), t), 1)
    np.testing.assert_allclose(m.r2(scale * p + shift, scale * t + shift), m.r2(p, t), rtol=1e-6)
    np.testing.assert_allclose(m.r2(np.broadcast_to(m.evaluation_mean(t), t.shape), t), 0, atol=1e-12)
    assert m.mean_r2(p, t) == pytest.approx(m.r2(p, t).mean())


def test_r2_of_nothing_and_of_a_constant() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn isn't installed")
    p, t = RNG(0).normal(size=(2, 30, 3))
    t[:, 1] = 0.1
    np.testing.assert_allclose(m.r2(p, t)[[0, 2]], sklearn.r2_score(t, p, multioutput="raw_values")[[0, 2]])
    assert m.r2(p, t)[1] == 0
    assert m.r2(t, t)[1] == 1
    t[1:, 0] = np.nan
    assert np.isnan(m.r2(p, t)[0])
    assert m.mean_r2(p, t) == pytest.approx(m.r2(p, t)[1:].mean())
    assert np.isnan(m.mean_r2(np.zeros((0, 2)), np.zeros((0, 2))))
    p[0, 2] = np.nan
    assert np.isnan(m.mean_r2(p, t))
    with pytest.raises(InputError):
        m.r2(p, t[:5])


def decoding(seed: int, trials: int = 12, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = RNG(seed)
    rates = rng.gamma(2.0, 0.02, (trials, 23, 6))
    velocity = rates @ RNG(99).normal(size=(6, 2)) * 40 + noise * rng.normal(size=(trials, 23, 2)) + 3
    velocity[0, :4] = np.nan
    return rates, velocity


@pytest.mark.parametrize("noise", [0.05, 1.0, 30.0])
def test_ridge_decoding_is_that_of_nlb_tools(nlb: ModuleType, noise: float) -> None:
    """At three levels of noise, which select different penalties."""
    train, test = decoding(1, noise=noise), decoding(2, noise=noise)
    masks = [np.full((len(rates), 1), True) for rates, _ in (train, test)]
    expected = nlb.velocity_decoding(*train, masks[0], *test, masks[1])
    assert m.ridge_decode_r2(*train, test).mean() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ridge_is_invariant_and_penalised() -> None:
    rates, velocity = decoding(3)
    fit = m.fit_ridge(rates, velocity)
    known = np.isfinite(velocity).all(-1)
    x, y = rates[known], velocity[known]
    gradient = (x.T @ (fit.predict(x) - y)) + fit.penalty * fit.weight
    np.testing.assert_allclose(gradient, 0, atol=1e-8)
    np.testing.assert_allclose((fit.predict(x) - y).sum(0), 0, atol=1e-8)
    own = m.ridge_decode_r2(rates, velocity)
    np.testing.assert_allclose(m.ridge_decode_r2(rates[..., ::-1], velocity), own)
    np.testing.assert_allclose(m.ridge_decode_r2(rates + 5, velocity * [2, -3] + 1), own, rtol=1e-6)
    assert m.ridge_decode_r2(rates[..., :1], velocity[..., :1]).shape == (1,)
    assert m.ridge_decode_r2(rates, decoding(3, noise=0.01)[1]).min() > 0.9 > 0.1 > \
        m.ridge_decode_r2(rates, RNG(0).normal(size=velocity.shape)).max()


def test_decoding_says_what_is_missing() -> None:
    rates, velocity = decoding(4)
    with pytest.raises(InputError, match="known bins"):
        m.fit_ridge(rates, np.full_like(velocity, np.nan))
    with pytest.raises(InputError, match="known bins"):
        m.ridge_decode_r2(rates[:0], velocity[:0])
    with pytest.raises(InputError, match="shape"):
        m.fit_ridge(rates[:, :5], velocity)
    rates[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="finite rates"):
        m.fit_ridge(rates, velocity)


@pytest.mark.parametrize(("length", "sd"), [(60, 1.0), (60, 1.25), (61, 4.0), (5, 3.0)])
def test_smoothing_is_a_centred_gaussian_on_each_stretch(length: int, sd: float) -> None:
    counts = RNG(0).poisson(1.0, (length, 2)).astype(float)
    taps = int(6 * sd)
    window = signal.windows.gaussian(taps, sd)
    expected = [signal.convolve(column, window / window.sum(), "same") for column in counts.T]
    np.testing.assert_allclose(m.smooth(counts, sd), np.transpose(expected), atol=1e-12)
    gap = np.concatenate([counts, np.full((3, 2), np.nan), counts])
    smoothed = m.smooth(gap, sd)
    np.testing.assert_array_equal(np.isnan(smoothed), np.isnan(gap))
    np.testing.assert_allclose(smoothed[:length], m.smooth(counts, sd))
    np.testing.assert_allclose(m.smooth(np.stack([gap, gap]), sd)[1], smoothed)


def test_smoothing_keeps_the_spikes_and_refuses_no_window() -> None:
    counts = np.zeros((50, 1))
    counts[25] = 2.0
    assert m.smooth(counts, 2.0).sum() == pytest.approx(2.0)
    assert m.smooth(np.zeros((0, 2)), 2.0).shape == (0, 2)
    with pytest.raises(InputError, match="widen"):
        m.smooth(counts, 0.1)


def trials(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates, spike counts and conditions of 40 trials; one condition of 5 has no trial, one trial no condition."""
    rng = RNG(seed)
    condition = rng.integers(0, 4, 40)
    condition[condition >= 2] += 1
    condition[7] = -1
    course = rng.gamma(2.0, 0.5, (5, 30, 6))[condition]
    return course * rng.uniform(0.8, 1.2, (40, 1, 1)), rng.poisson(course).astype(float), condition


def test_psth_r2_is_that_of_nlb_tools(nlb: ModuleType) -> None:
    rates, counts, condition = trials(0)
    reference = m.psth(m.smooth(counts, 2.0), condition)
    reference[1, 22:] = np.nan
    reference[..., 5] = np.where(np.isnan(reference[..., 5]), np.nan, 0.0)
    members = [np.flatnonzero(condition == index) for index in range(len(reference))]
    expected = nlb.eval_psth(reference, rates, members)
    assert m.psth_r2(rates, condition, reference).mean() == pytest.approx(expected, rel=1e-10)


def test_psth_is_the_mean_over_known_trials() -> None:
    rates, counts, condition = trials(1)
    reference = m.psth(counts, condition)
    assert reference.shape == (5, 30, 6)
    assert np.isnan(reference[2]).all()
    np.testing.assert_allclose(reference[3], counts[condition == 3].mean(0))
    counts[np.flatnonzero(condition == 3)[0]] = np.nan
    np.testing.assert_allclose(m.psth(counts, condition)[3], np.nanmean(counts[condition == 3], 0))
    np.testing.assert_allclose(m.psth_r2(rates, condition, m.psth(rates, condition)), 1)
    assert m.psth(counts, np.full(40, -1)).shape == (0, 30, 6)
    assert np.isnan(m.psth_r2(rates, np.full(40, -1), reference)).all()
    with pytest.raises(InputError, match="number conditions"):
        m.psth_r2(rates, condition, reference[:2])
    with pytest.raises(InputError, match="one integer per trial"):
        m.psth(counts, condition.astype(float))
