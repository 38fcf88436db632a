"""Time rescaling: exponential under the true intensity at any bin width, not under a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sciml.domains.spikes import rescaling as r
from sciml.errors import InputError

RNG = np.random.default_rng


def modulated(seed: int, *shape: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    rng = RNG(seed)
    wave = np.sin(np.arange(shape[-2]) / 40)[:, None] + np.zeros(shape)
    rate = mean * np.exp(0.8 * wave)
    return rate, rng.poisson(rate).astype(float)


@pytest.mark.parametrize("mean", [0.02, 0.3, 1.0])
def test_true_rates_pass_at_any_bin_width(mean: float) -> None:
    """The uncorrected sum of rates fails where bins are wide: that is what the correction is for."""
    rate, counts = modulated(0, int(600 / mean), 20, mean=mean)
    tests = r.rescaling_test(rate, counts)
    assert sum(test.within_band for test in tests) >= 17
    assert stats.kstest([test.p_value for test in tests], "uniform").pvalue > 0.01
    assert stats.ttest_1samp(np.concatenate(r.binned_intervals(rate, counts)), 1).pvalue > 0.01
    occupied = np.flatnonzero(counts[:, 0] > 0)
    naive = r.ks_test(np.diff(np.cumsum(rate[:, 0])[occupied]))
    assert naive.within_band == (mean < 0.1)


@pytest.mark.parametrize("wrong", [lambda rate: 1.4 * rate, lambda rate: np.full_like(rate, rate.mean())])
def test_wrong_rates_fail(wrong: object) -> None:
    rate, counts = modulated(1, 10000, 3, mean=0.2)
    assert callable(wrong)
    for test in r.rescaling_test(wrong(rate), counts):
        assert not test.within_band
        assert test.p_value < 0.01


def test_trials_and_gaps_follow_one_another() -> None:
    """Short trials, of which most hold one spike or none: no bias from the intervals that they cut."""
    rate, counts = modulated(2, 4000, 12, 2, mean=0.05)
    counts[:, 5:8] = np.nan
    rate[:, 5:8] = np.nan
    for test, intervals in zip(r.rescaling_test(rate, counts), r.binned_intervals(rate, counts)):
        assert test.within_band
        assert test.num_intervals == len(intervals) > 1000
    joined = np.delete(counts, np.s_[5:8], axis=1).reshape(-1, 2)
    again = r.binned_intervals(np.delete(rate, np.s_[5:8], axis=1).reshape(-1, 2), joined)
    np.testing.assert_array_equal(again[1], r.binned_intervals(rate, counts)[1])


def test_an_interval_by_hand() -> None:
    """Spikes in bins 1 and 3 of rate ½: ½ plus a share of a bin, then ½ plus another, each share below ½."""
    intervals = r.binned_intervals(np.full((5, 1), 0.5), [[0], [1], [0], [2], [0]])[0]
    assert intervals.shape == (2,)
    assert ((intervals > 0.5) & (intervals < 1)).all()
    np.testing.assert_array_equal(r.binned_intervals(np.full((5, 1), 0.5), [[0], [1], [0], [1], [0]])[0], intervals)
    assert (r.binned_intervals(np.full((5, 1), 0.5), [[0], [1], [0], [1], [0]], seed=1)[0] != intervals).all()


def test_exact_events_under_their_own_and_another_intensity() -> None:
    edges = np.linspace(0, 500, 1001)
    intensity = 4 + 3 * np.sin(edges[:-1])
    total = r.cumulative_intensity(edges, intensity)
    unit_rate = np.cumsum(RNG(0).exponential(size=3000))
    times = np.interp(unit_rate[unit_rate < total(500.0)], total(edges), edges)
    own, other = r.event_rescaling_test(np.concatenate([times, times]), np.repeat([0, 1], len(times)),
                                        [total, lambda t: 4 * np.asarray(t)], 0.0)
    assert own.within_band
    assert own.num_intervals == len(times)
    assert not other.within_band
    np.testing.assert_allclose(r.event_intervals(times, total, 0.0), np.diff(unit_rate[: len(times)], prepend=0.0))


def test_integral_of_an_intensity() -> None:
    total = r.cumulative_intensity([1.0, 2.0, 4.0], [3.0, 5.0])
    np.testing.assert_allclose(total([1.0, 1.5, 2.0, 3.0, 4.0]), [0, 1.5, 3, 8, 13])
    for beyond in (0.9, 4.1, np.nan):
        with pytest.raises(InputError, match="integrate the intensity"):
            total([2.0, beyond])
    for edges, intensity in (([0, 1], [-1.0]), ([1, 0], [1.0]), ([0, 1], [1.0, 2.0]), ([0, 1], [np.nan])):
        with pytest.raises(InputError, match="ascending edges"):
            r.cumulative_intensity(edges, intensity)


def test_the_statistic_is_that_of_the_exponential_law() -> None:
    intervals = RNG(0).gamma(1.3, size=200)
    test, expected = r.ks_test(intervals), stats.kstest(intervals, "expon")
    assert test.statistic == pytest.approx(expected.statistic)
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.band == pytest.approx(1.36 / np.sqrt(200))
    assert r.ks_test(intervals[::-1]) == test


def test_silence_and_bad_input() -> None:
    for counts in (np.zeros((9, 1)), np.full((9, 1), np.nan), np.zeros((0, 1))):
        test = r.rescaling_test(np.ones_like(counts), counts)[0]
        assert (test.num_intervals, test.within_band) == (0, False)
        assert np.isnan([test.statistic, test.band, test.p_value]).all()
    assert r.rescaling_test(np.ones((9, 0)), np.ones((9, 0))) == ()
    with pytest.raises(InputError, match="NaN"):
        r.binned_intervals([[np.nan]], [[1]])
    with pytest.raises(InputError, match="ascending"):
        r.event_intervals([2.0, 1.0], np.asarray, 0.0)
    with pytest.raises(InputError, match="ascending"):
        r.event_intervals([1.0, 2.0], lambda t: -np.asarray(t), 0.0)
