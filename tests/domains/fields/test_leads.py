"""Lead times: all ordered pairs, stretches of several steps, answers at chosen leads, and how far to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.chains import Going, chain_of, cut, reach
from sciml.data.schema import Block, Variable
from sciml.data.store import write_store
from sciml.domains.fields import spectral
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.trust import across, error_estimate
from sciml.domains.fields.windows import Pairs
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.recipe import Named
from sciml.testing.conformance import OPERATOR
from sciml.testing.parameters import stir
from sciml.tokens import Outputs, State

RNG = np.random.default_rng
Make = Callable[..., Any]


class Times:
    """A frame that tells which states a sample is made of."""

    def symmetries(self, augment: object) -> None:
        return None

    def resolutions(self, shares: object) -> tuple[None]:
        return (None,)

    def sample(self, group: int, times: range, motion: object, resolution: object) -> tuple[int, ...]:
        return (group, *times)


def pairs_of(*lengths: int, **options: Any) -> Pairs:
    blocks = [Block(group=i, start=2, stop=2 + n) for i, n in enumerate(lengths)]
    return Pairs.of(Times(), blocks, **{"leads": "all", **options})  # type: ignore[arg-type]


def test_every_ordered_pair_is_there_once() -> None:
    windows = pairs_of(4, 3)
    drawn = [windows.draw(i, RNG(0), RNG(0)) for i in range(len(windows))]
    assert set(drawn) == {(g, s, t) for g, n in enumerate((4, 3)) for s in range(2, 2 + n) for t in range(s + 1, 2 + n)}
    assert len(drawn) == 6 + 3


def test_training_draws_them_uniformly_and_repeats_with_its_key() -> None:
    windows = pairs_of(6, 4, random=True)
    assert len(windows) == 5 + 3
    drawn = Counter(windows.draw(i, RNG([i, e]), RNG(0)) for e in range(1500) for i in range(len(windows)))
    assert len(drawn) == 15 + 6
    expected = 1500 * 8 / 21
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())
    assert windows.draw(3, RNG(7), RNG(0)) == windows.draw(3, RNG(7), RNG(1))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), steps=st.integers(1, 4), seed=st.integers(0, 9),
       leads=st.sampled_from([(1,), (2, 3), 3, "all"]), random=st.booleans())
@settings(max_examples=60, deadline=None)
def test_stretches_stay_inside_their_blocks_at_equal_spacing(lengths: list[int], steps: int, seed: int, leads: Any,
                                                             random: bool) -> None:
    windows = pairs_of(*lengths, leads=leads, steps=steps, random=random)
    for index in range(len(windows)):
        drawn: Any = windows.draw(index, RNG(seed), RNG(0))
        group, *times = drawn
        gaps = set(np.diff(times))
        assert len(times) == steps + 1
        assert len(gaps) == 1
        assert gaps <= set(leads if isinstance(leads, tuple) else range(1, 4 if leads == 3 else 99))
        assert times[0] >= 2
        assert times[-1] < 2 + lengths[group]


def test_a_range_of_leads_is_asked_and_accepted(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": "all", "asked": [4]}).fit(store)
    questions = {q.name: q for q in adapter.questions(store, "test")}
    assert list(questions) == ["one_step", "direct_4", "trust", "rollout_7"]
    assert len(questions["direct_4"].windows) == 4
    sample = questions["direct_4"].windows.draw(0, RNG(0), RNG(0))
    assert adapter.encode(sample).conditions.vector["lead_time"].tolist() == [4.0]
    few = Fields.create({"leads": 3}).fit(store)
    with pytest.raises(InputError, match="any number of steps up to 3"):
        few.encode(sample)
    assert Fields.create({"leads": 3, "any_dt": True}).fit(store).encode(sample).values.shape == (1, 16, 12, 1)
    for wrong in ({"leads": "some"}, {"leads": 0}, {"leads": [0, 1]}, {"leads": [1, 2], "asked": [3]}):
        with pytest.raises(InputError, match=r"domains\.fields"):
            Fields.create(wrong)


def test_a_jump_of_any_length_is_asked_by_the_attribute_lead_time(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": "all"}).fit(store)
    start = adapter.starts(store, "test")[0].isel(time=[0]).assign_attrs(lead_time=1.5)
    state = adapter.initial(start)
    assert state.batch.conditions.vector["lead_time"].tolist() == [3.0]
    assert adapter.advance(state, Outputs({"state": torch.zeros(1, 16, 12, 1)})).elapsed == 1.5


def test_curves_between_fitted_leads_are_interpolated(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": "all", "spectral": 0.6}).fit(store)
    curves = adapter.spectra["waves"]["u"]
    assert list(curves) == [1, 2, 4, 7]
    assert np.array_equal(spectral.between(curves, 4.0000001), curves[4])
    between = spectral.between(curves, 3)
    assert ((between - curves[2]) * (curves[4] - between) >= -1e-12).all()
    missed, scaled = [], []
    windows = adapter.open(store, "train")
    for index in range(len(windows)):
        batch = adapter.encode(windows.draw(index, RNG(0), RNG(0)))
        if batch.conditions.vector["lead_time"].item() == 3.0:
            target = batch.targets["state"]
            missed.append(float((target.value - target.baseline).square().mean()))
            scaled.append(float((between[1] ** 2 * between[2]).sum()))
    assert np.mean(missed) == pytest.approx(np.mean(scaled), rel=0.2)


def test_another_configuration_of_a_known_data_set_has_curves_or_none(wave_store: Make) -> None:
    """What fine-tuning gets is what a fresh fit would: no recipe says `spectral` and goes without."""
    store = wave_store((16, 12))
    with_curves, without = ({"spectral": power} for power in (0.6, 0.0))
    added = Fields.create(without).fit(store).reconfigured(with_curves).fit(store)
    fresh = Fields.create(with_curves).fit(store)
    assert np.array_equal(added.spectra["waves"]["u"][1], fresh.spectra["waves"]["u"][1])
    assert fresh.reconfigured(with_curves).fit(store).spectra["waves"] is fresh.spectra["waves"]
    assert not fresh.reconfigured(without).fit(store).spectra
    assert not fresh.floor().spectra


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_samples_of_different_leads_share_a_batch(wave_store: Make, power: float) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": "all", "spectral": power}).fit(store)
    windows = adapter.open(store, "test")
    single = [adapter.encode(windows.draw(i, RNG(0), RNG(0))) for i in (0, 8, 20)]
    together = collate(single)
    output = torch.randn(together.values.shape, generator=torch.Generator().manual_seed(0))
    moved = adapter.advance(State(together), Outputs({"state": output}))
    for i, batch in enumerate(single):
        alone = adapter.advance(State(batch), Outputs({"state": output[i: i + 1]}))
        torch.testing.assert_close(moved.batch.values[i: i + 1], alone.batch.values)
        torch.testing.assert_close(moved.batch.targets["state"].scale.expand(3, *[-1] * 3)[i: i + 1],
                                   alone.batch.targets["state"].scale)
        assert np.isfinite(alone.elapsed)
    assert np.isnan(moved.elapsed)
    with pytest.raises(InputError, match="one lead time"):
        adapter.observe(moved)


@pytest.mark.parametrize(("chain", "options"), [
    ("unrolled", {"steps": 3}), ("pushforward", {"steps": 3}), ("semigroup", {}), ("unrolled", {"noise": 0.1})])
def test_chains_train_on_stretches(wave_store: Make, chain: str, options: dict[str, Any]) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": [1, 2], "spectral": 0.5}).fit(store)
    made = chain_of(Named(name=chain, options=options))
    spans = sorted({j - i for i, j in made.links})
    windows = adapter.stretches(store, "train", reach(made), train=True, spans=spans)
    torch.manual_seed(0)
    operator = Operator(OperatorConfig(**OPERATOR), {"fields": adapter.spec()})
    stir(operator)
    parts = [cut(windows.draw(i, RNG(i), RNG(0)), made.links) for i in (0, len(windows) - 1)]
    links = [collate([adapter.encode(part) for part in link]) for link in zip(*parts)]
    from sciml import registry

    objective = registry.find("sciml.objectives", adapter.objective)
    going = Going(adapter, operator, objective, generator=torch.Generator().manual_seed(0))
    loss = made.losses(links, going)
    assert loss.shape == (2,)
    loss.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in operator.parameters() if p.grad is not None)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_chain_knows_of_a_state_what_a_rollout_would(wave_store: Make, power: float) -> None:
    """What wasn't observed at its start stays so, what wasn't later is predicted; the mean is the start's."""
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": [1], "spectral": power, "project": {"mean": ["u"]}}).fit(store)
    sample = adapter.stretches(store, "train", 2).draw(0, RNG(0), RNG(0)).copy(deep=True)
    sample["u"].values[0, 3, 4] = np.nan
    sample["u"].values[1, 5, 6] = np.nan
    first, second = (adapter.encode(part) for part in cut(sample, ((0, 1), (1, 2))))
    on = Going(adapter, lambda batch: Outputs({}), lambda outputs, batch: torch.zeros(1))
    outputs = Outputs({"state": torch.ones_like(first.values)})
    state = adapter.initial(sample.isel(time=[0]))
    rolled = adapter.advance(replace(state, batch=replace(state.batch, axes=first.axes)), outputs).batch
    moved = on.onward(first, outputs, second)
    assert moved.observed is not None
    assert rolled.observed is not None
    assert torch.equal(moved.values, rolled.values)
    assert torch.equal(moved.observed, rolled.observed)
    assert torch.equal(moved.kept["mean"], first.kept["mean"])
    assert not torch.equal(second.kept["mean"], first.kept["mean"])
    counts = moved.targets["state"].mask[0, ..., 0]
    assert counts.sum() == 16 * 12 - 2
    assert not counts[3, 4]
    assert not counts[5, 6]


