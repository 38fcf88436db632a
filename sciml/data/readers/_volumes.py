"""Scans of any format as one canonical data set of volumes.

One variable per modality, ``(voxel)``, and ``label (voxel)``, in bricks (`sciml.data.bricks`); ``voxel_count``,
``size``, ``affine``, ``brick`` and, where subjects have classes, ``category`` by subject; names of structures by label
value as the coordinate ``structure``, those of classes as ``class``.
Where subjects have frames (points of time), the rows of ``voxel`` are those of one frame after the other,
``frame_count`` and ``frame_time (frame)`` say how many and when, and a label map that holds for all of them is
``label (place)``, with ``place_count``.
Headers are read now, voxels when they are asked for: a slab of whole layers of bricks at a time, or, where a format is
compressed as one stream, one scan at a time. Arrays keep the order of the file; nothing is reoriented, resampled or
rescaled beyond the slope and intercept of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.affines import refuse_bad_affine, same_grid
from sciml.data.bricks import FRAME, PLACE, TIME, VOXEL, pack
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.errors import InputError

GROUP = "subject"
TASK_BYTES = 16 << 20
WHOLE = 1e-3
"""How far from a whole number a label stored as floating point may be."""


class Scan(Protocol):
    """One image or label map of which the header was read and held against the limits.

    affine ``(4, 4)`` float64 to RAS mm; streamed: values come only all at once (compressed); notes: what the header
    leaves open.
    """

    @property
    def path(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def affine(self) -> np.ndarray: ...
    @property
    def streamed(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def open(self) -> Any:
        """An array ``(I, J, K, ...)`` of stored values, or what is indexed like one; if `streamed`, of all scans of the
        same path (frames of one file) at once."""

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        """float32 of a slab of `open()` that starts at index `start` of the first axis."""


@dataclass(frozen=True)
class Film:
    """All frames of a subject that has several: seconds, ascending; scans of each modality; label maps of each frame,
    one for all of them, or none."""

    times: tuple[float, ...]
    images: Mapping[str, Sequence[Scan]]
    label: Sequence[Scan] = ()


@dataclass(frozen=True)
class Subject:
    """Scans of one grid: `images` by modality, and the labels if there are any. person: whom it is of; category: which
    class, of all subjects or of none; film: where it has frames, of which images and label then are the first."""

    name: str
    images: Mapping[str, Scan]
    label: Scan | None = None
    person: str = ""
    category: str = ""
    film: Film | None = None

    @property
    def grid(self) -> Scan:
        return next(iter(self.images.values()))

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of its frames, (0,) of a still image."""
        return (0.0,) if self.film is None else self.film.times

    @property
    def labels(self) -> tuple[Scan, ...]:
        """One for each frame, one for all, or none."""
        return tuple(self.film.label) if self.film is not None else () if self.label is None else (self.label,)

    def frames(self, modality: str) -> tuple[Scan, ...]:
        return (self.images[modality],) if self.film is None else tuple(self.film.images[modality])


def seconds(scans: Sequence[Scan]) -> tuple[float, ...]:
    """When frames were taken; formats without time say 0."""
    return tuple(float(getattr(scan, "time_s", 0.0)) for scan in scans)


