"""Frames of any format as one canonical data set of molecules.

``number (atom)``, ``position (atom, xyz)`` in Å, ``atom_count (configuration)``, and what is known of ``energy``,
``forces``, ``stress``, ``cell``, ``periodic``, ``charge``, ``spin`` and labels; ``molecule (configuration)`` says
which are of one molecule, ``isolated_energy (configuration, element)`` are reference energies. Energies are in eV, as
total as the file has them: nothing is subtracted. What belongs to a configuration is in memory, what belongs to atoms
is read when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.elements import numbers_of, symbols
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._combine import options_of
from sciml.data.readers._molecules_frames import Frames, Judge, blocks_of
from sciml.data.readers._molecules_options import MoleculeOptions, molecule_options
from sciml.data.readers._molecules_plan import LABELS, OPTION, Plan, plan_of
from sciml.data.readers._molecules_survey import Survey, mixed_units, survey
from sciml.data.readers.guess import Guess, guess
from sciml.data.safety import Limits, limits_of
from sciml.errors import InputError

GROUP = "configuration"
VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
AXES = {"xyz": ("x", "y", "z"), "lattice": ("a", "b", "c"), "voigt": VOIGT}
DIMS = {"energy": (), "charge": (), "spin": (), "stress": ("voigt",), "forces": ("xyz",)}
ROLES = {"charge": "parameter", "spin": "parameter"}
FEW = 8


def limits(source: Any, path: str) -> Limits:
    """The limits of a source's files."""
    return limits_of(options_of(source), path)


def read(files: Sequence[Frames], source: Any, format: str, own: frozenset[str] = frozenset()) -> xr.Dataset:
    """The data set of a source. own: options of the reader itself. Raises `InputError` on whatever is wrong."""
    options = options_of(source)
    chosen = molecule_options(options, getattr(source, "name", "source"), own)
    return dataset(files, chosen, Judge(), format=format, selected=options.get("select", {}),
                   mask=getattr(source, "missing", "refuse") == "mask")


def look(file: Frames, format: str, limit_bytes: int, options: Mapping[str, Any] | None = None) -> Guess:
    """What a file is, before anybody said what its keys mean: nothing is refused, everything is told."""
    judge = Judge(asking=True)
    plan = plan_of([file], MoleculeOptions(), Judge(asking=True))
    found = {"virial" if plan.quantities[name].virial else name: plan.quantities[name].key for name in DIMS
             if name in plan.quantities}
    stated = {OPTION[name]: unit for name, unit in {**file.units, **file.stated}.items()
              if name == "length" or name in found}
    made = dataset([file], MoleculeOptions(), judge, format=format)
    told = {**(options or {}), **found, **stated, **judge.options, "level_of_theory": ""}
    return guess(made, file.path, options=told, limit_bytes=limit_bytes)


def dataset(files: Sequence[Frames], options: MoleculeOptions, judge: Judge, *, format: str,
            selected: Mapping[str, Any] | None = None, mask: bool = False) -> xr.Dataset:
    """All frames of all files, less isolated atoms, which become references. Raises `InputError`."""
    plan = plan_of(files, options, judge)
    alone = _isolated_files(files, options)
    surveys = [survey(file, plan, options, judge, isolated=is_alone, mask=mask)
               for file, is_alone in zip(files, alone, strict=True)]
    _check_units(files, surveys, options, judge)
    known = _references(files, surveys, options, judge)
    kept = _kept(files, surveys, selected or {})
    table = Table.of(surveys, kept)
    variables = _variables(table, plan, known, judge)
    variables |= _atoms(files, surveys, kept, plan)
    _notes(files, surveys, table, plan, judge)
    coords = {dim: lattice.coordinate(dim, np.array(labels), "set") for dim, labels in AXES.items()
              if any(dim in v.dims for v in variables.values())}
    coords["element"] = lattice.coordinate("element", np.array(symbols(table.elements)), "set")
    return lattice.canonical(variables, coords, domain="molecules", format=format, group_dim=GROUP, notes=judge.notes,
                             missing=judge.missing, suspicious=judge.suspicious)


@dataclass(frozen=True)
class Table:
    """What the kept configurations of all files have, one row each."""

    counts: np.ndarray
    values: Mapping[str, np.ndarray]
    cell: np.ndarray
    periodic: np.ndarray
    molecule: np.ndarray
    formula: Sequence[str]
    elements: np.ndarray

    @classmethod
    def of(cls, surveys: Sequence[Survey], kept: Sequence[np.ndarray]) -> Table:
        def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate([part[keep] for part, keep in zip(parts, kept, strict=True)])

        identity = [s.identity[i] for s, keep in zip(surveys, kept) for i in np.flatnonzero(keep)]
        formula = [s.formula[i] for s, keep in zip(surveys, kept) for i in np.flatnonzero(keep)]
        codes = {text: code for code, text in enumerate(dict.fromkeys(identity))}
        elements = np.unique(np.concatenate([s.elements for s in surveys]))
        return cls(joined([s.counts for s in surveys]),
                   {name: joined([s.values[name] for s in surveys]) for name in surveys[0].values},
                   joined([s.cell for s in surveys]), joined([s.periodic for s in surveys]),
                   np.array([codes[text] for text in identity], dtype=np.int64), formula,
                   elements[(elements >= 1) & (elements <= 118)])


