"""Factorized spectral convolution: neuraloperator's SpectralConv in one dimension, along each axis, shared by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.mixers.rows import both_ways
from sciml.tokens import Axis

MODES = 16


class Spectral(Mixer):
    """mean over axes a of gainₐ ⊙ irfft(R · rfftₐ(x)) on the lowest 16 modes (F-FNO's factorization).

    The transform is normalised as a function's (``norm="forward"``), so the same function at another resolution gives
    the same coefficients. An axis that is not periodic is extended evenly, which removes the seam. Sets, causal and
    packed axes join the batch; cells count the same, whatever their measure.
    """

    compilable: ClassVar[bool] = False  # neuraloperator's layer changes a list as it runs

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        from neuralop.layers.spectral_convolution import SpectralConv

        self.convolution = SpectralConv(width, width, n_modes=(2 * MODES,), bias=False)
        self.gain = RoleGain(width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Spectral:
        """``to(dtype)`` leaves complex weights as they are: of a real dtype they would lose their imaginary part."""
        def keep(t: Tensor) -> Tensor:
            return t.to(fn(torch.view_as_real(t)).device) if t.is_complex() else fn(t)
        return super()._apply(keep, recurse)

    def admits(self, axis: Axis) -> bool:
        return both_ways(axis) and axis.size > 1

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        total = torch.zeros_like(x)
        for index in axes:
            line = x.movedim(index + 1, -1)  # (B, *others, C, n)
            rows = line.reshape(-1, *line.shape[-2:])
            size = rows.shape[-1]
            if geometry.axes[index].period is None:
                rows = torch.cat([rows, rows.flip(-1)], -1)
            y = self.convolution(rows.float().contiguous())[..., :size].to(x.dtype)  # its weights are complex64
            total = total + self.gain(y.reshape(line.shape).movedim(-1, index + 1), geometry.role(index))
        return total / max(len(axes), 1), state

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes, weight = self.axes(geometry), self.convolution.weight.to_tensor()
        total = torch.zeros_like(x)
        for index in axes:
            line = x.movedim(index + 1, -1)
            size = line.shape[-1]
            if geometry.axes[index].period is None:
                line = torch.cat([line, line.flip(-1)], -1)
            n = line.shape[-1]
            modes = min(n // 2 + 1, weight.shape[-1])
            k = torch.arange(modes, dtype=x.dtype, device=x.device)
            j = torch.arange(n, dtype=x.dtype, device=x.device)
            phase = torch.exp(-2j * torch.pi * k[:, None] * j[None, :] / n)
            spectrum = torch.einsum("...cn,mn->...cm", line.to(phase.dtype), phase) / n
            mixed = torch.einsum("...cm,cdm->...dm", spectrum, weight[..., :modes].to(phase.dtype))
            double = torch.where((k == 0) | (2 * k == n), 1.0, 2.0).to(phase.dtype)
            y = torch.einsum("...dm,mn->...dn", mixed * double, phase.conj()).real[..., :size]
            total = total + self.gain(y.movedim(-1, index + 1), geometry.role(index))
        return total / max(len(axes), 1)


PLUGIN = Spectral
