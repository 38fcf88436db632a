"""S1 (52 units, 50 ms bins, contiguous 70/10/20 with gaps of 1 s) beside a Poisson GLM, a GRU and ridge decoders.

    SCIML_MIRROR=folder/with/s1 sciml bench spikes

Recipes of one operator: next bin (configs/s1.yaml), held-out units (s1_masked.yaml), velocity from ±5 bins and from the
10 past bins (s1_velocity_centred.yaml, s1_velocity_causal.yaml). Everything is selected on validation: the GLMs' bases
and penalties, the ridge's, the training step, the GRU's rate and dropout (each tried for a tenth of the budget). The
test split is read once per seed. Peers: ``glm`` is the strongest that validation picks, with slow averages of every
unit's past (of both sides for held-out units); ``glm_5_lags`` and ``glm_3_bins`` are plain ones of raw bins; ``gru``
has 128 units and gets the CPU seconds that ours took. ``…_committee``: mean prediction of the models of all seeds.

Few labels: the velocity decoder from 1, 5 and 10 % of the labelled training minutes (contiguous, its place drawn per
seed), from scratch and from a checkpoint pretrained on unlabelled activity (hidden cells of the training split); both
correct a ridge that is fitted to the same labels. The training step is chosen on the validation split, which has all
its labels.

SCIML_BENCH_PARTS: next, masked, centred, causal, few; SCIML_BENCH_SEEDS: how many seeds. What is done is written down
seed by seed, and trainings go on after a stop, in ``runs/bench_spikes``.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.workflow import finetune
from pretrain.workflow import pretrain
from sciml.assets import config, dataset
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import Store, open_store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.fitted import held_out_of, recordings_of
from sciml.domains.spikes.glm import FORWARD_BASES, HELD_OUT_BASES, select
from sciml.domains.spikes.history import Basis
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.metrics import bits_per_spike
from sciml.evaluate import evaluate
from sciml.predictor import Predictor
from sciml.recipe import load_recipe
from sciml.report.bench import Bench, Row
from sciml.tokens import Outputs, TokenBatch

SEEDS = tuple(range(int(os.environ.get("SCIML_BENCH_SEEDS", "3"))))
PARTS = os.environ.get("SCIML_BENCH_PARTS", "next,masked,centred,causal,few").split(",")
RUNS = Path("runs/bench_spikes")
STORE = Path("stores/s1.zarr")
QUICK = ("domains.spikes.floor=smoothed",)
"""The GLMs are fitted once, here, not in every run."""
SHARES = (0.01, 0.05, 0.1)
GRU_RATES, GRU_DROPOUTS, GRU_WIDTH, GRU_STEPS, GRU_BATCH = (1e-3, 3e-3), (0.0, 0.3), 128, 128, 8


def run() -> Bench:
    bench = Bench.load_or_new("spikes", seeds=SEEDS)
    store = open_store(STORE) if STORE.exists() else build(read_source(dataset("s1")), str(STORE))
    torch.set_num_threads(1)
    if "next" in PARTS:
        measure_next(bench, store)
    if "masked" in PARTS:
        measure_masked(bench, store)
    for part in ("centred", "causal"):
        if part in PARTS:
            measure_velocity(bench, store, part)
    if "few" in PARTS:
        measure_few(bench, store)
    return bench


def measure(bench: Bench, store: Store, name: str, recipe: str, assigned: Sequence[str], metric: str) -> list[Row]:
    """Rows of that metric on test, one per seed, beside the floor's, and the mean CPU seconds of training."""
    made = []
    for seed in SEEDS:
        metrics = {key: f"s1/{name}/{key}_seed{seed}" for key in (metric, "cpu_seconds")}
        if not bench.has(metrics[metric], "floor"):
            predictor, seconds = train(recipe, seed, assigned)
            ours, floor = scores(predictor, store)
            click.echo(f"{recipe}, seed {seed}: {ours[metric]:.4f} ({metric}), floor {floor[metric]:.4f}, "
                       f"{seconds:.0f} CPU s", err=True)
            bench.add(Row(metric=metrics["cpu_seconds"], unit="s", ours=seconds))
            bench.add(Row(metric=metrics[metric], unit=unit_of(metric), ours=ours[metric], peer=floor[metric],
                          peer_name="floor"))
        made += [row for row in bench.results.rows if row.metric == metrics[metric]]
    mean = float(np.mean([seconds_of(bench, name, seed) for seed in SEEDS]))
    bench.add(Row(metric=f"s1/{name}/cpu_seconds", unit="s", ours=mean))
    return made


