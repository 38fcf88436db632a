"""Where molecular dynamics starts and what drives it: structures by name or SMILES, and potentials of positions.

GFN2-xTB and GFN1-xTB come from tblite through its ASE calculator (``pip install "sciml[xtb]"``); `Morse` is a toy in
plain numpy that has the shape of a molecule's energy and none of its chemistry, so that data can be made with nothing
installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sciml.data.elements import numbers_of, symbols
from sciml.errors import InputError

Potential = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Positions ``(n, 3)`` in Å → energy in eV and forces ``(n, 3)`` in eV/Å."""


@dataclass(frozen=True)
class Structure:
    """A molecule to start from. number ``(n,)``, position ``(n, 3)`` in Å, charge in e, multiplicity 2S + 1."""

    name: str
    number: np.ndarray
    position: np.ndarray
    charge: int = 0
    multiplicity: int = 1


KNOWN = {"water": ("OHH", [[0, 0, .06], [0, .77, -.51], [0, -.77, -.51]]),
         "methanol": ("COHHHH", [[-.03, .72, 0], [-.02, -.69, 0], [-1.08, 1.02, 0], [.89, -.99, 0], [.46, 1.13, .89],
                                 [.46, 1.13, -.89]]),
         "ethanol": ("CCOHHHHHH", [[1.23, -.39, 0], [.05, .57, 0], [-1.14, -.19, 0], [-1.9, .4, 0], [.09, 1.21, .89],
                                   [.09, 1.21, -.89], [2.17, .16, 0], [1.19, -1.02, .88], [1.19, -1.02, -.88]])}
"""Symbols and positions in Å of minima in GFN2-xTB, rounded."""
MASSES = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999}


def structure(name: str) -> Structure:
    """A molecule by name: one of `KNOWN`, or as ``ase.build.molecule`` calls it (``CH3CH2OH``, ``C6H6``, …).

    Raises `InputError` if nobody knows it, or ASE is needed and not installed.

    >>> structure("water").number.tolist()
    [8, 1, 1]
    """
    if name in KNOWN:
        names, position = KNOWN[name]
        return Structure(name, numbers_of(list(names)), np.array(position, dtype=np.float64))
    try:
        from ase.build import molecule
    except ImportError:
        raise InputError("molecular_dynamics options", key="molecules", found=repr(name), expected="one of "
                         f"{', '.join(KNOWN)}; others by their name in ASE, which is not installed",
                         fix='pip install "sciml[molecules]"') from None
    try:
        atoms = molecule(name)
    except KeyError:
        raise InputError("molecular_dynamics options", key="molecules", found=repr(name)[:60], expected="one of "
                         f"{', '.join(KNOWN)}, a name of ase.build.molecule such as C6H6, or {{smiles: CCO}}",
                         fix="correct it") from None
    unpaired = round(abs(float(atoms.get_initial_magnetic_moments().sum())))
    return Structure(name, atoms.numbers.astype(np.int32), atoms.positions, 0, unpaired + 1)


def masses(number: np.ndarray) -> np.ndarray:
    """Atomic masses ``(n,)`` in u; beyond H, C, N and O those of ASE."""
    if set(number.tolist()) <= MASSES.keys():
        return np.array([MASSES[n] for n in number.tolist()])
    from ase.data import atomic_masses

    return np.asarray(atomic_masses[number], dtype=np.float64)


def potential(level: str, molecule: Structure) -> Potential:
    """The potential of a molecule at a level of theory: GFN2-xTB, GFN1-xTB or morse. Raises `InputError` if tblite is
    missing or the toy doesn't know an element."""
    return Morse.of(molecule) if level == "morse" else _xtb(level, molecule)


def isolated_energy(level: str, number: int) -> float:
    """Energy in eV of one atom in its ground state at a level of theory."""
    if level == "morse":
        return ATOMS_EV[number]
    from ase.data import ground_state_magnetic_moments

    alone = Structure(symbols([number])[0], np.array([number]), np.zeros((1, 3)),
                      multiplicity=round(float(ground_state_magnetic_moments[number])) + 1)
    return _xtb(level, alone)(alone.position)[0]


def _xtb(level: str, molecule: Structure) -> Potential:
    try:
        from ase import Atoms
        from tblite.ase import TBLite
    except ImportError:
        raise InputError("molecular_dynamics options", key="level_of_theory", found=f"{level}, and no tblite",
                         expected="tblite and ase to compute it", fix='pip install "sciml[xtb]"') from None
    atoms = Atoms(numbers=molecule.number, positions=molecule.position)
    atoms.calc = TBLite(method=level, charge=molecule.charge, multiplicity=molecule.multiplicity, verbosity=0)

    def evaluate(position: np.ndarray) -> tuple[float, np.ndarray]:
        atoms.set_positions(position)
        try:
            return float(atoms.get_potential_energy()), np.asarray(atoms.get_forces(), dtype=np.float64)
        except Exception as error:
            raise InputError("molecular_dynamics", key=molecule.name, found=" ".join(str(error).split())[:120],
                             expected=f"a structure that {level} converges for",
                             fix="lower temperature_k or dt_fs") from None

    return evaluate


RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66}
"""Covalent radii in Å (Cordero et al., Dalton Transactions, 2008)."""
ATOMS_EV = {1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2043.0}
DEPTH_EV, STIFFNESS, ANGLE_EV, REPULSION_EV, RANGE = 4.5, 2.0, 4.0, 60.0, 0.35


@dataclass(frozen=True)
class Morse:
    """Σ atoms E₀ + Σ bonds D ((1 − exp(−a (r − r₀)))² − 1) + Σ angles k/2 (cos θ − cos θ₀)² + Σ others A exp(−r/ρ),
    with D = 4.5 eV, a = 2 /Å, k = 4 eV, A = 60 eV, ρ = 0.35 Å, r₀ and θ₀ those of the structure given. bonds ``(b,
    2)``, angles ``(a, 3)`` with the vertex in the middle, others ``(o, 2)``: pairs three or more bonds apart."""

    rest: float
    bonds: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    cosines: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, molecule: Structure) -> Morse:
        """Bonds are where atoms lie within 1.25 times the sum of their covalent radii. Raises `InputError` for elements
        other than H, C, N and O."""
        number, position = molecule.number.tolist(), molecule.position
        if strange := sorted(set(number) - RADII.keys()):
            raise InputError("molecular_dynamics options", key="level_of_theory", found=f"morse for "
                             f"{', '.join(symbols(strange))} in {molecule.name}", expected="H, C, N and O",
                             fix="level_of_theory: GFN2-xTB")
        radii = np.array([RADII[n] for n in number])
        apart = np.linalg.norm(position[:, None] - position[None], axis=-1)
        bonded = (apart < 1.25 * (radii[:, None] + radii)) & ~np.eye(len(number), dtype=bool)
        bonds = np.argwhere(np.triu(bonded))
        angles = np.array([(i, j, k) for j in range(len(number)) for i in np.flatnonzero(bonded[j])
                           for k in np.flatnonzero(bonded[j]) if i < k], dtype=np.int64).reshape(-1, 3)
        near = bonded | (bonded.astype(int) @ bonded.astype(int) > 0)
        others = np.argwhere(np.triu(~near, 1))
        toy = cls(sum(ATOMS_EV[n] for n in number), bonds, apart[tuple(bonds.T)], angles, np.zeros(0), others)
        return cls(toy.rest, bonds, toy.lengths, angles, toy._angles(position)[0], others)

    def _angles(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cos θ ``(a,)`` and its gradient with respect to the two outer atoms."""
        i, j, k = self.angles.T
        u, v = position[i] - position[j], position[k] - position[j]
        lu, lv = np.linalg.norm(u, axis=-1, keepdims=True), np.linalg.norm(v, axis=-1, keepdims=True)
        u, v = u / lu, v / lv
        cosine = (u * v).sum(-1, keepdims=True)
        return cosine[:, 0], (v - cosine * u) / lu, (u - cosine * v) / lv

    def __call__(self, position: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces = self.rest, np.zeros_like(position)
        for pairs, bonded in ((self.bonds, True), (self.others, False)):
            i, j = pairs.T
            gap = position[i] - position[j]
            r = np.linalg.norm(gap, axis=-1)
            if bonded:
                decay = np.exp(-STIFFNESS * (r - self.lengths))
                energy += float(DEPTH_EV * ((1 - decay) ** 2 - 1).sum())
                slope = 2 * DEPTH_EV * STIFFNESS * (1 - decay) * decay
            else:
                wall = REPULSION_EV * np.exp(-r / RANGE)
                energy += float(wall.sum())
                slope = -wall / RANGE
            along = (slope / r)[:, None] * gap
            np.add.at(forces, i, -along)
            np.add.at(forces, j, along)
        cosine, at_first, at_last = self._angles(position)
        bend = ANGLE_EV * (cosine - self.cosines)
        energy += float(0.5 * ANGLE_EV * ((cosine - self.cosines) ** 2).sum())
        i, j, k = self.angles.T
        np.add.at(forces, i, -bend[:, None] * at_first)
        np.add.at(forces, k, -bend[:, None] * at_last)
        np.add.at(forces, j, bend[:, None] * (at_first + at_last))
        return energy, forces
