"""Rolling-origin backtests: a checkpoint's forecasts of times that are known, beside floors that cost nothing."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from sciml import metrics
from sciml.data.frames import Table, tables_of_frame
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.series.calendar import PERIODS_NS
from sciml.domains.series.conformal import Adaptive, Split, follow, outside, widened
from sciml.errors import InputError
from sciml.handles._series import Histories, Made, Model, Progress, Windows, forecast, ticks_of
from sciml.handles.series import ID, MEAN, NAME, TIME, WHERE, checked, members_of, model_of
from sciml.handles.series_intervals import model_of_store, pairs, windows_of
from sciml.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

OURS, RIDGE, NAIVE, ETS, SPLIT, ADAPTIVE = ("sciml", "ridge", "seasonal_naive", "auto_ets", "split_conformal",
                                           "adaptive_conformal")
MODEL, CUTOFF, TRUTH = "model", "cutoff", "truth"
ETS_CELLS = 480
"""Of a history that AutoETS is fitted to, at most; of a store that has so many before an origin, at least, too."""


def backtest(predictor: Predictor, data: Store | pd.DataFrame, *, horizon: int | None = None,
             stride: int | None = None, windows: int | None = None, quantiles: Sequence[float] = (),
             split: SplitName = "test", ets: bool = False, id_column: str = ID, timestamp_column: str = TIME,
             target: str | Sequence[str] | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """Forecasts of `horizon` steps (None: the shortest fitted) from the last `windows` origins (None: all), `stride`
    steps apart (None: the horizon), of a store's split or of every series of a frame, which is as
    `sciml.handles.series.forecast` takes it.

    A row per model, series, origin, target and step: `model`, `id`, `cutoff` (the last time that was known),
    `timestamp`, `target_name`, `truth`, `predictions` and the quantiles. Models: `sciml`; its floors, the `ridge`
    without operator and cycle, `seasonal_naive`, and with `ets` AutoETS by statsforecast; with quantiles of a store,
    `split_conformal` and `adaptive_conformal`: those of `sciml` moved by how they missed on validation, and then, as
    truths became known, on the origins before. ``attrs["scale"]``: the standard deviation of every target as fitted.

    Raises `InputError` as `forecast`, and where there is no room for a window.
    """
    levels, cells = checked(1 if horizon is None else horizon, quantiles), ETS_CELLS if ets else 0
    if isinstance(data, Store):
        model = model_of_store(predictor, data)
        horizon = horizon or model.horizons[0]
        stride = stride or horizon
        asked = _of_store(model, data, split, horizon, stride, windows, cells)
    else:
        named = id_column if id_column != ID or id_column in data.columns else None
        table, _ = tables_of_frame(data, timestamp_column=timestamp_column, id_column=named, where=WHERE,
                                   targets=[target] if isinstance(target, str) else target)
        model, table = model_of(predictor, table, data.attrs.get("dataset"))
        horizon = horizon or model.horizons[0]
        stride = stride or horizon
        asked = _of_table(model, table, horizon, stride, windows, cells)
    season, made = season_of(model), {}
    made[OURS] = _all(model, asked, horizon, levels, progress)
    if isinstance(data, Store) and any(level != 0.5 for level in levels):
        made |= _conformal(model, data, asked, made[OURS], levels, stride)
    made[RIDGE] = _all(model.floor, asked, horizon, levels, None)
    made[NAIVE] = _joined([_naive(part.given, horizon, season, levels) for part in asked])
    if ets:
        made[ETS] = _joined([_ets(part.given, horizon, season, levels) for part in asked])
    return _frame(model, asked, made, levels, horizon)


def season_of(model: Model) -> int:
    """Steps of the shortest period of the calendar that the data set covers, else 1."""
    known = model.known
    return max(1, round(PERIODS_NS[known.calendar[0]] / known.clock.step)) if known.calendar else 1


def scores(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per model of a backtest: mse and mae in standard deviations of the target, the weighted quantile loss, and
    of the outermost interval coverage and mean width; mean over all windows, targets and steps whose truth is known."""
    levels = [c for c in frame.columns if c not in (MODEL, ID, CUTOFF, TIME, NAME, TRUTH, MEAN)]
    rows: list[dict[str, Any]] = []
    for name, part in frame.groupby(MODEL, sort=False):
        scale = part[NAME].map(frame.attrs["scale"]).to_numpy(np.float64)
        truth, mean = (part[c].to_numpy(np.float64) / scale for c in (TRUTH, MEAN))
        row = {MODEL: name, "mse": metrics.mse(mean, truth, keep=0), "mae": metrics.mae(mean, truth, keep=0)}
        if levels:
            q = part[levels].to_numpy(np.float64) / scale[:, None]
            ends = q[:, 0], q[:, -1], truth
            row |= {"wql": metrics.weighted_quantile_loss(q, truth, [float(level) for level in levels], keep=0),
                    "coverage": metrics.coverage(*ends, keep=0), "width": metrics.interval_width(*ends, keep=0)}
        rows.append({key: value if key == MODEL else float(value) for key, value in row.items()})
    return rows


