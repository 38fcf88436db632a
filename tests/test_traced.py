"""Gradients and forces as recorded programs equal those that autograd computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sciml import registry
from sciml.chains import chain_of
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.mixers import cluster
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import Named
from sciml.sampling import Source
from sciml.tokens import TokenBatch
from sciml.traced import TracedForward, TracedGradients, compile_forward, form_of
from sciml.train import traced_gradients
from tests.handles import toy


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.store(tmp_path_factory.mktemp("molecules") / "toy.zarr")


@pytest.fixture
def predictor(molecules: Store) -> Predictor:
    return toy.network(molecules)


def batch_of(predictor: Predictor, store: Store, *groups: int) -> TokenBatch:
    adapter = predictor.adapter("molecules")
    rng = torch.zeros(0).numpy()
    windows = adapter.open(store, "train")
    return collate([adapter.encode(windows.draw(g, rng, rng)) for g in groups])  # type: ignore[arg-type]


def test_a_recorded_gradient_is_that_of_every_batch_of_its_form(predictor: Predictor, molecules: Store) -> None:
    adapter, operator = predictor.adapter("molecules"), predictor.operator.train()
    loss = registry.find("sciml.objectives", adapter.objective)
    traced = TracedGradients(adapter, operator, loss, backend="eager")
    for groups in ((0, 1), (3, 4)):
        batch = batch_of(predictor, molecules, *groups)
        operator.zero_grad()
        value = traced(batch, 0.5)
        found = {name: p.grad for name, p in operator.named_parameters()}
        operator.zero_grad()
        expected = loss(forward(adapter, operator, batch, create_graph=True), batch).mean()
        (0.5 * expected).backward()
        torch.testing.assert_close(value, expected.detach())
        for name, parameter in operator.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("chain", "programs"), [
    (Named(name="direct"), 1), (Named(name="direct", options={"noise": 0.1}), 0),
    (Named(name="diverted", options={"solver": "burgers"}), 0)], ids=lambda value: getattr(value, "name", value))
def test_what_a_chain_adds_to_one_step_is_not_recorded_away(predictor: Predictor, molecules: Store, chain: Named,
                                                            programs: int) -> None:
    adapter = predictor.adapter("molecules")
    source = Source("toy", adapter, adapter.open(molecules, "train"), 2, 1.0, chain_of(chain))
    recipe = SimpleNamespace(train=SimpleNamespace(precision="float32"))
    run: Any = SimpleNamespace(predictor=predictor, sources=(source,), ranks=SimpleNamespace(world=1), recipe=recipe,
                               place=lambda batch: batch)
    assert len(traced_gradients(run)) == programs


def test_a_recorded_forward_gives_energy_and_forces(predictor: Predictor, molecules: Store) -> None:
    one, two = (batch_of(predictor, molecules, g) for g in (0, 1))
    program = TracedForward(predictor.adapter("molecules"), predictor.operator, one, backend="eager")
    found, expected = program(two.axes[0].coord), predictor.forward(two)
    for head in expected.heads:
        torch.testing.assert_close(found[head], expected[head])


def test_forms_tell_sizes_apart_and_know_no_cells(predictor: Predictor, molecules: Store) -> None:
    four, other, three = (form_of(batch_of(predictor, molecules, g)) for g in (0, 1, 2))
    assert four == other != three
    from dataclasses import replace
    batch = batch_of(predictor, molecules, 0)
    periodic = replace(batch, axes=(replace(batch.axes[0], period=torch.eye(3)[None]),))
    assert form_of(periodic) is None
    double = replace(batch, axes=(replace(batch.axes[0], coord=batch.axes[0].coord.double()),))
    assert form_of(double) != form_of(batch)
    with pytest.raises(InputError, match=r"compile.*periodic cell"):
        compile_forward(predictor, periodic)


def test_what_depends_on_the_places_is_refused(predictor: Predictor, molecules: Store,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large molecules the neighbours are looked for anew at every step."""
    monkeypatch.setattr(cluster, "MOST_DENSE", 2)
    adapter = predictor.adapter("molecules")
    loss = registry.find("sciml.objectives", adapter.objective)
    batch = batch_of(predictor, molecules, 0)
    with pytest.raises(InputError, match=r"train.compile=false"):
        TracedGradients(adapter, predictor.operator, loss, backend="eager")(batch, 1.0)
    with pytest.raises(InputError, match=r"compile=False"):
        TracedForward(adapter, predictor.operator, batch, backend="eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore::UserWarning")
@pytest.mark.slow
def test_a_compiled_calculator_gives_the_same_forces(predictor: Predictor, tmp_path: Path) -> None:
    ase = pytest.importorskip("ase")
    from sciml.handles.ase import calculator

    atoms = ase.Atoms(numbers=toy.NUMBERS, positions=toy.TETRAHEDRON)
    results = []
    for compiled in (False, True):
        atoms.calc = calculator(predictor, compile=compiled)
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert abs(results[0][0] - results[1][0]) < 1e-4
    assert abs(results[0][1] - results[1][1]).max() < 1e-4
