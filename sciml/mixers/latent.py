"""Latent attention: tokens are read by a few latents, the latents mix among themselves, and tokens read them back."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sciml.kernels.attend import attend
from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry, log_shares, rotate
from sciml.mixers.projections import HeadNorm, Projections
from sciml.mixers.rows import fold, spread, spread_pair, unfold
from sciml.tokens import Axis


class Latent(Mixer):
    """z = latents + read(x); z = z + attention(z); y = write(z): cost is tokens × latents instead of tokens².

    With `groups` = 0 every sample has one set of `num_latents` latents that read all its tokens by content alone
    (Perceiver IO, Jaegle et al. 2022): permuting a set permutes the result. With `groups` = g the ordered axes are cut
    into groups of g tokens (the last one may be smaller), every group has its latents, reads and writes are inside a
    group, and the latents of all groups attend to each other (FIT, Chen & Li 2023). Then positions are relative to the
    group's middle token, through rotary angles of the axes that are cut. Sets are never cut.

    Reading is an integral over the group, and a group weighs in the mixing by its measure. Packed samples have their
    own latents. Causal axes are left alone: each of their indices is a lattice of its own.
    """

    def __init__(self, width: int, heads: int, *, num_latents: Annotated[int, Field(ge=1)] = 16,
                 groups: Annotated[int, Field(ge=0)] = 0) -> None:
        super().__init__(width, heads)
        self.num_latents, self.groups, self.head_width = num_latents, groups, width // heads
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.read_norm, self.write_norm = HeadNorm(self.head_width), HeadNorm(self.head_width)
        self.tokens = Projections(width, heads)  # queries of the write, keys and values of the read
        self.mix = Projections(width, heads)
        self.write = nn.Linear(width, 2 * width, bias=False)

    def admits(self, axis: Axis) -> bool:
        return not axis.causal

    def prepare(self, geometry: Geometry) -> None:
        if self.axes(geometry):
            self._tables(geometry)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        axes = self.acting(x, geometry)
        if not axes:
            return torch.zeros_like(x), state
        tables, second = self._tables(geometry), geometry.second_order
        folded = fold(x, axes)  # (B, *admitted, C)
        batch = len(folded)
        q, k, value = (_cut(t, tables.sizes).transpose(2, 3) for t in self.tokens.split(folded))  # (B, G, H, T, D)
        query, key = (rotate(t, spread_pair(tables.tokens, batch)).flatten(0, 1) for t in (q, k))
        asked = self.read_norm(self._split(self.latents).transpose(0, 1))  # (H, L, D)
        anchors = spread_pair(tables.anchors, batch)
        asked = rotate(asked.expand(*q.shape[:3], -1, -1), anchors).repeat(1, 1, 1, tables.num_segments, 1)
        read = attend(asked.flatten(0, 1), key, value.flatten(0, 1).contiguous(),
                      bias=_per_group(tables.read, batch), second_order=second)  # (B * G, H, S * L, D)
        shape = (batch, q.shape[1], tables.num_segments, self.num_latents, self.width)
        z = self.latents + read.transpose(1, 2).reshape(shape) * spread(tables.present, batch)
        z = self._mix(z, tables, second)  # (B, G, S, L, C)
        pair = self.write(F.rms_norm(z, z.shape[-1:])).view(*q.shape[:2], -1, 2, self.heads, self.head_width)
        k, v = pair.transpose(2, 4).unbind(3)  # (B, G, H, S * L, D)
        k = rotate(self.write_norm(k), anchors).flatten(0, 1)  # (B * G, H, S * L, D)
        y = attend(query, k, v.flatten(0, 1).contiguous(), bias=_per_group(tables.write, batch), second_order=second)
        y = self.tokens.out(_join(y.transpose(1, 2).reshape(*q.shape[:2], -1, self.width), tables.sizes, folded.shape))
        return unfold(y, x.shape, axes), state

    def _mix(self, z: Tensor, tables: Tables, second: bool) -> Tensor:
        """z + attention among the latents of all groups of a sample, ``(B, G, S, L, C)``."""
        rows = z.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # (B * S, G * L, C)
        q, k, v = (t.transpose(1, 2) for t in self.mix.split(F.rms_norm(rows, rows.shape[-1:])))
        angles = None
        if tables.anchors is not None:
            cos, sin = (t[:, :, 0, 0].repeat_interleave(self.num_latents, 1)[:, None] for t in tables.anchors)
            angles = spread(cos, len(rows)), spread(sin, len(rows))
        y = attend(rotate(q, angles), rotate(k, angles), v.contiguous(), bias=_per_group(tables.mix, len(z)),
                   second_order=second)
        y = self.mix.out(y.transpose(1, 2).reshape(rows.shape))
        return z + y.view(len(z), tables.num_segments, -1, *z.shape[3:]).transpose(1, 2)

    def _tables(self, geometry: Geometry) -> Tables:
        return geometry.once(("latent", self.groups, self.num_latents, self.head_width), lambda: _make_tables(
            geometry, self.axes(geometry), self.groups, self.num_latents, self.head_width))

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        axes = self.axes(geometry)
        if not axes:
            return torch.zeros_like(x)
        folded = fold(x, axes)
        return unfold(torch.stack([self._one(folded, b, geometry, axes) for b in range(len(folded))]), x.shape, axes)

    def _one(self, folded: Tensor, b: int, geometry: Geometry, axes: list[int]) -> Tensor:
        """One sample, in loops over packed samples and groups."""
        lattice, (q, k, v) = folded.shape[1:-1], (t.flatten(0, -3) for t in self.tokens.split(folded[b]))
        def own(t: Tensor) -> Tensor:
            return spread(t, len(folded))[b if len(t) > 1 else 0].flatten(0, len(lattice) - 1)
        weight, segment = (own(t) for t in _along_all(geometry, axes))  # (N,), (N,)
        table = _token_angles(geometry, axes, self.groups, self.head_width)
        still = weight.new_ones(len(q), self.head_width // 2)
        cos, sin = (still, 0 * still) if table is None else (own(table[0]), own(table[1]))
        def turn(t: Tensor, at: Tensor) -> Tensor:
            return rotate(t.transpose(0, 1), (cos[at], sin[at])).transpose(0, 1)  # (…, H, D)
        groups, middles = _groups(geometry, axes, self.groups)
        y, num = torch.zeros(len(q), self.width, dtype=folded.dtype), self.num_latents
        for s in segment.unique():
            members, read, asked = [g[segment[g] == s] for g in groups], [], self.read_norm(self._split(self.latents))
            for g, middle in zip(members, middles):
                read.append(_softmax_sum(turn(asked, middle.expand(num)), turn(k[g], g), v[g], weight[g]).flatten(1))
            z = self.latents.repeat(len(groups), 1) + torch.cat(read)  # (G * L, C)
            at = middles.repeat_interleave(num)
            one, two, three = self.mix.split(F.rms_norm(z, z.shape[-1:]))
            measure = torch.stack([weight[g].sum() for g in members]).repeat_interleave(num)
            z = z + self.mix.out(_softmax_sum(turn(one, at), turn(two, at), three, measure).flatten(1))
            for g, middle, latents in zip(members, middles, z.split(num)):
                key, value = (self._split(t) for t in self.write(F.rms_norm(latents, z.shape[-1:])).chunk(2, -1))
                key = turn(self.write_norm(key), middle.expand(num))
                y[g] = _softmax_sum(turn(q[g], g), key, value, weight.new_ones(num)).flatten(1)
        return self.tokens.out(y).view(*lattice, -1)

    def _split(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.heads, self.head_width))


@dataclass(frozen=True)
class Tables:
    """What the geometry fixes. sizes: of a group along every axis. read, write, mix: additive terms of the logits, with
    the quadrature and the packed samples in them, ``(B or 1, groups, 1, queries or 1, keys)``, mix per packed sample
    instead of group. present: 1 where a group has any measure, ``(B or 1, G, S, 1, 1)``. tokens, anchors: rotary angles
    ``(B or 1, G, 1, T or 1, D / 2)`` of tokens and of the latents."""

    sizes: list[int]
    num_segments: int
    present: Tensor
    read: Tensor | None
    write: Tensor | None
    mix: Tensor | None
    tokens: tuple[Tensor, Tensor] | None
    anchors: tuple[Tensor, Tensor] | None


def _make_tables(geometry: Geometry, axes: list[int], groups: int, num_latents: int, head_width: int) -> Tables:
    lattice, cut = [geometry.axes[i].size for i in axes], _cut_axes(geometry, axes, groups)
    sizes = [groups if i in cut else n for i, n in zip(axes, lattice)]
    weight, segment = _along_all(geometry, axes)  # (B or 1, *lattice), (1, *lattice)
    ids, segment = segment.unique(return_inverse=True)
    place = torch.arange(len(ids), device=ids.device)[:, None]
    inside = _cut(segment, sizes)[:, :, None, :] == place  # (1, G, S, T)
    shares = _cut(weight, sizes)[:, :, None, :] * inside  # (B or 1, G, S, T)
    total = shares.sum(-1)
    read = write = mix = None
    if not _even(shares):
        read = log_shares(shares, -1)
        read = read.repeat_interleave(num_latents, 2)[:, :, None] if len(ids) > 1 else read[:, :, None]
    if len(ids) > 1:
        write = weight.new_zeros(inside.shape).masked_fill(~inside, -math.inf)
        write = write.repeat_interleave(num_latents, 2).transpose(2, 3)[:, :, None]  # (1, G, 1, T, S * L)
    if not _even(total.transpose(1, 2)):
        mix = log_shares(total, 1).transpose(1, 2)[:, :, None, None]
        mix = mix.repeat_interleave(num_latents, -1)  # (B or 1, S, 1, 1, G * L)
    tokens = anchors = None
    table = _token_angles(geometry, axes, groups, head_width)
    if table is not None:
        middle = [(torch.arange(0, n, g, device=ids.device) + g // 2).clamp(max=n - 1) for n, g in zip(lattice, sizes)]
        at: tuple[Any, ...] = (slice(None), *torch.meshgrid(*middle, indexing="ij"))
        tokens = (_cut(table[0], sizes)[:, :, None], _cut(table[1], sizes)[:, :, None])
        anchors = (table[0][at].flatten(1, -2)[:, :, None, None], table[1][at].flatten(1, -2)[:, :, None, None])
    return Tables(sizes, len(ids), (total > 0).to(total.dtype)[..., None, None], read, write, mix, tokens, anchors)


def _along_all(geometry: Geometry, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Quadrature weight ``(B or 1, *lattice)`` and packed sample ``(1, *lattice)`` of every token."""
    lattice = [geometry.axes[i].size for i in axes]
    weight = geometry.axes[axes[0]].coord.new_ones(1, *lattice)
    segment = torch.zeros(1, *lattice, dtype=torch.long, device=weight.device)
    for place, index in enumerate(axes):
        axis = geometry.axes[index]
        view = [axis.size if p == place else 1 for p in range(len(axes))]
        own = axis.weights()
        weight = weight * own.view(len(own), *view)
        if axis.segment is not None:
            segment = segment + axis.segment.view(1, *view)
    return weight, segment


