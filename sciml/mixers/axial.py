"""Axial attention: along each axis on its own, all axes in parallel from the same projections (as in IFactFormer-m)."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.kernels.attend import attend, attend_plain
from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections
from sciml.mixers.rows import axis_bias, axis_lattice, axis_rows, spread
from sciml.tokens import Axis


class Axial(Mixer):
    """mean over axes a of gainₐ ⊙ attentionₐ(x), then one output projection.

    Cost is tokens × Σ axis lengths instead of tokens². Along a causal axis the state is that axis's keys and values.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.projections = Projections(width, heads)
        self.gain = RoleGain(width)

    def admits(self, axis: Axis) -> bool:
        return axis.size > 1 or axis.causal

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        q, k, v = self.projections.split(x)  # each (B, *lattice, H, D)
        memory = None if state is None else dict(state)
        total: Tensor | None = None
        axes = self.axes(geometry)
        for index in axes:
            y = self._along(index, q, k, v, geometry, memory)
            y = self.gain(y, geometry.role(index))
            total = y if total is None else total + y
        if total is None:
            return torch.zeros_like(x), state
        return self.projections.out(total / len(axes)), None if memory is None else tuple(memory.items())

    def _along(self, index: int, q: Tensor, k: Tensor, v: Tensor, geometry: Geometry,
               memory: dict[int, tuple[Tensor, Tensor]] | None) -> Tensor:
        axis = geometry.axes[index]
        table = geometry.rotary((index,), self.projections.head_width)
        bias = axis_bias(geometry, index, q.shape, past=memory is not None and bool(memory.get(index)))
        rows = [axis_rows(t, index) for t in (q, k, v)]  # (B * others, H, n, D)
        if table is not None:
            table = (spread(table[0], q.shape, index), spread(table[1], q.shape, index))
        query, key, value = rotate(rows[0], table), rotate(rows[1], table), rows[2]
        if memory is not None and axis.causal:
            geometry.check_alone(index)
            if index in memory:
                key, value = torch.cat([memory[index][0], key], 2), torch.cat([memory[index][1], value], 2)
            memory[index] = (key, value)
        y = attend(query, key, value, bias=bias, causal=axis.causal, second_order=geometry.second_order)
        return axis_lattice(y, q.shape, index)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        q, k, v = self.projections.split(x)
        outputs = []
        for index in self.axes(geometry):
            axis, table = geometry.axes[index], geometry.rotary((index,), self.projections.head_width)
            lines = [t.movedim(index + 1, -2) for t in (q, k, v)]  # (B, *others, H, n, D)
            weight, mask = geometry.key_bias((index,)), geometry.segment_mask(index)
            rows = []
            for b in range(x.shape[0]):
                own = None if table is None else tuple(t[min(b, t.shape[0] - 1)] for t in table)
                one, two, three = (t[b].reshape(-1, *t.shape[-3:]) for t in lines)
                bias = torch.zeros(axis.size, axis.size, dtype=x.dtype)
                if weight is not None:
                    bias = bias + weight[min(b, weight.shape[0] - 1)]
                if mask is not None:
                    bias = bias.masked_fill(~mask, -torch.inf)
                if geometry.pair_bias is not None and geometry.packed_axis == index:
                    bias = bias + geometry.pair_bias(self.heads)[0]
                y = attend_plain(rotate(one, own), rotate(two, own), three, bias=bias, causal=axis.causal)  # type: ignore[arg-type]
                rows.append(y.reshape(lines[0].shape[1:]))
            y = torch.stack(rows).movedim(-2, index + 1).flatten(-2)
            outputs.append(self.gain(y, geometry.role(index)))
        return self.projections.out(sum(outputs[1:], outputs[0]) / len(outputs)) if outputs else torch.zeros_like(x)


PLUGIN = Axial
