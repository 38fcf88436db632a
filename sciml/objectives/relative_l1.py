"""The relative_l1 of the prediction in link space, mean over the heads that a batch has targets for."""

from __future__ import annotations

from torch import Tensor

from sciml.losses import relative_l1
from sciml.objectives.contract import mean_over_heads
from sciml.tokens import Outputs, TokenBatch


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)`` one value per sample; 0 at the truth."""
    return mean_over_heads(relative_l1, outputs, batch)


PLUGIN = objective
