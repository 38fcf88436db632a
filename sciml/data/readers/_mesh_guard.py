"""Guards for mesh files: what they are by content, which other files they name, and how much they declare.

VTK reads what it is told to. Before it is, XML entities, files outside the folder, parallel pieces, damaged HDF5 and
counts that the file is too small for are refused here, from text alone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sciml.data.files import head, local_path
from sciml.data.safety import Limits, check_ratio, check_size, open_hdf5
from sciml.errors import InputError

LOOK_BYTES, TEXT_BYTES = 1 << 20, 64 << 20
KINDS = {"ImageData", "RectilinearGrid", "StructuredGrid", "UnstructuredGrid", "PolyData"}
_VTK = re.compile(rb"<VTKFile[^>]*\btype\s*=\s*[\"'](\w+)[\"']")
_COUNT = re.compile(rb"\bNumberOf(?:Points|Cells|Verts|Lines|Strips|Polys)\s*=\s*[\"']\s*(\d+)\s*[\"']")
_EXTENT = re.compile(rb"\bWholeExtent\s*=\s*[\"']([-\d\s]+)[\"']")
_LEGACY = re.compile(rb"^(?:POINTS|DIMENSIONS|CELLS)((?:\s+\d+)+)", re.MULTILINE)
_XDMF_ITEM = re.compile(rb"<DataItem\b([^>]*)>([^<]*)<")
_DIMENSIONS = re.compile(rb"\bDimensions\s*=\s*[\"']([\d\s]+)[\"']")
_MEMBER = re.compile(r"<DataSet\b([^>]*)>")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']")


@dataclass(frozen=True)
class Member:
    """One entry of a collection: when, and the file."""

    time: float
    path: str


def kind_of(path: str) -> str | None:
    """A class of VTK's XML files, ``Collection``, ``legacy``, ``xdmf``, ``openfoam``, or None, by content; a parallel
    class keeps its P."""
    local = local_path(path)
    if local is None:
        return None
    if os.path.isdir(local) or local.suffix == ".foam":
        case = local if os.path.isdir(local) else local.parent
        return "openfoam" if (case / "system/controlDict").is_file() and (case / "constant/polyMesh").is_dir() else None
    start = head(path, 4096)
    if start.startswith(b"# vtk DataFile"):
        return "legacy"
    found = _VTK.search(start)
    return found[1].decode() if found else "xdmf" if re.search(rb"<Xdmf[\s>]", start) else None


def check(path: str, kind: str, limits: Limits) -> None:
    """Raises `InputError` unless a file declares no more than it can hold and names nothing outside its folder."""
    if kind == "openfoam":
        _check_case(path)
        return
    stored = os.path.getsize(path)
    with open(path, "rb") as file:
        text = file.read(TEXT_BYTES if kind == "xdmf" else LOOK_BYTES)
    if re.search(rb"<!(?:DOCTYPE|ENTITY)", text):
        raise InputError(path, found="an XML document type or entity", expected="plain VTK or XDMF",
                         fix="don't trust the file; write it again without")
    if kind not in (*KINDS, "Collection", "legacy", "xdmf"):
        raise InputError(path, found=f"a VTK file of type {kind}", expected=f"one of {', '.join(sorted(KINDS))}, or a "
                         "collection", fix="merge the pieces of a parallel file, for example with pyvista")
    if kind == "xdmf":
        stored += _check_xdmf(path, text, limits)
    declared = max((math.prod(counts) for counts in _counts(text, kind)), default=0)
    check_size(path, "points", (declared,), 4, limits.total_bytes, "a mesh")
    check_ratio(path, declared * 4, stored, limits)


def _counts(text: bytes, kind: str) -> Iterator[list[int]]:
    if kind == "legacy":
        for found in _LEGACY.finditer(text):
            numbers = [int(n) for n in found[1].split()]
            yield numbers if found[0].startswith(b"DIMENSIONS") else numbers[:1]
    for found in _COUNT.finditer(text):
        yield [int(found[1])]
    for found in _EXTENT.finditer(text):
        ends = [int(n) for n in found[1].split()]
        yield [max(1, high - low + 1) for low, high in zip(ends[::2], ends[1::2])]
    if kind == "xdmf":
        for found in _DIMENSIONS.finditer(text):
            yield [int(n) for n in found[1].split()]


def _check_xdmf(path: str, text: bytes, limits: Limits) -> int:
    """Bytes of the HDF5 files that an XDMF document refers to, each guarded."""
    if re.search(rb"include\b[^>]*\bhref\s*=", text):
        raise InputError(path, found="an XInclude of another document", expected="one document", fix="write it anew")
    files: dict[str, str] = {}
    for attributes, content in _XDMF_ITEM.findall(text):
        form = re.search(rb"\bFormat\s*=\s*[\"'](\w+)[\"']", attributes)
        if form and form[1].upper() == b"HDF":
            name = content.decode("utf-8", "replace").strip().partition(":")[0]
            files[name] = beside(path, name)
        elif form and form[1].upper() != b"XML":
            raise InputError(path, key="DataItem", found=f"format {form[1].decode(errors='replace')}",
                             expected="HDF or XML", fix="write it with HDF5")
    for name in files.values():
        open_hdf5(name, limits).close()
    return sum(map(os.path.getsize, files.values()))


def beside(path: str, name: str) -> str:
    """A file that another one names, in the same folder or below it. Raises `InputError` for any other place."""
    folder = Path(path).resolve().parent
    target = (folder / name).resolve()
    if not name or os.path.isabs(name) or not target.is_relative_to(folder):
        raise InputError(path, key=name, found="a file outside its folder", expected="files beside it, or below",
                         fix="don't trust the file; if it is yours, move them there")
    if not target.is_file():
        raise InputError(path, key=name, found="no such file", expected="the data beside the description",
                         fix="copy it, too")
    return str(target)


def members(path: str) -> list[Member]:
    """The files of a collection (.pvd) in the order of time. Raises `InputError` for none, or several parts."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(TEXT_BYTES)
    found = []
    for entry in _MEMBER.findall(text):
        attributes = dict(_ATTRIBUTE.findall(entry))
        try:
            time = float(attributes.get("timestep", "nan"))
        except ValueError:
            time = math.nan
        if not math.isfinite(time) or not attributes.get("file"):
            raise InputError(path, key="DataSet", found=f"timestep {attributes.get('timestep')!r}, file "
                             f"{attributes.get('file')!r}", expected="a time and a file",
                             fix="write the collection anew")
        found.append(Member(time, beside(path, attributes["file"])))
    if not found or len({member.time for member in found}) < len(found):
        raise InputError(path, key="DataSet", found=f"{len(found)} entries at {len({m.time for m in found})} times",
                         expected="one file a time", fix="merge the parts of a time, for example with pyvista")
    return sorted(found, key=lambda member: member.time)


