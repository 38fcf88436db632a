"""Projections that the attention mixers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.kernels.fused import scaled_norm


class HeadNorm(nn.Module):
    """Root-mean-square normalisation of each head's query or key (QK-norm), with a gain per head channel."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(head_width))

    def forward(self, x: Tensor) -> Tensor:
        return scaled_norm(x.to(self.gain.dtype), self.gain)


class Projections(nn.Module):
    """Queries, keys and values of all heads in one matrix, QK-normalised, and the map back, if asked for."""

    def __init__(self, width: int, heads: int, *, out: bool = True) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = HeadNorm(self.head_width), HeadNorm(self.head_width)
        if out:
            self.out = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(…, C)`` → three of ``(…, H, D)``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        return self.query_norm(q), self.key_norm(k), v
