"""Paths and fsspec URLs under one roof: what is local stays a path, everything else is opened through fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sciml.errors import InputError


def filesystem(url: str | Path) -> tuple[Any, str]:
    """The fsspec file system of a path or URL and the path on it."""
    try:
        fs, path = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise InputError(url, found=str(error), expected="a local path or an fsspec URL",
                         fix="check the protocol, install its package") from None
    return fs, path


def local_path(url: str | Path) -> Path | None:
    """The local path behind a path or ``file://`` URL; None for anything that is not on this machine.

    >>> str(local_path("file:///data/a.h5")), local_path("memory://a.h5")
    ('/data/a.h5', None)
    """
    fs, path = filesystem(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def require(url: str | Path) -> None:
    """Raises `InputError` if nothing is there."""
    fs, path = filesystem(url)
    if not fs.exists(path):
        raise InputError(url, found="nothing there", expected="a file or folder", fix="check the path")


def is_folder(url: str | Path) -> bool:
    fs, path = filesystem(url)
    return bool(fs.isdir(path))


def size_of(url: str | Path) -> int:
    """Bytes of one file."""
    fs, path = filesystem(url)
    return int(fs.size(path))


def open_bytes(url: str | Path) -> Any:
    """A seekable binary file, to be closed by the caller."""
    fs, path = filesystem(url)
    return fs.open(path, "rb")


def head(url: str | Path, count: int) -> bytes:
    """The first `count` bytes, or fewer if the file is shorter; none of a folder."""
    fs, path = filesystem(url)
    if not fs.isfile(path):
        return b""
    with fs.open(path, "rb") as file:
        return bytes(file.read(count))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A sibling to write to, of the same suffix, that takes the place of `path` when all went well: a reader sees the
    old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
