"""Softmax attention, the primitive of the attention mixers: the kernel is chosen here."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.kernels.contract import Kernel, Request, request_of
from sciml.kernels.dispatch import answered, in_graph
from sciml.kernels.plain import attend_plain

__all__ = ["SHORT_ROW", "attend", "attend_plain", "segment_lengths"]

SHORT_ROW = 128
"""Up to this many keys the fused bfloat16 kernel's backward is 3–8× slower on a CPU than float32."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, causal: bool = False,
           second_order: bool = False, segment: Tensor | tuple[int, ...] | None = None) -> Tensor:
    """softmax(q kᵀ / √D + bias) v for ``(B, H, N, D)``; bias broadcasts to ``(B, H, N, M)``.

    causal: query i of N sees keys up to i + M − N. second_order: the gradient will be differentiated. segment: ``(N,)``
    ascending ids of packed samples, which don't see each other, or their lengths (`segment_lengths`). In reduced
    precision short rows are computed in float32. `sciml.kernels.dispatch` tells which kernel answers and why.
    Raises ValueError for queries that are not four-dimensional.
    """
    if q.ndim != 4:
        raise ValueError(f"attend wants (B, H, N, D), got {tuple(q.shape)}: fold the lattice into B")
    if bias is not None:
        bias = bias[(None,) * (4 - bias.ndim)]
    lengths = segment_lengths(segment) if isinstance(segment, Tensor) else segment
    if lengths is not None and len(lengths) < 2:
        lengths = None
    dtype = _computed_in(q, k.shape[2])
    request = request_of(q, k, v, bias, causal=causal, packed=lengths is not None, second_order=second_order,
                         dtype=dtype, autocast=torch.is_autocast_enabled(q.device.type))
    if torch.compiler.is_compiling():
        return _run(in_graph(request), request, q, k, v, bias, lengths, dtype)
    with answered(request) as kernel:
        return _run(kernel, request, q, k, v, bias, lengths, dtype)


def _run(kernel: Kernel, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
         lengths: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    """In the request's dtype and without autocast; what is packed as it is, because its parts come here again."""
    if lengths is not None:
        return kernel.run(request, q, k, v, bias, lengths)
    given, bias = q.dtype, None if bias is None else bias.to(dtype)
    if request.autocast:
        with torch.autocast(request.device, enabled=False):
            return kernel.run(request, q.to(dtype), k.to(dtype), v.to(dtype), bias, None)
    return kernel.run(request, q.to(dtype), k.to(dtype), v.to(dtype), bias, None).to(given)


def segment_lengths(segment: Tensor) -> tuple[int, ...]:
    """How many tokens each packed sample has, from ``(N,)`` ascending ids. Reads the values: not in compiled code.

    >>> segment_lengths(torch.tensor([0, 0, 0, 2, 2]))
    (3, 2)
    """
    return tuple(segment.unique_consecutive(return_counts=True)[1].tolist())


def _computed_in(q: Tensor, num_keys: int) -> torch.dtype:
    autocast = torch.is_autocast_enabled(q.device.type)
    dtype = torch.get_autocast_dtype(q.device.type) if autocast else q.dtype
    reduced = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if reduced and num_keys <= SHORT_ROW else dtype
