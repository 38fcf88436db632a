"""Time as the calendar sees it: phases of the day, the week and the year, and what of them a series can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sciml.errors import InputError

DAY_NS = 86_400 * 10**9
PERIODS_NS = {"day": DAY_NS, "week": 7 * DAY_NS, "year": round(365.2425 * DAY_NS)}
MIN_CYCLES = 3
_MONDAY_NS = 4 * DAY_NS  # 1970-01-05


@dataclass(frozen=True)
class Clock:
    """The uniform time axis of one data set, as integer ticks: nanoseconds since 1970, or steps since `origin`.

    step: ticks between neighbours (1 for numeric time). dt, origin: in the axis's own unit (seconds for calendar time).
    """

    kind: Literal["calendar", "numeric"]
    step: int
    dt: float
    origin: float = 0.0
    unit: str = "s"

    @classmethod
    def of(cls, time: np.ndarray, unit: str, *, where: object) -> Clock:
        """From ``(T,)`` datetime64 or numbers. Raises `InputError` unless ascending with one step."""
        if np.issubdtype(time.dtype, np.datetime64):
            gaps = np.diff(_nanoseconds(time))
            if len(gaps) == 0 or (gaps != gaps[0]).any() or gaps[0] <= 0:
                raise _not_uniform(where, gaps)
            return cls("calendar", int(gaps[0]), float(gaps[0]) / 1e9)
        gaps = np.diff(time.astype(np.float64))
        if len(gaps) == 0 or gaps[0] <= 0 or not np.allclose(gaps, gaps.mean(), rtol=1e-4):
            raise _not_uniform(where, gaps)
        return cls("numeric", 1, float(gaps.mean()), float(time[0]), unit)

    def ticks(self, time: np.ndarray, *, where: object) -> np.ndarray:
        """``(T,)`` int64 ticks of a sample's times. Raises `InputError` if they don't advance by this clock's step."""
        if np.issubdtype(time.dtype, np.datetime64) != (self.kind == "calendar"):
            raise InputError(where, key="time", found=str(time.dtype), expected=f"{self.kind} time, as fitted",
                             fix="give the time axis the type it had in the store")
        if self.kind == "calendar":
            ticks = _nanoseconds(time)
        else:
            ticks = np.rint((time.astype(np.float64) - self.origin) / self.dt).astype(np.int64)
        if len(ticks) > 1 and (np.diff(ticks) != self.step).any():
            gap = time[1] - time[0]
            raise InputError(where, key="time", found=f"steps of {gap} or uneven ones", expected=self.describe(),
                             fix="resample to that step, or fit the data set under its own name")
        return ticks

    def times(self, ticks: np.ndarray) -> np.ndarray:
        """The inverse of `ticks`: datetime64[ns] or float64."""
        return ticks.astype("datetime64[ns]") if self.kind == "calendar" else self.origin + self.dt * ticks

    def describe(self) -> str:
        return f"a uniform step of {self.dt:g} {self.unit}"

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "step": self.step, "dt": self.dt, "origin": self.origin, "unit": self.unit}

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> Clock:
        return cls(config["kind"], int(config["step"]), float(config["dt"]), float(config["origin"]), config["unit"])


def _nanoseconds(time: np.ndarray) -> np.ndarray:
    return time.astype("datetime64[ns]").astype(np.int64)


def _not_uniform(where: object, gaps: np.ndarray) -> InputError:
    found = f"{len(np.unique(gaps))} different steps, the smallest {gaps.min()}" if len(gaps) else "fewer than 2 times"
    return InputError(where, key="time", found=found, expected="ascending times with one uniform step",
                      fix="resample to a uniform step in the source file's options")


def resolvable(clock: Clock, steps: int, names: Iterable[str]) -> tuple[str, ...]:
    """Of these periods, the ones with at least two steps in a cycle and three cycles in `steps` steps.

    >>> resolvable(Clock("calendar", 3_600 * 10**9, 3600.0), 8640, ("day", "week", "year"))
    ('day', 'week')
    """
    if clock.kind != "calendar":
        return ()
    span = clock.step * steps
    return tuple(n for n in names if 2 * clock.step <= PERIODS_NS[n] and MIN_CYCLES * PERIODS_NS[n] <= span)


def phase(ticks: np.ndarray, name: str) -> np.ndarray:
    """Where in the day, week (from Monday) or year each nanosecond tick lies, in [0, 1)."""
    if name == "day":
        return (ticks % DAY_NS) / DAY_NS
    if name == "week":
        return ((ticks - _MONDAY_NS) % (7 * DAY_NS)) / (7 * DAY_NS)
    years = ticks.astype("datetime64[ns]").astype("datetime64[Y]")
    start, stop = _nanoseconds(years), _nanoseconds(years + 1)
    return (ticks - start) / (stop - start)


def features(ticks: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """sin and cos of the phase, float32, shaped like `ticks`."""
    angle = 2 * np.pi * phase(ticks, name)
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)
