"""Global convolution with kernels known by wavenumber: isotropic parts and directional derivatives, in any rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis

SHELLS = 17


class Radial(Mixer):
    """y = P F⁻¹[(a(|k|) + Σ over axes i k_axis / (1 + |k|) · gain_axis · b(|k|)) ⊙ F[V x]], all ordered axes at once.

    k counts cycles per reference length; a and b are one curve per channel over |k| = 0…16, interpolated and constant
    beyond. The kernel is real: a is its even part, b its odd one. Weights depend on |k| alone, so that rank and grid
    never enter them; what inverts a Laplacian (a velocity from a vorticity) is one such kernel, which no sum of one-
    dimensional kernels is. An axis that is not periodic is extended evenly.
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
        return axis.kind != "set" and not axis.causal and axis.size > 1

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x), state
        dims = tuple(index + 1 for index in axes)
        v, sizes = self.enter(x).to(self.even.dtype), [x.shape[d] for d in dims]  # no transform in bfloat16
        extended = [geometry.axes[index].period is None for index in axes]
        for dim, mirror in zip(dims, extended):
            if mirror:
                v = torch.cat([v, v.flip(dim)], dim)
        shape = [v.shape[d] for d in dims]
        y = torch.fft.irfftn(torch.fft.rfftn(v, dim=dims) * self._kernel(geometry, axes, shape), s=shape, dim=dims)
        for dim, size in zip(dims, sizes):
            y = y.narrow(dim, 0, size)
        return self.out(y), state

    def _kernel(self, geometry: Geometry, axes: list[int], shape: list[int]) -> Tensor:
        """``(1, *half lattice, C)`` with size 1 along the axes that are not transformed."""
        k, radius = geometry.once(("radial", tuple(axes)), lambda: _wavenumbers(geometry, axes, shape))
        low = radius.clamp(max=SHELLS - 1).floor().long()
        high, part = (low + 1).clamp(max=SHELLS - 1), (radius.clamp(max=SHELLS - 1) - low)[..., None]
        even = self.even[low] * (1 - part) + self.even[high] * part
        odd = self.odd[low] * (1 - part) + self.odd[high] * part
        along = sum((self.gain(component[..., None] / (1 + radius[..., None]), geometry.role(index))
                     for component, index in zip(k, axes)), torch.zeros_like(odd))
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
        spectrum = _transform(v, dims, inverse=False)[tuple(
            slice(0, n // 2 + 1) if d == dims[-1] else slice(None) for d, n in enumerate(v.shape))]
        filtered = torch.fft.irfftn(spectrum * self._kernel(geometry, axes, shape), s=shape, dim=dims)
        for dim in dims:
            filtered = filtered.narrow(dim, 0, x.shape[dim])
        return self.out(filtered)


def _transform(x: Tensor, dims: tuple[int, ...], *, inverse: bool) -> Tensor:
    """The discrete Fourier transform by its definition, one axis after the other."""
    y = x.to(torch.complex128)
    for dim in dims:
        n = torch.arange(x.shape[dim], dtype=torch.float64)
        phase = torch.exp((2j if inverse else -2j) * torch.pi * n[:, None] * n[None, :] / x.shape[dim])
        y = torch.movedim(torch.movedim(y, dim, -1) @ phase, -1, dim)
    return y


def _wavenumbers(geometry: Geometry, axes: list[int], shape: list[int]) -> tuple[list[Tensor], Tensor]:
    """Components of k ``(1, *half lattice)`` and |k|; the odd part has none at the Nyquist wavenumber of an axis."""
    columns, squares = [], []
    for place, (index, n) in enumerate(zip(axes, shape)):
        axis = geometry.axes[index]
        extent = axis.period[0] if axis.period is not None else 2 * axis.weights()[0].sum()
        last = place == len(axes) - 1
        m = torch.arange(n // 2 + 1, device=axis.coord.device) if last else torch.fft.fftfreq(
            n, 1 / n, device=axis.coord.device).round()
        k = m.to(axis.coord.dtype) / extent
        view = [1] * (1 + len(geometry.axes))
        view[1 + index] = len(k)
        squares.append((k**2).view(view))
        columns.append(torch.where(2 * m.abs() == n, torch.zeros_like(k), k).view(view))
    return columns, sum(squares[1:], squares[0]).sqrt()


PLUGIN = Radial
