"""How far training goes on from its own answers before it is judged: one step, or a chain of them.

A chain is a module here (or an entry point in the group ``sciml.chains``) whose ``PLUGIN`` is a frozen dataclass made
from the options a recipe gives it (``data: [{store: …, chain: {unrolled: {steps: 4}}}]``). A sample of a chain is a
stretch of states at equal distances; the chain says which pairs of them become batches, its links.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sciml import registry
from sciml.adapter import DomainAdapter, Restating, Sample, Solving
from sciml.errors import InputError
from sciml.recipe import Named
from sciml.solvers import SOLVERS
from sciml.tokens import Outputs, State, TokenBatch

CHAINS = "sciml.chains"
LOST = 100.0


class Chain(Protocol):
    """links: pairs (i, j) of a stretch's states, each a question from state i about state j; the first one is where the
    chain starts. ``((0, 1),)`` needs no stretch: any sample of the domain is one link."""

    @property
    def links(self) -> tuple[tuple[int, int], ...]: ...

    def losses(self, links: Sequence[TokenBatch], going: Going) -> Tensor:
        """``(S,)`` per sample, from the batches of the links."""
        ...


@dataclass(frozen=True)
class Going:
    """What a chain goes on with: the operator's answer and its objective, and how far training is (0 to 1).

    generator: of what is drawn; without one (in validation) nothing is, and the chain is as hard as it gets.
    """

    adapter: DomainAdapter
    forward: Callable[[TokenBatch], Outputs]
    objective: Callable[[Outputs, TokenBatch], Tensor]
    progress: float = 1.0
    generator: torch.Generator | None = None

    def onward(self, batch: TokenBatch, outputs: Outputs, link: TokenBatch) -> TokenBatch:
        """The question of the next link, from the predicted state instead of its true one: what was not observed where
        the chain started stays so and doesn't count, and what is kept of the start is kept."""
        moved = self.adapter.advance(State(batch), outputs).batch
        return replace(link, values=moved.values, observed=moved.observed, kept=moved.kept, targets={
            head: replace(moved.targets[head], value=target.value,
                          mask=target.mask if moved.observed is None else target.mask & moved.observed)
            for head, target in link.targets.items()})

    def perturbed(self, batch: TokenBatch, noise: float) -> TokenBatch:
        """With white noise on the state, `noise` times what the baseline misses in a step; the truth stays.

        Every sample has a noise of its own, keyed by the generator's next number and by where the sample came from: the
        same on whichever rank it lies. Source: Sanchez-Gonzalez et al., "Learning to simulate complex physics with
        graph networks", ICML 2020.
        """
        if not noise or self.generator is None:
            return batch
        if not isinstance(self.adapter, Restating):
            raise InputError("recipe", key="chain.noise", found=f"domain {self.adapter.name}",
                             expected="a domain whose state can be replaced", fix="leave the noise out")
        (target,) = batch.targets.values()
        key = int(torch.randint(1 << 62, (1,), generator=self.generator))
        drawn = noise * torch.stack([_white(key, source, sample) for source, sample in
                                     zip(batch.sources, batch.values, strict=True)])
        missed = target.predict(drawn) - target.predict(torch.zeros_like(drawn))
        noisy = batch.values + missed
        return self.adapter.restated(batch, noisy if batch.observed is None else noisy.where(batch.observed, 0.0))

    def scaled(self, batch: TokenBatch, most: float) -> TokenBatch:
        """With each sample's normalised state times a number of its own, log-uniform between 1 / most and most; the
        truth stays, and is that of another state. Keyed like the noise of `perturbed`."""
        if most == 1 or self.generator is None:
            return batch
        if not isinstance(self.adapter, Restating):
            raise InputError("recipe", key="chain.scales", found=f"domain {self.adapter.name}",
                             expected="a domain whose state can be replaced", fix="leave the scales out")
        key = int(torch.randint(1 << 62, (1,), generator=self.generator))
        drawn = torch.stack([_white(key, source, batch.values.new_empty(1)) for source in batch.sources])
        factor = most ** torch.erf(drawn / 2**0.5).view(-1, *(1,) * (batch.values.dim() - 1))
        return self.adapter.restated(batch, batch.values * factor)

    def told(self, batch: TokenBatch, start: TokenBatch, solver: Named) -> TokenBatch:
        """The question with what a solver makes of its state as the truth. Where the model lost that state (beyond
        `LOST` standard deviations, which a solver might never come to the end of) it is asked from `start` again."""
        if not (isinstance(self.adapter, Solving) and isinstance(self.adapter, Restating)):
            raise InputError("recipe", key="chain.solver", found=f"domain {self.adapter.name}",
                             expected="a domain whose states a solver can advance", fix="choose another chain")
        sound = (batch.values.abs() < LOST).flatten(1).all(1)
        if not bool(sound.all()):
            sound = sound.view(-1, *(1,) * (batch.values.dim() - 1))
            batch = self.adapter.restated(batch, batch.values.where(sound, start.values))
        truth = self.adapter.solved(batch, solver)
        return replace(batch, targets={head: replace(target, value=truth) for head, target in batch.targets.items()})

    def drawn(self, count: int, discount: float = 1.0) -> int:
        """One of k = 1 … count, with probabilities as discount^k; count if nothing is drawn."""
        if self.generator is None:
            return count
        if discount == 1:
            return int(torch.randint(count, (1,), generator=self.generator)) + 1
        return int(torch.multinomial(discount ** torch.arange(count).float(), 1, generator=self.generator)) + 1


