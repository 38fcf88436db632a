"""Which files are images of which subject, and which are labels; then their scans as subjects."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sciml.assets import cache_folder
from sciml.data.files import local_path
from sciml.data.readers._volumes import Film, Scan, Subject, seconds
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.errors import InputError

IMAGES, LABELS = ("images", "imagesTr"), ("labels", "labelsTr")
DEPTH = 4
APART = 0.02
"""Of the step between frames: how far corresponding ones of two modalities may be apart."""
MOST = 1_000_000
"""Files of a folder that are looked at."""
Opener = Callable[[str], Sequence[Scan]]
"""The scans of a file: one, or one per frame of a 4-D image."""


@dataclass(frozen=True)
class Case:
    """The files of one subject."""

    name: str
    images: Mapping[str, str]
    label: str | None = None
    person: str = ""


def local(path: str) -> Path:
    """The path on this machine; raises `InputError` if there is none (values are memory-mapped)."""
    found = local_path(path)
    if found is None:
        raise InputError(path, found="a remote file", expected="a file or folder of this machine", fix="copy it here")
    return found


def files_below(path: str, suffixes: Sequence[str]) -> list[str]:
    """A file itself; of a folder the files of these suffixes, sorted, four levels deep, hidden ones left out."""
    return sorted(itertools.islice(walk(path, suffixes), MOST)) if local(path).is_dir() else [str(local(path))]


def walk(path: str, suffixes: Sequence[str]) -> Iterator[str]:
    """The files of a folder, one folder after the other."""
    root, endings = local(path), tuple(suffixes)
    for folder, below, names in os.walk(root):
        deep = len(Path(folder).relative_to(root).parts) >= DEPTH - 1
        below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in sorted(names)
                    if name.lower().endswith(endings) and not name.startswith("."))


def cases_of(paths: Sequence[str], options: VolumeOptions, suffixes: Sequence[str]) -> list[Case]:
    """The files of each subject. Without ``options.images`` all files are images of one modality, named by their
    subject, and those of a folder ``labels`` or ``labelsTr`` labels of the same name.

    Raises `InputError` if a pattern fits nothing, a file fits twice, or labels have no image.
    """
    files = sorted({file for path in paths for file in files_below(path, suffixes)})
    if not files:
        raise InputError(paths[0], found="no file", expected=f"files ending in {', '.join(suffixes)}",
                         fix="name their folder")
    root = root_of(paths)
    known = {_untagged(os.path.relpath(file, root), file): file for file in files}
    tops = {name.split(os.sep)[0] for name in known if os.sep in name}
    spec = options.labels or next((name for name in LABELS if name in tops), None)
    labels = {} if spec is None else _fitting(known, spec, suffixes, "options.labels", root)
    left = {name: file for name, file in known.items() if file not in {file for file, _ in labels.values()}}
    if options.images:
        found = {name: _fitting(known, text, suffixes, f"options.images.{name}", root)
                 for name, text in options.images.items()}
    else:
        folder = next((name for name in IMAGES if name in tops), None)
        fitting = _fitting(left, folder, suffixes, "options.images", root) if folder else _by_stem(left, suffixes)
        found = {options.modality: fitting}
    return _joined(found, labels)


def _untagged(name: str, file: str) -> str:
    """Files that were fetched into the cache have a tag of their URL before their name."""
    if cache_folder() not in Path(file).parents:
        return name
    folder, base = os.path.split(name)
    return os.path.join(folder, re.sub(r"^[0-9a-f]{8}-", "", base))


def root_of(paths: Sequence[str]) -> str:
    """The folder that names of a source's files are relative to."""
    if len(paths) == 1 and local(paths[0]).is_dir():
        return str(local(paths[0]))
    return os.path.commonpath([str(local(path).absolute().parent) for path in paths]) if len(paths) > 1 else \
        str(local(paths[0]).parent)


def stem(name: str, suffixes: Sequence[str]) -> str:
    """A file's name without folder and suffix.

    >>> stem("images/a_1.nii.gz", (".nii", ".nii.gz"))
    'a_1'
    """
    base = os.path.basename(name)
    fitting = [suffix for suffix in suffixes if base.lower().endswith(suffix)]
    return base[:len(base) - len(max(fitting, key=len))] if fitting else base


def _by_stem(known: Mapping[str, str], suffixes: Sequence[str]) -> dict[str, tuple[str, str]]:
    return _unique(((stem(name, suffixes), file, "") for name, file in known.items()))


def _fitting(known: Mapping[str, str], text: str, suffixes: Sequence[str], key: str,
             root: str) -> dict[str, tuple[str, str]]:
    """Subject → (file, person) of the files that fit a folder or pattern."""
    folder = text.strip("/") + "/"
    inside = {name: file for name, file in known.items() if name.replace(os.sep, "/").startswith(folder)}
    if inside:
        return _by_stem(inside, suffixes)
    expression = re.compile(_expression(text))
    fits = [(match, file) for name, file in known.items() if (match := expression.fullmatch(name.replace(os.sep, "/")))]
    if not fits:
        raise InputError(root, key=key, found=f"no file fits {text!r}",
                         expected=f"a folder, or a pattern such as {{subject}}_t1.nii.gz, of files like "
                         f"{next(iter(known), 'none')}", fix="correct it; it is relative to the folder that is named")
    return _unique((match["subject"], file, match.groupdict().get("person") or "") for match, file in fits)


