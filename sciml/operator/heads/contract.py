"""What a head is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sciml.mixers.geometry import Geometry
from sciml.operator.named import NamedTables
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class HeadInput:
    """tokens: ``(B, *tokens, width)``, normalised; sizes: cells per token along each axis; levels: tokens of every
    level, finest first; identities: the stem's embedding tables."""

    tokens: Tensor
    sizes: Sequence[int]
    batch: TokenBatch
    geometry: Geometry
    identities: NamedTables
    levels: tuple[Tensor, ...] = ()
