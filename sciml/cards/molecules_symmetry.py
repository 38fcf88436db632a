"""Symmetries of energy and forces, and what follows: no net force or torque; distant copies don't interact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from sciml.cards import Entry, judged
from sciml.domains.molecules.windows import random_rotation, turned
from sciml.handles.potential import Evaluated, Packed, at, pack
from sciml.predictor import Predictor

APART_ANGSTROM = 100.0
SHIFT_ANGSTROM = (3.1, -4.7, 2.3)


@dataclass(frozen=True)
class Precision:
    """Of what is measured: its name, the limit of relative errors, and that of an energy (eV)."""

    name: str
    relative: float
    energy_ev: float


def symmetries(predictor: Predictor, samples: Sequence[xr.Dataset], precision: Precision, seed: int) -> list[Entry]:
    """Rotation, translation, permutation; net force, net torque; extensivity. The error of a symmetry is the larger of
    the forces' (relative) and of the energy's, per atom and over the forces' root mean square times 1 Å."""
    rng = np.random.default_rng(seed)
    packed = pack(predictor, samples)
    before = at(predictor, packed)
    rotation, shift = random_rotation(rng), torch.tensor(SHIFT_ANGSTROM, dtype=torch.float64)
    orders = [rng.permutation(s.sizes["atom"]) for s in samples]
    place = np.concatenate([o + start for o, start in zip(orders, np.cumsum([0, *map(len, orders[:-1])]))])
    rotated = at(predictor, pack(predictor, [turned(s, rotation) for s in samples]))
    moved = at(predictor, packed, packed.position + shift, packed.cell)
    permuted = at(predictor, pack(predictor, [s.isel(atom=o) for s, o in zip(samples, orders)]))
    name, limit = precision.name, precision.relative
    found = [judged(f"rotation error, {name}", _error(before, rotated, forces_of(before) @ rotation.T), "1", limit),
             judged(f"translation error, {name}", _error(before, moved, forces_of(before)), "1", limit),
             judged(f"permutation error, {name}", _error(before, permuted, forces_of(before)[place]), "1", limit),
             judged(f"net force, {name}", _net_force(packed, before), "1", limit, "over the sum of forces' lengths")]
    if packed.cell is None:
        found.append(judged(f"net torque, {name}", _net_torque(packed, before), "1", limit,
                            "over the sum of torques' possible lengths"))
    single = at(predictor, pack(predictor, samples[:1])).residual[0]
    twice = at(predictor, pack(predictor, [doubled(samples[0])])).residual[0]
    what = "a cell repeated once" if packed.cell is not None else f"two copies {APART_ANGSTROM:g} Å apart"
    found.append(judged(f"extensivity, {name}", float(abs(twice - 2 * single)), "eV", precision.energy_ev,
                        f"energy of {what}, less twice that of one"))
    return found


def forces_of(found: Evaluated) -> np.ndarray:
    assert found.forces is not None
    return found.forces


def _error(before: Evaluated, after: Evaluated, expected: np.ndarray) -> float:
    scale = float(np.sqrt(np.mean(expected**2))) or 1.0
    forces = float(np.sqrt(np.mean((forces_of(after) - expected) ** 2))) / scale
    energy = float(np.abs(after.residual - before.residual).max()) / scale * len(before.residual) / len(expected)
    return max(forces, energy)


def _net_force(packed: Packed, found: Evaluated) -> float:
    forces, segment = forces_of(found), packed.segment.numpy()
    length = np.linalg.norm(forces, axis=1)
    return max(float(np.linalg.norm(forces[segment == s].sum(0)) / max(length[segment == s].sum(), 1e-30))
               for s in range(packed.batch.num_segments))


def _net_torque(packed: Packed, found: Evaluated) -> float:
    arm, forces, segment = (packed.position - packed.centre).numpy(), forces_of(found), packed.segment.numpy()
    most = np.linalg.norm(arm, axis=1) * np.linalg.norm(forces, axis=1)
    return max(float(np.linalg.norm(np.cross(arm, forces)[segment == s].sum(0)) / max(most[segment == s].sum(), 1e-30))
               for s in range(packed.batch.num_segments))


def doubled(sample: xr.Dataset) -> xr.Dataset:
    """Two copies far from one another; of a periodic cell, the cell repeated once along its first periodic vector."""
    periodic = np.asarray(sample["periodic"].values, bool) if "periodic" in sample else np.zeros(3, bool)
    kept = sample[[name for name in ("number", "position", "cell", "periodic", "charge", "spin") if name in sample]]
    shift = np.array([APART_ANGSTROM, 0.0, 0.0])
    if periodic.any():
        cell = np.array(sample["cell"].values, np.float64)
        which = int(np.argmax(periodic))
        shift = cell[which].copy()
        cell[which] *= 2
        kept = kept.assign(cell=(sample["cell"].dims, cell))
    other = kept.assign(position=(("atom", "xyz"), np.asarray(sample["position"].values) + shift))
    return xr.concat([kept, other], dim="atom", data_vars="minimal", coords="minimal",
                     compat="override").assign_attrs(sample.attrs)
