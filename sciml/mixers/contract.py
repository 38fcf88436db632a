"""The contract that every mixer keeps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sciml.mixers.geometry import NUM_ROLES, Geometry
from sciml.tokens import Axis

MixerState = Any


class Mixer(nn.Module):
    """``forward(x, geometry, state) → (x, state)`` over a lattice.

    x: ``(B, *lattice, C)``. state: None to run without memory; ``()`` to start one along the causal axis; what the last
    call returned to go on with the indices that follow. A mixer with no admissible axis contributes zeros.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads

    @abstractmethod
    def admits(self, axis: Axis) -> bool:
        """Whether this mixer can act along that axis."""

    @abstractmethod
    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]: ...

    @abstractmethod
    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        """The same map, written to be read rather than to be fast; tests hold `forward` against it in float64."""

    def axes(self, geometry: Geometry) -> list[int]:
        return [i for i, axis in enumerate(geometry.axes) if self.admits(axis)]


class RoleGain(nn.Module):
    """One gain per channel and axis role (x, y, z, time, set): what lets shared weights tell axes apart.

    Without it a network whose weights are shared by all axes commutes with transposition, and could not represent
    u·∇ω, which does not.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.5 * torch.randn(NUM_ROLES, width))

    def forward(self, x: Tensor, role: int) -> Tensor:
        return x * self.weight[role]
