"""How a lattice becomes coarser: cells per token, padding to whole patches, axes of the level above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sciml.tokens import Axis, TokenBatch, TokenSpec


def cells_per_token(axes: Sequence[Axis], spec: TokenSpec) -> list[int]:
    """Patch size along each axis; 1 where the axis must not be coarsened."""
    sizes = []
    for axis in axes:
        if not axis.coarsen:
            sizes.append(1)
        elif spec.patch_length is None:
            sizes.append(spec.patch)
        else:
            sizes.append(max(1, round(spec.patch_length / spacing(axis))))
    return sizes


def spacing(axis: Axis) -> float:
    """Mean distance of neighbouring cells, in reference lengths."""
    if axis.period is not None:
        return float(axis.period.flatten()[0]) / axis.size
    extent = axis.coord[0, -1, 0] - axis.coord[0, 0, 0]
    return float(extent) / max(axis.size - 1, 1) or 1.0


def pad(batch: TokenBatch, multiples: Sequence[int]) -> TokenBatch:
    """Lengthen axes to multiples: wrapped copies on periodic axes, unobserved zeros elsewhere; both of measure 0."""
    for place, (axis, multiple) in enumerate(zip(batch.axes, multiples)):
        extra = -axis.size % multiple
        if extra:
            batch = _pad_axis(batch, place, extra)
    return batch


def _pad_axis(batch: TokenBatch, place: int, extra: int) -> TokenBatch:
    axis = batch.axes[place]
    wraps = axis.period is not None

    def lengthen(x: Tensor, dim: int) -> Tensor:
        if x.shape[dim] == 1 and axis.size != 1:
            return x
        if wraps:
            index = torch.arange(axis.size + extra, device=x.device) % axis.size
            return x.index_select(dim, index)
        tail = x.new_zeros([extra if i == dim else n for i, n in enumerate(x.shape)])
        return torch.cat([x, tail], dim)

    observed = batch.observed
    if not wraps:
        if observed is None:
            observed = torch.ones_like(batch.values[..., :1], dtype=torch.bool)
        shape = [n if i == 1 + place else observed.shape[i] for i, n in enumerate(batch.values.shape)]
        observed = observed.expand(shape)
    step = torch.stack([spacing(replace(axis, coord=own[None])) * torch.arange(
        1, extra + 1, dtype=axis.coord.dtype, device=axis.coord.device) for own in axis.coord])
    coord = torch.cat([axis.coord, axis.coord[:, -1:] + step[..., None]], 1)
    measure = torch.cat([axis.weights(), axis.weights().new_zeros(axis.weights().shape[0], extra)], 1)
    axes = [*batch.axes]
    axes[place] = replace(axis, coord=coord, measure=measure)
    lattice = {name: lengthen(value, 1 + place) for name, value in batch.conditions.lattice.items()}
    return replace(batch, values=lengthen(batch.values, 1 + place), axes=tuple(axes), targets={},
                   observed=None if observed is None else lengthen(observed, 1 + place),
                   conditions=replace(batch.conditions, lattice=lattice))


def coarsen(axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
    """The axes after patches of `sizes` cells were merged: mean coordinate, summed measure."""
    return tuple(axis if size == 1 else replace(
        axis, coord=axis.coord.unflatten(1, (-1, size)).mean(2),
        measure=axis.weights().unflatten(1, (-1, size)).sum(2)) for axis, size in zip(axes, sizes))


def crop(x: Tensor, lattice: Sequence[int]) -> Tensor:
    """``(B, *lattice', …)`` → its leading ``(B, *lattice, …)`` part; an axis of 1 stays."""
    for place, size in enumerate(lattice):
        if x.shape[1 + place] > size:
            x = x.narrow(1 + place, 0, size)
    return x
