"""A raw folder of nnU-Net, or a task of the Medical Segmentation Decathlon, as it is.

``imagesTr``, ``labelsTr`` and ``dataset.json``: nnU-Net has a file per channel (``CASE_0000.nii.gz``, names in
``channel_names``, the suffix in ``file_ending``), the Decathlon one file per case whose fourth axis are the channels
(``modality``). Names of structures, regions and the label ``ignore`` come from ``labels``. Test images have no labels
and are left out. Options: those of all volumes but images and labels, which the folder says; frames only as `time`, of
files of one channel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from sciml.data.files import is_folder
from sciml.data.readers import _volumes as volumes
from sciml.data.readers import nifti, nrrd
from sciml.data.readers._combine import options_of
from sciml.data.readers._volumes import Scan
from sciml.data.readers._volumes_files import Case, files_below, local, stem, subjects_of
from sciml.data.readers._volumes_look import look
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions, volume_options
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, limits_of
from sciml.errors import InputError

JSON_BYTES = 64 << 20
ENDINGS = {".nii.gz": nifti.scans, ".nii": nifti.scans, ".nrrd": nrrd.scans}
CHANNEL = re.compile(r"(.+)_(\d{4})")
IGNORE = "ignore"


@dataclass(frozen=True)
class NNUNet:
    """Reads the training cases; one folder, one data set."""

    options: frozenset[str] = (OPTIONS | {"step_s"}) - {"images", "labels", "modality"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if "://" in path or not is_folder(path) or not (local(path) / "imagesTr").is_dir():
            return None
        if not (local(path) / "dataset.json").is_file():
            return None
        if not limit_bytes:
            return look([path], {}, _scans, (), "nnunet", 0)
        folder = Folder.of(path)
        found = look([path], folder.options, partial(_scans, limits=Limits()), (folder.ending,), "nnunet", limit_bytes,
                     folder.cases())
        told = {key: value for key, value in found.options.items() if key in ("unit",)}
        return replace(found, options=told)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Cases by ascending name, lazily."""
        if len(paths) > 1:
            raise InputError(paths[1], found=f"{len(paths)} folders", expected="one", fix="one store per data set")
        given, folder = options_of(source), Folder.of(str(paths[0]))
        chosen = volume_options({**folder.options, **given}, source.name)
        if "frames" in given and ("frames" in folder.options or chosen.frames != "time"):
            raise InputError(folder.path / "dataset.json", key="options.frames", found=given["frames"],
                             expected="frames that are the channels of dataset.json" if "frames" in folder.options
                             else "time", fix="leave it out, or read the files with options: {format: nifti}")
        opened = partial(_scans, options=chosen, limits=limits_of(given, source.name))
        subjects = subjects_of(folder.cases(), opened, chosen)
        return volumes.dataset(subjects, chosen, format="nnunet", where=source.name, mask=source.missing == "mask",
                               notes=folder.notes)


PLUGIN = NNUNet()


def _scans(path: str, options: VolumeOptions, limits: Limits) -> Sequence[Scan]:
    opened = ENDINGS[next(ending for ending in ENDINGS if path.endswith(ending))]
    return opened(path, options, limits)


