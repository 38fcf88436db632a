"""fastMRI's HDF5 k-space (Zbontar et al., arXiv 1811.08839): ``kspace (slice[, coil], row, column)``, zero frequency in
the middle, with an ISMRMRD header as text.

    options:
      format: fastmri
      orientation: SPR            # what the axes slice, row, column point to: the files don't say
      parts: complex              # real and imaginary part as mri and mri_imaginary; else the magnitude, mri

A file is a subject, ``(slice, row, column)`` after a Fourier transform of every slice, cut to the middle that the
header reconstructs (readouts are oversampled). Several coils become their root of the sum of squares, the complex image
of which has the phase of the coils weighed by their own images at low resolution. Undersampled files are refused: what
they show isn't known. Options: those of all volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.affines import from_spacing
from sciml.data.files import head
from sciml.data.readers import _volumes as volumes
from sciml.data.readers._ismrmrd_header import elements, space
from sciml.data.readers._kspace import SHARED, SUFFIXES, Parts, combined, dataset_of, modalities, part_of
from sciml.data.readers._volumes import Subject
from sciml.data.readers._volumes_files import files_below, stem
from sciml.data.readers._volumes_look import first_of
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, Limits, check_size, open_hdf5, raw_hdf5
from sciml.errors import InputError

KSPACE, HEADER = "kspace", "ismrmrd_header"


@dataclass(frozen=True)
class FastMRI:
    """Reads fully sampled k-space of one or several coils."""

    options: frozenset[str] = SHARED | {"parts"}

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
        return dataset_of(paths, source, Parts, _subject, "fastmri")


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
                made[i] = part_of(image, self.part)
        return made

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored.astype(np.float32)


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
    told = elements(text, path)
    recon, encoded = (space(told, name, path) for name in ("reconSpace", "encodedSpace"))
    if not all(m <= n for m, n in zip(recon.matrix[:2], shape)) or encoded.matrix[0] != shape[0]:
        raise refuse(KSPACE, f"{shape} rows and columns",
                     f"{encoded.matrix[0]} rows, and at least the {recon.matrix[:2]} that are reconstructed",
                     "the file is damaged: copy it again")
    if options.orientation is None:
        raise refuse("options.orientation", "no orientation", "what slices, rows and columns point to",
                     "if you know it: options: {orientation: SPR}")
    mm = np.array([encoded.mm[2] / encoded.matrix[2], encoded.mm[0] / shape[0], encoded.mm[1] / shape[1]])
    size = (number, recon.matrix[0], recon.matrix[1])
    scan = partial(KspaceScan, path, size, from_spacing(mm, options.orientation, path))
    return Subject(stem(path, SUFFIXES), modalities(options.modality, parts, scan))
