"""The conservation card: an exact potential passes, and every law that is broken on purpose is found broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sciml import checkpoint, cli, report
from sciml.cards import card
from sciml.cards.molecules_motion import Plan, total_energies
from sciml.cards.molecules_symmetry import doubled
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.handles.bonds import RADII, bonds_of
from sciml.handles.potential import pack
from sciml.predictor import Predictor
from sciml.tokens import Outputs, TokenBatch
from tests.handles import toy

SHORT = ("energy_ps=0.02", "failure_ps=0.01", "failure_k=[300.0]")
STATIC = ("parts=[symmetry, derivatives]",)


def rows(predictor: Predictor, store: Store, *assignments: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in card(predictor, store, "test", assignments or SHORT)}


def fails(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, row in found.items() if row["verdict"] == "fails"}


class Spoiled(nn.Module):
    """The Morse potential with something added to its energy, given the batch and per-atom coordinates."""

    def __init__(self, inner: nn.Module, added: Callable[[TokenBatch, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.added = inner, added
        self.specs = inner.specs

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        coord = batch.axes[0].coord[0]
        more = self.added(batch, coord)
        segment = batch.axes[0].segment
        assert segment is not None
        total = more.new_zeros(batch.num_segments).index_add(0, segment[0], more)
        return Outputs({"energy": self.inner(batch)["energy"] + total[:, None]})


def spoiled(store: Store, added: Callable[[TokenBatch, torch.Tensor], torch.Tensor]) -> Predictor:
    predictor = toy.exact(store)
    predictor.operator = Spoiled(predictor.operator, added)  # type: ignore[assignment]
    return predictor


def test_an_exact_potential_passes(molecules: Store) -> None:
    ticks: list[tuple[int, int]] = []
    made = card(toy.exact(molecules), molecules, "test", SHORT, lambda done, of: ticks.append((done, of)))
    found = {row["name"]: row for row in made}
    assert fails(found) == set()
    assert len(found) == 17
    assert all(row["limit"] is not None and row["unit"] for row in found.values())
    assert found["time to failure, 300 K"]["value"] == pytest.approx(0.01)
    assert ticks[-1] == (5, 5)


def test_direct_forces_have_a_curl(molecules: Store) -> None:
    found = rows(toy.network(molecules, forces="direct"), molecules, *STATIC)
    assert {"curl of the forces, float64", "forces less central differences, float64"} <= fails(found)
    assert found["curl of the forces, float64"]["value"] > 0.01
    assert "rotation error, float64" not in fails(found)


def test_a_direction_in_space_breaks_rotation_and_torque(molecules: Store) -> None:
    found = rows(spoiled(molecules, lambda _, x: 3 * (x[:, 0] - x[:, 0].mean()).square()), molecules, *STATIC)
    assert {"rotation error, float32", "net torque, float64"} <= fails(found)
    assert "forces less central differences, float64" not in fails(found)
    assert "curl of the forces, float64" not in fails(found)


def test_an_origin_breaks_translation_and_net_force(molecules: Store) -> None:
    found = rows(spoiled(molecules, lambda _, x: x.sum(-1)), molecules, *STATIC)
    assert {"translation error, float64", "net force, float32"} <= fails(found)


def test_the_order_of_atoms_breaks_permutation(molecules: Store) -> None:
    def first_counts(_: TokenBatch, x: torch.Tensor) -> torch.Tensor:
        return (torch.arange(len(x)) % 4 == 0) * (x - x.mean(0)).square().sum(-1)

    assert "permutation error, float64" in fails(rows(spoiled(molecules, first_counts), molecules, *STATIC))


def test_a_mean_is_not_extensive(molecules: Store) -> None:
    def shared(batch: TokenBatch, x: torch.Tensor) -> torch.Tensor:
        segment = batch.axes[0].segment
        assert segment is not None
        counts = segment[0].bincount(minlength=batch.num_segments)
        return (1 / counts.to(x.dtype))[segment[0]] + 0 * x.sum(-1)

    assert fails(rows(spoiled(molecules, shared), molecules, *STATIC)) == {"extensivity, float32",
                                                                           "extensivity, float64"}


def test_a_cutoff_without_envelope_is_not_smooth(molecules: Store) -> None:
    def cut(batch: TokenBatch, x: torch.Tensor) -> torch.Tensor:
        apart = (x[:, None] - x[None] + 1e-9).norm(dim=-1)
        segment = batch.axes[0].segment
        assert segment is not None
        same = segment[0][:, None] == segment[0][None]
        return torch.where(same & (apart < 0.9), 5 * (apart - 0.9).square(), 0.0).sum(-1)

    found = rows(spoiled(molecules, cut), molecules, "parts=[smoothness]")
    assert fails(found) == {"jump of the second derivative, float64"}


def test_a_repulsive_molecule_fails_early_and_a_long_step_blows_up(molecules: Store) -> None:
    def apart(_: TokenBatch, x: torch.Tensor) -> torch.Tensor:
        return -40 * (x - x.mean(0)).square().sum(-1)

    found = rows(spoiled(molecules, apart), molecules, "parts=[failure]", "failure_ps=0.2")
    assert fails(found) == {"time to failure, 300 K", "time to failure, 500 K"}
    assert 0 < found["time to failure, 300 K"]["value"] < 0.2
    assert "changed by more than 0.5 Å" in found["time to failure, 300 K"]["note"]

    def infinite(_: TokenBatch, x: torch.Tensor) -> torch.Tensor:
        return torch.where((x - x.mean(0)).norm(dim=-1) > 0.16, torch.inf, 0.0) * x.sum(-1)

    found = rows(spoiled(molecules, infinite), molecules, "parts=[energy, failure]", "energy_ps=0.2", "failure_ps=0.2")
    assert np.isnan(found["drift at constant energy"]["value"])
    assert fails(found) == set(found)


def test_energies_are_of_one_time_each(molecules: Store) -> None:
    predictor = toy.exact(molecules)
    samples = predictor.adapters["molecules"].starts(molecules, "test")
    energies = total_energies(predictor, samples, Plan(0.5, 300.0, 0), 20)
    assert energies.shape == (20, len(samples))
    assert (energies.std(0) < 1e-3).all()
    assert np.ptp(energies[0]) > 10  # molecules of different size have other references


def test_no_card_where_there_is_none(molecules: Store) -> None:
    assert card(toy.network(molecules, forces="none"), molecules) == []
    with pytest.raises(InputError, match="energy_ps"):
        card(toy.exact(molecules), molecules, "test", ("energy_ps=-1",))
    with pytest.raises(InputError, match="keys of CardConfig"):
        card(toy.exact(molecules), molecules, "test", ("length=1",))


def test_an_evaluation_prints_the_card_and_the_report_shows_it(
        molecules: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    checkpoint.save(run / "checkpoints" / "best", toy.network(molecules))
    call = ["evaluate", str(run), "--data", molecules.url]
    assert cli.run([*call, "--card", "parts=[derivatives]"]) == 0
    shown = capsys.readouterr().out
    assert "Card" in shown
    assert "curl of the forces, float64" in shown
    written = json.loads((run / "evaluation" / "toy.json").read_text())
    assert [row["verdict"] for row in written["card"]] == ["holds", "holds"]
    with xr.open_zarr(run / "forecast" / "toy.zarr", consolidated=False) as forecast:
        assert {"energy", "energy_truth", "forces", "forces_truth"} <= set(forecast)
    page = report.build(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Card, toy" in page
    assert "Predicted against labels, toy" in page
    assert cli.run([*call, "--no-card", "--json"]) == 0
    assert "card" not in json.loads(capsys.readouterr().out)
    assert cli.run([*call, "--card", "pace=1"]) == 2


def test_bonds_across_the_faces_of_a_cell_are_bonds(molecules: Store) -> None:
    predictor = toy.exact(molecules)
    sample = xr.Dataset({"number": ("atom", [8, 1]), "position": (("atom", "xyz"), [[0.2, 1, 1], [3.6, 1, 1.0]]),
                         "cell": (("lattice", "xyz"), 4.0 * np.eye(3)), "periodic": ("lattice", np.ones(3, np.int8))},
                        attrs={"dataset": "toy"})
    bonds = bonds_of(predictor, pack(predictor, [sample]))
    assert len(bonds.length) == 1
    assert bonds.length[0] == pytest.approx(0.6, abs=1e-5)
    np.testing.assert_allclose(bonds.lengths(sample["position"].values), [0.6])
    twice = doubled(sample)
    assert twice.sizes["atom"] == 4
    np.testing.assert_allclose(twice["cell"].values.diagonal(), [8, 4, 4])


def test_radii_are_those_of_ase() -> None:
    data = pytest.importorskip("ase.data")
    assert np.abs(RADII - data.covalent_radii[: len(RADII)]).max() < 1e-9


def test_periodic_cells_have_a_card(tmp_path: Path, molecules: Store) -> None:
    from sciml.cards.molecules_derivatives import smoothness
    from sciml.cards.molecules_symmetry import Precision, symmetries
    from sciml.handles.potential import in_float64

    predictor = in_float64(toy.exact(molecules))
    sample = xr.Dataset({"number": ("atom", toy.NUMBERS), "position": (("atom", "xyz"), toy.TETRAHEDRON + 1.3),
                         "cell": (("lattice", "xyz"), [[4.2, 0, 0], [0.5, 4, 0], [0, 0, 4.5]]),
                         "periodic": ("lattice", np.ones(3, np.int8))}, attrs={"dataset": "toy"})
    entries = symmetries(predictor, [sample], Precision("float64", 1e-9, 1e-8), 0)
    assert {entry.verdict for entry in entries} == {"holds"}
    assert not any("torque" in entry.name for entry in entries)
    assert smoothness(predictor, sample) == []
