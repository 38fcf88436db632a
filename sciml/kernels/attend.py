"""Softmax attention, the primitive of the attention mixers, with its choice of kernel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT_ROW = 128
"""Up to this many keys the fused bfloat16 kernel's backward is 3–8× slower on a CPU than float32."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, causal: bool = False,
           second_order: bool = False) -> Tensor:
    """softmax(q kᵀ / √D + bias) v for ``(B, H, N, D)``; bias broadcasts to ``(B, H, N, M)``.

    causal: query i of N sees keys up to i + M − N. Fused SDPA wherever it is correct; the plain formula where second
    derivatives are needed or the bias itself needs a gradient, since the fused CPU kernel has neither. Under autocast,
    short rows stay in float32.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device) and k.shape[2] <= SHORT_ROW:
        with torch.autocast(device, enabled=False):
            return attend(q.float(), k.float(), v.float(), bias=bias, causal=causal, second_order=second_order)
    if second_order or (bias is not None and bias.requires_grad):
        return attend_plain(q, k, v, bias=bias, causal=causal)
    if causal and (bias is not None or q.shape[2] != k.shape[2]):
        mask = _causal_bias(q, k)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask if bias is None else bias + mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)


def attend_plain(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """The formula itself: the reference, and the kernel that can be differentiated any number of times."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    if causal:
        logits = logits + _causal_bias(q, k)
    return logits.softmax(dim=-1) @ v


def _causal_bias(q: Tensor, k: Tensor) -> Tensor:
    n, m = q.shape[2], k.shape[2]
    hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
    return torch.zeros(n, m, dtype=q.dtype, device=q.device).masked_fill(hidden, -math.inf)
