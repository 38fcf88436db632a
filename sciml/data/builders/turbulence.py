"""Two-dimensional turbulence on the periodic unit square, decaying or driven, with or without a passive tracer.

``ω_t + u·∇ω = ν Δω − α ω + curl f``, ``c_t + u·∇c = (ν/Sc) Δc``, ``u = (ψ_y, −ψ_x)``, ``−Δψ = ω``. Kolmogorov's flow is
driven by ``f = (A sin 2πky, 0)`` and held by the linear drag α (Chandler and Kerswell, J. Fluid Mech. 2013; with drag
as in Kochkov et al., PNAS 2021); decaying turbulence begins from random phases with the spectrum
``E(k) ∝ k / (1 + (k/k0)⁴)`` of McWilliams, J. Fluid Mech. 1984. Pseudo-spectral in the way of
`sciml.data.builders.navier_stokes`: 2/3 dealiasing, integrating factor, classical Runge–Kutta of order four, a step and
a random stream for each trajectory. `step` is the same solver as a differentiable function of torch.

Conserved: momentum and the mean of the tracer always; energy and enstrophy if ν = α = f = 0. The variance of the tracer
never grows. The unit of time is the turnover time ``2π / rms(ω)`` (`navier_stokes.turnover_time`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import dask.array as da
import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks
from sciml.data.builders._spectral import resample
from sciml.data.builders.navier_stokes import _Modes
from sciml.recipe import validate

COURANT = 2.0
"""Bound on dt · max over x of (|u| + |v|) · largest retained wavenumber; the scheme is stable up to 2.8."""

STATES = {"velocity_x": ("m/s", "velocity along x", "velocity", "x"),
          "velocity_y": ("m/s", "velocity along y", "velocity", "y"),
          "vorticity": ("1/s", "vorticity", "vorticity", "x y"),
          "tracer": ("1", "concentration of a passive tracer", "", "")}


class Options(_blocks.Draws):
    """What to solve and what to save. Lengths in m, times in s; frame 0 is at the end of the spin-up.

    regime: decaying, or kolmogorov (driven by `forcing_amplitude` in m/s² at `forcing_wave` waves per side, held by
    `drag` in 1/s). viscosity: in m²/s, one for all, or the bounds between which each trajectory draws its own, evenly
    in the logarithm. tracer: one more state, released at frame 0, whose diffusivity is viscosity / schmidt. save: the
    flow as velocity, vorticity or both. initial_speed: root mean square of |u| in m/s at the start of the spin-up;
    initial_wave: k0 in waves per side. What is saved is filtered down spectrally from `solve_resolution`.
    """

    regime: Literal["decaying", "kolmogorov"] = "kolmogorov"
    frames: int = Field(default=21, ge=1)
    frame_dt: float = Field(default=0.1, gt=0)
    spin_up: float = Field(default=8.0, ge=0)
    viscosity: float | tuple[float, float] = 5e-4
    forcing_amplitude: float = Field(default=1.0, ge=0)
    forcing_wave: int = Field(default=4, ge=1)
    drag: float = Field(default=0.25, ge=0)
    initial_speed: float = Field(default=1.0, gt=0)
    initial_wave: float = Field(default=4.0, gt=0)
    tracer: bool = False
    schmidt: float = Field(default=1.0, gt=0)
    save: Literal["velocity", "vorticity", "both"] = "velocity"

    @model_validator(mode="after")
    def _check(self) -> Options:
        low, high = self.bounds
        if not 0 < low <= high:
            raise ValueError("viscosity must be positive, and bounds in order")
        if self.driven and self.forcing_wave >= self.resolution / 3:
            raise ValueError("forcing_wave must be below a third of resolution")
        return self

    @property
    def driven(self) -> bool:
        return self.regime == "kolmogorov"

    @property
    def bounds(self) -> tuple[float, float]:
        return self.viscosity if isinstance(self.viscosity, tuple) else (self.viscosity, self.viscosity)

    @property
    def states(self) -> tuple[str, ...]:
        flow = {"velocity": ("velocity_x", "velocity_y"), "vorticity": ("vorticity",),
                "both": ("velocity_x", "velocity_y", "vorticity")}[self.save]
        return (*flow, "tracer") if self.tracer else flow


def step(state: Tensor, dt: float, *, viscosity: Tensor | float, drag: Tensor | float = 0.0,
         forcing: Tensor | None = None, diffusivity: Tensor | float | None = None,
         substeps: int | None = None) -> Tensor:
    """The state a time `dt` in s later, ``(batch, channel, n, n)`` like `state`: vorticity in 1/s and, if `diffusivity`
    in m²/s is given, the tracer, on the periodic unit square.

    Differentiable in the state and in all parameters, which are numbers or ``(batch,)``; in the precision of the state.
    forcing is ``curl f`` in 1/s², ``(n, n)`` or ``(batch, n, n)`` (`curl_of_force`). Takes `substeps` equal steps of
    order four (by default as many as `COURANT` asks of the fastest flow in the batch); modes from the 2/3 cut-off on
    are dropped. On fewer cells or with fewer substeps it is the cheap rival of a surrogate. See `vorticity_of` and
    `velocity_of` for states that are velocities. Raises `ValueError` if the number of channels doesn't fit.

    >>> x = torch.arange(16, dtype=torch.float64) / 16
    >>> taylor_green = torch.outer(torch.sin(2 * torch.pi * x), torch.sin(2 * torch.pi * x))[None, None]
    >>> later = step(taylor_green, 0.5, viscosity=0.01)
    >>> torch.allclose(later, taylor_green * math.exp(-8 * math.pi**2 * 0.01 * 0.5))
    True
    """
    if state.ndim != 4 or state.shape[1] != 1 + (diffusivity is not None) or state.shape[2] != state.shape[3]:
        raise ValueError(f"state {tuple(state.shape)} isn't (batch, {1 + (diffusivity is not None)}, n, n)")
    equation = _Equation.of(state, viscosity, drag, forcing, diffusivity)
    spectrum = equation.modes.keep * torch.fft.rfft2(state)
    if substeps is None:
        with torch.no_grad():
            substeps = int(equation.steps(spectrum, torch.as_tensor(dt, dtype=state.dtype), COURANT).max())
    h = torch.full((len(state), 1, 1, 1), dt / substeps, dtype=state.dtype, device=state.device)
    for _ in range(substeps):
        spectrum = equation.runge_kutta(spectrum, h)
    return torch.fft.irfft2(spectrum, s=state.shape[-2:])


def velocity_of(vorticity: Tensor) -> Tensor:
    """``(…, 2, n, n)`` in m/s, free of divergence and mean, of vorticity ``(…, n, n)`` in 1/s; differentiable."""
    modes = _modes(vorticity.shape[-1], vorticity.dtype, vorticity.device)
    return torch.stack(modes.velocity(torch.fft.rfft2(vorticity)), dim=-3)


def vorticity_of(velocity: Tensor) -> Tensor:
    """``v_x − u_y`` ``(…, n, n)`` in 1/s of velocity ``(…, 2, n, n)`` in m/s, spectrally; differentiable."""
    modes = _modes(velocity.shape[-1], velocity.dtype, velocity.device)
    u, v = torch.fft.rfft2(velocity).unbind(-3)
    return torch.fft.irfft2(1j * (modes.kx * v - modes.ky * u), s=velocity.shape[-2:])


def curl_of_force(resolution: int, amplitude: float = 1.0, wave: int = 4) -> np.ndarray:
    """``−∂y (A sin 2πky)`` in 1/s² at the grid points, ``(n, n)`` float64; amplitude in m/s².

    >>> curl_of_force(8, 1.0, 1)[0, 4].round(2)
    np.float64(6.28)
    """
    k = 2 * np.pi * wave
    return np.tile(-amplitude * k * np.cos(k * np.arange(resolution) / resolution), (resolution, 1))


@cache
def _modes(n: int, dtype: torch.dtype, device: torch.device) -> _Modes:
    with torch.inference_mode(False):
        modes = _Modes.of(n)
        kx, ky, square = (k.to(device, dtype) for k in (modes.kx, modes.ky, modes.square))
        return replace(modes, kx=kx, ky=ky, square=square, keep=modes.keep.to(device))


@dataclass(frozen=True)
class _Equation:
    """Rates of change of a batch of spectra ``(batch, channel, n, n/2 + 1)``: `decay` of each mode, and the rest."""

    modes: _Modes
    decay: Tensor
    drive: Tensor | None

    @classmethod
    def of(cls, state: Tensor, viscosity: Tensor | float, drag: Tensor | float, forcing: Tensor | None,
           diffusivity: Tensor | float | None) -> _Equation:
        modes = _modes(state.shape[-1], state.dtype, state.device)

        def each(value: Tensor | float) -> Tensor:
            return torch.as_tensor(value, dtype=state.dtype, device=state.device).expand(len(state)).reshape(-1, 1, 1)

        rates = [each(viscosity) * modes.square + each(drag)]
        if diffusivity is not None:
            rates.append(each(diffusivity) * modes.square)
        drive = None if forcing is None else modes.keep * torch.fft.rfft2(forcing.to(state))
        return cls(modes, torch.stack(rates, dim=1), drive)

    def rates(self, spectrum: Tensor) -> Tensor:
        """All but the decay, in spectral space, dealiased."""
        u, v = self.modes.velocity(spectrum[:, 0])
        vorticity = self.modes.transport(u, v)
        if self.drive is not None:
            vorticity = vorticity + self.drive
        if spectrum.shape[1] == 1:
            return vorticity[:, None]
        c = torch.fft.irfft2(spectrum[:, 1], s=u.shape[-2:])
        flux = self.modes.kx * torch.fft.rfft2(u * c) + self.modes.ky * torch.fft.rfft2(v * c)
        return torch.stack([vorticity, -1j * self.modes.keep * flux], dim=1)

    def steps(self, spectrum: Tensor, time: Tensor, courant: float) -> Tensor:
        """How many steps each trajectory needs for `time`, ``(batch, 1, 1, 1)``, at least one."""
        u, v = self.modes.velocity(spectrum[:, :1])
        speed = (u.abs() + v.abs()).amax((-2, -1), keepdim=True)
        return (time * speed * self.modes.cutoff / courant).ceil().clamp_min(1.0)

    def runge_kutta(self, w: Tensor, dt: Tensor) -> Tensor:
        """One step of the classical scheme of order four with the decay as integrating factor; dt (batch, 1, 1, 1)."""
        half = torch.exp(self.decay * (-dt / 2))
        k1 = self.rates(w)
        start = half * w
        k2 = self.rates(start + dt / 2 * half * k1)
        k3 = self.rates(start + dt / 2 * k2)
        k4 = self.rates(half * (start + dt * k3))
        return half * (start + dt / 6 * (half * k1 + 2 * (k2 + k3))) + dt / 6 * k4


@torch.no_grad()
def advance(state: np.ndarray, frame_dt: float, frames: int, *, viscosity: np.ndarray | float, drag: float = 0.0,
            forcing: np.ndarray | None = None, diffusivity: np.ndarray | float | None = None,
            courant: float = COURANT) -> np.ndarray:
    """Frames 1 … `frames` after `state`, ``(batch, frames, channel, n, n)`` float64; arguments as of `step`.

    Each trajectory takes as many steps as it needs, and every frame ends a step exactly, so a restart from a frame
    continues the same trajectory. Raises `FloatingPointError` if the solution is lost.
    """
    given = torch.as_tensor(np.asarray(state, np.float64))
    told = [None if x is None else torch.as_tensor(x, dtype=torch.float64) for x in (viscosity, forcing, diffusivity)]
    assert told[0] is not None
    equation = _Equation.of(given, told[0], drag, told[1], told[2])
    spectrum = equation.modes.keep * torch.fft.rfft2(given)
    saved = np.empty((len(given), frames, *given.shape[1:]))
    for frame in range(frames):
        remaining = torch.full((len(given), 1, 1, 1), float(frame_dt), dtype=torch.float64)
        while bool((remaining > 0).any()):
            steps = equation.steps(spectrum, remaining, courant)
            spectrum = equation.runge_kutta(spectrum, remaining / steps)
            remaining = torch.where(steps == 1, torch.zeros_like(remaining), remaining - remaining / steps)
        saved[:, frame] = torch.fft.irfft2(spectrum, s=given.shape[-2:]).numpy()
        if not np.isfinite(saved[:, frame]).all():
            raise FloatingPointError(f"the flow isn't finite after frame {frame + 1}")
    return saved


def random_field(resolution: int, draws: np.random.Generator, peak: float, power: float,
                 decay: float = 4.0) -> np.ndarray:
    """A mean-free Gaussian field of unit variance with the spectrum ``k^power / (1 + (k/peak)^decay)`` of harmonics
    below 32, ``(n, n)`` float64: but for the harmonics that a grid drops, the same function at any resolution."""
    half = 32
    noise = draws.standard_normal((2, 2 * half - 1, half))
    kx, ky = np.meshgrid(np.arange(-half + 1, half), np.arange(half), indexing="ij")
    k = np.hypot(kx, ky)
    independent = (ky > 0) | (kx > 0)
    deviation = np.sqrt(np.maximum(k, 1.0) ** (power - 1) / (1 + (k / peak) ** decay)) * independent
    spectrum = (noise[0] + 1j * noise[1]) * deviation
    spectrum /= np.sqrt(2 * np.sum(np.abs(spectrum) ** 2))
    used = independent & (np.maximum(np.abs(kx), ky) < resolution / 2)
    coefficients = np.zeros((resolution, resolution // 2 + 1), dtype=np.complex128)
    coefficients[kx[used], ky[used]] = spectrum[used]
    line = used & (ky == 0)
    coefficients[-kx[line], 0] = spectrum[line].conj()
    return np.fft.irfft2(coefficients, s=(resolution, resolution)) * resolution**2


def viscosities(options: Options, start: int, stop: int) -> np.ndarray:
    """In m²/s, of trajectories ``start ≤ i < stop``: the first number of each random stream."""
    low, high = np.log(options.bounds)
    return np.exp([low + (high - low) * np.random.default_rng((options.seed, i)).random() for i in range(start, stop)])


def initial(options: Options, trajectory: int) -> tuple[np.ndarray, np.ndarray]:
    """Vorticity in 1/s before the spin-up and tracer at frame 0, ``(n, n)`` each on the solver's grid."""
    draws = np.random.default_rng((options.seed, trajectory, 1))
    vorticity = random_field(options.grid, draws, options.initial_wave, 3.0)
    speed = math.sqrt(float((velocity_of(torch.as_tensor(vorticity)) ** 2).sum(0).mean()))
    return vorticity * options.initial_speed / speed, random_field(options.grid, draws, 2.0, 1.0)


