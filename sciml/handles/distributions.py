"""Distributions of distances along a trajectory, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RADIAL_ANGSTROM, BOND_ANGSTROM = 0.05, 0.02
MOST_ANGSTROM = 12.0


@dataclass(frozen=True)
class Histogram:
    """counts ``(n,)`` between edges ``(n + 1,)`` in Å."""

    edges: np.ndarray
    counts: np.ndarray

    @property
    def density(self) -> np.ndarray:
        """``(n,)`` 1/Å; its integral is 1."""
        return self.counts / max(float(self.counts.sum()), 1.0) / np.diff(self.edges)


def histogram(distances: np.ndarray, width: float) -> Histogram:
    """Of distances in Å on bins of equal `width` from 0 to 12 Å; what is longer is in the last one.

    >>> int(histogram(np.array([0.06, 0.07, 99.0]), 0.05).counts.sum())
    3
    """
    edges = np.arange(0, MOST_ANGSTROM + width / 2, width)
    return Histogram(edges, np.histogram(np.minimum(distances, MOST_ANGSTROM - width / 2), edges)[0].astype(np.float64))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Divergence of two histograms on the same bins, in bits: 0 of equal ones, 1 of ones that share no bin; NaN if one
    is empty (Lin, IEEE Trans. Inf. Theory 37, 145, 1991).

    >>> jensen_shannon(np.array([1, 3.0]), np.array([2, 6.0])), jensen_shannon(np.array([1, 0.0]), np.array([0, 1.0]))
    (0.0, 1.0)
    """
    if not p.sum() or not q.sum():
        return float("nan")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def against(a: np.ndarray) -> float:
        kept = a > 0
        return float((a[kept] * np.log2(a[kept] / middle[kept])).sum())

    return (against(p) + against(q)) / 2


def distances(places: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """``(F, P)`` Å of pairs ``(P, 2)`` of atoms along places ``(F, n, 3)``."""
    return np.asarray(np.linalg.norm(places[:, pairs[:, 0]] - places[:, pairs[:, 1]], axis=-1))


def all_pairs(number: int) -> np.ndarray:
    return np.stack(np.triu_indices(number, 1), -1)


def histograms(places: np.ndarray, symbols: tuple[str, ...], bonds: np.ndarray) -> dict[str, Histogram]:
    """``all pairs``, and the lengths of the bonds ``(B, 2)`` by their elements (``C–H``)."""
    found = {"all pairs": histogram(distances(places, all_pairs(len(symbols))).ravel(), RADIAL_ANGSTROM)}
    kinds: dict[str, list[np.ndarray]] = {}
    for bond in bonds:
        kinds.setdefault("–".join(sorted(symbols[int(i)] for i in bond)), []).append(bond)
    return found | {name: histogram(distances(places, np.array(own)).ravel(), BOND_ANGSTROM)
                    for name, own in sorted(kinds.items())}


def divergences(ours: Mapping[str, Histogram], theirs: Mapping[str, Histogram]) -> dict[str, float]:
    """Bits, by name."""
    return {name: jensen_shannon(one.counts, theirs[name].counts) for name, one in ours.items() if name in theirs}
