"""Activity that a model draws by itself, beside the recording: 60 s of a model of counts and of an events model.

    SCIML_MIRROR=folder/with/s1/and/nwb sciml bench spikes_generation

``s1``: 52 units in bins of 50 ms, configs/s1.yaml (the run of seed 0 of `sciml bench spikes`); ``nwb``: 3 units as
events, configs/nwb.yaml. Each draws 60 s from the beginning of the test split on, with three seeds. Figures are
`sciml.domains.spikes.matching.distances` to the test split, means over seeds:

- ``generated_60s``; peers: ``60 s``, stretches of 60 s of the test split to its rest, which are as long; ``halves``,
  the interleaved halves of the test split to one another, which are longer and share its drift.
- ``train_60s``: stretches of 60 s of the training split: how far the recording itself drifts.

``rate_late``: mean rate of the last third of 60 s over that of the first; peer: of the recorded stretches.
``rescaled``: share of units whose intervals, rescaled by the rates that the model had while it drew, stay within the
95 % band; peer: of the recording under the rates predicted for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import torch
import xarray as xr

from pretrain.workflow import pretrain
from sciml.assets import config, dataset
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.data.schema import SplitName
from sciml.data.source import read_source
from sciml.data.store import Store, open_store
from sciml.domains.spikes.event_rates import rescaled_intervals
from sciml.domains.spikes.events import Events
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.matching import (
    Activity,
    activity_of_counts,
    activity_of_spikes,
    distances,
    firing_rates,
    split_half,
)
from sciml.domains.spikes.rescaling import ks_test, rescaling_test
from sciml.predictor import Predictor
from sciml.recipe import load_recipe
from sciml.report.bench import Bench, Row

SEEDS = (0, 1, 2)
SECONDS = 60.0
NAMES = ("s1", "nwb")

spikes = load_script(Path(__file__).with_name("spikes.py"))


def store_of(name: str) -> Store:
    place = Path(f"stores/{name}.zarr")
    return open_store(place) if place.exists() else build(read_source(dataset(name)), str(place))


def trained(name: str, store: Store) -> Predictor:
    """What was trained before is read, and goes on after a stop."""
    if name == "s1":
        predictor: Predictor = spikes.train("s1", 0, spikes.QUICK)[0]
        return predictor
    return pretrain(load_recipe(config(name), [f"data.0.store={store.url}"]), spikes.RUNS / f"{name}_0")


def recorded_of(store: Store, split: SplitName = "test") -> Activity:
    """The first block of a split, in the store's bins."""
    layout = Layout.of(store, None)
    block = layout.blocks(split)[0]
    held = layout.recorded(block.group)
    if held.spike_time is None or held.spike_unit is None:
        return activity_of_counts(held.count[block.start:block.stop], layout.bin_s)
    known = np.isfinite(held.count[block.start:block.stop])
    return activity_of_spikes(held.spike_time, held.spike_unit, known, layout.start_s + block.start * layout.bin_s,
                              layout.bin_s)


def drawn(predictor: Predictor, store: Store, seed: int) -> tuple[Activity, xr.Dataset]:
    """60 s from the beginning of the test split, and the rollout that they come from."""
    layout = Layout.of(store, None)
    start = predictor.adapters["spikes"].starts(store, "test")[0].assign_attrs(seed=seed)
    if not layout.has_events:
        made = predictor.rollout(start, round(SECONDS / layout.bin_s))
        return activity_of_counts(made["count"].values, layout.bin_s), made
    begin = float(start["spike_time"][int(start.attrs["look_back"]) - 1])
    rate = len(start["spike_time"]) / float(start["spike_time"][-1] - start["spike_time"][0])
    steps = 0
    while True:
        steps += round(1.5 * SECONDS * rate)
        made = predictor.rollout(start, steps)
        if float(made["time"][-1]) > begin + SECONDS:
            break
    known = np.ones((round(SECONDS / layout.bin_s), len(layout.units)), bool)
    return activity_of_spikes(made["time"].values, made["spike_unit"].values.astype(int), known, begin,
                              layout.bin_s), made


def part(activity: Activity, low: float, high: float) -> Activity:
    """Seconds low … high."""
    bins = slice(round(low / activity.dt), round(high / activity.dt))
    begin, end = bins.start * activity.dt, bins.stop * activity.dt
    return Activity(activity.counts[bins], activity.dt, tuple(
        t[(t >= begin) & (t < end)] - begin for t in activity.times))


