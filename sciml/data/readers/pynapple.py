"""Recordings held as pynapple objects in memory; pynapple itself is not needed. (Files of ``TsGroup.save`` are read by
the format ``spikes_npz``.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.readers._spike_arrays import column_names
from sciml.data.readers._spike_grid import in_intervals, merged
from sciml.data.readers._spikes import Beside, Rules, Signal, Trial, events_dataset, unit_labels
from sciml.errors import InputError


def from_pynapple(tsgroup: Any, behaviour: Mapping[str, Any] | None = None, epochs: Any = None, trials: Any = None,
                  bin_s: float = 0.02, units: Mapping[str, str] | None = None) -> xr.Dataset:
    """One recording from a ``TsGroup``, in the layout that readers of spikes return.

    behaviour: name → ``Tsd`` or ``TsdFrame``, averaged over the bins; units: their units by that name. epochs: an
    ``IntervalSet`` of what is kept, the group's time support unless given (spikes beyond it are left out). trials: an
    ``IntervalSet``. Raises `InputError` as `events_dataset` does.
    """
    where = "pynapple"
    if not all(hasattr(tsgroup, name) for name in ("keys", "time_support", "__getitem__")):
        raise InputError(where, key="tsgroup", found=type(tsgroup).__name__, expected="a TsGroup",
                         fix="pass the TsGroup of the units")
    keys = list(tsgroup.keys())
    kept = merged(_intervals(tsgroup.time_support if epochs is None else epochs, "epochs"))
    trains, notes = [], list[str]()
    for key in keys:
        times = np.asarray(tsgroup[key].t, dtype=np.float64)
        inside = in_intervals(times, kept)
        if not inside.all():
            notes.append(f"unit {key}: {int((~inside).sum())} spikes outside the epochs are left out")
        trains.append(times[inside])
    signals = [signal for name, series in (behaviour or {}).items()
               for signal in _signals(name, series, (units or {}).get(name))]
    spans = [] if trials is None else [Trial(float(a), float(b)) for a, b in _intervals(trials, "trials")]
    beside = Beside(behaviour=signals, recorded=[(float(a), float(b)) for a, b in kept], notes=notes, trials=spans)
    return events_dataset(trains, unit_labels(keys, where), Rules(bin_s=bin_s), where=where, format="pynapple",
                          beside=beside)


def _intervals(intervals: Any, key: str) -> np.ndarray:
    try:
        pairs = np.stack([np.asarray(intervals.start, dtype=np.float64), np.asarray(intervals.end, dtype=np.float64)],
                         axis=-1)
    except (AttributeError, TypeError, ValueError):
        raise InputError("pynapple", key=key, found=type(intervals).__name__, expected="an IntervalSet",
                         fix="pass an IntervalSet in seconds") from None
    return pairs.reshape(-1, 2)


def _signals(name: str, series: Any, unit: str | None) -> list[Signal]:
    values = np.asarray(series.values)
    if values.ndim not in (1, 2):
        raise InputError("pynapple", key=f"behaviour.{name}", found=f"shape {values.shape}",
                         expected="a Tsd or TsdFrame", fix="pass a few columns")
    columns = values.reshape(len(values), -1)
    told = [str(c) for c in getattr(series, "columns", range(columns.shape[1]))]
    plain = values.ndim == 1 or told == [str(i) for i in range(len(told))]
    names = column_names(name, columns.shape[1]) if plain else [f"{name}_{column}" for column in told]
    return [Signal(label, unit, np.asarray(series.t), columns[:, i]) for i, label in enumerate(names)]
