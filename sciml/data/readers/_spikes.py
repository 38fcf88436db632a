"""Recordings of spikes as canonical data sets, all checks in one place.

Events: ``spike_time (spike)`` in s, ``spike_unit (spike)``, ``spike_count (recording)`` (CF contiguous ragged array).
Counts: ``count (recording, time, unit)``. Beside them, on the same bins: ``behaviour_value`` and ``stimulus_value``
(named so because xarray has no variable of several dimensions under the name of one of them), ``trial``,
``trial_condition`` and, if there are gaps, ``recorded``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.readers import _lattice as lattice
from sciml.data.readers import _spike_grid as bins
from sciml.data.readers._spike_grid import Grid, Signal, Trial
from sciml.errors import InputError

GROUP = "recording"
BIN_S = 0.02
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Rules:
    """Options of all readers of spikes. bin_s: width of a bin, s; start, stop: of the recording, s; sort: unsorted
    times are sorted; duplicates, outside: what happens to repeated spikes and to those where nothing was recorded."""

    bin_s: float | None = None
    start: float | None = None
    stop: float | None = None
    sort: bool = False
    duplicates: str = "refuse"
    outside: str = "refuse"


OPTIONS = frozenset(f.name for f in fields(Rules))
TIME_OPTIONS = frozenset({"time_unit", "sample_rate"})


@dataclass(frozen=True)
class Beside:
    """What a file holds beside spikes. recorded: intervals in s, none if all was recorded; units: coordinates of
    ``unit`` by name; missing: what the user has to add."""

    behaviour: Sequence[Signal] = ()
    stimulus: Sequence[Signal] = ()
    trials: Sequence[Trial] = ()
    recorded: Sequence[tuple[float, float]] = ()
    units: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()


def rules_of(options: Mapping[str, Any], where: object) -> Rules:
    """`Rules` from a reader's options. Raises `InputError` for a value that is none.

    >>> rules_of({"bin_s": 0.05, "counts": "spikes"}, "source.yaml").bin_s
    0.05
    """
    given = {key: options[key] for key in OPTIONS if options.get(key) is not None}
    for key in ("bin_s", "start", "stop"):
        value = given.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) \
                or (key == "bin_s" and value <= 0):
            raise InputError(where, key=f"options.{key}", found=repr(value)[:60], expected="seconds",
                             fix="for example bin_s: 0.02")
    if not isinstance(given.get("sort", False), bool):
        raise InputError(where, key="options.sort", found=repr(given["sort"])[:60], expected="true or false",
                         fix="correct it")
    for key in ("duplicates", "outside"):
        if given.get(key, "refuse") not in ("refuse", "drop"):
            raise InputError(where, key=f"options.{key}", found=repr(given[key])[:60], expected="refuse or drop",
                             fix="correct it")
    return Rules(**given)


def seconds_per(options: Mapping[str, Any], where: object) -> float:
    """Seconds of one unit of time, from ``time_unit``: s, ms, us, or samples with a ``sample_rate`` in Hz."""
    unit, rate = options.get("time_unit", "s"), options.get("sample_rate")
    if unit == "samples" and isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e9:
        return 1.0 / float(rate)
    if unit not in SECONDS or rate is not None:
        raise InputError(where, key="options.time_unit", found=f"{unit!r} with sample_rate {rate!r}",
                         expected=f"one of {', '.join(SECONDS)}, or samples with sample_rate",
                         fix="for example time_unit: samples, sample_rate: 30000")
    return SECONDS[unit]


def unit_labels(ids: Iterable[Any], where: object) -> list[str]:
    """Labels from ids: numbers get a ``u``, names stay. Raises `InputError` if one occurs twice.

    >>> unit_labels([3, 12, "CA1 a"], "lab.nwb")
    ['u3', 'u12', 'CA1 a']
    """
    labels = [f"u{int(i)}" if isinstance(i, int | np.integer) else str(i) for i in ids]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(where, key="unit", found=f"{twice} twice", expected="distinct units", fix="rename one")
    return labels


def by_unit(times: np.ndarray, units: np.ndarray, ids: Sequence[Any], where: object) -> list[np.ndarray]:
    """Rows (time, unit) as the times of each id, in the order of the rows; rows of other units are left out."""
    if times.shape != units.shape or times.ndim != 1:
        raise InputError(where, key="spikes", found=f"{times.shape} times of {units.shape} units",
                         expected="one unit per time", fix="write both arrays again")
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    return [times[order[np.searchsorted(ordered, i, "left"): np.searchsorted(ordered, i, "right")]] for i in ids]


def events_dataset(trains: Sequence[np.ndarray], labels: Sequence[str], rules: Rules, *, where: object, format: str,
                   beside: Beside | None = None) -> xr.Dataset:
    """One recording from the spike times (s) of each unit.

    Times keep their origin. Where nothing states the limits, bins reach from the multiple of `bin_s` at or before the
    first thing recorded to past the last. Raises `InputError` for times that are unsorted, repeated, not finite, before
    0 without a `start`, outside the limits or in a gap, and for what is on another clock.
    """
    extra = beside or Beside()
    notes = [*extra.notes] + ([] if rules.bin_s else [f"bin_s: {BIN_S:g} s, the default; spike times are kept exactly"])
    trains = [_train(train, label, rules, where, notes) for train, label in zip(trains, labels, strict=True)]
    signals = [bins.checked_signal(s, where) for s in (*extra.behaviour, *extra.stimulus)]
    intervals = bins.merged(bins.checked_intervals(extra.recorded, "recorded interval", where))
    start, stop = _limits(trains, signals, extra.trials, intervals, rules, where)
    covered = intervals if len(intervals) else np.array([[start, stop]])
    trains = [_inside(train, label, np.clip(covered, start, stop), rules, where, notes)
              for train, label in zip(trains, labels)]
    last = max((float(train[-1]) for train in trains if len(train)), default=start)
    grid = bins.grid_of(rules.bin_s or BIN_S, start, stop, last, where)
    notes += _silent([label for label, train in zip(labels, trains) if not len(train)])
    stated = len(intervals) or rules.stop is not None
    variables = _events(trains)
    variables |= _on_bins(grid, signals, extra, np.clip(covered, start, stop) if stated else None, where, notes)
    return _dataset(variables, grid, labels, extra, format, notes)


def counts_dataset(counts: np.ndarray, labels: Sequence[str], rules: Rules, *, where: object, format: str,
                   columns: Sequence[tuple[str, str | None, np.ndarray]] = (),
                   notes: Sequence[str] = ()) -> xr.Dataset:
    """One recording from `counts (bins, units)`, NaN where not recorded, and `columns`: (name, unit, values (bins,)).

    Without a `bin_s` time counts bins and the width is asked for. Raises `InputError` for values that are no counts.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] != len(labels) or not counts.shape[0]:
        raise InputError(where, key="counts", found=f"shape {counts.shape} for {len(labels)} units",
                         expected="(bins, units)", fix="correct the array")
    with np.errstate(invalid="ignore"):
        wrong = (counts < 0) | ((counts != np.rint(counts)) & ~np.isnan(counts)) if counts.dtype.kind == "f" \
            else counts < 0
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(where, key="counts", found=f"{counts[row, column]:g} in bin {row} of unit {labels[column]}",
                         expected="counts: whole numbers ≥ 0, or NaN where not recorded",
                         fix="give spikes per bin, not rates; rates times the bin width, rounded, are counts")
    known = rules.bin_s is not None
    grid = Grid(rules.start or 0.0, rules.bin_s or 1.0, len(counts))
    if rules.stop is not None and abs(grid.start + grid.width * grid.count - rules.stop) > grid.width:
        raise InputError(where, key="options.stop", found=f"{grid.count} bins of {grid.width:g} s from {grid.start:g}",
                         expected=f"a recording that stops at {rules.stop:g} s", fix="correct bin_s, start or stop")
    signals = []
    for name, unit, values in columns:
        if np.shape(values) != (grid.count,):
            raise InputError(where, key=f"behaviour.{name}", found=f"shape {np.shape(values)}",
                             expected=f"({grid.count},), one value per bin", fix="correct the array, or leave it out")
        signals.append(Signal(name, unit, grid.edges + grid.width / 2, np.asarray(values, dtype=np.float64)))
    found = [*notes]
    extra = Beside(behaviour=signals, missing=[] if known else ["bin_s: width of a bin in s; time counts bins so far"])
    variables = {"count": lattice.variable((GROUP, "time", "unit"), _chunked(counts[None].astype(np.float32)), "state",
                                           "1")}
    variables |= _on_bins(grid, signals, extra, None, where, found)
    found += _silent([label for label, total in zip(labels, np.nansum(counts, axis=0)) if not total])
    return _dataset(variables, grid, labels, extra, format, found, "s" if known else None)


