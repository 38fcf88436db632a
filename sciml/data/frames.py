"""Long and wide frames as many series: rows sorted out by series, times made sense of, cells turned into numbers.

A long frame has a row per series and time, a wide one (no column of names) a row per time; both become a `Table`, the
rows of all series one after the other, from which readers make stores and `series_of_frame` makes samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sciml.data.readers import _table as cells
from sciml.data.readers.guess import numbers
from sciml.data.rhythm import calendar, stepped
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

MOST_CATEGORIES = 64
ONLY = "0"
"""The name of a series that has none."""


@dataclass(frozen=True)
class Columns:
    """Which column is what. id: names of series, None in a wide frame; known: covariates that are known in the future,
    too; static: of one value in a series."""

    id: str | None
    time: str
    targets: tuple[str, ...]
    known: tuple[str, ...] = ()
    static: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """S series of N rows in all, one after the other: `names (S,)`, `count (S,)`, `row (N,)` in the frame (-1: filled
    in), `time (N,)` datetime64[ns] in UTC or float64, `value (N, targets)`, `known (N, known)`, `static (S, A)` of
    `traits`; a text of C categories makes C traits ``column=category`` of 0 and 1."""

    columns: Columns
    names: np.ndarray
    count: np.ndarray
    row: np.ndarray
    time: np.ndarray
    value: np.ndarray
    known: np.ndarray
    static: np.ndarray
    traits: tuple[str, ...]

    @cached_property
    def offset(self) -> np.ndarray:
        """Where each series begins, and the end, ``(S + 1,)``."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.count, dtype=np.int64)])


def series_of_frame(frame: pd.DataFrame, *, timestamp_column: str = "timestamp", id_column: str | None = None,
                    targets: Sequence[str] | None = None, known: Sequence[str] = (),
                    static: Sequence[str] | pd.DataFrame = (), future: pd.DataFrame | None = None,
                    options: Mapping[str, Any] | None = None, where: object = "frame") -> list[xr.Dataset]:
    """One sample per series, in order of appearance: ``value (time, variate)``, ``covariate_value (time, covariate)``
    if there are `known` ones, ``static_value (static)``; times in UTC; attributes ``series``, ``look_back``, and with a
    `future`, in whose rows values are NaN, ``horizon``. Arguments and errors as of `tables_of_frame`.

    >>> days = pd.date_range("2024-01-01", periods=3)
    >>> [one] = series_of_frame(pd.DataFrame({"timestamp": days, "load": [1, 2, 3]}))
    >>> dict(one.sizes), one["value"].values[:, 0].tolist()
    ({'time': 3, 'variate': 1}, [1.0, 2.0, 3.0])
    """
    table, ahead = tables_of_frame(frame, timestamp_column=timestamp_column, id_column=id_column, targets=targets,
                                   known=known, static=static, future=future, options=options, where=where)
    return [_sample(table, i, ahead) for i in range(len(table.names))]


def tables_of_frame(frame: pd.DataFrame, *, timestamp_column: str = "timestamp", id_column: str | None = None,
                    targets: Sequence[str] | None = None, known: Sequence[str] = (),
                    static: Sequence[str] | pd.DataFrame = (), future: pd.DataFrame | None = None,
                    options: Mapping[str, Any] | None = None, where: object = "frame") -> tuple[Table, Table | None]:
    """The table of a frame in memory, and that of its future (the same series, no targets).

    targets: all columns that are nothing else, unless given. known: covariates. static: columns, or a frame of one row
    per series. future: rows that follow the last ones, with the known covariates. options: as of
    `sciml.data.readers.csv` (``time_format``, ``timezone``, ``irregular``). Raises `InputError` that names row (1 is
    the first) and column.
    """
    frame = _indexed(frame, timestamp_column, id_column)
    told = {"time_column": timestamp_column, **(options or {})}
    aside = () if isinstance(static, pd.DataFrame) else tuple(static)
    columns = columns_of(frame, told, id_column=id_column, targets=targets, known=known, static=aside, where=where)
    table = table_of_frame(frame, columns, told, where)
    if isinstance(static, pd.DataFrame):
        table = _with_traits(table, static, id_column, where)
    return table, None if future is None else _ahead(table, _indexed(future, timestamp_column, id_column), told)


