"""AcAc, rMD17 ethanol and QM9 beside torch-geometric's SchNet and ViSNet and mace-torch; MD speed and physics.

    SCIML_MIRROR=folder sciml bench molecules
    SCIML_BENCH_PARTS=long,physics SCIML_BENCH_SECONDS=long:900,nve_ps:20 sciml bench molecules

Budgets are CPU seconds of this process on one thread (data included), so that other work on the machine doesn't change
who wins. All is selected on validation; the test split is read once per model. Parts:

- long: our recipes of AcAc and ethanol; the number of steps is calibrated and frozen, runs go on after a stop and stay
  in ``runs/bench_molecules``. peers: the same seconds, batch, loss and references for all, trained in turns; a peer's
  size (64 channels × 3 layers, or torch-geometric's 128 × 6) and rate are chosen on a tenth of the budget each.
  SCIML_BENCH_SEEDS: of ours and of the peer that is best on validation.
- modes: geometric, Cartesian with random rotations, Cartesian with frame averaging; error and rotation error.
- qm9: U0 (a sum) and HOMO (a mean), a model per property, 10 000 molecules.
- speed: a step of molecular dynamics, and packed batches beside padded ones (`benchmarks/molecules_speed.py`).
- physics: the conservation card of the long ethanol model. md: dynamics of the long AcAc model beside the test frames
  (`benchmarks/molecules_md.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.workflow import new_predictor, pretrain
from sciml import checkpoint
from sciml.assets import config
from sciml.cards import card
from sciml.cards.molecules_symmetry import Precision, symmetries
from sciml.cli import console
from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.recipe import Recipe, load_recipe
from sciml.report.bench import Bench, Row
from sciml.report.machine import gemm_gflops

common = load_script(Path(__file__).with_name("common.py"))
say, store_of = common.say, common.store_of
peers = load_script(Path(__file__).with_name("molecules_peers.py"))
speed = load_script(Path(__file__).with_name("molecules_speed.py"))
motion = load_script(Path(__file__).with_name("molecules_md.py"))
summary = load_script(Path(__file__).with_name("molecules_summary.py")).summary

PARTS = ("long", "peers", "modes", "qm9", "speed", "physics", "md")
SECONDS = {"long": 900.0, "peers": 240.0, "modes": 120.0, "qm9": 180.0, "turns": 100.0, "nve_ps": 20.0,
           "md_ps": 2.0}
"""CPU seconds; of `speed` the number of turns, of `physics` and `md` picoseconds of dynamics."""
DATA = ("acac", "ethanol")
KINDS = ("schnet", "visnet", "mace")
RUNS = Path("runs/bench_molecules")
MODES = {"geometric": ("ethanol", ()), "cartesian_rotation": ("acac_cartesian", ()),
         "cartesian_frames": ("acac_cartesian", ("domains.molecules.frames=true", "domains.molecules.rotate=false"))}
UNITS = {"forces": "meV/angstrom", "energy": "meV", "u0": "meV", "homo": "meV"}


def run(place: Path | None = None, runs: Path = RUNS) -> Bench:
    """Measure what is missing; place: folder of the results."""
    torch.set_num_threads(1)
    keep_freed()
    plan, bench = common.Plan.of_environment(PARTS, SECONDS), Bench.load_or_new("molecules", place=place)
    for part in plan.parts:
        bench.add(Row(metric=f"machine/gemm/{part}", unit="GFLOP/s", ours=gemm_gflops()))
        if part == "long":
            for name in DATA:
                measure_long(bench, name, plan.seconds["long"], runs)
        elif part == "peers":
            for name in DATA:
                compare(bench, f"{name}/peers", recipe_of(name), KINDS, plan.seconds["peers"], plan.seeds)
        elif part == "modes":
            measure_modes(bench, plan.seconds["modes"])
        elif part == "qm9":
            for name, kind in (("u0", "sum"), ("homo", "mean")):
                recipe = recipe_of("qm9", f"domains.molecules.properties={{{name}: {kind}}}")
                compare(bench, f"qm9/{name}", recipe, ("schnet",), plan.seconds["qm9"], 1)
        elif part == "speed":
            measure_speed(bench, int(plan.seconds["turns"]))
        elif part == "md":
            if not bench.has("acac/md/temperature", "thermostat"):
                motion.measure_motion(bench, runs / "acac", store_of("acac"), plan.seconds["md_ps"])
        else:
            measure_physics(bench, runs / "ethanol", plan.seconds["nve_ps"])
    console.table(summary(bench.results), title="bars of issue 5")
    return bench


def recipe_of(name: str, *assignments: str) -> Recipe:
    return load_recipe(config(name), ["train.threads=1", *assignments])


def store_for(recipe: Recipe) -> Store:
    return store_of(Path(recipe.data[0].store).stem)


def unit_of(metric: str) -> str:
    return UNITS[metric.rpartition("_")[0]]


def measure_long(bench: Bench, name: str, seconds: float, runs: Path) -> None:
    """Train by the recipe as users do, for as many steps as fit into the budget; test errors beside the baseline's."""
    if bench.has(f"{name}/long/forces_rmse", "element_references"):
        return
    folder, store = runs / name, store_of(name)
    frozen = common.measured(bench, f"{name}/long/steps")
    steps = int(frozen.ours) if frozen is not None else calibrated(name, store, seconds)
    bench.add(Row(metric=f"{name}/long/steps", unit="steps", ours=steps))
    say(f"{name}: {steps} steps in {seconds:g} CPU s")
    recipe = recipe_of(name, *common.paced(steps))
    clock: list[tuple[int, float]] = []
    predictor = pretrain(recipe, folder, overwrite=frozen is None,
                         listen=lambda progress: clock.append((progress.step, time.process_time())))
    if len(clock) > 1:  # a run that went on took as long per step before
        per_step = (clock[-1][1] - clock[0][1]) / (clock[-1][0] - clock[0][0])
        bench.add(Row(metric=f"{name}/long/cpu_seconds", unit="s", ours=per_step * steps))
    for row in evaluate(predictor, store, "test").scores:
        bench.add(Row(metric=f"{name}/long/{row.metric}", unit=row.unit, ours=row.value, peer=row.baseline,
                      peer_name="element_references"))
        say(f"{name}: {row.metric} {row.value:.3f} {row.unit}, references {row.baseline:.1f}")