def _cut_axes(geometry: Geometry, axes: list[int], groups: int) -> tuple[int, ...]:
    """The ordered axes that are longer than a group."""
    ordered = [i for i in axes if geometry.axes[i].kind != "set" and geometry.axes[i].segment is None]
    return tuple(i for i in ordered if 0 < groups < geometry.axes[i].size)


def _token_angles(geometry: Geometry, axes: list[int], groups: int, head_width: int) -> tuple[Tensor, Tensor] | None:
    """cos and sin ``(B or 1, *lattice, D / 2)`` of every token along the axes that are cut."""
    cut = _cut_axes(geometry, axes, groups)
    table = geometry.rotary(cut, head_width)
    if table is None:
        return None
    own = [geometry.axes[i].size if i in cut else 1 for i in axes]
    lattice = [geometry.axes[i].size for i in axes]
    cos, sin = (t.view(len(t), *own, -1).expand(-1, *lattice, -1) for t in table)
    return cos, sin


def _even(w: Tensor) -> bool:
    return bool(torch.allclose(w, w[..., :1].expand_as(w), rtol=1e-4, atol=0))


def _per_group(bias: Tensor | None, batch: int) -> Tensor | None:
    """``(B or 1, G, …)`` → ``(B * G, …)``, as the rows of attention are."""
    return None if bias is None else spread(bias, batch).expand(batch, *bias.shape[1:]).flatten(0, 1)


