"""Full attention: every token sees every token of its sample, over all axes at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.kernels.attend import attend, attend_plain
from sciml.mixers.contract import Mixer, MixerState
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections
from sciml.tokens import Axis


class Full(Mixer):
    """Softmax attention over the flattened lattice; rotary head dimensions are split over all coordinates.

    Packed samples are kept apart by segment; a pair bias, if the domain has one, replaces the rotary. A causal axis is
    admitted where it is the only one (packed events): then the state is the keys and values seen so far.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.projections = Projections(width, heads)

    def admits(self, axis: Axis) -> bool:
        return True

    def forward(self, x: Tensor, geometry: Geometry, state: MixerState = None) -> tuple[Tensor, MixerState]:
        causal = _causal(geometry)
        q, k, v = self._heads(x, geometry)
        if state is not None:
            geometry.check_alone(0)
            k, v = (k, v) if state == () else (torch.cat([state[0], k], 2), torch.cat([state[1], v], 2))
            state = (k, v)
        y = attend(q, k, v, bias=_bias(geometry, self.heads, k.shape[2]), causal=causal,
                   second_order=geometry.second_order)
        return self.projections.out(y.transpose(1, 2).reshape(x.shape)), state

    def _heads(self, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        table = geometry.rotary(tuple(range(len(geometry.axes))), self.projections.head_width)
        q, k, v = (t.transpose(1, 2) for t in self.projections.split(x.flatten(1, -2)))
        return rotate(q, table), rotate(k, table), v.contiguous()

    def reference(self, x: Tensor, geometry: Geometry) -> Tensor:
        q, k, v = self._heads(x, geometry)
        y = attend_plain(q, k, v, bias=_bias(geometry, self.heads, k.shape[2]), causal=_causal(geometry))
        return self.projections.out(y.transpose(1, 2).reshape(x.shape))


def _causal(geometry: Geometry) -> bool:
    causal = [axis.name for axis in geometry.axes if axis.causal]
    if causal and len(geometry.axes) > 1:
        raise InputError("mixer full", key=causal[0], found=f"a causal axis among {len(geometry.axes)}",
                         expected="a causal axis alone", fix="use the axial mixer for this domain")
    return bool(causal)


def _bias(geometry: Geometry, heads: int, num_keys: int) -> Tensor | None:
    """Quadrature, segments and pair bias in one additive term ``(B or 1, 1 or H, 1 or N, M)``, or None."""
    indices = tuple(range(len(geometry.axes)))
    weight = geometry.key_bias(indices)
    bias = None if weight is None else weight[:, None, None, :]
    packed = geometry.packed_axis
    if packed is not None and geometry.axes[packed].size == num_keys:
        mask = geometry.segment_mask(packed)
        assert mask is not None
        coord = geometry.axes[packed].coord
        apart = geometry.once("apart", lambda: torch.zeros(mask.shape, dtype=coord.dtype, device=mask.device)
                              .masked_fill(~mask, -torch.inf)[None, None])
        bias = apart if bias is None else bias + apart
    if geometry.pair_bias is not None:
        pair = geometry.pair_bias(heads)
        bias = pair if bias is None else bias + pair
    return bias


PLUGIN = Full
