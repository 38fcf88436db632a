"""Forces against the energy they should be the slope of, their curl, and how smooth the energy is along a bond."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from sciml.cards import Entry, judged
from sciml.domains.molecules.encode import cell_of
from sciml.handles.bonds import bonds_of
from sciml.handles.potential import at, molecules_of, pack
from sciml.predictor import Predictor

STEP_ANGSTROM = 1e-3
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
"""First derivative by central differences of fourth order."""
SPACING_ANGSTROM = 0.005
CHUNK_ATOMS = 1024


def energies_at(predictor: Predictor, sample: xr.Dataset, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies without references ``(K,)`` eV and forces ``(K, n, 3)`` of one molecule at places ``(K, n, 3)`` Å."""
    number, atoms = places.shape[:2]
    size = max(1, min(number, CHUNK_ATOMS // atoms))
    packed = pack(predictor, [sample] * size)
    energies, forces = [], []
    for start in range(0, number, size):
        chunk = places[start: start + size]
        filled = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), 0)])
        found = at(predictor, packed, torch.from_numpy(filled.reshape(-1, 3)), packed.cell)
        assert found.forces is not None
        energies.append(found.residual[: len(chunk)])
        forces.append(found.forces.reshape(size, atoms, 3)[: len(chunk)])
    return np.concatenate(energies), np.concatenate(forces)


def derivatives(predictor: Predictor, samples: Sequence[xr.Dataset], atoms: int, seed: int) -> list[Entry]:
    """Of float64 weights: forces against central differences of the energy, and the asymmetry of the forces' Jacobian
    J = ∂F/∂r, ‖J − Jᵀ‖ / ‖J + Jᵀ‖: zero if and only if they have no curl. J is by central differences of the forces, so
    that it says nothing of how they were derived. At most `atoms` of a configuration are displaced."""
    slopes, curls = [], []
    for sample in samples:
        position = np.asarray(sample["position"].values, np.float64)
        rng = np.random.default_rng(seed)
        moved = np.sort(rng.permutation(len(position))[:atoms])
        unit = np.eye(position.size).reshape(-1, *position.shape)[(3 * moved[:, None] + np.arange(3)).ravel()]
        places = np.concatenate([position + k * STEP_ANGSTROM * unit for k in STENCIL])
        energies, forces = energies_at(predictor, sample, places)
        weights = np.array(list(STENCIL.values())) / STEP_ANGSTROM
        slope = np.tensordot(weights, energies.reshape(len(STENCIL), -1), 1)
        jacobian = np.tensordot(weights, forces[:, moved].reshape(len(STENCIL), len(unit), -1), 1)
        _, (own,) = energies_at(predictor, sample, position[None])
        slopes.append(_ratio(own[moved].ravel() + slope, own[moved]))
        curls.append(_ratio(jacobian - jacobian.T, jacobian + jacobian.T))
    return [judged("forces less central differences, float64", max(slopes), "1", 1e-6,
                   "over the length of the forces; of the energy, fourth order, 0.001 Å"),
            judged("curl of the forces, float64", max(curls), "1", 1e-6,
                   "asymmetry of their Jacobian over its symmetric part")]


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
    return float(np.linalg.norm(part)) / max(float(np.linalg.norm(whole)), 1e-30)


def smoothness(predictor: Predictor, sample: xr.Dataset) -> list[Entry]:
    """The largest jump of d²E/ds² when an atom at the end of a bond is pulled out along it, beyond the cutoff of all
    others: the difference between neighbouring points, extrapolated to no spacing (2 J(h/2) − J(h)). None for a
    periodic cell, where there is no way out, and for a single atom."""
    position = np.asarray(sample["position"].values, np.float64)
    if len(position) < 2 or cell_of(sample, "sample") is not None:
        return []
    cutoff = molecules_of(predictor).config.cutoff_angstrom
    atom, direction = _way_out(predictor, sample, cutoff)
    behind = position[atom] - np.delete(position, atom, 0)
    ahead = behind @ direction
    last = np.max(np.sqrt(np.maximum(cutoff**2 - (behind**2).sum(1) + ahead**2, 0)) - ahead)  # the last to be lost
    half = SPACING_ANGSTROM / 2
    along = np.arange(0, max(last, 0.0) + 0.2, half)
    places = np.repeat(position[None], len(along), 0)
    places[:, atom] += along[:, None] * direction
    energies, _ = energies_at(predictor, sample, places)
    jump = largest_jump(energies, half)
    return [judged("jump of the second derivative, float64", jump, "eV/angstrom^2", 0.1,
                   f"atom {atom} pulled out along its bond, to {along[-1]:.1f} Å")]


def largest_jump(values: np.ndarray, half: float) -> float:
    """Of the second derivative of values ``(n,)`` at points `half` apart; a step of it as it is, a kink without bound.

    >>> x = np.arange(0, 2, 0.005)
    >>> smooth, step = largest_jump(np.sin(x), 0.005), largest_jump(np.where(x > 1, (x - 1) ** 2, 0.0), 0.005)
    >>> smooth < 1e-3, 1 < step < 4
    (True, True)
    """
    fine = np.abs(np.diff(np.diff(values, 2) / half**2))
    second = (values[4:] - 2 * values[2:-2] + values[:-4]) / (2 * half) ** 2  # at every point, of twice the spacing
    coarse = np.abs(second[2:] - second[:-2])
    number = len(coarse)
    inner = np.maximum(fine[1: number + 1], fine[2: number + 2])
    return float(np.maximum(2 * inner - coarse, 0).max())


def _way_out(predictor: Predictor, sample: xr.Dataset, cutoff: float) -> tuple[int, np.ndarray]:
    """The atom that comes least near to the others when it leaves along a bond of its own, and where to."""
    position = np.asarray(sample["position"].values, np.float64)
    bonds = bonds_of(predictor, pack(predictor, [sample]))
    ends = np.stack([bonds.first, bonds.second], 1) if len(bonds.first) else _nearest(position)
    best, found = -np.inf, (0, np.array([1.0, 0, 0]))
    for leaving, staying in np.concatenate([ends, ends[:, ::-1]]):
        direction = position[leaving] - position[staying]
        direction = direction / np.linalg.norm(direction)
        path = position[leaving] + np.linspace(0.3, cutoff, 50)[:, None] * direction
        others = np.delete(position, leaving, 0)
        clearance = np.linalg.norm(path[:, None] - others[None], axis=-1).min()
        if clearance > best:
            best, found = clearance, (int(leaving), direction)
    return found


def _nearest(position: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(position[:, None] - position[None], axis=-1) + 1e9 * np.eye(len(position))
    return np.array([np.unravel_index(np.argmin(distance), distance.shape)])
