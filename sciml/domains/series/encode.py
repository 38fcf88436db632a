"""From a window of standardised values to a `TokenBatch`: the same path for samples and for the steps of a rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.domains.series.baseline import observed_mean
from sciml.domains.series.calendar import features
from sciml.domains.series.fitted import Fitted
from sciml.errors import InputError
from sciml.tokens import Conditions, Target, TokenBatch, identity, time

CHANNEL = "series/value"
HEAD = "value"
LEAST_SPREAD = 0.05


@dataclass(frozen=True)
class Frame:
    """What is common to all data sets: the reference look-back (steps) and step (s), calendar periods, options."""

    look_back: int
    dt: float
    calendar: tuple[str, ...]
    spread: bool
    level: bool

    @property
    def lattice_conditions(self) -> tuple[str, ...]:
        names = tuple(f"{function}_{period}" for period in self.calendar for function in ("sin", "cos"))
        return (*names, "level") if self.level else names


VECTOR_CONDITIONS = ("log_step", "log_horizon")


@dataclass(frozen=True)
class Window:
    """Look-backs and horizons of standardised values: history, observed ``(B, V, L)``; ticks ``(B, L + H)`` int64;
    members ``(V,)`` places among the data set's variates; truth ``(B, V, H)``, NaN where it is unknown, or None."""

    history: Tensor
    observed: Tensor
    ticks: np.ndarray
    members: np.ndarray
    truth: Tensor | None
    sources: tuple[str, ...]

    @property
    def horizon(self) -> int:
        return int(self.ticks.shape[1]) - int(self.history.shape[-1])


def window_of(fit: Fitted, sample: xr.Dataset, look_back: int, horizon: int) -> Window:
    """A sample's values and times as a window. Raises `InputError` on other variates or another time step."""
    where = sample.attrs.get("source", "sample")
    array = sample.get(HEAD)
    if array is None or array.dims != ("time", "variate"):
        raise InputError(where, key=HEAD, found="none" if array is None else str(array.dims),
                         expected="a variable value (time, variate)", fix="name the variable and its dimensions so")
    members = fit.members([str(v) for v in sample["variate"].values], where=where)
    known = fit.clock.ticks(sample["time"].values, where=where)
    last = known[look_back - 1]
    ticks = np.concatenate([known[:look_back], last + fit.clock.step * np.arange(1, horizon + 1)])
    scaled = ((array.values - fit.mean[members]) / fit.std[members]).T
    values = torch.from_numpy(np.array(scaled[None], dtype=np.float32))
    history, truth = values[..., :look_back], values[..., look_back:look_back + horizon]
    observed = history.isfinite()
    return Window(torch.where(observed, history, 0.0), observed, ticks[None], members,
                  truth if truth.shape[-1] == horizon else None, (str(where),))


def encode_window(fit: Fitted, frame: Frame, window: Window) -> TokenBatch:
    """Look-back cells without cycle and mean, horizon cells unobserved, the ridge's forecast in the target.

    Link space is the standardised unit: the target's value and baseline keep cycle and mean.
    """
    num_samples, num_variates, look_back = window.history.shape
    horizon, dtype = window.horizon, window.history.dtype
    if horizon > fit.ridge.horizon or look_back > fit.look_back:
        raise InputError(window.sources[0], key="window", found=f"look-back {look_back}, horizon {horizon}",
                         expected=f"at most {fit.look_back} and {fit.ridge.horizon}, as fitted",
                         fix="roll out in several steps, or fit with longer horizons")
    course = fit.course(window.ticks, window.members).to(window.history)
    history = window.history - course[..., :look_back]
    level = observed_mean(history, window.observed)
    inputs = torch.where(window.observed, history - level, 0.0)
    forecast = fit.ridge.forecast(history, window.observed, horizon) + course[..., look_back:]
    scale = fit.ridge.scale(look_back, horizon).to(window.history)[None, None].expand(num_samples, 1, -1)
    if frame.spread:
        spread = _spread(inputs, window.observed)
        inputs, scale = inputs / spread, scale * spread
    future = inputs.new_zeros((num_samples, num_variates, horizon))
    coord = (torch.arange(look_back + horizon, dtype=dtype, device=inputs.device) - (look_back - 1)) / frame.look_back
    when = replace(time("time", coord, unit="step"), ids=torch.from_numpy(window.ticks).to(inputs.device))
    members = torch.from_numpy(window.members).to(inputs.device)
    return TokenBatch(
        domain="series", dataset=fit.name, values=torch.cat([inputs, future], -1)[..., None], channels=(CHANNEL,),
        axes=(identity("variate", members, f"{fit.name}/variate"), when),
        observed=torch.cat([window.observed, torch.zeros_like(future, dtype=torch.bool)], -1)[..., None],
        conditions=_conditions(fit, frame, window, level),
        targets={HEAD: _target(window, forecast, scale)}, num_segments=num_samples, sources=window.sources)


def _spread(inputs: Tensor, observed: Tensor) -> Tensor:
    """``(B, V, 1)`` standard deviation of the observed cells, at least 5 % of the training one."""
    count = observed.sum(-1, keepdim=True).clamp_min(1)
    variance = inputs.square().sum(-1, keepdim=True) / count
    return variance.clamp_min(LEAST_SPREAD**2).sqrt()


def _target(window: Window, forecast: Tensor, scale: Tensor) -> Target:
    past = torch.zeros_like(window.history)
    known = torch.zeros_like(forecast, dtype=torch.bool) if window.truth is None else window.truth.isfinite()
    truth = torch.zeros_like(forecast) if window.truth is None else torch.where(known, window.truth, 0.0)
    ones = scale.new_ones((*scale.shape[:2], window.history.shape[-1]))
    return Target(
        value=torch.cat([window.history, truth], -1)[..., None],
        mask=torch.cat([torch.zeros_like(past, dtype=torch.bool), known], -1)[..., None],
        baseline=torch.cat([past, forecast], -1)[..., None], scale=torch.cat([ones, scale], -1)[..., None])


def _conditions(fit: Fitted, frame: Frame, window: Window, level: Tensor) -> Conditions:
    lattice: dict[str, Tensor] = {}
    for period in frame.calendar:
        if period in fit.calendar:
            pair: Sequence[np.ndarray] = features(window.ticks, period)
        else:
            pair = [np.zeros(window.ticks.shape, np.float32)] * 2
        for function, values in zip(("sin", "cos"), pair):
            lattice[f"{function}_{period}"] = torch.from_numpy(values).to(level)[:, None]
    if frame.level:
        lattice["level"] = level
    vector = {"log_step": math.log(fit.clock.dt / frame.dt), "log_horizon": math.log(window.horizon / frame.look_back)}
    return Conditions(vector={n: level.new_full((len(level),), v) for n, v in vector.items()}, lattice=lattice)
