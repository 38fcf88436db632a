"""fastMRI's HDF5 k-space (Zbontar et al., arXiv 1811.08839): ``kspace (slice[, coil], row, column)``, zero frequency in
the middle, with an ISMRMRD header as text.

options: format: fastmri orientation: SPR              # what the axes slice, row, column point to: the files don't say
parts: complex                # real and imaginary part as the modalities mri, mri_imaginary; else the magnitude, mri

A file is a subject, ``(slice, row, column)`` after a Fourier transform of every slice, cut to the middle that the
header reconstructs (readouts are oversampled). Several coils become their root of the sum of squares, the complex image
of which has the phase of the coils weighed by their own images at low resolution. Undersampled files are refused: what
they show isn't known. Options: those of all volumes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from sciml.data.affines import from_spacing
from sciml.data.files import head
from sciml.data.readers import _volumes as volumes
from sciml.data.readers._combine import options_of
from sciml.data.readers._volumes import Subject
from sciml.data.readers._volumes_files import files_below, stem
from sciml.data.readers._volumes_look import first_of
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions, volume_options
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, Limits, check_size, limits_of, open_hdf5, raw_hdf5
from sciml.errors import InputError
from sciml.recipe import Section, validate

KSPACE, HEADER = "kspace", "ismrmrd_header"
SUFFIXES = (".h5", ".hdf5")
IMAGINARY = "_imaginary"
LOW = 0.1
"""Share of the frequencies, from the middle, that the coils' images at low resolution have."""


class Parts(Section):
    """The option of this reader alone."""

    parts: Literal["magnitude", "complex"] = "magnitude"


