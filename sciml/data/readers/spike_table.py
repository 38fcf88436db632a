"""CSV or Parquet with one row per spike, a column of units and one of times; or one row per bin, a column per unit.

Options: `unit_column`, `time_column` (found by themselves where the header says ``unit``, ``cluster`` or ``neuron`` and
``spike_time``), `time_unit` (s, ms, us, or samples with `sample_rate`), `separator`, and those of all spikes. An
ordinary table of times and values is read by ``csv`` and ``parquet``; this format is taken only where it is asked for
or the header names spike times.

With `counts` or `traces`, a list of columns, rows are bins: their left edges are in `time_column` unless `bin_s` says
how wide they are, and further columns are `behaviour` and `states`, as in `sciml.data.readers._spike_arrays`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.files import head, open_bytes, size_of
from sciml.data.readers._combine import options_of
from sciml.data.readers._spike_arrays import arrays_dataset
from sciml.data.readers._spike_join import recordings
from sciml.data.readers._spikes import (
    OPTIONS,
    TIME_OPTIONS,
    by_unit,
    events_dataset,
    rules_of,
    seconds_per,
    unit_labels,
)
from sciml.data.readers._table import to_numbers
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import check_size, limits_of
from sciml.errors import InputError

UNITS = ("unit", "unit_id", "cluster", "cluster_id", "neuron", "neuron_id")
TIMES = ("spike_time", "spike_times", "spike_time_s", "spike_times_s", "spike_time_ms", "spike_times_ms")
HEAD_BYTES = 1 << 16
PARQUET = b"PAR1"
BINNED = frozenset({"counts", "traces", "trace_unit", "behaviour", "states"})
UNEVEN = 1e-3


@dataclass(frozen=True)
class SpikeTable:
    """Reads rows (unit, time) as events; one file is one recording."""

    options: frozenset[str] = OPTIONS | TIME_OPTIONS | BINNED | {"unit_column", "time_column", "separator"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        names = _parquet_names(path) if head(path, 4) == PARQUET else _header(path)
        unit, time = _match(names, UNITS), _match(names, TIMES)
        if unit is None or time is None:
            return None
        options = {"unit_column": unit, "time_column": time}
        options |= {"time_unit": "ms"} if time.lower().endswith("_ms") else {}
        return guess(_read(path, options), path, options=options, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Events ``spike_time (spike)`` in s, or counts or traces ``(recording, time, unit)``; the table is read into
        memory."""
        options = options_of(source)
        return recordings([_read(str(path), options) for path in paths], paths, source)


PLUGIN = SpikeTable()


def _match(names: Sequence[str], known: Sequence[str]) -> str | None:
    found = [name for name in names if name.strip().lower() in known]
    return found[0] if len(found) == 1 else None


def _header(path: str) -> list[str]:
    """Fields of a text's first line, by the separator that cuts it most; none if it is no text."""
    line, _, _ = head(path, HEAD_BYTES).partition(b"\n")
    try:
        text = line.decode("utf-8-sig").strip("\r")
    except UnicodeDecodeError:
        return []
    return max((text.split(separator) for separator in ",;\t|"), key=len)


def _parquet_names(path: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with open_bytes(path) as source, pq.ParquetFile(source) as file:
            return list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError):
        return []


def _frame(path: str, columns: Sequence[str], names: Sequence[str], options: Mapping[str, Any],
           asked: Sequence[str]) -> pd.DataFrame:
    """The columns of a table; asked: the option that names each."""
    import pyarrow

    limits = limits_of(options, path)
    check_size(path, "table", (size_of(path),), 1, limits.chunk_bytes, "a table to hold in memory")
    for column, option in zip(columns, asked, strict=True):
        if column not in names:
            raise InputError(path, key=f"options.{option}", found=repr(column),
                             expected=f"one of {', '.join(names)[:200]}", fix="name the column")
    try:
        with open_bytes(path) as source:
            if head(path, 4) == PARQUET:
                import pyarrow.parquet as pq

                with pq.ParquetFile(source) as file:
                    check_size(path, "rows", (file.metadata.num_rows,), 16, limits.chunk_bytes, "a table")
                    return file.read(columns=list(columns)).to_pandas()
            return pd.read_csv(source, sep=_separator(path, options), usecols=list(columns), encoding="utf-8-sig",
                               skipinitialspace=True, low_memory=False)
    except (ValueError, UnicodeDecodeError, pyarrow.ArrowException, OSError) as error:
        raise InputError(path, found=" ".join(str(error).split())[:160], expected="a table with a header",
                         fix="mend the line named, or name options.separator") from None


