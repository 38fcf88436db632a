"""A measurement in a sample and out of it: simulated where it wasn't made, as the start of a reconstruction in link
space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.domains.volumes import geometry, simulate
from sciml.domains.volumes.encode import tensor
from sciml.domains.volumes.references import least_squares, total_variation
from sciml.errors import InputError
from sciml.observations.contract import Observation, make, norm, tensors_of

MEASURED = "measured"
"""Variable of a sample, with dims of its own, of a film frames first; beside it ``measured_<tensor of the
observation>`` and, complex where the images are, ``measured_truth``. All follow the axes x, y, z."""
KINDS: Mapping[str, tuple[str, Callable[..., simulate.Measured]]] = {
    "noise": ("identity", simulate.noisy), "blur": ("blur", simulate.blurred), "scan": ("fourier", simulate.scanned),
    "projections": ("radon", simulate.projected)}
"""What was done to an image: the name of its observation, and how it is simulated."""
FIRST = {"scan": 8, "projections": 30}
"""Steps of least squares that a reconstruction starts with: from the adjoint, of projections from nothing."""
PHASE_VOXELS = 1.5
"""Standard deviation of the Gaussian over which the phase of a scan's image is averaged."""
IMAGINARY = 0.3
"""Weight of the squared imaginary part, once that phase is taken out."""
ITERATIONS = 16


@dataclass(frozen=True)
class Start:
    """In link space, ``(B or 1, …)``, of a film its frames. image: what the measurement gives at once (the noisy or
    zero-filled image); scale: of the measurement's units in link space; step: of gradient descent; error: about the
    size of what the image misses, where that can be told; phase: numbers of magnitude 1 that a scan's image is to be
    multiplied by, which the observation does."""

    observation: Observation
    measurement: Tensor
    image: Tensor
    scale: float
    step: float
    error: float = 1.0
    phase: Tensor | None = None


def simulated(sample: xr.Dataset, modality: str, kind: str, options: Mapping[str, Any],
              rng: np.random.Generator, imaginary: str = "") -> xr.Dataset:
    """A sample in RAS order with a simulated measurement of a modality, whose ``attrs["simulated"]`` says how; as it is
    if it holds a measurement. An option ``noise`` that is a list is one of its levels. Where nothing is known there is
    nothing (air). Raises `InputError` for an image that can't be measured so, or an option that there isn't.
    """
    if MEASURED in sample:
        return sample
    where, given = sample.attrs.get("source", "sample"), dict(options)
    if isinstance(given.get("noise"), list | tuple):
        given["noise"] = given["noise"][int(rng.integers(len(given["noise"])))]
    volume = _known(sample[modality].values.astype(np.float64))
    if kind == "projections":
        if sample[modality].attrs.get("units") != "HU":
            raise InputError(where, key=modality, found=f"unit {sample[modality].attrs.get('units')}", expected="HU",
                             fix="simulate projections of a CT")
        volume, given["spacing"] = simulate.attenuation_of(volume), geometry.spacing(sample)[:2]
    elif ((kind == "noise" and given.get("rician", True)) or (kind == "scan" and not imaginary)) and volume.min() < 0:
        raise InputError(where, key=modality, found=f"values down to {volume.min():g}",
                         expected="a magnitude, not negative", fix="noise: {rician: false} for other images")
    if imaginary:
        volume = volume + 1j * _known(sample[imaginary].values.astype(np.float64))
    try:
        if kind == "projections" and volume.ndim == 4:
            made = simulate.film_of([simulate.projected(frame, rng, **given) for frame in volume])
        else:
            made = KINDS[kind][1](volume, rng, **given)
    except TypeError as error:
        raise InputError("domains.volumes.task", key=f"options of {kind}", found=str(error),
                         expected=f"those of sciml.domains.volumes.simulate.{KINDS[kind][1].__name__}",
                         fix="correct the name") from None
    arrays = {MEASURED: made.measurement, **{f"{MEASURED}_{name}": a for name, a in made.tensors.items()}}
    if np.iscomplexobj(made.truth):
        arrays[f"{MEASURED}_truth"] = made.truth
    data = {name: ([f"{name}_{i}" for i in range(a.ndim)], a) for name, a in arrays.items()}
    return sample.assign(data).assign_attrs(made.attrs)


def start_of(sample: xr.Dataset, modality: str, kind: str, options: Mapping[str, Any], step: float,
             weight: float = 0.0) -> Start:
    """What a sample's measurement says; without one, a noisy image is its own. step: over 1 / ‖A‖². weight: of total
    variation, over `Start.error`; 0: least squares.

    Raises `InputError` if there is no measurement, or it is not one of an image of this size.
    """
    where, lattice = sample.attrs.get("source", "sample"), tuple(sample.sizes[name] for name in geometry.NAMES)
    film = geometry.TIME in sample[modality].dims
    if MEASURED in sample:
        raw = sample[MEASURED].values
    elif kind in ("noise", "blur"):
        raw = _known(sample[modality].values)
    else:
        raise InputError(where, key=MEASURED, found="no measurement", expected=f"that of a {kind}",
                         fix=f"give the variable {MEASURED}, see sciml.domains.volumes.measured")
    prefix = f"{MEASURED}_"
    parts = {str(name).removeprefix(prefix): _samples(sample[name].values, film) for name in sample.data_vars
             if str(name).startswith(prefix) and name != f"{prefix}truth"}
    observation = make(KINDS[kind][0], options_of(kind, options, lattice, geometry.spacing(sample)), parts, where=where)
    y = _samples(raw, film)
    try:
        image = observation.adjoint(y)
    except RuntimeError as error:
        raise InputError(where, key=MEASURED, found=f"shape {raw.shape} ({error})", fix="give it in the order x, y, z",
                         expected=f"a {kind} of an image {lattice}") from None
    longest = 1 / (float(norm(observation, image).max()) * 1.05) ** 2
    size = step * longest
    if kind == "projections":
        scale = simulate.WATER_PER_MM
        image = least_squares(observation, y, torch.zeros_like(image), FIRST[kind], size)
    else:
        image = least_squares(observation, y, image, FIRST.get(kind, 0), size)
        scale = float(np.percentile(image.abs().numpy(), 99)) or 1.0
    missed = noise_level(image) / scale if kind in ("noise", "scan") else 1.0
    start = Start(observation, y / scale, image / scale, scale, size, missed or 1.0)
    return _smoothed(start, kind, weight * start.error, longest, options.get("rician", True)) if weight else start


