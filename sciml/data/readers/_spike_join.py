"""Several recordings of the same units in one data set, and parts of a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.readers._combine import options_of
from sciml.data.readers._spike_grid import MAX_BINS
from sciml.data.readers._spikes import GROUP, event_variables
from sciml.errors import InputError

EMPTY = {"trial": -1.0, "trial_condition": -1.0, "recorded": 0.0}


def recordings(parts: Sequence[xr.Dataset], paths: Sequence[str], source: Any) -> xr.Dataset:
    """Recordings along ``recording`` on the union of their bins, then what ``options.select`` keeps.

    Raises `InputError` naming the file whose units, variables or bins differ from the first one's.
    """
    joined = parts[0] if len(parts) == 1 else _joined(parts, paths)
    return _selected(joined, options_of(source).get("select", {}), paths[0])


def _joined(parts: Sequence[xr.Dataset], paths: Sequence[str]) -> xr.Dataset:
    first, width = parts[0], _width(parts[0])
    offsets = [_offset(first, part, path, width) for part, path in zip(parts, paths)]
    low = min(offsets)
    count = max(offset + part.sizes["time"] for offset, part in zip(offsets, parts)) - low
    if count > MAX_BINS:
        raise InputError(paths[-1], key="time", found=f"{count} bins from the first to the last recording",
                         expected=f"at most {MAX_BINS}", fix="let each recording's clock start near 0")
    gaps = count > min(part.sizes["time"] for part in parts) or any("recorded" in part for part in parts)
    spread = [_spread(part, offset - low, count, gaps) for part, offset in zip(parts, offsets)]
    joined = xr.concat([part.drop_vars(["spike_time", "spike_unit"], errors="ignore") for part in spread], dim=GROUP,
                       data_vars="all", coords="minimal", compat="override", join="override",
                       combine_attrs="override")
    if "spike_time" in first:
        rows = [np.concatenate([part[name].values for part in parts]) for name in ("spike_time", "spike_unit")]
        joined = joined.assign(event_variables(rows[0], rows[1], joined["spike_count"].values))
    lists = {key: tuple(dict.fromkeys(text for part in parts for text in part.attrs[key]))
             for key in ("notes", "missing", "suspicious")}
    time = first["time"].values[0] + width * (low + np.arange(count))
    return joined.assign_coords({GROUP: (GROUP, np.arange(len(parts)), first[GROUP].attrs),
                                 "time": ("time", time, first["time"].attrs)}).assign_attrs({**first.attrs, **lists})


def _width(dataset: xr.Dataset) -> float:
    return float(dataset["time"].attrs["bin_s"])


def _offset(first: xr.Dataset, part: xr.Dataset, path: str, width: float) -> int:
    """Bins from the start of the first recording to the start of this one."""
    for key in ("unit", "behaviour", "stimulus"):
        ours, theirs = ([] if key not in d.coords else d[key].values.tolist() for d in (first, part))
        if ours != theirs:
            other = sorted(set(ours) ^ set(theirs))[:6]
            raise InputError(path, key=key, found=f"{len(theirs)}, other than the first file's {len(ours)}: "
                             f"{', '.join(map(str, other)) or 'in another order'}",
                             expected="recordings of the same units and signals", fix="one store per session")
    if (("spike_time" in first) != ("spike_time" in part)) or abs(_width(part) - width) > 1e-9 * width:
        raise InputError(path, key="time", found=f"bins of {_width(part):g} s, "
                         f"{'spike times' if 'spike_time' in part else 'counts'}",
                         expected=f"bins of {width:g} s, {'spike times' if 'spike_time' in first else 'counts'}",
                         fix="list only files of one kind, under one bin_s")
    shift = (part["time"].values[0] - first["time"].values[0]) / width
    if abs(shift - np.rint(shift)) > 1e-3:
        raise InputError(path, key="time", found=f"a start {shift:.4g} bins after the first recording's",
                         expected="a whole number of bins", fix="choose bin_s, or build one store per session")
    return int(np.rint(shift))


def _spread(part: xr.Dataset, offset: int, count: int, gaps: bool) -> xr.Dataset:
    if gaps and "recorded" not in part:
        row = np.ones((1, part.sizes["time"]), dtype=np.float32)
        part = part.assign(recorded=((GROUP, "time"), row, {"role": "mask", "units": "1"}))
    margin = {"time": (offset, count - offset - part.sizes["time"])}
    padded = {name: item if "time" not in item.dims else
              item.pad(margin, constant_values=EMPTY.get(str(name), np.nan), keep_attrs=True)
              for name, item in part.drop_vars("time").data_vars.items()}
    coords = {name: c for name, c in part.coords.items() if name != "time"}
    return xr.Dataset(padded, coords, part.attrs)


def _selected(dataset: xr.Dataset, ranges: Any, where: object) -> xr.Dataset:
    """``select: {time: [0, 500], unit: [0, 8]}``: start and stop indices by dimension; spikes follow."""
    kept = {}
    for dim, bounds in dict(ranges).items():
        size = dataset.sizes.get(dim, 0) if dim != "spike" else 0
        if not (isinstance(bounds, list | tuple) and len(bounds) == 2 and 0 <= int(bounds[0]) < int(bounds[1]) <= size):
            possible = ", ".join(f"{d} ({n})" for d, n in dataset.sizes.items() if d != "spike")
            raise InputError(where, key=f"options.select.{dim}", found=repr(bounds)[:60],
                             expected=f"[start, stop] within one of {possible}", fix="correct it")
        kept[dim] = slice(int(bounds[0]), int(bounds[1]))
    if not kept:
        return dataset
    chosen = dataset.isel(kept)
    if "spike_time" not in dataset:
        return chosen
    times, units = dataset["spike_time"].values, dataset["spike_unit"].values
    group = np.repeat(np.arange(dataset.sizes[GROUP]), dataset["spike_count"].values)
    groups, members = (kept.get(dim, slice(0, dataset.sizes[dim])) for dim in (GROUP, "unit"))
    edges = chosen["time"].values
    keep = (times >= edges[0]) & (times < edges[-1] + _width(dataset))
    keep &= (group >= groups.start) & (group < groups.stop) & (units >= members.start) & (units < members.stop)
    counts = np.bincount(group[keep] - groups.start, minlength=groups.stop - groups.start)
    return chosen.drop_vars(["spike_time", "spike_unit"]).assign(
        event_variables(times[keep], units[keep] - members.start, counts))
