"""Checkpoints for the Atomic Simulation Environment: a calculator, and many structures at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sciml.errors import InputError
from sciml.handles.potential import at, dataset_of, in_float64, molecules_of, opened, pack
from sciml.predictor import Predictor

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

MAX_PAIRS = 1 << 16
"""Of atoms in one batch: its size in memory."""
Source = Predictor | str | Path


def calculator(checkpoint: Source, *, dataset: str | None = None, committee: Sequence[Source] = (),
               double: bool = False, compile: bool = False) -> Calculator:
    """An ASE calculator: energy, free_energy (the same), forces and, with three periodic directions, stress (eV/Å³,
    Voigt, positive under tension); further properties of the checkpoint under their own names in ``results``, in the
    units of their labels, but for a vector named ``dipole``, which is in e·Å as ASE has it.

    energies ``(n,)``: what the network adds up, plus each atom's element reference; they sum to the energy, but how it
    is divided among atoms has no meaning of its own. Charge and spin multiplicity are read from
    ``atoms.info["charge"]`` and ``["spin"]``. dataset: whose level of theory, if the checkpoint knows several.
    committee: further checkpoints; results are then means, with the sample standard deviations ``energy_std`` (eV) and
    ``forces_std (n, 3)``. double: compute in float64 (vibrations, tight optimisation). compile: each molecule gets a
    program of its own (a minute at first, then steps several times faster; not for periodic cells). Raises `InputError`
    on elements that a checkpoint doesn't know.
    """
    require_ase()
    from sciml.handles._calculator import PotentialCalculator

    members = [opened(source) for source in (checkpoint, *committee)]
    names = tuple(dataset_of(molecules_of(member), dataset) for member in members)
    return PotentialCalculator([in_float64(m) if double else m for m in members], names, compile=compile)


def evaluate_many(checkpoint: Source, structures: Sequence[Atoms], *, dataset: str | None = None,
                  max_pairs: int = MAX_PAIRS) -> list[dict[str, Any]]:
    """Results of many structures, in their order: energy (eV), forces (eV/Å), stress where all directions are periodic,
    further properties by name, in the units of their labels. Structures of any sizes are packed one after the other,
    none is padded; a batch has at most about `max_pairs` pairs of atoms."""
    require_ase()
    predictor = opened(checkpoint)
    adapter = molecules_of(predictor)
    name = dataset_of(adapter, dataset)
    samples = [sample_of(atoms, name, f"structure {i}") for i, atoms in enumerate(structures)]
    results = []
    for part in batches([_pairs(s, adapter.config.cutoff_angstrom) for s in samples], max_pairs):
        packed = pack(predictor, samples[part])
        found, start = at(predictor, packed), 0
        for i, sample in enumerate(samples[part]):
            stop = start + sample.sizes["atom"]
            forces = None if found.forces is None else found.forces[start:stop]
            stress = found.stress[i] if found.stress is not None and bool(sample["periodic"].all()) else None
            more = {k: v[i] for k, v in found.dipoles.items()} | {k: v[start:stop] for k, v in found.atoms.items()}
            results.append(result_of({k: float(v[i]) for k, v in found.properties.items()}, forces, stress) | more)
            start = stop
    return results


def result_of(properties: dict[str, float], forces: np.ndarray | None, stress: np.ndarray | None) -> dict[str, Any]:
    """As ASE names them."""
    found: dict[str, Any] = {**properties, "free_energy": properties["energy"]}
    return found | ({} if forces is None else {"forces": forces}) | ({} if stress is None else {"stress": stress})


def batches(costs: Sequence[float], limit: float) -> Iterator[slice]:
    """Runs of neighbours whose costs add up to at most `limit`; one that costs more is alone.

    >>> [(part.start, part.stop) for part in batches([3, 3, 9, 1], 6)]
    [(0, 2), (2, 3), (3, 4)]
    """
    start, total = 0, 0.0
    for i, cost in enumerate(costs):
        if i > start and total + cost > limit:
            yield slice(start, i)
            start, total = i, 0.0
        total += cost
    if len(costs) > start:
        yield slice(start, len(costs))


def sample_of(atoms: Atoms, dataset: str, where: str = "atoms") -> xr.Dataset:
    """What the domain's adapter encodes. Raises `InputError` for a periodic direction without a lattice vector."""
    cell, periodic = np.asarray(atoms.cell.array, np.float64), np.asarray(atoms.pbc, bool)
    if bool((periodic & ~cell.any(1)).any()):
        raise InputError(where, key="pbc", found=f"{periodic.tolist()} with cell {cell.tolist()}",
                         expected="a lattice vector for each periodic direction",
                         fix="set atoms.cell, or atoms.pbc = False for a molecule")
    data: dict[str, Any] = {"number": ("atom", atoms.numbers), "position": (("atom", "xyz"), atoms.positions),
                            "cell": (("lattice", "xyz"), cell * periodic[:, None]),
                            "periodic": ("lattice", periodic.astype(np.int8))}
    data |= {name: ((), value) for name, value in told(atoms).items()}
    return xr.Dataset(data, attrs={"domain": "molecules", "dataset": dataset, "source": where})


def told(atoms: Atoms) -> dict[str, float]:
    """Charge and spin multiplicity, as far as ``atoms.info`` says."""
    return {name: float(atoms.info[name]) for name in ("charge", "spin") if atoms.info.get(name) is not None}


def _pairs(sample: xr.Dataset, cutoff: float) -> float:
    """About how many pairs of atoms see each other."""
    number = sample.sizes["atom"]
    if not bool(sample["periodic"].any()):
        return float(number * number)
    vectors = sample["cell"].values[sample["periodic"].values.astype(bool)]
    volume = max(float(np.sqrt(np.linalg.det(vectors @ vectors.T))), 1e-3)
    return number * max(number, number / volume * 4 / 3 * np.pi * cutoff**3)


def require_ase() -> None:
    """Raises `InputError` that says how to install it."""
    try:
        import ase  # noqa: F401
    except ImportError:
        raise InputError("Python", key="ase", found="not installed", expected="the Atomic Simulation Environment",
                         fix='pip install "sciml[molecules]"') from None
