"""Linear advection of a tracer: the stores of that builder."""

from __future__ import annotations

from torch import Tensor

from sciml.data.builders.advection import step
from sciml.solvers import Given, need, periods


def advance(given: Given, dt: float) -> dict[str, Tensor]:
    """Exactly, by a shift of the Fourier series."""
    (tracer,) = need(given, "states", "tracer")
    names = [f"advection_velocity_{axis}" for axis in "xy"[: len(periods(given))]]
    velocity = dict(zip(names, need(given, "parameters", *names)))
    return {"tracer": step(tracer[..., None], dt, length=given.lengths[0], **velocity)[..., 0]}


PLUGIN = advance
