"""Turbulent flow between two walls: an operator with looped depth, judged by one step in training and rolled out ten
times as long as its trajectories are, beside neuraloperator's FNO.

    SCIML_BENCH_PARTS=channel SCIML_BENCH_SECONDS=channel:300 sciml bench fields

The protocol is that of IFactFormer-m (Yang, Wang & Wang, "Implicit factorized transformer approach to fast prediction
of turbulent channel flows", 2024), reimplemented on data of our own (`datasets/channel`: Re_τ = 180, 32 × 48 × 32):
one set of weights applied again and again, attention along each axis in parallel, free rollouts judged by their
statistics. Training judges one step, as theirs does, but from states that the model itself led to (`pushforward`):
minutes of training from true states alone leave rollouts that gain energy. The training horizon is the length of a
trajectory, 200 steps or 2 δ/u_τ; rollouts have 2000 steps. The truth beside them is the solver's own rollout from the
same states, as long as theirs: statistics of stored trajectories alone are 10 to 15 % apart from each other.

Both models have the same samples, chain, projection, objective (`relative_change`, of what their baselines miss: damped
persistence in ours, persistence in the FNO) and CPU seconds, and the learning rate and batch that were best on the
validation split, a tenth of the budget a try and at most 40 s. Rollouts that were interrupted begin again from the kept
weights; the solver's are kept. Statistics are of all steps of all rollouts; how far the solver's two are apart from
each other is said beside (`spread`). Velocities are in u_τ: wall units.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml.assets import config
from sciml.cards.fields import entries
from sciml.cards.fields_rollouts import Followed, Plan, follow
from sciml.cli.bench import load_script
from sciml.data.builders import channel
from sciml.data.builders.channel import STATES
from sciml.data.store import Store
from sciml.domains.fields.statistics import Layout, Spectrum, Statistics, merge, one
from sciml.domains.fields.windows import Blocks
from sciml.losses import relative_l2
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import Recipe, load_recipe, validate
from sciml.report.bench import Bench, Row

HERE = Path(__file__).parent
common = load_script(HERE / "common.py")
peers = load_script(HERE / "fields_peers.py")

NAMES = {"sciml": "ours", peers.CHAINED: "neuraloperator_fno"}
SETTINGS = {"sciml": ((2e-3, 1), (4e-3, 1), (8e-3, 1), (4e-3, 4)),
            peers.CHAINED: ((1e-3, 1), (3e-3, 1), (6e-3, 1), (3e-3, 4))}
TIMES, STARTS = 10, 2
TRY_S = 40.0
"""Most seconds of a try of settings."""
JUDGED = 48
"""Test pairs that the error of one step is over."""
PICTURE = HERE.parent / "docs/pictures/fields_channel.png"
MEASURES = {"finite steps": "finite_steps", "spectrum energy_x/velocity, largest factor": "spectrum_x",
            "spectrum energy_z/velocity, largest factor": "spectrum_z"}
MEASURES |= {f"{kind} of velocity_{axis} along y, error": f"{kind}_{axis}"
             for kind in ("mean", "rms") for axis in "xyz"}
MEASURES["stress ⟨velocity_x′ velocity_y′⟩ along y, error"] = "stress_xy"
UNITS = {"finite_steps": "steps", "cost": "s"}


@dataclass(frozen=True)
class Rolled:
    """What a model's rollouts did: figures by measure, and the statistics of all steps, None if there is no step."""

    figures: Mapping[str, float]
    whole: Statistics | None


