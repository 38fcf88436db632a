"""Random changes of training patches: one resampling of all images and the label together, then of images' numbers.

The resampling draws the patch itself out of a larger box: rotation, scale, mirrors, a smooth displacement and a shift
make one map from the patch's voxels to places in the box, in mm, so that anisotropic voxels turn as the body does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sciml.domains.volumes import geometry
from sciml.domains.volumes.config import AxisName
from sciml.recipe import Section, validate

LABEL = "label"
BENT_MM = 12.0
"""Distance of the points whose random displacements are interpolated."""
BIAS_VOXELS = 20


class AugmentConfig(Section):
    """Standard deviations, and probabilities of a sample being changed in that way.

    degrees: rotation about each axis; scale: of the logarithm of a common factor, and half of it for each axis on its
    own; displacement_mm: of a smooth deformation; mirrors: axes along which half of the samples are flipped (structures
    named by their side allow none along x). strength: of changes of numbers, 0 for none: gamma, contrast, brightness,
    bias field, blur, noise; thick: how likely one axis is seen in slices of up to `thickest` voxels.
    """

    degrees: float = Field(default=10.0, ge=0)
    scale: float = Field(default=0.08, ge=0)
    displacement_mm: float = Field(default=1.5, ge=0)
    spatial: float = Field(default=0.7, ge=0, le=1)
    mirrors: tuple[AxisName, ...] = ()
    strength: float = Field(default=1.0, ge=0)
    thick: float = Field(default=0.2, ge=0, le=1)
    thickest: float = Field(default=3.0, ge=1)


def changed(arrays: Mapping[str, np.ndarray], affine: np.ndarray, window: Sequence[int], rng: np.random.Generator,
            options: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays ``(i, j, k)`` or ``(i, j, k, t)`` on one grid, NaN where nothing is known, as random patches of the size
    of the window, all frames changed alike but for noise.

    Where the patch lies in them, or they in the patch, is drawn too. The array `label` takes the value with the largest
    linear share; images are linear. Returns the affine of a patch that lies in the middle. The same generator state
    gives the same patch. Raises `InputError` for options that do not exist.
    """
    config = validate(AugmentConfig, dict(options), where="domains.volumes.patches.augment")
    shape = next(iter(arrays.values())).shape[:3]
    moved = geometry.shifted(affine, [(n - size) / 2 for n, size in zip(shape, window)])
    drawn = taken(arrays, drawn_places(shape, tuple(window), affine, rng, config))
    return {name: array if name == LABEL else renumbered(array, rng, config).astype(array.dtype)
            for name, array in drawn.items()}, moved


def drawn_places(shape: Sequence[int], window: Sequence[int], affine: np.ndarray, rng: np.random.Generator,
                 config: AugmentConfig) -> Tensor:
    """``(3, *window)`` voxel indices in the box, as fractions of a voxel from its middle."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    mirrored = [name in config.mirrors and rng.random() < 0.5 for name in geometry.anatomy(affine)]
    turn = np.diag([-1.0 if flip else 1.0 for flip in mirrored])
    spatial = rng.random() < config.spatial
    if spatial:
        turn = turn @ rotation(np.deg2rad(rng.normal(0, config.degrees, 3)), [n > 1 for n in window])
        turn = turn @ np.diag(np.exp(rng.normal(0, config.scale) + rng.normal(0, config.scale / 2, 3)))
    to_voxels = torch.from_numpy(turn * spacing / spacing[:, None]).float()
    middle = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in window), indexing="ij")
    places = torch.einsum("ij,jxyz->ixyz", to_voxels, torch.stack(middle))
    if spatial and config.displacement_mm:
        bent = smooth(window, [BENT_MM / step for step in spacing], 3, rng) * (config.displacement_mm * rng.random())
        places += bent / torch.from_numpy(spacing).float().view(3, 1, 1, 1)
    reach = np.abs(np.array(shape) - np.array(window)) / 2
    return places + torch.from_numpy(rng.uniform(-reach, reach)).float().view(3, 1, 1, 1)


def rotation(angles: np.ndarray, thick: Sequence[bool]) -> np.ndarray:
    """``(3, 3)``: turns about each axis in turn; a single slice stays in its plane."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        if thick[i] and thick[j]:
            one = np.eye(3)
            one[[i, j], [i, j]] = np.cos(angle)
            one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
            matrix = one @ matrix
    return matrix


def smooth(size: Sequence[int], cell: Sequence[float], channels: int, rng: np.random.Generator) -> Tensor:
    """``(channels, *size)`` of about unit variance: random numbers every `cell` voxels, cubic B-splines between."""
    field = torch.from_numpy(rng.standard_normal((channels, *(int(n / c) + 4 for n, c in zip(size, cell))))).float()
    for axis, (n, c) in enumerate(zip(size, cell)):
        basis = torch.from_numpy(splines(n, c)).float()
        field = torch.tensordot(basis, field, ([1], [1 + axis])).movedim(0, 1 + axis)
    return field


def splines(size: int, cell: float) -> np.ndarray:
    """``(size, knots)`` cubic B-splines at every voxel, scaled so that sums of unit normals have unit variance."""
    place = np.arange(size)[:, None] / cell + 1 - np.arange(int(size / cell) + 4)[None]
    far = np.abs(place)
    basis = np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.clip(2 - far, 0, None) ** 3 / 6)
    scaled: np.ndarray = basis / np.sqrt((basis**2).sum(1, keepdims=True))
    return scaled


