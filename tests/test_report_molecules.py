"""The page about a run of molecules: parity, dynamics, the oracle's judgement, the card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.errors import InputError
from sciml.report import build, molecules
from sciml.report.page import domain_of


def write(path: Path, data: dict[str, tuple[tuple[str, ...], np.ndarray]], **attrs: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    xr.Dataset(data, attrs={"domain": "molecules", **attrs}).to_zarr(path, zarr_format=3, consolidated=False)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with predictions that are 1 meV and 20 meV/Å off, a rollout that stops, an oracle and a card."""
    (tmp_path / "recipe.yaml").write_text("name: ethanol\ndomains: {molecules: {}}\n")
    rng = np.random.default_rng(0)
    energy, forces = rng.normal(-100, 1, 12), rng.normal(0, 1, (12, 3, 3))
    forces[:, 2] = np.nan  # a molecule of two atoms
    atoms = ("sample", "atom", "xyz")
    write(tmp_path / "forecast/ethanol.zarr", {
        "energy": (("sample",), energy + 1e-3), "energy_truth": (("sample",), energy),
        "forces": (atoms, forces + 0.02), "forces_truth": (atoms, forces)})
    position = np.zeros((1, 20, 2, 3))
    position[0, :, 1, 0] = 1.5 + 0.1 * np.sin(np.arange(20))
    position[0, 15:] = np.nan
    kinetic = np.where(np.arange(20) < 15, 0.05, np.nan)[None]
    write(tmp_path / "rollout/ethanol.zarr", {
        "position": (("sample", "time", "atom", "xyz"), position), "kinetic_energy": (("sample", "time"), kinetic),
        "potential_energy": (("sample", "time"), -100 - kinetic), "time": (("sample", "time"), np.arange(20.0)[None]),
        "number": (("sample", "time", "atom"), np.full((1, 20, 2), 6.0))}, stopped={"0": 16})
    (tmp_path / "oracle").mkdir()
    one = {"edges": [1.0, 1.1, 1.2, 1.3], "model": [1.0, 2.0, 0.0], "oracle": [0.5, 2.0, 0.5], "floor_bits": 0.01}
    (tmp_path / "oracle/ethanol.json").write_text(json.dumps({
        "theory": "GFN2-xTB", "steps": 200, "dt_fs": 0.5,
        "errors": {"time_fs": [10, 20], "force_mae": [5.0, 6.0], "force_rmse": [7.0, 8.5], "energy_mae": [1.0, 2.0]},
        "distributions": [{"name": "all pairs", "divergence_bits": 0.1, **one},
                          {"name": "C–H", "divergence_bits": None, **one}]}))
    (tmp_path / "evaluation").mkdir()
    card = [{"name": "drift at constant energy", "value": 0.31, "unit": "meV/atom/ps", "limit": 0.02,
             "verdict": "fails", "note": "over 1 ps"},
            {"name": "time to failure, 300 K", "value": None, "unit": "ps", "limit": 1.0, "verdict": "open"}]
    (tmp_path / "evaluation/ethanol.json").write_text(json.dumps({"rows": [], "curves": {}, "card": card}))
    return tmp_path


def test_page(run: Path) -> None:
    page = build(run, run / "report.html").read_text(encoding="utf-8")
    for title in ("Predicted against labels, ethanol", "Molecular dynamics, ethanol",
                  "Distances beside the oracle&#39;s", "Force error along the model&#39;s dynamics, ethanol"):
        assert f"<h4>{title}" in page
    assert "<caption>Card, ethanol</caption>" in page
    assert '<td class="verdict worse">fails</td>' in page
    assert '<td class="verdict open">open</td>' in page
    assert ">Molecules</a>" in page
    assert "<h3>Molecules</h3>" in page
    assert "No rollout of fields" in page


def test_captions_hold_the_figures(run: Path) -> None:
    parity, = molecules.predicted("ethanol", run / "forecast/ethanol.zarr")
    assert "energy RMSE 1 meV, forces RMSE 20 meV/Å" in parity.caption
    motion, = molecules.moved("ethanol", run / "rollout/ethanol.zarr")
    assert "0.014 ps of 2 atoms" in motion.caption
    assert "193 K" in motion.caption  # 50 meV over 3/2 · 2 k
    assert "stopped at step 16" in motion.caption
    error, distances = molecules.consulted("ethanol", json.loads((run / "oracle/ethanol.json").read_text()))
    assert "7 meV/Å in the first, 8.5 in the last" in error.caption
    assert "all pairs 0.1 (0.01)" in distances.caption
    assert "C–H" not in distances.caption


def test_a_file_that_is_none_of_the_oracle_s_is_named(run: Path) -> None:
    (run / "oracle/other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json"):
        build(run, run / "report.html")


def test_other_domains_are_left_alone(tmp_path: Path) -> None:
    assert domain_of(write(tmp_path / "a.zarr", {"x": (("t",), np.zeros(2))}, domain="spikes")) == "spikes"
    assert molecules.predicted("a", write(tmp_path / "b.zarr", {"x": (("t",), np.zeros(2))})) == []