def measure(bench: Bench, seconds: float, seeds: int) -> None:
    """Tune, train, roll out; rows ``channel/rollout_2000/*`` beside the FNO's, ``channel/spread/*`` of the truth."""
    recipe, store = load_recipe(config("channel")), common.store_of("channel")
    untrained = peers.make_predictor("sciml", recipe, store)
    starts = untrained.adapter("fields").starts(store, "test")
    steps = TIMES * (min(block.stop - block.start for block in starts.blocks) - 1)
    rollouts = f"channel/rollout_{steps}"
    if common.measured(bench, f"{rollouts}/finite_steps", NAMES[peers.CHAINED]) is not None:
        return
    parts = truth(untrained, starts, peers.kept_in("channel_solver", recipe, store, steps).folder, steps)
    for metric, value in spread(parts).items():
        bench.add(Row(metric=f"channel/spread/{metric}", unit="1", ours=value))
    models = trained(recipe, store, seconds, seeds)
    found: dict[str, list[Rolled]] = {kind: [] for kind in NAMES}
    solved = reduce(merge, [part.gathered["whole"] for part in parts])
    for kind, predictor in models:
        found[kind].append(rolled(predictor, store, steps, solved))
        common.say(f"channel {kind}: {found[kind][-1].figures}")
    rows = {kind: {name: float(np.mean([each.figures.get(name, np.nan) for each in some]))
                   for name in some[0].figures} for kind, some in found.items()}
    for name, theirs in rows[peers.CHAINED].items():
        ours, unit = rows["sciml"].get(name, np.nan), UNITS.get(name, "1")
        for label, value in (("ours", ours), ("fno", theirs)):
            if not np.isfinite(value):
                common.say(f"{rollouts}/{name}: {label} isn't finite: {value}")
        if np.isfinite(ours):
            known = np.isfinite(theirs)
            bench.add(Row(metric=f"{rollouts}/{name}", unit=unit, ours=ours, peer=theirs if known else None,
                          peer_name=NAMES[peers.CHAINED] if known else None))
    bench.add(Row(metric="channel/solver/cost", unit="s", ours=solver_cost(options(store))))
    bench.add(Row(metric="channel/training/cpu", unit="s", ours=seconds))
    draw({"solver": solved} | {NAMES[kind]: some[0].whole for kind, some in found.items()}, PICTURE)


def truth(predictor: Predictor, starts: Blocks, folder: Path, steps: int) -> list[Followed]:
    """The solver from the states that models start from, and as far; its statistics as ``whole``. What the folder has
    isn't solved again."""
    store, parts = starts.frame.store, list[Followed]()
    for index, block in enumerate(starts.blocks[:STARTS]):
        part, place = follow(predictor, starts, index, Plan(1)), folder / f"{index}.npz"
        if not place.exists():
            first = np.stack([store.read(name, block.group, block.start, block.start + 1)[0] for name in STATES])
            save(solver_rollout(options(store), part.layout, first, steps), place)
        parts.append(replace(part, steps=steps, gathered={"whole": load(part.layout, place)}))
    return parts


def options(store: Store) -> channel.Options:
    """What the store was made with."""
    return validate(channel.Options, store.meta.provenance.options, where=store.url)


def solver_rollout(made: channel.Options, layout: Layout, first: np.ndarray, steps: int) -> Statistics:
    """Of the states after 1, 2, … `steps` frames; first: ``(3, x, y, z)``."""
    viscosity = 1 / float(np.atleast_1d(made.friction_reynolds)[0])

    def states() -> Iterator[Statistics]:
        flow = channel.staggered(made.flow_grid, torch.from_numpy(first.astype(np.float64)), viscosity)
        for step in range(steps):
            flow = channel.solver.advance(made.flow_grid, flow, made.frame_dt, viscosity)
            yield one(layout, channel.collocated(made.flow_grid, flow).numpy())
            if step % 200 == 0:
                common.say(f"channel: the solver is at frame {step} of {steps}")

    return reduce(merge, states())


