"""What must hold in a store of fields beside what holds in every store: axes and their ends, vectors, trajectories.

What is said is checked in full. Of values, every frame is read where the states are at most 1 GiB, else frames evenly
spread over each trajectory, the first and the last among them. One finding per kind of mistake, with the number of
places and the first one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sciml.data import units
from sciml.data.check import Finding
from sciml.data.checks._exchanged import exchanged, outliers
from sciml.data.checks.spikes import Tally
from sciml.data.schema import SplitName
from sciml.data.statistics import Partial, combine_all, reduce_values
from sciml.data.store import Store

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
EDGES = ("wall", "open", "periodic", "dirichlet", "neumann")
BUDGET_BYTES, PIECE_BYTES = 1 << 30, 16 << 20
_MEND = "mend the source and build the store anew"
_CUT = "cut them: options: {select: {time: [start, stop]}} or {select: {trajectory: [start, stop]}}"


@dataclass
class Seen:
    """The tallies; a digest of each trajectory's states (None: constant), and by state the mean and the standard
    deviation of each trajectory, ``(groups,)``."""

    digests: list[bytes | None] = field(default_factory=list)
    mean: dict[str, list[float]] = field(default_factory=dict)
    std: dict[str, list[float]] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=lambda: {
        "no value": Tally("a finite value in every trajectory"),
        "tail": Tally("values up to the last step of every trajectory", "warning"),
        "still": Tally("states that go on to change", "warning"),
        "constant": Tally("states that vary in every trajectory", "warning")})

    def note(self, key: str, what: str) -> None:
        self.tallies[key].add(np.ones(1, bool), lambda _: what)


@dataclass(frozen=True)
class Look:
    """One state of one trajectory: moments, how many values of each frame aren't finite, and which frames are equal to
    the one before to the last bit."""

    total: Partial
    missing: np.ndarray
    same: np.ndarray


def check(store: Store) -> Iterator[Finding]:
    """All findings of a store of fields. Raises what reading it raises."""
    meta = store.meta
    states = meta.of_role("state")
    lattices = sorted({meta.variables[name].dims for name in states})
    if len(lattices) != 1 or not _places(store, lattices[0]):
        told = "; ".join(f"({', '.join(dims)})" for dims in lattices) or "no state"
        yield Finding("error", "domain fields", f"states on {told}", "at least one state, all on one lattice of space, "
                      "or of points", "leave variables out, or options: {flatten: DIMENSION} to make variables of them")
        return
    yield from _parts(store)
    yield from _axes(store, lattices[0])
    yield from _ends(store)
    yield from _vectors(store)
    yield from _unnamed(store, lattices[0])
    yield from _points(store)
    frames = _frames(store, states)
    seen = Seen()
    for group in range(meta.groups):
        _trajectory(store, group, states, frames, seen)
    for key, tally in seen.tallies.items():
        if tally.count:
            fix = _CUT if key in ("tail", "still") else _MEND
            yield Finding(tally.level, key, f"{tally.count}, first {tally.first}", tally.expected, fix)
    yield from _copies(store, seen)
    yield from _statistics(store, seen)


def _places(store: Store, dims: tuple[str, ...]) -> list[str]:
    """The dimensions of space, or the one of points, which have coordinates ``point_x`` and so on."""
    axes, coords = store.meta.axes, store.lazy().coords
    return [dim for dim in dims if (dim in axes and axes[dim].kind == "space") or f"{dim}_x" in coords]


def _name(store: Store, group: int) -> str:
    return f"{store.meta.group_dim} {group}"


def _parts(store: Store) -> Iterator[Finding]:
    """Parts of the split in which no state follows another one."""
    for split in SPLITS if "time" in store.meta.axes else ():
        blocks = store.meta.splits.of(split)
        if blocks and all(block.stop - block.start < 2 for block in blocks):
            yield Finding("warning", "splits", f"1 time step in every trajectory of {split}", "a state and the next",
                          f"a larger share for {split} in the source file, or split: {{by: group}}")


def _axes(store: Store, dims: tuple[str, ...]) -> Iterator[Finding]:
    """Uneven time, and an axis whose last point repeats its first."""
    meta = store.meta
    times = [dim for dim in dims if meta.axes[dim].kind == "time"]
    if times and meta.dt is None and len(store.coord(times[0])) > 1:
        steps = np.diff(store.coord(times[0])).astype(np.float64)
        at = int(np.argmax(np.abs(steps - np.median(steps))))
        yield Finding("warning", times[0], f"mixed steps, from {steps.min():g} to {steps.max():g}; usually "
                      f"{np.median(steps):g}, {steps[at]:g} after index {at}", "one dt in a store",
                      "one store per dt, or resample to even steps")
    name = meta.of_role("state")[0]
    values = store.read(name, 0, 0, 1)[0] if times else store.read(name, 0)
    for axis, dim in enumerate(dims[len(times):]):
        if meta.axes[dim].kind != "space" or meta.axes[dim].period is not None or values.shape[axis] < 3:
            continue
        ends = [values.take(i, axis) for i in (0, 1, -1)]
        if np.array_equal(ends[0], ends[2]) and np.isfinite(ends[0]).all() and np.ptp(ends[0]) > 0 \
                and not np.array_equal(ends[0], ends[1]):
            yield Finding("warning", dim, f"{name} is the same at both ends", "either ends that differ, or a period",
                          "if the axis wraps around, leave its last point out (options: {select: "
                          f"{{{dim}: [0, {values.shape[axis] - 1}]}}}}) and give axes: {{{dim}: {{period: …}}}}")


def _ends(store: Store) -> Iterator[Finding]:
    """What axes end in: codes that are missing, unknown, or contradict a period."""
    meta = store.meta
    for dim, axis in meta.axes.items():
        if axis.kind != "space":
            continue
        codes = {side: f"boundary_{dim}_{side}" for side in ("low", "high")}
        there = {side: name for side, name in codes.items() if name in meta.variables}
        if axis.period is None and len(there) < 2 and not axis.unit.startswith(("degrees_n", "degree_n")):
            absent = ", ".join(name for side, name in codes.items() if side not in there)
            yield Finding("warning", dim, f"not periodic, and no {absent}", "what a bounded axis ends in",
                          f"options: {{boundaries: {{{dim}: wall}}}} (or open, dirichlet, neumann), or axes: "
                          f"{{{dim}: {{period: …}}}}")
        for name in there.values():
            values = np.array([float(store.read(name, group)) for group in range(meta.groups)])
            wrong = ~np.isin(values, np.arange(len(EDGES)))
            if wrong.any():
                at = int(np.argmax(wrong))
                yield Finding("error", name, f"{int(wrong.sum())}, first {_name(store, at)}: {values[at]:g}",
                              f"0 to {len(EDGES) - 1}: {', '.join(EDGES)}", _MEND)
            elif ((values == EDGES.index("periodic")) != (axis.period is not None)).any():
                told = "no period" if axis.period is None else f"a period of {axis.period:g}"
                at = int(np.argmax((values == EDGES.index("periodic")) != (axis.period is not None)))
                yield Finding("error", name, f"{EDGES[int(values[at])]} in {_name(store, at)}, but axis {dim} has "
                              f"{told}", "a boundary that agrees with the axis",
                              f"axes: {{{dim}: {{period: …}}}} if it wraps around, else correct the boundary")


def _vectors(store: Store) -> Iterator[Finding]:
    """Vectors and tensors that lack components, or whose components don't belong together."""
    meta = store.meta
    vectors: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for name, variable in meta.variables.items():
        if variable.vector:
            vectors.setdefault(variable.vector, {}).setdefault(variable.along, []).append(name)
    for vector, components in vectors.items():
        names = [name for found in components.values() for name in found]
        twice = [found for found in components.values() if len(found) > 1]
        if twice or len({len(along) for along in components}) > 1:
            yield Finding("error", vector, f"{' and '.join(twice[0])} are one component" if twice else
                          f"components of several ranks: {', '.join(names)}", "each component once",
                          "name different vectors, or leave one out")
            continue
        kinds = {(meta.variables[name].role, meta.variables[name].unit, meta.variables[name].dims) for name in names}
        if len(kinds) > 1:
            told = "; ".join(f"{role} in {unit} on ({', '.join(dims)})" for role, unit, dims in sorted(kinds))
            yield Finding("error", vector, f"components {', '.join(names)}: {told}", "one role, unit and lattice",
                          _MEND)
        absent = _absent(store, components)
        if absent:
            yield Finding("error", vector, f"{', '.join(names)} without the component along {absent}",
                          "all components of a vector, else it can't be turned or mirrored",
                          "add what is missing, or leave out vector and along of the rest")


