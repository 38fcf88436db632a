"""One-dimensional Kuramoto–Sivashinsky: the stores of that builder."""

from __future__ import annotations

from torch import Tensor

from sciml.data.builders.kuramoto_sivashinsky import STEP, step
from sciml.solvers import Given, need, periods


def advance(given: Given, dt: float, *, refine: int = 1, max_step: float = STEP) -> dict[str, Tensor]:
    """On a grid `refine` times finer, by whole steps of at most `max_step`."""
    (u,), (hyperviscosity,) = need(given, "states", "u"), need(given, "parameters", "hyperviscosity")
    (length,) = periods(given)
    later = step(u[..., None], dt, hyperviscosity=hyperviscosity, length=length, refine=refine, max_step=max_step)
    return {"u": later[..., 0]}


PLUGIN = advance
