"""The ASE calculator: encoded once per molecule, then only moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from sciml.data.readers._molecules_options import CHARGE, LENGTH, factor
from sciml.domains.molecules.encode import check_places
from sciml.handles.ase import result_of, sample_of, told
from sciml.handles.atomic import atomic_energies
from sciml.handles.potential import Evaluated, Packed, at, molecules_of, pack
from sciml.predictor import Predictor
from sciml.traced import compile_forward

Key = tuple[bytes, tuple[bool, ...], tuple[tuple[str, float], ...]]


class PotentialCalculator(Calculator):
    """One or several checkpoints on one structure; see `sciml.handles.ase.calculator`."""

    def __init__(self, members: Sequence[Predictor], datasets: Sequence[str], *, compile: bool = False) -> None:
        super().__init__()
        self.compile = compile
        self.members, self.datasets = tuple(members), tuple(datasets)
        self.implemented_properties = ["energy", "free_energy", "energies"]
        kinds = {molecules_of(member).config.forces for member in self.members}
        if "none" not in kinds:
            self.implemented_properties.append("forces")
        if kinds == {"gradient"}:
            self.implemented_properties.append("stress")
        self._units = _ase_units(self.members[0], self.datasets[0])
        self.implemented_properties += [name for name, kind in molecules_of(self.members[0]).config.properties.items()
                                        if (name, kind) in (("dipole", "dipole"), ("charges", "atoms"))]
        self._key: Key | None = None
        self._packed: list[Packed] = []

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed, exactly: places, numbers, cell, periodic directions, and what ``atoms.info`` says of charge
        and spin. Nothing else is read."""
        before = self.atoms
        if before is None:
            return list(all_changes)
        pairs = {"positions": (before.positions, atoms.positions), "numbers": (before.numbers, atoms.numbers),
                 "cell": (before.cell.array, atoms.cell.array), "pbc": (before.pbc, atoms.pbc)}
        changes = [name for name, (ours, theirs) in pairs.items() if not np.array_equal(ours, theirs)]
        return changes if told(before) == told(atoms) else [*changes, "info"]

    def calculate(self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",),
                  system_changes: Sequence[str] = tuple(all_changes)) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        position, cell = self._place(self.atoms)
        found = [at(member, packed, position, cell) for member, packed in zip(self.members, self._packed)]
        names = set.intersection(*(set(one.properties) for one in found))
        means = {name: float(np.mean([one.properties[name][0] for one in found])) for name in sorted(names)}
        forces, stress = (_stack(found, name) for name in ("forces", "stress"))
        whole = bool(self.atoms.pbc.all())
        self.results: dict[str, Any] = result_of(means, None if forces is None else forces.mean(0),
                                                 stress.mean(0)[0] if stress is not None and whole else None)
        if len(found) > 1:
            self.results["energy_std"] = float(np.std([one.energy[0] for one in found], ddof=1))
            if forces is not None:
                self.results["forces_std"] = forces.std(0, ddof=1)
        for kind in ("dipoles", "atoms"):
            for name in set.intersection(*(set(getattr(one, kind)) for one in found)):
                mean = np.mean([getattr(one, kind)[name] for one in found], axis=0)
                self.results[name] = mean[0] * self._units.get(name, 1.0) if kind == "dipoles" else mean
        if "energies" in properties:
            parts = [atomic_energies(m, p, position, cell) for m, p in zip(self.members, self._packed)]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                self.results["energies"] = np.mean(np.stack(known), axis=0)

    def _place(self, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where the atoms are, ``(n, 3)`` and ``(1, 3, 3)`` Å; encodes them anew if they are others than before."""
        key = atoms.numbers.tobytes(), tuple(map(bool, atoms.pbc)), tuple(sorted(told(atoms).items()))
        if key != self._key:
            self._key = None
            self._packed = [pack(m, [sample_of(atoms, d)]) for m, d in zip(self.members, self.datasets)]
            if self.compile:
                self.members = tuple(compile_forward(m, p.batch) for m, p in zip(self.members, self._packed))
            self._key = key
        cell = None
        if atoms.pbc.any():
            cell = torch.from_numpy(np.asarray(sample_of(atoms, self.datasets[0])["cell"].values))[None]
        check_places(atoms.positions, None if cell is None else cell[0].numpy(), "atoms")
        return torch.from_numpy(atoms.positions.copy()), cell


def _ase_units(member: Predictor, dataset: str) -> dict[str, float]:
    """What the dipole that ASE knows by that name is multiplied by to be in e·Å."""
    adapter = molecules_of(member)
    if adapter.config.properties.get("dipole") != "dipole":
        return {}
    unit = adapter.known(dataset, "checkpoint").units["dipole"]
    return {"dipole": factor(unit, f"{CHARGE}*{LENGTH}", where="checkpoint", key="dipole")}


def _stack(found: Sequence[Evaluated], name: str) -> np.ndarray | None:
    """``(M, …)`` of all members, None if one doesn't know it."""
    values = [getattr(one, name) for one in found]
    return None if any(value is None for value in values) else np.stack(values)
