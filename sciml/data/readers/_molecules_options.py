"""Options of the readers of molecules, and what they mean for a file: keys, units, references."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sciml.data import units
from sciml.errors import InputError
from sciml.recipe import Section, validate

ENERGY, LENGTH, CHARGE = "eV", "angstrom", "elementary_charge"
COMMON = frozenset({"format", "select", "limits"})


class Label(Section):
    """A quantity that is kept under a name of ours: its key in the file, and its unit, which values stay in."""

    key: str
    unit: str


class MoleculeOptions(Section):
    """What a file's names, units and references are. energy … spin: keys in the file (found by the usual names if only
    one of them is there); virial, read where there is no stress, is minus stress times volume in units of energy, as
    GAP and MACE write it. energy_of: what an energy is given per; energy_kind: `relative` ones are already minus
    references. isolated: a file among those of the source that holds isolated atoms, or eV by symbol. periodic: for
    cells whose file doesn't say. level_of_theory: as recorded, such as GFN2-xTB."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    charge: str | None = None
    spin: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    force_unit: str | None = None
    stress_unit: str | None = None
    energy_of: Literal["configuration", "atom"] = "configuration"
    energy_kind: Literal["total", "relative"] = "total"
    isolated: str | dict[str, float] | None = None
    periodic: bool | tuple[bool, bool, bool] | None = None
    labels: dict[str, Label] = Field(default_factory=dict)
    level_of_theory: str = ""


OPTIONS = frozenset(MoleculeOptions.model_fields)


def molecule_options(options: Mapping[str, Any], where: object, own: frozenset[str] = frozenset()) -> MoleculeOptions:
    """The options of all readers of molecules, without a reader's `own`. Raises `InputError` naming the wrong one."""
    given = {key: value for key, value in options.items() if key not in COMMON | own}
    chosen = validate(MoleculeOptions, given, where=where)
    if chosen.energy_kind == "relative" and chosen.isolated is not None:
        raise InputError(where, key="options.isolated", found="isolated atoms beside energy_kind: relative",
                         expected="references of total energies only: relative ones have none left to subtract",
                         fix="remove isolated, or set energy_kind: total")
    return chosen


def spelled(unit: str) -> str:
    """Spellings of chemistry that pint doesn't know.

    >>> spelled("Hartree/Ang"), spelled("eV/A^3")
    ('hartree/angstrom', 'eV/angstrom^3')
    """
    return re.sub(r"[A-Za-zÅ]+", lambda word: ALIASES.get(word.group(), word.group()), unit)


ALIASES = {"Hartree": "hartree", "Ha": "hartree", "Eh": "hartree", "Bohr": "bohr", "Ang": "angstrom", "A": "angstrom",
           "Å": "angstrom", "Angstrom": "angstrom", "ang": "angstrom", "Debye": "debye", "ev": "eV"}


def factor(unit: str, target: str, *, where: object, key: str) -> float:
    """What values in `unit` are multiplied by to be in `target`; molar units are taken per particle.

    Raises `InputError` if the unit is unknown or of another dimension.

    >>> [round(factor(unit, "eV", where="doc", key="u"), 5) for unit in ("hartree", "kcal/mol")]
    [27.21139, 0.04336]
    """
    parsed = units.parse(spelled(unit), where=where, key=key)
    quantity, wanted = units.registry().Quantity(1.0, parsed), units.parse(target, where=where, key=key)
    if not parsed.is_compatible_with(wanted):
        quantity = quantity / units.registry().Quantity(1.0, "avogadro_constant").to_base_units()
    if not quantity.units.is_compatible_with(wanted):
        raise InputError(where, key=key, found=f"unit {unit!r}", expected=f"a unit that converts to {target}",
                         fix="correct it")
    return float(quantity.to(wanted).magnitude)
