"""Frame averaging: the mean of a network's outputs over the frames of the principal axes is invariant.

Puny et al., "Frame averaging for invariant and equivariant network design", ICLR 2022, section 2 (SO(3)).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sciml.tokens import Axis, Outputs, TokenBatch

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
    """``(n, 4, 3)`` places relative to the mean of their sample, in its four frames; differentiable, but for places of
    which two principal moments are equal."""
    assert axis.segment is not None
    segment, coord = axis.segment[0], axis.coord[0]
    number = int(segment.max()) + 1
    count = segment.bincount(minlength=number)[:, None].to(coord.dtype)
    mean = coord.new_zeros(number, 3).index_add(0, segment, coord) / count
    place = coord - mean[segment]
    outer = place[:, :, None] * place[:, None, :]
    spread = coord.new_zeros(number, 3, 3).index_add(0, segment, outer)
    axes = torch.linalg.eigh(spread).eigenvectors  # (S, 3, 3), one axis per column
    signs = torch.tensor(SIGNS, dtype=coord.dtype, device=coord.device)
    first = axes[:, None, :, 2] * signs[:, :1]
    second = axes[:, None, :, 1] * signs[:, 1:]
    frames = torch.stack([first, second, torch.linalg.cross(first, second)], -1)  # (S, 4, 3, 3)
    return torch.einsum("nx,nkxy->nky", place, frames[segment])


def unframed(outputs: Outputs, batch: TokenBatch) -> Outputs:
    """The mean over copies of every pooled head ``(4S, C)``."""
    return Outputs({name: head.unflatten(0, (batch.num_segments, len(SIGNS))).mean(1)
                    for name, head in outputs.heads.items()}, outputs.cache)
