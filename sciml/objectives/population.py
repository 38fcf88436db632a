"""Rates by their Poisson likelihood, behaviour by its squared error, added up over the heads a batch has targets for."""

from __future__ import annotations

from torch import Tensor

from sciml.losses import Segments, mse, poisson
from sciml.tokens import Outputs, TokenBatch

RATES = ("next", "rate")


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: nats per cell of the heads ``next`` and ``rate``, squared standard deviations of all others; 0 at the
    truth."""
    segments, total = Segments.of(batch), None
    for head, target in batch.targets.items():
        loss = (poisson if head in RATES else mse)(target.predict(outputs[head]), target.value, target.mask, segments)
        total = loss if total is None else total + loss
    assert total is not None
    return total


PLUGIN = objective
