"""PSNR and SSIM: laws, known values, MONAI's and scikit-image's figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.volumes.images import psnr, ssim


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(12, 13), (11, 12, 11)]), st.floats(0.1, 100.0), st.integers(0, 99))
def test_likeness_is_perfect_with_itself_symmetric_and_without_unit(shape: tuple[int, ...], factor: float,
                                                                    seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, shape)
    other = image + rng.normal(0, 0.2, shape)
    assert ssim(image, image, 2.0) == pytest.approx(1, abs=1e-12)
    assert psnr(image, image, 2.0) == float("inf")
    assert ssim(image, other, 2.0) == pytest.approx(ssim(other, image, 2.0))
    assert ssim(image, other, 2.0) < 1
    assert ssim(factor * image, factor * other, 2.0 * factor) == pytest.approx(ssim(image, other, 2.0), abs=1e-9)
    assert psnr(factor * image, factor * other, 2.0 * factor) == pytest.approx(psnr(image, other, 2.0))


def test_noise_of_a_known_size() -> None:
    truth = np.zeros((20, 20, 20))
    noise = np.random.default_rng(0).choice([-0.1, 0.1], truth.shape)
    assert psnr(truth + noise, truth, 1.0) == pytest.approx(20.0)
    assert ssim(truth + noise, truth, 1.0) < ssim(truth + noise / 4, truth, 1.0) < 1


def test_images_of_a_constant_differ_by_their_brightness_alone() -> None:
    a, b, c1 = 0.5, 0.7, 0.01**2
    found = ssim(np.full((12, 12), a), np.full((12, 12), b), 1.0)
    assert found == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_what_cannot_be_compared_is_refused() -> None:
    small = np.zeros((10, 12))
    with pytest.raises(ValueError, match="smaller than the window"):
        ssim(small, small, 1.0)
    with pytest.raises(ValueError, match="no two images of one shape"):
        psnr(small, small.T, 1.0)
    with pytest.raises(ValueError, match="not positive"):
        psnr(small, small, 0.0)


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
def test_equal_to_monai() -> None:
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics", reason="MONAI is absent")
    rng = np.random.default_rng(0)
    for shape in ((20, 17), (14, 16, 13)):
        p, t = rng.random(shape), rng.random(shape)
        p = 0.5 * p + 0.5 * t
        pair = torch.tensor(p)[None, None], torch.tensor(t)[None, None]
        theirs = metrics.SSIMMetric(len(shape), data_range=1.0)(*pair)
        assert ssim(p, t, 1.0) == pytest.approx(float(theirs), rel=1e-5)
        assert psnr(p, t, 1.0) == pytest.approx(float(metrics.PSNRMetric(1.0)(*pair)), rel=1e-6)


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
def test_equal_to_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is absent")
    rng = np.random.default_rng(1)
    p, t = rng.random((24, 19)), rng.random((24, 19))
    inner = metrics.structural_similarity(p, t, data_range=1.0, gaussian_weights=True, sigma=1.5, full=True,
                                          use_sample_covariance=False)[1][5:-5, 5:-5]
    assert ssim(p, t, 1.0) == pytest.approx(float(inner.mean()), rel=1e-9)
