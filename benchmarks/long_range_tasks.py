"""Long-range tasks made here, offline and from a seed: nested list operations, and dashed curves among others.

Both follow Long Range Arena (Tay et al., "Long Range Arena: a benchmark for efficient transformers", 2021) in form, not
in numbers: they are made so that a small model learns something within a CPU minute, and a bag of tokens does not.

ListOps. ``[MED [MED [MAX 2 3 3] [MAX 1 3] …] …]``: MIN, MAX, MED (median, rounded down), SM (sum modulo ten); ten
classes. Every expression fills its length exactly, so nothing is padded. Independent digits would make nearly every
long MIN 0 and MAX 9; so digits have a centre per section, and the sections of a sample are of two kinds. The leaves of
one are mostly MAX with digits about one centre, those of the other mostly MIN about another centre. Both kinds have the
same number of tokens, but one has three sections and the other two, and the root is mostly MED, which the majority
decides. A bag of tokens sees two centres, not which operator goes with which (short structure), nor which kind has the
majority (long structure), nor which operator is the root (one token).

Pathfinder. Smooth curves on a square lattice, drawn as dashes of two cells and gaps of one; cells of different curves
are at least three apart (in either direction), so that joining cells at most two apart gives the curves back. Two ends
are marked: do they belong to one curve? The distance between the marks is drawn before the label, and in half of the
samples they belong together; so neither distance nor counts tell.
"""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Callable, Sequence

import numpy as np

OPERATORS = ("MIN", "MAX", "MED", "SM")
DIGIT, OPERATOR, CLOSE = 1, 11, 15
"""First token of the ten digits, first of the four operators (each with its bracket), closing bracket; 0 is unused."""
NUM_LISTOPS_TOKENS, NUM_PATHFINDER_TOKENS = 16, 3
ROOT_WEIGHTS = (0.08, 0.08, 0.8, 0.04)
LEAF = (6, 12)
STRAY, SPREAD, APART = 0.1, 1.5, 3.0
"""Share of leaves with any operator; spread of digits about their centre; least distance of the two centres."""
EMPTY, DASH, MARK = 0, 1, 2
STEPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
SHARES = {"test": (0, 1), "validation": (1, 2), "train": (2, 8)}
"""Eighths of all samples, by a digest of their content: the splits are disjoint whatever is drawn twice."""

Split = tuple[np.ndarray, np.ndarray]
Draw = Callable[[random.Random, int], tuple[np.ndarray, int]]


def apply(operator: str, values: Sequence[int]) -> int:
    """The value of one operator.

    >>> [apply(name, [7, 1, 4, 9]) for name in OPERATORS]
    [1, 9, 5, 1]
    """
    if operator == "MED":
        return int(statistics.median(values))
    return sum(values) % 10 if operator == "SM" else min(values) if operator == "MIN" else max(values)


def listops(rng: random.Random, length: int) -> tuple[np.ndarray, int]:
    """Tokens ``(length,)`` of one expression, and its value. length ≥ 64."""
    root = rng.choices(OPERATORS, ROOT_WEIGHTS)[0]
    major, minor = rng.sample(("MIN", "MAX"), 2)
    centres = (0.0, 0.0)
    while abs(centres[0] - centres[1]) < APART:
        centres = (rng.uniform(0, 9), rng.uniform(0, 9))
    half = (length - 2) // 2
    sections = [(size, major, centres[0]) for size in cut(half, 3)]
    sections += [(size, minor, centres[1]) for size in cut(length - 2 - half, 2)]
    rng.shuffle(sections)
    parts = [section(rng, *each) for each in sections]
    tokens = [token for part, _ in parts for token in part]
    return np.array(bracket(root, tokens), dtype=np.uint8), apply(root, [value for _, value in parts])


def section(rng: random.Random, size: int, main: str, centre: float) -> tuple[list[int], int]:
    """``[MED leaf leaf …]`` of `size` tokens; the leaves' operator is `main` but for a few strays."""
    tokens: list[int] = []
    values = []
    for length in pieces(rng, size - 2, *LEAF):
        operator = rng.choice(OPERATORS) if rng.random() < STRAY else main
        digits = [min(9, max(0, round(rng.gauss(centre, SPREAD)))) for _ in range(length - 2)]
        tokens += bracket(operator, [DIGIT + digit for digit in digits])
        values.append(apply(operator, digits))
    return bracket("MED", tokens), apply("MED", values)


