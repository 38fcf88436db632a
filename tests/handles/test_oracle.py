"""The oracle in the loop: only for labels of its own theory; of a perfect model it finds nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sciml import checkpoint, cli
from sciml.cards.molecules_motion import with_dynamics
from sciml.data.store import Store
from sciml.domains.molecules.adapter import Molecules
from sciml.errors import InputError
from sciml.handles.distributions import all_pairs, distances, histogram, jensen_shannon
from sciml.handles.oracle import Plan, consult, rows_of
from sciml.handles.xtb import HARTREE_EV, Oracle, oracle_of
from sciml.predictor import Predictor
from sciml.tokens import Outputs, TokenBatch
from tests.handles import toy

pytest.importorskip("tblite", reason="tblite, the extra xtb, isn't installed")
WATER = np.array([[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]])
NUMBERS = np.array([8, 1, 1])


def store(path: Path, theory: str = "GFN2-xTB", factor: float = 1.0) -> Store:
    rng, oracle, rows = np.random.default_rng(0), Oracle(NUMBERS), []
    for _ in range(8):
        position = WATER + rng.normal(0, 0.05, (3, 3))
        energy, forces = oracle.label(position)
        rows.append((NUMBERS, position, factor * energy, factor * forces))
    return toy.write_molecules(path, rows, name="water", theory=theory)


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store(tmp_path_factory.mktemp("water") / "water.zarr")


class Perfect(nn.Module):
    """The oracle in the operator's place."""

    def __init__(self, adapter: Molecules) -> None:
        super().__init__()
        self.fit, self.cutoff = adapter.datasets["water"], adapter.config.cutoff_angstrom
        self.specs = {adapter.name: adapter.spec()}
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        coord, made = batch.axes[0].coord[0], []
        references = self.fit.references["energy"].predict(np.array([[2.0, 1.0]]))[0]
        for place in coord.split(3):
            energy, forces = Oracle(NUMBERS).label(self.cutoff * place.detach().numpy())
            linear = self.cutoff * (torch.from_numpy(-forces) * (place - place.detach())).sum()
            made.append((energy - references + linear) / self.fit.scales["energy"])
        return Outputs({"energy": self.one * torch.stack(made)[:, None]})


def test_energy_and_forces_of_water() -> None:
    """The energy is tblite's own figure; forces are its slope."""
    oracle, step = Oracle(NUMBERS), 1e-4
    energy, forces = oracle.label(WATER)
    assert energy / HARTREE_EV == pytest.approx(-5.0703, abs=1e-3)
    moved = np.zeros((3, 3))
    moved[1, 1] = step
    slope = (oracle.label(WATER + moved)[0] - oracle.label(WATER - moved)[0]) / (2 * step)
    assert forces[1, 1] == pytest.approx(-slope, abs=1e-3)
    assert np.abs(forces.sum(0)).max() < 1e-9
    charged = oracle_of(xr.Dataset({"number": ("atom", NUMBERS), "position": (("atom", "xyz"), WATER),
                                    "charge": ((), 1.0), "spin": ((), 2.0)}))
    assert 8 < charged.label(WATER)[0] - energy < 25  # the cation costs its ionisation energy


def test_of_a_perfect_model_it_finds_nothing(water: Store) -> None:
    adapter = toy.adapter_of(water)
    perfect = Predictor(Perfect(adapter), {adapter.name: adapter})  # type: ignore[arg-type]
    ticks: list[tuple[int, int]] = []
    found = consult(with_dynamics(perfect, thermostat="langevin"), water, "test", Plan(20, 10, 2),
                    lambda done, of: ticks.append((done, of)))
    assert ticks[-1] == (42, 42)
    assert found["stopped"] is None
    assert found["errors"]["time_fs"] == [5.0, 10.0]
    assert max(found["errors"]["force_rmse"]) < 0.1
    assert max(found["errors"]["energy_mae"]) < 0.1
    assert [one["name"] for one in found["distributions"]] == ["all pairs", "H–O"]
    assert max(one["divergence_bits"] for one in found["distributions"]) < 0.01
    assert found["store"]["frames"] > 0
    assert found["store"]["oracle"]["force_rmse"] < 0.1
    assert max(found["store"]["model"].values()) < 0.1
    assert "model's force_rmse" in " ".join(row["figure"] for row in rows_of(found))
    assert {row["figure"] for row in rows_of(found)} >= {"force_mae", "divergence of distances, H–O"}


def test_it_judges_only_what_was_trained_on_its_labels(water: Store, tmp_path: Path) -> None:
    for theory, message in (("PBE-D3", "PBE-D3"), ("", "none recorded"), ("GFN1-xTB", "GFN1-xTB")):
        other = store(tmp_path / f"{theory or 'none'}.zarr", theory)
        with pytest.raises(InputError, match=message):
            consult(toy.network(other), other, "test", Plan(5, 5))
    wrong = store(tmp_path / "hartree.zarr", factor=1 / HARTREE_EV)
    with pytest.raises(InputError, match="check units"):
        consult(toy.network(wrong), wrong, "test", Plan(5, 5))
    with pytest.raises(InputError, match="periodic"):
        oracle_of(xr.Dataset({"number": ("atom", NUMBERS), "periodic": ("lattice", [1, 1, 1])}))


def test_on_the_command_line(water: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "run" / "checkpoints" / "best", toy.network(water))
    call = ["oracle", str(tmp_path / "run"), "--data", water.url, "--steps", "20", "--every", "5",
            "domains.molecules.dynamics.dt_fs=0.02"]
    assert cli.run([*call, "domains.molecules.dynamics.temperature_k=100", "-o", str(tmp_path / "a.svg")]) == 0
    shown = capsys.readouterr().out
    assert "force_rmse" in shown
    assert shown.splitlines()[-1] == f"next: sciml report {tmp_path / 'run'}"
    written = json.loads((tmp_path / "run" / "oracle" / "water.json").read_text())
    assert written["temperature_k"] == 100
    assert written["thermostat"] == "langevin"
    assert len(written["errors"]["force_mae"]) == 4
    svg = (tmp_path / "a.svg").read_text()
    assert svg.startswith("<svg xmlns=")
    assert "Distances beside the oracle" in svg
    assert cli.run([*call, "-o", str(tmp_path / "a.pdf")]) == 2
    assert cli.run([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["theory"] == "GFN2-xTB"


def test_distributions() -> None:
    """Two Gaussians a standard deviation apart; the divergence of equal samples falls with their number."""
    rng = np.random.default_rng(0)
    one, same, other = (histogram(rng.normal(mean, 0.1, 20000), 0.02).counts for mean in (1.5, 1.5, 1.6))
    assert jensen_shannon(one, same) < 2e-3
    assert jensen_shannon(one, other) == pytest.approx(0.160, abs=0.01)
    assert np.isnan(jensen_shannon(one, 0 * one))
    np.testing.assert_allclose(distances(WATER[None], all_pairs(3))[0, 2], 1.526)
    assert histogram(np.array([1.0, 2.0]), 0.05).density.sum() * 0.05 == pytest.approx(1)
