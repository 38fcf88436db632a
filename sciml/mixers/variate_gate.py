"""Each member of a set by its own history, and through a gate of its own what it reads from the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciml.kernels.attend import attend, attend_plain, segment_lengths
from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections
from sciml.mixers.rows import axis_bias, axis_lattice, axis_rows, both_ways, spread, spread_pair
from sciml.tokens import Axis

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each ``(B, *lattice, H, D)``."""

STRETCH = 0.1
"""The sigmoid of a gate goes from −0.1 to 1.1 and is cut at 0 and 1, which it so reaches: |logit| > 2.4."""


class VariateGate(Mixer):
    """y = P (own + g ⊙ others): own is attention along each axis that is no set, others is attention along each set to
    all members but oneself; means over axes, with a gain per axis role.

    g = clip(1.2 σ(W x̄ + b) − 0.1, 0, 1), one number per member (variate) and head; x̄ is the mean over the ordered axes
    of the member's tokens, weighed by quadrature. Who a member is reaches its gate through its tokens alone, so that
    members without an identity have one too. Causal and packed axes are not averaged over: there every index has a gate
    of its own. At g = 0 the result is exactly that of `axial` on the member alone. A member without others reads zero.
    A causal set is a history, not a set. Cost: tokens × (Σ axis lengths), linear in time for the reading of others.
    Along a causal axis the state is that axis's keys and values. own: whether there is that term; without it another
    mixer beside this one sees the history, such as `gated`, whose state stays small.
    Sources: the gate after Gateformer (Lan & Oermann, 2025), its stretch from Louizos et al., "Learning sparse neural
    networks through L0 regularization", 2018.
    """

    def __init__(self, width: int, heads: int, *, own: bool = True) -> None:
        super().__init__(width, heads)
        self.own = own
        self.projections = Projections(width, heads)
        self.gate = nn.Linear(width, heads)
        self.gain = RoleGain(width)
        nn.init.zeros_(self.gate.bias)

    def admits(self, axis: Axis) -> bool:
        return axis.size > 1 if is_set(axis) else self.own and (axis.size > 1 or axis.causal)

    def parameters_of(self, axes: Sequence[Axis]) -> set[str]:
        """The gate serves only lattices with a set."""
        idle = set() if any(is_set(axis) and self.admits(axis) for axis in axes) else {"gate.weight", "gate.bias"}
        return super().parameters_of(axes) - idle

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            geometry.rotary((index,), self.projections.head_width)
            geometry.key_bias((index,))
            _lengths(geometry, index)
            if is_set(geometry.axes[index]):
                _alone(geometry, index)
        for index in range(len(geometry.axes)):
            _shares(geometry, index)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        memory = None if state is None else dict(state)
        heads, sets = self.projections.split(x), [index for index in axes if is_set(geometry.axes[index])]
        total: Tensor | None = None
        for index in axes:
            if index not in sets:
                y = self._along(index, heads, geometry, memory)
                y = y * (self.gain.weight[geometry.role(index)] / (len(axes) - len(sets)))
                total = y if total is None else total + y
        if sets:
            reads = [self.gain(self._others(index, heads, geometry), geometry.role(index)) for index in sets]
            others = (sum(reads[1:], reads[0]) / len(reads)).unflatten(-1, (self.heads, -1))
            others = (self.openness(x, geometry)[..., None] * others).flatten(-2)
            total = others if total is None else total + others
        assert total is not None
        return self.projections.out(total), None if memory is None else tuple(memory.items())

    def openness(self, x: Tensor, geometry: Geometry) -> Tensor:
        """g of every member and head, ``(B, *lattice, H)``, 1 long along the axes that share it; x as of `forward`."""
        logit = self.gate(x).to(self.gate.weight.dtype)
        for index, axis in enumerate(geometry.axes):
            if both_ways(axis):
                share = _shares(geometry, index)
                shape = [len(share), *[1] * (x.ndim - 2), 1]
                shape[index + 1] = axis.size
                logit = (share.view(shape) * logit).sum(index + 1, keepdim=True)
        return ((1 + 2 * STRETCH) * logit.sigmoid() - STRETCH).clamp(0.0, 1.0)

    def _along(self, index: int, heads: Heads, geometry: Geometry,
               memory: dict[int, tuple[Tensor, Tensor]] | None) -> Tensor:
        axis, (q, k, v) = geometry.axes[index], self._rows(index, heads, geometry)
        bias, lengths = axis_bias(geometry, index, q.shape[0], self.heads), _lengths(geometry, index)
        if memory is not None and axis.causal:
            geometry.check_memory(index)
            if index in memory:
                k, v = torch.cat([memory[index][0], k], 2), torch.cat([memory[index][1], v], 2)
            memory[index], lengths = (k, v), None
        y = attend(q, k, v, bias=bias, causal=axis.causal, second_order=geometry.second_order, segment=lengths)
        return axis_lattice(y, heads[0].shape, index)

    def _others(self, index: int, heads: Heads, geometry: Geometry) -> Tensor:
        q, k, v = self._rows(index, heads, geometry)
        bias, alone = axis_bias(geometry, index, q.shape[0], self.heads), _alone(geometry, index)
        oneself = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        bias = q.new_zeros(1, 1, 1, 1) if bias is None else bias
        bias = bias.expand(-1, -1, q.shape[2], q.shape[2]).masked_fill(oneself, -torch.inf)
        if alone is not None:  # a softmax over nothing would be no number
            none = spread(alone[:, None, :, None], q.shape[0])  # (rows or 1, 1, n, 1)
            bias = bias.masked_fill(none, 0.0)
        y = attend(q, k, v, bias=bias, second_order=geometry.second_order, segment=_lengths(geometry, index))
        return axis_lattice(y if alone is None else y.masked_fill(none, 0.0), heads[0].shape, index)

    def _rows(self, index: int, heads: Heads, geometry: Geometry) -> Heads:
        """Each ``(B * others, H, n, D)``, queries and keys rotated by position."""
        q, k, v = (axis_rows(t, index) for t in heads)
        table = spread_pair(geometry.rotary((index,), self.projections.head_width), q.shape[0])
        return rotate(q, table), rotate(k, table), v

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        histories = [self._looped(i, x, geometry) for i in axes if not is_set(geometry.axes[i])]
        reads = [self._looped(i, x, geometry) for i in axes if is_set(geometry.axes[i])]
        total = torch.zeros_like(x)
        if histories:
            total = total + sum(histories) / len(histories)
        if reads:
            mean = x
            for index, axis in enumerate(geometry.axes):
                if both_ways(axis):
                    weight = axis.weights()
                    weight = torch.where((weight > 0).any(1, keepdim=True), weight, torch.ones_like(weight))
                    lines = mean.movedim(index + 1, -1)  # (B, *others, C, n)
                    rows = [(line * w).sum(-1, keepdim=True) / w.sum()
                            for line, w in zip(lines, weight.expand(len(lines), -1))]
                    mean = torch.stack(rows).movedim(-1, index + 1)
            gate = ((1 + 2 * STRETCH) * torch.sigmoid(self.gate(mean)) - STRETCH).clamp(0.0, 1.0)
            total = total + gate.repeat_interleave(self.width // self.heads, -1) * sum(reads) / len(reads)
        return self.projections.out(total) if axes else total

    def _looped(self, index: int, x: Tensor, geometry: Geometry) -> Tensor:
        """Attention along one axis, sample by sample and query by query, times the gain of the axis's role."""
        axis, table = geometry.axes[index], geometry.rotary((index,), self.projections.head_width)
        weight, pair = geometry.key_bias((index,)), geometry.pair_term((index,), self.heads)
        q, k, v = (t.movedim(index + 1, -2) for t in self.projections.split(x))  # (B, *others, H, n, D)
        samples = []
        for b in range(x.shape[0]):
            own = None if table is None else (table[0][min(b, len(table[0]) - 1)], table[1][min(b, len(table[1]) - 1)])
            one, two, three = (t[b].reshape(-1, *t.shape[-3:]) for t in (q, k, v))
            one, two, columns = rotate(one, own), rotate(two, own), []
            for i in range(axis.size):
                seen = [j for j in range(axis.size) if (not is_set(axis) or j != i) and (not axis.causal or j <= i)
                        and (axis.segment is None or axis.segment[0, i] == axis.segment[0, j])
                        and (weight is None or not is_set(axis) or weight[min(b, len(weight) - 1), j] > -torch.inf)]
                bias = torch.zeros(1, 1, len(seen), dtype=x.dtype)
                if weight is not None:
                    bias = bias + weight[min(b, len(weight) - 1), seen]
                if pair is not None:
                    bias = bias + pair[min(b, len(pair) - 1), :, i, None, seen]
                columns.append(attend_plain(one[:, :, [i]], two[:, :, seen], three[:, :, seen], bias=bias)
                               if seen else torch.zeros_like(three[:, :, [i]]))
            samples.append(torch.cat(columns, 2).reshape(q.shape[1:]))
        y = torch.stack(samples).movedim(-2, index + 1).flatten(-2)
        return self.gain(y, geometry.role(index))


def is_set(axis: Axis) -> bool:
    """Whether the axis has members that read one another, and not a history."""
    return axis.kind == "set" and not axis.causal


def _lengths(geometry: Geometry, index: int) -> tuple[int, ...] | None:
    """How many tokens each sample has that is packed along the axis, or None."""
    segment = geometry.axes[index].segment
    if segment is None:
        return None
    return geometry.once(("lengths", index), lambda: segment_lengths(segment[0]))


def _alone(geometry: Geometry, index: int) -> Tensor | None:
    """``(B or 1, n)`` bool: members of a set whose sample has no other with a weight; None where there is no such."""
    def make() -> Tensor | None:
        weight, segment = geometry.key_bias((index,)), geometry.axes[index].segment
        if weight is None and segment is None:
            return None
        size, device = geometry.axes[index].size, geometry.axes[index].coord.device
        seen = ~torch.eye(size, dtype=torch.bool, device=device)[None]
        if weight is not None:
            seen = seen & ~weight.isneginf()[:, None, :]
        if segment is not None:
            seen = seen & (segment[:, :, None] == segment[:, None, :])
        return ~seen.any(-1)
    return geometry.once(("alone", index), make)


def _shares(geometry: Geometry, index: int) -> Tensor:
    """Quadrature weights of an axis as parts of 1, ``(B or 1, n)``; equal ones in a sample that has none but 0."""
    def make() -> Tensor:
        weight = geometry.axes[index].weights()
        total = weight.sum(1, keepdim=True)
        return torch.where(total > 0, weight / total.where(total > 0, 1.0), 1.0 / weight.shape[1])
    return geometry.once(("shares", index), make)


PLUGIN = VariateGate
