"""Guards for files that somebody else wrote: they may point outside, carry pickles or lie about their size.

Each guard reads only metadata, and raises `InputError` naming file, key, value, expectation and fix. What passed can
be read with the ordinary libraries.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sciml.data.files import local_path, open_bytes, require, size_of
from sciml.errors import InputError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a file may declare. ratio: declared over stored bytes, applied above `floor_bytes`; deflate can't exceed
    1032, and real fields stay below 100. objects: groups and arrays of one file."""

    total_bytes: int = 1 << 40
    chunk_bytes: int = GIB
    ratio: float = 2000.0
    floor_bytes: int = 64 << 20
    objects: int = 200_000


DEFAULT = Limits()


def limits_of(options: Mapping[str, Any], where: object) -> Limits:
    """`Limits` from ``options: {limits: {total_bytes: …}}`` of a source.

    >>> limits_of({"limits": {"ratio": 5000}}, "source.yaml").ratio
    5000
    """
    given = options.get("limits", {})
    known = Limits.__dataclass_fields__
    for key, value in given.items():
        if key not in known or not isinstance(value, (int, float)) or value <= 0:
            raise InputError(where, key=f"options.limits.{key}", found=repr(value), expected="a positive number",
                             fix=f"keys: {', '.join(known)}")
    return Limits(**given)


def check_size(where: object, key: str, shape: tuple[int, ...], itemsize: int, limit: int, what: str) -> int:
    """Bytes that a shape declares. Raises `InputError` above `limit`."""
    declared = math.prod(int(n) for n in shape) * itemsize
    if min(shape, default=0) < 0 or declared > limit:
        raise InputError(where, key=key, found=f"{what} of shape {tuple(shape)}, {declared} bytes",
                         expected=f"at most {limit} bytes",
                         fix="don't trust the file; if it is yours, split it or raise options.limits in source.yaml")
    return declared


def check_ratio(where: object, declared: int, stored: int, limits: Limits) -> None:
    if declared > limits.floor_bytes and declared > limits.ratio * max(stored, 1):
        raise InputError(where, found=f"{declared} bytes declared, {stored} stored",
                         expected=f"a ratio of at most {limits.ratio:g}",
                         fix="don't trust the file; if it is yours, raise options.limits.ratio in source.yaml")


def open_hdf5(url: str | Path, limits: Limits = DEFAULT) -> Any:
    """A guarded, read-only ``h5py.File`` (use it in ``with``), from a path or fsspec URL.

    Refuses external links, links of unknown kinds, soft links that lead nowhere, virtual data sets, external raw
    storage, reference and ragged types, filters that are not installed, sizes beyond `limits`, and truncated files.
    """
    file = raw_hdf5(url)
    try:
        check_hdf5_objects(str(url), file, size_of(url), limits, _check_hdf5_array)
    except BaseException:
        file.close()
        raise
    return file


def raw_hdf5(url: str | Path) -> Any:
    """Opened without walking it: for files that `open_hdf5` has let through."""
    import h5py

    require(url)
    path = local_path(url)
    try:
        return h5py.File(path if path is not None else open_bytes(url), "r")
    except (OSError, ValueError) as error:
        raise InputError(url, found=" ".join(str(error).split())[:160], expected="a complete HDF5 file",
                         fix="copy it again; compare its size or checksum with the original") from None


def check_hdf5_objects(where: str, file: Any, stored: int, limits: Limits,
                       check_array: Callable[[str, str, Any, Limits], int]) -> None:
    """All objects of an open file; `check_array` refuses a data set or says how many bytes it declares."""
    import h5py

    declared, soft = 0, list[tuple[str, str]]()
    for count, (name, item) in enumerate(_hdf5_objects(where, file, soft)):
        if count >= limits.objects:
            raise InputError(where, found=f"more than {limits.objects} objects", expected="fewer",
                             fix="split the file, or raise options.limits.objects in source.yaml")
        if isinstance(item, h5py.Dataset):
            declared += check_array(where, name, item, limits)
    for name, target in soft:
        if file.get(name) is None:
            raise InputError(where, key=name, found=f"soft link to {target}", expected="an object of this file",
                             fix="copy what it points to into the file (h5copy)")
    check_size(where, "/", (declared,), 1, limits.total_bytes, "all arrays together")
    check_ratio(where, declared, stored, limits)


