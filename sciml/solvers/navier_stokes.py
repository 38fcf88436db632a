"""Forced two-dimensional Navier–Stokes in vorticity form: the stores of the builder `navier_stokes`."""

from __future__ import annotations

import math

from torch import Tensor

from sciml.data.builders.turbulence import COURANT, step, velocity_of
from sciml.solvers import Given, need, unit_square


def advance(given: Given, dt: float, *, substeps: int | None = None, courant: float = COURANT) -> dict[str, Tensor]:
    """By `substeps` equal steps of order four, unless told as many as `courant` asks of the fastest flow of the batch
    (stable up to 2.8). Raises `FloatingPointError` for a flow that isn't finite."""
    unit_square(given)
    (vorticity,), (viscosity,) = need(given, "states", "vorticity"), need(given, "parameters", "viscosity")
    if substeps is None:
        speed = float(velocity_of(vorticity.detach()).abs().sum(-3).max())
        if not math.isfinite(speed):
            raise FloatingPointError("vorticity isn't finite")
        highest = 2 * math.pi * (math.ceil(vorticity.shape[-1] / 3) - 1)
        substeps = max(1, math.ceil(dt * speed * highest / courant))
    later = step(vorticity[:, None], dt, viscosity=viscosity, forcing=given.forcings.get("forcing"), substeps=substeps)
    return {"vorticity": later[:, 0]}


PLUGIN = advance
