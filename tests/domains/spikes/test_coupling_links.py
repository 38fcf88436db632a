"""Links by the hierarchical model: what is planted is found with sign and delay, what is shared is no link."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.spikes import coupling_links
from sciml.domains.spikes.coupling_links import find_links, population_rate
from sciml.domains.spikes.coupling_prior import DEGREES, SIZES, STEPS, LinkPrior, posterior
from sciml.errors import InputError

BIN_S, UNITS = 0.001, 10
LINKED = {(1, 0): (0.9, 3), (2, 0): (0.9, 1), (5, 0): (0.9, 5), (4, 3): (-2.5, 2), (6, 3): (-2.5, 4), (0, 3): (-2.5, 2)}
"""(unit, source): peak effect on the log-rate, delay in bins."""


def kernel(lags: int = 40) -> np.ndarray:
    since = np.arange(lags) + 0.5
    made = np.exp(-since / 10) - np.exp(-since / 2)
    return made / made.max()


def simulated(seconds: float = 40.0, rate_hz: float = 20.0, shared: float = 0.0, seed: int = 0,
              linked: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Poisson units: counts and the shared log-rate ``(time, unit)``, a signal of 20 ms with loadings of both signs."""
    rng, steps, response = np.random.default_rng(seed), round(seconds / BIN_S), kernel()
    signal = np.convolve(rng.standard_normal(steps), np.exp(-np.arange(100) / 20), "same")
    common = shared * np.outer(signal / signal.std(), np.where(np.arange(UNITS) % 2, 1.0, -1.0))
    level, counts = common + np.log(rate_hz * BIN_S), np.zeros((steps + 60, UNITS), np.float32)
    ahead = np.zeros((steps + 60, UNITS))
    draws = rng.random((steps, UNITS))
    targets = {s: [(u, *LINKED[u, s]) for u, other in LINKED if other == s] for s in (0, 3)} if linked else {}
    for t in range(steps):
        counts[t] = draws[t] < np.exp(level[t] + ahead[t])
        for source, reached in targets.items():
            if counts[t, source]:
                for unit, size, delay in reached:
                    ahead[t + delay:t + delay + 40, unit] += size * response
    return counts[:steps], common


@pytest.fixture(scope="module")
def network() -> np.ndarray:
    return simulated()[0]


def test_planted_links_are_found_with_sign_and_delay(network: np.ndarray) -> None:
    found = find_links(network, BIN_S)
    truth = np.zeros((UNITS, UNITS), bool)
    for pair, (size, delay) in LINKED.items():
        truth[pair] = True
        assert np.sign(found.effect[pair]) == np.sign(size)
        assert found.delay[pair] == pytest.approx(delay * BIN_S, abs=1.01 * BIN_S)
    off = ~np.eye(UNITS, dtype=bool)
    assert found.probability[truth].min() > 0.9
    assert found.probability[off & ~truth].max() < 0.8
    assert found.inhibitory[3] > 0.9 > 0.1 > found.inhibitory[0]
    for matrix in (found.probability, found.effect, found.delay):
        assert np.isnan(matrix.diagonal()).all()
    assert found.kernel.max() == 1
    assert found.kernel[:15].sum() > 2 * np.abs(found.kernel[20:35]).sum()


def test_shared_input_that_is_given_is_no_link() -> None:
    counts, shared = simulated(20.0, shared=0.7, linked=False)
    alone, told = find_links(counts, BIN_S), find_links(counts, BIN_S, shared)
    off = ~np.eye(UNITS, dtype=bool)
    assert alone.probability[off].sum() > 2 * told.probability[off].sum()
    assert (alone.probability[off] > 0.9).sum() > 3
    assert not (told.probability[off] > 0.9).any()


def test_the_population_tells_of_a_signal_that_all_follow() -> None:
    rng = np.random.default_rng(0)
    signal = np.repeat(rng.standard_normal(400), 50)
    loading = np.where(np.arange(40) < 30, 0.8, 0.0)
    counts = rng.poisson(0.02 * np.exp(np.outer(signal, loading))).astype(np.float32)
    found = population_rate(counts, BIN_S)
    assert np.corrcoef(found[:, 0], signal)[0, 1] > 0.5
    assert found[:, :30].std(0).min() > 2 * found[:, 30:].std(0).max()
    np.testing.assert_array_equal(population_rate(counts.reshape(2, -1, 40), BIN_S)[1],
                                  population_rate(counts[10_000:], BIN_S))


