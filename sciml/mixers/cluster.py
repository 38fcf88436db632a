"""Cluster expansion: what a point learns of its neighbours' places, through invariants of their density up to order 3.

The density of features around point i is expanded in spherical harmonics, A_ilm = Σ_j Σ_k b_k(r_ij) Y_lm(r̂_ij) W_k h_j;
what is returned is a linear map of A_i00, of products Σ_m A_ilm A'_ilm, and of the integrals over the sphere of three
such functions: invariants of Drautz, "Atomic cluster expansion", Phys. Rev. B 99, 014104 (2019), with features in the
place of species. Sums, not averages: what is far away adds nothing, what is there twice adds twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry
from sciml.mixers.harmonics import HIGHEST, degrees, harmonics, lebedev
from sciml.mixers.neighbours import CUTOFF, Neighbours, find_neighbours, flattened
from sciml.tokens import Axis

MOST_DENSE = 96
"""Points of a sample up to which all pairs are computed; beyond, and in periodic cells, those within reach alone."""
STRENGTH = 0.1
"""Of the radial functions, so that densities are of order one in molecules."""


class Pairs(NamedTuple):
    """Who sends to whom. order ``(N,)``: the points, samples of equal size one after the other, and inverse, None if
    they are in order. sender: None if every point of a sample sends, else ``(N, K)``. bases: for every size n that s
    samples have, ``(s, M · n, n · R)``; for the senders given one, ``(N, M, K · R)``."""

    order: Tensor | None
    inverse: Tensor | None
    sender: Tensor | None
    bases: list[Tensor]


class Cluster(Mixer):
    """Invariants of the density of features around every point of a set in space, body order 4.

    degree: highest of the harmonics. radial: functions of the distance. pairs, triples: how many products of two and of
    three densities. Admits a set axis with 3-D coordinates.
    """

    biased: ClassVar[bool] = False
    compilable: ClassVar[bool] = False  # which samples are computed together depends on their sizes

    def __init__(self, width: int, heads: int, *, degree: Annotated[int, Field(ge=0, le=HIGHEST)] = 2,
                 radial: Annotated[int, Field(ge=1)] = 8, pairs: Annotated[int, Field(ge=1)] = 32,
                 triples: Annotated[int, Field(ge=1)] = 8) -> None:
        super().__init__(width, heads)
        self.degree, self.radial, self.pairs, self.triples = degree, radial, pairs, triples
        self.count = 2 * pairs + 3 * triples
        self.value_stack = nn.Parameter(torch.randn(radial, self.count, width) * (radial * width) ** -0.5)
        self.degree_gain = nn.Parameter(1 + 0.3 * torch.randn(degree + 1, self.count))
        self.out = nn.Linear(pairs * (degree + 2) + triples, width)
        with torch.no_grad():
            self.out.weight *= 0.5

    def admits(self, axis: Axis) -> bool:
        return axis.kind == "set" and axis.coord.shape[-1] == 3

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        total = torch.zeros_like(x)
        for index in self.acting(x, geometry):
            moved = x.movedim(index + 1, 1)
            planes = moved.flatten(2, -2) if x.ndim > 3 else moved[:, :, None]  # (B, n, others, C)
            planes = _present(planes, geometry.axes[index])
            pairs = self._pairs(geometry, index, len(x))
            mixed = [self._mix(plane.flatten(0, 1), pairs) for plane in planes.unbind(2)]
            y = torch.stack(mixed, 1).view(moved.shape)
            total = total + y.movedim(1, index + 1)
        return total, state

    def _pairs(self, geometry: Geometry, index: int, batch: int) -> Pairs:
        axis, key = geometry.axes[index], ("cluster", index, self.degree, self.radial)
        copies = batch if len(axis.coord) == 1 else 1
        dtype = self.degree_gain.dtype
        return geometry.once(key, lambda: find_pairs(axis, self.degree, self.radial, copies, dtype))

    def _mix(self, h: Tensor, pairs: Pairs) -> Tensor:
        """``(N, C)`` → the same, of the points of all samples; or of several copies of them, one after the other."""
        if pairs.order is None:
            return self.out(self._products(self._density(h, pairs)))
        return self.out(self._products(self._density(h[pairs.order], pairs)))[pairs.inverse]

    def _density(self, h: Tensor, pairs: Pairs) -> Tensor:
        """``(M, N, count)``: harmonics' coefficients of the densities around every point."""
        size, value = (self.degree + 1) ** 2, self._value(h)
        if pairs.sender is not None:
            basis, = pairs.bases
            sent = value[pairs.sender].view(len(pairs.sender), -1, self.count)  # (N, K · R, count)
            made = (basis @ sent).transpose(0, 1)
        else:
            sent = value.view(-1, self.count).split([len(basis) * basis.shape[2] for basis in pairs.bases])
            alike = [basis @ own.view(len(basis), -1, self.count) for basis, own in zip(pairs.bases, sent)]
            made = torch.cat([own.unflatten(1, (size, -1)).transpose(0, 1).flatten(1, 2) for own in alike], 1)
        return made * self.degree_gain[tables(self.degree, h.dtype, h.device).degree][:, None]

    def _value(self, h: Tensor) -> Tensor:
        """``(rows, R · count)``: what a point sends, by radial function."""
        return nn.functional.linear(h, self.value_stack.flatten(0, 1))

    def _products(self, density: Tensor) -> Tensor:
        """``(M, rows, count)`` → ``(rows, F)``: A_i00; per degree the mean over m of products of two; the mean over the
        sphere of products of three."""
        size, rows, pairs = density.shape[0], density.shape[1], self.pairs
        table = tables(self.degree, density.dtype, density.device)
        a, b, rest = density.split([pairs, pairs, 3 * self.triples], -1)
        two = table.mean @ (a * b).reshape(size, -1)  # (degrees, rows · pairs)
        on_sphere = table.grid @ rest.reshape(size, -1)  # (26, rows · 3 triples)
        p, q, r = on_sphere.view(-1, rows, 3, self.triples).unbind(2)
        three = table.weight @ (p * q * r).flatten(1)
        two = two.view(-1, rows, pairs).transpose(0, 1).flatten(1)
        return torch.cat([a[0], two, three.view(rows, self.triples)], -1)

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        total = torch.zeros_like(x)
        for index in self.acting(x, geometry):
            axis = geometry.axes[index]
            moved = x.movedim(index + 1, 1)
            planes = _present(moved.flatten(2, -2) if x.ndim > 3 else moved[:, :, None], axis)
            made = torch.empty_like(planes)
            for b in range(len(x)):
                own = axis if len(axis.coord) == 1 else replace(axis, coord=axis.coord[[b]])
                found = find_neighbours(own, x.dtype)
                for o in range(planes.shape[2]):
                    made[b, :, o] = self._slowly(planes[b, :, o], found)
            total = total + made.view(moved.shape).movedim(1, index + 1)
        return total

    def _slowly(self, h: Tensor, found: Neighbours) -> Tensor:
        """Pair by pair, products and triples by sums over a quadrature of products of two angles."""
        value = self._value(h).view(len(h), self.radial, self.count)
        density = h.new_zeros(len(h), (self.degree + 1) ** 2, self.count)
        for i, j, vector, distance in zip(found.receiver, found.sender, found.vector, found.distance):
            radial = radial_basis(distance[None], self.radial)[0]
            harmonic = harmonics(vector / distance, self.degree)
            density = density.index_add(0, i[None], (harmonic[:, None] * (radial @ value[j])[None])[None])
        gain = self.degree_gain[tables(self.degree, h.dtype, h.device).degree]
        return self.out(self._products((density * gain).transpose(0, 1)))


