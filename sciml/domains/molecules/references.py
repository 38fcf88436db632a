"""The baseline: what the elements of a configuration alone say of a property."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from sciml.errors import InputError

Kind = Literal["sum", "mean"]


@dataclass(frozen=True)
class References:
    """Of one property: a value per element ``(E,)`` float64, added up (`sum`) or averaged (`mean`) over the atoms.

    source: ``isolated`` atoms or ``least_squares``. rank: of the counts they were fitted to; below E (one composition
    has rank 1) only certain sums of them are determined, and the smallest solution is taken.
    """

    elements: tuple[str, ...]
    values: np.ndarray
    kind: Kind
    source: str
    rank: int
    provenance: str

    @property
    def note(self) -> str:
        """What is to be said of them, or nothing."""
        if self.source == "isolated" or self.rank >= len(self.elements):
            return ""
        return (f"compositions of rank {self.rank} for {len(self.elements)} elements: element references are "
                f"{'one shift' if self.rank == 1 else 'not all determined'}; other compositions can't be predicted")

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """``(S, E)`` atoms of each element → ``(S,)``."""
        weights = counts if self.kind == "sum" else counts / np.maximum(counts.sum(-1, keepdims=True), 1)
        return np.asarray(weights @ self.values)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return ({"kind": self.kind, "source": self.source, "rank": self.rank, "elements": list(self.elements),
                 "provenance": self.provenance}, {"values": self.values})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(tuple(config["elements"]), np.asarray(arrays["values"], np.float64), config["kind"],
                   config["source"], int(config["rank"]), config["provenance"])


def fit_references(elements: tuple[str, ...], counts: np.ndarray, values: np.ndarray, kind: Kind,
                   provenance: str) -> References:
    """Least squares of ``(S,)`` values on ``(S, E)`` counts (shares, for `mean`), smallest solution if several.

    >>> counts = np.array([[2.0, 1.0], [2.0, 1.0]])
    >>> made = fit_references(("H", "O"), counts, np.array([-4.0, -6.0]), "sum", "doc")
    >>> made.rank, float(made.predict(counts)[0].round(9))
    (1, -5.0)
    """
    weights = counts if kind == "sum" else counts / counts.sum(-1, keepdims=True)
    solution, _, rank, _ = np.linalg.lstsq(weights, values, rcond=None)
    return References(elements, solution, kind, "least_squares", int(rank), provenance)


def isolated_references(elements: tuple[str, ...], energies: Mapping[str, float], provenance: str) -> References:
    """Energies of isolated atoms, eV. Raises `InputError` if one is not known."""
    missing = [e for e in elements if not np.isfinite(energies.get(e, np.nan))]
    if missing:
        raise InputError(provenance, key="isolated_energy", found=f"none for {', '.join(missing)}",
                         expected=f"one for each of {', '.join(elements)}",
                         fix="give options.isolated in the source file, or set references: least_squares")
    values = np.array([energies[e] for e in elements])
    return References(elements, values, "sum", "isolated", len(elements), provenance)