def test_evidence_is_a_ratio_of_likelihoods() -> None:
    """Written out, for a source whose spikes are further apart than its effects last."""
    rng, steps, lags = np.random.default_rng(1), 3000, 20
    source, rate = np.zeros(steps), 0.05 * np.exp(0.3 * rng.standard_normal(steps))
    source[rng.permutation(steps // 50 - 1) * 50 + 10] = 1
    counts = np.stack([rng.poisson(rate), source], 1).astype(np.float32)
    trains = coupling_links._Trains.of(counts.astype(np.float64), lags)
    expected = np.array([[[(rate[lag:] * source[:-lag]).sum()]] for lag in range(1, lags + 1)], np.float32)
    seen = trains.seen[:, :1, 1:]
    kernels = LinkPrior.start(BIN_S, lags, 2, (3,)).kernels()
    found = coupling_links._evidence(seen, expected, kernels)
    for which, step in ((0, 3), (1, 15), (2, 8)):
        effect = STEPS[step] * np.convolve(source, np.r_[0, kernels[which]])[:steps]
        likelihood = (counts[:, 0] * effect - rate * np.expm1(effect)).sum()
        assert found[which, step, 0, 0] == pytest.approx(likelihood, abs=1e-3)


def test_pairs_of_a_source_share_its_sign_and_its_degree() -> None:
    prior = LinkPrior.start(BIN_S, 40, 3, (3, 5))
    weak = np.where(STEPS > 0, 2.0, -2.0)
    evidence = np.zeros((5, len(STEPS), 30, 3))
    evidence[:, :, 0] = weak[:, None]
    evidence[:3, :len(SIZES), 1:15, 1] = 12.0
    evidence[:3, len(SIZES):, 1:15, 2] = 12.0
    found = posterior(evidence, prior, np.ones((30, 3), bool))
    lone, hub, inhibiting = found.probability[0]
    assert hub > 2 * lone > 2 * inhibiting
    assert found.sign[0, 1] > 0.99 > 0.01 > found.sign[0, 2]
    assert DEGREES @ found.degree[:, 1] > 2 * (DEGREES @ found.degree[:, 0])
    total = found.probability + found.late.sum((0, 1))
    assert ((total >= 0) & (total <= 1 + 1e-9)).all()
    np.testing.assert_allclose(found.shares.sum(), found.probability.sum())


@settings(max_examples=20, deadline=None)
@given(size=st.floats(-900, 900), seed=st.integers(0, 99))
def test_posteriors_are_finite_whatever_the_evidence(size: float, seed: int) -> None:
    prior = LinkPrior.start(BIN_S, 40, 3, (3, 5))
    evidence = size * np.random.default_rng(seed).random((5, len(STEPS), 4, 2))
    for part in posterior(evidence, prior, np.ones((4, 2), bool)):
        assert np.isfinite(part).all()
        assert part.min() >= 0


def test_an_effect_through_others_is_later_and_broader() -> None:
    prior = LinkPrior.start(BIN_S, 40, 3, (3, 7))
    kernels = prior.kernels()
    assert kernels.shape == (5, 40)
    np.testing.assert_allclose(kernels[2, 2:], kernels[0, :-2])
    assert (kernels[2, :2] == 0).all()
    assert kernels[3].argmax() > kernels[2].argmax()
    assert (kernels[3] > 0.5).sum() > (kernels[0] > 0.5).sum()


def test_recordings_with_gaps_and_silent_units_stand(network: np.ndarray) -> None:
    short = network[:10_000, :5].copy()
    short[:, 2] = 0
    short[4000:5000, 1] = np.nan
    both = find_links(short.reshape(2, -1, 5), BIN_S)
    apart = find_links(np.concatenate([short[:5000], np.full((100, 5), np.nan), short[5000:]]), BIN_S)
    np.testing.assert_allclose(both.probability, apart.probability, atol=0.01)
    off = ~np.eye(5, dtype=bool)
    for found in (both.probability, both.effect, both.delay):
        assert np.isfinite(found[off]).all()
    assert both.probability[[0, 1, 3, 4], 2].max() < 0.3


def test_mistakes_are_named(network: np.ndarray) -> None:
    with pytest.raises(InputError, match="narrower bins"):
        find_links(network, 0.005)
    with pytest.raises(InputError, match="time, unit"):
        find_links(np.zeros(5), BIN_S)
