"""Who attends to whom: the weights of axial attention along one axis of a lattice, averaged over everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.mixers.axial import Axial
from sciml.mixers.geometry import Geometry
from sciml.operator.operator import Operator
from sciml.tokens import TokenBatch


def attention_weights(operator: Operator, batch: TokenBatch, axis: str) -> Tensor:
    """``(n, n)``, rows sum to 1: how much a token attends to those along a set axis of identities without coordinates,
    mean over samples, the other axes, heads and all blocks with the mixer `axial`.

    Raises `InputError` if no block attends along the axis one token per member: slots of a population stem are read by
    all units, so attention between slots says nothing of units.
    """
    spec, size = operator.specs[batch.domain], batch.lattice[[a.name for a in batch.axes].index(axis)]
    seen: list[Tensor] = []

    def record(mixer: Axial, given: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, geometry = given[0], given[1]
        for index, own in enumerate(geometry.axes):
            if own.name == axis and own.size == size and not own.coord.shape[-1]:
                seen.append(_weights(mixer, x, geometry, index))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in operator.modules()
             if isinstance(module, Axial) and not (spec.slots is not None and spec.slots.axis == axis)]
    try:
        with torch.no_grad():
            operator(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        found = f"{spec.slots.count} slots" if spec.slots is not None else "no block with the mixer axial"
        raise InputError("operator", key=f"attention along {axis}", found=found,
                         expected="slots: 0 and the mixer axial", fix="use ablation or the impulse response, which any "
                         "recipe has, or train with a token per member")
    return torch.stack(seen).mean(0)


def _weights(mixer: Axial, x: Tensor, geometry: Geometry, index: int) -> Tensor:
    """``(n, n)`` of one block, as `Axial` computes them along an axis without coordinates."""
    q, k, _ = mixer._heads(x, geometry, [index])[index]
    q, k = (t.movedim(index + 1, -2) for t in (q, k))  # (B, *others, H, n, D)
    return ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1).flatten(0, -3).mean(0)