def bracket(operator: str, tokens: list[int]) -> list[int]:
    return [OPERATOR + OPERATORS.index(operator), *tokens, CLOSE]


def cut(total: int, count: int) -> list[int]:
    """`total` in `count` parts that differ by at most one.

    >>> cut(11, 3)
    [4, 4, 3]
    """
    return [total // count + (i < total % count) for i in range(count)]


def pieces(rng: random.Random, total: int, low: int, high: int) -> list[int]:
    """`total` ≥ low in random parts of low … high; high ≥ 2 low − 1, so that what is left can always be used up."""
    found = []
    while total:
        size = total if total < 2 * low else rng.randint(low, min(high, total - low))
        found.append(size)
        total -= size
    return found


def pathfinder(rng: random.Random, size: int) -> tuple[np.ndarray, int]:
    """Tokens ``(size, size)`` of one picture, and whether its two marks belong to one curve. size ≥ 16."""
    label, reach = rng.randrange(2), rng.uniform(4, size / 4)
    while True:
        curves = scene(rng, size)
        if label:
            pairs = [(curve[0], curve[-1]) for curve in curves]
        else:
            pairs = [(a, b) for i, one in enumerate(curves) for two in curves[:i]
                     for a in (one[0], one[-1]) for b in (two[0], two[-1])]
        pairs = [pair for pair in pairs if abs(np.hypot(pair[0][0] - pair[1][0], pair[0][1] - pair[1][1]) - reach) < 1]
        if pairs:
            return picture(size, curves, rng.choice(pairs)), label


def scene(rng: random.Random, size: int) -> list[list[tuple[int, int]]]:
    """size/6 curves (or a few fewer, where there's no room), each a list of cells, at least three cells apart."""
    free = np.ones((size, size), dtype=bool)
    curves = []
    for _ in range(size // 6):
        curve = walk(rng, free, 3 * rng.randint(size // 10, size // 7) + 2)
        if curve is not None:
            curves.append(curve)
            for row, column in curve:
                free[max(0, row - 2): row + 3, max(0, column - 2): column + 3] = False
    return curves


def walk(rng: random.Random, free: np.ndarray, length: int, tries: int = 20) -> list[tuple[int, int]] | None:
    """A smooth walk of `length` free cells that turns by at most 45° at a step, or None if none was found."""
    size = len(free)
    for _ in range(tries):
        cell, heading = (rng.randrange(size), rng.randrange(size)), rng.randrange(8)
        curve: list[tuple[int, int]] = []
        while free[cell] and cell not in curve:
            curve.append(cell)
            if len(curve) == length:
                return curve
            heading = (heading + rng.choice((-1, 0, 0, 1))) % 8
            cell = (cell[0] + STEPS[heading][0], cell[1] + STEPS[heading][1])
            if not (0 <= cell[0] < size and 0 <= cell[1] < size):
                break
    return None


def picture(size: int, curves: Sequence[Sequence[tuple[int, int]]], marks: Sequence[tuple[int, int]]) -> np.ndarray:
    """Every third cell of a curve is left out; both its ends are drawn, as lengths are 2 modulo 3."""
    tokens = np.full((size, size), EMPTY, dtype=np.uint8)
    for curve in curves:
        for place, cell in enumerate(curve):
            if place % 3 != 2:
                tokens[cell] = DASH
    for cell in marks:
        tokens[cell] = MARK
    return tokens


def make(draw: Draw, size: int, counts: dict[str, int], seed: int) -> dict[str, Split]:
    """Split → tokens ``(N, *lattice)`` uint8 and labels ``(N,)``, `counts` of each, from one stream of samples."""
    rng = random.Random(f"{seed} {size}")
    found: dict[str, list[tuple[np.ndarray, int]]] = {split: [] for split in counts}
    seen: set[bytes] = set()
    while any(len(found[split]) < counts[split] for split in counts):
        tokens, label = draw(rng, size)
        digest = hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
        split = next(name for name, (low, high) in SHARES.items() if low <= digest[0] % 8 < high)
        if split in found and len(found[split]) < counts[split] and digest not in seen:
            seen.add(digest)
            found[split].append((tokens, label))
    return {split: (np.stack([tokens for tokens, _ in pairs]), np.array([label for _, label in pairs]))
            for split, pairs in found.items()}
