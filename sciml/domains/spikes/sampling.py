"""Temperature and nucleus, of counts and of units alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig


def nucleus(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """``(..., K)`` probabilities of logits over the temperature, kept to the fewest outcomes that hold `top_p` of the
    chance (Holtzman et al., "The curious case of neural text degeneration", ICLR 2020) and renormalised.

    >>> nucleus(torch.tensor([3.0, 2.0, -9.0]), SamplingConfig(top_p=0.6)).tolist()
    [1.0, 0.0, 0.0]
    """
    chance = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return chance
    ordered, place = chance.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(chance).scatter(-1, place, torch.where(before < sampling.top_p, ordered, 0.0))
    return kept / kept.sum(-1, keepdim=True)
