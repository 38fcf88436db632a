"""Recordings from named arrays (MATLAB, npz), whose meaning the source says.

    options:
      counts: spikes                       # (bins, units) or, with orientation: units_by_bins, its transpose
      bin_s: 0.05
      behaviour: {vel: {names: [vel_x, vel_y], unit: cm/s}}      # one value per bin

    options:
      traces: dff                          # (bins, units) of real values, such as fluorescence; counts and traces may
      trace_unit: "1"                      # also be a list of arrays, one per unit, called as they are
      bin_s: 0.033
      states: {phase: {names: [rest, run, groom]}}     # one code per bin: 0 is the first name; others are unknown
      frames: {movie: {tiles: [8, 8], unit: "1"}}      # (frame, y, x): means over tiles, known in every bin

    options:
      spike_times: times                   # a list of arrays, one per unit; or one array and beside it
      spike_units: units                   # the unit of each spike
      time_unit: ms                        # s, ms, us, or samples with sample_rate; of all times
      behaviour: {vel: {unit: cm/s, times: vel_times}}
      trials: {start: go, stop: end, condition: target}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.readers._spike_traces import traces_dataset, with_frames, with_states
from sciml.data.readers._spikes import (
    OPTIONS,
    TIME_OPTIONS,
    Beside,
    Rules,
    Signal,
    Trial,
    by_unit,
    counts_dataset,
    events_dataset,
    rules_of,
    seconds_per,
    unit_labels,
)
from sciml.errors import InputError

ARRAY_OPTIONS = OPTIONS | TIME_OPTIONS | {"counts", "traces", "trace_unit", "orientation", "spike_times", "spike_units",
                                          "behaviour", "states", "frames", "trials"}
ORIENTATIONS = ("bins_by_units", "units_by_bins")
PLAIN, FEW = 10, 16
"""One axis is time if it is so many times longer; a matrix of fewer columns may be behaviour."""

Get = Callable[[str], Any]


def arrays_dataset(names: Sequence[str], get: Get, options: Mapping[str, Any], *, where: object,
                   format: str) -> xr.Dataset:
    """One recording from arrays: `get(name)` gives one of `names` as an array, or a list of arrays (one per unit).

    Raises `InputError` if the options name no array, or leave open which axis is time.
    """
    rules = rules_of(options, where)
    given = [key for key in ("counts", "traces", "spike_times") if options.get(key) is not None]
    if len(given) != 1:
        raise InputError(where, key="options.counts", found=" and ".join(given) or "no counts, traces or spike_times",
                         expected=f"one of them, naming one of {', '.join(names)[:200]}",
                         fix="for example counts: spikes, bin_s: 0.05")
    coded = state_signals(names, get, options, where)
    if given[0] == "spike_times":
        scale = seconds_per(options, where)
        made = _from_times(names, get, options, rules, where, format)
    else:
        scale, made = 1.0, _from_bins(names, get, options, rules, where, format)
    middle = made["time"].values + 0.5 * float(made["time"].attrs["bin_s"])

    def clock(name: Any, key: str) -> np.ndarray:
        """Times of samples in s: what the array of that name says, or, of counts and traces, the bins."""
        binned = name is None and given[0] != "spike_times"
        return middle if binned else flat(fetch(names, get, name, key, where), where) * scale

    states = [Signal(label, "1", clock(name, "states.times"), values) for label, values, name in coded]
    made = with_states(made, states, where)
    for name, (tiles, unit, times) in frame_options(options, where).items():
        frames = np.asarray(fetch(names, get, name, "frames", where))
        at = None if times is None and given[0] != "spike_times" else clock(times, f"frames.{name}.times")
        made = with_frames(made, name, frames, at, tiles, unit, where)
    return made


def frame_options(options: Mapping[str, Any], where: object) -> dict[str, tuple[tuple[int, int], str | None, Any]]:
    """What `options.frames` describes, at most one: tiles along y and x, unit, name of the array of times."""
    given = options.get("frames") or {}
    spec = next(iter(given.values()), None) if isinstance(given, Mapping) and len(given) <= 1 else None
    if not given:
        return {}
    tiles = spec.get("tiles") if isinstance(spec, Mapping) and set(spec) <= {"tiles", "unit", "times"} else None
    if not (isinstance(tiles, list) and len(tiles) == 2 and all(isinstance(n, int) and n > 0 for n in tiles)):
        raise InputError(where, key="options.frames", found=repr(given)[:80],
                         expected='{ARRAY: {tiles: [8, 8], unit: "1"}}',
                         fix="name one array, and how many tiles it has along y and x")
    assert isinstance(spec, Mapping)
    unit = None if spec.get("unit") is None else str(spec["unit"])
    return {str(next(iter(given))): ((tiles[0], tiles[1]), unit, spec.get("times"))}


def fetch(names: Sequence[str], get: Get, name: Any, key: str, where: object) -> Any:
    """``get(name)``. Raises `InputError` if there is no such array."""
    if not isinstance(name, str) or name not in names:
        raise InputError(where, key=f"options.{key}", found=repr(name)[:60],
                         expected=f"one of {', '.join(names)[:200]}", fix="name an array of the file")
    return get(name)


def _columns(names: Sequence[str], get: Get, options: Mapping[str, Any], where: object) -> list[tuple[str, str | None,
                                                                                                 np.ndarray, Any]]:
    """What `options.behaviour` describes: (name, unit, values, name of the array of times)."""
    given = options.get("behaviour") or {}
    if isinstance(given, str | list):
        given = {name: {} for name in ([given] if isinstance(given, str) else given)}
    columns = []
    for key, spec in dict(given).items():
        spec = {"unit": spec} if isinstance(spec, str) or spec is None else dict(spec)
        strange = set(spec) - {"names", "unit", "times"}
        if strange:
            raise InputError(where, key=f"options.behaviour.{key}", found=", ".join(sorted(strange)),
                             expected="names, unit, times", fix="correct the key")
        values = np.asarray(fetch(names, get, key, f"behaviour.{key}", where))
        values = np.atleast_2d(values.T).T if values.ndim < 2 else values
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise InputError(where, key=f"options.behaviour.{key}", found=f"shape {values.shape} of {values.dtype}",
                             expected="numbers: one or a few values per time", fix="leave it out of the options")
        values = values.T if values.shape[0] < values.shape[1] else values
        labels = column_names(key, values.shape[1]) if spec.get("names") is None else [str(n) for n in spec["names"]]
        if len(labels) != values.shape[1]:
            raise InputError(where, key=f"options.behaviour.{key}.names", found=f"{len(labels)} names",
                             expected=f"{values.shape[1]}, one per column", fix="correct the list")
        unit = None if spec.get("unit") is None else str(spec["unit"])
        columns += [(label, unit, values[:, i].astype(np.float64), spec.get("times")) for i, label in enumerate(labels)]
    return columns


def state_signals(names: Sequence[str], get: Get, options: Mapping[str, Any],
                  where: object) -> list[tuple[str, np.ndarray, Any]]:
    """What `options.states` describes, per state: (name, 1 where in it, 0 in another, NaN where unknown; array of
    times). Raises `InputError` unless it is one array of whole numbers, and its states have names."""
    given = options.get("states")
    if given is None:
        return []
    spec = next(iter(given.values())) if isinstance(given, Mapping) and len(given) == 1 else None
    if not isinstance(spec, Mapping) or not set(spec) <= {"names", "times"} or not isinstance(spec.get("names"), list):
        raise InputError(where, key="options.states", found=repr(given)[:80], expected="{ARRAY: {names: [rest, run]}}",
                         fix="name one array of codes, and the states that 0, 1, … stand for")
    key = next(iter(given))
    codes = flat(fetch(names, get, key, "states", where), where)
    if codes.dtype.kind not in "biuf" or (codes[np.isfinite(codes)] % 1).any() or (codes >= len(spec["names"])).any():
        raise InputError(where, key=f"options.states.{key}", found=f"{codes.dtype} up to {codes.max()}",
                         expected=f"whole numbers below {len(spec['names'])}, the number of names",
                         fix="name every state; a negative code or NaN is unknown")
    known = np.isfinite(codes) & (codes >= 0)
    return [(str(label), np.where(known, codes == i, np.nan).astype(np.float64), spec.get("times"))
            for i, label in enumerate(spec["names"])]


def column_names(name: str, count: int) -> list[str]:
    """Names of the columns of a measured quantity.

    >>> column_names("vel", 2), column_names("pupil", 1), column_names("pc", 4)
    (['vel_x', 'vel_y'], ['pupil'], ['pc_0', 'pc_1', 'pc_2', 'pc_3'])
    """
    if count == 1:
        return [name]
    return [f"{name}_{'xyz'[i] if count <= 3 else i}" for i in range(count)]


def _from_bins(names: Sequence[str], get: Get, options: Mapping[str, Any], rules: Rules, where: object,
               format: str) -> xr.Dataset:
    key = "counts" if options.get("counts") is not None else "traces"
    for other in ("trials", "time_unit", "sample_rate", "spike_units", *(("trace_unit",) if key == "counts" else ())):
        if options.get(other) is not None:
            raise InputError(where, key=f"options.{other}", found=repr(options[other])[:60],
                             expected=f"none beside {key}", fix="remove it")
    values, labels = _matrix(names, get, options[key], key, where)
    columns = _columns(names, get, options, where)
    told, note = options.get("orientation"), []
    if told is None and not labels:
        told = _orientation(values.shape, {len(column) for _, _, column, _ in columns}, where)
        note = [f"orientation: {told}, as the shape {values.shape} says"]
    if told not in (*ORIENTATIONS, *((None,) if labels else ())):
        raise InputError(where, key="options.orientation", found=repr(told)[:60],
                         expected=" or ".join(ORIENTATIONS), fix="correct it")
    values = values.T if told == ORIENTATIONS[1] and not labels else values
    width = len(str(values.shape[1] - 1))
    labels = labels or [f"u{i:0{width}}" for i in range(values.shape[1])]
    beside = [(name, unit, column) for name, unit, column, _ in columns]
    if key == "counts":
        return counts_dataset(values, labels, rules, where=where, format=format, notes=note, columns=beside)
    return traces_dataset(values, labels, rules, options.get("trace_unit"), where=where, format=format, notes=note,
                          columns=beside)


def _matrix(names: Sequence[str], get: Get, given: Any, key: str, where: object) -> tuple[np.ndarray, list[str]]:
    """An array of two axes, or ``(bins, units)`` from a list of arrays and their names."""
    listed = [str(name) for name in given] if isinstance(given, list) else []
    if listed:
        columns = [flat(fetch(names, get, name, key, where), where) for name in listed]
        if len({len(column) for column in columns}) != 1:
            found = ", ".join(f"{name} {len(column)}" for name, column in zip(listed, columns))
            raise InputError(where, key=f"options.{key}", found=found[:120], expected="as many bins in each",
                             fix="name arrays of one recording")
        values = np.stack(columns, axis=1)
    else:
        values = np.asarray(fetch(names, get, given, key, where))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise InputError(where, key=f"options.{key}", found=f"shape {values.shape} of {values.dtype}",
                         expected="numbers: (bins, units)", fix=f"name the array of {key}")
    return values, listed


def _orientation(shape: tuple[int, ...], lengths: set[int], where: object) -> str:
    """Which axis is time: the one as long as the behaviour, else the one that is ten times longer."""
    fits = [size in lengths for size in shape] if lengths else [shape[0] >= PLAIN * shape[1],
                                                                shape[1] >= PLAIN * shape[0]]
    if sum(fits) != 1:
        raise InputError(where, key="options.orientation", found=f"shape {shape}, either way"
                         + (f" beside behaviour of {sorted(lengths)}" if lengths else ""),
                         expected=f"bins_by_units ({shape[0]} bins) or units_by_bins ({shape[1]} bins)",
                         fix="say which: options: {orientation: bins_by_units}")
    return ORIENTATIONS[fits.index(True)]


def _from_times(names: Sequence[str], get: Get, options: Mapping[str, Any], rules: Rules, where: object,
                format: str) -> xr.Dataset:
    scale = seconds_per(options, where)
    times = fetch(names, get, options["spike_times"], "spike_times", where)
    if isinstance(times, list):
        width = len(str(max(len(times) - 1, 0)))
        trains, labels = [flat(t, where) * scale for t in times], [f"u{i:0{width}}" for i in range(len(times))]
    else:
        if options.get("spike_units") is None:
            raise InputError(where, key="options.spike_units", found="none", expected="the unit of each spike",
                             fix=f"name it: one of {', '.join(names)[:200]}")
        units = flat(fetch(names, get, options["spike_units"], "spike_units", where), where)
        ids = np.unique(units)
        whole = units.dtype.kind in "fiu" and bool((ids == np.rint(ids)).all())
        trains = by_unit(flat(times, where) * scale, units, list(ids), where)
        labels = unit_labels([int(i) if whole else str(i) for i in ids], where)
    signals = []
    for name, unit, values, clock in _columns(names, get, options, where):
        stamps = flat(fetch(names, get, clock, f"behaviour.{name}.times", where), where) * scale
        signals.append(Signal(name, unit, stamps, values))
    beside = Beside(behaviour=signals, trials=_trials(names, get, options, scale, where))
    return events_dataset(trains, labels, rules, where=where, format=format, beside=beside)


def _trials(names: Sequence[str], get: Get, options: Mapping[str, Any], scale: float, where: object) -> list[Trial]:
    given = options.get("trials")
    if given is None:
        return []
    if not isinstance(given, Mapping) or not {"start", "stop"} <= set(given) <= {"start", "stop", "condition"}:
        raise InputError(where, key="options.trials", found=repr(given)[:80],
                         expected="{start: …, stop: …, condition: …}: arrays with one value per trial",
                         fix="name arrays of the file")
    columns = {key: flat(fetch(names, get, name, f"trials.{key}", where), where) for key, name in given.items()}
    if len({len(column) for column in columns.values()}) != 1:
        raise InputError(where, key="options.trials", found=", ".join(f"{k} {len(c)}" for k, c in columns.items()),
                         expected="one value per trial in each", fix="correct the arrays")
    conditions = columns["condition"].tolist() if "condition" in columns else [None] * len(columns["start"])
    return [Trial(float(a) * scale, float(b) * scale, c)
            for a, b, c in zip(columns["start"], columns["stop"], conditions)]


def flat(values: Any, where: object) -> np.ndarray:
    """A list, row or column as ``(n,)``; empty of any shape as ``(0,)``. Raises `InputError` for a table."""
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0)
    if array.ndim > 2 or (array.ndim == 2 and 1 not in array.shape):
        raise InputError(where, key="options", found=f"an array of shape {array.shape}",
                         expected="a list: one row or one column", fix="name another array")
    return array.reshape(-1)
