"""MATLAB .mat files with counts or spike times, of version 5 to 7 (through scipy) and 7.3 (HDF5).

Options: those of `sciml.data.readers._spike_arrays`, whose names are variables of the file: `counts` or `traces` (a
matrix) or `spike_times` (a cell array with a vector per unit, or a vector beside `spike_units`), `orientation`,
`behaviour`, `states`, `trials`, `time_unit`, `sample_rate`; and those of all spikes. Only numbers and cells of numbers
are read: structures, objects, function handles and text are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head, local_path
from sciml.data.readers._combine import options_of
from sciml.data.readers._mat5 import Mat5
from sciml.data.readers._mat73 import Mat73
from sciml.data.readers._spike_arrays import ARRAY_OPTIONS, FEW, ORIENTATIONS, arrays_dataset
from sciml.data.readers._spike_join import recordings
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import Limits, limits_of
from sciml.errors import InputError

V5, V73 = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file"


@dataclass(frozen=True)
class Matlab:
    """Reads counts or events from named variables; one file is one recording."""

    options: frozenset[str] = ARRAY_OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if not head(path, 19).startswith((V5, V73)) or local_path(path) is None:
            return None
        file = _open(path, Limits())
        options = _suppose(file, path)
        found = guess(arrays_dataset(list(file.kinds), file.get, options, where=path, format="matlab"), path,
                      options=options, limit_bytes=limit_bytes)
        told = "options: MATLAB files don't say which variables are what; check those that are supposed from the shapes"
        return replace(found, missing=(told, *found.missing))

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Counts ``(recording, time, unit)`` or events ``spike_time (spike)``, and behaviour on the same bins."""
        options = options_of(source)
        return recordings([_read(str(path), options) for path in paths], paths, source)


PLUGIN = Matlab()


def _open(path: str, limits: Limits) -> Mat5 | Mat73:
    local, start = local_path(path), head(path, 19)
    if local is None or not start.startswith((V5, V73)):
        raise InputError(path, found=f"a file that starts with {start[:16]!r}" if local else "a remote file",
                         expected="a local MATLAB file of version 5 to 7.3",
                         fix="save it again (save -v7), copy it to this machine")
    return Mat5(local, limits) if start.startswith(V5) else Mat73(local, limits)


def _read(path: str, options: Mapping[str, Any]) -> xr.Dataset:
    file = _open(path, limits_of(options, path))
    binned = options.get("counts") is not None or options.get("traces") is not None
    if binned and options.get("bin_s") is None:
        raise InputError(path, key="options.bin_s", found="none", expected="the width of a bin in s",
                         fix="for example bin_s: 0.05")
    return arrays_dataset(list(file.kinds), file.get, options, where=path, format="matlab")


def _suppose(file: Mat5 | Mat73, path: str) -> dict[str, Any]:
    """Options for the widest matrix of whole numbers ≥ 0, its longer axis being time, and the narrower ones that are as
    long; or for the one cell array."""
    cells = [name for name, kind in file.kinds.items() if kind == "cell"]
    if len(cells) == 1:
        return {"spike_times": cells[0]}
    matrices = {n: s for n, s in file.shapes.items() if len(s) == 2 and min(s) > 1 and file.kinds[n] != "cell"}
    for name, shape in sorted(matrices.items(), key=lambda pair: -min(pair[1])):
        if _whole(file.get(name)):
            beside = {n: {"unit": None} for n, s in file.shapes.items()
                      if n != name and len(s) == 2 and max(s) == max(shape) and min(s) < min(FEW, min(shape))}
            return {"counts": name, "orientation": ORIENTATIONS[shape[0] < shape[1]], "bin_s": None,
                    "behaviour": beside}
    listed = ", ".join(f"{n} {s}" for n, s in file.shapes.items())
    raise InputError(path, key="options", found=f"variables {listed or 'that are no numbers'}"[:200],
                     expected="a matrix of counts (bins, units), or one cell array of spike times",
                     fix="name them: options: {format: matlab, counts: …} or {spike_times: …, spike_units: …}")


def _whole(values: np.ndarray) -> bool:
    known = np.nan_to_num(np.asarray(values, dtype=np.float64)[:4096])
    return bool((known >= 0).all() and (known == np.rint(known)).all())
