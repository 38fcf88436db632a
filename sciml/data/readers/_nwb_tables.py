"""Tables of an NWB session: units and trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sciml.data.readers._spike_grid import checked_intervals, in_intervals, merged
from sciml.data.readers._spikes import Trial, unit_labels
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError

CONDITIONS = ("condition", "trial_type", "trial_condition")
TIMES = ("spike_times", "obs_intervals")


@dataclass(frozen=True)
class Units:
    """trains: spike times of each unit in s; observed: intervals in which all of them were; columns: what the table
    says of each unit."""

    trains: list[np.ndarray]
    labels: list[str]
    observed: list[tuple[float, float]]
    columns: dict[str, Any]
    notes: list[str]


def units_of(session: Any, options: Mapping[str, Any], limits: Limits, where: object) -> Units:
    """The units table. Raises `InputError` if there is none, or it holds no spike times."""
    table = session.units
    if table is None or "spike_times" not in table.colnames or not len(table):
        raise InputError(where, key="units", found="no table" if table is None else f"{len(table)} units, columns "
                         f"{', '.join(table.colnames)}"[:160], expected="units with spike_times",
                         fix="sort the spikes first, or choose a session that is sorted")
    rows, notes = _kept(table, options, where)
    check_size(where, "units/spike_times", (len(table.spike_times.data),), 8, limits.chunk_bytes, "spike times")
    trains = [np.asarray(table["spike_times"][i], dtype=np.float64) for i in rows]
    columns = {name: values[rows] for name in table.colnames if name not in TIMES
               and (values := _scalars(table, name)) is not None}
    if "location" not in columns and "electrodes" in table.colnames and (places := _places(table, rows)):
        columns["location"] = np.array(places, dtype=str)
    labels = unit_labels([int(i) for i in np.asarray(table.id[:])[rows]], where)
    observed = _observed(table, rows, notes, where) if "obs_intervals" in table.colnames else []
    return Units(trains, labels, observed, columns, notes)


def _kept(table: Any, options: Mapping[str, Any], where: object) -> tuple[list[int], list[str]]:
    """Rows whose `label_column` has one of `labels`; all, if not asked for."""
    wanted, column = options.get("labels"), options.get("label_column")
    if wanted is None and column is None:
        return list(range(len(table))), []
    values = _scalars(table, str(column)) if column in table.colnames else None
    if values is None or wanted is None:
        raise InputError(where, key="options.label_column", found=f"{column!r} with labels {wanted!r}"[:80],
                         expected=f"one of {', '.join(table.colnames)}, and labels of units to keep",
                         fix="for example label_column: quality, labels: [good]")
    labels = {str(label) for label in ([wanted] if isinstance(wanted, str) else wanted)}
    rows = [i for i, value in enumerate(values) if str(value) in labels]
    if not rows:
        raise InputError(where, key="options.labels", found=f"no unit with {column} in {sorted(labels)}",
                         expected=f"some of {', '.join(sorted(set(map(str, values))))[:160]}", fix="correct the labels")
    return rows, [f"{len(rows)} of {len(table)} units are kept: {column} in {sorted(labels)}"]


def _scalars(table: Any, name: str) -> np.ndarray | None:
    """A column of one number or text per row; None for ragged ones, references and records."""
    column = table[name]
    if type(column).__name__ != "VectorData":
        return None
    values = np.asarray(column.data[:])
    if values.ndim != 1 or len(values) != len(table):
        return None
    if values.dtype.kind in "fiu":
        return values
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()]
    return np.array(texts, dtype=str) if all(isinstance(v, str) for v in texts) else None


def _places(table: Any, rows: Sequence[int]) -> list[str]:
    """Location of the electrodes of each unit, several joined by a comma; none if the electrodes have no location."""
    region = table["electrodes"]
    electrodes = getattr(getattr(region, "target", region), "table", None)
    if electrodes is None or "location" not in electrodes.colnames:
        return []
    places = _scalars(electrodes, "location")
    if places is None:
        return []
    ends = np.asarray(region.data[:]) if hasattr(region, "target") else np.arange(1, len(table) + 1)
    indices = np.asarray(region.target.data[:] if hasattr(region, "target") else region.data[:])
    starts = np.concatenate([[0], ends[:-1]]).astype(int)
    return [", ".join(sorted({str(places[e]) for e in indices[starts[i]: int(ends[i])]})) for i in rows]


def _observed(table: Any, rows: Sequence[int], notes: list[str], where: object) -> list[tuple[float, float]]:
    """Intervals in which every unit was observed: the intersection of theirs. Units without any say nothing."""
    each = [merged(checked_intervals(np.asarray(table["obs_intervals"][i]).reshape(-1, 2), f"units/obs_intervals of "
                                     f"row {i}, interval", where)) for i in rows]
    told = [pairs for pairs in each if len(pairs)]
    if not told:
        return []
    if any(pairs.shape != told[0].shape or not np.allclose(pairs, told[0]) for pairs in told[1:]):
        notes.append("units are observed at different times: only what all of them cover counts as recorded")
    edges = np.unique(np.concatenate([pairs.reshape(-1) for pairs in told]))
    middles = (edges[1:] + edges[:-1]) / 2
    common = np.logical_and.reduce([in_intervals(middles, pairs) for pairs in told])
    if not common.any():
        raise InputError(where, key="units/obs_intervals", found="no time at which all units were observed",
                         expected="units of one recording", fix="keep some of them: options: {label_column, labels}")
    pieces = merged(np.stack([edges[:-1][common], edges[1:][common]], axis=-1))
    return [(float(a), float(b)) for a, b in pieces]


def trials_of(session: Any, options: Mapping[str, Any], where: object, notes: list[str]) -> list[Trial]:
    """The trials table, unless ``trials: false``."""
    table, column = session.trials, options.get("condition")
    if options.get("trials") is False or (table is None and column is None):
        return []
    names = [] if table is None else [name for name in table.colnames if name not in ("start_time", "stop_time")]
    if column is not None and column not in names:
        raise InputError(where, key="options.condition", found=repr(column)[:60],
                         expected=f"one of {', '.join(names) or 'none: there is no trials table'}", fix="correct it")
    column = column or next((name for name in CONDITIONS if name in names), None)
    if column is None and names:
        notes.append(f"trials: no condition is read; options.condition may be one of {', '.join(names)[:160]}")
    values = None if column is None else _scalars(table, column)
    if column is not None and values is None:
        raise InputError(where, key="options.condition", found=f"{column}, which is no column of numbers or text",
                         expected="one value per trial", fix="choose another column")
    conditions = [None] * len(table) if values is None else values.tolist()
    return [Trial(float(a), float(b), c) for a, b, c in zip(table["start_time"][:], table["stop_time"][:], conditions)]