def _unnamed(store: Store, dims: tuple[str, ...]) -> Iterator[Finding]:
    """States that are named like components, ``velocity_x``, and don't say of what."""
    variables = store.meta.variables
    alone = [(name, name.rpartition("_")[0], name.rpartition("_")[2]) for name in store.meta.of_role("state")
             if not variables[name].vector]
    told_of = {variable.vector for variable in variables.values()}
    for vector in dict.fromkeys(stem for _, stem, axis in alone if stem not in told_of and axis in dims):
        given = {axis: name for name, stem, axis in alone if stem == vector and axis in dims}
        absent = [f"{vector}_{axis}" for axis in dims if _alike(store, axis, set(given)) and f"{vector}_{axis}"
                  not in variables and store.meta.axes[axis].kind == "space"]
        told = ", ".join(f"{name}: {{vector: {vector}, along: [{axis}]}}" for axis, name in given.items())
        yield Finding("warning", vector, f"{', '.join(given.values())} without vector and along"
                      + (f", and no {', '.join(absent)}" if absent else ""), "components that say of which vector, or "
                      "else they are scalars", f"variables: {{{told}}}" + "; add what is missing" * bool(absent))


def _absent(store: Store, components: dict[tuple[str, ...], list[str]]) -> str:
    """A component that is missing: along every axis of the kind that some are along; of tensors, the symmetric half
    is enough, with the diagonal or without."""
    meta = store.meta
    given = list(components)
    dims = meta.variables[next(iter(components.values()))[0]].dims
    used = {axis for along in given for axis in along}
    axes = [dim for dim in dims if dim in used or (meta.axes[dim].kind == "space" and _alike(store, dim, used))]
    axes += [axis for dim in dims for axis in "xyz" if f"{dim}_{axis}" in store.lazy().coords]
    if len(given[0]) == 1:
        return next((axis for axis in axes if (axis,) not in components), "")
    if len(given[0]) > 2:
        return ""
    pairs = {frozenset(along) for along in given}
    diagonal = any(len(pair) == 1 for pair in pairs)
    wanted = [(a, b) for i, a in enumerate(axes) for b in axes[i:] if diagonal or a != b]
    return next((" ".join(pair) for pair in wanted if frozenset(pair) not in pairs), "")


