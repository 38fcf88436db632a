"""What is learned of a data set: element references of every property, and the scales of what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sciml.adapter import Arrays, arrays_of, joined
from sciml.data.store import Store
from sciml.domains.molecules.config import DIPOLES, Kind, MoleculesConfig
from sciml.domains.molecules.elements import SYMBOLS, symbols_of
from sciml.domains.molecules.references import References, fit_references, isolated_references
from sciml.domains.molecules.windows import Layout
from sciml.errors import InputError

SMALLEST_SCALE = 1e-6
LABELLED: dict[Kind, tuple[tuple[str, ...], str]] = {
    "atoms": (("atom",), "one number per atom"), "dipole": (("xyz",), "one vector per configuration")}


@dataclass(frozen=True)
class Fitted:
    """One data set. references, scales: by property; a scale is that of one atom's part, or of a mean. Dipoles have no
    references, numbers of atoms one per element.

    force_scale: root mean square of force components, eV/Å, 0 where there are none. units: by property. theory: the
    level of theory its energies and forces were computed at, empty if it doesn't say. conditions: of charge and spin,
    those it knows."""

    name: str
    elements: tuple[str, ...]
    references: Mapping[str, References]
    scales: Mapping[str, float]
    force_scale: float
    units: Mapping[str, str]
    theory: str
    conditions: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What is to be said of the references."""
        return [f"{self.name}, {name}: {made.note}" for name, made in self.references.items() if made.note]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        references, arrays = joined({name: made.state() for name, made in self.references.items()})
        config = {"elements": list(self.elements), "references": references,
                  "scales": dict(self.scales), "force_scale": self.force_scale, "units": dict(self.units),
                  "theory": self.theory, "conditions": list(self.conditions)}
        return config, arrays

    @classmethod
    def restore(cls, name: str, config: Mapping[str, Any], arrays: Arrays) -> Self:
        references = {key: References.restore(part, arrays_of(key, arrays))
                      for key, part in config["references"].items()}
        return cls(name, tuple(config["elements"]), references, dict(config["scales"]), float(config["force_scale"]),
                   dict(config["units"]), config["theory"], tuple(config["conditions"]))


def fit_dataset(store: Store, config: MoleculesConfig) -> Fitted:
    """From the training split alone. Raises `InputError` if a property is not there, or nowhere known."""
    layout = Layout.of(store)
    train, rows = np.sort(layout.members("train")), store.rows("atom")
    numbers = layout.of_groups("number", train).astype(np.int64)
    symbols_of(numbers, store.url)
    elements = tuple(SYMBOLS[n] for n in np.unique(numbers))  # others can't be learnt of, and are refused
    counts = count_elements(numbers, rows[train], elements)
    force_scale = _force_scale(layout, train) if config.forces != "none" and "forces" in layout.variables else 0.0
    if config.forces != "none" and not force_scale:
        raise InputError(store.url, key="forces", found="none known in the training split", expected="forces",
                         fix="set domains.molecules.forces: none, or give the key of the forces in the source file")
    references, scales, units = {}, {}, {}
    ones = np.ones(len(numbers), np.int64)
    for name, kind in config.properties.items():
        values = _labels(layout, name, kind, train)
        known = np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(1)
        if not known.any():
            raise InputError(store.url, key=name, found="not known in the training split", expected="some values",
                             fix="leave it out of domains.molecules.properties")
        units[name], left = store.meta.variables[name].unit, values[known]
        own = (count_elements(numbers, ones, elements) if kind == "atoms" else counts)[known]
        if kind not in DIPOLES:
            references[name] = _references(layout, name, kind, config, elements, own, left)
            left = left - references[name].predict(own)
        scales[name] = _scale(name, kind, left, own.sum(1), force_scale)
    theory = str(store.meta.provenance.options.get("level_of_theory", ""))
    conditions = tuple(name for name in ("charge", "spin") if _conditioned(layout, name))
    return Fitted(store.meta.dataset, elements, references, scales, force_scale, units, theory, conditions)


def count_elements(numbers: np.ndarray, rows: np.ndarray, elements: tuple[str, ...]) -> np.ndarray:
    """``(S, E)`` atoms of each element of configurations that have `rows` atoms each. Raises `ValueError` on others."""
    place = np.full(len(SYMBOLS), -1)
    place[[SYMBOLS.index(e) for e in elements]] = np.arange(len(elements))
    owner = np.repeat(np.arange(len(rows)), rows)
    if (place[numbers] < 0).any():
        raise ValueError(f"atoms that are none of {', '.join(elements)}")
    counts = np.zeros((len(rows), len(elements)))
    np.add.at(counts, (owner, place[numbers]), 1.0)
    return counts


def _conditioned(layout: Layout, name: str) -> bool:
    """Raises `InputError` on a charge or spin that some configurations of training and validation don't say."""
    if layout.variables.get(name) != ():
        return False
    unknown = ~np.isfinite(layout.of_groups(name, np.sort(np.concatenate([layout.members("train"),
                                                                          layout.members("validation")]))))
    if unknown.any():
        raise InputError(layout.store.url, key=name, found=f"not known of {int(unknown.sum())} configurations",
                         expected="known of all, or of none", fix="complete it in the source file, or don't read it")
    return True


def _labels(layout: Layout, name: str, kind: Kind, groups: np.ndarray) -> np.ndarray:
    dims, what = LABELLED.get(kind, ((), "one number per configuration"))
    if layout.variables.get(name) != dims:
        found = "no such label" if name not in layout.variables else f"dimensions {layout.variables[name]}"
        known = ", ".join(key for key, own in layout.variables.items()
                          if own == dims and layout.store.meta.variables[key].role == "label")
        raise InputError(layout.store.url, key=name, found=found, expected=f"{what} for {kind}: {known or 'none'}",
                         fix="correct domains.molecules.properties")
    return layout.of_groups(name, groups).astype(np.float64)


def _references(layout: Layout, name: str, kind: Kind, config: MoleculesConfig, elements: tuple[str, ...],
                counts: np.ndarray, values: np.ndarray) -> References:
    where = layout.store.url
    if name != "energy" or config.references == "least_squares":
        return fit_references(elements, counts, values, "mean" if kind == "mean" else "sum",
                              f"least squares, {layout.store.meta.dataset}, train")
    if "isolated_energy" not in layout.store.meta.variables:
        raise InputError(where, key="isolated_energy", found="none in the store", expected="energies of isolated atoms",
                         fix="give options.isolated in the source file, or set references: least_squares")
    energies = layout.store.read("isolated_energy", int(layout.members("train")[0]))
    return isolated_references(elements, dict(zip(layout.store.members("element"), energies, strict=True)), where)


def _force_scale(layout: Layout, train: np.ndarray) -> float:
    forces = layout.of_groups("forces", train)
    known = forces[np.isfinite(forces)]
    return float(np.sqrt(np.mean(known**2))) if known.size else 0.0


def _scale(name: str, kind: Kind, left: np.ndarray, atoms: np.ndarray, force_scale: float) -> float:
    """Of an energy with forces: what a displacement of 1 Å costs, so that energy and forces are of one scale."""
    if name == "energy" and force_scale:
        return force_scale
    spread = left / np.sqrt(atoms) if kind == "sum" else left
    return max(float(np.sqrt(np.mean(spread**2))), SMALLEST_SCALE)
