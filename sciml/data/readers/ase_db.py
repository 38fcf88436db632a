"""Databases of ASE: SQLite (.db) and JSON (.json), in Å and eV unless their metadata say otherwise.

Read without ASE, which would make objects of classes that a file names: rows are numbers, in blobs or JSON, and nothing
else is looked at. SQLite is opened read-only, and only if ``systems`` is an ordinary table. Keys are the columns
energy, forces, stress, …, those of ``key_value_pairs`` and of ``data``. Options: those of all molecules.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from sciml.data.files import head, local_path, open_bytes, size_of
from sciml.data.readers import _molecules as molecules
from sciml.data.readers._molecules_frames import Block, Found, Shapes
from sciml.data.readers._molecules_list import Frame, FrameList, KeyCount, block_of, check_frame, per_atom
from sciml.data.readers._molecules_options import ENERGY, LENGTH, OPTIONS
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError

SQLITE = b"SQLite format 3\x00"
UNITS = {"length": LENGTH, "energy": ENERGY, "forces": f"{ENERGY}/{LENGTH}", "stress": f"{ENERGY}/{LENGTH}^3"}
OF_ATOMS = {"forces": (3,), "charges": (), "magmoms": (), "momenta": (3,)}
OF_FRAMES = {"energy": (), "free_energy": (), "stress": (6,), "dipole": (3,), "magmom": ()}
LOOK = 256
"""Rows that are looked at while nothing is known yet."""


@dataclass(frozen=True)
class AseDatabase:
    """Reads configurations, in the order of their ids."""

    options: frozenset[str] = OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        start = head(path, 1 << 12)
        if not start.startswith(SQLITE) and not (start.lstrip()[:1] == b"{" and b'"' in start and _is_json(path)):
            return None
        file = _file(path, Limits(), LOOK)
        return None if file is None else molecules.look(file, "ase_db", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Configurations of all files; atoms of SQLite files are lazy, JSON is read whole."""
        files = []
        for path in map(str, paths):
            file = _file(path, molecules.limits(source, path), None)
            if file is None:
                raise InputError(path, found="a database without systems", expected="one that ASE wrote",
                                 fix="write it with ase.db")
            files.append(file)
        return molecules.read(files, source, "ase_db")


PLUGIN = AseDatabase()


def _file(path: str, limits: Limits, most: int | None) -> Any:
    if head(path, 16) == SQLITE:
        return _sqlite(path, limits, most)
    rows = _json_rows(path, limits)
    kinds = _OfAtoms()
    for i, row in enumerate(rows):
        kinds.add(row, path, i)
    return FrameList.of(path, [_frame(row, path, i, kinds.keys()) for i, row in enumerate(rows)], UNITS)


def _is_json(path: str) -> bool:
    """Whether a JSON file ends as ASE's do, with its list of ids."""
    size = size_of(path)
    with open_bytes(path) as stream:
        stream.seek(max(0, size - (1 << 20)))
        end = bytes(stream.read())
    return b'"ids"' in end and b'"nextid"' in end


