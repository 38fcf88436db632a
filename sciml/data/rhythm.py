"""Steps of the calendar, which are not equally long: months, quarters and years, under names that pandas knows.

A name is a number of months, 1 if there is none, and ``MS`` where they are counted from the first of the month (the
day may be another one, the same in all), ``ME`` where from the last: ``MS``, ``3ME``, ``12MS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

IRREGULAR = "irregular"
"""In place of a name, as the attribute ``freq`` of times: they follow no step, and the source says that it knows."""
DAY_NS = 86_400 * 10**9
_SHIFTS = {"MS": 0, "ME": DAY_NS}


def calendar(times: np.ndarray) -> str:
    """The name of the step of ``(T,)`` ascending datetime64; empty for others, and for fewer than three of them.

    >>> calendar(np.array(["2024-01-31", "2024-02-29", "2024-03-31"], "datetime64[ns]"))
    'ME'
    """
    if times.dtype.kind != "M" or len(times) < 3:
        return ""
    ticks = times.astype("datetime64[ns]").astype(np.int64)
    for end, shift in _SHIFTS.items():
        month, rest = _parts(ticks + shift)
        gaps = np.diff(month)
        if gaps[0] > 0 and (gaps == gaps[0]).all() and (rest == rest[0]).all() and rest[0] < 28 * DAY_NS:
            return end if gaps[0] == 1 else f"{gaps[0]}{end}"
    return ""


def gapped(times: np.ndarray) -> tuple[str, np.ndarray]:
    """As `calendar` of ``(T,)`` ascending datetime64 of which some are missing, by the most usual step, and how many
    steps ``(T,)`` each is after the first; the name is empty for others.

    >>> gapped(np.array(["2024-01-31", "2024-02-29", "2024-04-30", "2024-05-31"], "datetime64[ns]"))
    ('ME', array([0, 1, 3, 4]))
    """
    if times.dtype.kind == "M" and len(times) > 2:
        ticks = times.astype("datetime64[ns]").astype(np.int64)
        for end, shift in _SHIFTS.items():
            month, rest = _parts(ticks + shift)
            gaps = np.diff(month)
            usual = int(np.bincount(gaps).argmax()) if gaps.min() > 0 else 0
            if usual and not (gaps % usual).any() and (rest == rest[0]).all() and rest[0] < 28 * DAY_NS:
                return end if usual == 1 else f"{usual}{end}", (month - month[0]) // usual
    return "", np.zeros(0, np.int64)


def stepped(times: np.ndarray) -> bool:
    """Whether ``(T,)`` ascending times follow in one step: dates exactly or by the calendar, numbers within rounding.

    >>> stepped(np.array([0.0, 0.1, 0.2])), stepped(np.array([0.0, 0.1, 0.4]))
    (True, False)
    """
    if times.dtype.kind == "M":
        gaps = np.diff(times.astype("datetime64[ns]").astype(np.int64))
        return bool((gaps == gaps[:1]).all()) or bool(calendar(times))
    gaps = np.diff(times.astype(np.float64))
    return len(gaps) == 0 or bool(np.allclose(gaps, gaps.mean(), rtol=1e-4, atol=0.0))


def told(times: np.ndarray, options: Mapping[str, Any]) -> dict[str, Any]:
    """The attribute ``freq`` of ``(T,)`` times that follow no step, where a source says ``irregular: keep``."""
    return {"freq": IRREGULAR} if options.get("irregular") == "keep" and not stepped(times) else {}


def months(name: str) -> int:
    """In a step of that name.

    >>> months("MS"), months("12ME")
    (1, 12)
    """
    return int(name[:-2] or 1)


def later(ticks: np.ndarray, name: str, count: np.ndarray | int) -> np.ndarray:
    """Nanoseconds since 1970 that lie `count` steps after `ticks`, broadcast; int64.

    >>> start = np.array(["2023-12-31"], "datetime64[ns]").astype(np.int64)
    >>> later(start, "ME", np.arange(3)).astype("datetime64[ns]").astype("datetime64[D]").astype(str).tolist()
    ['2023-12-31', '2024-01-31', '2024-02-29']
    """
    shift = _SHIFTS[name[-2:]]
    month, rest = _parts(np.asarray(ticks) + shift)
    moved = (month + months(name) * np.asarray(count)).astype("datetime64[M]").astype("datetime64[ns]")
    return np.asarray(moved.astype(np.int64) + rest - shift)


def follows(ticks: np.ndarray, name: str) -> np.ndarray:
    """Whether ticks are on days that every month has, counted as the name does: others have no `later`.

    >>> follows(np.array(["2024-01-31", "2024-01-15"], "datetime64[ns]").astype(np.int64), "MS").tolist()
    [False, True]
    """
    return np.asarray(_parts(np.asarray(ticks) + _SHIFTS[name[-2:]])[1] < 28 * DAY_NS)


def _parts(ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Months since 1970, and nanoseconds since the month began."""
    start = ticks.astype("datetime64[ns]").astype("datetime64[M]")
    return start.astype(np.int64), ticks - start.astype("datetime64[ns]").astype(np.int64)
