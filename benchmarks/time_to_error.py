"""Navier–Stokes 64² and 128²: how long ours and neuraloperator's FNO train for an equal validation error.

    sciml bench time_to_error

A model whose learning rate decays over its budget is at its best at the end, so the fair question is one of budgets:
FNO trains for SCIML_BENCH_MINUTES (default 4; half of that at 128²) on a schedule of that length, ours
(`configs/navier_stokes.yaml`) for half of it on a schedule of half the length. ``half_the_time`` is the final one-step
validation error of both: a ratio of at most 1 says that ours needs at most half the time. ``equal_error`` is the
training time at which each first had, on 32 validation pairs, the best error that FNO of the same seed ever had.

Models, samples, loss and clocks are those of `benchmarks/fields_peers.py`; each model is tuned on a tenth of its own
budget, by validation: three learning rates at a middle batch, then a smaller and a larger batch. All seeds of both
models train in turns over the same stretch of time, on one thread each and on the clock of the processor, so that other
work on the machine delays the run and not the models; validation is on nobody's clock. Curves:
results/time_to_error_<side>.csv.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from sciml.assets import config, dataset
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.data.source import SourceSpec, read_source
from sciml.data.split_config import GroupSplit
from sciml.data.store import Store, open_store
from sciml.recipe import Recipe, load_recipe
from sciml.report.bench import Bench, Row

common = load_script(Path(__file__).with_name("common.py"))
peers = load_script(Path(__file__).with_name("fields_peers.py"))

MINUTES = float(os.environ.get("SCIML_BENCH_MINUTES", "4"))
SEEDS = (0, 1, 2)
OUR_SHARE = 0.5
POINTS, PAIRS, FINAL_PAIRS = 20, 32, 96
KINDS = ("sciml", "fno")
RATES = {"sciml": peers.OUR_RATES, "fno": peers.RATES}
PEER = "neuraloperator_fno"

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Setting:
    """A resolution. share: of the minutes; batches: the middle one first; path: of the store, built if not there."""

    side: int
    share: float
    batches: tuple[int, int, int]
    path: Path

    @property
    def name(self) -> str:
        return f"navier_stokes_{self.side}"

    def seconds(self, kind: str) -> float:
        """Of training: FNO's budget, or our share of it."""
        return float(60 * MINUTES * self.share * (OUR_SHARE if kind == "sciml" else 1.0))


SETTINGS = (Setting(64, 1.0, (4, 2, 8), Path("stores/bench/navier_stokes.zarr")),
            Setting(128, 0.5, (2, 1, 4), Path("stores/bench/navier_stokes_128.zarr")))


def source_of(setting: Setting) -> SourceSpec:
    """`datasets/navier_stokes`; beyond 64² fewer trajectories, which cost eight times as much each."""
    source = read_source(dataset("navier_stokes"))
    if setting.side == 64:
        return source
    options = source.options | {"resolution": setting.side, "trajectories": 32, "spin_up": 12.0}
    split = GroupSplit.model_validate({"by": "group", "counts": {"train": 24, "validation": 6, "test": 2},
                                       "seed": None})
    return source.model_copy(update={"name": setting.name, "options": options, "split": split})


def store_of(setting: Setting) -> Store:
    if setting.path.exists():
        return open_store(setting.path)
    click.echo(f"building {setting.path}", err=True)
    return build(source_of(setting), str(setting.path))


def recipe() -> Recipe:
    return load_recipe(config("navier_stokes"))


def tuned(setting: Setting, store: Store) -> dict[str, tuple[int, float]]:
    """The best (batch, learning rate) of each model on a tenth of its budget, by validation."""
    middle, *others = setting.batches
    errors: dict[str, dict[tuple[int, float], float]] = {kind: {} for kind in KINDS}

    def train(grid: Sequence[tuple[str, int, float]]) -> None:
        trainers = [peers.trainer(kind, (rate, b), recipe(), store, setting.seconds(kind) / 10)
                    for kind, b, rate in grid]
        common.train_together(trainers)
        for (kind, b, rate), each in zip(grid, trainers):
            errors[kind][b, rate] = peers.validation(each, FINAL_PAIRS)
            click.echo(f"tuning {kind} at {setting.side}²: batch {b}, rate {rate:g}, {each.step} steps, "
                       f"validation {errors[kind][b, rate]:.4f}", err=True)

    train([(kind, middle, rate) for kind in KINDS for rate in RATES[kind]])
    rates = {kind: best(errors[kind])[1] for kind in KINDS}
    train([(kind, b, rates[kind]) for kind in KINDS for b in others])
    return {kind: best(errors[kind]) for kind in KINDS}


