"""What an objective is, and the mean over heads that the simple ones share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sciml.losses import Segments
from sciml.tokens import Outputs, TokenBatch


class Objective(Protocol):
    """``objective(outputs, batch) → (S,)``: one loss per segment, 0 at the truth, however a batch is cut."""

    def __call__(self, outputs: Outputs, batch: TokenBatch) -> Tensor: ...


def mean_over_heads(loss: Callable[..., Tensor], outputs: Outputs, batch: TokenBatch) -> Tensor:
    values = []
    for head, target in batch.targets.items():
        prediction = target.predict(outputs[head])
        per_cell = target.value.ndim > 2
        values.append(loss(prediction, target.value, target.mask, Segments.of(batch) if per_cell else None))
    return torch.stack(values).mean(0)
