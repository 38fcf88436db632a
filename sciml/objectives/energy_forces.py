"""Absolute errors of energies, forces and whatever else is known of a configuration, each in units of its scale."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.losses import Segments
from sciml.tokens import Outputs, TokenBatch

ENERGY_WEIGHT = 1.5
SMOOTH = 1e-3
"""Errors below are squared, so that the gradient at the truth is zero."""


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: Σ over targets of √(e² + δ²) − δ with e the error over the target's scale. Of the energy e is per atom,
    weighted by 1.5; of the forces it is the length of an atom's error, mean over the atoms known. An absolute error
    weighs a few bad frames less than a square does, and its gradient doesn't fade as the fit gets good."""
    segments = Segments.of(batch)
    assert segments is not None
    total = batch.values.new_zeros(batch.num_segments)
    for head, target in batch.targets.items():
        error = (target.predict(outputs[head]) - target.value) / target.scale
        if target.value.ndim == 3:  # one vector per atom
            known = target.mask.expand(error.shape).all(-1, keepdim=True)
            length = soft(torch.where(known, error, 0.0).square().sum(-1, keepdim=True))
            count = segments.total(known.to(error.dtype))
            total = total + (segments.total(length) / count.clamp_min(1))[:, 0]
            continue
        part = soft(torch.where(target.mask, error, 0.0).square()).mean(-1)
        total = total + (part if head != "energy" else ENERGY_WEIGHT * part / segment_sizes(batch)[:, 0])
    return total


def soft(square: Tensor) -> Tensor:
    return (square + SMOOTH**2).sqrt() - SMOOTH


def segment_sizes(batch: TokenBatch) -> Tensor:
    """``(S, 1)`` number of tokens of every packed sample."""
    packed = batch.packed_axis
    assert packed is not None
    segment = batch.axes[packed].segment
    assert segment is not None
    return segment[0].bincount(minlength=batch.num_segments)[:, None].to(batch.values.dtype)


PLUGIN = objective
