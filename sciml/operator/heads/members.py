"""A value per member of a set and cell of the rest of the lattice, read back from the slots of a population stem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedTables, key
from sciml.operator.patch import Taps, unfold
from sciml.tokens import HeadSpec, TokenBatch, TokenSpec


class MembersHead(nn.Module):
    """y[n, t] = Σ over slots of ⟨row[n, slot], h[slot, t]⟩ + ⟨own[n], x[n, t]⟩ + bias[n]: ``(B, *lattice,
    len(outputs))``.

    x are the member's own channels and conditions, which a few slots can't carry for every member. Rows and bias of a
    member start at zero, hence at the baseline; new members get rows of their own.
    """

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        assert spec.slots is not None
        self.axis, self.num_slots = spec.slots.axis, spec.slots.count
        self.narrow = nn.Linear(width, stem_width)
        self.taps = Taps(stem_width, spec.patch)
        self.rows = nn.ModuleDict()
        self.stem_width, self.features = stem_width, (*spec.channels, *spec.slots.own)
        self.extend(head, spec)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        own = {n: len(m) for n, m in spec.identities.items() if n.rpartition("/")[2] == self.axis}
        for name in head.outputs:
            if key(name) not in self.rows:
                self.rows[key(name)] = NamedTables(
                    self.num_slots * self.stem_width + len(self.features) + 1, std=0.0)
            for namespace, count in own.items():
                self.rows[key(name)].extend(namespace, count)  # type: ignore[operator]

    def forward(self, given: HeadInput) -> Tensor:
        axes = given.batch.axes
        place = next(i for i, axis in enumerate(axes) if axis.name == self.axis) + 1
        own = axes[place - 1]
        assert own.namespace is not None
        assert own.ids is not None
        kernel = self.taps.kernel(given.sizes) @ self.narrow.weight  # (P, w, C)
        bias = self.taps.kernel(given.sizes) @ self.narrow.bias  # (P, w)
        h = nn.functional.linear(given.tokens, kernel.flatten(0, 1), bias.flatten())
        h = unfold(h, given.sizes, self.stem_width).movedim(place, -2).flatten(-2)  # (B, *others, slots * w)
        x = self._own(given.batch).movedim(place, -2)  # (B, *others, n, F)
        outputs, hidden = [], h.shape[-1]
        for name in self.rows:
            table = self.rows[name](own.namespace)[own.ids]  # (B or 1, n, slots * w + F + 1)
            y = h.flatten(1, -2) @ table[..., :hidden].transpose(1, 2) + table[:, None, :, -1]  # (B, others, n)
            y = y + (x.flatten(1, -3) * table[:, None, :, hidden:-1]).sum(-1)
            outputs.append(y.view(*h.shape[:-1], -1).movedim(-1, place))
        return torch.stack(outputs, -1)

    def _own(self, batch: TokenBatch) -> Tensor:
        """``(B, *lattice, F)``; a channel that the batch doesn't have is zero."""
        shape = batch.values.shape[:-1]
        columns = {channel: batch.values[..., i] for i, channel in enumerate(batch.channels)}
        columns |= {name: value.expand(shape) for name, value in batch.conditions.lattice.items()}
        none = batch.values.new_zeros(shape)
        return torch.stack([columns.get(name, none) for name in self.features], -1)


PLUGIN = MembersHead
