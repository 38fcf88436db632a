"""Selective scan: along each axis a diagonal state space per channel; step, input and output chosen by the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.mixers.recurrence import (
    FORGET,
    Links,
    Memory,
    entering,
    geometric,
    in_chunks,
    links,
    links_of,
    ordered,
    recall,
    ring,
)
from sciml.mixers.rows import axis_lattice, axis_rows, spread
from sciml.tokens import Axis

TINY = 1e-6
"""Least decay around a ring."""


class Scan(Mixer):
    """dh/ds = A (B u − h) along each axis, y = C·h; mean over axes, + D u, gated, projected (Mamba: Gu & Dao 2023).

    u, B, C and the step are projections of the input; every channel has `num_states` states with rates A of its own (at
    first 1, 2, …: S4D-real). Between neighbours at a distance `gap` (reference lengths) the equation is solved exactly,
    the input held: τ = softplus(step) · gap, h_t = e^{−τA} h_{t−1} + (1 − e^{−τA}) B_t u_t. So the step is physical: h
    is an average over the way back, which converges as the axis is refined, and padding takes no time. The first index
    of a sample is held for one reference length. An axis that is not causal is scanned from both sides, with a gain per
    channel and side; a periodic axis is a ring. Packed samples start anew. Acts on axes with one coordinate, in the
    order of their indices; cost is tokens × width × states. The state along a causal axis is h ``(rows, N, C)`` and the
    last coordinate.
    """

    def __init__(self, width: int, heads: int, *, num_states: Annotated[int, Field(ge=1)] = 8,
                 chunk: Annotated[int, Field(ge=2)] = 64) -> None:
        super().__init__(width, heads)
        self.num_states, self.chunk = num_states, chunk
        self.enter = nn.Linear(width, 3 * width + 2 * num_states, bias=False)
        self.step = nn.Parameter(geometric(0.25, 16.0, width))
        self.log_rate = nn.Parameter(torch.arange(1.0, num_states + 1).log()[:, None].repeat(1, width))
        self.skip = nn.Parameter(torch.ones(width))
        self.sides = nn.Parameter(1 + 0.5 * torch.randn(2, width))
        self.gain = RoleGain(width)
        self.out = nn.Linear(width, width, bias=False)

    def admits(self, axis: Axis) -> bool:
        return ordered(axis)

    def parameters_of(self, axes: Sequence[Axis]) -> set[str]:
        own = [axis for axis in axes if self.admits(axis)]
        return super().parameters_of(axes) - ({"sides"} if all(axis.causal for axis in own) else set())

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            links_of(geometry, index)
            if not geometry.axes[index].causal:
                links_of(geometry, index, mirrored=True)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        memory: Memory | None = None if state is None else dict(state)
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x), state
        u, gate, terms = self._project(x)
        total: Tensor | None = None
        for index in axes:
            rows = [axis_rows(t.unsqueeze(-2), index)[:, 0] for t in terms]  # each (B * others, n, C or N)
            y = self._along(index, rows, u.shape, geometry, memory)
            y = self.gain(axis_lattice(y.unsqueeze(1), u.unsqueeze(-2).shape, index), geometry.role(index))
            total = y if total is None else total + y
        assert total is not None
        y = self.out((total / len(axes) + self.skip * u) * F.silu(gate))
        return y, None if memory is None else tuple(memory.items())

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """u, gate, and what is scanned: u, step ``(B, *lattice, C)``, B, C ``(B, *lattice, N)``."""
        sizes = [self.width] * 3 + [self.num_states] * 2
        u, gate, step, b, c = self.enter(x).to(self.step.dtype).split(sizes, dim=-1)
        return u, gate, (u, F.softplus(step + self.step), b, c)

    def _along(self, index: int, rows: list[Tensor], shape: torch.Size, geometry: Geometry,
               memory: Memory | None) -> Tensor:
        axis = geometry.axes[index]
        chain, first = recall(geometry, index, memory)
        past, last = self._one_side(rows, shape, index, chain, first, geometry)
        if axis.causal:
            if memory is not None:
                memory[index] = (last, chain.last)
            return past
        chain, mirrored = links_of(geometry, index, mirrored=True), [t.flip(1) for t in rows]
        future, _ = self._one_side(mirrored, shape, index, chain, None, geometry)
        return self.sides[0] * past + self.sides[1] * future.flip(1)

    def _one_side(self, rows: list[Tensor], shape: torch.Size, index: int, chain: Links, first: Tensor | None,
                  geometry: Geometry) -> tuple[Tensor, Tensor]:
        u, step, b, c = rows
        axis, (gap, start) = geometry.axes[index], _per_row(chain, shape, index)
        forget = None if axis.segment is None else start * FORGET
        return selective(u, step * gap, b, c, self.log_rate.exp(), self.chunk, first, forget,
                         closed=ring(axis) is not None)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        u, gate, terms = self._project(x)
        outputs = []
        for index in self.axes(geometry):
            axis, lines = geometry.axes[index], [axis_rows(t.unsqueeze(-2), index)[:, 0] for t in terms]
            y = torch.zeros_like(lines[0])
            for side in range(1 if axis.causal else 2):
                chain = links(axis, mirrored=side == 1)
                rows = [t.flip(1) for t in lines] if side else lines
                columns = [self._arrive(i, rows, chain, u.shape, index, axis) for i in range(axis.size)]
                one = torch.stack(columns, 1)
                y = y + (one if axis.causal else self.sides[side] * (one.flip(1) if side else one))
            y = axis_lattice(y.unsqueeze(1), u.unsqueeze(-2).shape, index)
            outputs.append(self.gain(y, geometry.role(index)))
        if not outputs:
            return torch.zeros_like(x)
        return self.out((sum(outputs[1:], outputs[0]) / len(outputs) + self.skip * u) * F.silu(gate))

    def _arrive(self, i: int, rows: list[Tensor], chain: Links, shape: torch.Size, index: int, axis: Axis) -> Tensor:
        """y at index i, from an empty state step by step; on a ring from the state that a lap leaves as it was."""
        u, step, b, c = rows
        (gap, start), n = _per_row(chain, shape, index), axis.size
        h = u.new_zeros(len(u), self.num_states, self.width)
        lap = torch.ones_like(h)  # decay so far
        for t in range(i + 1) if ring(axis) is None else range(i + 1, i + n + 1):
            m = t % n
            decay = torch.exp(-(step[:, m] * gap[:, m])[:, None] * self.log_rate.exp())  # (R, N, C)
            h = decay * ~start[:, m, None] * h + (1 - decay) * b[:, m, :, None] * u[:, m, None]
            lap = lap * decay
        if ring(axis) is not None:
            h = h / (1 - lap)
        return (h * c[:, i, :, None]).sum(1)


def _per_row(chain: Links, shape: torch.Size, index: int) -> tuple[Tensor, Tensor]:
    """Gaps and starts ``(R or 1, n, 1)`` for rows of a lattice `shape`."""
    lattice = torch.Size([*shape[:-1], 1, 1])
    return (spread(chain.gap[:, None, :, None], lattice, index)[:, 0],
            spread(chain.start[:, None, :, None], lattice, index)[:, 0])


def selective(u: Tensor, tau: Tensor, b: Tensor, c: Tensor, rate: Tensor, chunk: int, first: Tensor | None = None,
              forget: Tensor | None = None, *, closed: bool = False) -> tuple[Tensor, Tensor]:
    """y_t = c_t · h_t, h_t = e^{−τ_t rate} h_{t−1} + (1 − e^{−τ_t rate}) b_t u_t, and the last h ``(R, N, C)``.

    u, tau ``(R, n, C)``, b, c ``(R, n, N)``, rate ``(N, C)``; first: h before index 0, or None for 0; forget
    ``(R or 1, n, 1)``: a log decay on top; closed: a ring, where h before index 0 is the last one. A loop over the
    places in a chunk, for all chunks at once, then from chunk to chunk: the N states of a token are made, used and left
    within a step, while they are in cache.
    """
    n = u.shape[1]
    u, tau, b, c = (in_chunks(t, 1, chunk) for t in (u, tau, b, c))  # (R, M, c, …)
    extra = None if forget is None else in_chunks(forget, 1, chunk)
    h, own = u.new_zeros(*u.shape[:2], *rate.shape), []  # (R, M, N, C)
    for i, (ui, ti, bi, ci) in enumerate(zip(u.unbind(2), tau.unbind(2), b.unbind(2), c.unbind(2))):
        a = -ti.unsqueeze(-2) * rate
        z = -torch.expm1(a) * (bi.unsqueeze(-1) * ui.unsqueeze(-2))
        h = torch.addcmul(z, (a if extra is None else a + extra[:, :, i, None]).exp(), h)
        own.append((ci.unsqueeze(-1) * h).sum(-2))
    y = torch.stack(own, 2)
    if u.shape[1] == 1 and first is None and not closed:
        return y.flatten(1, 2), h[:, 0]
    since = -tau.cumsum(2)  # (R, M, c, C)
    lost = None if extra is None else extra.cumsum(2)
    whole = since[:, :, -1:] * rate if lost is None else since[:, :, -1:] * rate + lost[:, :, -1:]
    enter, last = entering(h, whole, chunk, first)
    if closed:
        laps = whole.cumsum(1)
        last = last / -torch.expm1(laps[:, -1]).clamp(max=-TINY)
        enter = enter + (laps - whole).exp() * last.unsqueeze(1)
    late = []
    for i, (si, ci) in enumerate(zip(since.unbind(2), c.unbind(2))):
        a = si.unsqueeze(-2) * rate
        late.append((ci.unsqueeze(-1) * ((a if lost is None else a + lost[:, :, i, None]).exp() * enter)).sum(-2))
    return (y + torch.stack(late, 2)).flatten(1, 2)[:, :n], last


PLUGIN = Scan
