"""What readers of volumes that go by files have in common: reading a source, and looking at files without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import is_folder
from sciml.data.readers import _volumes as volumes
from sciml.data.readers._combine import options_of
from sciml.data.readers._volumes import Scan
from sciml.data.readers._volumes_classes import classified
from sciml.data.readers._volumes_files import LABELS, Case, cases_of, local, root_of, subjects_of, walk
from sciml.data.readers._volumes_options import volume_options
from sciml.data.readers.guess import Guess, guess
from sciml.data.safety import limits_of
from sciml.errors import InputError

Scans = Callable[..., Sequence[Scan]]
"""``scans(path, options=VolumeOptions, limits=Limits)``: the scans of one file."""


def first_of(path: str, suffixes: Sequence[str]) -> str | None:
    """A file itself; of a folder the first file of these suffixes outside its folders of labels, None if there is
    none."""
    if "://" in path:
        return None
    if not is_folder(path):
        return path
    return next((file for file in walk(path, suffixes) if not {*LABELS} & {*Path(file).relative_to(local(path)).parts}),
                None)


def read_files(paths: Sequence[str], source: Any, scans: Scans, suffixes: Sequence[str], format: str,
               own: frozenset[str] = frozenset(), **given: Any) -> xr.Dataset:
    """The data set of a source whose files hold one scan each. own: options of the reader itself; given: passed on to
    `scans`. Raises `InputError`."""
    options = options_of(source)
    chosen, limits = volume_options(options, source.name, own), limits_of(options, source.name)

    def opened(path: str) -> Sequence[Scan]:
        return scans(path, options=chosen, limits=limits, **given)

    subjects = subjects_of(cases_of(paths, chosen, suffixes), opened, chosen)
    if chosen.classes is not None:
        subjects = classified(subjects, chosen.classes, Path(root_of(paths)), suffixes)
    return volumes.dataset(subjects, chosen, format=format, where=source.name, mask=source.missing == "mask")


def look(paths: Sequence[str], options: Mapping[str, Any], scans: Scans, suffixes: Sequence[str], format: str,
         limit_bytes: int, cases: Sequence[Case] | None = None) -> Guess:
    """What files are, before anybody said what they show: what has to be filled in is null; label values are read from
    as many files as `limit_bytes` allows. With a limit of 0, the format alone."""
    if not limit_bytes:
        return Guess(paths[0], format, "volumes", volumes.GROUP, {}, ())
    chosen, told, missing = volume_options({"frames": "groups", **options}, "sniff"), dict(options), list[str]()
    if cases is None:
        cases = cases_of(paths, chosen, suffixes)
    try:
        subjects = subjects_of(cases, partial(scans, options=chosen), chosen)
    except InputError as error:
        if "orientation" not in error.fix:
            raise
        chosen, told["orientation"] = chosen.model_copy(update={"orientation": "RAS"}), None
        missing.append(f"orientation: {error.found} in {error.where}; options.orientation, such as RAS")
        subjects = subjects_of(cases, partial(scans, options=chosen), chosen)
    read, labels = 0, list[Scan]()
    for subject in subjects:
        if subject.label is not None and (not labels or read < limit_bytes):
            labels.append(subject.label)
            read += 4 * int(np.prod(subject.label.shape))
    found = volumes.structures_in(labels) if labels and not chosen.structures else ()
    if len(subjects[0].images) == 1:
        told.setdefault("modality", next(iter(subjects[0].images)))
    notes = []
    if len(subjects) > len(cases):
        told["frames"] = "groups"
        notes.append("4-D images: each frame is a subject of its own; frames: time makes them points of time of one")
    if found:
        told["structures"] = list(found)
        missing.append(f"names of structures: options.structures, of {len(labels)} of "
                       f"{sum(s.label is not None for s in subjects)} label maps that were read")
    made = volumes.dataset(subjects, chosen.model_copy(update={"structures": tuple(found) or chosen.structures}),
                           format=format, where=paths[0], mask=True, missing=missing, notes=notes)
    told.setdefault("unit", chosen.unit)
    return guess(made, paths[0], options=told, limit_bytes=limit_bytes)
