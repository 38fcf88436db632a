"""One step from a true state: every domain's default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sciml.chains import Going, check_share, consecutive
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Direct:
    """noise: of the state that is given, in training, as a share of what the baseline misses in a step."""

    noise: float = 0.0

    def __post_init__(self) -> None:
        check_share(noise=self.noise)

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        return consecutive(1)

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        batch = going.perturbed(links[0], self.noise)
        return going.objective(going.forward(batch), batch)


PLUGIN = Direct