def _hdf5_objects(where: str, root: Any, soft: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Every object that hard links reach, once; soft links are collected, not followed."""
    import h5py

    stack, seen = [("", root)], set()
    while stack:
        parent, group = stack.pop()
        for key in group:
            name = f"{parent}/{key}"
            try:
                link = group.get(key, getlink=True)
            except TypeError:
                link = None
            if isinstance(link, h5py.SoftLink):
                soft.append((name, link.path))
                continue
            if not isinstance(link, h5py.HardLink):
                outside = f"external link to {link.filename}:{link.path}" if link else "link of an unknown kind"
                raise InputError(where, key=name, found=outside, expected="data inside the file",
                                 fix="copy the data into the file (h5copy, h5repack)")
            try:
                item = group[key]
                address = h5py.h5o.get_info(item.id).addr
            except (OSError, KeyError, RuntimeError) as error:
                raise InputError(where, key=name, found=" ".join(str(error).split())[:160],
                                 expected="a readable object", fix="the file is damaged: copy it again") from None
            if address in seen:
                continue
            seen.add(address)
            yield name, item
            if isinstance(item, h5py.Group):
                stack.append((name, item))


def _check_hdf5_array(where: str, name: str, array: Any, limits: Limits) -> int:
    import h5py

    def refuse(found: str, expected: str, fix: str) -> InputError:
        return InputError(where, key=name, found=found, expected=expected, fix=fix)

    if array.is_virtual:
        sources = {source.file_name for source in array.virtual_sources()}
        raise refuse(f"virtual data set over {', '.join(sorted(sources))}", "data inside the file", "h5repack it")
    if array.external:
        raise refuse(f"external raw storage in {array.external[0][0]}", "data inside the file", "h5repack it")
    if array.dtype.hasobject and h5py.check_string_dtype(array.dtype) is None:
        raise refuse(f"type {_describe_type(array.dtype)}", "numbers or strings", "store it as a rectangular array")
    plist = array.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        code, _, _, label = plist.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            raise refuse(f"filter {code} {label.decode(errors='replace')!r}", "a filter that is installed",
                         "install hdf5plugin's filter or h5repack the file with gzip")
    if array.shape is None:
        return 0
    itemsize = array.dtype.itemsize
    if array.chunks:
        check_size(where, name, array.chunks, itemsize, limits.chunk_bytes, "a chunk")
    return check_size(where, name, array.shape, itemsize, limits.total_bytes, "an array")


def _describe_type(dtype: Any) -> str:
    import h5py

    if h5py.check_vlen_dtype(dtype) is not None:
        return f"variable-length {h5py.check_vlen_dtype(dtype)}"
    if h5py.check_ref_dtype(dtype) is not None:
        return "object reference"
    return str(dtype)


@dataclass(frozen=True)
class NpyHeader:
    """One array of a NumPy file: `offset` of its first byte in the file, or None where it is compressed."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    fortran: bool
    offset: int | None


def check_npy(path: str | Path, limits: Limits = DEFAULT) -> NpyHeader:
    """The header of a local .npy file, held against the file's size. Refuses object arrays and truncated files."""
    require(path)
    with open(path, "rb") as stream:
        return _npy_header(str(path), "array", stream, os.path.getsize(path), limits)


def check_npz(path: str | Path, limits: Limits = DEFAULT) -> tuple[NpyHeader, ...]:
    """The headers of all arrays of a local .npz file. Refuses zip bombs and headers that contradict a member's size."""
    where, headers = str(path), []
    require(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_size(where, "members", (sum(m.file_size for m in members),), 1, limits.total_bytes, "all members")
            check_ratio(where, sum(m.file_size for m in members), os.path.getsize(path), limits)
            for member in members:
                if not member.filename.endswith(".npy") or "/" in member.filename or ".." in member.filename:
                    raise InputError(where, key=member.filename, found="a member that is no array",
                                     expected="names ending in .npy", fix="write it with numpy.savez")
                check_ratio(f"{where}:{member.filename}", member.file_size, member.compress_size, limits)
                with archive.open(member) as stream:
                    header = _npy_header(where, member.filename, stream, member.file_size, limits)
                start = _stored_at(path, member) if member.compress_type == zipfile.ZIP_STORED else None
                offset = None if start is None or header.offset is None else start + header.offset
                headers.append(NpyHeader(member.filename[:-4], header.shape, header.dtype, header.fortran, offset))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(where, found=str(error)[:120], expected="a complete .npz file", fix="copy it again") from None
    return tuple(headers)


def _npy_header(where: str, key: str, stream: Any, size: int, limits: Limits) -> NpyHeader:
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise InputError(where, key=key, found=str(error).split("\n")[0][:120], expected="a NumPy array header",
                         fix="write it again with numpy.save") from None
    if dtype.hasobject:
        raise InputError(where, key=key, found=f"object type {dtype} (a pickle)", expected="numbers",
                         fix="convert it to a rectangular numeric array before saving")
    start = stream.tell()
    declared = check_size(where, key, shape, dtype.itemsize, limits.total_bytes, "an array")
    if start + declared != size:
        raise InputError(where, key=key, found=f"{size - start} bytes of data for shape {shape} of {dtype}",
                         expected=f"{declared} bytes", fix="the file is cut short or altered: write it again")
    return NpyHeader(key, tuple(shape), dtype, bool(fortran), start)


def _stored_at(path: str | Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes start: after its local header, whose name and extra lengths may differ."""
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        lengths = file.read(4)
    return member.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
