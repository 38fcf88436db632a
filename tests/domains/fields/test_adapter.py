"""Fields: to tokens and back on every rank of grid, and the refusals."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.store import Store, write_store
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.contract import factor
from sciml.errors import InputError
from sciml.packing import collate, unpack
from sciml.tokens import Outputs

SHAPES = [(24,), (16, 12), (8, 8, 6)]
RNG = np.random.default_rng
Make = Callable[..., Any]


@pytest.fixture(params=SHAPES, ids=["1d", "2d", "3d"])
def store(request: pytest.FixtureRequest, wave_store: Make) -> Store:
    return wave_store(request.param, states=("u", "p"))


@pytest.fixture
def plane(wave_store: Make) -> Store:
    return wave_store((16, 12))


def fitted(store: Store, **config: object) -> Fields:
    return Fields.create(config).fit(store)


def first(adapter: Fields, store: Store, split: str = "train", index: int = 3) -> xr.Dataset:
    return adapter.open(store, split).draw(index, RNG(0), RNG(0))  # type: ignore[arg-type]


def zeros(adapter: Fields, batch) -> Outputs:
    return Outputs({"state": torch.zeros_like(batch.values)})


def test_values_are_normalised_and_decode_to_what_was_read(store: Store) -> None:
    adapter = fitted(store)
    sample = first(adapter, store)
    batch = adapter.encode(sample)
    assert batch.values.shape == (1, *(sample.sizes[a] for a in adapter.datasets["waves"].names), 2)
    assert batch.values.abs().max() < 4
    assert batch.observed is None
    back = adapter.decode(replace(batch, targets={}), {"state": batch.values})
    for name in ("u", "p"):
        np.testing.assert_allclose(back[name].values[0], sample[name].values[0], atol=2e-6)
        assert back[name].attrs["units"] == "m/s"
    for axis in adapter.datasets["waves"].names:
        np.testing.assert_allclose(back[axis].values, sample[axis].values, rtol=1e-6)
        assert back[axis].attrs == {"units": "m", "period": 2.0}


def test_truth_decodes_to_truth_and_scores_perfectly(store: Store) -> None:
    adapter = fitted(store)
    sample = first(adapter, store)
    batch = adapter.encode(sample)
    truth = adapter.decode(batch, {"state": batch.targets["state"].value})
    np.testing.assert_allclose(truth["u"].values[0], sample["u"].values[1], atol=2e-6)
    scores = adapter.score(adapter.questions(store, "test")[0], truth, truth)
    assert scores["relative_l2"] == 0
    assert scores["rmse/p"] == 0
    assert scores["correlation"] == pytest.approx(1)
    assert scores["spectrum_ratio"] == pytest.approx(1)
    assert set(scores) <= {m.name for m in adapter.metrics()}


def test_the_perfect_residual_is_of_order_one_and_predicts_the_truth(store: Store) -> None:
    adapter = fitted(store)
    residuals = []
    for index in range(len(adapter.open(store, "train"))):
        target = adapter.encode(first(adapter, store, index=index)).targets["state"]
        residual = (target.value - target.baseline) / target.scale
        torch.testing.assert_close(target.predict(residual), target.value)
        residuals.append(residual)
    assert torch.cat(residuals).std(dim=tuple(range(residuals[0].ndim - 1))).numpy() == pytest.approx(1, abs=0.02)


def test_zero_output_is_exactly_persistence(store: Store) -> None:
    adapter = fitted(store)
    sample = first(adapter, store)
    batch = adapter.encode(sample)
    prediction = batch.targets["state"].predict(torch.zeros_like(batch.values))
    assert torch.equal(prediction, batch.values)
    decoded = adapter.decode(batch, {"state": prediction})
    truth = adapter.decode(batch, {"state": batch.targets["state"].value})
    score = adapter.score(adapter.questions(store, "test")[0], decoded, truth)["rmse/u"][0]
    gap = sample["u"].values[1].astype(np.float64) - sample["u"].values[0]
    assert score == pytest.approx(np.sqrt(np.mean(gap**2)), rel=1e-5)


def test_advance_moves_time_by_dt_exactly_and_is_differentiable(store: Store) -> None:
    adapter = fitted(store)
    state = adapter.initial(first(adapter, store).isel(time=[0]))
    output = torch.randn_like(state.batch.values, requires_grad=True)
    for step in range(1, 4):
        state = adapter.advance(state, Outputs({"state": output}))
        assert (state.step, state.elapsed) == (step, 0.5 * step)
    state.batch.values.sum().backward()
    scale = state.batch.targets["state"].scale
    torch.testing.assert_close(output.grad, (3 * scale).expand_as(output))
    seen = adapter.observe(replace(state, batch=replace(state.batch, values=state.batch.values.detach())))
    assert float(seen["time"]) == 1.5
    assert seen["time"].attrs["units"] == "s"
    assert seen["u"].dims == ("sample", *adapter.datasets["waves"].names)


def test_true_residuals_roll_out_to_the_truth(plane: Store) -> None:
    adapter = fitted(plane)
    sample = adapter.questions(plane, "train")[1].windows.draw(0, RNG(0), RNG(0))
    state = adapter.initial(sample)
    for step in range(sample.sizes["time"] - 1):
        target = adapter.encode(sample.isel(time=[step, step + 1])).targets["state"]
        state = adapter.advance(state, Outputs({"state": (target.value - target.baseline) / target.scale}))
    np.testing.assert_allclose(adapter.observe(state)["u"].values[0], sample["u"].values[-1], atol=1e-4)


def test_conditions_and_axes(plane: Store) -> None:
    adapter = fitted(plane)
    batch = adapter.encode(first(adapter, plane, index=8))
    spec = adapter.spec()
    assert set(batch.conditions.vector) == set(spec.vector_conditions) == {"lead_time", "fields/nu"}
    assert set(batch.conditions.lattice) == set(spec.lattice_conditions) == {"fields/force"}
    assert batch.conditions.vector["lead_time"].tolist() == [1.0]
    assert batch.conditions.vector["fields/nu"].item() == pytest.approx(-2 - np.log10(0.055), abs=1e-6)
    force = batch.conditions.lattice["fields/force"]
    assert force.shape == (1, 16, 12)
    assert force.std(correction=0).item() == pytest.approx(1, rel=1e-5)
    assert batch.axes[0].coord[0, :, 0].tolist() == pytest.approx((np.arange(16) / 16).tolist())
    assert batch.axes[1].period.item() == 1.0
    assert spec.patch_length == pytest.approx(4 / 16)
    assert fitted(plane, fixed_patch=False).spec().patch_length is None


def test_collated_samples_come_apart_as_they_were(store: Store) -> None:
    adapter = fitted(store)
    batches = [adapter.encode(first(adapter, store, index=i)) for i in (0, 5, 9)]
    for one, other in zip(batches, unpack(collate(batches))):
        torch.testing.assert_close(one.values, other.values)
        torch.testing.assert_close(one.targets["state"].value, other.targets["state"].value)
        assert one.sources == other.sources


def test_several_leads(plane: Store) -> None:
    adapter = fitted(plane, leads=[1, 2, 4])
    windows = adapter.open(plane, "train", train=True)
    assert len(windows) == 2 * 7
    drawn = [float(np.diff(windows.draw(i, RNG(e), RNG(0))["time"].values)[0]) for i in range(14) for e in range(9)]
    shares = [drawn.count(lead) / len(drawn) for lead in (0.5, 1.0, 2.0)]
    assert shares == pytest.approx([7 / 17, 6 / 17, 4 / 17], abs=0.03)
    every = adapter.open(plane, "test")
    assert len(every) == 7 + 6 + 4
    scales = [adapter.encode(every.draw(i, RNG(0), RNG(0))).targets["state"].scale.item() for i in (0, 7, 13)]
    assert scales[0] < scales[1] < scales[2]
    assert adapter.encode(every.draw(13, RNG(0), RNG(0))).conditions.vector["lead_time"].tolist() == [4.0]


def test_cells_that_are_not_finite_are_masked(tmp_path: Path, wave_data: Make) -> None:
    dataset, draft = wave_data((8, 8))
    dataset["u"].values[0, 2, 3, 4] = np.nan
    store = write_store(dataset, draft, tmp_path / "nan.zarr")
    adapter = fitted(store)
    before, at, after = (adapter.encode(first(adapter, store, index=i)) for i in (1, 2, 3))
    assert at.observed is not None
    assert not at.observed[0, 3, 4, 0]
    assert at.values[0, 3, 4, 0] == 0
    assert after.observed is None
    for batch in (before, at):
        assert not batch.targets["state"].mask[0, 3, 4, 0]
        assert int((~batch.targets["state"].mask).sum()) == 1
        truth = adapter.decode(batch, {"state": batch.targets["state"].value})
        assert np.isnan(truth["u"].values[0, 3, 4])
        assert np.isfinite(adapter.score(adapter.questions(store, "test")[0], truth, truth)["rmse/u"]).all()
    ones = Outputs({"state": torch.ones_like(at.values)})
    state = adapter.advance(adapter.initial(first(adapter, store, index=2)), ones)
    assert state.batch.values[0, 3, 4, 0] == 0
    assert np.isnan(adapter.observe(state)["u"].values[0, 3, 4])


def test_masks_are_channels_and_hide_what_is_outside(tmp_path: Path, wave_data: Make) -> None:
    dataset, draft = wave_data((8, 8))
    inside = np.ones((4, 8, 8), np.float32)
    inside[:, :2] = 0
    dataset["inside"] = (("trajectory", "x", "y"), inside)
    variables = {**draft.variables, "inside": draft.variables["force"].model_copy(update={"role": "mask", "unit": "1"})}
    store = write_store(dataset, draft.model_copy(update={"variables": variables}), tmp_path / "mask.zarr")
    batch = fitted(store).encode(first(fitted(store), store))
    assert "fields/inside" in batch.conditions.lattice
    assert batch.observed is not None
    assert batch.observed[0, :, 0, 0].tolist() == [False] * 2 + [True] * 6
    assert torch.equal(batch.targets["state"].mask, batch.observed)
    assert (batch.conditions.lattice["fields/force"][0, :2] == 0).all()


def test_forcing_in_time_follows_the_rollout_and_must_be_long_enough(tmp_path: Path, wave_data: Make) -> None:
    dataset, draft = wave_data((8,), frames=5)
    dataset["force"] = (("trajectory", "time", "x"), np.arange(4 * 5 * 8, dtype=np.float32).reshape(4, 5, 8))
    variables = {**draft.variables, "force": draft.variables["force"].model_copy(update={"dims": ("time", "x")})}
    store = write_store(dataset, draft.model_copy(update={"variables": variables}), tmp_path / "f.zarr")
    adapter = fitted(store)
    sample = adapter.open(store, "train").frame.sample(1, range(3))
    state = adapter.initial(sample)
    for step in (1, 2):
        state = adapter.advance(state, zeros(adapter, state.batch))
        expected = adapter.encode(sample.isel(time=[step])).conditions.lattice["fields/force"]
        torch.testing.assert_close(state.batch.conditions.lattice["fields/force"], expected)
    with pytest.raises(InputError, match="give the forcing at every time"):
        adapter.advance(state, zeros(adapter, state.batch))


def test_a_second_data_set_keeps_what_is_known_and_adds_what_is_new(wave_store: Make, plane: Store) -> None:
    other = wave_store((8, 8), states=("u", "p"), dataset="others", dt=0.25, unit="km/s")
    once = fitted(plane)
    both = once.fit(other)
    assert both.datasets["waves"] == once.datasets["waves"]
    known, added = both.datasets["waves"], both.datasets["others"]
    assert added.states["u"].scale == pytest.approx(known.states["u"].scale / 1000)
    assert added.states["p"].scale != known.states["u"].scale
    assert (added.time, added.length, added.dt) == (0.5, 2.0, 0.25)
    assert both.spec().channels == ("fields/u", "fields/p")
    assert both.fit(plane) is both
    batch = both.encode(first(both, other))
    assert batch.conditions.vector["lead_time"].tolist() == [0.5]
    state = both.advance(both.initial(first(both, other)), zeros(both, batch))
    assert state.elapsed == 0.25


def test_an_unnamed_sample_is_read_by_its_variables_and_units(plane: Store) -> None:
    adapter = fitted(plane)
    sample = first(adapter, plane)
    mine = sample.copy().assign(u=sample["u"] * 1000)
    mine["u"].attrs["units"] = "mm/s"
    mine.attrs = {}
    torch.testing.assert_close(adapter.encode(mine).values, adapter.encode(sample).values)
    snapshot = mine.isel(time=0, drop=True)
    torch.testing.assert_close(adapter.initial(snapshot).batch.values, adapter.encode(sample).values)


def test_state_survives_json_and_pickle(store: Store) -> None:
    adapter = fitted(store, leads=[1, 3])
    config, arrays = adapter.state()
    again = Fields.restore(json.loads(json.dumps(config)), arrays)
    assert again.spec() == adapter.spec()
    assert again.config == adapter.config
    sample = first(adapter, store)
    for copy in (again, pickle.loads(pickle.dumps(adapter))):  # noqa: S301
        one, other = copy.encode(sample), adapter.encode(sample)
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.targets["state"].scale, other.targets["state"].scale)
    windows = pickle.loads(pickle.dumps(adapter.open(store, "train")))  # noqa: S301
    xr.testing.assert_identical(windows.draw(2, RNG(0), RNG(0)), adapter.open(store, "train").draw(2, RNG(0), RNG(0)))


def test_questions_and_rollout_scores(plane: Store) -> None:
    adapter = fitted(plane, rollout_steps=3)
    one, rollout = adapter.questions(plane, "test")
    assert (one.name, one.steps, len(one.windows), one.block) == ("one_step", 0, 7, 7)
    assert (rollout.name, rollout.steps, len(rollout.windows), rollout.block) == ("rollout_3", 3, 2, 2)
    samples = [rollout.windows.draw(i, RNG(0), RNG(0)) for i in range(2)]
    assert [s["time"].values[0] for s in samples] == [0.0, 1.5]
    later = [s[["u"]].isel(time=slice(1, None)).rename(time="step").drop_vars("step") for s in samples]
    truth = xr.concat(later, "sample").assign_attrs(dataset="waves")
    still = xr.concat([s[["u"]].isel(time=[0, 0, 0]).rename(time="step").drop_vars("step") for s in samples], "sample")
    scores = adapter.score(rollout, still, truth)
    assert scores["relative_l2"].shape == (2, 3)
    assert (np.diff(scores["relative_l2"]) > 0).all()
    assert scores["gmean_relative_l2"] == pytest.approx(np.prod(scores["relative_l2"], 1) ** (1 / 3))
    assert scores["correlation_time"].tolist() == [0.5, 0.5]
    perfect = adapter.score(rollout, truth, truth)
    assert perfect["correlation_time"].tolist() == [1.5, 1.5]
    asked_elsewhere = {"boundary_rmse/u", "rmse_high/u", "split_relative_l2", "error_estimate",
                       "error_estimate_correlation"}
    assert set(scores) == {m.name for m in adapter.metrics()} - asked_elsewhere


def broken_axis(sample: xr.Dataset) -> xr.Dataset:
    return sample.assign_coords(x=("x", sample["x"].values[::-1].copy(), sample["x"].attrs))


def open_axis(sample: xr.Dataset) -> xr.Dataset:
    return sample.assign_coords(x=("x", sample["x"].values, {"units": "m"}))


def other_unit(sample: xr.Dataset) -> xr.Dataset:
    return sample.assign(u=sample["u"].assign_attrs(units="K"))


BAD = {
    "unknown channel": (lambda s: s.assign(w=s["u"]), "variables"),
    "missing channel": (lambda s: s.drop_vars("u"), "u"),
    "missing forcing": (lambda s: s.drop_vars("force"), "force"),
    "other dt": (lambda s: s.assign_coords(time=("time", [0.0, 0.7], {"units": "s"})), "time"),
    "time backwards": (lambda s: s.isel(time=[1, 0]), "time"),
    "other axis": (lambda s: s.rename(x="lon"), "x"),
    "not ascending": (broken_axis, "x"),
    "not periodic": (open_axis, "x"),
    "other unit": (other_unit, "u"),
    "viscosity below zero": (lambda s: s.assign(nu=-s["nu"]), "nu"),
    "NaN in forcing": (lambda s: s.assign(force=s["force"] * np.nan), "force"),
    "two trajectories": (lambda s: s.expand_dims(trajectory=2), "u"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_sample_outside_the_contract_is_refused(plane: Store, name: str) -> None:
    adapter = fitted(plane)
    change, key = BAD[name]
    with pytest.raises(InputError) as raised:
        adapter.encode(change(first(adapter, plane)))
    assert raised.value.key == key
    assert raised.value.fix


def test_another_dt_is_accepted_where_asked(plane: Store) -> None:
    adapter = fitted(plane, any_dt=True)
    sample = first(adapter, plane).assign_coords(time=("time", [0.0, 0.7], {"units": "s"}))
    assert adapter.encode(sample).conditions.vector["lead_time"].item() == pytest.approx(1.4)


def test_mistakes_in_the_recipe_and_in_stores_are_named(tmp_path: Path, plane: Store, wave_data: Make) -> None:
    for config in ({"leads": []}, {"leads": [2, 1]}, {"patch": 0}, {"paches": 4}):
        with pytest.raises(InputError, match=r"domains\.fields"):
            Fields.create(config)
    dataset, draft = wave_data((8,), dataset="kelvin", unit="K")
    other = write_store(dataset, draft, tmp_path / "kelvin.zarr")
    with pytest.raises(InputError, match="converts to 'm/s'"):
        fitted(plane).fit(other)
    steady = draft.model_copy(update={"dt": None, "dataset": "steady"})
    with pytest.raises(InputError, match="uniform time axis"):
        Fields.create({}).fit(write_store(dataset, steady, tmp_path / "steady.zarr"))


@pytest.mark.parametrize(("have", "want", "expected"), [
    ("1/s", "1/s", 1.0), ("m2/s", "m**2/s", 1.0), ("kg m-1 s-2", "hPa", 0.01), ("K", "m", None),
    ("degC", "K", None)])
def test_unit_factors(have: str, want: str, expected: float | None) -> None:
    assert factor(have, want) == (None if expected is None else pytest.approx(expected))
