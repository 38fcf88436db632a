"""MATLAB 7.3 files (``save -v7.3``): HDF5 behind a header of 512 bytes, arrays stored column by column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.readers._guarded import check_array, open_with_references
from sciml.data.readers._lattice import as_text
from sciml.data.safety import Limits, check_size
from sciml.errors import InputError


class Mat73:
    """The variables of a guarded file: `kinds` has the class of each that can be read, `shapes` MATLAB's shape."""

    def __init__(self, path: Path, limits: Limits) -> None:
        import h5py

        self.path, self.limits = path, limits
        self.kinds: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        with open_with_references(path, limits) as file:
            for name, item in file.items():
                kind = as_text(item.attrs.get("MATLAB_class", ""))
                if not isinstance(item, h5py.Dataset) or "MATLAB_empty" in item.attrs:
                    continue
                if kind == "cell" or (item.dtype.kind in "biuf" and kind != "char"):
                    self.kinds[name], self.shapes[name] = kind or str(item.dtype), tuple(item.shape[::-1])

    def get(self, name: str) -> Any:
        """An array, or for a cell array a list of arrays. Raises `InputError` for cells that hold other things."""
        with open_with_references(self.path, self.limits) as file:
            item = file[name]
            check_size(self.path, name, item.shape, item.dtype.itemsize, self.limits.chunk_bytes,
                       "an array to hold in memory")
            if self.kinds[name] != "cell":
                return np.asarray(item[()]).T
            return [self._cell(file, name, index, target) for index, target in enumerate(item[()].T.reshape(-1))]

    def _cell(self, file: Any, name: str, index: int, target: Any) -> np.ndarray:
        import h5py

        key = f"{name}{{{index + 1}}}"
        cell = file[target] if isinstance(target, h5py.Reference) and target else None
        if not isinstance(cell, h5py.Dataset) or cell.dtype.kind not in "biuf":
            raise InputError(self.path, key=key, found="no array of numbers", expected="spike times of one unit",
                             fix="save spike times as a cell array of vectors")
        check_array(str(self.path), key, cell, self.limits)
        check_size(self.path, key, cell.shape, cell.dtype.itemsize, self.limits.chunk_bytes, "a cell to hold in memory")
        return np.zeros(0) if "MATLAB_empty" in cell.attrs else np.asarray(cell[()]).T
