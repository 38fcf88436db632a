"""Batches from samples and back: grids are stacked, ragged sets share one axis with segment ids, nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.tokens import Axis, Conditions, Target, TokenBatch


def collate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """One batch of several batches of one domain, channels and kinds of axes.

    Samples whose axis carries segments are packed along it; all others must have equal lattices and are stacked.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    packed = first.packed_axis
    for other in batches[1:]:
        same = (other.domain, other.channels, [a.name for a in other.axes]) == (
            first.domain, first.channels, [a.name for a in first.axes])
        if not (same and _lattice(other) == _lattice(first)):
            raise InputError("batch", key=f"{first.sources} and {other.sources}",
                             found=f"{other.domain} {other.channels} {other.lattice}",
                             expected=f"{first.domain} {first.channels} {first.lattice}",
                             fix="put data of different shape into different stores, or set batch: 1")
    return _stack(batches) if packed is None else _pack(batches, packed)


def alike(batches: Sequence[TokenBatch]) -> list[list[TokenBatch]]:
    """The batches in order, those that follow one another and can be collated together.

    >>> from sciml import tokens
    >>> def line(n: int) -> TokenBatch:
    ...     axis = tokens.space("x", torch.arange(float(n)))
    ...     return TokenBatch("doc", "doc", torch.zeros(1, n, 1), ("doc/u",), (axis,))
    >>> [len(group) for group in alike([line(3), line(3), line(4)])]
    [2, 1]
    """
    groups: list[list[TokenBatch]] = []
    for batch in batches:
        if groups and _form(groups[-1][0]) == _form(batch):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return groups


def _form(batch: TokenBatch) -> tuple[tuple[int, ...], ...]:
    """Shapes that samples of one batch share: of the lattice, of what is asked and kept where nothing is packed; and
    which of the targets are scaled by wavenumber."""
    if batch.packed_axis is not None:
        return (_lattice(batch),)
    targets = batch.targets.values()
    tensors = [*(t for target in targets for t in (target.value, target.mask)), *batch.kept.values()]
    return (_lattice(batch), *(tuple(t.shape[1:]) for t in tensors),
            tuple(i for i, target in enumerate(targets) if target.spectrum is not None))


def _lattice(batch: TokenBatch) -> tuple[int, ...]:
    """Of all axes but a packed one."""
    return tuple(n for i, n in enumerate(batch.lattice) if i != batch.packed_axis)


def _stack(batches: Sequence[TokenBatch]) -> TokenBatch:
    first = batches[0]
    return replace(
        first, values=torch.cat([b.values for b in batches]), axes=tuple(
            _stack_axis([b.axes[i] for b in batches]) for i in range(len(first.axes))),
        observed=_observed(batches, 0), conditions=_conditions(batches, 0),
        targets={name: _target([b.targets[name] for b in batches], lambda t: torch.cat(t)) for name in first.targets},
        num_segments=sum(b.num_segments for b in batches), sources=sum((b.sources for b in batches), ()),
        kept=_kept(batches))


def _kept(batches: Sequence[TokenBatch]) -> dict[str, Tensor]:
    return {name: torch.cat([b.kept[name] for b in batches]) for name in batches[0].kept}


def _stack_axis(axes: Sequence[Axis]) -> Axis:
    def shared(tensors: list[Tensor | None]) -> Tensor | None:
        head = tensors[0]
        if head is None or all(t is head or (t is not None and torch.equal(t, head)) for t in tensors):
            return head
        return torch.cat([t for t in tensors if t is not None])

    first = axes[0]
    coord = shared([a.coord for a in axes])
    assert coord is not None
    return replace(first, coord=coord, measure=shared([a.measure for a in axes]), ids=shared([a.ids for a in axes]))


