"""How much of a structure two segmentations share: Dice, intersection over union, volume similarity.

Masks are boolean; the first `keep` dimensions (1: one value per structure) are kept, the others counted together. Where
both masks are empty they agree and the score is 1; where one alone is empty it is 0. Unit 1, higher is better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def masks(labels: ArrayLike, structures: Sequence[int | Collection[int]]) -> Array:
    """``(structure, *labels)`` where a label map is that value, or one of the values of a region. NaN is none.

    >>> masks([0, 1, 2], [1, (1, 2)]).astype(int).tolist()
    [[0, 1, 0], [0, 1, 1]]
    """
    values = np.asarray(labels)
    return np.stack([values == each if isinstance(each, int) else np.isin(values, list(each)) for each in structures])


def dice(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 0) -> Array:
    """``2 |P ∩ T| / (|P| + |T|)``. Source: Dice, Ecology 26 (1945).

    >>> float(dice([True, True, False], [True, False, False])), float(dice([False], [False]))
    (0.6666666666666666, 1.0)
    """
    both, p, t = _counts(prediction, truth, keep)
    return _share(2 * both, p + t)


def intersection_over_union(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 0) -> Array:
    """``|P ∩ T| / |P ∪ T|``. Source: Jaccard, Bull. Soc. Vaudoise Sci. Nat. 37 (1901).

    >>> float(intersection_over_union([True, True, False], [True, False, False]))
    0.5
    """
    both, p, t = _counts(prediction, truth, keep)
    return _share(both, p + t - both)


def volume_similarity(prediction: ArrayLike, truth: ArrayLike, *, keep: int = 0) -> Array:
    """``1 − ||P| − |T|| / (|P| + |T|)``: of sizes alone, wherever they lie. Source: Taha & Hanbury, BMC Medical Imaging
    15 (2015).

    >>> float(volume_similarity([True, True, False], [False, False, True]))
    0.6666666666666666
    """
    _, p, t = _counts(prediction, truth, keep)
    return _share(p + t - np.abs(p - t), p + t)


def _counts(prediction: ArrayLike, truth: ArrayLike, keep: int) -> tuple[Array, Array, Array]:
    """Cells of both, of the prediction, of the truth, int64."""
    p, t = np.asarray(prediction), np.asarray(truth)
    if p.dtype != bool or t.dtype != bool:
        raise TypeError(f"masks are boolean, not {p.dtype} and {t.dtype}; see `masks` for label maps")
    if p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} differ in shape")
    over = tuple(range(keep, p.ndim))
    return (p & t).sum(over, dtype=np.int64), p.sum(over, dtype=np.int64), t.sum(over, dtype=np.int64)


def _share(part: Array, whole: Array) -> Array:
    return np.where(whole == 0, 1.0, part / np.maximum(whole, 1))
