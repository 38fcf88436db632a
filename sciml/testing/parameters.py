"""Which weights of an operator a domain can use: the others are listed, and exempt from the gradient check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sciml.mixers.contract import Mixer
from sciml.operator.named import key
from sciml.operator.operator import Operator
from sciml.tokens import TokenBatch, TokenSpec


def unusable(operator: Operator, spec: TokenSpec, batches: Sequence[TokenBatch]) -> dict[str, str]:
    """Parameter name → why these batches of a domain cannot use it."""
    reasons = {}
    idle = dict(_idle_mixers(operator, batches))
    asked = {head for b in batches for head in b.targets}
    silent = tuple(f"ports.{spec.domain}.heads.{head}." for head in spec.heads if head not in asked)
    gaps = any(b.observed is not None and not bool(b.observed.all()) for b in batches)
    given = {key(c) for b in batches for i, c in enumerate(b.channels) if b.observed is None or bool(
        b.observed.expand(b.values.shape)[..., i].any())}
    asked_only = {key(c) for b in batches for c in b.channels} - given
    for name, _ in operator.named_parameters():
        if name.startswith("ports.") and not name.startswith(f"ports.{spec.domain}."):
            reasons[name] = "belongs to another domain"
        elif name.startswith("levels.") and ".context." in name and spec.context is None:
            reasons[name] = "the domain has no context"
        elif name.startswith(silent):
            reasons[name] = "no sample asks for this head"
        elif name in idle:
            reasons[name] = idle[name]
        elif ".stem." in name and (".missing." in name or ".members.missing " in name) and not gaps:
            reasons[name] = "nothing is missing in these samples"
        elif ".stem." in name and name.rpartition(".values.rows.")[2] in asked_only:
            reasons[name] = "no sample gives this channel: it is only asked for"
        elif ".biases." in name and not any(f".biases.{n}." in name for n in _heads(operator)):
            reasons[name] = "no mixer that attends to pairs has that number of heads"
    return reasons


def _idle_mixers(operator: Operator, batches: Sequence[TokenBatch]) -> Iterator[tuple[str, str]]:
    """State-dict names of mixers' parameters that these lattices cannot use at the finest level."""
    for name, module in operator.named_modules():
        if isinstance(module, Mixer):
            used = set().union(*(module.parameters_of(batch.axes) for batch in batches))
            for own, _ in module.named_parameters():
                if own not in used:
                    yield f"{name}.{own}", f"{type(module).__name__} has no use for it along the domain's axes"


def _heads(operator: Operator) -> set[int]:
    return {module.heads for module in operator.modules() if isinstance(module, Mixer) and module.biased}


def stir(operator: nn.Module, seed: int = 0, size: float = 0.05) -> None:
    """Move every weight a little, so that those that begin at zero don't hide others from the gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in operator.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter), alpha=size)
