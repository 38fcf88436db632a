"""Augmentation: a label goes with its image, the same draw gives the same patch, what is unknown stays unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.volumes.augment import AugmentConfig, changed, renumbered, smooth, thickened
from sciml.errors import InputError

STILL = {"degrees": 0.0, "scale": 0.0, "displacement_mm": 0.0, "strength": 0.0, "thick": 0.0}
MOVED = {"degrees": 15.0, "scale": 0.1, "displacement_mm": 2.0, "spatial": 1.0, "strength": 0.0, "thick": 0.0}


def volume(shape: tuple[int, int, int] = (18, 22, 16), seed: int = 0) -> dict[str, np.ndarray]:
    """Two balls of numbers 10 and 20 on noise of 0.1, labelled 1 and 2."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    label = np.zeros(shape, np.float32)
    label[(i - 8) ** 2 + (j - 7) ** 2 + (k - 8) ** 2 < 16] = 1
    label[(i - 9) ** 2 + (j - 15) ** 2 + (k - 7) ** 2 < 12] = 2
    return {"mri": (10 * label + 0.1 * rng.standard_normal(shape)).astype(np.float32), "label": label}


def made(options: dict[str, Any], seed: int = 0, window: tuple[int, int, int] = (18, 22, 16),
         affine: np.ndarray | None = None, arrays: dict[str, np.ndarray] | None = None,
         ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return changed(volume() if arrays is None else arrays, np.eye(4) if affine is None else affine, window,
                   np.random.default_rng(seed), options)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1.3, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_a_blob_moves_with_its_label(seed: int, spacing: tuple[float, float, float]) -> None:
    found, _ = made(MOVED, seed, affine=np.diag([*spacing, 1.0]))
    rounded = np.clip(np.rint(found["mri"] / 10), 0, 2)
    known = np.isfinite(found["label"]) & np.isfinite(found["mri"])
    assert known.mean() > 0.3
    for value in (1, 2):
        ours, theirs = (found["label"] == value)[known], (rounded == value)[known]
        assert ours.sum() > 20
        # a rounded image has rims of the smaller number around the larger one, half a voxel wide
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.8
    assert not np.array_equal(found["label"], volume()["label"])


def test_with_everything_off_the_window_is_the_volume() -> None:
    found, affine = made(STILL)
    np.testing.assert_allclose(found["mri"], volume()["mri"], atol=1e-3)
    np.testing.assert_array_equal(found["label"], volume()["label"])
    np.testing.assert_array_equal(affine, np.eye(4))


def test_mirrors_are_exact_and_along_the_named_axes_of_the_body() -> None:
    affine = np.array([[0, 0, -1.0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # x lies along k
    seen = set()
    for seed in range(12):
        found, _ = made({**STILL, "mirrors": ["x"]}, seed, affine=affine)
        flipped = bool((found["label"] != volume()["label"]).any())
        truth = {name: array[:, :, ::-1] if flipped else array for name, array in volume().items()}
        np.testing.assert_array_equal(found["label"], truth["label"])
        np.testing.assert_allclose(found["mri"], truth["mri"], atol=1e-3)
        seen.add(flipped)
    assert seen == {False, True}


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), window=st.tuples(*[st.integers(9, 26)] * 3))
def test_the_same_seed_gives_the_same_patch_of_the_windows_size(seed: int, window: tuple[int, int, int]) -> None:
    one, _ = made({"mirrors": ["x", "y"]}, seed, window)
    two, _ = made({"mirrors": ["x", "y"]}, seed, window)
    for name in one:
        assert one[name].shape == window
        assert one[name].dtype == np.float32
        np.testing.assert_array_equal(one[name], two[name])
    assert set(np.unique(one["label"][np.isfinite(one["label"])])) <= {0.0, 1.0, 2.0}


def test_another_seed_gives_another_patch() -> None:
    one, two = made({}, 0)[0], made({}, 1)[0]
    assert not np.array_equal(one["mri"], two["mri"], equal_nan=True)


def test_what_lies_beyond_the_volume_is_unknown_in_image_and_label() -> None:
    found, affine = made(STILL, window=(24, 22, 16))
    assert np.isnan(found["label"]).sum() == np.isnan(found["mri"]).sum() == 6 * 22 * 16
    np.testing.assert_array_equal(affine[:3, 3], [-3, 0, 0])
    assert (found["label"] == 1).sum() == pytest.approx((volume()["label"] == 1).sum(), abs=30)


def test_unknown_voxels_do_not_spread_and_an_unlabelled_volume_stays_so() -> None:
    arrays = volume()
    arrays["mri"][5:8, 5:8, 5:8] = np.nan
    arrays["label"][:] = np.nan
    found, _ = made({}, arrays=arrays)
    assert np.isnan(found["label"]).all()
    assert 0 < np.isnan(found["mri"]).sum() < found["mri"].size / 2
    still, _ = made(STILL, arrays=arrays)
    np.testing.assert_array_equal(np.isnan(still["mri"]), np.isnan(arrays["mri"]))


def test_numbers_change_in_units_of_the_image() -> None:
    """Shown in other units, the image is changed to the same picture."""
    image, config = volume()["mri"], AugmentConfig(thick=1.0)
    for seed in range(6):
        one = renumbered(image, np.random.default_rng(seed), config)
        two = renumbered(1e5 * image + 3e4, np.random.default_rng(seed), config)
        np.testing.assert_allclose(two, 1e5 * one + 3e4, rtol=1e-3, atol=50)
        assert np.isfinite(one).all()


def test_thick_slices_are_means_of_what_they_cover() -> None:
    image = np.random.default_rng(0).standard_normal((12, 3, 2))
    thick = thickened(image, 0, 3.0)
    np.testing.assert_allclose(thick[[1, 4, 7, 10]], image.reshape(4, 3, 3, 2).mean(1))
    np.testing.assert_allclose(thickened(image, 0, 1.0), image)
    np.testing.assert_allclose(thickened(np.ones((5, 7, 3)), 1, 2.5), 1)


def test_smooth_fields_have_unit_variance_and_are_smooth() -> None:
    fields = smooth((24, 30, 20), (8.0, 8.0, 8.0), 40, np.random.default_rng(0)).numpy()
    assert fields.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.25


def test_a_single_slice_stays_in_its_plane() -> None:
    arrays = {name: array[:, :, 8:9] for name, array in volume().items()}
    found, _ = made({**MOVED, "displacement_mm": 0.0}, window=(18, 22, 1), arrays=arrays)
    assert np.isfinite(found["mri"]).mean() > 0.6
    assert set(np.unique(found["label"][np.isfinite(found["label"])])) == {0.0, 1.0, 2.0}


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="degreees"):
        made({"degreees": 3.0})
