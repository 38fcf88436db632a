"""One sample as a batch of images: RAS order, numbers of order one, tokens' positions in millimetres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.domains.volumes import geometry
from sciml.domains.volumes.config import IntensityConfig, Known, VolumesConfig
from sciml.errors import InputError
from sciml.tokens import Outputs, Target, TokenBatch

DOMAIN = "volumes"
GRID = ("x_mm", "y_mm", "z_mm")
"""Names in `TokenBatch.kept`: ``(S, n)`` positions of the image's own voxels, of which the answer is."""
SPACING = "spacing_mm"
"""Name in `TokenBatch.kept`: ``(S, 3)`` of the image's own voxels."""
INTENSITY = "intensity"
"""Name in `TokenBatch.kept`: ``(S, C, 4)`` of every channel low, high (what it is clipped to), centre and scale."""
MOST_SAMPLED = 1 << 20


@dataclass(frozen=True)
class Plain:
    """A sample before anything is asked of it. sample: RAS order, on the image's own grid, in its units; batch: images
    on the tokens' grid, whose positions in mm are `places`, without targets."""

    sample: xr.Dataset
    batch: TokenBatch
    known: Known
    places: tuple[np.ndarray, ...]

    @property
    def lattice(self) -> tuple[int, int, int]:
        """Of the image's own grid."""
        x, y, z = (self.sample.sizes[name] for name in geometry.NAMES)
        return x, y, z

    def on_grid(self, name: str) -> Tensor:
        """``(1, X, Y, Z)``: a variable of the sample on the image's own grid."""
        return tensor(self.sample[name].values)[None]

    def resampled(self, name: str) -> Tensor:
        """``(1, X', Y', Z')``: a variable of the sample on the tokens' grid, NaN where less than half of a voxel is
        known."""
        return tensor(_on_tokens(self.sample, self.sample[name].values, self.places))[None]


def tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.get_default_dtype())