def seconds_of(bench: Bench, name: str, seed: int) -> float:
    return next(row.ours for row in bench.results.rows if row.metric == f"s1/{name}/cpu_seconds_seed{seed}")


def train(recipe: str, seed: int, assigned: Sequence[str]) -> tuple[Predictor, float]:
    """What the recipe trains, or what it trained before, and the CPU seconds of its steps (0 if it did before)."""
    chosen = load_recipe(config(recipe), [f"seed={seed}", f"data.0.store={STORE}", *assigned])
    clock: list[tuple[int, float]] = []
    predictor = pretrain(chosen, RUNS / f"{recipe}_{seed}",
                         listen=lambda progress: clock.append((progress.step, time.process_time())))
    if len(clock) < 2:
        return predictor, 0.0
    (first, began), (last, ended) = clock[0], clock[-1]
    return predictor, (ended - began) / (last - first) * last  # a run that went on took as long per step before


def scores(predictor: Predictor, store: Store) -> tuple[dict[str, float], dict[str, float]]:
    rows = evaluate(predictor, store, "test").scores
    return {row.metric: row.value for row in rows}, {row.metric: row.baseline for row in rows}


def unit_of(metric: str) -> str:
    return "bit/spike" if metric == "bits_per_spike" else "1"


def add(bench: Bench, name: str, metric: str, ours: Sequence[float], peer: float | None, peer_name: str | None) -> None:
    unit = unit_of(metric)
    bench.add(Row(metric=f"s1/{name}/{metric}", unit=unit, ours=float(np.mean(ours)), peer=peer, peer_name=peer_name))
    bench.add(Row(metric=f"s1/{name}/{metric}_std", unit=unit, ours=float(np.std(ours))))


class Committee(nn.Module):
    """The mean of what several operators of the same specs say."""

    def __init__(self, operators: Sequence[Any]) -> None:
        super().__init__()
        self.operators, self.specs = nn.ModuleList(operators), operators[0].specs

    def forward(self, batch: TokenBatch, cache: None = None, second_order: bool = False) -> Outputs:
        found = [operator(batch).heads for operator in self.operators]
        return Outputs({head: torch.stack([each[head] for each in found]).mean(0) for head in found[0]})


def measure_velocity(bench: Bench, store: Store, part: str) -> None:
    """Decoders of each seed and of their committee, beside the ridge of the same bins."""
    name, recipe = f"velocity_{part}", f"s1_velocity_{part}"
    rows = measure(bench, store, name, recipe, (), "r2")
    add(bench, name, "r2", [row.ours for row in rows], rows[0].peer, "ridge")
    if len(SEEDS) > 1 and not bench.has(f"s1/{name}_committee/r2", "ridge"):
        members = [train(recipe, seed, ())[0] for seed in SEEDS]
        committee = Committee([member.operator for member in members])
        ours, floor = scores(replace(members[0], operator=committee), store)  # type: ignore[arg-type]
        bench.add(Row(metric=f"s1/{name}_committee/r2", unit="1", ours=ours["r2"], peer=floor["r2"], peer_name="ridge"))


