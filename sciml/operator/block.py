"""The block: mix, then feed forward, each normalised, gated and conditioned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml.mixers.contract import make_mixer
from sciml.mixers.geometry import Geometry
from sciml.operator.config import LevelConfig
from sciml.operator.feed_forward import FEEDS
from sciml.operator.norm import Norm, bound, normed, prepare
from sciml.tokens import Cache


class Modulation(nn.Module):
    """Shift, scale and gate per channel from the conditioning vector; (0, 1, 1) before training."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition_width, 3 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate = geometry.per_token(self.linear(c)).chunk(3, dim=-1)
        return shift, 1 + scale, 1 + gate


class Block(nn.Module):
    """x + Δ gate · Σ mixers(norm(x, c)), then x + Δ gate · ffn(norm(x, c)), with Δ = 1 / loops."""

    def __init__(self, config: LevelConfig, index: int, condition_width: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        heads = config.width // config.head_width
        self.width = config.width
        self.mixers = nn.ModuleList(make_mixer(mixer.name, mixer.options, config.width, heads)
                                    for mixer in config.block_mixers(index))
        self.modulate_mix = Modulation(condition_width, config.width)
        self.modulate_ffn = Modulation(condition_width, config.width)
        self.ffn = FEEDS[config.ffn](config.width, config.ffn_ratio)
        self.dropout, self.norm = dropout, norm
        self.share = 1 / config.loops

    def prepare(self, geometry: Geometry) -> None:
        prepare(geometry, self.norm)
        for mixer in self.mixers:
            mixer.prepare(geometry)  # type: ignore[operator]

    def forward(self, x: Tensor, c: Tensor, geometry: Geometry, cache: Cache | None = None) -> Tensor:
        """x ``(B, *lattice, C)``, c ``(S, K)``. A cache is consumed from the front and refilled at the back."""
        shift, scale, gate = self.modulate_mix(c, geometry)
        h = normed(x, scale, shift, geometry, self.norm)
        mixed = torch.zeros_like(x) if not self.mixers else None
        for mixer in self.mixers:
            y, state = mixer(h, geometry, None if cache is None else cache.pop(0))
            if cache is not None:
                cache.append(state)
            mixed = y if mixed is None else mixed + y
        assert mixed is not None
        x = torch.addcmul(x, gate, self._drop(mixed), value=self.share)
        shift, scale, gate = self.modulate_ffn(c, geometry)
        fed = bound(self.ffn(normed(x, scale, shift, geometry, self.norm)), self.norm)
        return torch.addcmul(x, gate, self._drop(fed), value=self.share)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
