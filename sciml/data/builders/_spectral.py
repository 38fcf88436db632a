"""What pseudo-spectral builders have in common: wavenumbers, random fields, resampling, exponential time stepping.

Exponential time differencing with the Runge–Kutta scheme of order four: Cox and Matthews, J. Comput. Phys. 176 (2002);
its coefficients as means over a circle in the complex plane: Kassam and Trefethen, SIAM J. Sci. Comput. 26 (2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CIRCLE = 16
"""Points on the upper half of the circle of radius one around each eigenvalue."""


@dataclass(frozen=True)
class Grid:
    """A periodic grid of n points per side of length `period`, along the last `rank` axes (1 or 2) of a field."""

    n: int
    period: float
    rank: int

    @property
    def side(self) -> tuple[int, ...]:
        return (self.n,) * self.rank

    def to_modes(self, field: Tensor) -> Tensor:
        return torch.fft.rfftn(field, dim=tuple(range(-self.rank, 0)))

    def to_points(self, modes: Tensor) -> Tensor:
        return torch.fft.irfftn(modes, s=self.side, dim=tuple(range(-self.rank, 0)))

    def harmonics(self, device: torch.device | None = None) -> tuple[Tensor, ...]:
        """Integer wavenumbers of each axis as float64, shaped to broadcast against modes."""
        last = torch.fft.rfftfreq(self.n, d=1 / self.n, dtype=torch.float64, device=device)
        if self.rank == 1:
            return (last,)
        return torch.fft.fftfreq(self.n, d=1 / self.n, dtype=torch.float64, device=device)[:, None], last[None]

    def square(self, device: torch.device | None = None) -> Tensor:
        """|k|² in rad² per squared unit of length."""
        factor = (2 * math.pi / self.period) ** 2
        return factor * torch.stack(torch.broadcast_tensors(*(m**2 for m in self.harmonics(device)))).sum(0)

    def retained(self, device: torch.device | None = None) -> Tensor:
        """1 below two thirds of the highest wavenumber of every axis, where products of two fields are free of
        aliasing, 0 above (Orszag 1971)."""
        kept = [m.abs() < self.n / 3 for m in self.harmonics(device)]
        return torch.stack(torch.broadcast_tensors(*kept)).all(0).double()

    @property
    def cutoff(self) -> float:
        """The highest retained wavenumber of an axis, in rad per unit of length."""
        return 2 * math.pi / self.period * (math.ceil(self.n / 3) - 1)


@dataclass(frozen=True)
class Exponential:
    """Coefficients of a step h of ``v' = L v + N(v)`` for a diagonal L: exact in L, of order four in N."""

    full: Tensor
    half: Tensor
    inner: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor

    @classmethod
    def of(cls, linear: Tensor, h: float | Tensor, dtype: torch.dtype = torch.float64) -> Exponential:
        """linear: eigenvalues in 1/time, float64, any shape; dtype: of the coefficients."""
        z = linear * h
        angle = math.pi * (torch.arange(CIRCLE, dtype=torch.float64, device=linear.device) + 0.5) / CIRCLE
        r = z[..., None] + torch.polar(torch.ones_like(angle), angle)
        grown, cube = torch.exp(r), r**3

        def mean(value: Tensor) -> Tensor:
            return (h * value.real.mean(-1)).to(dtype)

        return cls(torch.exp(z).to(dtype), torch.exp(z / 2).to(dtype), mean((torch.exp(r / 2) - 1) / r),
                   mean((-4 - r + grown * (4 - 3 * r + r**2)) / cube), mean((2 + r + grown * (r - 2)) / cube),
                   mean((-4 - 3 * r - r**2 + grown * (4 - r)) / cube))

    @classmethod
    def of_complex(cls, linear: Tensor, h: float, dtype: torch.dtype = torch.complex128) -> Exponential:
        """The same for complex eigenvalues, complex128; dtype: of the coefficients, complex.

        With ``φ_0 = e^z``, ``φ_{l+1} = (φ_l − 1/l!) / z``, they are h times ``φ_1(z/2) / 2``, ``φ_1 − 3 φ_2 + 4 φ_3``,
        ``φ_2 − 2 φ_3`` and ``4 φ_3 − φ_2`` (Cox and Matthews 2002); where |z| < 1, which divides by nearly 0, as means
        over a circle of radius 2 around z (Kassam and Trefethen 2005)."""
        z = linear * h
        angle = math.pi * torch.arange(2 * CIRCLE, dtype=torch.float64, device=z.device) / CIRCLE
        near = (z.detach().abs() < 1).double()[..., None]
        r = z[..., None] + 2 * near * torch.polar(torch.ones_like(angle), angle)
        first = (torch.exp(r) - 1) / r
        second = (first - 1) / r
        third = (second - 0.5) / r

        def mean(value: Tensor) -> Tensor:
            return (h * value.mean(-1)).to(dtype)

        return cls(torch.exp(z).to(dtype), torch.exp(z / 2).to(dtype), mean((torch.exp(r / 2) - 1) / r),
                   mean(first - 3 * second + 4 * third), mean(second - 2 * third), mean(4 * third - second))

    def step(self, v: Tensor, nonlinear: Callable[[Tensor], Tensor]) -> Tensor:
        """v after one step; differentiable."""
        now = nonlinear(v)
        a = self.half * v + self.inner * now
        at_a = nonlinear(a)
        b = self.half * v + self.inner * at_a
        at_b = nonlinear(b)
        c = self.half * a + self.inner * (2 * at_b - now)
        return self.full * v + self.first * now + 2 * self.middle * (at_a + at_b) + self.last * nonlinear(c)


