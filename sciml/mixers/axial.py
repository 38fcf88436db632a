"""Axial attention: along each axis on its own, in parallel (as in IFactFormer-m) or in a chain (FactFormer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sciml.kernels.attend import attend, attend_plain, segment_lengths
from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import NUM_ROLES, Geometry, roles_of, rotate
from sciml.mixers.projections import Projections
from sciml.mixers.rows import axis_bias, axis_lattice, axis_rows, spread_pair
from sciml.tokens import Axis

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each ``(B, *lattice, H, D)``."""


class Axial(Mixer):
    """mean over axes a of gainₐ ⊙ attentionₐ(x), then one output projection; or, `chained`, the values of one axis are
    what the attention along the axis before has made of them.

    projections: `shared` by all axes, or `separate` ones for each axis role (x, y, z, time, set). Cost is tokens × Σ
    axis lengths instead of tokens². Along a causal axis the state is that axis's keys and values. A pair bias, if the
    domain has one, takes the place of rotary positions along the axis that it is about.
    Source: Li et al., "Scalable transformer for PDE surrogate modeling", 2023, for the chain.
    """

    def __init__(self, width: int, heads: int, *, chained: bool = False,
                 projections: Literal["shared", "separate"] = "shared") -> None:
        super().__init__(width, heads)
        self.chained, self.separate = chained, projections == "separate"
        self.projections = Projections(width, heads)
        self.others = nn.ModuleList(Projections(width, heads, out=False) for _ in range(NUM_ROLES - 1)
                                    if self.separate)  # of the roles after the first
        self.gain = RoleGain(width)

    def admits(self, axis: Axis) -> bool:
        return axis.size > 1 or axis.causal

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        memory = None if state is None else dict(state)
        heads = self._heads(x, geometry, axes)
        total: Tensor | None = None
        for index in axes:
            q, k, v = heads[index]
            if self.chained and total is not None:
                v = total.view(v.shape)
            y, gain = self._along(index, (q, k, v), geometry, memory), self._gain(geometry.role(index), len(axes))
            total = y * gain if total is None or self.chained else torch.addcmul(total, y, gain)
        assert total is not None
        return self.projections.out(total), None if memory is None else tuple(memory.items())

    def _heads(self, x: Tensor, geometry: Geometry, axes: list[int]) -> dict[int, Heads]:
        if not self.separate:
            return dict.fromkeys(axes, self.projections.split(x))
        return {index: self._of_role(geometry.role(index)).split(x) for index in axes}

    def _of_role(self, role: int) -> Projections:
        own = self.others[role - 1] if role and self.separate else self.projections
        assert isinstance(own, Projections)
        return own

    def _gain(self, role: int, num_axes: int) -> Tensor:
        return self.gain.weight[role] if self.chained else self.gain.weight[role] / num_axes

    def parameters_of(self, axes: Sequence[Axis]) -> set[str]:
        """Projections of a role serve only lattices that have it."""
        roles = {role for axis, role in zip(axes, roles_of(axes)) if self.admits(axis)}
        idle = {f"others.{role - 1}." for role in range(1, NUM_ROLES) if role not in roles}
        if self.separate and 0 not in roles:
            idle |= {"projections.qkv", "projections.query_norm", "projections.key_norm"}
        return {name for name in super().parameters_of(axes) if not any(name.startswith(prefix) for prefix in idle)}

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            geometry.rotary((index,), self.projections.head_width)
            geometry.key_bias((index,))
            _lengths(geometry, index)

    def _along(self, index: int, heads: Heads, geometry: Geometry,
               memory: dict[int, tuple[Tensor, Tensor]] | None) -> Tensor:
        axis, shape = geometry.axes[index], heads[0].shape
        q, k, v = (axis_rows(t, index) for t in heads)  # (B * others, H, n, D)
        bias = axis_bias(geometry, index, q.shape[0], self.heads)
        table = spread_pair(geometry.rotary((index,), self.projections.head_width), q.shape[0])
        q, k = rotate(q, table), rotate(k, table)
        if memory is not None and axis.causal:
            geometry.check_memory(index)
            if index in memory:
                k, v = torch.cat([memory[index][0], k], 2), torch.cat([memory[index][1], v], 2)
            memory[index] = (k, v)
        lengths = None if memory is not None and axis.causal else _lengths(geometry, index)
        y = attend(q, k, v, bias=bias, causal=axis.causal, second_order=geometry.second_order, segment=lengths)
        return axis_lattice(y, shape, index)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        outputs: list[Tensor] = []
        for index in axes:
            axis, table = geometry.axes[index], geometry.rotary((index,), self.projections.head_width)
            q, k, v = self._of_role(geometry.role(index)).split(x)
            if self.chained and outputs:
                v = outputs[-1].view(v.shape)
            lines = [t.movedim(index + 1, -2) for t in (q, k, v)]  # (B, *others, H, n, D)
            weight, pair = geometry.key_bias((index,)), geometry.pair_term((index,), self.heads)
            rows = []
            for b in range(x.shape[0]):
                own = None if table is None else tuple(t[min(b, t.shape[0] - 1)] for t in table)
                one, two, three = (t[b].reshape(-1, *t.shape[-3:]) for t in lines)
                bias = torch.zeros(axis.size, axis.size, dtype=x.dtype)
                if weight is not None:
                    bias = bias + weight[min(b, weight.shape[0] - 1)]
                if axis.segment is not None:
                    bias = bias.masked_fill(axis.segment[0, :, None] != axis.segment[0, None, :], -torch.inf)
                if pair is not None:
                    bias = bias + pair[min(b, pair.shape[0] - 1)]
                y = attend_plain(rotate(one, own), rotate(two, own), three, bias=bias, causal=axis.causal)  # type: ignore[arg-type]
                rows.append(y.reshape(lines[0].shape[1:]))
            y = torch.stack(rows).movedim(-2, index + 1).flatten(-2)
            outputs.append(self.gain(y, geometry.role(index)))
        if not outputs:
            return torch.zeros_like(x)
        return self.projections.out(outputs[-1] if self.chained else sum(outputs[1:], outputs[0]) / len(outputs))


def _lengths(geometry: Geometry, index: int) -> tuple[int, ...] | None:
    """How many tokens each sample has that is packed along the axis, or None."""
    segment = geometry.axes[index].segment
    if segment is None:
        return None
    return geometry.once(("lengths", index), lambda: segment_lengths(segment[0]))


PLUGIN = Axial
