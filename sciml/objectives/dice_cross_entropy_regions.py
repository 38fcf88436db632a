"""Which of several regions, that may lie inside one another, every cell is in: soft Dice plus binary cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sciml.losses import Segments
from sciml.objectives.contract import mean_over_heads, over_levels
from sciml.objectives.dice_cross_entropy import mean_over_cells, soft_dice
from sciml.tokens import Outputs, TokenBatch


def loss(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``; prediction: a logit per region ``(B, *lattice, regions)``, value: 1 inside, mask: one flag
    per cell. The cross entropy is the mean over regions and cells."""
    entropy = F.binary_cross_entropy_with_logits(prediction, value, reduction="none").mean(-1, keepdim=True)
    return mean_over_cells(entropy, mask, segments) + soft_dice(prediction.sigmoid(), value, mask[..., :1], segments)


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)`` one value per sample, mean over heads and, where an output has several, resolutions; 0 at the truth."""
    return mean_over_heads(over_levels(loss), outputs, batch)


PLUGIN = objective