def without(activity: Activity, low: float, high: float) -> Activity:
    """With seconds low … high not recorded."""
    counts = activity.counts.copy()
    counts[round(low / activity.dt):round(high / activity.dt)] = np.nan
    return Activity(counts, activity.dt, tuple(t[(t < low) | (t >= high)] for t in activity.times))


def stretches(activity: Activity) -> list[tuple[float, float]]:
    total = len(activity.counts) * activity.dt
    return [(low, low + SECONDS) for low in np.arange(0.0, total - SECONDS + 1e-6, SECONDS)]


def mean_of(found: list[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.nanmean([each[key] for each in found])) for key in found[0]}


def late(activity: Activity) -> float:
    ends = [firing_rates(part(activity, low, high)) for low, high in ((0, SECONDS / 3), (2 * SECONDS / 3, SECONDS))]
    return float(np.nansum(ends[1]) / np.nansum(ends[0]))


def predicted(predictor: Predictor, store: Store) -> list[bool]:
    """Per unit, whether its rescaled intervals stay within the band: of the test split under predicted rates."""
    adapter, rates, counts = predictor.adapters["spikes"], [], []
    if isinstance(adapter, Events):
        return [ks_test(each).within_band for each in rescaled_intervals(adapter, predictor.forward, store, "test")]
    rng = np.random.default_rng(0)
    windows = adapter.questions(store, "test")[0].windows
    for index in range(len(windows)):
        sample = windows.draw(index, rng, rng)
        found = predictor.predict(sample)
        rate = found["count"].isel(sample=0).values
        known = found["known"].isel(sample=0).values
        truth = sample["count"].values[len(sample["count"]) - len(rate):]
        rates.append(rate)
        counts.append(np.where(known, truth, np.nan))
    return [test.within_band for test in rescaling_test(np.concatenate(rates), np.concatenate(counts))]


def own(activity: Activity, made: xr.Dataset) -> float:
    """`predicted` of what was drawn, under the rates that it was drawn from; NaN where the rollout doesn't say them."""
    if "rate" not in made:
        return float("nan")
    return float(np.mean([test.within_band for test in rescaling_test(made["rate"].values, activity.counts)]))


def measure(bench: Bench, name: str, store: Store) -> None:
    predictor = trained(name, store)
    recorded, before = recorded_of(store), recorded_of(store, "train")
    made = [drawn(predictor, store, seed) for seed in SEEDS]
    click.echo(f"{name}: {[len(np.concatenate(a.times)) for a, _ in made]} spikes drawn", err=True)
    minutes = stretches(recorded)
    rest = mean_of([distances(part(recorded, *ends), without(recorded, *ends)) for ends in minutes])
    ours = {"generated_60s": mean_of([distances(a, recorded) for a, _ in made]),
            "train_60s": mean_of([distances(part(before, *ends), recorded) for ends in stretches(before)])}
    for label, found in ours.items():
        for peer, values in (("60 s", rest), ("halves", split_half(recorded))):
            for key, value in values.items():  # without those that are undefined, as between equal rates
                if np.isfinite([found[key], value]).all():
                    bench.add(Row(metric=f"{name}/{label}/{key}", unit="1", ours=found[key], peer=value,
                                  peer_name=peer))
    bench.add(Row(metric=f"{name}/generated_60s/rate_late", unit="1", ours=float(np.mean([late(a) for a, _ in made])),
                  peer=float(np.mean([late(part(recorded, *ends)) for ends in minutes])), peer_name="recorded"))
    fitted, self_made = float(np.mean(predicted(predictor, store))), float(np.mean([own(*each) for each in made]))
    if np.isfinite(self_made):
        bench.add(Row(metric=f"{name}/generated_60s/rescaled", unit="1", ours=self_made, peer=fitted,
                      peer_name="recording"))
    else:
        bench.add(Row(metric=f"{name}/recorded/rescaled", unit="1", ours=fitted))


def run(place: Path | None = None) -> Bench:
    """Measure what is missing; `place`: folder of the results."""
    torch.set_num_threads(1)
    bench = Bench.load_or_new("spikes_generation", seeds=SEEDS, place=place)
    for name in NAMES:
        if not bench.has(f"{name}/generated_60s/rate_late"):
            measure(bench, name, store_of(name))
    return bench
