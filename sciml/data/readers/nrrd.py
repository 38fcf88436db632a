"""NRRD images (.nrrd, .nhdr is refused): raw or gzip, with space directions and origin in LPS, RAS or LAS, in mm.

The header is read by pynrrd from its own lines; voxels as of NIfTI. A file with spacings but without directions is
refused unless ``options.orientation`` says what its axes point to. Options: those of all volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.affines import from_spacing
from sciml.data.files import head
from sciml.data.readers._volumes_files import local
from sciml.data.readers._volumes_look import first_of, look, read_files
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions
from sciml.data.readers._volumes_stream import GZIP, Stream, library
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.readers.nifti import NiftiScan
from sciml.data.safety import Limits
from sciml.errors import InputError

SUFFIXES = (".nrrd",)
MAGIC = b"NRRD000"
HEADER_BYTES = 1 << 20
SPACES = {"left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1), "right-anterior-superior": (1, 1, 1),
          "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1)}
"""Space → signs of its axes against right, anterior, superior."""
TYPES = {"int8": "signed char|int8|int8_t", "uint8": "uchar|unsigned char|uint8|uint8_t",
         "int16": "short|short int|signed short|signed short int|int16|int16_t",
         "uint16": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
         "int32": "int|signed int|int32|int32_t", "uint32": "uint|unsigned int|uint32|uint32_t",
         "int64": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
         "uint64": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
         "float32": "float", "float64": "double"}
NUMPY = {name: kind for kind, names in TYPES.items() for name in names.split("|")}


@dataclass(frozen=True)
class NRRD:
    """Reads images and label maps; one file is one subject unless options say otherwise."""

    options: frozenset[str] = OPTIONS

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        first = first_of(path, SUFFIXES)
        if first is None or not head(first, 8).startswith(MAGIC):
            return None
        return look([path], {}, partial(scans, limits=Limits()), SUFFIXES, "nrrd", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily."""
        return read_files(paths, source, scans, SUFFIXES, "nrrd")


PLUGIN = NRRD()


def scans(path: str, options: VolumeOptions, limits: Limits) -> list[NiftiScan]:
    """The 2-D or 3-D image of a file. Raises `InputError` for what the header lacks or lies about, for 4-D images, and
    for voxels in another file."""
    header, start = _header(str(local(path)), path)
    shape = tuple(int(n) for n in header["sizes"])
    if not 2 <= len(shape) <= 3:
        raise InputError(path, key="sizes", found=f"{len(shape)}-D, {' × '.join(map(str, shape))}",
                         expected="2-D or 3-D",
                         fix="write one 3-D file per frame, channel or segment")
    grid: tuple[int, int, int] = (*shape, 1)[:3]  # type: ignore[assignment]
    encoding = str(header.get("encoding", "")).lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError(path, key="encoding", found=encoding or "none", expected="raw or gzip",
                         fix="write it anew: nrrd.write(FILE, array, header) compresses with gzip")
    affine, notes = _affine(header, path, len(shape), options)
    stream = Stream(str(local(path)), grid, _type(header, path), 0 if encoding != "raw" else start,
                    None if encoding == "raw" else start)
    stream.check(limits)
    if encoding != "raw" and _bytes_at(stream.path, start) != GZIP:
        raise InputError(path, key="encoding", found="voxels that are no gzip stream",
                         expected="gzip, as the header says",
                         fix="write the file anew")
    return [NiftiScan(stream, grid, affine, None, 0.0, notes)]


def _bytes_at(file: str, start: int) -> bytes:
    with open(file, "rb") as raw:
        raw.seek(start)
        return raw.read(2)


def _header(file: str, path: str) -> tuple[Mapping[str, Any], int]:
    """Fields, and the byte at which voxels start."""
    nrrd = library("nrrd", path)
    start = head(file, HEADER_BYTES)
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := start.find(mark)) >= 0]
    if not start.startswith(MAGIC) or not ends:
        raise InputError(path, found=f"a file that starts with {start[:16]!r}",
                         expected=f"NRRD: a header of at most {HEADER_BYTES} bytes, a blank line, voxels",
                         fix="voxels in a file of their own (.nhdr) are not read: save as .nrrd")
    try:
        header = nrrd.read_header(start[:min(ends)].splitlines(keepends=True))
    except (nrrd.NRRDError, ValueError, IndexError) as error:
        raise InputError(path, key="header", found=" ".join(str(error).split())[:120], expected="a NRRD header",
                         fix="the file is damaged: copy it again, or write it anew") from None
    for name in ("data file", "datafile", "byte skip", "byteskip", "line skip", "lineskip"):
        if header.get(name):
            raise InputError(path, key=name, found=str(header[name])[:80], expected="voxels behind the header",
                             fix="save as one .nrrd file")
    if "sizes" not in header or (np.asarray(header["sizes"]) < 1).any():
        raise InputError(path, key="sizes", found=header.get("sizes"), expected="sizes above 0",
                         fix="write the file anew")
    return header, min(ends)


def _type(header: Mapping[str, Any], path: str) -> np.dtype:
    name = " ".join(str(header.get("type", "")).split())
    if name not in NUMPY:
        raise InputError(path, key="type", found=name or "none", expected="a type of numbers, such as short or float",
                         fix="write the file anew")
    kind = np.dtype(NUMPY[name])
    endian = str(header.get("endian", "little"))
    if endian not in ("little", "big"):
        raise InputError(path, key="endian", found=endian, expected="little or big", fix="write the file anew")
    return kind.newbyteorder("<" if endian == "little" else ">")


def _affine(header: Mapping[str, Any], path: str, axes: int,
            options: VolumeOptions) -> tuple[np.ndarray, tuple[str, ...]]:
    directions = header.get("space directions")
    if directions is None:
        mm = np.asarray(header.get("spacings", ()), np.float64)
        if len(mm) != axes or not np.isfinite(mm).all() or options.orientation is None:
            raise InputError(path, key="space directions", found="none" if options.orientation is None else
                             f"none, spacings {mm.tolist()}", expected="space, space directions and space origin",
                             fix="if you know it: options: {orientation: RAS} (what the axes of the array point to), "
                                 "with "
                                 "spacings in the header")
        mm = np.concatenate([np.abs(mm), np.ones(3 - axes)])
        return from_spacing(mm, options.orientation, path), ("orientation taken from the options",)
    space = str(header.get("space", "none")).lower()
    units = {str(unit).strip('"') for unit in header.get("space units", ())}
    matrix = np.asarray(directions, np.float64)
    if space not in SPACES or matrix.shape != (axes, 3) or not np.isfinite(matrix).all() or units - {"mm", ""}:
        raise InputError(path, key="space", found=f"{space}, directions {matrix.tolist()}, units {sorted(units)}",
                         expected=f"one of {', '.join(SPACES)}, a direction of 3 numbers in mm for each axis",
                         fix="save it with these, for example from 3D Slicer")
    affine = np.eye(4)
    affine[:3, :axes] = matrix.T
    notes: tuple[str, ...] = ()
    if axes < 3:
        affine[:3, 2] = np.cross(*(matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)))
        notes = ("a plane without thickness, taken as 1 mm",)
    origin = np.asarray(header.get("space origin", ()), np.float64)
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise InputError(path, key="space origin", found=origin.tolist() or "none", expected="3 numbers in mm",
                         fix="save it with an origin")
    affine[:3, 3] = origin
    return np.diag([*map(float, SPACES[space]), 1.0]) @ affine, notes
