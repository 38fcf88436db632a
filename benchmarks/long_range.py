"""Every mixer on tasks of 1k to 4k tokens: quality × time × memory, beside a bag of tokens.

    SCIML_BENCH_SECONDS=60 SCIML_BENCH_TASKS=listops,pathfinder_32 sciml bench long_range

ListOps (1024 tokens, ten classes) and pathfinder (32×32 and 64×64 tokens, two classes), made by
`benchmarks/long_range_tasks.py`. A model is a token embedding, blocks of our own with one mixer (or a few in turn), and
a small network on the mean over tokens; the bag of tokens is the same without blocks. All train for the same CPU
seconds on one thread, in slices that alternate between the models; the learning rate is the better of two on the
validation split, each tried for a tenth of the budget. The test split is read once, at the end. Training may see
smaller sizes first, as weights fit any; validation and test are always of the full size.

Time is that of one training step of batch 16, the median over rounds in which every model makes one; memory is what
that step allocates at most beyond what was there before it. Rows are written down one by one, and a run that was
stopped goes on from them; models train in groups, so that a stop loses one group at most.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml import optim, registry, tokens
from sciml.cli.bench import load_script
from sciml.errors import InputError
from sciml.mixers.contract import make_mixer
from sciml.mixers.geometry import Geometry
from sciml.operator.block import Block
from sciml.operator.config import LevelConfig
from sciml.recipe import TrainRecipe
from sciml.report.bench import Bench, Row

made = load_script(Path(__file__).with_name("long_range_tasks.py"))

SECONDS = float(os.environ.get("SCIML_BENCH_SECONDS", "60"))
SEED, BATCH, WIDTH, HEAD_WIDTH, DEPTH, CONDITION_WIDTH = 1, 16, 64, 32, 2, 8
RATES = (1e-3, 3e-3)
GROUP, NUM_SLICES, NUM_ROUNDS = 6, 10, 5
BAG = "bag_of_tokens"
PICTURE = Path(__file__).resolve().parent.parent / "docs/pictures/long_range.png"
Turns = tuple[tuple[Any, ...], ...]
COMBINED: Mapping[str, Turns] = {
    "axial_and_local": (("axial", "local"),),
    "window_shifted": (({"window": {"size": 16}},), ({"window": {"size": 16, "shift": True}},)),
    "local_local_full": (("local",), ("local",), ("full",)),
}
"""What the blocks take in turn: our default, shifted windows, and mostly local layers with a full one (MASFormer)."""
ALONE: Mapping[str, Mapping[str, Any]] = {"latent": {"groups": 16}, "linear": {"kind": "elu"}}
"""Options of mixers whose default sees a set: with these they know positions, as every other one does."""


@dataclass(frozen=True, eq=False)
class Task:
    """sizes: (share of the budget, size) in the order of training, the last of them is the size that is tested.

    counts: samples of each split at the full size; smaller ones have four times as many for training.
    """

    name: str
    num_tokens: int
    num_classes: int
    draw: Callable[..., Any]
    axes: Callable[[int], tuple[tokens.Axis, ...]]
    sizes: tuple[tuple[float, int], ...]
    counts: Mapping[str, int]

    def size_at(self, share: float) -> int:
        passed = 0.0
        for part, size in self.sizes:
            passed += part
            if share < passed:
                return size
        return self.sizes[-1][1]

    @property
    def size(self) -> int:
        return self.sizes[-1][1]


def line(size: int) -> tuple[tokens.Axis, ...]:
    """One axis, both ways. The reference length is 32 tokens: rotary wavelengths from 4 to 512 of them."""
    return (tokens.time("position", torch.arange(size) / 32),)


def square(size: int) -> tuple[tokens.Axis, ...]:
    """Two axes; the reference length is 16 cells: rotary wavelengths from 2 to 256."""
    return tuple(tokens.space(name, torch.arange(size) / 16) for name in ("y", "x"))


ALL_TASKS = (
    Task("listops", made.NUM_LISTOPS_TOKENS, 10, made.listops, line, ((0.5, 128), (0.2, 256), (0.3, 1024)),
         {"train": 2000, "validation": 256, "test": 1000}),
    Task("pathfinder_32", made.NUM_PATHFINDER_TOKENS, 2, made.pathfinder, square, ((0.4, 16), (0.2, 24), (0.4, 32)),
         {"train": 8000, "validation": 256, "test": 1000}),
    Task("pathfinder_64", made.NUM_PATHFINDER_TOKENS, 2, made.pathfinder, square, ((0.4, 16), (0.3, 32), (0.3, 64)),
         {"train": 1000, "validation": 64, "test": 500}),
)
TASKS = tuple(task for task in ALL_TASKS
              if task.name in os.environ.get("SCIML_BENCH_TASKS", ",".join(each.name for each in ALL_TASKS)).split(","))


@cache
def data(task: Task, size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Split → tokens ``(N, *lattice)`` and labels ``(N,)``; only the full size has more than a training split."""
    counts = dict(task.counts) if size == task.size else {"train": 4 * task.counts["train"]}
    splits = made.make(task.draw, size, counts, SEED)
    return {split: (torch.from_numpy(x), torch.from_numpy(y)) for split, (x, y) in splits.items()}


