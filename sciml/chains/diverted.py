"""Several steps, each judged by what a solver makes of the state that the model itself led to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciml.chains import Going, check_share, consecutive, grown, solver_of
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Diverted:
    """``mean_k ℓ(Φ û_k, P û_k)`` with û_0 the data, û_k = Φ û_{k−1} and the solver P, through which the gradient goes.

    The truth never lies on another trajectory than the model's own, so chaos doesn't blur what is to be learnt. Source:
    Koehler et al., "APEBench", NeurIPS 2024, §3 ("diverted chain"). solver: a plug-in of `sciml.solvers`.
    """

    solver: Any
    steps: int = 3
    curriculum: float = 0.0

    def __post_init__(self) -> None:
        consecutive(self.steps)
        check_share(curriculum=self.curriculum)
        object.__setattr__(self, "solver", solver_of(self.solver, "diverted"))

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        return consecutive(1)

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        batch, each = links[0], []
        steps = grown(self.steps, self.curriculum, going.progress)
        for step in range(steps):
            outputs = going.forward(batch)
            each.append(going.objective(outputs, batch))
            if step + 1 < steps:
                batch = going.told(going.onward(batch, outputs, batch), links[0], self.solver)
        return torch.stack(each).mean(0)


PLUGIN = Diverted
