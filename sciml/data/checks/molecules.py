"""What must hold in a store of molecules beside what holds in every store: atoms, cells, energies, forces, splits.

Read a block of configurations at a time. One finding per kind of mistake, with the number of places and the first one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np

from sciml.data.check import Finding
from sciml.data.checks.spikes import Tally
from sciml.data.elements import NUMBERS, SYMBOLS, known
from sciml.data.readers._molecules_frames import blocks_of
from sciml.data.readers._molecules_survey import OVERLAP, close_pairs
from sciml.data.schema import SplitName
from sciml.data.store import Store

ATOMS = {"number": (), "position": ("xyz",)}
NET_FORCE, NET_SHARE = 1e-3, 0.01
"""eV/Å per atom, and share of Σ |F|, above which the force on a whole isolated molecule is worth a warning."""
FAR_EV, FAR_SPREADS = 3.0, 30.0
"""Per atom: how far an energy may be from element references, in eV and in spreads (1.4826 times the median
deviation)."""
COHESIVE_EV = 20.0
"""Per atom: no molecule or solid is bound by more."""
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
CROWD = 8
"""So many atoms near one point are looked at: without a bound, coinciding ones would cost their square."""
_MEND = "mend the source and build the store anew"


@dataclass(frozen=True)
class Part:
    """Configurations first … first + frames, with their atoms: counts ``(frame,)``; number ``(atom,)``; position and
    forces ``(atom, 3)``; cell ``(frame, 3, 3)`` and periodic ``(frame, 3)``, zeros where the store has none."""

    first: int
    counts: np.ndarray
    number: np.ndarray
    position: np.ndarray
    forces: np.ndarray | None
    cell: np.ndarray
    periodic: np.ndarray

    def place(self, atom: int) -> str:
        """The configuration and number of an atom."""
        frame = int(np.searchsorted(np.cumsum(self.counts), atom, side="right"))
        return f"configuration {self.first + frame}, atom {atom - int(self.counts[:frame].sum())}"


@dataclass
class Seen:
    """The tallies, composition ``(configuration, element)`` and a digest of each configuration."""

    composition: np.ndarray
    digests: list[bytes] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=lambda: {
        "atom_count": Tally("at least one atom in every configuration"),
        "number": Tally(f"whole atomic numbers, 1 to {len(SYMBOLS)}"),
        "element": Tally("elements that the dimension element lists"),
        "position finite": Tally("finite positions"),
        "position overlap": Tally(f"atoms at least {OVERLAP} Å apart, periodic images included"),
        "cell": Tally("a vector for each periodic direction, none in the plane of the others"),
        "cell handedness": Tally("right-handed cells", "warning"),
        "forces known": Tally("forces of all atoms of a configuration, or of none", "warning"),
        "forces net": Tally("forces that add up to 0 on a molecule on its own", "warning"),
        "stress": Tally("stress only where there is a cell in three directions")})


def check(store: Store) -> Iterator[Finding]:
    """All findings of a store of molecules. Raises what reading it raises."""
    meta = store.meta
    missing = [name for name, dims in ATOMS.items() if name not in meta.variables
               or meta.variables[name].dims != ("atom", *dims)]
    missing += [name for name in ("atom",) if name not in meta.ragged]
    missing += [name for name in ("element", "xyz") if name not in meta.axes]
    if missing:
        yield Finding("error", "domain molecules", f"no {', no '.join(missing)} as this domain has it",
                      "number (atom), position (atom, xyz), their number by configuration, the elements", _MEND)
        return
    seen = Seen(np.zeros((meta.groups, len(store.members("element")))))
    for part in _parts(store):
        _atoms(store, part, seen)
        _cells(part, seen.tallies)
        _forces(part, seen.tallies)
    _stress(store, seen.tallies)
    for key, tally in seen.tallies.items():
        if tally.count:
            yield Finding(tally.level, key.split(" ")[0], f"{tally.count}, first {tally.first}", tally.expected, _MEND)
    yield from _elements(store, seen)
    yield from _isolated(store, seen)
    yield from _energies(store, seen)
    yield from _identities(store, seen)
    yield from _leaks(store, seen)


def _parts(store: Store) -> Iterator[Part]:
    """The store in blocks of whole configurations."""
    lazy, counts = store.lazy(), store.rows("atom")
    ends = np.concatenate([[0], np.cumsum(counts)])
    for start, stop in blocks_of(counts, 64 * counts):
        rows, frames = slice(int(ends[start]), int(ends[stop])), slice(start, stop)
        cell, periodic = np.zeros((stop - start, 3, 3)), np.zeros((stop - start, 3))
        if {"cell", "periodic"} <= set(lazy.data_vars):
            cell, periodic = lazy["cell"][frames].values, lazy["periodic"][frames].values
        forces = lazy["forces"][rows].values if "forces" in lazy else None
        yield Part(start, counts[frames], lazy["number"][rows].values, lazy["position"][rows].values, forces, cell,
                   periodic != 0)


def _atoms(store: Store, part: Part, seen: Seen) -> None:
    tallies, number = seen.tallies, part.number
    tallies["atom_count"].add(part.counts < 1, lambda i: f"configuration {part.first + i}: {part.counts[i]}")
    whole = np.isfinite(number) & (number == np.rint(number)) & known(number)
    tallies["number"].add(~whole, lambda i: f"{part.place(i)}: {number[i]:g}")
    listed = np.full(len(SYMBOLS) + 1, -1)
    for column, symbol in enumerate(store.members("element")):
        listed[NUMBERS.get(symbol, 0)] = column
    column_of = listed[np.where(whole, number, 0).astype(np.int64)]
    tallies["element"].add(whole & (column_of < 0),
                           lambda i: f"{part.place(i)}: {SYMBOLS[int(number[i]) - 1]}")
    frame = np.repeat(np.arange(len(part.counts)), part.counts)
    inside = column_of >= 0
    np.add.at(seen.composition, (part.first + frame[inside], column_of[inside]), 1)
    finite = np.isfinite(part.position).all(1)
    tallies["position finite"].add(~finite, lambda i: f"{part.place(i)}: {part.position[i].tolist()}")
    if finite.all():
        pairs = overlaps(part)
        tallies["position overlap"].add(np.ones(len(pairs), bool), lambda i: (
            f"{part.place(int(pairs[i][0]))} and {part.place(int(pairs[i][1]))}"))
    at = np.concatenate([[0], np.cumsum(part.counts)])
    for low, high in pairwise(at):
        content = part.number[low:high].astype(np.int16).tobytes() + part.position[low:high].tobytes()
        seen.digests.append(hashlib.blake2b(content, digest_size=16).digest())


def overlaps(part: Part) -> np.ndarray:
    """Pairs of atoms ``(pair, 2)`` of one configuration nearer than `OVERLAP`, periodic images included; of an atom
    and each of its images the `CROWD` nearest."""
    from scipy.spatial import cKDTree

    found = [close_pairs(part.position, part.counts, OVERLAP)]
    frames = np.flatnonzero(part.periodic.any(1) & _spans(part.cell, part.periodic))
    if not len(frames):
        return found[0]
    atoms = np.flatnonzero(np.isin(np.repeat(np.arange(len(part.counts)), part.counts), frames))
    owner = np.repeat(np.arange(len(part.counts)), part.counts)[atoms]
    flags, full = part.periodic[owner], completed(part.cell[frames], part.periodic[frames])
    cell = full[np.searchsorted(frames, owner)]
    share = np.linalg.solve(cell.transpose(0, 2, 1), part.position[atoms][..., None])[..., 0]
    wrapped = np.einsum("ai,aij->aj", np.where(flags, share - np.floor(share), share), cell)
    lift = owner[:, None] * (2.0 * OVERLAP)
    tree = cKDTree(np.hstack([wrapped, lift]))
    for shift in product((-1, 0, 1), repeat=3):
        if shift < (0, 0, 0):
            continue
        moved = ~((np.array(shift) != 0) & ~flags).any(1)
        images = wrapped + np.einsum("i,aij->aj", np.array(shift, float), cell)
        apart, near = tree.query(np.hstack([images, lift])[moved], k=CROWD, distance_upper_bound=OVERLAP)
        of = np.flatnonzero(moved)[:, None].repeat(CROWD, 1)
        hit = np.isfinite(apart) & ((near != of) if shift == (0, 0, 0) else True)
        found.append(np.sort(np.column_stack([atoms[of[hit]], atoms[near[hit]]]), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def completed(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """Cells ``(frame, 3, 3)`` whose directions that are not periodic are unit vectors normal to the others."""
    full = np.where(periodic[..., None], cell, 0.0)
    for index, (vectors, flags) in enumerate(zip(full, periodic)):
        basis = np.linalg.svd(vectors[flags], full_matrices=True)[2][int(flags.sum()):]
        full[index][~flags] = basis
    return full


def _spans(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """Whether the periodic vectors of each cell are independent."""
    sound = np.ones(len(cell), bool)
    for index in np.flatnonzero(periodic.any(1)):
        vectors = cell[index][periodic[index]]
        gram = vectors @ vectors.T
        sound[index] = bool(np.isfinite(gram).all() and np.linalg.det(gram) > 1e-8 * np.prod(np.diag(gram)))
    return sound


def _cells(part: Part, tallies: dict[str, Tally]) -> None:
    def text(i: int) -> str:
        return f"configuration {part.first + i}: {part.cell[i].tolist()}"

    sound = _spans(part.cell, part.periodic)
    tallies["cell"].add(~sound, text)
    with np.errstate(invalid="ignore"):
        left = part.periodic.all(1) & sound & (np.linalg.det(np.nan_to_num(part.cell)) < 0)
    tallies["cell handedness"].add(left, text)


def _forces(part: Part, tallies: dict[str, Tally]) -> None:
    if part.forces is None:
        return
    frame = np.repeat(np.arange(len(part.counts)), part.counts)
    unknown = np.bincount(frame, ~np.isfinite(part.forces).all(1), minlength=len(part.counts))
    tallies["forces known"].add((unknown > 0) & (unknown < part.counts), lambda i: (
        f"configuration {part.first + i}: {int(unknown[i])} of {part.counts[i]} atoms without"))
    alone = (unknown == 0) & ~part.periodic.any(1)
    finite, frames = np.nan_to_num(part.forces), len(part.counts)
    net = np.linalg.norm([np.bincount(frame, finite[:, i], minlength=frames) for i in range(3)], axis=0)
    size = np.bincount(frame, np.linalg.norm(finite, axis=1), minlength=frames)
    tallies["forces net"].add(alone & (net > NET_FORCE * part.counts) & (net > NET_SHARE * size), lambda i: (
        f"configuration {part.first + i}: {net[i]:.3g} eV/Å"))


def _stress(store: Store, tallies: dict[str, Tally]) -> None:
    lazy = store.lazy()
    if "stress" not in lazy:
        return
    given = np.isfinite(lazy["stress"].values).any(1)
    bulk = (lazy["periodic"].values != 0).all(1) if "periodic" in lazy else np.zeros(len(given), bool)
    tallies["stress"].add(given & ~bulk, lambda i: f"configuration {i}")


def _elements(store: Store, seen: Seen) -> Iterator[Finding]:
    """Elements that no training configuration has: a potential can't learn of them, and refuses them."""
    members = store.members("element")
    there = {name: seen.composition[[b.group for b in store.meta.splits.of(name) if b.group < len(seen.composition)]]
             .any(0) for name in SPLITS}
    for name in SPLITS[1:]:
        strange = [members[i] for i in np.flatnonzero(there[name] & ~there["train"])]
        if strange and there["train"].any():
            yield Finding("warning", f"splits.{name}", f"{', '.join(strange)}, which no training configuration has",
                          "elements that training has", "move configurations with them to the training split, or leave "
                          "them out (select)")