def dataset(subjects: Sequence[Subject], options: VolumeOptions, *, format: str, where: object, mask: bool = False,
            notes: Sequence[str] = (), missing: Sequence[str] = ()) -> xr.Dataset:
    """The data set of a source, subjects by ascending name. mask: voxels that are not finite stay; else refused.

    Raises `InputError` that names the file: a bad affine, other grids or modalities within a subject or source, labels
    without names of structures; and, when voxels are read, for what is not finite or no label that was declared.
    """
    ordered = _selected(sorted(subjects, key=lambda s: s.name), options, where)
    _check(ordered, where)
    labelled = [s.label for s in ordered if s.label is not None]
    if labelled and not options.structures and not missing:
        raise InputError(labelled[0].path, key="options.structures", found="labels without names",
                         expected="a name for each label value, background first",
                         fix=f"options: {{structures: {_suggestion(labelled[0])}}}")
    made, moves = _by_subject(ordered, options.brick), labels_move(ordered)
    for name in ordered[0].images:
        scans = [scan for s in ordered for scan in s.frames(name)]
        made[name] = lattice.variable((VOXEL,), _flat(scans, options, _Judge(None, mask)), "state",
                                      options.unit_of(name))
    if labelled:
        judge = _Judge(options.structures or None, mask, label=True, ignore=options.ignore)
        maps = [scan for s in ordered for scan in s.labels or [None] * (len(s.times) if moves else 1)]
        grids = [s.grid for s in ordered for _ in s.labels or range(len(s.times) if moves else 1)]
        made["label"] = lattice.variable((VOXEL if moves else PLACE,), _flat(
            [scan or grid for scan, grid in zip(maps, grids)], options, judge, [scan is None for scan in maps]),
            "label", "1")
        if not moves:
            made["place_count"] = made["voxel_count"].copy(data=_sizes(ordered).prod(1))
            made["place_count"].attrs["sample_dimension"] = PLACE
    coords = {"index": ("i", "j", "k"), "world": ("x", "y", "z", "1"), "column": ("i", "j", "k", "origin"),
              GROUP: [s.name for s in ordered]}
    if labelled and options.structures:
        coords["structure"] = options.structures
    classes = sorted({s.category for s in ordered if s.category})
    if classes:
        codes = np.array([float(classes.index(s.category)) for s in ordered])
        made["category"], coords["class"] = lattice.variable((GROUP,), codes, "label", "1"), classes
    told = [*notes, *_notes(ordered, labelled)]
    return lattice.canonical(made, {dim: lattice.coordinate(dim, np.array(labels), "set")
                                    for dim, labels in coords.items()},
                             domain="volumes", format=format, group_dim=GROUP, notes=told, missing=missing)


def _selected(subjects: list[Subject], options: VolumeOptions, where: object) -> list[Subject]:
    for dim, bounds in options.select.items():
        if dim != GROUP or not 0 <= bounds[0] < bounds[1] <= len(subjects):
            raise InputError(where, key=f"options.select.{dim}", found=list(bounds),
                             expected=f"{GROUP}: [start, stop], 0 ≤ start < stop ≤ {len(subjects)}", fix="correct it")
        subjects = subjects[bounds[0]:bounds[1]]
    return subjects


def _check(subjects: Sequence[Subject], where: object) -> None:
    if not subjects:
        raise InputError(where, key="files", found="no image", expected="at least one", fix="name their folder")
    first = subjects[0]
    for i, subject in enumerate(subjects):
        if i and subject.name == subjects[i - 1].name:
            raise InputError(subject.grid.path, key=GROUP,
                             found=f"{subject.name} twice, also {subjects[i - 1].grid.path}",
                             expected="each subject once", fix="rename a file, or say by {subject} in options.images "
                             "which part of the path is its name")
        if list(subject.images) != list(first.images):
            raise InputError(subject.grid.path, key=GROUP, found=f"{subject.name} with {', '.join(subject.images)}",
                             expected=f"{', '.join(first.images)}, as {first.name} has",
                             fix="add the missing scans, or leave the subject out")
        for scan in _scans_of(subject):
            refuse_bad_affine(scan.affine, scan.path)
            _check_grid(subject.grid, scan)


def _check_grid(grid: Scan, scan: Scan) -> None:
    if scan.shape != grid.shape:
        raise InputError(scan.path, key="shape", found=f"{_times(scan.shape)} voxels",
                         expected=f"{_times(grid.shape)}, as {grid.path} has",
                         fix="resample it onto the image's grid (labels by nearest neighbour)")
    if not same_grid(grid.affine, scan.affine, grid.shape):
        raise InputError(scan.path, key="affine", found=_matrix(scan.affine),
                         expected=f"{_matrix(grid.affine)}, as {grid.path} has",
                         fix="resample it onto the image's grid, or copy the image's header if only that is wrong")


