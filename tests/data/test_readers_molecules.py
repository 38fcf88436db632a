"""Readers of molecules: what they make of each format, on one layout."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml

from sciml.data.build import build
from sciml.data.readers import _molecules_frames, read, recognise
from sciml.data.source import SourceSpec
from sciml.errors import InputError


def source(*paths: Path, missing: str = "refuse", **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "molecules", "files": [str(p) for p in paths],
                                      "options": options, "missing": missing})


def look(*paths: Path, **options: Any) -> xr.Dataset:
    return read(source(*paths, **options), list(paths)).compute()


def atoms_of(data: xr.Dataset, name: str) -> list[np.ndarray]:
    """A ragged variable, by configuration."""
    return np.split(data[name].values, np.cumsum(data["atom_count"].values)[:-1])


def ase_frames(count: int = 7, seed: int = 0) -> list[Any]:
    """Molecules and crystals with energy, forces and, where periodic, stress."""
    pytest.importorskip("ase", reason="ase (the extra `molecules`) is not installed")
    from ase.build import bulk, molecule
    from ase.calculators.singlepoint import SinglePointCalculator

    rng, made = np.random.default_rng(seed), list[Any]()
    for i in range(count):
        atoms = bulk("NaCl", "rocksalt", a=5.6) if i % 3 == 2 else molecule(("H2O", "CH3CH2OH")[i % 2])
        atoms.rattle(0.05, rng=rng)
        results: dict[str, Any] = {"energy": float(rng.normal()), "forces": rng.normal(size=(len(atoms), 3))}
        if atoms.pbc.any():
            results["stress"] = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, **results)
        made.append(atoms)
    return made


def check_frames(data: xr.Dataset, frames: Sequence[Any], tolerance: float = 0.0) -> None:
    """A data set holds what frames of ASE hold."""
    assert data["atom_count"].values.tolist() == [len(f) for f in frames]
    for i, (number, position, forces) in enumerate(zip(*(atoms_of(data, n) for n in ("number", "position", "forces")))):
        np.testing.assert_array_equal(number, frames[i].numbers)
        np.testing.assert_allclose(position, frames[i].positions, rtol=0, atol=tolerance)
        np.testing.assert_allclose(forces, frames[i].get_forces(), rtol=0, atol=tolerance)
        assert data["energy"].values[i] == pytest.approx(frames[i].get_potential_energy(), abs=1e-12)
        periodic = bool(frames[i].pbc.any())
        np.testing.assert_allclose(data["cell"].values[i], np.array(frames[i].cell) * periodic, atol=1e-8)
        np.testing.assert_array_equal(data["periodic"].values[i], frames[i].pbc)
        stress = data["stress"].values[i]
        np.testing.assert_allclose(stress, frames[i].get_stress() if periodic else np.full(6, np.nan), atol=1e-8)
    assert data["element"].values.tolist() == ["H", "C", "O", "Na", "Cl"]
    assert data["molecule"].values.tolist() == [[0, 1, 2, 1, 0, 2, 0][i] for i in range(len(frames))]


def test_extxyz_is_what_ase_wrote(tmp_path: Path) -> None:
    frames = ase_frames()
    from ase.io import write

    write(tmp_path / "a.xyz", frames, format="extxyz")
    data = look(tmp_path / "a.xyz")
    check_frames(data, frames, 1e-8)
    assert data["stress"].dims == ("configuration", "voigt")
    assert data["voigt"].values.tolist() == ["xx", "yy", "zz", "yz", "xz", "xy"]
    roles = {str(n): (v.attrs["role"], v.attrs["units"]) for n, v in data.data_vars.items()}
    assert roles["forces"] == ("label", "eV/angstrom")
    assert roles["stress"] == ("label", "eV/angstrom^3")
    assert roles["position"] == ("state", "angstrom")
    assert roles["number"] == ("parameter", "1")


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ase_frames(9)
    from ase.io import write

    write(tmp_path / "a.xyz", frames, format="extxyz")
    whole = look(tmp_path / "a.xyz")
    monkeypatch.setattr(_molecules_frames, "BLOCK_ATOMS", 10)
    lazy = read(source(tmp_path / "a.xyz"), [tmp_path / "a.xyz"])
    assert len(lazy["position"].chunks[0]) > 3  # type: ignore[index]
    xr.testing.assert_identical(lazy.compute(), whole)


XYZ = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} smiles=O {more}
O 0 0 0.12 1 0 0
H 0 0.76 -0.48 -0.5 0 1e-1
H 0 -0.76 -0.48 -0.5 0 -1e-1
"""
ALONE = "1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom energy={energy}\n{symbol} 0 0 0\n"


