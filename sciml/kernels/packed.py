"""Packed samples: block-diagonal attention without padding and without an N × N mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sciml.kernels.contract import Request, causal_bias
from sciml.kernels.rows import FEWEST_ROWS

fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Packed:
    """Samples of equal length are one call ``(B·H, samples, n, D)``. Where there are few samples of each length, all
    calls are of the fused kernel inside one function, since most of the time would go into their bookkeeping; elsewhere
    a kernel is chosen anew for each length.
    """

    def refuses(self, request: Request) -> str | None:
        if not request.packed:
            return "nothing is packed"
        if request.shape[2] != request.shape[3]:
            return "queries and keys differ in number"
        return None

    def merit(self, request: Request) -> tuple[int, str]:
        return 3, "packed samples, one call per length, no mask"

    def run(self, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
            lengths: tuple[int, ...] | None) -> Tensor:
        assert lengths is not None
        plan = _make_plan(lengths) if torch.compiler.is_compiling() else _plan(lengths)
        batch, heads, n, _ = q.shape
        q, k, v = (x.reshape(batch * heads, n, -1) for x in (q, k, v))
        blocks = [_bias(bias, bucket, batch, heads) for bucket in plan.buckets]
        if _few_of_each_length(request, plan, len(lengths)):
            y = _Fused.apply(q, k, v, plan, blocks, request.causal)
        else:
            y = _each_length(request, q, k, v, plan, blocks)
        return y.view(batch, heads, n, -1)


@dataclass(frozen=True)
class Bucket:
    """Samples of one length and where they start."""

    size: int
    starts: tuple[int, ...]

    def places(self, device: torch.device) -> Tensor:
        """``(samples, size)`` indices of their tokens."""
        starts = torch.tensor(self.starts, device=device)
        return starts[:, None] + torch.arange(self.size, device=device)


@dataclass(frozen=True)
class Plan:
    """Buckets, shortest first, the order ``(N,)`` that sorts tokens into them, and the way back; None if they are."""

    buckets: tuple[Bucket, ...]
    order: Tensor | None
    back: Tensor | None


def _make_plan(lengths: tuple[int, ...]) -> Plan:
    starts: dict[int, list[int]] = {}
    start = 0
    for size in lengths:
        starts.setdefault(size, []).append(start)
        start += size
    buckets = tuple(Bucket(size, tuple(starts[size])) for size in sorted(starts) if size)
    if list(lengths) == sorted(lengths):
        return Plan(buckets, None, None)
    order = torch.cat([bucket.places(torch.device("cpu")).flatten() for bucket in buckets])
    return Plan(buckets, order, order.argsort())


_plan = lru_cache(maxsize=256)(_make_plan)


def _permuted(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.index_select(1, order.to(x.device))


def _parts(x: Tensor, buckets: tuple[Bucket, ...]) -> list[Tensor]:
    """``(B·H, N, D)`` in order → per bucket ``(B·H, samples, size, D)``."""
    sizes = [bucket.size * len(bucket.starts) for bucket in buckets]
    return [part.unflatten(1, (-1, bucket.size)) for part, bucket in zip(x.split(sizes, 1), buckets)]


def _bias(bias: Tensor | None, bucket: Bucket, batch: int, heads: int) -> Tensor | None:
    """The blocks of a bias ``(B or 1, H or 1, N or 1, N)`` on the diagonal ``(B·H or 1, samples, size or 1, size)``."""
    if bias is None:
        return None
    if bias.shape[0] > 1 or bias.shape[1] > 1:
        bias = bias.expand(batch, heads, -1, -1)
    places = bucket.places(bias.device)
    if bias.shape[2] == 1:
        return bias[:, :, 0, places].flatten(0, 1).unsqueeze(2)
    return bias[:, :, places[:, :, None], places[:, None, :]].flatten(0, 1)


def _few_of_each_length(request: Request, plan: Plan, samples: int) -> bool:
    """Whether one function of fused calls is correct and the calls are small."""
    correct = request.device == "cpu" and request.dtype in ("float32", "float64") and not (
        request.second_order or request.bias_grad or request.autocast or request.shape[4] != request.shape[5])
    return correct and not torch.compiler.is_compiling() and request.rows * samples < FEWEST_ROWS * len(plan.buckets)


def _each_length(request: Request, q: Tensor, k: Tensor, v: Tensor, plan: Plan, blocks: list[Tensor | None]) -> Tensor:
    """``(B·H, N, E)``; a call of `attend` for each length."""
    from sciml.kernels.attend import attend

    parts = zip(*(_parts(_permuted(x, plan.order), plan.buckets) for x in (q, k, v)), blocks)
    y = torch.cat([attend(*own, bias=block, causal=request.causal, second_order=request.second_order).flatten(1, 2)
                   for *own, block in parts], 1)
    return _permuted(y, plan.back)


class _Fused(torch.autograd.Function):
    """The fused kernel on every part, and its backward; no derivative for the bias."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, blocks: list[Tensor | None],
                causal: bool) -> Tensor:
        q, k, v = (_permuted(x, plan.order) for x in (q, k, v))
        y, sums = torch.empty_like(v), []
        for *own, out, block in zip(*(_parts(x, plan.buckets) for x in (q, k, v, y)), blocks):
            found, log_sum = fused(*own, 0.0, _fits(causal, block), attn_mask=_with_past(causal, block, own[0]))
            out.copy_(found)
            sums.append(log_sum)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, y, *sums, *(block for block in blocks if block is not None))
            ctx.plan, ctx.causal = plan, causal
        return _permuted(y, plan.back)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, *rest = ctx.saved_tensors
        buckets = ctx.plan.buckets
        sums, blocks = rest[:len(buckets)], rest[len(buckets):] or [None] * len(buckets)
        slopes = [torch.empty_like(x) for x in (q, k, v)]
        cut = [_parts(x, buckets) for x in (_permuted(g.contiguous(), ctx.plan.order), q, k, v, y)]
        into = [_parts(x, buckets) for x in slopes]
        for place, (log_sum, block) in enumerate(zip(sums, blocks)):
            own = [x[place] for x in cut]
            found = fused_backward(*own, log_sum, 0.0, _fits(ctx.causal, block),
                                   attn_mask=_with_past(ctx.causal, block, own[1]))
            for out, slope in zip(into, found):
                out[place].copy_(slope)
        return *(_permuted(slope, ctx.plan.back) for slope in slopes), None, None, None


def _fits(causal: bool, block: Tensor | None) -> bool:
    return causal and block is None


def _with_past(causal: bool, block: Tensor | None, q: Tensor) -> Tensor | None:
    """The bias of a part; with the future hidden in it where the kernel can't do both."""
    if block is None or not causal:
        return block
    return block + causal_bias(q, q.shape[2])


PLUGIN = Packed()
