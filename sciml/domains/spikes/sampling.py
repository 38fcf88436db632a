"""Drawing spikes from rates, with temperature and nucleus; differentiable in the rate."""

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


def draw_counts(log_rate: Tensor, most: int, sampling: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Poisson counts ``(...)`` of at most `most`: logits ``k log λ − log k!``. Their gradient is that of the rate
    (straight through; Bengio et al., arXiv:1308.3432)."""
    k = torch.arange(most + 1, dtype=log_rate.dtype, device=log_rate.device)
    logits = k * log_rate.detach()[..., None] - torch.lgamma(k + 1)
    chance = nucleus(logits, sampling)
    drawn = torch.multinomial(chance.flatten(0, -2).cpu(), 1, generator=generator).view(log_rate.shape)
    rate = log_rate.exp()
    return drawn.to(log_rate) + (rate - rate.detach())