def _by_subject(subjects: Sequence[Subject], brick: int) -> dict[str, xr.Variable]:
    sizes, counts = _sizes(subjects), np.array([len(s.times) for s in subjects], np.int64)
    made = {"voxel_count": lattice.variable((GROUP,), sizes.prod(1) * counts, "rows", "1", sample_dimension=VOXEL),
            "size": lattice.variable((GROUP, "index"), sizes.astype(np.float64), "parameter", "1",
                                     long_name="voxels along the axes of the array"),
            "affine": lattice.variable((GROUP, "world", "column"),
                                       np.stack([s.grid.affine for s in subjects]).astype(np.float64), "parameter", "1",
                                       long_name="voxel index to mm towards right, anterior, superior"),
            "brick": lattice.variable((GROUP,), np.full(len(subjects), float(brick)), "parameter", "1")}
    persons = {name: i for i, name in enumerate(dict.fromkeys(s.person or s.name for s in subjects))}
    if len(persons) < len(subjects):
        codes = np.array([float(persons[s.person or s.name]) for s in subjects])
        made["person"] = lattice.variable((GROUP,), codes, "parameter", "1", long_name="number of the person")
    if any(s.film for s in subjects):
        made["frame_count"] = lattice.variable((GROUP,), counts, "rows", "1", sample_dimension=FRAME)
        made[TIME] = lattice.variable((FRAME,), np.concatenate([s.times for s in subjects]), "parameter", "s",
                                      long_name="of each frame, from the first")
    return made


def _sizes(subjects: Sequence[Subject]) -> np.ndarray:
    return np.array([s.grid.shape for s in subjects], np.int64)


def _scans_of(subject: Subject) -> tuple[Scan, ...]:
    return (*(scan for name in subject.images for scan in subject.frames(name)), *subject.labels)


def labels_move(subjects: Sequence[Subject]) -> bool:
    """Whether label maps differ between frames; still images decide nothing, and are as the others. Raises `InputError`
    if some subjects have one for all frames and others one for each."""
    films = [s for s in subjects if s.film is not None and s.labels]
    kinds = {len(s.labels) > 1 for s in films}
    if len(kinds) > 1:
        first, other = films[0], next(s for s in films if (len(s.labels) > 1) != (len(films[0].labels) > 1))
        raise InputError(other.labels[0].path, key="shape", found=f"{len(other.labels)} label maps of {other.name}",
                         expected="one for each frame of all subjects, or one for all frames of all: "
                                  f"{first.name} has {len(first.labels)}",
                         fix="give the frames that nobody labelled the value of options.ignore, or split the source")
    return kinds != {False}


def _notes(subjects: Sequence[Subject], labelled: Sequence[Scan]) -> list[str]:
    spacings = np.array([np.linalg.norm(s.grid.affine[:3, :3], axis=0) for s in subjects])
    low, high = (" × ".join(f"{v:.3g}" for v in edge) for edge in (spacings.min(0), spacings.max(0)))
    notes = [f"{len(subjects)} subjects, {low} mm" + (f" to {high} mm" if high != low else "")]
    if labelled and len(labelled) < len(subjects):
        notes.append(f"{len(subjects) - len(labelled)} subjects have no labels: NaN")
    films = [s for s in subjects if s.film is not None]
    if films:
        counts, steps = [len(s.times) for s in films], [s.times[1] - s.times[0] for s in films]
        notes.append(f"{len(films)} with {min(counts)} to {max(counts)} frames, {min(steps):.4g} to {max(steps):.4g} s "
                     "apart")
    scans = [scan for s in subjects for scan in _scans_of(s)]
    by_text: dict[str, list[str]] = {}
    for scan in scans:
        for text in scan.notes:
            by_text.setdefault(text, []).append(scan.path)
    files = {text: list(dict.fromkeys(paths)) for text, paths in by_text.items()}
    return notes + [f"{text}: {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
                    for text, paths in files.items()]


