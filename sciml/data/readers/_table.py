"""Tables with one row per time and one column per variate: times made sense of, cells turned into numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sciml.data.readers.guess import is_uniform, numbers
from sciml.data.rhythm import calendar, gapped, later
from sciml.errors import InputError

NAMES = ("time", "date", "datetime", "timestamp", "t", "index")
OPTIONS = frozenset({"time_column", "time_format", "timezone", "columns", "covariates", "units", "irregular"})
OFFSET = r"\d{2}:\d{2}.*(?:Z|[+-]\d{2}:?\d{2})\s*$"
LOCAL = "if these are local times with summer time, name the zone: options: {timezone: Europe/Berlin}"


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
    """Timestamps without a zone (in UTC; of one time a day, as days are counted there), NaT where one can't be read."""
    if column.dtype.kind == "M" and (getattr(column.dtype, "tz", None) is None or _daily(column.dt.tz_localize(None))):
        return column.dt.tz_localize(None)
    form = options.get("time_format", "ISO8601")
    parsed = pd.to_datetime(column, errors="coerce", format=form, utc=True)
    if parsed.isna().all() and "time_format" not in options and len(column):
        guessed = pd.to_datetime(column.astype(str).head(1), errors="coerce", format="mixed", utc=True)
        if guessed.notna().all() and not str(column.iloc[0]).strip().isdigit():
            parsed = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
    return parsed.dt.tz_localize(None)


def _daily(local: pd.Series) -> bool:
    """Always the same time of day: steps of whole days, which in UTC would not be even where clocks change."""
    known = local.dropna()
    return bool(((known - known.dt.normalize()).nunique() == 1) and known.dt.normalize().nunique() > 1)


