"""Reaction and diffusion on a periodic square or interval: Gray–Scott, Fisher–KPP, Allen–Cahn. Without units.

| model | equation | states |
|---|---|---|
| gray_scott | ``u_t = D_u Δu − u v² + F (1 − u)``, ``v_t = D_v Δv + u v² − (F + k) v`` | concentration_u, _v |
| fisher_kpp | ``u_t = D Δu + r u (1 − u)`` | concentration_u |
| allen_cahn | ``u_t = D Δu + r (u − u³)`` | order_parameter |

Pseudo-spectral in float64, 2/3 dealiasing, exponential time differencing of order four
(`sciml.data.builders._spectral`) with the linear part of the reaction taken exactly. Gray–Scott as in Pearson, Science
261 (1993): D_u = 2e-5, D_v = 1e-5. Nothing is conserved; the energy ``∫ D/2 |∇u|² + r/4 (1 − u²)²`` of Allen–Cahn
decreases. Time scales: 1/r, and 1/(F + k) of Gray–Scott.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks as blocks
from sciml.data.builders import _spectral as spectral
from sciml.recipe import validate

Model = Literal["gray_scott", "fisher_kpp", "allen_cahn"]
Numbers = float | tuple[float, ...]
PATTERNS = {"gliders": (0.014, 0.054), "maze": (0.029, 0.057), "spirals": (0.018, 0.051), "spots": (0.03, 0.062),
            "worms": (0.046, 0.063)}
"""Feed and kill rate of what grows from a few spots in Gray–Scott."""


@dataclass(frozen=True)
class Kinetics:
    """``c' = linear(p) · c + nonlinear(c, p)`` per state c (a tuple of fields); p: the parameters by name. stride:
    usual bound on the solver's step, in units of 1 / reaction_rate (Gray–Scott: of 1)."""

    states: Mapping[str, str]
    parameters: Mapping[str, str]
    diffusivities: tuple[str, ...]
    stride: float
    linear: Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
    nonlinear: Callable[[tuple[Tensor, ...], Mapping[str, Tensor]], tuple[Tensor, ...]]


