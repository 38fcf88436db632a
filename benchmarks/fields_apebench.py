"""APEBench as a neutral judge of `benchmarks/fields.py`: its scenarios, data, networks and metric beside ours.

    pip install --target FOLDER apebench
    PYTHONPATH=FOLDER SCIML_BENCH_PARTS=apebench SCIML_BENCH_SECONDS=apebench:60 sciml bench fields

apebench is not a dependency (0.1.1 with exponax 0.1.0, pdequinox 0.1.2, trainax 0.0.2, jax 0.10.2 and equinox 0.13.8
works, with the newest of each and no pins). Its solver makes the training and the test trajectories. Its last training
trajectories validate; neither side trains on them. Its networks, by its own strings, learn the next state as it trains
them: Adam, squared error of one step, no normalisation, a warm-up of a fifth and a cosine to 0. Ours is trained by
``configs/apebench_1d.yaml`` or ``configs/apebench_2d.yaml`` on a store that the NumPy reader makes of the same arrays.

Every model has the same CPU seconds of this process on one thread, and the same number of tries of a tenth of them, for
its learning rate and then its batch, judged by the one-step error of the validation trajectories. What XLA takes to
compile a network's step isn't counted; it is a row. Scores: APEBench's mean nRMSE after 1 and 100 steps of rollouts
from the test set's initial states, and its geometric mean over these 100.

Source: Koehler, Niedermayr, Westermann & Thuerey, "APEBench", NeurIPS 2024.
"""

from __future__ import annotations

import importlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml.assets import config
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store, open_store
from sciml.errors import InputError
from sciml.packing import collate
from sciml.predictor import evaluating
from sciml.recipe import Recipe, load_recipe, validate
from sciml.report.bench import Bench, Row
from sciml.tokens import State

HERE = Path(__file__).parent
common = load_script(HERE / "common.py")
peers = load_script(HERE / "fields_peers.py")
say = common.say

NETWORKS = {"res": "Res;26;8;relu", "unet": "UNet;12;2;relu", "fno": "FNO;12;18;4;gelu"}
"""By kind, at the sizes of APEBench's own study in one dimension; the same strings in two."""
RATES, BATCHES = (1e-3, 3e-3, 1e-2), (20, 8)
OUR_RATES, OUR_BATCHES = (5e-4, 1e-3, 2e-3), (8, 16)
HELD_OUT = 5
"""Training trajectories that validate."""
GMEAN_STEPS = 100
WARM_UP = 0.2
"""Of the budget; APEBench's own is 2000 of 10000 steps."""
ENVIRONMENT = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1", "JAX_PLATFORMS": "cpu"}
"""One thread of JAX."""

Setting = tuple[float, int]


@dataclass(frozen=True)
class Scenario:
    """name: of `apebench.scenarios.scenario_dict`; options: where it isn't as it is there; recipe: of ours."""

    name: str
    recipe: str = "apebench_1d"
    options: Mapping[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "diff_ks_cons": Scenario("diff_ks_cons"),
    "diff_burgers": Scenario("diff_burgers"),
    "diff_adv": Scenario("diff_adv"),
    "diff_burgers_2d": Scenario("diff_burgers", "apebench_2d", {"num_spatial_dims": 2, "num_points": 32}),
}
"""Those of one dimension are APEBench's; in two dimensions 32 points a side stand for its 160. The difficulty that
defines the scenario is in units of the grid, and stays."""


@dataclass(frozen=True)
class Data:
    """``(trajectory, time, channel, *space)``, from APEBench's solver, and the store of the same training states."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    store: Store

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All validation states that have a next one, and that ``(n, 1, channel, *space)``."""
        shape = self.validation.shape[2:]
        return self.validation[:, :-1].reshape(-1, *shape), self.validation[:, 1:].reshape(-1, 1, *shape)


def measure(bench: Bench, seconds: float, seeds: int) -> None:
    """Add the rows that are missing, of every scenario; of one that was interrupted, only peers without a row are
    trained. Raises `InputError` if apebench isn't installed."""
    torch.set_num_threads(1)
    library = apebench()
    for name, scenario in SCENARIOS.items():
        compare(bench, name, scenario, library, seconds, seeds)


