"""Another builder's fields seen at scattered points: what irregular sensors or the nodes of a mesh would have recorded.

The fields of the other builder are periodic, so each frame is its trigonometric interpolant, evaluated at the points:
exact for what the grid resolves. Points are drawn once for all trajectories, evenly spread (a jittered lattice) or
crowded towards places drawn at random, as meshes are refined. The measure of a point is the area of its Voronoi cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from pydantic import Field

from sciml import registry
from sciml.errors import InputError
from sciml.recipe import Section, validate

NEAREST = 4
"""Samples of the box per point and dimension, by which Voronoi cells are measured."""


class Options(Section):
    """builder, options: of the fields on a grid; points: how many there are; crowding: share of them that lie within a
    tenth of the box around one of three places."""

    builder: str
    options: dict[str, Any] = Field(default_factory=dict)
    points: int = Field(default=512, ge=8)
    crowding: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


def scatter(options: Options, lengths: np.ndarray) -> np.ndarray:
    """``(points, d)`` float64 inside the periods `lengths` ``(d,)``."""
    rng, dims = np.random.default_rng([7, options.seed]), len(lengths)
    per_side = int(np.ceil(options.points ** (1 / dims)))
    cells = np.stack(np.meshgrid(*[np.arange(per_side)] * dims, indexing="ij"), -1).reshape(-1, dims)
    chosen = cells[np.sort(rng.permutation(len(cells))[: options.points])]
    place = (chosen + rng.random(chosen.shape)) / per_side
    centres, crowded = rng.random((3, dims)), rng.random(options.points) < options.crowding
    near = centres[rng.integers(3, size=options.points)] + 0.05 * rng.standard_normal(place.shape)
    return np.where(crowded[:, None], near % 1.0, place) * lengths


def cell_measure(points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``(points,)``: size of the Voronoi cell of each in the periodic box, by counting a fine lattice; sums to the box.

    A point that no lattice point is nearest to has the size of one of those.
    """
    from scipy.spatial import cKDTree

    count, dims = points.shape
    per_side = NEAREST * int(np.ceil(count ** (1 / dims)))
    lattice = np.stack(np.meshgrid(*[(np.arange(per_side) + 0.5) / per_side] * dims, indexing="ij"), -1)
    _, owner = cKDTree(points % lengths, boxsize=lengths).query(lattice.reshape(-1, dims) * lengths)
    share = np.maximum(np.bincount(owner, minlength=count), 1.0)
    return np.asarray(share / share.sum() * np.prod(lengths))


def interpolate(field: np.ndarray, places: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Values ``(…, points)`` of the trigonometric interpolant of fields ``(…, *grid)`` on a box of periods `lengths`.

    >>> x = np.arange(8) / 8
    >>> float(interpolate(np.sin(2 * np.pi * x), np.array([[0.3]]), np.ones(1))[0]).__round__(6)
    0.951057
    """
    dims = len(lengths)
    spectrum = np.fft.fftn(field.astype(np.float64), axes=tuple(range(-dims, 0)), norm="forward")
    for d in reversed(range(dims)):
        n = field.shape[d - dims]
        k = np.fft.fftfreq(n, 1 / n)
        phase = np.exp(2j * np.pi * np.outer(places[:, d] / lengths[d], k))  # (points, n)
        if n % 2 == 0:
            phase[:, n // 2] = phase[:, n // 2].real
        if d == dims - 1:
            spectrum = np.einsum("...k,pk->...p", spectrum, phase)
        else:
            spectrum = np.einsum("...kp,pk->...p", spectrum, phase)
    return np.ascontiguousarray(spectrum.real)


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: variables that lie on the other builder's grid lie on ``point`` instead, with coordinates
    ``point_x``, … and ``cell_measure``. Raises `InputError` for fields that are not periodic."""
    chosen = validate(Options, dict(options), where="scattered options")
    grid: xr.Dataset = registry.find("sciml.data.builders", chosen.builder, where="scattered options")(chosen.options)
    space = [str(dim) for dim in grid.dims if dim not in ("trajectory", "time")]
    bounded = [dim for dim in space if "period" not in grid[dim].attrs]
    if bounded or not space:
        raise InputError("scattered options", key="builder", found=f"{chosen.builder}, {bounded} not periodic",
                         expected="a builder of periodic fields", fix="choose another, or read a mesh of your own")
    lengths = np.array([grid[dim].attrs["period"] for dim in space], np.float64)
    places = scatter(chosen, lengths)
    variables = {str(name): _scattered(array, space, places, lengths) for name, array in grid.data_vars.items()}
    unit = str(grid[space[0]].attrs["units"])
    coords: dict[str, Any] = {name: grid[name] for name in ("time",) if name in grid.coords}
    coords["point"] = ("point", np.arange(chosen.points), {"units": "1", "kind": "set"})
    for d, name in enumerate("xyz"[: len(space)]):
        coords[f"point_{name}"] = ("point", places[:, d], {"units": unit, "period": lengths[d]})
    coords["cell_measure"] = ("point", cell_measure(places, lengths), {
        "units": unit if unit == "1" else f"{unit}{len(space)}"})
    return xr.Dataset(variables, coords, dict(grid.attrs))


def _scattered(array: xr.DataArray, space: list[str], places: np.ndarray, lengths: np.ndarray) -> xr.Variable:
    if not set(space) <= set(array.dims):
        return array.variable
    lead = [str(dim) for dim in array.dims if dim not in space]
    lattice = da.asarray(array.transpose(*lead, *space).data)
    lattice = lattice.rechunk({lattice.ndim - 1 - d: -1 for d in range(len(space))})
    last = tuple(range(lattice.ndim - len(space), lattice.ndim))
    values = da.map_blocks(lambda block: interpolate(block, places, lengths).astype(np.float32), lattice,
                           drop_axis=list(last), new_axis=[last[0]], dtype=np.float32,
                           chunks=(*lattice.chunks[: last[0]], (len(places),)))
    return xr.Variable((*lead, "point"), values, array.attrs)


PLUGIN = build
