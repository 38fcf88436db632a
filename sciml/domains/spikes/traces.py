"""Drawing the next bin of traces: normal around the prediction, as far as the classical predictor misses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.fitted import Fitted


def draw_values(fit: Fitted, members: np.ndarray, mean: Tensor, sampling: SamplingConfig,
                generator: torch.Generator) -> Tensor:
    """Traces ``(B, N)`` in their unit around standardised means ``(B, N)``, with the root mean squared error of the
    ridge on validation as standard deviation. The variance is multiplied by the temperature; of the normal
    distribution, the middle that holds `top_p` is kept. The draw is differentiable in the mean."""
    error = torch.tensor(fit.floors["next"].provenance["validation_rmse"], dtype=torch.float64)[members].to(mean)
    place = sampling.top_p * (2 * torch.rand(mean.shape, generator=generator, dtype=torch.float64) - 1)
    noise = (torch.erfinv(place) * (2 * sampling.temperature) ** 0.5).clamp(-6.0, 6.0).to(mean)
    return mean * fit.history.spread[members].to(mean) + fit.history.centre[members].to(mean) + error * noise
