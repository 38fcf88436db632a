"""Simulated measurements of known volumes, made so that a reconstruction can't profit from how they were made.

A scan's image has a smooth phase that nobody is told, its coils' sensitivities are known with the errors of a
calibration scan only, magnitudes have Rician noise, and projections are taken of a finer grid than the one that is
reconstructed (Kaipio & Somersalo, "Statistical and computational inverse problems", 2005, on the inverse crime). What
is made says in ``attrs["simulated"]`` how. Random numbers come from the generator that is given. Volumes are ``(x, y,
z)`` arrays, or ``(x, y)``, films ``(t, x, y, z)``; "reference" is the 99th percentile of the magnitude. """

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sciml.errors import InputError

WATER_PER_MM = 0.02
"""Linear attenuation of water near 70 keV, 1/mm, rounded (NIST XCOM: 0.0193)."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one volume. observation, options: a name and options of ``sciml.observations``; tensors:
    what else that needs, without the leading sample dimension, of a film with that of frames; truth: the image in the
    measurement's own units, complex where the observation's are; attrs: ``simulated``, a sentence, unless it was really
    measured."""

    observation: str
    measurement: np.ndarray
    truth: np.ndarray
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    attrs: Mapping[str, str] = field(default_factory=dict)


def noisy(volume: np.ndarray, rng: np.random.Generator, *, noise: float, rician: bool = True) -> Measured:
    """The volume with noise of standard deviation `noise` references: in the magnitude of a complex image (Gudbjartsson
    & Patz, Magn. Reson. Med. 34, 910, 1995), or added."""
    sigma = noise * reference(volume)
    first, second = rng.standard_normal((2, *volume.shape)) * sigma
    seen = np.hypot(volume + first, second) if rician else volume + first
    kind = "Rician" if rician else "Gaussian"
    return Measured("identity", seen, volume, attrs={"simulated": f"{kind} noise, {noise:g} of the 99th percentile"})


def blurred(volume: np.ndarray, rng: np.random.Generator, *, width_cells: Sequence[float], noise: float
            ) -> Measured:
    """Through a Gaussian point spread, made by interpolating filters of `scipy.ndimage` and not by the observation;
    then additive noise."""
    from scipy.ndimage import gaussian_filter

    seen = gaussian_filter(volume, ([0.0] if volume.ndim == 4 else []) + [*width_cells], mode="constant", truncate=6.0)
    seen = seen + rng.standard_normal(volume.shape) * noise * reference(volume)
    widths = ", ".join(f"{w:g}" for w in width_cells)
    return Measured("blur", seen, volume, options={"width_cells": tuple(width_cells)}, attrs={
        "simulated": f"blurred by {widths} cells, Gaussian noise, {noise:g} of the 99th percentile"})


