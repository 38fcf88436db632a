"""Navier–Stokes 64², ours beside neuraloperator's FNO: same samples, loss and wall clock, interleaved.

    sciml bench fields

Each model is tuned on a tenth of the budget over batch {4, 16} and three learning rates, chosen by one-step error on
the validation split; the choice is trained on the whole budget for every seed, in slices that alternate between the
models, each on its own clock, so that a machine that slows down slows both. The test split is read once, at the end.

Both see the same shifted samples and the forcing, and learn what persistence misses; ours by wavenumber (see
docs/design), FNO, as it is used, with one scale.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from pretrain.workflow import new_predictor
from sciml import optim, registry
from sciml.assets import config, dataset
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import Store, open_store
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.metrics import energy_spectrum
from sciml.packing import collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.recipe import Recipe, TrainRecipe, load_recipe
from sciml.report.bench import Bench, Row
from sciml.rollout import BlowUp, rollout
from sciml.sampling import MicroBatches, Schedule, Source
from sciml.tokens import Outputs, TokenBatch

MINUTES = float(os.environ.get("SCIML_BENCH_MINUTES", "4"))
SEEDS = (0, 1, 2)
SLICE_S = 10.0
STORE = Path("stores/bench/navier_stokes.zarr")
BATCHES = (4, 16)
OUR_RATES = (1e-3, 2e-3, 4e-3)
FNO_RATES = (1e-3, 3e-3, 6e-3)
LONG = 200


class FNO(nn.Module):
    """neuraloperator's FNO, 16 modes, 32 channels, 4 layers, on the tokens that our operator gets, as channels."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        from neuralop.models import FNO as Peer

        self.specs = predictor.operator.specs
        given = len(self.specs["fields"].lattice_conditions)
        self.net = Peer(n_modes=(16, 16), in_channels=1 + given, out_channels=1, hidden_channels=32, n_layers=4)

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        channels = [batch.values[..., 0], *batch.conditions.lattice.values()]
        return Outputs({"state": self.net(torch.stack(channels, 1)).movedim(1, -1)})


