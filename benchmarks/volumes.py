"""Hippocampus segmented beside MONAI's UNet, SegResNet and SwinUNETR; few labels, thick slices, restoration, windows.

    SCIML_MIRROR=folder PYTHONPATH=folder_with_monai sciml bench volumes
    SCIML_BENCH_PARTS=dice,thick SCIML_BENCH_SECONDS=dice:2400 sciml bench volumes

Budgets are CPU seconds of this process on one thread (data and augmentation included), so that other work on the
machine doesn't change who wins. All is selected on validation; the test split (40 of 200 volumes, every fifth) is read
once per model. Parts:

- dice: our recipe; the number of steps is calibrated and frozen, the run goes on after a stop and stays in
  ``runs/bench_volumes``. Dice, HD95, surface Dice beside the mean atlas.
- peers: the same seconds, patches, augmentation and objective for all, trained in turns; each peer's rate and batch are
  chosen by validation Dice, a tenth of the budget a try. SCIML_BENCH_SEEDS: of ours and the peer best on validation.
- fewshot: 5 labelled volumes, five draws: from masked pretraining on all training volumes, beside from scratch.
- thick: test volumes averaged to (1, 1, 3) mm, which training has not seen, scored on the original grid.
- recipes: those of D-Former and SegFormer3D beside ours after 300 steps, on validation: they are no finished models.
- restore: denoising and undersampled MRI (`benchmarks/volumes_restore.py`).
- sliding: 512 × 512 × 300: memory above the volume, throughput (`benchmarks/volumes_speed.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.workflow import pretrain
from sciml import checkpoint
from sciml.assets import config
from sciml.cli import console
from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.predictor import Predictor
from sciml.recipe import Recipe, load_recipe
from sciml.report.bench import Bench, Row
from sciml.report.machine import gemm_gflops

HERE = Path(__file__).parent
common = load_script(HERE / "common.py")
say, store_of, paced = common.say, common.store_of, common.paced
peers = load_script(HERE / "volumes_peers.py")
speed = load_script(HERE / "volumes_speed.py")
tasks = load_script(HERE / "volumes_tasks.py")
summary = load_script(HERE / "volumes_summary.py").summary

PARTS = ("dice", "peers", "fewshot", "thick", "recipes", "restore", "sliding")
SECONDS = {"dice": 2400.0, "peers": 900.0, "masked": 900.0, "fewshot": 240.0, "restore": 900.0}
"""CPU seconds; `masked` of the pretraining of `fewshot`, whose own are of each fine-tuning."""
KINDS = ("unet", "segresnet", "swinunetr")
DRAWS, LABELLED, FACTOR = 5, 5, 3
OTHERS, FEW_STEPS = ("dformer", "segformer"), 300
DATA, FLOOR = "hippocampus", "mean_atlas"
WHOLE = ("domains.volumes.window=[64,64,64]", "domains.volumes.patches.size=[32,48,32]")
"""Peers and ours beside them are trained on patches and judged on whole volumes."""
SHORT = ("train.ema=0.99", "train.learning_rate=0.02", "train.matrix_learning_rate=0.04")
"""Of a few hundred steps: twice the rates, with which both arms of `fewshot` are better on validation of draw 0."""
RUNS = Path("runs/bench_volumes")


def run(place: Path | None = None, runs: Path = RUNS) -> Bench:
    """Measure what is missing; place: folder of the results."""
    torch.set_num_threads(1)
    keep_freed()
    plan, bench = common.Plan.of_environment(PARTS, SECONDS), Bench.load_or_new("volumes", place=place)
    for part in plan.parts:
        bench.add(Row(metric=f"machine/gemm/{part}", unit="GFLOP/s", ours=gemm_gflops()))
        if part == "dice":
            measure_dice(bench, plan.seconds["dice"], runs)
        elif part == "peers":
            compare(bench, f"{DATA}/peers", recipe_of(DATA, *WHOLE), KINDS, plan.seconds["peers"], plan.seeds)
        elif part == "fewshot":
            measure_few(bench, plan.seconds, runs)
        elif part == "thick":
            measure_thick(bench, runs / DATA)
        elif part == "recipes":
            measure_recipes(bench, runs)
        elif part == "restore":
            load_script(HERE / "volumes_restore.py").measure(bench, plan.seconds["restore"], runs)
        else:
            speed.measure_sliding(bench, peers.absent("unet"))
    console.table(summary(bench.results), title="bars of issue 8")
    return bench


def recipe_of(name: str, *assignments: str) -> Recipe:
    """The budget is the bench's: minutes that a recipe asks for are replaced by steps."""
    return load_recipe(config(name), ["train.threads=1", "train.minutes=null", "train.steps=1000", *assignments])


