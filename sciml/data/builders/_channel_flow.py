"""Solver of the three-dimensional incompressible Navier–Stokes equations between two walls that don't move.

``u_t + ∇·(u u) = −∇p + (f, 0, 0) + ν Δu``, ``∇·u = 0``, u = 0 at y = 0 and 2, periodic in x and z. Fourier series in
x and z with 2/3 dealiasing; second-order differences on a staggered stretched grid in y, whose convective terms keep
the kinetic energy (Verstappen and Veldman, J. Comput. Phys. 187, 2003); three-stage Runge–Kutta with Crank–Nicolson for
viscosity and incremental pressure (Rai and Moin, J. Comput. Phys. 96, 1991; Verzicco and Orlandi, 123, 1996), second
order. The implicit problems and the projection are solved exactly, in the eigenvectors of the differences in y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

EXPLICIT = ((8 / 15, 0.0), (5 / 12, -17 / 60), (3 / 4, -5 / 12))
"""Weights of the convective term of this stage and of the last one; their sum is the stage's share of the step."""
COURANT = 1.2
"""Bound on dt · max over x of (|u| kx + |v| / h + |w| kz), k being the largest retained wavenumber; stable to √3."""


@dataclass(frozen=True)
class Solver:
    """``L − k²`` of self-adjoint differences in y: to and from their eigenvectors, and the eigenvalues."""

    into: Tensor
    back: Tensor
    values: Tensor

    @classmethod
    def of(cls, operator: np.ndarray, weights: np.ndarray) -> Solver:
        root = np.sqrt(weights)
        symmetric = root[:, None] * operator / root
        values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
        return cls(*(torch.as_tensor(a) for a in (vectors.T * root, vectors / root[:, None], values[:, None, None])))


@dataclass(frozen=True)
class Grid:
    """Cells of a channel: side, numbers of points along x and z; faces (ny + 1,) of the cells in y; kx (mx, 1) and kz
    (1, mz) of the modes below the 2/3 cut-off, the only ones that are kept; divergence, gradient: differences in y from
    inner faces to centres and back; along, across, pressure: solvers for velocities along the walls and across, and for
    the pressure."""

    side: tuple[int, int]
    faces: np.ndarray
    kx: Tensor
    kz: Tensor
    divergence: Tensor
    gradient: Tensor
    along: Solver
    across: Solver
    pressure: Solver

    @property
    def centres(self) -> np.ndarray:
        middle: np.ndarray = (self.faces[1:] + self.faces[:-1]) / 2
        return middle

    @property
    def heights(self) -> Tensor:
        """Of cells, ``(ny, 1, 1)``."""
        return torch.as_tensor(np.diff(self.faces)[:, None, None])

    @property
    def square(self) -> Tensor:
        return self.kx**2 + self.kz**2


@cache
def grid_of(shape: tuple[int, int, int], lengths: tuple[float, float], stretch: float) -> Grid:
    """The grid of ``(nx, ny, nz)`` cells, periods lengths in x and z, half-height 1; faces at
    ``1 + tanh(s (2j/ny − 1)) / tanh s``, s = stretch."""
    nx, ny, nz = shape
    faces = 1 + np.tanh(stretch * (2 * np.arange(ny + 1) / ny - 1)) / np.tanh(stretch)
    faces[[0, -1]] = 0.0, 2.0
    h = np.diff(faces)
    between = (h[1:] + h[:-1]) / 2
    inner = np.arange(ny - 1)
    divergence, gradient = np.zeros((ny, ny - 1)), np.zeros((ny - 1, ny))
    divergence[inner, inner], divergence[inner + 1, inner] = 1 / h[:-1], -1 / h[1:]
    gradient[inner, inner], gradient[inner, inner + 1] = -1 / between, 1 / between
    no_slip = divergence @ gradient
    no_slip[0, 0] -= 2 / h[0] ** 2
    no_slip[-1, -1] -= 2 / h[-1] ** 2
    last = [math.ceil(n / 3) - 1 for n in (nx, nz)]
    jx = torch.cat([torch.arange(last[0] + 1), torch.arange(-last[0], 0)])[:, None]
    jz = torch.arange(last[1] + 1)[None]
    kx, kz = (2 * math.pi / length * j.double() for length, j in zip(lengths, (jx, jz), strict=True))
    return Grid((nx, nz), faces, kx, kz, torch.as_tensor(divergence), torch.as_tensor(gradient),
                Solver.of(no_slip, h), Solver.of(gradient @ divergence, between), Solver.of(divergence @ gradient, h))