@dataclass
class Trainer:
    """A model on its own clock: `advance(seconds)` trains that long; the schedule follows the share of the budget."""

    name: str
    predictor: Predictor
    store: Store
    recipe: Recipe
    batch: int
    train: TrainRecipe
    seconds: float
    seed: int = 0
    threads: int = 1
    clock: Callable[[], float] = time.perf_counter
    used: float = 0.0
    step: int = 0
    failed: bool = False
    batches: Iterator[TokenBatch] = field(init=False)

    def __post_init__(self) -> None:
        adapter = self.predictor.adapter("fields")
        source = Source("ns", adapter, adapter.open(self.store, "train", train=True), self.batch, 1.0)
        data = MicroBatches((source,), Schedule.make(self.seed, [1.0], 200_000), self.seed)
        self.batches = (data[i].links[0] for i in itertools.count())
        self.optimizers = optim.make_optimizers(self.predictor.operator, self.train)
        self.objective = registry.find("sciml.objectives", adapter.objective)

    def advance(self, seconds: float) -> None:
        torch.set_num_threads(self.threads)
        operator, adapter = self.predictor.operator.train(), self.predictor.adapter("fields")
        until = min(self.seconds, self.used + seconds)
        while self.used < until and not self.failed:
            began = self.clock()
            optim.set_rates(self.optimizers, self._scale(), self.train)
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            batch = next(self.batches)
            loss = self.objective(forward(adapter, operator, batch), batch).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(operator.parameters(), self.train.clip)
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.failed = not bool(torch.isfinite(loss))
            self.step += 1
            self.used += self.clock() - began

    def _scale(self) -> float:
        return optim.scale_at(int(1e4 * self.used / self.seconds), 10_000, self.train)

    @torch.no_grad()
    def validation(self, count: int = 96) -> float:
        """Mean one-step relative L2 error over validation pairs."""
        if self.failed:
            return float("inf")
        adapter = self.predictor.adapter("fields")
        windows, rng = adapter.open(self.store, "validation"), np.random.default_rng(0)
        errors: list[Tensor] = []
        with evaluating(self.predictor.operator):
            for part in np.array_split(np.linspace(0, len(windows) - 1, count).astype(int), count // 16):
                batch = collate([adapter.encode(windows.draw(int(i), rng, rng)) for i in part])
                errors.append(self.objective(self.predictor.operator(batch), batch))
        return float(torch.cat(errors).mean())


def trainer(kind: str, store: Store, batch: int, rate: float, seconds: float, seed: int, threads: int,
            clock: Callable[[], float] = time.perf_counter) -> Trainer:
    keep_freed()
    recipe = load_recipe(config("navier_stokes")).model_copy(update={"seed": seed})
    predictor = new_predictor(recipe, [store])
    if kind == "fno":
        torch.manual_seed(seed)
        peer: Any = FNO(predictor)
        predictor = Predictor(peer, {"fields": predictor.adapter("fields").floor()})
    changes = {"learning_rate": rate, "matrix_learning_rate": 10 * rate} if kind == "sciml" else {
        "learning_rate": rate, "optimizer": "adamw"}
    return Trainer(kind, predictor, store, recipe, batch, recipe.train.model_copy(update=changes), seconds, seed,
                   threads, clock)


def train_together(trainers: list[Trainer]) -> None:
    while any(t.used < t.seconds and not t.failed for t in trainers):
        for each in trainers:
            each.advance(min(SLICE_S, each.seconds / 10))


def best_threads(store: Store, kind: str) -> int:
    """1 or 2, whichever makes more steps of batch 4 in a few seconds."""
    steps = {}
    for threads in (2, 1):
        each = trainer(kind, store, 4, 1e-3, 60.0, 0, threads)
        each.advance(1.0)
        warm = each.step
        each.advance(4.0)
        steps[threads] = each.step - warm
    click.echo(f"{kind}: steps in 4 s by threads {steps}", err=True)
    return max(steps, key=lambda n: steps[n])


def tuned(store: Store, seconds: float, threads: dict[str, int]) -> dict[str, tuple[int, float]]:
    """The best (batch, learning rate) of each model on a tenth of the budget, by validation."""
    grid = [("sciml", b, r) for b in BATCHES for r in OUR_RATES] + [("fno", b, r) for b in BATCHES for r in FNO_RATES]
    trainers = [trainer(kind, store, b, r, seconds, 0, threads[kind]) for kind, b, r in grid]
    train_together(trainers)
    best: dict[str, tuple[float, int, float]] = {}
    for (kind, b, r), each in zip(grid, trainers):
        error = each.validation()
        click.echo(f"tuning {kind}: batch {b}, rate {r:g}, {each.step} steps, validation {error:.4f}", err=True)
        best[kind] = min(best.get(kind, (float("inf"), b, r)), (error, b, r))
    return {kind: (b, r) for kind, (_, b, r) in best.items()}


def scores(each: Trainer) -> dict[str, float]:
    """Test scores, and how a 200-step rollout ends."""
    torch.set_num_threads(each.threads)
    rows = evaluate(each.predictor, each.store, "test").rows
    found = {f"{row['question']}/{row['metric']}": row["value"] for row in rows}
    wanted = ("one_step/relative_l2", "rollout_12/gmean_relative_l2", "rollout_12/correlation_time")
    return {name: found[name] for name in wanted} | long_rollout(each)


def long_rollout(each: Trainer, trajectories: int = 4) -> dict[str, float]:
    """Finite steps (the fewest of all trajectories) and, if all are, the largest factor between the mean energy spectra
    of model and solver over the second half, up to half the Nyquist wavenumber."""
    adapter, spectra, finite = each.predictor.adapter("fields"), [], LONG
    starts = adapter.starts(each.store, "test")[:trajectories]
    for sample in starts:
        states = []
        with suppress(BlowUp):
            states.extend(rollout(each.predictor, adapter.initial(sample), LONG))
        finite = min(finite, len(states))
        if len(states) == LONG:
            frames = np.concatenate([adapter.observe(state)["vorticity"].values for state in states[LONG // 2:]])
            spectra.append(energy_spectrum(frames, (1.0, 1.0))[1].mean(0))
    result = {f"rollout_{LONG}/finite_steps": float(finite)}
    if finite < LONG:
        return result
    reference = solver_spectrum(each.store.url, trajectories)
    half = (len(reference) - 1) // 2
    ratio = (np.mean(spectra, axis=0) / reference)[1: half + 1]
    click.echo(f"{each.name} seed {each.seed}: spectrum over the solver's {np.round(ratio, 2).tolist()}", err=True)
    return result | {f"rollout_{LONG}/spectrum_ratio": float(np.maximum(ratio, 1 / ratio).max())}


@lru_cache(maxsize=1)
def solver_spectrum(url: str, trajectories: int) -> np.ndarray:
    """Mean energy spectrum of the solver over the second half of the same long rollouts."""
    from sciml.data.builders.navier_stokes import advance

    store = open_store(url)
    groups = [block.group for block in store.meta.splits.test][:trajectories]
    first = np.stack([store.read("vorticity", group, 0, 1)[0] for group in groups]).astype(np.float64)
    viscosity, forcing = float(store.read("viscosity", groups[0])), store.read("forcing", groups[0])
    truth = np.asarray(advance(first, viscosity, forcing, store.meta.dt or 1.0, LONG))
    return energy_spectrum(truth[:, LONG // 2:].reshape(-1, *first.shape[1:]), (1.0, 1.0))[1].mean(0)


def run() -> Bench:
    """All models are trained together, so a run that was stopped starts again."""
    bench = Bench.load_or_new("fields", seeds=SEEDS)
    source = read_source(dataset("navier_stokes"))
    store = open_store(STORE) if STORE.exists() else build(source, str(STORE))
    seconds = MINUTES * 60
    threads = {kind: best_threads(store, kind) for kind in ("sciml", "fno")}
    chosen = tuned(store, seconds / 10, threads)
    click.echo(f"chosen on validation: {chosen}", err=True)
    trainers = [trainer(kind, store, *chosen[kind], seconds, seed, threads[kind])
                for seed in SEEDS for kind in ("sciml", "fno")]
    train_together(trainers)
    measured: dict[str, list[dict[str, float]]] = {"sciml": [], "fno": []}
    for each in trainers:
        measured[each.name].append(scores(each))
        click.echo(f"{each.name} seed {each.seed}: {each.step} steps, {measured[each.name][-1]}", err=True)
    for name in measured["sciml"][0]:
        ours, peers = ([m.get(name) for m in measured[kind]] for kind in ("sciml", "fno"))
        add(bench, name, mean(ours), mean(peers))
        for seed, a, b in zip(SEEDS, ours, peers):
            add(bench, f"{name}_seed{seed}", a, b)
    return bench


def mean(values: Sequence[float | None]) -> float | None:
    """None if a seed has no value (its rollout blew up)."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def add(bench: Bench, name: str, ours: float | None, peer: float | None) -> None:
    if ours is not None:
        unit = {"correlation_time": "s", "finite_steps": "steps"}.get(name.partition("/")[2].partition("_seed")[0], "1")
        bench.add(Row(metric=f"navier_stokes_64/{name}", unit=unit, ours=ours, peer=peer,
                      peer_name="neuraloperator_fno"))
