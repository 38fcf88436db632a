"""The Kuramoto–Sivashinsky equation on a periodic interval: chaos in one dimension.

``u_t + u u_x + u_xx + ν u_xxxx = 0``, without units; its ν = 1 form has one parameter, the length of the period, and
is chaotic from about 22 on. Pseudo-spectral in float64: 2/3 dealiasing, exponential time differencing of order four
(`sciml.data.builders._spectral`). Conserved: the mean of u, here 0. Time scale: the Lyapunov time, about 11 at length
60 (rate 0.09) and 21 at length 22 (0.048).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks as blocks
from sciml.data.builders import _spectral as spectral
from sciml.recipe import validate

MODES = 8
STEP = 0.125
"""Usual bound on a solver's step: the state 1 later is right to 1.4e-4, of 1.3; with half of it, to 1.5e-5."""


class Options(blocks.Draws):
    """What to solve and what to save. Nothing has a unit; frame 0 is at the end of the spin-up.

    length: of the period; hyperviscosity: ν, of a list, trajectory i takes entry ``i % n``; solver_dt: upper bound of
    the solver's step.
    """

    resolution: int = Field(default=128, ge=16, multiple_of=2)
    frames: int = Field(default=101, ge=1)
    frame_dt: float = Field(default=1.0, gt=0)
    spin_up: float = Field(default=150.0, ge=0)
    length: float = Field(default=60.0, gt=0)
    hyperviscosity: float | tuple[float, ...] = 1.0
    solver_dt: float = Field(default=STEP / 2, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        if np.size(self.hyperviscosity) == 0 or np.min(self.hyperviscosity) <= 0:
            raise ValueError("hyperviscosity must be positive")
        return self


def step(state: Tensor, dt: float, *, hyperviscosity: Any = 1.0, length: float = 60.0,
         refine: int = 1, max_step: float = STEP) -> Tensor:
    """The state dt later, ``(batch, x, 1)``, by whole steps of at most `max_step` on a grid `refine` times finer;
    differentiable in the state.

    hyperviscosity: a number or ``(batch,)``. Coefficients are float64, the state keeps its type.
    """
    if dt == 0:
        return state
    count = max(1, math.ceil(dt / max_step - 1e-9))
    field = state[..., 0]
    grid = spectral.Grid(refine * field.shape[-1], length, 1)
    square, kept = grid.square(state.device), grid.retained(state.device)
    linear = square - spectral.column(hyperviscosity, state, 1) * square**2
    scheme = spectral.Exponential.of(linear, dt / count, state.dtype)
    half_ik = (-0.5j * 2 * math.pi / length * grid.harmonics(state.device)[0] * kept).to(scheme.full.dtype.to_complex())

    def transport(v: Tensor) -> Tensor:
        return half_ik * grid.to_modes(grid.to_points(v) ** 2)

    modes = kept.to(state.dtype) * grid.to_modes(spectral.regrid(field, grid.n, 1))
    for _ in range(count):
        modes = scheme.step(modes, transport)
    return spectral.regrid(grid.to_points(modes), field.shape[-1], 1)[..., None]


def setting(options: Options) -> dict[str, Any]:
    """What `step` is to be told beside the hyperviscosity, to go on with data that were made with these options."""
    return {"length": options.length, "max_step": options.solver_dt,
            "refine": max(1, options.grid // options.resolution)}


def initial(options: Options, trajectory: int) -> np.ndarray:
    """A mean-free sum of the lowest harmonics with standard deviation 1, ``(n,)`` float64."""
    rng = np.random.default_rng((options.seed, trajectory))
    share = 1 / math.sqrt(2 * (MODES - 1))
    return spectral.gaussian_field(rng, options.grid, 1, lambda m: np.full_like(m, share), MODES)


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """u ``(stop − start, frames, x)`` float64 of trajectories ``start ≤ i < stop``."""
    now = torch.from_numpy(np.stack([initial(options, i) for i in range(start, stop)]))[..., None]
    nu = torch.from_numpy(blocks.cycled(options.hyperviscosity, start, stop))
    given: dict[str, Any] = {**setting(options), "refine": 1, "hyperviscosity": nu}
    now = step(now, options.spin_up, **given)
    frames = [now]
    for _ in range(options.frames - 1):
        frames.append(now := step(now, options.frame_dt, **given))
    return {"u": spectral.resample(torch.stack(frames, 1)[..., 0].numpy(), options.resolution, 1)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: u (trajectory, time, x) float32 and hyperviscosity (trajectory,), without units. Raises
    `InputError` naming the wrong option."""
    chosen = validate(Options, dict(options), where="kuramoto_sivashinsky options")
    made = blocks.lazy(solve, chosen, {"u": (chosen.frames, chosen.resolution)})
    values = blocks.cycled(chosen.hyperviscosity, 0, chosen.trajectories)
    return blocks.canonical(
        {"u": (("time", "x"), made["u"], blocks.state("1", "slope of the front") | {"vector": "slope", "along": "x"}),
         "hyperviscosity": blocks.parameter(values, "1", "coefficient of the fourth derivative")},
        {"x": blocks.axis(chosen.resolution, chosen.length, "1", periodic=True)},
        (np.arange(chosen.frames) * chosen.frame_dt, "1"))


PLUGIN = build
