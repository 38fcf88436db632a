"""Semilinear equations in one dimension: the stores of that builder."""

from __future__ import annotations

from torch import Tensor

from sciml.data.builders.semilinear import LINEAR, STEP, TERMS, step
from sciml.solvers import Given, need, periods


def advance(given: Given, dt: float, *, refine: int = 1, max_step: float = STEP) -> dict[str, Tensor]:
    """With the coefficients that the store has; others are 0. On a grid `refine` times finer, by whole steps of at most
    `max_step`."""
    (u,), (length,) = need(given, "states", "u"), periods(given)
    known = {name: value for name, value in given.parameters.items() if name in LINEAR or name in TERMS}
    return {"u": step(u[..., None], dt, length=length, refine=refine, max_step=max_step, **known)[..., 0]}


PLUGIN = advance
