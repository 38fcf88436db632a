"""Events: the likelihood is that of a point process, every event is scored once, drawn events follow their hazard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import chisquare, kstest

from sciml.data.store import Store
from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.event_rates import event_rates, hazards, rescaled_intervals
from sciml.domains.spikes.event_windows import EventSource, EventWindows, events_of
from sciml.domains.spikes.events import HEAD, Events
from sciml.domains.spikes.hazard import AGES_S, PENALTY, HeldRate, Stretch, draw_event, exposure, make_edges
from sciml.domains.spikes.layout import Layout
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.rollout import rollout
from sciml.tokens import Outputs

CONFIG: dict[str, Any] = {"tokens": "events", "events": {"tokens": 40, "before": 10, "edges": 5}, "slow_s": [0.3, 3.0]}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def store(network_store: Callable[..., Store]) -> Store:
    return network_store()


@pytest.fixture(scope="module")
def adapter(store: Store) -> Events:
    return Events.create(CONFIG).fit(store)


def gated(adapter: Events, seed: int = 0, loud: float = 0.3) -> Predictor:
    """An operator with random heads: rows of hazard heads start at zero."""
    torch.manual_seed(seed)
    level = {"width": 32, "depth": 2, "mixers": ["gated"], "head_width": 16}
    config = validate(OperatorConfig, {"stem_width": 16, "condition_width": 16, "levels": [level]}, where="test")
    operator = Operator(config, {"spikes": adapter.spec()})
    with torch.no_grad():
        for table in operator.ports["spikes"].heads[HEAD].rows.tables.values():  # type: ignore[union-attr, index]
            table.normal_(0, loud)
    return Predictor(operator, {"spikes": adapter})


def sample_of(adapter: Events, time: list[float], unit: list[int], **attrs: float) -> xr.Dataset:
    name, fit = next(iter(adapter.datasets.items()))
    return xr.Dataset({"spike_time": ("spike", np.array(time)), "spike_unit": ("spike", np.array(unit))},
                      coords={"unit": list(fit.units)}, attrs={"dataset": name, **attrs})


def stretch(time: list[float], unit: list[int]) -> Stretch:
    when = torch.tensor(time, dtype=torch.float64)
    return Stretch(when, torch.tensor(unit), when, torch.tensor(unit))


def direct(adapter: Events, sample: xr.Dataset, rate: np.ndarray, x: np.ndarray) -> float:
    """Σ log λ − ∫ λ in float64, interval by interval. rate: ``(n, N)`` log of 1/s; x: ``(n, N, J)``."""
    edges, total = [*adapter.edges.double().tolist(), np.inf], 0.0
    time, unit = sample["spike_time"].values, sample["spike_unit"].values
    begin, stop = sample.attrs.get("begin_s", time[0]), sample.attrs.get("stop_s", time[-1])
    for i in range(int(sample.attrs.get("scored_from", 0)), len(time)):
        low, high = max(begin - time[i], 0.0), (time[i + 1] if i + 1 < len(time) else stop) - time[i]
        log_hazard = rate[i][:, None] + x[i]
        for j in range(len(edges) - 1):
            total -= np.exp(log_hazard[:, j]).sum() * max(0.0, min(high, edges[j + 1]) - max(low, edges[j]))
            if i + 1 < len(time) and edges[j] <= high < edges[j + 1]:
                total += log_hazard[unit[i + 1], j]
    return total


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_is_that_of_the_point_process(seed: int, adapter: Events) -> None:
    rng = np.random.default_rng(seed)
    gaps = rng.choice([1e-5, 0.003, 0.02, 0.4], 30) * rng.exponential(size=30)
    time = 3.0 + gaps.cumsum()
    sample = sample_of(adapter, time.tolist(), rng.integers(0, 12, 30).tolist(), scored_from=4.0,
                       begin_s=float(time[4] + 0.3 * (time[5] - time[4])), stop_s=float(time[-1] + 0.05))
    batch, rate = adapter.encode(sample), rng.normal(1, 1, (30, 12))
    x = rng.normal(0, 1, (30, 12, 5))
    target = adapter.encode(sample.assign(floor=(("spike", "unit"), rate))).targets[HEAD]
    assert batch.targets[HEAD].value.sum() == 25
    predicted = target.baseline[0].double() + torch.from_numpy(x)
    spent = target.baseline[0].double() - torch.from_numpy(rate)[:, :, None]  # log seconds in each interval
    terms = target.value[0] * (predicted - spent) - predicted.exp()
    found = float(terms[target.mask[0]].sum())
    assert found == pytest.approx(direct(adapter, sample, rate, x), rel=1e-5, abs=1e-4)


def test_gain_is_a_difference_of_likelihoods(adapter: Events) -> None:
    rng = np.random.default_rng(5)
    time = rng.exponential(0.01, 20).cumsum()
    sample = sample_of(adapter, time.tolist(), rng.integers(0, 12, 20).tolist(), stop_s=float(time[-1] + 0.02))
    rate, x = rng.normal(1, 1, (20, 12)), rng.normal(0, 0.5, (20, 12, 5))
    batch = adapter.encode(sample.assign(floor=(("spike", "unit"), rate)))
    gain = adapter.decode(batch, {HEAD: batch.targets[HEAD].predict(torch.from_numpy(x)[None])})["gain"].values
    wanted = direct(adapter, sample, rate, x) - direct(adapter, sample, rate, 0 * x)
    assert np.nansum(gain) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("gap", [None, (300, 420), (0, 7)])
def test_windows_tile(gap: tuple[int, int] | None, train: bool, store: Store, adapter: Events) -> None:
    layout = Layout.of(store, None)
    held = layout.recorded(0)
    assert held.spike_time is not None
    assert held.spike_unit is not None
    if gap is not None:
        count = held.count.copy()
        count[slice(*gap)] = np.nan
        where = np.floor((held.spike_time - layout.start_s) / layout.bin_s + 1e-9)
        kept = (where < gap[0]) | (where >= gap[1])
        layout.memo[0] = replace(held, count=count, spike_time=held.spike_time[kept], spike_unit=held.spike_unit[kept])
    source = EventSource(layout, adapter.floors["net"])
    windows = EventWindows.of(source, "train", adapter.config.events, train=train)
    time = layout.recorded(0).spike_time
    assert time is not None
    seen, spent = np.zeros(len(time), int), 0.0
    alone = [replace(windows, pieces=(piece,)) for piece in windows.pieces]
    drawn = [one.draw(i, RNG, RNG) for one in alone
             for i in (sorted({*range(0, len(one), 29), len(one) - 1}) if train else range(len(one)))]
    assert sum(map(len, alone)) == len(windows)
    for sample in drawn:
        target = adapter.encode(sample).targets[HEAD]
        ended = target.value[0].sum((1, 2)) > 0
        seen[int(sample.attrs["source"].split()[-1]) + 1 + np.flatnonzero(ended)] += 1
        rates = torch.tensor(sample["floor"].values)[:, :, None]
        spent += float((target.baseline[0] - rates).exp()[:, 0][target.mask[0, :, 0]].sum())
        if gap is not None:
            inside = (sample["spike_time"].values - layout.start_s) / layout.bin_s
            assert not ((inside[0] < gap[0]) & (inside[-1] >= gap[1]))
    pieces = source.pieces("train")
    inside = np.concatenate([np.arange(max(p.low, p.first + 1), p.high) for p in pieces])
    assert len(inside) == windows.num_events == (seen > 0).sum()
    assert (seen[inside] >= 1).all()
    if not train:
        assert (seen[inside] == 1).all()
        recorded = sum(p.stop_s - max(p.begin_s, time[p.start]) for p in pieces)
        assert spent == pytest.approx(recorded, rel=1e-5)


def test_drawn_events_follow_the_hazard() -> None:
    edges = make_edges(0.01, 0.3, 4).double()
    hazard = torch.tensor([[5.0, 1.0, 5.0, 4.0], [1.0, 6.0, 0.5, 2.0], [0.5, 1.0, 3.0, 0.1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_event(hazard.log(), edges, SamplingConfig(), generator) for _ in range(4000)]
    wait = torch.cat([w for w, _ in drawn])
    unit = torch.cat([u for _, u in drawn])
    rescaled = (exposure(torch.zeros_like(wait), wait, edges) * hazard.sum(0)).sum(-1)
    assert kstest(rescaled.numpy(), "expon").pvalue > 0.01
    interval = torch.searchsorted(edges, wait, right=True) - 1
    for j in range(4):
        counts = torch.bincount(unit[interval == j], minlength=3).double()
        expected = hazard[:, j] / hazard[:, j].sum() * counts.sum()
        assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.005


def test_gradient_of_the_wait() -> None:
    edges = make_edges(0.01, 0.3, 4).double()
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1.5

    def wait(log_hazard: torch.Tensor) -> torch.Tensor:
        return draw_event(log_hazard, edges, SamplingConfig(), torch.Generator().manual_seed(4))[0]

    assert torch.autograd.gradcheck(wait, x.requires_grad_())


def test_cached_generation_equals_recomputation(store: Store, adapter: Events) -> None:
    predictor = gated(adapter)
    start = adapter.starts(store, "validation")[0]
    outputs, events, known = [], [], int(start.attrs["look_back"])
    state = adapter.initial(start.drop_vars("floor"))
    for _ in range(25):
        made = predictor.forward(state.batch, state.cache)
        outputs.append(made[HEAD][0, -1])
        with torch.no_grad():
            state = replace(adapter.advance(state, made), cache=made.cache)
        seen = adapter.observe(state)
        events.append((float(seen["valid_time"][0, 0]), int(seen["spike_unit"][0, 0])))
    time = [*start["spike_time"].values[:known], *(t for t, _ in events)]
    unit = [*start["spike_unit"].values[:known], *(u for _, u in events)]
    batch = adapter.encode(sample_of(adapter, time, unit))
    again = predictor.forward(batch)[HEAD][0, known - 1:-1]
    torch.testing.assert_close(torch.stack(outputs), again, rtol=1e-3, atol=2e-4)
    sample = sample_of(adapter, time, unit)
    floor = adapter.floors["net"]
    torch.testing.assert_close(floor.log_rate(state.extra["averages"], state.extra["since"]),
                               floor.after(stretch(time, unit))[-1])
    assert np.diff(events_of(sample, adapter.datasets["net"], "test")[0]).min() >= 0


def test_seeds_and_lengths_of_generation(store: Store, adapter: Events) -> None:
    predictor, start = gated(adapter), adapter.starts(store, "validation")[0]
    runs = [predictor.rollout(start.assign_attrs(seed=seed), 12) for seed in (1, 1, 2)]
    assert runs[0].identical(runs[1])
    assert not np.array_equal(runs[0]["time"], runs[2]["time"])
    assert (np.diff(runs[0]["time"].values) > 0).all()
    assert runs[0]["time"].values[0] > start["spike_time"].values[int(start.attrs["look_back"]) - 1]


def test_simultaneous_events_and_a_silent_unit(adapter: Events) -> None:
    batch = adapter.encode(sample_of(adapter, [0.1, 0.1, 0.1, 0.4], [2, 1, 3, 2], stop_s=0.5))
    target = batch.targets[HEAD]
    assert torch.isfinite(target.baseline).all()
    assert target.value[0].sum((1, 2)).tolist() == [1, 1, 1, 0]
    floor = adapter.floors["net"]
    rates = floor.after(stretch([0.1, 0.1, 0.2], [0, 1, 0]))
    first = floor.after(stretch([0.1], [0]))
    torch.testing.assert_close(rates[0], first[0])  # what comes at the same time, but later, isn't known
    known = stretch([0.0, 1.0], [0, 0])._replace(exposed=torch.ones(2).double(), following=torch.tensor([0, -1]))
    quiet = HeldRate.fit([known], torch.tensor([1.0, 1e-6], dtype=torch.float64), (1.0,))
    assert torch.isfinite(quiet.weight).all()
    assert float(quiet.after(stretch([0.5], [0]))[0, 1]) < -5


def test_one_unit(adapter: Events) -> None:
    fit, floor = adapter.datasets["net"], adapter.floors["net"]
    alone = replace(adapter, datasets={"net": replace(fit, units=("u",), history=fit.history.of([0]))},
                    floors={"net": HeldRate(floor.slow_s, floor.rate[:1], floor.weight[:1])})
    predictor, sample = gated(alone), sample_of(alone, [0.1, 0.3, 0.35], [0, 0, 0], stop_s=0.5)
    assert predictor.predict(sample)["gain"].shape == (1, 3)
    states = list(rollout(predictor, alone.initial(sample), 5))
    assert states[-1].elapsed > 0
    assert float(states[-1].extra["since"]) == 0


def test_floor_is_at_its_optimum_and_finds_refractoriness() -> None:
    rng = np.random.default_rng(3)
    waits = 0.02 + rng.exponential(0.03, 4000)
    time = torch.from_numpy(waits.cumsum())
    exposed, none = torch.from_numpy(np.append(waits[1:], 0.0)), torch.zeros(4000, dtype=torch.long)
    # a second, fast unit marks the time, so that the first one's age is seen between its events
    clock = torch.arange(0, float(time[-1]), 0.004, dtype=torch.float64)
    both, order = torch.cat([time, clock]).sort()
    unit = torch.cat([none, none.new_ones(len(clock))])[order]
    after = torch.cat([both.diff(), both.new_zeros(1)])
    history = Stretch(both, unit, after, torch.cat([unit[1:], unit.new_full((1,), -1)]))
    floor = HeldRate.fit([history], torch.tensor([20.0, 250.0], dtype=torch.float64), (1.0,))
    features = floor.features(*floor.past(history, 0), 0)
    expected = floor.after(history)[:, 0].exp() * after
    slope = features.T @ (expected - (history.following == 0).double()) + PENALTY * floor.weight[0]
    assert float(slope.abs().max()) < 0.5 + 1e-3 * len(exposed)
    ages = torch.tensor([0.004, 0.04, 0.06], dtype=torch.float64)
    level = torch.tensor([[20.0]], dtype=torch.float64).expand(3, 1)
    rate = 20.0 * (floor.features(level, ages, 0) @ floor.weight[0]).exp()
    assert rate[0] < 3
    assert rate[1:].mean() == pytest.approx(1 / 0.03, rel=0.2)
    assert len(floor.weight[0]) == 2 + len(AGES_S)


def test_rates_in_bins_are_the_integrated_hazard(store: Store, adapter: Events) -> None:
    predictor = gated(adapter)
    (found,) = hazards(adapter, predictor.forward, store, "validation")
    rates = event_rates(adapter, predictor.forward, store, "validation", 0.04)[0]
    layout = Layout.of(store, 0.04)
    (block,) = layout.blocks("validation")
    assert np.isnan(rates[:block.start]).all()
    assert np.isfinite(rates[block.start:block.stop]).all()
    edges = adapter.edges.double().numpy()
    for index in (block.start, block.start + 17, block.stop - 1):
        begin = layout.start_s + index * layout.bin_s
        row = int((found.time.numpy() < begin - 1e-9).sum()) - 1
        fine = begin - float(found.time[row]) + (np.arange(4000) + 0.5) / 4000 * layout.bin_s
        which = np.searchsorted(edges, fine, side="right") - 1
        wanted = found.log_hazard[row].exp().numpy()[:, which].mean(1) * layout.bin_s
        np.testing.assert_allclose(rates[index], wanted, rtol=2e-3)


def test_rescaled_intervals(store: Store, adapter: Events) -> None:
    """Their sums are the integrals of the hazard up to each unit's last event."""
    predictor = gated(adapter)
    (found,) = hazards(adapter, predictor.forward, store, "validation")
    intervals = rescaled_intervals(adapter, predictor.forward, store, "validation")
    assert sum(map(len, intervals)) == found.piece.scored
    spent = exposure((found.piece.begin_s - found.time[:-1]).clamp_min(0), found.time.diff(), adapter.edges.double())
    steps = (found.log_hazard[:-1].exp() * spent[:, None]).sum(-1)
    unit = int(found.unit[-1])
    assert intervals[unit].sum() == pytest.approx(float(steps[:, unit].sum()))
    assert min(map(np.min, filter(len, intervals))) >= 0


