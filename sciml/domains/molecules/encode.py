"""From a configuration to a batch of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.domains.molecules.config import DIPOLES, NUMBERS, MoleculesConfig
from sciml.domains.molecules.elements import symbols_of
from sciml.domains.molecules.fitted import Fitted, count_elements
from sciml.errors import InputError
from sciml.tokens import Conditions, Target, TokenBatch

DOMAIN, ELEMENT, FORCES, STRESS = "molecules", "element", "forces", "stress"
NEAREST_ANGSTROM = 0.3
CHARGES, PUSHES = "_charges", "_pushes"
"""What the names of the two heads behind a dipole end with."""
NEUTRAL = {"charge": 0.0, "spin": 1.0}


@dataclass(frozen=True)
class Frame:
    """What is common to all data sets: elements in the order of their rows, conditions on charge and spin."""

    config: MoleculesConfig
    elements: tuple[str, ...]
    conditions: tuple[str, ...]


def encode_configuration(fit: Fitted, frame: Frame, sample: xr.Dataset) -> TokenBatch:
    """``number (atom)``, ``position (atom, xyz)`` Å, ``cell``, ``periodic``, ``charge``, ``spin`` and labels, as far as
    they are there. Raises `InputError` on what can't be atoms, or not ones that the checkpoint knows."""
    where, config = sample.attrs.get("source", "sample"), frame.config
    numbers = np.asarray(sample["number"].values).astype(np.int64)
    position = np.asarray(sample["position"].values, dtype=np.float64)
    ids = _ids(numbers, fit, frame, where)
    cell = cell_of(sample, where)
    check_places(position, cell, where)
    if cell is not None and config.mode == "cartesian":
        raise InputError(where, key="cell", found="a periodic cell", expected="a molecule, in cartesian mode",
                         fix="set domains.molecules.mode: geometric")
    centre = position.mean(0, keepdims=True)
    axis = tokens.identity("atom", torch.from_numpy(ids), ELEMENT, unit="angstrom",
                           coord=_tensor((position - centre) / config.cutoff_angstrom),
                           segment=torch.zeros(len(ids), dtype=torch.long))
    if cell is not None:
        axis = replace(axis, period=_tensor(cell[None] / config.cutoff_angstrom))
    _check_dipole(config, sample, cell, where)
    vector = _conditions(sample, frame, where)
    counts = count_elements(numbers, np.array([len(numbers)]), fit.elements)
    return TokenBatch(DOMAIN, fit.name, _tensor(np.zeros((1, len(ids), 0))), (), (axis,),
                      conditions=Conditions(vector=vector), targets=_targets(fit, config, sample, counts, cell),
                      sources=(str(where),))


def _ids(numbers: np.ndarray, fit: Fitted, frame: Frame, where: object) -> np.ndarray:
    if not len(numbers):
        raise InputError(where, key="number", found="no atoms", expected="at least one", fix="leave the frame out")
    symbols = symbols_of(numbers, where)
    unknown = sorted(set(symbols) - set(fit.elements))
    if unknown:
        whose = "this checkpoint" if set(unknown) - set(frame.elements) else f"its data set {fit.name}"
        raise InputError(where, key="number", found=f"{', '.join(unknown)}, unknown to {whose}",
                         expected=f"elements among {', '.join(fit.elements)}",
                         fix="fine-tune it on data with these elements: sciml finetune")
    return np.array([frame.elements.index(symbol) for symbol in symbols])


def _conditions(sample: xr.Dataset, frame: Frame, where: object) -> dict[str, Tensor]:
    """Charge and spin ``(1,)`` less what is neutral. Raises `InputError` for one that isn't finite, and for one
    that the network has no input for, which would be ignored without a word."""
    made = {}
    for name, neutral in NEUTRAL.items():
        value = _number(sample, name, neutral)
        if not np.isfinite(value):
            raise InputError(where, key=name, found=f"{value:g}", expected="a finite number",
                             fix=f"say what it is ({neutral:g}: neutral), or leave the frame out")
        if name in frame.conditions:
            made[name] = _tensor([value - neutral])
        elif value != neutral:
            raise InputError(where, key=name, found=f"{value:g}",
                             expected=f"{neutral:g}: this checkpoint was not told of any other {name} in training",
                             fix=f"leave {name} out, or train on data that has it")
    return {name: made[name] for name in frame.conditions}


def _check_dipole(config: MoleculesConfig, sample: xr.Dataset, cell: np.ndarray | None, where: object) -> None:
    """Raises `InputError` where a dipole is asked for and not defined: of a cell, and of an ion, whose dipole depends
    on the origin."""
    charge = _number(sample, "charge", 0.0)
    if (cell is not None or charge != 0) and {*config.properties.values()} & {*DIPOLES}:
        raise InputError(where, key="dipole", found="a periodic cell" if cell is not None else f"charge {charge:g}",
                         expected="a neutral molecule: no other has a dipole of its own",
                         fix="leave the frame out, or train without the dipole")


