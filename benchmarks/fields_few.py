"""Few trajectories: a checkpoint pretrained on other equations beside training from scratch and neuraloperator's FNO.

Equations are told apart by the coefficients of ``u_t = Σ a_j ∂^j u − b u u_x + q u² + c u³``, which every model is
given (`sciml.data.builders.semilinear`; all on one period, grid and time step, where only coefficients matter). Ten
equations with random coefficients are pretrained on in one mixture (``configs/fields_foundation.yaml``); two that are
not among them, Allen–Cahn and Kuramoto–Sivashinsky, are learnt from 16, 64 and 256 trajectories (nested; the same
validation and test), by fine-tuning, from scratch and by FNO, for the same CPU seconds on one thread. Samples are
encoded once beforehand, off every model's clock; nothing is augmented. Rate and batch of each model are chosen on the
validation split for every size, a tenth of the budget a try; of the second half of a training the weights with the
lowest validation error are kept; the test split is read once per model.

- accuracy gain: error from scratch over error of the fine-tuned, at equal trajectories;
- efficiency gain: how many times the trajectories the model from scratch needs for the error that the fine-tuned
  reaches, its curve interpolated in logarithms; ``_at_least`` where it doesn't get there with all it has.

Source of both: Herde et al., "Poseidon", NeurIPS 2024.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune import workflow
from pretrain.workflow import pretrain
from sciml.assets import config, dataset
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.data.schema import Splits
from sciml.data.source import SourceSpec, read_source
from sciml.data.store import Store, StoreDraft, open_store, write_store
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.packing import collate
from sciml.recipe import load_recipe
from sciml.report.bench import Bench, Row, write_json
from sciml.tokens import TokenBatch

peers = load_script(Path(__file__).with_name("fields_peers.py"))
common = peers.common
say = common.say

PLACE = Path("stores/bench/few")
RUN = Path("runs/bench/fields_foundation")
SIZES = (16, 64, 256)
CELLS = 64
KINDS = ("fine_tuned", "from_scratch", "neuraloperator_fno")
RATES, BATCHES = {"fine_tuned": (5e-4, 1e-3, 2e-3), "from_scratch": (1e-3, 2e-3, 4e-3),
                  "neuraloperator_fno": (1e-3, 3e-3, 6e-3)}, (8, 32)
JUDGED = 48
"""Validation samples that weights are kept by."""
Setting = tuple[float, int]
ENCODED: dict[tuple[str, str], list[TokenBatch]] = {}


FAMILY, SEED = "semilinear_family", 0
COUNTS = {FAMILY: (10240, 80, 80), "allen_cahn": (256, 32, 64), "kuramoto_sivashinsky": (256, 32, 64)}
"""Trajectories to train, validate and test on."""
UNSEEN = tuple(COUNTS)[1:]
COMMON = {"length": 40.0, "frame_dt": 2.0, "resolution": CELLS, "solve_resolution": 128, "block": 128}
TERMS = ("a0", "a1", "a2", "a3", "a4", "a6", "b", "q", "c")
Draw = Callable[[np.random.Generator], Mapping[str, float]]


def equations() -> dict[str, Draw]:
    """Those that are pretrained on: name → coefficients by the letters of the module's docstring, 0 where not named."""
    def one(low: float, high: float) -> Callable[[np.random.Generator], float]:
        return lambda rng: float(rng.uniform(low, high))

    rate = one(0.25, 1.0)

    def nagumo(rng: np.random.Generator) -> Mapping[str, float]:  # u (1 − u) (u − α)
        s, alpha = rate(rng), one(0.1, 0.4)(rng)
        return {"a0": -s * alpha, "a2": one(0.3, 1.0)(rng), "q": s * (1 + alpha), "c": -s}

    def zeldovich(rng: np.random.Generator) -> Mapping[str, float]:  # u² (1 − u)
        s = rate(rng)
        return {"a2": one(0.3, 1.0)(rng), "q": s, "c": -s}

    def burgers_huxley(rng: np.random.Generator) -> Mapping[str, float]:
        return {**nagumo(rng), "b": one(0.4, 1.2)(rng)}

    def swift_hohenberg(rng: np.random.Generator) -> Mapping[str, float]:
        s = rate(rng)
        return {"a0": s * (one(0.2, 0.9)(rng) - 1), "a2": -2 * s, "a4": -s, "q": s * one(-1, 1)(rng), "c": -s}

    def nikolaevskiy(rng: np.random.Generator) -> Mapping[str, float]:
        s = one(0.15, 0.4)(rng)
        return {"a2": s * (1 - one(0.3, 0.7)(rng)), "a4": 2 * s, "a6": s,
                "b": s * one(1, 2.5)(rng)}

    def drawn(**ranges: tuple[float, float]) -> Draw:
        return lambda rng: {name: one(*ends)(rng) for name, ends in ranges.items()}

    return {"advection_diffusion": drawn(a1=(-2, 2), a2=(0.05, 0.5)), "burgers": drawn(a2=(0.4, 1.5), b=(0.4, 1.2)),
            "hyperviscous_burgers": drawn(a4=(-1.0, -0.3), b=(0.4, 1.2)),
            "kdv_burgers": drawn(a2=(0.1, 0.6), a3=(-1, 1), b=(0.4, 1.2)),
            "burgers_sivashinsky": drawn(a0=(0.02, 0.12), a2=(0.4, 1.2), b=(0.4, 1.2)),
            "nagumo": nagumo, "zeldovich": zeldovich, "burgers_huxley": burgers_huxley,
            "swift_hohenberg": swift_hohenberg, "nikolaevskiy": nikolaevskiy}


