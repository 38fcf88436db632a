"""The domain `series`: multivariate time series on the lattice (variate: set, time). What is asked is the task's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import xarray as xr
from torch import Tensor

from sciml import registry
from sciml.adapter import Arrays, Metric, Operate, Question, Sample, Windows, arrays_of, joined
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.series.calendar import PERIODS_NS
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import Frame
from sciml.domains.series.known import Known, Pieces, learn
from sciml.domains.series.layout import Layout
from sciml.domains.series.periods import discover, patch_of
from sciml.domains.series.tasks import TASKS, About, Settling, Stepping, Task
from sciml.errors import InputError
from sciml.recipe import Named, validate
from sciml.tokens import Outputs, Slots, State, TokenBatch, TokenSpec


@dataclass(frozen=True)
class Series:
    """Series in standardised units, of one clock per data set, of equal or unequal length, at regular times or not.

    datasets: what is known of each, by name; those of `guests` were not trained on and borrow what was learnt of
    others. reference: look-back (steps) and step (seconds) of the first one fitted, by which coordinates are divided
    for good.
    """

    config: SeriesConfig
    task: Task
    datasets: Mapping[str, Known] = field(default_factory=dict)
    guests: frozenset[str] = frozenset()
    reference: tuple[int, float] | None = None
    name: str = "series"
    differentiate: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        return self.task.objective

    @property
    def baseline_name(self) -> str:
        return self.task.baseline_name

    @property
    def notes(self) -> list[str]:
        """What an evaluation says of guests, and of data sets that the floor answers for."""
        fitted = ", ".join(self._fitted())
        settled = self.task.notes if isinstance(self.task, Settling) else []
        return settled + [f"{name} was not fitted: what is said of it was learnt of {fitted}"
                          for name in sorted(self.guests)]

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        chosen = validate(SeriesConfig, dict(config), where="domains.series")
        return cls(chosen, make_task(chosen.task))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        chosen = validate(SeriesConfig, dict(config), where="domains.series")
        if chosen.patch == "auto":
            chosen = chosen.model_copy(update={"patch": self.config.patch})
        task = self.task if chosen.task == self.config.task else make_task(chosen.task)
        return replace(self, config=chosen, task=task)

    def fit(self, store: Store) -> Self:
        """Reads the training and validation splits only."""
        layout = Layout.of(store)
        known = learn(layout)
        reference = self.reference or (self.config.look_back_of(known.name), known.clock.dt)
        config = self.config
        if config.patch == "auto":
            found = [] if known.clock.stepless else discover(Pieces.of(
                layout, known, layout.store.meta.splits.train).values)
            config = config.model_copy(update={"patch": patch_of(found, most=config.look_back_of(known.name) // 2)})
        return replace(self, config=config, task=self.task.fit(layout, known, config), reference=reference,
                       datasets={**self.datasets, known.name: known}, guests=self.guests - {known.name})

    def introduced(self, known: Known) -> Self:
        """The same, answering about a data set that it wasn't fitted on, by what it learnt of others.

        Raises `InputError` where the task, or identities of variates, need the data set itself.
        """
        if known.name in self.datasets and known.name not in self.guests:
            return self
        if known.clock.stepless or any(other.clock.stepless for other in self.datasets.values()):
            raise InputError(known.name, key="dataset", found="times that follow no step, of it or of what was fitted",
                             expected="a data set that was fitted", fix="fit the adapter to its store first "
                             "(sciml finetune)")
        if not (self.task.borrows and self.datasets) or self.config.inputs.identity:
            raise InputError(known.name, key="dataset", found=f"not one of {', '.join(self.datasets) or 'none yet'}",
                             expected="a data set that was fitted, or a checkpoint trained with inputs.identity: false",
                             fix="fit the adapter to its store first (sciml finetune)")
        return replace(self, datasets={**self.datasets, known.name: known}, guests=self.guests | {known.name})

    def meeting(self, store: Store) -> Self:
        """`introduced` to a store, whose training split gives the scale of its variates and nothing else."""
        return self if store.meta.dataset in self.datasets else self.introduced(learn(Layout.of(store)))

    def calibrated(self, forward: Callable[[TokenBatch], Outputs], windows: Windows) -> Self:
        """A task that may settle for its floor judges the operator on validation, by the metric that counts."""
        if not isinstance(self.task, Settling):
            return self
        layout = windows.layout  # type: ignore[attr-defined]
        return replace(self, task=self.task.judged(forward, layout, self.about(layout.name, layout.store.url)))

    def floor(self) -> Self:
        """The same adapter with the plain classical predictor as the baseline: the floor of every score."""
        return replace(self, task=self.task.floor())

    def spec(self) -> TokenSpec:
        frame, fitted = self._frame(), self._fitted()
        identities = {f"{name}/variate": known.variates for name, known in fitted.items()}
        heads, count = self.task.heads(fitted), self.config.slots
        if count and (not self.config.inputs.identity or any(head.kind != "pooled" for head in heads.values())):
            raise InputError("domains.series", key="slots", found=count, expected="0",
                             fix="slots are for tasks that ask about whole series (classify), with inputs.identity")
        return TokenSpec(
            domain=self.name, channels=self.task.channels, heads=heads, lattice_conditions=frame.lattice_conditions,
            vector_conditions=frame.vector_conditions, identities=identities if self.config.inputs.identity else {},
            patch=self._patch(), stem="population" if count else "",
            slots=Slots("variate", count, ("level",) if frame.inputs.level else ()) if count else None,
            units=dict.fromkeys(self.task.channels, "1"))

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> Windows:
        return self.task.open(Layout.of(store), split, self.about(store.meta.dataset, store.url), train=train)

    def starts(self, store: Store, split: SplitName) -> Sequence[Sample]:
        """The first window of every block, where the task goes on in time."""
        if not isinstance(self.task, Stepping):
            return ()
        return self.task.starts(Layout.of(store), split, self.about(store.meta.dataset, store.url))

    def encode(self, sample: Sample) -> TokenBatch:
        """Attributes: dataset, where several are known, and those of the task."""
        where = sample.attrs.get("source", "sample")
        about = self.about(sample.attrs.get("dataset") or self._only(where), where)
        return self.task.encode(self.task.window(sample, about), about, sample)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        return self.task.decode(batch, predictions, self.about(batch.dataset, "batch"))

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return self.task.derive(batch, operate, create_graph)

    def initial(self, sample: Sample) -> State:
        """From a look-back. Raises `InputError` for a task that has no steps."""
        batch = self.encode(sample)
        return self._stepping().initial(batch, self.about(batch.dataset, "rollout"))

    def advance(self, state: State, outputs: Outputs) -> State:
        return self._stepping().advance(state, outputs, self.about(state.batch.dataset, "rollout"))

    def observe(self, state: State) -> xr.Dataset:
        return self._stepping().observe(state, self.about(state.batch.dataset, "rollout"))

    def _patch(self) -> int:
        if isinstance(self.config.patch, int):
            return self.config.patch
        raise InputError("domains.series", key="patch", found="auto", expected="an adapter that was fitted",
                         fix="fit it to a store first, or give a number")

    def _stepping(self) -> Stepping:
        if not isinstance(self.task, Stepping):
            raise InputError("rollout", key="domains.series.task", found=self.config.task.name, expected="forecast",
                             fix="use a checkpoint that forecasts")
        return self.task

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        return self.task.questions(Layout.of(store), split, self.about(store.meta.dataset, store.url))

    def metrics(self) -> tuple[Metric, ...]:
        return self.task.metrics(self._unit())

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        about = self.about(question.options["dataset"], "question")
        return self.task.score(question, prediction, truth, about, self._unit())

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        known = joined({name: known.state() for name, known in self._fitted().items()})
        parts, arrays = joined({"datasets": known, "task": self.task.state()})
        return {"config": self.config.model_dump(mode="json"), "reference": self.reference, **parts}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        chosen = validate(SeriesConfig, config["config"], where="checkpoint domains.series")
        known = arrays_of("datasets", arrays)
        datasets = {name: Known.restore(name, part, arrays_of(name, known))
                    for name, part in config["datasets"].items()}
        task = make_task(chosen.task).restored(config["task"], arrays_of("task", arrays))
        reference = config["reference"]
        return cls(chosen, task, datasets,
                   reference=None if reference is None else (int(reference[0]), float(reference[1])))

    def about(self, name: str, where: object) -> About:
        """What tasks are told of a data set. Raises `InputError`, naming `where`, for one that isn't known."""
        if name not in self.datasets:
            known = ", ".join(self.datasets) or "none yet"
            raise InputError(where, key="dataset", found=name, expected=f"one of {known}",
                             fix="fit the adapter to its store first (sciml finetune)")
        return About(self.datasets[name], self._frame(), self.config)

    def _only(self, where: object) -> str:
        if len(self.datasets) != 1:
            raise InputError(where, key="dataset", found="no attribute", expected=f"one of {', '.join(self.datasets)}",
                             fix="set dataset.attrs['dataset']")
        return next(iter(self.datasets))

    def _fitted(self) -> dict[str, Known]:
        return {name: known for name, known in self.datasets.items() if name not in self.guests}

    def _frame(self) -> Frame:
        look_back, dt = self.reference or (self.config.look_back, 1.0)
        fitted = self._fitted().values()
        used = {period for known in fitted for period in known.calendar} if self.config.inputs.calendar else set()
        return Frame(look_back, dt, tuple(p for p in PERIODS_NS if p in used),
                     tuple(dict.fromkeys(name for known in fitted for name in known.covariates.names)),
                     tuple(dict.fromkeys(name for known in fitted for name in known.static.names)), self.config.inputs,
                     any(known.clock.stepless for known in fitted))

    def _unit(self) -> str | None:
        units = {unit for known in self.datasets.values() for unit in known.units}
        return units.pop() if len(units) == 1 else None


def make_task(config: Named) -> Task:
    """The task of that name. Raises `InputError` naming the ones that exist, or the option that it doesn't have."""
    task: Task = registry.find(TASKS, config.name, where="domains.series.task").create(config.options)
    return task
