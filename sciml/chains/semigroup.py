"""A jump of two lead times agrees with two jumps of one, where the truth is known and where it isn't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sciml.chains import Going, check_share
from sciml.tokens import TokenBatch


@dataclass(frozen=True)
class Semigroup:
    """``½ ℓ(Φ_τ x, x(τ)) + ½ ℓ(Φ_2τ x, x(2τ)) + weight · ℓ(Φ_2τ x, Φ_τ Φ_τ x)`` with the domain's objective ℓ.

    The last term is the semigroup property of the flow Φ of an autonomous equation; the two jumps are its target,
    without gradient. The model must know the lead times τ and 2τ (``leads: [1, 2]``).
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_share(weight=self.weight)

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        return (0, 1), (1, 2), (0, 2)

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        first, second, whole = links
        near, far = going.forward(first), going.forward(whole)
        halfway = going.onward(first, near, second)
        answer = going.forward(halfway)
        agreed = replace(whole, targets={
            head: replace(target, value=halfway.targets[head].predict(answer[head]).detach())
            for head, target in whole.targets.items()})
        known = (going.objective(near, first) + going.objective(far, whole)) / 2
        return known + self.weight * going.objective(far, agreed)


PLUGIN = Semigroup
