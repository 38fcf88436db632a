"""Events: the likelihood is that of a point process, every event is scored once, drawn events follow their hazard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.store import Store
from sciml.domains.spikes.event_exposure import AGE_EDGES_S, KNOTS_S, After, no_clock
from sciml.domains.spikes.event_floor import PENALTY, RenewalRate, Stretch
from sciml.domains.spikes.event_rates import event_rates, rescaled_intervals, told
from sciml.domains.spikes.event_windows import EventSource, EventWindows, events_of, still, waits_of
from sciml.domains.spikes.events import HEAD, Events
from sciml.domains.spikes.layout import Layout
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.rollout import rollout, rollout_to_zarr
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


def stretch(time: list[float], unit: list[int], units: int = 12) -> Stretch:
    return still(torch.tensor(time, dtype=torch.float64), torch.tensor(unit), no_clock(units))


def after_of(adapter: Events, sample: xr.Dataset) -> After:
    fit = adapter.datasets["net"]
    time, unit = (torch.from_numpy(part) for part in events_of(sample, fit, "test"))
    return adapter._after(fit, sample, time, unit)


def direct(adapter: Events, sample: xr.Dataset, output: np.ndarray | float = 0.0, steps: int = 2000) -> float:
    """Σ log λ − ∫ λ by brute force, midpoints of fine steps, of a hazard; output: ``(E, N, J)``."""
    after, edges, total = after_of(adapter, sample), adapter.next_event.edges, 0.0
    time, unit = torch.from_numpy(sample["spike_time"].values), torch.from_numpy(sample["spike_unit"].values)
    low, high, came = waits_of(sample, time, unit)
    x = torch.as_tensor(output, dtype=torch.float64).expand(len(time), 12, len(edges))
    for i in range(len(time)):
        at = torch.cat([low[i] + (torch.arange(steps) + 0.5) / steps * (high[i] - low[i]), high[i:i + 1]])
        row = after.at(torch.full((len(at),), i))
        log_hazard = row.log_hazard(at) + x[i].T[torch.searchsorted(edges, at, right=True) - 1]
        total -= float(log_hazard[:-1].exp().mean(0).sum() * (high[i] - low[i]))
        total += float(log_hazard[-1, came[i]]) if came[i] >= 0 else 0.0
    return total


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_is_that_of_the_point_process(seed: int, adapter: Events) -> None:
    """With known signals, events at once, and a window that begins and ends between events."""
    rng = np.random.default_rng(seed)
    time = 3.0 + (rng.choice([0.0, 1e-5, 0.003, 0.02, 0.4], 30) * rng.exponential(size=30)).cumsum()
    sample = sample_of(adapter, time.tolist(), rng.integers(0, 12, 30).tolist(), scored_from=4.0,
                       begin_s=float(time[4] + 0.3 * (time[5] - time[4])), stop_s=float(time[-1] + 0.05))
    bins = np.arange(2.9, time[-1] + 0.5, 0.02)
    sample = sample.assign(stimulus_value=(("time", "stimulus"), rng.normal(size=(len(bins), 2)))).assign_coords(
        time=bins, stimulus=["stimulus0", "stimulus1"])
    assert len(after_of(adapter, sample).clock.gain) == len(bins)
    batch, x = adapter.encode(sample), rng.normal(0, 0.5, (30, 12, 5))
    assert batch.targets[HEAD].value.sum() == 25
    gain = adapter.decode(batch, {HEAD: batch.targets[HEAD].predict(torch.from_numpy(x)[None])})["gain"].values
    wanted, floor = direct(adapter, sample, x), direct(adapter, sample)
    assert np.nansum(gain) == pytest.approx(wanted - floor, rel=2e-3, abs=2e-2)
    low, high, came = waits_of(sample, *(torch.from_numpy(sample[f"spike_{name}"].values) for name in ("time", "unit")))
    found = adapter.next_event.floor_likelihood(after_of(adapter, sample), low, high, came)[4:]
    assert float(found.sum()) == pytest.approx(floor, rel=1e-3, abs=1e-2)


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
    source = EventSource(layout, adapter.floors["net"], adapter.drives["net"])
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
        low, high, came = waits_of(sample, *(torch.from_numpy(sample[f"spike_{name}"].values)
                                             for name in ("time", "unit")))
        spent += float((high - low).sum())
        assert (target.mask[0, :, 0, 0] == ((came >= 0) | (high > low))).all()
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


def test_cached_generation_equals_recomputation(store: Store, adapter: Events) -> None:
    predictor = gated(adapter)
    start = adapter.starts(store, "validation")[0]
    outputs, events, known = [], [], int(start.attrs["look_back"])
    state = adapter.initial(start.drop_vars(["floor", "age", "drive"]))
    for _ in range(25):
        made = predictor.forward(state.batch, state.cache)
        outputs.append(made[HEAD][0, -1])
        with torch.no_grad():
            state = replace(adapter.advance(state, made), cache=made.cache)
        seen = adapter.observe(state)
        events.append((float(seen["valid_time"][0, 0]), int(seen["spike_unit"][0, 0])))
    time = [*start["spike_time"].values[:known], *(t for t, _ in events)]
    unit = [*start["spike_unit"].values[:known], *(u for _, u in events)]
    sample = sample_of(adapter, time, unit).assign(
        stimulus_value=(("time", "stimulus"), start["stimulus_value"].values)).assign_coords(
        time=start["bin"].values, stimulus=start["stimulus"].values)
    batch = adapter.encode(sample)
    again = predictor.forward(batch)[HEAD][0, known - 1:-1]
    torch.testing.assert_close(torch.stack(outputs), again, rtol=1e-3, atol=2e-4)
    floor, after = adapter.floors["net"], after_of(adapter, sample)
    torch.testing.assert_close(floor.log_rate(state.extra["averages"]), after.log_rate[-1])
    torch.testing.assert_close(state.extra["since"], after.age[-1])
    assert np.diff(events_of(sample, adapter.datasets["net"], "test")[0]).min() >= 0


def test_seeds_and_lengths_of_generation(store: Store, adapter: Events) -> None:
    predictor, start = gated(adapter), adapter.starts(store, "validation")[0]
    runs = [predictor.rollout(start.assign_attrs(seed=seed), 12) for seed in (1, 1, 2)]
    assert runs[0].identical(runs[1])
    assert not np.array_equal(runs[0]["time"], runs[2]["time"])
    assert (np.diff(runs[0]["time"].values) > 0).all()
    assert runs[0]["time"].values[0] > start["spike_time"].values[int(start.attrs["look_back"]) - 1]


def test_a_rollout_is_a_raster_beside_the_recorded_one(store: Store, adapter: Events, tmp_path: Path) -> None:
    """Event by event: when and which unit, and the recording's own next ones; more than it has are NaN."""
    start, steps = adapter.starts(store, "validation")[0], 25
    known, num = int(start.attrs["look_back"]), start.sizes["time"]
    predictor = gated(adapter)
    out = rollout_to_zarr(predictor, store, "validation", tmp_path / "out.zarr", steps=steps)
    made = xr.open_zarr(out, consolidated=False).isel(sample=0)
    again = predictor.rollout(start, steps)
    for name in ("spike_time", "spike_unit"):
        assert made[name].dims == ("time",)
        np.testing.assert_array_equal(made[name], again[name])
        np.testing.assert_array_equal(made[f"{name}_truth"], start[name].values[known:known + steps])
    np.testing.assert_array_equal(made["time"], made["spike_time"])
    assert made["spike_time"].attrs["units"] == "s"
    assert num > known + steps


