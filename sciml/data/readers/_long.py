"""Long tables: a row per series and time, a column that names the series.

Options beside those of wide tables: `id_column`, `static` (columns of one value per series), `label` (a static column
of classes), `time_unit` (of times that are numbers), `parts`, `shortest`; `covariates` as of wide tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.frames import columns_of, table_of_frame
from sciml.data.readers import _series
from sciml.data.readers import _table as table
from sciml.data.readers.guess import Guess, guess
from sciml.errors import InputError

OPTIONS = _series.OPTIONS | {"id_column", "static", "label", "time_unit"}
IDS = frozenset({"id", "item_id", "unique_id", "series", "series_id", "item", "ts_id", "name", "key"})


def dataset(frames: Sequence[pd.DataFrame], paths: Sequence[str], options: Mapping[str, Any], *, format: str,
            notes: Sequence[str] = ()) -> xr.Dataset:
    """Series of long tables, a table per file; see `sciml.data.readers._series`."""
    read = [_read(frame, options, path) for frame, path in zip(frames, paths, strict=True)]
    classes = sorted({name for one in read for name in one.classes})
    if classes:
        read = [_relabelled(one, classes) for one in read]
    return _series.dataset(read, paths, options, format=format, notes=notes)


def _relabelled(one: _series.Labelled, classes: Sequence[str]) -> _series.Labelled:
    """The same labels among the classes of all files."""
    assert one.label is not None
    places = np.array([float(classes.index(name)) for name in one.classes] or [np.nan])
    label = np.where(np.isnan(one.label), np.nan, places[np.nan_to_num(one.label).astype(int)])
    return replace(one, label=label, classes=tuple(classes))


def _read(frame: pd.DataFrame, options: Mapping[str, Any], path: str) -> _series.Labelled:
    names = [str(name) for name in frame.columns]
    label, time = table.named(options, "label", path), table.time_column(names, frame, options, path)
    known, static = table.listed(options, "covariates", path), table.listed(options, "static", path)
    name = table.named(options, "id_column", path)
    aside, given = {name, time, *known, *static, label}, table.listed(options, "columns", path)
    columns = columns_of(frame, {**options, "time_column": time}, id_column=name, where=path,
                         targets=given or [n for n in names if n not in aside],
                         known=known, static=[*static, *([] if label is None else [label])])
    if table.is_number(frame[time]) and not options.get("time_unit"):
        raise InputError(path, key="options.time_unit", found=f"none, though {time} holds numbers",
                         expected="a unit of time, 1 if rows are only counted", fix="options: {time_unit: s}")
    if label is None:
        made = _series.Labelled(table_of_frame(frame, columns, options, path))
    else:
        made = _with_label(frame, replace(columns, static=columns.static[:-1]), label, options, path)
    return replace(made, time_unit=str(options.get("time_unit") or "1"))


def _with_label(frame: pd.DataFrame, columns: Any, label: str, options: Mapping[str, Any],
                path: str) -> _series.Labelled:
    made = table_of_frame(frame, columns, options, path)
    texts = frame[label].astype(str).where(frame[label].notna())
    by_series = texts.groupby(frame[columns.id], sort=False)
    mixed = by_series.nunique()
    if (mixed > 1).any():
        name = mixed.index[int(np.argmax(mixed > 1))]
        raise InputError(path, key=f"column {label}", found=f"{mixed[name]} labels in series {name}",
                         expected="one label per series", fix="mend it, or cut the series where its label changes")
    return _series.with_label(made, by_series.first())


def recognise(frame: pd.DataFrame, path: str, format: str, *, limit_bytes: int, notes: Sequence[str] = (),
              options: Mapping[str, Any] | None = None) -> Guess | None:
    """A guess if a column of names makes the times of a table ascend in each series, though not in the file.

    Of other texts, columns of one value per series are taken as static and the rest left out.
    """
    names = [str(name) for name in frame.columns]
    try:
        time = table.time_column(names, frame, {}, path)
        stamps = pd.Series(table.stamps(frame[time], time, {}, path))
    except InputError:
        return None
    if stamps.is_monotonic_increasing and stamps.is_unique:
        return None
    key = next((name for name in sorted(names, key=lambda n: n.strip().lower() not in IDS)
                if name != time and _names_series(frame[name], stamps)), None)
    if key is None:
        return None
    texts = [name for name in names if name not in (key, time) and not table.is_number(frame[name])]
    whole = [name for name in texts if (frame.groupby(key)[name].nunique(dropna=False) == 1).all()
             and frame[name].nunique() <= 64 and frame[name].notna().all()]
    found: dict[str, Any] = {"id_column": key, **(options or {})}
    found |= {"static": whole} if whole else {}
    if set(texts) - set(whole):
        found["columns"] = [name for name in names if name not in (key, time, *texts)]
    told = {**found, "irregular": "keep", "time_unit": "1"}
    looked = guess(dataset([frame], [path], told, format=format, notes=notes), path, limit_bytes=limit_bytes)
    if table.is_number(frame[time]):
        found["time_unit"], looked = None, replace(looked, missing=(*looked.missing, "options.time_unit"))
    return replace(looked, options=found, suspicious=(*looked.suspicious, *_irregular(frame, told, path)))


def _names_series(column: pd.Series, stamps: pd.Series) -> bool:
    named = str(column.name).strip().lower() in IDS
    if column.isna().any() or not 1 < column.nunique() <= max(2, len(column) // 2) or \
            not (named or not table.is_number(column)):
        return False
    codes = pd.factorize(column)[0]
    order = np.argsort(codes, kind="stable")
    inside = np.diff(codes[order]) == 0
    return bool((np.diff(stamps.to_numpy()[order])[inside].astype(np.float64) > 0).all())


def _irregular(frame: pd.DataFrame, options: Mapping[str, Any], path: str) -> list[str]:
    try:
        _read(frame, {**options, "irregular": "refuse"}, path)
    except InputError as error:
        return [f"{error.key}: {error.found}; expected {error.expected}"]
    return []
