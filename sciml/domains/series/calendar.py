"""Time as the calendar sees it: phases of the day, the week and the year, and what of them a series can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sciml.data import rhythm
from sciml.data.rhythm import DAY_NS, IRREGULAR
from sciml.errors import InputError

PERIODS_NS = {"day": DAY_NS, "week": 7 * DAY_NS, "year": round(365.2425 * DAY_NS)}
MIN_CYCLES = 3
FINE = 1 << 30
"""Ticks in the mean step of irregular numeric time."""
_MONDAY_NS = 4 * DAY_NS  # 1970-01-05


@dataclass(frozen=True)
class Clock:
    """The time axis of one data set, as integer ticks: nanoseconds since 1970, or parts of `dt` since `origin`.

    freq: empty where times follow in equal steps; else a step of months (`sciml.data.rhythm`), or `IRREGULAR`. step:
    ticks between neighbours (1 for numeric time), their mean where they are unequal. dt, origin: in the axis's own unit
    (seconds for calendar time).
    """

    kind: Literal["calendar", "numeric"]
    step: int
    dt: float
    origin: float = 0.0
    unit: str = "s"
    freq: str = ""

    @classmethod
    def of(cls, time: np.ndarray, unit: str, *, where: object) -> Clock:
        """From ``(T,)`` datetime64 or numbers. Raises `InputError` unless ascending with one step."""
        if np.issubdtype(time.dtype, np.datetime64):
            months = rhythm.calendar(time)
            if months:
                step = round(rhythm.months(months) * PERIODS_NS["year"] / 12)
                return cls("calendar", step, step / 1e9, freq=months)
            gaps = np.diff(_nanoseconds(time))
            if len(gaps) == 0 or (gaps != gaps[0]).any() or gaps[0] <= 0:
                raise _not_uniform(where, gaps)
            return cls("calendar", int(gaps[0]), float(gaps[0]) / 1e9)
        gaps = np.diff(time.astype(np.float64))
        if len(gaps) == 0 or gaps[0] <= 0 or not np.allclose(gaps, gaps.mean(), rtol=1e-4):
            raise _not_uniform(where, gaps)
        return cls("numeric", 1, float(gaps.mean()), float(time[0]), unit)

    @classmethod
    def irregular(cls, pieces: Sequence[np.ndarray], unit: str, *, where: object) -> Clock:
        """Of stretches of ``(T,)`` times that follow no step, which then is the mean of those there are.

        Raises `InputError` where no stretch has two times.
        """
        count = sum(len(piece) - 1 for piece in pieces if len(piece))
        if count < 1:
            raise _not_uniform(where, np.zeros(0))
        if np.issubdtype(pieces[0].dtype, np.datetime64):
            step = max(1, round(sum(int(np.ptp(_nanoseconds(piece))) for piece in pieces if len(piece)) / count))
            return cls("calendar", step, step / 1e9, freq=IRREGULAR)
        dt = float(sum(np.ptp(piece) for piece in pieces if len(piece))) / count
        return cls("numeric", FINE, dt, float(next(piece[0] for piece in pieces if len(piece))), unit, IRREGULAR)

    @property
    def stepless(self) -> bool:
        return self.freq == IRREGULAR

    def ticks(self, time: np.ndarray, *, where: object) -> np.ndarray:
        """``(T,)`` int64 ticks of a sample's times. Raises `InputError` if they don't advance by this clock's step."""
        ticks = self.places(time, where=where)
        if not self.follow(ticks).all():
            gap = time[1] - time[0]
            raise InputError(where, key="time", found=f"steps of {gap} or uneven ones", expected=self.describe(),
                             fix="resample to that step, or fit the data set under its own name")
        return ticks

    def places(self, time: np.ndarray, *, where: object) -> np.ndarray:
        """`ticks`, in whatever order. Raises `InputError` on dates in place of numbers, or numbers of dates."""
        if np.issubdtype(time.dtype, np.datetime64) != (self.kind == "calendar"):
            raise InputError(where, key="time", found=str(time.dtype), expected=f"{self.kind} time, as fitted",
                             fix="give the time axis the type it had in the store")
        if self.kind == "calendar":
            return _nanoseconds(time)
        return np.rint((time.astype(np.float64) - self.origin) / self.dt * self.step).astype(np.int64)

    def follow(self, ticks: np.ndarray) -> np.ndarray:
        """``(T − 1,)`` bool: whether each of ``(T,)`` ticks is one step after the one before."""
        if self.stepless:
            return np.asarray(np.diff(ticks) > 0)
        if self.freq:
            return np.asarray(rhythm.later(ticks[:-1], self.freq, 1) == ticks[1:])
        return np.asarray(np.diff(ticks) == self.step)

    def later(self, ticks: np.ndarray, count: np.ndarray | int) -> np.ndarray:
        """Ticks `count` steps after these, broadcast. Raises `InputError` where there are no steps, and from a day that
        not every month has."""
        if self.stepless:
            raise InputError("time", key="steps", found="a data set whose times follow no step", expected="the times "
                             "that are asked for", fix="name them: predictor.forecast(frame, future=times)")
        if not self.freq:
            return np.asarray(ticks + self.step * count)
        odd = ~rhythm.follows(ticks, self.freq)
        if odd.any():
            raise InputError("time", found=str(self.times(np.asarray(ticks)[odd])[0]), expected=f"a day that every "
                             f"month has, counted in {self.describe()}", fix="give times as the data set has them")
        return rhythm.later(ticks, self.freq, count)

    def times(self, ticks: np.ndarray) -> np.ndarray:
        """The inverse of `places`: datetime64[ns] or float64."""
        if self.kind == "calendar":
            return ticks.astype("datetime64[ns]")
        return self.origin + (self.dt * ticks if self.step == 1 else self.dt * (ticks / self.step))

    def describe(self) -> str:
        if self.stepless:
            return "ascending times"
        return f"steps of {self.freq}" if self.freq else f"a uniform step of {self.dt:g} {self.unit}"

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "step": self.step, "dt": self.dt, "origin": self.origin, "unit": self.unit,
                "freq": self.freq}

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> Clock:
        return cls(config["kind"], int(config["step"]), float(config["dt"]), float(config["origin"]), config["unit"],
                   config.get("freq", ""))


def _nanoseconds(time: np.ndarray) -> np.ndarray:
    return time.astype("datetime64[ns]").astype(np.int64)


def _not_uniform(where: object, gaps: np.ndarray) -> InputError:
    found = f"{len(np.unique(gaps))} different steps, the smallest {gaps.min()}" if len(gaps) else "fewer than 2 times"
    return InputError(where, key="time", found=found, expected="ascending times with one uniform step",
                      fix="resample to a uniform step in the source file's options (irregular: fill), or take times as "
                      "they are (irregular: keep)")


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
