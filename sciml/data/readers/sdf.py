"""SDF (.sdf, .mol; V2000 and V3000): structures through RDKit, numbers under ``> <NAME>`` as keys; positions in Å.

The format says nothing of the units of its fields. Needs RDKit: ``pip install "sciml[rdkit]"``. Options: those of all
molecules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head, open_bytes, size_of
from sciml.data.readers import _molecules as molecules
from sciml.data.readers._molecules_list import Frame, FrameList
from sciml.data.readers._molecules_options import LENGTH, OPTIONS
from sciml.data.readers._molecules_rdkit import of, rdkit
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError

FIELD = re.compile(r"^>[^\n]*<([^>\n]+)>[^\n]*\n((?:[^\n]+\n)*)", re.MULTILINE)
LOOK = 64
UNITS = {"length": LENGTH}


@dataclass(frozen=True)
class SDF:
    """Reads configurations, one a record."""

    options: frozenset[str] = OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        lines = head(path, 1 << 12).replace(b"\r\n", b"\n").split(b"\n")
        if len(lines) < 5 or not re.search(rb"V[23]000\s*$", lines[3]):
            return None
        file = FrameList.of(path, list(islice(_frames(path, Limits()), LOOK)), UNITS,
                            notes=(f"the first {LOOK} records at most were looked at",))
        return molecules.look(file, "sdf", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Configurations of all files, in memory."""
        files = [FrameList.of(str(path), list(_frames(str(path), molecules.limits(source, str(path)))), UNITS)
                 for path in paths]
        return molecules.read(files, source, "sdf")


PLUGIN = SDF()


def _frames(path: str, limits: Limits) -> Iterator[Frame]:
    chem = rdkit(path)
    check_size(path, "file", (size_of(path),), 1, limits.chunk_bytes, "a file to hold in memory")
    with open_bytes(path) as stream:
        text = stream.read().decode("utf-8", "replace").replace("\r\n", "\n")
    records = re.split(r"^\$\$\$\$[^\n]*\n?", text, flags=re.MULTILINE)
    for index, record in enumerate(r for r in records if r.strip()):
        molecule = chem.MolFromMolBlock(record, sanitize=False, removeHs=False)
        if molecule is None or not molecule.GetNumConformers():
            raise InputError(path, key=f"frame {index}", found=repr(record[:60]), expected="a record that RDKit reads",
                             fix="mend or remove it")
        made = of(molecule)
        flat = len(made.number) > 4 and not np.ptp(made.position[:, 2])
        if flat and not molecule.GetConformer().Is3D():
            raise InputError(path, key=f"frame {index}", found="a drawing: all z are 0 and the record says 2D",
                             expected="a structure in space", fix="embed it: write its SMILES to a .smi file")
        values = {**_fields(record), "charge": np.array(float(made.charge))}
        yield Frame(made.number, made.position, values=values, identity=_identity(record))


def _fields(record: str) -> dict[str, np.ndarray]:
    found = {}
    for name, text in FIELD.findall(record + "\n"):
        try:
            numbers = np.array([float(word) for word in text.replace(",", " ").split()])
        except ValueError:
            continue
        if numbers.size:
            found[name] = numbers.reshape(()) if numbers.size == 1 else numbers
    return found


def _identity(record: str) -> str:
    texts = {name.lower(): text.strip() for name, text in FIELD.findall(record + "\n")}
    return texts.get("smiles", texts.get("inchi", ""))