class Classifier(nn.Module):
    """Embedding, blocks (none: a bag of tokens), a small network on the mean over tokens."""

    def __init__(self, task: Task, turns: Turns) -> None:
        super().__init__()
        self.axes = task.axes
        self.embedding = nn.Embedding(task.num_tokens, WIDTH)
        config = LevelConfig.model_validate({"width": WIDTH, "head_width": HEAD_WIDTH, "mixers": turns})
        depth = max(DEPTH, len(turns)) if turns else 0
        # Muon knows the name
        self.levels = nn.ModuleList(Block(config, i, CONDITION_WIDTH, 0.0, "token") for i in range(depth))
        self.head = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, task.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, *lattice)`` → logits ``(B, classes)``."""
        h = self.embedding(x.long())  # (B, *lattice, C)
        geometry, condition = Geometry(self.axes(x.shape[1])), h.new_zeros(1, CONDITION_WIDTH)
        for block in self.levels:
            block.prepare(geometry)  # type: ignore[operator]
        for block in self.levels:
            h = block(h, condition, geometry)
        if self.levels:
            h = F.rms_norm(h, (WIDTH,))
        return self.head(h.flatten(1, -2).mean(1))


class Trainer:
    """A model on its own CPU clock: `advance(seconds)` trains that long; rates follow the share of the budget."""

    def __init__(self, task: Task, name: str, turns: Turns, rate: float, seconds: float) -> None:
        self.task, self.name, self.seconds = task, name, seconds
        self.used, self.steps, self.failed = 0.0, 0, False
        torch.manual_seed(SEED)
        self.model = Classifier(task, turns)
        self.recipe = TrainRecipe(steps=1, learning_rate=rate, matrix_learning_rate=10 * rate)
        self.optimizers = optim.make_optimizers(self.model, self.recipe)
        self.rng = np.random.default_rng(SEED)

    def step(self, size: int, scale: float) -> float:
        """One step of batch 16; the CPU seconds it took."""
        x, y = data(self.task, size)["train"]
        rows = torch.from_numpy(self.rng.integers(0, len(x), BATCH))
        began = time.process_time()
        optim.set_rates(self.optimizers, scale, self.recipe)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(x[rows]), y[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.failed = not bool(torch.isfinite(loss))
        return time.process_time() - began

    def advance(self, seconds: float) -> None:
        until = min(self.seconds, self.used + seconds)
        while self.used < until and not self.failed:
            share = self.used / self.seconds
            self.used += self.step(self.task.size_at(share), optim.scale_at(int(1e4 * share), 10_000, self.recipe))
            self.steps += 1

    @torch.no_grad()
    def accuracy(self, split: str) -> float:
        """Share of a split that is classified correctly; 0 if training failed."""
        if self.failed:
            return 0.0
        x, y = data(self.task, self.task.size)[split]
        logits = [self.model(part) for part in x.split(BATCH)]
        return float((torch.cat(logits).argmax(-1) == y).double().mean())


def train_together(trainers: Sequence[Trainer]) -> None:
    while any(each.used < each.seconds and not each.failed for each in trainers):
        for each in trainers:
            each.advance(each.seconds / NUM_SLICES)


def models(task: Task) -> dict[str, Turns]:
    """Name → mixers of the blocks in turn: the bag, every mixer that acts on these axes, the named combinations."""
    alone = {name: (({name: ALONE[name]} if name in ALONE else name,),) for name in registry.names("sciml.mixers")
             if any(make_mixer(name, ALONE.get(name, {}), WIDTH, WIDTH // HEAD_WIDTH).admits(axis)
                    for axis in task.axes(task.size))}
    known = {name: turns for name, turns in COMBINED.items()
             if all(mixer in alone for turn in turns for entry in turn for mixer in ([entry] if isinstance(entry, str)
                                                                                     else entry))}
    return {BAG: (), **alone, **known}


def peak_bytes(trainer: Trainer) -> int:
    """The most that one training step of the full size holds at any time beyond what it found, by the allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.step(trainer.task.size, 0.0)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    if not events:
        raise InputError("torch.profiler", found="no memory events", expected="one per allocation",
                         fix="use a torch with kineto")
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(0, int(np.cumsum(changes).max()))


