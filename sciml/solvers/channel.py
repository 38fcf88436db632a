"""Turbulent flow between two walls: the stores of the builder `channel`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml.data.builders._channel_flow import COURANT, Grid, advance, grid_of
from sciml.data.builders.channel import STATES, collocated, staggered
from sciml.errors import InputError
from sciml.solvers import FIX, Given, ends, need


def solve(given: Given, dt: float, *, courant: float = COURANT) -> dict[str, Tensor]:
    """On the builder's own staggered grid, one trajectory after the other, by steps as long as `courant` allows (stable
    up to 1.7); on the processor, wherever the states are. What of a state has a divergence is left out.

    Raises `InputError` for other grids in y than the builder's; `FloatingPointError` for a flow that isn't finite."""
    velocities = torch.stack(need(given, "states", *STATES), 1)
    device, velocities = velocities.device, velocities.cpu()
    (reynolds,) = need(given, "parameters", "friction_reynolds")
    if given.periodic != (True, False, True) or ends(given, "wall")[1] != ("wall", "wall"):
        raise InputError("solver channel", key="period", found=given.periodic, expected="walls along y alone", fix=FIX)
    grid, later = channel_of(given, tuple(velocities.shape[2:])), []
    for states, viscosity in zip(velocities, (1 / reynolds).tolist()):
        flow = staggered(grid, states, viscosity)
        later.append(collocated(grid, advance(grid, flow, dt, viscosity, courant=courant)))
    return dict(zip(STATES, torch.stack(later, 1).to(device)))


def channel_of(given: Given, shape: tuple[int, ...]) -> Grid:
    """The grid whose cells in y have these centres: of the stretch that the first one tells, by bisection."""
    nx, ny, nz = shape
    centres = given.uneven.get(1)
    first = 1.0 / ny if centres is None else float(centres[0])
    low, high = 1e-3, 10.0
    for _ in range(60):
        stretch = (low + high) / 2
        edge = 1 - math.tanh(stretch * (1 - 2 / ny)) / math.tanh(stretch)
        low, high = (low, stretch) if edge / 2 < first else (stretch, high)
    grid = grid_of((nx, ny, nz), (given.lengths[0], given.lengths[2]), round(stretch, 6))
    if centres is None or float((torch.as_tensor(grid.centres) - centres.cpu()).abs().max()) > 1e-4 * first * ny:
        raise InputError("solver channel", key="y", found=f"{ny} cells, the first one at {first:g}",
                         expected="faces at 1 + tanh(s (2j/n − 1)) / tanh s", fix=FIX)
    return grid


PLUGIN = solve
