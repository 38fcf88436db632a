"""Turbulent flow between two walls, driven by a constant pressure gradient: three-dimensional Navier–Stokes.

``u_t + u·∇u = −∇p + (1, 0, 0) + Δu / Re_τ``, ``∇·u = 0``, u = 0 at y = 0 and 2, periodic in x and z. The unit of length
is half the distance between the walls, that of velocity the friction velocity, which the pressure gradient fixes on
average, that of time their ratio, the turnover time of the largest eddies. Solver: `_channel_flow`. A box as small as
the default is a minimal flow unit (Jiménez and Moin, J. Fluid Mech. 225, 1991): one or two streaks per wall.

Each trajectory has a spin-up of its own, from the Reichardt profile with random large waves on it. The spin-up is kept,
piece by piece, in ``$SCIML_CACHE/channel``: one that was interrupted goes on, one with other frames after it isn't run
again. Trajectories are chaotic: bit by bit the same on the same machine, the same in distribution on another.
Conserved if viscosity and gradient were zero: momentum along x and z, and kinetic energy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator

from sciml.assets import cache_folder
from sciml.data.builders import _blocks
from sciml.data.builders import _channel_flow as solver
from sciml.data.builders._spectral import resample
from sciml.recipe import validate

PIECE = 1.0
"""Time between the states of a spin-up that are kept."""
VERSION = 1
"""Of what a kept state depends on beside the options; count up when the solver or the start changes."""
STATES = {"velocity_x": ("along the stream", "x"), "velocity_y": ("across it, away from the lower wall", "y"),
          "velocity_z": ("along the span", "z")}


class Options(_blocks.Draws):
    """What to solve and what to save, in half-heights and friction velocities; frame 0 is at the end of the spin-up.

    friction_reynolds: Re_τ; of a list, trajectory i takes entry ``i % n``. resolution: points along x and along z of
    what is saved, filtered down spectrally from `solve_resolution`; wall_cells: cells in y, the same in both, whose
    faces lie at ``1 + tanh(s (2j/n − 1)) / tanh s`` with s = stretch. lengths: periods of x and z. disturbance: root
    mean square of each velocity of the random waves at the start.
    """

    resolution: int = Field(default=32, ge=8, multiple_of=2)
    block: int = Field(default=1, ge=1)
    friction_reynolds: float | tuple[float, ...] = 180.0
    wall_cells: int = Field(default=48, ge=8)
    stretch: float = Field(default=1.9, gt=0)
    lengths: tuple[float, float] = (math.pi, math.pi / 2)
    frames: int = Field(default=101, ge=1)
    frame_dt: float = Field(default=0.01, gt=0)
    spin_up: float = Field(default=6.0, ge=0)
    disturbance: float = Field(default=3.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        if min(np.atleast_1d(self.friction_reynolds), default=0) <= 0:
            raise ValueError("friction_reynolds must be positive")
        if min(self.lengths) <= 0:
            raise ValueError("lengths must be positive")
        return self

    @property
    def flow_grid(self) -> solver.Grid:
        return solver.grid_of((self.grid, self.wall_cells, self.grid), self.lengths, self.stretch)


def reichardt(distance: np.ndarray) -> np.ndarray:
    """Mean velocity over friction velocity at a distance from the wall in wall units (Reichardt 1951).

    >>> reichardt(np.array([1.0, 100.0])).round(1).tolist()
    [1.0, 16.9]
    """
    inner = 7.8 * (1 - np.exp(-distance / 11) - distance / 11 * np.exp(-distance / 3))
    return np.log1p(0.41 * distance) / 0.41 + inner


def initial(options: Options, trajectory: int, reynolds: float) -> solver.Flow:
    """The Reichardt profile and random waves, free of divergence."""
    grid, draws = options.flow_grid, np.random.default_rng((options.seed, trajectory))
    wide = torch.exp(-((grid.kx * options.lengths[0]) ** 2 + (grid.kz * options.lengths[1]) ** 2) / (4 * np.pi**2 * 9))
    wide[0, 0] = 0

    def waves(y: np.ndarray) -> torch.Tensor:
        shapes = torch.as_tensor(np.stack([np.sin(m * np.pi * y / 2) / m for m in range(1, 7)]))
        noise = solver.modes_of(grid, torch.as_tensor(draws.standard_normal((6, *grid.side)))) * wide
        found = torch.einsum("my,mxz->yxz", shapes.to(noise.dtype), noise)
        return found * (options.disturbance / solver.values_of(grid, found).std())

    u, v, w = waves(grid.centres), waves(grid.faces[1:-1]), waves(grid.centres)
    profile = reichardt(np.minimum(grid.centres, 2 - grid.centres) * reynolds)
    u[:, 0, 0] += torch.as_tensor(profile * grid.side[0] * grid.side[1])
    flow, _ = solver.project(grid, u, v, w)
    return solver.Flow(flow.u, flow.v, flow.w, torch.zeros_like(flow.p))


def developed(options: Options, trajectory: int, reynolds: float) -> solver.Flow:
    """The flow at the end of the spin-up; goes on from the last state of it that was kept."""
    keys = ("seed", "wall_cells", "stretch", "lengths", "disturbance")
    told = [VERSION, trajectory, reynolds, options.grid, *(getattr(options, key) for key in keys)]
    name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
    folder = cache_folder() / "channel"
    ends = [float(t) for t in np.arange(PIECE, options.spin_up, PIECE)] + [options.spin_up]
    files = [folder / f"{name}_{end:.9g}.npz" for end in ends]
    done = next((i for i in reversed(range(len(ends))) if files[i].exists()), -1)
    flow = initial(options, trajectory, reynolds) if done < 0 else _load(files[done])
    for i in range(done + 1, len(ends)):
        flow = solver.advance(options.flow_grid, flow, ends[i] - (ends[i - 1] if i else 0.0), 1 / reynolds)
        _keep(flow, files[i])
        if i:
            files[i - 1].unlink(missing_ok=True)
    return flow


def _load(path: Path) -> solver.Flow:
    with np.load(path, allow_pickle=False) as kept:
        return solver.Flow(*(torch.as_tensor(kept[name]) for name in ("u", "v", "w", "p")))


def _keep(flow: solver.Flow, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(file, **{name: getattr(flow, name).numpy() for name in ("u", "v", "w", "p")})
    os.replace(file.name, path)


def collocated(grid: solver.Grid, flow: solver.Flow) -> torch.Tensor:
    """Velocities ``(3, x, y, z)`` at the centres of cells; along y, the mean of the two faces."""
    u, v, w = (solver.values_of(grid, modes) for modes in (flow.u, flow.v, flow.w))
    wall = torch.zeros_like(v[:1])
    padded = torch.cat([wall, v, wall])
    return torch.stack([u, 0.5 * (padded[1:] + padded[:-1]), w]).transpose(1, 2)


def staggered(grid: solver.Grid, velocities: torch.Tensor, viscosity: float) -> solver.Flow:
    """The flow of which these are the `collocated` velocities; of others, the nearest in least squares at the faces and
    then without divergence. Pressure is that of the moment."""
    u, v, w = velocities.transpose(1, 2)
    inner = torch.arange(len(v) - 1)
    means = v.new_zeros(len(v), len(v) - 1)
    means[inner, inner] = means[inner + 1, inner] = 0.5
    faces = torch.linalg.lstsq(means, v.flatten(1)).solution.view(-1, *v.shape[1:])
    flow, _ = solver.project(grid, *(solver.modes_of(grid, each) for each in (u, faces, w)))
    return replace(flow, p=solver.pressure_of(grid, flow, viscosity))


def solve(options: Options, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """The states ``(stop − start, frames, x, y, z)`` float64 of trajectories ``start ≤ i < stop``, by name."""
    stop = options.trajectories if stop is None else stop
    grid, saved = options.flow_grid, []
    for trajectory, reynolds in zip(range(start, stop), _blocks.cycled(options.friction_reynolds, start, stop)):
        flow = developed(options, trajectory, float(reynolds))
        frames = [collocated(grid, flow).numpy()]
        for _ in range(options.frames - 1):
            flow = solver.advance(grid, flow, options.frame_dt, 1 / float(reynolds))
            frames.append(collocated(grid, flow).numpy())
        whole = np.stack(frames).swapaxes(2, 3)
        saved.append(resample(whole, options.resolution).swapaxes(2, 3))
    return {name: np.stack([s[:, channel] for s in saved]) for channel, name in enumerate(STATES)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: one dask task per `block` trajectories, any of which can be run again by itself.

    velocity_x, velocity_y, velocity_z (trajectory, time, x, y, z), y uneven; friction_reynolds (trajectory,); the codes
    of the walls. Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="channel options")
    n, count, grid = chosen.resolution, chosen.trajectories, chosen.flow_grid
    arrays = _blocks.lazy(solve, chosen, dict.fromkeys(STATES, (chosen.frames, n, chosen.wall_cells, n)))
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        told, along = STATES[name]
        variables[name] = (("time", "x", "y", "z"), array, _blocks.state("1", f"velocity {told}") | {
            "vector": "velocity", "along": along})
    variables["friction_reynolds"] = _blocks.parameter(
        _blocks.cycled(chosen.friction_reynolds, 0, count), "1", "friction Reynolds number of the half-height")
    variables |= _blocks.boundaries("y", "wall", "wall", count)
    space = {"x": _blocks.axis(n, chosen.lengths[0], "1", periodic=True), "y": (grid.centres, {"units": "1"}),
             "z": _blocks.axis(n, chosen.lengths[1], "1", periodic=True)}
    return _blocks.canonical(variables, space, (np.arange(chosen.frames) * chosen.frame_dt, "1"))


PLUGIN = build