def best(errors: dict[tuple[int, float], float]) -> tuple[int, float]:
    return min(errors, key=lambda setting: errors[setting])


def train_in_turns(trainers: Sequence[Any]) -> list[Curve]:
    """Train all to the end, each a share of its budget a turn; (seconds trained, validation error) after every turn."""
    curves: list[Curve] = [[] for _ in trainers]
    while any(each.used < each.seconds and not each.failed for each in trainers):
        for each, curve in zip(trainers, curves):
            if each.used < each.seconds and not each.failed:
                each.advance(each.seconds / POINTS)
                curve.append((each.used, peers.validation(each, PAIRS)))
    return curves


def first_time(curve: Curve, error: float) -> float | None:
    """The training time at which the curve first was at or below `error`."""
    return next((seconds for seconds, value in curve if value <= error), None)


def equal_error(ours: Curve, peer: Curve) -> tuple[float | None, float]:
    """Seconds until each first had the best error of the peer; None if ours never had it."""
    error = min(value for _, value in peer)
    reached = first_time(peer, error)
    assert reached is not None
    return first_time(ours, error), reached


def measure(bench: Bench, setting: Setting) -> None:
    """Tune, train and compare at one resolution; all models train together, so that this starts again after a stop."""
    store = store_of(setting)
    chosen = tuned(setting, store)
    click.echo(f"chosen on validation at {setting.side}²: {chosen}", err=True)
    trainers = {(kind, seed): peers.trainer(kind, chosen[kind][::-1], recipe(), store, setting.seconds(kind), seed)
                for seed in SEEDS for kind in KINDS}
    curves = dict(zip(trainers, train_in_turns(list(trainers.values()))))
    write_curves(bench.place / f"time_to_error_{setting.side}.csv", curves)
    add(bench, setting, "equal_error/train_seconds", "s",
        [equal_error(curves["sciml", seed], curves["fno", seed]) for seed in SEEDS])
    add(bench, setting, "half_the_time/train_seconds", "s",
        [(trainers["sciml", seed].used, trainers["fno", seed].used) for seed in SEEDS])
    add(bench, setting, "half_the_time/steps", "steps",
        [(trainers["sciml", seed].step, trainers["fno", seed].step) for seed in SEEDS])
    add(bench, setting, "half_the_time/validation_relative_l2", "1",
        [tuple(peers.validation(trainers[kind, seed], FINAL_PAIRS) for kind in KINDS)  # type: ignore[misc]
         for seed in SEEDS])


def write_curves(path: Path, curves: dict[tuple[str, int], Curve]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "seed", "train_seconds", "validation_relative_l2"])
        for (kind, seed), curve in curves.items():
            writer.writerows([kind, seed, f"{seconds:.2f}", f"{error:.6g}"] for seconds, error in curve)


def add(bench: Bench, setting: Setting, name: str, unit: str, pairs: Sequence[tuple[float | None, float]]) -> None:
    """A row per seed and their mean; a seed of which ours is None has no row, and then there is no mean."""
    for seed, (ours, peer) in zip(SEEDS, pairs):
        if ours is None:
            click.echo(f"{setting.name}/{name}: ours of seed {seed} did not get there", err=True)
        else:
            bench.add(Row(metric=f"{setting.name}/{name}_seed{seed}", unit=unit, ours=ours, peer=peer, peer_name=PEER))
    known = [(ours, peer) for ours, peer in pairs if ours is not None]
    if len(known) == len(pairs):
        ours, peer = (float(np.mean(values)) for values in zip(*known))
        bench.add(Row(metric=f"{setting.name}/{name}", unit=unit, ours=ours, peer=peer, peer_name=PEER))
        click.echo(f"{setting.name}/{name}: {ours:.4g} of {peer:.4g}", err=True)


def run() -> Bench:
    bench = Bench.load_or_new("time_to_error", seeds=SEEDS)
    for setting in SETTINGS:
        if not bench.has(f"{setting.name}/half_the_time/validation_relative_l2", PEER):
            measure(bench, setting)
    return bench
