"""Rates by their likelihood, Poisson or, where a batch asks for dispersions, negative binomial; states by cross
entropy, an embedding by neighbourhoods, all else by squared error.

Terms are added up over the heads a batch has targets for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.losses import Segments, mse, poisson
from sciml.objectives.cross_entropy import loss as cross_entropy
from sciml.tokens import Outputs, TokenBatch

RATES, STATES, EMBEDDINGS, DISPERSIONS = ("next", "rate"), ("state",), ("embedding",), ("dispersion",)
LEAST = -13.0
"""Of the log of a dispersion: below, it is Poisson's to seven digits."""


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: nats per cell of the heads ``next`` and ``rate``, nats per bin of ``state`` and ``embedding``, squared
    standard deviations of all others (traces, behaviour); 0 at the truth."""
    segments, total = Segments.of(batch), None
    for head, target in batch.targets.items():
        if head in DISPERSIONS:
            continue
        prediction = target.predict(outputs[head])
        if head in RATES and DISPERSIONS[0] in batch.targets:
            beside = batch.targets[DISPERSIONS[0]].predict(outputs[DISPERSIONS[0]])
            loss = negative_binomial(prediction, beside, target.value, target.mask)
        elif head in STATES:
            loss = cross_entropy(prediction, target.value, target.mask)
        elif head in EMBEDDINGS:
            loss = neighbourhoods(prediction, target.value, target.mask)
        else:
            loss = (poisson if head in RATES else mse)(prediction, target.value, target.mask, segments)
        total = loss if total is None else total + loss
    assert total is not None
    return total


def negative_binomial(log_rate: Tensor, log_dispersion: Tensor, count: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` mean over cells of the negative log-likelihood of NB2, variance μ + α μ² (Cameron & Trivedi, Regression
    Analysis of Count Data, ch. 3), less that of Poisson at its best, μ = y, in nats: 0 there as α → 0, Poisson's loss
    there for all μ. With r = 1/α it is y ln y − y − ln Γ(y + r) + ln Γ(r) − y ln α μ + (y + r) ln(1 + α μ).

    >>> y = torch.tensor([[3.0]])
    >>> negative_binomial(y.log(), torch.tensor([[-40.0]]), y, y > 0).round(decimals=4).abs().tolist()
    [0.0]
    """
    log_a, y, log_mu = log_dispersion.double().clamp(LEAST, -LEAST), count.double(), log_rate.double()
    r, factor = (-log_a).exp(), torch.nn.functional.softplus(log_a + log_mu)
    cells = (torch.xlogy(y, y) - y - torch.lgamma(y + r) + torch.lgamma(r) - y * (log_a + log_mu) + (y + r) * factor)
    return _over_samples(torch.where(mask, cells, 0.0), mask.expand(cells.shape)).to(log_rate)


def neighbourhoods(place: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` mean over cells i of KL(p(· | i) ‖ q(· | i)) in nats, p(j | i) the softmax over all other cells of the
    batch of −|truth_i − truth_j|²/2, and q the same of the places ``(B, …, E)``.

    Neighbours in behaviour become neighbours in the embedding, wherever it lies and however it is turned: stochastic
    neighbour embedding (Hinton & Roweis, NeurIPS 2002), the continuous form of a contrastive loss over a batch (as
    used for behaviour by Schneider et al., Nature 617, 2023). Samples without two known cells in the batch give 0.
    """
    known = mask.all(-1).flatten(1)
    sample = torch.arange(len(place), device=place.device)[:, None].expand(known.shape)[known]
    z, y = (x.flatten(1, -2)[known] for x in (place, truth))
    if len(z) < 3:
        return (place * 0.0).flatten(1).sum(1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_q, log_p = (_similarity(x).masked_fill(own, -torch.inf).log_softmax(-1) for x in (z, y))
    share = log_p.exp()
    cells = torch.where(own, 0.0, share * (log_p - log_q).masked_fill(own, 0.0)).sum(-1)
    total = cells.new_zeros(len(place)).index_add(0, sample, cells)
    return total / known.sum(1).clamp_min(1)


def _similarity(x: Tensor) -> Tensor:
    """``(n, n)`` −|x_i − x_j|²/2, up to a constant in each row."""
    return x @ x.T - x.square().sum(-1) / 2


def _over_samples(cells: Tensor, counted: Tensor) -> Tensor:
    weight = counted.to(cells.dtype).flatten(1)
    return (cells.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1.0)


PLUGIN = objective