def _smoothed(start: Start, kind: str, weight: float, step: float, rician: bool) -> Start:
    """With an image of small total variation. Noise: of √(m² − 2 σ²), whose square has the mean x² under Rician noise
    (Gudbjartsson & Patz 1995). A scan: half of the steps for its smooth phase, which is then the observation's and its
    image nearly real (Bydder & Robson, Magn. Reson. Med. 53, 1393, 2005), half for that image."""
    y, image = start.measurement, start.image
    if kind == "noise" and rician:
        y = (y.square() - 2 * start.error**2).clamp_min(0).sqrt()
    if kind != "scan":
        image = total_variation(start.observation, y, weight, iterations=ITERATIONS, start=image, step=step).image
        return replace(start, image=image)
    image = total_variation(start.observation, y, weight, iterations=ITERATIONS // 2, start=image, step=step).image
    phase = phase_of(image)
    tensors = tensors_of(start.observation)
    coils = tensors.get("coils", torch.ones_like(phase)[:, None]) * phase[:, None]
    turned = make(KINDS[kind][0], {}, {**tensors, "coils": coils})
    y = y if "coils" in tensors else y[:, None]
    image = total_variation(turned, y, weight, iterations=ITERATIONS // 2, start=image * phase.conj().resolve_conj(),
                            step=step, imaginary=IMAGINARY).image
    return replace(start, observation=turned, measurement=y, image=image, phase=phase)


def phase_of(image: Tensor) -> Tensor:
    """Of complex ``(n, X, Y, Z)`` images averaged over `PHASE_VOXELS`, as numbers of magnitude 1; 1 where nothing is.

    >>> round(phase_of(torch.full((1, 4, 4, 4), 3j))[0, 0, 0, 0].angle().item(), 4)
    1.5708
    """
    from scipy.ndimage import gaussian_filter

    width = (0.0, *[PHASE_VOXELS] * (image.ndim - 1))
    real, imaginary = (gaussian_filter(part.numpy(), width) for part in (image.real, image.imag))
    return torch.polar(torch.ones_like(image.real), torch.from_numpy(np.arctan2(imaginary, real)))


def noise_level(image: Tensor) -> float:
    """Standard deviation of white (real) noise in ``(n, X, Y, Z)`` images, from the median size of its finest details
    (Donoho & Johnstone, Biometrika 81, 425, 1994): differences of neighbours along every axis, one after the other.

    >>> round(noise_level(torch.randn(1, 30, 30, 30, generator=torch.Generator().manual_seed(0))), 1)
    1.0
    """
    axes = [dim for dim in range(1, image.ndim) if image.shape[dim] > 1]
    for dim in axes:
        image = image.diff(dim=dim)
    return float(image.abs().median() / 0.6745 / 2 ** (len(axes) / 2))


def options_of(kind: str, options: Mapping[str, Any], lattice: Sequence[int], mm: Sequence[float]) -> dict[str, Any]:
    """Of the observation of an image with that lattice and spacing, from those of its simulation."""
    if kind == "blur":
        return {"width_cells": options["width_cells"]}
    if kind == "projections":
        return {"size": tuple(lattice[:2]), "bin_width": min(mm[:2]), "spacing": tuple(mm[:2]),
                **{name: options[name] for name in ("angles", "span_deg") if name in options}}
    return {}


def truth_of(sample: xr.Dataset, modality: str, kind: str) -> np.ndarray:
    """``([t,] x, y, z)`` in the measurement's units, complex where images are; what isn't known is 0."""
    if f"{MEASURED}_truth" in sample:
        return sample[f"{MEASURED}_truth"].values
    volume = _known(sample[modality].values.astype(np.float64))
    return simulate.attenuation_of(volume) if kind == "projections" else volume


def _known(volume: np.ndarray) -> np.ndarray:
    return np.nan_to_num(volume, nan=0.0, posinf=0.0, neginf=0.0)


def _samples(values: np.ndarray, film: bool) -> Tensor:
    """``(1, …)``, or frames as samples ``(T, …)``."""
    return _tensor(values) if film else _tensor(values)[None]


def _tensor(values: np.ndarray) -> Tensor:
    """In the default precision, complex ones too."""
    if not np.iscomplexobj(values):
        return tensor(values)
    return torch.view_as_complex(tensor(np.stack([values.real, values.imag], -1)))