def apebench() -> Any:
    """The package, with JAX on one thread. Raises `InputError` if it isn't there."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("apebench")
    except ImportError as error:
        raise InputError("benchmarks/fields_apebench.py", key="apebench", found=str(error), expected="apebench 0.1.1",
                         fix="pip install --target FOLDER apebench, and put FOLDER on PYTHONPATH") from None


def compare(bench: Bench, name: str, scenario: Scenario, library: Any, seconds: float, seeds: int) -> None:
    """Tune, train and score ours (unless its score is known) and the peers that have no row."""
    metric = f"apebench/{name}/gmean_{GMEAN_STEPS}"
    known = {row.metric: row.ours for row in bench.results.rows if row.metric.startswith(f"apebench/{name}/")}
    missing = [kind for kind in NETWORKS if not bench.has(metric, f"apebench_{kind}")]
    if not missing:
        return
    judge = library.scenarios.scenario_dict[scenario.name](**scenario.options)
    data, kinds = data_of(name, judge), [*([] if metric in known else ["sciml"]), *missing]
    maker = Maker(load_recipe(config(scenario.recipe)), judge, data, seconds)
    chosen = {kind: maker.tuned(kind) for kind in kinds}
    say(f"apebench {name}: chosen on validation: {chosen}")
    trained = [(kind, maker.make(kind, chosen[kind], seconds, seed)) for seed in range(seeds) for kind in kinds]
    common.train_together([each for _, each in trained])
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for kind, each in trained:
        found[kind].append(scores(each, data.test))
        say(f"apebench {name} {kind}: {each.step} steps, {each.parameters} parameters, {found[kind][-1]}")
    means = {kind: {key: float(np.mean([one[key] for one in each])) for key in each[0]} for kind, each in found.items()}
    ours = means.get("sciml") or {key.rpartition("/")[2]: value for key, value in known.items()}
    for kind in missing:
        for key, theirs in means[kind].items():
            if np.isfinite(ours[key]) and np.isfinite(theirs):
                bench.add(Row(metric=f"apebench/{name}/{key}", unit="1", ours=ours[key], peer=theirs,
                              peer_name=f"apebench_{kind}"))
            else:
                say(f"apebench/{name}/{key}: no row beside {kind}, one isn't finite: ours {ours[key]}, theirs {theirs}")
    for kind, each in trained[:len(kinds)]:
        label = "ours" if kind == "sciml" else kind
        for key, value, unit in (("steps", each.step, "1"), ("parameters", each.parameters, "1"),
                                 ("compile_cpu", each.compiling, "s"), ("training_cpu", each.seconds, "s")):
            bench.add(Row(metric=f"apebench/{name}.{key}/{label}", unit=unit, ours=float(value)))


def data_of(name: str, judge: Any) -> Data:
    """APEBench's arrays and the store made of them; made once."""
    folder = Path("stores/bench/apebench") / name
    if not (folder / "test.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for part, make in (("train", judge.get_train_data), ("test", judge.get_test_data)):
                np.save(folder / f"{part}.npy", np.asarray(make()))
    train, test = (np.load(folder / f"{part}.npy") for part in ("train", "test"))
    place = folder / "store.zarr"
    store = open_store(place) if place.exists() else build(described(name, folder / "train.npy", train), str(place))
    return Data(train[:-HELD_OUT], train[-HELD_OUT:], test, store)


def described(name: str, path: Path, states: np.ndarray) -> SourceSpec:
    """The source of APEBench's training states; the box has length 1, the step is the unit of time."""
    axes, channels = ("x", "y", "z")[:states.ndim - 3], [f"u_{i}" for i in range(states.shape[2])]
    coords = {"time": {"start": 0.0, "step": 1.0}}
    coords |= {axis: {"start": 0.0, "step": 1 / states.shape[-1]} for axis in axes}
    return validate(SourceSpec, {
        "name": f"apebench_{name}", "domain": "fields", "files": str(path.absolute()),
        "options": {"format": "numpy", "layout": {"array": ["trajectory", "time", "channel", *axes]}, "coords": coords,
                    "channels": channels},
        "axes": {"time": {"unit": "1"}} | {axis: {"unit": "1", "period": 1.0} for axis in axes},
        "variables": {channel: {"unit": "1"} | _component(channel, axes, len(channels)) for channel in channels},
        "split": {"by": "group", "counts": {"train": len(states) - HELD_OUT, "validation": HELD_OUT, "test": 0},
                  "seed": None},
        "citation": "Koehler, Niedermayr, Westermann & Thuerey, APEBench, NeurIPS 2024."}, where=str(path))


def _component(channel: str, axes: Sequence[str], channels: int) -> dict[str, Any]:
    """As many channels as axes are a vector's components, in Burgers' equation."""
    if channels != len(axes) or channels == 1:
        return {}
    return {"vector": "u", "along": [axes[int(channel.rpartition("_")[2])]]}


@dataclass(frozen=True)
class Maker:
    """Makes models of a scenario, and finds their settings on its validation trajectories."""

    recipe: Recipe
    judge: Any
    data: Data
    seconds: float
    networks: dict[str, Network] = field(default_factory=dict)

    def make(self, kind: str, setting: Setting, seconds: float, seed: int = 0) -> Any:
        """A model that can train so many CPU seconds; setting: learning rate and batch."""
        if kind == "sciml":
            return Ours(peers.trainer("sciml", setting, self.recipe, self.data.store, seconds, seed))
        if kind not in self.networks:
            self.networks[kind] = Network(kind, self.judge)
        return Theirs(self.networks[kind], self.data.train, setting, seconds, seed)

    def tuned(self, kind: str) -> Setting:
        """Learning rate, then batch, by a tenth of the budget a try; as many tries for all."""
        rates, batches = (OUR_RATES, OUR_BATCHES) if kind == "sciml" else (RATES, BATCHES)

        def attempt(settings: Sequence[Setting]) -> dict[Setting, float]:
            made = {setting: self.make(kind, setting, self.seconds / 10) for setting in settings}
            common.train_together(list(made.values()))
            errors = {setting: one_step(each, self.data) for setting, each in made.items()}
            for setting, error in errors.items():
                say(f"tuning {kind}: rate {setting[0]:g}, batch {setting[1]}, {made[setting].step} steps: {error:.4g}")
            return errors

        chosen: Setting = common.search(attempt, [lambda _: [(rate, batches[0]) for rate in rates],
                                                  lambda best: [(best[0], batch) for batch in batches[1:]]])
        return chosen


def nrmse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """APEBench's mean_nRMSE of every step, ``(steps,)``, of ``(trajectory, steps, channel, *space)``."""
    jax, metrics = importlib.import_module("jax"), importlib.import_module("exponax").metrics
    error = jax.vmap(lambda ours, theirs: metrics.mean_metric(metrics.nRMSE, ours, theirs), in_axes=1)
    return np.asarray(error(predicted, truth), np.float64)


def one_step(each: Any, data: Data) -> float:
    """Of all validation states; inf if the model failed or its answer isn't finite."""
    states, following = data.pairs
    error = np.inf if each.failed else float(nrmse(each.roll(states, 1), following)[0])
    return error if np.isfinite(error) else float("inf")


def scores(each: Any, test: np.ndarray) -> dict[str, float]:
    """APEBench's metric after a step, after as many as are averaged, and its geometric mean."""
    errors = nrmse(each.roll(test[:, 0], GMEAN_STEPS), test[:, 1:GMEAN_STEPS + 1])
    return {"mean_nrmse_1": float(errors[0]), f"mean_nrmse_{GMEAN_STEPS}": float(errors[-1]),
            f"gmean_{GMEAN_STEPS}": float(np.exp(np.mean(np.log(errors))))}


@dataclass
class Ours:
    """A `common.Trainer` of the recipe, rolled out from APEBench's arrays."""

    trainer: Any
    compiling: float = 0.0

    @property
    def seconds(self) -> float:
        return float(self.trainer.seconds)

    @property
    def used(self) -> float:
        return float(self.trainer.used)

    @property
    def step(self) -> int:
        return int(self.trainer.step)

    @property
    def failed(self) -> bool:
        return bool(self.trainer.failed)

    @property
    def parameters(self) -> int:
        return int(common.parameters(self.trainer.predictor))

    def advance(self, seconds: float) -> None:
        self.trainer.advance(seconds)

    def roll(self, states: np.ndarray, steps: int) -> np.ndarray:
        """``(n, channel, *space)`` → ``(n, steps, channel, *space)``, with averaged weights."""
        predictor, adapter = self.trainer.averaged(), self.trainer.adapter
        start = adapter.starts(self.trainer.store, "train")[0].isel(time=[0])
        names = [channel.rpartition("/")[2] for channel in adapter.spec().channels]
        frames: list[np.ndarray] = []
        with evaluating(predictor.operator), torch.no_grad():
            for some in np.array_split(states, -(-len(states) // 50)):
                samples = [start.assign({name: (start[name].dims, one[i][None].astype(start[name].dtype),
                                                start[name].attrs) for i, name in enumerate(names)}) for one in some]
                state = State(collate([adapter.initial(sample).batch for sample in samples]))
                steps_made = []
                for _ in range(steps):
                    state = predictor.step(state)
                    steps_made.append(adapter.observe(state).to_array().transpose("variable", ...).sel(
                        variable=names).values.swapaxes(0, 1))
                frames.append(np.stack(steps_made, 1))
        return np.concatenate(frames)


class Network:
    """A network of APEBench and what XLA compiles of it, which all its tries and seeds share. update: of weights,
    moments, rate, indices and all pairs; compiled: CPU seconds, by batch."""

    def __init__(self, kind: str, judge: Any) -> None:
        jax, equinox, optax = (importlib.import_module(name) for name in ("jax", "equinox", "optax"))
        self.optimizer, self.compiled = optax.scale_by_adam(), dict[int, float]()

        def made(seed: int) -> Any:
            return equinox.partition(judge.get_network(NETWORKS[kind], jax.random.PRNGKey(seed)),
                                     equinox.is_inexact_array)

        _, static = made(0)

        def start(seed: int) -> tuple[Any, Any]:
            weights, _ = made(seed)
            return weights, self.optimizer.init(weights)

        def forward(weights: Any, states: Any) -> Any:
            return jax.vmap(equinox.combine(weights, static))(states)

        def loss(weights: Any, states: Any, following: Any) -> Any:
            return jax.numpy.mean((forward(weights, states) - following) ** 2)

        def update(weights: Any, moments: Any, rate: Any, index: Any, states: Any, following: Any) -> Any:
            value, slope = jax.value_and_grad(loss)(weights, states[index], following[index])
            change, moments = self.optimizer.update(slope, moments)
            return jax.tree.map(lambda w, c: w - rate * c, weights, change), moments, value

        self.start, self.forward, self.update = start, jax.jit(forward), jax.jit(update)


class Theirs:
    """A network of APEBench, trained as it trains: Adam on the squared error of a step, its warm-up and cosine over
    the share of the budget that is used, batches from a permutation of all pairs."""

    def __init__(self, network: Network, train: np.ndarray, setting: Setting, seconds: float, seed: int) -> None:
        jax, shape = importlib.import_module("jax"), train.shape[2:]
        self.seconds, self.used, self.step, self.failed = seconds, 0.0, 0, False
        self.network, (self.rate, self.batch) = network, setting
        self.rng, self.waiting = np.random.default_rng(seed), np.zeros(0, np.int64)
        self.pairs = tuple(jax.numpy.asarray(part.reshape(-1, *shape)) for part in (train[:, :-1], train[:, 1:]))
        self.weights, self.moments = network.start(seed)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.weights))
        if self.batch not in network.compiled:
            began = time.process_time()
            float(self.updated()[2])
            network.compiled[self.batch] = time.process_time() - began

    @property
    def compiling(self) -> float:
        return self.network.compiled[self.batch]

    def updated(self) -> Any:
        """Weights, moments and loss after the next batch: the next of a permutation of all pairs, then of another."""
        if len(self.waiting) < self.batch:
            self.waiting = self.rng.permutation(len(self.pairs[0]))
        taken, self.waiting = self.waiting[:self.batch], self.waiting[self.batch:]
        share = min(self.used / self.seconds, 1.0)
        height = share / WARM_UP if share < WARM_UP else (1 + np.cos(np.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2
        return self.network.update(self.weights, self.moments, np.float32(self.rate * height), taken.astype(np.int32),
                                   *self.pairs)

    def advance(self, seconds: float) -> None:
        """Train so many CPU seconds more, batches included."""
        until = min(self.seconds, self.used + seconds)
        while self.used < until and not self.failed:
            began = time.process_time()
            self.weights, self.moments, loss = self.updated()
            self.failed = not np.isfinite(float(loss))
            self.step += 1
            self.used += time.process_time() - began

    def roll(self, states: np.ndarray, steps: int) -> np.ndarray:
        """``(n, channel, *space)`` → ``(n, steps, channel, *space)``."""
        frames = []
        for _ in range(steps):
            states = np.asarray(self.network.forward(self.weights, states))
            frames.append(states)
        return np.stack(frames, 1)
