"""One step judged, from a state that the model itself led to: no gradient goes through how it came there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciml.chains import Going, check_share, consecutive, grown, solver_of
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Pushforward:
    """The last of 1 … `steps` steps, how many is drawn for every micro-batch; validation judges the last of all.

    Each number of steps is `discount` times as likely as the one before. The truth is the trajectory's, which asks the
    model to undo its own errors; or, with a `solver` (a plug-in of `sciml.solvers`), what that makes of the state the
    model led to, which asks for the equation's answer there and needs no trajectory beyond its first step. scales:
    states from which several steps are taken are multiplied by up to this number or its inverse, so that the model is
    asked beyond the amplitudes of the data. curriculum: over this first share of the training the most grows from 1.
    Source: Brandstetter, Worrall & Welling, "Message passing neural PDE solvers", ICLR 2022, §3.1; the solver's truth
    is that of a diverted chain (Koehler et al., "APEBench", NeurIPS 2024, §3).
    """

    steps: int = 2
    discount: float = 1.0
    curriculum: float = 0.0
    solver: Any = None
    scales: float = 1.0

    def __post_init__(self) -> None:
        consecutive(self.steps)
        check_share(discount=self.discount, curriculum=self.curriculum)
        if isinstance(self.scales, bool) or not isinstance(self.scales, int | float) or not 1 <= self.scales <= 10:
            raise ValueError("scales: a number from 1 to 10")
        if self.scales != 1 and self.solver is None:
            raise ValueError("scales other than 1 need a solver: no trajectory goes on from a scaled state")
        if self.solver is not None:
            object.__setattr__(self, "solver", solver_of(self.solver, "pushforward"))

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        return consecutive(1 if self.solver else self.steps)

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        most, batch = grown(self.steps, self.curriculum, going.progress), links[0]
        steps = going.drawn(most, self.discount)
        if steps > 1:
            batch = going.scaled(batch, self.scales)
        with torch.no_grad():
            for step in range(steps - 1):
                batch = going.onward(batch, going.forward(batch), batch if self.solver else links[step + 1])
            if self.solver and steps > 1:
                batch = going.told(batch, links[0], self.solver)
        return going.objective(going.forward(batch), batch)


PLUGIN = Pushforward