def columns_of(frame: pd.DataFrame, options: Mapping[str, Any], *, id_column: str | None,
               targets: Sequence[str] | None = None, known: Sequence[str] = (), static: Sequence[str] = (),
               where: object) -> Columns:
    """`Columns` that are in the frame, each in one part. Raises `InputError` for one that is not, or is in two."""
    names = [str(name) for name in frame.columns]
    time = cells.time_column(names, frame, options, where)
    given = {"id_column": () if id_column is None else (id_column,), "timestamp_column": (time,),
             "known": tuple(known), "static": tuple(static), "targets": tuple(targets or ())}
    seen: dict[str, str] = {}
    for part, members in given.items():
        for name in members:
            if name not in names or name in seen:
                raise InputError(where, key=part, found=repr(name) if name not in names else f"{name}, the "
                                 f"{seen[name]} too", expected=f"columns among {', '.join(names)[:200]}, each in one "
                                 "part", fix="correct the name")
            seen[name] = part
    rest = tuple(targets) if targets is not None else tuple(name for name in names if name not in seen)
    if not rest:
        raise InputError(where, key="targets", found="no column is left", expected="a column of values",
                         fix="name fewer known and static columns")
    return Columns(id_column, time, rest, tuple(known), tuple(static))


def table_of_frame(frame: pd.DataFrame, columns: Columns, options: Mapping[str, Any], where: object) -> Table:
    """The `Table` of a frame's columns. options: as of `sciml.data.readers.csv`.

    Raises `InputError` naming row, series and column for a name or time that is missing, times that repeat, go back or
    break the rhythm of their series, series in other steps than the rest (unless ``irregular: keep``), text among
    numbers, and a static column that varies in a series.
    """
    if frame.empty:
        raise InputError(where, found="no rows", expected="a row per time", fix="check what was selected")
    codes, names = _grouped(frame, columns.id, where)
    order = np.argsort(codes, kind="stable")
    count = np.bincount(codes, minlength=len(names))
    time = cells.stamps(frame[columns.time], columns.time, options, where, codes)
    table = Table(columns, names, count, order, time[order],
                  _numbers(frame, columns.targets, where)[order], _numbers(frame, columns.known, where)[order],
                  np.zeros((len(names), 0)), ())
    table = regular(table, options, where)
    starts = order[np.concatenate([[0], np.cumsum(count)[:-1]])]
    for name in columns.static:
        text = frame[name].to_numpy()
        differing = np.flatnonzero((text != text[starts][codes]) & ~(pd.isna(text) & pd.isna(text[starts][codes])))
        if len(differing):
            at = int(differing[0])
            raise InputError(where, key=f"row {at + 1}, column {name}", found=f"{text[at]!r} in series "
                             f"{names[codes[at]]}, {text[starts][codes][at]!r} before", expected="one value per series",
                             fix="mend it, or make it a known covariate")
        table = with_trait(table, name, frame[name].iloc[starts].reset_index(drop=True), where)
    return table


def with_trait(table: Table, name: str, column: pd.Series, where: object) -> Table:
    """A table with one more static column ``(S,)``: a number, or a text or category as 0 and 1 per category."""
    if cells.is_number(column) or column.dtype.kind == "b":
        added, traits = cells.to_numbers(column, name, where)[:, None], [name]
    else:
        codes, found = pd.factorize(column, sort=True)
        if (codes < 0).any() or len(found) > MOST_CATEGORIES:
            at = int(np.argmin(codes))
            raise InputError(where, key=f"column {name}", found=f"series {table.names[at]} without one" if codes[at] < 0
                             else f"{len(found)} categories", expected=f"a number or one of at most {MOST_CATEGORIES} "
                             "categories for every series", fix="fill it in, or leave the column out")
        added, traits = np.eye(len(found))[codes], [f"{name}={one}" for one in found]
    return replace(table, static=np.concatenate([table.static, added], 1), traits=(*table.traits, *traits))


def _indexed(frame: pd.DataFrame, time: str, name: str | None) -> pd.DataFrame:
    """Names and times that are the frame's index become columns."""
    if time in frame.columns:
        return frame
    if isinstance(frame.index, pd.MultiIndex) and name is not None and frame.index.nlevels == 2:
        return frame.rename_axis([name, time]).reset_index()
    return frame.rename_axis(time).reset_index() if isinstance(frame.index, pd.DatetimeIndex) else frame


def _grouped(frame: pd.DataFrame, name: str | None, where: object) -> tuple[np.ndarray, np.ndarray]:
    if name is None:
        return np.zeros(len(frame), np.int64), np.array([ONLY])
    codes, found = pd.factorize(frame[name])
    if (codes < 0).any():
        at = int(np.argmin(codes))
        raise InputError(where, key=f"row {at + 1}, column {name}", found="no name", expected="a series' name",
                         fix="fill it in, or remove the row")
    return codes, np.array([str(one) for one in found])


def _numbers(frame: pd.DataFrame, names: Sequence[str], where: object) -> np.ndarray:
    columns = [cells.to_numbers(frame[name], name, where) for name in names]
    return np.stack(columns, -1) if columns else np.zeros((len(frame), 0))


