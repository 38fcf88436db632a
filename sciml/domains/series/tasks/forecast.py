"""Forecasts beyond a look-back that correct a closed-form ridge, or kriging where times follow no step, at any horizon,
point and quantiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import field_validator, model_validator
from scipy.stats import norm
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Sample, arrays_of, joined
from sciml.data.schema import SplitName
from sciml.domains.series import ridges
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import (
    CHANNEL,
    HEAD,
    Window,
    lattice_target,
    members_of,
    past_of,
    physical,
    plain_batch,
    ticks_of,
    window_of,
)
from sciml.domains.series.known import Known
from sciml.domains.series.kriging import Kriging, last_value
from sciml.domains.series.layout import Layout
from sciml.domains.series.ridges import Fitted
from sciml.domains.series.scores import declared, score
from sciml.domains.series.tasks import About
from sciml.domains.series.windows import SeriesWindows, mixed_windows, split_windows, without_draws
from sciml.errors import InputError
from sciml.losses import LEAST_LOG_SCALE, MOST_LOG_DF, STUDENT_T, STUDENT_T_OUTPUTS
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, State, Target, TokenBatch

QUANTILES = "quantiles"
START_LOG_DF = 3.0
"""Of Student's t before training: 22 degrees of freedom."""


class ForecastConfig(Section):
    """quantiles: levels that are forecast, too, ascending. student_t: the whole distribution is, too, as Student's t.
    objective: a name in ``sciml.objectives``; empty: the squared error, with quantiles their pinball loss beside it, or
    the likelihood of Student's t."""

    quantiles: tuple[float, ...] = ()
    student_t: bool = False
    objective: str = ""

    @field_validator("quantiles")
    @classmethod
    def _levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)) or any(not 0 < level < 1 for level in levels):
            raise ValueError("levels between 0 and 1, ascending and different")
        return levels

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.quantiles and self.student_t:
            raise ValueError("quantiles or student_t, not both")
        return self


