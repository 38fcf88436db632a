"""The class of a whole series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Sample, arrays_of, joined
from sciml.data.schema import Block, SplitName
from sciml.domains.series.classifier import Classifier
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import CHANNEL, Window, plain_batch, window_of
from sciml.domains.series.known import Known, Pieces
from sciml.domains.series.layout import CLASSES, LABEL, Layout
from sciml.domains.series.tasks import About
from sciml.domains.series.windows import Pages
from sciml.errors import InputError
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, Target, TokenBatch

PROBABILITY = "probability"


class Augmentation(Section):
    """What training does to a series: noise and scale of each variate, in its standard deviations and as a factor, and
    how much of its length may be cut off at both ends together or its pace vary, as a share."""

    noise: float = Field(default=0.0, ge=0)
    scale: float = Field(default=0.0, ge=0)
    crop: float = Field(default=0.0, ge=0, lt=1)
    warp: float = Field(default=0.0, ge=0, lt=1)


class ClassifyConfig(Section):
    """augment: changes that leave the class what it is. corrects: what the operator starts from, the ridge classifier
    or how frequent classes are."""

    corrects: Literal["ridge", "frequency"] = "ridge"
    augment: Augmentation = Augmentation()
    objective: str = "cross_entropy"


@dataclass(frozen=True)
class Changed:
    """Training windows, augmented."""

    windows: Pages
    augment: Augmentation
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def layout(self) -> Layout:
        return self.windows.layout

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> Sample:
        group, start, stop = self.windows.place(index)
        layout = self.layout
        values = changed(layout.values(group, start, stop), self.augment, self.std, rng)
        return layout.sample(group, start, stop, values)


@dataclass(frozen=True)
class Classify:
    """Link space: logits; the baseline is a linear classifier, of series that it was fitted to by cross-validation, or
    how frequent classes are.

    A series is at the end of a window of `look_back` cells, whose cells before it have no measure. Its level is left
    as it is, unless the recipe divides by the spread. settled: data sets that the linear classifier answers for alone,
    and why.
    """

    config: ClassifyConfig = field(default_factory=ClassifyConfig)
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False
    borrows: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        return (CHANNEL,)

    @property
    def objective(self) -> str:
        return self.config.objective

    @property
    def baseline_name(self) -> str:
        return "ridge classifier"

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(ClassifyConfig, dict(options), where="domains.series.task.classify"))

    def fit(self, layout: Layout, known: Known, config: SeriesConfig) -> Self:
        """Raises `InputError` if series have no class, or one is longer than the look-back."""
        store, look_back = layout.store, config.look_back_of(known.name)
        if not known.classes:
            raise InputError(store.url, key=LABEL, found="no class of a series", expected=f"label (series,) {CLASSES}",
                             fix="build the store from files that have classes, or choose another task")
        splits = store.meta.splits
        longest = max(b.stop - b.start for part in (splits.train, splits.validation, splits.test) for b in part)
        if longest > look_back:
            raise InputError("domains.series", key="look_back", found=look_back, expected=f"at least {longest}",
                             fix=f"series of {known.name} have up to {longest} steps: set look_back to that")
        train, labels, groups = _labelled(layout, known, splits.train)
        validation, asked, _ = _labelled(layout, known, splits.validation)
        found = Classifier.fit(train, labels, validation, asked, len(known.classes), groups)
        return replace(self, classifiers={**self.classifiers, known.name: found},
                       settled={name: why for name, why in self.settled.items() if name != known.name})

    @property
    def notes(self) -> list[str]:
        return [f"{name} is answered by the {self.baseline_name} alone: {why}" for name, why in self.settled.items()]

    def judged(self, forward: Callable[[TokenBatch], Outputs], layout: Layout, about: About) -> Self:
        """Settled for the linear classifier, unless `forward` is right more often than that on validation."""
        name, rngs = layout.name, [np.random.default_rng(0)] * 2
        pages, floor, right, count = self._pages(layout, "validation", about), self.floor(), np.zeros(2, int), 0
        for sample in (pages.draw(i, *rngs) for i in range(len(pages))):
            if LABEL not in sample:
                continue
            ours, plain = (task.encode(task.window(sample, about), about, sample) for task in (self, floor))
            said = ours.targets[head_of(name)].predict(forward(ours)[head_of(name)])
            found = [int(logits.argmax()) for logits in (said, plain.targets[head_of(name)].baseline)]
            right, count = right + (np.array(found) == int(sample[LABEL])), count + 1
        if not count or right[0] > right[1]:
            return self
        why = f"of {count} series of validation it knew {right[1]}, the operator {right[0]}"
        return replace(self, settled={**self.settled, name: why})

    def floor(self) -> Self:
        return replace(self, plain=True)

    def heads(self, datasets: Mapping[str, Known]) -> dict[str, HeadSpec]:
        """One per data set, whose classes are its own."""
        return {head_of(name): HeadSpec("pooled", known.classes, reduction="mean", link="logit")
                for name, known in datasets.items()}

    def open(self, layout: Layout, split: SplitName, about: About, *, train: bool) -> Pages | Changed:
        pages = self._pages(layout, split, about)
        return Changed(pages, self.config.augment, about.known.std) if train else pages

    def _pages(self, layout: Layout, split: SplitName, about: About) -> Pages:
        length = about.config.look_back_of(layout.name)
        return Pages(layout, layout.store.meta.splits.of(split), length, length)

    def questions(self, layout: Layout, split: SplitName, about: About) -> list[Question]:
        """``series``: every one of the split."""
        return [Question("series", self._pages(layout, split, about), options={"dataset": layout.name})]

    def window(self, sample: Sample, about: About) -> Window:
        """Raises `InputError` for a series that is longer than the look-back."""
        length, look_back = sample.sizes.get("time", 0), about.config.look_back_of(about.known.name)
        if not 0 < length <= look_back:
            raise InputError(sample.attrs.get("source", "sample"), key="time", found=f"{length} steps",
                             expected=f"1 to {look_back}, the look-back", fix="cut it, or train with a longer one")
        window = window_of(about.known, sample, length, length)
        before = look_back - length
        inside = torch.arange(look_back)[None] >= before
        start = window.ticks[:, :1] - about.known.clock.step * np.arange(before, 0, -1)
        def padded(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (before, 0))
        covariates = None if window.covariates is None else padded(window.covariates.mT).mT
        return replace(window, past=look_back, inside=inside, ticks=np.concatenate([start, window.ticks], 1),
                       values=padded(window.values), known=padded(window.known), given=padded(window.given),
                       covariates=covariates)

    def encode(self, window: Window, about: About, sample: Sample | None = None) -> TokenBatch:
        """Without a class in the sample, the target's mask is False."""
        batch = plain_batch(about.known, about.frame, window, centred=about.config.inputs.spread).batch
        classifier = self.classifiers[about.known.name]
        plain = self.plain or about.known.name in self.settled
        group = None if plain or sample is None else sample.attrs.get("group")
        linear = plain or self.config.corrects == "ridge"
        rows = [classifier.logits(_series(window, i), group) if linear else np.log(classifier.prior)
                for i in range(len(window.values))]
        baseline = torch.from_numpy(np.stack(rows)).to(window.values)
        known = sample is not None and LABEL in sample
        value = torch.zeros_like(baseline)
        if sample is not None and LABEL in sample:
            value[0, int(sample[LABEL])] = 1.0
        target = Target(value, torch.full_like(value, known, dtype=torch.bool), baseline, torch.ones_like(value))
        return replace(batch, targets={head_of(about.known.name): target})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        if batch.dataset in self.settled:
            return Outputs({head: torch.zeros_like(target.value) for head, target in batch.targets.items()})
        return operate(batch)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor], about: About) -> xr.Dataset:
        """``probability (sample, class)``; ``label (sample,)``: the likeliest; ``known (sample,)``: whether the batch
        holds the truth."""
        head = head_of(about.known.name)
        chances = predictions[head].detach().double().softmax(-1).cpu().numpy()
        return xr.Dataset({PROBABILITY: (("sample", CLASSES), chances), LABEL: ("sample", chances.argmax(1)),
                           "known": ("sample", batch.targets[head].mask.all(-1).cpu().numpy())},
                          coords={CLASSES: list(about.known.classes), "source": ("sample", list(batch.sources))},
                          attrs={"domain": "series", "dataset": about.known.name})

    def metrics(self, unit: str | None) -> tuple[Metric, ...]:
        return (Metric("accuracy", "1", "mean over series", higher=True),
                Metric("log_loss", "nat", "−log of the probability of the true class, mean over series"))

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset, about: About,
              unit: str | None) -> dict[str, np.ndarray]:
        chances, true = prediction[PROBABILITY].values, truth[LABEL].values
        known = truth["known"].values
        right = np.where(known, chances.argmax(1) == true, np.nan)
        loss = -np.log(np.maximum(chances[np.arange(len(true)), true], 1e-12))
        return {"accuracy": right, "log_loss": np.where(known, loss, np.nan)}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = joined({name: each.state() for name, each in self.classifiers.items()})
        return {name: {**part, "settled": self.settled.get(name)} for name, part in config.items()}, arrays

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return replace(self, classifiers={name: Classifier.restore(part, arrays_of(name, arrays))
                                          for name, part in config.items()},
                       settled={name: part["settled"] for name, part in config.items() if part.get("settled")})