def regular(table: Table, options: Mapping[str, Any], where: object) -> Table:
    """The table, its rows in order and in one step; with ``irregular: fill`` with rows put in. Raises `InputError` as
    `table_of_frame` on times out of order, and unless ``irregular: keep`` on others that break the rhythm."""
    at, inside = numbers(table.time), np.ones(max(len(table.time) - 1, 0), bool)
    inside[table.offset[1:-1] - 1] = False
    gaps = np.diff(at)
    wrong = np.flatnonzero(inside & (gaps <= 0))
    if len(wrong):
        _disordered(table, gaps, int(wrong[0]), where)
    kept = gaps[inside]
    if options.get("irregular") == "keep" or not len(kept) or _even(kept):
        return table
    series = [_series_times(table, i, options, where) for i in range(len(table.names))]
    if any(places is not None for _, places in series):
        table = _spread(table, series)
    _same_step(table, where)
    return table


def irregular(table: Table) -> bool:
    """Whether times follow no step, or not the same one in all series."""
    series = [_of(table, int(i)) for i in np.flatnonzero(table.count > 1)]
    if not all(stepped(times) for times in series):
        return True
    names = {calendar(times) for times in series if len(times) > 2}
    if names - {""}:
        return len(names) > 1
    steps = np.array([np.median(np.diff(numbers(times))) for times in series])
    return not np.allclose(steps, steps[:1], rtol=1e-4, atol=0.0)


def _even(gaps: np.ndarray) -> bool:
    usual = float(np.median(gaps))
    return bool(np.all(np.abs(gaps - usual) <= 1e-3 * usual))


def _disordered(table: Table, gaps: np.ndarray, at: int, where: object) -> None:
    series = int(np.searchsorted(table.offset, at, side="right")) - 1
    usual = float(np.median(gaps[table.offset[series]:table.offset[series + 1] - 1]))
    cells.refuse_disorder(where, _key(table, series, int(table.row[at + 1])), table.time, at + 1, usual)


def _key(table: Table, series: int, row: int) -> str:
    of = "" if table.columns.id is None else f" ({table.columns.id} {table.names[series]})"
    return f"row {row + 1}{of}, column {table.columns.time}"


def _series_times(table: Table, series: int, options: Mapping[str, Any],
                  where: object) -> tuple[np.ndarray, list[int] | None]:
    part = slice(table.offset[series], table.offset[series + 1])
    rows = table.row[part]
    return cells.rhythm(table.time[part], lambda at: _key(table, series, int(rows[at])), options, where)


def _spread(table: Table, series: Sequence[tuple[np.ndarray, list[int] | None]]) -> Table:
    """Rows at their places among those that were filled in, which are NaN."""
    count = np.array([len(times) for times, _ in series])
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    places = np.concatenate([start + (np.arange(len(times)) if at is None else np.array(at))
                             for start, (times, at) in zip(starts, series, strict=True)])

    def spread(given: np.ndarray, fill: float) -> np.ndarray:
        made = np.full((int(count.sum()), *given.shape[1:]), fill, given.dtype)
        made[places] = given
        return made

    return replace(table, count=count, time=np.concatenate([times for times, _ in series]), row=spread(table.row, -1),
                   value=spread(table.value, np.nan), known=spread(table.known, np.nan))


def _same_step(table: Table, where: object) -> None:
    """Raises `InputError` if series step differently; those of a calendar rhythm count months."""
    first: tuple[int, float, bool] | None = None
    for i in np.flatnonzero(table.count > 1):
        gaps = np.diff(numbers(_of(table, int(i))))
        monthly = not _even(gaps)
        step = float(np.rint(np.median(gaps) / 2.63e6)) if monthly else float(np.median(gaps))
        first = first or (int(i), step, monthly)
        if abs(step - first[1]) > 1e-3 * abs(first[1]) and not (len(gaps) < 3 and monthly != first[2]):
            raise InputError(where, key=_key(table, int(i), int(table.row[table.offset[i]])),
                             found=f"steps of {gaps[0]:g}", expected="the steps of the first series, "
                             f"{np.diff(numbers(table.time[table.offset[first[0]]:][:2]))[0]:g}",
                             fix="one table per frequency, or options: {irregular: keep}")


def _with_traits(table: Table, static: pd.DataFrame, name: str | None, where: object) -> Table:
    if name is not None and name not in static.columns:
        static = static.rename_axis(name).reset_index()
    rows = pd.Index([ONLY] * len(static) if name is None else static[name].astype(str))
    places = rows.get_indexer_for(table.names) if rows.is_unique else np.array([-1])
    if (places < 0).any():
        twice = rows[rows.duplicated()]
        lacking = f"{twice[0]} twice" if len(twice) else f"none of series {table.names[int(np.argmin(places))]}"
        raise InputError(where, key="static", found=lacking, expected="one row per series", fix="mend the static frame")
    for column in static.columns:
        if column != name:
            table = with_trait(table, str(column), static[column].iloc[places].reset_index(drop=True), where)
    return table


