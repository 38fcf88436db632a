"""Quantiles by their pinball loss, all else by squared error.

The head `quantiles` has one output per level; ``batch.kept["levels"]`` ``(S, K)`` holds the levels, in the order of the
outputs and the same in every row. The truth is the target's value for each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.losses import Segments, mae, mse
from sciml.tokens import Outputs, TokenBatch

HEAD, LEVELS = "quantiles", "levels"


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: squared error in squared units of link space, plus the pinball loss of head `quantiles` in those units;
    added up over the heads that a batch has targets for; 0 at the truth."""
    segments, total = Segments.of(batch), None
    for head, target in batch.targets.items():
        prediction = target.predict(outputs[head])
        if head == HEAD:
            loss = pinball(prediction, target.value, target.mask, batch.kept[LEVELS][0], segments)
        else:
            loss = mse(prediction, target.value, target.mask, segments)
        total = loss if total is None else total + loss
    assert total is not None
    return total


def pinball(prediction: Tensor, value: Tensor, mask: Tensor, levels: Tensor,
            segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``: mean over cells and levels q ``(K,)``, last dimension, of ``2 max(q e, (q − 1) e)`` with
    e = value − prediction: of the one level 0.5 the absolute error, of many an estimate of the CRPS.

    Quantiles may cross: each is asked for on its own, and whoever reads them sorts them, which never makes the loss
    larger (Chernozhukov, Fernández-Val & Galichon, Econometrica 78, 2010). Source of the loss: Koenker & Bassett,
    Econometrica 46 (1978).

    >>> three, there = torch.tensor([[1.0, 2.0, 5.0]]), torch.ones(1, 1, dtype=torch.bool)
    >>> round(3 * pinball(three, torch.tensor([[2.0]]), there, torch.tensor([0.1, 0.5, 0.9])).item(), 3)
    0.8
    """
    error = value - prediction
    cells = 2 * torch.maximum(levels * error, (levels - 1) * error)
    return mae(cells, torch.zeros_like(cells), mask, segments)


PLUGIN = objective
