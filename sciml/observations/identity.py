"""The image itself: what a noisy image measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """A x = x."""

    complex_image: ClassVar[bool] = False

    def forward(self, image: Tensor) -> Tensor:
        return image

    def adjoint(self, measurement: Tensor) -> Tensor:
        return measurement

    @classmethod
    def example(cls, lattice: Sequence[int], generator: torch.Generator) -> Self:
        return cls()


PLUGIN = Identity