@dataclass(frozen=True)
class Flow:
    """Modes in x and z: velocities along x and z at the centres of cells ``(ny, mx, mz)``, along y at their inner faces
    ``(ny − 1, …)``, pressure at centres."""

    u: Tensor
    v: Tensor
    w: Tensor
    p: Tensor


def pressure_of(grid: Grid, flow: Flow, viscosity: float) -> Tensor:
    """That keeps the flow free of divergence: the potential of what else changes the velocity."""
    rates, _ = convection(grid, flow)
    changes = [rate + viscosity * _apply(solver.back, (solver.values - grid.square) * _apply(solver.into, modes))
               for rate, solver, modes in zip(rates, (grid.along, grid.across, grid.along), (flow.u, flow.v, flow.w))]
    return project(grid, *changes)[0].p


def _apply(matrix: Tensor, modes: Tensor) -> Tensor:
    """A real matrix along y on complex modes."""
    flat = torch.view_as_real(modes.contiguous()).reshape(modes.shape[0], -1)
    return torch.view_as_complex((matrix @ flat).reshape(-1, *modes.shape[1:], 2))


def divergence(grid: Grid, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Of modes, at the centres of cells."""
    return 1j * grid.kx * u + _apply(grid.divergence, v) + 1j * grid.kz * w


def project(grid: Grid, u: Tensor, v: Tensor, w: Tensor) -> tuple[Flow, Tensor]:
    """The velocity without its divergence and the divergence it had; the potential is the flow's p."""
    solver, found = grid.pressure, divergence(grid, u, v, w)
    values = solver.values - grid.square
    regular = values.abs() > 1e-9
    potential = _apply(solver.into, found) * torch.where(regular, 1 / torch.where(regular, values, 1.0), 0.0)
    phi = _apply(solver.back, potential)
    return Flow(u - 1j * grid.kx * phi, v - _apply(grid.gradient, phi), w - 1j * grid.kz * phi, phi), found


def values_of(grid: Grid, modes: Tensor) -> Tensor:
    """Modes at the points of the grid in x and z."""
    nx, nz = grid.side
    mx, mz = modes.shape[-2:]
    whole = modes.new_zeros(*modes.shape[:-2], nx, nz // 2 + 1)
    whole[..., :mx // 2 + 1, :mz] = modes[..., :mx // 2 + 1, :]
    if mx > 1:
        whole[..., -(mx // 2):, :mz] = modes[..., mx // 2 + 1:, :]
    return torch.fft.irfft2(whole, s=grid.side)


def modes_of(grid: Grid, values: Tensor) -> Tensor:
    whole = torch.fft.rfft2(values)
    half, mz = len(grid.kx) // 2, grid.kz.shape[1]
    return torch.cat([whole[..., :half + 1, :mz], whole[..., whole.shape[-2] - half:, :mz]], dim=-2)


def convection(grid: Grid, flow: Flow) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """``−∇·(u u)`` of each velocity, dealiased, and the largest of (|u| kx + |v| / h + |w| kz), for `COURANT`."""
    u, v, w = (values_of(grid, m) for m in (flow.u, flow.v, flow.w))
    h = grid.heights
    wall = torch.zeros_like(v[:1])
    padded = torch.cat([wall, v, wall])
    middle = 0.5 * (padded[1:] + padded[:-1])
    share = 0.5 * torch.stack([h[:-1], h[1:]]) / (0.5 * (h[:-1] + h[1:]))
    at_faces = torch.stack([0.5 * (u[:-1] + u[1:]), 0.5 * (w[:-1] + w[1:]),
                            share[0] * u[:-1] + share[1] * u[1:], share[0] * w[:-1] + share[1] * w[1:]])
    uu, uw, ww, vv = modes_of(grid, torch.stack([u * u, u * w, w * w, middle * middle]))
    uv, wv, vu, vw = modes_of(grid, at_faces * v)
    kx, kz = 1j * grid.kx, 1j * grid.kz
    rates = (-(kx * uu + _apply(grid.divergence, uv) + kz * uw),
             -(kx * vu + _apply(grid.gradient, vv) + kz * vw),
             -(kx * uw + _apply(grid.divergence, wv) + kz * ww))
    cut = [float(k.abs().max()) for k in (grid.kx, grid.kz)]
    speed = (u.abs() * cut[0] + torch.maximum(padded[1:].abs(), padded[:-1].abs()) / h + w.abs() * cut[1]).max()
    return rates, speed.detach()


def _implicit(solver: Solver, square: Tensor, old: Tensor, change: Tensor, share: float) -> Tensor:
    """``(1 − share (L − k²))⁻¹ ((1 + share (L − k²)) old + change)``."""
    decay = share * (solver.values - square)
    return _apply(solver.back, ((1 + decay) * _apply(solver.into, old) + _apply(solver.into, change)) / (1 - decay))


def step(grid: Grid, flow: Flow, dt: float, viscosity: float, force: float, first: tuple[Tensor, ...]) -> Flow:
    """One step of three stages; first: the convective rates of `flow`."""
    rates = first
    last = tuple(torch.zeros_like(r) for r in first)
    mean = force * grid.side[0] * grid.side[1]
    for stage, (now, before) in enumerate(EXPLICIT):
        if stage:
            last, rates = rates, convection(grid, flow)[0]
        length = (now + before) * dt
        half = 0.5 * viscosity * length
        slopes = (1j * grid.kx * flow.p, _apply(grid.gradient, flow.p), 1j * grid.kz * flow.p)
        changes = [dt * (now * r + before * b) - length * s for r, b, s in zip(rates, last, slopes, strict=True)]
        changes[0][:, 0, 0] += length * mean
        u, v, w = (_implicit(solver, grid.square, old, change, half) for solver, old, change in zip(
            (grid.along, grid.across, grid.along), (flow.u, flow.v, flow.w), changes, strict=True))
        found, lost = project(grid, u, v, w)
        flow = Flow(found.u, found.v, found.w, flow.p + found.p / length - 0.5 * viscosity * lost)
    return flow


def advance(grid: Grid, flow: Flow, time: float, viscosity: float, force: float = 1.0,
            courant: float = COURANT) -> Flow:
    """The flow a time later; steps as long as `courant` allows, the last ending exactly then. force: minus the mean
    pressure gradient. Raises `FloatingPointError` if the solution is lost."""
    remaining = time
    while remaining > 0:
        rates, speed = convection(grid, flow)
        if not math.isfinite(float(speed)):
            raise FloatingPointError("the velocity isn't finite")
        steps = max(math.ceil(remaining * float(speed) / courant - 1e-9), 1)
        flow = step(grid, flow, remaining / steps, viscosity, force, rates)
        remaining = 0.0 if steps == 1 else remaining - remaining / steps
    return flow


def kinetic_energy(grid: Grid, flow: Flow) -> float:
    """½⟨u² + v² + w²⟩, in the quadrature in which the convective terms conserve it."""
    h = grid.heights
    between = 0.5 * (h[1:] + h[:-1])
    u, v, w = (values_of(grid, m) for m in (flow.u, flow.v, flow.w))
    return float(((h * (u**2 + w**2)).sum() + (between * v**2).sum()) / (4 * u[0].numel()))
