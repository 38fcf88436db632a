"""Where voxels are: arrays with an affine as xarray in millimetres, in any orientation, and the one that tokens have.

World axes are x towards the patient's right, y anterior, z superior (RAS+, as in NIfTI). An array axis is named by the
world axis that it is closest to, and a coordinate is the position in mm along it: oblique arrays keep their own grid.
A fourth axis are frames, points of time in s, and stays what it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from sciml.data import affines
from sciml.errors import InputError

NAMES, TIME = ("x", "y", "z"), "time"


def anatomy(affine: np.ndarray) -> tuple[str, str, str]:
    """What each array axis is called: the assignment of world axes with the largest cosines.

    >>> anatomy(np.array([[0, 0, 2.0, 0], [0, -1, 0, 5], [3, 0, 0, 0], [0, 0, 0, 1]]))
    ('z', 'y', 'x')
    """
    cosines = np.abs(affine[:3, :3]) / affines.spacing(affine)
    best = max(itertools.permutations(range(3)), key=lambda order: sum(cosines[w, i] for i, w in enumerate(order)))
    first, second, third = (NAMES[world] for world in best)
    return first, second, third


def dataset_of(arrays: Mapping[str, np.ndarray], affine: np.ndarray, attrs: Mapping[str, Any] | None = None, *,
               units: Mapping[str, str] | None = None, times: ArrayLike | None = None) -> xr.Dataset:
    """Arrays ``(i, j, k)`` or, with the times of frames in s, ``(i, j, k, t)`` on one grid as a sample: dims named by
    anatomy, coordinates in mm, ``attrs["affine"]``. One frame alone makes no axis. Raises `InputError` for bad affines,
    and times that don't fit.

    >>> flipped = dataset_of({"mri": np.zeros((3, 1, 2))}, np.diag([-2.0, 1, 1, 1]))
    >>> flipped["mri"].dims, flipped["x"].values.tolist()
    (('x', 'y', 'z'), [0.0, -2.0, -4.0])
    """
    affine = np.asarray(affine, np.float64)
    affines.refuse_bad_affine(affine, dict(attrs or {}).get("source", "array"))
    names, given = anatomy(affine), dict(units or {})
    shape = next(iter(arrays.values())).shape
    coords: dict[str, Any] = {name: (name, _positions(affine, axis, name, shape[axis]), {"units": "mm"})
              for axis, name in enumerate(names)}
    when = np.asarray([] if times is None else times, np.float64)
    if len(when) == 1:
        arrays = {key: array[..., 0] if array.shape[3:] == (1,) else array for key, array in arrays.items()}
    elif len(when):
        coords[TIME] = (TIME, when, {"units": "s"})
    for key, array in arrays.items():
        if array.ndim != 3 and (array.ndim, array.shape[3:]) != (4, when.shape):
            raise InputError(dict(attrs or {}).get("source", "array"), key=key, found=f"shape {array.shape}",
                             expected="(i, j, k)" + (f", or (i, j, k, {len(when)})" if len(when) else ""),
                             fix="give the times of its frames in s: dataset_of(…, times=…)")
    data = {key: ((*names, TIME)[:array.ndim], array, {"units": given.get(key, "1")}) for key, array in arrays.items()}
    return xr.Dataset(data, coords=coords, attrs={**dict(attrs or {}), "affine": affine.tolist()})


def _positions(affine: np.ndarray, axis: int, name: str, size: int) -> np.ndarray:
    """mm along an array axis, growing towards the positive end of the world axis that it is named after."""
    column = affine[:3, axis]
    spacing = float(np.linalg.norm(column))
    sign = 1.0 if column[NAMES.index(name)] > 0 else -1.0
    origin = float(sign * column @ affine[:3, 3] / spacing)
    return origin + sign * spacing * np.arange(size)


def ras(sample: xr.Dataset) -> xr.Dataset:
    """The sample with dims in the order time (where it has frames), x, y, z and ascending coordinates in mm; other dims
    follow."""
    turned = sample.isel({name: slice(None, None, -1) for name in NAMES
                          if sample.sizes[name] > 1 and sample[name].values[0] > sample[name].values[-1]})
    return turned.transpose(TIME, *NAMES, ..., missing_dims="ignore")


def spacing_of(positions: np.ndarray, affine: Sequence[Sequence[float]] | None, name: str) -> float:
    """mm between neighbours; of a single slice, what the affine says, or 1."""
    if len(positions) > 1:
        return abs(float(positions[-1] - positions[0])) / (len(positions) - 1)
    if affine is None:
        return 1.0
    matrix = np.asarray(affine, np.float64)
    return float(affines.spacing(matrix)[anatomy(matrix).index(name)])


def spacing(sample: xr.Dataset) -> tuple[float, float, float]:
    """mm along x, y, z."""
    x, y, z = (spacing_of(sample[name].values, sample.attrs.get("affine"), name) for name in NAMES)
    return x, y, z


def shifted(affine: np.ndarray, low: Sequence[int]) -> np.ndarray:
    """The affine of the box that starts at the voxel `low`."""
    moved = np.array(affine, np.float64)
    moved[:3, 3] += moved[:3, :3] @ np.asarray(low, np.float64)
    return moved


def hat_weights(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """``(len(new), len(old))``: linear interpolation from ascending positions, constant beyond the ends.

    >>> hat_weights(np.array([0.0, 2.0]), np.array([-1.0, 0.5, 2.0])).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    rows = np.zeros((len(new), len(old)))
    if len(old) == 1:
        return rows + 1.0
    right = np.clip(np.searchsorted(old, new), 1, len(old) - 1)
    part = np.clip((new - old[right - 1]) / (old[right] - old[right - 1]), 0.0, 1.0)
    rows[np.arange(len(new)), right - 1] = 1 - part
    rows[np.arange(len(new)), right] += part
    return rows


def regridded(volume: np.ndarray, old: Sequence[np.ndarray], new: Sequence[np.ndarray]) -> np.ndarray:
    """``(X, Y, Z, …)`` at other positions along each axis, linear in each; thick to thin, nothing is averaged."""
    for axis, (a, b) in enumerate(zip(old, new, strict=True)):
        if len(a) != len(b) or not np.array_equal(a, b):
            volume = np.moveaxis(np.tensordot(hat_weights(a, b), volume, (1, axis)), 0, axis)
    return volume


def grid_at(positions: np.ndarray, step: float, wanted: float) -> np.ndarray:
    """Positions `wanted` mm apart over the same extent, voxel faces included; the same array where that is the step."""
    if np.isclose(step, wanted, rtol=1e-3):
        return positions
    extent = step * len(positions)
    count = max(1, round(extent / wanted))
    low = positions[0] - step / 2 + (extent - count * wanted) / 2
    return low + wanted * (np.arange(count) + 0.5)