def _alike(store: Store, dim: str, used: set[str]) -> bool:
    """Whether an axis is measured as the others are: levels in hPa are no direction of a wind along longitude."""
    own = units.parse(store.meta.axes[dim].unit, where=store.url, key=dim)
    others = [units.parse(store.meta.axes[axis].unit, where=store.url, key=axis) for axis in used
              if axis in store.meta.axes]
    return all(own.is_compatible_with(other) for other in others)


def _points(store: Store) -> Iterator[Finding]:
    """Places of points that are not finite or shared by two, and weights that are not positive."""
    coords = store.lazy().coords
    for dim in (dim for dim, axis in store.meta.axes.items() if axis.kind == "set" and f"{dim}_x" in coords):
        places = np.stack([np.asarray(coords[f"{dim}_{axis}"].values, np.float64) for axis in "xyz"
                           if f"{dim}_{axis}" in coords], -1)
        if not np.isfinite(places).all():
            yield Finding("error", f"{dim}_x", f"{int((~np.isfinite(places)).any(1).sum())} {dim}s without a place",
                          "finite coordinates", _MEND)
        elif len(np.unique(places, axis=0)) < len(places):
            yield Finding("warning", f"{dim}_x", f"{len(places) - len(np.unique(places, axis=0))} {dim}s where another "
                          "one is", "each place once", "merge points that coincide")
        if "cell_measure" in coords and not (np.asarray(coords["cell_measure"].values) > 0).all():
            wrong = int((~(np.asarray(coords["cell_measure"].values) > 0)).sum())
            yield Finding("error", "cell_measure", f"{wrong} not above 0", "a positive weight of every point", _MEND)


def _frames(store: Store, states: tuple[str, ...]) -> np.ndarray:
    """Indices of the frames that are read of every trajectory; one 0 of steady states."""
    lazy = store.lazy()
    if not store.meta.evolves(states[0]):
        return np.zeros(1, np.int64)
    steps = lazy[states[0]].shape[1]
    size = sum(int(lazy[name].nbytes) for name in states)
    kept = min(steps, max(3, int(steps * BUDGET_BYTES / max(size, 1))))
    return np.unique(np.linspace(0, steps - 1, kept).round().astype(np.int64))


def _trajectory(store: Store, group: int, states: tuple[str, ...], frames: np.ndarray, seen: Seen) -> None:
    digest, moves = hashlib.sha256(), False
    for name in states:
        look = _look(store, name, group, frames, digest)
        here, total = f"{_name(store, group)}, {name}", look.total
        count = int(total.count[0])
        std = float(np.sqrt(total.m2[0] / count)) if count else np.nan
        seen.mean.setdefault(name, []).append(float(total.mean[0]) if count else np.nan)
        seen.std.setdefault(name, []).append(std)
        level = bool(total.minimum[0] >= total.maximum[0])
        moves |= not level
        if not count:
            seen.note("no value", here)
        elif level:
            seen.note("constant", f"{here}: always {total.minimum[0]:g}")
        worse = look.missing > look.missing.min()
        tail, still = _suffix(worse), _suffix(look.same & ~worse)
        if tail:
            first = _first(store, name, group, frames, len(frames) - tail)
            seen.note("tail", f"{here}: NaN from step {first} on, of {frames[-1] + 1}")
        if 0 < still < len(frames) - 1:
            seen.note("still", f"{here}: unchanged from step {frames[-still - 1]} on, of {frames[-1] + 1}")
    seen.digests.append(digest.digest() if moves else None)


