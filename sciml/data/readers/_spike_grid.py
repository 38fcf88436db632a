"""Bins of a recording, and what was measured beside the spikes put on them: behaviour, trials, gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sciml.data.safety import check_size
from sciml.errors import InputError

MAX_BINS = 1 << 27
INSIDE = 0.5
GAP = 1.5
TRIFLE = 1e-6


@dataclass(frozen=True)
class Signal:
    """Something measured beside the spikes: `values (samples,)` in `unit` (or None) at `times (samples,)` in s."""

    name: str
    unit: str | None
    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Trial:
    """start ≤ t < stop in s; condition: a number or a name, None if unknown."""

    start: float
    stop: float
    condition: float | str | None = None


@dataclass(frozen=True)
class Grid:
    """Bin i covers ``[start + i width, start + (i + 1) width)``, in s, for 0 ≤ i < count."""

    start: float
    width: float
    count: int

    @property
    def edges(self) -> np.ndarray:
        """Left edges (count,)."""
        return self.start + self.width * np.arange(self.count)

    def place(self, times: np.ndarray) -> np.ndarray:
        """The bin of each time; a time a millionth of a bin before an edge counts as on it."""
        return np.floor((times - self.start) / self.width + TRIFLE).astype(np.int64)


def grid_of(width: float, start: float, stop: float, last: float, where: object) -> Grid:
    """Bins from `start` that reach to `stop` and past the last spike. Raises `InputError` beyond 2²⁷ bins."""
    if not stop > start:
        raise InputError(where, key="stop", found=f"{start:g} … {stop:g} s", expected="a stop after the start",
                         fix="correct options.start and options.stop")
    reach = max(stop, last)
    if (reach - start) / width > MAX_BINS:
        raise InputError(where, key="bin_s", found=f"{(reach - start) / width:.3g} bins of {width:g} s "
                         f"({start:g} … {reach:g} s)", expected=f"at most {MAX_BINS}",
                         fix="check that times are in seconds on one clock (options.time_unit), or widen bin_s")
    count = max(1, math.ceil((stop - start) / width - TRIFLE))
    while start + width * (count - 1) + width <= last:
        count += 1
    return Grid(start, width, count)


def checked_signal(signal: Signal, where: object) -> Signal:
    """In float64. Raises `InputError` unless times are finite, ascending and as many as the values."""
    key, times = f"behaviour.{signal.name}", np.asarray(signal.times, dtype=np.float64)
    values = np.asarray(signal.values, dtype=np.float64)
    if times.ndim != 1 or times.shape != values.shape or not times.size:
        raise InputError(where, key=key, found=f"{values.shape} values at {times.shape} times",
                         expected="one value per time, at least one", fix="correct the arrays, or leave it out")
    check_size(where, key, times.shape, 16, 1 << 34, "samples")
    wrong = np.flatnonzero(~np.isfinite(times))
    if len(wrong):
        raise InputError(where, key=key, found=f"time {times[wrong[0]]} at sample {wrong[0]}", expected="finite times",
                         fix="remove samples without a time")
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if len(wrong):
        at = int(wrong[0]) + 1
        raise InputError(where, key=key, found=f"time {times[at]:g} s at sample {at} after {times[at - 1]:g} s",
                         expected="ascending timestamps", fix="sort the samples and remove repeated times")
    return Signal(signal.name, signal.unit, times, values)


def check_clock(name: str, times: np.ndarray, start: float, stop: float, where: object) -> None:
    """Raises `InputError` if less than half of the times lie in ``start … stop``: another clock."""
    inside = float(np.mean((times >= start) & (times <= stop)))
    if inside < INSIDE:
        raise InputError(where, key=name, found=f"{times.min():g} … {times.max():g} s, {inside:.0%} of it inside the "
                         f"recording ({start:g} … {stop:g} s)", expected="the clock of the spikes",
                         fix="shift or scale its times to the spikes' clock (seconds), or leave it out; if the "
                             "recording is longer than its spikes, give options.start and options.stop")


def binned(signal: Signal, grid: Grid) -> tuple[np.ndarray, list[str]]:
    """Mean over each bin (count,) in float32, and what there is to note.

    A bin without a sample lies on the line between its neighbours if these are at most 1.5 usual sampling intervals
    apart, and is NaN otherwise; NaN samples stay NaN unless the bin has others.
    """
    at, count, name = grid.place(signal.times), grid.count, signal.name
    inside, known = (at >= 0) & (at < count), np.isfinite(signal.values)
    sampled = np.bincount(at[inside], minlength=count)
    good = inside & known
    number = np.bincount(at[good], minlength=count)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(at[good], weights=signal.values[good], minlength=count) / number
    between, lines = _lines(signal, grid.edges[sampled == 0] + grid.width / 2)
    mean[sampled == 0] = lines
    notes = [f"{name}: {between} of {count} bins are interpolated, as it is sampled more slowly than the bins"] \
        if between else []
    for what, amount, total in (("samples outside the recording are left out", int((~inside).sum()), inside.size),
                                ("samples are NaN", int((inside & ~known).sum()), inside.size),
                                ("bins are NaN", int(np.isnan(mean).sum()), count)):
        notes += [f"{name}: {amount} of {total} {what}"] if amount else []
    return mean.astype(np.float32), notes


def _lines(signal: Signal, centres: np.ndarray) -> tuple[int, np.ndarray]:
    """Values on the line between the samples around each time, NaN beyond the ends and in gaps; how many are known."""
    times, values = signal.times, signal.values
    if len(times) < 2:
        return 0, np.full(len(centres), np.nan)
    after = np.clip(np.searchsorted(times, centres), 1, len(times) - 1)
    span = times[after] - times[after - 1]
    share = (centres - times[after - 1]) / span
    found = values[after - 1] * (1 - share) + values[after] * share
    found[(span > GAP * np.median(np.diff(times))) | (share < 0) | (share > 1)] = np.nan
    return int(np.isfinite(found).sum()), found


def checked_intervals(intervals: Sequence[tuple[float, float]] | np.ndarray, key: str, where: object) -> np.ndarray:
    """Ascending ``(n, 2)`` in s. Raises `InputError` if one is not finite or ends before it begins."""
    pairs = np.asarray(intervals, dtype=np.float64).reshape(-1, 2)
    wrong = np.flatnonzero(~(np.isfinite(pairs).all(axis=1) & (pairs[:, 1] > pairs[:, 0])))
    if len(wrong):
        raise InputError(where, key=f"{key} {wrong[0]}", found=f"{pairs[wrong[0], 0]:g} … {pairs[wrong[0], 1]:g} s",
                         expected="a finite start and a later stop", fix="mend or remove it")
    return pairs


def merged(pairs: np.ndarray) -> np.ndarray:
    """The union of intervals ``(n, 2)`` as disjoint ascending ones.

    >>> merged(np.array([[4.0, 5.0], [0.0, 2.0], [1.0, 3.0]])).tolist()
    [[0.0, 3.0], [4.0, 5.0]]
    """
    whole: list[list[float]] = []
    for start, stop in pairs[np.argsort(pairs[:, 0], kind="stable")].tolist():
        if whole and start <= whole[-1][1]:
            whole[-1][1] = max(whole[-1][1], stop)
        else:
            whole.append([start, stop])
    return np.array(whole).reshape(-1, 2)


def in_intervals(times: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether each time lies in one of the disjoint ascending intervals, ends included."""
    index = np.searchsorted(pairs[:, 0], times, side="right") - 1
    return (index >= 0) & (times <= pairs[np.maximum(index, 0), 1])


