"""How a trained operator misses the bins of the training split: what generated activity needs to scatter as much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.domains.spikes.config import SpikesConfig
from sciml.domains.spikes.encode import DISPERSION
from sciml.domains.spikes.windows import Source, split_windows
from sciml.packing import collate
from sciml.tokens import Outputs, TokenBatch

BATCH, MOST_BINS = 16, 1 << 17
"""Windows at once; bins that are looked at, in windows spread evenly over the split."""


def next_bins(encode: Callable[[xr.Dataset], TokenBatch], forward: Callable[[TokenBatch], Outputs], source: Source,
              config: SpikesConfig) -> tuple[Tensor, Tensor]:
    """Of training bins ``(T, N)``: what is predicted of each from those before it, in link space, and what came, NaN
    where not recorded. Each bin occurs once."""
    windows = split_windows(source, "train", config, ["next"])
    blocks, scored = source.layout.blocks("train"), config.tasks["next"].scored
    windows = replace(windows, train=False, blocks=blocks, floor=config.corrects == "floor")
    rng, chosen = np.random.default_rng(0), np.arange(len(windows))
    if len(chosen) * scored > MOST_BINS:
        chosen = np.unique(np.linspace(0, len(chosen) - 1, MOST_BINS // scored).round().astype(int))
    predicted, came = [], []
    for first in range(0, len(chosen), BATCH):
        batch = collate([encode(windows.draw(int(i), rng, rng)) for i in chosen[first:first + BATCH]])
        (head, target), = ((h, t) for h, t in batch.targets.items() if h != DISPERSION)
        prediction = target.predict(forward(batch)[head])[..., 0].detach()
        for p, value, mask in zip(prediction, target.value[..., 0], target.mask[..., 0]):  # (N, T) each
            seen = mask.any(0)
            predicted.append(p[:, seen].T)
            came.append(torch.where(mask, value, torch.nan)[:, seen].T)
    return torch.cat(predicted), torch.cat(came)