def _pack(batches: Sequence[TokenBatch], place: int) -> TokenBatch:
    first, dim = batches[0], 1 + place

    def join(tensors: list[Tensor]) -> Tensor:
        """Along the packed axis for lattice-shaped tensors, along segments for ``(S, K)`` ones."""
        if tensors[0].ndim == 2:
            return torch.cat(tensors)
        return torch.cat([_widen(t, dim, b.lattice[place]) for t, b in zip(tensors, batches)], dim)

    axes = list(first.axes)
    axes[place] = _pack_axis([b.axes[place] for b in batches], [b.num_segments for b in batches])
    return replace(
        first, values=torch.cat([b.values for b in batches], dim), axes=tuple(axes),
        observed=_observed(batches, dim), conditions=_conditions(batches, dim),
        targets={name: _target([b.targets[name] if name in b.targets else _unknown(like, b, place) for b in batches],
                               join) for name, like in _kinds(batches).items()},
        num_segments=sum(b.num_segments for b in batches), sources=sum((b.sources for b in batches), ()),
        kept=_kept(batches))


def _kinds(batches: Sequence[TokenBatch]) -> dict[str, Target]:
    """One target of every name."""
    return {name: target for b in reversed(batches) for name, target in b.targets.items()}


def _unknown(like: Target, batch: TokenBatch, place: int) -> Target:
    """What a packed sample doesn't bring and others do (stress without a cell): nothing of it is known."""
    def sized(t: Tensor) -> Tensor:
        dim, size = (0, batch.num_segments) if t.ndim == 2 else (1 + place, batch.lattice[place])
        return t.new_zeros([size if i == dim else n for i, n in enumerate(t.shape)])

    return Target(sized(like.value), sized(like.mask), sized(like.baseline), sized(like.scale) + 1)


def _pack_axis(axes: Sequence[Axis], counts: Sequence[int]) -> Axis:
    def join(tensors: list[Tensor | None]) -> Tensor | None:
        present = [t for t in tensors if t is not None]
        return torch.cat(present, 1) if len(present) == len(tensors) else None

    offset, segments = 0, []
    for axis, count in zip(axes, counts):
        assert axis.segment is not None
        segments.append(axis.segment + offset)
        offset += count
    coord = join([a.coord for a in axes])
    assert coord is not None
    return replace(axes[0], coord=coord, segment=torch.cat(segments, 1), ids=join([a.ids for a in axes]),
                   measure=join([a.measure for a in axes]), period=_pack_cells(axes, counts))


def _pack_cells(axes: Sequence[Axis], counts: Sequence[int]) -> Tensor | None:
    """Cells ``(S, 3, 3)`` of all samples, zero for one that has none; a period ``(d,)`` is the same for all."""
    cells = next((a.period for a in axes if a.period is not None), None)
    if cells is None or cells.ndim == 1:
        return cells
    return torch.cat([cells.new_zeros(count, 3, 3) if axis.period is None else axis.period
                      for axis, count in zip(axes, counts)])


def _widen(t: Tensor, dim: int, size: int) -> Tensor:
    return t if t.shape[dim] == size else t.expand(*t.shape[:dim], size, *t.shape[dim + 1:])


def _observed(batches: Sequence[TokenBatch], dim: int) -> Tensor | None:
    if all(b.observed is None for b in batches):
        return None
    full = [torch.ones_like(b.values[..., :1], dtype=torch.bool) if b.observed is None else b.observed for b in batches]
    shape = [max(t.shape[i] for t in full) for i in range(full[0].ndim)]
    widened = []
    for t, b in zip(full, batches):
        sizes = [t.shape[i] if i == 0 else (b.values.shape[i] if i == dim else shape[i]) for i in range(t.ndim)]
        widened.append(t.expand(sizes))
    return torch.cat(widened, dim)