def test_simultaneous_events_and_a_silent_unit(adapter: Events) -> None:
    batch = adapter.encode(sample_of(adapter, [0.1, 0.1, 0.1, 0.4], [2, 1, 3, 2], stop_s=0.5))
    target = batch.targets[HEAD]
    assert torch.isfinite(target.baseline).all()
    assert target.value[0].sum((1, 2)).tolist() == [1, 1, 1, 0]
    floor = adapter.floors["net"]
    both, first = floor.after(stretch([0.1, 0.1, 0.2], [0, 1, 0])), floor.after(stretch([0.1], [0]))
    torch.testing.assert_close(both.log_rate[0], first.log_rate[0])  # what comes at once, but later, isn't known
    assert first.age[0, 0] == 0
    assert (first.age[0, 1:] >= KNOTS_S[-1]).all()  # of units that haven't been seen, none is taken to have just fired
    known = stretch([0.0, 1.0], [0, 0], 2)._replace(high=torch.ones(2).double(), following=torch.tensor([0, -1]))
    quiet = RenewalRate.fit([known], torch.tensor([1.0, 1e-6], dtype=torch.float64), (1.0,))
    assert torch.isfinite(quiet.weight).all()
    rates = quiet.after(stretch([0.5], [0], 2)).log_hazard(torch.zeros(1).double())
    assert float(rates[0, 1]) < -5