def _silent(labels: Sequence[str]) -> list[str]:
    return [f"{len(labels)} units have no spikes: {', '.join(labels[:8])}"] if labels else []


def _train(train: np.ndarray, label: str, rules: Rules, where: object, notes: list[str]) -> np.ndarray:
    """Ascending, finite, distinct times of one unit in float64."""
    key, values = f"spike times of {label}", np.asarray(train)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise InputError(where, key=key, found=f"shape {values.shape} of {values.dtype}", expected="a list of times",
                         fix="write them as one array of numbers")
    values = values.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InputError(where, key=key, found=f"{values[wrong[0]]} at place {wrong[0]}", expected="finite times",
                         fix="remove what is no spike")
    wrong = np.flatnonzero(np.diff(values) < 0)
    if len(wrong):
        at = int(wrong[0]) + 1
        if not rules.sort:
            raise InputError(where, key=key, found=f"{values[at]:g} s at place {at} after {values[at - 1]:g} s",
                             expected="ascending times", fix="if the order means nothing: options: {sort: true}")
        values = np.sort(values)
        notes.append(f"{label}: times were not ascending and are sorted")
    twice = np.flatnonzero(np.diff(values) == 0)
    if len(twice):
        if rules.duplicates != "drop":
            raise InputError(where, key=key, found=f"{values[twice[0]]:g} s twice ({len(twice)} repeated)",
                             expected="one spike at a time",
                             fix="if they are artefacts of sorting: options: {duplicates: drop}")
        values = np.delete(values, twice + 1)
        notes.append(f"{label}: {len(twice)} repeated spikes are dropped")
    return values