def test_scores_are_over_mean_rates(store: Store, adapter: Events) -> None:
    """Summed over windows, bits/spike of an untrained operator are those of the floor, by direct evaluation."""
    predictor = gated(adapter, loud=0.0)
    (row,) = evaluate(predictor, store, "validation").scores
    assert row.value == pytest.approx(row.baseline, abs=1e-6)
    windows, total = adapter.open(store, "validation"), 0.0
    for index in range(len(windows)):
        sample = windows.draw(index, RNG, RNG)
        floor, zero = sample["floor"].values.astype(float), np.zeros((sample.sizes["spike"], 12, 5))
        last = int(sample.attrs["scored_from"]) + windows.scored
        part = sample if sample.sizes["spike"] <= last else sample.isel(spike=slice(0, last + 1))
        usual = np.broadcast_to(adapter.floors["net"].rate.log().numpy(), floor.shape)
        total += direct(adapter, part, floor, zero) - direct(adapter, part, usual, zero)
    assert row.value == pytest.approx(total / windows.num_events / np.log(2), rel=1e-4)


def test_refused(store: Store, adapter: Events) -> None:
    with pytest.raises(InputError, match="ascending"):
        adapter.encode(sample_of(adapter, [0.2, 0.1], [0, 1]))
    with pytest.raises(InputError, match="stop_s"):
        adapter.encode(sample_of(adapter, [0.1, 0.2], [0, 1], stop_s=0.15))
    with pytest.raises(InputError, match="at least one"):
        adapter.encode(sample_of(adapter, [], []))
    with pytest.raises(InputError, match="units"):
        adapter.encode(sample_of(adapter, [0.1], [12]))
    assert torch.isfinite(adapter.encode(sample_of(adapter, [0.1], [3])).values).all()
    assert adapter.derive(adapter.encode(sample_of(adapter, [0.1], [3])), Outputs({}), False).heads == {}
