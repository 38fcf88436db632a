"""Voxels of a file, raw or in one gzip stream, read so that a header that lies can't fill the memory."""

from __future__ import annotations

import gzip
import importlib
import math
import os
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from sciml.data.safety import Limits, check_ratio, check_size
from sciml.errors import InputError

GZIP = b"\x1f\x8b"
TAIL = 1 << 20
BLOCK = 4 << 20
_AGAIN = "the file is cut short or damaged: copy it again"


@dataclass(frozen=True)
class Stream:
    """Numbers of a file, first axis fastest: `shape` of `dtype` from byte `offset`, which counts inside the gzip stream
    that starts at byte `packed_from` (None: not compressed)."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    packed_from: int | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, limits: Limits) -> None:
        """Raises `InputError` for types that are not real numbers, for an empty array, for sizes beyond the limits, and
        for files that are shorter than they declare."""
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            raise InputError(self.path, key="type", found=str(self.dtype), expected="real numbers of at most 64 bits",
                             fix="convert it: one image per channel, or real and imaginary part apart")
        if min(self.shape) < 1:
            raise InputError(self.path, key="shape", found=" × ".join(map(str, self.shape)),
                             expected="at least 1 voxel",
                             fix="write the file anew")
        stored, packed = os.path.getsize(self.path), self.packed_from is not None
        most = limits.chunk_bytes if packed else limits.total_bytes
        check_size(self.path, "header", self.shape, self.dtype.itemsize, most,
                   "a compressed volume" if packed else "a volume")
        if packed:
            check_ratio(self.path, self.bytes, stored, limits)
        elif self.offset + self.bytes > stored:
            raise InputError(self.path, key="header", found=f"{stored} bytes",
                             expected=f"{self.offset + self.bytes}, for {' × '.join(map(str, self.shape))} of "
                                      f"{self.dtype}",
                             fix=_AGAIN)

    def open(self) -> np.ndarray:
        """The array in the type of the file: memory-mapped, or, if compressed, read whole and checked to its end."""
        if self.packed_from is None:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order="F")
        buffer = np.empty(self.bytes, np.uint8)
        try:
            with open(self.path, "rb") as raw:
                raw.seek(self.packed_from)
                with gzip.GzipFile(fileobj=raw) as stream:
                    skip(stream, self.offset)
                    self._fill(stream, buffer.data)
                    stream.read(TAIL)
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(self.path, key="gzip", found=" ".join(str(error).split())[:120],
                             expected="a complete gzip stream", fix=_AGAIN) from None
        return buffer.view(self.dtype).reshape(self.shape, order="F")

    def _fill(self, stream: Any, view: memoryview) -> None:
        at = 0
        while at < len(view):
            count = stream.readinto(view[at:at + BLOCK])
            if not count:
                raise InputError(self.path, key="gzip", found=f"{at} bytes of voxels", expected=f"{len(view)}",
                                 fix=_AGAIN)
            at += count


def library(name: str, path: object) -> Any:
    """A library of the extra ``volumes``; raises `InputError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(path, found=f"{name} is not installed", expected="the packages that read medical images",
                         fix='pip install "sciml[volumes]"') from None


def skip(stream: Any, count: int) -> None:
    """Read `count` bytes and forget them; raises `EOFError` if there are fewer."""
    while count:
        block = stream.read(min(count, BLOCK))
        if not block:
            raise EOFError("Compressed file ended before the voxels")
        count -= len(block)


def head_of(path: str, count: int) -> bytes:
    """The first `count` bytes, decompressed if the file is a gzip stream; raises `InputError` if it can't be read."""
    try:
        with open(path, "rb") as raw:
            if raw.read(2) != GZIP:
                raw.seek(0)
                return raw.read(count)
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) as stream:
                return stream.read(count)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(path, key="gzip", found=" ".join(str(error).split())[:120], expected="a readable file",
                         fix=_AGAIN) from None
