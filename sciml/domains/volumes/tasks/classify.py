"""Classification: which of several classes a subject is of, from the whole of its volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Sample
from sciml.data.store import Store
from sciml.domains.volumes import classes
from sciml.domains.volumes.config import CATEGORY, CLASS, Known
from sciml.domains.volumes.encode import DOMAIN, Plain, asked
from sciml.errors import InputError
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch, TokenSpec

PROBABILITY = "probability"


class ClassifyConfig(Section):
    """smoothing: share of the label that is spread evenly over all classes."""

    smoothing: float = Field(default=0.0, ge=0, lt=1)


@dataclass(frozen=True)
class Classify:
    """Log probabilities of a volume's classes, up to a constant; of a volume larger than the window their mean over
    windows. Floor: how often each class occurs in training, counted as once more than it was seen (Laplace's rule of
    succession). counts: data set → training subjects of each class."""

    config: ClassifyConfig = field(default_factory=ClassifyConfig)
    classes: tuple[str, ...] = ()
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    objective: str = "cross_entropy"
    baseline_name: str = "class frequencies"
    labelled: bool = False
    iterated: bool = False

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(ClassifyConfig, dict(options), where="domains.volumes.task.classify"))

    def fit(self, store: Store, known: Known) -> Self:
        if len(known.classes) < 2:
            raise InputError(store.url, key=CATEGORY, found=", ".join(known.classes) or "no classes of subjects",
                             expected="a class for every subject, two different ones at least",
                             fix="build the store with a table of them: options: {classes: participants.tsv}")
        values = [float(store.read(CATEGORY, block.group)) for block in store.meta.splits.train]
        drawn = np.bincount([int(v) for v in values if np.isfinite(v)], minlength=len(known.classes))
        if not drawn.all():
            absent = ", ".join(name for name, count in zip(known.classes, drawn) if not count)
            raise InputError(store.url, key=CATEGORY, found=f"no {absent} in the training split",
                             expected="every class there", fix="split otherwise, or leave that class out")
        made = {**self.counts, store.meta.dataset: tuple(int(n) for n in drawn)}
        return replace(self, classes=known.classes, counts=made)

    def floor(self) -> Self:
        return self

    def spec(self, spec: TokenSpec, known: Mapping[str, Known]) -> TokenSpec:
        outputs = tuple(f"{DOMAIN}/{name}" for name in self.classes)
        return replace(spec, heads={CLASS: HeadSpec("pooled", outputs, reduction="mean", link="log")})

    def draw(self, sample: Sample, rng: np.random.Generator, *, train: bool) -> Sample:
        return sample

    def encode(self, plain: Plain) -> TokenBatch:
        """value ``(1, K)``: shares of the classes; a subject without one doesn't count."""
        dtype, count = plain.batch.values.dtype, len(self.classes)
        category = float(plain.sample[CATEGORY]) if CATEGORY in plain.sample else np.nan
        known = bool(np.isfinite(category))
        value = torch.full((1, count), self.config.smoothing / count if known else 1 / count, dtype=dtype)
        if known:
            value[0, int(category)] += 1 - self.config.smoothing
        prior = torch.from_numpy(self._prior(plain.batch.dataset))[None].to(dtype)
        return replace(plain.batch, targets={CLASS: asked(value, torch.tensor([[known]]), baseline=prior)})

    def _prior(self, dataset: str) -> np.ndarray:
        """``(K,)`` log frequencies in a data set, in all of them where it has none of its own."""
        seen = np.sum([self.counts[dataset]] if dataset in self.counts else [*self.counts.values()], 0) + 1.0
        frequencies: np.ndarray = np.log(seen / seen.sum())
        return frequencies

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """``category (S,)``, the likeliest class (NaN where the truth isn't known), and ``probability (S, K)``."""
        share, known = predictions[CLASS].softmax(-1), batch.targets[CLASS].mask[:, 0]
        category = share.argmax(-1).to(torch.float32)
        if bool(known.any()):
            category = category.masked_fill(~known, torch.nan)
        return {CATEGORY: (category, "1"), PROBABILITY: (share, "1")}

    def metrics(self) -> tuple[Metric, ...]:
        return classes.metrics(len(self.classes))

    def score(self, prediction: xr.Dataset, truth: xr.Dataset, mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Of one volume, beside what `across` needs; nothing of one whose class isn't known."""
        known = np.isfinite(truth[CATEGORY].values)
        share, category = prediction[PROBABILITY].values[known], truth[CATEGORY].values[known].astype(int)
        return classes.scores(share, category)

    def across(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores of all volumes of a question together."""
        return classes.across(scores)

    def initial(self, batch: TokenBatch) -> TokenBatch:
        raise InputError("volumes", key="task", found="classify", expected="a task that is a cascade of steps: restore",
                         fix="use predict")

    def advance(self, state: State, outputs: Outputs) -> State:
        return replace(state, batch=self.initial(state.batch))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"classes": list(self.classes), "counts": {name: list(n) for name, n in self.counts.items()}}, {}

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        counts = {str(name): tuple(int(n) for n in seen) for name, seen in config["counts"].items()}
        return replace(self, classes=tuple(config["classes"]), counts=counts)


PLUGIN = Classify
