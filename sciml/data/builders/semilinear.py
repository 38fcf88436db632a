"""Semilinear equations on a periodic interval: derivatives up to the sixth, and four nonlinear terms. Without units.

``u_t = Σ_{j=0..6} a_j ∂^j u/∂x^j − b u u_x − (g/2) u_x² + q u² + c u³``

| equation | coefficients |
|---|---|
| Korteweg–de Vries–Burgers | a₂ > 0, a₃ < 0, b |
| Kuramoto–Sivashinsky (with dispersion) | a₂ = −1, a₄ = −1, b = 1 (and a₃) |
| Swift and Hohenberg, Phys. Rev. A 15 (1977) | a₀ = r − 1, a₂ = −2, a₄ = −1, q, c = −1 |
| Nikolaevskiy; Tribelsky and Tsuboi, Phys. Rev. Lett. 76 (1996) | a₂ = 1 − ε, a₄ = 2, a₆ = 1, b = 1 |

The family is that of Koehler et al., "APEBench", NeurIPS 2024, in one dimension. Pseudo-spectral in float64, free of
aliasing (products of two fields: the lowest 2/3 of the waves; of three: the lowest 1/2), exponential time differencing
of order four (`sciml.data.builders._spectral`) with all of the linear part taken exactly. Conserved: the mean of u if
a₀, g, q and c are 0; ``½⟨u²⟩`` if beside that the even derivatives are missing. Time scales: those of the linear part,
``1 / Re σ(k)`` with ``σ = Σ a_j (ik)^j``, and ``1 / (b max |u_x|)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.data.builders import _blocks as blocks
from sciml.data.builders import _spectral as spectral
from sciml.errors import InputError
from sciml.recipe import validate

ORDERS = ("u itself", *(f"the {place} derivative" for place in ("first", "second", "third", "fourth", "fifth",
                                                                 "sixth")))
LINEAR = {f"linear_{order}": f"coefficient of {of}" for order, of in enumerate(ORDERS)}
TERMS = {"convection": "coefficient b of -b u u_x", "gradient_norm": "coefficient g of -(g/2) u_x^2",
         "quadratic": "coefficient q of q u^2", "cubic": "coefficient c of c u^3"}
STEP = 0.0625
"""Usual bound on a solver's step. What it has to be depends on the equation; see the cards of the data sets."""
Numbers = float | tuple[float, ...]
Order = Annotated[int, Field(ge=0, le=6)]