@pytest.mark.parametrize("dt", ["hazard", "categorical"])
def test_a_wait_that_ended_without_an_event_names_no_unit(dt: str, adapter: Events) -> None:
    events = adapter.config.events.model_copy(update={"dt": dt})
    told = replace(adapter, config=adapter.config.model_copy(update={"events": events}))
    batch = collate([told.encode(sample_of(told, [0.1, 0.2, 0.25, 0.4], [2, 1, 3, 2], stop_s=0.5)),
                     told.encode(sample_of(told, [0.1, 0.2], [2, 1], stop_s=1.9))])
    seen = told.decode(batch, {HEAD: batch.targets[HEAD].baseline.double()})
    assert np.isfinite(seen["spike_unit"].values).tolist() == [[True] * 3, [True, False, False]]
    assert np.isfinite(seen["gain"].values).tolist() == [[True] * 4, [True, True, False, False]]


def test_one_unit(adapter: Events) -> None:
    fit, floor, drive = adapter.datasets["net"], adapter.floors["net"], adapter.drives["net"]
    alone = replace(adapter, datasets={"net": replace(fit, units=("u",), history=fit.history.of([0]))},
                    floors={"net": RenewalRate(floor.slow_s, floor.rate[:1], floor.weight[:1])},
                    drives={"net": replace(drive, weight=drive.weight[:1])})
    predictor, sample = gated(alone), sample_of(alone, [0.1, 0.3, 0.35], [0, 0, 0], stop_s=0.5)
    assert predictor.predict(sample)["gain"].shape == (1, 3)
    states = list(rollout(predictor, alone.initial(sample), 5))
    assert states[-1].elapsed > 0
    assert float(states[-1].extra["since"]) == 0


def test_floor_is_at_its_optimum_and_finds_refractoriness() -> None:
    """Of a unit that is silent for 20 ms and then fires at 33/s, beside a slow one: its age goes on between events."""
    rng = np.random.default_rng(3)
    time = torch.from_numpy((0.02 + rng.exponential(0.03, 4000)).cumsum())
    other = torch.from_numpy(np.sort(rng.uniform(0, float(time[-1]), 200)))
    both, order = torch.cat([time, other]).sort()
    unit = torch.cat([torch.zeros(4000, dtype=torch.long), torch.ones(200, dtype=torch.long)])[order]
    wait = torch.cat([both.diff(), both.new_zeros(1)])
    known = stretch(both.tolist(), unit.tolist(), 2)._replace(
        high=wait, following=torch.cat([unit[1:], unit.new_full((1,), -1)]))
    floor = RenewalRate.fit([known], torch.tensor([20.0, 1.0], dtype=torch.float64), (1.0,))
    x, came, exposed = floor._rows(known, 0)
    slope = x.T @ (20.0 * exposed * (x @ floor.weight[0]).exp() - came) + PENALTY * floor.weight[0]
    assert float(slope.abs().max()) < 0.5
    assert float(exposed.sum()) == pytest.approx(float(wait.sum()))
    assert came.sum() == 3999
    level = torch.tensor([[20.0], [1.0]], dtype=torch.float64)
    ages = torch.tensor([0.004, 0.012, 0.04, 0.06], dtype=torch.float64)[:, None].expand(4, 2)
    rate = (floor.log_rate(level)[0] + floor.renewal.at(ages)[:, 0]).exp()
    assert (rate[:2] < 1.5).all()
    assert rate[2:].mean() == pytest.approx(1 / 0.03, rel=0.2)
    assert floor.renewal.gain.shape == (2, len(AGE_EDGES_S))
    assert len(floor.weight[0]) == 2 + len(KNOTS_S)


