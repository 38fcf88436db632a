"""Missing cells filled in, by what is known before, between and after them, in all variates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Sample, Windows, arrays_of, joined
from sciml.data.schema import SplitName
from sciml.domains.series import ridges
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import (
    CHANNEL,
    HEAD,
    Window,
    lattice_target,
    physical,
    plain_batch,
    ticks_of,
    window_of,
)
from sciml.domains.series.known import Known, Pieces
from sciml.domains.series.layout import Layout
from sciml.domains.series.ridges import Fitted
from sciml.domains.series.scores import declared, score
from sciml.domains.series.tasks import About
from sciml.domains.series.windows import Pages, Pattern, hidden
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, TokenBatch

PATTERNS: tuple[Pattern, ...] = ("random", "blocks")
MEASURED_ON = 64
HIDDEN = "hidden"


class ImputeConfig(Section):
    """share: of the cells that an evaluation hides; training hides up to twice that. stride: steps between the windows
    of an evaluation, 0 for as many as a window has."""

    share: float = Field(default=0.3, gt=0, lt=0.5)
    stride: int = Field(default=0, ge=0)
    objective: str = "mse"


@dataclass(frozen=True)
class Hiding:
    """Windows with a bool ``hidden (time, variate)``: cells whose truth is kept, and not shown."""

    windows: Pages
    share: float
    pattern: Pattern | None

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> Sample:
        """pattern None: any, and any share up to twice the usual."""
        sample = self.windows.draw(index, rng, batch_rng)
        share, pattern = self.share, self.pattern
        if pattern is None:
            share, pattern = 2 * share * float(rng.random()), PATTERNS[int(rng.integers(len(PATTERNS)))]
        mask = hidden((sample.sizes["time"], sample.sizes["variate"]), share, pattern, rng)
        return sample.assign({HIDDEN: (("time", "variate"), mask)})


@dataclass(frozen=True)
class Impute:
    """Baseline: the conditional mean of a cell given those of its variate, from the ridge's Gram matrix, or by kriging
    where times follow no step, so that a row of NaN at any time is filled in; residual: how
    far that is off with the usual share hidden, in standardised units, by data set."""

    config: ImputeConfig = field(default_factory=ImputeConfig)
    ridges: Mapping[str, Fitted] = field(default_factory=dict)
    residual: Mapping[str, float] = field(default_factory=dict)
    baseline_name: str = "ridge"
    borrows: bool = True

    @property
    def channels(self) -> tuple[str, ...]:
        return (CHANNEL,)

    @property
    def objective(self) -> str:
        return self.config.objective

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(ImputeConfig, dict(options), where="domains.series.task.impute"))

    def fit(self, layout: Layout, known: Known, config: SeriesConfig) -> Self:
        found = ridges.fit(layout, known, config)
        pieces = Pieces.of(layout, known, layout.store.meta.splits.train)
        residual = _residual(found, known, pieces, config.look_back_of(known.name), self.config.share)
        return replace(self, ridges={**self.ridges, known.name: found},
                       residual={**self.residual, known.name: residual})

    def floor(self) -> Self:
        return replace(self, ridges={name: each.floor() for name, each in self.ridges.items()})

    def heads(self, datasets: Mapping[str, Known]) -> dict[str, HeadSpec]:
        return {HEAD: HeadSpec("lattice", (CHANNEL,))}

    def of(self, name: str) -> Fitted:
        return self.ridges[name] if name in self.ridges else next(iter(self.ridges.values())).floor()

    def residual_of(self, name: str) -> float:
        """The data set's, or that of the first one fitted."""
        return self.residual[name] if name in self.residual else next(iter(self.residual.values()))

    def open(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> Windows:
        """Training: every stretch as long as the look-back; else one after the other."""
        return Hiding(self.pages(layout, split, about, train=train), self.config.share, None if train else "random")

    def pages(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> Pages:
        length = about.config.look_back_of(layout.name)
        stride = 1 if train else self.config.stride or length
        return Pages(layout, layout.store.meta.splits.of(split), length, stride)

    def questions(self, layout: Layout, split: SplitName, about: About) -> list[Question]:
        """One per pattern of what is hidden."""
        pages = self.pages(layout, split, about, train=False)
        block = -(-pages.length // pages.stride)
        return [Question(pattern, Hiding(pages, self.config.share, pattern), block=block,
                         baseline_name="kriging" if about.known.clock.stepless else "",
                         options={"dataset": layout.name, "share": self.config.share}) for pattern in PATTERNS]

    def window(self, sample: Sample, about: About) -> Window:
        """The last look-back of the sample; what isn't finite, or hidden, is asked for."""
        length = min(sample.sizes.get("time", 0), about.config.look_back_of(about.known.name))
        sample = sample.isel(time=slice(sample.sizes.get("time", 0) - length, None))
        window = window_of(about.known, sample, length, length)
        if HIDDEN not in sample:
            return window
        mask = torch.from_numpy(np.asarray(sample[HIDDEN].values, bool).T.copy())[None]
        return replace(window, given=window.given & ~mask)

    def encode(self, window: Window, about: About, sample: Sample | None = None) -> TokenBatch:
        found = self.of(about.known.name)
        plain = plain_batch(about.known, about.frame, window, found.course(window.ticks, window.members))
        expected = completed(found, window, plain.course)
        scale = plain.spread * self.residual_of(about.known.name)
        scale = scale.expand(len(window.values), -1, window.values.shape[-1])
        return replace(plain.batch, targets={HEAD: lattice_target(window, ~window.given, expected, scale)})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor], about: About) -> xr.Dataset:
        """``value (sample, time, variate)``: what was given as it was, the rest filled in. ``known``: cells that were
        hidden and whose truth is known."""
        target = batch.targets[HEAD]
        assert batch.observed is not None
        filled = torch.where(batch.observed, target.value, predictions[HEAD].expand(batch.values.shape))[..., 0]
        return physical(about.known, batch, {HEAD: filled}, ticks_of(batch), target.mask[..., 0])

    def metrics(self, unit: str | None) -> tuple[Metric, ...]:
        return declared(unit, seasonal=False)

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset, about: About,
              unit: str | None) -> dict[str, np.ndarray]:
        return score(about.known, unit, prediction, truth, seasonal=False)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = joined({name: each.state() for name, each in self.ridges.items()})
        return {"ridges": config, "residual": dict(self.residual)}, arrays

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return replace(self, residual=dict(config["residual"]), ridges={
            name: ridges.restore(part, arrays_of(name, arrays)) for name, part in config["ridges"].items()})


