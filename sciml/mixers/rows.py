"""A lattice as rows along one of its axes, or with all other axes in the batch; which axes are plain lines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis


def both_ways(axis: Axis) -> bool:
    """Whether neighbours and distances along the axis mean something in both directions: space or time, neither causal
    nor packed."""
    return axis.kind != "set" and not axis.causal and axis.segment is None


def axis_rows(t: Tensor, index: int) -> Tensor:
    """``(B, *lattice, H, D)`` → contiguous ``(B * others, H, n, D)``: 4-D, so that the fused kernel is taken."""
    return t.movedim(index + 1, -2).flatten(0, -4).contiguous()


def axis_lattice(y: Tensor, shape: torch.Size, index: int) -> Tensor:
    """The inverse of `axis_rows`, heads flattened: ``(B, *lattice, C)``."""
    others = [n for i, n in enumerate(shape[:-2]) if i != index + 1]
    return y.reshape(*others, *y.shape[1:]).movedim(-2, index + 1).flatten(-2)


def spread(table: Tensor, rows: int) -> Tensor:
    """A table ``(B or 1, …)`` for `rows` rows, B samples times the indices of the axes that have joined the batch."""
    if table.shape[0] in (1, rows):
        return table
    return table.repeat_interleave(rows // table.shape[0], dim=0)


def spread_pair(tables: tuple[Tensor, Tensor] | None, rows: int) -> tuple[Tensor, Tensor] | None:
    """`spread` of cos and sin, if there are any."""
    return None if tables is None else (spread(tables[0], rows), spread(tables[1], rows))


def axis_bias(geometry: Geometry, index: int, rows: int, heads: int) -> Tensor | None:
    """Additive term of one axis's logits, ``(rows or 1, 1 or H, 1 or n, n)``, or None."""
    weight, pair = geometry.key_bias((index,)), geometry.pair_term((index,), heads)
    bias = None if weight is None else spread(weight[:, None, None, :], rows)
    if pair is None:
        return bias
    return spread(pair, rows) if bias is None else bias + spread(pair, rows)


def fold(x: Tensor, axes: Sequence[int]) -> Tensor:
    """``(B, *lattice, C)`` → ``(B * rest, *axes, C)``: axes that are not named join the batch."""
    rest = [i for i in range(x.ndim - 2) if i not in axes]
    return x.permute(0, *[i + 1 for i in rest], *[i + 1 for i in axes], x.ndim - 1).flatten(0, len(rest))


def unfold(y: Tensor, shape: torch.Size, axes: Sequence[int]) -> Tensor:
    """The inverse of `fold`, to ``(*shape[:-1], C)``."""
    rest = [i for i in range(len(shape) - 2) if i not in axes]
    order = [0, *[i + 1 for i in rest], *[i + 1 for i in axes], len(shape) - 1]
    y = y.reshape(*[shape[i] for i in order[:-1]], y.shape[-1])
    return y.permute(sorted(range(len(shape)), key=order.__getitem__))
