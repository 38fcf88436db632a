"""Many series of unequal length as one canonical data set: rows of all series one after the other.

``value (step, variate)``, ``step_time (step)`` (int64 ns since 1970 in UTC, or float64; attribute ``freq``: the name of
their rhythm, ``irregular`` where they have none and ``irregular: keep`` says so), ``step_count (series)``; as
far as there are any ``covariate_value (step, covariate)``, ``static_value (series, static)``, ``label (series)`` with
the names of classes as the coordinate ``class``, and ``part (series)``: 0 train, 1 validation, 2 test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.frames import Columns, Table, irregular, ordered
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._table import listed
from sciml.data.readers._units import units_by_name
from sciml.data.rhythm import IRREGULAR
from sciml.data.splits import NAMES
from sciml.errors import InputError

GROUP, ROWS = "series", "step"
OPTIONS = frozenset({"units", "parts", "shortest"})


@dataclass(frozen=True)
class Labelled:
    """A file's series and what is known of them: ``label (S,)`` (NaN: unknown, None: none are), numbers into `classes`
    unless there are none; the unit of numeric times; further attributes of the times; notes."""

    table: Table
    label: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    time_unit: str = "1"
    clock: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def dataset(files: Sequence[Labelled], paths: Sequence[str], options: Mapping[str, Any], *, format: str,
            notes: Sequence[str] = (), missing: Sequence[str] = (), suspicious: Sequence[str] = ()) -> xr.Dataset:
    """The files of a source as one data set. Options: ``parts`` (one of train, validation, test per file), ``units``,
    ``shortest`` (series of fewer rows are left out, with a note), ``select: {series: [start, stop]}``.

    Raises `InputError` that names the file: other columns, classes or kinds of times than the first has, a series that
    is in two files, parts that are not one per file.
    """
    first = files[0]
    for one, path in zip(files[1:], paths[1:], strict=True):
        _check_alike(first, one, path)
    part = np.repeat(_parts(options, paths), [len(one.table.names) for one in files])
    table = _stacked([one.table for one in files], paths)
    labels = [one.label for one in files if one.label is not None]
    label = np.concatenate(labels) if labels else None
    kept, found = _kept(table, options, paths[0])
    if len(kept) < len(table.names):
        table, part, label = ordered(table, kept), part[kept], label if label is None else label[kept]
    dims = {"variate": table.columns.targets, "covariate": table.columns.known, "static": table.traits}
    units = units_by_name([name for names in dims.values() for name in names], options, paths[0])
    clock = {"freq": IRREGULAR} if options.get("irregular") == "keep" and irregular(table) else first.clock
    data = _variables(table, replace(first, clock=clock), label, part if options.get("parts") else None)
    coords = {GROUP: lattice.coordinate(GROUP, table.names, "set")}
    for dim, names in dims.items():
        if names:
            coords[dim] = lattice.coordinate(dim, np.array(names, dtype=str), "set")
            own = [unit or ("1" if "=" in name else "") for name, unit in zip(names, units)]
            coords[f"{dim}_unit"] = xr.Variable((dim,), np.array(own, dtype=str))
            units = units[len(names):]
    if first.classes:
        coords["class"] = lattice.coordinate("class", np.array(first.classes, dtype=str), "set")
    told = (*notes, *(note for one in files for note in one.notes), *found)
    return lattice.canonical(data, coords, domain="series", format=format, group_dim=GROUP, notes=told,
                             missing=missing, suspicious=suspicious)


def times(stamps: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """What a store holds of ``(N,)`` times: int64 ns and attributes that say since when, or the numbers.

    >>> times(np.array(["1970-01-01T00:00:01"], "datetime64[ns]"))[0].tolist()
    [1000000000]
    """
    if stamps.dtype.kind != "M":
        return stamps.astype(np.float64), {}
    return stamps.astype("datetime64[ns]").astype(np.int64), {"epoch": "1970-01-01T00:00:00Z",
                                                              "calendar": "proleptic_gregorian"}


def frequency(table: Table) -> dict[str, str]:
    """``freq``: the pandas name of the first series' rhythm, where it has one."""
    stamps = table.time[:int(table.count[0])]
    found = pd.DatetimeIndex(stamps, freq="infer").freqstr if stamps.dtype.kind == "M" and len(stamps) > 2 else None
    return {} if found is None else {"freq": found}


def _variables(table: Table, first: Labelled, label: np.ndarray | None,
               part: np.ndarray | None) -> dict[str, xr.Variable]:
    stamps, attrs = times(table.time)
    data = {"value": lattice.variable((ROWS, "variate"), _lazy(table.value), "state"),
            "step_time": lattice.variable((ROWS,), _lazy(stamps), "event", "ns" if attrs else first.time_unit,
                                          **attrs, **(frequency(table) if first.clock is None else first.clock)),
            "step_count": lattice.variable((GROUP,), table.count.astype(np.int64), "rows", "1", sample_dimension=ROWS)}
    if table.columns.known:
        data["covariate_value"] = lattice.variable((ROWS, "covariate"), _lazy(table.known), "forcing")
    if table.traits:
        data["static_value"] = lattice.variable((GROUP, "static"), table.static, "parameter")
    if label is not None:
        data["label"] = lattice.variable((GROUP,), label, "label", "1")
    if part is not None:
        data["part"] = lattice.variable((GROUP,), part.astype(np.float64), "parameter", "1",
                                        flag_meanings=" ".join(NAMES))
    return data