@dataclass(frozen=True)
class Folder:
    """What dataset.json says. split: channels are files of their own (else frames of one file)."""

    path: Path
    channels: tuple[str, ...]
    ending: str
    split: bool
    options: Mapping[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: str) -> Folder:
        """Raises `InputError` for a dataset.json that is no JSON, or lacks channels or labels."""
        root = local(path)
        about = _json(root / "dataset.json")
        split = "channel_names" in about or "file_ending" in about
        channels = _channels(root, about.get("channel_names", about.get("modality")))
        ending = str(about.get("file_ending", ".nii.gz"))
        if ending not in ENDINGS:
            raise InputError(root / "dataset.json", key="file_ending", found=ending,
                             expected=f"one of {', '.join(ENDINGS)}", fix="convert the images to NIfTI")
        if "dataset" in about:
            raise InputError(root / "dataset.json", key="dataset", found="paths of cases",
                             expected="imagesTr and labelsTr",
                             fix="say where files are: options: {format: nifti, images: {…}, labels: …}")
        structures, regions, ignore = _labels(root, about.get("labels"))
        options: dict[str, Any] = {"structures": structures} if structures else {}
        options |= {"ignore": ignore} if ignore is not None else {}
        options["unit"] = {name: "HU" if name.split("_")[0] == "ct" else "1" for name in channels}
        if not split and len(channels) > 1:
            options["frames"] = channels
        tests = len(files_below(str(root / "imagesTs"), (ending,))) if (root / "imagesTs").is_dir() else 0
        notes = [f"region {name}: labels {', '.join(map(str, values))}" for name, values in regions.items()]
        notes += [f"{tests} files of imagesTs have no labels and are left out"] if tests else []
        return cls(root, channels, ending, split, options, tuple(notes))

    def cases(self) -> list[Case]:
        """Files of each training case. Raises `InputError` for channels that dataset.json doesn't have, or that a case
        lacks."""
        labels = {stem(file, (self.ending,)): file for file in files_below(str(self.path / "labelsTr"), (self.ending,))
                  } if (self.path / "labelsTr").is_dir() else {}
        images: dict[str, dict[str, str]] = {}
        for file in files_below(str(self.path / "imagesTr"), (self.ending,)):
            name, channel = stem(file, (self.ending,)), 0
            if self.split:
                match = CHANNEL.fullmatch(name)
                if match is None or int(match[2]) >= len(self.channels):
                    raise InputError(file, key="channel", found=f"{name}{self.ending}",
                                     expected=f"CASE_0000{self.ending} to _{len(self.channels) - 1:04d}, the "
                                              f"channels of "
                                     "dataset.json", fix="rename it, or name its channel in dataset.json")
                name, channel = match[1], int(match[2])
            images.setdefault(name, {})[self.channels[channel]] = file
        if not images or set(labels) - set(images):
            alone = sorted(set(labels) - set(images))
            raise InputError(labels[alone[0]] if alone else self.path, key="imagesTr",
                             found="no image" + (f" of {alone[0]}" if alone else ""),
                             expected=f"images ending in {self.ending} for all labels",
                             fix="add it, or remove the label")
        return [Case(name, {c: found[c] for c in self.channels if c in found}, labels.get(name))
                for name, found in sorted(images.items())]


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > JSON_BYTES:
        raise InputError(path, found=f"{path.stat().st_size} bytes", expected=f"at most {JSON_BYTES}",
                         fix="it is no dataset.json of nnU-Net")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(path, found=str(error)[:80], expected="JSON", fix="mend it") from None
    if not isinstance(found, dict):
        raise InputError(path, found=type(found).__name__, expected="an object", fix="mend it")
    return found


def _channels(root: Path, given: Any) -> tuple[str, ...]:
    names = [re.sub("[^a-z0-9]+", "_", str(given[key]).lower()).strip("_") for key in sorted(given, key=_number)] if \
        isinstance(given, dict) and all(str(key).isdigit() for key in given) else []
    if not names or len(set(names)) < len(names) or not all(name[:1].isalpha() for name in names):
        raise InputError(root / "dataset.json", key="channel_names", found=str(given)[:80],
                         expected="a different name for each channel, such as {\"0\": \"CT\"}",
                         fix="add or correct them")
    return tuple(names)


def _number(key: Any) -> int:
    return int(str(key))


def _labels(root: Path, given: Any) -> tuple[dict[int, str], dict[str, list[int]], int | None]:
    """Names by value, regions by name, and the value to be ignored; from name → value(s) or value → name."""
    names: dict[int, str] = {}
    regions: dict[str, list[int]] = {}
    try:
        for key, value in dict(given or {}).items():
            if str(key).isdigit() and isinstance(value, str):
                names[int(key)] = value
            elif isinstance(value, list | tuple):
                regions[str(key)] = sorted(int(v) for v in value)
            else:
                names[int(value)] = str(key)
    except (TypeError, ValueError):
        raise InputError(root / "dataset.json", key="labels", found=str(given)[:80],
                         expected="{name: value} or {value: name}", fix="correct it") from None
    ignore = next((value for value, name in names.items() if name == IGNORE), None)
    for value in {value for values in regions.values() for value in values}:
        names.setdefault(value, f"label_{value}")
    return {value: name for value, name in names.items() if value != ignore}, regions, ignore