def _expression(text: str) -> str:
    """A regular expression of a pattern with {subject}, {person} and ``*``; without {subject}, the first ``*`` is it.
    """
    if "{subject}" not in text:
        text = text.replace("*", "{subject}", 1) if "*" in text else "{subject}" + text
    seen: set[str] = set()
    parts = []
    for part in re.split(r"(\{subject\}|\{person\}|\*)", text):
        name = part[1:-1]
        if part == "*":
            parts.append("[^/]*")
        elif part in ("{subject}", "{person}"):
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)")
            seen.add(name)
        else:
            parts.append(re.escape(part))
    return "".join(parts)


def _unique(found: Iterator[tuple[str, str, str]] | Sequence[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    made: dict[str, tuple[str, str]] = {}
    for name, file, person in found:
        if name in made:
            raise InputError(file, key="subject", found=f"{name} twice, also {made[name][0]}",
                             expected="each subject once",
                             fix="say which part of the path is its name: options: {images: {mri: "
                                 "'{person}/{subject}.nii.gz'}}")
        made[name] = (file, person)
    return made


def _joined(images: Mapping[str, Mapping[str, tuple[str, str]]],
            labels: Mapping[str, tuple[str, str]]) -> list[Case]:
    names = dict.fromkeys(name for fits in images.values() for name in fits)
    alone = [name for name in labels if name not in names]
    if alone:
        raise InputError(labels[alone[0]][0], key="label", found=f"no image of {alone[0]}",
                         expected=f"an image of the same name, such as {next(iter(names), 'none')}",
                         fix="name both by one pattern in options.images and options.labels, or remove it")
    return [Case(name, {key: fits[name][0] for key, fits in images.items() if name in fits},
                 labels[name][0] if name in labels else None,
                 next((fits[name][1] for fits in images.values() if name in fits and fits[name][1]), ""))
            for name in sorted(names)]


def subjects_of(cases: Sequence[Case], opened: Opener, options: VolumeOptions, labels: Opener | None = None,
                ) -> list[Subject]:
    """Scans of all files; the frames of 4-D images become points of time, subjects of one person, or modalities, as the
    options say.
    labels: how label files are opened, where they are of another format."""
    read = labels or opened
    return [made for case in cases for made in _of_case(case, opened, options, read)]


def _of_case(case: Case, opened: Opener, options: VolumeOptions, read: Opener) -> Iterator[Subject]:
    images = {name: list(opened(path)) for name, path in case.images.items()}
    label = None if case.label is None else list(read(case.label))
    counts = {case.images[name]: len(scans) for name, scans in images.items()}
    if isinstance(options.frames, tuple):
        for path, count in counts.items():
            _same_count(path, count, len(options.frames), "one frame per name in options.frames")
        if len(images) > 1 or (label is not None and len(label) > 1):
            raise InputError(case.label or next(iter(case.images.values())), key="options.frames",
                             found=f"{len(images)} images of {case.name}, labels of {len(label or ())} frames",
                             expected="one 4-D image, 3-D labels", fix="leave frames out and name them under images")
        (scans,) = images.values()
        yield Subject(case.name, dict(zip(options.frames, scans)), label[0] if label else None, case.person)
        return
    most = max(counts.values())
    if options.frames == "time":
        yield film_of(case, images, label or [])
        return
    for path, count in (*counts.items(), *([(case.label, len(label))] if case.label and label else [])):
        _same_count(path, count, most, f"{most}, as many as the other images of {case.name} have")
    for frame in range(most):
        one = Subject(case.name, {name: scans[frame] for name, scans in images.items()},
                      label[frame] if label else None, case.person)
        yield one if most == 1 else replace(one, name=f"{case.name}_t{frame:03d}", person=case.person or case.name)


def film_of(case: Case, images: Mapping[str, Sequence[Scan]], label: Sequence[Scan] = ()) -> Subject:
    """A subject with all its frames; a 3-D label map holds for all of them. Raises `InputError` where modalities or
    labels have other numbers of frames or other times, or nobody says when frames are."""
    most = max(map(len, images.values()))
    for name, scans in images.items():
        _same_count(case.images[name], len(scans), most, f"{most}, as many as the other images of {case.name} have")
    times = seconds(next(iter(images.values())))
    for name, scans in images.items():
        if any(time != time for time in seconds(scans)):
            clock = getattr(scans[0], "clock", "")
            header = ", or correct the header: image.header.set_zooms((…, step)); " \
                     "image.header.set_xyzt_units('mm', 'sec')" if clock else ""
            raise InputError(case.images[name], key="time", found=clock or "nothing",
                             expected="the time between frames in s, ms or µs",
                             fix=f"options: {{step_s: …}} of a source, --step-s … of sciml segment{header}")
        if max(abs(a - b) for a, b in zip(times, seconds(scans))) > APART * max(times[-1] / max(most - 1, 1), 1e-9):
            raise InputError(case.images[name], key="time", found=f"frames up to {seconds(scans)[-1]:g} s",
                             expected=f"{times[-1]:g} s, as {next(iter(case.images.values()))} has",
                             fix="bring all modalities to the same points of time, or set step_s in the options")
    if len(label) > 1:
        _same_count(str(case.label), len(label), most, f"1 or {most}, as many as the images of {case.name} have")
    one = Subject(case.name, {name: scans[0] for name, scans in images.items()}, label[0] if label else None,
                  case.person)
    return one if most == 1 else replace(one, film=Film(times, images, label))


def _same_count(path: str, count: int, wanted: int, expected: str) -> None:
    if count != wanted:
        raise InputError(path, key="shape", found=f"{count} frames", expected=expected,
                         fix="leave the file out, or split it into 3-D files")
