"""The relative_l2 of the prediction in link space and, beside it, how far its spectrum is off."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.losses import log_spectrum, relative_l2
from sciml.tokens import Outputs, TokenBatch

WEIGHT = 0.01
"""Of the spectrum: a factor e at every wavenumber costs as much as a relative error of 1 %."""


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(B,)``: ``relative_l2 + 0.01 log_spectrum``, mean over the heads that a batch has targets for; 0 at the truth.

    Raises `InputError` for a batch without a periodic axis, or of points without order: it has no spectrum."""
    if not any(axis.kind == "space" and axis.period is not None for axis in batch.axes):
        raise InputError(", ".join(batch.sources), key="objective", found="no periodic axis",
                         expected="one of a grid to see a spectrum along", fix="choose relative_l2, which needs none")
    values = []
    for head, target in batch.targets.items():
        given = target.predict(outputs[head]), target.value, target.mask
        values.append(relative_l2(*given) + WEIGHT * log_spectrum(*given, batch.axes))
    return torch.stack(values).mean(0)


PLUGIN = objective
