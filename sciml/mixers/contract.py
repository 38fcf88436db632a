"""The contract that every mixer keeps, and how a recipe names one."""

from __future__ import annotations

import inspect
import typing
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from sciml import registry
from sciml.mixers.geometry import NUM_ROLES, Geometry
from sciml.recipe import Section, validate
from sciml.tokens import Axis

MixerState = Any


class Mixer(nn.Module):
    """``forward(x, geometry, state) → (x, state)`` over a lattice.

    x: ``(B, *lattice, C)``. state: None to run without memory; ``()`` to start one along the causal axis; what the last
    call returned to go on with the indices that follow. A mixer with no admissible axis contributes zeros,
    and so does one with no samples.

    A constructor is ``(width, heads, *, option=default, …)``; its keyword-only arguments, with their annotations, are
    the mixer's options in a recipe. `forward` may be compiled: whatever depends on the geometry's values rather than
    its shapes is computed in `prepare` and kept in the geometry's memo.
    """

    compilable: ClassVar[bool] = True
    biased: ClassVar[bool] = True
    """Whether a pair bias enters, where the domain has one."""

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

    def prepare(self, geometry: Geometry) -> None:
        """Fill the geometry's memo with the tables that `forward` will look up; called once per level and pass."""

    def parameters_of(self, axes: Sequence[Axis]) -> set[str]:
        """Names of the parameters that a lattice with these axes can use: all, if any axis is admitted."""
        return {name for name, _ in self.named_parameters()} if any(self.admits(axis) for axis in axes) else set()

    def axes(self, geometry: Geometry) -> list[int]:
        return [i for i, axis in enumerate(geometry.axes) if self.admits(axis)]

    def acting(self, x: Tensor, geometry: Geometry) -> list[int]:
        """The axes to mix `x` along: all that are admitted, or none in a batch of no samples."""
        return self.axes(geometry) if x.shape[0] else []


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


def make_mixer(name: str, options: Mapping[str, Any], width: int, heads: int, *, where: object = "operator") -> Mixer:
    """The mixer of that name. Raises `InputError` for options that its constructor does not have or want.

    >>> make_mixer("full", {}, 16, 2).heads
    2
    """
    cls = registry.find("sciml.mixers", name, where=where)
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in inspect.signature(cls).parameters.values()
                              if p.kind is p.KEYWORD_ONLY}
    model: type[Section] = pydantic.create_model(f"mixer {name}", __base__=Section, **fields)
    mixer: Mixer = cls(width, heads, **dict(validate(model, dict(options), where=where)))
    return mixer
