"""The formula as it is written: right for every request, differentiable any number of times, and the slowest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml.kernels.contract import Request, causal_mask


def attend_plain(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √D + bias) v, as `sciml.kernels.attend.attend`: what the kernels are held against."""
    return probabilities(q, k, bias, causal=causal) @ v


def probabilities(q: Tensor, k: Tensor, bias: Tensor | None, *, causal: bool) -> Tensor:
    """softmax(q kᵀ / √D + bias), ``(B, H, N, M)``."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    if causal:
        logits = logits.masked_fill(causal_mask(q.shape[-2], k.shape[-2], q.device), -math.inf)
    return logits.softmax(dim=-1)


MATRICES = 4, 10, 22
"""Of N × M at a time, without a backward pass, with one, and with a second: measured for 1024 × 1024, with the bias and
the mask that cost most."""


class Plain:
    """Packed samples are kept apart by an N × N mask."""

    def refuses(self, request: Request) -> str | None:
        return None

    def merit(self, request: Request) -> tuple[int, str]:
        return 0, "no faster kernel is correct here"

    def matrices(self, request: Request) -> int:
        return MATRICES[request.grad + (request.grad and request.second_order)]

    def run(self, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
            lengths: tuple[int, ...] | None) -> Tensor:
        if lengths is not None:
            sample = torch.arange(len(lengths), device=q.device).repeat_interleave(
                torch.tensor(lengths, device=q.device))
            apart = q.new_zeros(q.shape[2], q.shape[2]).masked_fill(sample[:, None] != sample[None], -math.inf)
            bias = apart if bias is None else bias + apart
        return attend_plain(q, k, v, bias=bias, causal=request.causal)


PLUGIN = Plain()
