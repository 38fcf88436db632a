"""The relative_h1 of the prediction in link space, on lattices of which nothing is packed: values and their slopes."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.losses import relative_h1
from sciml.tokens import Outputs, TokenBatch


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(B,)`` one value per sample, mean over the heads that a batch has targets for; 0 at the truth.

    Raises `InputError` for points without order: they have no neighbours to take slopes from."""
    if not any(axis.kind == "space" for axis in batch.axes):
        raise InputError(", ".join(batch.sources), key="objective", found="no axis of a grid",
                         expected="one to take slopes along", fix="choose relative_l2, which needs none")
    return torch.stack([relative_h1(target.predict(outputs[head]), target.value, target.mask, batch.axes)
                        for head, target in batch.targets.items()]).mean(0)


PLUGIN = objective
