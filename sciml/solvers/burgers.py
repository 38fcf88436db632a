"""One-dimensional Burgers, periodic: the stores of that builder."""

from __future__ import annotations

from torch import Tensor

from sciml.data.builders.burgers import step
from sciml.errors import InputError
from sciml.solvers import FIX, Given, need, periods


def advance(given: Given, dt: float, *, refine: int = 1) -> dict[str, Tensor]:
    """On a grid `refine` times finer, by as many steps as the fastest state of the batch needs."""
    (viscosity,) = need(given, "parameters", "viscosity")
    if len(periods(given)) != 1 or len(given.states) != 1:
        raise InputError("solver burgers", found=f"states {list(given.states)}, periods {given.lengths}",
                         expected="one state on one periodic axis", fix=FIX)
    ((name, state),) = given.states.items()
    return {name: step(state[..., None], dt, viscosity=viscosity, length=given.lengths[0], refine=refine)[..., 0]}


PLUGIN = advance