def completed(found: Fitted, window: Window, course: Tensor) -> Tensor:
    """``(B, V, T)`` what the baseline expects of every cell, given those that are."""
    history = torch.where(window.given, window.values - course, 0.0)
    return found.completed(window, history) + course


def _residual(found: Fitted, known: Known, pieces: Pieces, length: int, share: float) -> float:
    """Root mean square error of the conditional mean at hidden cells of training windows spread over the split."""
    rng, errors = np.random.default_rng(0), []
    spans = [(i, start) for i, values in enumerate(pieces.values) for start in range(0, len(values) - length + 1,
                                                                                   max(1, length // 2))]
    picked = [spans[i] for i in np.unique(np.linspace(0, len(spans) - 1, min(len(spans), MEASURED_ON)).astype(int))]
    for i, start in picked:
        values = pieces.values[i][start:start + length]
        mask = hidden((length, values.shape[1]), share, "random", rng)
        there = torch.from_numpy((np.isfinite(values) & ~mask).T.copy())[None]
        ticks, members = pieces.ticks[i][None, start:start + length], np.arange(values.shape[1])
        window = Window(torch.from_numpy(np.nan_to_num(values).T.astype(np.float32))[None], there, there, length, ticks,
                        members, ("",))
        expected = completed(found, window, found.course(ticks, members))[0].T.numpy()
        errors.append(np.square(expected - values)[mask & np.isfinite(values)])
    return float(np.sqrt(np.concatenate(errors).mean())) if errors else 1.0


PLUGIN = Impute
