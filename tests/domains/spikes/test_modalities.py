"""Traces, discrete states, embeddings and further covariates: they conform, learn, are scored, and can be rolled
out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.encode import covariates
from sciml.domains.spikes.floors import predict_floor, state_codes
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.metrics import r2
from sciml.domains.spikes.plugin import Spikes
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.objectives.population import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.rollout import rollout
from sciml.testing import check_domain

Stores = Callable[..., Store]
BASE: dict[str, Any] = {"floor": "smoothed", "slow_s": [0.5, 5.0], "masks": {"dropout": 0.3},
                        "tasks": {"next": {"before": 8, "scored": 24}}}
AROUND = {"before": 4, "scored": 24, "after": 4}
OPERATOR = {"stem_width": 8, "condition_width": 8,
            "levels": [{"width": 16, "depth": 1, "head_width": 8, "mixers": ["axial", "local"]}]}
NEXT = BASE["tasks"]["next"]
TRACES = {**BASE, "tasks": {"next": NEXT, "masked": AROUND}, "masks": {"held_out": 2, "dropout": 0.3}}


@pytest.mark.parametrize(("config", "options"), [
    (BASE, {"signal": "trace"}),
    ({**BASE, "slots": 0, "corrects": "floor"}, {"signal": "trace", "gaps": True}),
    ({**TRACES, "tasks": {"masked": AROUND, "next": NEXT}}, {"signal": "trace", "lfp": True}),
    ({**BASE, "tasks": {"state": AROUND, "next": NEXT}}, {"states": True}),
    ({**BASE, "tasks": {"behaviour": AROUND, "next": NEXT, "embedding": AROUND}}, {"lfp": True, "gaps": True}),
], ids=["trace", "trace floor", "trace masked", "state", "embedding"])
def test_conformance(config: dict[str, Any], options: dict[str, Any], population_store: Stores) -> None:
    domain: Any = Spikes
    check_domain(domain, [population_store("_".join(options), **options)], config=config)


def predictor(store: Store, config: dict[str, Any]) -> Predictor:
    torch.manual_seed(0)
    masks = {**config["masks"], "dropout": 0.0}
    adapter = Binned.create({**config, "masks": masks}).fit(store)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"spikes": adapter.spec()})
    return Predictor(operator, {"spikes": adapter})


def train(made: Predictor, store: Store, steps: int = 70, rate: float = 1e-2) -> list[float]:
    windows = made.adapters["spikes"].open(store, "train", train=True)
    optimizer, losses = torch.optim.AdamW(made.operator.parameters(), rate), []
    for step in range(steps):
        rngs = [np.random.default_rng([step, i]) for i in range(4)]
        samples = [windows.draw(int(r.integers(len(windows))), r, np.random.default_rng(step)) for r in rngs]
        batch = collate([made.adapters["spikes"].encode(s) for s in samples])
        loss = objective(made.operator(batch), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def scores(made: Predictor, store: Store, split: Any = "test") -> dict[str, Any]:
    return {f"{row.question}/{row.metric}": row for row in evaluate(made, store, split).scores}


def test_traces_are_scored_by_r2_beside_ridge_and_never_by_spikes(population_store: Stores) -> None:
    store = population_store("calcium", signal="trace")
    made = predictor(store, TRACES)
    train(made, store)
    rows = scores(made, store)
    assert set(rows) == {"next_bin/r2", "masked/r2"}
    assert {row.baseline_name for row in rows.values()} == {"ridge"}
    assert all(row.value > 0.3 for row in rows.values()), {k: r.value for k, r in rows.items()}
    assert set(made.adapters["spikes"].spec().heads) == {"next_trace", "trace"}
    windows = made.adapters["spikes"].questions(store, "test")[0].windows
    parts = [windows.draw(i, *2 * [np.random.default_rng(0)]) for i in range(len(windows))]
    floor, truth = (np.concatenate([s[name].values[s.scored_from:s.scored_to] for s in parts])
                    for name in ("floor", "trace"))
    np.testing.assert_array_equal(truth, store.read("trace", 0, 800, 1000))
    assert r2(floor, truth).mean() == pytest.approx(rows["next_bin/r2"].baseline, abs=1e-5)


def test_a_rollout_of_traces_stays_near_their_mean_and_follows_seed_and_temperature(population_store: Stores) -> None:
    store = population_store("calcium", signal="trace")
    made = predictor(store, BASE)
    start = made.adapters["spikes"].starts(store, "test")[0]

    def roll(**attrs: Any) -> np.ndarray:
        return made.rollout(start.assign_attrs(attrs), 40)["trace"].values[0]

    one = roll(seed=1)
    np.testing.assert_array_equal(one, roll(seed=1))
    assert not np.allclose(one, roll(seed=2))
    assert np.abs(one - 50).max() < 100
    cold = predictor(store, {**BASE, "sampling": {"temperature": 1e-6}})
    frames = [cold.adapters["spikes"].observe(s) for s in rollout(cold, cold.adapters["spikes"].initial(start), 3)]
    np.testing.assert_allclose(frames[-1]["trace"], frames[-1]["rate"], atol=0.1)
    assert frames[0]["trace"].attrs["units"] == "mV"


def test_counts_and_traces_share_an_operator(population_store: Stores) -> None:
    stores = [population_store("spiking"), population_store("calcium", signal="trace")]
    adapter = Binned.create(BASE).fit(stores[0]).fit(stores[1])
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"spikes": adapter.spec()})
    assert set(adapter.spec().heads) == {"next", "next_trace"}
    for store in stores:
        sample = adapter.open(store, "train").draw(0, *2 * [np.random.default_rng(0)])
        batch = adapter.encode(sample)
        objective(operator(batch), batch).sum().backward()
    with pytest.raises(InputError, match="calcium was fitted with"):
        adapter.fit(population_store("calcium", signal="trace", units=5, change=lambda data: None))


def test_states_are_decoded_and_scored_by_balanced_accuracy(population_store: Stores) -> None:
    store = population_store("walks", states=True)
    made = predictor(store, {**BASE, "tasks": {"state": AROUND}})
    train(made, store)
    row, = scores(made, store).values()
    assert (row.metric, row.baseline_name) == ("balanced_accuracy", "logistic regression")
    assert min(row.value, row.baseline) > 0.6
    windows = made.adapters["spikes"].questions(store, "test")[0].windows
    samples = [windows.draw(i, *2 * [np.random.default_rng(0)]) for i in range(len(windows))]
    decoded = [made.predict(sample) for sample in samples]
    assert decoded[0]["state"].values.tolist() == ["s0", "s1", "s2"]
    np.testing.assert_allclose(decoded[0]["state_value"].sum("state"), 1)
    found = np.concatenate([d["state_value"].values[0, s.scored_from:s.scored_to].argmax(-1)
                            for s, d in zip(samples, decoded)])
    truth = store.read("state_value", 0, 800, 1000).argmax(1)
    recall = [np.mean(found[truth == c] == c) for c in range(3)]
    assert np.mean(recall) == pytest.approx(row.value)


def test_a_state_that_is_unknown_does_not_count_and_one_that_is_absent_has_no_probability(
        population_store: Stores) -> None:
    def change(data: dict[str, Any]) -> None:
        data["state_value"][100:400] = np.nan

    store = population_store("dozes", states=True, change=change)
    adapter = Binned.create({**BASE, "tasks": {"state": AROUND}}).fit(store).fit(population_store("walks", states=True))
    sample = adapter.open(store, "train").draw(110, *2 * [np.random.default_rng(0)])
    target = adapter.encode(sample).targets["state"]
    assert not target.mask.any()
    loss = objective(Operator(OperatorConfig.model_validate(OPERATOR), {"spikes": adapter.spec()})(
        adapter.encode(sample)), adapter.encode(sample))
    assert loss.tolist() == [0.0]


def test_an_embedding_brings_like_behaviours_together(population_store: Stores) -> None:
    store = population_store("embeds")
    made = predictor(store, {**BASE, "tasks": {"embedding": AROUND}, "embedding": {"dims": 3}})
    before = scores(made, store)["embedding/alignment"]
    assert (before.baseline_name, before.value) == ("ridge", pytest.approx(before.baseline))
    train(made, store, steps=120)
    fitted = scores(made, store, "train")["embedding/alignment"]
    assert fitted.value < fitted.baseline
    assert scores(made, store)["embedding/alignment"].value < 0.25  # 0.57 if all bins are at one place
    decoded = made.predict(made.adapters["spikes"].open(store, "test").draw(0, *2 * [np.random.default_rng(0)]))
    assert decoded["embedding"].dims == ("sample", "time", "axis")
    with pytest.raises(InputError, match="at least the 2 components"):
        predictor(store, {**BASE, "tasks": {"embedding": AROUND}, "embedding": {"dims": 1}})


def test_covariates_of_any_dimension_reach_the_operator(population_store: Stores) -> None:
    store = population_store("field", lfp=True)
    adapter = Binned.create(BASE).fit(store)
    assert adapter.spec().lattice_conditions[-3:] == ("lfp_l0", "lfp_l1", "stimulus_s0")
    sample = adapter.open(store, "test").draw(0, *2 * [np.random.default_rng(0)])
    lattice = adapter.encode(sample).conditions.lattice
    raw = store.read("lfp_value", 0, 792, 823)[:, 1]
    fit = adapter.datasets["field"].stimulus
    np.testing.assert_allclose(lattice["lfp_l1"][0, 0], (raw - fit.mean[1]) / fit.std[1], rtol=1e-4)
    assert not adapter.encode(sample.drop_vars("lfp_value")).conditions.lattice["lfp_l1"].any()
    alien = xr.Dataset({"lfp_value": (("time", "lfp"), np.zeros((4, 1)))}, coords={"lfp": ["l9"]})
    with pytest.raises(InputError, match="found l9"):
        covariates(alien, fit.labels, "sample")


def test_tasks_need_what_they_decode(population_store: Stores) -> None:
    with pytest.raises(InputError, match="a store without state"):
        Binned.create({**BASE, "tasks": {"state": AROUND}}).fit(population_store("spiking"))


def test_wider_bins_sum_counts_and_average_all_else(population_store: Stores) -> None:
    stores = [population_store("walks", states=True), population_store("calcium", signal="trace")]
    for store, signal, how in zip(stores, ("count", "trace"), (np.sum, np.mean)):
        layout = Layout.of(store, 0.3)
        assert (layout.signal, layout.unit) == (signal, "1" if signal == "count" else "mV")
        held, raw = layout.recorded(0), store.read(signal, 0)[:999]
        np.testing.assert_allclose(held.count, how(raw.reshape(333, 3, 6), axis=1), rtol=1e-5)
        behaviour = store.read("behaviour_value", 0)[:999].reshape(333, 3, 2).mean(1)
        np.testing.assert_allclose(held.behaviour, behaviour, atol=1e-6)
    shares = Layout.of(stores[0], 0.3).recorded(0).state
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    assert ((shares > 0) & (shares < 1)).any()
    codes = state_codes(torch.from_numpy(shares)).numpy()
    assert codes.tolist() == shares.argmax(1).tolist()


def test_units_are_read_with_gaps_of_their_own_in_traces(population_store: Stores) -> None:
    store = population_store("faded", signal="trace", gaps=True)
    adapter = Binned.create({**TRACES, "masks": {"held_out": ["u2"]}}).fit(store)
    fit = adapter.datasets["faded"]
    raw = store.read("trace", 0)[:680]
    np.testing.assert_allclose(fit.history.rate, np.nanmean(raw, 0), rtol=1e-5)
    np.testing.assert_allclose(fit.history.spread, np.nanstd(raw, 0), rtol=1e-5)
    floor = predict_floor("next", fit, torch.from_numpy(store.read("trace", 0)), torch.zeros(1000, 0))
    assert bool(torch.isfinite(floor).all())
    late = np.isfinite(store.read("trace", 0)[:, 0])
    late[:800] = False
    assert r2(floor.numpy()[late][:, :2], store.read("trace", 0)[late][:, :2]).min() > 0.3