def measure_steps(bench: Bench, task: Task, wanted: Mapping[str, Turns]) -> None:
    """Rows of time and memory of a step at the full size; every model makes one step per round."""
    missing = {name: turns for name, turns in wanted.items() if not bench.has(f"{task.name}/{name}/step_ms")}
    trainers = [Trainer(task, name, turns, 0.0001, 1.0) for name, turns in missing.items()]
    for each in trainers:
        each.step(task.size, 0.0)  # warm-up: optimizers have their state from here on
        add(bench, task, each.name, "step_mib", "MiB", peak_bytes(each) / 2**20)
    rounds = [[each.step(task.size, 0.0) for each in trainers] for _ in range(NUM_ROUNDS)]
    for each, *times in zip(trainers, *rounds):
        add(bench, task, each.name, "step_ms", "ms", 1e3 * statistics.median(times))


def tune(bench: Bench, task: Task, group: Mapping[str, Turns], seconds: float) -> dict[str, float]:
    """Name → the better learning rate on validation after a tenth of the budget."""
    missing = [name for name in group if not bench.has(f"{task.name}/{name}/learning_rate")]
    trainers = {(name, rate): Trainer(task, name, group[name], rate, seconds / 10)
                for name in missing for rate in RATES}
    train_together(list(trainers.values()))
    for name in missing:
        scores = {rate: trainers[name, rate].accuracy("validation") for rate in RATES}
        add(bench, task, name, "learning_rate", "1", max(RATES, key=lambda rate: scores[rate]))
        click.echo(f"{task.name}, {name}: validation accuracy by rate {scores}", err=True)
    return {name: value(bench, task, name, "learning_rate") for name in group}


def measure_accuracy(bench: Bench, task: Task, group: Mapping[str, Turns], seconds: float) -> None:
    """Rows of steps and test accuracy beside the bag of tokens, which is in the first group."""
    rates = tune(bench, task, group, seconds)
    trainers = [Trainer(task, name, turns, rates[name], seconds) for name, turns in group.items()]
    train_together(trainers)
    for each in trainers:
        add(bench, task, each.name, "steps", "steps", float(each.steps))
        reached = each.accuracy("test")
        bag = None if each.name == BAG else value(bench, task, BAG, "accuracy")
        add(bench, task, each.name, "accuracy", "1", reached, bag)
        click.echo(f"{task.name}, {each.name}: {each.steps} steps, accuracy {reached:.3f}", err=True)


def add(bench: Bench, task: Task, name: str, measure: str, unit: str, ours: float, peer: float | None = None) -> None:
    bench.add(Row(metric=f"{task.name}/{name}/{measure}", unit=unit, ours=ours, peer=peer,
                  peer_name=None if peer is None else BAG))


def value(bench: Bench, task: Task, name: str, measure: str) -> float:
    return next(row.ours for row in bench.results.rows if row.metric == f"{task.name}/{name}/{measure}")


def check_budget(bench: Bench, seconds: float) -> None:
    """Raises `InputError` if the rows to go on from were measured with another budget."""
    known = next((row.ours for row in bench.results.rows if row.metric == "setting/budget/seconds"), seconds)
    if known != seconds:
        raise InputError(bench.partial, key="setting/budget/seconds", found=f"{known:g}", expected=f"{seconds:g}",
                         fix="set SCIML_BENCH_SECONDS to what was found, or delete the file")
    bench.add(Row(metric="setting/budget/seconds", unit="s", ours=seconds))


