"""Events beside bins: the same recordings, the same CPU time, scored on the same bins; and what events cost.

    SCIML_MIRROR=folder/with/nwb sciml bench spikes_events

``nwb``: 3 units of a recording, ``network``: 32 of 40 simulated ones, simulated in steps of 0.2 ms, ``driven``: 16
simulated ones under a known stimulus. ``bins_5ms``, ``bins_20ms``: bits/spike of the test split over mean training
rates; ours: the events model, its hazard after the last event before each bin integrated over the bin; peer: a model of
counts in these bins. ``…_std`` over seeds. ``exact``: the events model in continuous time, beside the same model
without its operator; ``exact_categorical``: beside one that tells classes of unit and waiting time instead of a hazard;
``driven/exact``: beside one that isn't given the stimulus.
``units_rescaled``: share of units whose time-rescaled intervals stay within the 95 % band, beside the floor's.
``cpu_s``: seconds of training, beside the model of counts.
``generation/history_…``: time per drawn event after so many, beside after 100. ``training/…``: a step over 32 trials,
packed, beside padding them to the longest: ``range_5`` of 51 to 255 events, ``median_5`` of 10 to 255, the longest five
times the median; lengths are log-uniform.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from pretrain.workflow import new_predictor, pretrain
from sciml import optim, registry
from sciml.adapter import Sample
from sciml.assets import config, dataset
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store, open_store
from sciml.domains.spikes.event_rates import event_rates, rescaled_intervals
from sciml.domains.spikes.events import Events
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.metrics import bits_per_spike
from sciml.domains.spikes.rescaling import ks_test
from sciml.evaluate import evaluate
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import Recipe, load_recipe, read_yaml, validate
from sciml.report.bench import Bench, Row
from sciml.rollout import rollout

SEEDS = (0, 1, 2)
STORES = Path("stores/bench")
NETWORK: Mapping[str, Any] = {
    "name": "network", "domain": "spikes", "builder": "spiking_network", "missing": "mask", "licence": "CC0-1.0",
    "options": {"units": 40, "unobserved": 0.2, "duration_s": 240.0, "bin_ms": 5.0, "step_ms": 0.2, "rate_hz": 5.0,
                "seed": 1},
    "split": {"by": "time", "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}, "gap": 200}}
DRIVEN: Mapping[str, Any] = {**NETWORK, "name": "driven", "options": {
    "units": 16, "duration_s": 120.0, "bin_ms": 5.0, "step_ms": 1.0, "rate_hz": 5.0, "seed": 2,
    "stimulus": {"signals": 2, "strength_mv": 3.0}}}
BINS = {"bins_5ms": 0.005, "bins_20ms": 0.02}
EVENTS: Mapping[str, tuple[str, ...]] = {"nwb": (), "network": (
    "domains.spikes.events.tokens=512", "domains.spikes.events.edges=8", "operator.stem_width=16",
    "operator.dropout=0.3", "train.steps=180"), "driven": ("train.steps=100",)}
CATEGORICAL = ("domains.spikes.events.dt=categorical", "domains.spikes.events.edges=24")
COUNTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "nwb": {"bins_5ms": ("domains.spikes.lags.before=4", "domains.spikes.tasks.next.before=64",
                         "domains.spikes.tasks.next.scored=256", "operator.dropout=0.2", "train.steps=340"),
            "bins_20ms": ("domains.spikes.tasks.next.before=64", "domains.spikes.tasks.next.scored=192",
                          "operator.dropout=0.2", "train.steps=400")},
    "network": {"bins_5ms": ("domains.spikes.lags.before=4", "domains.spikes.tasks.next.before=64",
                             "domains.spikes.tasks.next.scored=192", "domains.spikes.masks.dropout=0.5",
                             "operator.dropout=0.3", "train.steps=520")}}
HISTORIES = (100, 1000, 10_000)
ROUNDS, DRAWN, TRIALS = 15, 40, 32


def stores() -> dict[str, Store]:
    """Both recordings in bins of 5 ms, so that bins of 20 ms have the same blocks."""
    nwb = read_yaml(dataset("nwb"))
    nwb["options"]["bin_s"] = 0.005
    made = {}
    for name, raw in (("nwb", nwb), ("network", NETWORK), ("driven", DRIVEN)):
        place = STORES / f"{name}.zarr"
        made[name] = (open_store(place) if place.exists()
                      else build(validate(SourceSpec, raw, where="benchmark"), str(place)))
    return made


def recipe_of(store: Store, choices: tuple[str, ...], seed: int, bin_s: float | None = None) -> Recipe:
    """The recipe of configs/nwb.yaml with these choices; bin_s: of a model of counts, None for events."""
    counts = () if bin_s is None else (
        "domains.spikes={floor: smoothed}", f"domains.spikes.bin_s={bin_s}", "operator.stem_width=64",
        "operator.levels.0.mixers=[local]")
    common = (f"seed={seed}", f"data.0.store={store.url}", "train.threads=1")
    return load_recipe(config("nwb"), [*common, *counts, *choices])


def trained(recipe: Recipe) -> tuple[Predictor, float]:
    """The model and the CPU seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        predictor = pretrain(recipe, Path(folder) / "run")
        return predictor, time.process_time() - began