@dataclass(frozen=True)
class _Judge:
    """What values may be. structures: names of label values, None while a file is only being looked at."""

    structures: Sequence[str] | None
    mask: bool
    label: bool = False
    ignore: int | None = None

    def look(self, path: str, values: np.ndarray, start: int) -> np.ndarray:
        """The slab, labels made whole; raises `InputError` naming the first voxel that may not be."""
        if not self.mask:
            self._refuse(path, ~np.isfinite(values), values, start, "a finite value",
                         "repair the file, or set missing: mask in the source file")
        if not self.label:
            return values
        whole = np.rint(values)
        self._refuse(path, np.abs(values - whole) > WHOLE, values, start, "whole numbers",
                     "it is no label map, or was interpolated: write labels as integers, resample by nearest neighbour")
        if self.ignore is not None:
            whole[whole == self.ignore] = np.nan
        if self.structures is not None:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(self.structures))
            self._refuse(path, (whole < 0) | (whole >= len(self.structures)), values, start, f"one of {names}",
                         "name it in options.structures, or correct the labels")
        return whole

    def _refuse(self, path: str, wrong: np.ndarray, values: np.ndarray, start: int, expected: str, fix: str) -> None:
        if wrong.any():
            i, j, k = (int(n) for n in np.argwhere(wrong)[0])
            raise InputError(path, key=f"voxel ({start + i}, {j}, {k})", found=f"{values[i, j, k]:g}, one of "
                             f"{int(wrong.sum())} in {len(values)} planes", expected=expected, fix=fix)


def _flat(scans: Sequence[Scan], options: VolumeOptions, judge: _Judge,
          absent: Sequence[bool] | None = None) -> da.Array:
    """All voxels of all scans in bricks, ``(voxel,)`` float32; NaN of those that are `absent`."""
    parts, held = [], dict[str, Any]()
    for i, scan in enumerate(scans):
        if absent is not None and absent[i]:
            parts.append(da.full(int(np.prod(scan.shape)), np.float32(np.nan), chunks=TASK_BYTES // 4,
                                 dtype=np.float32))
            continue
        if scan.streamed and scan.path not in held:
            held[scan.path] = dask.delayed(_open, pure=False)(_Held(scan))
        plane = scan.shape[1] * scan.shape[2]
        layers = max(1, TASK_BYTES // max(1, plane * options.brick * 4)) * options.brick
        for start in range(0, scan.shape[0], layers):
            stop = min(start + layers, scan.shape[0])
            packed = dask.delayed(_packed, pure=False)(_Held(scan), held.get(scan.path), start, stop, options.brick,
                                                       judge)
            parts.append(da.from_delayed(packed, (plane * (stop - start),), np.float32))
    return da.concatenate(parts)


@dataclass(frozen=True)
class _Held:
    """A scan or array as one opaque object, which dask neither walks nor hashes."""

    item: Any


def _open(held: _Held) -> _Held:
    return _Held(held.item.open())


def _packed(held: _Held, opened: _Held | None, start: int, stop: int, brick: int, judge: _Judge) -> np.ndarray:
    scan: Scan = held.item
    stored = scan.open() if opened is None else opened.item
    values = scan.values(np.asarray(stored[start:stop]), start)
    return pack(judge.look(scan.path, values, start), brick)


def _suggestion(scan: Scan, most: int = 256) -> str:
    """A list of names for the label values of a scan."""
    return "[" + ", ".join(structures_in([scan], most)) + "]"


def structures_in(scans: Sequence[Scan], most: int = 256) -> list[str]:
    """Names to start from, ``background, structure_1, …`` up to the largest label value of the scans, all of which are
    read; raises `InputError` for values that are no label."""
    largest = 0
    for scan in scans:
        values = scan.values(np.asarray(scan.open()[:]), 0)
        _Judge(None, False, label=True).look(scan.path, values, 0)
        largest = max(largest, int(values.max(initial=0)))
    if largest >= most:
        raise InputError(scans[0].path, key="label", found=f"label value {largest}", expected=f"values below {most}",
                         fix="it is no label map, or its labels have to be renumbered from 0")
    return ["background", *(f"structure_{i}" for i in range(1, largest + 1))]


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _matrix(affine: np.ndarray) -> str:
    return "[" + "; ".join(", ".join(f"{value:.5g}" for value in row) for row in affine[:3]) + "]"
