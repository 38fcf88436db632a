"""CSV (comma, semicolon, tab or bar) with a header, a column of times and numeric columns: one series, or long.

Options: `time_column`, `time_format`, `timezone` (of local times), `columns`, `covariates` (columns known in the
future, too), `units` (one, or by column), `separator`, `decimal`, `na_values`, `irregular` (``fill`` or ``keep``),
`anomaly_column` (0 and 1, see `sciml.data.readers._anomaly`);
with `id_column`, many series, those of `sciml.data.readers._long`. The table is read into memory.
"""

from __future__ import annotations

import csv as stdlib_csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.files import head, open_bytes, size_of
from sciml.data.readers import _anomaly, _long
from sciml.data.readers import _table as table
from sciml.data.readers._cf import series
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers._lattice import CHUNK_BYTES, coordinate
from sciml.data.readers._units import units_by_name
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.rhythm import told
from sciml.errors import InputError

LOOK = 1 << 16
MINIMUM = 1 << 20


@dataclass(frozen=True)
class CSV:
    """Reads wide tables as one series, long ones as many."""

    options: frozenset[str] = table.OPTIONS | _long.OPTIONS | {_anomaly.OPTION, "separator", "decimal", "na_values"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        separator = _separator(head(path, LOOK))
        if separator is None:
            return None
        size, limit = size_of(path), max(limit_bytes, MINIMUM)
        frame = _frame(path, {}, head(path, limit) if size > limit else None)
        try:
            table.time_column(list(frame.columns), frame, {}, path)
        except InputError:
            if size <= limit and not any(table.is_number(frame[name]) for name in frame):
                return None
            raise
        own = {} if separator == "," else {"separator": separator}
        found = _long.recognise(frame, path, "csv", limit_bytes=limit, options=own)
        if found is None:
            found = replace(guess(_read(path, frame, {"irregular": "keep"}, lenient=True), path, limit_bytes=limit),
                            options=own)
        if size > limit:
            found = replace(found, notes=(*found.notes, f"only the first {limit} of {size} bytes were looked at"))
        return found

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Series ``value (series = 1, time, variate)`` in float64, missing cells NaN; with ``id_column`` as of
        `sciml.data.readers._series`."""
        options = _anomaly.with_column(options_of(source))
        if "id_column" in options:
            found = _long.dataset([_frame(str(p), options) for p in paths], paths, options, format="csv")
        else:
            found = combine([_read(str(p), _frame(str(p), options), options) for p in paths], paths, source)
        return _anomaly.split_off(found, options, paths[0])


PLUGIN = CSV()


def _separator(start: bytes) -> str | None:
    """The separator of a text whose first lines all have the same number (≥ 2) of fields, else None."""
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return None
        text = start[: error.start].decode("utf-8-sig")
    lines = text.splitlines()
    lines = lines[:-1] if len(start) == LOOK else lines
    if len(lines) < 2 or "\x00" in text:
        return None
    for separator in (",", ";", "\t", "|"):
        widths = {len(row) for row in stdlib_csv.reader(lines[:20], delimiter=separator) if row}
        if len(widths) == 1 and widths.pop() >= 2:
            return separator
    return None


def _frame(path: str, options: Mapping[str, Any], start: bytes | None = None) -> pd.DataFrame:
    separator = options.get("separator") or _separator(head(path, LOOK))
    if separator is None:
        raise InputError(path, found="lines of differing numbers of fields", expected="a table with a header",
                         fix="mend the lines, or name the separator: options: {separator: ';'}")
    if start is not None:
        start = start[: start.rfind(b"\n") + 1]
    try:
        with open_bytes(path) if start is None else io.BytesIO(start) as source:
            frame = pd.read_csv(source, sep=separator, decimal=options.get("decimal", "."), encoding="utf-8-sig",
                                na_values=options.get("na_values"), low_memory=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(path, found=" ".join(str(error).split())[:160], expected="a table with a header",
                         fix="mend the line named") from None
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if frame.empty or frame.columns.has_duplicates:
        twice = ", ".join(frame.columns[frame.columns.duplicated()])
        raise InputError(path, found=f"columns named twice: {twice}" if twice else "no rows",
                         expected="rows under distinct names", fix="mend the header")
    return frame


def _read(path: str, frame: pd.DataFrame, options: Mapping[str, Any], lenient: bool = False) -> xr.Dataset:
    names = list(frame.columns)
    time = table.time_column(names, frame, options, path)
    chosen, covariates = table.chosen_columns(names, time, options, path)
    columns = [*chosen, *covariates]
    suspicious: list[str] = []
    stamps, places = _times(frame[time], time, options, path, suspicious if lenient else None)
    data = []
    for name in columns:
        try:
            data.append(table.to_numbers(frame[name], name, path))
        except InputError as error:
            if not lenient:
                raise
            suspicious.append(f"{error.key}: {error.found}; expected {error.expected}")
            data.append(pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))
    values = np.stack(data, axis=-1)
    if places is not None:
        spread = np.full((len(stamps), len(columns)), np.nan)
        spread[places] = values
        values = spread
    rows = max(1, CHUNK_BYTES // (8 * max(len(columns), 1)))
    array = da.from_array(values[None], chunks=(1, rows, len(columns)), name=False)
    units = units_by_name(columns, options, path)
    result = series(array, coordinate("time", stamps, "time", **told(stamps, options)), columns, units, format="csv",
                    covariates=covariates)
    return result.assign_attrs(suspicious=tuple(suspicious))


def _times(column: pd.Series, name: str, options: Mapping[str, Any], path: str,
           findings: list[str] | None) -> tuple[np.ndarray, list[int] | None]:
    """`table.times`, or, where findings are collected, the times as they are with what is wrong with them."""
    if findings is None:
        return table.times(column, name, options, path)
    try:
        return table.times(column, name, {}, path)
    except InputError as error:
        findings.append(f"{error.key}: {error.found}; expected {error.expected}")
        kept = column if table.is_number(column) else table.dates(column, {})
        return kept.to_numpy(), None
