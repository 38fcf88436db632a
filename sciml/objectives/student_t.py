"""A forecast's whole distribution as Student's t by its likelihood, all else by squared error.

The head `student_t` has the outputs `loc`, `log_scale` and `log_df`, predictions in link space: scale = exp(log_scale),
degrees of freedom = 2 + exp(log_df), so that the variance exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from sciml.losses import Segments, mae, mse
from sciml.tokens import Outputs, TokenBatch

HEAD = "student_t"
OUTPUTS = ("loc", "log_scale", "log_df")
LEAST_LOG_SCALE, MOST_LOG_DF = math.log(1e-3), 10.0
"""What lies beyond is taken as these: no sharper distribution is rewarded. A target's value is (truth, these two)."""


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: nats per cell of head `student_t`, squared units of link space of all others; added up over the heads
    that a batch has targets for; 0 at the truth."""
    segments, total = Segments.of(batch), None
    for head, target in batch.targets.items():
        prediction = target.predict(outputs[head])
        if head == HEAD:
            loss = surprise(prediction, target.value[..., :1], target.mask[..., :1], segments)
        else:
            loss = mse(prediction, target.value, target.mask, segments)
        total = loss if total is None else total + loss
    assert total is not None
    return total


def surprise(prediction: Tensor, value: Tensor, mask: Tensor, segments: Segments | None = None) -> Tensor:
    """``(B,)`` or ``(S,)``: mean over cells of the negative log-likelihood of the value ``(…, 1)`` less its least, that
    of the sharpest distribution allowed, at the truth.

    −ln p = ln Γ(ν/2) − ln Γ((ν + 1)/2) + ½ ln πν + ln σ + (ν + 1)/2 ln(1 + z²/ν) with z = (y − μ)/σ; at z = 0 it grows
    with σ and falls with ν. Source: Lange, Little & Taylor, J. Am. Stat. Assoc. 84 (1989). Computed in float64.

    >>> there, sharpest = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[3.0, LEAST_LOG_SCALE, MOST_LOG_DF]])
    >>> surprise(sharpest, torch.tensor([[3.0]]), there).item()
    0.0
    """
    loc, log_scale, log_df = prediction.double().unbind(-1)
    log_scale, df = log_scale.clamp_min(LEAST_LOG_SCALE), 2 + log_df.clamp_max(MOST_LOG_DF).exp()
    z = (value.double()[..., 0] - loc) / log_scale.exp()
    cells = at_mode(df) + log_scale + (df + 1) / 2 * torch.log1p(z.square() / df)
    least = at_mode(torch.full_like(df, 2 + math.exp(MOST_LOG_DF))) + LEAST_LOG_SCALE
    cells = (cells - least).to(prediction)[..., None]  # never negative: its mean is its mean absolute value
    return mae(cells, torch.zeros_like(cells), mask, segments)


def quantiles(prediction: Tensor, levels: Sequence[float]) -> Tensor:
    """``(…, A)`` of the distributions ``(…, 3)`` at these levels."""
    loc, log_scale, log_df = prediction.detach().cpu().double().unbind(-1)
    df = 2 + log_df.clamp_max(MOST_LOG_DF).exp()
    t = torch.from_numpy(stdtrit(df[..., None].numpy(), np.asarray(levels, np.float64)))
    return (loc[..., None] + log_scale.clamp_min(LEAST_LOG_SCALE).exp()[..., None] * t).to(prediction)


def at_mode(df: Tensor) -> Tensor:
    """−ln p of the standard distribution at 0."""
    return torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + (math.pi * df).log() / 2


PLUGIN = objective
