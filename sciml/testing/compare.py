"""Equality of batches and states, tensor by tensor, with the place of the first difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.adapter import DomainAdapter, Sample, Windows
from sciml.packing import alike
from sciml.tokens import HeadSpec, Outputs, Target, TokenBatch


def difference(one: Any, two: Any, place: str = "") -> str | None:
    """Where two trees of dataclasses, mappings, sequences and tensors differ and how, or None.

    >>> difference({"a": [1, torch.zeros(2)]}, {"a": [1, torch.ones(2)]})
    '.a.1: by up to 1'
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape or one.dtype != two.dtype:
            return f"{place}: {tuple(one.shape)} {one.dtype} and {tuple(two.shape)} {two.dtype}"
        if torch.equal(one, two):
            return None
        return f"{place}: by up to {float((one.double() - two.double()).abs().max()):g}"
    if type(one) is not type(two):
        return f"{place}: {type(one).__name__} and {type(two).__name__}"
    if is_dataclass(one):
        pairs = [(f.name, getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    elif isinstance(one, Mapping):
        if set(one) != set(two):
            return f"{place}: keys {sorted(one)} and {sorted(two)}"
        pairs = [(str(k), one[k], two[k]) for k in one]
    elif isinstance(one, list | tuple):
        if len(one) != len(two):
            return f"{place}: {len(one)} and {len(two)} items"
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(one, two))]
    else:
        return None if one == two else f"{place}: {one!r} and {two!r}"
    return next((found for name, a, b in pairs if (found := difference(a, b, f"{place}.{name}"))), None)


def widened(batch: TokenBatch) -> TokenBatch:
    """The same batch with nothing left implicit: observed given, what is shared along an axis written out."""
    shape = batch.values.shape
    observed = torch.ones(shape, dtype=torch.bool) if batch.observed is None else batch.observed.expand(shape)

    def whole(target: Target) -> Target:
        full = target.value.shape
        return replace(target, mask=target.mask.expand(full), baseline=target.baseline.expand(full),
                       scale=target.scale.expand(full))

    lattice = {name: value.expand(shape[:-1]) for name, value in batch.conditions.lattice.items()}
    context = batch.conditions.context
    return replace(batch, observed=observed, targets={name: whole(t) for name, t in batch.targets.items()},
                   conditions=replace(batch.conditions, lattice=lattice,
                                      context=None if context is None else widened(context)))


def own_heads(outputs: Outputs, batch: TokenBatch, heads: Mapping[str, HeadSpec], i: int) -> dict[str, Tensor]:
    """The outputs of sample `i` of a batch as they would be of a batch of one."""
    place = batch.packed_axis
    if place is None:
        return {name: y[i: i + 1] for name, y in outputs.heads.items()}
    segment = batch.axes[place].segment
    assert segment is not None
    index = (segment[0] == i).nonzero()[:, 0]
    own = {}
    for name, y in outputs.heads.items():
        kind = heads[name].kind if name in heads else "lattice"
        if kind == "pooled":
            own[name] = y[i: i + 1]
        elif kind == "pair":
            own[name] = y.index_select(1, index).index_select(2, index)
        else:
            own[name] = y.index_select(1 + place, index)
    return own


def close(one: Tensor, two: Tensor, tolerance: float) -> float | None:
    """The largest difference in units of the largest magnitude if above `tolerance`, else None."""
    if one.shape != two.shape:
        return float("inf")
    scale = max(float(two.detach().abs().max()) if two.numel() else 0.0, 1e-12)
    off = float((one - two).detach().abs().max()) / scale if two.numel() else 0.0
    return None if off <= tolerance else off


def of_one_shape(adapter: DomainAdapter, windows: Windows, number: int, count: int) -> list[Sample]:
    """The first samples, at most `count`, that can be batched with the very first."""
    found: list[Sample] = []
    for i in range(len(windows)):
        sample = windows.draw(i, *(np.random.default_rng([0, number, i]) for _ in range(2)))
        if not found or len(alike([adapter.encode(found[0]), adapter.encode(sample)])) == 1:
            found.append(sample)
        if len(found) == count:
            break
    return found
