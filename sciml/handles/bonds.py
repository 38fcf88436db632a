"""Which atoms are bonded, and how long their bonds are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sciml.domains.molecules.elements import SYMBOLS
from sciml.handles.potential import Packed, molecules_of
from sciml.mixers.neighbours import find_neighbours
from sciml.predictor import Predictor

RADII = np.array([
    0.2, 0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05, 1.02, 1.06,
    2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22, 1.22, 1.20, 1.19, 1.20, 1.20, 1.16, 2.20,
    1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40, 2.44, 2.15,
    2.07, 2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51,
    1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40, 1.50, 1.50, 2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87,
    1.80, 1.69])
"""Å, by atomic number up to curium: covalent radii (Cordero et al., Dalton Trans. 2008, 2832). Beyond: 1.69."""
SLACK = 1.25
"""Atoms nearer than that many times the sum of their radii are bonded."""


HELD_ANGSTROM = 1.5
"""From a heavy atom, within which a hydrogen is bound to it whatever bond it came from."""


@dataclass(frozen=True)
class Bonds:
    """B pairs of packed atoms: first and second ``(B,)``, segment ``(B,)``, shift ``(B, 3)`` Å that brings the second
    to its image, and length ``(B,)`` Å where they were found. number ``(n,)``: atomic numbers of all atoms."""

    first: np.ndarray
    second: np.ndarray
    segment: np.ndarray
    shift: np.ndarray
    length: np.ndarray
    number: np.ndarray

    def lengths(self, position: np.ndarray) -> np.ndarray:
        """``(B,)`` Å at places ``(n, 3)``."""
        return np.asarray(np.linalg.norm(position[self.second] + self.shift - position[self.first], axis=1))

    def broken(self, position: np.ndarray, stretch: float) -> np.ndarray:
        """Which bonds ``(k,)`` are longer or shorter by more than `stretch` Å. A hydrogen that has gone over to another
        heavy atom (within `HELD_ANGSTROM`) has been transferred, and broke nothing."""
        found = np.flatnonzero(np.abs(self.lengths(position) - self.length) > stretch)
        heavy = self.number > 1

        def transferred(bond: int) -> bool:
            ends = [i for i in (self.first[bond], self.second[bond]) if not heavy[i]]
            away = np.linalg.norm(position[heavy] - position[ends[0]], axis=1) if len(ends) == 1 else np.array([])
            return bool(away.size and away.min() < HELD_ANGSTROM)

        return np.array([bond for bond in found if not transferred(int(bond))], np.int64)


def bonds_of(predictor: Predictor, packed: Packed) -> Bonds:
    """The bonds of packed configurations as they lie, each once."""
    adapter = molecules_of(predictor)
    length = adapter.config.cutoff_angstrom
    with torch.no_grad():
        pairs = find_neighbours(packed.batch.axes[0])
    first, second = pairs.receiver.numpy(), pairs.sender.numpy()
    vector = pairs.vector.double().numpy() * length
    position, ids = packed.position.numpy(), packed.batch.axes[0].ids
    assert ids is not None
    numbers = np.array([SYMBOLS.index(e) for e in adapter.frame().elements])[ids[0].numpy()]
    radius = RADII[np.minimum(numbers, len(RADII) - 1)]
    distance = np.linalg.norm(vector, axis=1)
    segment = packed.segment.numpy()
    shift = np.zeros_like(vector)
    if packed.cell is not None:
        cell = packed.cell.numpy()[segment[first]]
        images = np.einsum("bx,bxk->bk", vector - position[second] + position[first], np.linalg.pinv(cell)).round()
        shift = np.einsum("bk,bkx->bx", images, cell)
    once = (first < second) | ((first == second) & (shift @ np.array([1.0, 1e3, 1e6]) > 0))
    kept = once & (distance < SLACK * (radius[first] + radius[second]))
    return Bonds(first[kept], second[kept], segment[first[kept]], shift[kept], distance[kept], numbers)