class Options(blocks.Draws):
    """What to solve and what to save. Nothing has a unit; frame 0 is at the end of the spin-up.

    linear: a_j by the order j of the derivative, ``{2: -1.0, 4: [-1.0, -0.5]}``; convection, gradient_norm, quadratic,
    cubic: b, g, q, c. Of lists, trajectory i takes entry ``i % n``. length: of the period. The initial field has that
    mean and a standard deviation `amplitude`, shared evenly by the lowest `harmonics`. solver_dt: upper bound of the
    solver's step.
    """

    resolution: int = Field(default=64, ge=16, multiple_of=2)
    solve_resolution: int | None = Field(default=128, ge=16, multiple_of=2)
    frames: int = Field(default=51, ge=1)
    frame_dt: float = Field(default=1.0, gt=0)
    spin_up: float = Field(default=0.0, ge=0)
    length: float = Field(default=32.0, gt=0)
    linear: dict[Order, Numbers]
    convection: Numbers = 0.0
    gradient_norm: Numbers = 0.0
    quadratic: Numbers = 0.0
    cubic: Numbers = 0.0
    mean: float = 0.0
    amplitude: float = Field(default=1.0, gt=0)
    harmonics: int = Field(default=7, ge=1)
    solver_dt: float = Field(default=STEP, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        for name, listed in _given(self).items():
            if np.size(listed) == 0 or not np.isfinite(listed).all():
                raise ValueError(f"{name} must be a finite number or a list of them")
        values = coefficients(self, 0, self.trajectories)
        nothing = np.zeros(self.trajectories)
        damping = nothing
        for order in (2, 4, 6):
            value = values.get(f"linear_{order}", nothing)
            damping = np.where(value == 0, damping, -value * (-1) ** (order // 2))
        if (damping < 0).any():
            raise ValueError(f"linear: ill-posed in trajectory {int(np.argmax(damping < 0))}, where the highest even "
                             "derivative feeds short waves; order 2 and 6 damp them above 0, order 4 below 0")
        bare = (damping == 0) & (values.get("linear_3", nothing) == 0) & (values.get("linear_5", nothing) == 0)
        steepens = (values.get("convection", nothing) != 0) | (values.get("gradient_norm", nothing) != 0)
        if (bare & steepens).any():
            raise ValueError(f"linear: trajectory {int(np.argmax(bare & steepens))} steepens without end; convection "
                             "and gradient_norm need a derivative of order 2 or more")
        return self


def _given(options: Options) -> dict[str, Numbers]:
    linear = {f"linear_{order}": options.linear[order] for order in sorted(options.linear)}
    return linear | {name: getattr(options, name) for name in TERMS if name in options.model_fields_set}


def coefficients(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """Those that are given, for each of trajectories ``start ≤ i < stop``, float64, by the names that they have in the
    data set: linear_0 … linear_6, convection, gradient_norm, quadratic, cubic. One given as 0 says that an equation
    lacks what others have.

    >>> coefficients(Options(linear={2: (1.0, 2.0)}, cubic=0.0), 1, 4)
    {'linear_2': array([2., 1., 2.]), 'cubic': array([0., 0., 0.])}
    """
    return {name: blocks.cycled(listed, start, stop) for name, listed in _given(options).items()}


def step(state: Tensor, dt: float, *, length: float = 32.0, refine: int = 1, max_step: float = STEP,
         **given: Any) -> Tensor:
    """The state dt later, ``(batch, x, 1)``, by whole steps of at most `max_step` on a grid `refine` times finer;
    differentiable in the state.

    given: coefficients by the names of `coefficients`, a number or ``(batch,)`` each; others are 0. Coefficients are
    float64, the state keeps its type.
    """
    unknown = sorted(set(given) - {*LINEAR, *TERMS})
    if unknown:
        raise TypeError(f"step() got an unexpected keyword argument {unknown[0]!r}")
    if dt == 0:
        return state
    count = max(1, math.ceil(dt / max_step - 1e-9))
    field = state[..., 0]
    grid = spectral.Grid(refine * field.shape[-1], length, 1)
    columns = {name: spectral.column(value, state, 1) for name, value in given.items()}
    scheme = spectral.Exponential.of_complex(symbol(columns, grid, state.device), dt / count,
                                             state.dtype.to_complex())
    kept = _retained(columns, grid, state)
    rest = _nonlinear(columns, grid, kept)
    modes = kept * grid.to_modes(spectral.regrid(field, grid.n, 1))
    for _ in range(count):
        modes = scheme.step(modes, rest)
    return spectral.regrid(grid.to_points(modes), field.shape[-1], 1)[..., None]


def symbol(columns: Mapping[str, Tensor], grid: spectral.Grid, device: torch.device | None = None) -> Tensor:
    """``σ(k) = Σ a_j (ik)^j`` in 1/time, complex128 ``(batch or 1, modes)``; its real part is the rate of growth, its
    imaginary part minus the frequency. columns: a_j ``(batch, 1)`` or ``()``, by their names."""
    k = 2 * math.pi / grid.period * grid.harmonics(device)[0]
    parts = [torch.zeros_like(k)[None], torch.zeros_like(k)[None]]
    for order, name in enumerate(LINEAR):
        if name in columns:
            parts[order % 2] = parts[order % 2] + (-1) ** (order // 2) * columns[name] * k**order
    return torch.complex(*torch.broadcast_tensors(*parts))


def _retained(columns: Mapping[str, Tensor], grid: spectral.Grid, like: Tensor) -> Tensor:
    """1 for waves that no product is aliased to: with u³ below a half of the highest, else below two thirds; 0 above.
    Of each sample alone, so that it isn't solved otherwise in other company."""
    kept = grid.retained(like.device)
    if "cubic" in columns:
        low = (grid.harmonics(like.device)[0] < grid.n / 4).double()
        kept = torch.where(columns["cubic"] != 0, low, kept)
    return kept.to(like.dtype)


def _nonlinear(columns: Mapping[str, Tensor], grid: spectral.Grid, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Modes → modes of ``−b u u_x − (g/2) u_x² + q u² + c u³``; what is 0 for the whole batch isn't computed."""
    terms = {name: columns[name] for name in TERMS if name in columns and bool((columns[name] != 0).any())}
    real = kept.dtype
    ik = 1j * 2 * math.pi / grid.period * grid.harmonics(kept.device)[0]
    square = (terms.get("quadratic", 0.0) - 0.5 * ik * terms.get("convection", 0.0)) * kept
    square, ik = square.to(real.to_complex()), ik.to(real.to_complex())
    slope, cube = (terms[name].to(real) if name in terms else None for name in ("gradient_norm", "cubic"))

    def rest(v: Tensor) -> Tensor:
        made = torch.zeros_like(v)
        u = grid.to_points(v)
        if "convection" in terms or "quadratic" in terms:
            made = made + square * grid.to_modes(u**2)
        if slope is not None:
            made = made - 0.5 * slope * kept * grid.to_modes(grid.to_points(ik * v) ** 2)
        if cube is not None:
            made = made + cube * kept * grid.to_modes(u**3)
        return made

    return rest


def setting(options: Options) -> dict[str, Any]:
    """What `step` is to be told beside the coefficients, to go on with data that were made with these options."""
    return {"length": options.length, "max_step": options.solver_dt,
            "refine": max(1, options.grid // options.resolution)}


def initial(options: Options, trajectory: int) -> np.ndarray:
    """The mean and a sum of the lowest harmonics with random Gaussian coefficients, ``(n,)`` float64."""
    rng = np.random.default_rng((options.seed, trajectory))
    share = options.amplitude / math.sqrt(2 * options.harmonics)
    return options.mean + spectral.gaussian_field(rng, options.grid, 1, lambda m: np.full_like(m, share),
                                                  options.harmonics + 1)


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """u ``(stop − start, frames, x)`` float64 of trajectories ``start ≤ i < stop``. Raises `InputError` naming those
    that aren't finite."""
    now = torch.from_numpy(np.stack([initial(options, i) for i in range(start, stop)]))[..., None]
    given: dict[str, Any] = {name: torch.from_numpy(values)
                             for name, values in coefficients(options, start, stop).items()}
    given |= {**setting(options), "refine": 1}
    frames: list[Tensor] = []
    for frame in range(options.frames):
        now = step(now, options.frame_dt if frame else options.spin_up, **given)
        lost = ~torch.isfinite(now).all(2).all(1)
        if lost.any():
            time = options.spin_up + frame * options.frame_dt
            raise InputError("semilinear options", key="linear, convection, gradient_norm, quadratic, cubic",
                             found=f"no finite state in trajectories {(start + lost.nonzero()[:, 0]).tolist()} at "
                                   f"frame {frame}, {time:g} after the start", expected="a solution that stays finite",
                             fix="if solver_dt / 4 doesn't help, what grows needs a term that damps it (cubic below 0, "
                                 "a higher derivative), or an initial field without the wrong sign (mean, amplitude)")
        frames.append(now)
    return {"u": spectral.resample(torch.stack(frames, 1)[..., 0].numpy(), options.resolution, 1)}


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: u (trajectory, time, x) float32 and, (trajectory,), each coefficient that is given, without
    units. Raises `InputError` naming the wrong option.

    With convection, the mirror image of a solution is ``−u(−x)``: u is a vector, as in `kuramoto_sivashinsky`;
    otherwise it is ``u(−x)``. Coefficients that change their sign in the mirror are vectors as well."""
    chosen = validate(Options, dict(options), where="semilinear options")
    made = blocks.lazy(solve, chosen, {"u": (chosen.frames, chosen.resolution)})
    values = coefficients(chosen, 0, chosen.trajectories)
    odd = {f"linear_{order}" for order in (1, 3, 5)}
    state = blocks.state("1", "state of the equation")
    if np.any(values.get("convection", 0.0)):
        odd |= {"gradient_norm", "quadratic"}
        state |= {"vector": "slope", "along": "x"}
    variables: dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]] = {"u": (("time", "x"), made["u"], state)}
    for name, value in values.items():
        dims, numbers, attrs = blocks.parameter(value, "1", (LINEAR | TERMS)[name])
        variables[name] = dims, numbers, attrs | ({"vector": name, "along": "x"} if name in odd else {})
    return blocks.canonical(variables, {"x": blocks.axis(chosen.resolution, chosen.length, "1", periodic=True)},
                            (np.arange(chosen.frames) * chosen.frame_dt, "1"))


PLUGIN = build
