"""What a block does to each token by itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """W₂ silu(W₁ x), ``(…, C)``, with ratio · C hidden channels."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.enter, self.leave = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.silu(self.enter(x)))  # smooth, and half the time of GELU on a CPU


class GatedFeedForward(nn.Module):
    """W₂ (silu(W₁ x) ⊙ W₃ x), ``(…, C)``, with ⅔ ratio · C hidden channels: as many weights as `FeedForward`.

    A product of two channels is one hidden channel of it, as in u · ∇ω (docs/design/0033-gated.md). Source: Shazeer,
    "GLU variants improve transformer", 2020.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(8, int(width * ratio * 2 / 3) // 8 * 8)
        self.enter, self.leave = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.enter(x).chunk(2, dim=-1)
        return self.leave(F.silu(gate) * value)


FEEDS = {"plain": FeedForward, "gated": GatedFeedForward}