def _of_store(model: Model, store: Store, split: SplitName, horizon: int, stride: int, windows: int | None,
              cells: int) -> list[Windows]:
    """cells: of history that AutoETS asks for; where no block has as many, what lies before all of them is enough."""
    blocks = store.meta.splits.of(split)
    if all(block.stop - horizon < cells for block in blocks):
        cells = min((block.start for block in blocks), default=0)
    whole = windows_of(model, store, split, horizon, stride=stride, before=max(2 * season_of(model), cells))
    runs = np.split(np.arange(len(whole.truth)), np.flatnonzero(np.diff(whole.given.last) <= 0) + 1)
    return [whole.rows(run[-windows:] if windows else run) for run in runs]


def _of_table(model: Model, table: Table, horizon: int, stride: int, windows: int | None, cells: int) -> list[Windows]:
    """Of every series with room for one; those before whose first origin equally much is known are together."""
    ticks, members = ticks_of(model.known, table.time, table.offset, WHERE), members_of(model, table)
    wanted = max(2 * season_of(model), cells, model.look_back)
    if model.known.covariates.names or model.known.static.names:
        raise InputError(WHERE, key="covariates", found="a frame", expected="a store: the checkpoint was fitted with "
                         "covariates", fix="build a store of the data and backtest on it (sciml data build)")
    least, found = season_of(model), []
    for i, (start, stop) in enumerate(zip(table.offset[:-1], table.offset[1:])):
        now = np.arange(stop - horizon, start + least - 1, -stride)[:windows][::-1]
        if not len(now):
            continue
        length = int(min(now[0] - start, wanted))
        past, later = now[:, None] + np.arange(-length, 0), now[:, None] + np.arange(horizon)
        given = Histories(table.value[past].swapaxes(1, 2), ticks[now - 1], members)
        found.append(Windows(given, table.value[later].swapaxes(1, 2), np.full(len(now), table.names[i])))
    if not found:
        raise InputError(WHERE, key="rows", found=f"series of at most {table.count.max()} rows",
                         expected=f"at least {least + horizon}", fix="ask for a shorter horizon, or give longer series")
    return found


