"""Forced two-dimensional Navier–Stokes in vorticity form: the stores of the builder `navier_stokes`."""

from __future__ import annotations

from torch import Tensor

from sciml.data.builders.turbulence import step
from sciml.solvers import Given, need, unit_square


def advance(given: Given, dt: float, *, substeps: int | None = None) -> dict[str, Tensor]:
    """By `substeps` equal steps of order four, as many as the flow needs unless told."""
    unit_square(given)
    (vorticity,), (viscosity,) = need(given, "states", "vorticity"), need(given, "parameters", "viscosity")
    later = step(vorticity[:, None], dt, viscosity=viscosity, forcing=given.forcings.get("forcing"), substeps=substeps)
    return {"vorticity": later[:, 0]}


PLUGIN = advance
