"""One pass over all frames: what is wrong with them, and what each frame (not atom) has, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sciml.data.elements import SYMBOLS, formulas, known
from sciml.data.readers._molecules_frames import Block, Frames, Judge, blocks_of
from sciml.data.readers._molecules_options import MoleculeOptions
from sciml.data.readers._molecules_plan import Plan
from sciml.errors import InputError

OVERLAP = 0.3
"""Å; the shortest bond, of H₂ under pressure or in motion, stays above 0.5."""
FACTORS = {"hartree and eV": 27.211386, "rydberg and eV": 13.605693, "eV and kcal/mol": 23.060548,
           "eV and kJ/mol": 96.485332, "hartree and kcal/mol": 627.509474, "kcal/mol and kJ/mol": 4.184,
           "hartree and rydberg": 2.0}


@dataclass(frozen=True)
class Survey:
    """A file's frames. counts, isolated ``(frame,)``; values: our name → ``(frame, …)`` in our units; cell
    ``(frame, 3, 3)`` in Å; periodic ``(frame, 3)``; identity: of the molecule; formula; elements: atomic numbers;
    single: the atomic number of frames of one atom, else 0; forceless: number of configurations without forces."""

    counts: np.ndarray
    isolated: np.ndarray
    values: dict[str, np.ndarray]
    cell: np.ndarray
    periodic: np.ndarray
    identity: list[str]
    formula: list[str]
    elements: np.ndarray
    single: np.ndarray
    forceless: int


def survey(file: Frames, plan: Plan, options: MoleculeOptions, judge: Judge, *, isolated: bool, mask: bool) -> Survey:
    """Every frame of a file, a block at a time. isolated: all of them are isolated atoms; mask: infinite labels are
    left to become NaN. Raises `InputError` naming file, frame and atom."""
    parts = []
    for start, stop in blocks_of(file.sizes, file.bytes):
        block = file.block(start, stop, plan.keys(True), plan.keys(False))
        alone: np.ndarray = np.logical_or(file.isolated[start:stop], isolated)
        for error in complaints(file.path, block, start, plan, mask=mask):
            judge.refuse(error)
        parts.append(_part(file.path, block, start, plan, options, judge, alone))
    return _joined(parts, plan)


def _part(path: str, block: Block, start: int, plan: Plan, options: MoleculeOptions, judge: Judge,
          alone: np.ndarray) -> Survey:
    wrong = np.flatnonzero(alone & (block.counts != 1))
    if len(wrong):
        raise InputError(path, key=f"frame {start + wrong[0]}", found=f"{block.counts[wrong[0]]} atoms in a frame of "
                         "an isolated atom", expected="one atom", fix="correct options.isolated or its config_type")
    counts, values = block.counts, {}
    periodic = _flags(path, block, start, options, judge)
    for name, wanted in plan.quantities.items():
        if not wanted.per_atom:
            raw = block.frames[wanted.key] * wanted.scale
            values[name] = voigt(raw, path, start) if name == "stress" else raw
        if wanted.virial:
            values[name] = stress_of(values[name], block.cell * plan.length, periodic)
    if "energy" in values and options.energy_of == "atom":
        values["energy"] = values["energy"] * counts
    for error in _bad_cells(path, block.cell, periodic, start):
        judge.refuse(error)
    cell = np.where(np.asarray(periodic.any(1))[:, None, None], block.cell * plan.length, 0.0)
    formula = formulas(np.where(known(block.number), block.number, 0), counts)
    forceless = 0
    if "forces" in plan.quantities:
        nan = np.isnan(block.atoms[plan.quantities["forces"].key]).any(1)
        owner = np.repeat(np.arange(len(counts)), counts)
        forceless = int((np.bincount(owner[nan], minlength=len(counts)) > 0)[~alone].sum())
    single = np.zeros(len(counts), np.int64)
    single[counts == 1] = block.number[(np.cumsum(counts) - counts)[counts == 1]]
    of_frames = np.repeat(~alone, counts)
    return Survey(counts, alone, values, cell, periodic, [i or f for i, f in zip(block.identity, formula)], formula,
                  np.unique(block.number[of_frames]), single, forceless)


def _joined(parts: Sequence[Survey], plan: Plan) -> Survey:
    names = [name for name, wanted in plan.quantities.items() if not wanted.per_atom]
    return Survey(np.concatenate([p.counts for p in parts]), np.concatenate([p.isolated for p in parts]),
                  {name: np.concatenate([p.values[name] for p in parts]) for name in names},
                  np.concatenate([p.cell for p in parts]), np.concatenate([p.periodic for p in parts]),
                  [i for p in parts for i in p.identity], [f for p in parts for f in p.formula],
                  np.unique(np.concatenate([p.elements for p in parts])), np.concatenate([p.single for p in parts]),
                  sum(p.forceless for p in parts))


def complaints(path: str, block: Block, start: int, plan: Plan, *, mask: bool) -> Iterator[InputError]:
    """What is wrong with a block's elements, positions and labels, one error per kind, the first place named."""
    def place(atom: int) -> str:
        frame = int(np.searchsorted(np.cumsum(block.counts), atom, side="right"))
        return f"frame {start + frame}, atom {atom - int(block.counts[:frame].sum())}"

    wrong = np.flatnonzero(~known(block.number))
    if len(wrong):
        yield InputError(path, key=place(wrong[0]), found=f"atomic number {block.number[wrong[0]]}",
                         expected=f"an element, 1 to {len(SYMBOLS)}", fix="correct it, or leave dummy atoms out")
    wrong = np.flatnonzero(~np.isfinite(block.position).all(1))
    if len(wrong):
        yield InputError(path, key=place(wrong[0]), found=f"position {block.position[wrong[0]].tolist()} "
                         f"({len(wrong)} such atoms)", expected="finite positions",
                         fix="remove these frames: an atom without a place can't be masked")
    else:
        yield from _overlaps(path, block, plan, place)
    for name, wanted in plan.quantities.items():
        values = (block.atoms if wanted.per_atom else block.frames)[wanted.key]
        infinite = np.flatnonzero(np.isinf(values).reshape(len(values), -1).any(1))
        if len(infinite) and not mask:
            at = place(infinite[0]) if wanted.per_atom else f"frame {start + infinite[0]}"
            yield InputError(path, key=f"{at}, {wanted.key}", found=f"inf ({len(infinite)} such)",
                             expected="finite values, or NaN where a label is not known",
                             fix="remove them, or set missing: mask in the source file")
        if name == "spin":
            with np.errstate(invalid="ignore"):
                bad = np.flatnonzero((values < 1) | (values != np.rint(values)) & ~np.isnan(values))
            if len(bad):
                yield InputError(path, key=f"frame {start + bad[0]}, {wanted.key}", found=f"{values[bad[0]]:g}",
                                 expected="the multiplicity 2S + 1: a whole number from 1 on",
                                 fix="write multiplicities, or name another key: options: {spin: KEY}")