def _suffix(flags: np.ndarray) -> int:
    """How many of the last flags are set."""
    return len(flags) if flags.all() else int(np.argmin(flags[::-1]))


def _look(store: Store, name: str, group: int, frames: np.ndarray, digest: Any) -> Look:
    """Frames of one trajectory, read in runs of at most 16 MiB; `digest` takes all of them in."""
    evolves, parts, missing, same = store.meta.evolves(name), [], [], []
    item = store.lazy()[name]
    each = max(1, item.nbytes // max(1, item.shape[0] * (item.shape[1] if evolves else 1)))
    longest = max(1, PIECE_BYTES // each)
    before = None
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1) if evolves else [frames]
    for run in runs:
        for start in range(0, len(run), longest):
            piece = run[start:start + longest]
            values = store.read(name, group, int(piece[0]), int(piece[-1]) + 1) if evolves else \
                store.read(name, group)[None]
            digest.update(np.ascontiguousarray(values).tobytes())
            parts.append(reduce_values(values))
            for frame in values:
                missing.append(int((~np.isfinite(frame)).sum()))
                same.append(before is not None and np.array_equal(frame, before))
                before = frame
    return Look(combine_all(parts), np.array(missing), np.array(same))


def _first(store: Store, name: str, group: int, frames: np.ndarray, at: int) -> int:
    """The first step of a tail that begins after frame ``at − 1`` of those that were read, at `at` at the latest."""
    low = int(frames[at - 1]) if at else -1
    fewest = int((~np.isfinite(store.read(name, group, low, low + 1))).sum()) if at else 0
    for step in range(low + 1, int(frames[at])):
        if (~np.isfinite(store.read(name, group, step, step + 1))).sum() > fewest:
            return step
    return int(frames[at])


def _copies(store: Store, seen: Seen) -> Iterator[Finding]:
    """Trajectories that are equal to the last bit."""
    of: dict[int, set[str]] = {}
    for name in SPLITS:
        for block in store.meta.splits.of(name):
            of.setdefault(block.group, set()).add(name)
    first: dict[bytes, int] = {}
    pairs = [(first[mark], group) for group, mark in enumerate(seen.digests)
             if mark is not None and first.setdefault(mark, group) != group]
    leaks = [pair for pair in pairs if of.get(pair[0], set()) != of.get(pair[1], set())]
    for key, found, level, expected in (("splits", leaks, "error", "none in two splits"),
                                        ("copies", [p for p in pairs if p not in leaks], "warning", "each once")):
        if found:
            yield Finding("error" if level == "error" else "warning", key, f"{len(found)} equal trajectories, first "
                          f"{_name(store, found[0][0])} and {_name(store, found[0][1])}", expected,
                          "remove copies from the source")


def _statistics(store: Store, seen: Seen) -> Iterator[Finding]:
    """Trajectories in which two states seem to have changed places, and those that are unlike all others."""
    mean, std = ({name: np.array(values) for name, values in table.items()} for table in (seen.mean, seen.std))
    explained: dict[str, set[int]] = {}
    for a, b, groups in exchanged(mean, std):
        for name in (a, b):
            explained.setdefault(name, set()).update(groups.tolist())
        yield Finding("warning", f"{a}, {b}", f"in {len(groups)} of {store.meta.groups} trajectories {a} is as {b} is "
                      f"elsewhere, and {b} as {a}: {_some(groups)}", "the same channels in the same order in all files",
                      "if their channels are swapped, build these files by themselves with the keys exchanged under "
                      "variables")
    for name, groups, text in outliers(mean, std):
        if set(groups.tolist()) - explained.get(name, set()):
            yield Finding("warning", name, f"{len(groups)} trajectories unlike the others: {_some(groups)}; the first "
                          f"has {text}", "statistics like those of the others", "another unit, quantity or equation in "
                          "their file? Give it what the others have, or leave it out")


def _some(groups: np.ndarray) -> str:
    return ", ".join(str(group) for group in groups[:8]) + (", …" if len(groups) > 8 else "")


PLUGIN = check
