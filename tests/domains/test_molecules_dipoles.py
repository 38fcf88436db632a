"""Dipoles and numbers of atoms: exact under rotation, learnt from labels, refused where they aren't defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.molecules.adapter import Molecules
from sciml.domains.molecules.config import MoleculesConfig
from sciml.domains.molecules.derive import dipole
from sciml.domains.molecules.windows import random_rotation, turned
from sciml.errors import InputError
from sciml.handles.potential import at, in_float64, pack
from sciml.objectives.energy_forces import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import validate
from sciml.testing.parameters import stir
from tests.handles import toy

ALL = {"energy": "sum", "dipole": "dipole", "mu": "dipole_length", "charges": "atoms"}
CHARGE = {8: -0.8, 6: 0.2, 1: 0.3}
DEBYE = 0.20819433


def rows(configurations: int = 18) -> list[dict[str, Any]]:
    """Displaced atoms whose charges depend on the element and on how far they are from the first; dipoles of these."""
    rng, made = np.random.default_rng(1), []
    for i in range(configurations):
        size = 3 if i % 3 == 2 else 4
        position = toy.TETRAHEDRON[:size] + rng.normal(0, 0.15, (size, 3))
        charges = np.array([CHARGE[int(z)] for z in toy.NUMBERS[:size]])
        charges = charges + 0.3 * np.linalg.norm(position - position[0], axis=1)
        charges -= charges.mean()
        made.append({"number": toy.NUMBERS[:size].astype(np.int32), "position": position, "charges": charges,
                     "dipole": charges @ position / DEBYE})
    return made


def charged(path: Path) -> Store:
    made, count = rows(), np.array([len(r["number"]) for r in rows()])
    dipoles = np.stack([r["dipole"] for r in made])
    data = xr.Dataset({
        "number": ("atom", np.concatenate([r["number"] for r in made])),
        "position": (("atom", "xyz"), np.concatenate([r["position"] for r in made])),
        "charges": ("atom", np.concatenate([r["charges"] for r in made])),
        "atom_count": ("configuration", count, {"role": "rows", "sample_dimension": "atom"}),
        "dipole": (("configuration", "xyz"), dipoles),
        "mu": ("configuration", np.linalg.norm(dipoles, axis=1)), "energy": ("configuration", -100.0 * count)},
        coords={"xyz": ["x", "y", "z"], "configuration": np.arange(len(made))})

    def part(start: int, stop: int) -> tuple[Block, ...]:
        return tuple(Block(group=g, start=0, stop=1) for g in range(start, stop))

    def variable(role: Any, unit: str, *dims: str) -> Variable:
        return Variable(role=role, unit=unit, dims=dims)

    return write_store(data, StoreDraft(
        domain="molecules", dataset="charged", group_dim="configuration", groups=len(made),
        variables={"number": variable("parameter", "1", "atom"),
                   "position": variable("state", "angstrom", "atom", "xyz"),
                   "charges": variable("label", "e", "atom"), "atom_count": variable("rows", "1"),
                   "dipole": variable("label", "debye", "xyz"), "mu": variable("label", "debye"),
                   "energy": variable("label", "eV")},
        axes={"xyz": AxisMeta(kind="set", unit="1")}, ragged={"atom": "atom_count"}, dt=None,
        splits=Splits(key="configuration", train=part(0, 12), validation=part(12, 15), test=part(15, 18)),
        provenance=Provenance(builder="toy", options={})), path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return charged(tmp_path_factory.mktemp("dipoles") / "charged.zarr")


def network(store: Store, **config: Any) -> Predictor:
    adapter = toy.adapter_of(store, **({"properties": ALL, "forces": "none"} | config))
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, toy.NETWORK, where="toy"), {adapter.name: adapter.spec()})
    stir(operator, size=0.05)
    return Predictor(operator, {adapter.name: adapter})


def samples_of(predictor: Predictor, store: Store, split: Any = "train") -> list[xr.Dataset]:
    windows, rng = predictor.adapter("molecules").open(store, split), np.random.default_rng(0)
    return [windows.draw(i, rng, rng) for i in range(len(windows))]


def test_a_dipole_turns_with_its_molecule_and_knows_no_origin(store: Store) -> None:
    predictor = in_float64(network(store))
    samples, rotation = samples_of(predictor, store)[:5], random_rotation(np.random.default_rng(3))
    mirror = np.diag([1.0, 1.0, -1.0])
    before = at(predictor, pack(predictor, samples))
    assert np.abs(before.dipoles["dipole"]).max() > 1e-3
    for turn in (rotation, rotation @ mirror):
        after = at(predictor, pack(predictor, [turned(s, turn) for s in samples]))
        np.testing.assert_allclose(after.dipoles["dipole"], before.dipoles["dipole"] @ turn.T, atol=1e-6)
        np.testing.assert_allclose(after.atoms["charges"], before.atoms["charges"], atol=1e-6)
        np.testing.assert_allclose(after.properties["mu"], before.properties["mu"], atol=1e-6)
    moved = at(predictor, pack(predictor, [s.assign(position=s["position"] + 7.0) for s in samples]))
    np.testing.assert_allclose(moved.dipoles["dipole"], before.dipoles["dipole"], atol=1e-6)


def test_the_dipole_of_given_charges_is_that_of_a_textbook(store: Store) -> None:
    adapter = network(store).adapter("molecules")
    batch = collate([adapter.encode(s) for s in samples_of(network(store), store)[:3]])
    q = torch.randn(1, batch.axes[0].size, 1)
    found = dipole(q, torch.zeros(1, batch.axes[0].size, 3), batch)
    segment, place = batch.axes[0].segment[0], batch.axes[0].coord[0]  # type: ignore[index]
    for s in range(3):
        own = segment == s
        expected = ((q[0, own] - q[0, own].mean()) * place[own]).sum(0)
        torch.testing.assert_close(found[s], expected)


def test_labels_survive_encoding_and_decoding(store: Store) -> None:
    predictor = network(store)
    adapter, samples = predictor.adapter("molecules"), samples_of(predictor, store, "test")
    batch = collate([adapter.encode(sample) for sample in samples])
    truth = adapter.decode(batch, {name: target.value for name, target in batch.targets.items()})
    for i, sample in enumerate(samples):
        np.testing.assert_allclose(truth["dipole"].values[i], sample["dipole"].values, rtol=1e-5)
        np.testing.assert_allclose(truth["charges"].values[i, : sample.sizes["atom"]], sample["charges"].values,
                                   atol=1e-6)
        assert truth["mu"].values[i] == pytest.approx(float(sample["mu"]), rel=1e-5)
    assert truth["charges"].dims == ("sample", "atom")
    assert not truth["charges_known"].values[np.isnan(truth["charges"].values)].any()
    restored = Molecules.restore(*adapter.state())
    assert restored.spec() == adapter.spec()


def test_they_are_learnt(store: Store) -> None:
    predictor = network(store, properties={"dipole": "dipole", "charges": "atoms"})
    adapter, operator = predictor.adapter("molecules"), predictor.operator.train()
    batch = collate([adapter.encode(sample) for sample in samples_of(predictor, store)])
    optimizer, losses = torch.optim.Adam(operator.parameters(), lr=1e-2), []
    for _ in range(120):
        optimizer.zero_grad()
        loss = objective(forward(adapter, operator, batch, create_graph=True), batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(("properties", "said"), [
    ({"mu": "dipole"}, "one vector per configuration for dipole: dipole"),
    ({"dipole": "dipole_length"}, "one number per configuration"), ({"mu": "atoms"}, "one number per atom"),
    ({"dipole": "sum"}, "one number per configuration")])
def test_a_label_of_another_shape_is_refused(store: Store, properties: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        network(store, properties=properties)


@pytest.mark.parametrize("more", [{"charge": ((), 1.0)},
                                  {"cell": (("lattice", "xyz"), 9 * np.eye(3)), "periodic": ("lattice", np.ones(3))}])
def test_ions_and_cells_have_no_dipole(store: Store, more: dict[str, Any]) -> None:
    predictor = network(store)
    with pytest.raises(InputError, match="a neutral molecule"):
        predictor.adapter("molecules").encode(samples_of(predictor, store)[0].assign(more))


@pytest.mark.parametrize("config", [{"mode": "cartesian", "properties": {"mu": "dipole_length"}, "forces": "none"},
                                    {"properties": {"energy": "dipole"}}])
def test_what_has_no_directions_has_no_dipoles(config: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        validate(MoleculesConfig, config, where="doc")


def test_ase_has_dipoles_in_its_own_unit(store: Store) -> None:
    ase = pytest.importorskip("ase")
    from sciml.handles.ase import calculator, evaluate_many

    predictor = network(store)
    sample = samples_of(predictor, store)[0]
    atoms = ase.Atoms(numbers=sample["number"].values.astype(int), positions=sample["position"].values)
    atoms.calc = calculator(predictor)
    many, = evaluate_many(predictor, [atoms])
    np.testing.assert_allclose(atoms.get_dipole_moment(), DEBYE * many["dipole"], rtol=1e-6)
    np.testing.assert_allclose(atoms.get_charges(), many["charges"])
    assert atoms.calc.results["mu"] == pytest.approx(many["mu"])