def _separator(path: str, options: Mapping[str, Any]) -> str:
    line = head(path, HEAD_BYTES).partition(b"\n")[0].decode("utf-8-sig", "replace")
    return str(options.get("separator") or max(",;\t|", key=line.count))


def _read(path: str, options: Mapping[str, Any]) -> xr.Dataset:
    rules, scale = rules_of(options, path), seconds_per(options, path)
    parquet = head(path, 4) == PARQUET
    names = _parquet_names(path) if parquet else [n.strip() for n in head(path, HEAD_BYTES).partition(b"\n")[0]
                                                  .decode("utf-8-sig", "replace").split(_separator(path, options))]
    if options.get("counts") is not None or options.get("traces") is not None:
        return _bins(path, names, options, scale)
    columns = [str(options.get(key) or _match(names, known) or fallback) for key, known, fallback in
               (("unit_column", UNITS, "unit"), ("time_column", TIMES, "time"))]
    frame = _frame(path, columns, names, options, ("unit_column", "time_column"))
    unit, time = frame[columns[0]], to_numbers(frame[columns[1]], columns[1], path)
    absent = np.flatnonzero((unit.isna() | np.isnan(time)).to_numpy())
    if not len(frame) or len(absent):
        raise InputError(path, key=f"row {absent[0] + 1}" if len(absent) else "rows", found="an empty cell" if
                         len(absent) else "none", expected="a unit and a time in every row", fix="remove such rows")
    codes, ids = pd.factorize(unit, sort=True)
    whole = pd.api.types.is_numeric_dtype(unit) and bool((unit == unit.round()).all())
    labels = unit_labels([int(i) for i in ids] if whole else [str(i) for i in ids], path)
    trains = by_unit(time * scale, codes, range(len(ids)), path)
    return events_dataset(trains, labels, rules, where=path, format="spike_table")


def _named(option: Any) -> list[str]:
    return [str(name) for name in option] if isinstance(option, list | dict) else [str(option)]


def _bins(path: str, names: Sequence[str], options: Mapping[str, Any], scale: float) -> xr.Dataset:
    """One row per bin. Raises `InputError` unless the bins are even and their width is known."""
    for key in ("counts", "traces"):
        if options.get(key) is not None and not isinstance(options[key], list):
            raise InputError(path, key=f"options.{key}", found=repr(options[key])[:60],
                             expected="a list of columns, one per unit", fix="for example [roi_1, roi_2]")
    beside = [*(options.get("behaviour") or {}), *(options.get("states") or {})]
    wanted = [*(options.get("counts") or options["traces"]), *beside]
    time = options.get("time_column") if options.get("bin_s") is None else None
    if time is None and options.get("bin_s") is None:
        raise InputError(path, key="options.time_column", found="none", expected="the column of the bins' times",
                         fix="name it, or the width of a bin: bin_s")
    wanted = [str(name) for name in dict.fromkeys([*wanted, *([] if time is None else [time])])]
    asked = [next((key for key in (*BINNED, "time_column") if name in _named(options.get(key))), "counts")
             for name in wanted]
    frame = _frame(path, wanted, names, options, asked)
    held = {name: to_numbers(frame[name], name, path) for name in wanted}
    arrays = {key: options[key] for key in (*BINNED, "bin_s", "start") if options.get(key) is not None}
    if time is not None:
        edges = held[time] * scale
        width = float(np.median(np.diff(edges))) if len(edges) > 1 else 0.0
        if not width > 0 or np.abs(np.diff(edges) / width - 1).max() > UNEVEN:
            raise InputError(path, key=time, found=f"steps around {width:g} s that are not all alike",
                             expected="bins of one width", fix="fill gaps with rows of empty cells, or give bin_s")
        arrays |= {"bin_s": width, "start": float(edges[0])}
    return arrays_dataset(wanted, held.__getitem__, arrays, where=path, format="spike_table")