def scanned(volume: np.ndarray, rng: np.random.Generator, *, acceleration: float = 4.0, coils: int = 4,
            noise: float = 0.02, centre: float = 0.06, calibration: float = 0.03, readout: int = 1,
            lines: int | None = None) -> Measured:
    """Undersampled k-space of the volume seen with a smooth phase by `coils` coils (1: a single one of sensitivity 1);
    of a film, of every frame, which differ in what is sampled and noise.

    Along the axis `readout` everything is sampled, in the plane of the others 1 / acceleration of the cells
    (`variable_density`); with `lines` an axis, whole lines are left out along that one alone, which is what slices
    scanned one by one have. noise: standard deviation of both parts in k-space, in references, for an orthonormal
    transform. calibration: the smooth relative error of the coils that the reconstruction is told. """
    if volume.ndim < 2 or coils < 1 or acceleration < 1:
        raise InputError("simulate", key="scanned", found=f"{volume.ndim}-D, {coils} coils, {acceleration:g}×",
                         expected="2-D or 3-D, at least one coil, at least 1×", fix="correct the options")
    frames = volume if volume.ndim == 4 else volume[None]
    shape = frames.shape[1:]
    sampled = (lines,) if lines is not None else tuple(a for a in range(len(shape)) if a != readout)
    mask = np.stack([variable_density([n if a in sampled else 1 for a, n in enumerate(shape)], rng,
                                      acceleration=acceleration, centre=centre)[0] for _ in frames])
    image = frames * np.exp(1j * smooth(shape, rng))
    maps = coil_maps(shape, coils, rng) if coils > 1 else np.ones((1, *shape), complex)
    clean = np.fft.fftn(maps * image[:, None], axes=range(2, 2 + len(shape)), norm="ortho")
    parts = rng.standard_normal((2, *clean.shape)) * noise * reference(volume)
    seen = (clean + parts[0] + 1j * parts[1]) * mask[:, None]
    attrs = {"simulated": f"{acceleration:g}x undersampled k-space of {coils} coil(s), random smooth phase, noise "
                          f"{noise:g} of the 99th percentile"}
    tensors = {"mask": mask.astype(np.float32)}
    if coils > 1:
        errors = [smooth(shape, rng, size=calibration) + 1j * smooth(shape, rng, size=calibration)
                  for _ in range(coils)]
        found = maps * (1 + np.stack(errors))
        found = (found / np.sqrt((np.abs(found) ** 2).sum(0))).astype(np.complex64)
        tensors["coils"] = np.repeat(found[None], len(frames), 0)
    made = Measured("fourier", seen if coils > 1 else seen[:, 0], image, tensors, attrs=attrs)
    return made if volume.ndim == 4 else of_frame(made, 0)


def projected(attenuation: np.ndarray, rng: np.random.Generator, *, angles: int, span_deg: float = 180.0,
              photons: float = 1e5, spacing: tuple[float, float] = (1.0, 1.0), finer: int = 2) -> Measured:
    """Parallel-beam projections of every slice ``(x, y)`` of an attenuation map (per unit of `spacing`), taken of a
    grid `finer` times as fine: −log of Poisson counts of `photons` per detector bin, at least one. Few angles: sparse
    view; span_deg below 180: limited angle."""
    import torch
    from scipy.ndimage import zoom

    from sciml.observations.radon import Radon

    if attenuation.ndim < 2 or attenuation.min() < 0:
        raise InputError("simulate", key="projected", found=f"{attenuation.ndim}-D, smallest {attenuation.min():g}",
                         expected="a map of attenuation, not negative", fix="use `attenuation_of` on Hounsfield units")
    width = min(spacing)
    size = (attenuation.shape[0], attenuation.shape[1])
    scan = Radon(size, angles, span_deg, bin_width=width, spacing=spacing)
    options = {"size": size, "angles": angles, "span_deg": span_deg, "bin_width": width, "spacing": spacing,
               "bins": scan.num_bins}
    fine = zoom(attenuation, [finer, finer, *[1] * (attenuation.ndim - 2)], order=3, mode="nearest", grid_mode=True)
    through = Radon((fine.shape[0], fine.shape[1]), angles, span_deg, bins=scan.num_bins, bin_width=width,
                    spacing=(spacing[0] / finer, spacing[1] / finer))
    lengths = through.forward(torch.from_numpy(fine.clip(0))[None])[0].numpy()
    counts = np.maximum(rng.poisson(photons * np.exp(-lengths)), 1)
    return Measured("radon", -np.log(counts / photons), attenuation, options=options, attrs={
        "simulated": f"{angles} projections over {span_deg:g} degrees, of a {finer}x finer grid, {photons:g} photons "
                     "a bin"})


def of_frame(film: Measured, frame: int) -> Measured:
    """What was measured in one frame of a film."""
    return replace(film, measurement=film.measurement[frame], truth=film.truth[frame],
                   tensors={name: each[frame] for name, each in film.tensors.items()})


