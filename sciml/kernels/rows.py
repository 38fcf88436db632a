"""Many short rows (axes, windows): batched matrix products with hand-written first and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sciml.kernels.contract import Request, causal_mask
from sciml.kernels.plain import probabilities

LONGEST_ROW, FEWEST_ROWS = 32, 128
"""At least so many rows (batch × heads), of at most so many keys, are faster here than in the fused kernel. Measured
with 32 channels on one thread, forward with backward: 512 rows of 8, 16, 24, 32 and 48 keys 1.9, 1.9, 1.8, 1.4 and 1.1
times faster, of 64 keys equal, of 128 keys 0.6; 16, 64, 128 and 256 rows of 8 keys 0.5, 0.8, 1.05 and 1.4."""
FEWEST_LOGITS = 1 << 15
"""With fewer queries × keys in all, the formula costs less than this kernel's three functions."""
BLOCK_BYTES = 1 << 20
"""Size of the part of the probabilities that is worked on at a time, so that it stays in the second-level cache."""
MATRICES = 3, 6, 16
"""Of N × M at a time, without a backward pass, with one, and with a second: measured for 1024 × 1024."""
VECTOR_BYTES = 64
"""torch's softmax over a last dimension shorter than a vector register isn't vectorised: 7 times slower at 8 keys."""


class Rows:
    """Keeps the probabilities ``(B, H, N, M)`` for the backward pass: for short rows they are smaller than the keys."""

    def refuses(self, request: Request) -> str | None:
        if request.packed:
            return "it doesn't know packed samples"
        if request.device != "cpu":
            return "written for the CPU"
        if request.dtype not in ("float32", "float64"):
            return f"the products of {request.dtype} rows are slow"
        return None

    def merit(self, request: Request) -> tuple[int, str]:
        if (request.second_order or request.bias_grad) and math.prod(request.shape[:4]) >= FEWEST_LOGITS:
            return 2, "derivatives that the fused kernel doesn't have"
        if request.keys <= LONGEST_ROW and request.rows >= FEWEST_ROWS:
            return 2, "many short rows"
        return -1, "few or long rows"

    def matrices(self, request: Request) -> int:
        return MATRICES[request.grad + (request.grad and request.second_order)]

    def run(self, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
            lengths: tuple[int, ...] | None) -> Tensor:
        return _Attention.apply(q.contiguous(), k.contiguous(), v.contiguous(), bias, request.causal)


