"""Generated series against what is known of their processes; the output against the layout of a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.build import build as build_store
from sciml.data.builders import synthetic_series as corpus
from sciml.data.builders.synthetic_series_chaos import SYSTEMS, Flow, LogisticRing, MackeyGlass, lorenz
from sciml.data.builders.synthetic_series_kernels import Kernel, Periodic, Rational, Rough, Smooth, Term, draw_terms
from sciml.data.builders.synthetic_series_processes import Arma, draw_seasonal, ornstein_uhlenbeck, season
from sciml.data.source import SourceSpec
from sciml.data.split_config import Counts, GroupSplit
from sciml.errors import InputError

SMALL: dict[str, Any] = {"series": 20, "variates": 3, "steps": 64, "seed": 5, "block": 4}
KERNELS = [Periodic(24.0, 0.8), Periodic(10.0, 2.0), Smooth(15.0), Rational(12.0, 0.7), Rough(9.0)]


def autocovariance(x: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Of rows ``(n, steps)`` that are known to have mean 0, averaged over rows and times."""
    return np.array([(x[:, :x.shape[1] - lag] * x[:, lag:]).mean() for lag in lags])


@pytest.mark.parametrize("kernels", [[k] for k in KERNELS] + [[KERNELS[0], KERNELS[2]], [KERNELS[1], KERNELS[4]]],
                         ids=str)
def test_a_gaussian_process_has_the_autocovariance_of_its_kernels(kernels: list[Kernel]) -> None:
    rng, lags = np.random.default_rng(0), np.arange(0, 61, 3)
    term = Term(2.0, tuple(kernels))
    drawn = np.stack([term.sample(256, rng) for _ in range(800)])
    expected = term.covariance(lags.astype(float), np.zeros(1), 256)
    np.testing.assert_allclose(expected, 2.0 * np.prod([k.at(lags) for k in kernels], axis=0))
    np.testing.assert_allclose(autocovariance(drawn, lags), expected, atol=0.3)


