"""Stems: a TokenBatch's values and lattice conditions → tokens of the finest level, and what heads may read beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sciml.operator.named import NamedTables
from sciml.tokens import Axis, TokenBatch, TokenSpec


class Stem(Protocol):
    """``stem(batch, sizes)``: tokens ``(B, *tokens, width)``, or these and features of finer resolutions, finest first,
    which heads find in `HeadInput.fine`; made by ``(spec, config)``. The lattice is a multiple of `sizes`."""

    identities: NamedTables

    def extend(self, spec: TokenSpec) -> None:
        """Add what new names in `spec` need; existing weights are untouched."""
        ...

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of the tokens."""
        ...

    def __call__(self, batch: TokenBatch, sizes: Sequence[int]) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]: ...


def read_in(stem: Stem, batch: TokenBatch, sizes: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Tokens, and the finer features of a stem that has any."""
    found = stem(batch, sizes)
    return found if isinstance(found, tuple) else (found, ())
