"""The domain `molecules`: what is fitted, what is refused, and that nothing is lost between stores and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.cards import card
from sciml.data.store import Store
from sciml.domains.molecules.adapter import Molecules
from sciml.domains.molecules.config import MoleculesConfig
from sciml.domains.molecules.fitted import count_elements
from sciml.domains.molecules.frames import principal_axes
from sciml.domains.molecules.references import fit_references, isolated_references
from sciml.domains.molecules.scores import score_labels
from sciml.domains.molecules.windows import from_voigt, random_rotation, to_voigt, turned
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.handles.potential import at, in_float64, pack
from sciml.objectives.energy_forces import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate, unpack
from sciml.predictor import Predictor, forward
from sciml.recipe import validate
from sciml.testing.parameters import stir
from tests.handles import toy

CELL = np.array([[6.0, 0.3, 0], [0, 6.2, 0.1], [0.2, 0, 6.4]])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.store(tmp_path_factory.mktemp("domain") / "toy.zarr")


@pytest.fixture(scope="module")
def adapter(store: Store) -> Molecules:
    return toy.adapter_of(store)


def molecule(size: int = 4, **more: Any) -> xr.Dataset:
    data = {"number": ("atom", toy.NUMBERS[:size]), "position": (("atom", "xyz"), toy.TETRAHEDRON[:size])}
    return xr.Dataset(data | more, attrs={"dataset": "toy", "domain": "molecules"})


def periodic(cell: np.ndarray = CELL, flags: tuple[int, ...] = (1, 1, 1), **more: Any) -> xr.Dataset:
    return molecule(cell=(("lattice", "xyz"), cell), periodic=("lattice", np.array(flags, np.int8)), **more)


def pairs_of(first: int, second: int, number: int = 12) -> list[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    """Diatomic molecules of two elements."""
    return [(np.array([first, second]), np.array([[0, 0, 0], [0, 0, 1 + 0.01 * i]]), -500.0 - i,
             np.full((2, 3), 0.1)) for i in range(number)]


def test_one_composition_determines_a_shift_alone_and_several_determine_elements() -> None:
    counts = np.array([[2.0, 1.0], [2.0, 1.0]])
    shift = fit_references(("H", "O"), counts, np.array([-4.0, -6.0]), "sum", "doc")
    assert "one shift" in shift.note
    assert shift.predict(counts) == pytest.approx([-5, -5])
    full = fit_references(("H", "O"), np.array([[2.0, 1], [2, 2], [4, 1]]), np.array([-4.0, -7, -5]), "sum", "doc")
    assert full.note == ""
    assert full.values == pytest.approx([-0.5, -3])


def test_isolated_atoms_that_are_missing_are_named() -> None:
    with pytest.raises(InputError, match="none for O"):
        isolated_references(("H", "O"), {"H": -13.6, "O": np.nan}, "doc")
    assert isolated_references(("H",), {"H": -13.6, "C": -1.0}, "doc").predict(np.array([[2.0]])) == [-27.2]


def test_scales_and_references_come_from_the_training_split_alone(store: Store, adapter: Molecules) -> None:
    fit, train = adapter.datasets["toy"], {block.group for block in store.meta.splits.train}
    forces = np.concatenate([store.read("forces", g) for g in sorted(train)])
    assert fit.force_scale == pytest.approx(np.sqrt(np.mean(forces**2)))
    assert fit.scales["energy"] == fit.force_scale
    energies = np.array([float(store.read("energy", g)) for g in sorted(train)])
    counts = np.array([[(store.read("number", g) == z).sum() for z in (1, 6, 8)] for g in sorted(train)])
    expected = counts @ np.linalg.pinv(counts) @ energies
    assert fit.references["energy"].predict(counts) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("change", "said"), [
    ({"number": ("atom", np.array([8, 6, 1, 7]))}, "N, unknown to this checkpoint"),
    ({"number": ("atom", np.array([8, 6, 1, 0]))}, "0 of atom 3"),
    ({"position": (("atom", "xyz"), toy.TETRAHEDRON * np.nan)}, "finite places"),
    ({"position": (("atom", "xyz"), toy.TETRAHEDRON * 0.1)}, "Å apart"),
    ({"cell": (("lattice", "xyz"), CELL)}, "a cell without flags"),
    ({"periodic": ("lattice", np.ones(3, np.int8))}, "a lattice vector for each periodic direction"),
    ({"charge": ((), 1.0)}, "not told of any other charge"), ({"spin": ((), np.nan)}, "a finite number")])
def test_what_cannot_be_encoded_is_refused(adapter: Molecules, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        adapter.encode(molecule().assign(change))


@pytest.mark.parametrize("cell", [CELL * np.nan, CELL[[0, 0, 1]]])
def test_cells_that_span_nothing_are_refused(adapter: Molecules, cell: np.ndarray) -> None:
    with pytest.raises(InputError, match="independent periodic lattice vectors"):
        adapter.encode(periodic(cell))


@pytest.mark.parametrize("flags", [(1, 1, 1), (1, 0, 0), (0, 1, 1)])
def test_overlaps_across_the_faces_of_a_cell_are_refused(adapter: Molecules, flags: tuple[int, ...]) -> None:
    for which in range(3):
        place = toy.TETRAHEDRON.copy()
        place[3] = place[0] + CELL[which] + [0.1, 0, 0.1]
        sample = periodic(flags=flags).assign(position=(("atom", "xyz"), place))
        if flags[which]:
            with pytest.raises(InputError, match=r"atoms 0 and 3 0\.141 Å apart"):
                adapter.encode(sample)
        else:
            adapter.encode(sample)


def test_elements_of_another_data_set_have_no_references_here(adapter: Molecules, tmp_path: Path) -> None:
    both = adapter.fit(toy.write_molecules(tmp_path / "n.zarr", pairs_of(1, 7), name="nitrogen"))
    sample = molecule(2).assign(number=("atom", np.array([1, 7])))
    both.encode(sample.assign_attrs(dataset="nitrogen"))
    with pytest.raises(InputError, match="N, unknown to its data set toy"):
        both.encode(sample)
    with pytest.raises(ValueError, match="none of H"):
        count_elements(np.array([7]), np.array([1]), ("H",))


def test_elements_keep_their_rows_when_a_data_set_is_fitted_again(adapter: Molecules, tmp_path: Path) -> None:
    again = adapter.fit(toy.write_molecules(tmp_path / "b.zarr", pairs_of(1, 5)))
    assert adapter.frame().elements == ("H", "C", "O")
    assert again.frame().elements == ("H", "C", "O", "B")
    assert Molecules.restore(*again.state()).frame().elements == ("H", "C", "O", "B")


def test_a_truth_survives_encoding_and_decoding(store: Store, adapter: Molecules) -> None:
    windows = adapter.open(store, "test")
    rng = np.random.default_rng(0)
    samples = [windows.draw(i, rng, rng) for i in range(len(windows))]
    batch = collate([adapter.encode(sample) for sample in samples])
    truth = adapter.decode(batch, {name: target.value for name, target in batch.targets.items()})
    assert truth["energy"].values == pytest.approx([float(s["energy"]) for s in samples], abs=1e-5)
    for i, sample in enumerate(samples):
        found = truth["forces"].values[i, : sample.sizes["atom"]]
        np.testing.assert_allclose(found, sample["forces"].values, atol=1e-5)
        assert np.isnan(truth["forces"].values[i, sample.sizes["atom"]:]).all()
        assert not truth["forces_known"].values[i, sample.sizes["atom"]:].any()


@pytest.mark.parametrize("first", [0, 1])
def test_molecules_and_cells_are_trained_in_one_batch(store: Store, first: int) -> None:
    who = in_float64(toy.network(store))
    adapter = who.adapters["molecules"]
    samples = [molecule(3), periodic(stress=("voigt", np.full(6, 0.01)))]
    batch = collate([adapter.encode(samples[i]) for i in (first, 1 - first)]).to(dtype=torch.float64)
    assert batch.targets["stress"].mask.all(1).tolist() == [bool(first), not first]
    loss = objective(forward(adapter, who.operator, batch, create_graph=True), batch)
    assert loss[first] == 0  # of the molecule nothing is known
    assert loss[1 - first] > 0.1
    loss.sum().backward()
    assert [sorted(part.targets) for part in unpack(batch)] == [["energy", "forces", "stress"]] * 2


def test_stress_is_that_of_cells_with_three_periodic_directions(store: Store, adapter: Molecules) -> None:
    who = in_float64(toy.network(store))
    stress = at(who, pack(who, [periodic(), molecule()])).stress
    assert stress is not None
    assert np.abs(stress[0]).max() > 1e-4
    assert not stress[1].any()
    slab = adapter.encode(periodic(flags=(1, 1, 0), stress=("voigt", np.full(6, 0.01))))
    assert not slab.targets["stress"].mask.any()


def test_vectors_and_stress_turn_with_a_configuration() -> None:
    rotation, stress = random_rotation(np.random.default_rng(0)), np.arange(6.0)
    assert rotation @ rotation.T == pytest.approx(np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1)
    before = periodic(stress=("voigt", stress), forces=(("atom", "xyz"), np.eye(4, 3)))
    after = turned(before, rotation)
    for name in ("position", "forces", "cell"):
        assert after[name].values == pytest.approx(before[name].values @ rotation.T)
    normal = np.array([0.3, -0.5, 0.8])  # the traction on a plane turns as a vector
    assert from_voigt(after["stress"].values) @ rotation @ normal == pytest.approx(
        rotation @ from_voigt(stress) @ normal)
    assert to_voigt(from_voigt(stress)).tolist() == stress.tolist()
    assert after["number"].identical(before["number"])


def test_starts_are_different_molecules(store: Store, adapter: Molecules) -> None:
    assert sorted(s.sizes["atom"] for s in adapter.starts(store, "test")) == [3, 4]


def test_scores_are_of_what_is_known() -> None:
    truth = xr.Dataset({"energy": ("sample", [1.0, 0.0]), "energy_known": ("sample", [True, False])})
    found = score_labels({"energy": "eV"}, xr.Dataset({"energy": ("sample", [1.5, 9.0])}), truth)
    assert found["energy_mae"].tolist() == [500]


def test_frames_without_an_energy_spoil_no_score(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(18):
        place = toy.TETRAHEDRON + rng.normal(0, 0.08, (4, 3))
        energy, forces = toy.morse(place)
        rows.append((toy.NUMBERS, place, np.nan if i == 16 else energy, forces * (np.nan if i == 17 else 1)))
    made = toy.write_molecules(tmp_path / "some.zarr", rows)
    scores = {row.metric: row for row in evaluate(toy.network(made), made).scores}
    assert {name: row.samples for name, row in scores.items()} == dict.fromkeys(scores, 2)
    assert all(np.isfinite(row.value) for row in scores.values())


def cartesian(store: Store) -> Predictor:
    adapter = toy.adapter_of(store, mode="cartesian", frames=True)
    network = {**toy.NETWORK, "levels": [{"width": 16, "depth": 1, "mixers": ["full"], "head_width": 8}]}
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, network, where="test"), {"molecules": adapter.spec()})
    stir(operator, size=0.05)
    return in_float64(Predictor(operator, {"molecules": adapter}))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_forces_of_averaged_frames_are_exact_where_moments_are_equal_too(store: Store, size: int) -> None:
    who, step = cartesian(store), 1e-4
    place = np.array([[0.0, 0, 0], [0.3, 1.4, 0.9], [-1, 1, 0.2], [0.4, 3, 0]])[:size]
    packed = pack(who, [molecule(size).assign(position=(("atom", "xyz"), place))])
    found = at(who, packed).forces
    assert found is not None
    for atom, along in np.ndindex(size, 3):
        shift = torch.zeros(size, 3, dtype=torch.float64)
        shift[atom, along] = step
        ends = [at(who, packed, packed.position + sign * shift).residual[0] for sign in (1, -1)]
        assert -(ends[0] - ends[1]) / (2 * step) == pytest.approx(found[atom, along], abs=1e-6)
    assert size == 1 or np.abs(found).max() > 1e-3


def test_principal_axes_have_the_derivative_of_eigenvectors() -> None:
    made = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = (made @ made.mT).requires_grad_()
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3)
    ours, theirs = (torch.autograd.grad((axes * weight).sum(), [spread])[0]
                    for axes in (principal_axes(spread), torch.linalg.eigh(spread).eigenvectors))
    torch.testing.assert_close(ours + ours.mT, theirs + theirs.mT)


def test_frames_average_no_direct_forces() -> None:
    with pytest.raises(ValueError, match="averages energies"):
        MoleculesConfig(mode="cartesian", frames=True, forces="direct")


def test_a_model_of_other_properties_has_no_conservation_card(store: Store) -> None:
    who = toy.exact(store)
    other = Molecules.create({"properties": {"homo": "mean"}, "forces": "none"})
    assert card(replace(who, adapters={"molecules": other}), store) == []


def test_elements_of_the_test_split_alone_are_refused_not_guessed(tmp_path: Path) -> None:
    made = toy.write_molecules(tmp_path / "s.zarr", [*pairs_of(1, 8, 10), *pairs_of(1, 9, 2)], name="late")
    adapter = toy.adapter_of(made)
    assert adapter.spec().identities["element"] == ("H", "O")
    windows, rng = adapter.open(made, "test"), np.random.default_rng(0)
    with pytest.raises(InputError, match=r"F, unknown to this checkpoint.*expected elements among H, O"):
        adapter.encode(windows.draw(len(windows) - 1, rng, rng))


def test_without_forces_an_energy_has_the_scale_of_its_own_spread(store: Store) -> None:
    with_forces, without = (toy.adapter_of(store, forces=kind).datasets["toy"] for kind in ("gradient", "none"))
    assert with_forces.scales["energy"] == with_forces.force_scale > 0
    assert without.force_scale == 0
    assert 0 < without.scales["energy"] != with_forces.scales["energy"]
