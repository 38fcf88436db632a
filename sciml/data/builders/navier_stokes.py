"""Forced two-dimensional Navier–Stokes on the periodic unit square, in vorticity form.

``ω_t + u·∇ω = ν Δω + f``, ``u = (ψ_y, −ψ_x)``, ``−Δψ = ω``; the test problem of Li et al., "Fourier Neural Operator for
Parametric Partial Differential Equations", ICLR 2021. Pseudo-spectral in float64: 2/3 dealiasing, the nonlinear term
from two products (Basdevant 1983), integrating factor for diffusion with the classical Runge–Kutta scheme of order
four. Each trajectory has its own step from its own CFL number and its own random stream, so that it doesn't depend on
which others it is computed with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders._spectral import resample
from sciml.recipe import Section, validate

COURANT = 1.5
"""Bound on dt · max over x of (|u| + |v|) · largest retained wavenumber; the scheme is stable up to 2.8."""


class Options(Section):
    """What to solve and what to save. Lengths in m, times in s; frame 0 is at the end of the spin-up.

    viscosity: in m²/s; of a list, trajectory i takes entry ``i % n``. resolution: cells per side of what is saved;
    solve_resolution: of the solver (default: the same), from which frames are filtered down spectrally.
    initial_amplitude: times the paper's initial covariance ``7^{3/2} (−Δ + 49)^{−5/2}`` (standard deviation 0.04/s);
    the default √(2·7^{3/2}) is what the paper's published code draws (0.26/s).
    """

    trajectories: int = Field(default=16, ge=1)
    frames: int = Field(default=16, ge=1)
    frame_dt: float = Field(default=1.0, gt=0)
    spin_up: float = Field(default=10.0, ge=0)
    resolution: int = Field(default=64, ge=8, multiple_of=2)
    solve_resolution: int | None = Field(default=None, ge=8, multiple_of=2)
    viscosity: float | tuple[float, ...] = 5e-4
    forcing_amplitude: float = Field(default=0.1, ge=0)
    initial_amplitude: float = Field(default=math.sqrt(2 * 7**1.5), gt=0)
    seed: int = Field(default=0, ge=0)
    block: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Options:
        if not self.viscosities or min(self.viscosities) <= 0:
            raise ValueError("viscosity must be positive")
        if self.grid < self.resolution:
            raise ValueError("solve_resolution must not be below resolution")
        return self

    @property
    def viscosities(self) -> tuple[float, ...]:
        return self.viscosity if isinstance(self.viscosity, tuple) else (self.viscosity,)

    @property
    def grid(self) -> int:
        return self.solve_resolution or self.resolution


@dataclass(frozen=True)
class _Modes:
    """Wavenumbers in rad/m of ``rfft2`` on an n × n grid, and the mask of those below the 2/3 cut-off."""

    n: int
    kx: Tensor
    ky: Tensor
    square: Tensor
    keep: Tensor

    @classmethod
    def of(cls, n: int) -> _Modes:
        kx = torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64)[:, None]
        ky = torch.fft.rfftfreq(n, d=1 / n, dtype=torch.float64)[None]
        keep = (kx.abs() < n / 3) & (ky < n / 3)
        kx, ky = 2 * math.pi * kx, 2 * math.pi * ky
        return cls(n, kx, ky, kx**2 + ky**2, keep)

    @property
    def cutoff(self) -> float:
        return 2 * math.pi * (math.ceil(self.n / 3) - 1)

    def velocity(self, vorticity: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, v)`` on the grid from vorticity in spectral space."""
        stream = vorticity / self.square.clamp_min(1.0)
        u, v = 1j * self.ky * stream, -1j * self.kx * stream
        shape = (self.n, self.n)
        return torch.fft.irfft2(u, s=shape), torch.fft.irfft2(v, s=shape)

    def transport(self, u: Tensor, v: Tensor) -> Tensor:
        """``−u·∇ω = (∂yy − ∂xx)(uv) + ∂xy(u² − v²)`` in spectral space, dealiased."""
        product, difference = torch.fft.rfft2(u * v), torch.fft.rfft2((u - v) * (u + v))
        return self.keep * ((self.kx**2 - self.ky**2) * product - self.kx * self.ky * difference)


