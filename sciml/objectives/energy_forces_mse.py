"""Squared errors of energies per segment and forces per atom, each in units of its own residual scale."""

from __future__ import annotations

from torch import Tensor

from sciml.losses import Segments, mse
from sciml.objectives.energy_forces import segment_sizes
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


PLUGIN = objective