def save(found: Statistics, place: Path) -> None:
    """All but the layout, atomically."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_suffix(".part.npz")
    spectra = {f"{part}:{name}": getattr(own, part) for name, own in found.spectra.items() for part in ("k", "power")}
    np.savez(aside, count=found.count, mean=found.mean, product=found.product, **spectra)
    aside.rename(place)


def load(layout: Layout, place: Path) -> Statistics:
    """What `save` wrote."""
    with np.load(place) as found:
        names = [key.removeprefix("k:") for key in found.files if key.startswith("k:")]
        spectra = {name: Spectrum(found[f"k:{name}"], found[f"power:{name}"]) for name in names}
        return Statistics(layout, int(found["count"]), found["mean"], found["product"], spectra)


def spread(parts: Sequence[Followed]) -> dict[str, float]:
    """How far one of them is from the others together, mean over all."""
    each = [part.gathered["whole"] for part in parts]
    found = [beside(parts[i], own, reduce(merge, each[:i] + each[i + 1:])) for i, own in enumerate(each)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def beside(part: Followed, ours: Statistics, theirs: Statistics) -> dict[str, float]:
    """The card's figures of two statistics, by measure."""
    rows = entries([replace(part, gathered={"whole": ours, "ours": ours, "theirs": theirs})], part.steps)
    found = {MEASURES[row.name]: row.value for row in rows if row.name in MEASURES and row.name != "finite steps"}
    return found | {"bulk_velocity": float(ours.layout.across @ ours.mean[0] / (theirs.layout.across @ theirs.mean[0]))}


def trained(recipe: Recipe, store: Store, seconds: float, seeds: int) -> list[tuple[str, Predictor]]:
    """Predictors of all kinds and seeds; what `peers.kept_in` has isn't tuned or trained again."""
    kept = peers.kept_in("channel", recipe, store, seconds)
    chosen = kept.settings(tuple(NAMES), lambda some: tuned(recipe, store, some, min(seconds / 10, TRY_S)))
    trainers = {(kind, seed): peers.trainer(kind, chosen[kind], recipe, store, seconds, seed)
                for seed in range(seeds) for kind in NAMES}
    kept.train_missing(trainers)
    for key, each in trainers.items():
        common.say(f"channel {key}: {each.step} steps, {common.parameters(each.predictor)} parameters")
    return [(kind, each.averaged()) for (kind, _), each in trainers.items()]


def tuned(recipe: Recipe, store: Store, kinds: Sequence[str], seconds: float) -> dict[str, tuple[float, int]]:
    """Each model's best setting by validation, all trained in turns."""
    tries = [(kind, setting) for kind in kinds for setting in SETTINGS[kind]]
    trainers = [peers.trainer(kind, setting, recipe, store, seconds) for kind, setting in tries]
    common.train_together(trainers)
    errors = {each: peers.validation(one, JUDGED) for each, one in zip(tries, trainers)}
    for (kind, setting), error in errors.items():
        common.say(f"tuning {kind}: rate {setting[0]:g}, batch {setting[1]}: {error:.4f}")
    return {kind: min(SETTINGS[kind], key=lambda setting: errors[kind, setting]) for kind in kinds}


def rolled(predictor: Predictor, store: Store, steps: int, solved: Statistics) -> Rolled:
    """Free rollouts from the first states of the test split."""
    adapter: Any = predictor.adapter("fields")
    starts = adapter.starts(store, "test")
    parts = [follow(predictor, starts, index, Plan(steps)) for index in range(min(STARTS, len(starts)))]
    figures = {"finite_steps": float(min(part.steps for part in parts)), "one_step": one_step(predictor, store),
               "gmean_100": float(np.mean([part.growth.gmean for part in parts])),
               "correlation_time": float(np.mean([part.growth.held * part.dt for part in parts])),
               "cost": cost(predictor, starts[0])}
    gathered = [part.gathered["whole"] for part in parts if "whole" in part.gathered]
    if not gathered:
        return Rolled(figures, None)
    whole = reduce(merge, gathered)
    return Rolled(figures | beside(parts[0], whole, solved), whole)


