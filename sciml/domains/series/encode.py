"""From a window of standardised values to a `TokenBatch`: the same path for samples and for the steps of a rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.domains.series.baseline import observed_mean
from sciml.domains.series.calendar import features
from sciml.domains.series.config import InputConfig
from sciml.domains.series.known import Known, Numbers
from sciml.domains.series.layout import CONSTANT, COVARIATE, KNOWN_AHEAD, STATIC
from sciml.errors import InputError
from sciml.tokens import Axis, Conditions, Target, TokenBatch, identity, time

CHANNEL = "series/value"
HEAD = "value"
LEAST_SPREAD = 0.05
"""Of a look-back, in standardised units."""
VECTOR_CONDITIONS = ("log_step", "log_horizon")
GAP = "gap"
LONGEST_GAP = 8.0
"""In units of log(1 + gap): of what the operator is told, about three thousand steps."""


@dataclass(frozen=True)
class Frame:
    """What is common to all data sets: the reference look-back (steps) and step (s), calendar periods, names of
    covariates and constants, options; whether there is one whose times follow no step."""

    look_back: int
    dt: float
    calendar: tuple[str, ...]
    covariates: tuple[str, ...]
    static: tuple[str, ...]
    inputs: InputConfig
    irregular: bool = False

    @property
    def lattice_conditions(self) -> tuple[str, ...]:
        names = [f"{function}_{period}" for period in self.calendar for function in ("sin", "cos")]
        return (*names, *(f"{COVARIATE}/{n}" for n in self.covariates), *(("level",) if self.inputs.level else ()),
                *((GAP,) if self.irregular else ()))

    @property
    def vector_conditions(self) -> tuple[str, ...]:
        return (*VECTOR_CONDITIONS, *(f"{STATIC}/{n}" for n in self.static))


@dataclass(frozen=True)
class Window:
    """Standardised values of equal stretches of time, of which some cells are given and others may be asked for.

    values: ``(B, V, T)``, 0 where not known; known, given: bool, likewise. past: the cells up to now, whose time is 0
    and after which the horizon begins. ticks: ``(B, T)`` int64. members: ``(V,)`` places among the data set's variates.
    covariates: ``(B, T, K)`` and static: ``(B, K)``, scaled, in the data set's order. inside: ``(B, T)`` False where
    the series had not begun, or None.
    """

    values: Tensor
    known: Tensor
    given: Tensor
    past: int
    ticks: np.ndarray
    members: np.ndarray
    sources: tuple[str, ...]
    covariates: Tensor | None = None
    static: Tensor | None = None
    inside: Tensor | None = None

    @property
    def horizon(self) -> int:
        return int(self.ticks.shape[1]) - self.past


@dataclass(frozen=True)
class Plain:
    """A batch without targets, and how to come back from its values: standardised = course + level + spread · value.
    """

    batch: TokenBatch
    course: Tensor
    level: Tensor
    spread: Tensor = field(default_factory=lambda: torch.ones(1, 1, 1))


def window_of(known: Known, sample: xr.Dataset, past: int, length: int) -> Window:
    """A sample's values and times as a window of `length` cells, `past` of them up to now; cells of the look-back that
    are finite are given. Raises `InputError` on other variates, another time step, covariates that are missing, and
    where times follow no step on times asked for that the sample doesn't hold.
    """
    where = sample.attrs.get("source", "sample")
    array = sample.get(HEAD)
    if array is None or array.dims != ("time", "variate"):
        raise InputError(where, key=HEAD, found="none" if array is None else str(array.dims),
                         expected="a variable value (time, variate)", fix="name the variable and its dimensions so")
    if past > array.sizes["time"]:
        raise InputError(where, key="look_back", found=f"{past} steps of a series of {array.sizes['time']}",
                         expected="no more than there are", fix="give more of the past, or a shorter look_back")
    members = known.members([str(v) for v in sample["variate"].values], where=where)
    seen = known.clock.ticks(sample["time"].values[:length], where=where)
    ticks = np.concatenate([seen[:past], _asked_at(known, seen[past - 1:], length - past, where)])
    scaled = ((array.values[:length] - known.mean[members]) / known.std[members]).T
    values = torch.full((1, len(members), length), torch.nan)
    values[0, :, :scaled.shape[1]] = torch.from_numpy(np.asarray(scaled, np.float32))
    finite = values.isfinite()
    given = finite & (torch.arange(length) < past)
    return Window(torch.where(finite, values, 0.0), finite, given, past, ticks[None], members, (str(where),),
                  _covariates(known.covariates, sample, length, where), _static(known.static, sample, where))


def _asked_at(known: Known, seen: np.ndarray, horizon: int, where: object) -> np.ndarray:
    """``(horizon,)`` ticks after the first of those seen: the next steps; where there are none, the sample's own."""
    if not known.clock.stepless:
        return known.clock.later(seen[0], np.arange(1, horizon + 1))
    if len(seen) <= horizon:
        raise InputError(where, key="time", found=f"{len(seen) - 1} times after the look-back", expected=f"{horizon}, "
                         "those that are asked for: times follow no step", fix="append them, with NaN for values")
    return seen[1:horizon + 1]


