"""Selective scan: along each axis a diagonal state space per channel; step, input and output chosen by the input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState, RoleGain
from sciml.mixers.geometry import Geometry
from sciml.mixers.recurrence import (
    Links,
    entering,
    geometric,
    in_chunks,
    links,
    links_of,
    one_way,
    ordered,
    over_axes,
    ring,
)
from sciml.mixers.rows import axis_lattice, axis_rows, spread
from sciml.tokens import Axis

TINY = 1e-6
"""Least decay around a ring."""
PIECE = 16
"""Steps whose states are worked on at a time."""
BLOCK_BYTES = 1 << 20
"""Size of those states for the rows that are walked at a time; several such tensors are needed."""
MANY_ROWS = 32
"""So many rows fill a step on their own, and are not cut into chunks."""


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
        return super().parameters_of(axes) - ({"sides"} if one_way(axes) else set())

    def prepare(self, geometry: Geometry) -> None:
        for index in self.axes(geometry):
            links_of(geometry, index)
            if not geometry.axes[index].causal:
                links_of(geometry, index, mirrored=True)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        u, gate, terms = self._project(x)

        def along(index: int, chain: Links, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
            rows = [axis_rows(t.unsqueeze(-2), index)[:, 0] for t in terms]  # each (B * others, n, C or N)
            y, last = self._along(index, rows, geometry, chain, first)
            return self.gain(axis_lattice(y.unsqueeze(1), u.unsqueeze(-2).shape, index), geometry.role(index)), last

        total, state = over_axes(axes, geometry, state, along)
        return self.out((total / len(axes) + self.skip * u) * F.silu(gate)), state

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """u, gate, and what is scanned: u, step ``(B, *lattice, C)``, B, C ``(B, *lattice, N)``."""
        sizes = [self.width] * 3 + [self.num_states] * 2
        u, gate, step, b, c = self.enter(x).to(self.step.dtype).split(sizes, dim=-1)
        return u, gate, (u, F.softplus(step + self.step), b, c)

    def _along(self, index: int, rows: list[Tensor], geometry: Geometry, chain: Links,
               first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        axis = geometry.axes[index]
        past, last = self._one_side(rows, axis, chain, first)
        if axis.causal:
            return past, last
        mirrored = [t.flip(1) for t in rows]
        future, _ = self._one_side(mirrored, axis, links_of(geometry, index, mirrored=True), None)
        return self.sides[0] * past + self.sides[1] * future.flip(1), None

    def _one_side(self, rows: list[Tensor], axis: Axis, chain: Links, first: Tensor | None) -> tuple[Tensor, Tensor]:
        u, step, b, c = rows
        gap, start = _per_row(chain, u.shape[0])
        return selective(u, step * gap, b, c, self.log_rate.exp(), self.chunk, first,
                         None if axis.segment is None else start, closed=ring(axis) is not None)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        u, gate, terms = self._project(x)
        outputs = []
        for index in self.axes(geometry):
            axis, lines = geometry.axes[index], [axis_rows(t.unsqueeze(-2), index)[:, 0] for t in terms]
            y = torch.zeros_like(lines[0])
            for side in range(1 if axis.causal else 2):
                chain = links(axis, mirrored=side == 1)
                rows = [t.flip(1) for t in lines] if side else lines
                columns = [self._arrive(i, rows, chain, axis) for i in range(axis.size)]
                one = torch.stack(columns, 1)
                y = y + (one if axis.causal else self.sides[side] * (one.flip(1) if side else one))
            y = axis_lattice(y.unsqueeze(1), u.unsqueeze(-2).shape, index)
            outputs.append(self.gain(y, geometry.role(index)))
        if not outputs:
            return torch.zeros_like(x)
        return self.out((sum(outputs[1:], outputs[0]) / len(outputs) + self.skip * u) * F.silu(gate))

    def _arrive(self, i: int, rows: list[Tensor], chain: Links, axis: Axis) -> Tensor:
        """y at index i, from an empty state step by step; on a ring from the state that a lap leaves as it was."""
        u, step, b, c = rows
        (gap, start), n = _per_row(chain, u.shape[0]), axis.size
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


def _per_row(chain: Links, rows: int) -> tuple[Tensor, Tensor]:
    """Gaps and starts ``(rows or 1, n, 1)``."""
    return spread(chain.gap[..., None], rows), spread(chain.start[..., None], rows)


def selective(u: Tensor, tau: Tensor, b: Tensor, c: Tensor, rate: Tensor, chunk: int, first: Tensor | None = None,
              start: Tensor | None = None, *, closed: bool = False) -> tuple[Tensor, Tensor]:
    """y_t = c_t · h_t, h_t = e^{−τ_t rate} h_{t−1} + (1 − e^{−τ_t rate}) b_t u_t, and the last h ``(R, N, C)``.

    u, tau ``(R, n, C)``, b, c ``(R, n, N)``, rate ``(N, C)``; first: h before index 0, or None for 0; start
    ``(R or 1, n, 1)``: True where h begins at 0 again; closed: a ring, where h before index 0 is the last one. Long
    rows are cut into chunks that are walked through side by side, first for what they leave behind and then, from the
    memory that each is entered with, for y.
    """
    rows, n = u.shape[:2]
    if rows >= MANY_ROWS and not torch.compiler.is_compiling():
        chunk = max(chunk, n)
    u, tau, b, c = (in_chunks(t, 1, chunk) for t in (u, tau, b, c))  # (R, M, c, …)
    anew = None if start is None else in_chunks(start, 1, chunk).expand(rows, -1, -1, -1)
    parts = u.flatten(0, 1), tau.flatten(0, 1), b.flatten(0, 1), c.flatten(0, 1)  # (R * M, c, …)
    keep = None if anew is None else (~anew).to(u.dtype).flatten(0, 1)
    if u.shape[1] == 1 and not closed:
        return walk(*parts, rate, first, keep)
    _, own = walk(*parts, rate, None, keep)
    whole = -tau.sum(2)[:, :, None] * rate  # (R, M, N, C)
    if anew is not None:
        whole = whole.masked_fill(anew.any(2)[:, :, None], -math.inf)
    enter, last = entering(own.view(whole.shape), whole, chunk, first)
    if closed:
        laps = whole.cumsum(1)
        last = last / -torch.expm1(laps[:, -1]).clamp(max=-TINY)
        enter = enter + (laps - whole).exp() * last.unsqueeze(1)
    y, _ = walk(*parts, rate, enter.flatten(0, 1), keep)
    return y.unflatten(0, (rows, -1)).flatten(1, 2)[:, :n], last


def walk(u: Tensor, tau: Tensor, b: Tensor, c: Tensor, rate: Tensor, first: Tensor | None,
         keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """`selective` step by step, with keep ``(R, n, 1)``, a factor on the memory that a step starts from.

    With m = e^{−τ_t rate} − 1, exact for weak decay, a step is h + m (h − b u). The N states of a token are made, used
    and left within a step, for so few rows at a time that they stay in cache, and made anew for the backward pass. Any
    derivative; compilers and autocast are handed the formula.
    """
    first = u.new_zeros(len(u), *rate.shape) if first is None else first
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return walk_plain(u, tau, b, c, rate, first, keep)
    y, last = _Walk.apply(u, tau, b, c, rate, first, keep)
    return y, last


def walk_plain(u: Tensor, tau: Tensor, b: Tensor, c: Tensor, rate: Tensor, first: Tensor,
               keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """`walk` as a formula."""
    h, y = first, []
    for t in range(u.shape[1]):
        if keep is not None:
            h = keep[:, t, None] * h
        less = torch.expm1(-tau[:, t, None] * rate)  # (R, N, C)
        h = torch.addcmul(h, less, h - b[:, t, :, None] * u[:, t, None])
        y.append((c[:, t, :, None] * h).sum(1))
    return torch.stack(y, 1), h


class _Walk(torch.autograd.Function):
    """In blocks of rows, in pieces of the way: there all factors at once, one operation per step, all outputs at once.
    The states with which pieces are entered are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, tau: Tensor, b: Tensor, c: Tensor, rate: Tensor, first: Tensor,
                keep: Tensor | None) -> tuple[Tensor, Tensor]:
        y, last = torch.empty_like(u, memory_format=torch.contiguous_format), first.clone()
        pieces = _pieces(u.shape[1])
        entered = u.new_empty(len(pieces), *first.shape)
        for part in _blocks(len(u), rate):
            for enter, piece in zip(entered, pieces):
                enter[part] = last[part]
                own_u, own_tau, own_b, own_c = (_cut(t, part, piece) for t in (u, tau, b, c))
                states, _, _ = _states(own_u, own_tau, own_b, rate, last[part], _kept(keep, part, piece))
                y[part, piece] = (own_c.unsqueeze(-2) @ states[1:]).squeeze(-2).transpose(0, 1)
                last[part] = states[-1]
        ctx.save_for_backward(u, tau, b, c, rate, first, keep)
        ctx.entered = entered
        return y, last

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _slopes(slopes[0], slopes[1], ctx.entered, *tensors)
        leaves: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
        wanted = [leaf for leaf, needed in zip(leaves, ctx.needs_input_grad) if needed]
        found = iter(torch.autograd.grad(walk_plain(*leaves), wanted, slopes, create_graph=True))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _states(u: Tensor, tau: Tensor, b: Tensor, rate: Tensor, first: Tensor,
            keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of a piece ``(c, r, …)``: h before it and after each step ``(c + 1, r, N, C)``, m, and the factor on h, m + 1."""
    less = torch.mul(tau.neg().unsqueeze(-2), rate).expm1_()  # m
    states = u.new_empty(len(u) + 1, *first.shape)
    states[0] = first
    added = torch.mul(b.neg().unsqueeze(-1), u.unsqueeze(-2), out=states[1:]).mul_(less)
    decay = less + 1
    if keep is not None:
        decay *= keep.unsqueeze(-1)
    for before, after, factor in zip(states, added, decay):
        after.addcmul_(factor, before)
    return states, less, decay


def _slopes(of_y: Tensor, of_last: Tensor, entered: Tensor, u: Tensor, tau: Tensor, b: Tensor, c: Tensor, rate: Tensor,
            first: Tensor, keep: Tensor | None) -> tuple[Tensor | None, ...]:
    """The first derivative, backwards in time: with λ the slope of h_t, that of b u is −m λ, and that of −τ rate is
    (m + 1) (h_{t−1} − b u) λ."""
    du, dtau, db, dc, dfirst = (torch.empty_like(t, memory_format=torch.contiguous_format)
                                for t in (u, tau, b, c, first))
    drate, pieces = torch.zeros_like(rate), _pieces(u.shape[1])
    for part in _blocks(len(u), rate):
        beyond = of_last[part]
        for enter, piece in zip(reversed(entered), reversed(pieces)):
            own_u, own_tau, own_b, own_c, g = (_cut(t, part, piece) for t in (u, tau, b, c, of_y))
            kept = _kept(keep, part, piece)
            states, less, decay = _states(own_u, own_tau, own_b, rate, enter[part], kept)
            dc[part, piece] = (states[1:] * g.unsqueeze(-2)).sum(-1).transpose(0, 1)
            slope = own_c.unsqueeze(-1) * g.unsqueeze(-2)  # λ
            slope[-1] += beyond
            for t in range(len(slope) - 1, 0, -1):
                slope[t - 1].addcmul_(decay[t], slope[t])
            beyond = decay[0] * slope[0]
            before = states[:-1] if kept is None else states[:-1] * kept.unsqueeze(-1)
            of_decay = torch.addcmul(before, own_b.unsqueeze(-1), own_u.unsqueeze(-2), value=-1).mul_(slope)
            of_decay.addcmul_(of_decay, less)
            change = slope.mul_(less)
            du[part, piece] = (own_b.neg().unsqueeze(-2) @ change).squeeze(-2).transpose(0, 1)
            db[part, piece] = change.mul_(own_u.unsqueeze(-2)).sum(-1).neg_().transpose(0, 1)
            drate -= torch.mul(of_decay, own_tau.unsqueeze(-2), out=change).sum((0, 1))
            dtau[part, piece] = of_decay.mul_(rate).sum(-2).neg_().transpose(0, 1)
        dfirst[part] = beyond
    return du, dtau, db, dc, drate, dfirst, None


def _pieces(n: int) -> list[slice]:
    return [slice(start, start + PIECE) for start in range(0, n, PIECE)]


def _blocks(rows: int, rate: Tensor) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // (PIECE * rate.numel() * rate.element_size()))
    return (slice(start, start + size) for start in range(0, rows, size))


def _cut(t: Tensor, part: slice, piece: slice) -> Tensor:
    """Some rows, part of the way, steps first: ``(c, r, …)``."""
    return t[part, piece].transpose(0, 1).contiguous()


def _kept(keep: Tensor | None, part: slice, piece: slice) -> Tensor | None:
    return None if keep is None else _cut(keep, part, piece)


PLUGIN = Scan
