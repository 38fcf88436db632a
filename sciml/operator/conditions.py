"""Conditions that are not on the lattice: numbers per segment, and context to attend to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml.kernels.attend import attend
from sciml.mixers.projections import HeadNorm
from sciml.operator.named import NamedRows

NUM_FREQUENCIES = 4


class ConditionVector(nn.Module):
    """name → ``(S,)`` numbers into one vector ``(S, K)``: a linear map of (v, sin 2ʲv, cos 2ʲv) per name, then an MLP.

    A name that a batch doesn't give contributes nothing.
    """

    def __init__(self, names: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.width = width
        self.features = 1 + 2 * NUM_FREQUENCIES
        self.rows = NamedRows(names, self.features * width, std=self.features**-0.5)
        self.base = nn.Parameter(torch.zeros(width))
        self.mlp = nn.Linear(width, width)

    def forward(self, vector: Mapping[str, Tensor], num_segments: int) -> Tensor:
        total = self.base.expand(num_segments, -1)
        for name, value in vector.items():
            frequencies = 2.0 ** torch.arange(NUM_FREQUENCIES, dtype=value.dtype, device=value.device)
            phase = value[:, None] * frequencies
            features = torch.cat([value[:, None], phase.sin(), phase.cos()], 1)
            total = total + features @ self.rows([name]).view(self.features, self.width)
        return F.silu(self.mlp(F.silu(total)))


class CrossAttention(nn.Module):
    """x + attention(queries from x, keys and values from context tokens). Starts as the identity."""

    def __init__(self, width: int, context_width: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = width // head_width, head_width
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(context_width, 2 * width, bias=False)
        self.query_norm, self.key_norm = HeadNorm(head_width), HeadNorm(head_width)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, context: Tensor, second_order: bool) -> Tensor:
        """x ``(B, *lattice, C)``, context ``(B, M, C')``."""
        flat = F.rms_norm(x.flatten(1, -2), x.shape[-1:])
        q = self.query_norm(self.query(flat).unflatten(-1, (self.heads, self.head_width))).transpose(1, 2)
        pair = self.key_value(context).unflatten(-1, (2, self.heads, self.head_width))
        k, v = self.key_norm(pair[..., 0, :, :]).transpose(1, 2), pair[..., 1, :, :].transpose(1, 2).contiguous()
        y = attend(q, k, v, second_order=second_order)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))
