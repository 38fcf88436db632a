"""What the benchmarks share: what the environment asks for, stores, models trained side by side, bars.

Models that are trained side by side are operators of one adapter, each on its own clock of CPU seconds of this process
on one thread (data and augmentation included), so that other work on the machine doesn't change who wins.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import click
import torch
from torch import nn

from sciml import optim, registry
from sciml.assets import dataset
from sciml.chains import Going
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import Store, open_store
from sciml.errors import InputError
from sciml.predictor import Predictor
from sciml.recipe import Recipe, TrainRecipe
from sciml.report.bench import Bench, Results, Row
from sciml.sampling import MicroBatches, Schedule
from sciml.tokens import TokenBatch
from sciml.train import answered, open_sources

SLICE_S = 10.0
Setting = TypeVar("Setting")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Plan:
    """What the environment asks for."""

    parts: tuple[str, ...]
    seconds: Mapping[str, float]
    seeds: int

    @classmethod
    def of_environment(cls, parts: Sequence[str], seconds: Mapping[str, float], seeds: int = 1) -> Self:
        """``SCIML_BENCH_PARTS=a,b SCIML_BENCH_SECONDS=a:60 SCIML_BENCH_SEEDS=3`` over the defaults given. Raises
        `InputError` on a part or budget that there is not, or what is no number above 0."""
        chosen = tuple(os.environ.get("SCIML_BENCH_PARTS", ",".join(parts)).split(","))
        written = filter(None, os.environ.get("SCIML_BENCH_SECONDS", "").split(","))
        given = {name: value for name, _, value in (each.partition(":") for each in written)}
        for key, names, known in (("SCIML_BENCH_PARTS", chosen, parts), ("SCIML_BENCH_SECONDS", given, tuple(seconds))):
            if unknown := set(names) - set(known):
                raise InputError("environment", key=key, found=", ".join(sorted(unknown)),
                                 expected=", ".join(known), fix="correct the name")
        budgets = {name: _positive("SCIML_BENCH_SECONDS", f"{name}:{value}", value, float, "name:seconds")
                   for name, value in given.items()}
        count = os.environ.get("SCIML_BENCH_SEEDS", str(seeds))
        return cls(chosen, dict(seconds) | budgets, _positive("SCIML_BENCH_SEEDS", count, count, int, "a whole number"))


def _positive(key: str, found: str, value: str, kind: type[Number], expected: str) -> Number:
    with suppress(ValueError):
        if 0 < kind(value) < math.inf:
            return kind(value)
    raise InputError("environment", key=key, found=found, expected=f"{expected}, above 0", fix="correct the number")


def store_of(name: str) -> Store:
    """The store of a data set of the project, built if it isn't there."""
    place = Path(f"stores/{name}.zarr")
    return open_store(place) if place.exists() else build(read_source(dataset(name)), str(place))


def say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", err=True)


def measured(bench: Bench, metric: str, peer: str | None = None) -> Row | None:
    """The row of that figure beside that peer, or None."""
    return next((row for row in bench.results.rows if (row.metric, row.peer_name) == (metric, peer)), None)


def paced(steps: int) -> tuple[str, ...]:
    """Assignments to a recipe: so many steps, validated ten times."""
    return (f"train.steps={steps}", f"train.validate_every={max(1, steps // 10)}",
            f"train.checkpoint_every={max(1, steps // 20)}")


class Average(optim.Average):
    """Of what is a number; what counts (a peer's index tables) is as it is."""

    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    self.weights[name].lerp_(value, 1 - decay)


def same(batch: TokenBatch) -> TokenBatch:
    return batch


@dataclass
class Trainer:
    """A model on its own clock of CPU seconds: rates follow the share of the budget; the averaged weights count.

    It is trained on the chain of the recipe's first data set. batch: samples a step. asked: what the objective sees of
    a batch, where a peer is asked something else than ours.
    """

    name: str
    predictor: Predictor
    store: Store
    recipe: Recipe
    train: TrainRecipe
    batch: int
    seconds: float
    asked: Callable[[TokenBatch], TokenBatch] = same
    used: float = 0.0
    step: int = 0

    def __post_init__(self) -> None:
        seed, entry = self.recipe.seed, self.recipe.data[0].model_copy(update={"batch": self.batch})
        (source,) = open_sources(self.recipe.model_copy(update={"data": (entry,)}), self.predictor, [self.store])
        data = MicroBatches((source,), Schedule.make(seed, [1.0], 200_000), seed)
        self.batches: Iterator[Sequence[TokenBatch]] = (data[i].links for i in itertools.count())
        self.chain, self.generator = source.chain, torch.Generator().manual_seed(seed)
        self.optimizers = optim.make_optimizers(self.predictor.operator, self.train)
        self.average = Average(self.predictor.operator, self.train.ema) if self.train.ema else None
        self.objective = registry.find("sciml.objectives", self.adapter.objective)
        self.failed = False

    @property
    def adapter(self) -> Any:
        return self.predictor.adapter(self.store.meta.domain)

    def advance(self, seconds: float) -> None:
        """Train so many CPU seconds more, data included; a model that isn't finite any more has failed."""
        operator = self.predictor.operator.train()
        until = min(self.seconds, self.used + seconds)
        while self.used < until and not self.failed:
            began = time.process_time()
            share = optim.scale_at(int(1e4 * self.used / self.seconds), 10_000, self.train)
            optim.set_rates(self.optimizers, share, self.train)
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            links = [self.asked(batch) for batch in next(self.batches)]
            answer = partial(answered, self.train, self.adapter, operator)
            going = Going(self.adapter, answer, self.objective, self.used / self.seconds, self.generator)
            loss = self.chain.losses(links, going).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(operator.parameters(), self.train.clip)
            for optimizer in self.optimizers.values():
                optimizer.step()
            if self.average is not None:
                self.average.update(operator)
            self.failed = not bool(torch.isfinite(loss))
            self.step += 1
            self.used += time.process_time() - began

    def averaged(self) -> Predictor:
        """The predictor, from now on with the averaged weights if they are averaged."""
        if self.average is not None:
            self.predictor.operator.load_state_dict(self.average.weights)
        return self.predictor


