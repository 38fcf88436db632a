"""Structures through RDKit (the extra `rdkit`): SMILES embedded in 3-D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sciml.errors import InputError

MAX_ATOMS = 1000
MAX_TEXT = 4096


@dataclass(frozen=True)
class Molecule:
    """number ``(n,)``, position ``(n, 3)`` in Å, charge in e, multiplicity 2S + 1, canonical SMILES."""

    number: np.ndarray
    position: np.ndarray
    charge: int
    multiplicity: int
    smiles: str


def rdkit(where: object) -> Any:
    """The package, with its own messages off. Raises `InputError` if it is missing."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise InputError(where, found="no rdkit", expected="RDKit to read it",
                         fix='pip install "sciml[rdkit]"') from None
    rdBase.DisableLog("rdApp.*")
    return Chem


def embedded(smiles: str, seed: int, where: object, key: str) -> Molecule:
    """A molecule with its hydrogens, embedded by distance geometry (ETKDGv3) with `seed` and relaxed in a force field
    (MMFF94, else UFF). Raises `InputError` for text that is no SMILES, or can't be embedded."""
    chem = rdkit(where)
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = chem.MolFromSmiles(smiles) if len(smiles) <= MAX_TEXT else None
    if molecule is None or not molecule.GetNumAtoms():
        raise InputError(where, key=key, found=f"SMILES {smiles[:60]!r}", expected="a molecule that RDKit reads",
                         fix="correct it")
    if molecule.GetNumHeavyAtoms() > MAX_ATOMS:
        raise InputError(where, key=key, found=f"{molecule.GetNumHeavyAtoms()} heavy atoms in {smiles[:60]!r}",
                         expected=f"at most {MAX_ATOMS}", fix="give its structure in a file")
    full = chem.AddHs(molecule)
    rules: Any = rdDistGeom.ETKDGv3()
    rules.randomSeed = seed & 0x7FFFFFFF
    if rdDistGeom.EmbedMolecule(full, rules) != 0:
        rules.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(full, rules) != 0:
            raise InputError(where, key=key, found=f"no structure of {smiles[:60]!r}", expected="a molecule that RDKit "
                             "can embed in space", fix="check its stereo centres, or give its structure in a file")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(full):
        rdForceFieldHelpers.MMFFOptimizeMolecule(full, maxIters=500)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(full):
        rdForceFieldHelpers.UFFOptimizeMolecule(full, maxIters=500)
    return of(full, chem.MolToSmiles(molecule))


def of(molecule: Any, smiles: str = "") -> Molecule:
    """Numbers and positions of an RDKit molecule that has a conformer."""
    number = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int32)
    position = np.asarray(molecule.GetConformer().GetPositions(), dtype=np.float64)
    charge = sum(atom.GetFormalCharge() for atom in molecule.GetAtoms())
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    return Molecule(number, position, charge, unpaired + 1, smiles)
