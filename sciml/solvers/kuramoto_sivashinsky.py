"""One-dimensional Kuramoto–Sivashinsky: the stores of that builder."""

from __future__ import annotations

from torch import Tensor

from sciml.data.builders.kuramoto_sivashinsky import STEP, step
from sciml.solvers import Given, need


def advance(given: Given, dt: float, *, max_step: float = STEP) -> dict[str, Tensor]:
    """By whole steps of at most `max_step`."""
    (u,), (hyperviscosity,) = need(given, "states", "u"), need(given, "parameters", "hyperviscosity")
    (length,) = given.periods
    return {"u": step(u[..., None], dt, hyperviscosity=hyperviscosity, length=length, max_step=max_step)[..., 0]}


PLUGIN = advance