def film_of(frames: Sequence[Measured]) -> Measured:
    """Of what was measured frame by frame, with equal options."""
    return replace(frames[0], measurement=np.stack([f.measurement for f in frames]),
                   truth=np.stack([f.truth for f in frames]),
                   tensors={name: np.stack([f.tensors[name] for f in frames]) for name in frames[0].tensors})


def attenuation_of(hounsfield: np.ndarray) -> np.ndarray:
    """1/mm; air and what is below it is 0.

    >>> attenuation_of(np.array([-1000.0, 0.0])).tolist()
    [0.0, 0.02]
    """
    return np.asarray(WATER_PER_MM * (1 + hounsfield / 1000)).clip(0)


def hounsfield_of(attenuation: np.ndarray) -> np.ndarray:
    """The inverse of `attenuation_of`."""
    return np.asarray((attenuation / WATER_PER_MM - 1) * 1000)


def reference(volume: np.ndarray) -> float:
    """The 99th percentile of the magnitude: what noise levels are relative to, whatever the scale of a volume is."""
    return float(np.percentile(np.abs(volume), 99))


def smooth(shape: Sequence[int], rng: np.random.Generator, *, knots: int = 4, size: float = 1.0) -> np.ndarray:
    """A random field of standard deviation about `size` that varies over a third of the volume: cubic splines
    through `knots` normal numbers per axis."""
    from scipy.ndimage import zoom

    coarse = rng.standard_normal([knots] * len(shape)) * size
    fine = zoom(coarse, [n / knots for n in shape], order=3, mode="nearest", grid_mode=True)
    return np.asarray(fine)


def coil_maps(shape: Sequence[int], coils: int, rng: np.random.Generator) -> np.ndarray:
    """``(coils, *shape)`` complex sensitivities with Σ |coil|² = 1: Gaussian lobes around places on an ellipsoid that
    encloses the volume, each with a smooth phase of its own."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    places = rng.standard_normal((coils, len(shape)))
    places *= 1.3 / np.linalg.norm(places, axis=1, keepdims=True)
    apart = ((grid[None] - places.reshape(coils, -1, *[1] * len(shape))) ** 2).sum(1)
    maps = np.exp(-apart / 2) * np.exp(1j * np.stack([smooth(shape, rng, knots=3) for _ in range(coils)]))
    return np.asarray(maps / np.sqrt((np.abs(maps) ** 2).sum(0)))


def variable_density(shape: Sequence[int], rng: np.random.Generator, *, acceleration: float,
                     centre: float = 0.06, power: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Which cells of k-space are sampled, and those of its fully sampled middle; bool, zero frequency first.

    Of the cells 1 / acceleration are drawn without replacement with weights (1 − r)^power, r the distance from the
    zero frequency (Lustig, Donoho & Pauly, Magn. Reson. Med. 58, 1182, 2007); the middle has the share `centre` of
    them all, the same share along every axis of more than one cell. Raises `InputError` if the middle alone is too
    much.

    >>> mask, middle = variable_density((1, 20, 20), np.random.default_rng(0), acceleration=4)
    >>> int(mask.sum()), bool(mask[middle].all()), bool(mask[0, 0, 0])
    (100, True, True)
    """
    axes = max(1, sum(n > 1 for n in shape))
    reach = [np.abs(np.fft.fftfreq(n)) * 2 for n in shape]
    grid = np.stack(np.meshgrid(*reach, indexing="ij"))
    middle = (grid <= centre ** (1 / axes)).all(0)
    count = round(float(middle.size) / acceleration)
    if middle.sum() > count:
        raise InputError("simulate", key="centre", found=f"{middle.sum()} of {middle.size} cells in the middle",
                         expected=f"at most the {count} that {acceleration:g}x samples", fix="lower centre")
    weight = np.maximum(1 - np.sqrt((grid**2).sum(0) / axes), 0.01) ** power * ~middle
    drawn = rng.choice(middle.size, count - int(middle.sum()), replace=False, p=weight.ravel() / weight.sum())
    mask = middle.copy()
    mask.ravel()[drawn] = True
    return mask, middle
