"""HDF5 in the manner of ANI: groups, however deep, that each hold the conformations of one list of atoms.

A group has `coordinates` ``(frame, atom, 3)`` (or `conformations`, `geometries`, `positions`) and `species`
``(atom,)`` or ``(frame, atom)`` (or `atomic_numbers`, `numbers`, `Z`), symbols or atomic numbers; every other array
whose first axis is the frames is a key: ``(frame,)``, ``(frame, k)``, ``(frame, atom)``, ``(frame, atom, k)``. A key
with ``grad`` in its name that is named as `forces` is negated. The format defines no units: they come from the arrays'
attribute `units` or from options. Options: those of all molecules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.elements import known, numbers_of
from sciml.data.files import head
from sciml.data.readers import _molecules as molecules
from sciml.data.readers._lattice import as_text
from sciml.data.readers._molecules_frames import Block, Found, Shapes
from sciml.data.readers._molecules_list import KeyCount, per_atom
from sciml.data.readers._molecules_options import OPTIONS
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import HDF5_MAGIC, Limits, check_size, open_hdf5, raw_hdf5
from sciml.errors import InputError

PLACES = ("coordinates", "conformations", "geometries", "positions")
ELEMENTS = ("species", "atomic_numbers", "numbers", "Z")
LOOK = 16
"""Groups that are looked at while nothing is known yet."""


@dataclass(frozen=True)
class ANI:
    """Reads conformations, groups in the order of their names."""

    options: frozenset[str] = OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if head(path, 8) != HDF5_MAGIC or not _has_groups(path):
            return None
        return molecules.look(index(path, Limits(), LOOK), "ani", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Conformations of all groups of all files; atoms are lazy."""
        return molecules.read([index(str(path), molecules.limits(source, path)) for path in paths], source, "ani")


PLUGIN = ANI()


def _has_groups(path: str) -> bool:
    with raw_hdf5(path) as file:
        return next(_groups(file), None) is not None


def _groups(file: Any) -> Iterator[tuple[str, str, str]]:
    """(group, key of positions, key of elements) by name, as far as hard links reach."""
    import h5py

    stack, seen = ["/"], set()
    while stack:
        name = stack.pop()
        group = file[name]
        arrays, below = {}, []
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item = group[key]
            if isinstance(item, h5py.Dataset):
                arrays[key] = item
            elif isinstance(item, h5py.Group) and (at := h5py.h5o.get_info(item.id).addr) not in seen:
                seen.add(at)
                below.append(item.name)
        place = next((key for key in PLACES if key in arrays and arrays[key].shape[2:] == (3,)), None)
        element = next((key for key in ELEMENTS if key in arrays and arrays[key].ndim in (1, 2)), None)
        if place is not None and element is not None:
            yield name, place, element
        stack.extend(reversed(below))


@dataclass(frozen=True)
class _Group:
    """Where a group's conformations are: its name, keys, atoms, and the number of its first frame and of the next."""

    name: str
    place: str
    element: str
    atoms: int
    first: int
    last: int


@dataclass(frozen=True)
class ANIFrames:
    """Conformations of a file; see `sciml.data.readers._molecules_frames.Frames`."""

    path: str
    groups: Sequence[_Group]
    atom_keys: Mapping[str, Found]
    frame_keys: Mapping[str, Found]
    stated: Mapping[str, str]
    units: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> np.ndarray:
        return np.repeat([g.atoms for g in self.groups], [g.last - g.first for g in self.groups])

    @property
    def bytes(self) -> np.ndarray:
        return 64 * self.sizes

    @property
    def isolated(self) -> np.ndarray:
        return np.zeros(len(self.sizes), dtype=bool)

    def block(self, start: int, stop: int, atoms: Shapes, frames: Shapes) -> Block:
        """Conformations start … stop."""
        first = int(np.searchsorted([g.last for g in self.groups], start, side="right"))
        parts = []
        with raw_hdf5(self.path) as file:
            for group in self.groups[first:]:
                if group.first >= stop:
                    break
                rows = slice(max(start, group.first) - group.first, min(stop, group.last) - group.first)
                parts.append(_part(self.path, file, group, rows, atoms, frames))
        return Block(np.concatenate([p.counts for p in parts]), np.concatenate([p.number for p in parts]),
                     np.concatenate([p.position for p in parts]),
                     {key: np.concatenate([p.atoms[key] for p in parts]) for key in atoms},
                     {key: np.concatenate([p.frames[key] for p in parts]) for key in frames},
                     np.zeros((stop - start, 3, 3)), np.zeros((stop - start, 3), np.int8),
                     [text for p in parts for text in p.identity])


