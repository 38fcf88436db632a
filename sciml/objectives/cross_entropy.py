"""Which of several classes a sample, or each of its cells, is of: nats, 0 at the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.losses import Segments, mae
from sciml.objectives.contract import mean_over_heads
from sciml.tokens import Outputs, TokenBatch


def loss(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``: KL(value ‖ softmax(prediction)), the cross entropy less the entropy of the value, mean over
    the cells that count; ``(S, K)`` of pooled heads, ``(B, *lattice, K)`` of others, classes last.

    value: one-hot, or shares that sum to one (smoothed labels; their link is log). mask: one flag per cell, or one per
    class: what it excludes has no probability, and a cell without any class doesn't count.
    Source: Kullback, Leibler, Ann. Math. Stat. 22, 1951.

    >>> loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 1, dtype=torch.bool)).exp().tolist()
    [2.0]
    """
    mask = mask.expand(prediction.shape)
    counted = mask.any(-1, keepdim=True)
    log_p = torch.where(counted, torch.where(mask, prediction, -torch.inf), 0.0).log_softmax(-1)
    cells = torch.where(mask, torch.xlogy(value, value) - value * torch.where(mask, log_p, 0.0), 0.0)
    nats = cells.sum(-1, keepdim=True)
    return mae(nats, torch.zeros_like(nats), counted, segments)


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)`` one value per sample, mean over heads; 0 at the truth."""
    return mean_over_heads(loss, outputs, batch)


PLUGIN = objective
