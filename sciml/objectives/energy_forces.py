"""Energies per segment and forces per atom, each in units of its own residual scale."""

from __future__ import annotations

from torch import Tensor

from sciml.losses import Segments, mse
from sciml.tokens import Outputs, TokenBatch

FORCE_WEIGHT = 10.0


def objective(outputs: Outputs, batch: TokenBatch) -> Tensor:
    """``(S,)``: squared error of ``energy / scale`` plus 10 times that of the force components."""
    energy, force = batch.targets["energy"], batch.targets["forces"]
    residual = (energy.predict(outputs["energy"]) - energy.value) / energy.scale
    count = segment_sizes(batch)
    loss = mse(residual / count, residual * 0, energy.mask)
    error = (force.predict(outputs["forces"]) - force.value) / force.scale
    return loss + FORCE_WEIGHT * mse(error, error * 0, force.mask, Segments.of(batch))


def segment_sizes(batch: TokenBatch) -> Tensor:
    """``(S, 1)`` number of tokens of every packed sample."""
    packed = batch.packed_axis
    assert packed is not None
    segment = batch.axes[packed].segment
    assert segment is not None
    return segment[0].bincount(minlength=batch.num_segments)[:, None].to(batch.values.dtype)


PLUGIN = objective
