"""Parquet with a column of times and numeric columns: one series, read lazily by row groups, or long as CSV.

As for CSV: `time_column`, `time_format`, `timezone`, `columns`, `covariates`, `units`, `anomaly_column`, `irregular`
(``keep``; ``fill`` reads all at once), and with `id_column` the options of long tables, which are read into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.files import head, open_bytes
from sciml.data.readers import _anomaly, _long
from sciml.data.readers import _table as table
from sciml.data.readers._cf import series
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers._lattice import coordinate
from sciml.data.readers._units import units_by_name
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.rhythm import told
from sciml.data.safety import Limits, check_size, limits_of
from sciml.errors import InputError

MINIMUM = 1 << 20


@dataclass(frozen=True)
class Parquet:
    """Reads wide tables as one series, long ones as many."""

    options: frozenset[str] = table.OPTIONS | _long.OPTIONS | {_anomaly.OPTION}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if head(path, 4) != b"PAR1":
            return None
        rows = _rows_at_most(path, max(limit_bytes, MINIMUM))
        long = None if rows is None else _long.recognise(rows, path, "parquet", limit_bytes=limit_bytes)
        if long is not None:
            return long
        return guess(_read(path, {"irregular": "keep"}), path, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Series ``value (series = 1, time, variate)`` in float64, nulls NaN; one dask chunk per row group. With
        ``id_column`` as of `sciml.data.readers._series`."""
        options = _anomaly.with_column(options_of(source))
        if "id_column" in options:
            found = _long.dataset([_whole(path, options) for path in paths], paths, options, format="parquet")
        else:
            found = combine([_read(str(path), options) for path in paths], paths, source)
        return _anomaly.split_off(found, options, paths[0])


PLUGIN = Parquet()


def _open(path: str) -> Any:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(open_bytes(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(path, found=" ".join(str(error).split())[:160], expected="a complete Parquet file",
                         fix="copy it again; compare its size or checksum with the original") from None


def _read(path: str, options: Mapping[str, Any]) -> xr.Dataset:
    with _open(path) as file:
        names, rows = _checked(path, file, limits_of(options, path))
        time = table.time_column(names, _first_rows(file), options, path)
        chosen, covariates = table.chosen_columns(names, time, options, path)
        columns = [*chosen, *covariates]
        stamps, places = table.times(file.read(columns=[time]).column(0).to_pandas(), time, options, path)
    starts = np.concatenate([[0], np.cumsum(rows)])
    load, width = dask.delayed(_rows), len(columns)
    parts = [da.from_delayed(load(path, group, columns, int(starts[group])), (n, width), np.float64)
             for group, n in enumerate(rows) if n]
    values = da.concatenate(parts)
    if places is not None:
        spread = np.full((len(stamps), len(columns)), np.nan)
        spread[places] = values.compute()
        values = da.from_array(spread, name=False)
    time_axis = coordinate("time", stamps, "time", **told(stamps, options))
    return series(values[None], time_axis, columns, units_by_name(columns, options, path), format="parquet",
                  covariates=covariates)


def _whole(path: str, options: Mapping[str, Any]) -> pd.DataFrame:
    with _open(path) as file:
        names, rows = _checked(path, file, limits_of(options, path))
        check_size(path, "rows", (sum(rows), len(names)), 8, limits_of(options, path).chunk_bytes, "a table to hold")
        return file.read().to_pandas()


def _rows_at_most(path: str, limit_bytes: int) -> pd.DataFrame | None:
    """The first rows, whole row groups of at most `limit_bytes`; None if the first one is larger."""
    with _open(path) as file:
        _checked(path, file, limits_of({}, path))
        sizes = np.cumsum([file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)])
        count = int(np.searchsorted(sizes, limit_bytes, side="right"))
        return file.read_row_groups(list(range(count))).to_pandas() if count else None


def _first_rows(file: Any) -> pd.DataFrame:
    batch = next(file.iter_batches(batch_size=64))
    return batch.to_pandas()


def _checked(path: str, file: Any, limits: Limits) -> tuple[list[str], list[int]]:
    """Column names and rows per row group, once sizes and types are in order."""
    meta, schema = file.metadata, file.schema_arrow
    if meta.num_rows == 0 or len(set(schema.names)) != len(schema.names):
        raise InputError(path, found="no rows" if meta.num_rows == 0 else "columns of the same name",
                         expected="rows under distinct names", fix="write it again")
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    for index, group in enumerate(groups):
        check_size(path, f"row group {index}", (group.total_byte_size,), 1, limits.chunk_bytes, "a row group")
        check_size(path, f"row group {index}", (group.num_rows, len(schema.names)), 8, 4 * limits.chunk_bytes,
                   "a decoded row group")
    return list(schema.names), [group.num_rows for group in groups]


def _rows(path: str, group: int, columns: list[str], first_row: int) -> np.ndarray:
    with _open(path) as file:
        frame = file.read_row_group(group, columns=columns).to_pandas()
    return np.stack([table.to_numbers(frame[name], name, path, first_row) for name in columns], axis=-1)
