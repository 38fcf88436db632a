"""The population stem: the members of a set are read by a few slots, through rows that belong to each member."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sciml.operator.config import OperatorConfig
from sciml.operator.lattice import coarsen
from sciml.operator.named import NamedRows, NamedTables, key
from sciml.operator.patch import Taps, fold
from sciml.tokens import Axis, TokenBatch, TokenSpec


class PopulationStem(nn.Module):
    """token[slot, t] = Σ over members n and features f of x[n, t, f] · row[n, f, slot], instead of a token per member.

    The set axis named by `spec.slots` becomes an axis of that many slots: a recording of 300 units costs as many tokens
    as one of 30. Where some are not
    observed, the sum is over the others and divided by their share. Features are
    channels, where they were not observed, and lattice conditions; those that are the same for all members have one
    row. All that is particular to a member is in its rows (a linear read-in per session, as in Pandarinath et al.,
    "LFADS", Nature Methods 2018), so new members need no other weights. Along the other axes patches are merged as by
    the patch stem.
    """

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        assert spec.slots is not None
        stem_width, width, self.member_dropout = config.stem_width, config.levels[0].width, config.member_dropout
        self.axis, self.num_slots, self.stem_width = spec.slots.axis, spec.slots.count, stem_width
        self.members = nn.ModuleDict()
        self.given = NamedRows((), stem_width, std=1.0)
        self.taps = Taps(stem_width, spec.patch)
        self.widen = nn.Linear(stem_width, width)
        self.slots = nn.Parameter(torch.randn(self.num_slots, width) * 0.02)
        self.identities = NamedTables(width)
        self.extend(spec)

    def extend(self, spec: TokenSpec) -> None:
        assert spec.slots is not None
        own_conditions = spec.slots.own
        features = [*(f"value {c}" for c in spec.channels), *(f"missing {c}" for c in spec.channels),
                    *(f"given {c}" for c in own_conditions)]
        own = {n: len(m) for n, m in spec.identities.items() if n.rpartition("/")[2] == self.axis}
        for feature in map(key, features):
            if feature not in self.members:
                self.members[feature] = NamedTables(self.num_slots * self.stem_width)
            for namespace, count in own.items():
                # tokens of order one, and as large steps as other weights take; what is hidden says nothing until it is
                std = 0.0 if feature.startswith("missing") else (count * len(features)) ** -0.5
                self.members[feature].extend(namespace, count, std)  # type: ignore[operator]
        self.given.extend(c for c in spec.lattice_conditions if c not in own_conditions)

    def axes(self, axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of the tokens: slots in the place of members, the others coarsened."""
        return tuple(replace(axis, coord=axis.coord.new_zeros(1, self.num_slots, 0), measure=None, ids=None,
                             namespace=None) if axis.name == self.axis else axis for axis in coarsen(axes, sizes))

    def forward(self, batch: TokenBatch, sizes: Sequence[int]) -> Tensor:
        """``(B, *tokens, width)``: slots along the set axis, the rest of the lattice divided by `sizes`."""
        place = next(i for i, axis in enumerate(batch.axes) if axis.name == self.axis) + 1
        own = batch.axes[place - 1]
        assert own.namespace is not None
        assert own.ids is not None
        total: Tensor | None = None
        share, kept = _share_observed(batch, place), self._kept(batch, place)
        for name, x in self._features(batch):
            rows = self.members[key(name)](own.namespace)[own.ids]  # (B or 1, n, slots * w)
            part = self._read(x.movedim(place, -1) * kept, rows)  # (B, *others, slots, w)
            if share is not None and not name.startswith("missing"):
                part = part / share[0 if name.startswith("value") else 1][..., None, None]
            total = part if total is None else total + part
        assert total is not None
        for name, value in batch.conditions.lattice.items():
            if key(f"given {name}") not in self.members:
                total = total + self.given([name])[0] * value.movedim(place, -1)[..., None]
        x = total.movedim(-2, place)  # (B, *lattice with slots, w)
        taps = self.taps.kernel(sizes)  # (P, w, w)
        kernel = torch.einsum("ow,pwk->opk", self.widen.weight, taps) / taps.shape[0]
        tokens = nn.functional.linear(fold(x, sizes), kernel.flatten(1), self.widen.bias)
        shape = [1] * tokens.ndim
        shape[place], shape[-1] = self.num_slots, tokens.shape[-1]
        return tokens + self.slots.view(shape)

    def _kept(self, batch: TokenBatch, place: int) -> Tensor:
        """``(B, 1…, n)``: 0 for members that training leaves out, else 1 over the share that stays; all 1 otherwise."""
        ones = batch.values.new_ones(len(batch.values), *[1] * (len(batch.axes) - 1), batch.axes[place - 1].size)
        return nn.functional.dropout(ones, self.member_dropout, self.training)

    def _features(self, batch: TokenBatch) -> Iterator[tuple[str, Tensor]]:
        """Name and ``(B, *lattice)`` of all that differs between members."""
        for i, channel in enumerate(batch.channels):
            yield f"value {channel}", batch.values[..., i]
            if batch.observed is not None:
                missing = ~batch.observed.expand(batch.values.shape)[..., i]
                yield f"missing {channel}", missing.to(batch.values.dtype)
        for name, value in batch.conditions.lattice.items():
            if key(f"given {name}") in self.members:
                yield f"given {name}", value.expand(batch.values.shape[:-1])

    def _read(self, x: Tensor, rows: Tensor) -> Tensor:
        """``(B, *others, n)`` by ``(B or 1, n, slots * w)`` → ``(B, *others, slots, w)``."""
        if len(rows) == 1:
            y = x @ rows[0]
        else:
            y = (x.flatten(1, -2) @ rows).view(*x.shape[:-1], -1)
        return y.unflatten(-1, (self.num_slots, self.stem_width))


def _share_observed(batch: TokenBatch, place: int) -> tuple[Tensor, Tensor] | None:
    """Shares of the members, at least that of one: ``(B, *others)`` that are observed there, and ``(B, 1…)`` that are
    anywhere (whose conditions are known); None if all are."""
    if batch.observed is None:
        return None
    seen = batch.observed.expand(batch.values.shape).any(-1)
    others = [d for d in range(1, seen.ndim) if d != place]
    anywhere = seen.amax(others, keepdim=True) if others else seen
    least = 1.0 / batch.axes[place - 1].size
    here, ever = (x.to(batch.values.dtype).mean(place).clamp_min(least) for x in (seen, anywhere))
    return here, ever


PLUGIN = PopulationStem