def stamps(column: pd.Series, name: str, options: Mapping[str, Any], where: object,
           series: np.ndarray | None = None) -> np.ndarray:
    """A column of times ``(N,)``: float64, or datetime64[ns] in UTC. ``options.timezone``: the zone of local times.

    series: whose each row is, ``(N,)`` numbers; rows of one are in order. Raises `InputError` naming the row (1 is the
    first below the header) that can't be read, that there was not in the zone, or twice, on the day the clocks change.
    """
    if is_number(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.flatnonzero(~np.isfinite(values))
    else:
        _check_zone(column, options, where)
        values, off = nanoseconds(dates(column, options).to_numpy())
        bad = np.flatnonzero(np.isnat(values) | off)
    if len(bad):
        _refuse(where, name, int(bad[0]), f"{column.iloc[int(bad[0])]!r}, no time", "a timestamp of the years 1678 to "
                "2261 in every row", "mend the row, or give its form: options: {time_format: '%d.%m.%Y %H:%M'}")
    if options.get("timezone") is None or values.dtype.kind != "M" or _daily(pd.Series(values)):
        return values
    return _localised(values, name, options, where, np.zeros(len(values), np.int64) if series is None else series)


def nanoseconds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dates as datetime64[ns], and which of them lie outside what it holds (the years 1678 to 2261)."""
    made = values.astype("datetime64[ns]")
    return made, (made.astype(values.dtype) != values) & ~np.isnat(values)


def _check_zone(column: pd.Series, options: Mapping[str, Any], where: object) -> None:
    """Raises `InputError` if ``options.timezone`` is no zone, or not the only one."""
    if options.get("timezone") is None:
        return
    try:
        pd.Timestamp(0).tz_localize(options["timezone"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(where, key="options.timezone", found=repr(options["timezone"])[:60], expected="a zone of the "
                         "IANA database, such as Europe/Berlin", fix=f"correct it ({type(error).__name__})") from None
    aware = getattr(column.dtype, "tz", None) is not None or (
        column.dtype.kind != "M" and bool(column.astype(str).str.contains(OFFSET, regex=True).any()))
    if aware:
        raise InputError(where, key="options.timezone", found="times that state their offset from UTC",
                         expected="local times without one", fix="leave timezone out; they become UTC")


def _localised(local: np.ndarray, name: str, options: Mapping[str, Any], where: object,
               series: np.ndarray) -> np.ndarray:
    """Local times in UTC. Of an hour that comes twice, rows before the clock goes back are the first one."""
    index = pd.DatetimeIndex(local)
    twice = np.asarray(index.tz_localize(options["timezone"], ambiguous="NaT", nonexistent="shift_forward").isna())
    summer = np.ones(len(local), bool)
    for one in np.unique(series[twice]):
        rows = np.flatnonzero(series == one)
        folded = np.flatnonzero(twice[rows])
        for night in np.split(folded, np.flatnonzero(np.diff(folded) > 1) + 1):
            times = local[rows[night]]
            back = np.flatnonzero(np.diff(times) <= np.timedelta64(0, "ns"))
            if len(back) != 1:
                _refuse(where, name, int(rows[night[0]]), f"{times[0]}, an hour that comes twice that day",
                        "times that can be told apart", "state the offset in the column: 2024-10-27T02:30+01:00")
            summer[rows[night[back[0] + 1:]]] = False
    missing = index.tz_localize(options["timezone"], ambiguous=summer, nonexistent="NaT")
    absent = np.flatnonzero(missing.isna())
    if len(absent):
        _refuse(where, name, int(absent[0]), f"{local[absent[0]]}, a time that {options['timezone']} has not, as its "
                "clocks go forward", "local times of that zone", "leave timezone out if the times are in UTC")
    return np.asarray(missing.tz_convert("UTC").tz_localize(None).to_numpy()).astype("datetime64[ns]")


def times(column: pd.Series, name: str, options: Mapping[str, Any],
          where: object) -> tuple[np.ndarray, list[int] | None]:
    """Strictly ascending, uniform `stamps`, and with ``irregular: fill`` the places of the given rows among them.

    Raises `InputError` naming the row that `stamps` does, that repeats an earlier time, goes back, or breaks the
    rhythm; ``irregular: keep`` admits the last.
    """
    values = stamps(column, name, options, where)
    gaps = np.diff(numbers(values))
    bad = np.flatnonzero(gaps <= 0)
    if len(bad):
        refuse_disorder(where, f"row {bad[0] + 2}, column {name}", values, int(bad[0]) + 1, float(np.median(gaps)),
                        or_else="; if a column names the series, options: {id_column: …}")
    return rhythm(values, lambda row: f"row {row + 1}, column {name}", options, where)


def refuse_disorder(where: object, key: str, values: np.ndarray, at: int, usual: float, or_else: str = "") -> None:
    """Raises the `InputError` of times that repeat or go back at index `at` among `usual` steps."""
    gap = float(numbers(values[at - 1:at + 1])[1] - numbers(values[at - 1:at + 1])[0])
    fix = "drop or average the duplicates" if gap == 0 else "sort the rows by time"
    if values.dtype.kind == "M" and _clocks_change(values[at], gap - usual):
        fix = f"{LOCAL}; otherwise {fix}"
    raise InputError(where, key=key, found=f"{values[at]} {'again' if gap == 0 else f'after {values[at - 1]}'}",
                     expected="ascending times", fix=fix + or_else)


def rhythm(values: np.ndarray, key: Callable[[int], str], options: Mapping[str, Any],
           where: object) -> tuple[np.ndarray, list[int] | None]:
    """Ascending times, regular or made so, as `times`; `key` names a row by its index."""
    gaps = np.diff(numbers(values))
    if options.get("irregular") == "keep" or is_regular(values, gaps):
        return values, None
    usual = float(np.median(gaps))
    at = int(np.argmax(np.abs(gaps - usual))) + 1
    if options.get("irregular") != "fill":
        local = values.dtype.kind == "M" and _clocks_change(values[at], gaps[at - 1] - usual)
        raise InputError(where, key=key(at), found=f"{values[at]}, {gaps[at - 1]:g} after the row before "
                         f"(usually {usual:g})", expected="regular times", fix=(f"{LOCAL}; otherwise " if local else "")
                         + "options: {irregular: fill} inserts the missing rows as NaN, keep takes the "
                         "times as they are")
    return _filled(values, gaps, key, where)


def _clocks_change(stamp: np.datetime64, surplus: float) -> bool:
    """Whether a gap an hour too long or short ends in a night in which clocks are put forward or back somewhere."""
    moment = pd.Timestamp(stamp)
    return abs(abs(surplus) - 3600) < 1 and moment.hour <= 4 and moment.weekday() >= 5 and \
        moment.month in (3, 4, 9, 10, 11)


def is_regular(values: np.ndarray, gaps: np.ndarray) -> bool:
    """Uniform, or of one calendar rhythm (months, quarters)."""
    return len(gaps) < 2 or is_uniform(gaps, values) or bool(calendar(values))


def _filled(values: np.ndarray, gaps: np.ndarray, key: Callable[[int], str],
            where: object) -> tuple[np.ndarray, list[int]]:
    """All times of the rhythm, of equal steps or of the calendar's, and the places of those given."""
    step = float(np.median(gaps))
    place = (numbers(values) - numbers(values)[0]) / step
    months, counted = gapped(values)
    if months:
        place = counted.astype(np.float64)
    off = np.flatnonzero(np.abs(place - np.rint(place)) > 1e-3)
    if len(off):
        raise InputError(where, key=key(int(off[0])), found=f"{values[int(off[0])]}, off the rhythm of {step:g}",
                         expected="times at multiples of the usual step", fix="resample the table")
    count = int(np.rint(place[-1])) + 1
    if count > 4 * len(values) + 1000:
        raise InputError(where, key=key(len(values) - 1), found=f"{count} rows to fill {len(values)}",
                         expected="gaps of moderate length", fix="split the table at its long gaps")
    if months:
        start = values[:1].astype("datetime64[ns]").astype(np.int64)
        return later(start, months, np.arange(count)).astype("datetime64[ns]"), counted.tolist()
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


def chosen_columns(names: Sequence[str], time: str, options: Mapping[str, Any],
                   where: object) -> tuple[list[str], list[str]]:
    """Variates and covariates: `options.columns` in that order, or all but the time column and `options.covariates`."""
    known = listed(options, "covariates", where)
    chosen = listed(options, "columns", where) if options.get("columns") is not None else \
        [name for name in names if name != time and name not in known]
    for key, given in (("columns", chosen), ("covariates", known)):
        for name in given:
            if name not in names or name == time or (key == "covariates" and name in chosen):
                raise InputError(where, key=f"options.{key}", found=repr(name), expected=f"some of {', '.join(names)}, "
                                 "each once", fix="correct the name")
    if not chosen:
        raise InputError(where, key="options.covariates", found="no column is left", expected="a variate",
                         fix="name fewer covariates")
    return chosen, known


def named(options: Mapping[str, Any], key: str, where: object) -> str | None:
    """An option that is the name of a column; None unless given."""
    given = options.get(key)
    if isinstance(given, list | dict):
        raise InputError(where, key=f"options.{key}", found=repr(given)[:60], expected="the name of a column",
                         fix=f"for example {key}: id")
    return None if given is None else str(given)


def listed(options: Mapping[str, Any], key: str, where: object) -> list[str]:
    """An option that is a list of columns; none unless given."""
    given = options.get(key) or []
    if not isinstance(given, list | tuple):
        raise InputError(where, key=f"options.{key}", found=repr(given)[:60], expected="a list of names",
                         fix=f"for example {key}: [a, b]")
    return [str(name) for name in given]
