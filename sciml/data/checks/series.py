"""What must hold in a store of series beside what holds in every store: times, rhythm, variation, labels, parts.

Read a series (on a common time axis: a block) at a time. One finding per kind of mistake, with the number of places and
the first one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sciml.data import rhythm
from sciml.data.check import Finding
from sciml.data.checks.spikes import Tally
from sciml.data.schema import SplitName
from sciml.data.store import Store

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
NEEDED = {"value": ("step", "variate"), "step_time": ("step",), "step_count": ()}
EVEN = 1e-3
_MEND = "mend the source and build the store anew"


@dataclass
class Seen:
    """The tallies, the usual step of each series (NaN: one row, or a calendar's), digests of what varies, and extremes
    of each variate over the training rows; whether the source says that times follow no step."""

    low: np.ndarray
    high: np.ndarray
    irregular: bool = False
    steps: list[float] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=lambda: {
        "step_time": Tally("strictly ascending times in every series"),
        "rhythm": Tally("even steps in every series", "warning"),
        "rows": Tally("at least two rows in every series", "warning"),
        "value": Tally("values that vary in every series", "warning")})


def check(store: Store) -> Iterator[Finding]:
    """All findings of a store of series. Raises what reading it raises."""
    meta = store.meta
    if "value" in meta.variables and meta.variables["value"].dims == ("time", "variate"):
        yield from _common(store)
        return
    missing = [name for name, dims in NEEDED.items()
               if name not in meta.variables or meta.variables[name].dims != dims]
    if missing or meta.ragged != {"step": "step_count"}:
        yield Finding("error", "domain series", ", ".join(f"no {name} {NEEDED[name]}" for name in missing)
                      or f"ragged dimensions {meta.ragged}", "value (time, variate), or value (step, variate) with "
                      "step_time (step) and step_count", _MEND)
        return
    width = len(store.members("variate"))
    seen = Seen(np.full(width, np.inf), np.full(width, -np.inf),
                irregular=store.lazy()["step_time"].attrs.get("freq") == rhythm.IRREGULAR)
    train = {block.group: slice(block.start, block.stop) for block in meta.splits.train}
    for series in range(meta.groups):
        _times(store, series, seen)
        _values(store, series, seen, train.get(series, slice(0, 0)))
    for key, tally in seen.tallies.items():
        if tally.count:
            yield Finding(tally.level, key, f"{tally.count}, first {tally.first}", tally.expected, _MEND)
    yield from _constant(store, seen.low, seen.high)
    yield from _frequencies(store, seen.steps)
    yield from _labels(store)
    yield from _leaks(store, seen)


def _name(store: Store, series: int) -> str:
    coords = store.lazy().coords
    return f"series {series} ({coords['series'].values[series]})" if "series" in coords else f"series {series}"


def _times(store: Store, series: int, seen: Seen) -> None:
    times = store.read("step_time", series)
    name = _name(store, series)
    gaps = np.diff(times).astype(np.float64)
    seen.tallies["step_time"].add(~(gaps > 0), lambda i: f"{name}, row {i + 2}: {_text(times[i + 1])} after "
                                                         f"{_text(times[i])}")
    seen.tallies["rows"].add(np.array([len(times) < 2]), lambda _: f"{name}: {len(times)}")
    usual = float(np.median(gaps)) if len(gaps) else np.nan
    odd = np.abs(gaps - usual) > EVEN * abs(usual)
    calendar = times.dtype.kind == "i" and bool(rhythm.calendar(times.astype("datetime64[ns]")))
    seen.steps.append(np.nan if calendar or seen.irregular else usual)
    if not calendar and not seen.irregular:
        seen.tallies["rhythm"].add(odd, lambda i: f"{name}, row {i + 2}: {_text(times[i + 1])}, {gaps[i]:g} after the "
                                                  f"row before, usually {usual:g}")


def _text(time: np.generic) -> str:
    return str(np.datetime64(int(time), "ns")) if time.dtype.kind == "i" else f"{time:g}"


def _values(store: Store, series: int, seen: Seen, train: slice) -> None:
    values = store.read("value", series)
    known = np.isfinite(values)
    low, high = (np.where(known, values, fill) for fill in (np.inf, -np.inf))
    still = (known.sum(0) > 1) & (low.min(0, initial=np.inf) == high.max(0, initial=-np.inf))
    seen.tallies["value"].add(still, lambda i: f"{_name(store, series)}, variate {store.members('variate')[i]}: always "
                                               f"{high.max(0)[i]:g}")
    moves = bool((low.min(0, initial=np.inf) < high.max(0, initial=-np.inf)).any())
    own = np.ascontiguousarray(values).tobytes() if moves else str(series).encode()
    seen.digests.append(hashlib.sha256(own).digest())
    seen.low = np.minimum(seen.low, low[train].min(0, initial=np.inf))
    seen.high = np.maximum(seen.high, high[train].max(0, initial=-np.inf))


def _constant(store: Store, low: np.ndarray, high: np.ndarray) -> Iterator[Finding]:
    names = [name for name, a, b in zip(store.members("variate"), low, high, strict=True) if a == b]
    if names:
        yield Finding("warning", "variate", f"{', '.join(names[:8])} constant in the training split",
                      "variates that vary", "leave them out: nothing can be learned of them")


def _frequencies(store: Store, steps: list[float]) -> Iterator[Finding]:
    usual = np.array(steps)
    first = next((step for step in steps if np.isfinite(step)), np.nan)
    other = np.flatnonzero(np.abs(usual - first) > EVEN * abs(first))
    if len(other):
        yield Finding("warning", "step_time", f"{len(other)} series of another step than {first:g}, first "
                      f"{_name(store, int(other[0]))}: {usual[other[0]]:g}", "one frequency in all series",
                      "one store per frequency, if a step means as much in each")


def _labels(store: Store) -> Iterator[Finding]:
    if "label" not in store.meta.variables or "class" not in store.meta.axes:
        return
    label, names = np.asarray(store.lazy()["label"].values), store.members("class")
    wrong = ~np.isnan(label) & ~((label >= 0) & (label < len(names)) & (label == np.floor(label)))
    if wrong.any():
        at = int(np.argmax(wrong))
        yield Finding("error", "label", f"{int(wrong.sum())}, first {_name(store, at)}: {label[at]:g}",
                      "whole numbers that have a name in the coordinate class, NaN where not known", _MEND)
        return
    taught = label[[block.group for block in store.meta.splits.train]]
    absent = sorted(set(range(len(names))) - set(taught[~np.isnan(taught)].astype(int).tolist()))
    if absent:
        yield Finding("warning", "label", f"no series of {', '.join(names[i] for i in absent)} in the training split",
                      "each class somewhere in training", "split: {by: given, stratify: label}, or leave them out")


def _leaks(store: Store, seen: Seen) -> Iterator[Finding]:
    """Series that are equal to the last bit in different splits, and test parts in training."""
    of: dict[int, set[SplitName]] = {}
    for name in SPLITS:
        for block in store.meta.splits.of(name):
            of.setdefault(block.group, set()).add(name)
    first: dict[bytes, int] = {}
    pairs = [(first[mark], series) for series, mark in enumerate(seen.digests)
             if of.get(first.setdefault(mark, series), set()) != of.get(series, set())]
    if pairs:
        yield Finding("error", "splits, value", f"{len(pairs)} equal series in two splits, first "
                      f"{_name(store, pairs[0][0])} and {_name(store, pairs[0][1])}", "none in two splits",
                      "remove copies from the source")
    if "part" in store.meta.variables:
        part = np.asarray(store.lazy()["part"].values)
        moved = [g for g, names in sorted(of.items()) if part[g] == 2 and names != {"test"}]
        if moved:
            yield Finding("warning", "splits, part", f"{len(moved)} series of the test part in train or validation, "
                          f"first {_name(store, moved[0])}", "the test part in the test split alone",
                          "split: {by: given}")


def _common(store: Store) -> Iterator[Finding]:
    """Series on one time axis: variates that are constant in training, days on which clocks seem to change."""
    width = len(store.members("variate"))
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for block in store.meta.splits.train:
        values = store.read("value", block.group, block.start, block.stop)
        known = np.isfinite(values)
        low = np.minimum(low, np.where(known, values, np.inf).min(0, initial=np.inf))
        high = np.maximum(high, np.where(known, values, -np.inf).max(0, initial=-np.inf))
    yield from _constant(store, low, high)
    times = store.coord("time")
    if times.dtype.kind != "M" or len(times) < 3:
        return
    gaps = np.diff(times).astype("timedelta64[s]").astype(np.float64)
    surplus = gaps - np.median(gaps)
    jumps = np.flatnonzero(np.abs(np.abs(surplus) - 3600) < 1)
    if len(jumps) and len(jumps) == np.count_nonzero(surplus):
        yield Finding("warning", "time", f"{len(jumps)} steps an hour too long or short, first before "
                      f"{times[jumps[0] + 1]}", "times in UTC", "if these are local times with summer time, name the "
                      "zone: options: {timezone: Europe/Berlin}")


PLUGIN = check