def test_rates_in_bins_are_the_integrated_hazard(store: Store, adapter: Events) -> None:
    predictor = gated(adapter)
    (found,) = told(adapter, predictor.forward, store, "validation")
    rates = event_rates(adapter, predictor.forward, store, "validation", 0.04)[0]
    layout = Layout.of(store, 0.04)
    (block,) = layout.blocks("validation")
    assert np.isnan(rates[:block.start]).all()
    assert np.isfinite(rates[block.start:block.stop]).all()
    edges = adapter.next_event.edges
    for index in (block.start, block.start + 17, block.stop - 1):
        begin = layout.start_s + index * layout.bin_s
        row = int((found.after.time.numpy() < begin - 1e-9).sum()) - 1
        fine = begin - found.after.time[row] + (torch.arange(4000) + 0.5) / 4000 * layout.bin_s
        log_hazard = found.after.at(torch.full((4000,), row)).log_hazard(fine)
        log_hazard = log_hazard + found.output[row].double().T[torch.searchsorted(edges, fine, right=True) - 1]
        np.testing.assert_allclose(rates[index], log_hazard.exp().mean(0).numpy() * layout.bin_s, rtol=5e-3)


def test_rescaled_intervals(store: Store, adapter: Events) -> None:
    """Their sums are the integrals of the hazard up to each unit's last event."""
    predictor = gated(adapter)
    (found,) = told(adapter, predictor.forward, store, "validation")
    intervals = rescaled_intervals(adapter, predictor.forward, store, "validation")
    assert sum(map(len, intervals)) == found.piece.scored
    high = found.after.time.diff()
    low = torch.minimum((found.piece.begin_s - found.after.time[:-1]).clamp_min(0), high)
    steps = found.integrated(adapter, torch.arange(len(high)), low, high)
    unit = int(found.unit[-1])
    assert intervals[unit].sum() == pytest.approx(float(steps[:, unit].sum()))
    assert min(map(np.min, filter(len, intervals))) >= 0


def test_scores_are_over_mean_rates(store: Store, adapter: Events) -> None:
    """Summed over windows, bits/spike of an untrained operator are those of the floor, by direct evaluation."""
    predictor = gated(adapter, loud=0.0)
    (row,) = evaluate(predictor, store, "validation").scores
    assert row.value == pytest.approx(row.baseline, abs=1e-6)
    windows, total, usual = adapter.open(store, "validation"), 0.0, adapter.floors["net"].rate
    for index in range(len(windows)):
        sample = windows.draw(index, RNG, RNG)
        low, high, came = waits_of(sample, *(torch.from_numpy(sample[f"spike_{name}"].values)
                                             for name in ("time", "unit")))
        null = usual.log()[came][came >= 0].sum() - usual.sum() * (high - low).sum()
        total += direct(adapter, sample, steps=400) - float(null)
    assert row.value == pytest.approx(total / windows.num_events / np.log(2), rel=5e-3)


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
    assert adapter.derive(adapter.encode(sample_of(adapter, [0.1], [3])), lambda batch: Outputs({}), False).heads == {}