def _gray_scott(c: tuple[Tensor, ...], p: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    made = c[0] * c[1] ** 2
    return p["feed"] - made, made


KINETICS: dict[Model, Kinetics] = {
    "gray_scott": Kinetics(
        {"concentration_u": "concentration of the feed", "concentration_v": "concentration of the catalyst"},
        {"feed": "feed rate", "kill": "kill rate", "diffusivity_u": "diffusivity of the first state",
         "diffusivity_v": "diffusivity of the second state"}, ("diffusivity_u", "diffusivity_v"), 2.5,
        lambda p: (-p["feed"], -p["feed"] - p["kill"]), _gray_scott),
    "fisher_kpp": Kinetics(
        {"concentration_u": "density of the population"},
        {"reaction_rate": "growth rate", "diffusivity_u": "diffusivity of the first state"}, ("diffusivity_u",),
        0.125, lambda p: (p["reaction_rate"],), lambda c, p: (-p["reaction_rate"] * c[0] ** 2,)),
    "allen_cahn": Kinetics(
        {"order_parameter": "order parameter, -1 and 1 in the phases"},
        {"reaction_rate": "rate of ordering", "diffusivity_u": "diffusivity of the first state"}, ("diffusivity_u",),
        0.125, lambda p: (p["reaction_rate"],), lambda c, p: (-p["reaction_rate"] * c[0] ** 3,))}


class Options(blocks.Draws):
    """What to solve and what to save. Nothing has a unit; frame 0 is at the end of the spin-up.

    length: of a side. Of lists of parameters, trajectory i takes entry ``i % n``; those of other models are not looked
    at. spots: how many smooth spots Gray–Scott and Fisher–KPP start from, between these bounds, at random places;
    Allen–Cahn starts from a Gaussian random field of standard deviation 0.5 and that correlation length `roughness`,
    in units of the side. solver_dt: upper bound of the solver's step (default: 2.5 of Gray–Scott, else 1/8 of the
    fastest reaction: the next frame is then right to 1e-4 or better).
    """

    solve_resolution: int | None = Field(default=128, ge=8, multiple_of=2)
    model: Model = "gray_scott"
    dimensions: Literal[1, 2] = 2
    frames: int = Field(default=41, ge=1)
    frame_dt: float = Field(default=25.0, gt=0)
    spin_up: float = Field(default=200.0, ge=0)
    length: float = Field(default=0.8, gt=0)
    feed: Numbers = tuple(feed for feed, _ in PATTERNS.values())
    kill: Numbers = tuple(kill for _, kill in PATTERNS.values())
    diffusivity_u: Numbers = 2e-5
    diffusivity_v: Numbers = 1e-5
    reaction_rate: Numbers = 1.0
    spots: tuple[int, int] = (3, 8)
    roughness: float = Field(default=0.05, ge=0.03, le=1)
    solver_dt: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        for name in KINETICS[self.model].parameters:
            values = getattr(self, name)
            if np.size(values) == 0 or np.min(values) < 0 or (name != "feed" and np.min(values) == 0):
                raise ValueError(f"{name} must be positive")
        if not 1 <= self.spots[0] <= self.spots[1]:
            raise ValueError("spots: at least one, the lower bound first")
        return self

    @property
    def max_step(self) -> float:
        fastest = 1.0 if self.model == "gray_scott" else float(np.max(self.reaction_rate))
        return self.solver_dt or KINETICS[self.model].stride / fastest


def step(state: Tensor, dt: float, *, model: Model, length: float = 0.8, refine: int = 1,
         max_step: float | None = None, **parameters: Any) -> Tensor:
    """The state dt later, ``(batch, *space, channel)`` with the channels of the model in their order; differentiable.

    parameters: those of the model (`KINETICS`) by name, a number or ``(batch,)`` each. It is solved on a grid `refine`
    times finer, by whole steps of at most `max_step` (default: as of `Options.solver_dt`). Coefficients are float64,
    the state keeps its type.
    """
    if dt == 0:
        return state
    rank, kinetics = state.ndim - 2, KINETICS[model]
    grid = spectral.Grid(refine * state.shape[1], length, rank)
    p = {name: spectral.column(parameters[name], state, rank) for name in kinetics.parameters}
    fastest = 1.0 if model == "gray_scott" else float(p["reaction_rate"].detach().max())
    count = max(1, math.ceil(dt / (max_step or kinetics.stride / fastest) - 1e-9))
    square, kept = grid.square(state.device), grid.retained(state.device).to(state.dtype)
    rates = [a - p[name] * square for a, name in zip(kinetics.linear(p), kinetics.diffusivities)]
    linear = torch.stack(torch.broadcast_tensors(*rates), -rank - 1)
    scheme = spectral.Exponential.of(linear, dt / count, state.dtype)
    given = {name: value.to(state.dtype) for name, value in p.items()}

    def react(modes: Tensor) -> Tensor:
        fields = kinetics.nonlinear(grid.to_points(modes).unbind(1), given)
        return kept * grid.to_modes(torch.stack(fields, 1))

    modes = kept * grid.to_modes(spectral.regrid(state.movedim(-1, 1), grid.n, rank))
    for _ in range(count):
        modes = scheme.step(modes, react)
    return spectral.regrid(grid.to_points(modes), state.shape[1], rank).movedim(1, -1)


def setting(options: Options) -> dict[str, Any]:
    """What `step` is to be told beside the parameters, to go on with data that were made with these options."""
    return {"model": options.model, "length": options.length, "max_step": options.max_step,
            "refine": max(1, options.grid // options.resolution)}


def initial(options: Options, trajectory: int) -> np.ndarray:
    """The state before the spin-up, ``(*space, channel)`` float64."""
    rng = np.random.default_rng((options.seed, trajectory))
    rank, n = options.dimensions, options.grid
    if options.model == "allen_cahn":
        def deviation(m: np.ndarray) -> np.ndarray:
            wave = 2 * np.pi * m * options.roughness
            return np.sqrt(0.25 * (math.sqrt(2 * math.pi) * options.roughness) ** rank * np.exp(-wave**2 / 2))

        return spectral.gaussian_field(rng, n, rank, deviation)[..., None]
    spots = _spots(rng, n, rank, int(rng.integers(options.spots[0], options.spots[1] + 1)))
    return np.stack([1 - 0.5 * spots, 0.25 * spots], -1) if options.model == "gray_scott" else spots[..., None]


def _spots(rng: np.random.Generator, n: int, rank: int, count: int) -> np.ndarray:
    """Between 0 and 1, high in smooth spots of random places and widths, periodic."""
    total = np.zeros((n,) * rank)
    for _ in range(count):
        places, widths = rng.uniform(0, 1, rank), rng.uniform(0.03, 0.08, rank)
        distance = [(1 - np.cos(2 * np.pi * (np.arange(n) / n - x))) / (2 * np.pi * w) ** 2
                    for x, w in zip(places, widths)]
        total += 2 * np.exp(-(distance[0] if rank == 1 else np.add.outer(*distance)))
    return np.asarray(1 - np.exp(-total))


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """The model's states ``(stop − start, frames, *space)`` float64 of trajectories ``start ≤ i < stop``."""
    kinetics = KINETICS[options.model]
    now = torch.from_numpy(np.stack([initial(options, i) for i in range(start, stop)]))
    given: dict[str, Any] = {name: torch.from_numpy(blocks.cycled(getattr(options, name), start, stop))
                             for name in kinetics.parameters}
    given |= {**setting(options), "refine": 1}
    now = step(now, options.spin_up, **given)
    frames = [now.numpy()]
    for _ in range(options.frames - 1):
        now = step(now, options.frame_dt, **given)
        frames.append(now.numpy())
    saved = np.stack(frames, 1)
    return {name: spectral.resample(saved[..., i], options.resolution, options.dimensions)
            for i, name in enumerate(kinetics.states)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: the model's states (trajectory, time, x[, y]) float32 and parameters (trajectory,), without
    units. Raises `InputError` naming the wrong option."""
    chosen = validate(Options, dict(options), where="reaction_diffusion options")
    kinetics, space = KINETICS[chosen.model], ("x", "y")[:chosen.dimensions]
    shape = (chosen.frames, *(chosen.resolution,) * len(space))
    made = blocks.lazy(solve, chosen, dict.fromkeys(kinetics.states, shape))
    variables = {name: (("time", *space), made[name], blocks.state("1", long_name))
                 for name, long_name in kinetics.states.items()}
    variables |= {name: blocks.parameter(blocks.cycled(getattr(chosen, name), 0, chosen.trajectories), "1", long_name)
                  for name, long_name in kinetics.parameters.items()}
    place = blocks.axis(chosen.resolution, chosen.length, "1", periodic=True)
    return blocks.canonical(variables, dict.fromkeys(space, place),
                            (np.arange(chosen.frames) * chosen.frame_dt, "1"))


PLUGIN = build
