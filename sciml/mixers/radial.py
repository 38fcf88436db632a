"""Global convolution with kernels known by wavenumber: isotropic parts and directional derivatives, in any rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.mixers.rows import both_ways
from sciml.tokens import Axis

SHELLS = 17
LONGEST_DENSE = 96
"""Up to this many tokens along every axis the transform is a matrix product: on a CPU, 2–8 times faster than an FFT of
channels-last data, which has to be copied (docs/design/0018)."""


class Radial(Mixer):
    """y = P F⁻¹[(a(|k|) + Σ over axes i k_axis / (1 + |k|) · gain_axis · b(|k|)) ⊙ F[V x]], all ordered axes at once.

    k counts cycles per reference length; a and b are one curve per channel over |k| = 0…16, interpolated and constant
    beyond. The kernel is real: a is its even part, b its odd one. Weights depend on |k| alone, so that rank and grid
    never enter them; what inverts a Laplacian (a velocity from a vorticity) is one such kernel, which no sum of one-
    dimensional kernels is. An axis that is not periodic is extended evenly; its length, the sum of its quadrature
    weights, is each sample's own. Sets, causal and packed axes join the batch.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        decay = 1 / (1 + torch.arange(SHELLS, dtype=torch.get_default_dtype()))[:, None]
        self.even = nn.Parameter(decay * torch.randn(SHELLS, width))
        self.odd = nn.Parameter(torch.randn(SHELLS, width))
        self.gain = RoleGain(width)
        self.enter = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def admits(self, axis: Axis) -> bool:
        return both_ways(axis) and axis.size > 1

    def prepare(self, geometry: Geometry) -> None:
        axes = self.axes(geometry)
        if axes and _is_dense(geometry, axes):
            _dense(geometry, axes)
        elif axes:
            _half_spectrum(geometry, axes)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        convolve = self._by_products if _is_dense(geometry, axes) else self._by_fft
        v = self.enter(x)
        with torch.autocast(x.device.type, enabled=False):  # no transform in bfloat16
            y = convolve(v.to(self.even.dtype), geometry, axes)
        return self.out(y), state

    def _by_products(self, v: Tensor, geometry: Geometry, axes: list[int]) -> Tensor:
        """In an orthonormal basis of real waves a isotropic filter is diagonal, and a derivative another synthesis."""
        waves, shells = _dense(geometry, axes)
        for index in axes:
            v = along(waves[index].analysis, v, index)  # coefficients on the same lattice
        lengths = max(len(waves[index].extent) for index in axes)  # 1, or B where samples differ
        shape = [lengths, *(v.shape[1 + i] if i in axes else 1 for i in range(len(geometry.axes))), self.width]
        even, odd = (shells.even @ self.even).view(shape), (shells.odd @ self.odd).view(shape)
        total, slopes = even * v, {}
        for index in axes:
            gain = self.gain(1 / waves[index].extent[:, None], geometry.role(index))  # (lengths or 1, C)
            slopes[index] = odd * gain.view(-1, *[1] * len(geometry.axes), self.width) * v
        for index in axes:
            total = along(waves[index].synthesis, total, index) + along(waves[index].slope, slopes.pop(index), index)
            slopes = {other: along(waves[index].synthesis, slope, index) for other, slope in slopes.items()}
        return total

    def _by_fft(self, v: Tensor, geometry: Geometry, axes: list[int]) -> Tensor:
        dims, sizes = tuple(index + 1 for index in axes), [v.shape[index + 1] for index in axes]
        for dim, index in zip(dims, axes):
            if geometry.axes[index].period is None:
                v = torch.cat([v, v.flip(dim)], dim)
        shape = [v.shape[d] for d in dims]
        y = torch.fft.irfftn(torch.fft.rfftn(v, dim=dims) * self._kernel(geometry, axes), s=shape, dim=dims)
        for dim, size in zip(dims, sizes):
            y = y.narrow(dim, 0, size)
        return y

    def _kernel(self, geometry: Geometry, axes: list[int]) -> Tensor:
        """``(B or 1, *half lattice, C)`` with size 1 along the axes that are not transformed."""
        k, shells, shape = _half_spectrum(geometry, axes)
        even, odd = (shells.even @ self.even).view(*shape, -1), (shells.odd @ self.odd).view(*shape, -1)
        along = sum((self.gain(component[..., None], geometry.role(index)) for component, index in zip(k, axes)),
                    torch.zeros_like(odd))
        return torch.complex(even, along * odd)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x)
        dims = tuple(index + 1 for index in axes)
        v = self.enter(x)
        for dim, index in zip(dims, axes):
            if geometry.axes[index].period is None:
                v = torch.cat([v, v.flip(dim)], dim)
        shape = [v.shape[d] for d in dims]
        spectrum = _transform(v, dims)[tuple(
            slice(0, n // 2 + 1) if d == dims[-1] else slice(None) for d, n in enumerate(v.shape))]
        filtered = torch.fft.irfftn(spectrum * self._kernel(geometry, axes), s=shape, dim=dims)
        for dim in dims:
            filtered = filtered.narrow(dim, 0, x.shape[dim])
        return self.out(filtered)


@dataclass(frozen=True)
class Waves:
    """Matrices ``(n, n)`` of one axis: cells → coefficients of real waves, back, and back to the slope / 2π.

    Rows of `analysis` are orthonormal: 1, cos 2πmx, sin 2πmx, …, on a periodic axis, cos πm(i + ½)/n on another. slope:
    if the axis repeats after the length 1; it does after extent, ``(B or 1,)``.
    """

    analysis: Tensor
    synthesis: Tensor
    slope: Tensor
    extent: Tensor


@dataclass(frozen=True)
class Shells:
    """Interpolation from the shells |k| = 0…16 to the wavenumbers ``(K, 17)``, of one sample after the other where
    their lengths differ; odd: divided by 1 + |k|."""

    even: Tensor
    odd: Tensor


def _is_dense(geometry: Geometry, axes: list[int]) -> bool:
    return max(geometry.axes[index].size for index in axes) <= LONGEST_DENSE


def along(matrix: Tensor, x: Tensor, index: int) -> Tensor:
    """``(B, *lattice, C)``: matrix ``(m, n)`` applied along axis `index`, without moving it."""
    rows = x.reshape(math.prod(x.shape[: 1 + index]), x.shape[1 + index], -1)  # no len(): it fixes an exported size
    y = torch.bmm(matrix.expand(rows.shape[0], -1, -1), rows)
    return y.view(*x.shape[: 1 + index], matrix.shape[0], *x.shape[2 + index:])


def _dense(geometry: Geometry, axes: list[int]) -> tuple[dict[int, Waves], Shells]:
    def make() -> tuple[dict[int, Waves], Shells]:
        waves, squares = {}, []
        for index in axes:
            waves[index], m = axis_waves(geometry.axes[index])
            squares.append(_on_axis((m / waves[index].extent[:, None])**2, geometry, index))
        return waves, _shells(sum(squares[1:], squares[0]).sqrt())
    return geometry.once(("waves", tuple(axes)), make)


def axis_waves(axis: Axis) -> tuple[Waves, Tensor]:
    """Waves of an axis and how often each fits into its extent, ``(n,)``; that of Nyquist has no slope."""
    n = axis.size
    i, j = (torch.arange(n, dtype=torch.float64, device=axis.coord.device) for _ in range(2))
    if axis.period is None:
        m, phase = j, math.pi * j[:, None] * (i + 0.5) / n
        wave, slope = phase.cos(), -phase.sin()
        norm = ((2 - (m == 0).double()) / n).sqrt()
    else:
        m = ((j + 1) / 2).floor()  # 0, 1, 1, 2, 2, …: a cosine, then a sine
        phase, sine = 2 * math.pi * m[:, None] * i / n, (j % 2 == 0)[:, None] & (m > 0)[:, None]
        wave, slope = torch.where(sine, phase.sin(), phase.cos()), torch.where(sine, phase.cos(), -phase.sin())
        slope = torch.where((2 * m == n)[:, None], 0.0, slope)
        norm = ((2 - ((m == 0) | (2 * m == n)).double()) / n).sqrt()
    unit = _scaled(norm, wave)
    tables = (unit, unit.T, _scaled(norm * m, slope).T)
    analysis, synthesis, derivative = (t.to(axis.coord.dtype).contiguous() for t in tables)
    return Waves(analysis, synthesis, derivative, _extent(axis)), m.to(axis.coord.dtype)


def _scaled(factor: Tensor, wave: Tensor) -> Tensor:
    """Row i times factor i. As a product while exporting: a graph keeps what a product gave, but would compute sines
    and cosines anew wherever they are used, for every sample and row."""
    return torch.diag(factor) @ wave if torch.compiler.is_exporting() else factor[:, None] * wave


def _extent(axis: Axis) -> Tensor:
    """Length after which the axis repeats: its period, or twice its length where it is extended evenly. ``(B,)``, or
    ``(1,)`` where it is that of all samples; 1 for a sample of nothing but padding, which has no length."""
    if axis.period is not None:
        return axis.period[:1]
    length = 2 * axis.weights().sum(1)
    if len(length) > 1 and bool((length == length[0]).all()):
        length = length[:1]
    return torch.where(length > 0, length, 1.0)


def _on_axis(k: Tensor, geometry: Geometry, index: int) -> Tensor:
    """``(B or 1, n)`` → ``(B or 1, *lattice)`` with size 1 along the other axes."""
    shape = [k.shape[0]] + [1] * len(geometry.axes)
    shape[1 + index] = k.shape[1]
    return k.view(shape)


def _shells(radius: Tensor) -> Shells:
    place = radius.flatten().clamp(max=SHELLS - 1)
    low = place.floor().long()
    part = (place - low)[:, None]
    weights = torch.zeros(place.shape[0], SHELLS, dtype=radius.dtype, device=radius.device)
    weights.scatter_add_(1, low[:, None], 1 - part)
    weights.scatter_add_(1, (low + 1).clamp(max=SHELLS - 1)[:, None], part)
    return Shells(weights, weights / (1 + radius.flatten()[:, None]))


def _half_spectrum(geometry: Geometry, axes: list[int]) -> tuple[list[Tensor], Shells, torch.Size]:
    """Of the real FFT of the extended lattice: components of k (0 at the Nyquist wavenumber of their axis), shells and
    the shape ``(B or 1, *half lattice)`` they are flattened from."""
    def make() -> tuple[list[Tensor], Shells, torch.Size]:
        columns, squares = [], []
        for index in axes:
            axis = geometry.axes[index]
            n = axis.size * (1 if axis.period is not None else 2)
            full = torch.fft.fftfreq(n, 1 / n, device=axis.coord.device).round().to(axis.coord.dtype)
            m = full if index != axes[-1] else full[: n // 2 + 1].abs()
            k = m / _extent(axis)[:, None]  # (B or 1, K)
            squares.append(_on_axis(k**2, geometry, index))
            columns.append(_on_axis(torch.where(2 * m.abs() == n, 0.0, k), geometry, index))
        radius = sum(squares[1:], squares[0]).sqrt()
        return columns, _shells(radius), radius.shape
    return geometry.once(("half spectrum", tuple(axes)), make)


def _transform(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The discrete Fourier transform by its definition, one axis after the other."""
    y = x.to(torch.complex128)
    for dim in dims:
        n = torch.arange(x.shape[dim], dtype=torch.float64)
        phase = torch.exp(-2j * torch.pi * n[:, None] * n[None, :] / x.shape[dim])
        y = torch.movedim(torch.movedim(y, dim, -1) @ phase, -1, dim)
    return y


PLUGIN = Radial
