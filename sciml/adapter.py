"""What a domain promises: read, encode, decode, advance and score one kind of data. No learned parameters; picklable.

`Sample` is an ``xarray.Dataset`` with units: one training example, or an initial state. Link space is where a head's
output lives (identity, log-rate, logit) in normalised units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import xarray as xr
from torch import Tensor

from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.recipe import Named
from sciml.tokens import Outputs, State, TokenBatch, TokenSpec

Sample = xr.Dataset
Arrays = Mapping[str, np.ndarray]
Operate = Callable[[TokenBatch], Outputs]


class Windows(Protocol):
    """The samples of one split, in a fixed order.

    `draw`: whatever is random comes from `rng` (keyed by seed, epoch and index) or, where all samples of a batch must
    agree (a horizon, hence a shape), from `batch_rng` (keyed by seed and micro-step). What is fixed ignores both.
    """

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> Sample: ...


@runtime_checkable
class Baseline(Protocol):
    """The domain's classical predictor, fitted once, never by gradient. Saved in the checkpoint with its provenance."""

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON (including ``kind`` and provenance) and arrays from which ``restore`` makes an equal one."""
        ...

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self: ...


@dataclass(frozen=True)
class Question:
    """One thing an evaluation asks: these windows, `steps` rollout steps (0: the direct prediction of the targets).

    block: that many consecutive windows are dependent (overlapping); intervals resample blocks of at least that many.
    baseline_name: of the floor of this question, if it has another name than the adapter's. look_back: its samples
    begin with known times that `initial` starts from, worth showing beside the answer. shown: how many of its windows
    are kept to be looked at, spread over the split.
    """

    name: str
    windows: Windows
    steps: int = 0
    block: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline_name: str = ""
    look_back: bool = False
    shown: int = 4


@dataclass(frozen=True)
class Metric:
    """A score per sample: lower is better unless `higher`, neither if that is None; `null` is the value a model without
    knowledge gets. root: scores are squares, and the root of their mean is shown."""

    name: str
    unit: str
    reduction: str
    higher: bool | None = False
    null: float | None = None
    root: bool = False


@runtime_checkable
class Calibrated(Protocol):
    """An adapter that draws what it generates, and for that has to know how the trained operator misses."""

    def calibrated(self, forward: Callable[[TokenBatch], Outputs], windows: Windows) -> Self:
        """The same, knowing what `forward` leaves unsaid of the data set whose training windows these are."""
        ...


@runtime_checkable
class Meeting(Protocol):
    """An adapter that may answer about data sets that it wasn't fitted on."""

    def meeting(self, store: Store) -> Self:
        """The same, knowing the store's units and scale; what it says of it, it learnt elsewhere. Raises `InputError`
        if it can't."""
        ...


@runtime_checkable
class Chained(Protocol):
    """An adapter whose training may go on from its own answers (`sciml.chains`)."""

    def stretches(self, store: Store, split: SplitName, steps: int, *, train: bool = False,
                  spans: Sequence[int] = (1,)) -> Windows:
        """Samples of `steps` + 1 states along ``time`` at equal distances; `train` as in `DomainAdapter.open`. spans:
        multiples of the distance that will be asked about. Raises `InputError` where none fits."""
        ...


@runtime_checkable
class Restating(Protocol):
    """An adapter whose batches can be asked the same from another present state."""

    def restated(self, batch: TokenBatch, values: Tensor) -> TokenBatch:
        """With these values as the state: its baseline and scale are made anew, truth and conditions stay."""
        ...


@runtime_checkable
class Solving(Protocol):
    """An adapter whose states a solver of `sciml.solvers` can advance."""

    def solved(self, batch: TokenBatch, solver: Named) -> Tensor:
        """The state one lead after the batch's, as the equation has it: normalised like values, differentiable.

        Raises `InputError` if the data set isn't what the solver solves."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """An adapter with metrics that compare samples: areas under ROC curves, means over classes."""

    def across(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Metric → ``(samples,)`` whose mean it is, from what `score` gave of all samples of a question."""
        ...


