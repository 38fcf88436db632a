"""What must hold in a store of spikes beside what holds in every store: times, units, counts, gaps, labels, splits.

Read a few MiB at a time. A bin covers its coordinate, the left edge, and all up to dt later. One finding per kind of
mistake, with the number of places and the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sciml.data.check import Finding
from sciml.data.store import Store

PIECE = 1 << 18
SLACK = 1e-6
"""Of a bin: what rounding of times and edges is forgiven at both ends of the time axis."""
_MEND = "mend the source and build the store anew"
Piece = tuple[int, int, np.ndarray, np.ndarray]


@dataclass
class Tally:
    """How often something is wrong, and where first."""

    expected: str
    level: Literal["error", "warning"] = "error"
    count: int = 0
    first: str = ""

    def add(self, wrong: np.ndarray, where: Callable[[int], str]) -> None:
        """Count the true ones of `wrong`, flat; `where` says what and where the one of that index is."""
        if wrong.any():
            self.first = self.first or where(int(np.argmax(wrong)))
            self.count += int(wrong.sum())


@dataclass
class Events:
    """The tallies of spikes, and the number of spikes of each unit ``(units,)``."""

    spikes: np.ndarray
    tallies: dict[str, Tally] = field(default_factory=lambda: {
        "spike_time finite": Tally("finite times"),
        "spike_time order": Tally("times that ascend within a recording"),
        "spike_time extent": Tally("times inside the bins of the time axis"),
        "spike_unit range": Tally("indices of the dimension unit"),
        "spike_time twice": Tally("each pair of time and unit once"),
        "spike_time recorded": Tally("no spikes deep in a gap"),
        "spike_time edge": Tally("no spikes in bins at the edge of a gap, of which part was recorded", "warning")})


def check(store: Store) -> Iterator[Finding]:
    """All findings of a store of spikes. Raises what reading it raises."""
    meta = store.meta
    missing = [name for name in ("time", "unit") if name not in meta.axes]
    if not {"spike_time", "count", "trace"} & set(meta.variables):
        missing.append("spike_time, count or trace")
    elif "spike_time" in meta.variables and not _paired(store):
        missing.append("spike_unit along the ragged dimension of spike_time")
    if missing or meta.dt is None:
        found = [*(f"no {name}" for name in missing), *(() if meta.dt else ("no uniform time step",))]
        yield Finding("error", "domain spikes", ", ".join(found), "spikes in uniform bins of time, by unit", _MEND)
        return
    spikes = np.zeros(len(store.members("unit")), np.int64)
    if "spike_time" in meta.variables:
        yield from _events(store, spikes)
    yield from _bins(store, spikes)
    silent = [unit for unit, n in zip(store.members("unit"), spikes, strict=True) if not n]
    if silent and {"spike_time", "count"} & set(meta.variables):
        yield Finding("warning", "unit", f"{len(silent)} without any spike: {', '.join(silent[:8])}",
                      "units that were seen to fire", "leave them out, or know that nothing can be learned of them")
    yield from _connections(store)
    yield from _splits(store)


def _paired(store: Store) -> bool:
    variables = store.meta.variables
    dims = variables["spike_time"].dims
    return "spike_unit" in variables and variables["spike_unit"].dims == dims and set(dims) <= store.meta.ragged.keys()


def _events(store: Store, spikes: np.ndarray) -> Iterator[Finding]:
    kind = store.lazy()["spike_unit"].dtype
    if kind.kind not in "iu":
        yield Finding("error", "spike_unit", f"values of type {kind}", "whole numbers", _MEND)
        return
    events, groups = Events(spikes), store.rows(store.meta.variables["spike_time"].dims[0])
    edges = np.asarray(store.coord("time"), np.float64)
    for group, rows in enumerate(groups.tolist()):
        recorded = store.read("recorded", group) if "recorded" in store.meta.variables else None
        before, same = -np.inf, np.zeros(0, np.int64)
        for start in range(0, rows, PIECE):
            stop = min(start + PIECE, rows)
            times = store.read("spike_time", group, start, stop).astype(np.float64)
            units = store.read("spike_unit", group, start, stop).astype(np.int64)
            _look(store, events, (group, start, times, units), before)
            _places(store, events, (group, start, times, units), edges, recorded)
            same = _repeats(store, events, (group, start, times, units), before, same)
            before = times[-1]
    for key, tally in events.tallies.items():
        yield from _found(key, tally)


def _found(key: str, tally: Tally) -> Iterator[Finding]:
    if tally.count:
        yield Finding(tally.level, key, f"{tally.count}, first {tally.first}", tally.expected, _MEND)


def _name(store: Store, group: int) -> str:
    dim, coords = store.meta.group_dim, store.lazy().coords
    label = f" ({coords[dim].values[group]})" if dim in coords and coords[dim].dims == (dim,) else ""
    return f"{dim} {group}{label}"


def _look(store: Store, events: Events, piece: Piece, before: float) -> None:
    """Finite and ascending times, units that exist."""
    group, start, times, units = piece
    earlier = np.concatenate([[before], times[:-1]])

    def at(i: int) -> str:
        return f"{_name(store, group)}, spike {start + i}: {times[i]}"

    events.tallies["spike_time finite"].add(~np.isfinite(times), at)
    events.tallies["spike_time order"].add(times < earlier, lambda i: f"{at(i)} after {earlier[i]}")
    wrong = (units < 0) | (units >= len(events.spikes))
    events.tallies["spike_unit range"].add(
        wrong, lambda i: f"{_name(store, group)}, spike {start + i}: {units[i]} of {len(events.spikes)} units")
    events.spikes += np.bincount(units[~wrong], minlength=len(events.spikes))


def _places(store: Store, events: Events, piece: Piece, edges: np.ndarray, recorded: np.ndarray | None) -> None:
    """Times inside the bins, and inside those that were recorded."""
    group, start, times, _ = piece
    width = float(store.meta.dt or 0.0)
    low, high = edges[0] - SLACK * width, edges[-1] + (1 + SLACK) * width

    def at(i: int) -> str:
        return f"{_name(store, group)}, spike {start + i}: {times[i]}"

    outside = np.isfinite(times) & ((times < low) | (times >= high))
    events.tallies["spike_time extent"].add(outside, lambda i: f"{at(i)}, bins from {edges[0]} to {edges[-1] + width}")
    if recorded is not None:
        bins = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(edges) - 1)
        padded = np.concatenate([[0.0], recorded, [0.0]])
        gap = np.isfinite(times) & ~outside & (recorded[bins] == 0)
        beside = (padded[bins] != 0) | (padded[bins + 2] != 0)
        events.tallies["spike_time recorded"].add(gap & ~beside, at)
        events.tallies["spike_time edge"].add(gap & beside, at)


def _repeats(store: Store, events: Events, piece: Piece, before: float, same: np.ndarray) -> np.ndarray:
    """Pairs of time and unit that occur twice; returns the units of the last time, for the next piece."""
    group, start, times, units = piece
    joined = np.concatenate([np.full(len(same), before), times]), np.concatenate([same, units])
    order = np.lexsort((joined[1], joined[0]))
    sorted_times, sorted_units = joined[0][order], joined[1][order]
    twice = np.zeros(len(order), bool)
    twice[order[1:]] = (np.diff(sorted_units) == 0) & (sorted_times[1:] == sorted_times[:-1])
    events.tallies["spike_time twice"].add(twice[len(same):], lambda i: (
        f"{_name(store, group)}, spike {start + i}: {times[i]} of unit {units[i]}"))
    return np.unique(joined[1][joined[0] == times[-1]])


def _bins(store: Store, spikes: np.ndarray) -> Iterator[Finding]:
    """Counts, the mask of what was recorded, and labels."""
    variables = store.meta.variables
    whole = Tally("whole numbers of spikes, at least 0, or NaN where not recorded")
    silent, mask = Tally("no spikes in a gap"), Tally("1 where recorded, 0 in a gap")
    for group in range(store.meta.groups):
        for start, values in _stretches(store, "count", group) if "count" in variables else ():
            finite = np.isfinite(values)
            wrong = ~(np.isnan(values) | finite & (values >= 0) & (values == np.floor(values)))
            whole.add(wrong.ravel(), _cell(store, group, start, values))
            spikes += np.where(finite & ~wrong, values, 0).sum(0).astype(np.int64)
            if "recorded" in variables:
                gap = store.read("recorded", group, start, start + len(values)) == 0
                silent.add((gap[:, None] & finite & (values > 0)).ravel(), _cell(store, group, start, values))
        for start, values in _stretches(store, "recorded", group) if "recorded" in variables else ():
            mask.add(~((values == 0) | (values == 1)), _cell(store, group, start, values))
        yield from _labels(store, group)
    for key, tally in (("count", whole), ("count recorded", silent), ("recorded", mask)):
        yield from _found(key, tally)


def _stretches(store: Store, name: str, group: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first bin, values of some MiB) of a variable along time."""
    shape = store.lazy()[name].shape
    step = max(1, 4 * PIECE // max(1, int(np.prod(shape[2:]))))
    for start in range(0, shape[1], step):
        yield start, store.read(name, group, start, min(start + step, shape[1]))


def _cell(store: Store, group: int, start: int, values: np.ndarray) -> Callable[[int], str]:
    def where(i: int) -> str:
        row, *rest = np.unravel_index(i, values.shape)
        unit = "".join(f", unit {store.members('unit')[int(u)]}" for u in rest)
        return f"{_name(store, group)}, bin {start + int(row)}{unit}: {values.ravel()[i]}"
    return where


def _labels(store: Store, group: int) -> Iterator[Finding]:
    for name in store.meta.of_role("label"):
        if not store.meta.evolves(name):
            continue
        known = np.zeros(store.lazy()[name].shape[2:], bool)
        for _, values in _stretches(store, name, group):
            known |= np.isfinite(values).any(0)
        if not known.all():
            dims = store.meta.variables[name].dims[1:]
            members = store.members(dims[0]) if len(dims) == 1 else ()
            empty = ", ".join(members[i] for i in np.flatnonzero(~known)) if members else "some members"
            yield Finding("warning", name, f"no value of {empty} in {_name(store, group)}",
                          "labels that are known somewhere in each recording",
                          "leave them out, or know that the recording teaches and tests nothing of them")


def _connections(store: Store) -> Iterator[Finding]:
    if "source" in store.meta.axes and store.members("source") != store.members("unit"):
        yield Finding("error", "source", "other labels than unit", "the same units in the same order", _MEND)


def _splits(store: Store) -> Iterator[Finding]:
    splits = store.meta.splits
    groups = [{block.group for block in splits.of(name)} for name in ("train", "validation", "test")]
    if splits.gap == 0 and sum(map(len, groups)) > len(set().union(*groups)):
        yield Finding("warning", "splits", "no gap between blocks of one recording",
                      "a gap as long as spikes and what they are decoded into are correlated",
                      "split: {by: time, gap: STEPS} in the source file, and build anew")


PLUGIN = check