def events_of(predictor: Predictor) -> Events:
    adapter = predictor.adapters["spikes"]
    assert isinstance(adapter, Events)
    return adapter


def bits(predictor: Predictor, store: Store) -> tuple[float, float]:
    """bits/spike of the test split, ours and the floor's."""
    row = next(row for row in evaluate(predictor, store, "test").scores if row.metric == "bits_per_spike")
    return row.value, row.baseline


def score_bins(predictor: Predictor, store: Store, bin_s: float) -> float:
    """bits/spike of an events model over the bins of the test split, all of them."""
    layout = Layout.of(store, bin_s)
    rates, counts, seen = event_rates(events_of(predictor), predictor.forward, store, "test", bin_s), [], []
    for block in layout.blocks("test"):
        counts.append(layout.recorded(block.group).count[block.start:block.stop])
        seen.append(rates[block.group][block.start:block.stop])
    train = np.concatenate([layout.recorded(b.group).count[b.start:b.stop] for b in layout.blocks("train")])
    rate = np.concatenate(seen)
    if not np.isfinite(rate).all():
        raise AssertionError("bins without a rate")
    return bits_per_spike(rate, np.concatenate(counts), np.nanmean(train, 0))


def measure(bench: Bench, name: str, store: Store) -> None:
    """Rows of one recording."""
    found: dict[str, list[float]] = {}

    def note(key: str, value: float) -> None:
        found.setdefault(key, []).append(value)

    for seed in SEEDS:
        predictor, seconds = trained(recipe_of(store, EVENTS[name], seed))
        ours, floor = bits(predictor, store)
        note("exact", ours)
        note("floor", floor)
        note("cpu_s", seconds)
        note("rescaled", rescaled(predictor, store))
        note("rescaled/floor", rescaled(new_predictor(recipe_of(store, EVENTS[name], seed), [store]), store))
        if name == "nwb":
            note("categorical", bits(trained(recipe_of(store, (*EVENTS[name], *CATEGORICAL), seed))[0], store)[0])
        for bins, choices in COUNTS[name].items():
            note(bins, score_bins(predictor, store, BINS[bins]))
            counts, taken = trained(recipe_of(store, choices, seed, BINS[bins]))
            note(f"{bins}/counts", bits(counts, store)[0])
            note(f"{bins}/cpu_s", taken)
        click.echo(f"{name}, seed {seed}: " + ", ".join(f"{k} {v[-1]:.4f}" for k, v in found.items()), err=True)
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    for bins in COUNTS[name]:
        add(bench, f"{name}/{bins}/bits_per_spike", "bit", mean[bins], mean[f"{bins}/counts"], "counts")
        add(bench, f"{name}/{bins}/bits_per_spike_std", "bit", float(np.std(found[bins])),
            float(np.std(found[f"{bins}/counts"])), "counts")
        add(bench, f"{name}/{bins}/cpu_s", "s", mean["cpu_s"], mean[f"{bins}/cpu_s"], "counts")
    add(bench, f"{name}/exact/bits_per_spike", "bit", mean["exact"], mean["floor"], "without operator")
    if "categorical" in mean:
        add(bench, f"{name}/exact_categorical/bits_per_spike", "bit", mean["exact"], mean["categorical"], "categorical")
    add(bench, f"{name}/exact/units_rescaled", "1", mean["rescaled"], mean["rescaled/floor"], "without operator")


def rescaled(predictor: Predictor, store: Store) -> float:
    """Share of units that pass the time-rescaling test on the test split."""
    intervals = rescaled_intervals(events_of(predictor), predictor.forward, store, "test")
    return float(np.mean([ks_test(each).within_band for each in intervals]))


