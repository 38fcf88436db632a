"""Readers: a lab's file becomes one lazy xarray data set in the canonical layout, whatever it was.

A reader is a module here (or an entry point in the group ``sciml.data.readers``) whose ``PLUGIN`` has ``options``,
the names it takes from ``options`` of a source.yaml; ``recognise(path, limit_bytes) -> Guess | None``, told
by content alone; and ``read(paths, source) -> xr.Dataset``. What they return: `group_dim` first, then time, then
space; role, units and period as attributes; float32 or float64 in dask chunks; attributes domain, format, group_dim,
notes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sciml import registry
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

    from sciml.data.readers.guess import Guess

GROUP = "sciml.data.readers"
COMMON = frozenset({"format", "select", "limits", "boundaries"})
GENERAL = frozenset({"csv", "netcdf", "parquet", "numpy"})
"""Formats of any table or array: they stand back where another reader knows the layout, or refuses it."""
SAMPLE_BYTES = 16 << 20


class Reader(Protocol):
    """One format."""

    options: frozenset[str]

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        """What the file is, or None if it is not of this format."""

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """All files as one data set; `source` (a `SourceSpec`) is None while a file is only being looked at."""


def recognise(path: str | Path, limit_bytes: int = SAMPLE_BYTES) -> Guess:
    """What a file, folder or fsspec URL is. Values are read from at most `limit_bytes`.

    A refusal counts where no other reader knows the layout (NWB files hold references, which readers of fields refuse).
    Raises `InputError` if it is of no known format, of several, damaged, or refused by the guards.
    """
    from sciml.data.files import head, is_folder, require

    require(path)
    guesses: list[Guess] = []
    refusals: dict[str, InputError] = {}
    for name in registry.names(GROUP):
        try:
            found = registry.find(GROUP, name).recognise(str(path), limit_bytes)
        except InputError as error:
            refusals[name] = error
            continue
        guesses += [] if found is None else [found]
    known = [guess for guess in guesses if guess.format not in GENERAL]
    for name, refusal in refusals.items():
        if not known and (name not in GENERAL or not guesses):
            raise refusal
    guesses = known or guesses
    if not guesses:
        raise _of_folder(str(path)) if is_folder(path) else InputError(
            path, found=_first_look(head(path, 64)), expected=f"one of: {', '.join(registry.names(GROUP))}",
            fix="see docs/formats.md; convert it, or describe an array in NumPy format with a layout")
    if len(guesses) > 1:
        raise InputError(path, found=f"both {' and '.join(g.format for g in guesses)}", expected="one format",
                         fix="say which in the source: options: {format: …}")
    return guesses[0]


def _first_look(start: bytes) -> str:
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file of no layout that is known"
    return f"a file that starts with {start[:16]!r}" if start else "an empty file"


def _of_folder(path: str) -> InputError:
    """Of a folder that is no data set by itself: what lies in it, and how to read that."""
    from sciml.data.files import filesystem

    fs, root = filesystem(path)
    entries = sorted((os.path.basename(item["name"].rstrip("/")), item["type"]) for item in fs.ls(root, detail=True))
    files = [name for name, kind in entries if kind == "file" and not name.startswith(".")]
    found, fix = f"a folder of {len(files)} files and {len(entries) - len(files)} folders", "name what is inside"
    if files:
        one, alike = (f"{path.rstrip('/')}/{name}" for name in (files[0], f"*{os.path.splitext(files[0])[1]}"))
        found = f"{found}, the first file is {files[0]}"
        fix = f"look at one: sciml data sniff {one}; if the others are like it, list them all: files: [{alike}]"
    return InputError(path, found=found, expected="a file, or a folder that is one data set: Zarr, an OpenFOAM case, "
                      "DICOM slices, images with labels, Phy", fix=fix)


def read(source: Any, paths: Sequence[str | Path]) -> xr.Dataset:
    """The files of a source, lazily, in the canonical layout and under the source's names.

    The format is ``options.format`` or recognised from the first file. Options for all formats: ``select`` (start and
    stop by dimension), ``limits`` (see `sciml.data.safety.Limits`), ``boundaries`` (of fields: what an axis ends in).
    Raises `InputError` for an unknown option.
    """
    from sciml.data.readers._combine import bounds, named

    texts = [str(path) for path in paths]
    if not texts:
        raise InputError(source.name, key="files", found="none", expected="at least one file",
                         fix="list them under files")
    if "limits" in source.options and "format" not in source.options:
        raise InputError(source.name, key="options.limits", found="limits without a format",
                         expected="the format of files that need other limits", fix="add options.format")
    name = source.options.get("format") or recognise(texts[0], limit_bytes=0).format
    reader: Reader = registry.find(GROUP, name, where=source.name)
    for key in source.options:
        if key not in COMMON | reader.options:
            raise InputError(source.name, key=f"options.{key}", found=repr(source.options[key])[:60],
                             expected=f"an option of {name}: {', '.join(sorted(COMMON | reader.options))}",
                             fix="correct or remove it")
    found = reader.read(texts, source)
    codes = bounds(found, source)
    return named(found.assign(codes), source, source.name).assign(codes)
