"""What can be asked of series: one module per task, found by name. The adapter knows data sets, the task the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Sample, Windows
from sciml.data.schema import SplitName
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import Frame, Window
from sciml.domains.series.known import Known
from sciml.domains.series.layout import Layout
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch

TASKS = "sciml.domains.series.tasks"


@dataclass(frozen=True)
class About:
    """What a sample or batch is about: its data set, what all data sets share, the recipe's section."""

    known: Known
    frame: Frame
    config: SeriesConfig


class Task(Protocol):
    """A frozen dataclass made from the options that a recipe gives it, that `fit` adds data sets to.

    objective: name in ``sciml.objectives``. baseline_name: the floor's. channels: of its batches. borrows: a data set
    that wasn't fitted can be asked about by what was learnt of others.
    """

    @property
    def objective(self) -> str: ...

    @property
    def baseline_name(self) -> str: ...

    @property
    def channels(self) -> tuple[str, ...]: ...

    @property
    def borrows(self) -> bool: ...

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        """Raises `InputError` for options that it doesn't have."""
        ...

    def fit(self, layout: Layout, known: Known, config: SeriesConfig) -> Self:
        """Learn what the baseline needs of a data set's training and validation splits."""
        ...

    def floor(self) -> Self:
        """With the plain classical predictor as the baseline."""
        ...

    def heads(self, datasets: Mapping[str, Known]) -> dict[str, HeadSpec]: ...

    def open(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> Windows: ...

    def questions(self, layout: Layout, split: SplitName, about: About) -> list[Question]: ...

    def window(self, sample: Sample, about: About) -> Window:
        """Values of a sample with what of them is given."""
        ...

    def encode(self, window: Window, about: About, sample: Sample | None = None) -> TokenBatch:
        """With what is asked. sample: where the window came from one, for what isn't a value (a class)."""
        ...

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs: ...

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor], about: About) -> xr.Dataset: ...

    def metrics(self, unit: str | None) -> tuple[Metric, ...]:
        """unit: of all variates, None if they differ."""
        ...

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset, about: About,
              unit: str | None) -> dict[str, np.ndarray]: ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What was fitted: JSON and arrays; options are the recipe's."""
        ...

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        """This task with what `state` gave."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """A task that can go on in time: what `sciml.adapter.DomainAdapter` says of `starts`, `initial`, `advance` and
    `observe`."""

    def starts(self, layout: Layout, split: SplitName, about: About) -> Sequence[Sample]: ...

    def initial(self, batch: TokenBatch, about: About) -> State: ...

    def advance(self, state: State, outputs: Outputs, about: About) -> State: ...

    def observe(self, state: State, about: About) -> xr.Dataset: ...


@runtime_checkable
class Settling(Protocol):
    """A task that answers by its floor where validation doesn't prefer the operator by the metric that counts, which
    need not be what is trained."""

    @property
    def notes(self) -> list[str]:
        """Which data sets it does so for, and what was found."""
        ...

    def judged(self, forward: Callable[[TokenBatch], Outputs], layout: Layout, about: About) -> Self: ...