def _part(path: str, file: Any, group: _Group, rows: slice, atoms: Shapes, frames: Shapes) -> Block:
    held, count, n = file[group.name], rows.stop - rows.start, group.atoms

    def read(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in held or held[key].shape != (group.last - group.first, *shape):
            return np.full((count, *shape), np.nan)
        try:
            return np.asarray(held[key][rows], dtype=np.float64)
        except OSError as error:
            raise InputError(path, key=f"{group.name}/{key}", found=" ".join(str(error).split())[:120],
                             expected="readable chunks", fix="the file is damaged: copy it again") from None

    number = _numbers(path, held[group.element], group, rows)
    columns = {key: read(key, (n, *shape)).reshape(count * n, *shape) for key, shape in atoms.items()}
    values = {key: read(key, shape) for key, shape in frames.items()}
    return Block(np.full(count, n, np.int64), number, read(group.place, (n, 3)).reshape(-1, 3), columns, values,
                 np.zeros((0, 3, 3)), np.zeros((0, 3)), [_identity(held)] * count)


def _numbers(path: str, item: Any, group: _Group, rows: slice) -> np.ndarray:
    """Atomic numbers of the rows, flat."""
    values = np.asarray(item[rows] if item.ndim == 2 else item[:])
    if values.dtype.kind in "iu":
        number = values.astype(np.int64)
    elif values.dtype.kind in "OSU":
        names = [as_text(value).strip() for value in values.reshape(-1)]
        number = numbers_of(names).astype(np.int64).reshape(values.shape)
    else:
        number = np.zeros(values.shape, np.int64)
    wrong = np.argwhere(~known(number))
    if len(wrong):
        raise InputError(path, key=f"{item.name}, atom {int(wrong[0][-1])}", found=repr(values[tuple(wrong[0])])[:40],
                         expected="chemical symbols or atomic numbers", fix="correct them; atoms that pad a group to "
                         "the size of others belong in no file")
    number = np.broadcast_to(number, (rows.stop - rows.start, group.atoms))
    return number.reshape(-1).astype(np.int32)


def _identity(held: Any) -> str:
    """SMILES of a group: text, or an array of single letters; empty if there is none."""
    if "smiles" not in held:
        return ""
    values = np.asarray(held["smiles"][()]).reshape(-1)[:4096]
    texts = [as_text(value) for value in values]
    return "".join(texts) if all(len(text) <= 1 for text in texts) else texts[0]


def index(path: str, limits: Limits, most: int | None = None) -> ANIFrames:
    """Groups and keys of a guarded file. most: stop behind so many groups.

    Raises `InputError` for groups whose arrays don't fit one another, and units that differ between groups.
    """
    seen: dict[str, dict[tuple[int, tuple[int, ...]], int]] = {}
    said: dict[str, tuple[str, str]] = {}
    found: list[_Group] = []
    first, cut = 0, False
    with open_hdf5(path, limits) as file:
        for name, place, element in _groups(file):
            if cut := most is not None and len(found) == most:
                break
            held = file[name]
            count, n = held[place].shape[:2]
            _check_group(path, held, place, element, limits)
            for key, item in held.items():
                shape = getattr(item, "shape", None) or ()
                if key == place:
                    _unit(path, item, "length", said)
                elif key != element and shape and shape[0] == count and item.dtype.kind in "fiu":
                    seen.setdefault(key, {}).setdefault((n, shape[1:]), 0)
                    seen[key][n, shape[1:]] += count
                    _unit(path, item, key, said)
            found.append(_Group(name, place, element, n, first, first + count))
            first += count
    units = {key: unit for key, (unit, _) in said.items()}
    atoms, values = KeyCount(), KeyCount()
    for key, places in seen.items():
        of_atoms = per_atom(places)
        for (_, shape), frames in places.items():
            (atoms if of_atoms else values).add(key, shape[1:] if of_atoms else shape, frames)
    notes = (f"the first {most} groups were looked at",) if cut else ()
    return ANIFrames(path, found, atoms.found(units), values.found(units),
                     {"length": units["length"]} if "length" in units else {}, notes=notes)


def _check_group(path: str, held: Any, place: str, element: str, limits: Limits) -> None:
    count, n = held[place].shape[:2]
    check_size(path, f"{held.name}/{place}", (n, 3), 8, limits.chunk_bytes, "a frame")
    if not n or not count or held[element].shape not in ((n,), (count, n)) or held[place].dtype.kind != "f":
        raise InputError(path, key=held.name, found=f"{place} {held[place].shape} of {held[place].dtype}, {element} "
                         f"{held[element].shape}", expected="(frames, atoms, 3) real numbers, and as many elements as "
                         "atoms, none of them 0", fix="mend or remove the group")


def _unit(path: str, item: Any, key: str, said: dict[str, tuple[str, str]]) -> None:
    unit = next((as_text(item.attrs[name]) for name in ("units", "unit") if name in item.attrs), "")
    if unit and said.setdefault(key, (unit, item.name))[0] != unit:
        raise InputError(path, key=item.name, found=f"unit {unit!r}", fix="write one file per unit",
                         expected=f"{said[key][0]!r}, as in {said[key][1]}")