def _cut(t: Tensor, sizes: list[int]) -> Tensor:
    """``(B, *lattice, …)`` → ``(B, groups, tokens of a group, …)``, with zeros where the last group is not full."""
    rank = len(sizes)
    for place, size in enumerate(sizes):
        dim = 1 + 2 * place
        lacking = -t.shape[dim] % size
        if lacking:
            t = torch.cat([t, t.new_zeros(*t.shape[:dim], lacking, *t.shape[dim + 1:])], dim)
        t = t.unflatten(dim, (-1, size))
    t = t.movedim(tuple(range(2, 2 * rank + 1, 2)), tuple(range(1 + rank, 1 + 2 * rank)))
    return t.flatten(1, rank).flatten(2, 1 + rank)


def _join(y: Tensor, sizes: list[int], shape: torch.Size) -> Tensor:
    """The inverse of `_cut` for ``(B, G, T, C)``: ``(B, *lattice, C)``."""
    rank = len(sizes)
    counts = [-(-n // size) for n, size in zip(shape[1:-1], sizes)]
    order = [0, *[d for p in range(rank) for d in (1 + p, 1 + rank + p)], 2 * rank + 1]
    y = y.reshape(shape[0], *counts, *sizes, shape[-1]).permute(order)
    y = y.reshape(shape[0], *[count * size for count, size in zip(counts, sizes)], shape[-1])
    for dim, n in enumerate(shape[1:-1], start=1):
        y = y.narrow(dim, 0, n)
    return y


def _groups(geometry: Geometry, axes: list[int], groups: int) -> tuple[list[Tensor], Tensor]:
    """Flat indices of every group's tokens, and of its middle token."""
    lattice, cut = [geometry.axes[i].size for i in axes], _cut_axes(geometry, axes, groups)
    where, slices, middles = torch.arange(math.prod(lattice)).view(lattice), [], []
    for index, n in zip(axes, lattice):
        step = groups if index in cut else n
        slices.append([slice(start, start + step) for start in range(0, n, step)])
        middles.append([min(start + step // 2, n - 1) for start in range(0, n, step)])
    return ([where[place].flatten() for place in itertools.product(*slices)],
            torch.stack([where[place] for place in itertools.product(*middles)]))


def _softmax_sum(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Σⱼ wⱼ exp(qᵢ·kⱼ/√D) vⱼ / Σⱼ wⱼ exp(qᵢ·kⱼ/√D) for ``(n, H, D)``; zero where nothing has a weight."""
    if not bool(weight.any()):
        return torch.zeros_like(q)
    logits = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
    share = (logits - logits.amax(-1, keepdim=True)).exp() * weight
    return torch.einsum("hij,jhd->ihd", share / share.sum(-1, keepdim=True), v)


PLUGIN = Latent
