"""The next event as one of classes, unit × interval of the time since the last one: the alternative to a hazard.

p[n, k] is the chance that the next event is of unit n and comes between edge_k and edge_{k+1}; there its time is
uniform, in the last class, which is without end, exponential with its edge for a mean. So f_n(τ) = p[n, k] / width_k is
a density, and its log-likelihood is in the same units as a hazard's. Joint classes of unit and interval, where
Neuroformer (Antoniades et al., ICLR 2024) has two separate ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.event_exposure import After, exposure, interval
from sciml.domains.spikes.sampling import nucleus
from sciml.tokens import Target

LEAST = -40.0
"""Least log chance of a class under the floor."""
LEAST_LEFT = 1e-30
"""Least share of the last class that is still to come: more than float32 takes for nothing."""


@dataclass(frozen=True)
class Classes:
    """edges: ``(K,)`` left edges in s, float64. What is predicted are log chances up to a constant, those of the floor
    plus the output."""

    edges: Tensor
    objective = "next_class"

    @property
    def tail_s(self) -> float:
        """Mean of what waits in the last class exceed its edge."""
        return float(self.edges[-1])

    def prior(self, after: After) -> Tensor:
        """``(E, N, K)`` log chances under the floor."""
        none = torch.zeros_like(after.time)
        spent = exposure(after, none, none + self.edges[-1], self.edges)[..., :-1]
        mass = after.log_rate.exp()[..., None] * spent
        passed = torch.nn.functional.pad(mass.sum(1).cumsum(-1), (1, 0))  # (E, K) integrated at each left edge
        share = torch.log(mass / mass.sum(1, keepdim=True).clamp_min(1e-300))
        closed = share + (torch.log(-torch.expm1(-passed.diff(dim=-1))) - passed[:, :-1])[:, None]
        last = after.log_hazard(none + self.edges[-1]).log_softmax(-1) - passed[:, -1:]
        return torch.cat([closed, last[..., None]], -1).clamp_min(LEAST)

    def left(self, wait: Tensor) -> Tensor:
        """``(E, K)`` the share of each class's time that is still to come after a wait ``(E,)``."""
        closed = ((self.edges[1:] - wait[:, None]) / self.edges.diff()).clamp(0.0, 1.0)
        last = torch.exp(-(wait - self.edges[-1]).clamp_min(0.0) / self.tail_s).clamp_min(LEAST_LEFT)
        return torch.cat([closed, last[:, None]], -1)

    def target(self, after: After, low: Tensor, high: Tensor, unit: Tensor) -> Target:
        """Of waits from low to high ``(E,)`` that ended with an event of `unit` (−1: none), ``(1, E, N, K)``.

        The likelihood is Σ value · p over the classes that count, p their chances given that nothing came until `low`;
        value: 1 for the class that came, or the share of each class that lies beyond `high`."""
        before, later = self.left(low), self.left(high)
        ended = unit >= 0
        base = self.prior(after) + before.clamp_min(1e-12).log()[:, None]
        value = torch.where(ended[:, None], 0.0, later / before.clamp_min(1e-12))[:, None].repeat(1, base.shape[1], 1)
        rows = torch.arange(len(low))[ended]
        value[rows, unit[ended], interval(high, self.edges)[ended]] = 1.0
        mask = ((ended | (high > low))[:, None] & ((before > 0) | (value > 0).any(1)))[:, None].expand(base.shape)
        value, base = (torch.where(mask, t, 0.0).float() for t in (value, base))
        return Target(*(t[None] for t in (value, mask, base, torch.ones_like(value))))

    def gain(self, target: Target, predicted: Tensor) -> Tensor:
        """``(E,)`` nats, the log-likelihood of what came less that of the floor."""
        return _log_chance(target, predicted) - _log_chance(target, target.baseline)

    def floor_likelihood(self, after: After, low: Tensor, high: Tensor, unit: Tensor) -> Tensor:
        """``(E,)`` nats (times in s) of the floor's chances."""
        k, right = interval(high, self.edges), torch.cat([self.edges[1:], self.edges.new_full((1,), math.inf)])
        begin = torch.maximum(low, self.edges[k])
        last = k == len(self.edges) - 1
        tail = -(high - begin) / self.tail_s - math.log(self.tail_s)
        density = torch.where(last, tail, -torch.log(torch.where(last, 1.0, right[k] - begin)))
        return _log_chance(self.target(after, low, high, unit)) + torch.where(unit >= 0, density, 0.0)

    def likely(self, target: Target, predicted: Tensor) -> Tensor:
        """``(E,)`` the unit with the greatest chance."""
        return predicted.masked_fill(~target.mask, -math.inf).logsumexp(-1).argmax(-1)[0]

    def integrated(self, after: After, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``(E, N)`` the integral of ``f_n / S`` from low to high seconds ``(E,)`` after each event, S the chance that
        nothing came: within a class, a unit's share in it times the fall of log S; x: outputs ``(E, N, K)``."""
        chance = (self.prior(after) + x).flatten(1).softmax(-1).view(x.shape)
        whole = chance.sum(1)  # (E, K)
        rest = whole.flip(-1).cumsum(-1).flip(-1) - whole
        begin, end = (torch.log((rest + whole * self.left(at)).clamp_min(1e-300)) for at in (low, high))
        return (chance / whole[:, None].clamp_min(1e-300) * (begin - end)[:, None]).sum(-1)

    def draw(self, after: After, x: Tensor, sampling: SamplingConfig,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Wait in seconds ``(1,)``, differentiable in the outputs x ``(N, K)``, and unit ``(1,)`` of the event after
        the one that `after` holds: where the classes' summed chance reaches a uniform number."""
        logits = self.prior(after)[0] + x
        chance = nucleus(logits.logsumexp(0), sampling)  # (K,)
        level = torch.rand(1, generator=generator, dtype=torch.float64).to(chance)
        passed = chance.cumsum(0)
        k = int((passed[:-1] <= level).sum())
        share = ((level - passed[k] + chance[k]) / chance[k]).clamp(0.0, 1.0 - 1e-12)
        last = k == len(self.edges) - 1
        wait = self.edges[k] + (-self.tail_s * torch.log1p(-share) if last else share * self.edges.diff()[k])
        return wait, torch.multinomial(nucleus(logits[:, k].detach(), sampling), 1, generator=generator)


def _log_chance(target: Target, predicted: Tensor | None = None) -> Tensor:
    """``(E,)`` log Σ value · p, 0 where nothing counts; predicted: log chances, default the target's baseline."""
    logits = (target.baseline if predicted is None else predicted).double()
    mask = target.mask.expand(logits.shape)
    counted = mask.flatten(2).any(-1, keepdim=True)
    log_p = logits.masked_fill(~mask, -math.inf).flatten(2)
    log_p = torch.where(counted, log_p, 0.0).log_softmax(-1)
    found = (log_p + target.value.double().flatten(2).clamp_min(0).log()).logsumexp(-1)
    return torch.where(counted[..., 0], found, 0.0)[0]
