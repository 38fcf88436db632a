"""Extended XYZ (.xyz, .extxyz): frames of atoms with keys in the comment line, in Å and eV.

Read by a parser of its own, a block of frames at a time: that of ASE builds an object for every frame of the file,
takes a Lattice without pbc flags to be periodic and files keys away as results of a calculator, so that `energy` and
`REF_energy` can't be told apart any more. Text is split and converted to numbers, never evaluated. Options: those of
all molecules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.elements import known, numbers_of
from sciml.data.files import head, local_path, open_bytes, size_of
from sciml.data.readers import _molecules as molecules
from sciml.data.readers._extxyz_header import Header, header_of
from sciml.data.readers._molecules_frames import Block, Found, Shapes
from sciml.data.readers._molecules_list import Frame, KeyCount, block_of
from sciml.data.readers._molecules_options import ENERGY, LENGTH, OPTIONS
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError

MAX_LINE = 1 << 20
LEAST_BYTES = 1 << 16
UNITS = {"length": LENGTH, "energy": ENERGY, "forces": f"{ENERGY}/{LENGTH}", "stress": f"{ENERGY}/{LENGTH}^3"}
IDENTITY = ("smiles", "inchi")


@dataclass(frozen=True)
class ExtXYZ:
    """Reads configurations; all files of a source are joined."""

    options: frozenset[str] = OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if not _looks_like(head(path, LEAST_BYTES)):
            return None
        return molecules.look(index(path, Limits(), max(limit_bytes, LEAST_BYTES)), "extxyz", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Configurations of all files; what belongs to frames is in memory, atoms are lazy."""
        return molecules.read([index(str(path), molecules.limits(source, path)) for path in paths], source, "extxyz")


PLUGIN = ExtXYZ()


def _looks_like(start: bytes) -> bool:
    """A count, a comment, and an atom: a name or number followed by three numbers."""
    lines = start.split(b"\n")[:3]
    if len(lines) < 3 or not lines[0].strip().isdigit():
        return False
    if b"Properties=" in lines[1] or b"Lattice=" in lines[1]:
        return True
    words = lines[2].split()
    try:
        return len(words) >= 4 and words[0].isalnum() and len([float(word) for word in words[1:4]]) == 3
    except ValueError:
        return False


@dataclass(frozen=True)
class XYZFrames:
    """Where the frames of a file lie; see `sciml.data.readers._molecules_frames.Frames`. offsets ``(frame + 1,)``."""

    path: str
    sizes: np.ndarray
    offsets: np.ndarray
    isolated: np.ndarray
    atom_keys: dict[str, Found]
    frame_keys: dict[str, Found]
    units: dict[str, str]
    stated: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def block(self, start: int, stop: int, atoms: Shapes, frames: Shapes) -> Block:
        """Frames start … stop, parsed."""
        with _open(self.path) as stream:
            stream.seek(int(self.offsets[start]))
            text = stream.read(int(self.offsets[stop] - self.offsets[start]))
        lines = text.decode("utf-8", "replace").split("\n")
        at, parsed = 0, []
        for index in range(start, stop):
            count = int(self.sizes[index])
            while not lines[at].strip():
                at += 1
            header = header_of(lines[at + 1], self.path, index)
            parsed.append(_frame(self, index, header, lines[at + 2:at + 2 + count], atoms))
            at += 2 + count
        return block_of(parsed, atoms, frames, self.path, start)


def _frame(file: XYZFrames, index: int, header: Header, lines: list[str], atoms: Shapes) -> Frame:
    rows = [line.split() for line in lines]
    wide = [i for i, row in enumerate(rows) if len(row) != header.width]
    if wide:
        raise InputError(file.path, key=f"frame {index}, atom {wide[0]}", found=f"{len(rows[wide[0]])} columns",
                         expected=f"{header.width}, as Properties says: {header.properties}",
                         fix="mend the line or Properties")
    table = np.array(rows, dtype=object).reshape(len(rows), header.width)
    number = _numbers(file.path, index, header, table)
    columns = {key: _column(file.path, index, header, table, key) for key in atoms if key in header.columns}
    columns = {key: values[:, 0] if values.shape[1] == 1 else values for key, values in columns.items()}
    return Frame(number, _column(file.path, index, header, table, "pos"), columns, header.values, header.cell,
                 header.periodic, header.text(IDENTITY), header.isolated)


def _numbers(path: str, index: int, header: Header, table: np.ndarray) -> np.ndarray:
    if "species" not in header.columns and "Z" not in header.columns:
        raise InputError(path, key=f"frame {index}", found=f"Properties={header.properties}",
                         expected="species:S:1 or Z:I:1 among them", fix="write the elements into the file")
    column, _ = header.columns["species" if "species" in header.columns else "Z"]
    names = table[:, column].tolist()
    number = numbers_of(names)
    digits = [i for i, name in enumerate(names) if name.isascii() and name.isdigit() and len(name) < 4]
    number[digits] = [int(names[i]) for i in digits]
    wrong = np.flatnonzero(~known(number))
    if len(wrong):
        raise InputError(path, key=f"frame {index}, atom {wrong[0]}", found=f"element {names[wrong[0]]!r}",
                         expected="a chemical symbol such as C, or an atomic number",
                         fix="correct it, or leave dummy atoms out")
    return number


