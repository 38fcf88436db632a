"""What holds of a prediction exactly: vectors without divergence, means over space that stay.

Projections are written into the output of the operator, so that ``Target.predict`` gives the projected state: training,
evaluation and rollout don't know of them. Source of the first: Chorin, Math. Comp. 22 (1968); on a periodic box it is
``v̂ − k (k·v̂) / |k|²`` (Pope, Turbulent Flows, 2000, §6.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sciml.data.store import Store
from sciml.domains.fields import spectral
from sciml.domains.fields.config import Contract, Project
from sciml.errors import InputError
from sciml.tokens import Target, TokenBatch, filter_wavenumbers

MEAN = "mean"
"""Of ``TokenBatch.kept``: the mean over space of every channel at the start ``(S, C)``, in link space."""
MOST = 0.05
"""Divergence of data that are taken as free of it, as a part of the size of their gradient."""


def checked(store: Store, known: Contract, project: Project) -> None:
    """Raises `InputError` unless what is to be projected is in the data set whole, on a grid that allows it; names that
    it doesn't have at all are another data set's."""
    for vector in project.divergence_free:
        parts = known.vectors.get(vector)
        if parts is None:
            continue
        if set(parts) != set(known.names) or not (spectral.applies(store, known) and known.periodic) or len(
                {axis.unit for axis in known.axes}) > 1:
            raise InputError(store.url, key=vector, found=f"components along {sorted(parts)}, axes "
                             f"{[(axis.name, axis.unit, axis.period) for axis in known.axes]}",
                             expected="one along every axis of an even periodic grid, without masks or gaps",
                             fix="leave it out of domains.fields.project.divergence_free")
        first = store.meta.splits.train[0]
        at = () if known.steady else (first.start, first.start + 1)
        values = np.stack([store.read(parts[axis], first.group, *at) for axis in known.names], -1)
        field = torch.from_numpy(values.reshape(1, *values.shape[-1 - len(known.axes):]).astype(np.float64))
        periods = [axis.period or 1.0 for axis in known.axes]
        rest = divergence(field, periods).square().mean() / gradient_square(field, periods).clamp_min(1e-300)
        if float(rest) > MOST**2:
            raise InputError(store.url, key=vector, found=f"a divergence of {math.sqrt(rest):.2g} of its gradient",
                             expected="a field without divergence", fix="leave it out of domains.fields.project")
    if known.steady and any(_channels(known, (name,)) for name in project.mean):
        raise InputError(store.url, key="project.mean", found="a steady data set", expected="an initial state",
                         fix="leave it out of domains.fields.project.mean")


def check_names(known: Mapping[str, Contract], project: Project) -> None:
    """Raises `InputError` for a name that no data set has."""
    for kind, wanted in (("divergence_free", project.divergence_free), ("mean", project.mean)):
        for name in wanted:
            has = [name in c.vectors if kind == "divergence_free" else bool(_channels(c, (name,)))
                   for c in known.values()]
            if has and not any(has):
                there = {v for c in known.values() for v in (*c.vectors, *c.states)}
                raise InputError("domains.fields", key=f"project.{kind}", found=name,
                                 expected=f"one of {sorted(there)}",
                                 fix="correct the name, or give the data the attributes `vector` and `along`")


def _channels(known: Contract, names: Sequence[str]) -> list[int]:
    """Places of the states of these names, or of the vectors of these names."""
    return [i for i, (name, scaling) in enumerate(known.states.items()) if name in names or scaling.vector in names]


def means(batch: TokenBatch) -> Tensor:
    """``(B, C)`` mean over space, by cell size, of what is observed."""
    return _mean(batch, batch.values)


def _mean(batch: TokenBatch, values: Tensor) -> Tensor:
    weight = torch.ones_like(values[:1, ..., :1], dtype=torch.float64)
    for place, axis in enumerate(batch.axes):
        shape = [1] * values.ndim
        shape[1 + place] = axis.size
        weight = weight * axis.weights()[0].double().view(shape)
    weight = weight.expand(values.shape) if batch.observed is None else weight * batch.observed.expand(values.shape)
    total, size = (x.flatten(1, -2).sum(1) for x in (weight * values, weight))
    return (total / size.clamp_min(torch.finfo(torch.float64).tiny)).to(values.dtype)


def projected(output: Tensor, target: Target, batch: TokenBatch, known: Contract, project: Project) -> Tensor:
    """The output ``(B, *space, C)`` whose prediction is the projection of what `output` predicts."""
    output = output.to(batch.values.dtype)
    state = target.predict(output)
    change = torch.zeros_like(state)
    scales = state.new_tensor([scaling.scale for scaling in known.states.values()])
    for vector in project.divergence_free:
        if vector in known.vectors:
            own = [list(known.states).index(known.vectors[vector][axis]) for axis in known.names]
            if batch.observed is not None:
                raise _gaps(batch, vector)
            periods = [float(axis.period.flatten()[0]) for axis in batch.axes if axis.period is not None]
            gradient = compressive(state[..., own] * scales[own], periods) / scales[own]
            change = change.index_add(-1, torch.tensor(own, device=state.device), -gradient)
    kept = _channels(known, project.mean)
    if kept:
        lost = batch.kept[MEAN][:, kept] - _mean(batch, state + change)[:, kept]
        lost = lost.view(len(lost), *(1,) * len(batch.axes), -1).expand(*state.shape[:-1], -1)
        change = change.index_add(-1, torch.tensor(kept, device=state.device), lost)
    change = change / target.scale
    if target.spectrum is not None:
        change = filter_wavenumbers(change, 1 / target.spectrum)
    return output + change


def _gaps(batch: TokenBatch, name: str) -> InputError:
    return InputError(batch.sources, key=name, found="cells that are not known", expected="a whole field to project",
                      fix="fill the gaps, or leave it out of domains.fields.project")


def waves(sizes: Sequence[int], periods: Sequence[float], like: Tensor) -> list[Tensor]:
    """Angular wavenumber along every axis of an rfftn, broadcastable; 0 at the Nyquist wavenumber of an even size, at
    which a real field has no derivative on the grid."""
    found = []
    for axis, (n, period) in enumerate(zip(sizes, periods)):
        k = torch.arange(n // 2 + 1) if axis == len(sizes) - 1 else torch.fft.fftfreq(n, 1 / n).round()
        k = torch.where(2 * k.abs() == n, 0, k)
        shape = [1] * len(sizes)
        shape[axis] = len(k)
        found.append(k.to(like).view(shape) * (2 * math.pi / period))
    return found


def compressive(field: Tensor, periods: Sequence[float]) -> Tensor:
    """The part ``k (k·v̂) / |k|²`` of ``(B, *space, d)`` that has all its divergence; components as the axes are."""
    dims = tuple(range(1, field.ndim - 1))
    k = waves(field.shape[1:-1], periods, field)
    spectrum = torch.fft.rfftn(field, dim=dims)
    square = torch.stack(torch.broadcast_tensors(*(w.square() for w in k))).sum(0)
    along = sum(w * spectrum[..., i] for i, w in enumerate(k)) / torch.where(square > 0, square, 1.0)
    parts = torch.stack([w * along for w in k], -1)
    return torch.fft.irfftn(parts, s=field.shape[1:-1], dim=dims)


def divergence(field: Tensor, periods: Sequence[float]) -> Tensor:
    """``(B, *space)`` of ``(B, *space, d)`` on an even periodic grid, exact for band-limited fields."""
    dims = tuple(range(1, field.ndim - 1))
    spectrum = torch.fft.rfftn(field, dim=dims)
    total = sum(1j * w * spectrum[..., i] for i, w in enumerate(waves(field.shape[1:-1], periods, field)))
    return torch.fft.irfftn(total, s=field.shape[1:-1], dim=dims)


def gradient_square(field: Tensor, periods: Sequence[float]) -> Tensor:
    """Mean over space of ``Σ_ij (∂_i v_j)²``, one number."""
    dims = tuple(range(1, field.ndim - 1))
    spectrum = torch.fft.rfftn(field, dim=dims)
    each = [torch.fft.irfftn(1j * w[..., None] * spectrum, s=field.shape[1:-1], dim=dims).square().sum(-1).mean()
            for w in waves(field.shape[1:-1], periods, field)]
    return torch.stack(each).sum()


def keeping(batch: TokenBatch, project: Project) -> TokenBatch:
    """With what the projections need of the start."""
    return replace(batch, kept={**batch.kept, MEAN: means(batch)}) if project.mean else batch