def taken(arrays: Mapping[str, np.ndarray], places: Tensor) -> dict[str, np.ndarray]:
    """Arrays ``(i, j, k)``, or every frame of ``(i, j, k, t)``, at the places, all in one pass. Images are linear among
    neighbours that are known, NaN where those share less than half of the weight; a label is the value with the largest
    share, NaN where that is of what isn't known."""
    frames = {(name, t): array[..., t] if array.ndim == 4 else array for name, array in arrays.items()
              for t in range(array.shape[3] if array.ndim == 4 else 1)}
    found = _at(frames, places)
    return {name: np.stack([found[name, t] for t in range(array.shape[3])], -1) if array.ndim == 4 else found[name, 0]
            for name, array in arrays.items()}


def _at(arrays: Mapping[tuple[str, int], np.ndarray], places: Tensor) -> dict[tuple[str, int], np.ndarray]:
    values = {key: np.unique(array[np.isfinite(array)]) for key, array in arrays.items() if key[0] == LABEL}
    planes: list[np.ndarray] = []
    for name, array in arrays.items():
        seen = np.isfinite(array)
        planes += [array == value for value in values[name]] if name in values else [np.where(seen, array, 0), seen]
    rows = iter(sampled(torch.from_numpy(np.stack(planes, dtype=np.float32, casting="unsafe")), places).numpy()
                if planes else ())
    made = {}
    for name, array in arrays.items():
        if name in values:
            made[name] = largest([next(rows) for _ in values[name]], values[name], tuple(places.shape[1:]))
        else:
            total, share = next(rows), next(rows)
            made[name] = np.where(share > 0.5, total / np.maximum(share, 0.5), np.nan)
        made[name] = made[name].astype(array.dtype)
    return made


def largest(shares: Sequence[np.ndarray], values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The value with the largest share of each place, NaN where what is missing to one is larger."""
    found, most = np.full(shape, np.nan), 1 - sum(shares, np.zeros(shape))
    for value, share in zip(values, shares, strict=True):
        found[share > most] = value
        most = np.maximum(most, share)
    return found


def sampled(arrays: Tensor, places: Tensor) -> Tensor:
    """``(n, i, j, k)`` at the places, linear, zeros beyond."""
    size = torch.tensor(arrays.shape[1:], dtype=torch.float32)
    grid = (2 * places / size.view(3, 1, 1, 1)).flip(0).movedim(0, -1)
    return F.grid_sample(arrays[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def renumbered(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """An image with other numbers, in units of its own mean and standard deviation; NaN stays."""
    known = np.isfinite(image)
    if not config.strength or not known.any():
        return image
    centre, scale = float(image[known].mean()), max(float(image[known].std()), 1e-12)
    x, k = (np.where(known, image, centre) - centre) / scale, config.strength
    if rng.random() < 0.3:
        x = gamma(x, float(np.exp(rng.normal(0, 0.25 * k))), inverted=rng.random() < 0.3)
    if rng.random() < 0.3:
        x = x * np.exp(rng.normal(0, 0.2 * k)) + rng.normal(0, 0.2 * k)
    if rng.random() < 0.25:
        field = smooth(x.shape[:3], [BIAS_VOXELS] * 3, 1, rng)[0].numpy()
        x = x * np.exp(0.2 * k * (field[..., None] if x.ndim == 4 else field))
    if rng.random() < 0.2:
        x = blurred(x, rng.uniform(0.4, 1.0))
    if rng.random() < config.thick:
        axes = [axis for axis in range(3) if x.shape[axis] > 1]
        x = thickened(x, axes[int(rng.integers(len(axes)))], rng.uniform(1, config.thickest))
    if rng.random() < 0.2:
        x = x + rng.uniform(0, 0.25 * k) * rng.standard_normal(x.shape)
    return np.where(known, x * scale + centre, np.nan)


def gamma(x: np.ndarray, exponent: float, *, inverted: bool) -> np.ndarray:
    """Numbers as a share of their range, to that power (of what is missing to the top, `inverted`), with the mean and
    standard deviation of before."""
    low, reach = x.min(), max(np.ptp(x), 1e-12)
    share = (x - low) / reach
    y = 1 - (1 - share) ** exponent if inverted else share**exponent
    moved: np.ndarray = (y - y.mean()) / max(y.std(), 1e-12) * x.std() + x.mean()
    return moved


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of that many voxels, in each frame."""
    from scipy.ndimage import gaussian_filter

    y: np.ndarray = gaussian_filter(x, (sigma, sigma, sigma, 0.0)[:x.ndim], truncate=3.0)
    return y


def thickened(x: np.ndarray, axis: int, voxels: float) -> np.ndarray:
    """As if seen in slices of that thickness along an axis: means over slices, linear between their middles.

    >>> thickened(np.arange(6.0).reshape(6, 1, 1), 0, 2.0).ravel().tolist()
    [0.5, 1.0, 2.0, 3.0, 4.0, 4.5]
    """
    n = x.shape[axis]
    count = max(1, round(n / voxels))
    edges = np.linspace(0, n, count + 1)
    cells = np.arange(n)
    share = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    weights = geometry.hat_weights((edges[1:] + edges[:-1]) / 2, cells + 0.5) @ (share / share.sum(1, keepdims=True))
    y: np.ndarray = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return y