def _conditions(batches: Sequence[TokenBatch], dim: int) -> Conditions:
    first = batches[0].conditions
    for b in batches[1:]:
        if set(b.conditions.vector) != set(first.vector) or set(b.conditions.lattice) != set(first.lattice):
            raise InputError("batch", key=f"{b.sources}", found=f"{sorted(b.conditions.vector)}",
                             expected=f"the conditions of the others, {sorted(first.vector)}",
                             fix="batch only samples with the same conditions")
    contexts = [b.conditions.context for b in batches]
    present = [c for c in contexts if c is not None]
    if present and len(present) < len(batches):
        raise InputError("batch", key=f"{batches[0].sources}", found=f"{len(present)} of {len(batches)} with context",
                         expected="a context for all or for none", fix="batch only samples with the same conditions")
    size = 0 if dim == 0 else dim - 1

    def join(name: str) -> Tensor:
        tensors = [b.conditions.lattice[name] for b in batches]
        if dim:
            tensors = [_widen(t, dim, b.lattice[size]) for t, b in zip(tensors, batches)]
        return torch.cat(tensors, dim)

    return Conditions(
        vector={name: torch.cat([b.conditions.vector[name] for b in batches]) for name in first.vector},
        lattice={name: join(name) for name in first.lattice}, context=collate(present) if present else None)


def _target(targets: Sequence[Target], join: Callable[[list[Tensor]], Tensor]) -> Target:
    spectra = [t.spectrum for t in targets if t.spectrum is not None]
    return Target(value=join([t.value for t in targets]), mask=join([t.mask for t in targets]),
                  baseline=join([t.baseline for t in targets]), scale=join([t.scale for t in targets]),
                  spectrum=torch.cat(spectra) if spectra else None)


def unpack(batch: TokenBatch) -> list[TokenBatch]:
    """The batches of one that `collate` made `batch` of."""
    return [_take(batch, i) for i in range(batch.num_segments)]


def _take(batch: TokenBatch, i: int) -> TokenBatch:
    place = batch.packed_axis
    if place is None:
        index, dim = torch.tensor([i]), 0
    else:
        segment = batch.axes[place].segment
        assert segment is not None
        index, dim = (segment[0] == i).nonzero()[:, 0], 1 + place

    def cells(t: Tensor) -> Tensor:
        """Of a tensor on the lattice; size 1 along the samples' dimension: shared by all."""
        return t if t.shape[dim] == 1 else t.index_select(dim, index)

    def pick(t: Tensor) -> Tensor:
        return t[i: i + 1] if t.ndim == 2 and dim else cells(t)

    def axis(which: int, a: Axis) -> Axis:
        def own(t: Tensor | None, along: int) -> Tensor | None:
            if t is None or (along == 0 and t.shape[0] == 1):
                return t
            return t.index_select(along, index)
        if place is None:
            coord, along = own(a.coord, 0), 0
        elif which == place:
            coord, along = own(a.coord, 1), 1
        else:
            return a
        assert coord is not None
        segment = None if a.segment is None else torch.zeros(1, len(index), dtype=torch.long)
        period = a.period[i: i + 1] if a.period is not None and a.period.ndim == 3 and which == place else a.period
        return replace(a, coord=coord, measure=own(a.measure, along), ids=own(a.ids, along), segment=segment,
                       period=period)

    def target(t: Target) -> Target:
        spectrum = None if t.spectrum is None else t.spectrum[i: i + 1]
        return Target(pick(t.value), pick(t.mask), pick(t.baseline), pick(t.scale), spectrum)

    context = batch.conditions.context
    return replace(
        batch, values=pick(batch.values), axes=tuple(axis(k, a) for k, a in enumerate(batch.axes)),
        observed=None if batch.observed is None else pick(batch.observed),
        conditions=Conditions({k: v[i: i + 1] for k, v in batch.conditions.vector.items()},
                              {k: cells(v) for k, v in batch.conditions.lattice.items()},
                              None if context is None else _take(context, i)),
        targets={k: target(t) for k, t in batch.targets.items()},
        num_segments=1, sources=batch.sources[i: i + 1],
        kept={k: v[i: i + 1] for k, v in batch.kept.items()})
