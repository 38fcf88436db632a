"""The ASE calculator: what it returns, when it computes anew, what it refuses."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sciml import checkpoint
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.handles.ase import calculator, evaluate_many
from sciml.handles.potential import in_float64
from tests.handles import toy

ase = pytest.importorskip("ase")
from ase import units  # noqa: E402
from ase.calculators.calculator import PropertyNotImplementedError  # noqa: E402
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress  # noqa: E402
from ase.md.verlet import VelocityVerlet  # noqa: E402


def atoms(**options: Any) -> Any:
    moved = toy.TETRAHEDRON + np.random.default_rng(1).normal(0, 0.05, (4, 3))
    return ase.Atoms(toy.NUMBERS, moved, **options)


def test_energy_and_forces_are_the_potential_s(molecules: Store) -> None:
    some = atoms(calculator=calculator(toy.exact(molecules), double=True))
    energy, forces = toy.morse(some.positions)
    fitted = toy.adapter_of(molecules).datasets["toy"].references["energy"].predict(np.array([[2.0, 1, 1]]))[0]
    assert some.get_potential_energy() == pytest.approx(energy + fitted, abs=1e-9)
    np.testing.assert_allclose(some.get_forces(), forces, atol=1e-9)
    assert some.calc.results["free_energy"] == some.get_potential_energy(force_consistent=True)
    with pytest.raises(PropertyNotImplementedError):
        some.get_stress()


def test_stress_is_the_strain_derivative_in_ase_s_sign(molecules: Store) -> None:
    some = atoms(cell=[[4.0, 0, 0], [0.3, 4.5, 0], [0, 0.2, 5.0]], pbc=True,
                 calculator=calculator(toy.exact(molecules), double=True))
    np.testing.assert_allclose(some.get_stress(), calculate_numerical_stress(some, eps=1e-5, voigt=True), atol=1e-9)
    np.testing.assert_allclose(some.get_forces(), calculate_numerical_forces(some, eps=1e-5), atol=1e-7)
    some.set_cell(some.cell * 1.02, scale_atoms=True)
    np.testing.assert_allclose(some.get_stress(), calculate_numerical_stress(some, eps=1e-5, voigt=True), atol=1e-9)
    some.pbc = (True, True, False)
    with pytest.raises(PropertyNotImplementedError):
        some.get_stress()


def test_it_computes_anew_only_when_something_changed(molecules: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = toy.exact(molecules)
    calls = []
    forward = type(predictor).forward
    monkeypatch.setattr(type(predictor), "forward", lambda self, *a: calls.append(1) or forward(self, *a))
    some = atoms(calculator=calculator(predictor))
    first = some.get_potential_energy()
    some.get_forces()
    assert len(calls) == 1
    some.positions[0, 0] += 0.1
    assert some.get_potential_energy() != first
    assert len(calls) == 2
    some.info["charge"] = 0
    some.get_potential_energy()
    assert len(calls) == 3
    some.numbers[:] = [8, 1, 1, 1]
    assert some.get_potential_energy() > first + 900  # a carbon became hydrogen


def test_atomic_energies_sum_to_the_energy(molecules: Store) -> None:
    for config in ({}, {"mode": "cartesian"}, {"mode": "cartesian", "frames": True}):
        some = atoms(calculator=calculator(toy.network(molecules, **config), double=True))
        energies = some.get_potential_energies()
        assert energies.shape == (4,)
        assert energies.sum() == pytest.approx(some.get_potential_energy(), abs=1e-8)
    with pytest.raises(PropertyNotImplementedError):
        atoms(calculator=calculator(toy.exact(molecules))).get_potential_energies()


def test_a_committee_gives_mean_and_deviation(molecules: Store) -> None:
    one, other = toy.network(molecules), toy.exact(molecules)
    some = atoms(calculator=calculator(one, committee=[other]))
    alone = [atoms(calculator=calculator(p)) for p in (one, other)]
    energies = np.array([a.get_potential_energy() for a in alone])
    forces = np.stack([a.get_forces() for a in alone])
    assert some.get_potential_energy() == pytest.approx(energies.mean())
    np.testing.assert_allclose(some.get_forces(), forces.mean(0))
    assert some.calc.results["energy_std"] == pytest.approx(energies.std(ddof=1))
    np.testing.assert_allclose(some.calc.results["forces_std"], forces.std(0, ddof=1))


def test_many_structures_are_as_one_at_a_time(molecules: Store) -> None:
    predictor = toy.exact(molecules)
    rng = np.random.default_rng(3)
    many = [ase.Atoms(toy.NUMBERS[:k], toy.TETRAHEDRON[:k] + rng.normal(0, 0.05, (k, 3))) for k in (4, 2, 3, 4, 1)]
    many.insert(2, atoms(cell=[4, 4, 4], pbc=True))
    for limit in (1, 20, 1 << 16):
        found = evaluate_many(predictor, many, max_pairs=limit)
        assert ["stress" in one for one in found] == [False, False, True, False, False, False]
        for some, result in zip(many, found, strict=True):
            some.calc = calculator(predictor)
            assert result["energy"] == pytest.approx(some.get_potential_energy(), abs=1e-3)
            np.testing.assert_allclose(result["forces"], some.get_forces(), atol=1e-5)
            if "stress" in result:
                np.testing.assert_allclose(result["stress"], some.get_stress(), atol=1e-6)


def test_a_checkpoint_is_read_from_its_folder(molecules: Store, tmp_path: Path) -> None:
    predictor = toy.network(molecules)
    checkpoint.save(tmp_path / "model", predictor)
    ours, theirs = (atoms(calculator=calculator(source)) for source in (predictor, tmp_path / "model"))
    assert ours.get_potential_energy() == theirs.get_potential_energy()


def test_molecular_dynamics_of_ase_conserves_energy(molecules: Store) -> None:
    some = atoms(calculator=calculator(toy.exact(molecules)))
    some.set_velocities(np.random.default_rng(0).normal(0, 0.1, (4, 3)))
    before = some.get_total_energy()
    VelocityVerlet(some, 0.5 * units.fs).run(50)
    assert some.get_total_energy() == pytest.approx(before, abs=2e-3)


def test_refusals(molecules: Store) -> None:
    predictor = toy.exact(molecules)
    cases: dict[str, Any] = {
        "S, unknown to this checkpoint": ase.Atoms("SH2", toy.TETRAHEDRON[:3]),
        "nearer|apart": ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.1]]),
        "a lattice vector for each periodic direction": atoms(pbc=True),
        "not told of any other charge": atoms(info={"charge": 1}),
        "not told of any other spin": atoms(info={"spin": 3}),
        "finite places": ase.Atoms("OH", [[0, 0, 0], [0, 0, np.nan]]),
        "no atoms": ase.Atoms()}
    for message, some in cases.items():
        some.calc = calculator(predictor)
        with pytest.raises(InputError, match=message):
            some.get_potential_energy()
    some = atoms(calculator=calculator(predictor))
    some.get_potential_energy()
    some.positions[1] = some.positions[0]
    with pytest.raises(InputError, match="Å apart"):
        some.get_forces()
    with pytest.raises(InputError, match="one of toy"):
        calculator(predictor, dataset="other")
    with pytest.raises(InputError, match="properties"):
        calculator(energyless(molecules))
    quiet = calculator(toy.network(molecules, forces="none"))
    with pytest.raises(PropertyNotImplementedError):
        atoms(calculator=quiet).get_forces()


def energyless(molecules: Store) -> Any:
    predictor = toy.exact(molecules)
    adapter = predictor.adapters["molecules"]
    fields = adapter.config.model_copy(update={"properties": {"gap": "mean"}})  # type: ignore[attr-defined]
    predictor.adapters["molecules"] = type(adapter)(fields, adapter.datasets)  # type: ignore[call-arg,attr-defined]
    return predictor


def test_without_ase_it_says_how_to_get_it(molecules: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "ase":
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"sciml\[molecules\]"):
        calculator(toy.exact(molecules))


def test_a_double_is_a_copy(molecules: Store) -> None:
    import torch

    predictor = toy.network(molecules)
    in_float64(predictor)
    assert {p.dtype for p in predictor.operator.parameters()} == {torch.float32}
