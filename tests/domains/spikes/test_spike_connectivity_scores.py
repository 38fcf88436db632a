"""Scores of recovered connectivity: scikit-learn's curves, what a rule detects, and what a random guess gets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import metrics
from sciml.domains.spikes import connectivity_scores as c
from sciml.errors import InputError

RNG = np.random.default_rng


def network(seed: int, units: int = 20, density: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Signed weights and delays of 1 to 5 ms, NaN where there is no link."""
    rng = RNG(seed)
    linked = (rng.random((units, units)) < density) & ~np.eye(units, dtype=bool)
    weight = np.where(linked, rng.choice([-1.0, 1.0], (units, units)) * rng.uniform(0.5, 2, (units, units)), 0.0)
    return weight, np.where(linked, rng.integers(1, 6, (units, units)) * 1e-3, np.nan)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 10**9])
def test_areas_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    """With and without ties."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn isn't installed")
    linked = RNG(seed).random(200) < 0.2
    score = RNG(seed + 100).integers(0, levels, 200) + linked * levels / 4
    assert metrics.auroc(score, linked) == pytest.approx(sklearn.roc_auc_score(linked, score))
    assert metrics.average_precision(score, linked) == pytest.approx(sklearn.average_precision_score(linked, score))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scores_depend_on_the_ranking_alone(seed: int) -> None:
    weight, _ = network(seed)
    score = RNG(seed + 1).normal(size=weight.shape) + (weight != 0)
    order = RNG(seed).permutation(len(score))
    own = c.score_connectivity(c.Estimate(score), weight, dt=1e-3)
    for other, truth in ((np.exp(score), weight), (score[np.ix_(order, order)], weight[np.ix_(order, order)])):
        again = c.score_connectivity(c.Estimate(other), truth, dt=1e-3)
        assert (again.auroc, again.auprc) == (pytest.approx(own.auroc), pytest.approx(own.auprc))
        assert again.direction_accuracy == own.direction_accuracy
        assert again.by_truth.num_detected == own.by_truth.num_detected
    linked = (weight != 0)[~np.eye(20, dtype=bool)]
    values = score[~np.eye(20, dtype=bool)]
    assert metrics.auroc(-values, linked) == pytest.approx(1 - metrics.auroc(values, linked))
    assert metrics.auroc(np.zeros(len(values)), linked) == pytest.approx(0.5)
    assert metrics.average_precision(np.zeros(len(values)), linked) == pytest.approx(own.density)


def test_the_truth_scores_perfectly_and_self_connections_do_not_count() -> None:
    weight, delay = network(0)
    score = np.abs(weight) + 100 * np.eye(20)
    p = np.where(weight != 0, 1e-6, 0.9)
    np.fill_diagonal(p, 0.0)
    scores = c.score_connectivity(c.Estimate(score, 3 * weight, delay, p), weight, delay, dt=1e-3)
    assert (scores.auroc, scores.auprc, scores.direction_accuracy, scores.num_pairs) == (1, pytest.approx(1), 1, 380)
    assert scores.density == np.count_nonzero(weight) / 380
    perfect = c.Detected(int(np.count_nonzero(weight)), 1, 1, 1, 1, 0)
    assert scores.by_p_value == perfect
    truth = scores.by_truth
    assert (truth.recall, truth.sign_accuracy, truth.delay_rms_ms) == (1, 1, 0)
    assert truth.precision >= 0.9


def test_unobserved_units_are_absent() -> None:
    weight, delay = network(1)
    score = RNG(0).normal(size=weight.shape) + (weight != 0)
    p = RNG(1).random(weight.shape) ** 4
    hidden = weight.copy()
    hidden[15:], hidden[:, 15:] = np.nan, np.nan
    whole = c.score_connectivity(c.Estimate(score, score, delay, p), hidden, delay, dt=1e-3)
    part = c.score_connectivity(c.Estimate(score[:15, :15], score[:15, :15], delay[:15, :15], p[:15, :15]),
                                weight[:15, :15], delay[:15, :15], dt=1e-3)
    assert whole == part
    score[15:], score[:, 15:] = np.nan, np.nan
    assert c.score_connectivity(c.Estimate(score, score, delay, p), weight, delay, dt=1e-3) == part


def test_benjamini_hochberg_keeps_its_rate() -> None:
    false, found = [], []
    for seed in range(40):
        weight, _ = network(seed, 30)
        p = RNG([seed, 1]).random((30, 30)) * np.where(weight != 0, 2e-3, 1.0)
        chosen = c.detected_by_p_value(p)
        assert not chosen[np.eye(30, dtype=bool)].any()
        false.append((chosen & (weight == 0)).sum() / max(chosen.sum(), 1))
        found.append((chosen & (weight != 0)).sum() / np.count_nonzero(weight))
    assert 0.05 < np.mean(false) < 0.11
    assert np.mean(found) > 0.95
    p = np.array([[0.0, 0.04, np.nan], [0.01, 0.0, 0.5], [0.07, 0.9, 0.0]])
    expected = np.array([[False, True, False], [True, False, False], [False, False, False]])
    np.testing.assert_array_equal(c.detected_by_p_value(p), expected)
    from scipy.stats import false_discovery_control
    many = RNG(0).random((30, 30)) ** 3
    counted = ~np.eye(30, dtype=bool)
    np.testing.assert_array_equal(c.detected_by_p_value(many)[counted], false_discovery_control(many[counted]) <= 0.1)


def test_posteriors_that_are_right_keep_the_rate() -> None:
    p = np.array([[0.0, 0.98, np.nan], [0.95, 0.0, 0.5], [0.8, 0.01, 0.0]])
    expected = np.array([[False, True, False], [True, False, False], [True, False, False]])
    np.testing.assert_array_equal(c.detected_by_probability(p), expected)
    np.testing.assert_array_equal(c.detected_by_probability(np.full((3, 3), 0.5)), np.zeros((3, 3), bool))
    assert c.detected_by_probability(np.full((3, 3), 0.95)).sum() == 6
    false = []
    for seed in range(40):
        rng = RNG(seed)
        chance = rng.beta(0.2, 1.0, (40, 40))
        true = rng.random((40, 40)) < chance
        chosen = c.detected_by_probability(chance)
        false.append((chosen & ~true).sum() / chosen.sum())
    assert 0.08 < np.mean(false) < 0.12
    weight, _ = network(0)
    found = c.score_connectivity(c.Estimate(np.abs(weight), probability=(weight != 0) * 0.95), weight, dt=1e-3)
    assert found.by_p_value is None
    assert found.by_probability is not None
    assert (found.by_probability.num_detected, found.by_probability.precision) == (np.count_nonzero(weight), 1.0)


def test_the_best_threshold_is_the_most_that_the_ranking_gives() -> None:
    weight, _ = network(2)
    score = RNG(3).normal(size=weight.shape) + 2.5 * (weight != 0)
    chosen = c.detected_by_truth(score, weight)
    counted = ~np.eye(20, dtype=bool)
    sizes = [(counted & (score >= at)).sum() for at in score[counted]
             if (weight[counted & (score >= at)] == 0).mean() <= 0.1]
    assert chosen.sum() == max(sizes) > 0
    assert (weight[chosen] == 0).mean() <= 0.1
    assert not c.detected_by_truth(-np.abs(weight), weight).any()
    tied = c.detected_by_truth(np.where(weight != 0, np.inf, 0.0), weight)
    np.testing.assert_array_equal(tied, weight != 0)


def test_directions_signs_and_delays_by_hand() -> None:
    weight = np.array([[9.0, 1.0, 0.0], [0.0, 9.0, -2.0], [3.0, 4.0, 9.0]])
    score = np.array([[0.0, 0.7, 0.6], [0.2, 0.0, 0.9], [0.6, 0.1, 0.0]])
    assert c.direction_accuracy(score, weight) == 0.75
    assert c.direction_accuracy(score + score.T, weight) == 0.5
    effect = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 5.0, 0.0]])
    everything = np.ones((3, 3), bool)
    assert c.sign_accuracy(effect, weight, everything) == 0.5
    assert c.sign_accuracy(effect, weight, score > 0.65) == 0.5
    delay, found = np.where(weight != 0, 2e-3, np.nan), np.full((3, 3), 3e-3)
    found[1, 2] = 6e-3
    np.testing.assert_allclose(np.sort(c.delay_errors(found, delay, everything)), [1e-3, 1e-3, 1e-3, 4e-3])
    p = np.full((3, 3), 1e-9)
    detected = c.score_connectivity(c.Estimate(score, effect, found, p), weight, delay, dt=1e-3).by_p_value
    assert detected == c.Detected(6, 4 / 6, 1.0, 0.5, 0.75, detected.delay_rms_ms if detected else 0.0)
    assert detected.delay_rms_ms == pytest.approx(np.sqrt(19 / 4))


def test_without_links_or_pairs_or_detections_there_is_no_figure() -> None:
    none = c.score_connectivity(c.Estimate(np.ones((4, 4)), p_value=np.ones((4, 4))), np.zeros((4, 4)), dt=1e-3)
    assert np.isnan([none.auroc, none.auprc, none.direction_accuracy]).all()
    assert none.by_p_value is not None
    assert (none.density, none.by_truth.num_detected, none.by_p_value.num_detected) == (0, 0, 0)
    assert np.isnan([none.by_truth.precision, none.by_truth.recall, none.by_truth.sign_accuracy]).all()
    for units in (0, 1):
        alone = c.score_connectivity(c.Estimate(np.ones((units, units))), np.ones((units, units)), dt=1e-3)
        assert (alone.num_pairs, alone.by_p_value, alone.by_truth.num_detected) == (0, None, 0)
        assert np.isnan([alone.density, alone.auroc, alone.auprc]).all()
    assert np.isnan(metrics.auroc([1.0, 2.0], [True, True]))
    for score, weight in ((np.ones((2, 3)), np.ones((2, 3))), (np.ones((2, 2)), np.ones((3, 3)))):
        with pytest.raises(InputError, match="square"):
            c.score_connectivity(c.Estimate(score), weight, dt=1e-3)