@dataclass(frozen=True)
class Forecast:
    """Link space is the standardised unit. A rollout step forecasts the horizon of its batch and slides over it.

    ridges: by data set, kriging where times follow no step; those of the first one are for data sets that weren't
    fitted.
    """

    config: ForecastConfig = field(default_factory=ForecastConfig)
    ridges: Mapping[str, Fitted] = field(default_factory=dict)
    baseline_name: str = "ridge"
    borrows: bool = True

    @property
    def channels(self) -> tuple[str, ...]:
        return (CHANNEL,)

    @property
    def objective(self) -> str:
        usual = "mse_pinball" if self.config.quantiles else STUDENT_T if self.config.student_t else "mse"
        return self.config.objective or usual

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(ForecastConfig, dict(options), where="domains.series.task.forecast"))

    def fit(self, layout: Layout, known: Known, config: SeriesConfig) -> Self:
        return replace(self, ridges={**self.ridges, known.name: ridges.fit(layout, known, config, transforms=True)})

    def floor(self) -> Self:
        return replace(self, ridges={name: each.floor() for name, each in self.ridges.items()})

    def heads(self, datasets: Mapping[str, Known]) -> dict[str, HeadSpec]:
        heads = {HEAD: HeadSpec("lattice", (CHANNEL,))}
        if self.config.quantiles:
            heads[QUANTILES] = HeadSpec("lattice", tuple(f"{level:g}" for level in self.config.quantiles))
        if self.config.student_t:
            heads[STUDENT_T] = HeadSpec("lattice", STUDENT_T_OUTPUTS)
        return heads

    def of(self, name: str) -> Fitted:
        """The data set's, or what it borrows: those of the first one fitted, without their cycle."""
        return self.ridges[name] if name in self.ridges else next(iter(self.ridges.values())).floor()

    def open(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> SeriesWindows:
        """All windows of the longest horizon that fits the split, or of all of them and several look-backs where
        training draws these; `train`: each batch draws one of the horizons."""
        if train:
            return split_windows(layout, split, about.config, self._horizons(about), train=True)
        return mixed_windows(layout, split, about.config, self._horizons(about))

    def _horizons(self, about: About) -> tuple[int, ...]:
        name = about.known.name
        return self.ridges[name].horizons if name in self.ridges else tuple(
            h for h in about.config.horizons_of(name) if h <= self.of(name).horizon)

    def questions(self, layout: Layout, split: SplitName, about: About) -> list[Question]:
        """One per horizon that fits the split, named by its steps (observations, where times follow no step); windows
        overlap by look-back and horizon."""
        look_back, result = about.config.look_back_of(layout.name), []
        fitting = split_windows(layout, split, without_draws(about.config), self._horizons(about), train=True).horizons
        for horizon in fitting:
            windows = split_windows(layout, split, about.config, (horizon,))
            result.append(Question(str(horizon), windows, block=look_back + horizon, look_back=True,
                                   baseline_name="kriging" if about.known.clock.stepless else "",
                                   options={"dataset": layout.name, "look_back": look_back, "horizon": horizon}))
        return result

    def window(self, sample: Sample, about: About) -> Window:
        """Attributes: look_back (default: as configured); horizon (default: what follows the look-back in the sample,
        else the shortest one fitted). Without a truth, the target's mask is False everywhere."""
        length = sample.sizes.get("time", 0)
        look_back = int(sample.attrs.get("look_back", min(length, about.config.look_back_of(about.known.name))))
        if "look_back" not in sample.attrs:
            sample = sample.isel(time=slice(length - look_back, None))
        horizon = (int(sample.attrs.get("horizon", 0)) or sample.sizes["time"] - look_back
                   or self._horizons(about)[0])
        return window_of(about.known, sample, look_back, look_back + horizon)

    def encode(self, window: Window, about: About, sample: Sample | None = None) -> TokenBatch:
        """Look-back cells without cycle and mean, horizon cells unobserved, the ridge's forecast in the target.

        Link space is the standardised unit: the target's value and baseline keep cycle and mean, and are not
        transformed.
        """
        found, past, horizon = self.of(about.known.name), window.past, window.horizon
        if horizon > found.horizon or past > found.look_back:
            raise InputError(window.sources[0], key="window", found=f"look-back {past}, horizon {horizon}",
                             expected=f"at most {found.look_back} and {found.horizon}, as fitted",
                             fix="roll out in several steps, or fit with longer horizons")
        seen = window if found.transform is None else found.transform.window(window)
        plain = plain_batch(about.known, about.frame, seen, found.course(window.ticks, window.members))
        course = plain.course.expand(*plain.course.shape[:2], window.values.shape[-1]).to(window.values)
        history = torch.where(window.given, seen.values - course, 0.0)[..., :past]
        forecast, residual = found.ahead(seen, history)
        forecast, residual = forecast + course[..., past:], residual * plain.spread
        if found.transform is not None:
            forecast, residual = found.transform.back(forecast, residual, window.members)
        baseline = torch.cat([torch.zeros_like(history), forecast], -1)
        scale = torch.cat([residual.new_ones(*residual.shape[:2], past), residual], -1)
        scale = scale.expand(len(window.values), -1, -1)
        asked = torch.arange(window.values.shape[-1], device=window.values.device) >= past
        targets = {HEAD: lattice_target(window, asked.expand_as(window.known), baseline, scale)}
        if self.config.quantiles:
            targets[QUANTILES] = _quantile_target(targets[HEAD], self.config.quantiles)
        if self.config.student_t:
            targets[STUDENT_T] = _student_target(targets[HEAD])
        return replace(plain.batch, targets=targets, kept=self._kept(window))

    def _kept(self, window: Window) -> dict[str, Tensor]:
        """The levels of each sample, which the objective asks for."""
        levels = window.values.new_tensor(self.config.quantiles).expand(len(window.values), -1)
        return {"levels": levels} if self.config.quantiles else {}

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor], about: About) -> xr.Dataset:
        """``value (sample, time, variate)`` of the horizon, in the variates' units, at ``valid_time (sample, time)``,
        and ``quantiles (sample, time, variate, quantile)`` where they are forecast, ascending.

        ``known``: where the batch holds a truth.
        """
        past = past_of(batch)
        known = batch.targets[HEAD].mask.expand(batch.values.shape)[..., past:, 0]
        values = {HEAD: predictions[HEAD].expand(batch.values.shape)[..., past:, 0]}
        if QUANTILES in predictions:
            shape = (*batch.values.shape[:-1], len(self.config.quantiles))
            values[QUANTILES] = predictions[QUANTILES].expand(shape)[..., past:, :].sort(-1)[0]
        found = physical(about.known, batch, values, ticks_of(batch)[:, past:], known)
        if about.known.clock.stepless:
            found = found.assign(last=_last(about.known, batch, past))
        return found.assign_coords(quantile=list(self.config.quantiles)) if QUANTILES in found else found

    def metrics(self, unit: str | None) -> tuple[Metric, ...]:
        bare = any(isinstance(each, Kriging) for each in self.ridges.values())
        return declared(unit, quantiles=bool(self.config.quantiles), last=bare)

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset, about: About,
              unit: str | None) -> dict[str, np.ndarray]:
        return score(about.known, unit, prediction, truth)

    def starts(self, layout: Layout, split: SplitName, about: About) -> list[Sample]:
        """The first window of every block, with all the block's truth; a rollout step is the shortest horizon. None
        where times follow no step."""
        if about.known.clock.stepless:
            return []
        shortest = self._horizons(about)[0]
        windows = split_windows(layout, split, about.config, (shortest,))
        return [sample.assign_attrs(horizon=shortest) for sample in windows.whole_blocks()]

    def initial(self, batch: TokenBatch, about: About) -> State:
        """From a look-back; the truth, if the sample has one, is not used."""
        past, target = past_of(batch), batch.targets[HEAD]
        assert batch.observed is not None
        extra = {"history": target.value[..., :past, 0], "observed": batch.observed[..., :past, 0],
                 "ticks": torch.from_numpy(ticks_of(batch))}
        return State(batch=replace(batch, targets={name: _blind(t, past) for name, t in batch.targets.items()}),
                     extra=extra)

    def advance(self, state: State, outputs: Outputs, about: About) -> State:
        """The horizon's forecast becomes the end of the look-back; time moves by horizon · dt. Raises `InputError`
        where covariates of times to come would be needed, or those times themselves, as they follow no step."""
        if about.frame.covariates or about.frame.static:
            raise InputError("rollout", key="covariate", found="a step beyond the horizon given",
                             expected="covariates of the times to come", fix="forecast with a longer horizon")
        batch, clock = state.batch, about.known.clock
        past, ticks = past_of(batch), state.extra["ticks"].cpu().numpy()
        forecast = batch.targets[HEAD].predict(outputs[HEAD])[..., past:, 0]
        horizon = forecast.shape[-1]
        history = torch.cat([state.extra["history"], forecast], -1)[..., -past:]
        observed = torch.cat([state.extra["observed"], torch.ones_like(forecast, dtype=torch.bool)], -1)[..., -past:]
        ticks = clock.later(ticks, horizon)
        later = torch.zeros_like(forecast)
        given = torch.cat([observed, torch.zeros_like(later, dtype=torch.bool)], -1)
        window = Window(torch.cat([history, later], -1), given, given, past, ticks, members_of(batch), batch.sources)
        return replace(state, batch=self.encode(window, about), step=state.step + 1,
                       elapsed=state.elapsed + horizon * clock.dt,
                       extra={"history": history, "observed": observed, "forecast": forecast,
                              "ticks": torch.from_numpy(ticks)})

    def observe(self, state: State, about: About) -> xr.Dataset:
        """The cells forecast last; before the first step, the look-back. As `decode`, without ``known``."""
        past, ticks = past_of(state.batch), state.extra["ticks"].cpu().numpy()
        if "forecast" not in state.extra:
            seen = torch.where(state.extra["observed"], state.extra["history"], torch.nan)
            return physical(about.known, state.batch, {HEAD: seen}, ticks[:, :past])
        forecast = state.extra["forecast"]
        ticks = about.known.clock.later(ticks[:, past:past + 1], np.arange(-forecast.shape[-1], 0))
        return physical(about.known, state.batch, {HEAD: forecast}, ticks)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return joined({name: each.state() for name, each in self.ridges.items()})

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return replace(self, ridges={name: ridges.restore(part, arrays_of(name, arrays))
                                     for name, part in config.items()})