def head_of(dataset: str) -> str:
    return f"class/{dataset}"


def _labelled(layout: Layout, known: Known,
              blocks: Sequence[Block]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Standardised series ``(T, V)``, their classes and groups."""
    labelled = {i: label for i, block in enumerate(blocks) if (label := layout.label(block.group)) is not None}
    return (Pieces.of(layout, known, [blocks[i] for i in labelled]).values,
            np.fromiter(labelled.values(), np.int64, len(labelled)),
            np.array([blocks[i].group for i in labelled], np.int64))


def _series(window: Window, i: int) -> np.ndarray:
    """``(T, V)`` of one sample without what is before it, NaN where nothing is given."""
    values = torch.where(window.given[i], window.values[i], torch.nan)
    inside = slice(None) if window.inside is None else window.inside[min(i, len(window.inside) - 1)]
    return np.asarray(values[:, inside].T.double().cpu().numpy())


def changed(values: np.ndarray, augment: Augmentation, std: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(T, V)`` cut, paced, scaled and noisy; as many steps as before. Missing cells stay missing where they are seen
    again."""
    values, length = np.asarray(values, np.float64), len(values)
    if length > 2 and (augment.crop or augment.warp):
        cut = augment.crop * rng.random() * (length - 1)
        start = rng.random() * cut
        pace = np.cumsum(np.exp(augment.warp * np.cumsum(rng.standard_normal(length - 1)) / np.sqrt(length)))
        places = start + (length - 1 - cut) * np.concatenate([np.zeros(1), pace / pace[-1]])
        low = np.minimum(places.astype(np.int64), length - 2)
        share = (places - low)[:, None]
        values = values[low] * (1 - share) + values[low + 1] * share
    if augment.scale:
        values = values * np.exp(augment.scale * rng.standard_normal(values.shape[1]))
    if augment.noise:
        values = values + augment.noise * std * rng.standard_normal(values.shape)
    return values


PLUGIN = Classify
