"""What a linear observation promises, and what follows from that alone: its gradient, its norm, one by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from sciml import registry
from sciml.errors import InputError

GROUP = "sciml.observations"


class Observation(Protocol):
    """A linear map A of images ``(B, *lattice)`` to measurements ``(B, …)``, with its adjoint A*: Re⟨Ax, y⟩ = Re⟨x,
    A*y⟩.

    A frozen dataclass: tensors are what may differ between samples (leading dimension B or 1), all else is an option of
    a recipe. Both maps are differentiable and follow the image's precision and device. complex_image: whether images
    are complex tensors; a map of real ones takes complex ones too where that has a meaning.
    """

    complex_image: ClassVar[bool]

    def forward(self, image: Tensor) -> Tensor: ...

    def adjoint(self, measurement: Tensor) -> Tensor: ...

    @classmethod
    def example(cls, lattice: Sequence[int], generator: torch.Generator) -> Self:
        """One that measures images of this lattice (2-D or 3-D), on which tests hold the contract."""
        ...


def make(name: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor] = {}, *,
         where: object = "observation") -> Observation:
    """The observation of that name. Raises `InputError` naming the option that it doesn't know or that it needs.

    >>> make("blur", {"width_cells": (1.0, 1.0)}).forward(torch.ones(1, 5, 5)).shape
    torch.Size([1, 5, 5])
    """
    kind = registry.find(GROUP, name, where=where)
    known = fields(kind) if is_dataclass(kind) else ()
    given = {**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}, **tensors}
    for key in set(given) - {f.name for f in known}:
        raise InputError(where, key=f"{name}.{key}", found="an option that it doesn't have",
                         expected=f"among {', '.join(f.name for f in known) or 'none'}", fix="correct the name")
    for f in known:
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(where, key=f"{name}.{f.name}", found="nothing", expected="a value", fix="give one")
    made: Observation = kind(**given)
    return made


def tensors_of(observation: Observation) -> dict[str, Tensor]:
    """What differs between samples, by field: with the options and the name, all that `make` needs."""
    values = {f.name: getattr(observation, f.name) for f in fields(observation)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def gradient(observation: Observation, image: Tensor, measurement: Tensor) -> Tensor:
    """A*(A x − y), the gradient of ½‖A x − y‖² by the image (for a complex one by its conjugate, times two)."""
    return observation.adjoint(observation.forward(image) - measurement)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``(B,)`` Re⟨a, b⟩ over all but the first dimension.

    >>> inner(torch.tensor([[1j, 2]]), torch.tensor([[1j, 1]])).tolist()
    [3.0]
    """
    return (a.conj() * b).real.flatten(1).sum(1) if a.is_complex() or b.is_complex() else (a * b).flatten(1).sum(1)


def norm(observation: Observation, like: Tensor, iterations: int = 20) -> Tensor:
    """``(B,)`` the largest singular value, by power iteration on A*A from a fixed random image like `like`.

    Approaches it from below; after 20 iterations it is a few per cent short at most, since the start has all
    directions. """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    value = inner(image, image)
    with torch.no_grad():
        for _ in range(iterations):
            image = image / inner(image, image).sqrt().clamp_min(1e-30).view(-1, *[1] * (image.ndim - 1))
            image = observation.adjoint(observation.forward(image))
            value = inner(image, image).sqrt()
    return value.sqrt()
