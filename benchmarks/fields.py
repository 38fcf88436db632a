"""PDE fields: ours beside neuraloperator's FNO, TFNO, UNO and a U-Net, on the same data, seconds and loss.

    sciml bench fields
    SCIML_BENCH_PARTS=gray_scott SCIML_BENCH_SECONDS=gray_scott:300 SCIML_BENCH_SEEDS=3 sciml bench fields

A part is a case: a data set, the recipe ``configs/<case>.yaml`` and a budget of CPU seconds of this process on one
thread (data and augmentation included) that every model has. Each model's learning rate and batch are chosen on the
validation split, a tenth of the budget a try and at most 30 s, as many tries for ours as for a peer; then all are
trained in turns, and the test split is read once per model. Peers learn what persistence misses (of steady data: what
the training mean misses) in one scale and from single steps, as they are used; ours what its recipe says. Where that is
a chain of steps the FNO is trained on it, too (`fno_chained`); a solver that the chain asks for the truth
(Navier–Stokes) is on the model's clock. Rows of parts that aren't asked for are kept.

Trained weights stay in ``runs/bench_fields/<case>_…``, named after budget, data and what of the recipe reaches them, so
that a run that was stopped goes on, and a change of our operator trains ours alone; delete the folder after a change of
code.

- navier_stokes also has the same weights on twice the resolution (`resolution`: the error there over the error here),
  and rollouts of 200 steps beside the solver's: correlation time and mean spectrum.
- channel: rollouts ten times as long as trajectories, judged by statistics (`benchmarks/fields_channel.py`).
- few: 16, 64 and 256 trajectories of an equation that pretraining hasn't seen (`benchmarks/fields_few.py`).
- apebench: its scenarios, networks and metrics (`benchmarks/fields_apebench.py`; needs ``pip install apebench``).
- Cases whose data a solver of ours made also have its error and time per frame, on coarser and finer grids and up to
  its longest stable steps, beside those of the models and of one of ours that was trained on longer leads, for seconds
  of its own (`benchmarks/fields_pareto.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml.assets import config, dataset
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.split_config import GroupSplit
from sciml.data.store import Store, open_store
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.metrics import correlation, correlation_time, energy_spectrum
from sciml.predictor import Predictor
from sciml.recipe import Recipe, load_recipe
from sciml.report.bench import Bench, Row
from sciml.report.machine import gemm_gflops
from sciml.rollout import BlowUp, rollout

HERE = Path(__file__).parent
common = load_script(HERE / "common.py")
peers = load_script(HERE / "fields_peers.py")
solvers = load_script(HERE / "fields_pareto.py")
further = {name: load_script(HERE / f"fields_{name}.py") for name in ("channel", "few", "apebench")}
say = common.say

LONG, LONG_STARTS = 200, 16
LONG_LEADS = "sciml_long"
TRY_S = 30.0
"""Most seconds of a try of settings."""
NAMES = {kind: f"neuraloperator_{kind}" for kind in ("fno", peers.CHAINED, "tfno", "uno")} | {"unet": "unet"}
UNITS = {"correlation_time": "t", "finite_steps": "steps"}


@dataclass(frozen=True)
class Case:
    """data: of `datasets/`; seconds of training per model; steps: of the rollouts that are scored, 0 if the case is
    steady; finer: cells per side of the grid that the same weights are also asked about; leads: of the model that is
    asked for jumps beside the solver, trained for so many seconds."""

    data: str
    seconds: float
    steps: int = 12
    finer: int = 0
    leads: tuple[int, ...] = (4, 12)
    leads_seconds: float = 300.0

    @property
    def scores(self) -> tuple[str, ...]:
        """Of an evaluation, by question and metric."""
        rollout = f"rollout_{self.steps}"
        moving = ("one_step/relative_l2", f"{rollout}/gmean_relative_l2", f"{rollout}/correlation_time")
        return moving if self.steps else ("steady/relative_l2",)


CASES = {
    "navier_stokes": Case("navier_stokes", 1200.0, finer=128),
    "kelvin_helmholtz": Case("euler/kelvin_helmholtz", 1200.0),
    "riemann": Case("euler", 1200.0),
    "gray_scott": Case("reaction_diffusion", 600.0),
    "kuramoto_sivashinsky": Case("kuramoto_sivashinsky", 600.0, steps=100),
    "wave": Case("wave", 600.0, leads=(12,), leads_seconds=1200.0),
    "darcy": Case("elliptic", 600.0, steps=0),
}
FURTHER = {"channel": 400.0, "few": 45.0, "apebench": 60.0}
"""Seconds of the parts that have a script and settings of their own."""


def run(place: Path | None = None) -> Bench:
    """Measure the cases that are missing; place: folder of the results."""
    torch.set_num_threads(1)
    keep_freed()
    budgets = {name: case.seconds for name, case in CASES.items()} | FURTHER
    plan = common.Plan.of_environment(tuple(budgets), budgets)
    if "apebench" in plan.parts:
        further["apebench"].apebench()  # not there: rather now than after hours
    bench = Bench.load_or_new("fields", seeds=tuple(range(plan.seeds)), place=place, parts=plan.parts)
    for name in plan.parts:
        if name in FURTHER:
            further[name].measure(bench, plan.seconds[name], plan.seeds)
        elif common.measured(bench, f"{name}/{CASES[name].scores[0]}", NAMES["fno"]) is None:
            bench.add(Row(metric=f"machine/gemm/{name}", unit="GFLOP/s", ours=gemm_gflops()))
            compare(bench, name, CASES[name], plan.seconds[name], plan.seeds)
    return bench


def store_of(case: Case) -> Store:
    """The case's store, built if it isn't there."""
    place = Path(f"stores/{case.data.rpartition('/')[2]}.zarr")
    return open_store(place) if place.exists() else build(read_source(dataset(case.data)), str(place))


def compare(bench: Bench, name: str, case: Case, seconds: float, seeds: int) -> None:
    """Tune, train and score all models of a case; the rows appear when all are done."""
    recipe, store = load_recipe(config(name)), store_of(case)
    kinds = ("sciml", *peers.kinds_for(recipe))
    runs = trained(name, recipe, store, seconds, seeds)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for (kind, _), each in runs.items():
        found[kind].append(scores(each, store, case))
        say(f"{name} {kind}: {each.step} steps, {common.parameters(each.predictor)} parameters, {found[kind][-1]}")
    for metric in found["sciml"][0]:
        beside(bench, f"{name}/{metric}", {kind: [one.get(metric, np.nan) for one in each]
                                           for kind, each in found.items()})
    for kind in kinds:
        each, label = runs[kind, 0], "ours" if kind == "sciml" else kind
        bench.add(Row(metric=f"{name}/parameters/{label}", unit="1", ours=float(common.parameters(each.predictor))))
        bench.add(Row(metric=f"{name}/steps/{label}", unit="1", ours=float(each.step)))
    bench.add(Row(metric=f"{name}/training/cpu", unit="s", ours=seconds))
    predictors = {kind: runs[kind, 0].averaged() for kind in kinds}
    if name in solvers.RIVALS:
        predictors[LONG_LEADS] = jumping(name, case, recipe, store, runs["sciml", 0])
        solvers.pareto(bench, name, predictors, store)


def beside(bench: Bench, metric: str, found: dict[str, list[float]]) -> None:
    """Rows of a figure beside every peer, means over seeds; ours seed by seed too, if there are several."""
    unit, ours = UNITS.get(metric.rpartition("/")[2], "1"), float(np.mean(found["sciml"]))
    for kind in (each for each in found if each != "sciml"):
        theirs = float(np.mean(found[kind]))
        if np.isfinite([ours, theirs]).all():
            bench.add(Row(metric=metric, unit=unit, ours=ours, peer=theirs, peer_name=NAMES[kind]))
        else:
            say(f"{metric}: no row beside {kind}, one isn't finite: ours {ours}, theirs {theirs}")
    if len(found["sciml"]) > 1 and np.isfinite(ours):
        bench.add(Row(metric=f"{metric}_std", unit=unit, ours=float(np.std(found["sciml"], ddof=1))))


def trained(name: str, recipe: Recipe, store: Store, seconds: float, seeds: int,
            kinds: Sequence[str] = ()) -> dict[tuple[str, int], Any]:
    """(kind, seed) → a trainer at the end of its budget, of all kinds or of these: tuned on validation, those that are
    missing trained in turns."""
    kinds = kinds or ("sciml", *peers.kinds_for(recipe))
    kept = peers.kept_in(name, recipe, store, seconds)
    chosen = kept.settings(kinds, lambda some: peers.tuned(recipe, store, some, min(seconds / 10, TRY_S)))
    say(f"{name}: chosen on validation: {chosen}")
    runs = {(kind, seed): peers.trainer(kind, chosen[kind], recipe, store, seconds, seed)
            for seed in range(seeds) for kind in kinds}
    kept.train_missing(runs)
    return runs


def jumping(name: str, case: Case, recipe: Recipe, store: Store, ours: Any) -> Predictor:
    """Ours on the case's leads instead of the recipe's chain, at the rate and batch of that trainer; a solver has to
    take all steps in between."""
    fields = {**recipe.domains["fields"], "leads": case.leads}
    recipe = peers.unchained(recipe).model_copy(update={"domains": {**recipe.domains, "fields": fields}})
    each = peers.trainer("sciml", (ours.train.learning_rate, ours.batch), recipe, store, case.leads_seconds)
    peers.kept_in(name, recipe, store, case.leads_seconds).train_missing({(LONG_LEADS, 0): each})
    say(f"{name} {LONG_LEADS}: {each.step} steps")
    return each.averaged()


def scores(each: Any, store: Store, case: Case) -> dict[str, float]:
    """Test scores of a model, of the case's questions."""
    predictor = each.averaged()
    rows = {f"{row.question}/{row.metric}": row.value for row in evaluate(predictor, store, "test").scores}
    result = {name: rows[name] for name in case.scores}
    if case.finer:
        near, far = (one_step(each, finer_store(store, case.finer, own)) for own in (len(store.coord("x")), case.finer))
        result |= {f"resolution_{case.finer}/relative_l2": far, f"resolution_{case.finer}/growth": far / near}
        result |= long_rollout(each, store)
    return result