def _isolated(store: Store, seen: Seen) -> Iterator[Finding]:
    lazy, members = store.lazy(), store.members("element")
    if "isolated_energy" not in lazy:
        return
    energies = lazy["isolated_energy"].values
    if (np.nan_to_num(energies) != np.nan_to_num(energies[:1])).any():
        yield Finding("error", "isolated_energy", "different values in different configurations",
                      "one energy per element", _MEND)
    unknown = [members[i] for i in np.flatnonzero(~np.isfinite(energies[0]) & (seen.composition.sum(0) > 0))]
    if unknown:
        yield Finding("warning", "isolated_energy", f"none for {', '.join(unknown)}", "the energy of every element",
                      "add them to options.isolated: otherwise references have to be fitted")
    elif "energy" in lazy:
        bound = (lazy["energy"].values - seen.composition @ energies[0]) / seen.composition.sum(1).clip(1)
        middle = float(np.nanmedian(bound)) if np.isfinite(bound).any() else 0.0
        if abs(middle) > COHESIVE_EV:
            yield Finding("warning", "isolated_energy", f"energies {middle:.4g} eV per atom from those of atoms",
                          f"at most {COHESIVE_EV:g}", "check units, and that both are of the same level of theory")


def references(composition: np.ndarray, energy: np.ndarray, rounds: int = 12) -> np.ndarray:
    """``(element,)`` energies that leave the least Σ |residual| per atom, by least squares with weights of 1/residual
    (iteratively reweighted), so that wrong energies don't draw them; of least norm where compositions don't tell.

    >>> references(np.array([[2.0, 0], [1, 1], [0, 1]]), np.array([-2.0, -4, -3])).round(6).tolist()
    [-1.0, -3.0]
    """
    atoms = composition.sum(1).clip(1)
    rows, target = composition / atoms[:, None], energy / atoms
    weight = np.ones(len(rows))
    for _ in range(rounds):
        fitted = np.linalg.lstsq(rows * weight[:, None], target * weight, rcond=1e-10)[0]
        residual = np.abs(target - rows @ fitted)
        weight = 1 / np.sqrt(np.maximum(residual, 1e-6 + 1e-3 * np.median(residual)))
    return np.asarray(fitted)