def options(name: str) -> dict[str, Any]:
    """Of the builder, for the family or an equation that is not in it; all say all coefficients."""
    if name == FAMILY:
        rng, makers = np.random.default_rng(SEED), list(equations().values())
        rows = [makers[i % len(makers)](rng) for i in range(sum(COUNTS[name]))]
        own = {"frames": 6, "spin_up": 2.0, "harmonics": 12}
    elif name == "allen_cahn":  # a front is √(2 a₂) wide; one time unit of u_t = D u_xx + u − u³ a frame
        rows = [{"a0": 0.5, "a2": 800 * d, "c": -0.5} for d in (4e-4, 6e-4, 8e-4)]
        own = {"frames": 6, "spin_up": 1.0, "harmonics": 12}
    else:
        rows, own = [{"a2": -1.0, "a4": -1.0, "b": 1.0}], {"frames": 6, "spin_up": 60.0}
    lists = {term: [float(row.get(term, 0.0)) for row in rows] for term in TERMS}
    linear = {int(term[1]): lists[term] for term in TERMS if term[0] == "a"}
    rest = {"convection": lists["b"], "quadratic": lists["q"], "cubic": lists["c"]}
    return {**COMMON, **own, "trajectories": sum(COUNTS[name]), "seed": SEED, "linear": linear, **rest}


def store_of(name: str) -> Store:
    """The family's or an equation's store, built if it isn't there."""
    place = PLACE / f"{name}.zarr"
    if place.exists():
        return open_store(place)
    split = {"by": "group", "counts": dict(zip(("train", "validation", "test"), COUNTS[name])), "seed": None}
    made = read_source(dataset("semilinear")).model_dump() | {"name": name, "options": options(name), "split": split}
    return build(SourceSpec.model_validate(made), str(place))


def few(store: Store, count: int) -> Store:
    """The store's first `count` training trajectories with its whole validation and test splits, and statistics of
    these trajectories alone; built if it isn't there."""
    meta, place = store.meta, PLACE / f"{store.meta.dataset}_{count}.zarr"
    if place.exists():
        return open_store(place)
    parts = {"train": meta.splits.train[:count], "validation": meta.splits.validation, "test": meta.splits.test}
    groups = [block.group for part in parts.values() for block in part]
    renamed = {part: tuple(block.model_copy(update={"group": groups.index(block.group)}) for block in blocks)
               for part, blocks in parts.items()}
    described = meta.model_dump(include=set(StoreDraft.model_fields))
    draft = StoreDraft.model_validate({**described, "groups": len(groups)}).model_copy(
        update={"splits": Splits(key=meta.splits.key, gap=meta.splits.gap, **renamed)})
    return write_store(store.dataset().isel({meta.group_dim: groups}), draft, place)


