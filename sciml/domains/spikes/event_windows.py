"""Windows over events: every event of a split is scored once, with the events before it as context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from sciml.data.schema import Block, SplitName
from sciml.domains.spikes.config import EventConfig
from sciml.domains.spikes.fitted import Fitted
from sciml.domains.spikes.layout import Layout
from sciml.errors import InputError


@dataclass(frozen=True)
class EventSource:
    """Stretches of events of one store."""

    layout: Layout

    def times(self, group: int) -> np.ndarray:
        time = self.layout.recorded(group).spike_time
        assert time is not None
        return time

    def edges(self, block: Block) -> tuple[float, float]:
        """Seconds from which and until which a block lasts."""
        start, width = self.layout.start_s, self.layout.bin_s
        return start + block.start * width, start + block.stop * width

    def span(self, block: Block) -> tuple[int, int]:
        """First event of a block and first after it."""
        low, high = np.searchsorted(self.times(block.group), self.edges(block))
        return int(low), int(high)

    def sample(self, group: int, first: int, last: int, **attrs: float) -> xr.Dataset:
        """Events first ≤ i < last of a recording."""
        held, name = self.layout.recorded(group), self.layout.store.meta.dataset
        assert held.spike_time is not None
        assert held.spike_unit is not None
        return xr.Dataset(
            {"spike_time": ("spike", held.spike_time[first:last], {"units": "s"}),
             "spike_unit": ("spike", held.spike_unit[first:last], {"units": "1"})},
            coords={"unit": list(self.layout.units)},
            attrs={"domain": "spikes", "dataset": name, "source": f"{name}/recording {group} event {first}", **attrs})

    def block(self, block: Block) -> xr.Dataset:
        """All events of a block."""
        first, last = self.span(block)
        return self.sample(block.group, first, last, stop_s=self.edges(block)[1])


@dataclass(frozen=True)
class EventWindows:
    """`config.tokens` − `config.before` events scored per window, the rest is context; the next window goes on where one
    ends. The wait that leads into a block counts from the block's start, the last one until its end. Training windows
    begin at any event."""

    source: EventSource
    blocks: tuple[Block, ...]
    config: EventConfig
    train: bool

    @classmethod
    def of(cls, source: EventSource, split: SplitName, config: EventConfig, *, train: bool) -> EventWindows:
        """Raises `InputError` if no block of the split has events."""
        blocks = tuple(b for b in source.layout.blocks(split) if source.span(b)[1] - source.span(b)[0] > 1)
        if not blocks:
            raise InputError(source.layout.store.url, key=f"{split} split", found="no events", expected="spikes",
                             fix="choose another split of the recording")
        return cls(source, blocks, config, train)

    def __len__(self) -> int:
        return sum(self._counts())

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        counts = self._counts()
        ends = np.cumsum(counts)
        which = int(np.searchsorted(ends, index, side="right"))
        block, within = self.blocks[which], index - int(ends[which]) + counts[which]
        begin, last = self._scored(block)
        step = 1 if self.train else self.scored
        first = begin + within * step
        stop = min(first + self.scored, last)
        low = max(0, first - self.config.before)
        edges = self.source.edges(block)
        attrs: dict[str, float] = {"scored_from": first - low}
        if within == 0:
            attrs["begin_s"] = edges[0]
        if stop == last:
            attrs["stop_s"] = edges[1]
        return self.source.sample(block.group, low, min(stop + 1, last), **attrs)

    @property
    def scored(self) -> int:
        """Events that a window scores at most."""
        return self.config.tokens - self.config.before

    @property
    def num_events(self) -> int:
        """Events that are scored."""
        return sum(high - max(low, 1) for low, high in map(self.source.span, self.blocks))

    def _scored(self, block: Block) -> tuple[int, int]:
        """The events whose following waits lie in a block: from the last before it on, if there is one."""
        low, high = self.source.span(block)
        return max(low - 1, 0), high

    def _counts(self) -> list[int]:
        sizes = [high - low for low, high in map(self._scored, self.blocks)]
        if self.train:
            return [max(1, size - self.scored) for size in sizes]
        return [-(-size // self.scored) for size in sizes]


def events_of(sample: xr.Dataset, fit: Fitted, where: object) -> tuple[np.ndarray, np.ndarray]:
    """Times (s) and places among the fitted units ``(n,)``. Raises `InputError` on events that are out of order, unknown
    units, or missing variables."""
    for name in ("spike_time", "spike_unit"):
        if name not in sample or sample[name].dims != ("spike",):
            raise InputError(where, key=name, found="none" if name not in sample else str(sample[name].dims),
                             expected=f"{name} (spike)", fix="name the variable and its dimension so")
    members = fit.members([str(u) for u in sample["unit"].values], where=where)
    time, unit = np.asarray(sample["spike_time"].values, np.float64), np.asarray(sample["spike_unit"].values, np.int64)
    early = np.flatnonzero(np.diff(time) < 0)
    if len(early) or not np.isfinite(time).all():
        at = int(early[0]) + 1 if len(early) else int(np.argmin(np.isfinite(time)))
        raise InputError(where, key="spike_time", found=f"{time[at]} at index {at}", expected="finite, ascending times",
                         fix="sort the events by time")
    if len(unit) and (unit.min() < 0 or unit.max() >= len(members)):
        raise InputError(where, key="spike_unit", found=f"{unit.min()} … {unit.max()}",
                         expected=f"places among {len(members)} units", fix="correct the unit coordinate")
    return time, members[unit]


def own_waits(time: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """``(n,)`` seconds since the same unit's last event; since the first event of all where there is none."""
    order = np.lexsort((time, unit))
    gaps = np.diff(time[order], prepend=time[0])
    begins = np.diff(unit[order], prepend=-1) != 0
    out = np.empty_like(time)
    out[order] = np.where(begins, time[order] - time[0], gaps)
    return out
