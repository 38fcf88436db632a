"""QM9: equilibrium structures and properties of small organic molecules, from the tables inside the package `qm9pack`.

The package carries four CSV files and is not imported: they are read a few thousand rows at a time. Lists in a cell
are split at commas and converted to numbers, never evaluated. ``pip install "sciml[qm9]"``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from sciml.data.elements import NUMBERS, known, numbers_of, symbols
from sciml.data.readers._molecules_options import factor
from sciml.errors import InputError
from sciml.recipe import Section, validate

PARTS = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")
ROWS = 4000
LABELS = {"mu": ("Dipole_debye", "debye", "debye"), "alpha": ("Polarizability_bohr3", "bohr^3", "bohr^3"),
          "homo": ("HOMO_au", "hartree", "eV"), "lumo": ("LUMO_au", "hartree", "eV"),
          "gap": ("HOMO_LUMO_gap_au", "hartree", "eV"), "r2": ("R2_bohr2", "bohr^2", "bohr^2"),
          "zpve": ("ZPVE_au", "hartree", "eV"), "u0": ("InternalEnergy_0K_au", "hartree", "eV"),
          "u298": ("InternalEnergy_298K_au", "hartree", "eV"), "h298": ("Enthalphy_298K_au", "hartree", "eV"),
          "g298": ("GibbsFreeEnergy_298K_au", "hartree", "eV"),
          "cv": ("Heatcapacity_Cv_cal_mol_K", "cal/mol/K", "cal/mol/K")}
"""Our name → column, its unit, ours."""
ATOMS_HARTREE = {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730}
"""Internal energy at 0 K of the isolated atom in B3LYP/6-31G(2df,p) (Ramakrishnan et al., Scientific Data 1, 2014)."""
TABLE = str.maketrans("", "", "[]'\" ")


class Options(Section):
    """molecules: how many, drawn with `seed` and in the order of QM9's numbers drawn; null: all 130 831 in their order.
    level_of_theory: as recorded."""

    molecules: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    level_of_theory: str = "B3LYP/6-31G(2df,p)"


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """Molecules of QM9, one configuration each: number (atom), position (atom, xyz) in Å, charges (atom) by Mulliken in
    e, and the labels `LABELS`; molecule is QM9's own number. Raises `InputError` if qm9pack is missing or damaged."""
    chosen = validate(Options, dict(options), where="qm9 options")
    folder = _folder()
    wanted = _drawn(folder, chosen)
    rows = pd.concat([part[part["Index"].isin(wanted)] for part in _pieces(folder)])
    rows = rows.set_index("Index").loc[wanted].reset_index()
    number, position, charges, counts = _atoms(rows)
    scales = {name: factor(unit, ours, where="qm9", key=name) for name, (_, unit, ours) in LABELS.items()}
    hartree = factor("hartree", "eV", where="qm9", key="isolated_energy")
    elements = np.unique(number)
    alone = np.array([ATOMS_HARTREE[symbol] * hartree for symbol in symbols(elements)])
    group = "configuration"
    labels = {name: (group, rows[column].to_numpy(np.float64) * scales[name], {"units": ours, "role": "label"})
              for name, (column, _, ours) in LABELS.items()}
    return xr.Dataset(
        {"number": ("atom", number, {"units": "1", "role": "parameter"}),
         "position": (("atom", "xyz"), position, {"units": "angstrom", "role": "state"}),
         "charges": ("atom", charges, {"units": "e", "role": "label", "long_name": "Mulliken charge"}),
         "atom_count": (group, counts, {"units": "1", "role": "rows", "sample_dimension": "atom"}),
         "molecule": (group, rows["Index"].to_numpy(np.int64), {"units": "1", "role": "parameter"}),
         "isolated_energy": ((group, "element"), np.tile(alone, (len(rows), 1)), {"units": "eV", "role": "parameter"}),
         **labels},
        coords={"xyz": ("xyz", ["x", "y", "z"], {"kind": "set"}),
                "element": ("element", symbols(elements), {"kind": "set"})},
        attrs={"domain": "molecules", "group_dim": group,
               "notes": ["molecule is the number in QM9; u0, u298, h298 and g298 include the zero-point energy zpve"]})


def _folder() -> Path:
    found = importlib.util.find_spec("qm9pack")
    folder = Path(next(iter(found.submodule_search_locations or ()), "")) / "data" if found else None
    if folder is None or not all((folder / part).is_file() for part in PARTS):
        raise InputError("qm9", key="builder", found="no package qm9pack, or one without its tables",
                         expected="the 104 MB of QM9 that it carries", fix='pip install "sciml[qm9]"')
    return folder


def _pieces(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """Rows of all parts, some thousand at a time."""
    names = columns or ["Index", "Elements", "XYZ_Ang", "Mulliken_pop", *(column for column, _, _ in LABELS.values())]
    for part in PARTS:
        try:
            with pd.read_csv(folder / part, usecols=names, chunksize=ROWS) as reader:
                yield from reader
        except (ValueError, OSError) as error:
            raise InputError(folder / part, found=" ".join(str(error).split())[:160],
                             expected=f"a table with {', '.join(names)}",
                             fix="install qm9pack again (pip install --force-reinstall --no-deps qm9pack)") from None


def _drawn(folder: Path, options: Options) -> np.ndarray:
    """QM9's numbers of the molecules that are wanted."""
    every = np.concatenate([part["Index"].to_numpy(np.int64) for part in _pieces(folder, ["Index"])])
    if options.molecules is None:
        return every
    if options.molecules > len(every):
        raise InputError("qm9 options", key="molecules", found=options.molecules, expected=f"at most {len(every)}",
                         fix="correct it, or null for all")
    return np.random.default_rng(options.seed).permutation(every)[:options.molecules]


def _atoms(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """number ``(atom,)``, position ``(atom, 3)``, charges ``(atom,)`` and counts ``(molecule,)``."""
    names = [text.translate(TABLE).split(",") for text in rows["Elements"]]
    places = [np.array(text.translate(TABLE).split(","), dtype=np.float64) for text in rows["XYZ_Ang"]]
    charges = [np.array(text.translate(TABLE).split(","), dtype=np.float64) for text in rows["Mulliken_pop"]]
    counts = np.array([len(name) for name in names], dtype=np.int64)
    number = numbers_of([symbol for name in names for symbol in name])
    wrong = [i for i, (n, p, q) in enumerate(zip(counts, places, charges)) if p.size != 3 * n or q.size != n]
    if wrong or not known(number).all() or not {*np.unique(number)} <= {NUMBERS[s] for s in ATOMS_HARTREE}:
        at = f"molecule {rows['Index'].iloc[wrong[0]]}" if wrong else "Elements"
        raise InputError("qm9pack", key=at, found="another number of atoms than of positions or charges" if wrong else
                         "elements other than H, C, N, O, F", expected="the tables of qm9pack 1.0.3",
                         fix="install it again")
    return number, np.concatenate(places).reshape(-1, 3), np.concatenate(charges), counts


PLUGIN = build
