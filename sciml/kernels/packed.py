"""Packed samples: block-diagonal attention without padding and without an N × N mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

import torch
from torch import Tensor

from sciml.kernels.contract import Request


class Packed:
    """Samples of equal length make one call ``(B·H, samples, n, D)`` for which a kernel is chosen anew."""

    def refuses(self, request: Request) -> str | None:
        if not request.packed:
            return "nothing is packed"
        if request.shape[2] != request.shape[3]:
            return "queries and keys differ in number"
        return None

    def merit(self, request: Request) -> tuple[int, str]:
        return 3, "packed samples: one call per length, no mask"

    def run(self, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
            lengths: tuple[int, ...] | None) -> Tensor:
        from sciml.kernels.attend import attend

        assert lengths is not None
        plan = _make_plan(lengths) if torch.compiler.is_compiling() else _plan(lengths)
        batch, heads, n, _ = q.shape
        order = None if plan.order is None else plan.order.to(q.device)
        q, k, v = (_ordered(x.reshape(batch * heads, n, -1), order) for x in (q, k, v))
        outputs, start = [], 0
        for bucket in plan.buckets:
            size, stop = bucket.size, start + bucket.size * len(bucket.starts)
            parts = [x[:, start:stop].unflatten(1, (-1, size)) for x in (q, k, v)]  # each (B·H, samples, size, D)
            y = attend(*parts, bias=_bias(bias, bucket, batch, heads), causal=request.causal,
                       second_order=request.second_order)
            outputs.append(y.flatten(1, 2))
            start = stop
        y = torch.cat(outputs, 1)
        return (y if plan.back is None else y.index_select(1, plan.back.to(y.device))).view(batch, heads, n, -1)


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
    samples = sorted(zip(lengths, accumulate(lengths, initial=0)))
    buckets = tuple(Bucket(size, tuple(start for _, start in group))
                    for size, group in groupby(samples, lambda sample: sample[0]) if size)
    if [start for _, start in samples] == sorted(start for _, start in samples):
        return Plan(buckets, None, None)
    order = torch.cat([bucket.places(torch.device("cpu")).flatten() for bucket in buckets])
    return Plan(buckets, order, order.argsort())


_plan = lru_cache(maxsize=256)(_make_plan)


def _ordered(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.index_select(1, order)


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


PLUGIN = Packed()
