"""Frame averaging: the mean of a network's outputs over the frames of the principal axes is invariant.

Puny et al., "Frame averaging for invariant and equivariant network design", ICLR 2022, section 2 (SO(3)).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sciml.tokens import Axis, Outputs, TokenBatch

EQUAL = 1e-5
"""Principal moments whose difference is a smaller share of the largest are equal."""
SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))
"""Of the first two axes; the third follows, so that every frame is a rotation."""


def framed(batch: TokenBatch) -> TokenBatch:
    """Four copies of every packed configuration, each seen from one of its frames; copy k of sample s is 4s + k."""
    axis = batch.axes[0]
    assert axis.segment is not None
    assert axis.ids is not None
    segment, count = axis.segment[0], len(SIGNS)
    seen = seen_from_frames(axis)  # (n, 4, 3)
    order = (segment[:, None] * count + torch.arange(count, device=segment.device)).flatten()
    place = order.argsort(stable=True)
    ids = axis.ids[0][:, None].expand(-1, count).flatten()
    turned = replace(axis, coord=seen.flatten(0, 1)[place][None], ids=ids[place][None], segment=order[place][None])
    vector = {name: value.repeat_interleave(count) for name, value in batch.conditions.vector.items()}
    return replace(batch, values=batch.values.new_zeros(1, len(order), 0), axes=(turned,), targets={},
                   conditions=replace(batch.conditions, vector=vector), num_segments=batch.num_segments * count,
                   sources=tuple(s for s in batch.sources for _ in SIGNS))


def seen_from_frames(axis: Axis) -> Tensor:
    """``(n, 4, 3)`` places relative to the mean of their sample, in its four frames; see `principal_axes`
    for the derivative."""
    assert axis.segment is not None
    segment, coord = axis.segment[0], axis.coord[0]
    number = int(segment.max()) + 1
    count = segment.bincount(minlength=number)[:, None].to(coord.dtype)
    mean = coord.new_zeros(number, 3).index_add(0, segment, coord) / count
    place = coord - mean[segment]
    outer = place[:, :, None] * place[:, None, :]
    spread = coord.new_zeros(number, 3, 3).index_add(0, segment, outer)
    axes = principal_axes(spread)
    signs = torch.tensor(SIGNS, dtype=coord.dtype, device=coord.device)
    first = axes[:, None, :, 2] * signs[:, :1]
    second = axes[:, None, :, 1] * signs[:, 1:]
    frames = torch.stack([first, second, torch.linalg.cross(first, second)], -1)  # (S, 4, 3, 3)
    return torch.einsum("nx,nkxy->nky", place, frames[segment])


def principal_axes(spread: Tensor) -> Tensor:
    """Symmetric ``(S, 3, 3)`` → orthonormal axes, one per column, by ascending moment λ. Their first derivative is
    dv_j = Σ_i v_i (v_i · dA v_j) / (λ_j − λ_i) over moments that differ; where they don't (a single atom, around a
    linear molecule), and in second derivatives, axes count as fixed."""
    moments, axes = torch.linalg.eigh(spread.detach())
    gap = moments[:, None, :] - moments[:, :, None]
    differ = gap.abs() > EQUAL * moments[:, -1, None, None]
    rate = torch.where(differ, 1 / torch.where(differ, gap, 1.0), 0.0)
    change = axes.mT @ (spread - spread.detach()) @ axes
    return axes + axes @ (rate * change)


def unframed(outputs: Outputs, batch: TokenBatch) -> Outputs:
    """The mean over copies of every pooled head ``(4S, C)``."""
    return Outputs({name: head.unflatten(0, (batch.num_segments, len(SIGNS))).mean(1)
                    for name, head in outputs.heads.items()}, outputs.cache)