def _limits(trains: Sequence[np.ndarray], signals: Sequence[Signal], trials: Sequence[Trial], intervals: np.ndarray,
            rules: Rules, where: object) -> tuple[float, float]:
    """Start and stop of the recording in s: as stated by the options, else by intervals, else what covers everything.

    Raises `InputError` for times before 0 without a stated start, and for what is on another clock than the spikes.
    """
    start = rules.start if rules.start is not None else float(intervals[0, 0]) if len(intervals) else None
    stop = rules.stop if rules.stop is not None else float(intervals[-1, 1]) if len(intervals) else None
    spikes = [float(edge) for train in trains if len(train) for edge in (train[0], train[-1])]
    low, high = start if start is not None else min(spikes, default=None), stop
    high = high if high is not None else max(spikes, default=None)
    if low is None or high is None:
        raise InputError(where, key="spikes", found="none in any unit", expected="spikes, or options.start and stop",
                         fix="check that the right arrays are read")
    others = [(f"behaviour.{s.name}", s.times) for s in signals]
    others += [("trials", np.array([t for trial in trials for t in (trial.start, trial.stop)]))] if trials else []
    for name, times in others:
        bins.check_clock(name, times, low, high, where)
        low = min(low, float(times.min())) if start is None else low
        high = max(high, float(times.max())) if stop is None else high
    if start is None and low < 0:
        raise InputError(where, key="times", found=f"{low:g} s, before the recording's start",
                         expected="times from 0 on, where no start is stated",
                         fix=f"if the clock has another origin: options: {{start: {np.floor(low):g}}}")
    width = rules.bin_s or BIN_S
    begin = float(np.floor(low / width) * width) if start is None else start
    begin -= width if begin > low and start is None else 0.0
    end = begin + width * float(np.floor((high - begin) / width + bins.TRIFLE) + 1)
    return begin, end if stop is None else stop


def _inside(train: np.ndarray, label: str, covered: np.ndarray, rules: Rules, where: object,
            notes: list[str]) -> np.ndarray:
    outside = ~bins.in_intervals(train, covered)
    if not outside.any():
        return train
    if rules.outside != "drop":
        raise InputError(where, key=f"spike times of {label}", found=f"{train[outside][0]:g} s ({int(outside.sum())} "
                         "such), outside what was recorded",
                         expected=f"spikes in {_interval_text(covered)}",
                         fix="correct start and stop or the intervals, or options: {outside: drop}")
    notes.append(f"{label}: {int(outside.sum())} spikes outside what was recorded are dropped")
    return train[~outside]


