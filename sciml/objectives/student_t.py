"""A forecast's whole distribution as Student's t by its likelihood, all else by squared error.

The head `student_t` has the outputs `loc`, `log_scale` and `log_df`, predictions in link space: scale = exp(log_scale),
degrees of freedom = 2 + exp(log_df), so that the variance exists.
"""

from __future__ import annotations

from torch import Tensor

from sciml.losses import STUDENT_T, Segments, mse, student_t_surprise
from sciml.tokens import Outputs, TokenBatch


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: nats per cell of head `student_t`, squared units of link space of all others; added up over the heads
    that a batch has targets for; 0 at the truth."""
    segments, total = Segments.of(batch), None
    for head, target in batch.targets.items():
        prediction = target.predict(outputs[head])
        if head == STUDENT_T:
            loss = student_t_surprise(prediction, target.value[..., :1], target.mask[..., :1], segments)
        else:
            loss = mse(prediction, target.value, target.mask, segments)
        total = loss if total is None else total + loss
    assert total is not None
    return total


PLUGIN = objective