def case_of(path: str) -> Path:
    """The folder of an OpenFOAM case, named by it or by a .foam file in it."""
    return Path(path) if os.path.isdir(path) else Path(path).parent


def _check_case(path: str) -> None:
    case = case_of(path).resolve()
    if (case / "processor0").exists() and not any(_is_time(entry.name) for entry in case.iterdir()):
        raise InputError(path, found="a case in the parts of its processors", expected="times in the case's folder",
                         fix="run reconstructPar")
    for folder, names, files in os.walk(case):
        for name in (*names, *files):
            target = Path(folder, name)
            if target.is_symlink() and not target.resolve().is_relative_to(case):
                raise InputError(path, key=name, found=f"a link to {os.readlink(target)}", expected="files of the case",
                                 fix="copy what it links to, if you trust it")


def _is_time(name: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)?([eE][-+]?\d+)?", name))


def foam_units(path: str, time: float) -> dict[str, str]:
    """Field → unit, from the line ``dimensions [kg m s K mol A cd]`` of the files of a time."""
    found: dict[str, str] = {}
    folders = [entry for entry in case_of(path).iterdir() if _is_time(entry.name) and float(entry.name) == time]
    for file in (file for folder in folders for file in folder.iterdir() if file.is_file()):
        match = re.search(rb"\bdimensions\s*\[([-\d.\s]+)\]", head(str(file), 8192))
        powers = [float(power) for power in match[1].split()] if match else []
        if powers:
            parts = [f"{unit}{power:g}" if power != 1 else unit
                     for unit, power in zip(("kg", "m", "s", "K", "mol", "A", "cd"), powers) if power]
            found[file.name] = " ".join(parts) or "1"
    return found