def recorded_bins(pairs: np.ndarray, grid: Grid) -> np.ndarray:
    """1 where a bin lies wholly inside one of the disjoint intervals, else 0: (count,) in float32."""
    row = np.zeros(grid.count, dtype=np.float32)
    for start, stop in (pairs - grid.start) / grid.width:
        row[max(0, math.ceil(start - TRIFLE)): max(0, math.floor(stop + TRIFLE))] = 1
    return row


def trial_bins(trials: Sequence[Trial], grid: Grid, where: object) -> tuple[np.ndarray, np.ndarray | None, list[str],
                                                                            list[str]]:
    """Trial number and condition of each bin whose middle lies in a trial (−1 elsewhere), names of coded conditions,
    notes. Numbers count in the order given. Raises `InputError` for overlapping trials."""
    pairs = checked_intervals([(t.start, t.stop) for t in trials], "trial", where)
    order = np.argsort(pairs[:, 0], kind="stable")
    wrong = np.flatnonzero(pairs[order[1:], 0] < pairs[order[:-1], 1] - TRIFLE * grid.width)
    if len(wrong):
        one, two = int(order[wrong[0]]), int(order[wrong[0] + 1])
        raise InputError(where, key=f"trial {two}", found=f"start {pairs[two, 0]:g} s, before the stop "
                         f"{pairs[one, 1]:g} s of trial {one}", expected="trials one after another",
                         fix="mend the table, or leave it out: options: {trials: false}")
    codes, names = _conditions(trials)
    number = np.full(grid.count, -1, dtype=np.float32)
    condition = None if codes is None else number.copy()
    first = np.ceil((pairs - grid.start) / grid.width - 0.5 - TRIFLE).astype(np.int64)
    spans = np.clip(first, 0, grid.count)
    for index, (begin, end) in enumerate(spans):
        number[begin:end] = index
        if condition is not None and codes is not None:
            condition[begin:end] = codes[index]
    absent = int((spans[:, 0] >= spans[:, 1]).sum())
    notes = [f"trials: {absent} of {len(trials)} hold the middle of no bin"] if absent else []
    return number, condition, names, notes


def _conditions(trials: Sequence[Trial]) -> tuple[np.ndarray | None, list[str]]:
    """A number per trial (−1 where unknown); names, where these are coded 0, 1, … in alphabetical order."""
    given = [t.condition for t in trials]
    if all(value is None for value in given):
        return None, []
    if all(value is None or isinstance(value, int | float) for value in given):
        codes = np.array([-1 if value is None else float(value) for value in given])
        return np.where(np.isfinite(codes), codes, -1), []
    names = sorted({str(value) for value in given if value is not None})
    return np.array([-1 if value is None else names.index(str(value)) for value in given]), names
