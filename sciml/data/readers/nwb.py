"""Neurodata Without Borders (.nwb in HDF5): units, behaviour, trials and observed intervals of one session.

Options: `behaviour` and `stimulus` (names of TimeSeries or SpatialSeries, [] for none; unless told, behaviour is all of
processing/behavior and the plain series of acquisition, and no stimulus is read), `frames` (an ImageSeries or
OpticalSeries among the stimuli, as means over tiles along y and x: ``{movie: {tiles: [8, 8], unit: "1"}}``; the file
has ``(frame, x, y)``), `trials` (false: not read), `condition` (the column of the trials table; ``condition``,
``trial_type`` or ``trial_condition`` unless told), `label_column` and `labels` (units whose column has one of these
values), and those of all spikes. Needs pynwb: ``pip install "sciml[spikes]"``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import head
from sciml.data.readers._combine import options_of
from sciml.data.readers._guarded import open_with_references
from sciml.data.readers._nwb_tables import trials_of, units_of
from sciml.data.readers._spike_arrays import column_names, frame_options
from sciml.data.readers._spike_join import recordings
from sciml.data.readers._spike_traces import tile_means, with_frames
from sciml.data.readers._spikes import OPTIONS, Beside, Signal, events_dataset, rules_of
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, Limits, check_size, limits_of
from sciml.errors import InputError

FEW = 16
UNITS = {"meters": "m", "meter": "m", "centimeters": "cm", "cm/second": "cm/s", "meters/s": "m/s",
         "meters per second": "m/s", "seconds": "s", "radians": "rad", "degrees": "degree", "volts": "V", "pixels": "1",
         "px": "1", "a.u.": "1", "au": "1", "n/a": "1", "na": "1", "none": "1", "unknown": "1", "arbitrary": "1"}


@dataclass(frozen=True)
class NWB:
    """Reads spikes of a session; one file is one recording."""

    options: frozenset[str] = OPTIONS | {"behaviour", "stimulus", "frames", "trials", "condition", "label_column",
                                         "labels"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if head(path, 8) != HDF5_MAGIC or not _is_nwb(path):
            return None
        return guess(self.read([path], None), path, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Events ``spike_time (spike)`` in s from the session's start, behaviour as the mean over bins."""
        options = options_of(source)
        return recordings([_read(str(path), options) for path in paths], paths, source)


PLUGIN = NWB()


def _is_nwb(path: str) -> bool:
    from sciml.data.safety import raw_hdf5

    with raw_hdf5(path) as file:
        return "nwb_version" in file.attrs


@contextmanager
def _session(path: str, limits: Limits) -> Iterator[Any]:
    """The file as pynwb's NWBFile, once the guards have let it through. What pynwb warns of is not for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pynwb import NWBHDF5IO
    except ImportError:
        raise InputError(path, found="an NWB file, and no pynwb", expected="pynwb to read it",
                         fix='pip install "sciml[spikes]"') from None
    with open_with_references(path, limits) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            io = NWBHDF5IO(file=file, mode="r", load_namespaces=True)
            session = io.read()
        except Exception as error:
            raise InputError(path, found=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}",
                             expected="a file that pynwb reads (NWB 2)", fix="check it: pynwb-validate FILE") from None
        yield session


def _read(path: str, options: Mapping[str, Any]) -> xr.Dataset:
    limits, rules = limits_of(options, path), rules_of(options, path)
    with _session(path, limits) as session:
        units = units_of(session, options, limits, path)
        notes = [*units.notes, *_about(session)]
        behaviour = _signals(options.get("behaviour"), _behaviour_of(session), "behaviour", limits, path, notes)
        shown = dict(_series(session.stimulus))
        stimulus = _signals(options.get("stimulus", []), shown, "stimulus", limits, path, notes)
        trials = trials_of(session, options, path, notes)
        beside = Beside(behaviour, stimulus, trials, units.observed, units.columns, notes)
        made = events_dataset(units.trains, units.labels, rules, where=path, format="nwb", beside=beside)
        return _with_frames(made, shown, options, limits, path)


def _with_frames(dataset: xr.Dataset, shown: Mapping[str, Any], options: Mapping[str, Any], limits: Limits,
                 path: str) -> xr.Dataset:
    """With what `options.frames` names among the stimuli; NWB's images are ``(frame, x, y)``."""
    from pynwb.image import ImageSeries

    for name, (tiles, unit, times) in frame_options(options, path).items():
        images = {key: value for key, value in shown.items() if isinstance(value, ImageSeries)}
        item: Any = images.get(name)
        if item is None or times is not None:
            raise InputError(path, key="options.frames", found=f"{name}, times {times}" if times else repr(name)[:60],
                             expected=f"one of {', '.join(sorted(images)) or 'none: no images are shown'}, whose times "
                                      "the file tells", fix="correct it")
        shape, kind = tuple(item.data.shape), np.dtype(item.data.dtype).kind
        if item.external_file is not None or kind not in "biuf" or 0 in shape:
            raise InputError(path, key=f"options.frames.{name}",
                             found="frames in files of their own" if item.external_file is not None
                             else f"shape {shape} of {item.data.dtype}", expected="grey values in the file",
                             fix="write the means of its tiles as a TimeSeries, and name that as stimulus")
        check_size(path, name, (shape[0], *tiles), 4, limits.chunk_bytes, "means of tiles to hold in memory")
        means = tile_means(item.data, tiles[::-1], f"frames.{name}", path).swapaxes(1, 2)
        scaled = means * float(item.conversion or 1.0) + float(item.offset or 0.0)
        dataset = with_frames(dataset, name, scaled, _times(item, shape[0]), tiles, unit, path)
    return dataset


