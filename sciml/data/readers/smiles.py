"""SMILES (.smi): one molecule a line, a name behind it if there is one; embedded in 3-D by RDKit, so without any
labels.

Options: `seed` of the embedding (0 unless given) and `conformers` of each molecule (1), besides those of all molecules.
Needs RDKit: ``pip install "sciml[rdkit]"``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head, open_bytes, size_of
from sciml.data.readers import _molecules as molecules
from sciml.data.readers._combine import options_of
from sciml.data.readers._molecules_list import Frame, FrameList
from sciml.data.readers._molecules_options import LENGTH, OPTIONS
from sciml.data.readers._molecules_rdkit import embedded, rdkit
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError

OWN = frozenset({"seed", "conformers"})
LOOK, MOST = 8, 1000
LETTERS = re.compile(r"[A-Za-z\[][A-Za-z0-9@+\-\[\]()=#$:/\\.%*]*")


@dataclass(frozen=True)
class Smiles:
    """Makes configurations of molecules that are only written down."""

    options: frozenset[str] = OPTIONS | OWN

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        start = head(path, 1 << 12)
        lines = [line for line in start.split(b"\n")[:LOOK] if line.strip()]
        if importlib.util.find_spec("rdkit") is None or not lines or not _are_smiles(lines):
            return None
        file = FrameList.of(path, list(_frames(path, {}, Limits(), LOOK)), {"length": LENGTH},
                            notes=(f"the first {LOOK} molecules at most were looked at",))
        return molecules.look(file, "smiles", limit_bytes, {"seed": 0, "conformers": 1})

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """A configuration for every conformer of every line."""
        options = options_of(source)
        files = [FrameList.of(str(path), list(_frames(str(path), options, molecules.limits(source, str(path)))),
                              {"length": LENGTH}) for path in paths]
        return molecules.read(files, source, "smiles", OWN)


PLUGIN = Smiles()


def _are_smiles(lines: Sequence[bytes]) -> bool:
    """Whether every line begins with a SMILES, at most a name behind it."""
    words = [line.decode("utf-8", "replace").split() for line in lines]
    if not all(1 <= len(line) <= 4 and len(line[0]) <= 1000 and LETTERS.fullmatch(line[0]) for line in words):
        return False
    chem = rdkit("SMILES")
    return all(chem.MolFromSmiles(line[0]) is not None for line in words)


def _frames(path: str, options: Mapping[str, Any], limits: Limits, most: int | None = None) -> Iterator[Frame]:
    check_size(path, "file", (size_of(path),), 1, limits.chunk_bytes, "a list of SMILES")
    seed, conformers = _whole(path, options, "seed", 0, 0), _whole(path, options, "conformers", 1, 1)
    with open_bytes(path) as stream:
        lines = stream.read().decode("utf-8", "replace").splitlines()
    found = [(number, line.split()[0]) for number, line in enumerate(lines, 1) if line.strip()]
    for number, smiles in found[:most]:
        for conformer in range(conformers):
            made = embedded(smiles, seed + conformer, path, f"line {number}")
            values = {"charge": np.array(float(made.charge)), "spin": np.array(float(made.multiplicity))}
            yield Frame(made.number, made.position, values=values, identity=made.smiles)


def _whole(path: str, options: Mapping[str, Any], name: str, usual: int, least: int) -> int:
    value = options.get(name, usual)
    most = MOST if name == "conformers" else (1 << 31) - MOST - 1
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(path, key=f"options.{name}", found=repr(value)[:40], fix="correct it",
                         expected=f"a whole number from {least} to {most}")
    return value