def _interval_text(pairs: np.ndarray) -> str:
    shown = ", ".join(f"{a:g} … {b:g} s" for a, b in pairs[:3])
    return shown + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")


def _chunked(values: np.ndarray) -> da.Array:
    return da.from_array(values, chunks=lattice.chunk_shape(values.shape, values.dtype.itemsize, (1,) * values.ndim,
                                                            lead=min(1, values.ndim - 1)), name=False)


def event_variables(times: np.ndarray, units: np.ndarray, counts: np.ndarray) -> dict[str, xr.Variable]:
    """The ragged variables: `times` (s) and `units` (spike,), `counts` (recording,)."""
    return {"spike_time": lattice.variable(("spike",), _chunked(times.astype(np.float64)), "event", "s"),
            "spike_unit": lattice.variable(("spike",), _chunked(units.astype(np.int32)), "event", "1"),
            "spike_count": lattice.variable((GROUP,), counts.astype(np.int64), "rows", "1", sample_dimension="spike")}


def _events(trains: Sequence[np.ndarray]) -> dict[str, xr.Variable]:
    times = np.concatenate(trains) if trains else np.zeros(0)
    units = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    order = np.lexsort((units, times))
    return event_variables(times[order], units[order], np.array([len(times)]))


def _on_bins(grid: Grid, signals: Sequence[Signal], extra: Beside, covered: np.ndarray | None, where: object,
             notes: list[str]) -> dict[str, xr.Variable]:
    variables: dict[str, xr.Variable] = {}
    split = len(extra.behaviour)
    for dim, role, part in (("behaviour", "label", signals[:split]), ("stimulus", "covariate", signals[split:])):
        if part:
            columns = [bins.binned(signal, grid) for signal in part]
            notes += [note for _, found in columns for note in found]
            stacked = np.stack([values for values, _ in columns], axis=-1)[None]
            variables[f"{dim}_value"] = lattice.variable((GROUP, "time", dim), _chunked(stacked), role)
    if covered is not None and not (row := bins.recorded_bins(covered, grid)).all():
        notes.append(f"{int((row == 0).sum())} of {grid.count} bins are not recorded, or not wholly")
        variables["recorded"] = lattice.variable((GROUP, "time"), _chunked(row[None]), "mask", "1")
    if extra.trials:
        number, condition, names, found = bins.trial_bins(extra.trials, grid, where)
        notes += found
        variables["trial"] = lattice.variable((GROUP, "time"), _chunked(number[None]), "covariate", "1")
        if condition is not None:
            said = {"flag_meanings": " ".join("_".join(n.split()) or "_" for n in names)} if names else {}
            variables["trial_condition"] = lattice.variable((GROUP, "time"), _chunked(condition[None]), "covariate",
                                                            "1", **said)
    return variables


def _dataset(variables: dict[str, xr.Variable], grid: Grid, labels: Sequence[str], extra: Beside, format: str,
             notes: Sequence[str], unit: str | None = "s") -> xr.Dataset:
    coords = {GROUP: lattice.coordinate(GROUP, np.arange(1), "set"),
              "time": lattice.coordinate("time", grid.edges, "time", unit, bin_s=grid.width),
              "unit": lattice.coordinate("unit", np.array(labels, dtype=str), "set")}
    for name, values in extra.units.items():
        array = np.asarray(values)
        coords[f"unit_{name}"] = xr.Variable(("unit",), array if array.dtype.kind in "fiu" else array.astype(str))
    missing = [*extra.missing]
    for dim, signals in (("behaviour", extra.behaviour), ("stimulus", extra.stimulus)):
        if signals:
            names = [signal.name for signal in signals]
            coords[dim] = lattice.coordinate(dim, np.array(unit_labels(names, f"{dim} names"), dtype=str), "set")
            coords[f"{dim}_unit"] = xr.Variable((dim,), np.array([signal.unit or "" for signal in signals], dtype=str))
            missing += [f"unit of {dim} {signal.name}" for signal in signals if not signal.unit]
    return lattice.canonical(variables, coords, domain="spikes", format=format, group_dim=GROUP, notes=notes,
                             missing=missing)