def _white(key: int, source: str, like: Tensor) -> Tensor:
    """Standard normal numbers, a pure function of key, source and shape."""
    seed = hashlib.blake2b(f"{key} {source}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
    return torch.randn(like.shape, generator=generator).to(like)


def chain_of(named: Named, *, where: object = "recipe") -> Chain:
    """The chain of a name with its options. Raises `InputError` for what it doesn't have."""
    kind = registry.find(CHAINS, named.name, where=where)
    try:
        made: Chain = kind(**named.options)
    except InputError:
        raise  # of a solver, which names what there is
    except (TypeError, ValueError) as error:
        raise InputError(where, key=f"chain.{named.name}", found=dict(named.options), expected=str(error),
                         fix="see docs/fields.md, Chains") from None
    return made


def reach(chain: Chain) -> int:
    """How many steps a sample spans."""
    return max(j for _, j in chain.links)


def cut(sample: Sample, links: Sequence[tuple[int, int]]) -> list[Sample]:
    """The samples of the links: states i and j of a stretch, with all else that there is of it.

    >>> import xarray as xr
    >>> [part["u"].values.tolist() for part in cut(xr.Dataset({"u": ("time", [5, 6, 7])}), [(0, 1), (0, 2)])]
    [[5, 6], [5, 7]]
    """
    return [sample] if tuple(links) == ((0, 1),) else [sample.isel(time=[i, j]) for i, j in links]


def consecutive(steps: int) -> tuple[tuple[int, int], ...]:
    """The links of `steps` steps one after the other. Raises ValueError unless there is at least one."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError("steps: a whole number of at least 1")
    return tuple((i, i + 1) for i in range(steps))


def grown(steps: int, curriculum: float, progress: float) -> int:
    """Steps at this share of the training: from 1 to `steps` over the first `curriculum` of it.

    >>> [grown(4, 0.5, progress) for progress in (0.0, 0.2, 0.49, 0.5, 1.0)]
    [1, 2, 4, 4, 4]
    """
    return steps if progress >= curriculum else min(steps, 1 + int(steps * progress / curriculum))


def solver_of(given: Any, chain: str) -> Named:
    """A plug-in of `sciml.solvers` with its options, as a recipe names it. Raises `InputError` for one there isn't."""
    named = Named.model_validate(given)
    registry.find(SOLVERS, named.name, where=f"recipe, chain.{chain}")
    return named


def check_share(**shares: float) -> None:
    """Raises ValueError unless each is a number of at least 0 and at most 1."""
    for name, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{name}: a number from 0 to 1")