def _overlaps(path: str, block: Block, plan: Plan, place: object) -> Iterator[InputError]:
    pairs = close_pairs(block.position * plan.length, block.counts, OVERLAP)
    if not len(pairs):
        return
    first, second = (int(i) for i in pairs[0])
    offsets = np.cumsum(block.counts) - block.counts
    frame = int(np.searchsorted(offsets, first, side="right")) - 1
    apart = float(np.linalg.norm(block.position[first] - block.position[second])) * plan.length
    text = place(first) if callable(place) else ""
    yield InputError(path, key=f"{text} and atom {second - int(offsets[frame])}", found=f"{apart:.4g} Å apart "
                     f"({len(pairs)} such pairs in the frames read)", expected=f"atoms at least {OVERLAP} Å apart",
                     fix="remove such frames; if all are, the positions are in another unit: options: {length_unit: …}")


def close_pairs(position: np.ndarray, counts: np.ndarray, distance: float) -> np.ndarray:
    """Pairs of atoms ``(pair, 2)`` of one frame nearer than `distance`, ascending; frames lie apart in a fourth
    dimension, so that one search tree serves all.

    >>> close_pairs(np.array([[0.0, 0, 0], [0.1, 0, 0], [0.1, 0, 0]]), np.array([2, 1]), 0.3).tolist()
    [[0, 1]]
    """
    from scipy.spatial import cKDTree

    frame = np.repeat(np.arange(len(counts), dtype=np.float64), counts) * (2 * distance)
    pairs = cKDTree(np.column_stack([position, frame])).query_pairs(distance, output_type="ndarray")
    pairs = np.sort(pairs, axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _flags(path: str, block: Block, start: int, options: MoleculeOptions, judge: Judge) -> np.ndarray:
    """``(frame, 3)`` of 0 and 1; of cells without flags as the option says."""
    unknown = np.flatnonzero((block.periodic < 0).any(1))
    if not len(unknown):
        return block.periodic.astype(np.int8)
    if options.periodic is None:
        if "periodic" not in judge.options:
            judge.ask(InputError(path, key=f"frame {start + unknown[0]}", found=f"a cell without pbc flags "
                                 f"({len(unknown)} such frames)", expected="whether it is periodic",
                                 fix="options: {periodic: true}, {periodic: false} (a box around a molecule, which is "
                                     "dropped) or {periodic: [true, true, false]}"), "periodic")
        return np.maximum(block.periodic, 0).astype(np.int8)
    stated = np.broadcast_to(np.asarray(options.periodic, dtype=np.int8), block.periodic.shape)
    return np.where(block.periodic < 0, stated, block.periodic).astype(np.int8)


def _bad_cells(path: str, cell: np.ndarray, periodic: np.ndarray, start: int) -> Iterator[InputError]:
    for flags in np.unique(periodic[periodic.any(1)], axis=0):
        frames = np.flatnonzero((periodic == flags).all(1))
        spanned = cell[frames][:, flags.astype(bool)]
        gram = np.einsum("fic,fjc->fij", spanned, spanned)
        lengths = np.prod(np.einsum("fii->fi", gram), axis=1)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.linalg.det(np.where(np.isfinite(gram), gram, 0)) > 1e-8 * lengths)
        if wrong.any():
            at = int(frames[np.argmax(wrong)])
            yield InputError(path, key=f"frame {start + at}", found=f"periodic {flags.tolist()} with the cell "
                             f"{cell[at].tolist()}", expected="a vector for each periodic direction, none in the plane "
                             "of the others", fix="correct the cell or the pbc flags")


