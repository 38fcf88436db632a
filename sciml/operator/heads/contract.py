"""What a head is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sciml.mixers.geometry import Geometry
from sciml.operator.named import NamedTables
from sciml.tokens import HeadSpec, TokenBatch, TokenSpec


class Head(Protocol):
    """``head(given)``: outputs of one kind; made by ``(spec, head, stem_width, width)``.

    A class whose output has the cells of the lattice says so by ``on_lattice = True``; it is cropped as they are.
    """

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        """Add what new names in `head` or new members in `spec` need; existing weights are untouched."""
        ...

    def __call__(self, given: HeadInput) -> Tensor: ...


@dataclass(frozen=True)
class HeadInput:
    """tokens: ``(B, *tokens, width)``, normalised; sizes: cells per token along each axis; levels: tokens of every
    level, finest first; identities: the stem's embedding tables; fine: what a stem has of finer resolutions
    (`sciml.operator.stems.Stem`)."""

    tokens: Tensor
    sizes: Sequence[int]
    batch: TokenBatch
    geometry: Geometry
    identities: NamedTables
    levels: tuple[Tensor, ...] = ()
    fine: tuple[Tensor, ...] = ()
