"""Steady problems on the unit square: Darcy, Poisson, Helmholtz. One solution for each draw, no time.

| equation | solved | forcing | states |
|---|---|---|---|
| darcy | ``−∇·(T ∇h) = R``, h = 0 at the ends | transmissivity T | head h |
| poisson | ``−Δφ = f``, φ = 0 at the ends or periodic | charge f | potential φ |
| helmholtz | ``−Δp − k(x)² (1 + iη) p = f``, open or p = 0 | wavenumber k, sound_source f | pressure_real, _imag |

Darcy with the two coefficients of Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
ICLR 2021: from a Gaussian field g of covariance ``9 (−Δ + 9)^{−2}`` with zero flux at the ends, ``T = 12`` where g ≥ 0
and 3 elsewhere, or ``T = exp(g)``; R = 1. Open ends are absorbing at normal incidence, ``∂p/∂n = i k p`` (time factor
``e^{−iωt}``). In float64: cell-centred finite volumes of order two, harmonic means of T at faces, sparse LU; Poisson
by sine or Fourier transform. Saved are means over cells (periodic: the lower Fourier modes). Conserved in Darcy: what
enters as R leaves through the ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from sciml.data.builders import _blocks as blocks
from sciml.data.builders import _spectral as spectral
from sciml.recipe import validate

MODES = 64
TAU = 3.0
"""Of the covariance ``τ² (−Δ + τ²)^{−2}``: inverse correlation length in 1/m."""
PHASES = (3.0, 12.0)
Equation = Literal["darcy", "poisson", "helmholtz"]
Boundary = Literal["dirichlet", "periodic", "open"]
ALLOWED: dict[Equation, tuple[Boundary, ...]] = {
    "darcy": ("dirichlet",), "poisson": ("dirichlet", "periodic"), "helmholtz": ("open", "dirichlet")}
STATES = {"darcy": {"head": ("m", "hydraulic head")}, "poisson": {"potential": ("V", "potential")},
          "helmholtz": {"pressure_real": ("Pa", "pressure, real part"),
                        "pressure_imag": ("Pa", "pressure, imaginary part")}}
FORCINGS = {"darcy": {"transmissivity": ("m2/s", "transmissivity")},
            "poisson": {"charge": ("V/m2", "charge density over permittivity")},
            "helmholtz": {"wavenumber": ("1/m", "angular wavenumber"), "sound_source": ("Pa/m2", "source of sound")}}
PARAMETERS = {"darcy": {"recharge": ("m/s", "recharge")}, "poisson": {},
              "helmholtz": {"loss": ("1", "loss factor of the medium")}}


class Options(blocks.Draws):
    """What to solve and what to save. Lengths in m, times in s, on the unit square.

    boundary: by default the first that the equation has. coefficient: of Darcy. contrast: times the Gaussian field in
    the exponent of the log-normal T and of ``k = wavenumber · exp(contrast · g)``. recharge, wavenumber, loss: of
    lists, trajectory i takes entry ``i % n``. source_width: of Helmholtz, of the Gaussian at a random place.
    """

    trajectories: int = Field(default=400, ge=1)
    solve_resolution: int | None = Field(default=192, ge=8, multiple_of=2)
    equation: Equation = "darcy"
    boundary: Boundary | None = None
    coefficient: Literal["binary", "lognormal"] = "binary"
    contrast: float = Field(default=1.0, ge=0, le=4)
    recharge: float | tuple[float, ...] = 1.0
    wavenumber: float | tuple[float, ...] = 15.0
    loss: float | tuple[float, ...] = 0.0
    source_width: float = Field(default=0.05, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Options:
        blocks.check_whole_cells(self)
        if self.ends not in ALLOWED[self.equation]:
            raise ValueError(f"boundary of {self.equation}: one of {', '.join(ALLOWED[self.equation])}")
        if min(np.size(v) for v in (self.recharge, self.wavenumber, self.loss)) == 0 or np.min(self.wavenumber) <= 0:
            raise ValueError("recharge, wavenumber, loss: at least one number each, wavenumbers positive")
        resonant = self.equation == "helmholtz" and self.ends == "dirichlet"
        if np.min(self.loss) < 0 or (resonant and np.min(self.loss) == 0):
            raise ValueError("loss must not be negative and, with boundary dirichlet, positive: else waves resonate")
        return self

    @property
    def ends(self) -> Boundary:
        return self.boundary or ALLOWED[self.equation][0]


def darcy(transmissivity: np.ndarray, recharge: np.ndarray | float, length: float = 1.0) -> np.ndarray:
    """The head ``(n, n)`` in m, zero at the ends, of fields ``(n, n)`` in m²/s and m/s at the middles of cells."""
    a, n = transmissivity, len(transmissivity)
    across = [2 * a[1:] * a[:-1] / (a[1:] + a[:-1]), 2 * a[:, 1:] * a[:, :-1] / (a[:, 1:] + a[:, :-1])]
    source = np.broadcast_to(np.asarray(recharge, np.float64), a.shape) * (length / n) ** 2
    return _solve(across[0], across[1], 2 * a * _ends(n), source)


def helmholtz(wavenumber: np.ndarray, source: np.ndarray, *, boundary: Boundary = "open", loss: float = 0.0,
              length: float = 1.0) -> np.ndarray:
    """The complex pressure ``(n, n)`` in Pa of fields ``(n, n)`` in 1/m and Pa/m² at the middles of cells."""
    n, cell = len(wavenumber), length / len(wavenumber)
    half = 0.5j * wavenumber * cell
    outer = -2 * half / (1 - half) if boundary == "open" else np.full(wavenumber.shape, 2.0 + 0j)
    diagonal = outer * _ends(n) - (wavenumber * cell) ** 2 * (1 + 1j * loss)
    return _solve(np.ones((n - 1, n)), np.ones((n, n - 1)), diagonal, source * cell**2)


def poisson(source: np.ndarray, *, boundary: Boundary = "dirichlet", length: float = 1.0) -> np.ndarray:
    """The potential ``(…, n, n)`` in V of a charge in V/m²: at the middles of cells and zero at the ends, or periodic;
    then the mean of both is left out."""
    from scipy.fft import dstn, idstn

    n = source.shape[-1]
    if boundary == "periodic":
        m = np.fft.fftfreq(n, 1 / n) * 2 * np.pi / length
        square = np.add.outer(m**2, m[:n // 2 + 1] ** 2)
        square[0, 0] = np.inf
        return np.asarray(np.fft.irfft2(np.fft.rfft2(source) / square, s=(n, n)))
    m = np.pi / length * np.arange(1, n + 1)
    return np.asarray(idstn(dstn(source, type=2, axes=(-2, -1)) / np.add.outer(m**2, m**2), type=2, axes=(-2, -1)))


def _ends(n: int) -> np.ndarray:
    """How many faces of each cell are at an end, ``(n, n)``."""
    line = np.zeros(n)
    line[0] += 1
    line[-1] += 1
    return np.add.outer(line, line)


def _solve(across_x: np.ndarray, across_y: np.ndarray, diagonal: np.ndarray, source: np.ndarray) -> np.ndarray:
    """u of ``Σ_faces t (u − u_neighbour) + diagonal · u = source``; t ``(n − 1, n)`` and ``(n, n − 1)``."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import splu

    n = len(diagonal)
    index = np.arange(n * n).reshape(n, n)
    total = diagonal.copy()
    for part, t in ((np.s_[1:], across_x), (np.s_[:-1], across_x), (np.s_[:, 1:], across_y), (np.s_[:, :-1], across_y)):
        total[part] += t
    pairs = [(index[1:], index[:-1], across_x), (index[:, 1:], index[:, :-1], across_y)]
    rows = np.concatenate([i.ravel() for a, b, _ in pairs for i in (a, b)] + [index.ravel()])
    columns = np.concatenate([i.ravel() for a, b, _ in pairs for i in (b, a)] + [index.ravel()])
    values = np.concatenate([-t.ravel() for *_, t in pairs for _ in range(2)] + [total.ravel()])
    matrix = coo_array((values, (rows, columns)), shape=(n * n, n * n)).tocsc()
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01, options={"SymmetricMode": True})
    return np.asarray(factors.solve(np.asarray(source, matrix.dtype).ravel()).reshape(n, n))