def stress_of(virial: np.ndarray, cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """``(frame, 6)`` −W / V in eV/Å³ of virials in eV, positive under tension; NaN unless all three directions of the
    cells ``(frame, 3, 3)`` Å are periodic.

    >>> float(stress_of(np.ones((1, 6)), 2 * np.eye(3)[None], np.ones((1, 3)))[0, 0].round(6))
    -0.125
    """
    volume = np.abs(np.linalg.det(np.nan_to_num(cell)))
    whole = np.asarray(periodic == 1).all(1) & (volume > 0)
    return np.where(whole[:, None], -virial / np.where(whole, volume, 1.0)[:, None], np.nan)


def voigt(stress: np.ndarray, path: str, start: int) -> np.ndarray:
    """``(frame, 6)`` in the order xx, yy, zz, yz, xz, xy from that, or from ``(frame, 9)`` or ``(frame, 3, 3)``.

    Raises `InputError` if a 3 × 3 stress is not symmetric.
    """
    if stress.ndim == 2 and stress.shape[1] == 6:
        return stress
    full = stress.reshape(-1, 3, 3)
    size = np.abs(np.nan_to_num(full)).max(axis=(1, 2), initial=0.0)
    skew = np.abs(np.nan_to_num(full - full.transpose(0, 2, 1))).max(axis=(1, 2), initial=0.0)
    wrong = np.flatnonzero(skew > 1e-3 * size + 1e-9)
    if len(wrong):
        raise InputError(path, key=f"frame {start + wrong[0]}, stress", found=f"{full[wrong[0]].tolist()}",
                         expected="a symmetric tensor", fix="correct it, or name another key: options: {stress: KEY}")
    full = (full + full.transpose(0, 2, 1)) / 2
    return full[:, (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]


def mixed_units(energy: np.ndarray, formula: Sequence[str], names: Sequence[str]) -> Iterator[InputError]:
    """Frames whose total energy differs from the median of their composition by the ratio of two units, within 1 %, and
    whose fellows do not spread nearly as far. names: of the files of each frame, then ``frame i``."""
    _, which = np.unique(np.array(formula), return_inverse=True)
    for code in range(int(which.max(initial=-1)) + 1):
        rows = np.flatnonzero((which == code) & np.isfinite(energy))
        if len(rows) < 2 or not (middle := float(np.median(np.abs(energy[rows])))):
            continue
        ratio = energy[rows] / (middle * np.sign(np.median(energy[rows])))
        usual = np.abs(ratio - 1) < 0.05
        for text, size in FACTORS.items():
            off = np.abs(np.log(np.abs(ratio) + 1e-300)) - np.log(size)
            wrong = rows[(np.abs(off) < 0.01) & (ratio > 0)]
            if len(wrong) and int(usual.sum()) + len(wrong) >= 0.9 * len(rows):
                yield InputError(names[wrong[0]].rpartition(" frame ")[0], key=f"frame {names[wrong[0]].split()[-1]}",
                                 found=f"energy {energy[wrong[0]]:g} of {formula[wrong[0]]}, whose others are near "
                                 f"{energy[rows[usual][0]] if usual.any() else middle:g} ({len(wrong)} such)",
                                 expected=f"one unit; the ratio {size:g} is that of {text}",
                                 fix="build one store per unit, or convert these frames")
                return