def cell_of(sample: xr.Dataset, where: object) -> np.ndarray | None:
    """``(3, 3)`` lattice vectors in Å, zero where not periodic; None if nothing is. Raises `InputError` on a cell
    without ``periodic`` flags, on flags without vectors, and on vectors that span no volume."""
    if "cell" not in sample or not np.asarray(sample["cell"].values).any():
        if "periodic" in sample and np.asarray(sample["periodic"].values).any():
            raise InputError(where, key="cell", found="none", expected="a lattice vector for each periodic direction",
                             fix="give the cell, or say that nothing is periodic (ASE: atoms.pbc = False)")
        return None
    if "periodic" not in sample:
        raise InputError(where, key="periodic", found="a cell without flags", expected="0 or 1 for each lattice vector",
                         fix="say which directions are periodic (ASE: atoms.pbc)")
    flags = np.asarray(sample["periodic"].values).astype(bool)
    cell = np.where(flags[:, None], np.asarray(sample["cell"].values, dtype=np.float64), 0.0)
    if not flags.any():
        return None
    if not np.isfinite(cell).all() or np.linalg.matrix_rank(cell[flags]) < flags.sum():
        raise InputError(where, key="cell", found=f"{cell.tolist()}", expected="independent periodic lattice vectors",
                         fix="correct the cell or the flags")
    return cell


def check_places(position: np.ndarray, cell: np.ndarray | None, where: object) -> None:
    """Raises `InputError` on places that are not finite, and on atoms nearer than 0.3 Å, across the faces of a cell
    included."""
    if not np.isfinite(position).all():
        at = int(np.argmax(~np.isfinite(position).all(1)))
        raise InputError(where, key="position", found=f"{position[at]} of atom {at}", expected="finite places",
                         fix="repair or leave out the frame")
    near, distance = _overlaps(position, np.zeros((3, 3)) if cell is None else cell)
    if len(near):
        (i, j), apart = near[0], distance[0]
        raise InputError(where, key="position", found=f"atoms {i} and {j} {apart:.3g} Å apart",
                         expected=f"at least {NEAREST_ANGSTROM} Å",
                         fix="remove one of them, or check the unit of length")


def _overlaps(position: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs ``(P, 2)`` of atoms, or images of them, nearer than 0.3 Å, and their distances: found among those that are
    near in fractional coordinates, which have the period 1. Of cells at least 0.6 Å thick."""
    from scipy.spatial import cKDTree

    periodic = cell.any(1)
    basis = cell.copy()
    basis[~periodic] = np.linalg.svd(cell)[2][periodic.sum():]  # across the periodic vectors, 1 Å each
    inverse = np.linalg.inv(basis)
    place = position @ inverse
    place[:, periodic] %= 1
    place[:, periodic] %= 1  # of −1e-17 the first makes 1
    tree = cKDTree(place, boxsize=periodic.astype(float))
    near = tree.query_pairs(NEAREST_ANGSTROM * np.linalg.norm(inverse, 2), output_type="ndarray")
    apart = place[near[:, 0]] - place[near[:, 1]]
    apart[:, periodic] -= np.round(apart[:, periodic])
    distance = np.linalg.norm(apart @ basis, axis=1)
    found = distance < NEAREST_ANGSTROM
    return near[found], distance[found]


def _targets(fit: Fitted, config: MoleculesConfig, sample: xr.Dataset, counts: np.ndarray,
             cell: np.ndarray | None) -> dict[str, Target]:
    """Labels less their references, which would cost energies of 10⁵ eV their meV in float32. Stress in fewer than
    three periodic directions is not one by volume, and not known."""
    atoms, made = counts.sum(), {}
    for name, kind in config.properties.items():
        scale = fit.scales[name]
        if kind in NUMBERS:
            value = _number(sample, name, np.nan) - fit.references[name].predict(counts)[0]
            made[name] = _target(np.array([[value]]), scale)
        elif kind == "atoms":
            numbers = np.asarray(sample["number"].values).astype(np.int64)
            own = count_elements(numbers, np.ones(len(numbers), np.int64), fit.elements)
            values = _array(sample, name, (len(numbers),)) - fit.references[name].predict(own)
            made[name] = _target(values[None, :, None], scale)
        else:
            made[name] = _target(_array(sample, name, (3,) if kind == "dipole" else ()).reshape(1, -1), scale)
    if config.forces != "none":
        forces = _array(sample, FORCES, (int(atoms), 3))
        made[FORCES] = _target(forces[None], fit.force_scale)
    if config.forces == "gradient" and cell is not None:
        stress = _array(sample, STRESS, (6,)) if cell.any(1).all() else np.full(6, np.nan)
        made[STRESS] = _target(stress[None], fit.force_scale * float(atoms) / volume_of(cell))
    return made


def volume_of(cell: np.ndarray) -> float:
    """Å³, or Å² and Å where fewer directions are periodic."""
    vectors = cell[(cell != 0).any(1)]
    return float(np.sqrt(np.linalg.det(vectors @ vectors.T)))


def _target(value: np.ndarray, scale: float) -> Target:
    known = np.isfinite(value)
    return Target(_tensor(np.where(known, value, 0.0)), torch.from_numpy(known), torch.zeros([1] * value.ndim),
                  torch.full([1] * value.ndim, scale, dtype=torch.get_default_dtype()))


def _number(sample: Mapping[Any, Any], name: str, default: float) -> float:
    return float(sample[name].values) if name in sample else default


def _array(sample: Mapping[Any, Any], name: str, shape: Sequence[int]) -> np.ndarray:
    return np.asarray(sample[name].values, dtype=np.float64) if name in sample else np.full(shape, np.nan)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())
