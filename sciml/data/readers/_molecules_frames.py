"""What a format of molecules hands over: frames that can be read block by block, in the file's own keys and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sciml.errors import InputError

BLOCK_ATOMS = 1 << 14
BLOCK_BYTES = 64 << 20
Shapes = Mapping[str, tuple[int, ...]]
"""Key → shape of one value; where a file or a frame has no such key, values are NaN."""


@dataclass(frozen=True)
class Found:
    """A numeric key of a file: shape of one value (of a frame, or of an atom), None if it differs from frame to
    frame; how many frames have it; its unit, if the file says so."""

    shape: tuple[int, ...] | None
    frames: int
    unit: str | None = None


@dataclass(frozen=True)
class Block:
    """Frames one after the other. counts ``(frame,)``; number ``(atom,)``; position ``(atom, 3)``; atoms: key →
    ``(atom, …)`` and frames: key → ``(frame, …)``, NaN where a frame has none; cell ``(frame, 3, 3)``, rows are
    vectors, zeros where there is none; periodic ``(frame, 3)`` of 0 and 1, −1 where a cell has no flags; identity:
    SMILES or InChI, empty where the file has none. All in the file's units."""

    counts: np.ndarray
    number: np.ndarray
    position: np.ndarray
    atoms: Mapping[str, np.ndarray]
    frames: Mapping[str, np.ndarray]
    cell: np.ndarray
    periodic: np.ndarray
    identity: Sequence[str]


class Frames(Protocol):
    """One file. sizes ``(frame,)`` atoms of each; isolated ``(frame,)`` marked as isolated atoms; units: of length,
    energy, forces, stress where the format defines them; stated: where the file itself says so; bytes: ``(frame,)``
    that reading each takes."""

    @property
    def path(self) -> str: ...

    @property
    def sizes(self) -> np.ndarray: ...

    @property
    def bytes(self) -> np.ndarray: ...

    @property
    def isolated(self) -> np.ndarray: ...

    @property
    def atom_keys(self) -> Mapping[str, Found]: ...

    @property
    def frame_keys(self) -> Mapping[str, Found]: ...

    @property
    def units(self) -> Mapping[str, str]: ...

    @property
    def stated(self) -> Mapping[str, str]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def block(self, start: int, stop: int, atoms: Shapes, frames: Shapes) -> Block:
        """Frames start ≤ i < stop with these keys. Raises `InputError` for what can't be read."""


@dataclass(frozen=True)
class Judge:
    """Refuses what is wrong while a source is read; while a file is only looked at (`asking`), collects it instead,
    with the options that would settle it."""

    asking: bool = False
    missing: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def ask(self, error: InputError, option: str) -> None:
        """Something that an option settles."""
        if not self.asking:
            raise error
        self.missing.append(f"{option}: {error.found}; expected {error.expected}")
        self.options[option] = None

    def refuse(self, error: InputError) -> None:
        """Something that is wrong."""
        if not self.asking:
            raise error
        if len(self.suspicious) < 8:
            self.suspicious.append(f"{error.key}: found {error.found}. {error.fix}")


def blocks_of(sizes: np.ndarray, nbytes: np.ndarray) -> list[tuple[int, int]]:
    """Frames start … stop of blocks of at most `BLOCK_ATOMS` atoms and `BLOCK_BYTES` bytes, or of one frame.

    >>> blocks_of(np.array([10000, 6000, 70000, 3]), np.array([10, 10, 10, 10]))
    [(0, 2), (2, 3), (3, 4)]
    """
    found, start, atoms, held = [], 0, 0, 0
    for index, (count, size) in enumerate(zip(sizes.tolist(), nbytes.tolist(), strict=True)):
        if index > start and (atoms + count > BLOCK_ATOMS or held + size > BLOCK_BYTES):
            found.append((start, index))
            start, atoms, held = index, 0, 0
        atoms, held = atoms + count, held + size
    return [*found, (start, len(sizes))] if len(sizes) > start else found
