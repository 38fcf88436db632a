"""From k-space to images: what readers of raw scans have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from sciml.data.readers import _volumes as volumes
from sciml.data.readers._combine import options_of
from sciml.data.readers._volumes import Scan, Subject
from sciml.data.readers._volumes_files import files_below
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions, volume_options
from sciml.data.safety import Limits, limits_of
from sciml.recipe import Section, validate

SUFFIXES = (".h5", ".hdf5")
IMAGINARY = "_imaginary"
LOW = 0.1
"""Share of the frequencies, from the middle, that the coils' images at low resolution have."""
SHARED = OPTIONS - {"frames", "images", "labels", "structures", "ignore"}
"""Options of all volumes that raw scans have, too."""


class Parts(Section):
    """The option that raw scans have beside those of all volumes."""

    parts: Literal["magnitude", "complex"] = "magnitude"


Made = Callable[[str, VolumeOptions, Any, Limits], Subject]
"""``made(path, options, own, limits)``: the subject of a file; own: the reader's own options."""


def dataset_of(paths: Sequence[str], source: Any, own: type[Parts], made: Made, format: str) -> xr.Dataset:
    """The data set of a source whose files are a subject each, by ascending name. Raises `InputError`."""
    options = options_of(source)
    names = frozenset(own.model_fields)
    mine = validate(own, {key: options[key] for key in names if key in options}, where=source.name)
    chosen = volume_options({"modality": "mri", **options}, source.name, names)
    limits = limits_of(options, source.name)
    files = [file for path in paths for file in files_below(path, SUFFIXES)]
    return volumes.dataset([made(file, chosen, mine, limits) for file in files], chosen, format=format,
                           where=source.name, mask=source.missing == "mask")


def modalities(name: str, parts: Parts, scan: Callable[[str], Scan]) -> Mapping[str, Scan]:
    """The magnitude, or real and imaginary part, of ``scan(part)``."""
    if parts.parts == "magnitude":
        return {name: scan("magnitude")}
    return {name: scan("real"), f"{name}{IMAGINARY}": scan("imag")}


def part_of(image: np.ndarray, part: str) -> np.ndarray:
    """``magnitude``, ``real`` or ``imag`` of a complex image."""
    return np.abs(image) if part == "magnitude" else np.asarray(getattr(image, part))


def combined(kspace: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The complex image ``size`` of one slice's k-space ``([coil,] row, column)``, zero frequency in the middle: of
    several coils the root of the sum of squares, with the phase of the coils weighed by their own images at low
    resolution."""
    images = middle(image_of(kspace, (-2, -1)), size)
    if kspace.ndim == 2:
        return images
    low = middle(image_of(kspace * _taper(kspace.shape[-2:]), (-2, -1)), size)
    whole = (low.conj() * images).sum(0)
    return np.asarray(np.sqrt((np.abs(images) ** 2).sum(0)) * np.exp(1j * np.angle(whole)))


def image_of(kspace: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The unitary inverse transform along axes whose middle n // 2 is frequency and place zero."""
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)


def middle(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """``(…, *size)``: the middle of the last axes."""
    for axis, m in enumerate(size, image.ndim - len(size)):
        first = (image.shape[axis] - m) // 2
        image = image.take(range(first, first + m), axis)
    return image


def resized(kspace: np.ndarray, axis: int, count: int) -> np.ndarray:
    """As many frequencies along an axis, about zero at n // 2: those that were not measured are 0, those beyond are
    left out. The image's values stay, on finer or coarser voxels of the same field of view.

    >>> resized(np.ones(2), 0, 4).tolist()
    [0.0, 1.4142135623730951, 1.4142135623730951, 0.0]
    """
    n = kspace.shape[axis]
    if n == count:
        return kspace
    first = count // 2 - n // 2
    kept = np.take(kspace, range(max(0, -first), min(n, count - first)), axis)
    more = [(0, 0)] * kspace.ndim
    more[axis] = (max(0, first), count - max(0, first) - kept.shape[axis])
    return np.pad(kept, more) * np.sqrt(count / n, dtype=kspace.real.dtype)


def _taper(shape: Sequence[int]) -> np.ndarray:
    """``(row, column)``: a raised cosine around the middle."""
    bells = [np.cos(np.pi / 2 * np.minimum(np.abs(np.arange(n) - n // 2) / max(1.0, n * LOW), 1)) ** 2 for n in shape]
    return np.outer(*bells)
