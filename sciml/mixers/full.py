"""Full attention: every token sees every token of its sample, over all axes at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.kernels.attend import attend, attend_plain, segment_lengths
from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections
from sciml.tokens import Axis


class Samples(NamedTuple):
    """Packed samples of a flattened lattice: their lengths in tokens; the order ``(N,)`` that brings the tokens of one
    together, and the way back, None where they are."""

    lengths: tuple[int, ...]
    order: Tensor | None
    back: Tensor | None


class Full(Mixer):
    """Softmax attention over the flattened lattice; rotary head dimensions are split over all coordinates.

    Packed samples are kept apart by segment. A pair bias, if the domain has one, replaces the rotary; it and a causal
    axis are admitted where there is one axis only (atoms, packed events). Along a causal axis the state is the keys and
    values seen so far. Raises `InputError` for a pair bias or a causal axis among several.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return True

    def prepare(self, geometry: Geometry) -> None:
        indices = _all(geometry)
        geometry.rotary(indices, self.projections.head_width)
        geometry.key_bias(indices)
        geometry.check_pair(indices)
        _samples(geometry)

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        causal = _causal(geometry)
        if not self.acting(x, geometry):
            return torch.zeros_like(x), state
        q, k, v = self._heads(x, geometry)
        bias, keeps = _bias(geometry, self.heads), causal and state is not None
        samples = None if keeps else _samples(geometry)
        if keeps:
            geometry.check_memory(0)
            k, v = (k, v) if state == () else (torch.cat([state[0], k], 2), torch.cat([state[1], v], 2))
            state = (k, v)
        if samples is not None and samples.order is not None:
            q, k, v = (t.index_select(2, samples.order) for t in (q, k, v))
            bias = None if bias is None else bias.index_select(3, samples.order)
        y = attend(q, k, v, bias=bias, causal=causal, second_order=geometry.second_order,
                   segment=None if samples is None else samples.lengths)
        if samples is not None and samples.back is not None:
            y = y.index_select(2, samples.back)
        return self.projections.out(y.transpose(1, 2).reshape(x.shape)), state

    def _heads(self, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        table = geometry.rotary(_all(geometry), self.projections.head_width)
        q, k, v = (t.transpose(1, 2) for t in self.projections.split(x.flatten(1, -2)))
        return rotate(q, table), rotate(k, table), v.contiguous()

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        q, k, v = self._heads(x, geometry)
        bias, sample = _bias(geometry, self.heads), geometry.sample_of_token(_all(geometry))
        if sample is not None:
            apart = torch.zeros(len(sample), len(sample), dtype=x.dtype)
            apart = apart.masked_fill(sample[:, None] != sample[None, :], -torch.inf)
            bias = apart if bias is None else bias + apart
        y = attend_plain(q, k, v, bias=bias, causal=_causal(geometry))
        return self.projections.out(y.transpose(1, 2).reshape(x.shape))


def _all(geometry: Geometry) -> tuple[int, ...]:
    return tuple(range(len(geometry.axes)))


def _causal(geometry: Geometry) -> bool:
    causal = [axis.name for axis in geometry.axes if axis.causal]
    if causal and len(geometry.axes) > 1:
        raise InputError("mixer full", key=causal[0], found=f"a causal axis among {len(geometry.axes)}",
                         expected="a causal axis alone", fix="use the axial mixer for this domain")
    return bool(causal)


def _bias(geometry: Geometry, heads: int) -> Tensor | None:
    """Quadrature and pair bias in one additive term ``(B or 1, 1 or H, 1 or N, N)``, or None."""
    indices = _all(geometry)
    weight, pair = geometry.key_bias(indices), geometry.pair_term(indices, heads)
    bias = None if weight is None else weight[:, None, None, :]
    if pair is None:
        return bias
    return pair if bias is None else bias + pair


def _samples(geometry: Geometry) -> Samples | None:
    def make() -> Samples | None:
        sample = geometry.sample_of_token(_all(geometry))
        if sample is None:
            return None
        if geometry.packed_axis == 0:
            return Samples(segment_lengths(sample), None, None)
        order = sample.argsort(stable=True)
        return Samples(segment_lengths(sample[order]), order, order.argsort())
    return geometry.once("packed tokens", make)


PLUGIN = Full
