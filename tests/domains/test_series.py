"""The series adapter: windows, encode and decode, rollout, scores, and what it refuses."""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sciml import registry
from sciml.adapter import DomainAdapter
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import Store
from sciml.domains.series import calendar
from sciml.domains.series.adapter import Series
from sciml.errors import InputError
from sciml.packing import collate, unpack
from sciml.tokens import Outputs, State, TokenBatch

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = {"ili": {"look_back": 36, "horizons": [24, 36, 48, 60]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(read_source(ROOT / "datasets/ili/source.yaml"), tmp_path_factory.mktemp("ili") / "ili.zarr")


def make(store: Store, **changes: Any) -> Series:
    return Series.create({"datasets": OVERRIDES, "patch": 4, **changes}).fit(store)


@pytest.fixture(scope="module")
def series(store: Store) -> Series:
    return make(store)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(adapter: Series, store: Store, index: int = 0, split: Any = "test") -> xr.Dataset:
    return adapter.questions(store, split)[0].windows.draw(index, rng(), rng())


def zeros(batch: TokenBatch) -> Outputs:
    return Outputs({"value": torch.zeros_like(batch.values)})


def test_plugin_is_found_and_keeps_the_contract(series: Series) -> None:
    assert "series" in registry.names("sciml.domains")
    assert registry.find("sciml.domains", "series") is Series
    for name in (n for n in vars(DomainAdapter) if not n.startswith("_")):
        assert hasattr(series, name), name
    assert series.objective == "mse"


def test_config_does_not_import_torch() -> None:
    code = "import sys, sciml.domains.series.config; assert not {'torch', 'xarray', 'zarr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_windows_keep_to_their_split(series: Series, store: Store) -> None:
    time = store.coord("time")
    for split in ("validation", "test"):
        block = store.meta.splits.of(split)[0]
        for question in series.questions(store, split):
            horizon = question.options["horizon"]
            assert len(question.windows) == block.stop - block.start - horizon + 1
            assert question.block == 36 + horizon
            first, last = (question.windows.draw(i, rng(), rng()) for i in (0, len(question.windows) - 1))
            assert first["time"].values[36] == time[block.start]
            assert last["time"].values[-1] == time[block.stop - 1]
    training = series.open(store, "train", train=True)
    lengths = set()
    for index in (0, len(training) // 2, len(training) - 1):
        for seed in range(12):
            sample = training.draw(index, rng(), rng(seed))
            assert time[0] <= sample["time"].values[0]
            assert sample["time"].values[-1] <= time[675]
            lengths.add(sample.attrs["horizon"])
    assert lengths == {24, 36, 48, 60}
    with pytest.raises(IndexError):
        training.draw(len(training), rng(), rng())


def test_horizons_too_long_for_a_split_are_not_asked(store: Store) -> None:
    wide = Series.create({"look_back": 36, "horizons": [24, 96, 120]}).fit(store)
    assert [q.name for q in wide.questions(store, "validation")] == ["24", "96"]
    assert [q.name for q in wide.questions(store, "test")] == ["24", "96", "120"]
    assert wide.task.ridges["ili"].ridge.provenance["validation_mse"][2] is None


def test_a_batch_agrees_on_its_horizon(series: Series, store: Store) -> None:
    training = series.open(store, "train", train=True)
    batch = collate([series.encode(training.draw(i, rng(i), rng(7))) for i in range(3)])
    assert batch.lattice == (7, 36 + batch.lattice[1] - 36)
    assert batch.num_segments == 3


def test_hidden_gaps_are_keyed_by_the_sample(store: Store) -> None:
    hiding = make(store, missing=0.5)
    training = hiding.open(store, "train", train=True)
    gaps = [int(np.isnan(training.draw(5, rng(seed), rng())["value"].values).all(1).sum()) for seed in range(20)]
    assert 0 < max(gaps) <= 18
    assert len(set(gaps)) > 3
    np.testing.assert_array_equal(training.draw(5, rng(3), rng())["value"], training.draw(5, rng(3), rng())["value"])
    assert not np.isnan(hiding.open(store, "validation").draw(0, rng(), rng())["value"].values).any()


def test_values_are_centred_and_the_horizon_is_not_seen(series: Series, store: Store) -> None:
    batch = series.encode(draw(series, store))
    assert batch.observed is not None
    assert batch.observed[:, :, :36].all()
    assert not batch.observed[:, :, 36:].any()
    assert not batch.values[:, :, 36:].any()
    torch.testing.assert_close(batch.values[:, :, :36].mean(2), torch.zeros(1, 7, 1), atol=1e-5, rtol=0)
    assert batch.axes[0].namespace == "ili/variate"
    assert batch.axes[1].coarsen
    assert batch.axes[1].coord[0, 35, 0] == 0
    assert batch.axes[1].coord[0, 0, 0] == pytest.approx(-35 / 36)
    spec = series.spec()
    assert set(batch.conditions.lattice) == set(spec.lattice_conditions) == {"sin_year", "cos_year"}
    assert set(batch.conditions.vector) == set(spec.vector_conditions)


def test_truth_decodes_to_truth_and_zero_to_the_ridge(series: Series, store: Store) -> None:
    sample = draw(series, store, 3)
    batch = series.encode(sample)
    target = batch.targets["value"]
    truth = series.decode(batch, {"value": target.value})
    np.testing.assert_allclose(truth["value"][0], sample["value"][36:], rtol=1e-4)
    np.testing.assert_array_equal(truth["valid_time"][0], sample["time"][36:])
    assert truth["known"].all()
    assert list(truth["variate_unit"].values) == list(sample["variate_unit"].values)
    fit = series.datasets["ili"]
    ridges = series.task.ridges["ili"]
    history = torch.tensor(((sample["value"].values[:36] - fit.mean) / fit.std).T[None].astype(np.float32))
    expected = ridges.plain.forecast(history, torch.ones_like(history, dtype=torch.bool), 24)[0].T.numpy()
    plain = series.floor()
    found = plain.decode(batch, {"value": plain.encode(sample).targets["value"].predict(zeros(batch)["value"])})
    np.testing.assert_allclose(found["value"][0], expected * fit.std + fit.mean, rtol=1e-4)


def test_missing_truth_is_masked_and_missing_past_unobserved(series: Series, store: Store) -> None:
    sample = draw(series, store).copy(deep=True)
    sample["value"][5:9, 2] = np.nan
    sample["value"][40, 3] = np.nan
    batch = series.encode(sample)
    assert batch.observed is not None
    assert not batch.observed[0, 2, 5:9].any()
    assert batch.observed[0, :, :36].sum() == 7 * 36 - 4
    for tensor in (batch.values, batch.targets["value"].value, batch.targets["value"].baseline):
        assert tensor.isfinite().all()
    assert batch.targets["value"].mask.sum() == 7 * 24 - 1
    truth = series.decode(batch, {"value": batch.targets["value"].value})
    assert not truth["known"][0, 4, 3]
    perfect = series.score(series.questions(store, "test")[0], truth, truth)
    assert perfect["mse"] == 0


def test_batched_equals_one_at_a_time(series: Series, store: Store) -> None:
    singles = [series.encode(draw(series, store, i)) for i in (0, 7, 20)]
    batch = collate(singles)
    decoded = series.decode(batch, {"value": batch.targets["value"].baseline})
    for i, (single, part) in enumerate(zip(singles, unpack(batch))):
        torch.testing.assert_close(part.values, single.values)
        alone = series.decode(single, {"value": single.targets["value"].baseline})
        xr.testing.assert_allclose(decoded.isel(sample=[i]), alone)


def test_scale_is_the_training_residual(series: Series, store: Store) -> None:
    training = series.open(store, "train", train=True)
    errors = []
    for index in range(0, len(training), 2):
        target = series.encode(training.draw(index, rng(), rng(1))).targets["value"]
        errors.append(((target.value - target.baseline) / target.scale)[..., 36:, 0])
    assert torch.cat(errors).square().mean().sqrt() == pytest.approx(1.0, abs=0.03)


def step(adapter: Series, state: State, gain: float = 0.1) -> State:
    """A step of a model whose output depends on what it sees."""
    output = gain * torch.tanh(state.batch.values.sum(2, keepdim=True)).expand_as(state.batch.values)
    return adapter.advance(state, Outputs({"value": output}))


def test_rollout_moves_time_and_can_be_cut_anywhere(series: Series, store: Store) -> None:
    sample = draw(series, store)
    state = series.initial(sample)
    week = np.timedelta64(7, "D")
    np.testing.assert_allclose(series.observe(state)["value"][0], sample["value"][:36], rtol=1e-4)
    states = [state]
    for _ in range(3):
        states.append(step(series, states[-1]))
    for k, one in enumerate(states[1:], start=1):
        seen = series.observe(one)
        assert one.elapsed == k * 24 * 7 * 86400
        assert seen["valid_time"][0, 0] == sample["time"][36] + (k - 1) * 24 * week
        assert seen.sizes["time"] == 24
    resumed = step(series, pickle.loads(pickle.dumps(states[2])))  # noqa: S301
    torch.testing.assert_close(resumed.batch.values, states[3].batch.values, rtol=0, atol=0)
    known = np.concatenate([sample["value"][:36], *(series.observe(s)["value"][0] for s in states[1:3])])
    again = xr.Dataset({"value": (("time", "variate"), known[-36:])}, coords={
        "time": sample["time"].values[36] + week * np.arange(48 - 36, 48), "variate": sample["variate"].values},
        attrs={"dataset": "ili", "look_back": 36, "horizon": 24})
    torch.testing.assert_close(series.encode(again).values, states[2].batch.values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(series.encode(again).targets["value"].baseline[..., 36:, :],
                               states[2].batch.targets["value"].baseline[..., 36:, :], rtol=1e-4, atol=1e-4)


def test_a_rollout_state_carries_its_clock(series: Series, store: Store) -> None:
    """What is saved of a state leaves the ids of the axes out: they are the initial ones when it is restored."""
    start, = series.starts(store, "test")
    assert start.sizes["time"] == 36 + 193
    initial = series.initial(start)
    once = step(series, initial)
    restored = replace(once, batch=replace(once.batch, axes=initial.batch.axes))
    a, b = (series.observe(step(series, s)) for s in (once, restored))
    xr.testing.assert_identical(a, b)
    assert a["valid_time"][0, -1] == start["time"][36 + 47]


def test_a_rollout_does_not_see_the_truth(series: Series, store: Store) -> None:
    sample = draw(series, store)
    blind = sample.isel(time=slice(0, 36)).assign_attrs(horizon=24)
    a, b = series.initial(sample), series.initial(blind)
    for x, y in ((a.batch.values, b.batch.values), (a.batch.targets["value"].value, b.batch.targets["value"].value),
                 (a.batch.targets["value"].baseline, b.batch.targets["value"].baseline)):
        assert torch.equal(x, y)
    assert not a.batch.targets["value"].mask.any()


def test_advance_is_differentiable_through_the_ridge(series: Series, store: Store) -> None:
    state = series.initial(draw(series, store))
    output = torch.zeros_like(state.batch.values, requires_grad=True)
    later = series.advance(series.advance(state, Outputs({"value": output})), zeros(state.batch))
    gradient, = torch.autograd.grad(later.extra["forecast"].square().sum(), output)
    assert gradient[:, :, 36:].abs().min() > 0
    assert not gradient[:, :, :36].any()


def test_state_survives_json_and_pickle(series: Series, store: Store) -> None:
    stored, arrays = series.state()
    sample = draw(series, store)
    for again in (Series.restore(json.loads(json.dumps(stored)), arrays), pickle.loads(pickle.dumps(series))):  # noqa: S301
        assert again.spec() == series.spec()
        a, b = again.encode(sample), series.encode(sample)
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.targets["value"].baseline, b.targets["value"].baseline)


def hourly(tmp: Path, hours: int = 6000, name: str = "plant") -> Store:
    """An hourly series of two variates with a daily course, built from CSV."""
    time = pd.date_range("2020-01-01", periods=hours, freq="h")
    noise = np.random.default_rng(0).standard_normal((hours, 2)).cumsum(0) * 0.05
    values = noise + np.sin(2 * np.pi * np.arange(hours) / 24)[:, None]
    frame = pd.DataFrame({"date": time, "a": values[:, 0], "b": values[:, 1]})
    tmp.mkdir(parents=True, exist_ok=True)
    frame.to_csv(tmp / f"{name}.csv", index=False)
    (tmp / "source.yaml").write_text(
        f"name: {name}\ndomain: series\nfiles: [{{path: {name}.csv}}]\noptions: {{format: csv, time_column: date, "
        "units: {a: kW, b: kW}}\nsplit: {by: time, fractions: {train: 0.7, validation: 0.15, test: 0.15}}\n")
    return build(read_source(tmp / "source.yaml"), tmp / f"{name}.zarr")


def test_another_data_set_joins_without_moving_the_first(series: Series, store: Store, tmp_path: Path) -> None:
    plant = hourly(tmp_path)
    both = Series.create({"look_back": 48, "horizons": [24, 48], "datasets": OVERRIDES}).fit(store).fit(plant)
    spec = both.spec()
    assert list(spec.identities) == ["ili/variate", "plant/variate"]
    assert spec.lattice_conditions == ("sin_day", "cos_day", "sin_week", "cos_week", "sin_year", "cos_year")
    batch = both.encode(draw(both, plant))
    assert set(batch.conditions.lattice) == set(spec.lattice_conditions)
    assert not batch.conditions.lattice["sin_year"].any()
    assert batch.axes[1].coord[0, 0, 0] == pytest.approx(-47 / 36)
    assert float(batch.conditions.vector["log_step"]) == pytest.approx(-np.log(168))
    cycle = both.task.ridges["plant"].cycle
    assert cycle is not None
    assert cycle.name == "day"
    assert "mae_physical" not in [m.name for m in both.metrics()]
    alone = Series.create({"look_back": 48, "horizons": [24, 48]}).fit(plant)
    assert {m.name: m.unit for m in alone.metrics()}["mae_physical"] == "kW"


@pytest.mark.parametrize("option", ["spread", "level"])
def test_options_change_the_input_and_not_the_forecast(series: Series, store: Store, option: str) -> None:
    other = make(store, inputs={option: True})
    a, b = (s.encode(draw(s, store)) for s in (series, other))
    torch.testing.assert_close(a.targets["value"].baseline, b.targets["value"].baseline)
    if option == "level":
        assert b.conditions.lattice["level"].shape == (1, 7, 1)
    else:
        deviation = b.values[:, :, :36].std(2, correction=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=1e-3, atol=1e-3)


def test_scores_are_the_formulas(series: Series, store: Store) -> None:
    question = series.questions(store, "test")[0]
    fit = series.datasets["ili"]
    truth = series.decode(*_truth(series, draw(series, store, 2)))
    wrong = truth.assign(value=truth["value"] + fit.std)
    scores = series.score(question, wrong, truth)
    assert scores["mse"] == pytest.approx(1.0)
    assert scores["mae"] == pytest.approx(1.0)
    assert scores["mase"] == pytest.approx((fit.std / fit.naive).mean())
    assert set(scores) == {m.name for m in series.metrics()}
    partly = wrong.copy(deep=True)
    partly["value"][0, 0, 0] += 1e9
    hidden = truth.copy(deep=True)
    hidden["known"][0, 0, 0] = False
    assert series.score(question, partly, hidden)["mse"] == pytest.approx(1.0)
    steps = [x.expand_dims(step=[1, 2], axis=1) for x in (wrong, truth)]
    assert series.score(question, *steps)["mse"] == pytest.approx(1.0)


def _truth(series: Series, sample: xr.Dataset) -> tuple[TokenBatch, Mapping[str, torch.Tensor]]:
    batch = series.encode(sample)
    return batch, {"value": batch.targets["value"].value}


def test_naive_error_is_that_of_a_year_ago(series: Series, store: Store) -> None:
    values = store.read("value", 0, 0, 676)
    np.testing.assert_allclose(series.datasets["ili"].naive, np.abs(values[52:] - values[:-52]).mean(0))


def refuses(key: str, series: Series, sample: xr.Dataset) -> None:
    with pytest.raises(InputError) as caught:
        series.encode(sample)
    assert caught.value.key == key
    assert caught.value.fix


def test_bad_samples_are_named(series: Series, store: Store) -> None:
    sample = draw(series, store)
    refuses("variate", series, sample.assign_coords(variate=[*sample["variate"].values[:6], "NEW"]))
    refuses("time", series, sample.assign_coords(time=pd.date_range("2020-01-01", periods=60, freq="D")))
    refuses("time", series, sample.assign_coords(time=np.arange(60.0)))
    refuses("dataset", series, sample.assign_attrs(dataset="other"))
    refuses("value", series, sample.rename(value="x"))
    refuses("window", series, sample.assign_attrs(horizon=400))
    refuses("look_back", series, sample.assign_attrs(look_back=100, horizon=24))


def test_a_guest_is_answered_by_what_was_learnt_of_others(store: Store, tmp_path: Path) -> None:
    plant, config = hourly(tmp_path), {"look_back": 36, "horizons": [24], "patch": 4}
    adapter = Series.create({**config, "inputs": {"identity": False, "spread": True}}).fit(plant)
    guest = adapter.meeting(store)
    assert guest.meeting(store) is guest
    assert guest.spec() == adapter.spec()
    assert guest.state()[0] == adapter.state()[0]
    assert adapter.notes == []
    assert guest.notes == ["ili was not fitted: what is said of it was learnt of plant"]
    sample = draw(guest, store)
    batch, known = guest.encode(sample), guest.datasets["ili"]
    history = torch.tensor(((sample["value"].values[:36] - known.mean) / known.std).T[None].astype(np.float32))
    expected = adapter.task.ridges["plant"].plain.forecast(history, torch.ones_like(history, dtype=torch.bool), 24)
    torch.testing.assert_close(batch.targets["value"].baseline[..., 36:, 0], expected)
    larger = guest.encode(sample.assign(value=10 * sample["value"] + 3))
    torch.testing.assert_close(larger.values, batch.values, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="identity: false"):
        Series.create(config).fit(plant).meeting(store)


def test_a_patch_may_follow_the_strongest_period(tmp_path: Path) -> None:
    plant = hourly(tmp_path)
    adapter = Series.create({"look_back": 48, "horizons": [24], "patch": "auto"}).fit(plant)
    assert adapter.config.patch == adapter.spec().patch == 24
    assert adapter.reconfigured({"look_back": 48, "horizons": [24], "patch": "auto"}).config.patch == 24
    with pytest.raises(InputError, match="fit it to a store first"):
        Series.create({"patch": "auto"}).spec()


def test_unusable_stores_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="room for look-back 96 and horizon 900"):
        Series.create({"horizons": [900]}).fit(store)
    with pytest.raises(InputError, match=r"domains.series"):
        Series.create({"horizons": [96, 24]})
    with pytest.raises(InputError, match="uniform step"):
        calendar.Clock.of(np.array([0.0, 1.0, 3.0]), "s", where="lab.csv")