def _isolated_files(files: Sequence[Frames], options: MoleculeOptions) -> list[bool]:
    """Which files hold isolated atoms, as the option names them (a cached file has a tag before its name)."""
    if not isinstance(options.isolated, str):
        return [False] * len(files)
    wanted = os.path.basename(options.isolated)
    names = [os.path.basename(file.path) for file in files]
    found = [name == wanted or name.partition("-")[2] == wanted for name in names]
    if sum(found) != 1:
        raise InputError(files[0].path, key="options.isolated", found=repr(options.isolated)[:80],
                         expected=f"one of the source's files: {', '.join(names)}",
                         fix="list it under files too, with its hash")
    return found


def _references(files: Sequence[Frames], surveys: Sequence[Survey], options: MoleculeOptions,
                judge: Judge) -> dict[int, float]:
    """Energy of the isolated atom by atomic number, eV."""
    found: dict[int, tuple[float, str]] = {}
    given = options.isolated if isinstance(options.isolated, dict) else {}
    for name, energy in given.items():
        number = int(numbers_of([name])[0])
        if not number or not np.isfinite(energy):
            raise InputError(files[0].path, key=f"options.isolated.{name}", found=f"{energy}",
                             expected="a chemical symbol and its energy in eV", fix="correct it")
        found[number] = (energy, "options.isolated")
    for file, seen in zip(files, surveys, strict=True):
        rows = np.flatnonzero(seen.isolated)
        if len(rows) and options.energy_kind == "relative":
            judge.refuse(InputError(file.path, key=f"frame {rows[0]}", found="an isolated atom beside energy_kind: "
                                    "relative", expected="references of total energies only",
                                    fix="leave the frames out, or set energy_kind: total"))
        if len(rows) and "energy" not in seen.values:
            judge.notes.append(f"{len(rows)} frames of isolated atoms without an energy are left out")
            continue
        for row in rows:
            number, energy = int(seen.single[row]), float(seen.values["energy"][row])
            before, where = found.setdefault(number, (energy, f"frame {row} of {os.path.basename(file.path)}"))
            if not np.isfinite(energy) or abs(before - energy) > 1e-6 * max(1.0, abs(energy)):
                judge.refuse(InputError(file.path, key=f"frame {row}", found=f"{energy:.8g} eV for isolated "
                                        f"{symbols([number])[0]}", expected="finite energies" if before == energy else
                                        f"{before:.8g} eV, as {where} says", fix="keep one of them"))
    return {number: energy for number, (energy, _) in found.items()}


def _kept(files: Sequence[Frames], surveys: Sequence[Survey], selected: Mapping[str, Any]) -> list[np.ndarray]:
    """Frames of each file that become configurations: not isolated atoms, and within options.select."""
    kept = [~seen.isolated for seen in surveys]
    total = sum(int(keep.sum()) for keep in kept)
    if not total:
        raise InputError(files[0].path, key="frames", found="isolated atoms only", expected="configurations",
                         fix="list the files that hold them")
    for dim, bounds in dict(selected).items():
        good = dim == GROUP and isinstance(bounds, list | tuple) and len(bounds) == 2
        if not good or not 0 <= int(bounds[0]) < int(bounds[1]) <= total:
            raise InputError(files[0].path, key=f"options.select.{dim}", found=repr(bounds)[:60],
                             expected=f"{GROUP}: [start, stop], 0 ≤ start < stop ≤ {total}", fix="correct it")
        first = 0
        for keep in kept:
            rank = first + np.cumsum(keep) - 1
            first += int(keep.sum())
            keep &= (rank >= int(bounds[0])) & (rank < int(bounds[1]))
    return kept


def _check_units(files: Sequence[Frames], surveys: Sequence[Survey], options: MoleculeOptions, judge: Judge) -> None:
    if "energy" not in surveys[0].values or options.energy_kind == "relative":
        return
    energy = np.concatenate([seen.values["energy"][~seen.isolated] for seen in surveys])
    formula = [seen.formula[i] for seen in surveys for i in np.flatnonzero(~seen.isolated)]
    names = [f"{file.path} frame {i}" for file, seen in zip(files, surveys) for i in np.flatnonzero(~seen.isolated)]
    for error in mixed_units(energy, formula, names):
        judge.refuse(error)


