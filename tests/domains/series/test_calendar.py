"""Time as the calendar sees it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sciml.domains.series import calendar


def test_phases_agree_with_pandas() -> None:
    when = pd.date_range("2019-12-30 03:00", periods=3000, freq="7h")
    ticks = when.to_numpy().astype("datetime64[ns]").astype(np.int64)
    np.testing.assert_allclose(calendar.phase(ticks, "day") * 24, when.hour, atol=1e-9)
    np.testing.assert_allclose(calendar.phase(ticks, "week") * 7, when.day_of_week + when.hour / 24, atol=1e-9)
    days = np.where(when.is_leap_year, 366, 365)
    np.testing.assert_allclose(calendar.phase(ticks, "year") * days, when.day_of_year - 1 + when.hour / 24, atol=1e-9)


def test_numeric_time_has_no_calendar() -> None:
    clock = calendar.Clock.of(5.0 + 0.25 * np.arange(10), "s", where="lab.csv")
    ticks = clock.ticks(5.0 + 0.25 * np.arange(3, 6), where="lab.csv")
    assert ticks.tolist() == [3, 4, 5]
    np.testing.assert_allclose(clock.times(ticks), [5.75, 6.0, 6.25])
    assert calendar.resolvable(clock, 10**6, ("day",)) == ()
    assert calendar.Clock.restore(clock.state()) == clock
