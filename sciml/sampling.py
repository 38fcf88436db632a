"""Which samples a training step sees: a pure function of (seed, step), the same on every rank and with any workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sciml.adapter import DomainAdapter, Windows
from sciml.chains import Chain, cut
from sciml.chains.direct import Direct
from sciml.packing import collate
from sciml.threads import one_thread
from sciml.tokens import TokenBatch

MIXTURE, ORDER, SAMPLE, BATCH = 11, 12, 13, 14  # what a stream of random numbers is for


@dataclass(frozen=True)
class Source:
    """One store in training: its windows, the adapter that encodes them, samples per micro-batch over all ranks."""

    name: str
    adapter: DomainAdapter
    windows: Windows
    batch: int
    weight: float
    chain: Chain = field(default_factory=Direct)


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one source: a batch for each link of its chain, one where nothing is chained."""

    source: int
    links: tuple[TokenBatch, ...]


@dataclass(frozen=True)
class Schedule:
    """The source of every micro-step and how many micro-batches it had before, for a whole run."""

    source: np.ndarray
    earlier: np.ndarray

    @classmethod
    def make(cls, seed: int, weights: Sequence[float], micro_steps: int) -> Schedule:
        """Independent draws with probability ∝ weight; a longer run begins like a shorter one."""
        edges = np.cumsum(np.asarray(weights, dtype=float)) / np.sum(weights)
        source = np.searchsorted(edges, np.random.default_rng([MIXTURE, seed]).random(micro_steps), side="right")
        source = np.minimum(source, len(weights) - 1)
        earlier = np.zeros(micro_steps, dtype=np.int64)
        for which in range(len(weights)):
            mine = source == which
            earlier[mine] = np.arange(mine.sum())
        return cls(source, earlier)


@lru_cache(maxsize=16)
def _order(seed: int, source: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([ORDER, seed, source, epoch]).permutation(size)


def sample_keys(seed: int, source: int, size: int, earlier: int, batch: int) -> list[tuple[int, int]]:
    """(epoch, index) of the samples of a source's micro-batch; every epoch is one permutation of all windows."""
    places = range(earlier * batch, (earlier + 1) * batch)
    return [(place // size, int(_order(seed, source, place // size, size)[place % size])) for place in places]


@dataclass(frozen=True)
class MicroBatches(Dataset[MicroBatch]):
    """micro-step → this rank's encoded, collated share of its micro-batch."""

    sources: tuple[Source, ...]
    schedule: Schedule
    seed: int
    rank: int = 0
    world: int = 1

    def __getitem__(self, micro_step: int) -> MicroBatch:
        with one_thread():
            return self._make(micro_step)

    def _make(self, micro_step: int) -> MicroBatch:
        which = int(self.schedule.source[micro_step])
        source = self.sources[which]
        keys = sample_keys(self.seed, which, len(source.windows), int(self.schedule.earlier[micro_step]), source.batch)
        share = source.batch // self.world
        links: list[list[TokenBatch]] = [[] for _ in source.chain.links]
        for epoch, index in keys[self.rank * share: (self.rank + 1) * share]:
            own = np.random.default_rng([SAMPLE, self.seed, which, epoch, index])
            common = np.random.default_rng([BATCH, self.seed, micro_step])
            sample = source.windows.draw(index, own, common)
            for batches, part in zip(links, cut(sample, source.chain.links)):
                batches.append(source.adapter.encode(part))
        return MicroBatch(which, tuple(map(collate, links)))


def loader(data: MicroBatches, first: int, last: int, workers: int) -> Iterator[MicroBatch]:
    """The micro-batches ``first ≤ m < last`` in order; with workers they are prepared ahead."""
    if first >= last:
        return iter(())
    return iter(DataLoader(data, batch_size=None, sampler=range(first, last), num_workers=workers,
                           multiprocessing_context="spawn" if workers else None, generator=torch.Generator()))