def measure(bench: Bench, seconds: float, seeds: int) -> None:
    """Measure what is missing; seconds: of CPU, of every training but the pretraining."""
    torch.set_num_threads(1)
    keep_freed()
    foundation(bench)
    for name in UNSEEN:
        for count in SIZES:
            if common.measured(bench, f"few/{name}/relative_l2_{count}", KINDS[-1]) is None:
                store = few(store_of(name), count)
                compare(bench, name, store, count, tuned(store, seconds / 10), seconds, seeds)
        summarise(bench, name)
        bench.add(Row(metric=f"few/{name}/training_cpu", unit="s", ours=seconds))


def foundation(bench: Bench) -> None:
    """The checkpoint in `RUN`, pretrained if it isn't there; what that cost is a row of its own."""
    store_of(FAMILY)
    cost = RUN / "cpu.json"
    if not cost.exists():
        began = time.process_time()
        pretrain(load_recipe(config("fields_foundation")), RUN)
        write_json(cost, {"seconds": time.process_time() - began})
    bench.add(Row(metric="few/pretraining/cpu", unit="s", ours=json.loads(cost.read_text())["seconds"]))


def trainer(kind: str, setting: Setting, store: Store, seconds: float, seed: int = 0) -> Any:
    """A model to be trained on a store; setting: learning rate (ten times it is Muon's) and batch."""
    rate, batch = setting
    if kind == "fine_tuned":
        assigned = (f"train.learning_rate={rate}", f"train.matrix_learning_rate={10 * rate}", f"seed={seed}")
        predictor, recipe, visible = workflow.prepare(RUN, store.url, assigned)
        made = common.Trainer(kind, predictor, visible, recipe, recipe.train, batch, seconds)
    else:
        recipe = load_recipe(config("fields_foundation"), (f"data=[{{store: {store.url}, batch: {batch}}}]",))
        own = {"from_scratch": "sciml", "neuraloperator_fno": "fno"}[kind]
        made = peers.trainer(own, setting, recipe, store.for_training(), seconds, seed)
    made.batches = cached(made, seed)
    return made


def encoded(trainer: Any) -> list[TokenBatch]:
    """All training samples of its store; those of a kind of model are the same whatever its setting."""
    key = trainer.name, trainer.store.url
    if key not in ENCODED:
        adapter, rng = trainer.adapter, np.random.default_rng(0)
        plain = adapter.reconfigured({**adapter.config.model_dump(mode="json"), "augment": []})
        windows = plain.open(trainer.store, "train", train=True)
        ENCODED[key] = [adapter.encode(windows.draw(i, rng, rng)) for i in range(len(windows))]
    return ENCODED[key]


def cached(trainer: Any, seed: int) -> Iterator[tuple[TokenBatch]]:
    """Batches of training samples that are encoded once; every epoch is a permutation of them."""
    rng, samples = np.random.default_rng(seed), encoded(trainer)
    while True:
        order = rng.permutation(len(samples))
        for start in range(0, len(order) - trainer.batch + 1, trainer.batch):
            yield (collate([samples[i] for i in order[start: start + trainer.batch]]),)


@dataclass
class Kept:
    """Of each trainer the weights of the second half of its training with the lowest validation error."""

    best: dict[str, tuple[float, dict[str, torch.Tensor]]] = field(default_factory=dict)

    def look(self, each: Any) -> None:
        if each.used < each.seconds / 2:
            return
        error = peers.validation(each, JUDGED)
        if error < self.best.get(each.name, (float("inf"), {}))[0]:
            weights = {name: value.detach().clone() for name, value in peers.tensors(each.predictor).items()}
            self.best[each.name] = error, weights

    @torch.no_grad()
    def put_back(self, each: Any) -> None:
        for name, value in peers.tensors(each.predictor).items():
            value.copy_(self.best[each.name][1][name])


