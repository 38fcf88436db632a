"""Scores: perfect on the truth, blind to units where they say so, NaN of nothing; spectra and intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from sciml import metrics

RNG = np.random.default_rng
PERFECT: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "mse": (metrics.mse, 0), "rmse": (metrics.rmse, 0), "mae": (metrics.mae, 0),
    "relative_l2": (metrics.relative_l2, 0), "wape": (metrics.wape, 0), "correlation": (metrics.correlation, 1)}
SCALE_FREE = ["relative_l2", "wape", "correlation"]


@pytest.mark.parametrize("name", PERFECT)
def test_a_truth_scores_perfectly_and_anything_else_does_not(name: str) -> None:
    score, best = PERFECT[name]
    truth = RNG(0).normal(2, 1, (3, 5, 4))
    np.testing.assert_allclose(score(truth, truth), best, atol=1e-15)
    other = score(truth + RNG(1).normal(0, 0.1, truth.shape), truth)
    assert other.shape == (3,)
    assert (np.abs(other - best) > 1e-4).all()


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_relative_scores_are_blind_to_the_unit(name: str, scale: float) -> None:
    score, _ = PERFECT[name]
    p, t = RNG(0).normal(size=(2, 3, 50))
    np.testing.assert_allclose(score(scale * p, scale * t), score(p, t), rtol=1e-10)
    assert score(np.zeros((1, 4)), np.ones((1, 4)))[0] == 1 or name == "correlation"


@pytest.mark.parametrize("name", ["mse", "rmse", "mae"])
def test_absolute_scores_carry_the_unit(name: str) -> None:
    score, _ = PERFECT[name]
    p, t = RNG(0).normal(size=(2, 3, 50))
    power = 2 if name == "mse" else 1
    np.testing.assert_allclose(score(1000 * p, 1000 * t), 1000.0**power * score(p, t))


@pytest.mark.parametrize("name", PERFECT)
def test_missing_cells_do_not_count_and_nothing_scores_nan(name: str) -> None:
    score, _ = PERFECT[name]
    p, t = RNG(0).normal(size=(2, 2, 8))
    t[0, 5:] = np.nan
    np.testing.assert_allclose(score(p, t)[:1], score(p[:1, :5], t[:1, :5]))
    t[1] = np.nan
    assert np.isnan(score(p, t)[1])
    assert np.isnan(score(np.zeros((2, 0)), np.zeros((2, 0)))).all()
    assert score(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    p[0, 0] = np.nan
    assert np.isnan(score(p, t)[0])


def test_kept_dimensions_and_shapes() -> None:
    p, t = RNG(0).normal(size=(2, 3, 4, 5, 6))
    whole = metrics.rmse(p, t, keep=2)
    assert whole.shape == (3, 4)
    assert whole[1, 2] == pytest.approx(np.sqrt(np.mean((p - t)[1, 2] ** 2)))
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.mse(p, t[:1])


def test_division_by_zero_is_as_documented() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    for score in (metrics.relative_l2, metrics.wape):
        assert score(zero, zero)[0] == 0
        assert score(one, zero)[0] == np.inf
    assert np.isnan(metrics.correlation(one, RNG(0).normal(size=(1, 3))))[0]
    assert np.isnan(metrics.correlation(np.full((1, 7), 0.1), np.full((1, 7), 0.3)))[0]


def test_known_values() -> None:
    t, p = np.array([[3.0, 4.0]]), np.array([[3.0, -1.0]])
    assert metrics.relative_l2(p, t)[0] == 1
    assert metrics.wape(p, t)[0] == pytest.approx(5 / 7)
    assert metrics.correlation([[1, 2, 3]], [[3, 2, 1]])[0] == pytest.approx(-1)
    assert metrics.gmean([[1.0, 100.0], [0.0, 5.0]]).tolist() == pytest.approx([10, 0])
    assert metrics.gmean(np.ones((2, 0))).shape == (2,)


def test_mase_of_the_seasonal_naive_forecast_is_one() -> None:
    history = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 3.0, np.nan, 9.0, 12.0]])
    truth = history[:, -1:] + [[1.0], [3.0]]
    np.testing.assert_allclose(metrics.mase(history[:, -1:], truth, history), 1)
    np.testing.assert_allclose(metrics.mase(truth, truth, history), 0)
    assert metrics.mase(truth[:1], truth[:1], np.zeros((1, 4)))[0] == 0
    assert metrics.mase(truth[:1] + 1, truth[:1], np.zeros((1, 4)))[0] == np.inf
    assert np.isnan(metrics.mase(truth[:1], truth[:1], np.zeros((1, 1))))[0]
    weekly = np.tile([0.0, 5.0], 4)[None] + 2 * np.arange(8)
    assert metrics.mase(weekly[:, :1] + 2, weekly[:, :1], weekly, season=2)[0] == pytest.approx(0.5)


def test_quantile_loss() -> None:
    t = RNG(0).normal(size=(3, 40))
    p = RNG(1).normal(size=(3, 40))
    np.testing.assert_allclose(metrics.weighted_quantile_loss(p[..., None], t, [0.5]), metrics.wape(p, t))
    levels = [0.1, 0.5, 0.9]
    np.testing.assert_allclose(metrics.weighted_quantile_loss(np.stack([t] * 3, -1), t, levels), 0)
    draws = RNG(2).normal(size=(1, 20000))
    right = np.broadcast_to(np.quantile(draws, levels), (1, 20000, 3))
    ours, shifted = (metrics.weighted_quantile_loss(p, draws, levels) for p in (right, right + 0.3))
    assert ours < shifted


def test_crps_of_many_quantiles_is_that_of_the_distribution() -> None:
    t, levels = RNG(0).normal(size=(3, 40)), (np.arange(400) + 0.5) / 400
    points = stats.norm.ppf(levels)
    exact = t * (2 * stats.norm.cdf(t) - 1) + 2 * stats.norm.pdf(t) - 1 / np.sqrt(np.pi)
    found = metrics.crps_of_quantiles(np.broadcast_to(points, (*t.shape, 400)), t, list(levels))
    np.testing.assert_allclose(found, exact.mean(-1), rtol=1e-3)
    np.testing.assert_allclose(metrics.crps_of_quantiles((t + 1)[..., None], t, [0.5]), 1.0)
    few = metrics.crps_of_quantiles(np.broadcast_to([-0.1, 0.0, 0.3], (3, 40, 3)), t, [0.4, 0.5, 0.6])
    losses = [metrics.crps_of_quantiles(np.full((3, 40, 1), p), t, [q])
              for p, q in ((-0.1, 0.4), (0.0, 0.5), (0.3, 0.6))]
    np.testing.assert_allclose(few, np.array([0.45, 0.1, 0.45]) @ losses)
    np.testing.assert_allclose(metrics.crps_of_quantiles(np.stack([t] * 3, -1), t, [0.1, 0.5, 0.9]), 0)


def test_intervals_are_counted_measured_and_scored() -> None:
    t = RNG(0).normal(size=(2, 50000))
    low, high = np.full(t.shape, stats.norm.ppf(0.05)), np.full(t.shape, stats.norm.ppf(0.95))
    np.testing.assert_allclose(metrics.coverage(low, high, t), 0.9, atol=0.005)
    np.testing.assert_allclose(metrics.interval_width(low, high, t), 2 * stats.norm.ppf(0.95))
    best = metrics.interval_score(low, high, t, 0.9)
    for change in (-0.2, 0.2):
        assert (metrics.interval_score(low - change, high + change, t, 0.9) > best).all()
        assert (metrics.interval_score(low + change, high + change, t, 0.9) > best).all()
    np.testing.assert_allclose(metrics.interval_score(t, t, t, 0.9), 0)
    history = np.tile([0.0, 2.0, 1.0], (2, 8))
    np.testing.assert_allclose(metrics.msis(low, high, t, history, 0.9, season=3), np.inf)
    np.testing.assert_allclose(metrics.msis(low, high, t, history, 0.9), best / np.abs(np.diff(history[0])).mean())
    t[0, 10:] = np.nan
    for score in (metrics.coverage, metrics.interval_width):
        np.testing.assert_allclose(score(low, high, t)[0], score(low[:1, :10], high[:1, :10], t[:1, :10])[0])
        assert np.isnan(score(np.where(t == t[1, 0], np.nan, low), high, t)[1])
        assert np.isnan(score(low, high, np.full_like(t, np.nan))).all()


def test_bits_per_spike() -> None:
    rate = np.repeat([[0.5], [2.0]], 4000, 1)
    count = RNG(0).poisson(rate)[None]
    null = np.full((1, 2, 4000), count.mean())
    assert metrics.poisson_bits(null, count, null)[0] == 0
    gain = metrics.poisson_bits(rate[None], count, null)[0]
    assert 0.1 < gain < 0.5
    assert metrics.poisson_bits(rate[None, ::-1], count, null)[0] < 0
    assert np.isfinite(metrics.poisson_bits(np.zeros((1, 2, 4000)), count, null)).all()
    assert np.isnan(metrics.poisson_bits(np.ones((1, 3)), np.zeros((1, 3)), np.ones((1, 3))))[0]


def test_correlation_time() -> None:
    curves = [[0.9, 0.85, 0.8, 0.5], [0.7, 0.9, 0.9, 0.9], [1, 1, 1, 1], [0.9, np.nan, 0.9, 0.9]]
    assert metrics.correlation_time(curves, dt=0.5).tolist() == [1.5, 0, 2, 0.5]
    assert np.isnan(metrics.correlation_time(np.ones((2, 0)))).all()


@pytest.mark.parametrize(("shape", "periods"), [((32,), (2.0,)), ((16, 24), (1.0, 1.0)), ((16, 32), (1.0, 2.0)),
                                                ((8, 12, 10), (1.0, 1.0, 1.0))])
def test_a_wave_is_in_its_shell_and_shells_add_up_to_the_mean_square(shape: tuple, periods: tuple) -> None:
    axes = [np.arange(n) / n * p for n, p in zip(shape, periods)]
    x = np.meshgrid(*axes, indexing="ij")
    field = 3 * np.cos(2 * np.pi * 2 * x[0] / periods[0]) + 0.5
    k, power = metrics.power_spectrum(field[None], periods)
    shell = round(2 * max(periods) / periods[0])
    expected = np.zeros((1, len(k)))
    expected[0, 0], expected[0, shell] = 0.25, 4.5
    np.testing.assert_allclose(power, expected, atol=1e-12)
    assert k[shell] == pytest.approx(2 * np.pi * 2 / periods[0])
    moved = np.roll(RNG(0).normal(size=shape), 3, 0)
    np.testing.assert_allclose(metrics.power_spectrum(moved, periods)[1],
                               metrics.power_spectrum(np.roll(moved, 5, 0), periods)[1], atol=1e-12)


def test_energy_of_a_vortex_lattice() -> None:
    x = np.arange(32) / 32
    k = 2 * np.pi * 3
    vorticity = 2 * k * np.sin(k * x)[:, None] * np.sin(k * x)[None]  # ψ = sin sin / k: ⟨½u²⟩ = ¼
    waves, energy = metrics.energy_spectrum(vorticity, (1.0, 1.0))
    assert energy.sum() == pytest.approx(0.25)
    assert energy.argmax() == round(3 * np.sqrt(2))
    assert waves[1] == pytest.approx(2 * np.pi)


def test_spectrum_ratio() -> None:
    truth = np.array([9.0, 4.0, 2.0, 1.0, 0.0])
    assert metrics.spectrum_ratio(truth, truth) == 1
    assert metrics.spectrum_ratio(truth * [5, 1, 0.25, 1, 1], truth) == 4
    assert metrics.spectrum_ratio(truth * [5, 1, 0.25, 1, 1], truth, 1) == 1
    assert np.isnan(metrics.spectrum_ratio(truth, truth, 0))


def test_shells_in_which_the_truth_has_only_round_off_do_not_count() -> None:
    """Two harmonics in float32 beside a prediction that errs by a thousandth: only their shells can be compared."""
    x = np.arange(64) / 64
    truth = np.sin(2 * np.pi * x) + 0.1 * np.cos(6 * np.pi * x)
    rough = truth + 1e-3 * np.random.default_rng(0).normal(size=64)
    ours, theirs = (metrics.power_spectrum(u.astype(np.float32), [1.0])[1] for u in (rough, truth))
    assert metrics.spectrum_ratio(ours, theirs) < 1.02
    assert metrics.spectrum_ratio(ours, theirs + 1e-11 * theirs.sum()) > 100
    assert metrics.spectrum_ratio([1.0, 5.0], [1.0, 0.0]) == 1
    for unknown in ([1.0, np.nan], [1.0, np.inf]):
        assert not metrics.spectrum_ratio(unknown, [1.0, 0.0]) < np.inf
    assert np.isnan(metrics.spectrum_ratio([1.0, 5.0], [1.0, np.nan]))


def test_intervals_cover_and_widen_with_dependence() -> None:
    noise = RNG(0).normal(size=4000)
    smooth = np.convolve(noise, np.ones(20) / 20, "same")
    narrow, wide = (metrics.paired_blocks(smooth - 0.01, np.zeros(4000), block) for block in (1, 40))
    assert narrow.difference == wide.difference
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    covered = 0
    for seed in range(100):
        sample = RNG(seed).normal(0.3, 1, 60)
        interval = metrics.paired_blocks(sample, np.zeros(60), 1, seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 86 <= covered <= 99


def test_verdicts() -> None:
    noise = RNG(0).normal(size=100)
    assert metrics.paired_blocks(noise - 5, noise * 0).verdict() == "better"
    assert metrics.paired_blocks(noise - 5, noise * 0).verdict(higher=True) == "worse"
    assert metrics.paired_blocks(noise + 5, noise * 0).verdict() == "worse"
    assert metrics.paired_blocks(noise, noise * 0).verdict() == "no difference seen"
    few = metrics.paired_blocks(noise - 5, noise * 0, block=11)
    assert (few.blocks, few.verdict()) == (9, "too few independent blocks")
    assert few.low < few.difference < few.high
    one = metrics.paired_blocks(noise, noise * 0, block=60)
    assert (one.blocks, np.isnan(one.low)) == (1, True)
    nothing = metrics.paired_blocks([], [])
    assert (nothing.blocks, np.isnan(nothing.difference)) == (0, True)
    same = metrics.paired_blocks(noise, noise)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    holes = np.where(np.arange(100) % 3 == 0, np.nan, noise)
    assert np.isfinite(metrics.paired_blocks(holes, noise * 0, 5).low)
