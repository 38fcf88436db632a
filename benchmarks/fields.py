"""Navier–Stokes 64², ours beside neuraloperator's FNO: same samples, loss and wall clock, interleaved.

    sciml bench fields

Each model is tuned on a tenth of the budget over batch {4, 16} and three learning rates, chosen by one-step error on the
validation split; the choice is trained on the whole budget for every seed. Training alternates between the models in
slices, each on its own clock, so that a machine that slows down slows both. The test split is read once, at the end.

Both see the same shifted samples and the forcing, and learn what persistence misses; ours by wavenumber (see
docs/design), FNO, as it is used, with one scale.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from sciml.metrics import energy_spectrum
from sciml.packing import collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.recipe import Recipe, TrainRecipe, load_recipe
from sciml.report.bench import Bench, Row
from sciml.rollout import rollout
from sciml.sampling import MicroBatches, Schedule, Source
from sciml.tokens import Outputs, TokenBatch

MINUTES = float(os.environ.get("SCIML_BENCH_MINUTES", "6"))
SEEDS = (0, 1)
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
    used: float = 0.0
    step: int = 0
    failed: bool = False
    batches: Iterator[TokenBatch] = field(init=False)

    def __post_init__(self) -> None:
        adapter = self.predictor.adapter("fields")
        source = Source("ns", adapter, adapter.open(self.store, "train", train=True), self.batch, 1.0)
        data = MicroBatches((source,), Schedule.make(self.seed, [1.0], 200_000), self.seed)
        self.batches = (data[i] for i in itertools.count())
        self.optimizers = optim.make_optimizers(self.predictor.operator, self.train)
        self.objective = registry.find("sciml.objectives", adapter.objective)

    def advance(self, seconds: float) -> None:
        torch.set_num_threads(self.threads)
        operator, adapter = self.predictor.operator.train(), self.predictor.adapter("fields")
        until = min(self.seconds, self.used + seconds)
        while self.used < until and not self.failed:
            began = time.perf_counter()
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
            self.used += time.perf_counter() - began

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


def trainer(kind: str, store: Store, batch: int, rate: float, seconds: float, seed: int, threads: int) -> Trainer:
    recipe = load_recipe(config("navier_stokes")).model_copy(update={"seed": seed})
    predictor = new_predictor(recipe, [store])
    if kind == "fno":
        torch.manual_seed(seed)
        peer: Any = FNO(predictor)
        predictor = Predictor(peer, {"fields": predictor.adapter("fields").floor()})
    changes = {"learning_rate": rate, "matrix_learning_rate": 10 * rate} if kind == "sciml" else {
        "learning_rate": rate, "optimizer": "adamw"}
    return Trainer(kind, predictor, store, recipe, batch, recipe.train.model_copy(update=changes), seconds, seed,
                   threads)


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
    """Test scores, and the factor by which the spectrum of a 200-step rollout is off the solver's, up to half Nyquist."""
    rows = evaluate(each.predictor, each.store, "test").rows
    found = {f"{row['question']}/{row['metric']}": row["value"] for row in rows}
    return {name: found[name] for name in ("one_step/relative_l2", "rollout_12/gmean_relative_l2")} | {
        f"rollout_{LONG}/spectrum_ratio": long_spectrum(each)}


def long_spectrum(each: Trainer, trajectories: int = 4) -> float:
    """Largest factor between mean energy spectra of model and solver over the second half of a long rollout."""
    from sciml.data.builders.navier_stokes import advance

    adapter, spectra = each.predictor.adapter("fields"), []
    starts = adapter.starts(each.store, "test")[:trajectories]
    for sample in starts:
        states = list(rollout(each.predictor, adapter.initial(sample), LONG))[LONG // 2:]
        frames = np.concatenate([adapter.observe(state)["vorticity"].values for state in states])
        spectra.append(energy_spectrum(frames, (1.0, 1.0))[1].mean(0))
    vorticity = np.stack([sample["vorticity"].values[0] for sample in starts])
    truth = advance(vorticity, starts[0]["viscosity"].item(), starts[0]["forcing"].values, each.store.meta.dt, LONG)
    reference = energy_spectrum(np.asarray(truth)[:, LONG // 2:].reshape(-1, *vorticity.shape[1:]), (1.0, 1.0))[1].mean(0)
    ours, half = np.mean(spectra, axis=0), vorticity.shape[-1] // 4
    ratio = ours[1: half + 1] / reference[1: half + 1]
    return float(np.maximum(ratio, 1 / ratio).max())


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
        ours, peer = (float(np.mean([m[name] for m in measured[kind]])) for kind in ("sciml", "fno"))
        bench.add(Row(metric=f"navier_stokes_64/{name}", unit="1", ours=ours, peer=peer, peer_name="neuraloperator_fno"))
        for seed, (a, b) in enumerate(zip(measured["sciml"], measured["fno"])):
            bench.add(Row(metric=f"navier_stokes_64/{name}_seed{SEEDS[seed]}", unit="1", ours=a[name], peer=b[name],
                          peer_name="neuraloperator_fno"))
    return bench
