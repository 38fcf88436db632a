"""Solvers go on with the stores of their builders, and chains may ask them for the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.workflow import new_predictor
from sciml import registry
from sciml.chains import Going, chain_of
from sciml.data.build import build
from sciml.data.builders._blocks import BOUNDARIES
from sciml.data.builders._channel_flow import grid_of
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import Named, Recipe
from sciml.solvers import SOLVERS, Given
from tests.e2e import tiny

BASE = {"trajectories": 3, "frames": 3, "resolution": 32, "solve_resolution": None}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "navier_stokes": ({"spin_up": 1.0, "frame_dt": 0.2}, {}, 1e-5),
    "turbulence": ({"spin_up": 0.2, "tracer": True, "viscosity": 2e-3}, {"drag": 0.25}, 1e-4),
    "burgers": ({"resolution": 64, "viscosity": 2e-2}, {}, 1e-4),
    "kuramoto_sivashinsky": ({"resolution": 64, "frame_dt": 0.5, "spin_up": 5.0, "length": 30.0}, {}, 2e-3),
    "semilinear": ({"linear": {2: -1.0, 3: [-0.5, 0.2], 4: -1.0}, "convection": 1.0, "resolution": 64, "frame_dt": 0.5,
                    "spin_up": 5.0, "length": 30.0}, {}, 2e-3),
    "reaction_diffusion": ({"spin_up": 20.0, "frame_dt": 4.0}, {"model": "gray_scott"}, 1e-4),
    "advection": ({}, {}, 1e-4),
    "wave": ({"frame_dt": 0.05, "speed": (1.0, 1.0)}, {}, 1e-4),
    "euler": ({"resolution": 16}, {}, 1e-4),
    "channel": ({"resolution": 8, "wall_cells": 12, "spin_up": 0.2, "frame_dt": 0.02, "friction_reynolds": 60.0}, {},
                1e-5),
}
DRAWS: tuple[Any, Any] = (np.random.default_rng(0), np.random.default_rng(0))


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Store, Predictor]:
    name, options = request.param, BASE | CASES[request.param][0]
    source = SourceSpec.model_validate({"name": name, "domain": "fields", "builder": name, "options": options,
                                        "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 1}}})
    store = build(source, tmp_path_factory.mktemp(name) / "s.zarr")
    recipe = Recipe.model_validate({"name": "tiny", "data": [{"store": store.url}], "operator": tiny.OPERATOR,
                                    "domains": {"fields": {"augment": []}}, "train": {"steps": 1}})
    return name, store, new_predictor(recipe, [store])


def batch_of(store: Store, predictor: Predictor) -> Any:
    adapter = predictor.adapter("fields")
    windows = adapter.open(store, "train")
    return collate([adapter.encode(windows.draw(i, *DRAWS)) for i in range(2)])


def test_every_solver_has_a_case() -> None:
    assert set(registry.names(SOLVERS)) == set(CASES)


def test_a_solver_goes_on_with_its_store(case: tuple[str, Store, Predictor]) -> None:
    name, store, predictor = case
    batch, adapter = batch_of(store, predictor), predictor.adapter("fields")
    truth = batch.targets["state"].value
    found = adapter.solved(batch, Named(name=name, options=CASES[name][1]))  # type: ignore[attr-defined]
    change = float((truth - batch.values).norm())
    assert change > 1e-3
    assert float((found - truth).norm()) < CASES[name][2] * max(change, float(truth.norm()))


def test_a_diverted_chain_has_a_gradient_through_the_solver(case: tuple[str, Store, Predictor]) -> None:
    name, store, predictor = case
    batch, adapter = batch_of(store, predictor), predictor.adapter("fields")
    torch.manual_seed(0)
    for parameter in predictor.operator.parameters():
        parameter.data += 0.005 * torch.randn_like(parameter)
    chain = chain_of(Named(name="diverted", options={"solver": {name: CASES[name][1]}, "steps": 2}))
    going = Going(adapter, lambda given: forward(adapter, predictor.operator, given),
                  registry.find("sciml.objectives", "mse"))
    losses = chain.losses([batch], going)
    assert losses.shape == (2,)
    grads = torch.autograd.grad(losses.sum(), list(predictor.operator.parameters()), allow_unused=True)
    assert all(bool(torch.isfinite(g).all()) for g in grads if g is not None)
    assert any(bool((g != 0).any()) for g in grads if g is not None)


@pytest.mark.parametrize(("solver", "message"), [
    ("navier_stoks", "found 'navier_stoks'; expected one of: advection"),
    ("kuramoto_sivashinsky", r"\[u\]: found states \['vorticity'\]"),
    ({"navier_stokes": {"step": 3}}, r"solver.navier_stokes.*unexpected keyword argument 'step'"),
    ("wave", r"\[speed\]: found forcings \['forcing'\]"),
    ("euler", r"\[density\]: found states \['vorticity'\]"),
])
def test_a_wrong_solver_is_refused(tmp_path_factory: pytest.TempPathFactory, solver: Any, message: str) -> None:
    store = tiny.navier_stokes(tmp_path_factory.mktemp("wrong") / "s.zarr", trajectories=3, frames=3)
    predictor = new_predictor(tiny.recipe(store.url), [store])
    with pytest.raises(InputError, match=message):
        predictor.adapter("fields").solved(batch_of(store, predictor), Named.model_validate(solver))  # type: ignore[attr-defined]


def test_what_fails_within_a_solver_is_not_laid_to_the_options(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tiny.navier_stokes(tmp_path_factory.mktemp("inside") / "s.zarr", trajectories=3, frames=3)
    predictor = new_predictor(tiny.recipe(store.url), [store])
    with pytest.raises(TypeError, match="'str'"):
        predictor.adapter("fields").solved(  # type: ignore[attr-defined]
            batch_of(store, predictor), Named(name="navier_stokes", options={"substeps": "many"}))


def test_other_boxes_are_refused() -> None:
    wide = Given({"vorticity": torch.zeros(1, 8, 8)}, {}, {"viscosity": torch.ones(1)}, (2.0, 2.0))
    with pytest.raises(InputError, match="the unit square"):
        registry.find(SOLVERS, "navier_stokes")(wide, 0.1)
    walls = replace(wide, lengths=(1.0, 1.0), periodic=(True, False))
    with pytest.raises(InputError, match="an axis with ends"):
        registry.find(SOLVERS, "navier_stokes")(walls, 0.1)


def test_uneven_grids_are_refused_where_they_can_not_be_solved() -> None:
    uneven = {1: torch.tensor([0.1, 0.2, 0.4, 0.8])}
    flow = Given({"vorticity": torch.zeros(1, 4, 4)}, {}, {"viscosity": torch.ones(1)}, (1.0, 1.0), uneven=uneven)
    with pytest.raises(InputError, match=r"\[y\]: found uneven spacings of 4 cells; expected an even grid"):
        registry.find(SOLVERS, "navier_stokes")(flow, 0.1)


def walled(y: torch.Tensor | None, **changes: Any) -> Given:
    states = {f"velocity_{axis}": torch.zeros(1, 6, 8, 6, dtype=torch.float64) for axis in "xyz"}
    walls = {f"boundary_y_{end}": torch.tensor([float(BOUNDARIES["wall"])]) for end in ("low", "high")}
    given = Given(states, {}, {"friction_reynolds": torch.tensor([10.0]), **walls}, (3.0, 2.0, 1.5),
                  (True, False, True), {} if y is None else {1: y})
    return replace(given, **changes)


def test_a_channel_at_rest_is_driven_by_its_pressure_gradient() -> None:
    """u = t, but for viscosity at the walls."""
    y = torch.as_tensor(grid_of((6, 8, 6), (3.0, 1.5), 1.9).centres)
    later = registry.find(SOLVERS, "channel")(walled(y), 0.01)
    middle = later["velocity_x"][0, :, 3:5]
    torch.testing.assert_close(middle, torch.full_like(middle, 0.01), rtol=1e-3, atol=0)
    assert float(later["velocity_y"].abs().max()) < 1e-12


@pytest.mark.parametrize(("given", "message"), [
    (walled(None), r"\[y\]: found 8 cells, the first one at 0.125"),
    (walled(torch.linspace(0.01, 1.9, 8).double() ** 1.2), r"\[y\]: found 8 cells.*expected faces at 1 \+ tanh"),
    (walled(None, periodic=(True, True, True)), r"expected walls along y alone"),
    (walled(None, parameters={}), r"\[friction_reynolds\]"),
])
def test_other_channels_are_refused(given: Given, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.find(SOLVERS, "channel")(given, 0.01)
