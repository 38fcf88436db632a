"""S1 (52 units, 50 ms bins, contiguous 70/10/20 with gaps of 1 s) beside a Poisson GLM, a GRU and ridge decoders.

    SCIML_MIRROR=folder/with/s1 sciml bench spikes

Recipes of one operator: next bin (configs/s1.yaml), held-out units (s1_masked.yaml), velocity from ±5 bins and from the
10 past bins (s1_velocity_centred.yaml, s1_velocity_causal.yaml). Everything is selected on validation: the GLMs' bases
and penalties, the ridge's, the training step, the GRU's rate and dropout (each tried for a tenth of the budget). The
test split is read once per seed. Peers: ``glm`` is the strongest that validation picks, with slow averages of every
unit's past (of both sides for held-out units); ``glm_5_lags`` and ``glm_3_bins`` are plain ones of raw bins; ``gru``
has 128 units and gets the CPU seconds that ours took.

Few labels: the velocity decoder from 1, 5 and 10 % of the labelled training minutes (contiguous, its place drawn per
seed), from scratch and from a checkpoint pretrained on unlabelled activity (hidden cells of the training split); both
correct a ridge that is fitted to the same labels. The training step is chosen on the validation split, which has all
its labels.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

SEEDS = (0, 1, 2)
PARTS = os.environ.get("SCIML_BENCH_PARTS", "next,masked,centred,causal,few").split(",")
STORE = Path("stores/s1.zarr")
QUICK = ("domains.spikes.floor=smoothed",)
"""The GLMs are fitted once, here, not in every run."""
SHARES = (0.01, 0.05, 0.1)
GRU_RATES, GRU_DROPOUTS, GRU_WIDTH, GRU_STEPS, GRU_BATCH = (1e-3, 3e-3), (0.0, 0.3), 128, 128, 8


@dataclass(frozen=True)
class Outcome:
    """Scores of one run on test, metric → value, the floor's, and the CPU seconds of training."""

    ours: Mapping[str, float]
    floor: Mapping[str, float]
    seconds: float


def run() -> Bench:
    bench = Bench.load_or_new("spikes", seeds=SEEDS)
    store = open_store(STORE) if STORE.exists() else build(read_source(dataset("s1")), str(STORE))
    torch.set_num_threads(1)
    if "next" in PARTS:
        measure_next(bench, store)
    if "masked" in PARTS:
        measure_masked(bench, store)
    for part in ("centred", "causal"):
        if part in PARTS and not bench.has(f"s1/velocity_{part}/r2", "ridge"):
            outcomes = measure(bench, store, f"velocity_{part}", f"s1_velocity_{part}", (), "r2")
            ours, floor = [each.ours["r2"] for each in outcomes], outcomes[0].floor["r2"]
            add(bench, f"velocity_{part}", "r2", ours, floor, "ridge")
    if "few" in PARTS:
        measure_few(bench, store)
    return bench


def measure(bench: Bench, store: Store, name: str, recipe: str, assigned: Sequence[str],
            metric: str) -> list[Outcome]:
    """A run per seed, and a row of the CPU seconds they took."""
    outcomes = [train(recipe, seed, store, assigned, metric) for seed in SEEDS]
    bench.add(Row(metric=f"s1/{name}/cpu_seconds", unit="s", ours=float(np.mean([o.seconds for o in outcomes]))))
    return outcomes


