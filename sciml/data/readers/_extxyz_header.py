"""The comment line of an extended XYZ frame: key=value pairs, read by a small scanner, never evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sciml.errors import InputError

KEY = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s=\"']+))")
VALUE = re.compile(r"\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"(?=\s|$)|'((?:[^'\\]|\\.)*)'(?=\s|$)|\{([^{}]*)\}(?=\s|$)|"
                   r"(\[(?:[^\[\]\"']|\[[^\[\]\"']*\])*\])(?=\s|$)|([^\s\"'{\[][^\s]*))")
JSON = re.compile(r"\s*=\s*_JSON\s+")
ISOLATED = re.compile(r"isolated[_ ]?atoms?$", re.IGNORECASE)
UNIT = re.compile(r"(length|position|energy|forces?|stress)_units?$", re.IGNORECASE)
TYPES = frozenset("SRIL")
PLAIN = "species:S:1:pos:R:3"
NAMES = {"positions": "pos", "position": "pos", "symbols": "species", "numbers": "Z", "atomic_numbers": "Z"}


@dataclass(frozen=True)
class Header:
    """A frame's comment. columns: name → (first, width), numeric those of numbers; values: what is numeric, shape ()
    or as written; texts: the rest; periodic −1 where a cell has no flags; units: length, energy, …, if stated."""

    properties: str
    columns: dict[str, tuple[int, int]]
    numeric: frozenset[str]
    width: int
    values: dict[str, np.ndarray]
    texts: dict[str, str]
    cell: np.ndarray | None
    periodic: tuple[int, int, int]
    units: dict[str, str]

    @property
    def isolated(self) -> bool:
        return bool(ISOLATED.match(self.texts.get("config_type", "")))

    def text(self, names: Sequence[str]) -> str:
        """The value of the first key that is one of `names` in any case; empty if there is none."""
        return next((text for key, text in self.texts.items() if key.lower() in names), "")


def header_of(line: str, path: str, frame: int) -> Header:
    """The header in a comment line; one without any ``Properties=`` is plain XYZ.

    Raises `InputError` for quotes that don't close, keys that occur twice, and what no Properties, Lattice or pbc is.
    """
    where = f"frame {frame}"
    pairs = _pairs(line, path, where)
    if pairs is None:
        return Header(PLAIN, {"species": (0, 1), "pos": (1, 3)}, frozenset({"pos"}), 4, {}, {}, None, (0, 0, 0), {})
    properties = pairs.pop("Properties", PLAIN)
    columns, numeric, width = _columns(properties, path, where)
    cell = _cell(pairs, path, where)
    periodic = _periodic(pairs.pop("pbc", None), cell, path, where)
    units = {}
    for key in [key for key in pairs if UNIT.match(key)]:
        name = key.lower().split("_")[0]
        units[{"position": "length", "force": "forces"}.get(name, name)] = pairs.pop(key)
    values, texts = {}, {}
    for key, text in pairs.items():
        number = _numbers(text)
        if number is None:
            texts[key] = text
        else:
            values[key] = number
    return Header(properties, columns, numeric, width, values, texts, cell, periodic, units)


def _pairs(line: str, path: str, where: str) -> dict[str, str] | None:
    """Keys and their values as text, a bare key being true; None if the line is no list of pairs."""
    if "=" not in line:
        return None
    pairs: dict[str, str] = {}
    at, end = 0, len(line.rstrip())
    while at < end:
        found = KEY.match(line, at)
        if found is None:
            raise _broken(line, at, path, where)
        key, at = next(part for part in found.groups() if part is not None), found.end()
        text = "T"
        if (json_value := JSON.match(line, at)) is not None:
            text, at = _json(line, json_value.end(), path, where)
        elif (value := VALUE.match(line, at)) is not None:
            text, at = next(part for part in value.groups() if part is not None), value.end()
        elif line[at:].lstrip().startswith("="):
            raise _broken(line, at, path, where)
        if key in pairs:
            raise InputError(path, key=f"{where}, {key}", found="it twice", expected="every key once",
                             fix="remove one of them")
        pairs[key] = text
    return pairs


def _broken(line: str, at: int, path: str, where: str) -> InputError:
    return InputError(path, key=where, found=f"{line[at:at + 40]!r} in the comment",
                      expected="key=value pairs, quotes closed", fix="mend the line")


def _json(line: str, at: int, path: str, where: str) -> tuple[str, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(line, at)
    except (ValueError, RecursionError):
        raise _broken(line, at, path, where) from None
    return json.dumps(value), end


def _columns(properties: str, path: str, where: str) -> tuple[dict[str, tuple[int, int]], frozenset[str], int]:
    parts = properties.split(":")
    names, types, widths = parts[::3], parts[1::3], parts[2::3]
    good = len(parts) % 3 == 0 and set(types) <= TYPES and all(
        w.isascii() and w.isdigit() and 0 < int(w[:6]) < 1000 for w in widths)
    columns: dict[str, tuple[int, int]] = {}
    at = 0
    for name, width in zip(names, widths) if good else ():
        name = NAMES.get(name, name)
        good = good and name not in columns
        columns[name] = (at, int(width))
        at += int(width)
    if not good or columns.get("pos", (0, 0))[1] != 3:
        raise InputError(path, key=f"{where}, Properties", found=repr(properties)[:80],
                         expected="name:type:width of every column once, types S, R, I, L, pos:R:3 among them",
                         fix="correct it")
    numeric = {NAMES.get(name, name) for name, kind in zip(names, types) if kind in "RI"}
    return columns, frozenset(numeric), at


def _cell(pairs: dict[str, str], path: str, where: str) -> np.ndarray | None:
    text = pairs.pop("Lattice", None)
    if text is None:
        return None
    numbers = _numbers(text)
    if numbers is None or numbers.size not in (3, 9) or not np.isfinite(numbers).all():
        raise InputError(path, key=f"{where}, Lattice", found=repr(text)[:80],
                         expected="nine numbers: the vectors a, b, c one after the other", fix="correct it")
    return np.diag(numbers.reshape(3)) if numbers.size == 3 else numbers.reshape(3, 3)


def _periodic(text: str | None, cell: np.ndarray | None, path: str, where: str) -> tuple[int, int, int]:
    if text is None:
        return (0, 0, 0) if cell is None else (-1, -1, -1)
    flags = [{"T": 1, "TRUE": 1, "1": 1, "F": 0, "FALSE": 0, "0": 0}.get(word.upper())
             for word in re.split(r"[\s,\[\]]+", text) if word]
    if len(flags) != 3 or None in flags:
        raise InputError(path, key=f"{where}, pbc", found=repr(text)[:40], expected='three flags such as "T T F"',
                         fix="correct it")
    if any(flags) and cell is None:
        raise InputError(path, key=f"{where}, pbc", found=f"{text!r} without a Lattice", expected="a cell to repeat",
                         fix="add the Lattice, or pbc=\"F F F\"")
    return int(flags[0] or 0), int(flags[1] or 0), int(flags[2] or 0)


def _numbers(text: str) -> np.ndarray | None:
    """Numbers of a text, shape () for one; None if it is no list of numbers."""
    words = [word for word in re.split(r"[\s,\[\]]+", text) if word]
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        return None
    return None if not len(words) else values.reshape(()) if len(values) == 1 and "[" not in text else values
