"""Shallow water over hills on the unit square, by finite volumes that keep a lake at rest.

``h_t + ∇·(h u) = 0``, ``(h u)_t + ∇·(h u u) + ∇(h²/2) = −h ∇b``: depth h, velocity u, height b of the bottom. Second
order: limited slopes of depth, surface h + b and velocity, MUSCL–Hancock half step, hydrostatic reconstruction (Audusse
et al., SIAM J. Sci. Comput. 25, 2004), the HLL flux with the transverse momentum carried upwind, sweeps along x and y
in the order xy–yx as in `sciml.data.builders.euler`. Depth must stay positive everywhere: there are no shores.

Conserved but for open ends, to rounding: mass; over a flat bottom on periodic axes, momentum too. Nondimensional:
lengths in sides of the square, depths in that of the water at rest, gravity 1: the unit of time is what a long wave
takes to cross the square where the water is as deep as at rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import dask.array as da
import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks
from sciml.data.builders.euler import Boundary, centres, limited, pad
from sciml.data.builders.turbulence import random_field
from sciml.recipe import validate

COURANT = 0.8
STATES = {"depth": ("depth of the water", ""), "velocity_x": ("velocity along x", "x"),
          "velocity_y": ("velocity along y", "y")}


class Options(_blocks.Draws):
    """What to solve and what to save; all nondimensional.

    initial: dam_break (a round column of random place and radius, `height` or down to a third of it above the surface
    at rest) or random (a random surface within half of `height` of its level, with a standard deviation of about a
    fifth of it). hills: range of height of the random bottom, 0 for a flat one. boundary: of both axes; the usual one
    is wall for dam_break, periodic for random. What is saved are means over cells of `solve_resolution`, a multiple of
    `resolution`.
    """

    initial: Literal["dam_break", "random"] = "dam_break"
    boundary: Boundary | None = None
    frames: int = Field(default=21, ge=1)
    frame_dt: float = Field(default=0.05, gt=0)
    spin_up: float = Field(default=0.0, ge=0)
    height: float = Field(default=1.0, gt=0)
    hills: float = Field(default=0.0, ge=0, lt=0.8)

    @model_validator(mode="after")
    def _check(self) -> Options:
        _blocks.check_whole_cells(self)
        if self.initial == "random" and self.height / 2 + self.hills > 0.9:
            raise ValueError("height / 2 + hills must not exceed 0.9, or the bottom comes close to the surface")
        return self

    @property
    def ends(self) -> Boundary:
        return self.boundary or ("wall" if self.initial == "dam_break" else "periodic")


def hll(left: Tensor, right: Tensor) -> Tensor:
    """Flux ``(3, …)`` of depth and of normal and transverse momentum along the last axis between states of depth,
    normal and transverse velocity left and right of faces; a depth may be 0."""
    (hl, ul, vl), (hr, ur, vr) = left, right
    cl, cr = hl.sqrt(), hr.sqrt()
    middle, c = 0.5 * (ul + ur) + cl - cr, (0.5 * (cl + cr) + 0.25 * (ul - ur)).clamp_min(0.0)
    sl = torch.minimum(ul - cl, middle - c).clamp_max(0.0)
    sr = torch.maximum(ur + cr, middle + c).clamp_min(0.0)
    ml, mr = hl * ul, hr * ur
    width = (sr - sl).clamp_min(1e-300)
    mass = (sr * ml - sl * mr + sl * sr * (hr - hl)) / width
    push = (sr * (ml * ul + 0.5 * hl * hl) - sl * (mr * ur + 0.5 * hr * hr) + sl * sr * (mr - ml)) / width
    return torch.stack([mass, push, mass * torch.where(mass > 0, vl, vr)])


def sweep(state: Tensor, bottom: Tensor, ratio: Tensor, ends: Boundary) -> Tensor:
    """One step along the last axis of ``(3, …, n)``: depth, normal and transverse momentum; bottom ``(…, n)``; ratio =
    dt/dx, broadcast against ``(…, n)``."""
    h, mu, mv = pad(state, ends)
    if ends == "wall":
        mu[..., :2].neg_()
        mu[..., -2:].neg_()
    b = pad(bottom, ends)
    w = torch.stack([h, mu / h, mv / h, h + b])
    slope = limited(w)
    w, b = w[:3, ..., 1:-1], b[..., 1:-1]
    dh, du, dv, surface = slope
    half = 0.5 * ratio
    middle = torch.stack([w[0] - half * (w[1] * dh + w[0] * du), w[1] - half * (w[1] * du + surface),
                          w[2] - half * w[1] * dv])
    side, tilt = 0.5 * slope[:3], 0.5 * (surface - dh)
    low, high = middle - side, middle + side
    unsafe = torch.minimum(low[0], high[0]) <= 0
    if bool(unsafe.any()):
        low, high = torch.where(unsafe, w, low), torch.where(unsafe, w, high)
        tilt = torch.where(unsafe, 0.0, tilt)
    left, right = high[..., :-1], low[..., 1:]
    bl, br = (b + tilt)[..., :-1], (b - tilt)[..., 1:]
    step = torch.maximum(bl, br)
    hl, hr = (left[0] + bl - step).clamp_min(0.0), (right[0] + br - step).clamp_min(0.0)
    flux = hll(torch.stack([hl, left[1], left[2]]), torch.stack([hr, right[1], right[2]]))
    change = flux[..., 1:] - flux[..., :-1]
    inside = (high[0] + low[0]) * tilt
    change[1] += (0.5 * (left[0] ** 2 - hl**2))[..., 1:] - (0.5 * (right[0] ** 2 - hr**2))[..., :-1]
    change[1] += inside[..., 1:-1]
    return state - ratio * change


def fastest(state: Tensor) -> Tensor:
    """The largest of |u| + √h and |v| + √h of each trajectory of ``(3, batch, n, m)``, ``(batch, 1, 1)``."""
    h, mu, mv = state
    return (torch.maximum(mu.abs(), mv.abs()) / h + h.sqrt()).amax((-2, -1), keepdim=True)


def pair(state: Tensor, bottom: Tensor, dt: Tensor, spacing: tuple[float, float], ends: Boundary) -> Tensor:
    """Two steps of length dt ``(batch, 1, 1)`` of ``(3, batch, x, y)``: sweeps along x, y, y, x."""
    turn, across = [0, 2, 1], bottom.transpose(-1, -2)
    along_x, along_y = dt / spacing[0], dt / spacing[1]
    state = sweep(state.transpose(-1, -2), across, along_x, ends).transpose(-1, -2)[turn]
    state = sweep(sweep(state, bottom, along_y, ends), bottom, along_y, ends)[turn]
    return sweep(state.transpose(-1, -2), across, along_x, ends).transpose(-1, -2)


@torch.no_grad()
def advance(first: np.ndarray, bottom: np.ndarray, frame_dt: float, frames: int, *, ends: Boundary = "periodic",
            size: tuple[float, float] = (1.0, 1.0), courant: float = COURANT) -> np.ndarray:
    """Frames 1 … `frames` after cell means ``(batch, 3, n, m)`` of depth and velocity (momentum over depth) over a
    bottom ``(batch, n, m)`` of a domain of `size`: ``(batch, frames, 3, n, m)`` float64.

    Each trajectory has its own step, and every frame ends one exactly. Raises `FloatingPointError` if the depth isn't
    positive.
    """
    state = torch.as_tensor(np.asarray(first, np.float64)).movedim(1, 0).clone()
    state[1:] *= state[0]
    ground = torch.as_tensor(np.asarray(bottom, np.float64))
    spacing = (size[0] / state.shape[-2], size[1] / state.shape[-1])
    saved = np.empty((len(first), frames, *first.shape[1:]))
    for frame in range(frames):
        remaining = torch.full((state.shape[1], 1, 1), float(frame_dt), dtype=torch.float64)
        while bool((remaining > 0).any()):
            pairs = (remaining * fastest(state) / (2 * courant * min(spacing))).ceil().clamp_min(1.0)
            state = pair(state, ground, remaining / (2 * pairs), spacing, ends)
            remaining = torch.where(pairs == 1, torch.zeros_like(remaining), remaining - remaining / pairs)
            if not bool((state[0] > 0).all() and torch.isfinite(state).all()):
                raise FloatingPointError(f"the depth isn't positive before frame {frame + 1}")
        saved[:, frame] = torch.cat([state[:1], state[1:] / state[0]]).movedim(0, 1).numpy()
    return saved


def initial(options: Options, trajectory: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth and velocity ``(3, n, n)`` at the start, and the bottom ``(n, n)``, float64."""
    draws = np.random.default_rng((options.seed, trajectory))
    n = options.grid
    hills = random_field(n, draws, 2.0, 1.0, 8.0)
    bottom = options.hills * (np.tanh(hills) + 1) / 2
    if options.initial == "dam_break":
        x, y = draws.uniform(0.3, 0.7, 2)
        radius, extra = draws.uniform(0.1, 0.25), options.height * draws.uniform(0.3, 1.0)
        parts = (np.arange(4 * n) + 0.5) / (4 * n)
        inside = np.hypot(parts[:, None] - x, parts - y) < radius
        surface = 1 + extra * _blocks.cell_means(inside.astype(np.float64), n)
    else:
        surface = 1 + options.height / 2 * np.tanh(random_field(n, draws, 3.0, 1.0, 8.0) / 2)
    return np.stack([surface - bottom, np.zeros((n, n)), np.zeros((n, n))]), bottom


