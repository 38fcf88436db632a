"""Traces in bins, as calcium imaging gives them; discrete states and frames of a stimulus beside any recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.readers import _lattice as lattice
from sciml.data.readers import _spike_grid as bins
from sciml.data.readers._spike_grid import Grid, Signal
from sciml.data.readers._spikes import GROUP, Rules, counts_dataset, unit_labels
from sciml.errors import InputError

PART_BYTES = 64 << 20
"""Of frames that are read at once."""


def traces_dataset(traces: np.ndarray, labels: Sequence[str], rules: Rules, unit: Any, *, where: object, format: str,
                   columns: Sequence[tuple[str, str | None, np.ndarray]] = (),
                   notes: Sequence[str] = ()) -> xr.Dataset:
    """One recording ``trace (recording, time, unit)`` from `traces (bins, units)`, NaN where not recorded, and
    `columns` as `counts_dataset` takes them. Without a `unit` it is asked for. Raises `InputError` for infinite
    values."""
    values = np.asarray(traces, dtype=np.float32)
    if np.isinf(values).any():
        row, column = (int(i) for i in np.argwhere(np.isinf(values))[0])
        raise InputError(where, key="traces", found=f"an infinite value in bin {row} of unit {labels[column]}",
                         expected="real values, NaN where not recorded", fix="divide by a baseline that is not 0")
    beside = counts_dataset(np.where(np.isnan(values), np.nan, 1.0), labels, rules, where=where, format=format,
                            columns=columns, notes=notes)
    told = None if unit is None else str(unit)
    trace = lattice.variable((GROUP, "time", "unit"), _chunked(values[None]), "state", told)
    silent = [label for label, column in zip(labels, values.T) if np.isnan(column).all()]
    kept = [note for note in beside.attrs["notes"] if "have no spikes" not in note]
    kept += [f"{len(silent)} units have no values: {', '.join(silent[:8])}"] if silent else []
    return beside.drop_vars("count").assign(trace=trace).assign_attrs(notes=tuple(kept))


def with_states(dataset: xr.Dataset, signals: Sequence[Signal], where: object) -> xr.Dataset:
    """With ``state_value (recording, time, state)``, the share of each bin that is spent in each state."""
    if not signals:
        return dataset
    time = dataset["time"]
    grid = Grid(float(time.values[0]), float(time.attrs["bin_s"]), len(time))
    checked = [bins.checked_signal(signal, where) for signal in signals]
    for signal in checked[:1]:
        bins.check_clock("states", signal.times, grid.start, grid.start + grid.width * grid.count, where)
    found = [bins.binned(signal, grid) for signal in checked]
    shares = np.stack([values for values, _ in found], axis=-1)[None]
    names = np.array(unit_labels([signal.name for signal in checked], where), dtype=str)
    notes = (*dataset.attrs["notes"], *(f"states: {text.partition(': ')[2]}" for text in found[0][1]))
    return dataset.assign(
        state_value=lattice.variable((GROUP, "time", "state"), _chunked(shares), "label", "1")).assign_coords(
        state=lattice.coordinate("state", names, "set")).assign_attrs(notes=notes)


def with_frames(dataset: xr.Dataset, name: str, frames: Any, times: np.ndarray | None, tiles: tuple[int, int],
                unit: str | None, where: object) -> xr.Dataset:
    """With ``stimulus_value (recording, time, stimulus)``: the mean of every tile of the frames ``(n, y, x)``, of which
    there are `tiles` along y and x, in every bin, after the stimuli that there are. times: of the frames in s, each
    shown until the next, the last as long as the median one; None: one per bin.

    Raises `InputError` for frames that are no whole tiles, or as many as bins where they have no times.
    """
    time = dataset["time"]
    grid = Grid(float(time.values[0]), float(time.attrs["bin_s"]), len(time))
    means = tile_means(frames, tiles, f"frames.{name}", where).reshape(len(frames), -1)
    if len(means) != (grid.count if times is None else len(times)):
        raise InputError(where, key=f"frames.{name}", found=f"{len(means)} frames",
                         expected=f"{grid.count}, one per bin" if times is None else f"{len(times)}, one per time",
                         fix="name their times, or correct the array")
    if times is not None:
        checked = bins.checked_signal(Signal(name, unit, times, np.zeros(len(times))), where)
        bins.check_clock(f"frames.{name}", checked.times, grid.start, grid.start + grid.width * grid.count, where)
        middle, last = grid.edges + grid.width / 2, checked.times[-1]
        shown = np.searchsorted(checked.times, middle, side="right") - 1
        known = (shown >= 0) & (middle < last + (np.median(np.diff(checked.times)) if len(means) > 1 else np.inf))
        means = np.where(known[:, None], means[np.maximum(shown, 0)], np.float32(np.nan))
    values, labels = means[None], [f"{name}_y{i}_x{j}" for i in range(tiles[0]) for j in range(tiles[1])]
    units = [unit or ""] * len(labels)
    if "stimulus_value" in dataset:
        values = np.concatenate([dataset["stimulus_value"].values, values], -1)
        labels = unit_labels([*dataset["stimulus"].values, *labels], where)
        units = [*dataset["stimulus_unit"].values, *units]
        dataset = dataset.drop_dims("stimulus")
    missing = (*dataset.attrs["missing"], *(() if unit else (f"unit of frames {name}",)))
    return dataset.assign(
        stimulus_value=lattice.variable((GROUP, "time", "stimulus"), _chunked(values), "covariate")).assign_coords(
        stimulus=lattice.coordinate("stimulus", np.array(labels, dtype=str), "set"),
        stimulus_unit=("stimulus", np.array(units, dtype=str))).assign_attrs(missing=missing)


def tile_means(frames: Any, tiles: tuple[int, int], key: str, where: object) -> np.ndarray:
    """``(n, tiles along y, along x)`` in float32 of frames ``(n, y, x)``, an array or an HDF5 data set, of which a
    part is in memory at a time. Raises `InputError` for frames that are no whole tiles."""
    shape = tuple(frames.shape)
    if len(shape) != 3 or any(size % count for size, count in zip(shape[1:], tiles)):
        raise InputError(where, key=key, found=f"shape {shape} in {tiles} tiles",
                         expected="(frame, y, x), with whole tiles along y and x", fix="choose tiles that divide them")
    part = max(1, PART_BYTES // max(1, 4 * shape[1] * shape[2]))
    form = (tiles[0], shape[1] // tiles[0], tiles[1], shape[2] // tiles[1])
    means = [np.asarray(frames[low:low + part], np.float32).reshape(-1, *form).mean((2, 4))
             for low in range(0, shape[0], part)]
    return np.concatenate(means) if means else np.zeros((0, *tiles), np.float32)


def _chunked(values: np.ndarray) -> da.Array:
    return da.from_array(values, chunks=lattice.chunk_shape(values.shape, values.dtype.itemsize, (1,) * values.ndim,
                                                            lead=1), name=False)
