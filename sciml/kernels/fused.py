"""Elementwise parts of a block in as few passes over memory as eager torch allows, with backwards written by hand.

Each can be differentiated any number of times: where a graph of the backward is wanted, it is made of differentiable
operations on the inputs. While compiling, the plain formula is handed over; the compiler fuses it better.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


def scaled_norm(x: Tensor, scale: Tensor, shift: Tensor | None = None, eps: float = EPSILON) -> Tensor:
    """x / √(mean x² + ε) · scale + shift over the last dimension; scale and shift broadcast to x. What comes in reduced
    precision is normalised, and returned, in single."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    if torch.compiler.is_compiling():
        y = F.rms_norm(x, x.shape[-1:], eps=eps) * scale
        return y if shift is None else y + shift
    normed: Tensor = ScaledNorm.apply(x.contiguous(), scale, shift, eps)  # a norm of strided views is 16 times slower
    return normed


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel pairs (i, i + D/2) of ``(…, D)`` turned by angles whose cos and sin broadcast to ``(…, D/2)``."""
    if torch.compiler.is_compiling() or cos.requires_grad:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    y: Tensor = Rotation.apply(x, cos, sin)
    return y


class ScaledNorm(torch.autograd.Function):
    """Six passes backward instead of the fifteen of a norm, a product and a sum. With u = x/rms and d = g · scale:
    ∂x = (d − u mean(d u)) / rms, ∂scale = Σ g u, ∂shift = Σ g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        ctx.shape = None if shift is None else shift.shape
        unit = x * _inverse_rms(x, eps)
        return unit.mul_(scale) if shift is None else torch.addcmul(shift, unit, scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        (g,), (x, scale) = slopes, ctx.saved_tensors
        inverse = _inverse_rms(x, ctx.eps)
        unit = x * inverse
        weighted = g * unit
        along = (weighted * scale).sum(-1, keepdim=True) / x.shape[-1]  # mean(d u)
        of_x = torch.addcmul(g * scale, unit, along, value=-1)
        of_x = of_x * inverse if torch.is_grad_enabled() else of_x.mul_(inverse)
        of_shift = None if ctx.shape is None else g.sum_to_size(ctx.shape)
        return of_x, weighted.sum_to_size(scale.shape), of_shift, None


class Rotation(torch.autograd.Function):
    """Two passes; its backward is the rotation by the opposite angles. The angles get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * torch.cat([cos, cos], -1)
        y[..., :half].addcmul_(x[..., half:], sin, value=-1)
        y[..., half:].addcmul_(x[..., :half], sin)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return Rotation.apply(slopes[0], cos, -sin), None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``(…, 1)``: 1 / √(mean x² + ε)"""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (size.square() / x.shape[-1] + eps).rsqrt()
