"""Rates by their Poisson likelihood, states by cross entropy, an embedding by neighbourhoods, all else by squared
error.

Terms are added up over the heads a batch has targets for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.losses import Segments, mse, poisson
from sciml.tokens import Outputs, TokenBatch

RATES, STATES, EMBEDDINGS = ("next", "rate"), ("state",), ("embedding",)


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: nats per cell of the heads ``next`` and ``rate``, nats per bin of ``state`` and ``embedding``, squared
    standard deviations of all others (traces, behaviour); 0 at the truth."""
    segments, total = Segments.of(batch), None
    for head, target in batch.targets.items():
        prediction = target.predict(outputs[head])
        if head in STATES:
            loss = cross_entropy(prediction, target.value, target.mask)
        elif head in EMBEDDINGS:
            loss = neighbourhoods(prediction, target.value, target.mask)
        else:
            loss = (poisson if head in RATES else mse)(prediction, target.value, target.mask, segments)
        total = loss if total is None else total + loss
    assert total is not None
    return total


def cross_entropy(logits: Tensor, shares: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` mean over cells of KL(shares ‖ softmax(logits)) in nats, classes last: the cross entropy less the
    entropy of the shares. Classes that the mask excludes have no probability; cells that it excludes don't count.

    >>> x = torch.tensor([[[1.0, 0.0]]])
    >>> cross_entropy(torch.zeros(1, 1, 2), x, torch.ones(1, 1, 2, dtype=torch.bool)).exp().tolist()
    [2.0]
    """
    counted = mask.any(-1)
    log_p = torch.where(mask | ~counted[..., None], logits, -torch.inf).log_softmax(-1)
    cells = torch.where(mask, torch.xlogy(shares, shares) - shares * torch.where(mask, log_p, 0.0), 0.0).sum(-1)
    return _over_samples(cells, counted)


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
