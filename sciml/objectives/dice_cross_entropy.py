"""Which of several classes every cell is of: soft Dice of all but the first, the background, plus cross entropy."""

from __future__ import annotations

from torch import Tensor

from sciml.losses import Segments
from sciml.objectives.contract import mean_over_heads, over_levels
from sciml.tokens import Outputs, TokenBatch

SMOOTH = 1.0
"""Cells added to both halves of the Dice ratio: a class that is not there costs what is wrongly found of it."""


def soft_dice(p: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``: mean over classes (last dimension) of ``1 − (2 Σ p v + 1) / (Σ p + Σ v + 1)``, sums over
    the cells that count. 0 where nothing does.

    Source: Milletari, Navab, Ahmadi, "V-Net", 2016, with sums instead of sums of squares.

    >>> import torch
    >>> p, v = torch.tensor([[[0.5], [0.5]]]), torch.tensor([[[1.0], [0.0]]])
    >>> soft_dice(p, v, torch.ones(1, 2, 1, dtype=torch.bool)).tolist()
    [0.3333333134651184]
    """
    weight = mask.to(p.dtype)
    both, sizes = total(2 * weight * p * value, segments), total(weight * (p + value), segments)
    return (1 - (both + SMOOTH) / (sizes + SMOOTH)).mean(-1)


def total(cells: Tensor, segments: Segments | None) -> Tensor:
    """``(B or S, C)``: the sum over a sample's cells."""
    return cells.flatten(1, -2).sum(1) if segments is None else segments.total(cells)


def mean_over_cells(cells: Tensor, mask: Tensor, segments: Segments | None) -> Tensor:
    """``(B,)`` or ``(S,)``: mean of ``(B, *lattice, 1)`` over the cells that count."""
    weight = mask[..., :1].to(cells.dtype).expand_as(cells)
    return (total(weight * cells, segments) / total(weight, segments).clamp_min(1.0)).squeeze(-1)


def loss(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``; prediction: logits ``(B, *lattice, classes)`` of a softmax, value: one-hot, mask: one flag
    per cell."""
    log_p = prediction.log_softmax(-1)
    entropy = mean_over_cells(-(value * log_p).sum(-1, keepdim=True), mask, segments)
    return entropy + soft_dice(log_p.exp()[..., 1:], value[..., 1:], mask[..., :1], segments)


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)`` one value per sample, mean over heads and, where an output has several, resolutions; 0 at the truth."""
    return mean_over_heads(over_levels(loss), outputs, batch)


PLUGIN = objective
