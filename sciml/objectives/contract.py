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


def over_levels(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss of a prediction whose last dimension has the outputs of several resolutions, finest first: the mean with
    weights 1, ½, ¼, … Coarser ones are repeated to the cells, so that sums over cells ask them for the shares of what
    lies in theirs. Source: Isensee et al., "nnU-Net", Nature Methods 18 (2021).

    >>> one = lambda prediction, value, mask, segments=None: (prediction - value).abs().mean((1, 2))
    >>> over_levels(one)(torch.tensor([[[1.0, 4.0]]]), torch.zeros(1, 1, 1), None).tolist()
    [2.0]
    """
    def mean(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
        levels = prediction.split(value.shape[-1], -1)
        weights = [0.5**i for i in range(len(levels))]
        values = [weight * loss(level, value, mask, segments) for weight, level in zip(weights, levels)]
        return torch.stack(values).sum(0) / sum(weights)

    return mean