def _covariates(numbers: Numbers, sample: xr.Dataset, length: int, where: object) -> Tensor | None:
    if not numbers.names:
        return None
    there = [str(name) for name in sample[COVARIATE].values] if KNOWN_AHEAD in sample else []
    absent = [name for name in numbers.names if name not in there]
    if absent:
        raise InputError(where, key=COVARIATE, found=f"no {', '.join(absent)}", expected=", ".join(numbers.names),
                         fix="give every covariate that the checkpoint was trained with, for the horizon too")
    values = sample[KNOWN_AHEAD].sel({COVARIATE: list(numbers.names)}).transpose("time", COVARIATE).values[:length]
    bad = np.argwhere(~np.isfinite(values))
    if len(values) < length or len(bad):
        row, column = (len(values), 0) if len(values) < length else (int(i) for i in bad[0])
        raise InputError(where, key=f"{COVARIATE} {numbers.names[column]}", expected="numbers up to the horizon",
                         found=f"no number at step {row} of {length}", fix="fill them, or forecast less far")
    return torch.from_numpy(numbers.scaled(values))[None]


def _static(numbers: Numbers, sample: xr.Dataset, where: object) -> Tensor | None:
    if not numbers.names:
        return None
    there = sample[CONSTANT].reindex({STATIC: list(numbers.names)}).values if CONSTANT in sample else np.array([np.nan])
    values = np.asarray(there, float)
    if not np.isfinite(values).all():
        raise InputError(where, key=STATIC, found="missing or not finite", expected=", ".join(numbers.names),
                         fix="give every constant that the checkpoint was trained with")
    return torch.from_numpy(numbers.scaled(values))[None]


def plain_batch(known: Known, frame: Frame, window: Window, course: Tensor | None = None, *,
                centred: bool = True) -> Plain:
    """Given cells without course and, if `centred`, level (over their spread, where the recipe says so), all others
    unobserved."""
    course = window.values.new_zeros(1, 1, 1) if course is None else course.to(window.values)
    history = window.values - course
    level = observed_mean(history, window.given) * centred
    inputs = torch.where(window.given, history - level, 0.0)
    spread = inputs.new_ones(1, 1, 1)
    if frame.inputs.spread:
        spread = _spread(inputs, window.given)
        inputs = inputs / spread
    return Plain(TokenBatch(
        domain="series", dataset=known.name, values=inputs[..., None], channels=(CHANNEL,),
        axes=_axes(known, frame, window), observed=window.given[..., None],
        conditions=_conditions(known, frame, window, level), num_segments=len(inputs), sources=window.sources),
        course, level, spread)


def _axes(known: Known, frame: Frame, window: Window) -> tuple[Axis, Axis]:
    like, when = window.values, _when(known, frame, window)
    if window.inside is not None:
        when = replace(when, measure=window.inside.to(like) / window.inside.sum(-1, keepdim=True).clamp_min(1))
    who = identity("variate", torch.from_numpy(window.members).to(like.device), f"{known.name}/variate")
    return who if frame.inputs.identity else replace(who, namespace=None), when


def _when(known: Known, frame: Frame, window: Window) -> Axis:
    """Time in steps since now over the reference look-back; of each sample its own where times follow no step."""
    like = window.values
    if known.clock.stepless:
        place = torch.from_numpy(places(window, known.clock.step) / frame.look_back).to(like)
        axis = replace(time("time", place[0], unit="step"), coord=place[..., None])
    else:
        now = window.past - 1
        coord = (torch.arange(like.shape[-1], dtype=like.dtype, device=like.device) - now) / frame.look_back
        axis = time("time", coord, unit="step")
    return replace(axis, ids=torch.from_numpy(window.ticks).to(like.device))


def places(window: Window, step: int) -> np.ndarray:
    """``(B, T)`` float64 steps since now, the last cell of the past."""
    return np.asarray((window.ticks - window.ticks[:, window.past - 1:window.past]) / step)


def _spread(inputs: Tensor, observed: Tensor) -> Tensor:
    """``(B, V, 1)`` standard deviation of the observed cells, at least 5 % of the training one."""
    count = observed.sum(-1, keepdim=True).clamp_min(1)
    variance = inputs.square().sum(-1, keepdim=True) / count
    return variance.clamp_min(LEAST_SPREAD**2).sqrt()