def test_noise_leaves_what_is_not_observed_empty(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({}).fit(store)
    sample = adapter.open(store, "train").draw(0, RNG(0), RNG(0)).copy(deep=True)
    sample["u"].values[0, 3, 4] = np.nan
    batch = adapter.encode(sample)
    on = Going(adapter, lambda batch: Outputs({}), lambda outputs, batch: torch.zeros(1),
               generator=torch.Generator().manual_seed(0))
    noisy = on.perturbed(batch, 0.5).values
    assert noisy[0, 3, 4] == 0
    assert int((noisy != batch.values).sum()) == 16 * 12 - 1


def test_a_restated_question_has_the_new_state_as_its_baseline(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"spectral": 0.5}).fit(store)
    batch = adapter.encode(adapter.open(store, "train").draw(0, RNG(0), RNG(0)))
    other = adapter.encode(adapter.open(store, "train").draw(1, RNG(0), RNG(0)))
    asked = adapter.restated(batch, other.values)
    torch.testing.assert_close(asked.targets["state"].baseline, other.targets["state"].baseline)
    assert torch.equal(asked.targets["state"].value, batch.targets["state"].value)


def test_stretches_that_do_not_fit_are_refused(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": [2]}).fit(store)
    assert len(adapter.stretches(store, "train", 3)) == 2 * 2
    with pytest.raises(InputError, match="chain fewer steps"):
        adapter.stretches(store, "train", 4)
    with pytest.raises(InputError, match=r"\[1, 2\] at a time"):
        adapter.stretches(store, "train", 2, spans=(1, 2))


def predictor_of(adapter: Fields) -> Predictor:
    torch.manual_seed(0)
    operator = Operator(OperatorConfig(**OPERATOR), {"fields": adapter.spec()}).eval()
    stir(operator, size=0.1)
    return Predictor(operator, {"fields": adapter})


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_two_jumps_are_what_a_rollout_makes(wave_store: Make, power: float) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": [1, 2], "spectral": power}).fit(store)
    predictor = predictor_of(adapter)
    start = adapter.starts(store, "test")[0].isel(time=[0])
    answer = predictor.predict(start.assign_attrs(lead_time=1.0, split=1))
    direct = predictor.predict(start.assign_attrs(lead_time=1.0))
    stepped = predictor.rollout(start, steps=2)
    np.testing.assert_allclose(answer["u"].values, direct["u"].values, atol=1e-5)
    np.testing.assert_allclose(answer["u_split"].values[0], stepped["u"].values[1], atol=1e-4)
    assert error_estimate(answer) > 0


def test_two_jumps_of_a_lead_that_was_not_trained_are_refused(wave_store: Make) -> None:
    store = wave_store((16, 12))
    start = Fields.create({}).fit(store).starts(store, "test")[0].isel(time=[0])
    for leads, lead in (([1, 3], 1.5), ([1, 2], 0.5)):
        asked = start.assign_attrs(lead_time=lead, split=1)
        with pytest.raises(InputError, match="a lead of"):
            Fields.create({"leads": leads}).fit(store).encode(asked)
        known = Fields.create({"leads": leads, "any_dt": True}).fit(store).encode(asked)
        assert set(known.targets) == {"state", "split"}


def test_trust_is_not_asked_where_what_is_known_of_cells_varies_in_time(wave_data: Make, tmp_path: Path) -> None:
    """Of forcings as of covariates: two jumps would need them in between."""
    for role in ("forcing", "covariate"):
        data, draft = wave_data((16, 12), dataset=role)
        moving = data["force"].expand_dims(time=data["time"]).transpose("trajectory", "time", "x", "y")
        described = Variable(role=role, unit="m/s2", dims=("time", "x", "y"))
        store = write_store(data.assign(force=moving), draft.model_copy(update={
            "variables": {**draft.variables, "force": described}}), tmp_path / f"{role}.zarr")
        adapter = Fields.create({"leads": [1, 2]}).fit(store)
        questions = adapter.questions(store, "test")
        assert "trust" not in [question.name for question in questions]
        for question in questions:
            adapter.encode(question.windows.draw(0, RNG(0), RNG(0)))


def test_trust_is_asked_where_several_leads_were_trained(wave_store: Make) -> None:
    store = wave_store((16, 12))
    rows = {}
    for leads in ([1], [1, 3], [1, 2]):
        adapter = Fields.create({"leads": leads}).fit(store)
        found = evaluate(predictor_of(adapter), store).scores
        rows[tuple(leads)] = {row.metric: row for row in found if row.question == "trust"}
    assert not rows[(1,)]
    assert not rows[(1, 3)]
    asked = rows[(1, 2)]
    assert {"relative_l2", "split_relative_l2", "error_estimate", "error_estimate_correlation"} <= set(asked)
    assert asked["error_estimate"].value > 0
    assert asked["error_estimate"].baseline == 0
    assert -1 <= asked["error_estimate_correlation"].value <= 1
    assert asked["error_estimate_correlation"].baseline == 0


def test_the_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = RNG(0)
    error = rng.random(20)
    scores = {"relative_l2": error, "error_estimate": error**3 + 0.1 * rng.random(20)}
    expected = spearmanr(scores["error_estimate"], error).statistic
    assert across(scores)["error_estimate_correlation"].mean() == pytest.approx(expected)
    assert across({"relative_l2": error, "error_estimate": np.zeros(20)})["error_estimate_correlation"].mean() == 0
    assert across({"relative_l2": error}) == {"relative_l2": error}


def test_a_forcing_that_varies_in_time_has_no_two_jumps(wave_store: Make) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"leads": [1, 2]}).fit(store)
    sample = adapter.starts(store, "test")[0]
    moving: xr.DataArray = sample["force"].expand_dims(time=sample["time"]).transpose("time", "x", "y")
    with pytest.raises(InputError, match="autonomous"):
        adapter.encode(sample.assign(force=moving).assign_attrs(split=1))
    assert replace(adapter, config=adapter.config).across({}) == {}


def test_chains_over_forcings_that_change_in_time_are_refused(wave_data: Make, tmp_path: Path) -> None:
    """A jump of two steps, and a solver, would need the forcing in between."""
    data, draft = wave_data((16,))
    moving = draft.variables["force"].model_copy(update={"dims": ("time", "x")})
    data["force"] = data["force"].expand_dims(time=data["time"], axis=1)
    changed = draft.model_copy(update={"variables": {**draft.variables, "force": moving}})
    store = write_store(data, changed, tmp_path / "moving.zarr")
    adapter = Fields.create({"leads": [1, 2]}).fit(store)
    assert adapter.datasets["waves"].varying == ("force",)
    assert len(adapter.stretches(store, "train", 2)) > 0
    with pytest.raises(InputError, match="an autonomous equation"):
        adapter.stretches(store, "train", 2, spans=(1, 2))
    batch = adapter.encode(adapter.open(store, "test").draw(0, RNG(0), RNG(0)))
    with pytest.raises(InputError, match="force changing in time"):
        adapter.solved(batch, Named(name="burgers"))
