"""Guarded opening where `sciml.data.safety` is stricter than a format allows.

NWB and MATLAB 7.3 files point at their own objects by HDF5 references, and pynapple's archives carry a pickled member
beside the arrays. References are let through (they can't leave the file) and the pickle is never read; all else is
held against the same guards.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data import safety
from sciml.data.files import size_of
from sciml.data.safety import Limits, NpyHeader, check_ratio, check_size
from sciml.errors import InputError


def open_with_references(url: str | Path, limits: Limits) -> Any:
    """A guarded, read-only ``h5py.File`` as of `sciml.data.safety.open_hdf5`, object references let through."""
    return open_checked(url, limits, check_array)


def open_checked(url: str | Path, limits: Limits, check: Callable[[str, str, Any, Limits], int]) -> Any:
    """A read-only ``h5py.File`` whose arrays `check` lets through, closed if it doesn't."""
    file = safety.raw_hdf5(url)
    try:
        safety.check_hdf5_objects(str(url), file, size_of(url), limits, check)
    except BaseException:
        file.close()
        raise
    return file


def check_array(where: str, name: str, array: Any, limits: Limits) -> int:
    """Bytes that a data set declares; as in `sciml.data.safety`, but references and records of them are no error."""
    if _refers(array.dtype) and not array.is_virtual and not array.external:
        return check_size(where, name, array.shape or (), array.dtype.itemsize, limits.total_bytes, "an array")
    return safety._check_hdf5_array(where, name, array, limits)


def _refers(dtype: Any) -> bool:
    import h5py

    if dtype.names:
        parts = [dtype[name] for name in dtype.names]
        return any(map(_refers, parts)) and all(
            _refers(part) or not part.hasobject or h5py.check_string_dtype(part) is not None for part in parts)
    return h5py.check_ref_dtype(dtype) is h5py.Reference


def npz_headers(path: str | Path, limits: Limits, unread: Iterable[str] = ()) -> dict[str, NpyHeader]:
    """The headers of an archive's arrays by name, as of `sciml.data.safety.check_npz`, but for the members `unread`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            skipped = {f"{name}.npy" for name in unread} & names
            if not skipped:
                return {header.name: header for header in safety.check_npz(path, limits)}
            members = [m for m in archive.infolist() if m.filename not in skipped]
            check_size(str(path), "members", (sum(m.file_size for m in members),), 1, limits.total_bytes, "all members")
            check_ratio(path, sum(m.file_size for m in members), os.path.getsize(path), limits)
            found = {}
            for member in members:
                check_ratio(f"{path}:{member.filename}", member.file_size, member.compress_size, limits)
                with archive.open(member) as stream:
                    found[member.filename.removesuffix(".npy")] = safety._npy_header(
                        str(path), member.filename, stream, member.file_size, limits)
            return found
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InputError(path, found=str(error)[:120], expected="a complete .npz file", fix="copy it again") from None


def npz_array(path: str | Path, header: NpyHeader, name: str, limits: Limits) -> np.ndarray:
    """One array of a guarded archive, whole. Raises `InputError` above ``limits.chunk_bytes``, or if it is damaged."""
    check_size(path, name, header.shape, header.dtype.itemsize, limits.chunk_bytes, "an array to hold in memory")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[name])
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError) as error:
        raise InputError(path, key=name, found=str(error)[:120], expected="a readable array",
                         fix="copy the file again") from None


def npy_array(path: str | Path, limits: Limits) -> np.ndarray:
    """The array of a guarded local .npy file, whole."""
    header = safety.check_npy(path, limits)
    check_size(path, "array", header.shape, header.dtype.itemsize, limits.chunk_bytes, "an array to hold in memory")
    return np.asarray(np.load(path, allow_pickle=False))
