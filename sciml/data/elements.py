"""Chemical symbols and formulas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

_TABLE = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts "
    "Og")
SYMBOLS = tuple(_TABLE.split())
"""Symbol of atomic number i + 1."""
NUMBERS = {symbol: i + 1 for i, symbol in enumerate(SYMBOLS)}


def symbols(numbers: Iterable[int]) -> list[str]:
    """Chemical symbols of atomic numbers.

    >>> symbols([6, 118])
    ['C', 'Og']
    """
    return [SYMBOLS[int(number) - 1] for number in numbers]


def numbers_of(names: Sequence[str]) -> np.ndarray:
    """Atomic numbers ``(n,)`` int32 of symbols; 0 where a name is no element's.

    >>> numbers_of(["C", "H", "Xx"]).tolist()
    [6, 1, 0]
    """
    return np.array([NUMBERS.get(name, 0) for name in names], dtype=np.int32)


def known(numbers: np.ndarray) -> np.ndarray:
    """Whether each is an element's atomic number, 1 to 118."""
    return np.asarray((numbers >= 1) & (numbers <= len(SYMBOLS)))


def formula(numbers: np.ndarray) -> str:
    """Hill formula: C, then H, then the others by name; all by name without carbon.

    >>> formula(np.array([1, 8, 6, 1, 6, 1, 1, 1, 1])), formula(np.array([8, 1, 1]))
    ('C2H6O', 'H2O')
    """
    present, counts = np.unique(numbers, return_counts=True)
    amounts = dict(zip(symbols(present), counts.tolist(), strict=True))
    first = [name for name in ("C", "H") if "C" in amounts and name in amounts]
    order = [*first, *sorted(name for name in amounts if name not in first)]
    return "".join(name + (str(amounts[name]) if amounts[name] > 1 else "") for name in order)


def formulas(number: np.ndarray, counts: np.ndarray) -> list[str]:
    """Hill formula of each frame: `number (atoms,)` cut by `counts (frames,)`."""
    amounts = np.zeros((len(counts), len(SYMBOLS) + 1), dtype=np.int64)
    np.add.at(amounts, (np.repeat(np.arange(len(counts)), counts), number), 1)
    different, which = np.unique(amounts, axis=0, return_inverse=True)
    texts = [formula(np.repeat(np.arange(len(row)), row)) for row in different]
    return [texts[i] for i in which.reshape(-1)]
