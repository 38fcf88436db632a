"""The same states on coarser grids: what training draws where a recipe names several resolutions.

Along a periodic axis the Fourier series is cut below the coarser grid's Nyquist wavenumber and evaluated at points of
which the first stays; along an axis with ends values are means over whole cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from sciml.data.schema import StoreMeta
from sciml.errors import InputError


@dataclass(frozen=True)
class Resolution:
    """A coarser grid. cells: of every axis of space; wraps: the periodic ones; coords: of its points."""

    cells: Mapping[str, int]
    wraps: frozenset[str]
    coords: xr.Coordinates

    def filtered(self, values: np.ndarray, dims: Sequence[str]) -> np.ndarray:
        """`values` with these dimensions on this grid; those that aren't of space stay."""
        for place, name in enumerate(dims):
            if name in self.cells:
                cut = cut_waves if name in self.wraps else cell_means
                values = np.moveaxis(cut(np.moveaxis(values, place, -1), self.cells[name]), -1, place)
        return values


def cut_waves(values: np.ndarray, cells: int) -> np.ndarray:
    """A period ``(…, n)`` at ``(…, cells)`` points without the waves that these don't resolve, in its own precision.

    >>> wave = np.cos(np.arange(8) * np.pi / 4) + np.cos(np.arange(8) * np.pi / 2)
    >>> np.abs(cut_waves(wave, 4)).round(9).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    n = values.shape[-1]
    if n == cells:
        return values
    kept = np.fft.rfft(values)[..., :(cells + 1) // 2]
    return np.asarray(np.fft.irfft(kept * (cells / n), cells), values.dtype)


def cell_means(values: np.ndarray, cells: int) -> np.ndarray:
    """Cells ``(…, n)`` in ``(…, cells)`` groups of n / cells neighbours, averaged."""
    return np.asarray(values.reshape(*values.shape[:-1], cells, -1).mean(-1), values.dtype)


def coarser(meta: StoreMeta, stored: xr.Coordinates, space: Sequence[str], shares: Sequence[float],
            where: object) -> tuple[Resolution | None, ...]:
    """The grids of a recipe's `resolutions`, None for the stored one.

    Raises `InputError` where no filter is consistent: missing cells, masks, scattered points, uneven axes, and shares
    that don't leave whole numbers of cells.
    """
    if all(share == 1 for share in shares):
        return (None,)
    missing = [name for name in meta.variables if name in meta.moments and meta.moments[name].missing]
    holes = [*meta.of_role("mask"), *missing, *(name for name in space if meta.axes[name].places)]
    if holes:
        raise InputError(where, key=holes[0], found="a mask, missing cells or scattered points",
                         expected="every cell of a grid, of which coarser ones can be made", fix=FIX)
    return tuple(None if share == 1 else _coarser(meta, stored, space, share, where) for share in shares)


FIX = "leave domains.fields.resolutions at [1]"


def _coarser(meta: StoreMeta, stored: xr.Coordinates, space: Sequence[str], share: float, where: object) -> Resolution:
    cells, coords = {}, {}
    for name in space:
        own, period = stored[name].variable, meta.axes[name].period
        place = np.asarray(own.values)
        n = cells[name] = round(len(place) * share)
        if not np.allclose(np.diff(place), np.diff(place)[:1], rtol=1e-4, atol=0):
            raise InputError(where, key=name, found="uneven spacing", expected="an even axis", fix=FIX)
        whole = abs(n - len(place) * share) < 1e-6 * len(place) and n > 1
        if not whole or (period is None and len(place) % n):
            raise InputError(where, key=name, found=f"{share:g} of {len(place)} cells",
                             expected="a whole number of them" + ", by which they can be divided" * (period is None),
                             fix="choose other shares in domains.fields.resolutions")
        points = cell_means(place, n) if period is None else place[0] + np.arange(n) * period / n
        coords[name] = xr.Variable((name,), points, own.attrs)
    wraps = frozenset(name for name in space if meta.axes[name].period is not None)
    return Resolution(cells, wraps, xr.Dataset(coords=coords).coords)
