"""Matching: nothing differs from itself, more of the same is within the split halves, other activity is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sciml.domains.spikes import matching as m
from sciml.errors import InputError

RNG = np.random.default_rng


def correlated(seed: int, bins: int, units: int = 6, shared: float = 0.5) -> np.ndarray:
    """Counts with unequal rates and loadings on one shared fluctuation, the same population for every seed."""
    common = RNG(seed).normal(size=(bins, 1))
    return RNG([seed, 1]).poisson(np.linspace(0.1, 0.8, units) * np.exp(shared * common * np.linspace(-1, 2, units)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), units=st.integers(2, 5), dt=st.sampled_from([0.001, 0.02, 1.0]))
def test_nothing_differs_from_itself(seed: int, units: int, dt: float) -> None:
    counts = correlated(seed, 400, units).astype(float)
    counts[100:120] = np.nan
    activity = m.activity_of_counts(counts, dt)
    for name, value in m.distances(activity, activity).items():
        assert np.isnan(value) if units == 2 and name == "pairwise_correlation" else \
            value == pytest.approx(float(name in m.HIGHER), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_figures_are_blind_to_order_of_units_and_unit_of_time(seed: int) -> None:
    one, other = correlated(seed, 300), correlated(seed + 1, 200)
    order = RNG(seed).permutation(6)
    expected = m.distances(m.activity_of_counts(one, 0.01), m.activity_of_counts(other, 0.01))
    again = m.distances(m.activity_of_counts(one[:, order], 2.0), m.activity_of_counts(other[:, order], 2.0))
    assert again == pytest.approx(expected)


def test_more_of_the_same_is_within_and_other_activity_is_not() -> None:
    recorded = m.activity_of_counts(correlated(0, 4000), 0.01)
    same = m.match(m.activity_of_counts(correlated(10, 8000), 0.01), recorded)
    assert sum(comparison.within is True for comparison in same) >= 6
    independent = {c.name: c for c in m.match(m.activity_of_counts(correlated(10, 8000, shared=0.0), 0.01), recorded)}
    for name in ("pairwise_correlation", "pairwise_error", "population_distance"):
        assert independent[name].within is False
    twice = {c.name: c for c in m.match(m.activity_of_counts(correlated(11, 4000) * 2, 0.01), recorded)}
    assert twice["rate_error"].value == pytest.approx(1, abs=0.1)
    assert twice["rate_error"].within is False
    assert twice["cv_error"].within is False
    assert set(independent) == set(m.split_half(recorded)) == set(twice)


def test_split_halves_are_the_interleaved_blocks() -> None:
    counts = correlated(0, 103).astype(float)
    even, odd = m.halves(m.activity_of_counts(counts, 0.01), 4)
    np.testing.assert_array_equal(np.where(np.isfinite(even.counts), even.counts, odd.counts), counts)
    assert np.isfinite(even.counts[:, 0]).astype(int).tolist() == [1] * 26 + [0] * 26 + [1] * 26 + [0] * 25
    whole = m.activity_of_counts(counts, 0.01).times
    for unit in range(6):
        np.testing.assert_array_equal(np.sort(np.concatenate([even.times[unit], odd.times[unit]])), whole[unit])
        assert len(even.times[unit]) == np.nansum(even.counts[:, unit])
    for blocks in (0, 3, 104):
        with pytest.raises(InputError, match="even number"):
            m.halves(m.activity_of_counts(counts, 0.01), blocks)


def test_intervals_skip_what_was_not_recorded() -> None:
    counts = np.array([[1, 0], [0, 0], [2, 0], [np.nan, 1], [1, 0], [1, 1]])
    first, second = m.interspike_intervals(m.activity_of_counts(counts, 2.0))
    np.testing.assert_allclose(first, [3.5, 1.0, 2.0])
    np.testing.assert_allclose(second, [4.0])
    trials = np.array([[[1], [1]], [[1], [0]]])
    np.testing.assert_allclose(m.interspike_intervals(m.activity_of_counts(trials, 1.0))[0], [1.0])


def test_exact_times_and_their_counts_agree_to_a_bin() -> None:
    rng, dt, bins = RNG(0), 0.02, 5000
    time = np.sort(rng.uniform(3.0, 3.0 + dt * bins, 3000))
    unit = rng.integers(0, 3, 3000)
    recorded = np.ones((bins, 3), bool)
    recorded[2000:2100] = False
    exact = m.activity_of_spikes(time, unit, recorded, 3.0, dt)
    np.testing.assert_array_equal(np.isfinite(exact.counts), recorded)
    edges = 3.0 + dt * np.arange(bins + 1)
    for index in range(3):
        histogram = np.histogram(time[unit == index], edges)[0]
        np.testing.assert_array_equal(exact.counts[recorded[:, index], index], histogram[recorded[:, index]])
    np.testing.assert_allclose(m.firing_rates(exact), np.nansum(exact.counts, 0) / (4900 * dt))
    np.testing.assert_allclose(m.interval_cv(m.interspike_intervals(exact)), 1, atol=0.1)
    binned = m.activity_of_counts(exact.counts, dt)
    assert m.distances(binned, exact)["interval_distance"] < dt / 0.1
    for ours, theirs in zip(binned.times, exact.times):
        assert np.abs(ours - theirs).max() < dt
    edges, zero = 0.1 + 0.001 * np.arange(500), np.zeros(500, int)
    on_edges = m.activity_of_spikes(edges, zero, np.ones((500, 1), bool), 0.1, 0.001)
    np.testing.assert_array_equal(on_edges.counts, 1)
    outside = m.activity_of_spikes([2.0, 3.5], [0, 0], np.ones((10, 1), bool), 3.0, 0.02)
    assert (np.nansum(outside.counts), len(outside.times[0])) == (0, 0)


def test_correlations_are_pearsons_over_common_bins() -> None:
    counts = correlated(0, 200, 4).astype(float)
    np.testing.assert_allclose(m.count_correlations(counts), np.corrcoef(counts.T), atol=1e-12)
    np.testing.assert_allclose(m.count_correlations(3 * counts + 2), np.corrcoef(counts.T), atol=1e-12)
    counts[:50, 1], counts[30:90, 2] = np.nan, np.nan
    both = np.isfinite(counts[:, 1:3]).all(1)
    assert m.count_correlations(counts)[1, 2] == pytest.approx(np.corrcoef(counts[both, 1:3].T)[0, 1])
    counts[:, 3] = 0.3 * 3
    constant = m.count_correlations(counts)
    assert np.isnan(constant[3]).all()
    assert np.isfinite(constant[:3, :3]).all()


def test_distances_of_intervals_and_sums_by_hand() -> None:
    one, other = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.4, 0.5])
    np.testing.assert_allclose(m.interval_distances([one, one], [other, np.empty(0)]), [0.2 / 0.4, np.nan])
    np.testing.assert_allclose(m.interval_cv([other, one[:1], np.empty(0)]), [np.std(other) / 0.4, np.nan, np.nan])
    counts, ours = correlated(0, 50), correlated(1, 70)
    expected = stats.wasserstein_distance(ours.sum(1), counts.sum(1)) / counts.sum(1).std()
    found = m.distances(m.activity_of_counts(ours, 1.0), m.activity_of_counts(counts, 1.0))
    assert found["population_distance"] == pytest.approx(expected)
    partly = counts.astype(float)
    partly[3, 2] = np.nan
    np.testing.assert_array_equal(m.population_sums(partly), np.delete(counts.sum(1), 3))
    rates = ours.mean(0), counts.mean(0)
    assert found["rate_correlation"] == pytest.approx(np.corrcoef(*rates)[0, 1])
    assert found["rate_error"] == pytest.approx(np.linalg.norm(rates[0] - rates[1]) / np.linalg.norm(rates[1]))


def test_one_unit_silence_and_nothing_have_no_figures_rather_than_wrong_ones() -> None:
    one = m.activity_of_counts(RNG(0).poisson(0.5, (200, 1)), 0.01)
    undefined = {c.name for c in m.match(one, one) if c.within is None}
    assert undefined == {"rate_correlation", "pairwise_correlation", "pairwise_error"}
    silent = m.activity_of_counts(np.zeros((200, 3)), 0.01)
    figures = m.distances(silent, silent)
    assert figures.pop("rate_error") == 0
    assert np.isnan(list(figures.values())).all()
    empty = m.activity_of_counts(np.zeros((0, 3)), 0.01)
    assert np.isnan(list(m.distances(empty, empty).values())).all()
    assert [len(x) for x in m.interspike_intervals(empty)] == [0, 0, 0]


def test_activities_are_checked() -> None:
    good = m.activity_of_counts(np.ones((5, 2)), 0.01)
    two = np.ones((5, 2))
    for counts, dt in ((np.ones(5), 0.01), (two, 0.0), (two / 2, 0.01), (-two, 1.0)):
        with pytest.raises(InputError, match="counts"):
            m.activity_of_counts(counts, dt)
    for other in (m.activity_of_counts(np.ones((5, 3)), 0.01), m.activity_of_counts(np.ones((5, 2)), 0.02)):
        with pytest.raises(InputError, match="recorded units"):
            m.distances(other, good)
    for unit in ([2], [-1], [0, 1]):
        with pytest.raises(InputError, match="indices"):
            m.activity_of_spikes([0.1], unit, np.ones((5, 2), bool), 0.0, 0.1)