def _lazy(values: np.ndarray) -> da.Array:
    return da.from_array(values, chunks=(max(1, lattice.CHUNK_BYTES * len(values) // max(values.nbytes, 1)),
                                         *values.shape[1:]), name=False)


def _check_alike(first: Labelled, one: Labelled, path: str) -> None:
    of: list[tuple[str, Any, Any]] = [
        ("columns", (*first.table.columns.targets, *first.table.columns.known),
         (*one.table.columns.targets, *one.table.columns.known)),
        ("static columns", first.table.traits, one.table.traits), ("classes", first.classes, one.classes),
        ("labels", first.label is not None, one.label is not None),
        ("times", first.table.time.dtype, one.table.time.dtype)]
    for what, expected, found in of:
        if expected != found:
            raise InputError(path, key=what, found=_text(found), expected=f"{_text(expected)}, as in the first file",
                             fix="list only files of one kind")


def _text(value: Any) -> str:
    return ", ".join(map(str, value))[:200] or "none" if isinstance(value, tuple) else str(value)


def _parts(options: Mapping[str, Any], paths: Sequence[str]) -> np.ndarray:
    given = listed(options, "parts", paths[0])
    if not given:
        return np.zeros(len(paths), int)
    if len(given) != len(paths) or not set(given) <= set(NAMES):
        raise InputError(paths[0], key="options.parts", found=repr(given)[:80], expected=f"{len(paths)} of "
                         f"{', '.join(NAMES)}, one per file in their order", fix="for example parts: [train, test]")
    return np.array([NAMES.index(name) for name in given])


def _stacked(tables: Sequence[Table], paths: Sequence[str]) -> Table:
    if len(tables) == 1:
        return tables[0]
    where: dict[str, str] = {}
    for table, path in zip(tables, paths, strict=True):
        twice = next((name for name in table.names if name in where), None)
        if twice is not None:
            raise InputError(path, key=GROUP, found=f"series {twice}, which is in {where[twice]}, too",
                             expected="each series in one file", fix="join the files' rows, or rename it")
        where |= dict.fromkeys(table.names, path)
    joined = {name: np.concatenate([getattr(table, name) for table in tables])
              for name in ("names", "count", "row", "time", "value", "known", "static")}
    return Table(columns=tables[0].columns, traits=tables[0].traits, **joined)


def _kept(table: Table, options: Mapping[str, Any], where: object) -> tuple[np.ndarray, list[str]]:
    kept, notes = np.arange(len(table.names)), []
    for dim, bounds in options.get("select", {}).items():
        pair = isinstance(bounds, list | tuple) and len(bounds) == 2
        if dim != GROUP or not pair or not 0 <= bounds[0] < bounds[1] <= len(kept):
            raise InputError(where, key=f"options.select.{dim}", found=repr(bounds),
                             expected=f"{GROUP}: [start, stop], 0 ≤ start < stop ≤ {len(kept)}", fix="correct it")
        kept = kept[bounds[0]:bounds[1]]
    shortest = options.get("shortest", 1)
    if not isinstance(shortest, int):
        raise InputError(where, key="options.shortest", found=repr(shortest), expected="a number of rows",
                         fix="for example shortest: 10")
    short = table.count[kept] < shortest
    if short.any():
        notes.append(f"{int(short.sum())} series of fewer than {shortest} rows are left out, first "
                     f"{table.names[kept[short]][0]}")
    if short.all():
        raise InputError(where, key="options.shortest", found=f"no series of {shortest} rows", expected="at least one",
                         fix="lower it")
    return kept[~short], notes


def rows_of(values: Sequence[np.ndarray], names: Sequence[str], times: Sequence[np.ndarray], columns: Columns,
            known: Sequence[np.ndarray] | None = None) -> Table:
    """A `Table` of series that are arrays ``(rows, variate)`` each."""
    count = np.array([len(one) for one in values], np.int64)
    nothing = np.zeros((int(count.sum()), 0))
    return Table(columns, np.array(names, dtype=str), count, np.arange(int(count.sum())), np.concatenate(times),
                 np.concatenate(values), nothing if known is None else np.concatenate(known),
                 np.zeros((len(names), 0)), ())


def with_label(table: Table, column: pd.Series) -> Labelled:
    """The classes of a column ``(S,)`` by series, by name in ascending order; empty cells are unknown."""
    codes, found = pd.factorize(column, sort=True)
    return Labelled(table, np.where(codes < 0, np.nan, codes.astype(float)), tuple(map(str, found)))