class DomainAdapter(Protocol):
    """One domain. Frozen; `fit` returns a copy that also knows another data set.

    name: the domain. baseline_name: the floor's, in tables. differentiate: inputs that outputs are differentiated by
    in `derive` (``("coord",)``: forces), for which gradients are then on. objective: name in ``sciml.objectives``.
    Two attributes that an adapter may have: ``uneven``, True where a rollout step is an event, and ``notes``, sentences
    on what was fitted that an evaluation prints as warnings.
    """

    @property
    def name(self) -> str: ...

    @property
    def differentiate(self) -> tuple[str, ...]: ...

    @property
    def objective(self) -> str: ...

    @property
    def baseline_name(self) -> str: ...

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        """From the recipe's section ``domains.<name>``, validated by the domain's own model."""
        ...

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        """The same with another section ``domains.<name>``; what was fitted stays. Fine-tuning calls it where the
        recipe was assigned another section than the checkpoint's."""
        ...

    def fit(self, store: Store) -> Self:
        """Learn statistics and baseline of the store's training split (hyper-parameters on validation)."""
        ...

    def floor(self) -> Self:
        """The same adapter with the plain classical predictor as its baseline: what every score is printed beside."""
        ...

    def spec(self) -> TokenSpec:
        """What the operator needs weights for: the union over the data sets fitted."""
        ...

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> Windows:
        """The split's samples; `train`: with the domain's augmentation and random leads or horizons."""
        ...

    def starts(self, store: Store, split: SplitName) -> Sequence[Sample]:
        """One sample per block of the split to start a rollout from, with whatever the store knows of its future; none
        where what is asked has no steps (a segmentation).

        They may be read as they are asked for."""
        ...

    def encode(self, sample: Sample) -> TokenBatch:
        """A batch of one, with targets if the sample holds them."""
        ...

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """Link-space predictions by head → physical units and coordinates, leading dimension ``sample``."""
        ...

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """The outputs of a batch. Most domains return ``operate(batch)``; forces are a derivative of its energy by the
        coordinates, and create_graph keeps what a derivative of those needs."""
        ...

    def initial(self, sample: Sample) -> State:
        """The state a rollout starts from."""
        ...

    def advance(self, state: State, outputs: Outputs) -> State:
        """One step forward: torch only, differentiable, moves time by exactly dt."""
        ...

    def observe(self, state: State) -> xr.Dataset:
        """What the last step brought, in physical units and coordinates, leading dimension ``sample``.

        One state: with the scalar coordinate ``time``, elapsed since the start. Several cells of time: with a
        dimension ``time`` and their ``valid_time (sample, time)``.
        """
        ...

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """What an evaluation of this domain asks by default."""
        ...

    def metrics(self) -> tuple[Metric, ...]: ...

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        """Metric name → one value per sample. For rollouts both have a dimension ``step`` (1…steps) after sample."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON and arrays that `restore` needs: config, statistics, baselines."""
        ...

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self: ...


def joined(states: Mapping[str, tuple[dict[str, Any], dict[str, np.ndarray]]]) -> tuple[dict[str, Any],
                                                                                       dict[str, np.ndarray]]:
    """States of several parts as one: JSON by name, arrays under ``name/…``, from where `arrays_of` takes them.

    >>> config, arrays = joined({"a": ({"kind": "mean"}, {"value": np.zeros(2)})})
    >>> config["a"]["kind"], list(arrays), list(arrays_of("a", arrays))
    ('mean', ['a/value'], ['value'])
    """
    return ({name: config for name, (config, _) in states.items()},
            {f"{name}/{key}": array for name, (_, arrays) in states.items() for key, array in arrays.items()})


def arrays_of(name: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """Those of one part."""
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}


def equal_states(one: tuple[Any, Arrays], other: tuple[Any, Arrays]) -> bool:
    """Whether two states of an adapter (`DomainAdapter.state`) say the same."""
    return one[0] == other[0] and one[1].keys() == other[1].keys() and all(
        np.array_equal(array, other[1][name], equal_nan=array.dtype.kind == "f") for name, array in one[1].items())
