"""Sound in layered media: the scalar wave equation on the unit square.

``p_tt = c(x, y)² Δp`` (constant density). Layers across y, their interfaces bent along x, each with its own speed. The
state is the pressure and its rate of change, which together determine the future. Finite volumes on a grid finer than
what is saved, of order two in space; velocity Verlet in time, of order two and symplectic; saved are means over cells.

Ends of an axis: periodic; wall (``∂p/∂n = 0``, total reflection); open (``p_t + c ∂p/∂n = 0``, Engquist and Majda,
Math. Comp. 31 (1977): absorbing at normal incidence). Conserved without open ends: the energy
``½ ∫ (p_t² / c² + |∇p|²)``. Time scale: the crossing time ``1 / c``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks as blocks
from sciml.recipe import validate

COURANT = 0.5
"""Bound on dt · c · √2 / cell; the scheme is stable up to 1."""
SUBCELLS = 4
End = Literal["periodic", "wall", "open"]
Ends = tuple[End, End]


class Options(blocks.Draws):
    """What to solve and what to save. Lengths in m, times in s, on the unit square.

    boundary_x, boundary_y: at the low and the high end. layers: how many, between these bounds; speed: between these,
    in m/s, drawn for each layer; relief: how far interfaces bend, in units of a layer's mean thickness. pulses: how
    many Gaussian pressure pulses start at rest, between these bounds, each of 1 Pa at the most and as wide as
    `pulse_width` in m.
    """

    resolution: int = Field(default=64, ge=8, multiple_of=2)
    solve_resolution: int | None = Field(default=256, ge=8, multiple_of=2)
    frames: int = Field(default=41, ge=1)
    frame_dt: float = Field(default=0.02, gt=0)
    boundary_x: Ends = ("periodic", "periodic")
    boundary_y: Ends = ("wall", "open")
    layers: tuple[int, int] = (2, 5)
    speed: tuple[float, float] = (0.5, 2.0)
    relief: float = Field(default=0.25, ge=0, le=0.5)
    pulses: tuple[int, int] = (1, 3)
    pulse_width: float = Field(default=0.04, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        for name in ("layers", "pulses"):
            if not 1 <= getattr(self, name)[0] <= getattr(self, name)[1]:
                raise ValueError(f"{name}: at least 1, the lower bound first")
        if not 0 < self.speed[0] <= self.speed[1]:
            raise ValueError("speed: positive, the lower bound first")
        blocks.check_whole_cells(self)
        for ends in (self.boundary_x, self.boundary_y):
            if (ends[0] == "periodic") != (ends[1] == "periodic"):
                raise ValueError("an axis is periodic at both ends or at neither")
        return self


def step(state: Tensor, dt: float, *, speed: Tensor, boundary_x: Ends = ("periodic", "periodic"),
         boundary_y: Ends = ("periodic", "periodic"), length: float = 1.0, courant: float = COURANT) -> Tensor:
    """The state dt later, ``(batch, x, y, 2)``: pressure in Pa and its rate in Pa/s; differentiable, in its own type.

    speed ``(batch, x, y)`` in m/s; length of the side along x in m (cells are square). Steps are as many as the fastest
    cell needs.
    """
    if dt == 0:
        return state
    cell = length / state.shape[1]
    count = max(1, math.ceil(dt * float(speed.detach().max()) * math.sqrt(2) / (courant * cell) - 1e-9))
    h = dt / count
    square = (speed / cell).to(state.dtype) ** 2
    loss = _loss(speed, (*boundary_x, *boundary_y)).to(state.dtype) / cell
    periodic = (boundary_x[0] == "periodic", boundary_y[0] == "periodic")
    keep, gain = 1 - h / 2 * loss, 1 / (1 + h / 2 * loss)
    p, rate = state.unbind(-1)
    force = h / 2 * square * _differences(p, periodic)
    for _ in range(count):
        half = gain * (rate + force)
        p = p + h * half
        force = h / 2 * square * _differences(p, periodic)
        rate = keep * half + force
    return torch.stack([p, rate], -1)


def _differences(p: Tensor, periodic: tuple[bool, bool]) -> Tensor:
    """The sum of differences to the four neighbours of a cell; across an end that isn't periodic, none."""
    total = torch.zeros_like(p)
    for axis, wraps in ((-2, periodic[0]), (-1, periodic[1])):
        if wraps:
            total = total + p.roll(1, axis) + p.roll(-1, axis) - 2 * p
        else:
            flux = p.diff(dim=axis)
            width = [0, 0, 1, 1] if axis == -2 else [1, 1]
            total = total + torch.nn.functional.pad(flux, width).diff(dim=axis)
    return total


def _loss(speed: Tensor, ends: tuple[End, End, End, End]) -> Tensor:
    """Speed summed over the open faces of each cell: through one, ``∂p/∂n = −p_t / c`` leaves."""
    loss = torch.zeros_like(speed)
    for end, (axis, place) in zip(ends, ((1, 0), (1, -1), (2, 0), (2, -1))):
        if end == "open":
            edge = torch.zeros_like(speed)
            edge.select(axis, place).fill_(1.0)
            loss = loss + edge * speed
    return loss