def forcing(resolution: int, amplitude: float = 0.1) -> np.ndarray:
    """``amplitude · (sin 2π(x + y) + cos 2π(x + y))`` in 1/s² at the grid points, ``(n, n)`` float64.

    >>> forcing(4)[0].round(2).tolist()
    [0.1, 0.1, -0.1, -0.1]
    """
    x = np.arange(resolution) / resolution
    phase = 2 * np.pi * (x[:, None] + x[None])
    return amplitude * (np.sin(phase) + np.cos(phase))


def initial_vorticity(resolution: int, seed: int, trajectory: int, amplitude: float = 1.0) -> np.ndarray:
    """A mean-free Gaussian random field ``N(0, amplitude² 7^{3/2} (−Δ + 49)^{−5/2})`` in 1/s, ``(n, n)`` float64.

    Modes below 32 are drawn and those below n/2 used, so that a trajectory is the same function at any resolution of at
    least 64.
    """
    rng = np.random.default_rng((seed, trajectory))
    half = 32
    draws = rng.standard_normal((2, 2 * half - 1, half))
    k = np.arange(-half + 1, half)
    kx, ky = np.meshgrid(k, np.arange(half), indexing="ij")
    deviation = np.sqrt(7**1.5 * (4 * np.pi**2 * (kx**2 + ky**2) + 49.0) ** -2.5)
    used = ((ky > 0) | (kx > 0)) & (np.maximum(np.abs(kx), ky) < resolution / 2)
    coefficients = np.zeros((resolution, resolution // 2 + 1), dtype=np.complex128)
    spectrum = (draws[0] + 1j * draws[1]) * deviation / np.sqrt(2)
    coefficients[kx[used], ky[used]] = spectrum[used]
    line = used & (ky == 0)
    coefficients[-kx[line], 0] = spectrum[line].conj()
    return amplitude * np.fft.irfft2(coefficients, s=(resolution, resolution)) * resolution**2


def advance(vorticity: np.ndarray, viscosity: np.ndarray | float, force: np.ndarray, frame_dt: float, frames: int,
            *, courant: float = COURANT) -> np.ndarray:
    """Frames 1 … `frames` after the given vorticity, ``(batch, frames, n, n)`` float64 in 1/s.

    vorticity ``(batch, n, n)`` in 1/s on the unit square; viscosity a number or ``(batch,)`` in m²/s; force ``(n, n)``
    or ``(batch, n, n)`` in 1/s²; frame_dt in s. Every frame ends a step exactly, so a restart from a frame continues
    the same trajectory. Raises `FloatingPointError` if the solution is lost.
    """
    if frame_dt == 0 or frames == 0:
        return np.repeat(np.asarray(vorticity, np.float64)[:, None], frames, axis=1)
    modes = _Modes.of(vorticity.shape[-1])
    nu = torch.as_tensor(viscosity, dtype=torch.float64).expand(len(vorticity)).reshape(-1, 1, 1)
    drive = modes.keep * torch.fft.rfft2(torch.as_tensor(force, dtype=torch.float64).expand(vorticity.shape))
    spectrum = modes.keep * torch.fft.rfft2(torch.as_tensor(vorticity, dtype=torch.float64))
    saved = np.empty((len(vorticity), frames, modes.n, modes.n))
    for frame in range(frames):
        spectrum = _frame(modes, spectrum, nu, drive, frame_dt, courant)
        saved[:, frame] = torch.fft.irfft2(spectrum, s=(modes.n, modes.n)).numpy()
        if not np.isfinite(saved[:, frame]).all():
            raise FloatingPointError(f"vorticity isn't finite after frame {frame + 1}")
    return saved


def _frame(modes: _Modes, w: Tensor, nu: Tensor, drive: Tensor, frame_dt: float, courant: float) -> Tensor:
    """Advance by frame_dt with as many steps as each trajectory needs; one that has arrived takes steps of length 0."""
    remaining = torch.full_like(nu, frame_dt)
    while bool((remaining > 0).any()):
        u, v = modes.velocity(w)
        speed = (u.abs() + v.abs()).amax((-2, -1), keepdim=True)
        steps = (remaining * speed * modes.cutoff / courant).ceil().clamp_min(1.0)
        dt = remaining / steps
        half = torch.exp(-nu * modes.square * (dt / 2))
        full = half * half

        k1 = modes.transport(u, v) + drive
        k2 = modes.transport(*modes.velocity(half * (w + dt / 2 * k1))) + drive
        k3 = modes.transport(*modes.velocity(half * w + dt / 2 * k2)) + drive
        k4 = modes.transport(*modes.velocity(full * w + dt * half * k3)) + drive
        w = full * w + dt / 6 * (full * k1 + 2 * half * (k2 + k3) + k4)
        remaining = torch.where(steps == 1, torch.zeros_like(remaining), remaining - dt)
    return w


def solve(options: Options, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Vorticity ``(stop − start, frames, n, n)`` float64 in 1/s of trajectories ``start ≤ i < stop``."""
    stop = options.trajectories if stop is None else stop
    members = range(start, stop)
    nu = np.array([options.viscosities[i % len(options.viscosities)] for i in members])
    first = np.stack([initial_vorticity(options.grid, options.seed, i, options.initial_amplitude) for i in members])
    force = forcing(options.grid, options.forcing_amplitude)
    first = advance(first, nu, force, options.spin_up, 1)[:, 0]
    later = advance(first, nu, force, options.frame_dt, options.frames - 1)
    return resample(np.concatenate([first[:, None], later], axis=1), options.resolution)


def turnover_time(vorticity: np.ndarray) -> float:
    """Eddy turnover time ``2π / rms(ω)`` in s of fields ``(…, n, n)`` in 1/s."""
    return float(2 * np.pi / np.sqrt(np.mean(np.square(vorticity, dtype=np.float64))))


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: one dask task per `block` trajectories, any of which can be run again by itself.

    vorticity (trajectory, time, x, y) float32 in 1/s, forcing (trajectory, x, y) in 1/s², viscosity (trajectory,) in
    m²/s. Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="navier_stokes options")
    bounds = [(i, min(i + chosen.block, chosen.trajectories)) for i in range(0, chosen.trajectories, chosen.block)]
    side = (chosen.resolution, chosen.resolution)
    task = dask.delayed(_solve_block, pure=True)
    given = chosen.model_dump()
    blocks = [da.from_delayed(task(given, start, stop), (stop - start, chosen.frames, *side), np.float32)
              for start, stop in bounds]
    force = forcing(chosen.resolution, chosen.forcing_amplitude).astype(np.float32)
    viscosity = np.array([chosen.viscosities[i % len(chosen.viscosities)] for i in range(chosen.trajectories)])
    place = np.arange(chosen.resolution) / chosen.resolution
    space = {"units": "m", "period": 1.0}
    return xr.Dataset(
        {"vorticity": (("trajectory", "time", "x", "y"), da.concatenate(blocks),
                       {"units": "1/s", "long_name": "vorticity", "role": "state", "vector": "vorticity",
                        "along": "x y"}),
         "forcing": (("trajectory", "x", "y"), da.broadcast_to(force, (chosen.trajectories, *side)),
                     {"units": "1/s2", "long_name": "curl of the body force per unit mass", "role": "forcing",
                      "vector": "forcing", "along": "x y"}),
         "viscosity": (("trajectory",), viscosity,
                       {"units": "m2/s", "long_name": "kinematic viscosity", "role": "parameter"})},
        coords={"time": ("time", np.arange(chosen.frames) * chosen.frame_dt, {"units": "s"}),
                "x": ("x", place, space), "y": ("y", place, dict(space))},
        attrs={"domain": "fields", "group_dim": "trajectory"})


def _solve_block(options: dict[str, Any], start: int, stop: int) -> np.ndarray:
    return solve(Options.model_validate(options), start, stop).astype(np.float32)


PLUGIN = build
