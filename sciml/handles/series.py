"""Forecasts of pandas frames: rows of known values in, rows of forecasts with quantiles out.

The shape that users of Chronos and neuralforecast know: `id`, `timestamp`, `target_name` where there are several,
`predictions`, and a column per quantile under its level ("0.1").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.frames import Table, tables_of_frame
from sciml.domains.series.calendar import PERIODS_NS, Clock, resolvable
from sciml.domains.series.known import Known
from sciml.errors import InputError
from sciml.handles._series import Histories, Made, Model, Progress, by_length, series_of, ticks_of
from sciml.handles._series import forecast as forecast_windows
from sciml.handles.series_intervals import Calibration
from sciml.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

WHERE = "frame"
ID, TIME, NAME, MEAN = "id", "timestamp", "target_name", "predictions"


def forecast(predictor: Predictor, frame: pd.DataFrame, *, horizon: int | None = None, quantiles: Sequence[float] = (),
             id_column: str = ID, timestamp_column: str = TIME, target: str | Sequence[str] | None = None,
             future: pd.DataFrame | Sequence[Any] | None = None, static: pd.DataFrame | None = None,
             calibration: Calibration | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """The `horizon` steps that follow every series of a frame: a row per series, target and step, in their order. Where
    times follow no step, the times of `future` instead: a frame with a row for each, or times asked of all series.

    frame: long, a row per series and time, or without `id_column` wide, one series; a long frame with one target whose
    series are the variates of the data set is taken as wide, all going on from the last time of any. Look-backs may be
    of any length. target: columns to forecast; unless given, all that are nothing else. future: rows of the times to
    come with the covariates known of them, columns that the frame has, too. static: a row per series. quantiles: levels
    in (0, 1); they come from the checkpoint's own head, else from the normal distribution of the ridge's residuals, and
    are widened by a `calibration`, if there is one. Where the checkpoint knows several data sets with these columns,
    ``frame.attrs["dataset"]`` says which; a data set it doesn't know it forecasts if it was trained without identities.

    Raises `InputError` that names row and column for times that repeat, go back or leave their step, for text among
    numbers, covariates that are missing, and columns that the checkpoint doesn't know.
    """
    levels = checked(1 if horizon is None else horizon, quantiles)
    named = id_column if id_column != ID or _has(frame, id_column) else None
    future = _in_zone(_rows_of_times(future, frame, named, timestamp_column), frame, timestamp_column)
    known = () if future is None else tuple(str(c) for c in future.columns if c not in (named, timestamp_column))
    table, ahead = tables_of_frame(frame, timestamp_column=timestamp_column, id_column=named, known=known, where=WHERE,
                                   targets=[target] if isinstance(target, str) else target, future=future,
                                   static=() if static is None else static,
                                   options={"irregular": "keep"} if stepless(predictor, frame) else None)
    model, table = model_of(predictor, table, frame.attrs.get("dataset"))
    made, ticks, asked = _asked(model, table, ahead, horizon, levels, progress)
    if calibration is not None:
        made = calibration.applied(made, levels, model.known.name, members_of(model, table))
    moments = model.known.clock.times(ticks)
    ids, names = _names(frame, table, named)
    rows = _rows({named or ID: ids, timestamp_column: _zoned(moments, frame, timestamp_column, table), NAME: names},
                 made, levels)
    beyond = np.arange(ticks.shape[1]) >= asked[:, None, None]
    return rows[~np.broadcast_to(beyond, made.mean.shape).reshape(-1)].reset_index(drop=True) if beyond.any() else rows


def checked(horizon: int, quantiles: Sequence[float]) -> tuple[float, ...]:
    """The levels, ascending. Raises `InputError` for a horizon below 1, and levels outside (0, 1) or twice."""
    levels = tuple(sorted(float(level) for level in quantiles))
    if horizon < 1:
        raise InputError(WHERE, key="horizon", found=horizon, expected="at least 1 step", fix="correct it")
    if len(set(levels)) < len(levels) or not all(0 < level < 1 for level in levels):
        raise InputError(WHERE, key="quantiles", found=", ".join(map(str, quantiles)),
                         expected="different levels between 0 and 1", fix="for example 0.1, 0.5, 0.9")
    return levels


def model_of(predictor: Predictor, table: Table, dataset: object = None) -> tuple[Model, Table]:
    """The data set whose variates a table's columns are, else the table's own, as a guest, else one with one variate
    for a table with one; and the table, its series as columns if those are the variates.

    Raises `InputError` if there is no such data set, or several.
    """
    adapter, targets = series_of(predictor), table.columns.targets
    known = {name: one.variates for name, one in adapter.datasets.items() if dataset in (None, name)}
    series = tuple(table.names) if len(targets) == 1 and table.columns.id is not None else ()
    wide = [name for name, variates in known.items() if set(targets) <= set(variates)]
    across = [name for name, variates in known.items() if len(variates) > 1 and series and set(series) <= set(variates)]
    if not (wide or across) and adapter.task.borrows and not adapter.config.inputs.identity and known:
        guest = _guest(table)
        return Model(predictor, adapter.introduced(guest), guest), table
    alone = [name for name, variates in known.items() if len(variates) == len(targets) == 1]
    found = wide or across or alone
    if len(found) != 1:
        sets = "; ".join(f"{name}: {', '.join(variates[:8])}" for name, variates in known.items())
        raise InputError(WHERE, key="columns", found=f"{', '.join(targets)[:120]} of {' and '.join(found) or 'none'}",
                         expected=f"variates of one of {sets}"[:300],
                         fix=f"set frame.attrs['dataset'] = {found[0]!r}, or another" if found else "rename the "
                         "columns, name the target, or fine-tune on a store of the data (sciml finetune)")
    model = Model(predictor, adapter, adapter.datasets[found[0]])
    return model, _across(table) if found is across else table


def _guest(table: Table) -> Known:
    """What a frame says of itself."""
    longest = int(np.argmax(table.count))
    clock = Clock.of(table.time[table.offset[longest]:table.offset[longest + 1]], "1", where=WHERE)
    ones = np.ones(len(table.columns.targets))
    return Known(WHERE, table.columns.targets, ("1",) * len(ones), np.stack([0 * ones, ones]), np.nan * ones, clock,
                 resolvable(clock, int(table.count[longest]), tuple(PERIODS_NS)))


def stepless(predictor: Predictor, frame: pd.DataFrame) -> bool:
    """Whether the data set that a frame names, or any that the checkpoint knows, has times that follow no step."""
    named = frame.attrs.get("dataset")
    return any(one.clock.stepless for name, one in series_of(predictor).datasets.items() if named in (None, name))


def _rows_of_times(future: Any, frame: pd.DataFrame, named: str | None, column: str) -> pd.DataFrame | None:
    """Times asked of all series as a row for each."""
    import pandas as pd

    if future is None or isinstance(future, pd.DataFrame):
        return future
    asked = pd.DataFrame({column: pd.Index(future)})
    if named is None:
        return asked
    ids = pd.unique(frame[named] if named in frame.columns else frame.index.get_level_values(named))
    return pd.DataFrame({named: ids}).merge(asked, how="cross")


def _in_zone(future: pd.DataFrame | None, frame: pd.DataFrame, column: str) -> pd.DataFrame | None:
    """Raises `InputError` for times to come without a zone, of a frame whose times have one: of which zone they are
    would be a guess."""
    import pandas as pd

    if future is None or column not in future.columns:
        return future
    zone = getattr(_times(frame, column).dtype, "tz", None)
    if zone is None or isinstance(future[column].dtype, pd.DatetimeTZDtype):
        return future
    bare = [time for time in future[column] if getattr(pd.Timestamp(time), "tzinfo", None) is None]
    if bare:
        raise InputError("future", key=f"column {column}", found=f"{bare[0]}, without a time zone",
                         expected=f"times with one, as those of the frame ({zone})",
                         fix=f"pd.DatetimeIndex(times).tz_localize({str(zone)!r})")
    return future


def _times(frame: pd.DataFrame, column: str) -> Any:
    return frame[column] if column in frame.columns else frame.index.get_level_values(-1)


def _asked(model: Model, table: Table, ahead: Table | None, horizon: int | None, levels: Sequence[float],
           progress: Progress | None) -> tuple[Made, np.ndarray, np.ndarray]:
    """Forecasts, their ticks ``(S, H)`` and how many ``(S,)`` of them are asked for. Raises `InputError` unless steps
    are asked for where there are some, and times where there are none."""
    clock = model.known.clock
    if clock.stepless:
        if horizon is not None or ahead is None:
            raise InputError(WHERE, key="horizon" if horizon is not None else "future", found=horizon or "none",
                             expected=f"times that are asked for: those of {model.known.name} follow no step",
                             fix="leave horizon out; future=[…] for all series, or a frame with a row for each time "
                             "(sciml forecast: --future FILE)")
        return forecast_times(model, table, ahead, levels, progress)
    if horizon is None:
        raise InputError(WHERE, key="horizon", found="none", expected="a number of steps", fix="for example horizon=24")
    made, last = forecast_table(model, table, horizon, levels, ahead=ahead, progress=progress)
    ticks = clock.later(last[:, None], np.arange(1, horizon + 1))
    return made, ticks, np.full(len(ticks), horizon)


def forecast_times(model: Model, table: Table, ahead: Table, levels: Sequence[float],
                   progress: Progress | None = None) -> tuple[Made, np.ndarray, np.ndarray]:
    """Of every series of a table at its times in `ahead`: forecasts, the ticks ``(S, H)`` of those times, and how many
    ``(S,)`` count. Series with as many rows and times go together."""
    if len(table.names) < len(ahead.names):
        ahead = _across(replace(ahead, value=np.zeros((len(ahead.time), 1))))
    _refuse_covariates(model, table, ahead, 0)
    members, width = members_of(model, table), int(ahead.count.max())
    past, later = (ticks_of(model.known, each.time, each.offset, WHERE) for each in (table, ahead))
    shape, used = (len(table.names), len(members), width), np.minimum(table.count, model.look_back)
    made = Made(np.full(shape, np.nan), np.full((*shape, len(levels)), np.nan))
    ticks, done = np.repeat(past[table.offset[1:] - 1][:, None], width, 1), 0
    for length, asked in np.unique(np.stack([used, ahead.count], 1), axis=0).tolist():
        rows = np.flatnonzero((used == length) & (ahead.count == asked))
        cells = table.offset[rows + 1][:, None] + np.arange(-length, 0)
        following = ahead.offset[rows][:, None] + np.arange(asked)
        ticks[rows, :asked] = later[following]
        covariates, static = _beside(model, table, ahead, cells, following, rows)
        given = Histories(table.value[cells].swapaxes(1, 2), past[cells[:, -1]], members, covariates, static,
                          np.concatenate([past[cells], later[following]], 1))
        part = forecast_windows(model, given, asked, levels)
        made.mean[rows, :, :asked], made.quantiles[rows, :, :asked] = part.mean, part.quantiles
        done += len(rows)
        if progress is not None:
            progress(done, len(table.names))
    return made, ticks, ahead.count


def _beside(model: Model, table: Table, ahead: Table | None, cells: np.ndarray, later: np.ndarray,
            rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Covariates ``(B, L + H, K)`` of these rows of a table and of what is ahead, constants ``(B, K)`` of series."""
    covariates, names = None, model.known.covariates.names
    if ahead is not None and names:
        known = np.concatenate([table.known[cells], ahead.known[later]], 1)
        covariates = known[..., [table.columns.known.index(name) for name in names]]
    order = [table.traits.index(name) for name in model.known.static.names]
    return covariates, table.static[rows][:, order] if order else None


