"""Two-dimensional flow of an ideal gas: the stores of the builder `euler`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sciml.data.builders.euler import COURANT, STATES, Boundary, conserved, fastest, limited, pad, pair, primitive_of
from sciml.errors import InputError
from sciml.solvers import FIX, Given, ends, even, need, one
from sciml.solvers._cells import coarser


def advance(given: Given, dt: float, *, refine: int = 1, courant: float = COURANT) -> dict[str, Tensor]:
    """On cells `refine` times finer, by pairs of equal steps, for each trajectory as many as `courant` asks of it.

    Raises `FloatingPointError` if density or pressure is lost."""
    primitive = torch.stack(need(given, "states", *STATES), 1)
    gamma, borders = one(given, "heat_capacity_ratio"), {end for axis in ends(given, "wall", "open") for end in axis}
    if len(borders) > 1 or len(even(given)) != 2:
        raise InputError("solver euler", key="boundary", found=", ".join(sorted(borders)),
                         expected="the same at all ends of two axes", fix=FIX)
    border: Boundary = cast(Any, borders.pop())
    state = finer(conserved(primitive, gamma), refine, border).movedim(1, 0)
    spacing = (given.lengths[0] / state.shape[-2], given.lengths[1] / state.shape[-1])
    remaining = torch.full((state.shape[1], 1, 1), float(dt), dtype=state.dtype, device=state.device)
    while bool((remaining > 0).any()):
        speed = fastest(state.detach(), gamma)
        if not bool(torch.isfinite(speed).all()):
            raise FloatingPointError("density or pressure isn't positive")
        pairs = (remaining * speed / (2 * courant * min(spacing))).ceil().clamp_min(1.0)
        state = pair(state, remaining / (2 * pairs), spacing, gamma, border)
        remaining = torch.where(pairs == 1, torch.zeros_like(remaining), remaining - remaining / pairs)
    later = primitive_of(coarser(state.movedim(0, 1), refine), gamma)
    if not bool((later[:, ::3] > 0).all()):
        raise FloatingPointError("density or pressure isn't positive")
    return dict(zip(STATES, later.unbind(1)))


def finer(state: Tensor, factor: int, border: Boundary) -> Tensor:
    """Means over parts of cells ``(…, factor n, factor m)`` of conserved quantities ``(…, 4, n, m)`` that are linear in
    each cell with van Leer's slopes, along one axis after the other."""
    for turned in (True, False) if factor > 1 else ():
        values = state.transpose(-1, -2) if turned else state
        offset = (torch.arange(factor, dtype=values.dtype, device=values.device) + 0.5) / factor - 0.5
        slope = limited(_padded(values, 2 if not turned else 1, border))
        values = (values[..., None] + slope[..., None] * offset).flatten(-2)
        state = values.transpose(-1, -2) if turned else values
    return state


def _padded(values: Tensor, normal: int, border: Boundary) -> Tensor:
    """One cell more at both ends of the last axis; of a wall, the momentum with the index `normal` turned."""
    padded = pad(values, border, 1)
    if border != "wall":
        return padded
    sign = torch.ones(values.shape[-3], 1, padded.shape[-1], dtype=values.dtype, device=values.device)
    sign[normal, :, 0] = sign[normal, :, -1] = -1.0
    return padded * sign


PLUGIN = advance
