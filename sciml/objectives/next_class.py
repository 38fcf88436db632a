"""Which class comes next, where what came may be known only in part: nats per event, 0 at the truth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml.losses import Segments, mae
from sciml.objectives.contract import mean_over_heads
from sciml.tokens import Outputs, TokenBatch


def surprise(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``: mean over rows of ``−log Σ value · p``, less its least, p the softmax of the prediction
    ``(1, E, *cells)`` over the cells of a row that count. A one-hot value makes it the cross entropy; several cells:
    one of them came, each as likely seen as its value says. Rows in which nothing counts are left out."""
    cells = mask.expand(prediction.shape).flatten(2)
    counted = cells.any(-1, keepdim=True)
    logits = torch.where(counted, prediction.flatten(2).masked_fill(~cells, -math.inf), 0.0)
    share = torch.where(cells, value.flatten(2), 0.0)
    most = share.amax(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    seen = share > 0
    log_share = torch.where(seen, share / most, 1.0).log()
    log_p = torch.where(seen, logits.log_softmax(-1) + log_share, -math.inf)
    cost = -torch.where(counted, log_p, 0.0).logsumexp(-1, keepdim=True)
    cost = torch.where(counted, cost, 0.0)
    return mae(cost, torch.zeros_like(cost), counted, segments)


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)`` one value per sample; 0 at the truth."""
    return mean_over_heads(surprise, outputs, batch)


PLUGIN = objective