def forecast_table(model: Model, table: Table, horizon: int, levels: Sequence[float], *, ahead: Table | None = None,
                   progress: Progress | None = None) -> tuple[Made, np.ndarray]:
    """Of every series of a table; and the ticks of their last rows. Series with as many rows go together."""
    _refuse_covariates(model, table, ahead, horizon)
    ticks, members = ticks_of(model.known, table.time, table.offset, WHERE), members_of(model, table)
    total, shape = len(table.names), (len(table.names), len(members), horizon)
    made = Made(np.empty(shape), np.empty((*shape, len(levels))))
    done = 0
    for length, rows in by_length(table.count, model.look_back):
        cells = table.offset[rows + 1][:, None] + np.arange(-length, 0)
        later = cells[:, -1:] if ahead is None else ahead.offset[rows][:, None] + np.arange(horizon)
        covariates, static = _beside(model, table, ahead, cells, later, rows)
        given = Histories(table.value[cells].swapaxes(1, 2), ticks[cells[:, -1]], members, covariates, static)

        def tick(count: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        part = forecast_windows(model, given, horizon, levels, tick)
        made.mean[rows], made.quantiles[rows] = part.mean, part.quantiles
        done += len(rows)
    return made, ticks[table.offset[1:] - 1]


def _refuse_covariates(model: Model, table: Table, ahead: Table | None, horizon: int) -> None:
    """Raises `InputError` unless covariates and constants are those of the data set, known as far as is asked."""
    for key, there, wanted in (("future", table.columns.known, model.known.covariates.names),
                               ("static", table.traits, model.known.static.names)):
        if set(there) != set(wanted):
            raise InputError(key, key="columns", found=", ".join(there) or "none",
                             expected=", ".join(wanted) or "none: the checkpoint was fitted without any",
                             fix="give all of them and no other")
    if ahead is not None and ahead.count.min() < horizon:
        short = int(np.argmin(ahead.count))
        raise InputError("future", key=f"series {ahead.names[short]}", found=f"{ahead.count[short]} rows",
                         expected=f"a row for each of {horizon} steps", fix="add rows, or forecast less far")
    bad = np.argwhere(~np.isfinite(table.known))
    if len(bad):
        raise InputError(WHERE, key=f"row {table.row[bad[0][0]] + 1}, column {table.columns.known[bad[0][1]]}",
                         found="no number", expected="covariates in every row", fix="fill it in")


def members_of(model: Model, table: Table) -> np.ndarray:
    """``(V,)`` places of a table's columns among the data set's variates."""
    targets = table.columns.targets
    if len(targets) == len(model.known.variates) == 1:
        return np.zeros(1, np.int64)
    return model.known.members(list(targets), where=WHERE)


def _across(table: Table) -> Table:
    """Series as columns of one, on all the times that any of them has."""
    times, place = np.unique(table.time, return_inverse=True)
    value = np.full((len(times), len(table.names)), np.nan)
    value[place, np.repeat(np.arange(len(table.names)), table.count)] = table.value[:, 0]
    columns = replace(table.columns, id=None, targets=tuple(map(str, table.names)))
    return replace(table, columns=columns, names=np.array(["0"]), count=np.array([len(times)]), time=times, value=value,
                   row=np.arange(len(times)), known=np.zeros((len(times), 0)), static=np.zeros((1, 0)), traits=())


def _has(frame: pd.DataFrame, column: str) -> bool:
    return column in frame.columns or column in frame.index.names


def _names(frame: pd.DataFrame, table: Table, named: str | None) -> tuple[Any, Any]:
    """Names of series ``(B, 1, 1)`` as the frame has them, and of targets ``(V, 1)``; None where there is one of them.
    Of a table whose series became columns, those are the series."""
    import pandas as pd

    targets = np.array(table.columns.targets, object)[:, None] if len(table.columns.targets) > 1 else None
    if named is None:
        return None, targets
    ids = np.asarray(pd.unique(frame[named] if named in frame.columns else frame.index.get_level_values(named)))
    return (ids[:, None], None) if table.columns.id is None else (ids[:, None, None], targets)


def _zoned(moments: np.ndarray, frame: pd.DataFrame, column: str, table: Table) -> Any:
    """Times ``(B, 1, H)`` in the frame's own time zone; of days as they are counted there."""
    import pandas as pd

    given = _times(frame, column)
    zone = getattr(given.dtype, "tz", None)
    if zone is None:
        return moments[:, None]
    index = pd.DatetimeIndex(moments.reshape(-1))
    local = pd.DatetimeIndex(given[:1]).tz_localize(None).to_numpy()[0]
    if local == table.time[int(np.argmin(table.row))]:
        index = index.tz_localize(zone, ambiguous=np.ones(len(index), bool), nonexistent="shift_forward")
    else:
        index = index.tz_localize("UTC").tz_convert(zone)
    return np.asarray(index.astype(object)).reshape(moments.shape)[:, None]


def _rows(columns: dict[str, Any], made: Made, levels: Sequence[float]) -> pd.DataFrame:
    import pandas as pd

    shape = made.mean.shape
    data: dict[str, Any] = {name: np.broadcast_to(values, shape).reshape(-1) for name, values in columns.items()
                            if values is not None}
    data[MEAN] = made.mean.reshape(-1)
    data |= {f"{level:g}": made.quantiles[..., i].reshape(-1) for i, level in enumerate(levels)}
    return pd.DataFrame(data)