def test_a_linear_factor_makes_the_variance_grow_with_the_distance_from_its_centre() -> None:
    rng, times = np.random.default_rng(1), np.arange(128.0)
    term = Term(1.5, (Smooth(10.0),), centre=40.0)
    drawn = np.stack([term.sample(128, rng) for _ in range(2000)])
    expected = term.covariance(times[:, None], times, 128)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), expected, atol=0.1)
    np.testing.assert_allclose(np.diag(expected), 1.5 * ((times - 40) / 128) ** 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_composed_covariances_are_positive_semidefinite(seed: int) -> None:
    terms, noise = draw_terms(48, (24.0, 12.0), np.random.default_rng(seed))
    times = np.arange(48.0)
    total = sum(term.covariance(times[:, None], times, 48) for term in terms)
    assert np.linalg.eigvalsh(total).min() > -1e-8 * np.trace(total)
    assert noise >= 0


@pytest.mark.parametrize("process", [
    Arma(np.array([1.0, -0.8]), np.ones(1)), Arma(np.array([1.0, -1.2, 0.6]), np.array([1.0, 0.5])),
    Arma(np.array([1.0, -0.5]), np.array([1.0, -0.4]), season=12, seasonal=0.7)], ids=["ar1", "arma21", "seasonal"])
def test_an_arma_process_has_the_spectrum_of_its_polynomials(process: Arma) -> None:
    rng, steps = np.random.default_rng(2), 512
    drawn = np.stack([process.sample(steps, rng) for _ in range(400)])
    taper = np.hanning(steps)
    power = (np.abs(np.fft.rfft(drawn * taper)) ** 2).mean(0) / (taper**2).sum()
    frequency = 2 * np.pi * np.fft.rfftfreq(steps)
    fine = np.linspace(-np.pi, np.pi, 20000)
    assert drawn.var() == pytest.approx(process.spectrum(fine).mean(), rel=0.05)
    smooth = np.array([process.spectrum(f + np.linspace(-1, 1, 41) * 2 * np.pi / steps).mean() for f in frequency])
    np.testing.assert_allclose(power[4:-4] / smooth[4:-4], 1.0, atol=0.4)
    assert np.mean(power[4:-4] / smooth[4:-4]) == pytest.approx(1.0, abs=0.03)


def test_every_drawn_arma_process_is_stationary() -> None:
    rng = np.random.default_rng(3)
    for process in (Arma.draw((24.0, 168.0), rng) for _ in range(200)):
        assert np.abs(np.roots(process.ar)).max(initial=0) < 1
        assert np.abs(process.seasonal) < 1
        assert process.ar[0] == process.ma[0] == 1


def test_an_ornstein_uhlenbeck_process_is_stationary_with_an_exponential_autocovariance() -> None:
    drawn = ornstein_uhlenbeck(200, 12.0, np.random.default_rng(4), count=4000).T
    np.testing.assert_allclose(drawn.var(0), 1.0, atol=0.12)
    lags = np.arange(0, 40, 4)
    np.testing.assert_allclose(autocovariance(drawn, lags), np.exp(-lags / 12), atol=0.03)


@pytest.mark.parametrize("period", [24.0, 7.0, 52.1775])
def test_a_season_without_drift_repeats_and_has_variance_one(period: float) -> None:
    rng = np.random.default_rng(5)
    whole = round(period * 4000 / round(period)) if period == round(period) else 4007
    one = season(whole, period, 0.0, 100.0, rng)
    shifted = np.interp(np.arange(len(one)) + period, np.arange(len(one)), one)
    inside = slice(0, int(len(one) - period - 1))
    np.testing.assert_allclose(shifted[inside], one[inside], atol=1e-6 if period == round(period) else 0.15)
    many = np.stack([season(2 * round(period), period, 0.3, 100.0, rng) for _ in range(3000)])
    assert many.var() == pytest.approx(1.0, abs=0.05)


def test_the_usual_season_is_the_strongest_period_of_seasonal_series() -> None:
    rng, steps, strongest = np.random.default_rng(6), 24 * 40, []
    for _ in range(200):
        x = draw_seasonal(steps, (24.0, 168.0), rng)
        assert np.isfinite(x).all()
        power = np.abs(np.fft.rfft((x - x.mean()) * np.hanning(steps))) ** 2
        low = steps // 60  # beyond two and a half days is the level
        strongest.append(steps / (low + np.argmax(power[low:])))
    usual = np.abs(np.array(strongest) - 24) < 1
    assert usual.mean() > 0.5


def test_lorenz_is_where_its_attractor_is_and_parts_neighbours_at_the_known_rate() -> None:
    """|x| < 20, 0 < z < 50 and a largest Lyapunov exponent of 0.906 at ρ = 28 (Sprott, Chaos and Time-Series Analysis,
    2003); z = (ρ − 1) and x = ± √(8/3 (ρ − 1)) are fixed points."""
    flow = SYSTEMS[0]
    assert isinstance(flow, Flow)
    fixed = np.array([[np.sqrt(72.0)], [np.sqrt(72.0)], [27.0]])
    np.testing.assert_allclose(lorenz(fixed, np.array([28.0])), 0, atol=1e-12)
    members, rng = 60, np.random.default_rng(7)
    start = np.array([[1.0], [1.0], [25.0]]) + rng.normal(0, 1, (3, members))
    rho, dt = np.full(members, 28.0), np.full(members, 0.05)
    on = flow.run(start, rho, dt, 400)[:, -1]
    path = flow.run(on, rho, dt, 200)
    assert np.abs(path[0]).max() < 20.5
    assert path[2].min() > 0
    assert path[2].max() < 50
    near = flow.run(on + 1e-8 * rng.standard_normal(on.shape), rho, dt, 200)
    apart = np.log(np.linalg.norm(near - path, axis=0)).mean(1)
    rate = np.polyfit(0.05 * np.arange(40, 160), apart[40:160], 1)[0]
    assert rate == pytest.approx(0.906, abs=0.15)


def test_halving_the_step_reduces_the_error_sixteenfold() -> None:
    flow = SYSTEMS[1]
    assert isinstance(flow, Flow)
    start, c = np.array([[1.0], [-4.0], [0.1]]), np.array([5.7])
    exact = flow.run(start, c, np.array([0.02]), 100)[:, -1]
    errors = [np.abs(flow.run(start, c, np.array([h]), n)[:, -1] - exact).max() for h, n in ((1.0, 2), (0.5, 4))]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.4)


def test_the_logistic_map_has_the_invariant_density_and_lyapunov_exponent_of_its_closed_form() -> None:
    """Uncoupled at r = 4: the arcsine density of mean 1/2 and variance 1/8, and the exponent log 2."""
    rng = np.random.default_rng(8)
    path = LogisticRing.run(rng.uniform(0.1, 0.9, (3, 500)), np.full(500, 4.0), np.zeros(500), 200)[:, 50:]
    assert path.mean() == pytest.approx(0.5, abs=0.01)
    assert path.var() == pytest.approx(0.125, abs=0.005)
    assert np.log(np.abs(4 * (1 - 2 * path))).mean() == pytest.approx(np.log(2), abs=0.02)
    together = LogisticRing.run(np.full((3, 1), 0.3), np.array([3.9]), np.array([0.2]), 50)
    np.testing.assert_allclose(together, together[:1] * np.ones((3, 1, 1)), atol=1e-6)


