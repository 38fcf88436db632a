"""The contract of a kernel of softmax attention, and the request by which one is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

BiasKind = Literal["none", "keys", "full"]
GROUP = "sciml.kernels"


@dataclass(frozen=True)
class Request:
    """What is asked of softmax attention, without the tensors.

    shape: (B, H, N, M, D, E): batch, heads, queries, keys, width of a key, width of a value. dtype: the computation's.
    bias: none, the same for all queries (`keys`), or one value per pair (`full`); bias_grad: it wants a gradient.
    packed: several samples share the rows. second_order: the gradient will be differentiated. grad: there will be a
    backward pass. autocast: asked for under autocast.
    """

    shape: tuple[int, int, int, int, int, int]
    dtype: str = "float32"
    device: str = "cpu"
    bias: BiasKind = "none"
    bias_grad: bool = False
    causal: bool = False
    packed: bool = False
    second_order: bool = False
    grad: bool = False
    autocast: bool = False

    @property
    def rows(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def keys(self) -> int:
        return self.shape[3]

    def key(self) -> str:
        """The name of all requests that are measured as one: rows to the next power of two, lengths to a step.

        >>> Request((256, 2, 15, 16, 32, 32), grad=True).key()
        'cpu float32 512x16x16x32x32 none grad'
        """
        batch, heads, n, m, d, e = self.shape
        sizes = (_power(batch * heads), _step(n), _step(m), d, e)
        flags = [name for name in ("bias_grad", "causal", "packed", "second_order", "grad") if getattr(self, name)]
        return " ".join((self.device, self.dtype, "x".join(map(str, sizes)), self.bias, *flags))


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _step(n: int) -> int:
    """Up to 64 the next multiple of 8, beyond that the next power of two; 1 is a case of its own."""
    return n if n <= 1 else -(-n // 8) * 8 if n <= 64 else _power(n)


class Kernel(Protocol):
    """One way to compute softmax(q kᵀ / √D + bias) v for ``(B, H, N, D)``."""

    def refuses(self, request: Request) -> str | None:
        """Why this kernel can't answer that request correctly, or None if it can."""
        ...

    def merit(self, request: Request) -> tuple[int, str]:
        """Where nothing was measured: the largest number wins, for that reason. Also called in compiled code."""
        ...

    def run(self, request: Request, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None,
            lengths: tuple[int, ...] | None) -> Tensor:
        """``(B, H, N, E)``. lengths: of the packed samples, which follow one another along N = M; None if not packed.

        The tensors are of the request's dtype and autocast is off, but for packed requests: there the parts decide.
        """
        ...


@runtime_checkable
class Squares(Protocol):
    """What a kernel says besides if it holds N × M matrices in memory: `sciml.kernels.tune` leaves it out where they
    are too large."""

    def matrices(self, request: Request) -> int:
        """How many of ``(B, H, N, M)`` there are at most at a time, all derivatives that are asked for included."""
        ...


def request_of(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool, packed: bool,
               second_order: bool, dtype: torch.dtype, autocast: bool) -> Request:
    """The request that these tensors make."""
    kind: BiasKind = "none" if bias is None else "keys" if bias.shape[-2] == 1 else "full"
    grad = torch.is_grad_enabled()
    bias_grad = grad and bias is not None and bias.requires_grad
    return Request((*q.shape[:3], k.shape[2], q.shape[3], v.shape[3]), str(dtype).removeprefix("torch."),
                   q.device.type, kind, bias_grad, causal, packed, second_order,
                   grad and (bias_grad or q.requires_grad or k.requires_grad or v.requires_grad), autocast)


def causal_bias(q: Tensor, m: int) -> Tensor:
    """``(n, m)`` −inf where the key is in the query's future, else 0."""
    hidden = causal_mask(q.shape[2], m, q.device)
    return q.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)


def causal_mask(n: int, m: int, device: torch.device) -> Tensor:
    """``(n, m)`` True where the key is in the query's future: query i of n sees keys up to i + m − n."""
    return torch.ones(n, m, dtype=torch.bool, device=device).triu(m - n + 1)