def _variables(table: Table, plan: Plan, known: Mapping[int, float], judge: Judge) -> dict[str, xr.Variable]:
    """What belongs to configurations."""
    made = {"atom_count": lattice.variable((GROUP,), table.counts.astype(np.int64), "rows", "1",
                                           sample_dimension="atom"),
            "molecule": lattice.variable((GROUP,), table.molecule, "parameter", "1")}
    for name, values in table.values.items():
        if np.isnan(values).all():
            judge.notes.append(f"{name}: not known of any configuration, left out")
            continue
        wanted = plan.quantities[name]
        dims = DIMS.get(name, LABELS.get(wanted.shape, ()))
        made[name] = lattice.variable((GROUP, *dims), values, ROLES.get(name, "label"), wanted.unit)
    if table.periodic.any():
        made["cell"] = lattice.variable((GROUP, "lattice", "xyz"), table.cell, "parameter", "angstrom")
        made["periodic"] = lattice.variable((GROUP, "lattice"), table.periodic.astype(np.int8), "parameter", "1")
    present = [number for number in table.elements.tolist() if number in known]
    if 0 < len(present) < len(table.elements):
        absent = ", ".join(symbols(sorted(set(table.elements.tolist()) - set(present))))
        judge.refuse(InputError("isolated atoms", key="isolated_energy", found="energies of "
                                f"{', '.join(symbols(present))} and none of {absent}",
                                expected="the energy of every element, or of none",
                                fix="add them to options.isolated, or leave it out"))
    elif present:
        row = np.array([known.get(number, np.nan) for number in table.elements.tolist()])
        made["isolated_energy"] = lattice.variable((GROUP, "element"), np.tile(row, (len(table.counts), 1)),
                                                   "parameter", "eV")
    return made


def _atoms(files: Sequence[Frames], surveys: Sequence[Survey], kept: Sequence[np.ndarray],
           plan: Plan) -> dict[str, xr.Variable]:
    """What belongs to atoms, lazily, a block of frames at a time."""
    load = dask.delayed(_load, pure=False)
    named = {name: wanted for name, wanted in plan.quantities.items() if wanted.per_atom}
    kinds: dict[str, tuple[tuple[int, ...], Any]] = {"number": ((), np.int32), "position": ((3,), np.float64),
             **{name: (wanted.shape, np.float64) for name, wanted in named.items()}}
    parts: dict[str, list[da.Array]] = {name: [] for name in kinds}
    forceless = sum(seen.forceless for seen in surveys) == sum(int((~seen.isolated).sum()) for seen in surveys)
    for file, seen, keep in zip(files, surveys, kept, strict=True):
        for start, stop in blocks_of(file.sizes, file.bytes):
            rows = int(seen.counts[start:stop][keep[start:stop]].sum())
            if rows:
                block = load(_Held(file), start, stop, plan, keep[start:stop])
                for name, (shape, kind) in kinds.items():
                    parts[name].append(da.from_delayed(block[name], (rows, *shape), kind))
    made = {"number": lattice.variable(("atom",), da.concatenate(parts["number"]), "parameter", "1"),
            "position": lattice.variable(("atom", "xyz"), da.concatenate(parts["position"]), "state", "angstrom")}
    for name, wanted in named.items():
        if name != "forces" or not forceless:
            dims = DIMS.get(name, LABELS[wanted.shape])
            made[name] = lattice.variable(("atom", *dims), da.concatenate(parts[name]), "label", wanted.unit)
    return made


@dataclass(frozen=True)
class _Held:
    """Frames as one opaque object, which dask neither walks nor hashes."""

    file: Frames


def _load(held: _Held, start: int, stop: int, plan: Plan, keep: np.ndarray) -> dict[str, np.ndarray]:
    """Atoms of the kept frames of a block, in our units and under our names."""
    block = held.file.block(start, stop, plan.keys(True), {})
    atoms = np.repeat(keep, block.counts)
    made = {"number": block.number[atoms].astype(np.int32), "position": block.position[atoms] * plan.length}
    return made | {name: block.atoms[wanted.key][atoms].reshape(-1, *wanted.shape) * wanted.scale
                   for name, wanted in plan.quantities.items() if wanted.per_atom}


def _notes(files: Sequence[Frames], surveys: Sequence[Survey], table: Table, plan: Plan, judge: Judge) -> None:
    total = sum(int((~seen.isolated).sum()) for seen in surveys)
    notes = [note for file in files for note in file.notes]
    forceless = sum(seen.forceless for seen in surveys)
    if "forces" in plan.quantities and forceless:
        notes.append(f"{forceless} of {total} configurations have no forces, or not of all atoms: NaN")
    for name, values in table.values.items():
        unknown = int(np.isnan(values.reshape(len(values), -1)).any(1).sum())
        if 0 < unknown < len(values):
            notes.append(f"{unknown} of {len(values)} configurations have no {name}: NaN")
    if isolated := sum(int(seen.isolated.sum()) for seen in surveys):
        notes.append(f"{isolated} frames of isolated atoms are references, no configurations")
    boxed = sum(int((seen.counts == 1).sum()) for seen in surveys) - isolated
    if 0 < boxed < len(table.counts):
        notes.append(f"{boxed} configurations are single atoms; references are marked config_type=IsolatedAtom")
    names = list(dict.fromkeys(table.formula))
    count = int(table.molecule.max()) + 1
    notes.append(f"{len(table.counts)} configurations of {count} molecules: {', '.join(names[:FEW])}"
                 + (", …" if len(names) > FEW else ""))
    judge.notes.extend(notes)