def train(recipe: str, seed: int, store: Store, assigned: Sequence[str], metric: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        chosen = load_recipe(config(recipe), [f"seed={seed}", f"data.0.store={STORE}", *assigned])
        began: list[float] = []
        predictor = pretrain(chosen, Path(folder) / "run", listen=lambda _: began.append(time.process_time()))
        seconds = time.process_time() - began[0]
        found = scores(predictor, store)
    click.echo(f"{recipe}, seed {seed}: {found[0][metric]:.4f} ({metric}), floor {found[1][metric]:.4f}, "
               f"{seconds:.0f} CPU s", err=True)
    return Outcome(*found, seconds)


def scores(predictor: Predictor, store: Store) -> tuple[dict[str, float], dict[str, float]]:
    rows = evaluate(predictor, store, "test").scores
    return {row.metric: row.value for row in rows}, {row.metric: row.baseline for row in rows}


def add(bench: Bench, name: str, metric: str, ours: Sequence[float], peer: float | None, peer_name: str | None) -> None:
    unit = "bit/spike" if metric == "bits_per_spike" else "1"
    bench.add(Row(metric=f"s1/{name}/{metric}", unit=unit, ours=float(np.mean(ours)), peer=peer, peer_name=peer_name))
    bench.add(Row(metric=f"s1/{name}/{metric}_std", unit=unit, ours=float(np.std(ours))))


def measure_next(bench: Bench, store: Store) -> None:
    """The next bin, beside both GLMs and the GRU of the same seeds and seconds."""
    if bench.has("s1/next_bin/bits_per_spike", "gru"):
        return
    outcomes = measure(bench, store, "next_bin", "s1", QUICK, "bits_per_spike")
    ours = [each.ours["bits_per_spike"] for each in outcomes]
    for name, bases in (("glm", FORWARD_BASES), ("glm_5_lags", (Basis(5, 0, 1.0),))):
        add(bench, "next_bin", "bits_per_spike", ours, forward_glm(store, bases), name)
    seconds = float(np.mean([each.seconds for each in outcomes]))
    gru = [train_gru(seed, seconds) for seed in SEEDS]
    click.echo(f"gru: {gru}", err=True)
    add(bench, "next_bin", "bits_per_spike", ours, float(np.mean(gru)), "gru")


def measure_masked(bench: Bench, store: Store) -> None:
    """13 units that are never seen, beside both GLMs that see all others on both sides."""
    if bench.has("s1/held_out/bits_per_spike", "glm_3_bins"):
        return
    outcomes = measure(bench, store, "held_out", "s1_masked", QUICK, "bits_per_spike")
    ours = [each.ours["bits_per_spike"] for each in outcomes]
    for name, bases in (("glm", HELD_OUT_BASES), ("glm_3_bins", (Basis(3, 0, 1.0, both_sides=True),))):
        add(bench, "held_out", "bits_per_spike", ours, held_out_glm(store, bases), name)


@cache
def recording() -> tuple[Tensor, dict[str, Tensor]]:
    """Counts ``(T, N)`` and the masks of the splits."""
    layout = Layout.of(open_store(STORE), None)
    counts = torch.from_numpy(layout.recorded(0).count)
    masks = {}
    for split in ("train", "validation", "test"):
        masks[split] = torch.zeros(len(counts), dtype=torch.bool)
        for block in layout.blocks(split):  # type: ignore[arg-type]
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
    missing = [share for share in SHARES if not bench.has(f"s1/few_{percent(share)}/r2", "scratch")]
    if not missing:
        return
    found: dict[tuple[float, str], list[float]] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "unlabelled"
            chosen = load_recipe(config("s1_unlabelled"), [f"seed={seed}", f"data.0.store={STORE}"])
            pretrain(chosen, base)
            for share in missing:
                few = [f"domains.spikes.labelled={share}", f"domains.spikes.labelled_seed={seed}", f"seed={seed}"]
                scratch = load_recipe(config("s1_few"), [f"data.0.store={STORE}", *few])
                adapted = finetune(base, str(STORE), Path(folder) / f"tuned_{share}", assignments=assignments(few))
                for name, predictor in (("scratch", pretrain(scratch, Path(folder) / f"scratch_{share}")),
                                        ("pretrained", adapted)):
                    ours, floor = scores(predictor, store)
                    found.setdefault((share, name), []).append(ours["r2"])
                    found.setdefault((share, "ridge"), []).append(floor["r2"])
                    click.echo(f"{share:.0%} {name}, seed {seed}: {ours['r2']:.4f}, ridge {floor['r2']:.4f}", err=True)
    for share in missing:
        for peer in ("ridge", "scratch"):
            add(bench, f"few_{percent(share)}", "r2", found[share, "pretrained"], float(np.mean(found[share, peer])),
                peer)


def assignments(few: Sequence[str]) -> list[str]:
    """What turns the recipe of the checkpoint into that of the decoder, but for its weights."""
    target = load_recipe(config("s1_few"), list(few))
    return [f"domains.spikes={dict(target.domains['spikes'])}", f"train.steps={target.train.steps}",
            f"train.validate_every={target.train.validate_every}", f"seed={target.seed}"]


def percent(share: float) -> str:
    return f"{round(100 * share)}_percent"
