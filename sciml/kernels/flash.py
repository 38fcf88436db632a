"""The fused kernel of torch: no N × M matrix in memory, one derivative, none for the bias."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sciml.kernels.contract import Request, causal_bias


class Flash:
    """``scaled_dot_product_attention``, refused wherever torch would take its slow path on a CPU without a word."""

    def refuses(self, request: Request) -> str | None:
        if request.second_order:
            return "it has no second derivative"
        if request.bias_grad:
            return "it has no derivative for the bias"
        if request.packed:
            return "it doesn't know packed samples"
        if request.shape[4] != request.shape[5]:
            return "keys and values differ in width"
        return None

    def merit(self, request: Request) -> tuple[int, str]:
        return 1, "fused"

    def run(self, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
            lengths: tuple[int, ...] | None) -> Tensor:
        if request.causal and (bias is not None or q.shape[2] != k.shape[2]):
            mask = causal_bias(q, k.shape[2])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask if bias is None else bias + mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=request.causal)


PLUGIN = Flash()