def xyz(path: Path, *texts: str) -> Path:
    path.write_text("".join(texts))
    return path


def water(energy: object = -2.0, more: str = "") -> str:
    return XYZ.format(energy=energy, more=more)


def test_isolated_atoms_become_references(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", water(-20), ALONE.format(energy=-1, symbol="H"), water(-21),
               ALONE.format(energy=-15, symbol="O"))
    data = look(path)
    assert data.sizes["configuration"] == 2
    assert data["isolated_energy"].values.tolist() == [[-1.0, -15.0]] * 2
    assert data["energy"].values.tolist() == [-20, -21]
    other = xyz(tmp_path / "atoms.xyz", "1\nenergy=-1\nH 0 0 0\n", "1\nenergy=-15\nO 0 0 0\n")
    by_file = look(xyz(tmp_path / "b.xyz", water(-20), water(-21)), other, isolated="atoms.xyz")
    by_option = look(tmp_path / "b.xyz", isolated={"H": -1.0, "O": -15.0})
    np.testing.assert_array_equal(by_file["isolated_energy"], data["isolated_energy"])
    np.testing.assert_array_equal(by_option["isolated_energy"], data["isolated_energy"])


def test_units_are_converted_and_nothing_is_subtracted(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", water(-76.4), water(-76.3))
    data = look(path, energy_unit="Hartree", length_unit="bohr", force_unit="Hartree/bohr", energy_of="configuration",
                isolated={"H": -13.6, "O": -2043.0})
    np.testing.assert_allclose(data["energy"], np.array([-76.4, -76.3]) * 27.211386246)
    np.testing.assert_allclose(data["position"].values[0], [0, 0, 0.12 * 0.529177210])
    np.testing.assert_allclose(data["forces"].values[0, 0], 51.422067, rtol=1e-6)
    per_atom = look(path, energy_of="atom", energy_unit="kcal/mol")
    np.testing.assert_allclose(per_atom["energy"][0], -76.4 * 3 * 0.0433641042)
    np.testing.assert_allclose(per_atom["forces"].values[0, 0], 1.0)


def test_missing_labels_are_nan_and_counted(tmp_path: Path) -> None:
    bare = "3\nProperties=species:S:1:pos:R:3 energy=-2.1\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
    path = xyz(tmp_path / "a.xyz", water(), bare, water("NaN"), bare.replace("energy=-2.1", "key=1"))
    data = look(path)
    assert np.isnan(data["energy"].values).tolist() == [False, False, True, True]
    assert [bool(np.isnan(f).all()) for f in atoms_of(data, "forces")] == [False, True, False, True]
    notes = " ".join(data.attrs["notes"])
    assert "2 of 4 configurations have no forces" in notes
    assert "2 of 4 configurations have no energy" in notes
    assert data["molecule"].values.tolist() == [0, 1, 0, 1]


def test_labels_charge_and_spin(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", water(more='dipole="0 0 1.5" gap=7.5 charge=-1 spin=2'),
               water(more='dipole="0 1 0.5" gap=7.25 charge=0 spin=1'))
    data = look(path, labels={"dipole": {"key": "dipole", "unit": "e*angstrom"}, "gap": {"key": "gap", "unit": "eV"}})
    assert data["dipole"].dims == ("configuration", "xyz")
    assert data["dipole"].attrs == {"role": "label", "units": "e*angstrom"}
    assert data["gap"].values.tolist() == [7.5, 7.25]
    assert data["charge"].values.tolist() == [-1, 0]
    assert data["spin"].values.tolist() == [2, 1]
    assert data["spin"].attrs["role"] == "parameter"


def test_virials_are_minus_stress_times_volume(tmp_path: Path) -> None:
    """In the order of the tensor's rows, in eV where the energy is; without three periodic directions there is none."""
    virial = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])
    told = f'virial="{" ".join(map(str, virial.ravel()))}"'
    file = xyz(tmp_path / "v.xyz", water(more=f' Lattice="4 0 0 0 4 0 0 0 5" pbc="T T T" {told}'),
               water(more=f' Lattice="4 0 0 0 4 0 0 0 5" pbc="T T F" {told}'))
    data = look(file)
    np.testing.assert_allclose(data["stress"].values[0], -np.array([1, 2, 3, 0.3, 0.2, 0.1]) / 80)
    assert np.isnan(data["stress"].values[1]).all()
    ours = look(file, energy_unit="hartree", length_unit="bohr")["stress"].values[0]
    np.testing.assert_allclose(ours, data["stress"].values[0] * 27.211386245988 / 0.529177210903**3, rtol=1e-6)
    both = xyz(tmp_path / "b.xyz", water(more=f' Lattice="4 0 0 0 4 0 0 0 5" pbc="T T T" {told} '
                                              'stress="1 0 0 0 1 0 0 0 1"'))
    np.testing.assert_allclose(look(both)["stress"].values[0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(look(both, virial="virial")["stress"].values[0], data["stress"].values[0])
    with pytest.raises(InputError, match="they say the same"):
        look(both, virial="virial", stress="stress")


def test_a_box_that_is_not_periodic_is_no_cell(tmp_path: Path) -> None:
    box = 'Lattice="9 0 0 0 9 0 0 0 9"'
    path = xyz(tmp_path / "a.xyz", water(more=f'{box} pbc="F F F"'))
    assert "cell" not in look(path)
    bare = xyz(tmp_path / "b.xyz", water(more=box))
    assert "cell" not in look(bare, periodic=False)
    assert look(bare, periodic=[True, True, False])["periodic"].values.tolist() == [[1, 1, 0]]


def test_select_takes_configurations(tmp_path: Path) -> None:
    first, second = (xyz(tmp_path / f"{i}.xyz", *(water(-i - k / 10) for k in range(3))) for i in (1, 2))
    data = look(first, second, select={"configuration": [2, 5]})
    assert data["energy"].values.tolist() == [-1.2, -2.0, -2.1]
    assert data.sizes["atom"] == 9


@pytest.mark.parametrize("name", ["a.db", "a.json"])
def test_ase_databases(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ase_frames()
    from ase.db import connect

    with connect(tmp_path / name) as database:
        for i, atoms in enumerate(frames):
            database.write(atoms, gap=0.5 * i, data={"q": np.arange(float(len(atoms))), "k": 1})
    monkeypatch.setattr(_molecules_frames, "BLOCK_ATOMS", 12)
    labels = {"gap": {"key": "gap", "unit": "eV"}, "q": {"key": "q", "unit": "e"}}
    data = look(tmp_path / name, labels=labels)
    check_frames(data, frames)
    assert data["gap"].values.tolist() == [0.5 * i for i in range(len(frames))]
    for row, atoms in zip(atoms_of(data, "q"), frames):
        np.testing.assert_array_equal(row, np.arange(len(atoms)))


def test_units_in_the_metadata_of_a_database(tmp_path: Path) -> None:
    frames = ase_frames(2)
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        for atoms in frames:
            atoms.calc = None
            database.write(atoms, data={"energy": np.array([-76.0]), "forces": np.ones((len(atoms), 3))})
    with sqlite3.connect(tmp_path / "a.db") as raw:
        raw.execute("INSERT INTO information VALUES ('metadata', ?)", (json.dumps(
            {"_distance_unit": "Ang", "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}}),))
    data = look(tmp_path / "a.db")
    np.testing.assert_allclose(data["energy"], -76 * 0.0433641042)
    np.testing.assert_allclose(data["forces"], 0.0433641042)
    with pytest.raises(InputError, match=r"energy_unit\].*found energy in 'kcal/mol'"):
        look(tmp_path / "a.db", energy_unit="eV")


def ani(path: Path, units: bool = False) -> dict[str, Any]:
    rng, held = np.random.default_rng(0), {}
    with h5py.File(path, "w") as file:
        for name, letters in (("gdb/s01/a-0", "CHHHH"), ("gdb/s02/b-1", "OHH"), ("gdb/s02/b-10", "OHH")):
            group, n = file.create_group(name), len(letters)
            group["species"] = np.array([letter.encode() for letter in letters])
            arrays = {"coordinates": 3 * rng.normal(size=(4, n, 3)), "energies": rng.normal(size=4) - 40,
                      "gradients": rng.normal(size=(4, n, 3)), "charges": rng.normal(size=(4, n))}
            for key, values in arrays.items():
                group[key] = values
            if units:
                group["coordinates"].attrs["units"] = "bohr"
                group["energies"].attrs["units"] = "hartree"
            group["smiles"] = np.array([c.encode() for c in "[CH4]" if n == 5] or [b"O", b""])
            held[name] = arrays
    return held


def test_ani_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = ani(tmp_path / "a.h5")
    monkeypatch.setattr(_molecules_frames, "BLOCK_ATOMS", 16)
    data = look(tmp_path / "a.h5", energy_unit="hartree", length_unit="angstrom", forces="gradients",
                labels={"q": {"key": "charges", "unit": "e"}})
    np.testing.assert_allclose(data["energy"], np.concatenate([a["energies"] for a in held.values()]) * 27.211386246)
    for name, key, scale in (("position", "coordinates", 1.0), ("forces", "gradients", -27.211386246)):
        expected = np.concatenate([a[key].reshape(-1, 3) for a in held.values()])
        np.testing.assert_allclose(data[name], scale * expected)
    np.testing.assert_allclose(data["q"], np.concatenate([a["charges"].ravel() for a in held.values()]))
    assert data["number"].values[:8].tolist() == [6, 1, 1, 1, 1, 6, 1, 1]
    assert data["molecule"].values.tolist() == [0] * 4 + [1] * 8


def test_ani_units_of_the_arrays(tmp_path: Path) -> None:
    held = ani(tmp_path / "a.h5", units=True)
    data = look(tmp_path / "a.h5")
    np.testing.assert_allclose(data["position"].values[0], held["gdb/s01/a-0"]["coordinates"][0, 0] * 0.52917721)
    assert "forces" not in data


def test_smiles_are_embedded_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("rdkit", reason="rdkit (the extra `rdkit`) is not installed")
    path = xyz(tmp_path / "a.smi", "CCO ethanol\n[NH4+]\n\nc1ccccc1\n")
    data = look(path, conformers=2)
    assert data["atom_count"].values.tolist() == [9, 9, 5, 5, 12, 12]
    assert data["molecule"].values.tolist() == [0, 0, 1, 1, 2, 2]
    assert data["charge"].values.tolist() == [0, 0, 1, 1, 0, 0]
    xr.testing.assert_identical(data, look(path, conformers=2))
    assert not np.allclose(data["position"], look(path, conformers=2, seed=7)["position"])
    ring = atoms_of(data, "position")[4][:6]
    np.testing.assert_allclose(np.linalg.norm(ring - np.roll(ring, 1, 0), axis=1), 1.39, atol=0.03)


def test_sdf_and_pdb(tmp_path: Path) -> None:
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit (the extra `rdkit`) is not installed")
    from rdkit.Chem import rdDistGeom

    molecule = chem.AddHs(chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    place = molecule.GetConformer().GetPositions()
    molecule.SetProp("energy", "-154.1")
    molecule.SetProp("name", "ethanol")
    (tmp_path / "a.sdf").write_text(2 * (chem.MolToMolBlock(molecule) + ">  <energy>  (1) \n-154.1\n\n$$$$\n"))
    data = look(tmp_path / "a.sdf", energy_unit="hartree")
    np.testing.assert_allclose(data["energy"], [-154.1 * 27.211386246] * 2)
    np.testing.assert_allclose(data["position"][:9], place, atol=1e-4)
    block = chem.MolToPDBBlock(molecule)
    (tmp_path / "a.pdb").write_text("CRYST1   20.000   20.000   30.000  90.00  90.00 120.00 P 1\n"
                                    + "".join(f"MODEL {i}\n{block.replace('END', 'ENDMDL')}" for i in (1, 2)))
    data = look(tmp_path / "a.pdb", periodic=True)
    np.testing.assert_allclose(data["position"][9:], place, atol=1e-3)
    np.testing.assert_allclose(data["cell"].values[1], np.array([[20, 0, 0], [-10, 17.320508076, 0], [0, 0, 30]]),
                               atol=1e-8)


SNIFFED: dict[str, dict[str, object]] = {
    "a.xyz": {}, "a.db": {}, "a.json": {}, "a.h5": {"length_unit": "angstrom", "energy_unit": "hartree"},
    "a.smi": {}, "a.sdf": {"energy_unit": "hartree"}, "a.pdb": {"periodic": True}}


@pytest.mark.parametrize("name", SNIFFED)
def test_what_sniff_proposes_builds(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name in ("a.smi", "a.sdf"):
        pytest.importorskip("rdkit", reason="rdkit (the extra `rdkit`) is not installed")
    if name == "a.h5":
        ani(path)
    elif name == "a.smi":
        path.write_text("CCO\nO\nCC\nCO\n")
    elif name == "a.sdf":
        from rdkit import Chem

        block = Chem.MolToMolBlock(Chem.MolFromMolBlock(MOL, removeHs=False))
        path.write_text(4 * (block + "> <energy>\n-1.5\n\n$$$$\n"))
    elif name == "a.pdb":
        path.write_text("CRYST1   20.000   20.000   30.000  90.00  90.00  90.00 P 1\n" + "".join(
            f"MODEL\nHETATM    1  O   HOH A   1       0.000   0.000   {i}.120  1.00  0.00           O\nENDMDL\n"
            for i in range(4)))
    else:
        frames = ase_frames(6)
        from ase.db import connect
        from ase.io import write

        if name == "a.xyz":
            write(path, frames, format="extxyz")
        else:
            with connect(path) as database:
                [database.write(atoms) for atoms in frames]
    guess = recognise(path)
    assert (guess.domain, guess.group_dim) == ("molecules", "configuration")
    raw = yaml.safe_load(guess.source_yaml("lab"))
    asked = {key for key, value in raw["options"].items() if value is None}
    assert asked == SNIFFED[name].keys()
    assert len(guess.missing) == len(asked)
    raw["options"] |= SNIFFED[name]
    store = build(SourceSpec.model_validate(raw), tmp_path / "store.zarr")
    assert store.meta.groups == guess.dims["configuration"]
    assert store.read("position", 0).shape == (store.rows("atom")[0], 3)


MOL = """
     lab          3D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1200 O   0  0
    0.0000    0.7600   -0.4800 H   0  0
    0.0000   -0.7600   -0.4800 H   0  0
  1  2  1  0
  1  3  1  0
M  END
"""


def test_ambiguous_keys_are_asked_for(tmp_path: Path) -> None:
    path = xyz(tmp_path / "a.xyz", water(more='REF_energy=-3 Lattice="9 0 0 0 9 0 0 0 9"'))
    guess = recognise(path)
    assert {key for key, value in guess.options.items() if value is None} == {"energy", "periodic"}
    assert "energy: null  # FILL IN" in guess.source_yaml("lab")
    assert look(path, energy="REF_energy", periodic=True)["energy"].values.tolist() == [-3]
