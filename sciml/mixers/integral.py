"""Axial integral attention: along each axis a kernel without softmax, made from features pooled over the other axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import HeadNorm
from sciml.mixers.rows import fold, spread, spread_pair, unfold
from sciml.tokens import Axis


class Integral(Mixer):
    """y(s) = ∫ κₐ(s, t) v(t) dt / ∫ dt along every axis a, then an output projection.

    κₐ(s, t) = qₐ(s)·kₐ(t) / √D per head, where qₐ and kₐ are normalised projections of x averaged over all axes but a,
    turned by the rotary angles of the coordinates. Integrals are sums with the axis's quadrature weights. The axes act
    in parallel, mean of gainₐ ⊙ (κₐ v) (IFactFormer-m), or with `chained` one after the other (FactFormer, Li et al.
    2023). There is no softmax, so κ may be negative, as the kernel of a derivative or of a Green's function is.

    A row of n keys has a kernel of rank D, so it is applied as q (kᵀ v) wherever that is cheaper than (q kᵀ) v: cost
    is then linear in the number of tokens. Queries and keys are projected after pooling, from n tokens instead of all.
    Axes that are causal or packed are left alone: each of their indices is a lattice of its own.
    """

    def __init__(self, width: int, heads: int, *, chained: bool = False) -> None:
        super().__init__(width, heads)
        self.chained, self.head_width = chained, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = HeadNorm(self.head_width), HeadNorm(self.head_width)
        self.gain = RoleGain(width)
        self.out = nn.Linear(width, width, bias=False)

    def admits(self, axis: Axis) -> bool:
        return axis.size > 1 and not axis.causal and axis.segment is None

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            geometry.rotary((index,), self.head_width)
            _mean_weights(geometry, index)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        folded = fold(x, axes)  # (B * rest, *admitted, C)
        pair, value = self.qkv.weight.split([2 * self.width, self.width])
        v = nn.functional.linear(folded, value).unflatten(-1, (self.heads, self.head_width))
        weights = [spread(_mean_weights(geometry, index), folded.shape[0]) for index in axes]
        total: Tensor | None = None
        for place, index in enumerate(axes):
            q, k = self._features(_pool(folded, weights, place), weights[place], pair, geometry, index)
            gain = self.gain.weight[geometry.role(index)].view(self.heads, self.head_width)
            if self.chained:
                v = _apply(q, k, v, place, gain)
            else:
                y = _apply(q, k, v, place, gain / len(axes))
                total = y if total is None else total + y
        y = self.out((v if total is None else total).flatten(-2))
        return unfold(y, x.shape, axes), state

    def _features(self, pooled: Tensor, weight: Tensor, pair: Tensor, geometry: Geometry,
                  index: int) -> tuple[Tensor, Tensor]:
        """Pooled ``(B, n, C)`` → queries and keys ``(B, H, n, D)``; keys carry quadrature weight and scale."""
        q, k = nn.functional.linear(pooled, pair).unflatten(-1, (2, self.heads, self.head_width)).unbind(-3)
        table = spread_pair(geometry.rotary((index,), self.head_width), len(pooled))
        query, key = (rotate(t.transpose(1, 2), table) for t in (self.query_norm(q), self.key_norm(k)))
        return query, key * (weight[:, None, :, None] / math.sqrt(self.head_width))

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x)
        folded, (pair, value) = fold(x, axes), self.qkv.weight.split([2 * self.width, self.width])
        outputs = []
        for b, sample in enumerate(folded):
            def own(table: Tensor, b: int = b) -> Tensor:
                return spread(table, len(folded))[b if len(table) > 1 else 0]
            measures = [own(geometry.axes[index].weights()) for index in axes]
            weights = [w / w.sum().clamp_min(torch.finfo(w.dtype).tiny) for w in measures]
            v, parts = sample @ value.T, []
            for place, index in enumerate(axes):
                pooled = sample
                for other in reversed([p for p in range(len(axes)) if p != place]):
                    pooled = torch.tensordot(weights[other], pooled, ([0], [other]))
                table = geometry.rotary((index,), self.head_width)
                angles = None if table is None else (own(table[0])[0], own(table[1])[0])
                y, heads = torch.zeros_like(v), (pooled @ pair.T).split(self.head_width, -1)  # queries, then keys
                for h in range(self.heads):
                    at = slice(h * self.head_width, (h + 1) * self.head_width)
                    query = rotate(self.query_norm(heads[h]), angles)
                    key = rotate(self.key_norm(heads[self.heads + h]), angles)
                    kernel = query @ key.T / math.sqrt(self.head_width) * weights[place]  # (n, n)
                    y[..., at] = torch.tensordot(kernel, v[..., at], ([1], [place])).movedim(0, place)
                parts.append(self.gain(y, geometry.role(index)))
                v = parts[-1] if self.chained else v
            outputs.append(self.out(parts[-1] if self.chained else sum(parts[1:], parts[0]) / len(parts)))
        return unfold(torch.stack(outputs), x.shape, axes)


def _mean_weights(geometry: Geometry, index: int) -> Tensor:
    """Quadrature weights ``(B or 1, n)`` of the mean along an axis; zeros where nothing has a measure."""
    def make() -> Tensor:
        w = geometry.axes[index].weights()
        return w / w.sum(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return geometry.once(("mean_weights", index), make)


def _pool(x: Tensor, weights: list[Tensor], place: int) -> Tensor:
    """Mean ``(B, n, C)`` of ``(B, *axes, C)`` over all axes but one."""
    for axis, weight in enumerate(weights):
        if axis != place:
            rows = x.reshape(len(x), x.shape[1: axis + 1].numel(), weight.shape[1], -1)
            x = (weight[:, None, None, :] @ rows).view(*x.shape[: axis + 1], 1, *x.shape[axis + 2:])
    return x.flatten(1, -2)


def _apply(q: Tensor, k: Tensor, v: Tensor, place: int, gain: Tensor) -> Tensor:
    """gain ⊙ Σⱼ (qᵢ·kⱼ) vⱼ along one axis of ``(B, *axes, H, D)``, for q and k ``(B, H, n, D)``, gain ``(H, D)``."""
    front = v.movedim((-2, place + 1), (1, 2))  # (B, H, n, *others, D)
    rows = front.flatten(3)
    if q.shape[2] >= 2 * q.shape[3]:
        kernel, rows = q, k.transpose(-1, -2) @ rows  # (B, H, n, D) and (B, H, D, others * D)
    else:
        kernel = q @ k.transpose(-1, -2)  # (B, H, n, n)
    rows = rows.unflatten(-1, (-1, gain.shape[1])) * gain[:, None, None, :]
    return (kernel @ rows.flatten(3)).view(front.shape).movedim((1, 2), (-2, place + 1))


PLUGIN = Integral
