"""Which keys of the files are energy, forces and so on, and in which units."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sciml.data.readers._molecules_frames import Found, Frames, Judge
from sciml.data.readers._molecules_options import ENERGY, LENGTH, MoleculeOptions, factor
from sciml.errors import InputError

USUAL = {
    "energy": re.compile(r"(.+[_-])?(energy|energies|toten|etot)([_-](?!per_atom).+)?$|e$|e_tot$", re.IGNORECASE),
    "forces": re.compile(r"(.+[_-])?forces?([_-].+)?$", re.IGNORECASE),
    "stress": re.compile(r"(.+[_-])?stress([_-].+)?$", re.IGNORECASE),
    "virial": re.compile(r"(.+[_-])?virials?([_-].+)?$", re.IGNORECASE),
    "charge": re.compile(r"(total_|net_|molecular_|system_)?charge$", re.IGNORECASE),
    "spin": re.compile(r"(total_)?(spin|multiplicity|spin_multiplicity)$", re.IGNORECASE),
}
"""Names that may mean each quantity. Where several do, the user has to say which."""
GRADIENT = re.compile(r"grad", re.IGNORECASE)
OTHER = re.compile(r"kinetic|isolated|unit", re.IGNORECASE)
SHAPES: dict[str, set[tuple[int, ...]]] = {"energy": {()}, "forces": {(3,)}, "charge": {()}, "spin": {()},
                                           "stress": {(6,), (9,), (3, 3)}, "virial": {(6,), (9,), (3, 3)}}
LABELS = {(): (), (3,): ("xyz",)}
"""Shape of one value of a label → its dimensions."""


@dataclass(frozen=True)
class Wanted:
    """One quantity: its key in the files, whether it is of atoms, what values are multiplied by, unit and shape.
    virial: values are minus stress times volume."""

    key: str
    per_atom: bool
    scale: float = 1.0
    unit: str = "1"
    shape: tuple[int, ...] = ()
    virial: bool = False


@dataclass(frozen=True)
class Plan:
    """What is read: quantities by our name, and what positions are multiplied by to be in Å."""

    quantities: Mapping[str, Wanted] = field(default_factory=dict)
    length: float = 1.0

    def keys(self, per_atom: bool) -> dict[str, tuple[int, ...]]:
        """Key → shape of one value, of what is read of atoms or of frames."""
        return {w.key: w.shape for w in self.quantities.values() if w.per_atom is per_atom}


def plan_of(files: Sequence[Frames], options: MoleculeOptions, judge: Judge) -> Plan:
    """The plan of all files together. Raises `InputError` for keys that are ambiguous or missing, and for units that
    nothing states or that differ from file to file."""
    chosen: dict[str, Wanted] = {}
    if options.stress is not None and options.virial is not None:
        raise InputError(files[0].path, key="options.virial", found=f"{options.virial!r} beside stress "
                         f"{options.stress!r}", expected="one of them: they say the same", fix="leave one out")
    for name in USUAL:
        if name == "virial" and options.virial is None and "stress" in chosen:
            continue
        if name == "stress" and options.virial is not None:
            continue
        if (key := _key(name, files, options, judge)) is not None:
            chosen[name] = Wanted(key, name == "forces", shape=_shape(name, key, files, judge))
    units = _units(files, options, judge, chosen)
    for name, unit in units.items():
        if name in chosen:
            target = {"energy": ENERGY, "forces": f"{ENERGY}/{LENGTH}", "stress": f"{ENERGY}/{LENGTH}^3"}[name]
            scale = factor(unit, target, where=files[0].path, key=f"options.{OPTION[name]}")
            scale *= -1.0 if name == "forces" and GRADIENT.search(chosen[name].key) else 1.0
            chosen[name] = Wanted(chosen[name].key, name == "forces", scale, target, chosen[name].shape)
    length = factor(units["length"], LENGTH, where=files[0].path, key="options.length_unit") if "length" in units else 1
    if "virial" in chosen:
        virial, known = chosen.pop("virial"), units.get("energy") or options.energy_unit or files[0].units.get("energy")
        if known is None:
            raise InputError(files[0].path, key="virial", found="no unit of energy, which a virial has",
                             expected="one", fix="options: {energy_unit: …}")
        scale = factor(known, ENERGY, where=files[0].path, key="options.energy_unit")
        chosen["stress"] = Wanted(virial.key, False, scale, f"{ENERGY}/{LENGTH}^3", virial.shape, virial=True)
    chosen |= _labels(files, options, chosen)
    _unread(files, chosen, judge)
    return Plan(chosen, length)


OPTION = {"energy": "energy_unit", "forces": "force_unit", "stress": "stress_unit", "length": "length_unit"}


def _all(files: Sequence[Frames], per_atom: bool) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for file in files:
        for key, item in (file.atom_keys if per_atom else file.frame_keys).items():
            before = found.get(key, item)
            found[key] = Found(item.shape if item.shape == before.shape else None, before.frames, item.unit)
    return found


def _key(name: str, files: Sequence[Frames], options: MoleculeOptions, judge: Judge) -> str | None:
    """The key of a quantity, by the option or because it is the only one whose name and shape fit."""
    offered = _all(files, name == "forces")
    given: str | None = getattr(options, name)
    if given is not None:
        if given not in offered:
            raise InputError(files[0].path, key=f"options.{name}", found=f"no key {given!r} in the file",
                             expected=f"one of {', '.join(sorted(offered)) or 'none: it has no such numbers'}",
                             fix="correct it; sciml data sniff lists the keys")
        return given
    fits = [key for key, item in offered.items() if USUAL[name].match(key) and not OTHER.search(key)
            and (item.shape is None or item.shape in SHAPES[name])]
    if len(fits) > 1:
        judge.ask(InputError(files[0].path, key=name, found=f"{len(fits)} candidates: {', '.join(sorted(fits))}",
                             expected="to be told which one", fix=f"options: {{{name}: {sorted(fits)[0]}}}"), name)
        return None
    return fits[0] if fits else None


def _shape(name: str, key: str, files: Sequence[Frames], judge: Judge) -> tuple[int, ...]:
    shape = _all(files, name == "forces")[key].shape
    if shape is None or shape not in SHAPES[name]:
        fits = " or ".join(map(str, sorted(SHAPES[name])))
        raise InputError(files[0].path, key=key, found="values of different shapes" if shape is None else
                         f"values of shape {shape}", expected=f"shape {fits}, the same in all frames",
                         fix=f"name the right key: options: {{{name}: KEY}}")
    return shape


def _units(files: Sequence[Frames], options: MoleculeOptions, judge: Judge,
           chosen: Mapping[str, Wanted]) -> dict[str, str]:
    """Unit of length, energy, forces and stress, by the option, the file or the format; forces and stress have that of
    energy over length unless something says otherwise."""
    found: dict[str, str] = {}
    for name in ("length", *(n for n in ("energy", "forces", "stress") if n in chosen)):
        given, key = getattr(options, OPTION[name]), chosen[name].key if name in chosen else ""
        said = {file.path: unit for file in files
                if (unit := _said(file, name, key) or (None if given else file.units.get(name)))}
        differing = {unit for unit in said.values() if _differ(unit, given or next(iter(said.values())), files, name)}
        if differing:
            path = next(path for path, unit in said.items() if unit in differing)
            raise InputError(path, key=f"options.{OPTION[name]}", found=f"{name} in {sorted(differing)[0]!r}",
                             expected=f"{given or next(iter(said.values()))!r}, as "
                             f"{'the source file says' if given else 'in the other files'}",
                             fix="build one store per unit, or correct the option")
        unit = given or next(iter(said.values()), None)
        if unit is None and name in ("forces", "stress") and {"length", "energy"} <= found.keys():
            unit = f"({found['energy']})/({found['length']}){'^3' if name == 'stress' else ''}"
        if unit is None and name in ("forces", "stress") and judge.asking:
            continue
        if unit is None:
            example = {"length": "angstrom or bohr", "energy": "eV, hartree or kcal/mol"}.get(
                name, "eV/angstrom" if name == "forces" else "eV/angstrom^3 or GPa")
            judge.ask(InputError(files[0].path, key=name, found="no unit, and the format defines none",
                                 expected=f"a unit such as {example}",
                                 fix=f"options: {{{OPTION[name]}: …}}"), OPTION[name])
            continue
        found[name] = unit
    return found


def _said(file: Frames, name: str, key: str) -> str | None:
    """The unit that a file itself states, of the key or of all that are of the kind."""
    item = (file.atom_keys if name == "forces" else file.frame_keys).get(key)
    return (item.unit if item is not None and item.unit else None) or file.stated.get(name)


def _differ(said: str, given: str, files: Sequence[Frames], name: str) -> bool:
    key = f"options.{OPTION[name]}"
    base = {"length": LENGTH, "energy": ENERGY, "forces": f"{ENERGY}/{LENGTH}"}.get(name, f"{ENERGY}/{LENGTH}^3")
    ours, theirs = (factor(unit, base, where=files[0].path, key=key) for unit in (given, said))
    return abs(ours - theirs) > 1e-6 * abs(ours)


def _labels(files: Sequence[Frames], options: MoleculeOptions, chosen: Mapping[str, Wanted]) -> dict[str, Wanted]:
    found: dict[str, Wanted] = {}
    taken = {*chosen, "number", "position", "atom_count", "cell", "periodic", "molecule", "isolated_energy",
             "configuration", "atom", "element", "xyz", "lattice", "voigt", *USUAL}
    for name, label in options.labels.items():
        key = f"options.labels.{name}"
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in taken:
            raise InputError(files[0].path, key=key, found=repr(name), expected="a name of letters, digits and _ that "
                             "no other variable has", fix="choose another")
        from sciml.data import units

        units.parse(label.unit, where=files[0].path, key=f"{key}.unit")
        per_atom = [which for which in (False, True) if label.key in _all(files, which)]
        if len(per_atom) != 1:
            offered = sorted({*_all(files, False), *_all(files, True)})
            raise InputError(files[0].path, key=f"{key}.key", found=f"{label.key!r} of frames and of atoms" if per_atom
                             else f"no key {label.key!r} in the file", expected=f"one of {', '.join(offered)[:200]}",
                             fix="correct it; sciml data sniff lists the keys")
        shape = _all(files, per_atom[0])[label.key].shape
        if shape not in LABELS:
            raise InputError(files[0].path, key=f"{key}.key", found="values of different shapes" if shape is None else
                             f"values of shape {shape}", expected="one number or three", fix="leave it out")
        found[name] = Wanted(label.key, per_atom[0], unit=label.unit, shape=shape)
    return found


def _unread(files: Sequence[Frames], chosen: Mapping[str, Wanted], judge: Judge) -> None:
    taken = {w.key for w in chosen.values()}
    left = sorted({*_all(files, False), *_all(files, True)} - taken)
    if left:
        judge.notes.append(f"not read: {', '.join(left)[:300]}; to keep one: options: {{labels: {{name: {{key: KEY, "
                           "unit: UNIT}}}")