def lattice_target(window: Window, asked: Tensor, baseline: Tensor, scale: Tensor) -> Target:
    """Of the head `value`; all ``(B, V or 1, T)``. What isn't asked for, or not known, doesn't count."""
    mask = asked & window.known
    return Target(value=torch.where(window.given | mask, window.values, 0.0)[..., None], mask=mask[..., None],
                  baseline=baseline[..., None], scale=scale[..., None])


def _conditions(known: Known, frame: Frame, window: Window, level: Tensor) -> Conditions:
    lattice: dict[str, Tensor] = {}
    for period in frame.calendar:
        if period in known.calendar:
            pair: Sequence[np.ndarray] = features(window.ticks, period)
        else:
            pair = [np.zeros(window.ticks.shape, np.float32)] * 2
        for function, values in zip(("sin", "cos"), pair):
            lattice[f"{function}_{period}"] = torch.from_numpy(values).to(level)[:, None]
    lattice |= {f"{COVARIATE}/{name}": value[:, None] for name, value in _by_name(
        frame.covariates, known.covariates, window.covariates, level.new_zeros(window.ticks.shape)).items()}
    if frame.inputs.level:
        lattice["level"] = level
    ahead: Tensor | float = math.log(max(window.horizon, 1) / frame.look_back)
    if known.clock.stepless:
        last = places(window, known.clock.step)[:, -1].clip(1)
        ahead = torch.from_numpy(np.log(last / frame.look_back)).to(level)
    if frame.irregular:
        lattice[GAP] = _gaps(known, window).to(level)[:, None]
    vector = {"log_step": math.log(known.clock.dt / frame.dt),
              "log_horizon": ahead}
    static = _by_name(frame.static, known.static, window.static, level.new_zeros(len(level)))
    return Conditions(vector={n: level.new_zeros(len(level)) + v for n, v in vector.items()} | {
        f"{STATIC}/{name}": value for name, value in static.items()}, lattice=lattice)


def _gaps(known: Known, window: Window) -> Tensor:
    """``(B, T)`` log of one and the steps since the cell before, less log 2: 0 after one step. With them and the mean
    time of a patch the time of its every cell is known."""
    gaps = np.diff(window.ticks, axis=1, prepend=window.ticks[:, :1] - known.clock.step) / known.clock.step
    return torch.from_numpy(np.log1p(gaps).clip(0, LONGEST_GAP) - math.log(2))


def _by_name(names: Sequence[str], numbers: Numbers, values: Tensor | None, zeros: Tensor) -> Mapping[str, Tensor]:
    """``(…, K)`` values by name; zeros for what this data set doesn't have."""
    return {name: zeros if values is None or name not in numbers.names
            else values[..., numbers.names.index(name)].to(zeros) for name in names}


def ticks_of(batch: TokenBatch) -> np.ndarray:
    """``(B, T)``."""
    ids = batch.axes[1].ids
    assert ids is not None
    return ids.expand(batch.num_segments, -1).cpu().numpy()


def members_of(batch: TokenBatch) -> np.ndarray:
    """``(V,)`` places among the variates of the data set."""
    ids = batch.axes[0].ids
    assert ids is not None
    return ids[0].cpu().numpy()


def past_of(batch: TokenBatch) -> int:
    """Cells up to and with now, whose coordinate is 0."""
    return int((batch.axes[1].coord[0, :, 0] <= 0).sum())


def physical(known: Known, batch: TokenBatch, values: Mapping[str, Tensor], ticks: np.ndarray,
             known_cells: Tensor | None = None) -> xr.Dataset:
    """Standardised ``(B, V, T)`` or ``(B, V, T, quantile)`` values by name as ``(sample, time, variate, …)`` in the
    variates' units at ``valid_time (sample, time)``; ``known``: where there is a truth."""
    members = members_of(batch)
    std, mean = (x[members][None, None, :] for x in (known.std, known.mean))
    data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name, value in values.items():
        array = value.detach().cpu().double().numpy().swapaxes(1, 2)
        more = array.ndim - 3
        data[name] = (("sample", "time", "variate", "quantile")[:3 + more],
                      array * std.reshape(*std.shape, *[1] * more) + mean.reshape(*mean.shape, *[1] * more))
    if known_cells is not None:
        data["known"] = (("sample", "time", "variate"), known_cells.cpu().numpy().swapaxes(1, 2))
    times = known.clock.times(np.broadcast_to(ticks, (batch.num_segments, ticks.shape[1])))
    return xr.Dataset(data, coords={
        "valid_time": (("sample", "time"), times), "variate": [known.variates[i] for i in members],
        "variate_unit": ("variate", [known.units[i] for i in members]),
        "source": ("sample", list(batch.sources))}, attrs={"domain": "series", "dataset": known.name})
