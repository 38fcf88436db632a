"""Two-dimensional flow of an ideal gas on the unit square: the compressible Euler equations, by finite volumes.

``(ρ, ρu, ρv, E)_t + F_x + G_y = 0``, ``E = p / (γ − 1) + ½ρ(u² + v²)``. Second order in space and time: slopes limited
by van Leer's harmonic mean, MUSCL–Hancock half step, the HLLC flux (Toro, "Riemann Solvers and Numerical Methods for
Fluid Dynamics", 3rd ed., sections 10.6 and 14.4) with Einfeldt's wave speeds, sweeps along x and y in the order xy–yx
of Strang: one flux per face, direction and step at a Courant number of 0.8, where two-stage Runge–Kutta needs four.
Cells whose half step would have no positive density or pressure keep their mean. Initial conditions in the manner of
Herde et al., "Poseidon", NeurIPS 2024: four quadrants with random states, or a perturbed shear layer.

Conserved on periodic axes, to rounding: mass, momentum and energy. Nondimensional: lengths in sides of the square,
velocities in units in which a density and pressure of order one give a speed of sound of order one; the unit of time is
what sound at c = 1 takes to cross the square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks
from sciml.recipe import validate

COURANT = 0.8
STATES = {"density": ("mass density", ""), "velocity_x": ("velocity along x", "x"),
          "velocity_y": ("velocity along y", "y"), "pressure": ("pressure", "")}
Boundary = Literal["periodic", "open", "wall"]


class Options(_blocks.Draws):
    """What to solve and what to save; all nondimensional.

    initial: riemann (four quadrants meeting near the middle, density and pressure drawn from `low` to 1, velocities
    from −1 to 1) or kelvin_helmholtz (a band of density 2 amid density 1, moving against each other at `shear`, with
    pressure 2.5 and interfaces bent by random waves). boundary: of both axes; the usual one is open for riemann,
    periodic for kelvin_helmholtz; of a wall, the flow slips along it. heat_capacity_ratio: γ. spin_up: time before
    frame 0. What is saved are means over cells of `solve_resolution`, a multiple of `resolution`.
    """

    initial: Literal["riemann", "kelvin_helmholtz"] = "riemann"
    boundary: Boundary | None = None
    frames: int = Field(default=21, ge=1)
    frame_dt: float = Field(default=0.05, gt=0)
    spin_up: float = Field(default=0.0, ge=0)
    heat_capacity_ratio: float = Field(default=1.4, gt=1)
    low: float = Field(default=0.1, gt=0, le=1)
    shear: float = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        _blocks.check_whole_cells(self)
        return self

    @property
    def ends(self) -> Boundary:
        return self.boundary or ("open" if self.initial == "riemann" else "periodic")


def conserved(primitive: Tensor, gamma: float) -> Tensor:
    """``(…, 4, n, m)``: density, momenta and energy from density, velocities and pressure."""
    rho, u, v, p = primitive.unbind(-3)
    return torch.stack([rho, rho * u, rho * v, p / (gamma - 1) + 0.5 * rho * (u * u + v * v)], dim=-3)


def primitive_of(state: Tensor, gamma: float) -> Tensor:
    """``(…, 4, n, m)``: density, velocities and pressure from density, momenta and energy."""
    rho, mu, mv, energy = state.unbind(-3)
    u, v = mu / rho, mv / rho
    return torch.stack([rho, u, v, (gamma - 1) * (energy - 0.5 * (mu * u + mv * v))], dim=-3)


def pad(field: Tensor, ends: Boundary, width: int = 2) -> Tensor:
    """`width` cells more at both ends of the last axis; of a wall, mirrored (the caller turns the normal velocity)."""
    if ends == "periodic":
        return torch.cat([field[..., -width:], field, field[..., :width]], dim=-1)
    if ends == "wall":
        return torch.cat([field[..., :width].flip(-1), field, field[..., -width:].flip(-1)], dim=-1)
    shape = (*field.shape[:-1], width)
    return torch.cat([field[..., :1].expand(shape), field, field[..., -1:].expand(shape)], dim=-1)


def limited(field: Tensor) -> Tensor:
    """Van Leer's slopes of the inner cells of the last axis, per cell: the harmonic mean of the differences to both
    sides where they agree in sign, else 0."""
    difference = field[..., 1:] - field[..., :-1]
    left, right = difference[..., :-1], difference[..., 1:]
    product = left * right
    agree = product > 0
    return torch.where(agree, 2.0 * product, 0.0).div_(torch.where(agree, left + right, 1.0))


def hllc(left: Tensor, right: Tensor, gamma: float) -> Tensor:
    """Flux along the last axis of conserved quantities ``(4, …)`` between states ``(4, …)`` of density, normal and
    transverse velocity and pressure, left and right of faces."""
    (rl, ul, _, pl), (rr, ur, _, pr) = left, right
    al, ar = (gamma * pl / rl).sqrt_(), (gamma * pr / rr).sqrt_()
    wl, wr = rl.sqrt(), rr.sqrt()
    weight = wl / (wl + wr)
    u = ur + weight * (ul - ur)
    jump = ur - ul
    a = (ar * ar + weight * (al * al - ar * ar) + 0.5 * weight * (1 - weight) * jump * jump).sqrt_()
    sl = torch.minimum(ul - al, u - a)
    sr = torch.maximum(ur + ar, u + a)
    dl, dr = rl * (sl - ul), rr * (sr - ur)
    sm = (pr - pl + dl * ul - dr * ur) / (dl - dr)

    forward = sm >= 0
    r, un, vt, p = torch.where(forward, left, right)
    s, d = torch.where(forward, sl, sr), torch.where(forward, dl, dr)
    energy = p / (gamma - 1) + 0.5 * r * (un * un + vt * vt)
    mass = r * un
    flux = torch.stack([mass, mass * un + p, mass * vt, (energy + p) * un])
    middle = d / (s - sm)
    inner = torch.stack([middle - r, middle * sm - mass, (middle - r) * vt,
                         middle * (energy / r + (sm - un) * (sm + p / d)) - energy])
    outside = torch.where(forward, sl.clamp_max(0.0), sr.clamp_min(0.0))
    return flux + outside * inner


def sweep(state: Tensor, ratio: Tensor, gamma: float, ends: Boundary) -> Tensor:
    """One step along the last axis of ``(4, …, n)``: density, normal and transverse momentum, energy; ratio = dt/dx,
    broadcast against ``(…, n)``."""
    rho, mu, mv, energy = pad(state, ends)
    if ends == "wall":
        mu = torch.cat([-mu[..., :2], mu[..., 2:-2], -mu[..., -2:]], -1)
    u, v = mu / rho, mv / rho
    w = torch.stack([rho, u, v, (gamma - 1) * (energy - 0.5 * (mu * u + mv * v))])
    slope = limited(w)
    w = w[..., 1:-1]
    half = 0.5 * ratio
    change = half * w[1] * slope
    change[0] += half * w[0] * slope[1]
    change[1] += half * slope[3] / w[0]
    change[3] += half * gamma * w[3] * slope[1]
    middle, side = w - change, 0.5 * slope
    low, high = middle - side, middle + side
    unsafe = (middle[::3] <= side[::3].abs()).any(0)
    if bool(unsafe.any()):
        low, high = torch.where(unsafe, w, low), torch.where(unsafe, w, high)
    flux = hllc(high[..., :-1], low[..., 1:], gamma)
    return state - ratio * (flux[..., 1:] - flux[..., :-1])


def fastest(state: Tensor, gamma: float) -> Tensor:
    """The largest of |u| + c and |v| + c of each trajectory of ``(4, batch, n, m)``, ``(batch, 1, 1)``."""
    rho, mu, mv, energy = state
    u, v = mu / rho, mv / rho
    pressure = (gamma - 1) * (energy - 0.5 * (mu * u + mv * v))
    return (torch.maximum(u.abs(), v.abs()) + (gamma * pressure / rho).sqrt()).amax((-2, -1), keepdim=True)


def pair(state: Tensor, dt: Tensor, spacing: tuple[float, float], gamma: float, ends: Boundary) -> Tensor:
    """Two steps of length dt ``(batch, 1, 1)`` of ``(4, batch, x, y)``: sweeps along x, y, y, x."""
    turn = [0, 2, 1, 3]
    along_x, along_y = dt / spacing[0], dt / spacing[1]
    state = sweep(state.transpose(-1, -2), along_x, gamma, ends).transpose(-1, -2)[turn]
    state = sweep(sweep(state, along_y, gamma, ends), along_y, gamma, ends)[turn]
    return sweep(state.transpose(-1, -2), along_x, gamma, ends).transpose(-1, -2)


@torch.no_grad()
def advance(primitive: np.ndarray, frame_dt: float, frames: int, *, gamma: float = 1.4, ends: Boundary = "periodic",
            size: tuple[float, float] = (1.0, 1.0), courant: float = COURANT) -> np.ndarray:
    """Frames 1 … `frames` after cell means ``(batch, 4, n, m)`` of density, velocities and pressure of a domain of
    `size`: ``(batch, frames, 4, n, m)`` float64.

    Pressure and velocity of a cell are those of its mean density, momentum and energy. Each trajectory has its own
    step, and every frame ends one exactly. Raises `FloatingPointError` if density or pressure is lost.
    """
    state = conserved(torch.as_tensor(np.asarray(primitive, np.float64)), gamma).movedim(1, 0).contiguous()
    spacing = (size[0] / state.shape[-2], size[1] / state.shape[-1])
    saved = np.empty((len(primitive), frames, *primitive.shape[1:]))
    for frame in range(frames):
        remaining = torch.full((state.shape[1], 1, 1), float(frame_dt), dtype=torch.float64)
        while bool((remaining > 0).any()):
            pairs = (remaining * fastest(state, gamma) / (2 * courant * min(spacing))).ceil().clamp_min(1.0)
            state = pair(state, remaining / (2 * pairs), spacing, gamma, ends)
            remaining = torch.where(pairs == 1, torch.zeros_like(remaining), remaining - remaining / pairs)
            if not bool(torch.isfinite(remaining).all() and torch.isfinite(state).all()):
                raise FloatingPointError(f"density or pressure isn't positive before frame {frame + 1}")
        found = primitive_of(state.movedim(0, 1), gamma)
        if not bool((found[:, [0, 3]] > 0).all()):
            raise FloatingPointError(f"density or pressure isn't positive at frame {frame + 1}")
        saved[:, frame] = found.numpy()
    return saved


def initial(options: Options, trajectory: int) -> np.ndarray:
    """Density, velocities and pressure of cell means at the start, ``(4, n, n)`` float64: the same function of place
    at any resolution."""
    draws = np.random.default_rng((options.seed, trajectory))
    made = _riemann(options, draws) if options.initial == "riemann" else _shear_layer(options, draws)
    return primitive_of(torch.as_tensor(made), options.heat_capacity_ratio).numpy()


def _riemann(options: Options, draws: np.random.Generator) -> np.ndarray:
    """Means of four quadrants, exact in the cells that an interface cuts."""
    state = draws.uniform(options.low, 1.0, (4, 2, 2))
    state[1:3] = draws.uniform(-1.0, 1.0, (2, 2, 2))
    n = options.grid
    shares = []
    for middle in draws.uniform(0.35, 0.65, 2):
        share = np.clip(middle * n - np.arange(n), 0, 1)
        shares.append(np.stack([share, 1 - share]))
    quadrants = conserved(torch.as_tensor(state), options.heat_capacity_ratio).numpy()
    return np.einsum("cab,ax,by->cxy", quadrants, *shares)


def _shear_layer(options: Options, draws: np.random.Generator) -> np.ndarray:
    """Interfaces at y = ¼ and ¾, each bent by five waves of about a fiftieth in all, 0.02 thick."""
    n, waves = options.grid, np.arange(1, 6)
    place = (np.arange(n) + 0.5) / n
    heights = []
    for middle in (0.25, 0.75):
        amplitude = draws.uniform(0, 1, len(waves))
        phase = draws.uniform(0, 2 * np.pi, len(waves))
        bend = np.cos(2 * np.pi * np.outer(place, waves) + phase) @ amplitude / amplitude.sum()
        heights.append(middle + 0.02 * bend)
    low, high = (np.tanh((place - height[:, None]) / 0.02) for height in heights)
    band = 0.5 * (low - high)
    speed = options.shear * (2 * band - 1)
    state = np.stack([1 + band, speed, np.zeros_like(band), np.full_like(band, 2.5)])
    return conserved(torch.as_tensor(state), options.heat_capacity_ratio).numpy()


def centres(cells: int, ends: Boundary) -> tuple[np.ndarray, dict[str, Any]]:
    """The coordinate of the middles of cells on the unit interval, and its attributes: of means over cells these are
    the places, on periodic axes as well."""
    place, attrs = _blocks.axis(cells, 1.0, "1", periodic=False)
    return place, attrs | ({"period": 1.0} if ends == "periodic" else {})


def solve(options: Options, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """The states ``(stop − start, frames, n, n)`` float64 of trajectories ``start ≤ i < stop``, by name."""
    gamma, saved = options.heat_capacity_ratio, []
    for trajectory in range(start, options.trajectories if stop is None else stop):
        first = initial(options, trajectory)[None]
        if options.spin_up:
            first = advance(first, options.spin_up, 1, gamma=gamma, ends=options.ends)[:, 0]
        later = advance(first, options.frame_dt, options.frames - 1, gamma=gamma, ends=options.ends)
        whole = conserved(torch.as_tensor(np.concatenate([first[:, None], later], axis=1)), gamma).numpy()
        means = _blocks.cell_means(whole, options.resolution)
        saved.append(primitive_of(torch.as_tensor(means), gamma).numpy()[0])
    return {name: np.stack([s[:, channel] for s in saved]) for channel, name in enumerate(STATES)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: one dask task per `block` trajectories, any of which can be run again by itself.

    density, velocity_x, velocity_y, pressure (trajectory, time, x, y); heat_capacity_ratio (trajectory,); codes of the
    ends of axes that aren't periodic. Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="euler options")
    n, count = chosen.resolution, chosen.trajectories
    arrays = _blocks.lazy(solve, chosen, dict.fromkeys(STATES, (chosen.frames, n, n)))
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        told, along = STATES[name]
        component = {"vector": "velocity", "along": along} if along else {}
        variables[name] = (("time", "x", "y"), array, _blocks.state("1", told) | component)
    variables["heat_capacity_ratio"] = _blocks.parameter(
        np.full(count, chosen.heat_capacity_ratio), "1", "ratio of heat capacities")
    for name in ("x", "y"):
        variables |= _blocks.boundaries(name, chosen.ends, chosen.ends, count)
    times = (np.arange(chosen.frames) * chosen.frame_dt, "1")
    return _blocks.canonical(variables, {name: centres(n, chosen.ends) for name in ("x", "y")}, times)


PLUGIN = build