def column(value: Any, like: Tensor, rank: int) -> Tensor:
    """A number, or one per sample ``(batch,)``, as float64 that broadcasts against fields of that rank."""
    given = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    return given.reshape(-1, *(1,) * rank) if given.ndim else given


def gaussian_field(rng: np.random.Generator, n: int, rank: int, deviation: Callable[[np.ndarray], np.ndarray],
                   modes: int = 32) -> np.ndarray:
    """A mean-free Gaussian random field ``(n,)`` or ``(n, n)`` whose Fourier coefficient at the integer wavenumber m
    has the standard deviation ``deviation(|m|)``.

    Wavenumbers below `modes` are drawn and those below n/2 used, so that it is the same function at any n ≥ 2 modes.
    """
    if rank == 1:
        draws = rng.standard_normal((2, modes - 1))
        used = min(modes, n // 2)
        line = np.zeros(n // 2 + 1, np.complex128)
        amplitude = deviation(np.arange(1.0, modes)) / math.sqrt(2)
        line[1:used] = ((draws[0] + 1j * draws[1]) * amplitude)[:used - 1]
        return np.asarray(np.fft.irfft(line, n) * n)
    draws = rng.standard_normal((2, 2 * modes - 1, modes))
    x, y = np.meshgrid(np.arange(-modes + 1, modes), np.arange(modes), indexing="ij")
    kept = ((y > 0) | (x > 0)) & (np.maximum(np.abs(x), y) < n / 2)
    values = (draws[0] + 1j * draws[1])[kept] * deviation(np.hypot(x, y)[kept]) / math.sqrt(2)
    plane = np.zeros((n, n // 2 + 1), np.complex128)
    plane[x[kept], y[kept]] = values
    edge = y[kept] == 0
    plane[-x[kept][edge], 0] = values[edge].conj()
    return np.asarray(np.fft.irfft2(plane, s=(n, n)) * n**2)


def regrid(field: Tensor, n: int, rank: int) -> Tensor:
    """`resample` of tensors, differentiable."""
    size = field.shape[-1]
    if size == n:
        return field
    source, target, half = Grid(size, 1.0, rank), Grid(n, 1.0, rank), min(size, n) // 2
    modes = source.to_modes(field)[..., :half]
    if rank == 2:
        gap = modes.new_zeros((*modes.shape[:-2], n - 2 * half + 1, half))
        modes = torch.cat([modes[..., :half, :], gap, modes[..., 1 - half:, :]], -2)
    modes = torch.nn.functional.pad(modes, [0, n // 2 + 1 - half])
    return target.to_points(modes) * (n / size) ** rank


def resample(field: np.ndarray, resolution: int, rank: int = 2) -> np.ndarray:
    """Periodic fields ``(…, n)`` or ``(…, n, n)`` at another even resolution, by cutting or padding Fourier series.

    >>> np.abs(resample(np.cos(np.arange(8) * np.pi / 4), 4, 1)).round(9).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    n = field.shape[-1]
    if n == resolution:
        return field
    half = min(n, resolution) // 2
    axes = tuple(range(-rank, 0))
    source = np.fft.rfftn(field, axes=axes)
    lead, side = field.shape[:-rank], (resolution,) * rank
    result = np.zeros((*lead, *side[:-1], resolution // 2 + 1), np.complex128)
    result[..., :half] = source[..., :half] if rank == 1 else 0
    if rank == 2:
        result[..., :half, :half] = source[..., :half, :half]
        result[..., 1 - half:, :half] = source[..., 1 - half:, :half]
    return np.asarray(np.fft.irfftn(result, s=side, axes=axes) * (resolution / n) ** rank)
