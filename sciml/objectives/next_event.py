"""What comes next in a marked point process, and when: both in nats per event, 0 at the truth."""

from __future__ import annotations

from torch import Tensor

from sciml.losses import Segments, mae
from sciml.tokens import Outputs, TokenBatch


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: cross entropy of head ``unit`` (one-hot value, logits predicted) plus that of head ``wait``.

    The waiting time w is exponential with the predicted log mean; its likelihood is counted from that of mean = w:
    ``w / mean − 1 − log(w / mean)`` (half the gamma deviance, McCullagh & Nelder 1989, §8.3).
    """
    unit, wait = batch.targets["unit"], batch.targets["wait"]
    surprise = -(unit.predict(outputs["unit"]).log_softmax(-1) * unit.value).sum(-1, keepdim=True)
    ratio = wait.value.clamp_min(1e-6).log() - wait.predict(outputs["wait"])
    late = ratio.exp() - 1 - ratio
    segments = Segments.of(batch)  # both are never negative: their mean is their mean absolute value
    return mae(surprise, surprise * 0, unit.mask, segments) + mae(late, late * 0, wait.mask, segments)


PLUGIN = objective
