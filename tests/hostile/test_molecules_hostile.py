"""Files of molecules that are wrong, ambiguous or made to harm: refused, saying what, where and how to mend it."""

from __future__ import annotations

import json
import pickle
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sciml.data.build import build
from sciml.data.readers import ani, ase_db, extxyz, read, recognise
from sciml.data.safety import Limits
from sciml.data.source import SourceSpec
from sciml.errors import InputError


def look(*paths: Path, missing: str = "refuse", **options: object) -> Any:
    source = SourceSpec.model_validate({"name": "lab", "domain": "molecules", "files": [str(p) for p in paths],
                                        "options": options, "missing": missing})
    return read(source, list(paths)).compute()


def refused(words: str, call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert caught.value.fix
    assert caught.value.expected
    return caught.value


def frame(comment: str = "energy=-2", atoms: str = "O 0 0 0.1\nH 0 0.8 -0.5\nH 0 -0.8 -0.5",
          count: object = None) -> str:
    return f"{len(atoms.splitlines()) if count is None else count}\n{comment}\n{atoms}\n"


FORCES = "Properties=species:S:1:pos:R:3:forces:R:3"
GOOD = frame()
XYZ: list[tuple[str, dict[str, Any], str]] = [
    (GOOD + frame("energy=-2 REF_energy=-3"), {}, r"a.xyz \[energy\]: found 2 candidates: REF_energy, energy;"),
    (GOOD, {"energy": "E_dft"}, r"\[options.energy\]: found no key 'E_dft' in the file; expected one of energy"),
    (GOOD, {"energy_unit": "parsec"}, r"\[options.energy_unit\]: found unit 'parsec'.*converts to eV"),
    (GOOD, {"energy_unit": "eVolt"}, r"\[options.energy_unit\]: found unit 'eVolt'"),
    (GOOD, {"energy_of": "molecule"}, r"lab \[energy_of\]: found 'molecule'.*'configuration' or 'atom'"),
    (GOOD, {"energies": "e"}, r"\[options.energies\].*an option of extxyz"),
    (GOOD, {"energy_kind": "relative", "isolated": {"H": -1.0}}, r"isolated atoms beside energy_kind: relative"),
    (GOOD, {"isolated": {"H": -1.0}}, r"\[isolated_energy\]: found energies of H and none of O"),
    (GOOD, {"isolated": {"Hx": -1.0}}, r"\[options.isolated.Hx\]"),
    (GOOD, {"isolated": "atoms.xyz"}, r"\[options.isolated\]: found 'atoms.xyz'; expected one of the source's files"),
    (GOOD, {"labels": {"gap": {"key": "gap", "unit": "eV"}}}, r"\[options.labels.gap.key\]: found no key 'gap'"),
    (GOOD, {"labels": {"energy": {"key": "energy", "unit": "eV"}}}, r"\[options.labels.energy\]: found 'energy'"),
    (GOOD + frame("energy=-2 energy_unit=eV") + frame("energy=-3 energy_unit=Ha"), {},
     r"\[frame 2\]: found energy in 'Ha'; expected 'eV', as in frame 1"),
    (frame("energy=-2 energy_unit=Ha"), {"energy_unit": "eV"}, r"\[options.energy_unit\]: found energy in 'Ha'"),
    ("".join(frame(f"energy={-2041 - i / 100}") for i in range(20)) + frame("energy=-75.008"), {},
     r"\[frame 20\]: found energy -75.008 of H2O.*ratio 27.2114 is that of hartree and eV"),
    (GOOD + frame(atoms="O 0 0 0.1\nH 0 nan -0.5\nH 0 -0.8 -0.5"), {},
     r"\[frame 1, atom 1\]: found position \[0.0, nan, -0.5\].*can't be masked"),
    (GOOD + frame(atoms="O 0 0 0.1\nH 0 0 0.2\nH 0 -0.8 -0.5"), {},
     r"\[frame 1, atom 0 and atom 1\]: found 0.1 Å apart \(1 such pairs.*length_unit"),
    (frame(atoms="O 0 0 0.1\nX 0 0.8 -0.5"), {}, r"\[frame 0, atom 1\]: found element 'X'"),
    (frame(atoms="O 0 0 0.1\nh 0 0.8 -0.5"), {}, r"found element 'h'; expected a chemical symbol"),
    (frame(atoms="119 0 0 0.1\n8 0 0.8 -0.5"), {}, r"found element '119'"),
    (GOOD + "0\nenergy=0\n", {}, r"\[frame 1, line 6\]: found 0 atoms; expected at least one"),
    (GOOD + "3\nenergy=-2\nO 0 0 0\n", {}, r"\[frame 1\].*cut short|\[frame 1, line 9\]: found the end of the file"),
    (GOOD + frame(count=2), {}, r"\[frame 2, line 10\]: found 'H 0 -0.8 -0.5'; expected the number of atoms"),
    (frame(count="99999999999999999"), {}, r"\[frame 0\]: found a frame of shape \(99999999999999999, 3\)"),
    (frame(count="1000000"), {}, r"\[frame 0\]: found 1000000 atoms in the \d+ bytes left"),
    (frame('Lattice="9 0 0 0 9 0 0 0 9" energy=-2'), {},
     r"\[frame 0\]: found a cell without pbc flags.*periodic: true"),
    (frame('Lattice="9 0 0 0 9 0" pbc="T T T"'), {}, r"\[frame 0, Lattice\]"),
    (frame('Lattice="9 0 0 9 0 0 0 0 9" pbc="T T T"'), {}, r"\[frame 0\]: found periodic \[1, 1, 1\] with the cell"),
    (frame('Lattice="9 0 0 0 9 0 0 0 9" pbc="T T"'), {}, r"\[frame 0, pbc\]: found 'T T'"),
    (frame('pbc="T T T"'), {}, r"\[frame 0, pbc\]: found 'T T T' without a Lattice"),
    (frame('energy="-2'), {}, r"\[frame 0\]: found .*-2' in the comment; expected key=value pairs, quotes closed"),
    (frame("energy=-2 energy=-3"), {}, r"\[frame 0, energy\]: found it twice"),
    (frame("Properties=species:S:1:pos:R"), {}, r"\[frame 0, Properties\]"),
    (frame(FORCES), {}, r"\[frame 0, atom 0\]: found 4 columns; expected 7"),
    (frame(FORCES, "O 0 0 0 1 x 0"), {}, r"\[frame 0, atom 0\]: found 'x' for forces; expected a number"),
    (frame(FORCES, "O 0 0 0 1 inf 0"), {}, r"\[frame 0, atom 0, forces\]: found inf.*missing: mask"),
    (frame("energy=-2 spin=0"), {}, r"\[frame 0, spin\]: found 0; expected the multiplicity"),
    (frame('stress="1 2 3 4 5 6 7 8 9" energy=-2'), {}, r"\[frame 0, stress\].*symmetric"),
    (frame('stress="1 2 3 4"'), {"stress": "stress"}, r"\[stress\]: found values of shape \(4,\)"),
    (frame("config_type=IsolatedAtom energy=-2"), {}, r"\[frame 0\]: found 3 atoms in a frame of an isolated atom"),
    (frame("config_type=IsolatedAtom energy=-2", "H 0 0 0"), {}, r"found isolated atoms only"),
    (GOOD + frame("config_type=IsolatedAtom energy=-2", "O 0 0 0")
     + frame("config_type=IsolatedAtom energy=-3", "O 0 0 0"), {},
     r"\[frame 2\]: found -3 eV for isolated O; expected -2 eV, as frame 1 of a.xyz says"),
    (GOOD, {"select": {"configuration": [0, 2]}}, r"\[options.select.configuration\]: found \[0, 2\]"),
    ("", {}, r"found no frames"),
]


@pytest.mark.parametrize(("text", "options", "words"), XYZ)
def test_xyz_is_refused(tmp_path: Path, text: str, options: dict[str, Any], words: str) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(text)
    refused(words, lambda: look(path, format="extxyz", **options))


def test_mixed_units_and_keys_between_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.xyz", tmp_path / "b.xyz"
    first.write_text("".join(frame(f"energy={-2041 - i / 100}") for i in range(10)))
    second.write_text(frame("energy=-75.008"))
    refused(r"b.xyz \[frame 0\]: found energy -75.008 of H2O.*hartree and eV", lambda: look(first, second))
    second.write_text(frame("energy=-75.008 energy_unit=hartree"))
    refused(r"b.xyz \[options.energy_unit\]: found energy in 'hartree'; expected 'eV'", lambda: look(first, second))
    second.write_text(frame("REF_energy=-2041"))
    refused(r"\[energy\]: found 2 candidates", lambda: look(first, second))


def test_infinite_labels_are_masked_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(frame(f"{FORCES} energy=-2", "O 0 0 0 1 inf 0") + 9 * frame(f"{FORCES} energy=-2", "O 0 0 0 1 0 0"))
    spec = SourceSpec.model_validate({"name": "lab", "domain": "molecules", "files": [str(path)], "missing": "mask"})
    store = build(spec, tmp_path / "store.zarr")
    assert np.isnan(store.read("forces", 0)).tolist() == [[False, True, False]]
    assert any("forces: 1 of 30 values not finite" in note for note in store.meta.notes)


def test_sniffing_tells_what_reading_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(GOOD + frame(atoms="O 0 0 0.1\nH 0 0 0.2\nH 0 -0.8 -0.5"))
    guess = recognise(path)
    assert guess.format == "extxyz"
    assert any("0.1 Å apart" in text for text in guess.suspicious)


def test_nothing_in_a_comment_is_run(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-2 a=__import__('os').system('touch_hacked')".replace("'", "")))
    assert look(path)["energy"].values.tolist() == [-2]
    with pytest.raises(InputError, match="comment"):
        extxyz.index(str(_with(path, frame("x=_JSON " + "[" * 100_000))), Limits())


def _with(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_long_lines_and_small_limits(tmp_path: Path) -> None:
    path = _with(tmp_path / "a.xyz", frame("x=" + "1" * (1 << 20)))
    refused("a line above", lambda: look(path, format="extxyz"))
    path = _with(tmp_path / "b.xyz", GOOD)
    refused(r"\[frame 0\]: found a frame of shape \(3, 3\), 72 bytes; expected at most 64",
            lambda: look(path, format="extxyz", limits={"chunk_bytes": 64}))


def database(path: Path, *rows: tuple[Any, ...], extra: str = "") -> Path:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE systems (id INTEGER PRIMARY KEY, numbers BLOB, positions BLOB, cell BLOB, "
                    "pbc INTEGER, energy REAL, key_value_pairs TEXT, data BLOB)")
        raw.executemany("INSERT INTO systems (numbers, positions, pbc, energy, data) VALUES (?, ?, ?, ?, ?)", rows)
        if extra:
            raw.executescript(extra)
    return path


def row(numbers: Any = (8, 1), positions: Any = ((0, 0, 0), (0, 0, 1)), data: Any = None) -> tuple[Any, ...]:
    return (np.array(numbers, "<i4").tobytes(), np.array(positions, "<f8").tobytes(), 0, -2.0, data)


AT_8 = (8).to_bytes(8, "little")
DATABASES: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: database(p, row(numbers=())), r"\[frame 0\]: found 0 atoms"),
    (lambda p: database(p, row(numbers=(8, 119))), r"\[frame 0, atom 1\]: found atomic number 119"),
    (lambda p: database(p, row(positions=((0, 0, 0),))), r"\[frame 0\]: found positions of shape \(1, 3\) of 2 atoms"),
    (lambda p: database(p), r"\[systems\]: found no rows"),
    (lambda p: database(p, row(data=pickle.dumps({"a": 1}))), r"\[row 1, data\]"),
    (lambda p: database(p, row(data=AT_8 + b'{"x":{"__ndarray__":[[9],"float64",8]}}')), r"\[row 1, data\]"),
    (lambda p: database(p, row(data=AT_8 + b'{"x":{"__ndarray__":[[9999999999],"float64",8]}}')), r"\[row 1, data\]"),
    (lambda p: database(p, row(), extra="ALTER TABLE systems RENAME TO s; CREATE VIEW systems AS SELECT * FROM s;"),
     r"\[systems\]: found a view.*an ordinary table"),
    (lambda p: (database(p, row()), p.write_bytes(p.read_bytes()[:5000])),
     "found 5000 bytes of . pages of 4096; expected a complete SQLite file"),
    (lambda p: p.write_text(json.dumps({"1": {"numbers": [8], "positions": [[0, 0, "x"]]}, "ids": [1], "nextid": 2})),
     r"\[frame 0\]: found positions of shape \(0, 3\) of 1 atoms"),
    (lambda p: p.write_text(json.dumps({"1": {"numbers": {"__ndarray__": [[7], "int64", [8]]}}, "ids": [1],
                                        "nextid": 2})),
     r"\[frame 0, numbers\]: found shape \[7\] of 1 values"),
    (lambda p: p.write_text(json.dumps({"ids": [4], "nextid": 2})), "found KeyError.*a JSON database of ASE"),
    (lambda p: p.write_text("{" + "[" * 100_000 + '"ids" "nextid"'), "a JSON database of ASE"),
]


@pytest.mark.parametrize(("make", "words"), DATABASES)
def test_databases_are_refused(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "a.db"
    make(path)
    refused(words, lambda: look(path, format="ase_db", energy="energy"))


def test_objects_that_a_database_names_are_not_made(tmp_path: Path) -> None:
    held = {"1": {"numbers": [8, 1], "positions": [[0, 0, 0], [0, 0, 1]], "energy": -2.0, "pbc": [False] * 3,
                  "data": {"x": {"__ase_objtype__": "bandpath", "path": "x"}}}, "ids": [1], "nextid": 2}
    (tmp_path / "a.json").write_text(json.dumps(held))
    sys.modules.pop("ase.dft.kpoints", None)
    assert look(tmp_path / "a.json")["energy"].values.tolist() == [-2]
    assert "ase.dft.kpoints" not in sys.modules
    assert ase_db.PLUGIN.recognise(str(tmp_path / "a.json")) is not None


def hdf5(path: Path, change: Callable[[h5py.Group], object]) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("a/b")
        group["coordinates"] = np.random.default_rng(0).normal(size=(4, 3, 3)) * 4
        group["species"] = np.array([b"O", b"H", b"H"])
        group["energies"] = np.zeros(4)
        change(group)
    return path


def _replace(group: h5py.Group, key: str, values: Any) -> None:
    del group[key]
    group[key] = values


HDF5: list[tuple[Callable[[h5py.Group], object], dict[str, Any], str]] = [
    (lambda g: None, {"energy_unit": None, "length_unit": None}, r"\[length\]: found no unit.*length_unit"),
    (lambda g: None, {"energy_unit": None}, r"\[energy\]: found no unit, and the format defines none.*hartree"),
    (lambda g: _replace(g, "species", np.array([b"O", b"H", b"Qq"])), {}, r"\[/a/b/species, atom 2\]"),
    (lambda g: _replace(g, "species", np.array([8, 1, -1])), {}, r"atom 2\]: found .*-1"),
    (lambda g: _replace(g, "species", np.array([b"O", b"H"])), {}, r"\[/a/b\]: found coordinates \(4, 3, 3\)"),
    (lambda g: _replace(g, "coordinates", np.zeros((4, 0, 3))), {}, r"\[/a/b\]: found coordinates \(4, 0, 3\)"),
    (lambda g: _replace(g, "coordinates", np.zeros((4, 3, 3))), {}, r"\[frame 0, atom 0 and atom 1\]: found 0 Å apart"),
    (lambda g: g["coordinates"].attrs.update(units="bohr"), {}, r"found length in 'bohr'; expected 'angstrom'"),
    (lambda g: g.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/x")), {}, "external link"),
    (lambda g: g.create_dataset("huge", (1 << 20, 1 << 12, 1 << 8), "f8", chunks=(1, 1 << 12, 1)), {}, "at most"),
]


@pytest.mark.parametrize(("change", "options", "words"), HDF5)
def test_ani_is_refused(tmp_path: Path, change: Callable[[h5py.Group], object], options: dict[str, Any],
                        words: str) -> None:
    path = hdf5(tmp_path / "a.h5", change)
    refused(words, lambda: look(path, format="ani", **{"energy_unit": "hartree", "length_unit": "angstrom"} | options))


def test_damaged_hdf5(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", lambda g: None)
    path.write_bytes(path.read_bytes()[:900])
    refused("complete HDF5 file", lambda: ani.index(str(path), Limits()))


OTHERS: list[tuple[str, str, str]] = [
    ("pdb", "ATOM      1  CA  GLY A   1       0.000   0.000   0.000  1.00  0.00\n", r"\[line 1\]: found element ''"),
    ("pdb", "ATOM      1  CA  GLY A   1       0.000   x.000   0.000  1.00  0.00           C\n", r"\[line 1\]"),
    ("pdb", "MODEL 1\nENDMDL\n", r"\[frame 0\]: found 0 atoms"),
    ("pdb", "CRYST1   20.000   20.000   30.000  90.00  90.00 190.00 P 1\n", r"\[line 1\].*lengths and angles"),
    ("smiles", "CCO\nC1CC\n", r"\[line 2\]: found SMILES 'C1CC'"),
    ("sdf", "\n\n\nV2000 nonsense\n$$$$\n", r"\[frame 0\]: found .*a record that RDKit reads"),
]


@pytest.mark.parametrize(("form", "text", "words"), OTHERS)
def test_other_formats_are_refused(tmp_path: Path, form: str, text: str, words: str) -> None:
    if form != "pdb":
        pytest.importorskip("rdkit", reason="rdkit (the extra `rdkit`) is not installed")
    path = _with(tmp_path / "a", text)
    refused(words, lambda: look(path, format=form))


@pytest.mark.parametrize("form", ["smiles", "sdf"])
def test_without_rdkit_it_says_what_to_install(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _with(tmp_path / "a", "CCO\n")
    monkeypatch.setitem(sys.modules, "rdkit", None)
    refused(r'pip install "sciml\[rdkit\]"', lambda: look(path, format=form))
