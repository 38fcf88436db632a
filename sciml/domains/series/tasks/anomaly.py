"""Cells that the rest of the series, and the other variates, would not have made one expect.

Every cell is hidden in turn, with its neighbours, and compared with what is then expected of it: an imputation whose
blocks cover the window. Scores are distances over the usual one of the variate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from sciml import metrics
from sciml.adapter import Arrays, Metric, Operate, Question, Sample, Windows
from sciml.data.schema import SplitName
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import (
    CHANNEL,
    HEAD,
    Window,
    lattice_target,
    physical,
    plain_batch,
    ticks_of,
)
from sciml.domains.series.known import Known
from sciml.domains.series.layout import ANOMALY, Layout
from sciml.domains.series.scores import declared, score
from sciml.domains.series.tasks import About
from sciml.domains.series.tasks.impute import HIDDEN, Impute, ImputeConfig, completed
from sciml.domains.series.windows import Pages
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, TokenBatch

TURNS, SHOWN, LEVELS = "turn", "shown", "levels"
"""Kept: ``(S, T)`` the turn of each cell, ``(S, turns, V, T, 1)`` what is shown in each, ``(S, turns, V, 1)`` the level
of that."""
LEVEL = "level"
SCORE = "anomaly_score"


class AnomalyConfig(Section):
    """block: neighbouring cells that are hidden together. turns: every so many-th block is hidden at once."""

    block: int = Field(default=4, ge=1)
    turns: int = Field(default=4, ge=2)
    objective: str = "mse"


@dataclass(frozen=True)
class InTurn:
    """Windows with a bool ``hidden (time, variate)`` of one turn."""

    windows: Pages
    config: AnomalyConfig

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> Sample:
        sample = self.windows.draw(index, rng, batch_rng)
        turn = turn_of(sample.sizes["time"], self.config) == int(rng.integers(self.config.turns))
        return sample.assign({HIDDEN: (("time", "variate"), np.repeat(turn[:, None], sample.sizes["variate"], 1))})


@dataclass(frozen=True)
class Anomaly:
    """Baseline: the ridge's conditional mean with the same cells hidden. Labels, where a store has them (``anomaly``:
    0 or 1 per time), are for evaluation alone."""

    config: AnomalyConfig = field(default_factory=AnomalyConfig)
    filling: Impute = field(default_factory=Impute)
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
        config = validate(AnomalyConfig, dict(options), where="domains.series.task.anomaly")
        share = min(1 / config.turns, 0.45)
        return cls(config, Impute(ImputeConfig(share=share)))

    def fit(self, layout: Layout, known: Known, config: SeriesConfig) -> Self:
        return replace(self, filling=self.filling.fit(layout, known, config))

    def floor(self) -> Self:
        return replace(self, filling=self.filling.floor())

    def heads(self, datasets: Mapping[str, Known]) -> dict[str, HeadSpec]:
        return self.filling.heads(datasets)

    def open(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> Windows:
        pages = self.filling.pages(layout, split, about, train=train)
        return InTurn(pages, self.config) if train else pages

    def questions(self, layout: Layout, split: SplitName, about: About) -> list[Question]:
        """``cells``: every cell of the split, in windows one after the other."""
        pages = self.filling.pages(layout, split, about, train=False)
        return [Question("cells", pages, block=1, options={"dataset": layout.name})]

    def window(self, sample: Sample, about: About) -> Window:
        return self.filling.window(sample, about)

    def encode(self, window: Window, about: About, sample: Sample | None = None) -> TokenBatch:
        """Where nothing is hidden, all cells are asked for, turn by turn."""
        if sample is not None and HIDDEN in sample:
            return self.filling.encode(window, about, sample)
        batch = self.filling.encode(window, about, sample)
        found, residual = self.filling.of(about.known.name), self.filling.residual_of(about.known.name)
        course = found.course(window.ticks, window.members)
        turns = torch.from_numpy(turn_of(window.values.shape[-1], self.config))
        expected, scale, plains = torch.zeros_like(window.values), torch.ones_like(window.values), []
        for turn in range(self.config.turns):
            shown = replace(window, given=window.given & (turns != turn))
            plain = plain_batch(about.known, about.frame, shown, course)
            plains.append(plain)
            expected = torch.where(turns == turn, completed(found, shown, plain.course), expected)
            scale = torch.where(turns == turn, plain.spread * residual, scale)
        target = lattice_target(window, torch.ones_like(window.known), expected, scale)
        kept = {TURNS: turns[None].expand(len(expected), -1),
                SHOWN: torch.stack([plain.batch.values for plain in plains], 1),
                LEVELS: torch.stack([plain.level for plain in plains], 1)}
        if sample is not None and ANOMALY in sample:
            labels = np.asarray(sample[ANOMALY].values[-len(turns):], bool)
            kept[ANOMALY] = torch.from_numpy(labels)[None]
        return replace(batch, targets={HEAD: target}, kept=kept)

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """One call per turn, whose cells the operator isn't shown, nor what level and spread they would make."""
        if TURNS not in batch.kept:
            return operate(batch)
        turns = batch.kept[TURNS][:, None, :, None]
        assert batch.observed is not None
        found = torch.zeros_like(batch.values)
        for turn in range(self.config.turns):
            conditions, lattice = batch.conditions, dict(batch.conditions.lattice)
            if LEVEL in lattice:
                conditions = replace(conditions, lattice=lattice | {LEVEL: batch.kept[LEVELS][:, turn]})
            output = operate(replace(batch, values=batch.kept[SHOWN][:, turn], conditions=conditions,
                                     observed=batch.observed & (turns != turn)))[HEAD].to(found.dtype)
            found = torch.where(turns == turn, output, found)
        return Outputs({HEAD: found})

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor], about: About) -> xr.Dataset:
        """``value``: what was expected, ``anomaly_score (sample, time, variate)``: how far the truth is from it, over
        the residual of the variate in the window (1.48 times the median distance)."""
        target = batch.targets[HEAD]
        expected, known = predictions[HEAD].expand(batch.values.shape)[..., 0], target.mask[..., 0]
        found = physical(about.known, batch, {HEAD: expected}, ticks_of(batch), known)
        distance = torch.where(known, (target.value[..., 0] - expected).abs(), torch.nan)
        usual = 1.48 * distance.nanmedian(-1, keepdim=True)[0].clamp_min(1e-3)
        found[SCORE] = ("sample", "time", "variate"), (distance / usual).detach().cpu().numpy().swapaxes(1, 2)
        if ANOMALY in batch.kept:
            found[ANOMALY] = ("sample", "time"), batch.kept[ANOMALY].cpu().numpy()
        return found

    def metrics(self, unit: str | None) -> tuple[Metric, ...]:
        """Of what was expected; where anomalies are labelled, of the scores, too."""
        reduction = "of the largest score over variates, within a window that has both, then over windows"
        return (*declared(unit, seasonal=False), Metric("auroc", "1", reduction, higher=True, null=0.5),
                Metric("average_precision", "1", reduction, higher=True))

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset, about: About,
              unit: str | None) -> dict[str, np.ndarray]:
        found = score(about.known, unit, prediction, truth, seasonal=False)
        if ANOMALY in truth:
            largest = prediction[SCORE].fillna(0.0).max("variate").values
            pairs = [(row, labels) for row, labels in zip(largest, truth[ANOMALY].values)]
            found["auroc"] = np.array([metrics.auroc(*pair) for pair in pairs])
            found["average_precision"] = np.array([metrics.average_precision(*pair) for pair in pairs])
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return self.filling.state()

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return replace(self, filling=self.filling.restored(config, arrays))


def turn_of(length: int, config: AnomalyConfig) -> np.ndarray:
    """``(T,)`` int64: the turn in which each cell is hidden."""
    return np.asarray(np.arange(length) // config.block % config.turns)


PLUGIN = Anomaly
