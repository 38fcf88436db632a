"""One sample as a batch of images: RAS order, numbers of order one, tokens' positions in millimetres and seconds.

Of several frames time is the first axis of the lattice, and isn't merged: every frame gets an answer of its own. One
frame is a 3-D volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.domains.volumes import geometry
from sciml.domains.volumes.config import IntensityConfig, Known, VolumesConfig
from sciml.domains.volumes.geometry import TIME
from sciml.errors import InputError
from sciml.tokens import Outputs, Target, TokenBatch

DOMAIN = "volumes"
GRID = ("x_mm", "y_mm", "z_mm")
"""Names in `TokenBatch.kept`: ``(S, n)`` positions of the image's own voxels, of which the answer is."""
FRAMES = "time_s"
"""Name in `TokenBatch.kept`: ``(S, T)`` of frames, where there are several."""
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
    def lattice(self) -> tuple[int, ...]:
        """Of the image's own grid ``(X, Y, Z)``; with several frames ``(T, X, Y, Z)``."""
        space = tuple(self.sample.sizes[name] for name in geometry.NAMES)
        return (self.sample.sizes[TIME], *space) if len(self.batch.axes) > len(space) else space

    def on_grid(self, name: str) -> Tensor:
        """``(1, [T,] X, Y, Z)``: a variable of the sample on the image's own grid."""
        return tensor(self.sample[name].values)[None]

    def resampled(self, name: str) -> Tensor:
        """``(1, [T,] X', Y', Z')``: a variable of the sample on the tokens' grid, NaN where less than half of a voxel
        is known."""
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
    """The data set that a sample is of, or the only one with its modalities (and frames, where several have them).
    Raises `InputError`."""
    name = str(sample.attrs.get("dataset", ""))
    if name in datasets:
        return name
    fitting = [each for each, known in datasets.items() if set(known.modalities) <= set(map(str, sample.data_vars))]
    timed = TIME in sample.dims
    fitting = [each for each in fitting if datasets[each].frames == timed] or fitting
    if len(fitting) != 1:
        known = "; ".join(f"{each}: {', '.join(known.modalities)}" for each, known in datasets.items())
        found = ", ".join(map(str, sample.data_vars))
        raise InputError(sample.attrs.get("source", "sample"), key="modalities", found=found,
                         expected=f"one of {known}", fix="name the variables by modality, or set attrs['dataset']")
    return fitting[0]


def plain_batch(sample: xr.Dataset, datasets: Mapping[str, Known], config: VolumesConfig, *,
                given: Mapping[str, str] | None = None) -> Plain:
    """given: modality → the variable that is shown in its place, where a task hides the truth from the operator.

    Raises `InputError` for a sample that is not of x, y, z, lacks a modality, or has frames where none were seen.
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
    turned, times = _with_times(turned, datasets, known, where)
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
    moments = tensor((times - times.mean()) / config.reference_s)
    frames = (replace(tokens.time(TIME, moments, unit="s"), coarsen=False),) if len(times) > 1 else ()
    axes = tuple(_axis(name, place, step, config.reference_mm)
                 for name, place, step in zip(geometry.NAMES, places, wanted))
    batch = TokenBatch(
        DOMAIN, dataset, tensor(np.where(seen, values, 0.0))[None],
        tuple(f"{DOMAIN}/{name}" for name in known.modalities), (*frames, *axes),
        observed=None if seen.all() else torch.from_numpy(seen.all(-1, keepdims=True))[None], sources=(str(where),),
        kept={INTENSITY: tensor(np.array(numbers))[None],
              SPACING: torch.tensor([steps], dtype=torch.float64),
              **{name: torch.from_numpy(place)[None] for name, place in zip(GRID, own)},
              **({FRAMES: torch.from_numpy(times)[None]} if frames else {})})
    return Plain(turned, batch, known, places)


def _with_times(sample: xr.Dataset, datasets: Mapping[str, Known], known: Known,
                where: object) -> tuple[xr.Dataset, np.ndarray]:
    """The sample, without the axis of time where it has one frame, and the seconds of its frames."""
    with_time = [name for name in known.modalities if TIME in sample[name].dims]
    if not with_time:
        return sample, np.zeros(1)
    if len(with_time) < len(known.modalities):
        raise InputError(where, key="modalities", found=f"frames of {', '.join(with_time)} alone",
                         expected="frames of all modalities, or of none", fix="repeat the others in every frame")
    count = sample.sizes[TIME]
    if count > 1 and not any(each.frames for each in datasets.values()):
        raise InputError(where, key="dims", found=f"4-D, {count} frames", expected="3-D, as the checkpoint was trained",
                         fix="give one frame at a time, or fine-tune it on a store that is built with frames: time")
    return (sample, sample[TIME].values.astype(np.float64)) if count > 1 else (sample.isel({TIME: 0}), np.zeros(1))


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
    """``([T,] X, Y, Z)`` at the tokens' places."""
    own = positions(sample)
    if all(np.array_equal(a, b) for a, b in zip(own, places)):
        return values
    last = np.moveaxis(values, 0, -1) if values.ndim == 4 else values
    seen = np.isfinite(last)
    share = geometry.regridded(seen.astype(np.float64), own, places)
    filled = geometry.regridded(np.where(seen, last, 0.0), own, places)
    moved = np.where(share > 0.5, filled / np.maximum(share, 0.5), np.nan)
    return np.moveaxis(moved, -1, 0) if values.ndim == 4 else moved


def onto_grid(batch: TokenBatch, outputs: Outputs, reference_mm: float) -> Outputs:
    """Heads on the tokens' grid, moved to the image's own where their target is there: linear along each axis. Their
    mean over frames where the target has none."""
    heads = dict(outputs.heads)
    for name, target in batch.targets.items():
        if name not in heads or heads[name].shape[1:-1] != batch.lattice:
            continue
        wanted = target.value.shape[1:-1]
        if len(wanted) < len(batch.lattice):
            heads[name] = over_frames(batch, heads[name])
        if heads[name].shape[1:-1] != wanted:
            heads[name] = torch.stack([_moved(batch, i, head, reference_mm) for i, head in enumerate(heads[name])])
    return Outputs(heads, outputs.cache)


def over_frames(batch: TokenBatch, head: Tensor) -> Tensor:
    """``(B, T, *lattice, C)`` → ``(B, *lattice, C)``: the mean over frames of which anything was seen."""
    if batch.observed is None:
        return head.mean(1)
    seen = batch.observed.flatten(2).any(2).to(head)  # (B, T or 1)
    share = (seen / seen.sum(1, keepdim=True).clamp_min(1)).expand(-1, head.shape[1])
    return torch.einsum("bt,bt...->b...", share if seen.shape[1] > 1 else share / head.shape[1], head)


def _moved(batch: TokenBatch, index: int, head: Tensor, reference_mm: float) -> Tensor:
    """Of one sample ``([T,] X, Y, Z, C)``."""
    first = head.ndim - 1 - len(GRID)
    for dim, (axis, name) in enumerate(zip(batch.axes[-len(GRID):], GRID), first):
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