def calibrated(name: str, store: Store, seconds: float) -> int:
    """Steps that fit, by a fortieth of the budget of training; a twentieth is left for validation and checkpoints."""
    steps: int = common.calibrated(peers.trainer("sciml", "", None, recipe_of(name), store, seconds), 0.95)
    return steps


def compare(bench: Bench, label: str, recipe: Recipe, kinds: Sequence[str], seconds: float, seeds: int) -> None:
    """Ours and the peers, trained in turns on the same seconds each; a row per metric and peer."""
    present = []
    for kind in kinds:
        reason = peers.absent(kind)
        if reason:
            say(f"{label}: no {kind}: {reason}")
            bench.add(Row(metric=f"{label}/absent", unit="1", ours=1.0, peer_name=f"{kind}: {reason}"))
        else:
            present.append(kind)
    if all(bench.has(f"{label}/steps", kind) for kind in present):
        return
    store = store_for(recipe)
    chosen = {kind: tuned(bench, label, kind, recipe, store, seconds / 10) for kind in present}
    trained = {"sciml": peers.trainer("sciml", "", None, recipe, store, seconds)}
    trained |= {kind: peers.trainer(kind, *chosen[kind], recipe, store, seconds) for kind in present}
    common.train_together(list(trained.values()))
    losses = {kind: peers.validation(each) for kind, each in trained.items()}
    scores = {kind: peers.scores(each) for kind, each in trained.items()}
    for kind in present:
        say(f"{label}: {kind} {chosen[kind]}: {trained[kind].step} steps, {scores[kind]}; ours "
            f"{trained['sciml'].step} steps, {scores['sciml']}")
        add_scores(bench, label, kind, scores["sciml"], scores[kind])
        bench.add(Row(metric=f"{label}/channels", unit="1", ours=recipe.operator["levels"][0]["width"],
                      peer=peers.channels(kind, chosen[kind][0]), peer_name=kind))
        bench.add(Row(metric=f"{label}/steps", unit="steps", ours=trained["sciml"].step, peer=trained[kind].step,
                      peer_name=kind))
    best = min(present, key=lambda kind: losses[kind])
    for seed in range(1, seeds):
        other = recipe.model_copy(update={"seed": seed})
        pair = [peers.trainer("sciml", "", None, other, store, seconds),
                peers.trainer(best, *chosen[best], other, store, seconds)]
        common.train_together(pair)
        add_scores(bench, label, best, peers.scores(pair[0]), peers.scores(pair[1]), f"_seed{seed}")


def add_scores(bench: Bench, label: str, peer: str, ours: Mapping[str, float], others: Mapping[str, float],
               suffix: str = "") -> None:
    for metric, value in ours.items():
        bench.add(Row(metric=f"{label}/{metric}{suffix}", unit=unit_of(metric), ours=value, peer=others[metric],
                      peer_name=peer))


