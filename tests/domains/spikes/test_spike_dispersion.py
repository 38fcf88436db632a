"""Dispersion: calibrated under Poisson in sparse and full bins, seen where there is any; the negative binomial."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sciml.domains.spikes import dispersion as d
from sciml.domains.spikes.metrics import bits_per_spike, poisson_log_likelihood
from sciml.errors import InputError

RNG = np.random.default_rng


def negative_binomial(seed: int, alpha: float, *shape: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    rng = RNG(seed)
    rate = mean * np.exp(rng.normal(0, 0.3, shape))
    return rate, rng.poisson(rate * rng.gamma(1 / alpha, alpha, shape)).astype(float)


@pytest.mark.parametrize(("mean", "bins"), [(0.02, 5000), (0.3, 500), (5.0, 100)])
def test_poisson_counts_are_rejected_as_often_as_said(mean: float, bins: int) -> None:
    rng = RNG(0)
    rate = mean * np.exp(rng.normal(0, 0.3, (bins, 600)))
    p = np.array([test.p_value for test in d.unit_dispersion_tests(rate, rng.poisson(rate))])
    assert 0.02 < (p < 0.05).mean() < 0.08
    assert 0.4 < np.median(p) < 0.6


def test_wide_bins_give_the_textbook_test() -> None:
    rate = np.full((200, 1), 400.0)
    counts = RNG(0).poisson(rate).astype(float)
    test, chi2 = d.dispersion_test(rate, counts), ((counts - 400) ** 2 / 400).sum()
    assert (test.chi2, test.dof) == (pytest.approx(chi2), 200)
    assert test.p_value == pytest.approx(2 * min(stats.chi2.sf(chi2, 200), stats.chi2.cdf(chi2, 200)), rel=0.01)
    assert d.dispersion_test(rate, counts, fitted=1).dof == 199


def test_more_and_less_than_poisson_is_seen() -> None:
    rate, counts = negative_binomial(0, 0.5, 3000, 2, mean=0.8)
    assert d.dispersion_test(rate, counts).ratio > 1.2
    assert not d.dispersion_test(rate, counts).adequate
    regular = np.tile([[0.0], [1.0]], (500, 1))
    test = d.dispersion_test(np.full((1000, 1), 0.5), regular)
    assert test.ratio == pytest.approx(0.5)
    assert test.p_value < 1e-6
    rate = np.full((3000, 2), 0.8)
    assert d.dispersion_test(rate, RNG(1).poisson(rate)).adequate


def test_dispersion_of_nothing() -> None:
    for counts in (np.zeros((0, 2)), np.full((5, 2), np.nan), np.zeros((5, 0))):
        test = d.dispersion_test(np.ones_like(counts), counts)
        assert test.dof == 0
        assert np.isnan([test.chi2, test.p_value, test.ratio]).all()
        assert not test.adequate
    assert np.isnan(d.dispersion_test(np.zeros((5, 1)), np.zeros((5, 1))).p_value)
    assert d.dispersion_test(np.zeros((5, 1)), np.ones((5, 1))).p_value == 0
    assert np.isnan(d.dispersion_test(np.full((5, 1), np.nan), np.ones((5, 1))).p_value)
    assert d.dispersion_test([[1.0], [np.nan]], [[1.0], [np.nan]]).dof == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_fano_factor_is_variance_over_mean(seed: int) -> None:
    counts = RNG(seed).poisson(1.0, (3, 20, 2)).astype(float) + np.array([0, 1])
    counts[0, :5] = np.nan
    flat = counts.reshape(-1, 2)
    fano = d.fano_factor(counts)
    np.testing.assert_allclose(fano, np.nanvar(flat, 0, ddof=1) / np.nanmean(flat, 0))
    np.testing.assert_allclose(d.fano_factor(3 * counts), 3 * fano)
    np.testing.assert_allclose(d.fano_factor(counts[:, ::-1]), fano)


def test_fano_factor_of_constants_and_silence() -> None:
    np.testing.assert_array_equal(d.fano_factor([[2.0, 0.0, 1.0], [2.0, 0.0, np.nan]]), [0, np.nan, np.nan])
    assert np.isnan(d.fano_factor(np.zeros((0, 1)))).all()


@pytest.mark.parametrize("alpha", [1e-3, 0.3, 4.0])
def test_nb_likelihood_is_scipys(alpha: float) -> None:
    rate, counts = negative_binomial(0, alpha, 50, 3, mean=3.0)
    counts[:4, 1] = np.nan
    expected = stats.nbinom.logpmf(np.nan_to_num(counts), 1 / alpha, 1 / (1 + alpha * rate))
    np.testing.assert_allclose(d.nb_log_likelihood(rate, alpha, counts),
                               np.where(np.isnan(counts), 0, expected).sum(0), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 1e-300, 1e-12, 1e-9])
def test_nb_becomes_poisson_without_losing_digits(alpha: float) -> None:
    rate, counts = negative_binomial(0, 0.1, 500, 3, mean=20.0)
    limit = poisson_log_likelihood(rate, counts)
    np.testing.assert_allclose(d.nb_log_likelihood(rate, alpha, counts), limit, rtol=1e-6)
    assert d.nb_bits_per_spike(rate, 0.0, counts) == pytest.approx(bits_per_spike(rate, counts), rel=1e-10, abs=1e-12)
    null = [20.0, 21.0, 19.0]
    assert d.nb_bits_per_spike(rate, 0.0, counts, null) == pytest.approx(bits_per_spike(rate, counts, null), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_dispersion_is_found_again_and_pays(alpha: float) -> None:
    rate, counts = negative_binomial(3, alpha, 60000, 2, mean=1.5)
    found = d.nb_dispersion(rate, counts)
    np.testing.assert_allclose(found, alpha, rtol=0.1)
    best = d.nb_log_likelihood(rate, found, counts)
    for factor in (0.98, 1.02):
        assert (d.nb_log_likelihood(rate, factor * found, counts) < best).all()
    assert d.nb_bits_per_spike(rate, found, counts) > bits_per_spike(rate, counts)


def test_dispersion_is_zero_where_counts_vary_less_than_poisson() -> None:
    regular = np.tile([[0.0, 0.0], [1.0, 0.0]], (50, 1))
    np.testing.assert_array_equal(d.nb_dispersion(np.full((100, 2), 0.5), regular), [0, np.nan])
    assert np.isnan(d.nb_dispersion(np.ones((0, 1)), np.ones((0, 1)))).all()
    assert np.isnan(d.nb_bits_per_spike(np.ones((3, 1)), 0.1, np.zeros((3, 1))))
    assert d.nb_log_likelihood(np.ones((0, 1)), 0.1, np.ones((0, 1))) == 0


def test_nb_refuses_fractions_and_negative_dispersion() -> None:
    with pytest.raises(InputError, match="fractions"):
        d.nb_log_likelihood([[1.0]], 0.1, [[0.5]])
    for alpha in (-0.1, np.nan, [0.1, 0.2]):
        with pytest.raises(InputError, match="dispersion"):
            d.nb_log_likelihood([[1.0]], alpha, [[1.0]])