def cosine_field(rng: np.random.Generator, n: int) -> np.ndarray:
    """The Gaussian field ``N(0, τ² (−Δ + τ²)^{−2})`` with zero mean, and zero flux at the ends, at the middles of
    cells, ``(n, n)``; 64² modes are drawn and those below n used."""
    from scipy.fft import idctn

    k = np.pi * np.arange(MODES)
    modes = rng.standard_normal((MODES, MODES)) * TAU / (np.add.outer(k**2, k**2) + TAU**2)
    modes[0, 0] = 0
    used = min(n, MODES)
    padded = np.zeros((n, n))
    padded[:used, :used] = modes[:used, :used]
    return np.asarray(n * idctn(padded, type=2, norm="ortho"))


def forcings(options: Options, trajectory: int) -> dict[str, np.ndarray]:
    """The equation's forcings on the solver's grid, ``(n, n)`` float64 each."""
    rng, n = np.random.default_rng((options.seed, trajectory)), options.grid
    if options.equation == "poisson" and options.ends == "periodic":
        return {"charge": spectral.gaussian_field(rng, n, 2, lambda m: TAU / ((2 * np.pi * m) ** 2 + TAU**2))}
    field = cosine_field(rng, n)
    if options.equation == "poisson":
        return {"charge": field}
    if options.equation == "darcy":
        binary = options.coefficient == "binary"
        return {"transmissivity": np.where(field >= 0, PHASES[1], PHASES[0]) if binary
                else np.exp(options.contrast * field)}
    x = (np.arange(n) + 0.5) / n
    place = np.random.default_rng((options.seed, trajectory, 1)).uniform(0.2, 0.8, 2)
    gauss = [np.exp(-((x - at) ** 2) / (2 * options.source_width**2)) for at in place]
    mean = blocks.cycled(options.wavenumber, trajectory, trajectory + 1)[0]
    return {"wavenumber": mean * np.exp(options.contrast * field),
            "sound_source": np.multiply.outer(*gauss) / options.source_width**2}