def intensity(volume: np.ndarray, config: IntensityConfig) -> tuple[float, float, float, float]:
    """Low and high that values are clipped to, then their centre and scale: ``(clip(v) − centre) / scale``.

    With `limits`: these, mapped to −1 … 1. Else percentiles of the volume, and mean and standard deviation of what was
    clipped; a constant volume has scale 1. Large volumes are read at every n-th voxel. Voxels that aren't finite don't
    count; without any that is, (0, 0, 0, 1).
    """
    if config.limits is not None:
        low, high = config.limits
        return low, high, (low + high) / 2, (high - low) / 2
    flat = np.asarray(volume).reshape(-1)
    flat = flat[::max(1, flat.size // MOST_SAMPLED)].astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return 0.0, 0.0, 0.0, 1.0
    low, high = np.percentile(flat, config.percentiles)
    clipped = np.clip(flat, low, high)
    scale = float(clipped.std())
    return float(low), float(high), float(clipped.mean()), scale if scale > 1e-12 * max(abs(low), abs(high)) else 1.0


def resolve(datasets: Mapping[str, Known], sample: xr.Dataset) -> str:
    """The data set that a sample is of, or the only one with its modalities. Raises `InputError`."""
    name = str(sample.attrs.get("dataset", ""))
    if name in datasets:
        return name
    fitting = [each for each, known in datasets.items() if set(known.modalities) <= set(map(str, sample.data_vars))]
    if len(fitting) != 1:
        known = "; ".join(f"{each}: {', '.join(known.modalities)}" for each, known in datasets.items())
        found = ", ".join(map(str, sample.data_vars))
        raise InputError(sample.attrs.get("source", "sample"), key="modalities", found=found,
                         expected=f"one of {known}", fix="name the variables by modality, or set attrs['dataset']")
    return fitting[0]


def plain_batch(sample: xr.Dataset, datasets: Mapping[str, Known], config: VolumesConfig, *,
                given: Mapping[str, str] | None = None) -> Plain:
    """given: modality → the variable that is shown in its place, where a task hides the truth from the operator.

    Raises `InputError` for a sample that is not of x, y, z, or lacks a modality.
    """
    where = sample.attrs.get("source", "sample")
    if not set(geometry.NAMES) <= set(sample.dims):
        raise InputError(where, key="dims", found=tuple(sample.dims), expected="x, y and z with coordinates in mm",
                         fix="make it with sciml.domains.volumes.geometry.dataset_of")
    dataset = resolve(datasets, sample)
    known, turned = datasets[dataset], geometry.ras(sample)
    missing = [name for name in known.modalities if name not in turned]
    if missing:
        raise InputError(where, key="modalities", found=f"no {', '.join(missing)}",
                         expected=", ".join(known.modalities), fix="give all modalities the checkpoint was trained on")
    steps, own = geometry.spacing(turned), positions(turned)
    wanted = config.spacing_mm or steps
    places = tuple(geometry.grid_at(*each) for each in zip(own, steps, wanted))
    numbers, images = [], []
    for name in known.modalities:
        shown = turned[(given or {}).get(name, name)].values
        chosen = (sample.attrs.get("intensity") or {}).get(name) or intensity(shown, config.intensity)
        low, high, centre, scale = chosen
        numbers.append([low, high, centre, scale])
        images.append(_on_tokens(turned, (np.clip(shown.astype(np.float64), low, high) - centre) / scale, places))
    values = np.stack(images, -1)
    seen = np.isfinite(values)
    axes = tuple(_axis(name, place, step, config.reference_mm)
                 for name, place, step in zip(geometry.NAMES, places, wanted))
    batch = TokenBatch(
        DOMAIN, dataset, tensor(np.where(seen, values, 0.0))[None],
        tuple(f"{DOMAIN}/{name}" for name in known.modalities), axes,
        observed=None if seen.all() else torch.from_numpy(seen.all(-1, keepdims=True))[None], sources=(str(where),),
        kept={INTENSITY: tensor(np.array(numbers))[None],
              SPACING: torch.tensor([steps], dtype=torch.float64),
              **{name: torch.from_numpy(place)[None] for name, place in zip(GRID, own)}})
    return Plain(turned, batch, known, places)


def positions(sample: xr.Dataset) -> tuple[np.ndarray, ...]:
    """mm along x, y, z."""
    return tuple(sample[name].values.astype(np.float64) for name in geometry.NAMES)


def _axis(name: str, place: np.ndarray, step: float, reference: float) -> tokens.Axis:
    """About the middle of the image, so that float32 is exact enough wherever the scanner's origin was."""
    axis = tokens.space(name, tensor((place - place.mean()) / reference), unit="mm")
    if len(place) > 1:
        return axis
    return tokens.Axis(name, "space", axis.coord, unit="mm", coarsen=True,
                       measure=torch.full((1, 1), step / reference, dtype=axis.coord.dtype))


def _on_tokens(sample: xr.Dataset, values: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    own = positions(sample)
    if all(np.array_equal(a, b) for a, b in zip(own, places)):
        return values
    seen = np.isfinite(values)
    share = geometry.regridded(seen.astype(np.float64), own, places)
    filled = geometry.regridded(np.where(seen, values, 0.0), own, places)
    return np.where(share > 0.5, filled / np.maximum(share, 0.5), np.nan)


def onto_grid(batch: TokenBatch, outputs: Outputs, reference_mm: float) -> Outputs:
    """Heads on the tokens' grid, moved to the image's own where their target is there: linear along each axis."""
    heads = dict(outputs.heads)
    for name, target in batch.targets.items():
        if name in heads and heads[name].shape[1:-1] == batch.lattice != target.value.shape[1:-1]:
            heads[name] = torch.stack([_moved(batch, i, head, reference_mm) for i, head in enumerate(heads[name])])
    return Outputs(heads, outputs.cache)


def _moved(batch: TokenBatch, index: int, head: Tensor, reference_mm: float) -> Tensor:
    for dim, (axis, name) in enumerate(zip(batch.axes, GRID)):
        old = axis.coord[min(index, len(axis.coord) - 1), :, 0].double().cpu().numpy() * reference_mm
        new = batch.kept[name][index].double().cpu().numpy()
        weights = torch.from_numpy(geometry.hat_weights(old, new - new.mean())).to(head)
        head = torch.tensordot(weights, head, ([1], [dim])).movedim(0, dim)
    return head


def asked(value: Tensor, mask: Tensor, **parts: Tensor) -> Target:
    """A target whose baseline is zero and whose scale is one, unless given."""
    ones = (1,) * (value.ndim - 1)
    return Target(value=value, mask=mask, baseline=parts.get("baseline", value.new_zeros(len(value), *ones)),
                  scale=parts.get("scale", value.new_ones(len(value), *ones)))
