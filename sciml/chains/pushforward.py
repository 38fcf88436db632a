"""One step judged, from a state that the model itself led to: no gradient goes through how it came there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.chains import Going, check_share, consecutive, grown
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Pushforward:
    """The last of 1 … `steps` steps, how many is drawn for every micro-batch; validation judges the last of all.

    curriculum: over this first share of the training the most grows from 1. Source: Brandstetter, Worrall & Welling,
    "Message passing neural PDE solvers", ICLR 2022, §3.1.
    """

    steps: int = 2
    curriculum: float = 0.0

    def __post_init__(self) -> None:
        consecutive(self.steps)
        check_share(curriculum=self.curriculum)

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        return consecutive(self.steps)

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        steps, batch = going.drawn(grown(self.steps, self.curriculum, going.progress)), links[0]
        with torch.no_grad():
            for step in range(steps - 1):
                batch = going.onward(batch, going.forward(batch), links[step + 1])
        return going.objective(going.forward(batch), batch)


PLUGIN = Pushforward