def solve(options: Options, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """The states ``(stop − start, frames, n, n)`` float64 of trajectories ``start ≤ i < stop``, by name."""
    stop = options.trajectories if stop is None else stop
    nu = viscosities(options, start, stop)
    first = np.stack([np.stack(initial(options, i)) for i in range(start, stop)])
    flow = first[:, :1]
    force = curl_of_force(options.grid, options.forcing_amplitude, options.forcing_wave) if options.driven else None
    drag = options.drag if options.driven else 0.0
    if options.spin_up:
        flow = advance(flow, options.spin_up, 1, viscosity=nu, drag=drag, forcing=force)[:, 0]
    diffusivity = None
    if options.tracer:
        flow = np.concatenate([flow, first[:, 1:]], axis=1)
        diffusivity = nu / options.schmidt
    later = advance(flow, options.frame_dt, options.frames - 1, viscosity=nu, drag=drag, forcing=force,
                    diffusivity=diffusivity)
    whole = resample(np.concatenate([flow[:, None], later], axis=1), options.resolution)
    velocity = velocity_of(torch.as_tensor(whole[:, :, 0])).numpy()
    found = {"velocity_x": velocity[:, :, 0], "velocity_y": velocity[:, :, 1], "vorticity": whole[:, :, 0],
             "tracer": whole[:, :, -1]}
    return {name: found[name] for name in options.states}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: one dask task per `block` trajectories, any of which can be run again by itself.

    velocity_x, velocity_y (trajectory, time, x, y) in m/s and/or vorticity in 1/s, tracer; forcing (trajectory, x, y),
    the curl of the body force in 1/s², if driven; viscosity (trajectory,) in m²/s and, with a tracer, its diffusivity.
    Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="turbulence options")
    n, count = chosen.resolution, chosen.trajectories
    arrays = _blocks.lazy(solve, chosen, dict.fromkeys(chosen.states, (chosen.frames, n, n)))
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        unit, told, vector, along = STATES[name]
        component = {"vector": vector, "along": along} if vector else {}
        variables[name] = (("time", "x", "y"), array, _blocks.state(unit, told) | component)
    if chosen.driven:
        force = curl_of_force(n, chosen.forcing_amplitude, chosen.forcing_wave).astype(np.float32)
        variables["forcing"] = (("x", "y"), da.broadcast_to(force, (count, n, n)), {
            "units": "1/s2", "long_name": "curl of the body force per unit mass", "role": "forcing",
            "vector": "forcing", "along": "x y"})
    nu = viscosities(chosen, 0, count)
    variables["viscosity"] = _blocks.parameter(nu, "m2/s", "kinematic viscosity")
    if chosen.tracer:
        variables["diffusivity"] = _blocks.parameter(nu / chosen.schmidt, "m2/s", "diffusivity of the tracer")
    space = {name: _blocks.axis(n, 1.0, "m", periodic=True) for name in ("x", "y")}
    return _blocks.canonical(variables, space, (np.arange(chosen.frames) * chosen.frame_dt, "s"))


PLUGIN = build