def one_step(each: Any, store: Store) -> float:
    rows = evaluate(each.predictor, store, "test").scores
    return float(next(row.value for row in rows if (row.question, row.metric) == ("one_step", "relative_l2")))


def finer_store(store: Store, solved: int, saved: int) -> Store:
    """Other trajectories of the data set, solved on a finer grid and spectrally filtered to the one they are saved on:
    the same functions at every resolution."""
    place = Path(f"stores/bench/{store.meta.dataset}_{solved}_as_{saved}.zarr")
    if place.exists():
        return open_store(place)
    source = read_source(dataset(store.meta.dataset))
    options = source.options | {"trajectories": 6, "seed": 1, "resolution": saved, "solve_resolution": solved}
    split = GroupSplit.model_validate({"by": "group", "counts": {"train": 1, "validation": 1, "test": 4}, "seed": None})
    return build(source.model_copy(update={"options": options, "split": split}), str(place))


def long_rollout(each: Any, store: Store) -> dict[str, float]:
    """Beside the solver, from the same states: finite steps (the fewest of all trajectories), mean correlation time
    and, if all are finite, the largest factor between the mean energy spectra over the second half, up to half the
    Nyquist wavenumber."""
    truth = solver_rollout(store.url)
    frames = followed(each.predictor, store, LONG, len(truth))
    lengths = [int(np.isfinite(one).all((1, 2)).sum()) for one in frames]
    known = [float(correlation_time(correlation(one[:n], true[:n], keep=1), store.meta.dt or 1.0))
             for one, true, n in zip(frames, truth, lengths)]
    finite = min(lengths)
    result = {f"rollout_{LONG}/finite_steps": float(finite),
              f"rollout_{LONG}/correlation_time": float(np.mean(known))}
    if finite < LONG:
        return result
    reference = energy_spectrum(truth[:, LONG // 2:].reshape(-1, *truth.shape[2:]), (1.0, 1.0))[1].mean(0)
    half = (len(reference) - 1) // 2
    ours = energy_spectrum(frames[:, LONG // 2:].reshape(-1, *frames.shape[2:]), (1.0, 1.0))[1].mean(0)
    ratio = (ours / reference)[1: half + 1]
    return result | {f"rollout_{LONG}/spectrum_ratio": float(np.maximum(ratio, 1 / ratio).max())}


def followed(predictor: Predictor, store: Store, steps: int, count: int) -> np.ndarray:
    """Vorticity ``(count, steps, x, y)`` of rollouts from the first test states, NaN from where one blew up."""
    adapter: Any = predictor.adapter("fields")
    found = []
    for sample in adapter.starts(store, "test")[:count]:
        frames = np.full((steps, *(sample.sizes[axis] for axis in "xy")), np.nan)
        with suppress(BlowUp):
            for state in rollout(predictor, adapter.initial(sample), steps):
                frames[state.step - 1] = adapter.observe(state)["vorticity"].transpose(..., "x", "y").values.reshape(
                    frames.shape[1:])
        found.append(frames)
    return np.stack(found)


@lru_cache(maxsize=1)
def solver_rollout(url: str) -> np.ndarray:
    """``(LONG_STARTS, LONG, x, y)``: the solver from the first states of test trajectories, after every step."""
    from sciml.data.builders.navier_stokes import advance

    store = open_store(url)
    groups = [block.group for block in store.meta.splits.test][:LONG_STARTS]
    first = np.stack([store.read("vorticity", group, 0, 1)[0] for group in groups]).astype(np.float64)
    viscosity, forcing = float(store.read("viscosity", groups[0])), store.read("forcing", groups[0])
    return np.asarray(advance(first, viscosity, forcing, store.meta.dt or 1.0, LONG))