class Tables(NamedTuple):
    """degree ``(M,)`` of every harmonic; mean ``(degrees, M)`` over those of a degree; grid ``(26, M)`` their values in
    the directions of the quadrature, whose weights ``(26,)`` are weight."""

    degree: Tensor
    mean: Tensor
    grid: Tensor
    weight: Tensor


@cache
def tables(degree: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """Constants of the products."""
    which, (grid, weight) = degrees(degree), lebedev()
    same = (which[None] == torch.arange(degree + 1)[:, None]).double()
    made = (same / same.sum(1, keepdim=True), harmonics(grid, degree), weight)
    return Tables(which.to(device), *(table.to(device, dtype) for table in made))


def _present(x: Tensor, axis: Axis) -> Tensor:
    """``(B, n, …)`` without what points of no weight (padding) would send."""
    return x if axis.measure is None else x * (axis.measure > 0)[:, :, None, None].to(x.dtype)


def radial_basis(distance: Tensor, count: int) -> Tensor:
    """``(...)`` → ``(..., count)``: (1 − r²)³ sin(kπr) / r, zero with two derivatives from r = 1 on (sines over r:
    Gasteiger et al., "Directional message passing", ICLR 2020, equation 7)."""
    r = distance.clamp_max(CUTOFF)[..., None]
    k = torch.arange(1, count + 1, dtype=distance.dtype, device=distance.device)
    return torch.sin(math.pi * k * r) * ((1 - r * r) ** 3 * (2 * STRENGTH / r))


def find_pairs(axis: Axis, degree: int, radial: int, copies: int, dtype: torch.dtype) -> Pairs:
    """All pairs of every sample; of large or periodic ones those within reach. copies: samples that share coordinates
    ``(1, n, 3)``. dtype: of the densities; of coordinates that are more precise, differences are taken first."""
    points, segment, cells = flattened(axis)
    lengths = segment.bincount().tolist()
    if max(lengths, default=0) > MOST_DENSE or (cells is not None and bool((cells != 0).any())):
        return _sparse(axis, len(points), degree, radial, copies, dtype)
    if len(set(lengths)) == 1:
        basis, = _dense(points, [(len(lengths), lengths[0])], degree, radial, dtype)
        return Pairs(None, None, None, [basis.repeat(copies, 1, 1) if copies > 1 else basis])
    size = torch.tensor(lengths, device=points.device)
    order = size[segment].argsort(stable=True)
    alike = [(lengths.count(n), n) for n in sorted(set(lengths)) if n]
    return Pairs(order, order.argsort(), None, _dense(points[order], alike, degree, radial, dtype))


def _dense(points: Tensor, alike: Sequence[tuple[int, int]], degree: int, radial: int, dtype: torch.dtype
           ) -> list[Tensor]:
    """``(s, M · n, n · R)`` for each (s, n) of `alike`: s samples of n of the points, in order. What is done for every
    pair is done for all of them at once. Nobody is a neighbour of itself."""
    vectors, own = [], []
    for coord, (samples, size) in zip(points.split([s * n for s, n in alike]), alike):
        place = coord.view(samples, size, 3)
        vectors.append((place[:, None] - place[:, :, None]).reshape(-1, 3))  # from the receiver to the sender
        own.append(torch.eye(size, dtype=dtype, device=points.device).expand(samples, -1, -1).reshape(-1))
    vector, nobody = torch.cat(vectors).to(dtype), torch.cat(own)
    distance = (vector.square().sum(-1) + nobody).sqrt()
    value = radial_basis(distance, radial) * (1 - nobody)[:, None]
    basis = harmonics(vector / distance[:, None], degree)[:, :, None] * value[:, None]  # (P, M, R)
    parts = basis.split([s * n * n for s, n in alike])
    return [part.view(s, n, n, -1, radial).permute(0, 3, 1, 2, 4).reshape(s, -1, n * radial)
            for part, (s, n) in zip(parts, alike)]


def _sparse(axis: Axis, total: int, degree: int, radial: int, copies: int, dtype: torch.dtype) -> Pairs:
    """Every point with as many senders as the one with most has; those too many have basis 0."""
    found = find_neighbours(axis, dtype)
    counts = found.receiver.bincount(minlength=total)
    most = max(1, int(counts.max()))
    slot = torch.arange(len(found.receiver), device=counts.device) - (counts.cumsum(0) - counts)[found.receiver]
    place = found.receiver * most + slot
    sender = found.sender.new_zeros(total * most).index_copy(0, place, found.sender).view(total, most)
    pair = harmonics(found.vector / found.distance[:, None], degree)[:, :, None] * radial_basis(
        found.distance, radial)[:, None]  # (P, M, R)
    basis = pair.new_zeros(total * most, *pair.shape[1:]).index_copy(0, place, pair)
    basis = basis.view(total, most, -1, radial).transpose(1, 2).flatten(2)
    if copies > 1:
        sender = torch.cat([sender + total * copy for copy in range(copies)])
        basis = basis.repeat(copies, 1, 1)
    return Pairs(None, None, sender, [basis])


PLUGIN = Cluster
