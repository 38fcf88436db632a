"""Data of one's own: Langevin dynamics of molecules by name or SMILES, with energies and forces of what is kept.

m dv/dt = F − γ m v + √(2 γ m k T) ξ, split as B A O A B (Leimkuhler & Matthews, Applied Mathematics Research eXpress,
2013). Noise is keyed by (seed, trajectory, step) and the potential is made anew for each stretch of frames, so a build
that was killed goes on from what is kept in the cache (`sciml.assets.cache_folder`) to the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from sciml.assets import cache_folder
from sciml.data.builders.molecular_potentials import Structure, isolated_energy, masses, potential, structure
from sciml.data.elements import symbols
from sciml.errors import InputError
from sciml.recipe import Section, validate

BOLTZMANN = 8.617333262e-5
"""eV/K (CODATA 2018)."""
ACCELERATION = 9.648533212e-3
"""Å/fs² of 1 eV/Å on 1 u (CODATA 2018)."""
STRETCH = 50
"""Frames between two savings."""
FAR = 4.0
"""A molecule that is so many times as large as it was has come apart."""


class ByName(Section):
    """A molecule by SMILES, embedded in 3-D by RDKit (the extra `rdkit`)."""

    smiles: str


class Options(Section):
    """molecules: names (water, methanol, ethanol, or as ``ase.build.molecule``) or ``{smiles: CCO}``. One trajectory
    for each molecule, temperature and run; of each, `frames` are kept, one in `every` steps of dt_fs, after
    equilibrate_fs. Configurations are in the order (run, frame, molecule, temperature), so that a split in order
    leaves whole runs for testing."""

    molecules: tuple[str | ByName, ...] = Field(min_length=1)
    level_of_theory: Literal["GFN2-xTB", "GFN1-xTB", "morse"]
    temperature_k: tuple[float, ...] = (300.0,)
    frames: int = Field(default=100, ge=1)
    runs: int = Field(default=1, ge=1)
    every: int = Field(default=20, ge=1)
    dt_fs: float = Field(default=0.5, gt=0, le=5)
    equilibrate_fs: float = Field(default=500.0, ge=0)
    friction_per_ps: float = Field(default=10.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        if not self.temperature_k or min(self.temperature_k) <= 0:
            raise ValueError("temperature_k must be temperatures above 0 K")
        return self


@dataclass
class Trajectory:
    """Where a trajectory is, and what was kept. step: of dt; position, velocity ``(n, 3)`` in Å and Å/fs; places and
    forces ``(frame, n, 3)``, energies ``(frame,)``."""

    step: int
    position: np.ndarray
    velocity: np.ndarray
    places: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as out:
            np.savez(out, **vars(self))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        with np.load(path, allow_pickle=False) as held:
            return cls(int(held["step"]), *(held[name] for name in ("position", "velocity", "places", "energies",
                                                                    "forces")))


def simulate(molecule: Structure, temperature_k: float, options: Options, key: tuple[int, ...],
             kept: Path | None = None) -> Trajectory:
    """One trajectory, from what `kept` holds if it is there. key: of its noise.

    Raises `InputError` if the molecule comes apart or its energy is no number.
    """
    if kept is not None and kept.exists():
        trajectory = Trajectory.load(kept)
    else:
        n = len(molecule.number)
        rng = np.random.default_rng((*key, 0))
        spread = np.sqrt(BOLTZMANN * temperature_k * ACCELERATION / masses(molecule.number))[:, None]
        trajectory = Trajectory(0, molecule.position.copy(), spread * rng.standard_normal((n, 3)),
                                np.zeros((0, n, 3)), np.zeros(0), np.zeros((0, n, 3)))
    while len(trajectory.energies) < options.frames:
        _stretch(trajectory, molecule, temperature_k, options, key)
        if kept is not None:
            trajectory.save(kept)
    return trajectory


def _stretch(trajectory: Trajectory, molecule: Structure, temperature_k: float, options: Options,
             key: tuple[int, ...]) -> None:
    """Up to `STRETCH` more frames, behind the equilibration if they are the first."""
    mass, dt = masses(molecule.number)[:, None], options.dt_fs
    size = np.linalg.norm(molecule.position - molecule.position.mean(0), axis=-1).max() + 1.0
    decay = np.exp(-options.friction_per_ps * 1e-3 * dt)
    noise = np.sqrt((1 - decay * decay) * BOLTZMANN * temperature_k * ACCELERATION / mass)
    evaluate = potential(options.level_of_theory, molecule)
    x, v = trajectory.position, trajectory.velocity
    energy, force = evaluate(x)
    places, energies, forces = list[np.ndarray](), list[float](), list[np.ndarray]()
    before = round(options.equilibrate_fs / dt)
    while len(energies) < min(STRETCH, options.frames - len(trajectory.energies)):
        trajectory.step += 1
        v = v + 0.5 * dt * ACCELERATION * force / mass
        x = x + 0.5 * dt * v
        rng = np.random.default_rng((*key, trajectory.step))
        v = decay * v + noise * rng.standard_normal(v.shape)
        x = x + 0.5 * dt * v
        energy, force = evaluate(x)
        v = v + 0.5 * dt * ACCELERATION * force / mass
        if trajectory.step > before and (trajectory.step - before) % options.every == 0:
            centred = x - (mass * x).sum(0) / mass.sum()
            if not np.isfinite(energy) or np.linalg.norm(centred, axis=-1).max() > FAR * size:
                raise InputError("molecular_dynamics", key=molecule.name, found="energy that is no number, or a "
                                 f"molecule that came apart, at step {trajectory.step} at {temperature_k:g} K",
                                 expected="a bound molecule", fix="lower temperature_k or dt_fs")
            places.append(centred)
            energies.append(energy)
            forces.append(force)
    trajectory.position, trajectory.velocity = x, v
    trajectory.places = np.concatenate([trajectory.places, places])
    trajectory.energies = np.concatenate([trajectory.energies, energies])
    trajectory.forces = np.concatenate([trajectory.forces, forces])


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """Configurations with energy (eV), forces (eV/Å), isolated_energy at the same level, temperature (K) and number of
    the run. Raises `InputError` naming the wrong option or the package that is missing."""
    chosen = validate(Options, dict(options), where="molecular_dynamics options")
    molecules = [_structure(entry, chosen) for entry in chosen.molecules]
    folder = cache_folder() / "molecular_dynamics" / _identity(chosen)
    cases = [(m, t) for m in range(len(molecules)) for t in range(len(chosen.temperature_k))]
    made: dict[tuple[int, int, int], Trajectory] = {}
    for run in range(chosen.runs):
        for m, t in cases:
            made[run, m, t] = simulate(molecules[m], chosen.temperature_k[t], chosen, (chosen.seed, run, m, t),
                                       folder / f"{run}-{m}-{t}.npz")
    order = [(run, frame, m, t) for run in range(chosen.runs) for frame in range(chosen.frames) for m, t in cases]
    return _dataset(chosen, molecules, made, order)


def _structure(entry: str | ByName, options: Options) -> Structure:
    if isinstance(entry, str):
        return structure(entry)
    from sciml.data.readers._molecules_rdkit import embedded

    found = embedded(entry.smiles, options.seed, "molecular_dynamics options", "molecules")
    return Structure(entry.smiles, found.number, found.position, found.charge, found.multiplicity)


def _identity(options: Options) -> str:
    try:
        program = version("tblite") if options.level_of_theory != "morse" else "1"
    except PackageNotFoundError:
        program = "none"
    return hashlib.sha256(json.dumps([options.model_dump(mode="json"), program]).encode()).hexdigest()[:16]


def _dataset(options: Options, molecules: list[Structure], made: Mapping[tuple[int, int, int], Trajectory],
             order: list[tuple[int, int, int, int]]) -> xr.Dataset:
    group = "configuration"
    elements = np.unique(np.concatenate([m.number for m in molecules]))
    alone = np.array([isolated_energy(options.level_of_theory, int(n)) for n in elements])

    def of_groups(values: list[Any], unit: str, role: str) -> tuple[str, np.ndarray, dict[str, str]]:
        return group, np.array(values), {"units": unit, "role": role}

    variables: dict[str, Any] = {
        "number": ("atom", np.concatenate([molecules[m].number for _, _, m, _ in order]).astype(np.int32),
                   {"units": "1", "role": "parameter"}),
        "position": (("atom", "xyz"), np.concatenate([made[r, m, t].places[f] for r, f, m, t in order]),
                     {"units": "angstrom", "role": "state"}),
        "forces": (("atom", "xyz"), np.concatenate([made[r, m, t].forces[f] for r, f, m, t in order]),
                   {"units": "eV/angstrom", "role": "label"}),
        "energy": of_groups([made[r, m, t].energies[f] for r, f, m, t in order], "eV", "label"),
        "molecule": of_groups([m for _, _, m, _ in order], "1", "parameter"),
        "temperature": of_groups([options.temperature_k[t] for _, _, _, t in order], "K", "parameter"),
        "run": of_groups([r for r, _, _, _ in order], "1", "parameter"),
        "isolated_energy": ((group, "element"), np.tile(alone, (len(order), 1)), {"units": "eV", "role": "parameter"})}
    counts = of_groups([len(molecules[m].number) for _, _, m, _ in order], "1", "rows")
    counts[2]["sample_dimension"] = "atom"
    variables["atom_count"] = counts
    for name, usual in (("charge", 0), ("spin", 1)):
        values = [getattr(molecules[m], "charge" if name == "charge" else "multiplicity") for _, _, m, _ in order]
        if any(value != usual for value in values):
            variables[name] = of_groups(values, "1", "parameter")
    names = ", ".join(f"{i}: {m.name}" for i, m in enumerate(molecules[:8]))
    return xr.Dataset(variables, {"xyz": ("xyz", ["x", "y", "z"], {"kind": "set"}),
                                  "element": ("element", symbols(elements), {"kind": "set"})},
                      {"domain": "molecules", "group_dim": group, "level_of_theory": options.level_of_theory,
                       "notes": [f"{options.level_of_theory}, molecules {names}"]})


PLUGIN = build
