"""NetCDF with CF names: classic (CDF-1, 2, 5) and NetCDF-4, which passes the same guard as any HDF5 file.

Dimensions are told by axis, standard_name, units or name, never by position. ``options: {subgroup: /path}`` reads a
group of a NetCDF-4 file; ``{group: name}`` names the dimension that counts trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from sciml.data.files import head, local_path, open_bytes, size_of
from sciml.data.readers._cf import flattened, from_cf
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers._lattice import is_netcdf4
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, check_size, limits_of, open_hdf5
from sciml.errors import InputError

CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")


@dataclass(frozen=True)
class NetCDF:
    """Reads NetCDF files as fields or series."""

    options: frozenset[str] = frozenset({"flatten", "group", "subgroup"})

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        start = head(path, 8)
        if start[:4] not in CLASSIC and start != HDF5_MAGIC:
            return None
        if start == HDF5_MAGIC:
            with open_hdf5(path) as file:
                if not is_netcdf4(file):
                    return None
        found = self.read([path], None)
        return guess(found, path, options=flattened(found), limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Fields ``(trajectory, time, x…)`` or series ``(series, time, variate)``, lazily."""
        return combine([_read(str(path), source) for path in paths], paths, source)


PLUGIN = NetCDF()


def _read(url: str, source: Any) -> xr.Dataset:
    options, path = options_of(source), local_path(url)
    limits = limits_of(options, url)
    classic = head(url, 4) in CLASSIC
    if not classic:
        open_hdf5(url, limits).close()
    engine = "h5netcdf" if not classic else "netcdf4" if path is not None else "scipy"
    inside: dict[str, Any] = {} if classic else {"group": options.get("subgroup")}
    try:
        dataset = xr.open_dataset(path if path is not None else open_bytes(url), engine=engine, chunks=None,
                                  decode_times=False, cache=False, **inside)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(url, found=" ".join(str(error).split())[:160], expected="a complete NetCDF file",
                         fix="copy it again; compare its size or checksum with the original") from None
    if classic:
        stored = size_of(url)
        declared = sum(check_size(url, str(name), item.shape, item.encoding.get("dtype", item.dtype).itemsize,
                                  limits.total_bytes, "an array") for name, item in dataset.variables.items())
        if declared > stored:
            raise InputError(url, found=f"{stored} bytes", expected=f"at least the {declared} bytes it declares",
                             fix="the file is cut short or lies about its size: copy it again")
    return from_cf(dataset, url, source, format="netcdf", chunk_key="chunksizes")
