"""What the operator is shown: nothing of the future, nothing that is hidden; units in any order, some of them, gaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.store import Store
from sciml.domains.spikes import metrics
from sciml.domains.spikes.binned import Binned
from sciml.evaluate import evaluate
from sciml.objectives.population import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.rollout import rollout_to_zarr
from sciml.testing.parameters import stir

Stores = Callable[..., Store]
AROUND = {"before": 5, "scored": 24, "after": 7}
TASKS: dict[str, Any] = {"next": {"before": 8, "scored": 24}, "masked": AROUND, "behaviour": AROUND}
CONFIG: dict[str, Any] = {"floor": "smoothed", "slow_s": [0.5, 5.0, 60.0], "tasks": TASKS,
                          "lags": {"before": 2, "after": 2},
                          "masks": {"held_out": 2}, "slots": 2}
OPERATOR = {"stem_width": 8, "condition_width": 8,
            "levels": [{"width": 16, "depth": 1, "head_width": 8, "mixers": ["axial", "local"]}]}


def rngs(seed: int = 0) -> tuple[np.random.Generator, np.random.Generator]:
    return np.random.default_rng(seed), np.random.default_rng(seed)


def made(*stores: Store, **config: Any) -> Predictor:
    adapter = Binned.create({**CONFIG, **config})
    for store in stores:
        adapter = adapter.fit(store)
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"spikes": adapter.spec()})
    stir(operator, size=0.2)
    return Predictor(operator.eval(), {"spikes": adapter})


def drawn(predictor: Predictor, store: Store, task: str, index: int = 2) -> xr.Dataset:
    question = next(q for q in predictor.adapters["spikes"].questions(store, "test")
                    if q.name == {"next": "next_bin"}.get(task, task))
    return question.windows.draw(index, *rngs())


@pytest.mark.parametrize("corrects", ["rate", "floor"])
def test_predictions_of_a_bin_do_not_depend_on_it_or_later_ones(corrects: str, population_store: Stores) -> None:
    store = population_store("seen")
    predictor = made(store, tasks={"next": TASKS["next"]}, corrects=corrects)
    sample = drawn(predictor, store, "next").drop_vars("floor")
    later = sample.copy(deep=True)
    later["count"][20:] += 2
    one, two = (predictor.predict(s)["count"].values[0] for s in (sample, later))
    np.testing.assert_allclose(one[:20], two[:20], atol=1e-6)  # the first predicted bin is the sample's second
    assert np.abs(one[20:] - two[20:]).max() > 1e-3


@pytest.mark.parametrize("held_out", [2, 0])
@pytest.mark.parametrize("corrects", ["rate", "floor"])
@pytest.mark.parametrize("slots", [2, 0])
def test_what_is_hidden_has_no_influence(held_out: int, corrects: str, slots: int, population_store: Stores) -> None:
    """Neither a hidden cell nor the past of a unit hidden all the time, through lags, averages or the floor."""
    store = population_store("seen")
    share = 0.0 if held_out else 0.4
    predictor = made(store, tasks={"masked": AROUND}, corrects=corrects, slots=slots,
                     masks={"held_out": held_out, "time": share, "unit": 0.0, "cell": share})
    sample = drawn(predictor, store, "masked")
    hidden = sample["hidden"].values
    assert hidden.any()
    other = sample.copy(deep=True)
    other["count"].values[hidden] += 3
    other["averages"].values[hidden.all(0)] += 1
    if not held_out:
        other = other.drop_vars("floor")
        sample = sample.drop_vars("floor")
    one, two = (predictor.predict(s)["count"].values for s in (sample, other))
    np.testing.assert_array_equal(one, two)


def test_the_floor_of_hidden_cells_does_not_know_them(population_store: Stores) -> None:
    store = population_store("seen")
    predictor = made(store, tasks={"masked": AROUND}, masks={"time": 0.4, "unit": 0.0, "cell": 0.0})
    source = next(iter(predictor.adapters["spikes"].questions(store, "test"))).windows.source  # type: ignore[attr-defined]
    sample = drawn(predictor, store, "masked")
    shown = np.where(sample["hidden"], np.nan, sample["count"])
    low = round((float(sample["time"][0]) - 5.0) / 0.1)
    np.testing.assert_allclose(source.blind_floor("masked", 0, low, shown), sample["floor"], atol=1e-6)
    assert not np.allclose(source.blind_floor("masked", 0, low, sample["count"].values), sample["floor"])


@pytest.mark.parametrize("task", TASKS)
def test_units_may_come_in_any_order(task: str, population_store: Stores) -> None:
    store = population_store("seen")
    predictor = made(store)
    sample = drawn(predictor, store, task).drop_vars("floor")
    order = [3, 0, 5, 1, 4, 2]
    one, two = (predictor.predict(s) for s in (sample, sample.isel(unit=order)))
    if task == "behaviour":
        xr.testing.assert_allclose(one["behaviour_value"], two["behaviour_value"], atol=1e-5)
        return
    np.testing.assert_allclose(one["count"].isel(unit=order), two["count"], rtol=1e-4)
    assert two["unit"].values.tolist() == [f"u{i}" for i in order]


def test_units_that_are_dropped_leave_the_scale_of_what_the_slots_read(population_store: Stores) -> None:
    """The sum over the others is divided by their share; a unit that is dropped or absent is the same to them."""
    store = population_store("seen")
    predictor = made(store, tasks={"next": TASKS["next"]}, slow_s=[], lags={})
    sample = drawn(predictor, store, "next").drop_vars("floor")
    stem: Any = predictor.operator.ports["spikes"].stem
    with torch.no_grad():
        for rows in stem.members.values():
            for table in rows.tables.values():
                table[:] = table[:1]
        stem.slots.zero_()
        missing = next(rows for name, rows in stem.members.items() if name.startswith("missing"))
        missing.tables["seen/unit"].zero_()
        stem.widen.bias.zero_()
    alike = sample.copy(deep=True)
    fit = predictor.adapters["spikes"].datasets["seen"]  # type: ignore[attr-defined]
    alike["count"].values[:] = (fit.history.centre + fit.history.spread).square().numpy()
    tokens = []
    for gone in (0, 3, 5):
        batch = predictor.adapters["spikes"].encode(alike.assign(dropped=("unit", np.arange(6) < gone)))
        tokens.append(stem(batch, (1, 1)))
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[0], tokens[2], rtol=1e-4, atol=1e-5)


def test_behaviour_is_standardised_and_comes_back_in_its_units(population_store: Stores) -> None:
    def change(data: dict[str, Any]) -> None:
        data["behaviour_value"][:] = data["behaviour_value"] * [100.0, 0.01] + [7.0, 0.0]

    store = population_store("scaled", change=change)
    predictor = made(store, tasks={"behaviour": AROUND})
    values = store.read("behaviour_value", 0)
    fit = predictor.adapters["spikes"].datasets["scaled"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(fit.behaviour.std, values[:680].std(0), rtol=1e-5)
    sample = drawn(predictor, store, "behaviour")
    target = predictor.adapters["spikes"].encode(sample).targets["behaviour"]
    back = predictor.adapters["spikes"].decode(predictor.adapters["spikes"].encode(sample), {"behaviour": target.value})
    np.testing.assert_allclose(back["behaviour_value"][0, 5:29], sample["behaviour_value"][5:29], rtol=1e-4, atol=1e-6)
    assert target.value.std() == pytest.approx(1, abs=0.4)


def test_a_bare_sample_is_enough(population_store: Stores) -> None:
    """Counts with names of units: no averages, floor, attributes or times."""
    store = population_store("seen")
    counts = store.read("count", 0)[:40]
    bare = xr.Dataset({"count": (("time", "unit"), counts)}, coords={"unit": [f"u{i}" for i in range(6)]})
    for corrects in ("rate", "floor"):
        predictor = made(store, corrects=corrects)
        for task in TASKS:
            assert np.isfinite(predictor.predict(bare.assign_attrs(task=task)).to_array()).all()
        few = predictor.predict(bare.isel(unit=[4, 1]).assign_attrs(task="next"))
        assert few["count"].sizes == {"sample": 1, "time": 39, "unit": 2}


@pytest.mark.parametrize("task", TASKS)
def test_gaps_are_anywhere(task: str, population_store: Stores) -> None:
    """Unrecorded bins and units, unknown behaviour: finite batches, no target there, finite scores."""
    store = population_store("torn", gaps=True)
    predictor = made(store, corrects="floor")
    adapter = predictor.adapters["spikes"]
    windows = adapter.open(store, "train")
    places = (2, 100, 240, 260, 640)
    for place in places:
        sample = windows.source.sample(0, place, place + 40).assign_attrs(task=task)  # type: ignore[attr-defined]
        batch = adapter.encode(sample)
        parts = [batch.values, *batch.conditions.lattice.values(),
                 *(t for target in batch.targets.values() for t in (target.value, target.baseline))]
        assert all(bool(torch.isfinite(x).all()) for x in parts)
        if task == "next":
            known = np.isfinite(sample["count"].values[1:].T)
            np.testing.assert_array_equal(batch.targets["next"].mask[0, ..., 0].numpy(), known)
    assert all(np.isfinite(row.value) for row in evaluate(predictor, store, "test").scores)


def test_evaluations_are_the_metrics_of_the_whole_split(population_store: Stores) -> None:
    """bits/spike and R² as metrics.py has them on the concatenated split, whatever the windows."""
    store = population_store("torn", gaps=True)
    predictor = made(store)
    adapter = predictor.adapters["spikes"]
    rows = {(row.question, row.metric): row for row in evaluate(predictor, store, "test").scores}
    fit = adapter.datasets["torn"]  # type: ignore[attr-defined]
    null = fit.history.rate.numpy()
    truth, behaviour = store.read("count", 0)[800:], store.read("behaviour_value", 0)[800:]
    floors = {}
    for question, name in (("next_bin", "count"), ("masked", "count"), ("behaviour", "behaviour_value")):
        windows = next(q for q in adapter.questions(store, "test") if q.name == question).windows
        found = []
        for i in range(len(windows)):
            sample = windows.draw(i, *(np.random.default_rng([0, k]) for k in (i, 0)))
            values = predictor.predict(sample)[name].values[0]
            skipped = sample.sizes["time"] - len(values)
            found.append(values[sample.scored_from - skipped:sample.scored_to - skipped])
        floors[question] = np.concatenate(found)
    assert rows["next_bin", "bits_per_spike"].value == pytest.approx(
        metrics.bits_per_spike(floors["next_bin"], truth, null), rel=1e-4)
    held = list(fit.held_out)
    assert rows["masked", "bits_per_spike"].value == pytest.approx(
        metrics.bits_per_spike(floors["masked"][:, held], truth[:, held], null[held]), rel=1e-4)
    assert rows["behaviour", "r2"].value == pytest.approx(metrics.mean_r2(floors["behaviour"], behaviour), rel=1e-4)
    seen = np.isfinite(truth)
    pearson = (np.square(truth - floors["next_bin"]) / floors["next_bin"])[seen].mean()
    assert rows["next_bin", "dispersion"].value == pytest.approx(pearson, rel=1e-4)


def test_rollouts_in_memory_and_to_disk_are_the_same(population_store: Stores, tmp_path: Any) -> None:
    store = population_store("seen")
    predictor = made(store)
    start = predictor.adapters["spikes"].starts(store, "test")[0]
    one = predictor.rollout(start, 12)
    assert one["count"].sizes["time"] == 12
    assert (one["count"].values >= 0).all()
    two = xr.open_zarr(rollout_to_zarr(predictor, store, "test", tmp_path / "out.zarr", steps=12), consolidated=False)
    np.testing.assert_array_equal(one["count"].values.ravel(), two["count"].values.ravel())
    np.testing.assert_allclose(two["count_truth"].values.ravel(), store.read("count", 0, 808, 820).ravel())


def test_two_sessions_share_all_but_rows(population_store: Stores) -> None:
    """A second session adds rows of its units and nothing else; its first gradients reach them: no dead start."""
    first, second = population_store("seen"), population_store("later", seed=5, units=4)
    predictor = made(first)
    before = {name: p.detach().clone() for name, p in predictor.operator.named_parameters()}
    sample = drawn(predictor, first, "next")
    alone = predictor.predict(sample)
    adapter = predictor.adapters["spikes"].fit(second)
    predictor.adapters["spikes"] = adapter
    predictor.operator.extend(adapter.spec())
    new = {n for n, _ in predictor.operator.named_parameters()} - set(before)
    assert new
    assert all(".tables.later/unit" in name for name in new)
    assert all(torch.equal(p, before[n]) for n, p in predictor.operator.named_parameters() if n in before)
    xr.testing.assert_equal(predictor.predict(sample), alone)
    batch = adapter.encode(adapter.open(second, "train").draw(1, *rngs()).assign_attrs(task="next"))
    rows = {n: p for n, p in predictor.operator.named_parameters() if n in new}
    optimizer = torch.optim.SGD(rows.values(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        objective(predictor.operator(batch), batch).mean().backward()
        optimizer.step()
    live = [n for n, p in rows.items() if p.grad is not None and bool((p.grad != 0).any())]
    assert any(".heads.next." in n for n in live)
    assert any(".stem.members.value" in n for n in live)


def test_the_spec_merges_with_itself_and_names_what_units_have_of_their_own(population_store: Stores) -> None:
    predictor = made(population_store("seen"))
    spec = predictor.adapters["spikes"].spec()
    assert spec.slots is not None
    assert set(spec.slots.own) <= set(spec.lattice_conditions)
    assert spec.merge(replace(spec)) == spec
