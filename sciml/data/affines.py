"""Affine matrices of volumes: from voxel indices to millimetres towards right, anterior and superior (as in NIfTI)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sciml.errors import InputError

SHEAR = 1e-3
"""Cosine between two axes of the grid above which they are no right angle: 0.06 degrees."""
APART = 0.02
"""Of the smallest spacing: how far corresponding voxels of two grids may be apart."""


def spacing(affine: np.ndarray) -> np.ndarray:
    """``(3,)`` mm between voxels along the axes of the array.

    >>> spacing(np.diag([-1.0, 1.0, 3.0, 1.0])).tolist()
    [1.0, 1.0, 3.0]
    """
    lengths: np.ndarray = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    return lengths


def refuse_bad_affine(affine: np.ndarray, where: object) -> None:
    """Raises `InputError` unless `affine` is ``(4, 4)``, finite, ends in (0, 0, 0, 1), has spacings above 0 and axes at
    right angles (rotation, flip and permutation are fine, shear is not)."""
    def refuse(key: str, found: Any, expected: str, fix: str) -> InputError:
        return InputError(where, key=key, found=found, expected=expected, fix=fix)

    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise refuse("affine", matrix.tolist(), "4 × 4 finite numbers that end in 0, 0, 0, 1", "write the header anew")
    lengths = spacing(matrix)
    if (lengths < 1e-6).any():
        raise refuse("spacing", f"{_numbers(lengths)} mm", "more than 0 along each axis",
                     "correct pixdim, sform or the spacing in the header")
    axes = matrix[:3, :3] / lengths
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > SHEAR:
        angle = np.degrees(np.arccos(min(1.0, cosine)))
        raise refuse("affine", f"axes {angle:.3g} degrees apart: {_rows(matrix)}",
                     "axes at right angles (rotation and spacing, no shear)",
                     "resample to a straight grid, for example with nibabel.processing.resample_to_output")


def same_grid(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether all eight corners of a grid ``(I, J, K)`` lie within `APART` of a voxel of one another under both
    affines.

    >>> same_grid(np.eye(4), np.diag([1.0, 1.0, 1.001, 1.0]), (10, 10, 10))
    True
    """
    corners = np.array([[i, j, k, 1.0] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1)
                        for k in (0, shape[2] - 1)])
    return bool(np.abs(corners @ (one - other).T).max() <= APART * spacing(one).min())


def from_spacing(mm: np.ndarray, orientation: str, where: object) -> np.ndarray:
    """``(4, 4)`` with the origin at voxel (0, 0, 0), from spacings ``(3,)`` and what the axes of the array point to.

    orientation: three letters of R or L, A or P, S or I. Raises `InputError` if it is none.

    >>> from_spacing(np.array([1.0, 1.0, 3.0]), "LPS", "doc").diagonal().tolist()
    [-1.0, -1.0, 3.0, 1.0]
    """
    pairs = ("RL", "AP", "SI")
    world = [next((w for w, pair in enumerate(pairs) if letter in pair), -1) for letter in orientation]
    if sorted(world) != [0, 1, 2]:
        raise InputError(where, key="options.orientation", found=repr(orientation),
                         expected="three letters, one each of R or L, A or P, S or I: what the axes point to",
                         fix="for example RAS")
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (row, letter) in enumerate(zip(world, orientation)):
        affine[row, axis] = mm[axis] if letter in "RAS" else -mm[axis]
    return affine


def _numbers(values: np.ndarray) -> str:
    return " × ".join(f"{value:.6g}" for value in values)


def _rows(matrix: np.ndarray) -> str:
    return "; ".join(", ".join(f"{value:.4g}" for value in row) for row in matrix[:3])
