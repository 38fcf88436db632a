"""Files of the UEA and UCR archives, ``.ts``: lines of ``@key value``, then one series a line, and its class.

Options: `variates` (names; ``dim_1`` … unless given), `classes` (other names, in the order of the header), `units`,
`parts` (of several files: train, validation or test each), `shortest`. Steps are counted (unit 1): the format has no
clock. Read into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head, open_bytes, size_of
from sciml.data.frames import Columns
from sciml.data.readers import _series
from sciml.data.readers._combine import options_of
from sciml.data.readers._table import listed
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import check_size, limits_of
from sciml.errors import InputError

LOOK = 1 << 16
KEYS = frozenset({"problemname", "timestamps", "missing", "univariate", "dimension", "dimensions", "equallength",
                  "serieslength", "classlabel", "targetlabel"})
MISSING = ("?", "nan", "NaN")


@dataclass(frozen=True)
class UEA:
    """Reads series with a class or a number to be told each."""

    options: frozenset[str] = _series.OPTIONS | {"variates", "classes"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        lines = [line.strip().lower() for line in head(path, LOOK).decode("utf-8", "replace").splitlines()]
        told = [line for line in lines if line and not line.startswith("#")]
        if not told or told[0].removeprefix("@").partition(" ")[0] not in KEYS or not told[0].startswith("@"):
            return None
        size, limit = size_of(path), max(limit_bytes, LOOK)
        lines = _text(path, limit)
        partly = [f"only the first {limit} of {size} bytes were looked at"] if size > limit else []
        found = _dataset([_parse(lines[:-1] if partly else lines, path, cut=bool(partly))], [path], {}, notes=partly)
        return guess(found, path, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """``value (step, variate)`` of all series, ``label (series)``; see `sciml.data.readers._series`."""
        options = options_of(source)
        for path in paths:
            check_size(path, "file", (size_of(path),), 1, limits_of(options, path).chunk_bytes, "a file to hold")
        return _dataset([_parse(_text(path), path) for path in paths], paths, options)


PLUGIN = UEA()


@dataclass
class Parsed:
    """One file: ``(rows, dims)`` per series, the texts behind the last colon, and the header by key in lower case."""

    header: Mapping[str, str]
    values: list[np.ndarray] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def says(self, key: str) -> bool:
        return self.header.get(key, "").lower().startswith("true")


def _text(path: str, limit: int = -1) -> list[str]:
    with open_bytes(path) as source:
        return bytes(source.read(limit)).decode("utf-8", "replace").splitlines()


def _parse(lines: Sequence[str], path: str, *, cut: bool = False) -> Parsed:
    """cut: only the beginning of the file is there."""
    header: dict[str, str] = {}
    start = len(lines)
    for number, line in enumerate(map(str.strip, lines)):
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            header[key.lower()] = value.strip()
            if key.lower() == "data":
                start = number + 1
                break
    parsed = Parsed(header)
    if parsed.says("timestamps"):
        raise InputError(path, key="@timeStamps", found="true", expected="false: values without their times",
                         fix="write a table with a row per series and time, and read it with options: {id_column: …}")
    labelled = parsed.says("classlabel") or parsed.says("targetlabel")
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip() or line.startswith("#"):
            continue
        *parts, last = line.strip().split(":")
        parsed.values.append(_values([*parts, last] if not labelled else parts, number, path))
        parsed.labels += [last.strip()] if labelled else []
    if not parsed.values and not cut:
        raise InputError(path, key="@data", found="no series", expected="one a line below @data", fix="copy it again")
    _check_header(parsed, path)
    return parsed


def _values(parts: Sequence[str], number: int, path: str) -> np.ndarray:
    dims = []
    for which, part in enumerate(parts, 1):
        try:
            dims.append([float("nan" if text.strip() in MISSING else text) for text in part.split(",")])
        except ValueError as error:
            raise InputError(path, key=f"line {number}, dimension {which}", found=str(error)[:80],
                             expected="numbers between commas, ? where one is missing", fix="mend the line") from None
        if len(dims[-1]) != len(dims[0]):
            raise InputError(path, key=f"line {number}, dimension {which}", found=f"{len(dims[-1])} values",
                             expected=f"{len(dims[0])}, as in dimension 1",
                             fix="give all dimensions of a series the same steps, ? where a value is missing")
    return np.array(dims, dtype=np.float64).T


def _check_header(parsed: Parsed, path: str) -> None:
    """Raises `InputError` if dimensions or lengths are not as the header says."""
    dims = parsed.header.get("dimensions") or parsed.header.get("dimension")
    told = 1 if parsed.says("univariate") else int(dims) if dims and dims.isdigit() else None
    width = told or (parsed.values[0].shape[1] if parsed.values else 0)
    length = parsed.header.get("serieslength", "")
    equal = parsed.says("equallength")
    rows = int(length) if equal and length.isdigit() else parsed.values[0].shape[0] if equal and parsed.values else None
    for i, values in enumerate(parsed.values, 1):
        if values.shape[1] != width or rows not in (None, values.shape[0]):
            told_rows = f" of {rows} values" if rows else ""
            raise InputError(path, key=f"series {i}", found=f"{values.shape[1]} dimensions of {values.shape[0]} values",
                             expected=f"{width} dimensions{told_rows}, as the header or the first series says",
                             fix="mend the line, or @dimensions and @equalLength")


def _dataset(files: Sequence[Parsed], paths: Sequence[str], options: Mapping[str, Any],
             notes: Sequence[str] = ()) -> xr.Dataset:
    parts = listed(options, "parts", paths[0])
    named = parts if len(parts) == len(set(parts)) == len(files) else range(1, len(files) + 1)
    read = []
    for one, part, path in zip(files, named, paths, strict=True):
        width = one.values[0].shape[1] if one.values else 0
        variates = listed(options, "variates", path) or [f"dim_{i}" for i in range(1, width + 1)]
        if len(variates) != width:
            raise InputError(path, key="options.variates", found=f"{len(variates)} names",
                             expected=f"{width}, one per dimension", fix="correct the list")
        names = [f"{part}-{i}" if len(files) > 1 or parts else f"{i}" for i in range(1, len(one.values) + 1)]
        table = _series.rows_of(one.values, names, [np.arange(float(len(v))) for v in one.values],
                                Columns(None, "step", tuple(variates)))
        label, classes = _labels(one, path)
        given = tuple(listed(options, "classes", path)) or classes
        if len(given) != len(classes):
            raise InputError(path, key="options.classes", found=f"{len(given)} names",
                             expected=f"{len(classes)}, for {', '.join(classes)[:200]}", fix="correct the list")
        read.append(_series.Labelled(table, label, given))
    return _series.dataset(read, paths, options, format="ts", notes=notes)


def _labels(one: Parsed, path: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """``(S,)``: places among the classes of the header, or the numbers to be told."""
    if not one.labels:
        return None, ()
    classes = tuple(one.header.get("classlabel", "").split()[1:]) if one.says("classlabel") else ()
    known = {name: float(i) for i, name in enumerate(classes)} | dict.fromkeys(MISSING, np.nan)
    values = []
    for i, text in enumerate(one.labels, 1):
        try:
            values.append(known[text] if classes or text in known else float(text))
        except (KeyError, ValueError):
            raise InputError(path, key=f"series {i}, label", found=repr(text),
                             expected=f"one of {', '.join(classes)[:200]}" if classes else "a number",
                             fix="correct it, or name it in @classLabel") from None
    return np.array(values), classes
