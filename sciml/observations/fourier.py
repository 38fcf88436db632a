"""Samples of an image's Fourier transform through one or several receive coils: what a magnetic resonance scan
measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fourier:
    """y_c = mask · F(coil_c · x), F orthonormal over the whole lattice (Pruessmann et al., "SENSE", Magn. Reson. Med.
    42, 952, 1999); the zero frequency comes first along every axis, as in ``torch.fft``.

    mask: ``(B or 1, *lattice)``, 1 where sampled; lattice axes of size 1 are shared. coils: ``(B or 1, coils,
    *lattice)`` complex, or as real numbers with a last dimension of 2; None: one coil of sensitivity 1. Measurements
    are ``(B, coils, *lattice)``, without coils ``(B, *lattice)``, zero where not sampled. Its norm is at most the
    largest root of Σ |coil|² over the image. """

    mask: Tensor
    coils: Tensor | None = None
    complex_image: ClassVar[bool] = True

    def forward(self, image: Tensor) -> Tensor:
        if self.coils is None:
            return torch.fft.fftn(image, dim=self._dims(image), norm="ortho") * self.mask.to(image.real)
        seen = self._maps(image) * image[:, None]
        return torch.fft.fftn(seen, dim=self._dims(image), norm="ortho") * self.mask[:, None].to(image.real)

    def adjoint(self, measurement: Tensor) -> Tensor:
        mask = self.mask.to(measurement.real)
        if self.coils is None:
            return torch.fft.ifftn(measurement * mask, dim=self._dims(measurement), norm="ortho")
        seen = torch.fft.ifftn(measurement * mask[:, None], dim=self._dims(measurement[:, 0]), norm="ortho")
        return (self._maps(measurement).conj() * seen).sum(1)

    def _maps(self, like: Tensor) -> Tensor:
        assert self.coils is not None
        return (self.coils if self.coils.is_complex() else torch.view_as_complex(self.coils)).to(like)

    def _dims(self, image: Tensor) -> tuple[int, ...]:
        """The lattice's, counted from the end."""
        return tuple(range(1 - image.ndim, 0))

    @classmethod
    def example(cls, lattice: Sequence[int], generator: torch.Generator) -> Self:
        mask = (torch.rand(1, *lattice, generator=generator) < 0.4).double()
        return cls(mask, torch.randn(1, 3, *lattice, generator=generator, dtype=torch.complex128))


PLUGIN = Fourier
