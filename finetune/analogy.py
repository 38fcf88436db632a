"""A quantity that a checkpoint doesn't know starts as the known one that fits it best, instead of at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sciml import registry
from sciml.operator.named import NamedRows, key
from sciml.packing import collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.sampling import Source
from sciml.tokens import TokenBatch

SHOWN, TRIES = 8, 256
"""Training samples that analogies are judged by; fewer, at least one, where all pairs of new and known channels would
take more answers than that."""


def start_by_analogy(predictor: Predictor, source: Source, known: Sequence[str]) -> dict[str, str]:
    """Give each channel of the source that is not among the known ones the rows of the one with which the mean loss of
    a few training samples is lowest, one channel after another. Returns new → known.

    Its rows of the heads stay zero where that is no better than the plain baseline; a channel beside known ones, whose
    answers any analogy makes worse, keeps the rows it has.
    """
    domain = source.adapter.name
    new = [name for name in predictor.operator.specs[domain].channels if name not in known]
    if not known or not new:
        return {}
    count = min(SHOWN, max(1, TRIES // (len(new) * len(known))))
    batches, chosen = _shown(source, count), dict[str, str]()
    for name in new:
        tables, losses = list(_tables(predictor, domain, name)), dict[str, float]()
        own, start = [rows.rows[key(name)].detach().clone() for _, rows in tables], _loss(predictor, source, batches)
        for other in known:
            _start(tables, name, other, heads=True)
            losses[other] = _loss(predictor, source, batches)
        best = min(losses, key=lambda other: losses[other])
        heads = losses[best] < start
        _start(tables, name, best, heads=heads)
        if not heads and _loss(predictor, source, batches) > start:
            for (_, rows), row in zip(tables, own):
                rows.rows[key(name)].data.copy_(row)
            continue
        chosen[name] = best
    return chosen


def _shown(source: Source, count: int) -> list[TokenBatch]:
    """Evenly spaced training samples, each a batch of its own, as they may differ in form."""
    places = np.unique(np.linspace(0, len(source.windows) - 1, count).astype(int))
    rng = np.random.default_rng(0)
    samples = [source.windows.draw(int(place), rng, rng) for place in places]
    return [collate([source.adapter.encode(sample)]) for sample in samples]


def _loss(predictor: Predictor, source: Source, batches: Sequence[TokenBatch]) -> float:
    adapter = source.adapter
    objective = registry.find("sciml.objectives", adapter.objective)
    with evaluating(predictor.operator), torch.set_grad_enabled(bool(adapter.differentiate)):
        found = [objective(forward(adapter, predictor.operator, batch), batch).mean() for batch in batches]
    return float(torch.stack(found).mean())


def _tables(predictor: Predictor, domain: str, name: str) -> Iterator[tuple[bool, NamedRows]]:
    """Tables of the domain with a row of that name; whether they are a head's."""
    for place, module in predictor.operator.ports[domain].named_modules():
        if isinstance(module, NamedRows) and key(name) in module.rows:
            yield place.startswith("heads."), module


@torch.no_grad()
def _start(tables: Sequence[tuple[bool, NamedRows]], name: str, known: str, *, heads: bool) -> None:
    """The rows of a name from those of a known one where there are any; `heads`: in heads, too, else zero there."""
    for in_head, table in tables:
        if in_head and not heads:
            table.rows[key(name)].zero_()
        elif key(known) in table.rows:
            table.rows[key(name)].copy_(table.rows[key(known)])
