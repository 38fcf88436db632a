"""Generation: draws follow their distribution, and generated activity is what the model says it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import chisquare, kstest, poisson

from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.events import HEAD, Events
from sciml.domains.spikes.matching import activity_of_counts, match
from sciml.domains.spikes.noise import CountNoise
from sciml.domains.spikes.rescaling import rescaling_test
from sciml.domains.spikes.sampling import nucleus
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate

BINS: dict[str, Any] = {"floor": "smoothed", "slow_s": [0.2, 2.0, 20.0], "tasks": {"next": {"before": 8, "scored": 24}}}
EVENTS: dict[str, Any] = {"tokens": "events", "events": {"tokens": 40, "before": 10, "edges": 5}, "slow_s": [0.3, 3.0]}


def predictor_of(adapter: Binned | Events, mixer: str) -> Predictor:
    torch.manual_seed(0)
    level = {"width": 16, "depth": 1, "mixers": [mixer], "head_width": 16}
    config = validate(OperatorConfig, {"stem_width": 16, "condition_width": 16, "levels": [level]}, where="test")
    return Predictor(Operator(config, {"spikes": adapter.spec()}), {"spikes": adapter})


@pytest.mark.parametrize("rate", [0.05, 0.8, 3.0])
def test_counts_are_poisson(rate: float) -> None:
    log_rate = torch.full((5000, 1), rate, dtype=torch.float64).log()
    generator = torch.Generator().manual_seed(0)
    drawn = CountNoise.poisson(1, 20).draw(log_rate, np.arange(1), SamplingConfig(), generator)
    seen = np.bincount(drawn[:, 0].long().numpy(), minlength=21)[:21]
    expected = 5000 * poisson.pmf(np.arange(21), rate)
    few = expected < 5
    both = [np.append(x[~few], x[few].sum()) for x in (seen, expected)]
    assert chisquare(both[0], both[1] * both[0].sum() / both[1].sum()).pvalue > 0.01


def test_temperature_and_nucleus() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    torch.testing.assert_close(nucleus(logits, SamplingConfig(temperature=0.5)), (2 * logits).softmax(-1))
    kept = nucleus(logits, SamplingConfig(top_p=0.8))
    assert kept.tolist() == pytest.approx([0.731, 0.269, 0, 0], abs=1e-3)
    assert nucleus(logits, SamplingConfig(top_p=0.01)).tolist() == [1, 0, 0, 0]


def test_gradient_of_counts_is_that_of_the_rate() -> None:
    log_rate = torch.tensor([0.3, -1.0], requires_grad=True)
    generator = torch.Generator().manual_seed(1)
    CountNoise.poisson(2, 9).draw(log_rate[None], np.arange(2), SamplingConfig(), generator).sum().backward()
    assert log_rate.grad is not None
    torch.testing.assert_close(log_rate.grad, log_rate.detach().exp())


def test_generated_counts(network_store: Callable[..., Store]) -> None:
    """Of an untrained operator, 6 s keep the mean rates and pass time rescaling under the rates they came from."""
    store = network_store()
    adapter = Binned.create(BINS).fit(store)
    predictor, start = predictor_of(adapter, "local"), adapter.starts(store, "validation")[0]
    made = predictor.rollout(start.assign_attrs(seed=3), 300)
    expected = adapter.datasets["net"].history.rate.numpy() * 300
    assert (np.abs(made["count"].sum("time").values - expected) < 5 * np.sqrt(expected) + 3).all()
    tests = rescaling_test(made["rate"].values, made["count"].values)
    assert np.mean([test.p_value > 0.01 for test in tests]) >= 0.9
    activity = activity_of_counts(made["count"].values, 0.02)
    assert {c.name: c.value for c in match(activity, activity)}["rate_error"] == 0


@pytest.mark.parametrize("dt", ["hazard", "categorical"])
def test_generated_events_follow_what_was_told(dt: str, network_store: Callable[..., Store]) -> None:
    """Time rescaling of events, unit by unit, under the hazard that a second, uncached pass gives."""
    store = network_store()
    adapter = Events.create({**EVENTS, "events": {**EVENTS["events"], "dt": dt}}).fit(store)
    predictor = predictor_of(adapter, "gated")
    with torch.no_grad():
        for table in predictor.operator.ports["spikes"].heads[HEAD].rows.tables.values():  # type: ignore[union-attr, index]
            table.normal_(0, 0.2)
    start = adapter.starts(store, "test")[0]
    made = predictor.rollout(start.assign_attrs(seed=5), 300)
    known = int(start.attrs["look_back"])
    time = np.concatenate([start["spike_time"].values[:known], made["time"].values])
    unit = np.concatenate([start["spike_unit"].values[:known], made["spike_unit"].values.astype(int)])
    sample = xr.Dataset({"spike_time": ("spike", time), "spike_unit": ("spike", unit),
                         "stimulus_value": (("time", "stimulus"), start["stimulus_value"].values)},
                        coords={"unit": start["unit"].values, "time": start["bin"].values,
                                "stimulus": start["stimulus"].values}, attrs={"dataset": "net"})
    batch = adapter.encode(sample)
    after = adapter._after(adapter.datasets["net"], sample, torch.tensor(time), torch.tensor(unit))
    output = predictor.forward(batch)[HEAD][0].double()[known - 1:-1]
    high = torch.tensor(np.diff(time[known - 1:]))
    rows = torch.arange(known - 1, len(time) - 1)
    steps = adapter.next_event.integrated(after.at(rows), output, torch.zeros_like(high), high)
    total = steps.cumsum(0).numpy()
    gaps = np.concatenate([np.diff(total[unit[known:] == n, n], prepend=0.0) for n in range(12)])
    assert len(gaps) == 300
    assert kstest(np.diff(total.sum(1), prepend=0.0), "expon").pvalue > 0.01
    assert kstest(gaps, "expon").pvalue > 0.01
    assert 0.5 < 300 / (time[-1] - time[known - 1]) / float(adapter.floors["net"].rate.sum()) < 2