def _all(model: Model, asked: Sequence[Windows], horizon: int, levels: Sequence[float],
         progress: Progress | None) -> Made:
    """Of all windows, those with as long a history together."""
    lengths = np.concatenate([np.full(len(part.truth), part.given.values.shape[2]) for part in asked])
    total, places = len(lengths), np.cumsum([0, *(len(part.truth) for part in asked)])
    shape, done = asked[0].truth.shape[1:], 0
    made = Made(np.empty((total, *shape)), np.empty((total, *shape, len(levels))))
    for length in np.unique(lengths):
        chosen = [i for i, part in enumerate(asked) if part.given.values.shape[2] == length]
        rows = np.concatenate([np.arange(places[i], places[i + 1]) for i in chosen])
        given = _together([asked[i].given for i in chosen])

        def tick(count: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        part = forecast(model, given, horizon, levels, tick)
        made.mean[rows], made.quantiles[rows] = part.mean, part.quantiles
        done += len(rows)
    return made


def _together(parts: Sequence[Histories]) -> Histories:
    def joined(name: str) -> Any:
        return None if getattr(parts[0], name) is None else np.concatenate([getattr(part, name) for part in parts])
    return Histories(joined("values"), joined("last"), parts[0].members, joined("covariates"), joined("static"))


def _conformal(model: Model, store: Store, asked: Sequence[Windows], made: Made, levels: Sequence[float],
               stride: int) -> dict[str, Made]:
    """Our quantiles moved by margins: of validation, and adaptive, from there on along every series."""
    horizon = made.mean.shape[-1]
    before = windows_of(model, store, "validation", horizon, stride=stride)
    seen = forecast(model, before.given, horizon, levels)
    fixed, moving = made.quantiles.copy(), made.quantiles.copy()
    for low, high, cover in pairs(levels):
        past = outside(seen.quantiles[..., low], seen.quantiles[..., high], before.truth).swapaxes(1, 2)
        ends, start = (made.quantiles[..., low], made.quantiles[..., high]), 0
        fixed[..., low], fixed[..., high] = widened(*ends, Split.of(past).margin(cover).T)
        for part in asked:
            rows = slice(start, start + len(part.truth))
            now = outside(ends[0][rows], ends[1][rows], part.truth).swapaxes(1, 2)
            margin = follow(Adaptive.of(past, cover), now, stride=stride)[0].swapaxes(1, 2)
            moving[rows, ..., low], moving[rows, ..., high] = widened(ends[0][rows], ends[1][rows], margin)
            start = rows.stop
    return {SPLIT: replace(made, quantiles=np.sort(fixed, -1)), ADAPTIVE: replace(made, quantiles=np.sort(moving, -1))}


def _naive(given: Histories, horizon: int, season: int, levels: Sequence[float]) -> Made:
    """The last known value a whole number of seasons before; quantiles of normal errors that add up season by season,
    σ √(⌊(h − 1)/s⌋ + 1), σ of the history. Source: Hyndman & Athanasopoulos, Forecasting, 3rd ed., §5.2 and §5.5."""
    values = given.values
    cycles = values.shape[-1] // season
    folded = values[..., values.shape[-1] - cycles * season:].reshape(*values.shape[:2], cycles, season)
    place = np.where(np.isfinite(folded), np.arange(cycles)[:, None], -1).max(2)
    last = np.take_along_axis(folded, np.maximum(place, 0)[:, :, None], 2)[:, :, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means of nothing
        last = np.where(place >= 0, last, np.nanmean(values, -1, keepdims=True))
        spread = np.sqrt(np.nanmean(np.diff(folded, axis=2) ** 2, (2, 3)))[..., None]
    steps = np.arange(horizon)
    mean = last[..., steps % season]
    off = np.sqrt(steps // season + 1) * spread
    return Made(mean, mean[..., None] + off[..., None] * ndtri(np.asarray(levels, np.float64)))


def _ets(given: Histories, horizon: int, season: int, levels: Sequence[float]) -> Made:
    """AutoETS of the last `ETS_CELLS` cells of every history, gaps filled linearly; seasons up to 24 steps, as its
    authors have it. Raises `InputError` without statsforecast."""
    try:
        ets = importlib.import_module("statsforecast.models").AutoETS
    except ImportError:
        raise InputError("command line", key="--ets", found="no statsforecast", expected="the package",
                         fix="pip install statsforecast, or leave AutoETS out") from None
    shape = (*given.values.shape[:2], horizon)
    made = Made(np.empty(shape), np.empty((*shape, len(levels))))
    widths = sorted({round(100 * abs(1 - 2 * level), 6) for level in levels} - {0.0})
    for place in np.ndindex(shape[:2]):
        history = given.values[place][-ETS_CELLS:]
        there = np.isfinite(history)
        if not there.any():
            made.mean[place], made.quantiles[place] = np.nan, np.nan
            continue
        filled = np.interp(np.arange(len(history)), np.flatnonzero(there), history[there])
        fitted = ets(season_length=season if season <= 24 else 1).forecast(filled, horizon, level=widths or None)
        made.mean[place] = fitted["mean"]
        for i, level in enumerate(levels):
            width = round(100 * abs(1 - 2 * level), 6)
            key = "mean" if width == 0 else f"{'lo' if level < 0.5 else 'hi'}-{width}"
            made.quantiles[place][:, i] = fitted[key]
    return made


def _joined(parts: Sequence[Made]) -> Made:
    return Made(np.concatenate([part.mean for part in parts]), np.concatenate([part.quantiles for part in parts]))


def _frame(model: Model, asked: Sequence[Windows], made: dict[str, Made], levels: Sequence[float],
           horizon: int) -> pd.DataFrame:
    import pandas as pd

    known, members = model.known, asked[0].given.members
    last = np.concatenate([part.given.last for part in asked])[:, None, None]
    truth = np.concatenate([part.truth for part in asked])
    ids = np.concatenate([np.asarray(part.ids, object) for part in asked])
    names = np.array([known.variates[i] for i in members], object)
    shared = {ID: ids[:, None, None], CUTOFF: known.clock.times(last), NAME: names[:, None], TRUTH: truth,
              TIME: known.clock.times(known.clock.later(last, np.arange(1, horizon + 1)))}
    columns = {name: np.broadcast_to(values, truth.shape).reshape(-1) for name, values in shared.items()}
    parts = [pd.DataFrame({MODEL: name, **{c: columns[c] for c in (ID, CUTOFF, TIME, NAME, TRUTH)},
                           MEAN: one.mean.reshape(-1),
                           **{f"{level:g}": one.quantiles[..., i].reshape(-1) for i, level in enumerate(levels)}})
             for name, one in made.items()]
    frame = pd.concat(parts, ignore_index=True)
    scale = known.std[members] if not model.guest else np.nanstd(truth, axis=(0, 2))
    frame.attrs["scale"] = {str(name): float(one) for name, one in zip(names, scale)}
    return frame
