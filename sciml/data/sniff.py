"""Say what a file is without being told, from a bounded part of it."""

from __future__ import annotations

from pathlib import Path

from sciml.data.readers import SAMPLE_BYTES, recognise
from sciml.data.readers.guess import Guess


def sniff(path: str | Path, limit_bytes: int = SAMPLE_BYTES) -> Guess:
    """A `Guess` of format, domain, dimensions, units, what is missing and what is suspicious.

    Metadata and coordinates are read in full, values from at most `limit_bytes` (decoded). `path` may be a file, a
    folder or an fsspec URL. Raises `InputError` as `sciml.data.readers.recognise` does.
    """
    return recognise(path, limit_bytes)
