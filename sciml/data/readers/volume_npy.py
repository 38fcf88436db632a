"""Volumes as NumPy arrays with a spacing: a .npy file per image, or a .npz file per subject.

    options:
      format: volume_npy            # .npy files alone don't say that they are volumes
      spacing_mm: [1, 1, 3]         # between voxels along the axes of the array; origin at voxel (0, 0, 0)
      orientation: RAS              # what the axes point to (RAS, with a note, unless given)
      affine: [[…], …]              # instead of both: 4 × 4, voxel index to mm in RAS
      frames: time                  # arrays (I, J, K, T) are points of time, step_s apart
      step_s: 0.04

In a .npz, arrays of two or three dimensions (with `frames` of four) are modalities under their names, ``label`` is the
label map, ``spacing_mm (3,)`` or ``affine (4, 4)`` are the subject's own. Options: those of all volumes; of .npz files,
images and labels name arrays.
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
from sciml.data.readers._volumes_files import Case, files_below, local, stem, subjects_of
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

    options: frozenset[str] = OPTIONS | OWN | {"step_s"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        return None

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily."""
        options = options_of(source)
        placing = validate(Placing, {key: options[key] for key in OWN if key in options}, where=source.name)
        archives = [file for path in paths for file in files_below(path, (".npz",)) if file.lower().endswith(".npz")]
        if not archives:
            _chosen(options, source.name)
            return read_files(paths, source, _scans, (".npy",), "volume_npy", OWN, placing=placing)
        chosen, limits = _chosen(options, source.name), limits_of(options, source.name)
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
    frame: int = 0
    time_s: float = 0.0

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
        """``(I, J, K)``, or all frames ``(I, J, K, T)``."""
        header, shape = self.header, (*self.shape, *self.header.shape[3:])
        if header.offset is None:
            with np.load(self.file, allow_pickle=False) as archive:
                return np.asarray(archive[header.name]).reshape(shape)
        mapped = np.memmap(self.file, header.dtype, "r", header.offset, header.shape,
                           order="F" if header.fortran else "C")
        return mapped.reshape(shape)

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return (stored[..., self.frame] if stored.ndim == 4 else stored).astype(np.float32)


def _chosen(options: Mapping[str, Any], where: object) -> VolumeOptions:
    """Raises `InputError` for frames that are to be something else than points of time: arrays can be split."""
    chosen = volume_options(options, where, OWN)
    if chosen.frames not in (None, "time"):
        raise InputError(where, key="options.frames", found=chosen.frames, expected="time",
                         fix="write an array for each subject or modality")
    return chosen


def _scans(path: str, options: VolumeOptions, limits: Limits, placing: Placing) -> list[ArrayScan]:
    if not path.lower().endswith(".npy"):
        raise InputError(path, found="no .npy or .npz file", expected="NumPy arrays", fix="numpy.save(FILE, array)")
    header = check_npy(str(local(path)), limits)
    return _frames(path, header, _placed(path, placing, {}, options), limits, options)


def _frames(path: str, header: NpyHeader, placed: tuple[np.ndarray, tuple[str, ...]], limits: Limits,
            options: VolumeOptions) -> list[ArrayScan]:
    """The image of an array, or its frames, ``(I, J, K, T)``, where the options say that these are points of time."""
    ranks = (2, 3, 4) if options.frames == "time" else (2, 3)
    if len(header.shape) not in ranks or min(header.shape) < 1 or header.dtype.kind not in "biuf":
        raise InputError(path, key=header.name, found=f"{header.dtype} {header.shape}",
                         expected="real numbers (I, J, K) or (I, J)",
                         fix="options: {frames: time} makes the fourth axis points of time; else write one array per "
                             "frame or channel" if len(header.shape) == 4 else "write the array anew")
    if header.offset is None:
        check_size(path, header.name, header.shape, header.dtype.itemsize, limits.chunk_bytes, "a compressed volume")
    count, step = header.shape[3] if len(header.shape) == 4 else 1, options.step_s or float("nan")
    return [ArrayScan(path, header, *placed, frame, frame * step if frame else 0.0) for frame in range(count)]


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
    label, films = options.labels or ("label" if "label" in headers else None), options.frames == "time"
    images = options.images or {name: name for name, header in headers.items()
                                if name not in (*GEOMETRY, label) and 2 <= len(header.shape) <= 3 + films}
    for name in (*images.values(), *([label] if label else [])):
        if name not in headers:
            raise InputError(file, key=name, found="no such array", expected=f"one of {', '.join(headers)}",
                             fix="correct options.images or options.labels")
    placed = _placed(file, placing, own, options)
    if not images:
        raise InputError(file, found=f"arrays {', '.join(headers)}", expected="an image (I, J, K)", fix="add it")
    case = Case(stem(Path(file).name, (".npz",)), images, label)
    (made,) = subjects_of([case], lambda name: _frames(file, headers[name], placed, limits, options), options)
    return made
