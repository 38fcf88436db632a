"""JSON lines as GluonTS writes them, plain or gzip: a series a line, ``{"start": …, "target": […], "item_id": …}``.

In place of a start, ``"timestamp": […]`` may give every value its time. Options: `freq` (a pandas name such as h or
15min, where lines don't say), `timezone` (of local times), `irregular` (``fill`` or ``keep``, of such lists),
`variates`, `units`, `parts`, `shortest`. ``feat_dynamic_real`` are covariates, known in the future, too;
``feat_static_real`` and ``feat_static_cat`` static ones. Read into memory.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.files import head, open_bytes, size_of
from sciml.data.frames import MOST_CATEGORIES, Columns, Table, regular, with_trait
from sciml.data.readers import _series
from sciml.data.readers._combine import options_of
from sciml.data.readers._table import listed, nanoseconds, stamps
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import check_ratio, check_size, limits_of
from sciml.errors import InputError

GZIP = b"\x1f\x8b"
TIMES = "timestamp"
LEGACY = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "A": "Y", "BH": "bh"}
CALENDAR = ("M", "Q", "Y", "W")
MISSING = ("NaN", "nan", None)
FREQUENCY = re.compile(r"(?:[1-9]\d{0,5})?[A-Za-z]+(?:-[A-Z]{3})?")


@dataclass(frozen=True)
class GluonTS:
    """Reads many series of one frequency."""

    options: frozenset[str] = _series.OPTIONS | {"freq", "timezone", "variates", "irregular"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        try:
            first = next(_lines(path, {}, limit=1 << 22), None)
        except InputError:
            return None
        if first is None or "target" not in first[1] or not {"start", TIMES} & first[1].keys():
            return None
        size, limit = size_of(path), max(limit_bytes, 1 << 20)
        entries = list(_lines(path, {}, limit=limit))
        said = {"" if TIMES in entry else entry.get("freq") for _, entry in entries} - {None}
        options: dict[str, Any] = {} if said else {"freq": None}
        notes = [f"only the first {limit} of {size} bytes were looked at"] if size > limit else []
        told = {"irregular": "keep", **({} if said else {"freq": "D"})}
        found = _series.dataset([_labelled(entries, path, told)], [path], {},
                                format="gluonts", notes=notes, missing=["options.freq"] if not said else [])
        return guess(found, path, options=options, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """``value (step, variate)`` of all series with their times; see `sciml.data.readers._series`."""
        options = options_of(source)
        return _series.dataset([_labelled(list(_lines(path, options)), path, options) for path in paths], paths,
                               options, format="gluonts")


PLUGIN = GluonTS()


def _lines(path: str, options: Mapping[str, Any], limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and what the lines hold; of at most `limit` bytes, without a last line that is cut."""
    limits, stored = limits_of(options, path), size_of(path)
    most = limits.chunk_bytes if limit is None else limit
    packed = head(path, 2) == GZIP
    try:
        with open_bytes(path) as raw:
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, found=str(error)[:120], expected="a whole gzip file", fix="copy it again") from None
    cut = len(data) > most
    if limit is None:
        check_size(path, "file", (len(data),), 1, most, "a file to hold in memory")
        check_ratio(path, len(data), stored, limits)
    lines = bytes(data).split(b"\n")
    for number, line in enumerate(lines[:-1] if cut else lines, 1):
        if line.strip():
            yield number, _entry(line, number, path)