def energy(state: Tensor, speed: Tensor, *, boundary_x: Ends = ("periodic", "periodic"),
           boundary_y: Ends = ("periodic", "periodic"), length: float = 1.0) -> Tensor:
    """``½ ∫ (p_t² / c² + |∇p|²)`` in Pa² of states ``(batch, x, y, 2)``, ``(batch,)``."""
    p, rate = state.unbind(-1)
    total = ((rate * length / p.shape[1] / speed) ** 2).sum((1, 2))
    for axis, ends in ((1, boundary_x), (2, boundary_y)):
        jump = p.roll(-1, axis) - p if ends[0] == "periodic" else p.diff(dim=axis)
        total = total + (jump**2).sum((1, 2))
    return total / 2


def medium(options: Options, trajectory: int) -> np.ndarray:
    """The speed of sound ``(n, n)`` float64 in m/s on the solver's grid: of each cell the speed of a wave through its
    mean ``1/c²``."""
    rng = np.random.default_rng((options.seed, trajectory, 0))
    count = int(rng.integers(options.layers[0], options.layers[1] + 1))
    speeds = rng.uniform(*options.speed, count)
    n = options.grid * SUBCELLS
    x = (np.arange(n) + 0.5) / n
    bend = rng.standard_normal((count - 1, 2)) / 2
    shift = rng.uniform(-0.25, 0.25, count - 1)
    depth = np.empty((count - 1, n))
    for i in range(count - 1):
        wave = bend[i, 0] * np.cos(2 * np.pi * x) + bend[i, 1] * np.sin(2 * np.pi * x)
        depth[i] = (i + 1 + shift[i] + options.relief * np.tanh(wave)) / count
    layer = (x[None, :, None] > depth.T[:, None]).sum(-1)
    slow = (speeds**-2.0)[layer].reshape(options.grid, SUBCELLS, options.grid, SUBCELLS).mean((1, 3))
    return np.asarray(1 / np.sqrt(slow))


def initial(options: Options, trajectory: int) -> np.ndarray:
    """Pulses at rest, ``(n, n, 2)`` float64, periodic images included where an axis is periodic."""
    rng = np.random.default_rng((options.seed, trajectory, 1))
    x = (np.arange(options.grid) + 0.5) / options.grid
    p = np.zeros((options.grid,) * 2)
    for _ in range(int(rng.integers(options.pulses[0], options.pulses[1] + 1))):
        place, height = rng.uniform(0.15, 0.85, 2), rng.uniform(0.5, 1.0) * rng.choice([-1.0, 1.0])
        distance = [x - at for at in place]
        for i, ends in enumerate((options.boundary_x, options.boundary_y)):
            if ends[0] == "periodic":
                distance[i] = distance[i] - np.round(distance[i])
        p += height * np.exp(-np.add.outer(distance[0]**2, distance[1]**2) / (2 * options.pulse_width**2))
    return np.stack([p, np.zeros_like(p)], -1)


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """pressure and pressure_rate ``(stop − start, frames, x, y)`` float64 of trajectories ``start ≤ i < stop``."""
    speed = torch.from_numpy(np.stack([medium(options, i) for i in range(start, stop)]))
    now = torch.from_numpy(np.stack([initial(options, i) for i in range(start, stop)]))
    courant = COURANT * float(speed.max()) / options.speed[1]
    frames = []
    for frame in range(options.frames):
        if frame:
            now = step(now, options.frame_dt, speed=speed, boundary_x=options.boundary_x,
                       boundary_y=options.boundary_y, courant=courant)
        frames.append(blocks.cell_means(now.movedim(-1, 1).numpy(), options.resolution))
    made = np.stack(frames, 2)
    return {"pressure": made[:, 0], "pressure_rate": made[:, 1]}


def draw(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """speed ``(stop − start, x, y)`` float64 in m/s at the saved resolution."""
    fine = np.stack([medium(options, i) for i in range(start, stop)])
    return {"speed": 1 / np.sqrt(blocks.cell_means(fine**-2.0, options.resolution))}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: pressure in Pa and pressure_rate in Pa/s (trajectory, time, x, y) float32, speed
    (trajectory, x, y) in m/s, the codes of the ends of axes that aren't periodic. Raises `InputError` naming the wrong
    option."""
    chosen = validate(Options, dict(options), where="wave options")
    side = (chosen.resolution, chosen.resolution)
    made = blocks.lazy(solve, chosen, dict.fromkeys(("pressure", "pressure_rate"), (chosen.frames, *side)))
    speed = blocks.lazy(draw, chosen, {"speed": side})["speed"]
    dims = ("time", "x", "y")
    ends = {"x": chosen.boundary_x, "y": chosen.boundary_y}
    codes = {name: code for axis, (low, high) in ends.items()
             for name, code in blocks.boundaries(axis, low, high, chosen.trajectories).items()}
    return blocks.canonical(
        {"pressure": (dims, made["pressure"], blocks.state("Pa", "pressure")),
         "pressure_rate": (dims, made["pressure_rate"], blocks.state("Pa/s", "rate of change of the pressure")),
         "speed": (dims[1:], speed, {"units": "m/s", "long_name": "speed of sound", "role": "forcing"}), **codes},
        {name: blocks.axis(chosen.resolution, 1.0, "m", periodic=low == "periodic") for name, (low, _) in ends.items()},
        (np.arange(chosen.frames) * chosen.frame_dt, "s"))


PLUGIN = build