def test_mackey_glass_decays_without_its_delayed_term_and_stays_on_its_attractor_with_it() -> None:
    """ẋ = 0.2 x / (1 + x¹⁰) − 0.1 x rests at 1; from the large constant past 8 the delayed term vanishes (8⁻⁹), and x
    decays as exp(−0.1 t) until the delay is over."""
    rest = MackeyGlass.run(np.ones(1), np.array([2.0]), np.array([4]), 50)
    np.testing.assert_allclose(rest, 1.0, atol=1e-12)
    decay = MackeyGlass.run(np.array([8.0]), np.array([20.0]), np.array([16]), 16)[0, :, 0]
    np.testing.assert_allclose(decay, 8 * np.exp(-0.1 * 20 / 16 * np.arange(1, 17)), rtol=1e-6)
    drawn = MackeyGlass((17.0, 17.0)).draw(100, [np.random.default_rng(i) for i in range(8)])
    assert 0.2 < drawn.min() < 0.6
    assert 1.2 < drawn.max() < 1.5


@pytest.mark.parametrize("system", SYSTEMS, ids=["lorenz", "roessler", "mackey_glass", "logistic"])
def test_a_chaotic_trajectory_is_bounded_and_does_not_depend_on_its_neighbours(system: Any) -> None:
    together = system.draw(100, [np.random.default_rng(i) for i in range(40)])
    assert np.isfinite(together).all()
    assert np.abs(together).max() < 200
    assert (together[0].std(0) > 1e-3).mean() > 0.9
    np.testing.assert_array_equal(system.draw(100, [np.random.default_rng(3)])[..., 0], together[..., 3])


@pytest.mark.parametrize("family", ["gaussian", "seasonal", "autoregressive", "chaotic"])
def test_series_are_standardised_and_depend_on_seed_and_number_alone(family: Any) -> None:
    options = corpus.Options.model_validate(SMALL)
    some = corpus.generate(options, family, 0, 6)
    assert some.shape == (6, 64, 3)
    assert some.dtype == np.float64
    np.testing.assert_allclose(some.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(some.var(1), 1, atol=1e-9)
    np.testing.assert_array_equal(corpus.generate(options, family, 3, 5), some[3:5])
    other = corpus.generate(options.model_copy(update={"seed": 6}), family, 0, 6)
    assert not np.allclose(other, some)


def test_coupled_variates_follow_the_first_one() -> None:
    """The largest squared correlation with the first variate, over lags 0 … 24, is the share that was drawn."""
    options = corpus.Options.model_validate({**SMALL, "steps": 2000, "coupling": 1.0, "families": {"gaussian": 1}})
    rng = np.random.default_rng(9)
    noise = rng.standard_normal((2000 + corpus.LONGEST_LAG, 3))
    x = corpus._coupled(noise, options, rng)
    lag = [max(range(25), key=lambda k: np.corrcoef(x[k:, v], x[:2000 - k, 0])[0, 1]) for v in (1, 2)]
    share = [np.corrcoef(x[k:, v], x[:2000 - k, 0])[0, 1] ** 2 for k, v in zip(lag, (1, 2))]
    again = np.random.default_rng(9)
    again.standard_normal((2000 + corpus.LONGEST_LAG, 3))
    again.random()
    drawn = [(int(again.integers(0, 25)), again.uniform(0.1, 0.9)) for _ in range(2)]
    assert lag == [k for k, _ in drawn]
    np.testing.assert_allclose(share, [s for _, s in drawn], atol=0.06)


def test_the_data_set_is_lazy_and_named_by_family() -> None:
    dataset = corpus.build(SMALL)
    assert dataset["value"].dims == ("series", "time", "variate")
    assert dataset["value"].shape == (20, 64, 3)
    assert dataset["value"].chunks is not None
    assert dataset["value"].chunks[0] == (4, 2, 4, 4, 4, 2)
    assert [str(n) for n in dataset["series"].values[[0, 5, 6, 19]]] == ["gaussian_0", "gaussian_5", "seasonal_0",
                                                                        "chaotic_1"]
    assert np.diff(dataset["time"].values)[0] == np.timedelta64(1, "h")
    part = dataset["value"][4:8].compute()
    xr.testing.assert_identical(part, dataset["value"].compute()[4:8])


def test_a_store_of_it_keeps_whole_series_together(tmp_path: Any) -> None:
    source = SourceSpec(name="synthetic_series", domain="series", builder="synthetic_series", options=SMALL,
                        split=GroupSplit(by="group", counts=Counts(train=14, validation=3, test=3), seed=0),
                        licence="CC0-1.0")
    store = build_store(source, tmp_path / "s.zarr")
    groups = [{b.group for b in getattr(store.meta.splits, part)} for part in ("train", "validation", "test")]
    assert list(map(len, groups)) == [14, 3, 3]
    assert len(set.union(*groups)) == 20
    np.testing.assert_allclose(store.read("value", 6), corpus.generate(
        corpus.Options.model_validate(SMALL), "seasonal", 0, 1)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("wrong", "key"), [
    ({"families": {"gaussian": 0}}, "families"), ({"families": {"brownian": 1}}, "families"), ({"steps": 3}, "steps"),
    ({"step": "month"}, "step"), ({"sereis": 3}, "sereis")])
def test_wrong_options_are_named(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        corpus.build({**SMALL, **wrong})
