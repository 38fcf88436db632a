"""Steady problems: the solution from the coefficients, one lead ahead of nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.chains import Going
from sciml.data.schema import Variable
from sciml.data.store import Store
from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate, unpack
from sciml.predictor import Predictor
from sciml.rollout import rollout_to_zarr
from sciml.testing import CHECKS, Subject, prepare
from sciml.testing.conformance import OPERATOR
from sciml.tokens import Outputs
from tests.domains.fields.stores import flow_store, poisson_store, put

RNG = np.random.default_rng(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return poisson_store(tmp_path)


def drawn(adapter: Fields, store: Store, index: int = 0) -> xr.Dataset:
    return adapter.open(store, "train").draw(index, RNG, RNG)


def predictor_of(adapter: Fields) -> Predictor:
    torch.manual_seed(0)
    return Predictor(Operator(OperatorConfig(**OPERATOR), {"fields": adapter.spec()}).eval(), {"fields": adapter})


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return prepare("fields", [poisson_store(tmp_path_factory.mktemp("steady"))], config={"patch": 2})


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


def test_nothing_of_the_state_is_given_and_all_of_it_is_asked(store: Store) -> None:
    adapter = Fields.create({}).fit(store)
    sample = drawn(adapter, store)
    batch = adapter.encode(sample)
    assert "time" not in sample.dims
    assert batch.observed is not None
    assert not batch.observed.any()
    assert not batch.values.any()
    assert batch.conditions.vector["lead_time"].tolist() == [1.0]
    assert batch.targets["state"].mask.all()
    truth = adapter.decode(batch, {"state": batch.targets["state"].value})
    np.testing.assert_allclose(truth["u"].values[0], sample["u"].values, atol=1e-6)
    again = unpack(collate([batch, adapter.encode(drawn(adapter, store, 1))]))
    torch.testing.assert_close(again[0].targets["state"].baseline, batch.targets["state"].baseline)


def test_the_baseline_is_the_training_mean_and_its_scale_what_that_misses(store: Store) -> None:
    adapter = Fields.create({}).fit(store)
    missed, values = [], []
    for index in range(len(adapter.open(store, "train"))):
        sample = drawn(adapter, store, index)
        target = adapter.encode(sample).targets["state"]
        missed.append((target.value - target.baseline) / target.scale)
        values.append(sample["u"].values.astype(float))
    assert torch.cat(missed).square().mean().item() == pytest.approx(1, rel=1e-4)
    batch = adapter.encode(drawn(adapter, store))
    mean = adapter.decode(batch, {"state": batch.targets["state"].baseline})["u"].values[0]
    np.testing.assert_allclose(mean, np.mean(values, 0), atol=1e-6)
    assert np.abs(mean[0]).max() < 1e-6 < np.abs(mean[8]).max(), "zero at the walls, as all solutions are"


@pytest.mark.parametrize("fill", [0.0, 50.0])
def test_what_a_mask_leaves_out_is_in_no_mean(tmp_path: Path, fill: float) -> None:
    """Whatever files have inside a body, the mean and its scale are those of the cells around it."""
    whole = poisson_store(tmp_path)
    count, n = whole.meta.groups, 16
    outside = np.zeros((count, n, n), bool)
    outside[:, 4:7, 5:9] = True
    u = whole.dataset()["u"].values
    data = {"u": (("trajectory", "x", "y"), np.where(outside, fill, u).astype(np.float32)),
            "f": (("trajectory", "x", "y"), whole.dataset()["f"].values),
            "body": (("trajectory", "y", "x"), 1 - outside.transpose(0, 2, 1).astype(np.float32))}
    mask = {"body": Variable(role="mask", unit="1", dims=("y", "x"))}
    masked = put(tmp_path, data, {d: whole.coord(d) for d in "xy"}, {**whole.meta.variables, **mask}, whole.meta.axes,
                 dt=None, frames=1, dataset="body")
    adapter = Fields.create({}).fit(masked)
    mean, link = adapter.means["body"]["u"], adapter.datasets["body"].states["u"]
    train = u[[block.group for block in masked.meta.splits.train]][:, ~outside[0]].astype(float)
    found = mean.profile[~outside[0]] * link.scale + link.center
    np.testing.assert_allclose(found, train.mean(0), atol=1e-6 * link.scale)
    assert mean.scale * link.scale == pytest.approx(np.sqrt(train.var(0).mean()), rel=1e-4)


def test_a_periodic_box_has_one_mean(tmp_path: Path) -> None:
    store = poisson_store(tmp_path, periodic=True, noise=0.01)
    target = Fields.create({}).fit(store)
    baseline = target.encode(drawn(target, store)).targets["state"].baseline
    assert float(baseline.std()) < 1e-7


def test_another_resolution_has_the_same_mean_in_between(tmp_path: Path, store: Store) -> None:
    adapter = Fields.create({}).fit(store)
    fine = poisson_store(tmp_path / "fine", 31)
    dense = adapter.encode(drawn(adapter, fine)).targets["state"].baseline
    coarse = adapter.encode(drawn(adapter, store)).targets["state"].baseline
    torch.testing.assert_close(dense[:, ::2, ::2], coarse, atol=1e-5, rtol=0)


def test_a_solution_is_predicted_from_the_coefficients_alone(store: Store) -> None:
    adapter = Fields.create({"patch": 2}).fit(store)
    predictor, sample = predictor_of(adapter), drawn(adapter, store)
    whole, alone = predictor.predict(sample), predictor.predict(sample.drop_vars("u"))
    np.testing.assert_array_equal(whole["u"].values, alone["u"].values)
    assert np.isfinite(alone["u"].values).all()
    rows = evaluate(predictor, store).scores
    assert {row.question for row in rows} == {"steady"}
    assert {row.baseline_name for row in rows} == {"training_mean"}
    assert {"relative_l2", "vrmse", "boundary_rmse/u"} <= {row.metric for row in rows}
    with pytest.raises(InputError, match=r"predictor\.predict"):
        predictor.rollout(sample, steps=2)
    assert len(adapter.starts(store, "test")) == 0


def test_steady_and_moving_data_share_an_adapter(tmp_path: Path, store: Store) -> None:
    moving = flow_store(tmp_path)
    both = Fields.create({"patch": 2, "augment": []}).fit(store).fit(moving)
    assert [c.steady for c in both.datasets.values()] == [True, False]
    assert both.datasets["flow"].time == 0.5
    still = both.encode(drawn(both, store))
    state = both.advance(both.initial(drawn(both, moving)), Outputs({"state": torch.zeros(1, 12, 12, 3)}))
    assert state.elapsed == 0.5
    assert both.encode(drawn(both, moving)).conditions.vector["lead_time"].tolist() == [1.0]
    again = Fields.restore(*both.state())
    torch.testing.assert_close(again.encode(drawn(both, store)).targets["state"].baseline,
                               still.targets["state"].baseline)


def test_states_alone_are_no_problem(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match="what they follow from"):
        Fields.create({}).fit(_without(store, tmp_path))


def _without(store: Store, folder: Path) -> Store:
    from tests.domains.fields.stores import put

    data = store.lazy()
    return put(folder, {"u": data["u"].load().drop_attrs().variable}, {n: data[n].values for n in ("x", "y")},
               {"u": store.meta.variables["u"]}, store.meta.axes, dt=None, frames=1, dataset="alone")


def test_steady_data_are_not_rolled_out(store: Store, subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing that goes on in time.*predictor\.predict"):
        rollout_to_zarr(subject.predictor, store, "test", tmp_path / "out.zarr", steps=2)


def test_noise_on_a_state_that_is_not_there_is_refused(store: Store) -> None:
    adapter = Fields.create({}).fit(store)
    (batch,) = [adapter.encode(drawn(adapter, store))]
    going = Going(adapter, lambda batch: Outputs({}), lambda outputs, batch: torch.zeros(1),
                  generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"\[chain\.noise\]: found a steady data set, poisson.*leave the noise out"):
        going.perturbed(batch, 0.1)
    assert going.perturbed(batch, 0.0) is batch
