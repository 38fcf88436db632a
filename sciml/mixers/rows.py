"""A lattice as rows along one of its axes, for mixers that act along one axis at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.mixers.geometry import Geometry


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


def axis_bias(geometry: Geometry, index: int, shape: torch.Size, *, past: bool = False) -> Tensor | None:
    """Additive term of one axis's logits for rows ``(B * others, 1, 1 or n, n)``, or None.

    past: there are keys from before, of the same sample and with equal weights.
    """
    if past:
        return None
    weight = geometry.key_bias((index,))
    bias = None if weight is None else spread(weight[:, None, None, :], shape, index)
    if geometry.pair_bias is not None and geometry.packed_axis == index:
        pair = geometry.pair_bias(shape[-2])
        bias = pair if bias is None else bias + pair
    return bias