@dataclass(frozen=True)
class FastMRI:
    """Reads fully sampled k-space of one or several coils."""

    options: frozenset[str] = (OPTIONS | {"parts"}) - {"frames", "images", "labels", "structures", "ignore"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        first = first_of(path, SUFFIXES)
        if first is None or head(first, 8) != HDF5_MAGIC:
            return None
        with open_hdf5(first) as file:
            if KSPACE not in file or HEADER not in file:
                return None
        if not limit_bytes:
            return Guess(path, "fastmri", "volumes", volumes.GROUP, {}, ())
        options = VolumeOptions(modality="mri", orientation="RAS")
        subjects = [_subject(file, options, Parts(), Limits()) for file in files_below(path, SUFFIXES)]
        missing = ("orientation: the files don't say what slices, rows and columns point to; options.orientation",)
        made = volumes.dataset(subjects, options, format="fastmri", where=path, missing=missing)
        return guess(made, path, options={"modality": "mri", "parts": "complex", "orientation": None, "unit": "1"},
                     limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily, a file at a time."""
        options = options_of(source)
        parts = validate(Parts, {key: options[key] for key in ("parts",) if key in options}, where=source.name)
        chosen = volume_options({"modality": "mri", **options}, source.name, frozenset({"parts"}))
        limits = limits_of(options, source.name)
        files = [file for path in paths for file in files_below(path, SUFFIXES)]
        return volumes.dataset([_subject(file, chosen, parts, limits) for file in files], chosen, format="fastmri",
                               where=source.name, mask=source.missing == "mask")


PLUGIN = FastMRI()


@dataclass(frozen=True)
class KspaceScan:
    """One part of a file's images; see `sciml.data.readers._volumes.Scan`."""

    path: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    part: str
    streamed: bool = True
    notes: tuple[str, ...] = ()

    def open(self) -> np.ndarray:
        """float32 ``(slice, row, column)``, one slice after the other through the transform."""
        made = np.empty(self.shape, np.float32)
        with raw_hdf5(self.path) as file:
            for i in range(self.shape[0]):
                image = combined(np.asarray(file[KSPACE][i]), self.shape[1:])
                made[i] = getattr(image, self.part) if self.part != "magnitude" else np.abs(image)
        return made

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored.astype(np.float32)


def combined(kspace: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The complex image ``size`` of one slice's k-space ``([coil,] row, column)``, zero frequency in the middle."""
    images = _cut(_image(kspace), size)
    if kspace.ndim == 2:
        return images
    low = _cut(_image(kspace * _taper(kspace.shape[-2:])), size)
    whole = (low.conj() * images).sum(0)
    return np.asarray(np.sqrt((np.abs(images) ** 2).sum(0)) * np.exp(1j * np.angle(whole)))


def _image(kspace: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)


def _cut(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    rows, columns = ((n - m) // 2 for n, m in zip(image.shape[-2:], size))
    return image[..., rows:rows + size[0], columns:columns + size[1]]


def _taper(shape: Sequence[int]) -> np.ndarray:
    """``(row, column)``: a raised cosine around the middle."""
    bells = [np.cos(np.pi / 2 * np.minimum(np.abs(np.arange(n) - n // 2) / max(1.0, n * LOW), 1)) ** 2 for n in shape]
    return np.outer(*bells)


def _subject(path: str, options: VolumeOptions, parts: Parts, limits: Limits) -> Subject:
    """Raises `InputError` for k-space that is undersampled or of another shape than its header says."""
    def refuse(key: str, found: str, expected: str, fix: str) -> InputError:
        return InputError(path, key=key, found=found, expected=expected, fix=fix)

    with open_hdf5(path, limits) as file:
        if KSPACE not in file or HEADER not in file:
            raise refuse(KSPACE, ", ".join(file), f"{KSPACE} and {HEADER}", "use a file of fastMRI, or another format")
        kspace, text = file[KSPACE], file[HEADER][()]
        if kspace.ndim not in (3, 4) or kspace.dtype.kind != "c" or min(kspace.shape) < 1:
            raise refuse(KSPACE, f"{kspace.dtype} {kspace.shape}", "complex (slice[, coil], row, column)",
                         "write it so")
        if "mask" in file:
            raise refuse("mask", "undersampled k-space", "all of k-space, which the training and validation files have",
                         "leave the file out; undersampling is simulated when a model is trained (task: restore)")
        check_size(path, KSPACE, kspace.shape[1:], kspace.dtype.itemsize, limits.chunk_bytes, "the k-space of a slice")
        number, shape = kspace.shape[0], kspace.shape[-2:]
    told = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    matrix, _ = space(told, "reconSpace", path)
    full, extent = space(told, "encodedSpace", path)
    if not all(m <= n for m, n in zip(matrix[:2], shape)) or full[0] != shape[0]:
        raise refuse(KSPACE, f"{shape} rows and columns",
                     f"{full[0]} rows, and at least the {matrix[:2]} that are reconstructed",
                     "the file is damaged: copy it again")
    if options.orientation is None:
        raise refuse("options.orientation", "no orientation", "what slices, rows and columns point to",
                     "if you know it: options: {orientation: SPR}")
    mm = np.array([extent[2] / full[2], extent[0] / shape[0], extent[1] / shape[1]])
    size = (number, int(matrix[0]), int(matrix[1]))
    scan = partial(KspaceScan, path, size, from_spacing(mm, options.orientation, path))
    name = options.modality
    images = {name: scan("magnitude")} if parts.parts == "magnitude" else {
        name: scan("real"), f"{name}{IMAGINARY}": scan("imag")}
    return Subject(stem(path, SUFFIXES), images)


def space(header: str, name: str, where: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Matrix ``(x, y, z)`` and field of view in mm of a space of an ISMRMRD header. Raises `InputError`.

    >>> text = "<reconSpace><matrixSize><x>4</x><y>2</y><z>1</z></matrixSize>"
    >>> space(text + "<fieldOfView_mm><x>8</x><y>4</y><z>3</z></fieldOfView_mm></reconSpace>", "reconSpace", "doc")
    ((4, 2, 1), (8.0, 4.0, 3.0))
    """
    part = re.search(rf"<{name}>(.*?)</{name}>", header, re.DOTALL)
    found: list[list[float]] = []
    for key in ("matrixSize", "fieldOfView_mm"):
        block = re.search(rf"<{key}>(.*?)</{key}>", part.group(1), re.DOTALL) if part else None
        numbers = re.findall(r"<([xyz])>\s*([0-9.eE+-]{1,24})\s*</\1>", block.group(1)) if block else []
        try:
            found.append([float(dict(numbers)[axis]) for axis in "xyz"])
        except (KeyError, ValueError):
            found.append([])
    if not all(len(values) == 3 and min(values) > 0 for values in found):
        raise InputError(where, key=f"{HEADER}: {name}", found=f"{found[0] or 'no'} cells, {found[1] or 'no'} mm",
                         expected="matrixSize and fieldOfView_mm, x, y and z above 0",
                         fix="the header is damaged: copy the file again")
    return tuple(int(n) for n in found[0]), tuple(found[1])