def _json_rows(path: str, limits: Limits) -> list[dict[str, Any]]:
    check_size(path, "file", (size_of(path),), 1, limits.chunk_bytes, "a JSON database to hold in memory")
    try:
        with open_bytes(path) as stream:
            held = json.loads(stream.read())
        return [held[str(row)] for row in held["ids"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(path, found=f"{type(error).__name__}: {' '.join(str(error).split())[:100]}",
                         expected="a JSON database of ASE", fix="the file is damaged: copy it again") from None


def _array(value: Any, path: str, where: str) -> np.ndarray | None:
    """Numbers from JSON: a number, nested lists, or ASE's ``{"__ndarray__": [shape, type, values]}``; else None."""
    if isinstance(value, Mapping) and "array" in value and value.get("__ase_objtype__") == "cell":
        value = value["array"]
    shape = None
    if isinstance(value, Mapping):
        parts = value.get("__ndarray__")
        if not (isinstance(parts, list) and len(parts) == 3 and isinstance(parts[2], list)):
            return None
        shape, value = parts[0], parts[2]
    if isinstance(value, str | type(None)):
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
        return array if shape is None else array.reshape([int(n) for n in shape])
    except (ValueError, TypeError):
        if shape is None:
            return None
        raise InputError(path, key=where, found=f"shape {shape} of {len(value)} values", expected="as many values as "
                         "the shape says", fix="the file is damaged: copy it again") from None


def _frame(row: Mapping[str, Any], path: str, index: int, of_atoms: Collection[str]) -> Frame:
    """A row whose entries are numbers, lists or arrays. of_atoms: keys of ``data`` that are one value per atom."""
    found = {key: array for key, value in row.items() if key not in ("key_value_pairs", "data", "calculator_parameters")
             and (array := _array(value, path, f"frame {index}, {key}")) is not None}
    number = found.get("numbers", np.zeros(0)).astype(np.int32).reshape(-1)
    n = len(number)
    atoms = {key: found[key].reshape(n, *shape) for key, shape in OF_ATOMS.items()
             if key in found and found[key].size == n * math.prod(shape)}
    values = {key: found[key].reshape(shape) for key, shape in OF_FRAMES.items()
              if key in found and found[key].size == math.prod(shape)}
    pairs = row.get("key_value_pairs") or {}
    texts = {key.lower(): str(value) for key, value in pairs.items() if isinstance(value, str)}
    for key, array in _extra(row, path, index).items():
        if key in atoms or key in values:
            continue
        if key in of_atoms:
            atoms[key] = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        else:
            values[key] = array.reshape(()) if array.size == 1 else array
    cell = found.get("cell", np.zeros((3, 3)))
    pbc = [int(flag) for flag in found.get("pbc", np.zeros(3)).reshape(-1)[:3]]
    isolated = texts.get("config_type", "").lower().replace("_", "").rstrip("s") == "isolatedatom"
    frame = Frame(number, found.get("positions", np.zeros((0, 3))).reshape(-1, 3), atoms, values,
                  cell.reshape(3, 3) if cell.size == 9 and cell.any() else None, (pbc[0], pbc[1], pbc[2]),
                  texts.get("smiles", texts.get("inchi", "")), isolated)
    check_frame(frame, path, index)
    return frame


def _extra(row: Mapping[str, Any], path: str, index: int) -> dict[str, np.ndarray]:
    """Numbers among ``key_value_pairs`` and ``data``."""
    pairs = [*(row.get("key_value_pairs") or {}).items(), *(row.get("data") or {}).items()]
    return {key: array for key, value in pairs if not isinstance(value, bool)
            and (array := _array(value, path, f"frame {index}, {key}")) is not None and array.size}


class _OfAtoms:
    """Which keys of ``data`` are of atoms, found by what all rows have."""

    def __init__(self) -> None:
        self.seen: dict[str, set[tuple[int, tuple[int, ...]]]] = {}

    def add(self, row: Mapping[str, Any], path: str, index: int) -> None:
        numbers = _array(row.get("numbers"), path, f"frame {index}, numbers")
        for key, array in _extra(row, path, index).items():
            self.seen.setdefault(key, set()).add((0 if numbers is None else numbers.size, array.shape))

    def keys(self) -> frozenset[str]:
        return frozenset(key for key, places in self.seen.items() if per_atom(places))


COLUMNS = ("numbers", "positions", "cell", "pbc", *OF_ATOMS, *OF_FRAMES, "key_value_pairs", "data")


@dataclass(frozen=True)
class SqliteFrames:
    """Rows of a database; see `sciml.data.readers._molecules_frames.Frames`. ids ``(frame,)``, ascending."""

    path: str
    ids: np.ndarray
    sizes: np.ndarray
    isolated: np.ndarray
    atom_keys: Mapping[str, Found]
    frame_keys: Mapping[str, Found]
    stated: Mapping[str, str]
    limits: Limits
    of_atoms: frozenset[str]
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> dict[str, str]:
        return UNITS

    @property
    def bytes(self) -> np.ndarray:
        return 64 * self.sizes

    def block(self, start: int, stop: int, atoms: Shapes, frames: Shapes) -> Block:
        """Frames start … stop."""
        with closing(_connect(self.path, self.limits)) as database:
            rows = list(_rows(database, self.path, int(self.ids[start]), int(self.ids[stop - 1])))
        made = [_frame(row, self.path, start + i, self.of_atoms) for i, (_, row) in enumerate(rows)]
        return block_of(made, atoms, frames, self.path, start)


def _connect(path: str, limits: Limits) -> sqlite3.Connection:
    local = local_path(path)
    if local is None:
        raise InputError(path, found="a database behind a URL", expected="a local file", fix="copy it here first")
    start, size = head(path, 100), size_of(path)
    page = int.from_bytes(start[16:18], "big")
    pages = int.from_bytes(start[28:32], "big") if start[24:28] == start[92:96] else 0
    if pages * (65536 if page == 1 else page) > size:
        raise InputError(path, found=f"{size} bytes of {pages} pages of {page}", expected="a complete SQLite file",
                         fix="the file is cut short: copy it again")
    database = sqlite3.connect(f"file:{quote(str(Path(local).absolute()))}?mode=ro&immutable=1", uri=True)
    database.execute("PRAGMA trusted_schema = OFF")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(limits.chunk_bytes, (1 << 31) - 1))
    return database


def _sqlite(path: str, limits: Limits, most: int | None) -> SqliteFrames | None:
    try:
        with closing(_connect(path, limits)) as database:
            kinds = database.execute("SELECT type, sql FROM sqlite_master WHERE name = 'systems'").fetchall()
            if not kinds:
                return None
            if kinds[0][0] != "table" or "generated" in str(kinds[0][1]).lower() or " as (" in str(kinds[0][1]).lower():
                raise InputError(path, key="systems", found=f"a {kinds[0][0]}, or computed columns",
                                 expected="an ordinary table", fix="don't use this file")
            return _index(path, database, limits, most)
    except sqlite3.Error as error:
        raise InputError(path, found=str(error)[:120], expected="a database of ASE",
                         fix="the file is damaged, or is being written: copy it again") from None


def _index(path: str, database: sqlite3.Connection, limits: Limits, most: int | None) -> SqliteFrames:
    lengths, said = _stated(database)
    atoms, values = KeyCount(), KeyCount()
    ids, sizes, isolated, kinds = list[int](), list[int](), list[bool](), _OfAtoms()
    for index, (_, row) in enumerate(islice(_rows(database, path, 0, 1 << 62), most)):
        kinds.add(row, path, index)
    of_atoms = kinds.keys()
    for index, (row_id, row) in enumerate(islice(_rows(database, path, 0, 1 << 62), most)):
        frame = _frame(row, path, index, of_atoms)
        check_size(path, f"frame {index}", frame.position.shape, 8, limits.chunk_bytes, "a frame")
        for key, array in frame.atoms.items():
            atoms.add(key, array.shape[1:])
        for key, array in frame.values.items():
            values.add(key, array.shape)
        ids.append(row_id)
        sizes.append(len(frame.number))
        isolated.append(frame.isolated)
    if not ids:
        raise InputError(path, key="systems", found="no rows", expected="at least one", fix="check the file")
    cut = (f"the first {most} rows were looked at",) if most is not None and len(ids) == most else ()
    return SqliteFrames(path, np.array(ids), np.array(sizes, np.int64), np.array(isolated, bool), atoms.found(said),
                        values.found(said), lengths, limits, of_atoms, cut)


def _stated(database: sqlite3.Connection) -> tuple[dict[str, str], dict[str, str]]:
    """Unit of length, and of quantities by key, where the metadata state them (as SchNetPack's do)."""
    try:
        rows = database.execute("SELECT value FROM information WHERE name = 'metadata'").fetchall()
        held = json.loads(rows[0][0]) if rows else {}
    except (sqlite3.Error, ValueError, TypeError, RecursionError):
        return {}, {}
    said, length = held.get("_property_unit_dict"), held.get("_distance_unit")
    return ({"length": length} if isinstance(length, str) else {},
            {str(k): u for k, u in said.items() if isinstance(u, str) and u} if isinstance(said, dict) else {})


def _rows(database: sqlite3.Connection, path: str, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id and entries of rows, ascending; blobs as arrays."""
    there = {row[1] for row in database.execute("PRAGMA table_info(systems)")}
    names = [name for name in COLUMNS if name in there]
    for row in database.execute(f"SELECT id, {', '.join(names)} FROM systems WHERE id BETWEEN ? AND ? ORDER BY id",
                                (first, last)):
        found = dict(zip(names, row[1:], strict=True))
        yield row[0], {key: _entry(key, value, path, row[0]) for key, value in found.items() if value is not None}


def _entry(key: str, value: Any, path: str, row: int) -> Any:
    try:
        if key in ("key_value_pairs", "data"):
            return _document(value)
        if key == "pbc":
            return [value & 1, (value & 2) >> 1, (value & 4) >> 2]
        if isinstance(value, bytes):
            return np.frombuffer(value, "<i4" if key == "numbers" else "<f8")
        return value
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise InputError(path, key=f"row {row}, {key}", found=" ".join(str(error).split())[:100],
                         expected="numbers as ASE writes them", fix="the file is damaged: copy it again") from None


def _document(value: Any) -> dict[str, Any]:
    """JSON as text, or as bytes: where it begins (8 bytes), arrays, then JSON that says where each array lies."""
    if isinstance(value, str):
        held = json.loads(value)
        return held if isinstance(held, dict) else {}
    held = json.loads(value[int.from_bytes(value[:8], "little"):])
    made = {}
    for key, item in held.items() if isinstance(held, dict) else ():
        parts = item.get("__ndarray__") if isinstance(item, dict) else None
        if parts is None:
            made[key] = item
            continue
        shape, kind = [int(n) for n in parts[0]], np.dtype(str(parts[1]))
        if kind.kind in "fiu" and min(shape, default=0) >= 0:
            made[key] = np.frombuffer(value, kind, math.prod(shape), int(parts[2])).reshape(shape).astype(np.float64)
    return made
