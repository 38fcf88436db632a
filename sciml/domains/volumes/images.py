"""How near an image is to another: peak signal-to-noise ratio and structural similarity, of 2-D images or volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def psnr(prediction: ArrayLike, truth: ArrayLike, data_range: float) -> float:
    """``10 log₁₀(data_range² / mean (p − t)²)`` in dB over all cells; higher is better; infinite for equal images.

    data_range: largest less smallest value that the truth may have (or has: say which). Raises ValueError on images of
    no cells or unequal shapes. Source: Huynh-Thu & Ghanbari, Electronics Letters 44 (2008).

    >>> round(psnr([0.0, 1.0], [0.1, 0.9], 1.0), 6)
    20.0
    """
    p, t = _images(prediction, truth, data_range)
    error = float(np.mean((p - t) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(prediction: ArrayLike, truth: ArrayLike, data_range: float, *, window: int = 11, sigma: float = 1.5) -> float:
    """Structural similarity, unit 1, at most 1, higher is better; 1 for equal images.

    The mean of ``(2 μp μt + c₁)(2 σpt + c₂) / ((μp² + μt² + c₁)(σp² + σt² + c₂))`` over all places where the whole
    window lies inside, with ``c₁ = (0.01 data_range)²``, ``c₂ = (0.03 data_range)²``, moments weighed by a Gaussian of
    `sigma` cells cut to `window` cells in every dimension (2-D: squares; 3-D: cubes), population variances.
    Raises ValueError if a side is shorter than the window. Source: Wang et al., IEEE Trans. Image Process. 13 (2004).

    >>> image = np.arange(144.0).reshape(12, 12)
    >>> ssim(image, image, 143.0)
    1.0
    """
    p, t = _images(prediction, truth, data_range)
    if min(p.shape) < window:
        raise ValueError(f"an image of {p.shape} is smaller than the window of {window} cells")
    place = np.arange(window) - (window - 1) / 2
    weights = np.exp(-(place**2) / (2 * sigma**2))
    weights /= weights.sum()
    mean_p, mean_t = _blur(p, weights), _blur(t, weights)
    var_p = _blur(p * p, weights) - mean_p**2
    var_t = _blur(t * t, weights) - mean_t**2
    covariance = _blur(p * t, weights) - mean_p * mean_t
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = ((2 * mean_p * mean_t + c1) * (2 * covariance + c2)
                / ((mean_p**2 + mean_t**2 + c1) * (var_p + var_t + c2)))
    return float(likeness.mean())


def _images(prediction: ArrayLike, truth: ArrayLike, data_range: float) -> tuple[Array, Array]:
    p, t = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if p.shape != t.shape or p.size == 0:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} are no two images of one shape")
    if not data_range > 0:
        raise ValueError(f"the data range is {data_range}, not positive")
    return p, t


def _blur(image: Array, weights: Array) -> Array:
    """Weighted mean around every place where all of the window lies inside: ``(n − window + 1, …)``."""
    from scipy.ndimage import correlate1d

    half = len(weights) // 2
    for axis, size in enumerate(image.shape):
        whole = correlate1d(image, weights, axis=axis, mode="constant")
        image = whole.take(range(half, half + size - len(weights) + 1), axis=axis)
    return image
