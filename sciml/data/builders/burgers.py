"""The viscous Burgers equation on the unit interval, periodic or at rest at both ends.

``u_t + (u²/2)_x = ν u_xx``. Pseudo-spectral in float64: 2/3 dealiasing, exponential time differencing of order four
(`sciml.data.builders._spectral`). With ``u = 0`` at the ends, u is continued as an odd function of period 2, which the
equation keeps odd: the same solver. The initial fields have the covariance of the problem of Li et al., "Fourier
Neural Operator for Parametric Partial Differential Equations", ICLR 2021. Conserved if periodic: the mean of u. Time
scale: the shock formation time ``1 / max(−u_x)`` of the initial field, about 0.2 s.
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

MODES = 64
COURANT = 0.5
"""Bound on dt · max |u| · largest retained wavenumber; the scheme is stable up to about 2.8."""
Boundary = Literal["periodic", "dirichlet"]


class Options(blocks.Draws):
    """What to solve and what to save. Lengths in m, times in s.

    viscosity: in m²/s; of a list, trajectory i takes entry ``i % n``; the solver's grid must resolve shocks, which are
    about 8ν / (jump of u) thick. amplitude: times the root of the paper's initial covariance ``625 (−Δ + 25)^{−2}``,
    with the boundary's Laplacian (standard deviation 0.59 m/s; in the middle of a Dirichlet interval, 1.05 m/s).
    """

    resolution: int = Field(default=256, ge=16, multiple_of=2)
    solve_resolution: int | None = Field(default=1024, ge=16, multiple_of=2)
    boundary: Boundary = "periodic"
    frames: int = Field(default=21, ge=1)
    frame_dt: float = Field(default=0.05, gt=0)
    viscosity: float | tuple[float, ...] = (1e-2, 5e-3, 2.5e-3)
    amplitude: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        if np.size(self.viscosity) == 0 or np.min(self.viscosity) <= 0:
            raise ValueError("viscosity must be positive")
        return self


def step(state: Tensor, dt: float, *, viscosity: Any, boundary: Boundary = "periodic", length: float = 1.0,
         refine: int = 1, courant: float = COURANT) -> Tensor:
    """The state dt later, ``(batch, x, 1)`` in m/s; differentiable in the state.

    viscosity: a number or ``(batch,)`` in m²/s; length of the interval in m; x as in the data set: from 0 if periodic,
    middles of cells otherwise. It is solved on a grid `refine` times finer, by steps as many as the fastest of the
    batch needs. Coefficients are float64, the state keeps its type. Raises `FloatingPointError` if the state isn't
    finite.
    """
    speed = float(state.detach().abs().amax())
    if not math.isfinite(speed):
        raise FloatingPointError("the velocity isn't finite")
    if dt == 0:
        return state
    field = state[..., 0]
    cells = field.shape[-1]
    if boundary == "dirichlet":
        field = torch.cat([field, -field.flip(-1)], -1)
    grid = spectral.Grid(refine * field.shape[-1], length * field.shape[-1] / cells, 1)
    count = max(1, math.ceil(dt * speed * grid.cutoff / courant))
    kept = grid.retained(state.device)
    linear = -spectral.column(viscosity, state, 1) * grid.square(state.device)
    scheme = spectral.Exponential.of(linear, dt / count, state.dtype)
    k = 2 * math.pi / grid.period * grid.harmonics(state.device)[0]
    half_ik = (-0.5j * k * kept).to(state.dtype.to_complex())

    def transport(v: Tensor) -> Tensor:
        return half_ik * grid.to_modes(grid.to_points(v) ** 2)

    modes = kept.to(state.dtype) * grid.to_modes(spectral.regrid(field, grid.n, 1))
    for _ in range(count):
        modes = scheme.step(modes, transport)
    return spectral.regrid(grid.to_points(modes), field.shape[-1], 1)[..., :cells, None]


def setting(options: Options) -> dict[str, Any]:
    """What `step` is to be told beside the viscosity, to go on with data that were made with these options."""
    return {"boundary": options.boundary, "refine": max(1, options.grid // options.resolution)}


def initial(options: Options, trajectory: int) -> np.ndarray:
    """A mean-free Gaussian random field in m/s at the solver's points, ``(n,)`` float64; harmonics below 64 of the
    period are drawn."""
    rng = np.random.default_rng((options.seed, trajectory))
    if options.boundary == "periodic":
        return spectral.gaussian_field(rng, options.grid, 1, lambda m: _deviation(m, options.amplitude), MODES)
    m = np.arange(1, MODES)
    weight = math.sqrt(2) * _deviation(m / 2, options.amplitude) * rng.standard_normal(MODES - 1)
    x = blocks.axis(options.grid, 1.0, "m", periodic=False)[0]
    used = m < options.grid
    return np.asarray(np.sin(np.pi * np.outer(x, m[used])) @ weight[used])


def _deviation(m: np.ndarray, amplitude: float) -> np.ndarray:
    return np.asarray(amplitude * 25.0 / (4 * np.pi**2 * m**2 + 25.0))


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """velocity_x ``(stop − start, frames, x)`` float64 in m/s of trajectories ``start ≤ i < stop``, each by itself, as
    each has its own step."""
    made = []
    for i, viscosity in zip(range(start, stop), blocks.cycled(options.viscosity, start, stop)):
        now = torch.from_numpy(initial(options, i))[None, :, None]
        frames = [now]
        for _ in range(options.frames - 1):
            frames.append(now := step(now, options.frame_dt, viscosity=viscosity, boundary=options.boundary))
        made.append(torch.cat(frames)[..., 0].numpy())
    return {"velocity_x": _saved(np.stack(made), options)}


def _saved(fine: np.ndarray, options: Options) -> np.ndarray:
    if options.boundary == "periodic":
        return spectral.resample(fine, options.resolution, 1)
    from scipy.fft import dst, idst

    if options.resolution == options.grid:
        return fine
    sines = dst(fine, type=2)[..., :options.resolution]
    sines[..., -1] = 0
    return np.asarray(idst(sines, type=2) * (options.resolution / options.grid))


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: velocity_x (trajectory, time, x) float32 in m/s, viscosity (trajectory,) in m²/s and, if
    not periodic, the codes of both ends. Raises `InputError` naming the wrong option."""
    chosen = validate(Options, dict(options), where="burgers options")
    made = blocks.lazy(solve, chosen, {"velocity_x": (chosen.frames, chosen.resolution)})
    values = blocks.cycled(chosen.viscosity, 0, chosen.trajectories)
    return blocks.canonical(
        {"velocity_x": (("time", "x"), made["velocity_x"],
                        blocks.state("m/s", "velocity") | {"vector": "velocity", "along": "x"}),
         "viscosity": blocks.parameter(values, "m2/s", "kinematic viscosity"),
         **blocks.boundaries("x", chosen.boundary, chosen.boundary, chosen.trajectories)},
        {"x": blocks.axis(chosen.resolution, 1.0, "m", periodic=chosen.boundary == "periodic")},
        (np.arange(chosen.frames) * chosen.frame_dt, "s"))


PLUGIN = build
