"""Laws of potentials and of their dynamics, in float32 and float64. A law that needs locality is asked of potentials
that are local; `network` attends to all atoms of a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.cards.molecules_motion import Plan, total_energies
from sciml.cards.molecules_symmetry import doubled
from sciml.data.store import Store
from sciml.domains.molecules import dynamics
from sciml.domains.molecules.config import DynamicsConfig
from sciml.domains.molecules.windows import random_rotation, to_voigt, turned
from sciml.handles.potential import Evaluated, at, in_float64, pack
from sciml.predictor import Predictor
from tests.handles import toy

Make = Callable[[Store], Predictor]
POTENTIALS: dict[str, Make] = {"network": toy.network, "morse": toy.exact}
LOCAL = ("network", "morse")
PRECISIONS = {"float32": 1e-5, "float64": 1e-12}
every = pytest.mark.parametrize("potential", POTENTIALS)
local = pytest.mark.parametrize("potential", LOCAL)
paired = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.store(tmp_path_factory.mktemp("laws") / "toy.zarr")


def predictor(store: Store, potential: str, precision: str = "float64") -> Predictor:
    made = POTENTIALS[potential](store)
    return in_float64(made) if precision == "float64" else made


def molecule(seed: int = 0, **more: Any) -> xr.Dataset:
    position = toy.TETRAHEDRON + np.random.default_rng(seed).normal(0, 0.1, (4, 3))
    return xr.Dataset({"number": ("atom", toy.NUMBERS), "position": (("atom", "xyz"), position), **more},
                      attrs={"dataset": "toy", "domain": "molecules"})


def crystal() -> xr.Dataset:
    cell = np.array([[4.1, 0.2, 0.0], [0.0, 4.4, 0.3], [0.1, 0.0, 4.8]])
    return molecule(cell=(("lattice", "xyz"), cell), periodic=("lattice", np.ones(3, np.int8)))


def evaluated(who: Predictor, *samples: xr.Dataset) -> Evaluated:
    return at(who, pack(who, samples))


def forces(found: Evaluated) -> np.ndarray:
    assert found.forces is not None
    return found.forces


def assert_same(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, float(np.abs(theirs).max())))


@every
@paired
def test_energy_is_invariant_and_forces_turn_with_a_rotation(molecules: Store, potential: str, precision: str) -> None:
    who, rotation = predictor(molecules, potential, precision), random_rotation(np.random.default_rng(4))
    before, after = (evaluated(who, sample) for sample in (molecule(), turned(molecule(), rotation)))
    assert_same(after.residual, before.residual, PRECISIONS[precision])
    assert_same(forces(after), forces(before) @ rotation.T, PRECISIONS[precision])


@every
@paired
def test_translation_changes_nothing(molecules: Store, potential: str, precision: str) -> None:
    who = predictor(molecules, potential, precision)
    packed = pack(who, [molecule()])
    before, after = at(who, packed), at(who, packed, packed.position + 1.7)
    assert_same(after.residual, before.residual, PRECISIONS[precision])
    assert_same(forces(after), forces(before), PRECISIONS[precision])


@every
@paired
def test_permuted_atoms_have_permuted_forces(molecules: Store, potential: str, precision: str) -> None:
    who, order = predictor(molecules, potential, precision), [2, 0, 3, 1]
    before, after = (evaluated(who, sample) for sample in (molecule(), molecule().isel(atom=order)))
    assert_same(after.residual, before.residual, PRECISIONS[precision])
    assert_same(forces(after), forces(before)[order], PRECISIONS[precision])


@local
def test_distant_copies_have_twice_the_energy(molecules: Store, potential: str) -> None:
    for precision, tolerance in (("float32", 1e-5), ("float64", 1e-10)):
        who = predictor(molecules, potential, precision)
        one, two = (evaluated(who, sample) for sample in (molecule(), doubled(molecule())))
        assert abs(two.residual[0] - 2 * one.residual[0]) <= tolerance
        assert two.energy[0] == pytest.approx(2 * one.energy[0], abs=1e-3)


@local
def test_a_supercell_has_twice_the_energy(molecules: Store, potential: str) -> None:
    who = predictor(molecules, potential)
    one, two = (evaluated(who, sample) for sample in (crystal(), doubled(crystal())))
    assert two.residual[0] == pytest.approx(2 * one.residual[0], abs=1e-10)
    assert_same(forces(two), np.tile(forces(one), (2, 1)), 1e-10)
    assert one.stress is not None
    assert two.stress is not None
    assert_same(two.stress, one.stress, 1e-10)


@every
@pytest.mark.parametrize("make", [molecule, crystal])
def test_forces_are_the_negative_gradient_of_the_energy(
        molecules: Store, potential: str, make: Callable[[], xr.Dataset]) -> None:
    who, step = predictor(molecules, potential), 1e-4
    packed = pack(who, [make()])
    found = forces(at(who, packed))
    for place in np.ndindex(4, 3):
        shift = torch.zeros(4, 3, dtype=torch.float64)
        shift[place] = step
        ends = [at(who, packed, packed.position + sign * shift, packed.cell).residual[0] for sign in (1, -1)]
        assert -(ends[0] - ends[1]) / (2 * step) == pytest.approx(found[place], abs=1e-6 * np.abs(found).max())


@every
def test_stress_is_the_derivative_by_strain(molecules: Store, potential: str) -> None:
    who, step = predictor(molecules, potential), 1e-5
    packed = pack(who, [crystal()])
    assert packed.cell is not None
    volume, slope = float(torch.linalg.det(packed.cell[0])), np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        ends = []
        for sign in (1, -1):
            strain = torch.eye(3, dtype=torch.float64)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            place = packed.centre + (packed.position - packed.centre) @ strain
            ends.append(at(who, packed, place, packed.cell @ strain).residual[0])
        slope[i, j] = (ends[0] - ends[1]) / (2 * step) / volume
    found = at(who, packed).stress
    assert found is not None
    assert_same(found[0], to_voigt(slope), 1e-8)
    assert np.abs(found).max() > 1e-4


@every
def test_a_molecule_neither_pushes_nor_turns_itself(molecules: Store, potential: str) -> None:
    who = predictor(molecules, potential)
    packed = pack(who, [molecule()])
    found = forces(at(who, packed))
    assert np.abs(found.sum(0)).max() <= 1e-12 * np.abs(found).sum()
    assert np.abs(np.cross(packed.position.numpy(), found).sum(0)).max() <= 1e-12 * np.abs(found).sum()
    assert np.abs(found).max() > 1e-3


def test_energy_is_conserved_and_its_error_falls_with_the_square_of_the_step(molecules: Store) -> None:
    who = predictor(molecules, "morse")
    spreads = []
    for dt in (0.4, 0.2):
        energies = total_energies(who, [molecule()], Plan(dt, 300.0, 0), round(30 / dt))
        spreads.append(float(np.ptp(energies)))
    assert spreads[1] < 1e-3
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.1)


def test_langevin_samples_the_temperature_of_oscillators() -> None:
    """Kinetic temperature and, exactly for this integrator, the spread of places: ⟨x²⟩ = kT / K."""
    config = DynamicsConfig(thermostat="langevin", dt_fs=1.0, temperature_k=250.0, friction_per_fs=0.05)
    generator, stiffness, number = torch.Generator().manual_seed(1), 10.0, 3000
    mass = torch.full((number,), 12.0, dtype=torch.float64)
    motion = dynamics.Motion(*(torch.zeros(number, 3, dtype=torch.float64) for _ in range(2)))
    squares, kinetic = [], []
    for index in range(240):
        motion, velocity = dynamics.step(motion, -stiffness * motion.position, mass, config, first=index == 0,
                                         generator=generator)
        if index >= 120:
            squares.append(float(motion.position.square().mean()))
            kinetic.append(float(dynamics.kinetic_energy(velocity, mass).mean()))
    thermal = dynamics.BOLTZMANN * config.temperature_k
    assert np.mean(squares) == pytest.approx(thermal / stiffness, rel=0.02)
    assert np.mean(kinetic) == pytest.approx(1.5 * thermal, rel=0.03)