def solve(options: Options, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """The states ``(stop − start, frames, n, n)`` and the bathymetry ``(stop − start, n, n)`` float64 of trajectories
    ``start ≤ i < stop``, by name."""
    saved, bottoms = [], []
    for trajectory in range(start, options.trajectories if stop is None else stop):
        first, bottom = (a[None] for a in initial(options, trajectory))
        if options.spin_up:
            first = advance(first, bottom, options.spin_up, 1, ends=options.ends)[:, 0]
        later = advance(first, bottom, options.frame_dt, options.frames - 1, ends=options.ends)
        whole = np.concatenate([first[:, None], later], axis=1)[0]
        whole[:, 1:] *= whole[:, :1]
        means = _blocks.cell_means(whole, options.resolution)
        means[:, 1:] /= means[:, :1]
        saved.append(means)
        bottoms.append(_blocks.cell_means(bottom, options.resolution)[0])
    found = {name: np.stack([s[:, channel] for s in saved]) for channel, name in enumerate(STATES)}
    return found | {"bathymetry": np.stack(bottoms)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: one dask task per `block` trajectories, any of which can be run again by itself.

    depth, velocity_x, velocity_y (trajectory, time, x, y); bathymetry (trajectory, x, y), the forcing, if there are
    hills; codes of the ends of axes that aren't periodic. Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="shallow_water options")
    n, count = chosen.resolution, chosen.trajectories
    shapes = {**dict.fromkeys(STATES, (chosen.frames, n, n)), "bathymetry": (n, n)}
    arrays: dict[str, da.Array] = _blocks.lazy(solve, chosen, shapes)
    variables: dict[str, Any] = {}
    for name, (told, along) in STATES.items():
        component = {"vector": "velocity", "along": along} if along else {}
        variables[name] = (("time", "x", "y"), arrays[name], _blocks.state("1", told) | component)
    if chosen.hills:
        variables["bathymetry"] = (("x", "y"), arrays["bathymetry"], {
            "units": "1", "long_name": "height of the bottom", "role": "forcing"})
    for name in ("x", "y"):
        variables |= _blocks.boundaries(name, chosen.ends, chosen.ends, count)
    times = (np.arange(chosen.frames) * chosen.frame_dt, "1")
    return _blocks.canonical(variables, {name: centres(n, chosen.ends) for name in ("x", "y")}, times)


PLUGIN = build
