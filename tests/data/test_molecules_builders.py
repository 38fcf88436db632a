"""Data of one's own: the toy potential, Langevin dynamics that can be killed, GFN2-xTB, and QM9's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.data.builders import molecular_dynamics as md
from sciml.data.builders import qm9
from sciml.data.builders.molecular_potentials import KNOWN, masses, potential, structure
from sciml.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", KNOWN)
def test_forces_of_the_toy_are_minus_its_gradient(name: str) -> None:
    molecule = structure(name)
    evaluate = potential("morse", molecule)
    place = molecule.position + 0.1 * np.random.default_rng(0).normal(size=molecule.position.shape)
    forces, step = evaluate(place)[1], 1e-5
    for index in np.ndindex(*place.shape):
        moved = np.zeros_like(place)
        moved[index] = step
        slope = (evaluate(place + moved)[0] - evaluate(place - moved)[0]) / (2 * step)
        assert forces[index] == pytest.approx(-slope, abs=1e-6)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    energy, turned = evaluate(place @ turn.T)
    assert energy == pytest.approx(evaluate(place)[0], abs=1e-9)
    np.testing.assert_allclose(turned, forces @ turn.T, atol=1e-9)


def test_dynamics_has_the_temperature_asked_for() -> None:
    """Potential energy of a nearly harmonic molecule: (3 n − 6)/2 k T above the minimum."""
    molecule = structure("water")
    options = md.Options(molecules=("water",), level_of_theory="morse", temperature_k=(100.0,), frames=700, every=10,
                         friction_per_ps=50.0)
    kept = md.simulate(molecule, 100.0, options, (0,))
    excess = kept.energies.mean() - potential("morse", molecule)(molecule.position)[0]
    assert excess == pytest.approx(1.5 * md.BOLTZMANN * 100, rel=0.15)
    centres = (masses(molecule.number)[:, None] * kept.places).sum(1)
    np.testing.assert_allclose(centres, 0, atol=1e-9)


def test_build_is_one_configuration_after_another() -> None:
    options = {"molecules": ["water", "ethanol"], "level_of_theory": "morse", "temperature_k": [200, 300], "frames": 3,
               "runs": 2, "every": 2, "equilibrate_fs": 5}
    data = md.build(options)
    assert data["atom_count"].values.tolist() == [3, 3, 9, 9] * 6
    assert data["run"].values.tolist() == [0] * 12 + [1] * 12
    assert data["temperature"].values.tolist() == [200, 300] * 12
    assert data["element"].values.tolist() == ["H", "C", "O"]
    place = np.split(data["position"].values, np.cumsum(data["atom_count"].values)[:-1])
    force = np.split(data["forces"].values, np.cumsum(data["atom_count"].values)[:-1])
    energy, forces = potential("morse", structure("ethanol"))(place[14])
    assert data["energy"].values[14] == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(force[14], forces, atol=1e-9)
    assert not np.allclose(place[2], place[14])


def test_a_build_that_was_killed_goes_on_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"molecules": ["water"], "level_of_theory": "morse", "frames": 130, "every": 1, "equilibrate_fs": 3}
    whole = md.build(options)
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "other"))
    stretch, calls = md._stretch, 0

    def killed(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        stretch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(md, "_stretch", killed)
    with pytest.raises(KeyboardInterrupt):
        md.build(options)
    xr.testing.assert_identical(md.build(options), whole)
    assert calls == 4


@pytest.mark.parametrize(("options", "words"), [
    ({"molecules": ["unobtainium"]}, r"\[molecules\]: found 'unobtainium'"),
    ({"molecules": []}, r"\[molecules\]"), ({"level_of_theory": "B3LYP"}, r"\[level_of_theory\]: found 'B3LYP'"),
    ({"temperature_k": [0.0]}, "above 0 K"), ({"temperature_k": [60000.0], "frames": 400}, "came apart, at step"),
    ({"molecules": ["CH3Cl"]}, r"\[level_of_theory\]: found morse for Cl in CH3Cl"), ({"steps": 3}, r"\[steps\]")])
def test_wrong_options_are_named(options: dict[str, object], words: str) -> None:
    if "CH3Cl" in options.get("molecules", ()):  # type: ignore[operator]
        pytest.importorskip("ase", reason="ase (the extra `molecules`) is not installed")
    with pytest.raises(InputError, match=words):
        md.build({"molecules": ["water"], "level_of_theory": "morse", "equilibrate_fs": 5} | options)


def test_xtb() -> None:
    pytest.importorskip("tblite", reason="tblite (the extra `xtb`) is not installed")
    data = md.build({"molecules": ["water"], "level_of_theory": "GFN2-xTB", "frames": 2, "every": 1,
                     "equilibrate_fs": 0})
    assert data["energy"].values == pytest.approx([-137.97, -137.97], abs=0.1)
    np.testing.assert_allclose(data["isolated_energy"].values[0], [-10.7072, -102.5218], atol=1e-3)
    np.testing.assert_allclose(data["forces"].values[:3].sum(0), 0, atol=1e-6)


def test_smiles_and_charge() -> None:
    pytest.importorskip("rdkit", reason="rdkit (the extra `rdkit`) is not installed")
    data = md.build({"molecules": [{"smiles": "[NH4+]"}], "level_of_theory": "morse", "frames": 1, "equilibrate_fs": 1})
    assert data["charge"].values.tolist() == [1]
    assert data["atom_count"].values.tolist() == [5]


ROW = ('"x",{index},"O","InChI",3,"[2,0,0,1,0]","[\'O\',\'H\',\'H\']","[[0.,0.,0.12],[0.,.76,-0.48],[0.,-0.76,-0.48]]",'
       '"[-0.6,0.3,0.3]","[1.]",1,1,1,1.85,6.31,-0.2928,0.0687,0.3615,19.0,0.021,-76.4047,-76.4,-76.39,-76.42,6.0\n')
HEAD = ("XYZ_file,Index,SMILES,InChi,N_atoms,Stoichiometry,Elements,XYZ_Ang,Mulliken_pop,Harmonic_Freq_cmi,"
        "RotA_GHz,RotB_GHz,RotC_GHz,Dipole_debye,Polarizability_bohr3,HOMO_au,LUMO_au,HOMO_LUMO_gap_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,"
        "InternalEnergy_298K_au,Enthalphy_298K_au,GibbsFreeEnergy_298K_au,Heatcapacity_Cv_cal_mol_K\n")


def tables(folder: Path, row: str = ROW) -> Path:
    for part, name in enumerate(qm9.PARTS):
        (folder / name).write_text(HEAD + "".join(row.format(index=10 * part + i) for i in range(1, 4)))
    return folder


def test_qm9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qm9, "_folder", lambda: tables(tmp_path))
    data = qm9.build({})
    assert data["molecule"].values.tolist() == [1, 2, 3, 11, 12, 13, 21, 22, 23]
    assert data["number"].values[:4].tolist() == [8, 1, 1, 8]
    assert data["position"].values[1].tolist() == [0, 0.76, -0.48]
    np.testing.assert_allclose(data["u0"], -76.4047 * 27.211386246)
    np.testing.assert_allclose(data["isolated_energy"][0], np.array([-0.500273, -75.064579]) * 27.211386246)
    assert {data[name].attrs["units"] for name in ("homo", "mu", "cv")} == {"eV", "debye", "cal/mol/K"}
    drawn = qm9.build({"molecules": 5, "seed": 3})["molecule"].values
    assert len(set(drawn)) == 5
    np.testing.assert_array_equal(drawn, qm9.build({"molecules": 5, "seed": 3})["molecule"])
    with pytest.raises(InputError, match=r"\[molecules\]: found 10; expected at most 9"):
        qm9.build({"molecules": 10})


@pytest.mark.parametrize(("old", "new", "words"), [("'O'", "'Xe'", "elements other"), ("0.3,0.3", "0.3", "molecule 1"),
                                                   ("XYZ_Ang", "Places", "a table with Index")])
def test_damaged_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, words: str) -> None:
    monkeypatch.setattr(qm9, "_folder", lambda: tables(tmp_path, ROW.replace(old, new)))
    if old in HEAD:
        for name in qm9.PARTS:
            (tables(tmp_path) / name).write_text(HEAD.replace(old, new))
        monkeypatch.setattr(qm9, "_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=words):
        qm9.build({})


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "sciml\[qm9\]"'):
        qm9.build({})