def tuned(store: Store, seconds: float) -> dict[str, Setting]:
    """Each model's best rate and batch by validation, all trained in turns."""
    tries = [(kind, (rate, batch)) for kind in KINDS for rate in RATES[kind] for batch in BATCHES]
    trainers = [trainer(kind, setting, store, seconds) for kind, setting in tries]
    common.train_together(trainers)
    best: dict[str, tuple[float, Setting]] = {}
    for (kind, setting), each in zip(tries, trainers):
        error = peers.validation(each)
        say(f"tuning {Path(store.url).stem} {kind}: {setting}, {each.step} steps: {error:.4f}")
        best[kind] = min(best.get(kind, (float("inf"), setting)), (error, setting))
    return {kind: setting for kind, (_, setting) in best.items()}


def compare(bench: Bench, name: str, store: Store, count: int, chosen: Mapping[str, Setting], seconds: float,
            seeds: int) -> None:
    """Train all models on `count` trajectories and score them; the rows appear when all are done."""
    kept, errors = Kept(), {kind: list[float]() for kind in KINDS}
    trainers = [(kind, trainer(kind, chosen[kind], store, seconds, seed)) for seed in range(seeds) for kind in KINDS]
    for i, (kind, each) in enumerate(trainers):
        each.name = f"{kind} {i // len(KINDS)}"
    common.train_together([each for _, each in trainers], kept.look)
    for kind, each in trainers:
        kept.put_back(each)
        rows = evaluate(each.predictor, store, "test", questions=["one_step"]).scores
        errors[kind].append(next(row.value for row in rows if row.metric == "relative_l2"))
        say(f"{name} {count}: {each.name}, {each.step} steps, validation {kept.best[each.name][0]:.4f}, "
            f"test {errors[kind][-1]:.4f}")
    ours = float(np.mean(errors[KINDS[0]]))
    for kind in KINDS[1:]:
        bench.add(Row(metric=f"few/{name}/relative_l2_{count}", unit="1", ours=ours, peer=float(np.mean(errors[kind])),
                      peer_name=kind))


def summarise(bench: Bench, name: str) -> None:
    """The gains, from the rows of errors."""
    for kind, beside in zip(KINDS[1:], ("", "_fno")):
        found = [common.measured(bench, f"few/{name}/relative_l2_{count}", kind) for count in SIZES]
        ours, theirs = [row.ours for row in found], [row.peer for row in found]
        for count, error, other in zip(SIZES, ours, theirs):
            needed, reached = trajectories(error, SIZES, theirs)
            gains = {"accuracy_gain": other / error}
            gains[f"efficiency_gain{'' if reached else '_at_least'}"] = needed / count
            for gain, value in gains.items():
                bench.add(Row(metric=f"few/{name}/{gain}_{count}{beside}", unit="1", ours=value))


def trajectories(error: float, counts: Sequence[int], errors: Sequence[float]) -> tuple[float, bool]:
    """How many trajectories a model of these errors needs for that one, between those measured linear in logarithms,
    and whether it gets there; of errors that rise with the trajectories the lowest so far counts.

    >>> trajectories(0.2, (16, 64, 256), (0.4, 0.2, 0.1)), trajectories(0.05, (16, 64), (0.4, 0.2))
    ((64.0, True), (64.0, False))
    >>> trajectories(0.5, (16, 64), (0.4, 0.2))
    (16.0, True)
    """
    lowest = np.minimum.accumulate(errors)
    if error < lowest[-1]:
        return float(counts[-1]), False
    if error >= lowest[0]:
        return float(counts[0]), True
    found = np.interp(-np.log(error), -np.log(lowest), np.log(counts))
    return float(np.round(np.exp(found), 6)), True
