"""Fields at scattered points: one set axis whose members have places instead of an order."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import xarray as xr

from sciml import tokens
from sciml.data.store import Store
from sciml.domains.fields.config import Contract, GridAxis
from sciml.errors import InputError

MEASURE = "cell_measure"
"""Coordinate that says how much of the domain each point stands for; without it all stand for the same."""


def axis_of(store: Store, dim: str) -> GridAxis:
    """The axis of a store: of points with the coordinates that say where they are, and the periods of the box."""
    meta, coords = store.meta.axes[dim], store.lazy().coords
    periods = tuple(float(p) if (p := coords[name].attrs.get("period")) is not None else 0.0 for name in meta.places)
    if any(periods) and not all(periods):
        raise InputError(store.url, key=", ".join(meta.places), found=f"periods {periods}",
                         expected="a period of every coordinate or of none", fix="leave them out: the box has ends")
    return GridAxis(name=dim, unit=meta.unit, period=meta.period, places=meta.places, periods=periods)


def extent(store: Store, axis: GridAxis) -> tuple[float, float]:
    """Length of the domain along its first coordinate and mean distance of neighbouring points, in their unit."""
    places = np.stack([store.coord(name).astype(np.float64) for name in axis.places], -1)
    sides = [period or float(np.ptp(place)) for place, period in zip(places.T, axis.periods)]
    sides = [side for side in sides if side > 0] or [1.0]
    return sides[0], float((np.prod(sides) / len(places)) ** (1 / len(sides)))


def points(sample: xr.Dataset, known: Contract) -> tokens.Axis:
    """The points of a sample. Raises `InputError` for coordinates that are missing, not finite or in another unit."""
    (own,) = known.axes
    columns = []
    for name in own.places:
        coord = sample.coords.get(name)
        unit = None if coord is None else str(coord.attrs.get("units", own.unit))
        if coord is None or coord.dims != (own.name,) or unit != own.unit or not np.isfinite(coord.values).all():
            raise InputError(sample.attrs.get("source", "sample"), key=name,
                             found="no such coordinate" if coord is None else f"{coord.dims}, unit {unit!r}",
                             expected=f"finite places ({own.name}) in {own.unit}",
                             fix="give every point its place, in the unit of the data set")
        columns.append(np.asarray(coord.values, np.float64))
    measure = np.asarray(sample.coords[MEASURE].values, np.float64) if MEASURE in sample.coords else np.ones(
        sample.sizes[own.name])
    return _shared(own.name, np.stack(columns, -1).tobytes(), (measure / measure.sum()).tobytes(), own.unit,
                   own.periods if any(own.periods) else None, known.length, torch.get_default_dtype())


@lru_cache(maxsize=16)
def _shared(name: str, place: bytes, measure: bytes, unit: str, periods: tuple[float, ...] | None, length: float,
            dtype: torch.dtype) -> tokens.Axis:
    """One axis object for all samples on the same points."""
    weight = torch.as_tensor(np.frombuffer(measure, np.float64).copy(), dtype=dtype)
    coord = torch.as_tensor(np.frombuffer(place, np.float64).copy() / length, dtype=dtype).view(len(weight), -1)
    wrap = None if periods is None else torch.as_tensor([p / length for p in periods], dtype=dtype)
    return tokens.Axis(name, "set", coord[None], unit=unit, period=wrap, measure=weight[None])
