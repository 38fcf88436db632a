"""Intervals: exact ranks, coverage that is promised and kept when the data change, truths that arrive late."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.series.conformal import Adaptive, Split, absolute, follow, outside, widened

HORIZON, COVERAGE = 6, 0.9


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def autoregression(length: int, shift: int | None = None, seed: int = 0) -> np.ndarray:
    """AR(1) with coefficient 0.8; from `shift` on with noise of three times the size."""
    noise = rng(seed).normal(size=length)
    if shift is not None:
        noise[shift:] *= 3
    x = np.zeros(length)
    for t in range(1, length):
        x[t] = 0.8 * x[t - 1] + noise[t]
    return x


def errors(x: np.ndarray, stride: int = 1) -> np.ndarray:
    """``(T, H)`` |truth − forecast| of the right autoregression at origins `stride` apart."""
    origins = np.arange(0, len(x) - HORIZON, stride)
    steps = np.arange(1, HORIZON + 1)
    return absolute(0.8**steps * x[origins, None], x[origins[:, None] + steps])


def test_absolute_and_relative_scores_and_their_intervals() -> None:
    np.testing.assert_allclose(absolute([1.0, 2.0], [3.0, 1.0], [2.0, 0.5]), [1.0, 2.0])
    low, high = np.array([0.0, 0.0, 0.0]), np.array([2.0, 2.0, 2.0])
    truth = np.array([-1.0, 1.0, 4.0])
    score = outside(low, high, truth)
    np.testing.assert_allclose(score, [0.5, -0.5, 1.0])
    bottom, top = widened(low, high, score)
    np.testing.assert_allclose([bottom[0], top[2]], [truth[0], truth[2]])
    bottom, top = widened(low, high, -3.0)
    assert (bottom == top).all()
    assert np.isfinite(outside(1.0, 1.0, 2.0))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), coverage=st.floats(0.05, 0.99), seed=st.integers(0, 99))
def test_the_margin_is_the_rank_that_theory_asks_for(n: int, coverage: float, seed: int) -> None:
    scores = rng(seed).permutation(n).astype(float)
    rank = int(np.ceil(round((n + 1) * coverage, 9)))
    assert Split.of(scores[:, None]).margin(coverage)[0] == (rank - 1 if rank <= n else np.inf)
    missing = np.concatenate([scores, [np.nan] * 3])[:, None]
    np.testing.assert_array_equal(Split.of(missing).margin(coverage), Split.of(scores[:, None]).margin(coverage))
    seen = Adaptive.of(scores[:, None], coverage, window=50, step_sizes=(0.0,))
    assert seen.margin()[0] == (rank - 1 if rank <= n else n - 1)


def test_split_covers_exchangeable_truths_as_promised() -> None:
    seen, next_ones = rng(1).gamma(1.0, size=(19, 4000)), rng(2).gamma(1.0, size=4000)
    assert (next_ones <= Split.of(seen).margin(COVERAGE)).mean() == pytest.approx(18 / 20, abs=0.015)


@pytest.mark.parametrize("stride", [1, 4])
def test_coverage_comes_back_after_a_shift_and_split_does_not(stride: int) -> None:
    before, after = autoregression(2000), autoregression(5000, shift=1500, seed=1)
    calibration, scores = errors(before, stride), errors(after, stride)
    fixed = Split.of(calibration).margin(COVERAGE)
    margins, _ = follow(Adaptive.of(calibration, COVERAGE), scores, stride=stride)
    shifted = slice(1500 // stride, None)
    assert (scores[:1500 // stride - HORIZON] <= fixed).mean() == pytest.approx(COVERAGE, abs=0.03)
    assert (scores[shifted] <= fixed).mean() < 0.6
    covered = (scores[shifted] <= margins[shifted]).mean(0)
    np.testing.assert_allclose(covered, COVERAGE, atol=0.03)
    late = slice(3500 // stride, None)
    assert np.median(margins[late] / fixed) == pytest.approx(3.0, rel=0.2)


def test_one_step_size_is_the_plain_rule() -> None:
    scores, gamma = np.abs(rng(2).normal(size=(200, 1))), 0.05
    method, alpha = Adaptive.of(scores[:30], COVERAGE, window=30, step_sizes=(gamma,)), 0.1
    window = list(scores[:30, 0])
    for score in scores[30:, 0]:
        rank = int(np.ceil(round(31 * (1 - alpha), 9)))
        limit = np.inf if rank > 30 else sorted(window)[max(rank, 1) - 1] if rank > 0 else -np.inf
        alpha += gamma * (0.1 - (score > limit))
        method = method.learn([score])
        assert method.alphas[0, 0] == pytest.approx(alpha)
        window = [*window[1:], score]
        np.testing.assert_allclose(np.sort(method.scores[0]), np.sort(window), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(stride=st.integers(1, 7), moved=st.integers(0, 39), step=st.integers(1, HORIZON))
def test_no_margin_knows_a_truth_before_its_time(stride: int, moved: int, step: int) -> None:
    scores = np.abs(rng(3).normal(size=(40, HORIZON)))
    method = Adaptive.of(scores[:10], COVERAGE, window=20)
    plain, _ = follow(method, scores, stride=stride)
    known, rest, learnt = moved + -(-step // stride), np.arange(HORIZON) != step - 1, []
    for value in (0.0, 100.0):  # inside every interval, and outside all of them
        other = scores.copy()
        other[moved, step - 1] = value
        changed, _ = follow(method, other, stride=stride)
        np.testing.assert_array_equal(changed[:known], plain[:known])
        np.testing.assert_array_equal(changed[:, rest], plain[:, rest])
        learnt.append(follow(method, other[:known + 1], stride=stride)[1].alphas[..., step - 1])
    if known < 40:
        assert (learnt[0] != learnt[1]).all()


def test_what_is_not_known_teaches_nothing() -> None:
    _, method = follow(Adaptive.of(np.zeros((0, 2, 3)), COVERAGE, window=40), np.abs(rng(4).normal(size=(50, 2, 3))))
    score = np.full((2, 3), 9.0)
    score[0] = np.nan
    later = method.learn(score)
    for name in ("scores", "oldest"):
        np.testing.assert_array_equal(getattr(later, name)[0], getattr(method, name)[0])
        assert (getattr(later, name)[1] != getattr(method, name)[1]).any()
    for name in ("alphas", "weights"):
        np.testing.assert_array_equal(getattr(later, name)[:, 0], getattr(method, name)[:, 0])
        assert (getattr(later, name)[:, 1] != getattr(method, name)[:, 1]).any()
    np.testing.assert_allclose(later.weights.sum(0), 1.0)
    untaught = Adaptive.of(np.zeros((0, 2)), COVERAGE)
    assert np.isinf(untaught.margin()).all()
    assert untaught.learn([1.0, np.nan]).margin().tolist() == [1.0, np.inf]


def test_state_comes_back_and_goes_on_the_same() -> None:
    scores = np.abs(rng(5).normal(size=(90, HORIZON)))
    _, method = follow(Adaptive.of(scores[:30], COVERAGE, window=25), scores[30:60])
    config, arrays = method.state()
    again = Adaptive.restore(json.loads(json.dumps(config)), arrays)
    np.testing.assert_array_equal(follow(again, scores[60:])[0], follow(method, scores[60:])[0])
    split = Split.of(scores)
    kept = Split.restore(*split.state())
    np.testing.assert_array_equal(kept.margin(0.5), split.margin(0.5))


def test_truths_that_come_late_are_held_against_what_was_promised_then() -> None:
    """Scores that move slowly: when they are known, the next forecast already meets others."""
    noise, slow, delay, start = rng(8).normal(size=4000), np.zeros(4000), 40, 1000
    for t in range(1, len(slow)):
        slow[t] = 0.98 * slow[t - 1] + 0.2 * noise[t]
    late = np.full((len(slow), delay), np.nan)
    late[:, -1] = np.exp(slow)
    margins, _ = follow(Adaptive.of(late[:start], COVERAGE), late[start:])
    covered = (late[start:, -1] <= margins[:, -1]).mean()
    method, seen = Adaptive.of(late[:start - delay, -1:], COVERAGE), []
    for t in range(start, len(slow)):
        method = method.learn(late[t - delay, -1:])  # as if it had come at once
        seen.append(late[t, -1] <= method.margin()[0])
    assert covered == pytest.approx(COVERAGE, abs=0.05)
    assert np.mean(seen) < covered - 0.01
