"""NumPy archives of spikes: counts, traces, spike times with the unit of each, or a TsGroup that pynapple saved.

Options: those of `sciml.data.readers._spike_arrays` (`counts`, `traces` or `spike_times` and `spike_units`,
`orientation`, `behaviour`, `states`, `trials`, `time_unit`, `sample_rate`) and of all spikes. A ``.npy`` file holds one
array, called ``array``. An archive is recognised if it has arrays ``spike_times`` and ``spike_units``, a matrix that is
called as counts or traces usually are, or says it is a TsGroup (times in s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head, local_path
from sciml.data.readers._combine import options_of
from sciml.data.readers._guarded import npy_array, npz_array, npz_headers
from sciml.data.readers._spike_arrays import ARRAY_OPTIONS, FEW, ORIENTATIONS, arrays_dataset
from sciml.data.readers._spike_join import recordings
from sciml.data.readers._spikes import Beside, by_unit, events_dataset, rules_of, unit_labels
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import Limits, NpyHeader, limits_of
from sciml.errors import InputError

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
TSGROUP = frozenset({"type", "t", "index", "keys", "start", "end"})
PICKLED = ("_metadata",)
NAMES: Mapping[str, frozenset[str]] = {
    "counts": frozenset({"counts", "spike_counts", "binned_spikes", "spikes", "count"}),
    "traces": frozenset({"traces", "dff", "df_f", "fluorescence", "calcium", "trace"})}


@dataclass(frozen=True)
class SpikesNpz:
    """Reads counts or events from .npz and .npy; one file is one recording."""

    options: frozenset[str] = ARRAY_OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if not head(path, 4).startswith(ZIP) or local_path(path) is None:
            return None
        headers = npz_headers(str(local_path(path)), Limits(), PICKLED)
        options = {"spike_times": "spike_times", "spike_units": "spike_units"}
        if set(options) <= set(headers):
            return guess(_read(path, options), path, options=options, limit_bytes=limit_bytes)
        if set(headers) >= TSGROUP:
            return guess(_read(path, {}), path, limit_bytes=limit_bytes)
        supposed = _suppose(headers)
        return None if supposed is None else guess(_read(path, supposed), path, options=supposed,
                                                   limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Counts ``(recording, time, unit)`` or events ``spike_time (spike)``."""
        options = options_of(source)
        return recordings([_read(str(path), options) for path in paths], paths, source)


PLUGIN = SpikesNpz()


def _suppose(headers: Mapping[str, NpyHeader]) -> dict[str, Any] | None:
    """Options for the one matrix with such a name, its longer axis being time, and what is as long beside it."""
    found = [(key, name) for key, known in NAMES.items() for name in headers
             if name.lower() in known and len(headers[name].shape) == 2]
    if len(found) != 1:
        return None
    (key, name), = found
    shape = headers[name].shape
    beside = {n: {"unit": None} for n, h in headers.items()
              if n != name and h.dtype.kind in "fiu" and h.shape[:1] == (max(shape),) and len(h.shape) <= 2
              and (len(h.shape) == 1 or h.shape[1] < min(FEW, min(shape)))}
    return {key: name, "orientation": ORIENTATIONS[shape[0] < shape[1]], "bin_s": None, "behaviour": beside,
            **({"trace_unit": None} if key == "traces" else {})}


def _read(path: str, options: Mapping[str, Any]) -> xr.Dataset:
    local, limits = local_path(path), limits_of(options, path)
    if local is None:
        raise InputError(path, found="a remote NumPy file", expected="a local one", fix="copy it to this machine")
    if head(path, 6) == NPY:
        return arrays_dataset(["array"], lambda _: npy_array(local, limits), options, where=path, format="spikes_npz")
    headers = npz_headers(local, limits, PICKLED)
    if set(headers) >= TSGROUP and options.get("counts") is None and options.get("spike_times") is None:
        return _tsgroup(str(local), headers, limits, options)
    return arrays_dataset(list(headers), lambda name: npz_array(local, headers[name], name, limits), options,
                          where=path, format="spikes_npz")


def _tsgroup(path: str, headers: Mapping[str, NpyHeader], limits: Limits, options: Mapping[str, Any]) -> xr.Dataset:
    """pynapple's TsGroup: times `t`, unit `index` of each, `keys`, and its time support as what was recorded."""
    held = {name: npz_array(path, headers[name], name, limits).reshape(-1) for name in TSGROUP}
    kind = str(held["type"][0]) if len(held["type"]) else ""
    if kind != "TsGroup" or held["start"].shape != held["end"].shape:
        raise InputError(path, key="type", found=kind[:40], expected="TsGroup with as many starts as ends",
                         fix="save the TsGroup of the units, or name spike_times and spike_units")
    ids = [int(key) for key in held["keys"]]
    extra = [note for note in (f"{', '.join(PICKLED)}: pickled metadata are not read",) if _pickled(path)]
    recorded = [(float(a), float(b)) for a, b in zip(held["start"], held["end"])]
    trains = by_unit(held["t"].astype(np.float64), held["index"].astype(np.int64), ids, path)
    return events_dataset(trains, unit_labels(ids, path), rules_of(options, path), where=path, format="spikes_npz",
                          beside=Beside(recorded=recorded, notes=extra))


def _pickled(path: str) -> bool:
    with np.load(path, allow_pickle=False) as archive:
        return any(name in archive.files for name in PICKLED)