def _about(session: Any) -> Iterator[str]:
    yield f"session {session.identifier}, {session.session_start_time.isoformat()}: times count from there"
    if session.epochs is not None:
        spans = [f"{a:g} … {b:g} s" for a, b in zip(session.epochs["start_time"][:8], session.epochs["stop_time"][:8])]
        yield f"{len(session.epochs)} epochs, not read: {', '.join(spans)}"
    for what, names in (("acquisition", session.acquisition), ("stimulus", session.stimulus),
                        ("processing", session.processing)):
        if len(names):
            yield f"{what} holds {', '.join(sorted(names)[:12])}"


def _series(container: Any, plain: bool = False) -> Iterator[tuple[str, Any]]:
    """Time series by name under a container; only TimeSeries and SpatialSeries themselves if `plain`."""
    from pynwb.base import TimeSeries

    for name, item in dict(container).items():
        if isinstance(item, TimeSeries):
            if not plain or type(item).__name__ in ("TimeSeries", "SpatialSeries"):
                yield name, item
        else:
            for attribute in ("time_series", "spatial_series"):
                yield from _series(getattr(item, attribute, None) or {}, plain)


def _behaviour_of(session: Any) -> dict[str, Any]:
    found = dict(_series(session.acquisition, plain=True))
    for name in ("behavior", "behaviour"):
        if name in session.processing:
            found |= dict(_series(session.processing[name].data_interfaces))
    return found


def _signals(wanted: Any, offered: Mapping[str, Any], key: str, limits: Limits, path: str,
             notes: list[str]) -> list[Signal]:
    signals = []
    for name in offered if wanted is None else [wanted] if isinstance(wanted, str) else wanted:
        if name not in offered:
            raise InputError(path, key=f"options.{key}", found=repr(name)[:60],
                             expected=f"some of {', '.join(sorted(offered)) or 'none in the file'}", fix="correct it")
        item = offered[name]
        shape = tuple(getattr(item.data, "shape", np.shape(item.data)))
        kind = getattr(item.data, "dtype", np.asarray(item.data).dtype if not shape else None)
        fits = len(shape) in (1, 2) and (len(shape) == 1 or shape[1] <= FEW) and 0 not in shape
        if not fits or (kind is not None and np.dtype(kind).kind not in "biuf"):
            if wanted is None:
                notes.append(f"{name} is not read: shape {shape} of {kind} is no series of up to {FEW} columns")
                continue
            raise InputError(path, key=f"options.{key}", found=f"{name} of shape {shape}, {kind}",
                             expected=f"numbers (samples,) or (samples, up to {FEW})", fix="leave it out")
        check_size(path, name, shape, 8, limits.chunk_bytes, "a series to hold in memory")
        signals += _columns(name, item, shape, notes)
    return signals


def _columns(name: str, item: Any, shape: tuple[int, ...], notes: list[str]) -> list[Signal]:
    values = np.asarray(item.data[:], dtype=np.float64) * float(item.conversion or 1.0) + float(item.offset or 0.0)
    values = values.reshape(shape[0], -1)
    return [Signal(label, _unit(name, item.unit, notes), _times(item, shape[0]), values[:, i])
            for i, label in enumerate(column_names(name, values.shape[1]))]


def _times(item: Any, samples: int) -> np.ndarray:
    """``(samples,)`` s from the session's start."""
    if item.timestamps is not None:
        return np.asarray(item.timestamps[:], dtype=np.float64)
    return float(item.starting_time or 0.0) + np.arange(samples) / float(item.rate)


def _unit(name: str, text: Any, notes: list[str]) -> str:
    """A unit that pint knows, else ``1`` with a note."""
    from sciml.data import units

    said = str(text).strip()
    unit = UNITS.get(said.lower(), said) or "1"
    try:
        units.parse(unit, where="nwb", key=name)
    except InputError:
        unit = "1"
    if unit == "1" and said != "1" and (note := f"{name}: unit {said!r} is read as 1") not in notes:
        notes.append(note)
    return unit
