"""Hard projections: no divergence, a mean that stays, whatever the operator says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.store import Store
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.measures import Flow
from sciml.domains.fields.project import compressive, divergence
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.testing import CHECKS, Subject, prepare
from sciml.testing.conformance import OPERATOR
from sciml.testing.parameters import stir
from sciml.tokens import Outputs
from tests.domains.fields.stores import flow_store, poisson_store, velocity

RNG = np.random.default_rng(0)
BOTH = {"divergence_free": ["velocity"], "mean": ["tracer"]}


@pytest.fixture(params=[0.0, 0.6], ids=["one scale", "by wavenumber"])
def adapter(request: pytest.FixtureRequest, store: Store) -> Fields:
    return Fields.create({"project": BOTH, "spectral": request.param, "patch": 2}).fit(store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return flow_store(tmp_path)


def wild(adapter: Fields) -> Operator:
    torch.manual_seed(0)
    operator = Operator(OperatorConfig(**OPERATOR), {"fields": adapter.spec()}).eval()
    stir(operator, size=0.2)
    return operator


@given(shape=st.sampled_from([(8,), (8, 7), (6, 8), (6, 5, 8)]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_what_is_taken_away_is_all_the_divergence_and_no_more(shape: tuple[int, ...], seed: int) -> None:
    field = torch.randn(2, *shape, len(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    periods = [1.0, 2.0, 0.5][: len(shape)]
    rest = field - compressive(field, periods)
    assert float(divergence(rest, periods).abs().max()) < 1e-10 * float(divergence(field, periods).abs().max())
    torch.testing.assert_close(rest - compressive(rest, periods), rest)
    orthogonal = (rest * compressive(field, periods)).sum()
    assert abs(float(orthogonal)) < 1e-9 * float(field.square().sum())
    torch.testing.assert_close(rest.flatten(1, -2).mean(1), field.flatten(1, -2).mean(1))


@pytest.mark.parametrize("shape", [(12, 10), (8, 6, 10)])
def test_a_field_without_divergence_is_left_alone(shape: tuple[int, ...]) -> None:
    field = torch.from_numpy(np.moveaxis(velocity(shape, 2), 1, -1).copy())
    assert float(compressive(field, [1.0] * len(shape)).abs().max()) < 1e-12


def test_rollouts_have_no_divergence_and_keep_the_mass(adapter: Fields, store: Store) -> None:
    predictor = Predictor(wild(adapter), {"fields": adapter})
    start = adapter.starts(store, "test")[0].isel(time=[0])
    future = predictor.rollout(start, steps=12)
    flow = Flow(np.stack([future[f"velocity_{a}"].values for a in "xy"], -1), [1.0, 1.0])
    assert flow.divergence().max() < 2e-5
    mean = float(start["tracer"].values.astype(np.float64).mean())
    np.testing.assert_allclose(future["tracer"].values.astype(np.float64).mean((1, 2)), mean, rtol=1e-6)
    plain = Fields.create({"spectral": adapter.config.spectral, "patch": 2}).fit(store)
    free = Predictor(predictor.operator, {"fields": plain})
    loose = free.rollout(start, steps=1)
    assert Flow(np.stack([loose[f"velocity_{a}"].values for a in "xy"], -1), [1.0, 1.0]).divergence()[0] > 0.01
    if not adapter.config.spectral:  # by wavenumber, an operator can't say what never changed in training
        assert abs(loose["tracer"].values.mean() - mean) > 1e-3 * abs(mean)


def test_gradients_flow_through_the_projection_to_every_output(adapter: Fields, store: Store) -> None:
    windows = adapter.open(store, "train")
    batch = collate([adapter.encode(windows.draw(i, RNG, RNG)) for i in (0, 3)])
    output = torch.randn(batch.values.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    answer = adapter.derive(batch, lambda _: Outputs({"state": output}), True)
    prediction = batch.targets["state"].predict(answer["state"])
    prediction.square().sum().backward()
    assert output.grad is not None
    assert bool(torch.isfinite(output.grad).all())
    assert bool((output.grad.abs().amax((0, 1, 2)) > 0).all())
    again = adapter.derive(batch, lambda _: answer, True)
    torch.testing.assert_close(batch.targets["state"].predict(again["state"]), prediction, atol=2e-5, rtol=0)


def test_training_and_evaluation_see_the_projected_state(adapter: Fields, store: Store) -> None:
    operator = wild(adapter)
    predictor = Predictor(operator, {"fields": adapter})
    rows = {row.metric: row for row in evaluate(predictor, store).scores if row.question == "one_step"}
    assert rows["divergence/velocity"].value < 2e-5
    assert rows["mean_error/tracer"].value < 1e-5
    assert {"energy_error/velocity", "enstrophy_error/velocity", "energy_spectrum_ratio/velocity"} <= set(rows)
    batch = adapter.encode(adapter.open(store, "train").draw(0, RNG, RNG))
    predicted = batch.targets["state"].predict(forward(adapter, operator, batch)["state"])
    decoded = adapter.decode(batch, {"state": predicted.detach()})
    flow = Flow(np.stack([decoded[f"velocity_{a}"].values for a in "xy"], -1), [1.0, 1.0])
    assert flow.divergence().max() < 2e-5


@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ != "check_baseline"], ids=lambda c: c.__name__)
def test_conformance_with_projections(store: Store, check: Callable[[Subject], None]) -> None:
    """All but that silent heads score what the baseline scores, which is not projected: that is so up to rounding."""
    check(prepare("fields", [store], config={"project": BOTH, "patch": 2}))


def test_a_restored_adapter_projects(adapter: Fields, store: Store) -> None:
    again = Fields.restore(*adapter.state())
    batch = again.encode(again.open(store, "train").draw(0, RNG, RNG))
    same = adapter.encode(adapter.open(store, "train").draw(0, RNG, RNG))
    torch.testing.assert_close(batch.kept["mean"], same.kept["mean"])
    assert again.config.project.divergence_free == ("velocity",)


def test_what_cannot_be_projected_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match="speed"):
        Fields.create({"project": {"divergence_free": ["speed"]}}).fit(store).spec()
    nameless = flow_store(tmp_path / "nameless", vectors=False)
    with pytest.raises(InputError, match="vector"):
        Fields.create({"project": {"divergence_free": ["velocity"]}}).fit(nameless).spec()
    steady = poisson_store(tmp_path / "steady")
    with pytest.raises(InputError, match="initial state"):
        Fields.create({"project": {"mean": ["u"]}}).fit(steady)
    with pytest.raises(InputError, match=r"domains\.fields"):
        Fields.create({"project": {"energy": ["u"]}})
    sample = Fields.create({}).fit(store).starts(store, "test")[0].isel(time=[0])
    sample["velocity_x"].values[0, 2, 3] = np.nan
    strict = Fields.create({"project": BOTH}).fit(store)
    with pytest.raises(InputError, match="not known"):
        Predictor(wild(strict), {"fields": strict}).rollout(sample, steps=1)


def test_a_known_data_set_is_asked_again_when_projections_are_added(tmp_path: Path, store: Store) -> None:
    """As fine-tuning does: the adapter has known it since it was projected by nothing."""
    steady = poisson_store(tmp_path / "steady")
    plain = Fields.create({}).fit(store).fit(steady)
    assert plain.reconfigured({"project": BOTH}).fit(store).config.project.mean == ("tracer",)
    with pytest.raises(InputError, match="initial state"):
        plain.reconfigured({"project": {"mean": ["u"]}}).fit(steady)


def test_data_with_divergence_are_not_called_free_of_it(tmp_path: Path) -> None:
    from sciml.data.schema import Variable
    from tests.domains.fields.stores import put

    values = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    store = flow_store(tmp_path)
    data = {f"velocity_{a}": (("trajectory", "time", "x", "y"), values) for a in "xy"}
    variables = {f"velocity_{a}": Variable(role="state", unit="m/s", dims=("time", "x", "y"), vector="velocity",
                                           along=(a,)) for a in "xy"}
    rough = put(tmp_path, data, {"time": np.arange(3.0), "x": np.arange(8) / 8, "y": np.arange(8) / 8}, variables,
                store.meta.axes, dt=1.0, frames=3, dataset="rough")
    with pytest.raises(InputError, match="without divergence"):
        Fields.create({"project": {"divergence_free": ["velocity"]}}).fit(rough)
