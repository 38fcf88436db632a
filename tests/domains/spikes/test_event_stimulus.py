"""Known signals drive the rates of events: found, integrated while one waits, scored, and followed in a rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.store import Store
from sciml.domains.spikes.event_config import EventsConfig
from sciml.domains.spikes.event_stimulus import Drive, Driven
from sciml.domains.spikes.events import Events
from sciml.domains.spikes.fitted import Columns
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate

CONFIG: dict[str, Any] = {"tokens": "events", "events": {"tokens": 80, "before": 20, "edges": 5}, "slow_s": [1.0, 8.0]}
DRIVEN: dict[str, Any] = {"units": 8, "duration_s": 60.0, "bin_ms": 10.0, "behaviour": 0,
                          "stimulus": {"signals": 2, "strength_mv": 4.0}}


@pytest.fixture(scope="module")
def store(network_store: Callable[..., Store]) -> Store:
    return network_store("driven", **DRIVEN)


@pytest.fixture(scope="module")
def adapter(store: Store) -> Events:
    return Events.create(CONFIG).fit(store)


def untrained(adapter: Events) -> Predictor:
    """Heads start at zero: an operator that says what the floor says."""
    level = {"width": 16, "depth": 1, "mixers": ["gated"], "head_width": 16}
    config = validate(OperatorConfig, {"stem_width": 8, "condition_width": 8, "levels": [level]}, where="test")
    return Predictor(Operator(config, {"spikes": adapter.spec()}), {"spikes": adapter})


def test_regression_finds_the_drive_and_leaves_undriven_units_alone() -> None:
    rng = np.random.default_rng(0)
    signals = rng.normal(3, 2, (6000, 2))
    drive = 0.8 * (signals[:, 0] - 3) / 2
    rate = np.stack([0.3 * np.exp(drive), np.full(6000, 0.3)], 1)
    counts = rng.poisson(rate).astype(float)
    counts[50:60, 0] = np.nan
    train = np.arange(6000) < 4000
    recording = Driven(signals, counts, train, ~train)
    mean = torch.from_numpy(np.nanmean(counts[train], 0)) / 0.01
    found = Drive.fit([recording], Columns.fit("ab", "11", signals[train]), 0.01, mean, (0.05,))
    gain = found.gain(signals).numpy()
    assert np.corrcoef(gain[:, 0], drive)[0, 1] > 0.98
    assert np.abs(gain[:, 1]).max() < 0.5
    assert np.exp(gain[train, 0]).mean() == pytest.approx(1, abs=0.05)
    signals[7] = np.nan
    assert np.isfinite(found.gain(signals).numpy()).all()


def test_events_with_the_stimulus_beat_events_without(store: Store, adapter: Events) -> None:
    without = Events.create({**CONFIG, "events": {**CONFIG["events"], "stimulus": False}}).fit(store)
    scores = [evaluate(untrained(each), store, "test").scores[0].value for each in (adapter, without)]
    assert scores[0] > 1.3 * scores[1] > 0
    given = {"stimulus_stimulus0", "stimulus_stimulus1"}
    assert set(adapter.spec().lattice_conditions) - set(without.spec().lattice_conditions) == given


def test_generation_follows_the_stimulus_that_it_is_given(store: Store, adapter: Events) -> None:
    """Two stimuli, one seed: where the first gives a unit more, it fires more. Beyond the stimulus it goes on."""
    predictor, start = untrained(adapter), adapter.starts(store, "test")[0]
    known, bins = int(start.attrs["look_back"]), start.sizes["bin"]
    drive = adapter.drives["driven"]
    rates = []
    for sign in (1.0, -1.0):
        values = np.full((bins, 2), 0.0) + sign * np.array([1.5, 0.0]) * drive.columns.std + drive.columns.mean
        given = start.drop_vars(["drive", "stimulus_value"]).assign(stimulus_value=(("bin", "stimulus"), values))
        made = predictor.rollout(given, 150)
        assert (np.diff(made["spike_time"].values) > 0).all()
        span = made["spike_time"].values[-1] - start["spike_time"].values[known - 1]
        rates.append(np.bincount(made["spike_unit"].values.astype(int), minlength=8) / span)
    wanted = drive.gain(values)[-1] - drive.gain(2 * drive.columns.mean - values)[-1]  # second less first
    assert np.corrcoef(np.log((rates[1] + 0.5) / (rates[0] + 0.5)), wanted.numpy())[0, 1] > 0.7
    ended = start.isel(bin=slice(0, 5)).assign_attrs(look_back=5)
    assert len(predictor.rollout(ended, 30)["spike_time"]) == 30


def test_a_sample_as_a_store_holds_it(store: Store, adapter: Events) -> None:
    """Events along spike, signals along time: the same batch as from the form in which rollouts go on."""
    start = adapter.starts(store, "validation")[0]
    plain = start.drop_vars(["floor", "age", "drive"]).rename_dims(time="spike").rename(bin="time")
    again = adapter.encode(plain.isel(spike=slice(0, 30)))
    batch = adapter.encode(start.drop_vars(["floor", "age", "drive"]).isel(time=slice(0, 30)))
    torch.testing.assert_close(batch.conditions.lattice, again.conditions.lattice)
    torch.testing.assert_close(batch.targets["next_event"].baseline, again.targets["next_event"].baseline)
    with pytest.raises(InputError, match="in bins of"):
        adapter.encode(plain.assign_coords(time=plain["time"] * 2))


def test_restored(store: Store) -> None:
    adapter = Events.create({**CONFIG, "events": {**CONFIG["events"], "dt": "categorical"}}).fit(store)
    config, arrays = adapter.state()
    again = Events.restore(config, arrays)
    sample = adapter.open(store, "test").draw(1, *(np.random.default_rng(0) for _ in range(2)))
    ours, theirs = (each.encode(sample).targets["next_event"] for each in (adapter, again))
    torch.testing.assert_close([ours.baseline, ours.value], [theirs.baseline, theirs.value])
    xr.testing.assert_identical(sample, again.open(store, "test").draw(1, *(np.random.default_rng(0) for _ in "ab")))
    with pytest.raises(InputError, match="categorical"):
        adapter.reconfigured(validate(EventsConfig, CONFIG, where="test").model_dump(mode="json"))