def measure_next(bench: Bench, store: Store) -> None:
    """The next bin, beside both GLMs and the GRU of the same seeds and seconds."""
    ours = [row.ours for row in measure(bench, store, "next_bin", "s1", QUICK, "bits_per_spike")]
    for seed in SEEDS:
        if not bench.has(f"s1/gru/bits_per_spike_seed{seed}"):
            found = train_gru(seed, seconds_of(bench, "next_bin", seed))
            click.echo(f"gru, seed {seed}: {found:.4f}", err=True)
            bench.add(Row(metric=f"s1/gru/bits_per_spike_seed{seed}", unit="bit/spike", ours=found))
    gru = [row.ours for row in bench.results.rows if row.metric.startswith("s1/gru/bits_per_spike_seed")]
    for name, bases in (("glm", FORWARD_BASES), ("glm_5_lags", (Basis(5, 0, 1.0),))):
        if not bench.has("s1/next_bin/bits_per_spike", name):
            add(bench, "next_bin", "bits_per_spike", ours, forward_glm(store, bases), name)
    add(bench, "next_bin", "bits_per_spike", ours, float(np.mean(gru)), "gru")


def measure_masked(bench: Bench, store: Store) -> None:
    """13 units that are never seen, beside both GLMs that see all others on both sides."""
    ours = [row.ours for row in measure(bench, store, "held_out", "s1_masked", QUICK, "bits_per_spike")]
    for name, bases in (("glm", HELD_OUT_BASES), ("glm_3_bins", (Basis(3, 0, 1.0, both_sides=True),))):
        if not bench.has("s1/held_out/bits_per_spike", name):
            add(bench, "held_out", "bits_per_spike", ours, held_out_glm(store, bases), name)


@cache
def recording() -> tuple[Tensor, dict[str, Tensor]]:
    """Counts ``(T, N)`` and the masks of the splits."""
    layout = Layout.of(open_store(STORE), None)
    counts = torch.from_numpy(layout.recorded(0).count)
    masks = {}
    for split in ("train", "validation", "test"):
        masks[split] = torch.zeros(len(counts), dtype=torch.bool)
        for block in layout.blocks(split):
            masks[split][block.start:block.stop] = True
    return counts, masks


def forward_glm(store: Store, bases: Sequence[Basis]) -> float:
    """bits/spike of the Poisson GLM whose basis and penalty are chosen on validation."""
    layout = Layout.of(store, None)
    counts, masks = recording()
    model = select(recordings_of(layout), layout.bin_s, bases)
    click.echo(f"glm: {model.history.basis}", err=True)
    return bits(model.log_rates(counts), masks["test"])


def held_out_glm(store: Store, bases: Sequence[Basis]) -> float:
    """The same of the units that configs/s1_masked.yaml holds out, from the others on both sides of a bin."""
    layout, counts = Layout.of(store, None), recording()[0]
    units = held_out_units(layout, load_recipe(config("s1_masked"), QUICK).domains["spikes"])
    held_in = [i for i in range(counts.shape[1]) if i not in units]
    model = select(recordings_of(layout), layout.bin_s, bases, held_in=held_in)
    assert model.targets == units, "the GLM predicts other units"
    return bits(model.log_rates(counts), recording()[1]["test"], units)


def held_out_units(layout: Layout, section: Mapping[str, Any]) -> tuple[int, ...]:
    return held_out_of(layout, Binned.create(section).config)


def bits(log_rate: Tensor, mask: Tensor, units: Sequence[int] | None = None) -> float:
    """Over the training mean rates, on the bins of a mask, of some units (default: all)."""
    counts, masks = recording()
    counts = counts if units is None else counts[:, list(units)]
    null = counts[masks["train"]].mean(0)
    return bits_per_spike(log_rate[mask].exp().double().numpy(), counts[mask].numpy(), null.double().numpy())


class GRU(nn.Module):
    """Standardised root counts → 128 units → log-rates of the next bin, beginning at the mean rates."""

    def __init__(self, units: int, bias: Tensor, dropout: float) -> None:
        super().__init__()
        self.cell, self.out = nn.GRU(units, GRU_WIDTH, batch_first=True), nn.Linear(GRU_WIDTH, units)
        self.dropout = dropout
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(F.dropout(x, self.dropout, self.training))[0]
        return self.out(F.dropout(h, self.dropout, self.training))


def train_gru(seed: int, seconds: float) -> float:
    """Test bits/spike after that many CPU seconds at the better rate and dropout on validation."""
    tried = {(rate, dropout): fit_gru(seed, rate, dropout, seconds / 10)[0]
             for rate in GRU_RATES for dropout in GRU_DROPOUTS}
    best = max(tried, key=lambda key: tried[key])
    return fit_gru(seed, *best, seconds)[1]