def train_for(bench: Bench, metric: str, recipe: str, seconds: float, folder: Path,
              store: Store, pace: Callable[[int], tuple[str, ...]] = paced) -> tuple[Predictor, int]:
    """By the recipe as users do, for as many steps as fit into the budget, which are frozen at the first attempt."""
    frozen = common.measured(bench, f"{metric}/steps")
    steps = int(frozen.ours) if frozen is not None else calibrated(recipe_of(recipe), store, seconds)
    bench.add(Row(metric=f"{metric}/steps", unit="steps", ours=steps))
    say(f"{metric}: {steps} steps in {seconds:g} CPU s")
    clock: list[tuple[int, float]] = []
    predictor = pretrain(recipe_of(recipe, *pace(steps)), folder, overwrite=frozen is None,
                         listen=lambda progress: clock.append((progress.step, time.process_time())))
    if len(clock) > 1:  # a run that went on took as long per step before
        per_step = (clock[-1][1] - clock[0][1]) / (clock[-1][0] - clock[0][0])
        bench.add(Row(metric=f"{metric}/cpu_seconds", unit="s", ours=per_step * steps))
    return predictor, steps


def once(steps: int) -> tuple[str, ...]:
    """Validation at the end alone."""
    return (f"train.steps={steps}", f"train.validate_every={steps}", f"train.checkpoint_every={max(1, steps // 9)}")


def calibrated(recipe: Recipe, store: Store, seconds: float) -> int:
    """Steps that fit, by a fortieth of the budget of training; a tenth is left for validation and checkpoints."""
    steps: int = common.calibrated(peers.trainer("sciml", None, recipe, store, seconds), 0.9)
    return steps


def measure_dice(bench: Bench, seconds: float, runs: Path) -> None:
    """The long run: every score of the test split beside the floor's."""
    if bench.has(f"{DATA}/long/dice", FLOOR):
        return
    store = store_of(DATA)
    predictor, _ = train_for(bench, f"{DATA}/long", DATA, seconds, runs / DATA, store)
    bench.add(Row(metric=f"{DATA}/long/parameters", unit="1", ours=common.parameters(predictor)))
    for row in sorted(evaluate(predictor, store, "test").scores, key=lambda row: row.metric == "dice"):
        bench.add(Row(metric=f"{DATA}/long/{row.metric}", unit=row.unit, ours=row.value, peer=row.baseline,
                      peer_name=FLOOR))
        say(f"{row.metric} {row.value:.4f} {row.unit}, mean atlas {row.baseline:.4f}")


def compare(bench: Bench, label: str, recipe: Recipe, kinds: Sequence[str], seconds: float, seeds: int) -> None:
    """Ours and the peers, trained in turns on the same seconds each; a row per metric and peer."""
    present = []
    for kind in kinds:
        if reason := peers.absent(kind):
            say(f"{label}: no {kind}: {reason}")
            bench.add(Row(metric=f"{label}/absent", unit="1", ours=1.0, peer_name=f"{kind}: {reason}"))
        else:
            present.append(kind)
    if all(bench.has(f"{label}/steps", kind) for kind in present):
        return
    store = store_of(DATA)
    chosen = {kind: tuned(bench, label, kind, recipe, store, seconds / 10) for kind in present}
    trained = {"sciml": peers.trainer("sciml", None, recipe, store, seconds)}
    trained |= {kind: peers.trainer(kind, chosen[kind], recipe, store, seconds) for kind in present}
    common.train_together(list(trained.values()))
    judged = {kind: peers.validation(each) for kind, each in trained.items()}
    scores = {kind: peers.scores(each) for kind, each in trained.items()}
    sizes = {kind: common.parameters(each.predictor) for kind, each in trained.items()}
    for kind in present:
        say(f"{label}: {kind} {chosen[kind]}: {trained[kind].step} steps, {scores[kind]}; ours "
            f"{trained['sciml'].step} steps, {scores['sciml']}")
        add_scores(bench, label, kind, scores["sciml"], scores[kind])
        bench.add(Row(metric=f"{label}/parameters", unit="1", ours=sizes["sciml"], peer=sizes[kind], peer_name=kind))
        bench.add(Row(metric=f"{label}/steps", unit="steps", ours=trained["sciml"].step, peer=trained[kind].step,
                      peer_name=kind))
    best = max(present, key=lambda kind: judged[kind])
    for seed in range(1, seeds):
        other = recipe.model_copy(update={"seed": seed})
        pair = [peers.trainer("sciml", None, other, store, seconds),
                peers.trainer(best, chosen[best], other, store, seconds)]
        common.train_together(pair)
        add_scores(bench, label, best, peers.scores(pair[0]), peers.scores(pair[1]), f"_seed{seed}")


def add_scores(bench: Bench, label: str, peer: str, ours: Mapping[str, tuple[float, str]],
               others: Mapping[str, tuple[float, str]], suffix: str = "") -> None:
    for metric, (value, unit) in ours.items():
        bench.add(Row(metric=f"{label}/{metric}{suffix}", unit=unit, ours=value, peer=others[metric][0],
                      peer_name=peer))


