"""DICOM series: a folder of slices is an image, and a folder of such folders are subjects (``pip install
"sciml[volumes]"``).

Slices are sorted by where they lie along the normal of their planes, not by name or number. The array is (column, row,
slice), as ITK and dcm2niix have it but for their flips; the affine turns DICOM's left, posterior, superior into right,
anterior, superior. Rescale slope and intercept are applied slice by slice: CT is in HU. Labels are NIfTI or NRRD files
of the same grid, named as the folder of their series. With `frames` several slices at every place are frames, told
apart by TemporalPositionIdentifier, TriggerTime, FrameReferenceTime or AcquisitionTime, the first that differs; their
seconds are ``options.step_s``, else those of the last three. Options: those of all volumes but images, and `series`
(the SeriesInstanceUID to take of folders that hold several).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head, is_folder
from sciml.data.readers import _volumes as volumes
from sciml.data.readers import nifti, nrrd
from sciml.data.readers._combine import options_of
from sciml.data.readers._volumes import Scan
from sciml.data.readers._volumes_dicom import Slice, frames_of, seconds_of, slices_of, stacked
from sciml.data.readers._volumes_files import LABELS, Case, files_below, local, stem, subjects_of, walk
from sciml.data.readers._volumes_look import look
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions, volume_options
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, check_size, limits_of
from sciml.errors import InputError

OWN = frozenset({"series"})
LABEL_FILES = (*nifti.SUFFIXES, *nrrd.SUFFIXES)
FEW = 16
"""Files of a folder that are looked at before it is said that it holds no DICOM."""
NAMES = {"CT": ("ct", "HU"), "MR": ("mri", "1"), "PT": ("pet", "1")}


@dataclass(frozen=True)
class DICOM:
    """Reads series; one folder is one subject."""

    options: frozenset[str] = (OPTIONS | OWN | {"step_s"}) - {"images"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if "://" in path:
            return None
        beside = (file for file in walk(path, ("",)) if not file.lower().endswith(LABEL_FILES))
        if not any(map(_is_dicom, itertools.islice(beside, FEW) if is_folder(path) else [path])):
            return None
        if not is_folder(path):
            raise InputError(path, found="one DICOM file", expected="the folder of its series", fix="name the folder")
        if not limit_bytes:
            return look([path], {}, _scans, (), "dicom", 0)
        folders = _series_folders([path])
        first, unit = NAMES.get(slices_of(folders[0][1], None)[0].modality, ("image", "1"))
        return look([path], {"modality": first, "unit": unit}, partial(_scans, limits=Limits(), series=None), (),
                    "dicom",
                    limit_bytes, _cases([path], first, None))

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily."""
        given = options_of(source)
        series = given.get("series")
        folders = _series_folders(paths)
        name, unit = NAMES.get(slices_of(folders[0][1], series)[0].modality, ("image", "1"))
        chosen = volume_options({"modality": name, "unit": unit, **given}, source.name, OWN)
        opened = partial(_scans, options=chosen, limits=limits_of(given, source.name), series=series)
        subjects = subjects_of(_cases(paths, chosen.modality, chosen.labels), opened, chosen)
        return volumes.dataset(subjects, chosen, format="dicom", where=source.name, mask=source.missing == "mask")


PLUGIN = DICOM()


def _is_dicom(path: str) -> bool:
    return head(path, 132)[128:] == b"DICM"


def _series_folders(paths: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Folders that hold DICOM files, each with its files; raises `InputError` if there is none."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for file in files_below(path, ("",)):
            if not file.lower().endswith(LABEL_FILES) and Path(file).name != "DICOMDIR" and _is_dicom(file):
                found.setdefault(os.path.dirname(file), []).append(file)
    if not found:
        raise InputError(paths[0], found="no DICOM file", expected="a folder of DICOM slices", fix="name their folder")
    return sorted(found.items())


def _cases(paths: Sequence[str], modality: str, labels: str | None) -> list[Case]:
    """A case per folder of slices, named by it (by the way to it where two have the same name)."""
    folders = [folder for folder, _ in _series_folders(paths)]
    root = str(local(paths[0])) if len(paths) == 1 else os.path.commonpath([str(local(path).absolute())
                                                                            for path in paths])
    names = [os.path.basename(folder) for folder in folders]
    if len(set(names)) < len(names):
        names = [os.path.relpath(folder, root).replace(os.sep, "_") for folder in folders]
    known = {stem(file, LABEL_FILES): file for file in _label_files(paths, root, labels)}
    alone = [name for name in known if name not in names]
    if alone:
        raise InputError(known[alone[0]], key="label", found=f"no series of {alone[0]}",
                         expected=f"the name of a folder, such as {names[0]}", fix="rename or remove it")
    return [Case(name, {modality: folder}, known.get(name)) for name, folder in zip(names, folders)]


def _label_files(paths: Sequence[str], root: str, labels: str | None) -> Iterable[str]:
    wanted = (labels,) if labels else LABELS
    places = [Path(path) for path in paths if Path(path).name in wanted] + [Path(root) / name for name in wanted]
    found = next((place for place in places if place.is_dir()), None)
    if found is None and labels:
        raise InputError(root, key="options.labels", found=f"no folder {labels}",
                         expected="a folder of NIfTI or NRRD files named as the series' folders", fix="correct it")
    return [] if found is None else files_below(str(found), LABEL_FILES)


def _scans(path: str, options: VolumeOptions, limits: Limits, series: str | None) -> Sequence[Scan]:
    if path.lower().endswith(LABEL_FILES) and not is_folder(path):
        return (nrrd.scans if path.lower().endswith(nrrd.SUFFIXES) else nifti.scans)(path, options, limits)
    slices = slices_of([file for file in files_below(path, ("",)) if os.path.dirname(file) == str(local(path))
                        and Path(file).name != "DICOMDIR" and _is_dicom(file)], series)
    frames = [stacked(slices)] if options.frames is None else frames_of(slices)
    if len(frames) == 1:
        return [_scan(path, frames[0], limits)]
    times = seconds_of(frames) if options.step_s is None else [options.step_s * t for t in range(len(frames))]
    return [replace(_scan(f"{path} frame {t}", frame, limits), time_s=time)
            for t, (frame, time) in enumerate(zip(frames, times))]


def _scan(path: str, slices: Sequence[Slice], limits: Limits) -> DicomScan:
    """A stack as one image; its affine is of the first and last slice."""
    first, last = slices[0], slices[-1]
    check_size(path, "series", (*first.shape, len(slices)), 4, limits.chunk_bytes, "a series")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.row * first.spacing[1], first.column * first.spacing[0]
    notes: tuple[str, ...] = ()
    if len(slices) > 1:
        affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    else:
        affine[:3, 2] = first.normal * (first.spacing[2] or 1.0)
        notes = () if first.spacing[2] else ("a plane without thickness, taken as 1 mm",)
    affine[:3, 3] = first.position
    return DicomScan(path, tuple(slices), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, notes)


@dataclass(frozen=True)
class DicomScan:
    """A series, or a frame of it; see `sciml.data.readers._volumes.Scan`. time_s: NaN where nobody says when."""

    path: str
    slices: tuple[Slice, ...]
    affine: np.ndarray
    notes: tuple[str, ...] = ()
    streamed: bool = True
    time_s: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.slices[0].shape, len(self.slices))

    def open(self) -> np.ndarray:
        """``(column, row, slice)`` float32, rescaled; one slice is decoded at a time."""
        volume = np.empty(self.shape, np.float32)
        for k, one in enumerate(self.slices):
            volume[:, :, k] = one.pixels().T
        return volume

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored
