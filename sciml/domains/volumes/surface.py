"""How far the surfaces of two segmentations lie apart, in mm: Hausdorff distance at a percentile, surface Dice.

The surface of a mask are its voxels that touch a voxel outside it by a face; what lies beyond the array is outside.
Distances are between centres of voxels, by exact Euclidean distance transforms that know the spacing. Masks of any rank
are boolean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def hausdorff(prediction: ArrayLike, truth: ArrayLike, spacing: Sequence[float], percentile: float = 95.0) -> float:
    """The larger of the two percentiles of the distances from one surface to the other, in mm; HD95 by default.

    Lower is better. Two empty masks agree: 0. If one alone is empty there is no surface to come near: infinite.
    percentile 100 is the Hausdorff distance. Source: Huttenlocher et al., IEEE TPAMI 15 (1993); both directions apart,
    as Maier-Hein et al., Nature Methods 21 (2024), advise.

    >>> hausdorff([True, False, False], [False, False, True], [1.5])
    3.0
    """
    found = surface_distances(prediction, truth, spacing)
    if not any(len(each) for each in found):
        return 0.0
    if not all(len(each) for each in found):
        return float("inf")
    return float(max(np.percentile(each, percentile) for each in found))


def surface_dice(prediction: ArrayLike, truth: ArrayLike, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Share of the voxels of both surfaces that lie within the tolerance of the other surface; unit 1.

    Higher is better; two empty masks agree: 1; if one alone is empty: 0. Every voxel of a surface counts the same.
    Source: Nikolov et al., J. Med. Internet Res. 23 (2021), who weigh by area.

    >>> surface_dice([True, True, False], [False, True, True], [2.0], 1.0)
    0.5
    """
    found = surface_distances(prediction, truth, spacing)
    total = sum(len(each) for each in found)
    if total == 0:
        return 1.0
    if not all(len(each) for each in found):
        return 0.0
    return float(sum(np.count_nonzero(each <= tolerance_mm) for each in found) / total)


def surface_distances(prediction: ArrayLike, truth: ArrayLike, spacing: Sequence[float]) -> tuple[Array, Array]:
    """mm from each voxel of the prediction's surface to the truth's, and from each of the truth's to the prediction's.

    ``(p,)`` and ``(t,)``, infinite where the other mask is empty. Raises ValueError if shapes and spacing don't fit.
    """
    p, t = np.asarray(prediction), np.asarray(truth)
    if p.dtype != bool or t.dtype != bool:
        raise TypeError(f"masks are boolean, not {p.dtype} and {t.dtype}")
    if p.shape != t.shape or len(spacing) != p.ndim or min(spacing) <= 0:
        raise ValueError(f"prediction {p.shape}, truth {t.shape} and spacing {tuple(spacing)} don't fit one another")
    box = _bounds(p | t)
    ours, theirs = surface(p[box]), surface(t[box])
    return _distances(ours, theirs, spacing), _distances(theirs, ours, spacing)


def surface(mask: Array) -> Array:
    """The voxels of a mask that touch what is outside by a face.

    >>> surface(np.ones((3, 3), bool)).astype(int).tolist()
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def _bounds(mask: Array) -> tuple[slice, ...]:
    """The smallest box that holds a mask."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
    return tuple(box)


def _distances(start: Array, goal: Array, spacing: Sequence[float]) -> Array:
    from scipy.ndimage import distance_transform_edt

    if not goal.any():
        return np.full(np.count_nonzero(start), np.inf)
    return np.asarray(distance_transform_edt(~goal, sampling=spacing)[start])
