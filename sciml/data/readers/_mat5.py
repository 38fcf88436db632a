"""MATLAB 5 to 7 files (``save -v6``, ``-v7``): numeric arrays and cell arrays of them, nothing that runs or refers."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.safety import Limits, check_ratio, check_size
from sciml.errors import InputError

NUMERIC = frozenset({"double", "single", "logical", "sparse",
                     *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
DAMAGED = (ValueError, TypeError, KeyError, IndexError, OSError, EOFError, NotImplementedError, OverflowError,
           AttributeError, struct.error, zlib.error)
BLOCK = 1 << 20
COMPRESSED = 15


class Mat5:
    """The variables of a guarded file: `kinds` has the class of each that can be read, `shapes` its shape."""

    def __init__(self, path: Path, limits: Limits) -> None:
        from scipy.io import whosmat

        self.path, self.limits = path, limits
        _check_elements(path, limits)
        try:
            listed = whosmat(str(path))
        except DAMAGED as error:
            raise _damaged(path, error) from None
        except Exception as error:
            if type(error).__module__.startswith("scipy."):
                raise _damaged(path, error) from None
            raise
        for name, shape, kind in listed:
            check_size(path, name, shape, 8 if kind != "cell" else 1, limits.total_bytes, "an array")
        self.shapes = {name: tuple(shape) for name, shape, kind in listed if kind in NUMERIC | {"cell"}}
        self.kinds = {name: kind for name, _, kind in listed if kind in NUMERIC | {"cell"}}

    def get(self, name: str) -> Any:
        """An array, or for a cell array a list of arrays. Raises `InputError` for cells that hold other things."""
        from scipy.io import loadmat

        check_size(self.path, name, self.shapes[name], 8, self.limits.chunk_bytes, "an array to hold in memory")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                value = loadmat(str(self.path), variable_names=[name], struct_as_record=True)[name]
        except (*DAMAGED, Warning) as error:
            raise _damaged(self.path, error) from None
        if self.kinds[name] == "sparse":
            return value.toarray()
        if self.kinds[name] != "cell":
            return value
        cells = list(np.asarray(value).reshape(-1))
        for index, cell in enumerate(cells):
            if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "biuf":
                found = f"{type(cell).__name__} of {getattr(cell, 'dtype', 'no type')}"
                raise InputError(self.path, key=f"{name}{{{index + 1}}}", found=found[:80],
                                 expected="an array of numbers", fix="save spike times as a cell array of vectors")
        return cells


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(path, found=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
                      expected="a complete MATLAB file", fix="save it again: save -v7")


def _check_elements(path: Path, limits: Limits) -> None:
    """Walks the elements, inflating compressed ones in blocks: no more than the limits, no file that is cut short."""
    declared, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:])
        if order is None:
            raise _damaged(path, ValueError("no byte order mark"))
        while file.tell() < size:
            tag = file.read(8)
            kind, count = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, size)
            if file.tell() + count > size:
                raise InputError(path, key=f"byte {file.tell()}", found=f"{size - file.tell()} bytes of {count}",
                                 expected="a complete MATLAB file", fix="copy or save it again")
            if kind != COMPRESSED:
                declared += count
                file.seek(count, 1)
                continue
            inflate, left = zlib.decompressobj(), count
            while left:
                block = file.read(min(BLOCK, left))
                left -= len(block)
                while block:
                    try:
                        declared += len(inflate.decompress(block, BLOCK))
                    except zlib.error as error:
                        raise _damaged(path, error) from None
                    block = inflate.unconsumed_tail
                    check_size(path, "elements", (declared,), 1, min(limits.total_bytes, 8 * limits.chunk_bytes),
                               "inflated elements")
    check_ratio(path, declared, size, limits)