def measure_stimulus(bench: Bench, store: Store) -> None:
    """With and without what is known of the stimulus."""
    found = [[bits(trained(recipe_of(store, (*EVENTS["driven"], *choice), seed))[0], store)[0] for seed in SEEDS]
             for choice in ((), ("domains.spikes.events.stimulus=false",))]
    for metric, over in (("bits_per_spike", np.mean), ("bits_per_spike_std", np.std)):
        ours, peer = (float(over(each)) for each in found)
        add(bench, f"driven/exact/{metric}", "bit", ours, peer, "without stimulus")


def measure_generation(bench: Bench, store: Store) -> None:
    """Time per event after histories of several lengths, each drawing in turn."""
    recipe = recipe_of(store, EVENTS["nwb"], 0)
    predictor = new_predictor(recipe, [store])
    start = predictor.adapters["spikes"].starts(store, "train")[0]
    states = {length: predictor.step(predictor.adapters["spikes"].initial(start.assign_attrs(look_back=length)))
              for length in HISTORIES}
    times: dict[int, list[float]] = {length: [] for length in HISTORIES}
    for _ in range(ROUNDS):
        for length in HISTORIES:
            began = time.process_time()
            *_, states[length] = rollout(predictor, states[length], DRAWN)
            times[length].append((time.process_time() - began) / DRAWN)
    shortest = 1e3 * statistics.median(times[HISTORIES[0]])
    for length in HISTORIES[1:]:
        add(bench, f"generation/history_{length}/ms_per_event", "ms", 1e3 * statistics.median(times[length]), shortest,
            "history 100")


def trials(store: Store, predictor: Predictor, lengths: np.ndarray) -> tuple[list[Sample], list[Sample]]:
    """Trials of these lengths, and as many of the longest one."""
    source = events_of(predictor).source(store)
    return ([source.sample(0, 300 * i, 300 * i + int(n)) for i, n in enumerate(lengths)],
            [source.sample(0, 300 * i, 300 * i + int(lengths.max())) for i in range(len(lengths))])


def stepper(recipe: Recipe, store: Store) -> Callable[[list[Sample]], float]:
    """A function that makes one training step and returns its CPU seconds."""
    predictor = new_predictor(recipe, [store])
    adapter, operator = predictor.adapters["spikes"], predictor.operator.train()
    objective, optimizers = registry.find("sciml.objectives", adapter.objective), optim.make_optimizers(
        operator, recipe.train)

    def step(samples: list[Sample]) -> float:
        batch = collate([adapter.encode(sample) for sample in samples])
        began = time.process_time()
        loss = objective(forward(adapter, operator, batch, create_graph=True), batch).mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began
    return step


def measure_training(bench: Bench, store: Store) -> None:
    """A step over trials of unequal length, packed and padded in turn."""
    recipe = recipe_of(store, EVENTS["nwb"], 0)
    predictor, step = new_predictor(recipe, [store]), stepper(recipe, store)
    for name, shortest in (("range_5", 51), ("median_5", 10)):
        packed, padded = trials(store, predictor, np.geomspace(shortest, 255, TRIALS).round().astype(int))
        pairs = [(step(packed), step(padded)) for _ in range(ROUNDS + 2)][2:]
        ours, peer = (1e3 * statistics.median(times) for times in zip(*pairs))
        add(bench, f"training/{name}/step_ms", "ms", ours, peer, "padded")
        ours, peer = (float(sum(sample.sizes["spike"] for sample in each)) for each in (packed, padded))
        add(bench, f"training/{name}/tokens", "1", ours, peer, "padded")


def add(bench: Bench, metric: str, unit: str, ours: float, peer: float | None = None, name: str | None = None) -> None:
    bench.add(Row(metric=metric, unit=unit, ours=ours, peer=peer, peer_name=name))


def run(place: Path | None = None) -> Bench:
    """Measure what is missing; `place`: folder of the results."""
    torch.set_num_threads(1)
    bench = Bench.load_or_new("spikes_events", seeds=SEEDS, place=place)
    for name, store in stores().items():
        if name == "nwb" and not bench.has("training/median_5/tokens", "padded"):
            measure_training(bench, store)
        if name == "nwb" and not bench.has(f"generation/history_{HISTORIES[-1]}/ms_per_event", "history 100"):
            measure_generation(bench, store)
        if name == "driven":
            if not bench.has("driven/exact/bits_per_spike_std", "without stimulus"):
                measure_stimulus(bench, store)
        elif not bench.has(f"{name}/exact/units_rescaled", "without operator"):
            measure(bench, name, store)
    return bench
