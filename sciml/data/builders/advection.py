"""Linear advection at a constant velocity on the periodic unit interval or square, solved exactly.

``u_t + c·∇u = 0``: each Fourier coefficient turns by ``exp(−i k·c t)``, so every frame is exact to rounding whatever
the time between frames. Conserved: the mean and every power of u. Time scale: the crossing time ``1 / |c|``.
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
from sciml.data.builders import _spectral as spectral
from sciml.recipe import validate

MODES = 32


class Options(blocks.Draws):
    """What to advect. Lengths in m, times in s.

    velocity: every component is drawn between these bounds, in m/s. length: correlation length of the tracer in m, a
    Gaussian random field of variance 1 with a squared exponential covariance, less its mean.
    """

    dimensions: Literal[1, 2] = 2
    frames: int = Field(default=21, ge=1)
    frame_dt: float = Field(default=0.05, gt=0)
    velocity: tuple[float, float] = (-1.0, 1.0)
    length: float = Field(default=0.05, ge=0.03, le=1)

    @model_validator(mode="after")
    def _bounds(self) -> Options:
        if not self.velocity[0] <= self.velocity[1]:
            raise ValueError("velocity: the lower bound first")
        return self


def step(state: Tensor, dt: float, *, advection_velocity_x: Any, advection_velocity_y: Any = 0.0,
         length: float = 1.0) -> Tensor:
    """The state dt later, ``(batch, *space, channel)``, differentiable; velocities: a number or ``(batch,)``, in m/s.

    >>> x = torch.arange(8).double() / 8
    >>> later = step(torch.sin(2 * math.pi * x).view(1, 8, 1), 0.25, advection_velocity_x=0.5)
    >>> bool((later[0, :, 0] - torch.sin(2 * math.pi * (x - 0.125))).abs().max() < 1e-14)
    True
    """
    rank = state.ndim - 2
    grid = spectral.Grid(state.shape[1], length, rank)
    velocity = (advection_velocity_x, advection_velocity_y)
    turn = sum((spectral.column(c, state, rank + 1) * m for c, m in zip(velocity, grid.harmonics(state.device))),
               start=torch.zeros((), dtype=torch.float64, device=state.device))
    phase = -2 * math.pi / length * dt * turn
    modes = grid.to_modes(state.movedim(-1, 1)) * torch.polar(torch.ones_like(phase), phase)
    for i in range(rank):
        modes = modes.index_fill(2 + i, torch.tensor([grid.n // 2], device=state.device), 0.0)
    return grid.to_points(modes).movedim(1, -1).to(state.dtype)


def initial(options: Options, trajectory: int) -> np.ndarray:
    """The tracer at time 0, ``(n,)`` or ``(n, n)`` float64; modes below 32 are used."""
    rank = options.dimensions

    def deviation(m: np.ndarray) -> np.ndarray:
        wave = 2 * np.pi * m * options.length
        return np.sqrt((math.sqrt(2 * math.pi) * options.length) ** rank * np.exp(-wave**2 / 2))

    rng = np.random.default_rng((options.seed, trajectory, 0))
    return spectral.gaussian_field(rng, options.grid, rank, deviation, MODES)


def velocities(options: Options, start: int, stop: int) -> np.ndarray:
    """``(stop − start, dimensions)`` float64 in m/s."""
    return np.stack([np.random.default_rng((options.seed, i, 1)).uniform(*options.velocity, options.dimensions)
                     for i in range(start, stop)])


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """tracer ``(stop − start, frames, *space)`` float64 of trajectories ``start ≤ i < stop``."""
    first = torch.from_numpy(np.stack([initial(options, i) for i in range(start, stop)]))[..., None]
    velocity = torch.from_numpy(velocities(options, start, stop)).unbind(-1)
    given: dict[str, Any] = {f"advection_velocity_{name}": c for name, c in zip("xy", velocity)}
    frames = [step(first, frame * options.frame_dt, **given)[..., 0] for frame in range(options.frames)]
    tracer = torch.stack(frames, 1).numpy()
    return {"tracer": spectral.resample(tracer, options.resolution, options.dimensions)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: tracer (trajectory, time, x[, y]) float32 without unit; advection_velocity_x[, _y]
    (trajectory,) in m/s. Raises `InputError` naming the wrong option."""
    chosen = validate(Options, dict(options), where="advection options")
    space = ("x", "y")[:chosen.dimensions]
    made = blocks.lazy(solve, chosen, {"tracer": (chosen.frames, *(chosen.resolution,) * len(space))})
    velocity = velocities(chosen, 0, chosen.trajectories)
    variables = {"tracer": (("time", *space), made["tracer"], blocks.state("1", "tracer"))}
    for i, name in enumerate(space):
        dims, values, attrs = blocks.parameter(velocity[:, i], "m/s", f"velocity of the medium along {name}")
        variables[f"advection_velocity_{name}"] = (
            dims, values, attrs | {"vector": "advection_velocity", "along": name})
    place = blocks.axis(chosen.resolution, 1.0, "m", periodic=True)
    return blocks.canonical(variables, dict.fromkeys(space, place),
                            (np.arange(chosen.frames) * chosen.frame_dt, "s"))


PLUGIN = build
