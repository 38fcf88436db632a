"""Fine-tuning: what a checkpoint knows keeps its weights and statistics; new names get rows of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import sciml
from finetune import workflow
from pretrain.workflow import pretrain
from sciml import checkpoint
from sciml.data.schema import Variable
from sciml.data.store import Store, StoreDraft, open_store, write_store
from sciml.errors import InputError
from sciml.predictor import Predictor
from tests.e2e import tiny

SHORT = ("train.steps=4", "train.checkpoint_every=2", "train.validate_every=0")


@pytest.fixture(scope="module")
def viscous(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A viscosity that the checkpoint hasn't seen, on another grid."""
    return tiny.navier_stokes(tmp_path_factory.mktemp("viscous") / "c.zarr", name="ns_c", resolution=20,
                              viscosity=8e-3, trajectories=4, frames=4)


@pytest.fixture(scope="module")
def tracer(stores: tuple[Store, ...], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The first store and one more state variable."""
    meta, dataset = stores[0].meta, stores[0].dataset()
    dataset["tracer"] = (dataset["vorticity"] ** 2).assign_attrs(units="1")
    draft = StoreDraft(
        domain="fields", dataset="ns_tracer", group_dim=meta.group_dim, groups=meta.groups, axes=meta.axes, dt=meta.dt,
        variables={**meta.variables, "tracer": Variable(role="state", unit="1", dims=("time", "x", "y"))},
        splits=meta.splits, provenance=meta.provenance)
    return write_store(dataset, draft, tmp_path_factory.mktemp("tracer") / "t.zarr")


def extended(trained: Path, store: Store) -> tuple[Predictor, Predictor]:
    """The checkpoint, and it as fine-tuning begins with it."""
    return checkpoint.load(trained), workflow.prepare(trained, store.url, SHORT)[0]


def weights(predictor: Predictor) -> dict[str, torch.Tensor]:
    return dict(predictor.operator.state_dict())


def assert_kept(old: Predictor, new: Predictor) -> list[str]:
    """Every old weight is there, bit for bit, in the first rows if rows were added; the names of what is new."""
    before, after = weights(old), weights(new)
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if value.ndim else after[name], value), name
    return [name for name, value in after.items() if name not in before or value.shape != before[name].shape]


def predicted(predictor: Predictor, store: Store) -> xr.Dataset:
    windows = predictor.adapter(store.meta.domain).open(store, "test")
    rng = np.random.default_rng(0)
    return predictor.predict(windows.draw(0, rng, rng))


def test_another_parameter_value_adds_no_weight(trained: Path, viscous: Store, stores: tuple[Store, ...]) -> None:
    old, new = extended(trained, viscous)
    assert assert_kept(old, new) == []
    for store in stores:
        xr.testing.assert_identical(predicted(old, store), predicted(new, store))
    assert np.isfinite(predicted(new, viscous)["vorticity"]).all()


def test_a_new_channel_gets_rows_and_the_others_keep_theirs(trained: Path, tracer: Store,
                                                            stores: tuple[Store, ...]) -> None:
    old, new = extended(trained, tracer)
    added = assert_kept(old, new)
    assert added
    assert all("fields/tracer" in name for name in added)
    for store in stores:
        xr.testing.assert_identical(predicted(old, store), predicted(new, store))
    assert set(predicted(new, tracer).data_vars) == {"vorticity", "tracer"}


def test_new_identities_get_rows_and_the_others_keep_theirs(trained: Path, stores: tuple[Store, ...],
                                                            tmp_path: Path) -> None:
    store = tiny.panel(tmp_path, name="panel_b", variates=("a", "b", "c"))
    old, new = extended(trained, store)
    added = assert_kept(old, new)
    assert added
    assert all("panel_b/variate" in name for name in added)
    for known in stores:
        xr.testing.assert_identical(predicted(old, known), predicted(new, known))
    assert predicted(new, store).sizes["variate"] == 3


def test_a_new_domain_gets_ports_and_the_core_keeps_its_weights(stores: tuple[Store, ...], tmp_path: Path) -> None:
    pretrain(tiny.recipe(stores[0].url, steps=1), tmp_path / "run")
    old, new = extended(tmp_path / "run", stores[2])
    assert all(name.startswith("ports.series.") for name in assert_kept(old, new))
    xr.testing.assert_identical(predicted(old, stores[0]), predicted(new, stores[0]))


def test_a_fine_tuned_checkpoint_knows_both(trained: Path, viscous: Store, stores: tuple[Store, ...],
                                            tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    tuned = workflow.finetune(trained, viscous.url, tmp_path / "run", assignments=SHORT)
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before
    steps = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps) == 4
    assert set(tuned.provenance["stores"]) == {"ns_a", "ns_b", "panel", "ns_c"}
    newest = checkpoint.load(sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1])
    old = weights(checkpoint.load(trained))
    assert any(not torch.equal(value, weights(newest)[name]) for name, value in old.items())
    for store in (*stores, viscous):
        assert np.isfinite(predicted(newest, store).to_array().astype(float)).all()
    again = workflow.finetune(trained, viscous.url, tmp_path / "run", assignments=SHORT)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(tuned).items())
    assert sciml.load(str(tmp_path / "run")).recipe["data"][0]["store"] == viscous.url


def test_the_rates_are_lower_and_the_budget_can_be_minutes(trained: Path, viscous: Store) -> None:
    predictor, store = checkpoint.load(trained), open_store(viscous.url)
    recipe = workflow.recipe_for(predictor, store, (), where="test")
    assert (recipe.train.steps, recipe.train.learning_rate) == (300, pytest.approx(0.5 * 2e-3))
    timed = workflow.recipe_for(predictor, store, ("train.minutes=2",), where="test")
    assert (timed.train.steps, timed.train.minutes) == (None, 2)


def test_other_time_steps_of_a_known_data_set_are_refused(trained: Path, tmp_path: Path) -> None:
    store = tiny.navier_stokes(tmp_path / "slow.zarr", frame_dt=1.0, trajectories=3, frames=3)
    with pytest.raises(InputError, match="any_dt: true") as caught:
        workflow.finetune(trained, store.url, tmp_path / "run", assignments=SHORT)
    assert caught.value.key == "time"


def test_an_unknown_domain_is_refused(trained: Path, stores: tuple[Store, ...], tmp_path: Path) -> None:
    root = tmp_path / "alien.zarr"
    meta = stores[0].meta
    draft = StoreDraft(domain="weather_of_mars", dataset="alien", group_dim=meta.group_dim, groups=meta.groups,
                       axes=meta.axes, dt=meta.dt, variables=meta.variables, splits=meta.splits,
                       provenance=meta.provenance)
    write_store(stores[0].dataset(), draft, root)
    with pytest.raises(InputError, match="weather_of_mars") as caught:
        workflow.finetune(trained, str(root), tmp_path / "run", assignments=SHORT)
    assert "fields" in caught.value.expected
    assert not (tmp_path / "run").exists()


def test_a_dry_run_measures_and_writes_nothing(trained: Path, viscous: Store, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = workflow.dry_run(trained, viscous.url, SHORT)
    assert plan.parameters == sum(p.numel() for p in checkpoint.load(trained).operator.parameters())
    assert plan.steps == 4
    assert plan.samples_per_step == 4
    assert plan.tokens_per_step == 4 * 20 * 20
    assert plan.steps_per_s > 0
    assert plan.minutes == pytest.approx(4 / plan.steps_per_s / 60)
    assert list(tmp_path.iterdir()) == []
