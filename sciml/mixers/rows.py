"""A lattice as rows along one of its axes, or with all other axes in the batch; which axes are plain lines."""

from __future__ import annotations

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


def spread(table: Tensor, shape: torch.Size, index: int) -> Tensor:
    """A table ``(B or 1, 1, n, K)`` for rows ``(B * others, …)``."""
    if table.shape[0] == 1:
        return table
    return table.repeat_interleave(shape[1:-2].numel() // shape[index + 1], dim=0)


def axis_bias(geometry: Geometry, index: int, shape: torch.Size) -> Tensor | None:
    """Additive term of one axis's logits for rows ``(B * others, 1 or H, 1 or n, n)``, or None.

    shape: of queries, ``(B, *lattice, H, D)``.
    """
    weight, pair = geometry.key_bias((index,)), geometry.pair_term((index,), shape[-2])
    bias = None if weight is None else spread(weight[:, None, None, :], shape, index)
    if pair is None:
        return bias
    return spread(pair, shape, index) if bias is None else bias + spread(pair, shape, index)


def fold(x: Tensor, axes: list[int]) -> Tensor:
    """``(B, *lattice, C)`` → ``(B * rest, *axes, C)``: axes that are not named join the batch."""
    rest = [i for i in range(x.ndim - 2) if i not in axes]
    return x.permute(0, *[i + 1 for i in rest], *[i + 1 for i in axes], x.ndim - 1).flatten(0, len(rest))


def unfold(y: Tensor, shape: torch.Size, axes: list[int]) -> Tensor:
    """The inverse of `fold`, to ``(*shape[:-1], C)``."""
    rest = [i for i in range(len(shape) - 2) if i not in axes]
    order = [0, *[i + 1 for i in rest], *[i + 1 for i in axes], len(shape) - 1]
    y = y.reshape(*[shape[i] for i in order[:-1]], y.shape[-1])
    return y.permute(sorted(range(len(shape)), key=order.__getitem__))


def spread_batch(table: Tensor, batch: int) -> Tensor:
    """A table ``(B or 1, …)`` for a folded batch ``B * rest``."""
    return table if table.shape[0] == 1 else table.repeat_interleave(batch // table.shape[0], dim=0)
