"""What can be asked of volumes: one module per task, found by name. The adapter knows grids, the task the question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Sample
from sciml.data.store import Store
from sciml.domains.volumes.config import Known
from sciml.domains.volumes.encode import Plain
from sciml.tokens import Outputs, State, TokenBatch, TokenSpec

TASKS = "sciml.domains.volumes.tasks"


class Task(Protocol):
    """A frozen dataclass made from the options that a recipe gives it.

    objective: name in ``sciml.objectives``. baseline_name: the floor's. labelled: it learns from ``label``, hence
    training patches are drawn around structures. iterated: a rollout is a cascade of its steps (`advance`).
    """

    @property
    def objective(self) -> str: ...

    @property
    def baseline_name(self) -> str: ...

    @property
    def labelled(self) -> bool: ...

    @property
    def iterated(self) -> bool: ...

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        """Raises `InputError` for options that it doesn't have."""
        ...

    def fit(self, store: Store, known: Known) -> Self:
        """Learn what the floor needs of a data set's training split. Raises `InputError` if it lacks what is asked."""
        ...

    def floor(self) -> Self:
        """With the classical predictor as the baseline, where training uses another or none."""
        ...

    def spec(self, spec: TokenSpec, known: Mapping[str, Known]) -> TokenSpec:
        """Heads and conditions added to a spec that has the channels ``volumes/<modality>``."""
        ...

    def draw(self, sample: Sample, rng: np.random.Generator, *, train: bool) -> Sample:
        """What is random about the question: what is hidden, what a scanner would have measured. The modalities stay
        the truth; what is given instead has names of its own."""
        ...

    def encode(self, plain: Plain) -> TokenBatch:
        """The batch of images, with what is asked of them."""
        ...

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """Outputs from calls of `operate` that take one window each, blended where the lattice is larger."""
        ...

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """Variable → ``(S, X, Y, Z)`` or ``(S, T, X, Y, Z)``, or ``(S,)`` and ``(S, classes)`` of subjects, in its
        unit, and the unit."""
        ...

    def metrics(self) -> tuple[Metric, ...]: ...

    def score(self, prediction: xr.Dataset, truth: xr.Dataset, mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Metric → ``(samples,)``; voxels are `mm` along x, y, z."""
        ...

    def initial(self, batch: TokenBatch) -> TokenBatch:
        """What a rollout starts from, where `iterated`: from then on a forward is one step."""
        ...

    def advance(self, state: State, outputs: Outputs) -> State:
        """A step of the cascade, where `iterated`."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What was fitted: JSON and arrays; options are the recipe's."""
        ...

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        """This task with what `state` gave."""
        ...
