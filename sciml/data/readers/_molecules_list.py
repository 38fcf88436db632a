"""Frames one at a time: what most formats read, joined to blocks; and a file of them that is held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sciml.data.elements import known
from sciml.data.readers._molecules_frames import Block, Found, Shapes
from sciml.errors import InputError


@dataclass(frozen=True)
class Frame:
    """One configuration in the file's units. number ``(n,)``, position ``(n, 3)``; atoms: key → ``(n, …)``; values: key
    → numbers of any shape; cell ``(3, 3)`` or None; periodic: three of 0 and 1, −1 where a cell has no flags."""

    number: np.ndarray
    position: np.ndarray
    atoms: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    cell: np.ndarray | None = None
    periodic: tuple[int, int, int] = (0, 0, 0)
    identity: str = ""
    isolated: bool = False


def block_of(frames: Sequence[Frame], atoms: Shapes, values: Shapes, path: str, start: int) -> Block:
    """Frames as a block. Raises `InputError` where a value has another shape than its key has elsewhere."""
    def shaped(array: np.ndarray, shape: tuple[int, ...], index: int, key: str) -> np.ndarray:
        if array.shape != shape:
            raise InputError(path, key=f"frame {start + index}, {key}", found=f"shape {array.shape}",
                             expected=f"{shape}, as elsewhere", fix="leave the key out, or mend the frame")
        return array

    counts = np.array([len(frame.number) for frame in frames], dtype=np.int64)
    columns = {key: np.concatenate([shaped(f.atoms[key], (len(f.number), *shape), i, key) if key in f.atoms else
                                    np.full((len(f.number), *shape), np.nan) for i, f in enumerate(frames)])
               for key, shape in atoms.items()}
    tables = {key: np.stack([shaped(f.values[key], shape, i, key) if key in f.values else np.full(shape, np.nan)
                             for i, f in enumerate(frames)]) for key, shape in values.items()}
    cell = np.stack([np.zeros((3, 3)) if f.cell is None else f.cell for f in frames])
    return Block(counts, np.concatenate([f.number for f in frames]), np.concatenate([f.position for f in frames]),
                 columns, tables, cell, np.array([f.periodic for f in frames], dtype=np.int8),
                 [f.identity for f in frames])


def per_atom(seen: Iterable[tuple[int, tuple[int, ...]]]) -> bool:
    """Whether a key is of atoms, from (number of atoms, shape of the value) wherever it was seen: one entry each, and
    not as many as a vector or tensor of a frame has by chance.

    >>> per_atom([(9, (9,)), (6, (6,))]), per_atom([(3, (3,))]), per_atom([(3, (3, 3))])
    (True, False, True)
    """
    pairs = set(seen)
    if any(shape[:1] != (count,) for count, shape in pairs):
        return False
    counts = {count for count, _ in pairs}
    return len(counts) > 1 or any(len(shape) > 1 for _, shape in pairs) or not counts <= {1, 3, 6, 9}


class KeyCount:
    """In how many frames each key was seen, and of which shapes."""

    def __init__(self) -> None:
        self._shapes: dict[str, dict[tuple[int, ...], int]] = {}

    def add(self, key: str, shape: tuple[int, ...], frames: int = 1) -> None:
        shapes = self._shapes.setdefault(key, {})
        shapes[shape] = shapes.get(shape, 0) + frames

    def found(self, units: Mapping[str, str] | None = None) -> dict[str, Found]:
        """units: by key, if the file says them."""
        return {key: Found(next(iter(shapes)) if len(shapes) == 1 else None, sum(shapes.values()),
                           (units or {}).get(key)) for key, shapes in self._shapes.items()}


@dataclass(frozen=True)
class FrameList:
    """Frames in memory; see `sciml.data.readers._molecules_frames.Frames`. units: as there; said: unit by key."""

    path: str
    frames: Sequence[Frame]
    units: Mapping[str, str]
    said: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, path: str, frames: Sequence[Frame], units: Mapping[str, str], *,
           said: Mapping[str, str] | None = None, notes: Sequence[str] = ()) -> FrameList:
        """Raises `InputError` if there are no frames, or one without atoms or of something that is no element."""
        for index, frame in enumerate(frames):
            check_frame(frame, path, index)
        if not frames:
            raise InputError(path, found="no frames", expected="at least one", fix="check the file")
        return cls(path, frames, units, said or {}, notes)

    @property
    def stated(self) -> dict[str, str]:
        return {}

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(frame.number) for frame in self.frames], dtype=np.int64)

    @property
    def bytes(self) -> np.ndarray:
        return 64 * self.sizes

    @property
    def isolated(self) -> np.ndarray:
        return np.array([frame.isolated for frame in self.frames], dtype=bool)

    @property
    def atom_keys(self) -> dict[str, Found]:
        keys = KeyCount()
        for frame in self.frames:
            for key, array in frame.atoms.items():
                keys.add(key, array.shape[1:])
        return keys.found(self.said)

    @property
    def frame_keys(self) -> dict[str, Found]:
        keys = KeyCount()
        for frame in self.frames:
            for key, array in frame.values.items():
                keys.add(key, array.shape)
        return keys.found(self.said)

    def block(self, start: int, stop: int, atoms: Shapes, frames: Shapes) -> Block:
        """Frames start … stop."""
        return block_of(self.frames[start:stop], atoms, frames, self.path, start)


def check_frame(frame: Frame, path: str, index: int) -> None:
    """Raises `InputError` unless a frame has atoms, a position for each, and elements that exist."""
    if not len(frame.number):
        raise InputError(path, key=f"frame {index}", found="0 atoms", expected="at least one", fix="remove the frame")
    if frame.position.shape != (len(frame.number), 3):
        raise InputError(path, key=f"frame {index}", found=f"positions of shape {frame.position.shape} of "
                         f"{len(frame.number)} atoms", expected="three numbers for each atom", fix="mend the frame")
    wrong = np.flatnonzero(~known(frame.number))
    if len(wrong):
        raise InputError(path, key=f"frame {index}, atom {wrong[0]}", found=f"atomic number {frame.number[wrong[0]]}",
                         expected="an element, 1 to 118", fix="correct it, or leave dummy atoms out")
