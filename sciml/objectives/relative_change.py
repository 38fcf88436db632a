"""The relative_l2 of what the baseline misses, in the operator's own units: for steps that change little of a state."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.losses import Segments, relative_l2
from sciml.tokens import Outputs, TokenBatch


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)`` one value per sample; 0 at the truth, 1 at the baseline, whatever else the state holds (the mean of a
    stream, of which a step changes a hundredth)."""
    values = []
    for head, target in batch.targets.items():
        segments = Segments.of(batch) if target.value.ndim > 2 else None
        values.append(relative_l2(target.predict(outputs[head]) - target.baseline, target.value - target.baseline,
                                  target.mask, segments))
    return torch.stack(values).mean(0)


PLUGIN = objective