def _entry(line: bytes, number: int, path: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(path, key=f"line {number}", found=str(error)[:100], expected="one JSON object a line",
                         fix="mend the line") from None
    if not isinstance(entry, dict):
        raise InputError(path, key=f"line {number}", found=f"a {type(entry).__name__}", expected="a JSON object",
                         fix="write {\"start\": …, \"target\": […]}")
    return entry


def _labelled(entries: Sequence[tuple[int, dict[str, Any]]], path: str, options: Mapping[str, Any]) -> _series.Labelled:
    if not entries:
        raise InputError(path, found="no lines", expected="a series a line", fix="check the file")
    values, known, times = [], [], []
    names: list[str] = []
    freqs: set[str] = set()
    for number, entry in entries:
        where = f"line {number}"
        target = _numbers(entry.get("target"), path, f"{where}, target")
        dynamic = _numbers(entry.get("feat_dynamic_real", []), path, f"{where}, feat_dynamic_real")
        if 0 < dynamic.shape[0] < len(target):
            raise InputError(path, key=f"{where}, feat_dynamic_real", found=f"{len(dynamic)} steps",
                             expected=f"at least {len(target)}, as the target has", fix="give one value per step")
        freq = "" if TIMES in entry else _frequency(entry.get("freq") or options.get("freq"), path, where)
        values.append(target)
        known.append(dynamic[:len(target)] if dynamic.size else np.zeros((len(target), 0)))
        times.append(_times(entry, len(target), freq, path, where, options) if freq else
                     _listed(entry[TIMES], len(target), path, where, options))
        names.append(str(entry.get("item_id", len(names) + 1)))
        freqs.add(freq)
    _check_alike(values, known, names, freqs, [number for number, _ in entries], path)
    width = values[0].shape[1]
    numbered = ["target"] if width == 1 else [f"target_{i}" for i in range(1, width + 1)]
    variates = listed(options, "variates", path) or numbered
    if len(variates) != width:
        raise InputError(path, key="options.variates", found=f"{len(variates)} names", expected=f"{width}",
                         fix="one per row of target")
    covariates = tuple(f"dynamic_{i}" for i in range(1, known[0].shape[1] + 1))
    columns = Columns("item_id", "start" if "" not in freqs else TIMES, tuple(variates), covariates)
    table = _series.rows_of(values, names, times, columns, known)
    table, notes = _with_statics(table, [entry for _, entry in entries], path)
    freq = freqs.pop()
    if freq:
        return _series.Labelled(table, clock={"freq": freq}, notes=notes)
    return _series.Labelled(regular(table, options, path), notes=notes)


def _numbers(value: Any, path: str, key: str) -> np.ndarray:
    """``(steps, members)`` of a list, or a list per member."""
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if not all(isinstance(row, list) for row in rows) or len({len(row) for row in rows}) != 1:
        raise InputError(path, key=key, found=repr(value)[:60], expected="a list of numbers, or lists of one length",
                         fix="mend the line")
    try:
        made = np.array([[np.nan if one in MISSING else float(one) for one in row] for row in rows])
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(path, key=key, found=str(error)[:80], expected="numbers, NaN or null where one is missing",
                         fix="mend the line") from None
    if key.endswith("target") and made.size == 0:
        raise InputError(path, key=key, found="no value", expected="at least one", fix="remove the line")
    return made.T


def _frequency(text: Any, path: str, where: str) -> str:
    """Its present name in pandas (H is h, 1T is min)."""
    if not isinstance(text, str) or not FREQUENCY.fullmatch(text):
        raise InputError(path, key=f"{where}, freq", found=repr(text), expected="a pandas name such as h, 15min, D, M",
                         fix="name it: options: {freq: h}")
    digits = text[:len(text) - len(text.lstrip("0123456789"))]
    name, dash, anchor = text[len(digits):].partition("-")
    freq = f"{'' if digits == '1' else digits}{LEGACY.get(name, name)}{dash}{anchor}"
    try:
        pd.Period("2000-01-01", freq)
    except (ValueError, TypeError) as error:
        raise InputError(path, key=f"{where}, freq", found=repr(text), expected="a pandas name such as h, 15min, D, M",
                         fix=f"correct it ({' '.join(str(error).split())[:80]})") from None
    return freq


def _times(entry: Mapping[str, Any], count: int, freq: str, path: str, where: str,
           options: Mapping[str, Any]) -> np.ndarray:
    """``(count,)`` datetime64[ns]: of calendar rhythms the starts of weeks, months, quarters, years."""
    start = pd.Series([entry.get("start")], dtype=object).astype(str)
    try:
        first = pd.Timestamp(stamps(start, "start", options, path)[0])
    except InputError as error:
        raise InputError(path, key=f"{where}, start", found=error.found, expected=error.expected,
                         fix="write it as 2024-03-01 12:00:00") from None
    try:
        if freq.lstrip("0123456789").partition("-")[0] in CALENDAR:
            found = pd.period_range(pd.Period(first, freq), periods=count).to_timestamp()
        else:
            found = pd.date_range(first, periods=count, freq=freq)
        made, off = nanoseconds(np.asarray(found.to_numpy()))
    except (ValueError, OverflowError):
        made, off = np.zeros(1, "datetime64[ns]"), np.ones(1, bool)
    if off.any():
        raise InputError(path, key=f"{where}, start", found=f"{count} steps of {freq} from {first}",
                         expected="times of the years 1678 to 2261", fix="correct start or freq")
    return made


def _listed(given: Any, count: int, path: str, where: str, options: Mapping[str, Any]) -> np.ndarray:
    """``(count,)`` the times of a list."""
    if not isinstance(given, list) or len(given) != count:
        raise InputError(path, key=f"{where}, {TIMES}", found=f"{len(given)} times" if isinstance(given, list)
                         else repr(given)[:60], expected=f"a list of {count}, one per value", fix="mend the line")
    try:
        return stamps(pd.Series(given), TIMES, options, path)
    except InputError as error:
        raise InputError(path, key=f"{where}, {TIMES}", found=error.found, expected=error.expected,
                         fix=error.fix) from None


def _check_alike(values: Sequence[np.ndarray], known: Sequence[np.ndarray], names: Sequence[str], freqs: set[str],
                 lines: Sequence[int], path: str) -> None:
    if len(freqs) > 1:
        raise InputError(path, key="freq", found=", ".join(sorted(freqs)), expected="one frequency",
                         fix="one file and store per frequency")
    seen: dict[str, int] = {}
    for value, beside, name, line in zip(values, known, names, lines, strict=True):
        if value.shape[1] != values[0].shape[1] or beside.shape[1] != known[0].shape[1]:
            raise InputError(path, key=f"line {line}", found=f"{value.shape[1]} variates, {beside.shape[1]} dynamic "
                             "features", expected=f"{values[0].shape[1]} and {known[0].shape[1]}, as in the first line",
                             fix="give all series the same ones")
        if name in seen:
            raise InputError(path, key=f"line {line}, item_id", found=f"{name}, as in line {seen[name]}",
                             expected="one line per series", fix="join the lines, or rename it")
        seen[name] = line


def _with_statics(table: Table, entries: Sequence[Mapping[str, Any]], path: str) -> tuple[Table, tuple[str, ...]]:
    notes = []
    for key, name in (("feat_static_real", "static_real"), ("feat_static_cat", "static_cat")):
        given = [entry.get(key) or [] for entry in entries]
        if len({len(one) for one in given}) != 1:
            at = next(i for i, one in enumerate(given) if len(one) != len(given[0]))
            raise InputError(path, key=f"series {at + 1}, {key}", found=f"{len(given[at])} values",
                             expected=f"{len(given[0])}, as in the first", fix="give all series the same ones")
        for i in range(len(given[0])):
            column = pd.Series([one[i] for one in given])
            if name == "static_cat" and column.nunique() > MOST_CATEGORIES:
                notes.append(f"{name}_{i + 1} of {column.nunique()} categories is left out")
                continue
            table = with_trait(table, f"{name}_{i + 1}", column.astype(str) if name == "static_cat" else column, path)
    return table, tuple(notes)
