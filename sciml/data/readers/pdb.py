"""Protein Data Bank files (.pdb): atoms of every MODEL as a configuration, in Å; no energies are in them.

Read by their columns. Of alternative places of an atom the first is taken. CRYST1 gives a cell and doesn't say whether
it is meant: options: {periodic: …}. Options: those of all molecules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.elements import known, numbers_of
from sciml.data.files import head, open_bytes, size_of
from sciml.data.readers import _molecules as molecules
from sciml.data.readers._molecules_list import Frame, FrameList
from sciml.data.readers._molecules_options import LENGTH, OPTIONS
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError

RECORDS = (b"HEADER", b"TITLE", b"COMPND", b"CRYST1", b"REMARK", b"MODEL", b"ATOM  ", b"HETATM")
LOOK = 16
UNITS = {"length": LENGTH}


@dataclass(frozen=True)
class PDB:
    """Reads configurations, one a model."""

    options: frozenset[str] = OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        start = head(path, 1 << 18)
        lines = start.split(b"\n")
        if not start.startswith(RECORDS) or not any(line[:6] in (b"ATOM  ", b"HETATM") for line in lines):
            return None
        file = FrameList.of(path, list(islice(_frames(path, Limits()), LOOK)), UNITS)
        return molecules.look(file, "pdb", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Configurations of all files, in memory."""
        files = [FrameList.of(str(path), list(_frames(str(path), molecules.limits(source, str(path)))), UNITS)
                 for path in paths]
        return molecules.read(files, source, "pdb")


PLUGIN = PDB()


@dataclass
class _Model:
    names: list[str] = field(default_factory=list)
    places: list[list[float]] = field(default_factory=list)


def _frames(path: str, limits: Limits) -> Iterator[Frame]:
    check_size(path, "file", (size_of(path),), 1, limits.chunk_bytes, "a file to hold in memory")
    cell, model, index = None, _Model(), 0
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if line.startswith("CRYST1"):
                cell = _cell(line, path, number)
            elif line.startswith(("ATOM  ", "HETATM")) and line[16:17] in (" ", "A", ""):
                _atom(line, path, number, model)
            elif line.startswith("ENDMDL"):
                yield _frame(model, cell, path, index)
                model, index = _Model(), index + 1
    if model.names or not index:
        yield _frame(model, cell, path, index)


def _atom(line: str, path: str, number: int, model: _Model) -> None:
    try:
        model.places.append([float(line[start:start + 8]) for start in (30, 38, 46)])
    except ValueError:
        raise InputError(path, key=f"line {number}", found=repr(line[30:54]), fix="mend the line",
                         expected="three numbers in columns 31 to 54") from None
    name = line[76:78].strip().capitalize()
    if not known(numbers_of([name]))[0]:
        raise InputError(path, key=f"line {number}", found=f"element {name!r} in columns 77 and 78",
                         expected="a chemical symbol; names of atoms alone are ambiguous (CA is carbon or calcium)",
                         fix="write the elements, for example by a program that cleans PDB files")
    model.names.append(name)


def _cell(line: str, path: str, number: int) -> np.ndarray | None:
    """Vectors from lengths and angles, a along x and b in the plane of x and y; None for the 1 × 1 × 1 of no
    crystal."""
    try:
        a, b, c = (float(line[start:start + 9]) for start in (6, 15, 24))
        alpha, beta, gamma = (np.deg2rad(float(line[start:start + 7])) for start in (33, 40, 47))
    except ValueError:
        raise InputError(path, key=f"line {number}", found=repr(line[:54]), expected="three lengths and three angles",
                         fix="mend the line, or remove it") from None
    if a == b == c == 1:
        return None
    ca, cb, cg = np.cos([alpha, beta, gamma])
    third = [cb, (ca - cb * cg) / np.sin(gamma)]
    height = 1 - third[0] ** 2 - third[1] ** 2
    if min(a, b, c) <= 0 or not height > 0 or not np.sin([alpha, beta, gamma]).min() > 0:
        raise InputError(path, key=f"line {number}", found=repr(line[:54]), expected="lengths and angles of a cell",
                         fix="mend the line, or remove it")
    return np.array([[a, 0, 0], [b * cg, b * np.sin(gamma), 0], [c * third[0], c * third[1], c * np.sqrt(height)]])


def _frame(model: _Model, cell: np.ndarray | None, path: str, index: int) -> Frame:
    if not model.names:
        raise InputError(path, key=f"frame {index}", found="0 atoms", expected="at least one", fix="remove the model")
    return Frame(numbers_of(model.names), np.array(model.places), cell=cell,
                 periodic=(0, 0, 0) if cell is None else (-1, -1, -1))