class _Attention(torch.autograd.Function):
    """y = P v with P = softmax(s q kᵀ + b), s = 1/√D. A gradient may be asked for under autocast, whose products would
    be of another dtype than what was kept: both backwards switch it off."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
        batch, heads, n, _ = q.shape
        y = q.new_empty(batch, heads, n, v.shape[3])
        kept = q.new_empty(batch, heads, n, k.shape[2]) if any(ctx.needs_input_grad) else None
        for part in _blocks(q, k):
            logits = _logits(q[part], k[part], _part(bias, part), causal)  # (rows, N, M)
            p = _softmax(logits, None if kept is None else _rows(kept[part]))
            torch.bmm(p, _rows(v[part]), out=_rows(y[part]))
        if kept is not None:
            ctx.save_for_backward(q, k, v, bias, kept)
            ctx.causal = causal
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, p = ctx.saved_tensors
        wants_bias = bool(ctx.needs_input_grad[3])
        with torch.autocast(g.device.type, enabled=False):
            dq, dk, dv, db = _Slopes.apply(g.contiguous(), q, k, v, bias, p, ctx.causal, wants_bias)
        return dq, dk, dv, db, None


class _Slopes(torch.autograd.Function):
    """The first derivative: with A = g vᵀ and S = P ∘ (A − rowsum(P ∘ A)), the slope of the logits,

    dq = s S k, dk = s Sᵀ q, dv = Pᵀ g, db = S summed to the bias's shape.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: Tensor, causal: bool,
                wants_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        db = bias.new_zeros(bias.shape) if wants_bias and bias is not None else None
        scale = 1 / math.sqrt(q.shape[-1])
        for part in _blocks(q, k):
            own, slope = _rows(p[part]), _rows(g[part])
            torch.bmm(own.transpose(1, 2), slope, out=_rows(dv[part]))
            s = _logit_slopes(own, torch.bmm(slope, _rows(v[part]).transpose(1, 2)))  # (rows, N, M)
            if db is not None:
                own_db = _part(db, part)
                assert own_db is not None
                own_db += s.view(-1, *p.shape[1:]).sum_to_size(own_db.shape)
            s *= scale
            torch.bmm(s, _rows(k[part]), out=_rows(dq[part]))
            torch.bmm(s.transpose(1, 2), _rows(q[part]), out=_rows(dk[part]))
        ctx.save_for_backward(g, q, k, v, bias, p)
        ctx.causal = causal
        return dq, dk, dv, db

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor,
                 to_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        """The second derivative. The slope of ⟨to_q, dq⟩ + ⟨to_k, dk⟩ + ⟨to_v, dv⟩ + ⟨to_bias, db⟩ reaches S as
        U = s to_q kᵀ + s q to_kᵀ + to_bias, A as J(U) = P ∘ (U − rowsum(P ∘ U)), and P as
        g to_vᵀ + U ∘ A − U rowsum(P ∘ A) − A rowsum(P ∘ U).
        """
        g, q, k, v, bias, p = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[-1])
        with torch.autocast(g.device.type, enabled=False):
            if torch.is_grad_enabled():  # a third derivative is wanted: P as a function of q, k and the bias
                p = probabilities(q, k, bias, causal=ctx.causal)
            a = g @ v.mT
            u = scale * (to_q @ k.mT + q @ to_k.mT)
            if to_bias is not None:
                u = u + to_bias
            mean_a, mean_u = (p * a).sum(-1, keepdim=True), (p * u).sum(-1, keepdim=True)
            s, to_a = p * (a - mean_a), p * (u - mean_u)
            to_p = g @ to_v.mT + u * (a - mean_a) - a * mean_u
            to_logits = p * (to_p - (p * to_p).sum(-1, keepdim=True))
            return (to_a @ v + p @ to_v, scale * (to_logits @ k + s @ to_k), scale * (to_logits.mT @ q + s.mT @ to_q),
                    to_a.mT @ g, to_logits.sum_to_size(bias.shape) if ctx.needs_input_grad[4] else None,
                    None, None, None)


def _logits(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """``(B * H, N, M)``"""
    rows = _rows(q)
    logits = torch.baddbmm(rows.new_empty(1, 1, 1), rows, _rows(k).transpose(1, 2), beta=0,
                           alpha=1 / math.sqrt(q.shape[-1]))
    if bias is not None:
        logits.view(*q.shape[:3], k.shape[2]).add_(bias)
    if causal:
        logits.masked_fill_(causal_mask(q.shape[2], k.shape[2], q.device), -math.inf)
    return logits


def _softmax(logits: Tensor, out: Tensor | None) -> Tensor:
    """Over the last dimension, into `out` if there is one; into the logits' own memory it would be slower."""
    if not _shorter_than_a_vector(logits):
        return torch.softmax(logits, -1, out=torch.empty_like(logits) if out is None else out)
    p = torch.softmax(logits.permute(2, 0, 1).contiguous(), 0).permute(1, 2, 0)
    return p.contiguous() if out is None else out.copy_(p)


def _logit_slopes(p: Tensor, a: Tensor) -> Tensor:
    """P ∘ (A − rowsum(P ∘ A))"""
    if not _shorter_than_a_vector(p):
        return torch.ops.aten._softmax_backward_data(a, p, -1, p.dtype)
    weighted = a.mul_(p)
    return weighted - p * weighted.sum(-1, keepdim=True)


def _shorter_than_a_vector(x: Tensor) -> bool:
    return x.shape[-1] * x.element_size() < VECTOR_BYTES


def _blocks(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Parts of the batch whose probabilities fit into the cache."""
    size = max(1, BLOCK_BYTES // max(q.shape[1] * q.shape[2] * k.shape[2] * q.element_size(), 1))
    return (slice(start, start + size) for start in range(0, q.shape[0], size))


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, *x.shape[2:])


def _part(bias: Tensor | None, part: slice) -> Tensor | None:
    """The part of a bias, in four dimensions, that belongs to a part of the batch: all of it where it is shared."""
    return bias if bias is None or bias.shape[0] == 1 else bias[part]


PLUGIN = Rows()