def train_together(trainers: Sequence[Any], pause: Callable[[Any], None] | None = None) -> None:
    """All to the end of their budgets, in turns, so that a machine that slows down slows all; `pause` after each turn
    of each, off its clock."""
    while any(each.used < each.seconds and not each.failed for each in trainers):
        for each in trainers:
            each.advance(min(SLICE_S, each.seconds / 10))
            if pause is not None:
                pause(each)


def calibrated(trainer: Any, share: float) -> int:
    """Steps that fit into a trainer's budget, by a fortieth of it; `share` of it is for training."""
    seconds = trainer.seconds
    trainer.advance(seconds / 80)
    warm, used = trainer.step, trainer.used
    trainer.advance(seconds / 40)
    return max(20, int(share * seconds * (trainer.step - warm) / max(trainer.used - used, 1e-9)))


def search(attempt: Callable[[Sequence[Setting]], Mapping[Setting, float]],
           rounds: Sequence[Callable[[Setting | None], Sequence[Setting]]], *, higher: bool = False) -> Setting:
    """The best of the settings that the rounds propose, each knowing the best of those before.

    >>> search(lambda some: {x: (x - 3) ** 2 for x in some}, [lambda _: (0, 4), lambda best: (best - 1, best + 1)])
    3
    """
    tried: dict[Setting, float] = {}
    sign = -1.0 if higher else 1.0
    best = None
    for propose in rounds:
        tried |= attempt(propose(best))
        best = min(tried, key=lambda each: sign * tried[each])
    assert best is not None
    return best


def parameters(predictor: Predictor) -> int:
    return sum(p.numel() for p in predictor.operator.parameters())


@dataclass(frozen=True)
class Bar:
    """least, most: of ours. ratio: of ours over the peer's. loss: that ours may be below the peer's. ahead: above it.
    None of all: reported beside."""

    what: str
    metric: str
    peer: str | None
    least: float | None = None
    most: float | None = None
    ratio: float | None = None
    loss: float | None = None
    ahead: bool = False

    @property
    def text(self) -> str:
        told = [f">= {self.least:g}" if self.least is not None else "",
                f"<= {self.most:g}" if self.most is not None else "",
                f"<= {self.ratio:.3g} of the peer's" if self.ratio is not None else "",
                f"at most {self.loss:g} below" if self.loss is not None else "", "above the peer's" * self.ahead]
        return ", ".join(filter(None, told)) or "-"

    def holds(self, row: Row) -> bool | None:
        peer = row.peer
        checks = [None if self.least is None else row.ours >= self.least,
                  None if self.most is None else row.ours <= self.most,
                  None if self.ratio is None or peer is None else row.ours <= self.ratio * peer,
                  None if self.loss is None or peer is None else row.ours >= peer - self.loss,
                  None if not self.ahead or peer is None else row.ours > peer]
        asked = [check for check in checks if check is not None]
        return all(asked) if asked else None


def judged(bars: Sequence[Bar], results: Results) -> list[dict[str, Any]]:
    """what, bar, ours, peer (with its name), verdict: met, missed, beside, or not measured. A bar of ours alone is also
    judged on a row without the peer."""
    rows = {(row.metric, row.peer_name): row for row in results.rows}
    made = []
    for bar in bars:
        alone = bar.most is not None or bar.least is not None
        row = rows.get((bar.metric, bar.peer)) or (rows.get((bar.metric, None)) if alone else None)
        if row is None:
            made.append({"what": bar.what, "bar": bar.text, "ours": "", "peer": bar.peer or "",
                         "verdict": "not measured"})
            continue
        holds = bar.holds(row)
        peer = "" if row.peer is None else f"{row.peer:.4g} ({row.peer_name})"
        made.append({"what": bar.what, "bar": bar.text, "ours": f"{row.ours:.4g} {row.unit}", "peer": peer,
                     "verdict": "beside" if holds is None else "met" if holds else "missed"})
    return made
