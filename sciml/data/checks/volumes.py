"""What must hold in a store of volumes beside what holds in every store: grids, bricks, labels, classes, persons.

Read a piece of a subject at a time. One finding per kind of mistake, with the number of places and the first one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sciml.data import affines
from sciml.data.bricks import FRAME, PLACE, TIME, affine, size, times
from sciml.data.check import Finding
from sciml.data.checks import _volumes_classes
from sciml.data.checks.spikes import Tally
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.errors import InputError

PIECE = 1 << 20
NEEDED = {"size": ("index",), "affine": ("world", "column"), "brick": ()}
LARGEST_MM, SMALLEST_MM = 50.0, 0.005
"""Spacings beyond which a header more likely is in another unit than a scan in such voxels."""
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_MEND = "mend the source and build the store anew"


@dataclass
class Seen:
    """The tallies, a digest of each subject's images, and which label values occur in training."""

    digests: list[bytes] = field(default_factory=list)
    present: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    tallies: dict[str, Tally] = field(default_factory=lambda: {
        "size": Tally("as many voxels as the subject has rows"),
        "brick": Tally("a whole number of at least 1"),
        "frame_time": Tally("ascending seconds, one for each frame, at least one"),
        "affine": Tally("4 × 4 numbers, axes at right angles, spacings above 0"),
        "spacing": Tally(f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm", "warning"),
        "label": Tally("whole numbers that have a name in the coordinate structure, NaN where not known"),
        "image finite": Tally("finite values", "warning"),
        "image constant": Tally("images that show something", "warning")})


def check(store: Store) -> Iterator[Finding]:
    """All findings of a store of volumes. Raises what reading it raises."""
    meta = store.meta
    missing = [name for name, dims in NEEDED.items()
               if name not in meta.variables or meta.variables[name].dims != dims]
    images = [name for name, v in meta.variables.items() if v.role == "state" and v.dims == ("voxel",)]
    missing += [] if images else ["an image (voxel) of role state"]
    missing += ["frame_time (frame)"] if FRAME in meta.ragged and TIME not in meta.variables else []
    labelled = "label" in meta.variables
    missing += ["the coordinate structure"] if labelled and "structure" not in meta.axes else []
    if missing or "voxel" not in meta.ragged:
        found = ", ".join(f"no {name}" for name in missing) or "no ragged dimension voxel"
        yield Finding("error", "domain volumes", found, "volumes in bricks: images (voxel), size, affine, brick", _MEND)
        return
    names = store.members("structure") if labelled else ()
    seen = Seen(present=np.zeros(len(names), bool))
    train = {block.group for block in meta.splits.train}
    for subject in range(meta.groups):
        _grid(store, subject, seen)
        _images(store, subject, images, seen)
        if labelled:
            _labels(store, subject, seen, teaches=subject in train)
    for key, tally in seen.tallies.items():
        if tally.count:
            yield Finding(tally.level, key, f"{tally.count}, first {tally.first}", tally.expected, _MEND)
    absent = [name for name, there in zip(names, seen.present) if not there]
    if absent:
        yield Finding("warning", "label", f"no voxel of {', '.join(absent)} in the training split",
                      "each structure somewhere in training",
                      "nothing can be learned of them: leave them out, or split "
                      "otherwise")
    yield from _volumes_classes.check(store, tuple(_name(store, subject) for subject in range(meta.groups)))
    yield from _leaks(store, seen)


def _name(store: Store, subject: int) -> str:
    coords = store.lazy().coords
    return f"subject {subject} ({coords['subject'].values[subject]})" if "subject" in coords else f"subject {subject}"


def _grid(store: Store, subject: int, seen: Seen) -> None:
    name, here = _name(store, subject), np.ones(1, bool)
    raw, rows = store.read("size", subject), int(store.rows("voxel")[subject])
    shape = size(store, subject) if np.isfinite(raw).all() else (0, 0, 0)
    when, voxels, timed = times(store, subject), int(np.prod(shape)), FRAME in store.meta.ragged
    counts = {"voxel": (rows, voxels * (len(when) if timed else 1))}
    if PLACE in store.meta.ragged:
        counts[PLACE] = int(store.rows(PLACE)[subject]), voxels
    wrong = min(shape) < 1 or any(a != b for a, b in counts.values()) or not np.array_equal(raw, shape)
    seen.tallies["size"].add(here & wrong, lambda _: f"{name}: {raw.tolist()}, {rows} rows")
    untimely = timed and (not len(when) or not np.isfinite(when).all() or bool((np.diff(when) <= 0).any()))
    seen.tallies["frame_time"].add(here & untimely, lambda _: f"{name}: {when.tolist()}"[:120])
    brick = float(store.read("brick", subject))
    seen.tallies["brick"].add(here & (not brick >= 1 or brick != np.rint(brick)), lambda _: f"{name}: {brick:g}")
    matrix = affine(store, subject)
    try:
        affines.refuse_bad_affine(matrix, name)
    except InputError as error:
        seen.tallies["affine"].add(here, lambda _, found=error.found: f"{name}: {found}")  # type: ignore[misc]
        return
    mm = affines.spacing(matrix)
    seen.tallies["spacing"].add(here & ((mm < SMALLEST_MM) | (mm > LARGEST_MM)).any(),
                                lambda _: f"{name}: {mm.tolist()}")


def _pieces(store: Store, name: str, subject: int) -> Iterator[tuple[int, np.ndarray]]:
    rows = int(store.rows(store.meta.variables[name].dims[0])[subject])
    for start in range(0, rows, PIECE):
        yield start, store.read(name, subject, start, min(start + PIECE, rows))


def _images(store: Store, subject: int, images: list[str], seen: Seen) -> None:
    digest = hashlib.sha256()
    for name in images:
        low, high = np.inf, -np.inf
        for start, values in _pieces(store, name, subject):
            digest.update(np.ascontiguousarray(values).tobytes())
            finite = np.isfinite(values)
            seen.tallies["image finite"].add(~finite, lambda i, at=start, name=name: (  # type: ignore[misc]
                f"{_name(store, subject)}, {name}, voxel {at + i} in bricks"))
            low = min(low, float(values[finite].min(initial=np.inf)))
            high = max(high, float(values[finite].max(initial=-np.inf)))
        seen.tallies["image constant"].add(np.array([low >= high]), lambda _, name=name, at=low: (  # type: ignore[misc]
            f"{_name(store, subject)}, {name}: {at:g}"))
    seen.digests.append(digest.digest())


def _labels(store: Store, subject: int, seen: Seen, *, teaches: bool) -> None:
    count = len(seen.present)
    for start, values in _pieces(store, "label", subject):
        known = values[np.isfinite(values)]
        wrong = ~np.isnan(values) & ~((values >= 0) & (values < count) & (values == np.floor(values)))
        seen.tallies["label"].add(wrong, lambda i, at=start, v=values: (  # type: ignore[misc]
            f"{_name(store, subject)}, voxel {at + i} in bricks: {v[i]:g}"))
        if teaches and not wrong.any():
            seen.present |= np.bincount(known.astype(np.int64), minlength=count) > 0


def _leaks(store: Store, seen: Seen) -> Iterator[Finding]:
    """Persons, and images that are equal to the last bit, in different splits."""
    where = {block.group: name for name in SPLITS for block in store.meta.splits.of(name)}
    marks: dict[str, list[object]] = {"images": list(seen.digests)}
    if "person" in store.meta.variables:
        marks["person"] = store.lazy()["person"].values.tolist()
    for key, values in marks.items():
        first: dict[object, int] = {}
        pairs = [(first[mark], subject) for subject, mark in enumerate(values)
                 if where.get(first.setdefault(mark, subject), "") != where.get(subject, "")]
        if pairs:
            what = "subjects of one person" if key == "person" else "equal images"
            yield Finding("error", f"splits, {key}", f"{len(pairs)} {what} in two splits, first "
                          f"{_name(store, pairs[0][0])} and {_name(store, pairs[0][1])}", "none in two splits",
                          "split: {by: fold, together: person}" if key == "person" else "remove copies from the source")


PLUGIN = check