def fit_gru(seed: int, rate: float, dropout: float, seconds: float) -> tuple[float, float]:
    """bits/spike on validation and test of the weights that were best on validation, looked at ten times."""
    counts, masks = recording()
    train_counts = counts[masks["train"]]
    z = counts.sqrt()
    z = (z - train_counts.sqrt().mean(0)) / train_counts.sqrt().std(0).clamp_min(0.05)
    torch.manual_seed(seed)
    model = GRU(counts.shape[1], train_counts.mean(0).clamp_min(1e-6).log(), dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    last, used, looks, best = int(masks["train"].sum()) - GRU_STEPS - 1, 0.0, 0, (-math.inf, -math.inf)
    generator = torch.Generator().manual_seed(seed)
    while used < seconds:
        began = time.process_time()
        start = torch.randint(0, last, (GRU_BATCH,), generator=generator)
        place = start[:, None] + torch.arange(GRU_STEPS)
        log_rate, truth = model(z[place]), counts[place + 1]
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(used / seconds, 1.0)))
        optimizer.zero_grad(set_to_none=True)
        (log_rate.exp() - truth * log_rate).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used += time.process_time() - began
        if used * 10 >= seconds * (looks + 1):
            looks += 1
            best = max(best, gru_scores(model, z, masks))
    return best


@torch.no_grad()
def gru_scores(model: GRU, z: Tensor, masks: Mapping[str, Tensor]) -> tuple[float, float]:
    model.eval()
    log_rate = model(z[None])[0]
    model.train()
    shifted = torch.cat([log_rate[:1], log_rate[:-1]])  # of bin t from the bins before it
    return bits(shifted, masks["validation"]), bits(shifted, masks["test"])


def measure_few(bench: Bench, store: Store) -> None:
    """R² of decoders from little labelled data, from scratch and from unlabelled activity."""
    for seed in SEEDS:
        for share in SHARES:
            row = f"s1/few_{percent(share)}/r2_seed{seed}"
            if bench.has(row, "scratch"):
                continue
            train("s1_unlabelled", seed, ())
            few = [f"domains.spikes.labelled={share}", f"domains.spikes.labelled_seed={seed}", f"seed={seed}"]
            scratch = load_recipe(config("s1_few"), [f"data.0.store={STORE}", *few])
            with tempfile.TemporaryDirectory() as folder:
                tuned = finetune(RUNS / f"s1_unlabelled_{seed}", str(STORE), Path(folder) / "tuned",
                                 assignments=assignments(few))
                fresh = pretrain(scratch, Path(folder) / "scratch")
            (ours, ridge), (alone, _) = scores(tuned, store), scores(fresh, store)
            click.echo(f"{share:.0%}, seed {seed}: {ours['r2']:.4f}, scratch {alone['r2']:.4f}, ridge "
                       f"{ridge['r2']:.4f}", err=True)
            for peer, value in (("ridge", ridge["r2"]), ("scratch", alone["r2"])):
                bench.add(Row(metric=row, unit="1", ours=ours["r2"], peer=value, peer_name=peer))
    for share in SHARES:
        for peer in ("ridge", "scratch"):
            rows = [row for row in bench.results.rows if row.peer_name == peer
                    and row.metric.startswith(f"s1/few_{percent(share)}/r2_seed")]
            add(bench, f"few_{percent(share)}", "r2", [row.ours for row in rows],
                float(np.mean([row.peer for row in rows if row.peer is not None])), peer)


def assignments(few: Sequence[str]) -> list[str]:
    """What turns the recipe of the checkpoint into that of the decoder, but for its weights."""
    target = load_recipe(config("s1_few"), list(few))
    return [f"domains.spikes={dict(target.domains['spikes'])}", f"train.steps={target.train.steps}",
            f"train.validate_every={target.train.validate_every}", f"seed={target.seed}"]


def percent(share: float) -> str:
    return f"{round(100 * share)}_percent"
