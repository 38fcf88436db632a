"""Distances between surfaces: laws of distances and of spacing, empty masks, a shifted block, MONAI's figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.volumes.surface import hausdorff, surface, surface_dice, surface_distances

MASK = st.tuples(st.integers(0, 1000), st.floats(0.05, 0.9)).map(
    lambda drawn: np.random.default_rng(drawn[0]).random((4, 5, 3)) < drawn[1])
SPACING = st.tuples(*[st.floats(0.2, 5.0)] * 3)


def block(*corner: int) -> np.ndarray:
    mask = np.zeros((12, 10, 9), bool)
    mask[tuple(slice(a, a + 4) for a in corner)] = True
    return mask


@settings(max_examples=30, deadline=None)
@given(MASK, SPACING)
def test_a_mask_is_at_distance_zero_of_itself(mask: np.ndarray, spacing: tuple[float, ...]) -> None:
    assert hausdorff(mask, mask, spacing) == 0
    assert surface_dice(mask, mask, spacing, 0.0) == 1


@settings(max_examples=30, deadline=None)
@given(MASK, MASK, SPACING, st.floats(0.1, 10.0))
def test_spacing_scales_distances_and_tolerances(p: np.ndarray, t: np.ndarray, spacing: tuple[float, ...],
                                                 factor: float) -> None:
    p[0, 0, 0] = t[-1, -1, -1] = True
    larger = [factor * each for each in spacing]
    assert hausdorff(p, t, larger) == pytest.approx(factor * hausdorff(p, t, spacing))
    assert surface_dice(p, t, larger, 1.0001 * factor) == pytest.approx(surface_dice(p, t, spacing, 1.0001))
    assert hausdorff(p, t, spacing) == hausdorff(t, p, spacing) <= hausdorff(p, t, spacing, 100)


@settings(max_examples=30, deadline=None)
@given(MASK, MASK, SPACING, st.permutations(range(3)))
def test_the_order_of_the_axes_does_not_matter(p: np.ndarray, t: np.ndarray, spacing: tuple[float, ...],
                                               order: list[int]) -> None:
    turned = hausdorff(p.transpose(order), t.transpose(order), [spacing[i] for i in order])
    assert turned == pytest.approx(hausdorff(p, t, spacing))


def test_a_block_moved_along_an_axis_lies_as_far_away_as_it_was_moved() -> None:
    for axis, mm in enumerate((0.5, 1.0, 3.0)):
        moved = np.roll(block(3, 3, 2), 2, axis)
        assert hausdorff(moved, block(3, 3, 2), (0.5, 1.0, 3.0), 100) == pytest.approx(2 * mm)
        to, back = surface_distances(moved, block(3, 3, 2), (0.5, 1.0, 3.0))
        assert len(to) == len(back) == 4**3 - 2**3
    assert surface_dice(block(3, 3, 3), block(3, 3, 4), (1, 1, 1), 1.0) == 1
    assert surface_dice(block(3, 3, 3), block(3, 3, 4), (1, 1, 1.1), 1.0) < 1


def test_empty_masks() -> None:
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert hausdorff(empty, empty, (1, 1)) == 0
    assert surface_dice(empty, empty, (1, 1), 1.0) == 1
    assert hausdorff(empty, full, (1, 1)) == hausdorff(full, empty, (1, 1)) == float("inf")
    assert surface_dice(empty, full, (1, 1), 1e9) == surface_dice(full, empty, (1, 1), 1e9) == 0


def test_the_end_of_the_array_is_the_end_of_a_structure() -> None:
    assert surface(np.ones((3, 3, 3), bool)).sum() == 26


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="don't fit"):
        hausdorff(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), spacing)
    with pytest.raises(TypeError, match="boolean"):
        hausdorff([1], [1], (1,))


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
def test_equal_to_monai() -> None:
    from scipy.ndimage import gaussian_filter

    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics", reason="MONAI is absent")
    rng = np.random.default_rng(0)
    for _ in range(20):
        spacing = [float(x) for x in rng.uniform(0.4, 3.0, 3)]
        p, t = (gaussian_filter(rng.normal(size=(14, 11, 9)), 1.5) > 0 for _ in range(2))
        both = torch.tensor(p)[None, None], torch.tensor(t)[None, None]
        for percentile in (95, 100):
            theirs = metrics.compute_hausdorff_distance(*both, include_background=True, percentile=percentile,
                                                        spacing=spacing)
            assert hausdorff(p, t, spacing, percentile) == pytest.approx(float(theirs), rel=1e-5)
        theirs = metrics.compute_surface_dice(*both, [1.3], include_background=True, spacing=spacing)
        assert surface_dice(p, t, spacing, 1.3) == pytest.approx(float(theirs), rel=1e-5)