def has_accuracy(bench: Bench, task: Task, name: str) -> bool:
    return bench.has(f"{task.name}/{name}/accuracy", None if name == BAG else BAG)


def run(place: Path | None = None, picture: Path = PICTURE, seconds: float = SECONDS) -> Bench:
    """Measure what is missing and draw; `place`: folder of the results."""
    torch.set_num_threads(1)
    bench = Bench.load_or_new("long_range", seeds=(SEED,), place=place)
    check_budget(bench, seconds)
    for task in TASKS:
        wanted = models(task)
        click.echo(f"{task.name}: {', '.join(wanted)}", err=True)
        measure_steps(bench, task, wanted)
        labels = data(task, task.size)["test"][1]
        add(bench, task, "chance", "accuracy", "1", float(torch.bincount(labels).max() / len(labels)))
        names = [name for name in wanted if not has_accuracy(bench, task, name)]
        for first in range(0, len(names), GROUP):
            measure_accuracy(bench, task, {name: wanted[name] for name in names[first: first + GROUP]}, seconds)
        data.cache_clear()
    draw(bench, picture)
    return bench


def draw(bench: Bench, path: Path) -> None:
    """Accuracy against the time of a step, one set of axes per task; the area of a mark is the memory of a step."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        drawing = Figure(figsize=(7.5, 4.2 * len(TASKS)), layout="constrained")
        for task, ax in zip(TASKS, drawing.subplots(len(TASKS), squeeze=False)[:, 0]):
            draw_task(bench, task, ax)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=110, metadata={"Software": None})


def draw_task(bench: Bench, task: Task, ax: Any) -> None:
    """Marks of all models with their names; lines for the bag and for chance."""
    known = [row.metric.split("/")[1] for row in bench.results.rows
             if row.metric.startswith(f"{task.name}/") and row.metric.endswith("/step_ms")]
    names = sorted((name for name in known if name != BAG),
                   key=lambda name: (value(bench, task, name, "accuracy"), value(bench, task, name, "step_ms")))
    times, memory, reached = ([value(bench, task, name, measure) for name in names]
                              for measure in ("step_ms", "step_mib", "accuracy"))
    areas = [900 * each / max(memory) for each in memory]
    ax.scatter(times, reached, s=areas, alpha=0.35, color="tab:blue", linewidths=0)
    ax.scatter(times, reached, s=6, color="tab:blue")
    ax.set_xscale("log")
    shown = [*reached, *(value(bench, task, name, "accuracy") for name in (BAG, "chance"))]
    span = max(max(shown) - min(shown), 0.05)
    heights = spaced(reached, 0.07 * span)
    ax.set_ylim(min(*shown, *heights) - 0.08 * span, max(*shown, *heights) + 0.08 * span)
    ax.set_xlim(min(times) / 1.6, max(times) * 2.6)
    for name, x, y, height in zip(names, times, reached, heights):
        ax.annotate(name.replace("_", " "), (x, y), xytext=(max(times) * 1.35, height), fontsize=8, va="center",
                    arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.6})
    for name, dash, side in ((BAG, "--", "bottom"), ("chance", ":", "top")):
        ax.axhline(value(bench, task, name, "accuracy"), color="0.4", linestyle=dash, linewidth=1)
        ax.annotate(name.replace("_", " "), (min(times) / 1.55, value(bench, task, name, "accuracy")), color="0.4",
                    fontsize=8, va=side)
    count = int(np.prod([axis.size for axis in task.axes(task.size)]))
    ax.set_title(f"{task.name}, {count} tokens; area: memory of a step, {min(memory):.0f} to {max(memory):.0f} MiB",
                 loc="left", fontsize=8.5)
    ax.set_xlabel(f"CPU ms per training step of batch {BATCH}")
    ax.set_ylabel("test accuracy")


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved up where they are closer than `gap`, then down together by half of the excess."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    excess = (moved[-1] - heights[-1]) if moved else 0.0
    return [height - excess / 2 for height in moved]
