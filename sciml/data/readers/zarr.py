"""Zarr v2 and v3 with CF names, guarded by `sciml.data.safety_zarr` before anything is opened.

Dimensions come from ``dimension_names`` (v3) or ``_ARRAY_DIMENSIONS`` (v2) and are told apart as in NetCDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from sciml.data.files import filesystem, is_folder
from sciml.data.readers._cf import flattened, from_cf
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import limits_of
from sciml.data.safety_zarr import check_zarr
from sciml.errors import InputError


@dataclass(frozen=True)
class Zarr:
    """Reads Zarr groups as fields or series."""

    options: frozenset[str] = frozenset({"flatten", "group", "subgroup"})

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if not is_folder(path):
            return None
        fs, root = filesystem(path)
        if not any(fs.exists(f"{root}/{name}") for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return None
        found = self.read([path], None)
        return guess(found, path, options=flattened(found), limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Fields ``(trajectory, time, x…)`` or series ``(series, time, variate)``, lazily."""
        return combine([_read(str(path), source) for path in paths], paths, source)


PLUGIN = Zarr()


def _read(url: str, source: Any) -> xr.Dataset:
    options = options_of(source)
    facts = check_zarr(url, limits_of(options, url))
    try:
        dataset = xr.open_zarr(url, chunks=None, decode_times=False, consolidated=facts.consolidated,
                               zarr_format=facts.version, group=options.get("subgroup"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(url, found=" ".join(str(error).split())[:200],
                         expected="a Zarr group whose arrays name their dimensions",
                         fix="add dimension_names (v3) or _ARRAY_DIMENSIONS (v2); xarray writes them") from None
    return from_cf(dataset, url, source, format="zarr", chunk_key="chunks")
