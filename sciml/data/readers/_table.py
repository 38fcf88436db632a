"""Tables with one row per time and one column per variate: times made sense of, cells turned into numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sciml.data.readers.guess import is_uniform, numbers
from sciml.errors import InputError

NAMES = ("time", "date", "datetime", "timestamp", "t", "index")
OPTIONS = frozenset({"time_column", "time_format", "columns", "units", "irregular"})


def time_column(names: Sequence[str], frame: pd.DataFrame, options: Mapping[str, Any], where: object) -> str:
    """The column of times: `options.time_column`, else the first that holds dates, else one of the usual names."""
    given = options.get("time_column")
    if given is not None:
        if given not in names:
            raise InputError(where, key="options.time_column", found=repr(given), expected=f"one of {', '.join(names)}",
                             fix="correct the name")
        return str(given)
    for name in names:
        column = frame[name].dropna().head(20)
        if len(column) and (column.dtype.kind == "M" or _mostly_dates(column)):
            return name
    for name in names:
        if name.strip().lower() in NAMES and is_number(frame[name].dropna()):
            return name
    raise InputError(where, key="time", found=f"columns {', '.join(names)[:120]}, none of dates",
                     expected="a column of timestamps or times", fix="name it: options: {time_column: …}")


def _mostly_dates(column: pd.Series) -> bool:
    return not is_number(column) and bool(dates(column, {}).notna().mean() > 0.5)


def is_number(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def dates(column: pd.Series, options: Mapping[str, Any]) -> pd.Series:
    """Timestamps without a zone (in UTC), NaT where one can't be read."""
    if column.dtype.kind == "M" and getattr(column.dtype, "tz", None) is None:
        return column
    form = options.get("time_format", "ISO8601")
    parsed = pd.to_datetime(column, errors="coerce", format=form, utc=True)
    if parsed.isna().all() and "time_format" not in options and len(column):
        guessed = pd.to_datetime(column.astype(str).head(1), errors="coerce", format="mixed", utc=True)
        if guessed.notna().all() and not str(column.iloc[0]).strip().isdigit():
            parsed = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
    return parsed.dt.tz_localize(None)


def times(column: pd.Series, name: str, options: Mapping[str, Any],
          where: object) -> tuple[np.ndarray, list[int] | None]:
    """Strictly ascending, uniform times, and with ``irregular: fill`` the places of the given rows among them.

    Raises `InputError` naming the row (1 is the first below the header) that can't be read, repeats an earlier time,
    goes back, or breaks the rhythm; ``irregular: keep`` admits the last.
    """
    values = column.to_numpy() if is_number(column) else dates(column, options).to_numpy()
    bad = np.flatnonzero(np.isnat(values) if values.dtype.kind == "M" else ~np.isfinite(values.astype(float)))
    if len(bad):
        _refuse(where, name, int(bad[0]), f"{column.iloc[int(bad[0])]!r}, no time", "a timestamp in every row",
                "mend the row, or give its form: options: {time_format: '%d.%m.%Y %H:%M'}")
    gaps = np.diff(numbers(values))
    bad = np.flatnonzero(gaps <= 0)
    if len(bad):
        at = int(bad[0]) + 1
        twice = gaps[at - 1] == 0
        _refuse(where, name, at, f"{values[at]} {'again' if twice else f'after {values[at - 1]}'}", "ascending times",
                "drop or average the duplicates" if twice else "sort the rows by time")
    if options.get("irregular") == "keep" or is_regular(values, gaps):
        return values, None
    at = int(np.argmax(np.abs(gaps - np.median(gaps)))) + 1
    if options.get("irregular") != "fill":
        _refuse(where, name, at, f"{values[at]}, {gaps[at - 1]:g} after the row before (usually {np.median(gaps):g})",
                "regular times", "options: {irregular: fill} inserts the missing rows as NaN, keep leaves them out "
                                 "(with axes: {time: {uniform: false}})")
    return _filled(values, gaps, name, where)


def is_regular(values: np.ndarray, gaps: np.ndarray) -> bool:
    """Uniform, or of one calendar rhythm (months, quarters)."""
    if len(gaps) < 2 or is_uniform(gaps, values):
        return True
    return values.dtype.kind == "M" and any(_monthly(values + shift) for shift in np.array([0, 1], "timedelta64[D]"))


def _monthly(values: np.ndarray) -> bool:
    """The same day and hour every so many months (after a shift by one day: the last of the month)."""
    months = values.astype("datetime64[M]")
    return len(set((values - months).tolist())) == 1 and len(set(np.diff(months.astype(int)).tolist())) == 1


def _filled(values: np.ndarray, gaps: np.ndarray, name: str, where: object) -> tuple[np.ndarray, list[int]]:
    step = float(np.median(gaps))
    place = (numbers(values) - numbers(values)[0]) / step
    off = np.flatnonzero(np.abs(place - np.rint(place)) > 1e-3)
    if len(off):
        _refuse(where, name, int(off[0]), f"{values[int(off[0])]}, off the rhythm of {step:g}",
                "times at multiples of the usual step", "resample the table")
    count = int(np.rint(place[-1])) + 1
    if count > 4 * len(values) + 1000:
        _refuse(where, name, len(values) - 1, f"{count} rows to fill {len(values)}", "gaps of moderate length",
                "split the table at its long gaps")
    wide = np.timedelta64(round(step * 1e9), "ns") if values.dtype.kind == "M" else step
    return values[0] + np.arange(count) * wide, [int(p) for p in np.rint(place)]


def _refuse(where: object, column: str, row: int, found: str, expected: str, fix: str) -> None:
    raise InputError(where, key=f"row {row + 1}, column {column}", found=found, expected=expected, fix=fix)


def to_numbers(column: pd.Series, name: str, where: object, first_row: int = 0) -> np.ndarray:
    """A column as float64, empty cells NaN. Raises `InputError` naming the row and column of the first text."""
    if is_number(column) or column.dtype.kind == "b":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = pd.to_numeric(column, errors="coerce")
    bad = np.flatnonzero((values.isna() & column.notna() & (column.astype(str).str.strip() != "")).to_numpy())
    if len(bad):
        row = int(bad[0])
        _refuse(where, name, first_row + row, f"{column.iloc[row]!r}", f"a number ({len(bad)} cells are none)",
                "mend it, or name what marks a missing value: options: {na_values: ['-']}; or leave the column out of "
                "options.columns")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def chosen_columns(names: Sequence[str], time: str, options: Mapping[str, Any], where: object) -> list[str]:
    """`options.columns` in that order, or all but the time column."""
    given = options.get("columns")
    if given is None:
        return [name for name in names if name != time]
    for name in given:
        if name not in names or name == time:
            raise InputError(where, key="options.columns", found=repr(name), expected=f"some of {', '.join(names)}",
                             fix="correct the name")
    return [str(name) for name in given]
