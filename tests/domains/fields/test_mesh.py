"""Fields at scattered points: learned, rolled out, asked at places where nothing was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from finetune.workflow import extend
from pretrain.workflow import new_predictor, pretrain
from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.export.step import form_of
from sciml.predictor import Predictor
from sciml.recipe import Recipe
from tests.e2e import tiny

DRAWS: tuple[Any, Any] = (np.random.default_rng(0), np.random.default_rng(0))
GRID = {"trajectories": 6, "frames": 6, "resolution": 32, "frame_dt": 0.05, "velocity": [0.5, 0.5], "length": 0.1}


def made(folder: Path, name: str, **options: Any) -> Store:
    source = SourceSpec.model_validate({
        "name": name, "domain": "fields", "builder": name, "options": options, "licence": "CC0-1.0",
        "citation": "made", "split": {"by": "group", "counts": {"train": 4, "validation": 1, "test": 1}}})
    return build(source, folder / f"{name}.zarr")


def recipe(*stores: Store, **train: Any) -> Recipe:
    level = {"width": 32, "depth": 2, "mixers": ["axial", "local"], "head_width": 16}
    return Recipe.model_validate({
        "name": "mesh", "seed": 0, "data": [{"store": store.url, "batch": 2} for store in stores],
        "domains": {"fields": {"patch": 2, "objective": "mse", "rollout_steps": 3}},
        "operator": {"levels": [level], "stem_width": 16, "condition_width": 16}, "train": {"steps": 1, **train}})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("mesh"), "scattered", builder="advection", options=GRID, points=200)


@pytest.fixture(scope="module")
def predictor(store: Store) -> Predictor:
    found = new_predictor(recipe(store), [store])
    torch.manual_seed(0)
    for parameter in found.operator.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return found


def sample(store: Store, predictor: Predictor) -> xr.Dataset:
    found: xr.Dataset = predictor.adapter("fields").open(store, "test").draw(0, *DRAWS)
    return found


def test_a_store_of_points_is_valid(store: Store) -> None:
    assert [finding for finding in validate(store) if finding.level == "error"] == []
    assert store.meta.axes["point"].places == ("point_x", "point_y")
    assert set(store.meta.moments) == set(store.meta.variables)


def test_tokens_of_so_many_points_are_refused_at_once(store: Store) -> None:
    with pytest.raises(InputError, match=r"domains\.fields\.fixed_patch.*scattered points.*leave fixed_patch out"):
        Fields.create({"fixed_patch": False}).fit(store)


def test_a_mean_of_a_grid_is_refused_of_points(store: Store) -> None:
    with pytest.raises(InputError, match=r"domains\.fields\.damped.*scattered points.*leave damped out"):
        Fields.create({"damped": True}).fit(store)


def test_details_of_cells_are_refused_of_points(store: Store) -> None:
    with pytest.raises(InputError, match=r"domains\.fields\.detail.*scattered points.*leave detail out"):
        Fields.create({"detail": True}).fit(store)


def test_points_in_and_points_out(store: Store, predictor: Predictor) -> None:
    given = sample(store, predictor)
    found = predictor.predict(given)
    assert found["tracer"].dims == ("sample", "point")
    np.testing.assert_allclose(found["point_x"].values, given["point_x"].values, atol=1e-6)
    rolled = predictor.rollout(predictor.adapter("fields").starts(store, "test")[0], 3)
    assert rolled["tracer"].dims == ("time", "point")
    assert bool(np.isfinite(rolled["tracer"]).all())


def test_the_order_of_points_says_nothing(store: Store, predictor: Predictor) -> None:
    given = sample(store, predictor)
    order = np.random.default_rng(1).permutation(given.sizes["point"])
    np.testing.assert_allclose(predictor.predict(given.isel(point=order))["tracer"].values,
                               predictor.predict(given)["tracer"].values[:, order], atol=1e-5)


def test_places_where_nothing_is_recorded_are_answered(store: Store, predictor: Predictor) -> None:
    """NaN at a point is a question: it is answered, and what others are told doesn't change."""
    given = sample(store, predictor).isel(time=[0])
    hidden = given.copy(deep=True)
    hidden["tracer"][:, 7] = np.nan
    found = predictor.predict(hidden)["tracer"].values
    assert np.isfinite(found[:, 7]).all()
    extra = xr.concat([given, hidden.isel(point=[7])], "point", data_vars="minimal")
    asked = predictor.predict(extra.assign_coords(cell_measure=("point", np.full(201, 1.0))))["tracer"].values
    even = predictor.predict(given.assign_coords(cell_measure=("point", np.full(200, 1.0))))["tracer"].values
    np.testing.assert_allclose(asked[:, :200], even, atol=2e-2 * np.abs(even).max())


def test_training_on_points_beats_persistence(store: Store, tmp_path: Path) -> None:
    trained = pretrain(recipe(store, steps=120, learning_rate=5e-3, validate_every=60), tmp_path / "run")
    rows = {(row.question, row.metric): row for row in evaluate(trained, store, "test").scores}
    one = rows["one_step", "relative_l2"]
    assert one.baseline is not None
    assert one.value < 0.7 * one.baseline


def test_one_operator_for_grids_and_points(store: Store, tmp_path: Path) -> None:
    grid = made(tmp_path, "advection", **GRID)
    for order in ([store, grid], [grid, store]):
        both = new_predictor(recipe(*order), order)
        for own in order:
            windows = both.adapter("fields").open(own, "test")
            assert "tracer" in both.predict(windows.draw(0, *DRAWS))


def test_a_checkpoint_of_grids_alone_refuses_points(store: Store, tmp_path: Path) -> None:
    grid = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=3)
    with pytest.raises(InputError, match="pretrain with this store"):
        extend(new_predictor(recipe(grid), [grid]), store, recipe(store))


def test_a_step_between_points_is_not_exported(store: Store, predictor: Predictor) -> None:
    start = predictor.adapter("fields").starts(store, "test")[0]
    with pytest.raises(InputError, match="found scattered points; expected a grid"):
        form_of(predictor, predictor.adapter("fields").initial(start))


def test_points_without_places_are_refused(store: Store, predictor: Predictor) -> None:
    given = sample(store, predictor)
    with pytest.raises(InputError, match=r"\[point_y\]: found no such coordinate"):
        predictor.predict(given.drop_vars("point_y"))
    turned = recipe(store).model_dump(mode="json")
    turned["domains"]["fields"]["augment"] = ["flip"]
    chosen = Recipe.model_validate(turned)
    with pytest.raises(InputError, match="points aren't mirrored"):
        new_predictor(chosen, [store]).adapter("fields").open(store, "train", train=True)