def _ahead(table: Table, future: pd.DataFrame, options: Mapping[str, Any]) -> Table:
    """The future rows of every series, in the table's order: they go on where it ends, in its steps unless
    ``irregular: keep``, and hold all known columns."""
    columns = replace(table.columns, targets=(), static=())
    needed = [name for name in (columns.id, columns.time, *columns.known) if name is not None]
    absent = [name for name in needed if name not in future.columns]
    keep = options.get("irregular") == "keep"
    if absent:
        raise InputError("future", key="columns", found=f"no {absent[0]}", expected=", ".join(needed),
                         fix="add it, or leave future out")
    if not (columns.known or keep):
        raise InputError("future", key="columns", found="times alone", expected="known covariates beside them",
                         fix="leave future out: times follow in steps, whose number is the horizon")
    ahead = table_of_frame(future, columns, {**options, "irregular": "keep"}, "future")
    order = pd.Index(ahead.names).get_indexer_for(table.names)
    if (order < 0).any() or len(ahead.names) != len(table.names):
        name = table.names[int(np.argmin(order))] if (order < 0).any() else \
            next(one for one in ahead.names if one not in table.names)
        raise InputError("future", key=columns.id or "series", found=f"{'no rows' if (order < 0).any() else 'rows'} of "
                         f"series {name}", expected="rows of the series that are forecast", fix="match the names")
    ahead = ordered(ahead, order)
    missing = np.argwhere(np.isnan(ahead.known))
    if len(missing):
        at, column = missing[0]
        raise InputError("future", key=f"row {ahead.row[at] + 1}, column {columns.known[column]}", found="no value",
                         expected="known covariates in every future row", fix="fill it in, or leave the column out")
    for i in range(len(table.names)):
        _follows(table, ahead, i, keep)
    return ahead


def ordered(table: Table, order: np.ndarray) -> Table:
    """Some series of a table, in this order."""
    if np.array_equal(order, np.arange(len(order))):
        return table
    rows = np.concatenate([np.arange(table.offset[i], table.offset[i + 1]) for i in order])
    return replace(table, names=table.names[order], count=table.count[order], row=table.row[rows],
                   time=table.time[rows], value=table.value[rows], known=table.known[rows], static=table.static[order])


def _follows(table: Table, ahead: Table, i: int, keep: bool) -> None:
    times, later = _of(table, i), _of(ahead, i)
    if times.dtype.kind != later.dtype.kind:
        raise InputError("future", key=_key(ahead, i, int(ahead.row[ahead.offset[i]])), found=str(later[0]),
                         expected=f"a time as those of the history, such as {times[-1]}", fix="give times of one type")
    both = np.concatenate([times[-3:], later])
    gaps = np.diff(numbers(both))
    if (gaps <= 0).any() or not (keep or cells.is_regular(both, gaps)):
        raise InputError("future", key=_key(ahead, i, int(ahead.row[ahead.offset[i]])),
                         found=f"{len(later)} rows, {later[0]} … {later[-1]}, after {times[-1]}",
                         expected="times after the last one" + ("" if keep else ", which follow it in the same steps"),
                         fix="leave the others out; the task impute fills in times between" if keep else
                         "start the future right after the history, without gaps")


def _of(table: Table, i: int) -> np.ndarray:
    return table.time[table.offset[i]:table.offset[i + 1]]


def _sample(table: Table, i: int, ahead: Table | None) -> xr.Dataset:
    import xarray as xr

    part = slice(table.offset[i], table.offset[i + 1])
    time, value, known = table.time[part], table.value[part], table.known[part]
    attrs: dict[str, Any] = {"domain": "series", "series": str(table.names[i]), "source": f"series {table.names[i]}",
             "look_back": len(time)}
    if ahead is not None:
        later = slice(ahead.offset[i], ahead.offset[i + 1])
        horizon = int(ahead.count[i])
        attrs["horizon"] = horizon
        time, known = np.concatenate([time, ahead.time[later]]), np.concatenate([known, ahead.known[later]])
        value = np.concatenate([value, np.full((horizon, value.shape[1]), np.nan)])
    data: dict[str, Any] = {"value": (("time", "variate"), value)}
    coords: dict[str, Any] = {"time": time, "variate": list(table.columns.targets)}
    if known.shape[1]:
        data["covariate_value"], coords["covariate"] = (("time", "covariate"), known), list(table.columns.known)
    if table.traits:
        data["static_value"], coords["static"] = (("static",), table.static[i]), list(table.traits)
    return xr.Dataset(data, coords, attrs)
