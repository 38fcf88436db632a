"""Several steps, each from the answer of the one before, with the gradient through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.chains import Going, check_share, consecutive, grown
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Unrolled:
    """``Σ_k discount^k ℓ_k / Σ_k discount^k`` over k = 0 … steps − 1.

    curriculum: over this first share of the training the number of steps grows from 1. noise: on the state it starts
    from, as in `direct`. Source: List, Chen & Thuerey, "Learned turbulence modelling with differentiable fluid
    solvers", J. Fluid Mech. 949 (2022), on unrolling; Bengio et al., ICML 2009, on curricula.
    """

    steps: int = 4
    discount: float = 1.0
    curriculum: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        consecutive(self.steps)
        check_share(discount=self.discount, curriculum=self.curriculum, noise=self.noise)

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        return consecutive(self.steps)

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        steps = grown(self.steps, self.curriculum, going.progress)
        batch, each = going.perturbed(links[0], self.noise), []
        for step in range(steps):
            outputs = going.forward(batch)
            each.append(going.objective(outputs, batch) * self.discount**step)
            if step + 1 < steps:
                batch = going.onward(batch, outputs, links[step + 1])
        return torch.stack(each).sum(0) / sum(self.discount**step for step in range(steps))


PLUGIN = Unrolled
