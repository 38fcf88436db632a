"""The next patch of a stream that is read once: a rollout step costs one patch, whatever the look-back was.

A cell of the lattice (variate, causal time) is a patch of P steps, its values are P channels, and it is asked for the P
steps that follow. Level, spread and ridge are those of the K = fitted look-back steps up to its end, so that nothing
before them is kept but what causal mixers remember (`gated` and `scan`: a state of constant size).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Sample
from sciml.data.schema import SplitName
from sciml.domains.series.baseline import observed_mean
from sciml.domains.series.calendar import features
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import LEAST_SPREAD, Window, members_of, physical, ticks_of, window_of
from sciml.domains.series.known import Known
from sciml.domains.series.layout import Layout
from sciml.domains.series.ridges import Ridges
from sciml.domains.series.tasks import About
from sciml.domains.series.tasks.forecast import Forecast
from sciml.domains.series.windows import SeriesWindows, split_windows
from sciml.errors import InputError
from sciml.tokens import Conditions, HeadSpec, Outputs, State, Target, TokenBatch, identity, time

HEAD = "next"


@dataclass(frozen=True)
class Stream:
    """Link space is the standardised unit. A rollout step appends one patch. forecast: whose ridges are corrected."""

    forecast: Forecast = field(default_factory=Forecast)
    patch: int = 0
    baseline_name: str = "ridge"
    objective: str = "mse"
    borrows: bool = True

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(f"series/step_{i}" for i in range(self.patch))

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(Forecast.create(options))

    def fit(self, layout: Layout, known: Known, config: SeriesConfig) -> Self:
        """Raises `InputError` where the look-back is no whole number of patches, and where times follow no step."""
        patch = int(config.patch)
        if known.clock.stepless:
            raise InputError("domains.series", key="task", found="stream, of times that follow no step",
                             expected="forecast, impute, anomaly or classify",
                             fix="choose one of them, or put the times on a step (irregular: fill)")
        if config.look_back_of(known.name) % patch:
            raise InputError(layout.store.url, key="domains.series.patch", found=patch,
                             expected=f"a divisor of the look-back {config.look_back_of(known.name)}",
                             fix="choose look_back and patch so")
        if config.of(known.name).transform != "none":
            raise InputError("domains.series", key=f"datasets.{known.name}.transform", expected="none",
                             found=config.of(known.name).transform, fix="transforms are for the task forecast")
        return replace(self, forecast=self.forecast.fit(layout, known, config), patch=patch)

    def floor(self) -> Self:
        return replace(self, forecast=self.forecast.floor())

    def heads(self, datasets: Mapping[str, Known]) -> dict[str, HeadSpec]:
        return {HEAD: HeadSpec("lattice", self.channels)}

    def open(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> SeriesWindows:
        return split_windows(layout, split, about.config, (self.patch,), train=train)

    def questions(self, layout: Layout, split: SplitName, about: About) -> list[Question]:
        look_back = about.config.look_back_of(layout.name)
        windows = split_windows(layout, split, about.config, (self.patch,))
        return [Question(str(self.patch), windows, block=look_back + self.patch, look_back=True,
                         options={"dataset": layout.name, "look_back": look_back, "horizon": self.patch})]

    def window(self, sample: Sample, about: About) -> Window:
        """The look-back (attribute; default: as configured) but for its first steps that make no whole patch."""
        length = sample.sizes.get("time", 0)
        past = int(sample.attrs.get("look_back", min(length, about.config.look_back_of(about.known.name))))
        start = (0 if "look_back" in sample.attrs else length - past) + past % self.patch
        past -= past % self.patch
        least = self.forecast.of(about.known.name).look_back
        if past < least:
            raise InputError(sample.attrs.get("source", "sample"), key="look_back", found=past,
                             expected=f"at least {least} steps, as fitted", fix="give more of the past")
        return window_of(about.known, sample.isel(time=slice(start, None)), past, past + self.patch)

    def encode(self, window: Window, about: About, sample: Sample | None = None) -> TokenBatch:
        """A cell per patch of the look-back; the P steps after the last are its truth where they are known."""
        return self._cells(window, about, before=0, first=0)

    def _cells(self, window: Window, about: About, *, before: int, first: int) -> TokenBatch:
        """before: leading steps of the window that belong to no cell; first: patches since the stream began."""
        found, known, patch = self.forecast.of(about.known.name), about.known, self.patch
        assert isinstance(found, Ridges)
        width, ahead = found.ridge.look_back, found.ridge.look_back - patch - before
        early = known.clock.later(window.ticks[:, :1], -np.arange(ahead, 0, -1))
        ticks = np.concatenate([early, window.ticks], 1)
        course = found.course(ticks, window.members).to(window.values)
        values, there, given = (torch.cat([t.new_zeros(*t.shape[:2], ahead), t], -1)
                                for t in (window.values, window.known, window.given))
        course = course.expand(values.shape)
        less, upto = torch.where(given, values - course, 0.0), values.shape[-1] - patch
        past, seen = (t[..., :upto].unfold(-1, width, patch) for t in (less, given))  # (B, V, N, K)
        count, level = past.shape[2], observed_mean(past, seen)
        rows, masks = (t.movedim(2, 1).flatten(0, 1) for t in (past, seen))
        forecast = found.ridge.forecast(rows, masks, patch).unflatten(0, (-1, count)).movedim(1, 2)
        spread = level.new_ones(1, 1, 1, 1)
        if about.frame.inputs.spread:
            change = torch.where(seen, past - level, 0.0).square().sum(-1, keepdim=True)
            spread = (change / seen.sum(-1, keepdim=True).clamp_min(1)).clamp_min(LEAST_SPREAD**2).sqrt()
        later, mask, shape = (t[..., width:].unfold(-1, patch, patch) for t in (values, there, course))
        target = Target(torch.where(mask, later, 0.0), mask, forecast + shape,
                        found.ridge.scale(width, patch).to(values) * spread.expand_as(level))
        own = seen[..., -patch:]
        return TokenBatch(
            domain="series", dataset=known.name, channels=self.channels, observed=own,
            values=torch.where(own, past[..., -patch:] - level, 0.0) / spread,
            axes=self._axes(window, about, ticks[:, width - 1:upto:patch], first),
            conditions=self._conditions(about, ticks[:, width - 1:upto:patch], level),
            targets={HEAD: target}, num_segments=len(values), sources=window.sources)

    def _axes(self, window: Window, about: About, ends: np.ndarray, first: int) -> tuple[Any, Any]:
        coord = (torch.arange(ends.shape[1], dtype=torch.float64) + first) * (self.patch / about.frame.look_back)
        when = time("time", coord.to(window.values), unit="step", causal=True)
        who = identity("variate", torch.from_numpy(window.members), f"{about.known.name}/variate")
        return (who if about.frame.inputs.identity else replace(who, namespace=None),
                replace(when, ids=torch.from_numpy(ends)))

    def _conditions(self, about: About, ends: np.ndarray, level: Tensor) -> Conditions:
        lattice: dict[str, Tensor] = {}
        for period in about.frame.calendar:
            pair = features(ends, period) if period in about.known.calendar else (np.zeros(ends.shape, np.float32),) * 2
            lattice |= {f"{function}_{period}": torch.from_numpy(values).to(level)[:, None]
                        for function, values in zip(("sin", "cos"), pair)}
        if about.frame.inputs.level:
            lattice["level"] = level[..., 0]
        vector = {"log_step": math.log(about.known.clock.dt / about.frame.dt),
                  "log_horizon": math.log(self.patch / about.frame.look_back)}
        return Conditions(vector={n: level.new_full((len(level),), v) for n, v in vector.items()}, lattice=lattice)

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor], about: About) -> xr.Dataset:
        """``value (sample, time, variate)`` of the patch after the last, with ``known``."""
        ticks = about.known.clock.later(ticks_of(batch)[:, -1:], np.arange(1, self.patch + 1))
        last = predictions[HEAD].expand(batch.values.shape)[:, :, -1]
        return physical(about.known, batch, {"value": last}, ticks, batch.targets[HEAD].mask[:, :, -1])

    def metrics(self, unit: str | None) -> tuple[Metric, ...]:
        return self.forecast.metrics(unit)

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset, about: About,
              unit: str | None) -> dict[str, np.ndarray]:
        return self.forecast.score(question, prediction, truth, about, unit)

    def starts(self, layout: Layout, split: SplitName, about: About) -> list[Sample]:
        return split_windows(layout, split, about.config, (self.patch,)).whole_blocks()

    def initial(self, batch: TokenBatch, about: About) -> State:
        """From a look-back; the truth after it is not used."""
        keep, target = self.forecast.of(about.known.name).look_back - self.patch, batch.targets[HEAD]
        assert batch.observed is not None
        ticks = about.known.clock.later(ticks_of(batch)[:, -1:], np.arange(1 - keep, self.patch + 1))
        extra = {"values": target.value[:, :, :-1].flatten(2)[..., -keep:], "ticks": torch.from_numpy(ticks),
                 "given": batch.observed[:, :, 1:].flatten(2)[..., -keep:],
                 "patches": torch.tensor(batch.axes[1].size)}
        value, mask = target.value.clone(), target.mask.clone()
        value[:, :, -1], mask[:, :, -1] = 0.0, False
        return State(replace(batch, targets={HEAD: replace(target, value=value, mask=mask)}), cache=[], extra=extra)

    def advance(self, state: State, outputs: Outputs, about: About) -> State:
        """The patch forecast last becomes the one cell of the next batch; time moves by P · dt."""
        batch, extra = state.batch, state.extra
        forecast = batch.targets[HEAD].predict(outputs[HEAD])[:, :, -1]
        values = torch.cat([extra["values"], forecast], -1)
        given = torch.cat([extra["given"], torch.ones_like(forecast, dtype=torch.bool)], -1)
        ticks, keep, none = extra["ticks"].cpu().numpy(), values.shape[-1] - self.patch, torch.zeros_like(forecast)
        ticks = np.concatenate([ticks, about.known.clock.later(ticks[:, -1:], np.arange(1, self.patch + 1))], 1)
        later = torch.cat([given, torch.zeros_like(none, dtype=torch.bool)], -1)
        window = Window(torch.cat([values, none], -1), later, later, values.shape[-1], ticks, members_of(batch),
                        batch.sources)
        following = self._cells(window, about, before=keep, first=int(extra["patches"]))
        kept = {"values": values[..., self.patch:], "given": given[..., self.patch:], "forecast": forecast,
                "ticks": torch.from_numpy(ticks[:, self.patch:]), "patches": extra["patches"] + 1}
        return replace(state, batch=following, step=state.step + 1, extra=kept,
                       elapsed=state.elapsed + self.patch * about.known.clock.dt)

    def observe(self, state: State, about: About) -> xr.Dataset:
        """The patch forecast last; before the first step, the last K − P steps of the look-back."""
        ticks, extra = state.extra["ticks"].cpu().numpy()[:, :-self.patch], state.extra
        if "forecast" in extra:
            return physical(about.known, state.batch, {"value": extra["forecast"]}, ticks[:, -self.patch:])
        seen = torch.where(extra["given"], extra["values"], torch.nan)
        return physical(about.known, state.batch, {"value": seen}, ticks)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.forecast.state()
        return {"patch": self.patch, "forecast": config}, arrays

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return replace(self, forecast=self.forecast.restored(config["forecast"], arrays), patch=int(config["patch"]))


PLUGIN = Stream
