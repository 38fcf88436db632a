"""GFN2-xTB (Bannwarth et al., J. Chem. Theory Comput. 15, 1652, 2019) by the package tblite: energies and forces of
molecules, as the oracle for models that were trained on its labels and on no other's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.store import Store
from sciml.domains.molecules.fitted import Fitted
from sciml.errors import InputError
from sciml.threads import one_thread

THEORY = "GFN2-xTB"
SPELLINGS = {"gfn2xtb", "xtbgfn2", "gfn2", "xtb2"}
HARTREE_EV, BOHR_ANGSTROM = 27.211386245988, 0.529177210903
"""CODATA 2018."""
SAME_MEV_PER_ANGSTROM = 5.0


@dataclass
class Oracle:
    """Of one molecule: numbers ``(n,)``, total charge, spin multiplicity. Each calculation starts from the last one's
    orbitals. Raises `InputError` if tblite isn't installed or the calculation doesn't converge."""

    numbers: np.ndarray
    charge: float = 0.0
    multiplicity: float = 1.0
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    def label(self, position: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy in eV and forces ``(n, 3)`` in eV/Å at places ``(n, 3)`` Å."""
        bohr = np.asarray(position, np.float64) / BOHR_ANGSTROM
        if "calculator" in self._made:
            self._made["calculator"].update(bohr)
        else:
            made = interface().Calculator(THEORY, self.numbers, bohr, charge=self.charge,
                                          uhf=round(self.multiplicity - 1))
            made.set("verbosity", 0)
            self._made["calculator"] = made
        try:
            with one_thread():  # tblite runs on torch's OpenMP; a second thread costs forty times what it saves
                result = self._made["calculator"].singlepoint(self._made.get("last"))
        except RuntimeError as error:
            raise InputError(THEORY, key="calculation", found=" ".join(str(error).split())[:160],
                             expected="a self-consistent energy", fix="check the configuration, its charge and its spin"
                             ) from None
        self._made["last"] = result
        slope = np.asarray(result.get("gradient")) * (HARTREE_EV / BOHR_ANGSTROM)
        return float(result.get("energy")) * HARTREE_EV, -slope


def oracle_of(sample: xr.Dataset) -> Oracle:
    """For a configuration as stores have it. Raises `InputError` for a periodic one."""
    if "periodic" in sample and bool(sample["periodic"].any()):
        raise InputError(sample.attrs.get("source", "sample"), key="periodic", found="a periodic cell",
                         expected="a molecule", fix="choose a store of molecules")
    charge, spin = (float(sample[k].values) if k in sample else d for k, d in (("charge", 0.0), ("spin", 1.0)))
    return Oracle(np.asarray(sample["number"].values, np.int64), charge, spin)


def is_gfn2(theory: str) -> bool:
    """Whether a level of theory means GFN2-xTB and nothing beside it (no solvent, no other parametrisation).

    >>> [is_gfn2(name) for name in ("GFN2-xTB", "xTB (GFN2)", "gfn2_xtb", "GFN1-xTB", "GFN2-xTB/ALPB water", "PBE", "")]
    [True, True, True, False, False, False, False]
    """
    return re.sub(r"[^a-z0-9]", "", theory.lower()) in SPELLINGS


def require_theory(fit: Fitted) -> None:
    """Raises `InputError` unless the data set's labels were computed by GFN2-xTB."""
    if not is_gfn2(fit.theory):
        raise InputError(fit.name, key="level_of_theory", found=repr(fit.theory) if fit.theory else "none recorded",
                         expected=f"{THEORY}: labels of another theory would be compared with it",
                         fix="choose a checkpoint trained on its labels, or name them in options.level_of_theory")


def require_same_labels(store: Store, samples: list[xr.Dataset]) -> None:
    """Raises `InputError` if the store's forces are not what the oracle finds for the same configurations."""
    for sample in samples:
        if "forces" not in sample or not np.isfinite(sample["forces"].values).all():
            continue
        _, forces = oracle_of(sample).label(sample["position"].values)
        error = 1e3 * float(np.sqrt(np.mean((forces - sample["forces"].values) ** 2)))
        if error > SAME_MEV_PER_ANGSTROM:
            raise InputError(store.url, key="forces", found=f"{error:.3g} meV/Å from {THEORY}'s, root mean square",
                             expected=f"at most {SAME_MEV_PER_ANGSTROM:g}: labels of the theory the store names",
                             fix="check units, charge and level_of_theory of its source")


def interface() -> Any:
    """tblite's Python interface. Raises `InputError` that says how to install it."""
    try:
        from tblite import interface
    except ImportError:
        raise InputError("Python", key="tblite", found="not installed", expected="the oracle's own package",
                         fix='pip install "sciml[xtb]"') from None
    return interface