def tuned(bench: Bench, label: str, kind: str, recipe: Recipe, store: Store, seconds: float) -> tuple[float, int]:
    """The rate and batch of a peer that are best on validation: batches at the middle rate, then the other rates. What
    was tried is kept, so that a run that goes on doesn't try again."""
    def attempt(choices: Sequence[tuple[float, int]]) -> dict[tuple[float, int], float]:
        names = {each: f"{label.replace('/', '_')}/tuning/{kind}_{each[0]:g}_batch{each[1]}".replace("-", "m")
                 for each in choices}
        missing = [each for each in choices if not bench.has(names[each])]
        trainers = [peers.trainer(kind, each, recipe, store, seconds) for each in missing]
        common.train_together(trainers)
        for each, trainer in zip(missing, trainers):
            found = peers.validation(trainer)
            bench.add(Row(metric=names[each], unit="1", ours=found))
            say(f"{label}: {kind} {each}: {trainer.step} steps, validation Dice {found:.4f}")
        return {each: common.measured(bench, names[each]).ours for each in choices}

    low, middle, high = peers.RATES
    best: tuple[float, int] = common.search(attempt, [
        lambda _: [(middle, batch) for batch in peers.BATCHES], lambda best: [(low, best[1]), (high, best[1])]],
        higher=True)
    return best


def measure_few(bench: Bench, seconds: Mapping[str, float], runs: Path) -> None:
    """1 − Dice on test after the same steps from masked pretraining and from random weights, on the same volumes;
    judged on whole volumes, validated at the end alone."""
    store, label = store_of(DATA), f"{DATA}/few_{LABELLED}"
    mine: list[float] = []
    theirs: list[float] = []
    train_for(bench, f"{DATA}/masked", f"{DATA}_masked", seconds["masked"], runs / f"{DATA}_masked", store, once)
    frozen = common.measured(bench, f"{label}/steps")
    steps = int(frozen.ours) if frozen is not None else calibrated(recipe_of(DATA), store, seconds["fewshot"])
    bench.add(Row(metric=f"{label}/steps", unit="steps", ours=steps))
    for draw in range(DRAWS):
        row = f"{label}/error_draw{draw}"
        if not bench.has(row, "scratch"):
            labelled = tasks.few(store, LABELLED, draw)
            recipe = recipe_of(DATA, *WHOLE, *once(steps), *SHORT, f"seed={draw}")
            found = {}
            for name, masked in (("masked", runs / f"{DATA}_masked"), ("scratch", None)):
                model = tasks.train_few(recipe, labelled, runs / f"few_{draw}_{name}", masked)
                found[name] = 1 - tasks.test_dice(model, store)
            say(f"draw {draw}: 1 - Dice {found['masked']:.4f}, from scratch {found['scratch']:.4f}")
            bench.add(Row(metric=row, unit="1", ours=found["masked"], peer=found["scratch"], peer_name="scratch"))
        done = next(each for each in bench.results.rows if each.metric == row)
        mine.append(done.ours)
        theirs.append(done.peer or 0.0)
    bench.add(Row(metric=f"{label}/error", unit="1", ours=float(np.mean(mine)), peer=float(np.mean(theirs)),
                  peer_name="scratch"))


def measure_thick(bench: Bench, folder: Path) -> None:
    """Dice on the original grid from slices three times as thick, beside the same model on the volumes as they are."""
    if bench.has(f"{DATA}/thick_{FACTOR}/dice", "as_it_is"):
        return
    predictor: Any = checkpoint.load(long_model(folder))
    plain, thicker = tasks.thick_scores(predictor, store_of(DATA), FACTOR)
    for name, value in thicker.items():
        bench.add(Row(metric=f"{DATA}/thick_{FACTOR}/dice_{name}", unit="1", ours=value, peer=plain[name],
                      peer_name="as_it_is"))
    means = [float(np.mean(list(found.values()))) for found in (thicker, plain)]
    say(f"slices of {FACTOR} mm: Dice {means[0]:.4f}, as they are {means[1]:.4f}")
    bench.add(Row(metric=f"{DATA}/thick_{FACTOR}/dice", unit="1", ours=means[0], peer=means[1], peer_name="as_it_is"))


def measure_recipes(bench: Bench, runs: Path) -> None:
    """Validation Dice after the same few steps, beside ours."""
    rows = {other: f"{DATA}_{other}/steps_{FEW_STEPS}/dice" for other in OTHERS}
    if all(bench.has(row, DATA) for row in rows.values()):
        return

    def trained(name: str) -> float:
        predictor = pretrain(recipe_of(name, *once(FEW_STEPS)), runs / f"{name}_{FEW_STEPS}", overwrite=True)
        return next(row.value for row in evaluate(predictor, store_of(DATA), "validation").scores
                    if row.metric == "dice")

    ours = trained(DATA)
    for other, row in rows.items():
        bench.add(Row(metric=row, unit="1", ours=trained(f"{DATA}_{other}"), peer=ours, peer_name=DATA))


def long_model(folder: Path) -> Path:
    if not (folder / "checkpoints/best").is_dir():
        raise InputError(folder, found="no checkpoint", expected="the model of the part `dice`",
                         fix="SCIML_BENCH_PARTS=dice,thick sciml bench volumes")
    return folder