def draw(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """The forcings ``(stop − start, x, y)`` at the saved resolution."""
    made = [forcings(options, i) for i in range(start, stop)]
    return {name: _saved(np.stack([one[name] for one in made]), options) for name in made[0]}


def solve(options: Options, start: int, stop: int) -> dict[str, np.ndarray]:
    """The states ``(stop − start, x, y)`` float64 of trajectories ``start ≤ i < stop`` at the saved resolution."""
    fields = np.stack([_solution(options, i) for i in range(start, stop)])
    parts = (fields.real, fields.imag) if options.equation == "helmholtz" else (fields,)
    return {name: _saved(part, options) for name, part in zip(STATES[options.equation], parts)}


def _saved(fields: np.ndarray, options: Options) -> np.ndarray:
    if options.ends == "periodic":
        return spectral.resample(fields, options.resolution, 2)
    return blocks.cell_means(fields, options.resolution)


def _solution(options: Options, trajectory: int) -> np.ndarray:
    given = forcings(options, trajectory)
    one = (trajectory, trajectory + 1)
    if options.equation == "darcy":
        return darcy(given["transmissivity"], blocks.cycled(options.recharge, *one)[0])
    if options.equation == "poisson":
        return poisson(given["charge"], boundary=options.ends)
    return helmholtz(given["wavenumber"], given["sound_source"], boundary=options.ends,
                     loss=blocks.cycled(options.loss, *one)[0])


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: the equation's states and forcings (trajectory, x, y) float32 and parameters (trajectory,)
    in SI units, the codes of the ends if not periodic. Raises `InputError` naming the wrong option."""
    chosen = validate(Options, dict(options), where="elliptic options")
    states, known = STATES[chosen.equation], FORCINGS[chosen.equation]
    side = (chosen.resolution, chosen.resolution)
    made = blocks.lazy(solve, chosen, dict.fromkeys(states, side))
    given = blocks.lazy(draw, chosen, dict.fromkeys(known, side))
    dims, count = ("x", "y"), chosen.trajectories
    variables: dict[str, Any] = {name: (dims, made[name], blocks.state(*about)) for name, about in states.items()}
    for name, (unit, long_name) in known.items():
        variables[name] = (dims, given[name], {"units": unit, "long_name": long_name, "role": "forcing"})
    for name, about in PARAMETERS[chosen.equation].items():
        variables[name] = blocks.parameter(blocks.cycled(getattr(chosen, name), 0, count), *about)
    for name in dims:
        variables |= blocks.boundaries(name, chosen.ends, chosen.ends, count)
    place = blocks.axis(chosen.resolution, 1.0, "m", periodic=chosen.ends == "periodic")
    return blocks.canonical(variables, dict.fromkeys(dims, place), None)


PLUGIN = build
