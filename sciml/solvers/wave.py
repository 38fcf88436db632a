"""Sound in layered media: the stores of the builder `wave`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sciml.data.builders.wave import COURANT, step
from sciml.errors import InputError
from sciml.solvers import FIX, Given, ends, even, need
from sciml.solvers._cells import coarser, finer


def advance(given: Given, dt: float, *, refine: int = 1, courant: float = COURANT) -> dict[str, Tensor]:
    """On cells `refine` times finer, on which the speed is that of the cell they are part of; by as many steps as
    `courant` asks of the fastest cell of the batch (stable up to 1)."""
    (speed,), states = need(given, "forcings", "speed"), need(given, "states", "pressure", "pressure_rate")
    sides = [length / cells for length, cells in zip(even(given), speed.shape[1:])]
    if len(sides) != 2 or abs(sides[0] / sides[1] - 1) > 1e-4:
        raise InputError("solver wave", found=f"cells of {sides}", expected="squares", fix=FIX)
    along_x, along_y = cast(Any, ends(given, "wall", "open"))
    periodic = (along_x[0] == "periodic", along_y[0] == "periodic")
    fine = finer(torch.stack(states, 1), refine, periodic).movedim(1, -1)
    parts = speed.repeat_interleave(refine, 1).repeat_interleave(refine, 2)
    later = step(fine, dt, speed=parts, boundary_x=along_x, boundary_y=along_y, length=given.lengths[0],
                 courant=courant)
    pressure, rate = coarser(later.movedim(-1, 1), refine).unbind(1)
    return {"pressure": pressure, "pressure_rate": rate}


PLUGIN = advance
