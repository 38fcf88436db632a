"""Volumes as NumPy arrays with a spacing: a .npy file per image, or a .npz file per subject.

    options:
      format: volume_npy            # .npy files alone don't say that they are volumes
      spacing_mm: [1, 1, 3]         # between voxels along the axes of the array; origin at voxel (0, 0, 0)
      orientation: RAS              # what the axes point to (RAS, with a note, unless given)
      affine: [[…], …]              # instead of both: 4 × 4, voxel index to mm in RAS

In a .npz, arrays of two or three dimensions are modalities under their names, ``label`` is the label map, ``spacing_mm
(3,)`` or ``affine (4, 4)`` are the subject's own. Options: those of all volumes; of .npz files, images and labels name
arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field

from sciml.data.affines import from_spacing
from sciml.data.readers import _volumes as volumes
from sciml.data.readers._combine import options_of
from sciml.data.readers._volumes import Subject
from sciml.data.readers._volumes_files import files_below, local, stem
from sciml.data.readers._volumes_look import read_files
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions, volume_options
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, NpyHeader, check_npy, check_npz, check_size, limits_of
from sciml.errors import InputError
from sciml.recipe import Section, validate

OWN = frozenset({"spacing_mm", "affine"})
GEOMETRY = ("spacing_mm", "affine")


class Placing(Section):
    """Where the voxels of all files are, unless a .npz says it of its own."""

    spacing_mm: tuple[float, float, float] | None = None
    affine: tuple[tuple[float, ...], ...] | None = Field(default=None, min_length=4, max_length=4)


@dataclass(frozen=True)
class VolumeNpy:
    """Reads arrays whose spacing the source, or the .npz itself, says."""

    options: frozenset[str] = (OPTIONS | OWN) - {"frames"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        return None

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily."""
        options = options_of(source)
        placing = validate(Placing, {key: options[key] for key in OWN if key in options}, where=source.name)
        archives = [file for path in paths for file in files_below(path, (".npz",)) if file.lower().endswith(".npz")]
        if not archives:
            return read_files(paths, source, _scans, (".npy",), "volume_npy", OWN, placing=placing)
        chosen, limits = volume_options(options, source.name, OWN), limits_of(options, source.name)
        return volumes.dataset([_subject(file, chosen, limits, placing) for file in archives], chosen,
                               format="volume_npy", where=source.name, mask=source.missing == "mask")


PLUGIN = VolumeNpy()


@dataclass(frozen=True)
class ArrayScan:
    """An array of a NumPy file; see `sciml.data.readers._volumes.Scan`."""

    file: str
    header: NpyHeader
    affine: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.file}:{self.header.name}" if self.file.lower().endswith(".npz") else self.file

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.header.shape, 1)[:3]  # type: ignore[return-value]

    @property
    def streamed(self) -> bool:
        return self.header.offset is None

    def open(self) -> np.ndarray:
        header = self.header
        if header.offset is None:
            with np.load(self.file, allow_pickle=False) as archive:
                return np.asarray(archive[header.name]).reshape(self.shape)
        mapped = np.memmap(self.file, header.dtype, "r", header.offset, header.shape,
                           order="F" if header.fortran else "C")
        return mapped.reshape(self.shape)

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored.astype(np.float32)


def _scans(path: str, options: VolumeOptions, limits: Limits, placing: Placing) -> list[ArrayScan]:
    if not path.lower().endswith(".npy"):
        raise InputError(path, found="no .npy or .npz file", expected="NumPy arrays", fix="numpy.save(FILE, array)")
    header = check_npy(str(local(path)), limits)
    return [_scan(path, header, _placed(path, placing, {}, options), limits)]


def _scan(path: str, header: NpyHeader, placed: tuple[np.ndarray, tuple[str, ...]], limits: Limits) -> ArrayScan:
    if len(header.shape) not in (2, 3) or min(header.shape) < 1 or header.dtype.kind not in "biuf":
        raise InputError(path, key=header.name, found=f"{header.dtype} {header.shape}",
                         expected="real numbers (I, J, K) or (I, J)",
                         fix="write one array per frame or channel" if len(header.shape) > 3
                         else "write the array anew")
    if header.offset is None:
        check_size(path, header.name, header.shape, header.dtype.itemsize, limits.chunk_bytes, "a compressed volume")
    return ArrayScan(path, header, *placed)


def _placed(path: str, placing: Placing, own: Mapping[str, np.ndarray],
            options: VolumeOptions) -> tuple[np.ndarray, tuple[str, ...]]:
    affine, mm = (own.get(key, getattr(placing, key)) for key in ("affine", "spacing_mm"))
    if (affine is None) == (mm is None):
        raise InputError(path, key="spacing_mm", found="none" if mm is None else "spacing_mm and affine",
                         expected="spacing_mm (3 numbers), or affine (4 × 4)",
                         fix="options: {spacing_mm: [1, 1, 3], orientation: RAS}")
    if affine is not None:
        return np.asarray(affine, np.float64), ()
    values = np.asarray(mm, np.float64)
    if values.shape != (3,) or not (np.isfinite(values) & (values > 1e-6)).all():
        raise InputError(path, key="spacing_mm", found=values.tolist(), expected="3 numbers above 0",
                         fix="correct them")
    notes = () if options.orientation else ("orientation not given, taken as RAS",)
    return from_spacing(values, options.orientation or "RAS", path), notes


def _subject(file: str, options: VolumeOptions, limits: Limits, placing: Placing) -> Subject:
    headers = {header.name: header for header in check_npz(str(local(file)), limits)}
    with np.load(file, allow_pickle=False) as archive:
        own = {key: np.asarray(archive[key]) for key in GEOMETRY if key in headers and len(headers[key].shape) <= 2
               and max(headers[key].shape, default=0) <= 4}
    label = options.labels or ("label" if "label" in headers else None)
    images = options.images or {name: name for name, header in headers.items()
                                if name not in (*GEOMETRY, label) and len(header.shape) in (2, 3)}
    for name in (*images.values(), *([label] if label else [])):
        if name not in headers:
            raise InputError(file, key=name, found="no such array", expected=f"one of {', '.join(headers)}",
                             fix="correct options.images or options.labels")
    placed = _placed(file, placing, own, options)
    if not images:
        raise InputError(file, found=f"arrays {', '.join(headers)}", expected="an image (I, J, K)", fix="add it")
    return Subject(stem(Path(file).name, (".npz",)), {key: _scan(file, headers[name], placed, limits)
                                                      for key, name in images.items()},
                   _scan(file, headers[label], placed, limits) if label else None)
