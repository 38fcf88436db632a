"""Configurations of a split, one sample each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.errors import InputError

NEEDED = {"number": ("atom",), "position": ("atom", "xyz")}
UNITS = {"position": "angstrom", "forces": "eV/angstrom", "energy": "eV", "stress": "eV/angstrom^3",
         "cell": "angstrom", "isolated_energy": "eV"}


@dataclass(frozen=True)
class Layout:
    """What a store of molecules holds. variables: name → dims without the group dimension, of all that samples have."""

    store: Store
    variables: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, store: Store) -> Layout:
        """Raises `InputError` unless there are atoms with numbers and positions, all in the domain's units."""
        meta = store.meta
        for name, dims in NEEDED.items():
            if name not in meta.variables or meta.variables[name].dims != dims or "atom" not in meta.ragged:
                raise InputError(store.url, key=name, found=f"domain {meta.domain} without {name} {dims}",
                                 expected="number (atom) and position (atom, xyz), atom ragged",
                                 fix="build the store as domain molecules")
        for name, unit in UNITS.items():
            if name in meta.variables and meta.variables[name].unit != unit:
                raise InputError(store.url, key=name, found=f"unit {meta.variables[name].unit}", expected=unit,
                                 fix="build the store with the reader's unit options")
        kept = {name: v.dims for name, v in meta.variables.items() if v.role in ("state", "label", "parameter")
                and name not in ("isolated_energy", "molecule")}
        return cls(store, kept)

    def sample(self, group: int) -> xr.Dataset:
        """All that is known of one configuration, in the store's units."""
        meta = self.store.meta
        data = {name: (dims, self.store.read(name, group), {"units": meta.variables[name].unit})
                for name, dims in self.variables.items()}
        return xr.Dataset(data, attrs={"domain": "molecules", "dataset": meta.dataset,
                                       "source": f"{meta.dataset}/{meta.group_dim} {group}"})

    def of_groups(self, name: str, groups: np.ndarray) -> np.ndarray:
        """A variable of these configurations, or of all their atoms, one after the other."""
        parts = [self.store.read(name, int(group)) for group in groups]
        ragged = self.store.meta.variables[name].dims[:1] == ("atom",)
        return np.concatenate(parts) if ragged else np.stack(parts)

    def members(self, split: SplitName) -> np.ndarray:
        """``(n,)`` the groups of a split."""
        return np.array([block.group for block in self.store.meta.splits.of(split)], np.int64)


@dataclass(frozen=True)
class MoleculeWindows:
    """One sample per configuration. rotate: about a random axis in training; vectors turn with it."""

    layout: Layout
    groups: np.ndarray
    rotate: bool = False

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        sample = self.layout.sample(int(self.groups[index]))
        return turned(sample, random_rotation(rng)) if self.rotate else sample


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """``(3, 3)`` rotation, uniform: of a unit quaternion of normal numbers (Shoemake, Graphics Gems III, 1992)."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def turned(sample: xr.Dataset, rotation: np.ndarray) -> xr.Dataset:
    """The sample with every vector along ``xyz`` rotated, and its stress.

    >>> sample = xr.Dataset({"position": (("atom", "xyz"), [[1.0, 0, 0]])})
    >>> turned(sample, np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]))["position"].values.tolist()
    [[0.0, 1.0, 0.0]]
    """
    changed: dict[str, Any] = {}
    for name, array in sample.data_vars.items():
        if array.dims[-1:] == ("xyz",):
            changed[str(name)] = array.dims, array.values @ rotation.T, array.attrs
        elif name == "stress":
            changed["stress"] = array.dims, to_voigt(rotation @ from_voigt(array.values) @ rotation.T), array.attrs
    return sample.assign(changed)


VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def from_voigt(stress: np.ndarray) -> np.ndarray:
    """``(6,)`` xx, yy, zz, yz, xz, xy → ``(3, 3)``."""
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def to_voigt(stress: np.ndarray) -> np.ndarray:
    return np.array([stress[i, j] for i, j in VOIGT])
