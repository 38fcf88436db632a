"""Overlap of masks: laws, empty masks, and the same figures as MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.volumes.overlap import dice, intersection_over_union, masks, volume_similarity

SCORES = (dice, intersection_over_union, volume_similarity)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 1000), st.floats(0, 1))
def test_scores_are_shares_that_agree_with_one_another(shape: list[int], seed: int, share: float) -> None:
    p, t = np.random.default_rng(seed).random((2, *shape)) < share
    for score in SCORES:
        assert score(p, p) == 1
        assert 0 <= score(p, t) <= 1
        assert score(p, t) == score(t, p)
    d, iou = float(dice(p, t)), float(intersection_over_union(p, t))
    assert iou == pytest.approx(d / (2 - d))
    assert volume_similarity(p, t) >= d - 1e-12


@pytest.mark.parametrize("score", SCORES)
def test_two_empty_masks_agree_and_one_alone_does_not(score: object) -> None:
    empty, full = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    assert score(empty, empty) == 1  # type: ignore[operator]
    assert score(empty, full) == score(full, empty) == 0  # type: ignore[operator]


def test_structures_and_regions_of_a_label_map_are_kept_apart() -> None:
    truth = np.array([[0, 1, 1, 2], [0, 1, np.nan, 2]])
    prediction = np.array([[0, 1, 2, 2], [0, 0, 2, 2]])
    found = dice(masks(prediction, [1, 2, (1, 2)]), masks(truth, [1, 2, (1, 2)]), keep=1)
    np.testing.assert_allclose(found, [2 * 1 / (1 + 3), 2 * 2 / (4 + 2), 2 * 4 / (5 + 5)])


def test_what_are_no_masks_of_one_shape_is_refused() -> None:
    with pytest.raises(TypeError, match="boolean"):
        dice([0, 1], [1, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        dice([True], [True, False])


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
def test_equal_to_monai() -> None:
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics", reason="MONAI is absent")
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, t = (rng.random((1, 3, 6, 7, 5)) < rng.uniform(0.1, 0.6) for _ in range(2))
        theirs = metrics.compute_dice(torch.tensor(p), torch.tensor(t)).numpy()[0]
        np.testing.assert_allclose(dice(p[0], t[0], keep=1), theirs, rtol=1e-6)
        theirs = metrics.compute_iou(torch.tensor(p), torch.tensor(t)).numpy()[0]
        np.testing.assert_allclose(intersection_over_union(p[0], t[0], keep=1), theirs, rtol=1e-6)