@torch.no_grad()
def one_step(predictor: Predictor, store: Store) -> float:
    """Relative L2 error of the change in a step, of test pairs: 1 for persistence, whatever a model's baseline is."""
    adapter, rng = predictor.adapter("fields"), np.random.default_rng(0)
    windows, errors = adapter.open(store, "test"), []
    for index in np.linspace(0, len(windows) - 1, JUDGED).astype(int):
        batch = collate([adapter.encode(windows.draw(int(index), rng, rng))])
        (target,) = batch.targets.values()
        said = target.predict(forward(adapter, predictor.operator.eval(), batch)[peers.HEAD])
        errors.append(relative_l2(said - batch.values, target.value - batch.values, target.mask))
    return float(torch.cat(errors).mean())


def cost(predictor: Predictor, sample: Any, count: int = 5) -> float:
    """CPU seconds of a step, after one that isn't counted."""
    state = predictor.step(predictor.adapter("fields").initial(sample))
    began = time.process_time()
    for _ in range(count):
        state = predictor.step(state)
    return (time.process_time() - began) / count


def solver_cost(made: channel.Options, count: int = 5) -> float:
    """CPU seconds that the solver, in float64, takes from one frame to the next; from the flow that a spin-up starts
    with."""
    reynolds = float(np.atleast_1d(made.friction_reynolds)[0])
    grid, flow = made.flow_grid, channel.initial(made, 0, reynolds)
    flow = channel.solver.advance(grid, flow, made.frame_dt, 1 / reynolds)
    began = time.process_time()
    for _ in range(count):
        flow = channel.solver.advance(grid, flow, made.frame_dt, 1 / reynolds)
    return (time.process_time() - began) / count


def draw(curves: Mapping[str, Statistics | None], path: Path) -> None:
    """Mean profile, fluctuations and spectra of the solver and of the models that have any, on the solver's scale; a
    model whose fluctuations are more than ten times the solver's isn't in it."""
    from matplotlib.figure import Figure

    solver = curves["solver"]
    assert solver is not None
    drawing = Figure(figsize=(10, 6.4), layout="constrained")
    axes = drawing.subplots(2, 3)
    for (label, found), look, width in zip(curves.items(), ("0.72", "C0", "C3"), (5.0, 1.6, 1.3)):
        if found is None or not found.rms.max() < 10 * solver.rms.max():  # not, if it isn't a number
            continue
        layout, half = found.layout, found.mean.shape[1] // 2
        wall, style = 180 * layout.places[1][:half], {"color": look, "linewidth": width, "label": label}
        folded = (found.mean[0, :half] + found.mean[0, ::-1][:half]) / 2
        axes[0, 0].semilogx(wall, folded, **style)
        stress = found.stress("velocity_x", "velocity_y")
        axes[0, 2].plot(wall, (stress[::-1][:half] - stress[:half]) / 2, **style)
        for channel_, dash in zip(range(3), ("-", "--", ":")):
            rms = (found.rms[channel_, :half] + found.rms[channel_, ::-1][:half]) / 2
            axes[0, 1].plot(wall, rms, **{**style, "linestyle": dash, "label": None})
        for ax, name in zip(axes[1], ("energy_x/velocity", "energy_z/velocity")):
            spectrum = found.spectra[name]
            ax.loglog(range(1, 11), spectrum.overall(layout)[1:11], **style)
        axes[1, 2].plot(layout.places[1], found.mean[0], **style)
        if label == "solver":
            limits = [ax.get_ylim() for ax in axes.flat]
    for ax, (low, high) in zip(axes.flat, limits):
        wide = (low / 10, high * 10) if ax.get_yscale() == "log" else (low, high + 0.25 * (high - low))
        ax.set_ylim(*wide)
    titles = (("mean u⁺", "y⁺"), ("rms of u (—), v (--), w (···)", "y⁺"), ("−⟨u′v′⟩⁺", "y⁺"),
              ("energy along x", "wave"), ("energy along z", "wave"), ("mean u⁺, both walls", "y/δ"))
    for ax, (title, label) in zip(axes.flat, titles):
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel(label)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[1, :2]:
        ax.axvline(8, color="0.6", linewidth=0.8, linestyle=":")
    axes[0, 0].legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)