def tuned(bench: Bench, label: str, kind: str, recipe: Recipe, store: Store, seconds: float) -> tuple[str, float]:
    """The size and rate of a peer that are best on validation: sizes at the middle rate, then the other rates. What was
    tried is kept, so that a run that goes on doesn't try again."""
    def attempt(choices: Sequence[tuple[str, float]]) -> dict[tuple[str, float], float]:
        names = {each: f"{label.replace('/', '_')}/tuning/{kind}_{each[0]}_{each[1]:g}".replace("-", "m")
                 for each in choices}
        missing = [each for each in choices if not bench.has(names[each])]
        trainers = [peers.trainer(kind, size, rate, recipe, store, seconds) for size, rate in missing]
        common.train_together(trainers)
        for each, trainer in zip(missing, trainers):
            loss = peers.validation(trainer)
            bench.add(Row(metric=names[each], unit="1", ours=min(loss, 1e9)))
            say(f"{label}: {kind} {each}: {trainer.step} steps, validation {loss:.4f}")
        return {each: common.measured(bench, names[each]).ours for each in choices}

    low, middle, high = peers.PEER_RATES
    sizes = ("small",) if kind == "mace" else tuple(peers.SIZES)
    best: tuple[str, float] = common.search(attempt, [
        lambda _: [(size, middle) for size in sizes], lambda best: [(best[0], low), (best[0], high)]])
    return best


def measure_modes(bench: Bench, seconds: float) -> None:
    """The two modes of one network on ethanol, in turns; the rotation error is of 16 test configurations, float32."""
    if bench.has("ethanol/modes/steps", "cartesian_frames"):
        return
    store = store_of("ethanol")
    trainers = {name: peers.trainer("sciml", "", None, recipe_of(recipe, "data.0.store=stores/ethanol.zarr", *more),
                                    store, seconds) for name, (recipe, more) in MODES.items()}
    common.train_together(list(trainers.values()))
    found = {}
    for name, each in trainers.items():
        samples = [each.predictor.adapter("molecules").open(store, "test").draw(int(i), *[np.random.default_rng(0)] * 2)
                   for i in np.linspace(0, len(store.meta.splits.test) - 1, 16)]
        found[name] = peers.scores(each)
        rotation = symmetries(each.averaged(), samples, Precision("float32", 1e-5, 1e-5), 0)[0]
        assert rotation.name.startswith("rotation error")
        found[name] |= {"rotation_error": rotation.value, "steps": each.step}
        say(f"modes: {name}: {found[name]}")
    for name in list(MODES)[1:]:
        for metric, value in found["geometric"].items():
            unit = {"rotation_error": "1", "steps": "steps"}.get(metric) or unit_of(metric)
            bench.add(Row(metric=f"ethanol/modes/{metric}", unit=unit, ours=value, peer=found[name][metric],
                          peer_name=name))


def measure_speed(bench: Bench, turns: int) -> None:
    recipe, store = recipe_of("ethanol"), store_of("ethanol")
    predictor = new_predictor(recipe, [store])
    adapter: Any = predictor.adapter("molecules")
    if not bench.has("ethanol/speed/md_step_of_32", "schnet_default"):
        speed.measure_dynamics(bench, predictor, adapter.starts(store, "test")[0], turns)
    if not bench.has("mixed/9_and_45/atoms", "padded"):
        qm9 = store_of("qm9")
        sizes = qm9.rows("atom")[[block.group for block in qm9.meta.splits.test]]
        speed.measure_packing(bench, predictor, sizes, turns)


def measure_physics(bench: Bench, folder: Path, nve_ps: float) -> None:
    """The conservation card; an entry that is not finite (a run that blew up) is a row `failed`."""
    if bench.has("ethanol/physics/drift_at_constant_energy", "bar"):
        return
    if not (folder / "checkpoints/best").is_dir():
        raise InputError(folder, found="no checkpoint", expected="the model of the part `long`",
                         fix="SCIML_BENCH_PARTS=long,physics sciml bench molecules")
    asked = (f"energy_ps={nve_ps}", "parts=[symmetry, derivatives, smoothness, energy]")
    for entry in card(checkpoint.load(folder), store_of("ethanol"), "test", asked):
        name = re.sub(r"[^a-z0-9]+", "_", str(entry["name"]).lower())
        finite = bool(np.isfinite(entry["value"]))
        say(f"physics: {entry['name']} {entry['value']:.3g} {entry['unit']} ({entry['verdict']}; {entry['note']})")
        bench.add(Row(metric=f"ethanol/physics/{name if finite else name + '_failed'}", unit=entry["unit"],
                      ours=entry["value"] if finite else 1.0, peer=entry["limit"], peer_name="bar"))