def _energies(store: Store, seen: Seen) -> Iterator[Finding]:
    """Energies that are far from what their elements say."""
    if "energy" not in store.lazy():
        return
    energy = store.lazy()["energy"].values.astype(np.float64)
    rows = np.flatnonzero(np.isfinite(energy) & (seen.composition.sum(1) > 0))
    if not len(rows):
        return
    composition = seen.composition[rows]
    residual = (energy[rows] - composition @ references(composition, energy[rows])) / composition.sum(1)
    middle = np.median(residual)
    spread = 1.4826 * float(np.median(np.abs(residual - middle)))
    off = np.abs(residual - middle)
    far = rows[off > max(FAR_EV, FAR_SPREADS * spread)]
    if len(far):
        worst = rows[int(np.argmax(off))]
        yield Finding("warning", "energy", f"{len(far)} far from element references, worst configuration {worst}: "
                      f"{energy[worst]:.8g} eV, {off.max():.3g} eV per atom off", f"within {FAR_EV:g} eV per atom, or "
                      f"{FAR_SPREADS:g} spreads ({spread:.3g} eV)", "check units, and that calculations converged")


def _identities(store: Store, seen: Seen) -> Iterator[Finding]:
    if "molecule" not in store.lazy():
        return
    molecule = store.lazy()["molecule"].values
    order = np.argsort(molecule, kind="stable")
    same = np.diff(molecule[order]) == 0
    other = (np.diff(seen.composition[order], axis=0) != 0).any(1)
    if (wrong := np.flatnonzero(same & other)).size:
        a, b = sorted(order[[wrong[0], wrong[0] + 1]].tolist())
        yield Finding("warning", "molecule", f"configurations {a} and {b} of one molecule have different elements",
                      "one composition per molecule", "correct the SMILES, InChI or numbers of molecules")


def _leaks(store: Store, seen: Seen) -> Iterator[Finding]:
    """Configurations of different splits that are equal to the last bit."""
    where: dict[bytes, tuple[SplitName, int]] = {}
    found: dict[tuple[SplitName, SplitName], list[tuple[int, int]]] = {}
    for name in SPLITS:
        for block in store.meta.splits.of(name):
            if block.group < len(seen.digests):
                before, first = where.setdefault(seen.digests[block.group], (name, block.group))
                if before != name:
                    found.setdefault((before, name), []).append((first, block.group))
    for (before, name), pairs in found.items():
        yield Finding("error", f"splits.{before}, splits.{name}", f"{len(pairs)} equal configurations, first "
                      f"{pairs[0][0]} and {pairs[0][1]}", "none in two splits",
                      "remove duplicates, or split by molecule")


PLUGIN = check