def _last(known: Known, batch: TokenBatch, past: int) -> xr.DataArray:
    """``(sample, variate)`` the last value known of each variate, in its unit."""
    assert batch.observed is not None
    given = batch.observed.expand(batch.values.shape)[..., :past, 0]
    found = last_value(batch.targets[HEAD].value.expand(batch.values.shape)[..., :past, 0], given)
    return physical(known, batch, {HEAD: found}, ticks_of(batch)[:, past - 1:past])[HEAD].isel(time=0, drop=True)


def _quantile_target(target: Target, levels: tuple[float, ...]) -> Target:
    """Of Gaussian residuals: baseline + z_q · scale, where z_q is the normal quantile; one truth for all levels."""
    z = torch.tensor(norm.ppf(levels), dtype=target.scale.dtype, device=target.scale.device)
    baseline = target.baseline + z * target.scale
    return replace(target, value=target.value.expand_as(baseline), baseline=baseline)


def _student_target(target: Target) -> Target:
    """Of residuals that are normal: location and scale of the baseline's, many degrees of freedom. The truth has the
    sharpest distribution there is."""
    ones = torch.ones_like(target.baseline)
    logs = target.scale.log().expand_as(ones)
    value = target.value.expand_as(ones)
    return replace(
        target, value=torch.cat([value, LEAST_LOG_SCALE * ones, MOST_LOG_DF * ones], -1),
        baseline=torch.cat([target.baseline, logs, START_LOG_DF * ones], -1),
        scale=torch.cat([target.scale.expand_as(ones), ones, ones], -1))


def _blind(target: Target, past: int) -> Target:
    value = torch.cat([target.value[..., :past, :], torch.zeros_like(target.value[..., past:, :])], -2)
    return replace(target, value=value, mask=torch.zeros_like(target.mask))


PLUGIN = Forecast