def _column(path: str, index: int, header: Header, table: np.ndarray, key: str) -> np.ndarray:
    start, width = header.columns[key]
    try:
        return table[:, start:start + width].astype(np.float64)
    except ValueError:
        row, column = next((i, j) for i, line in enumerate(table[:, start:start + width])
                           for j, text in enumerate(line) if not _is_number(text))
        raise InputError(path, key=f"frame {index}, atom {row}", found=f"{table[row, start + column]!r} for {key}",
                         expected="a number", fix="mend the file, or write NaN for what is not known") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _open(path: str) -> Any:
    local = local_path(path)
    return open(local, "rb") if local is not None else open_bytes(path)


def index(path: str, limits: Limits, most_bytes: int | None = None) -> XYZFrames:
    """Where frames start, and the keys of their comments; atoms are passed over. most_bytes: stop behind so many.

    Raises `InputError` naming frame and line for what is no frame, has no atoms, is cut short or beyond the limits.
    """
    keys = _Keys(path)
    sizes, offsets, isolated = list[int](), [0], list[bool]()
    size, line = size_of(path), 0
    with _open(path) as stream:
        while (count := _count(path, stream, len(sizes), line, size, limits)) is not None:
            blank, atoms = count
            comment = stream.readline(MAX_LINE)
            if len(comment) == MAX_LINE:
                raise InputError(path, key=f"frame {len(sizes)}", found=f"a line above {MAX_LINE} bytes",
                                 expected="a comment line", fix="the file is damaged, or no extended XYZ")
            header = header_of(comment.decode("utf-8", "replace").rstrip("\r\n"), path, len(sizes))
            keys.add(header, len(sizes))
            for atom in range(atoms):
                text = stream.readline(MAX_LINE)
                if len(text) == MAX_LINE or not text:
                    raise InputError(path, key=f"frame {len(sizes)}, line {line + blank + 3 + atom}",
                                     found="the end of the file" if not text else f"a line above {MAX_LINE} bytes",
                                     expected=f"{atoms} atoms", fix="the file is cut short or damaged: copy it again")
            line += blank + 2 + atoms
            sizes.append(atoms)
            offsets.append(stream.tell())
            isolated.append(header.isolated)
            check_size(path, "frames", (len(sizes),), 256, limits.total_bytes, "frames")
            if most_bytes is not None and stream.tell() >= most_bytes:
                break
    if not sizes:
        raise InputError(path, found="no frames", expected="at least one", fix="check the file")
    cut = (f"the first {len(sizes)} frames were looked at",) if offsets[-1] < size and most_bytes is not None else ()
    return XYZFrames(path, np.array(sizes, np.int64), np.array(offsets, np.int64), np.array(isolated, bool),
                     keys.columns.found(), keys.values.found(),
                     UNITS, {name: unit for name, (unit, _) in keys.units.items()}, cut)


def _count(path: str, stream: Any, frame: int, line: int, size: int, limits: Limits) -> tuple[int, int] | None:
    """Blank lines before the next frame and its number of atoms; None at the end of the file."""
    blank = 0
    while (text := stream.readline(MAX_LINE)) and not text.strip():
        blank += 1
    if not text:
        return None
    words = text.split()
    if len(words) != 1 or not words[0].isdigit() or len(words[0]) > 18:
        raise InputError(path, key=f"frame {frame}, line {line + blank + 1}", found=repr(text[:40].decode(
            "utf-8", "replace").strip()), expected="the number of atoms, alone on its line",
            fix="the frame before has another number of atoms than it says, or the file is damaged")
    count = int(words[0])
    if not count:
        raise InputError(path, key=f"frame {frame}, line {line + blank + 1}", found="0 atoms",
                         expected="at least one", fix="remove the frame")
    check_size(path, f"frame {frame}", (count, 3), 8, limits.chunk_bytes, "a frame")
    if 8 * count > size - stream.tell() + 8:
        raise InputError(path, key=f"frame {frame}", found=f"{count} atoms in the {size - stream.tell()} bytes left",
                         expected="a line for each", fix="the file is cut short: copy it again")
    return blank, count


class _Keys:
    """Keys of comments and columns, gathered frame by frame."""

    def __init__(self, path: str) -> None:
        self.path, self.columns, self.values = path, KeyCount(), KeyCount()
        self.units: dict[str, tuple[str, int]] = {}

    def add(self, header: Header, frame: int) -> None:
        for key, (_, width) in header.columns.items():
            if key not in ("species", "pos", "Z") and key in header.numeric:
                self.columns.add(key, () if width == 1 else (width,))
        for key, value in header.values.items():
            self.values.add(key, value.shape)
        for name, unit in header.units.items():
            before, first = self.units.setdefault(name, (unit, frame))
            if before != unit:
                raise InputError(self.path, key=f"frame {frame}", found=f"{name} in {unit!r}",
                                 expected=f"{before!r}, as in frame {first}", fix="write one file per unit")
