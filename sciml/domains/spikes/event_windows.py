"""Windows over events: every event of a split is scored once, with the events before it as context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.data.schema import Block, SplitName
from sciml.domains.spikes.config import EventConfig
from sciml.domains.spikes.fitted import Fitted
from sciml.domains.spikes.hazard import HeldRate, Stretch
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.windows import Memo
from sciml.errors import InputError


@dataclass(frozen=True)
class Piece:
    """The part of a block that lies in one stretch of recording: it lasts from begin_s until stop_s; low ≤ i < high are
    its events, `first` is the first event of the stretch, before which nothing is known."""

    group: int
    first: int
    low: int
    high: int
    begin_s: float
    stop_s: float

    @property
    def start(self) -> int:
        """The first event whose following wait lies in the piece: the last one before it, if the stretch has one."""
        return max(self.low - 1, self.first)

    @property
    def rows(self) -> int:
        """Waits that are scored: one after each event from `start` on, the last of them cut at the end."""
        return max(self.high - self.start, 0)

    @property
    def scored(self) -> int:
        """Events that are scored: all but the first of a stretch, for which nothing came before."""
        return max(self.high - max(self.low, self.first + 1), 0)


@dataclass(frozen=True)
class EventSource:
    """Stretches of events of one store; floor: what is known of each unit's rate after every event."""

    layout: Layout
    floor: HeldRate | None = None
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def pieces(self, split: SplitName) -> tuple[Piece, ...]:
        """A gap of the recording ends the wait before it, and what follows begins anew."""
        return tuple(self._piece(block, low, high) for block in self.layout.blocks(split)
                     for low, high in self._stretches(block.group) if low < block.stop and high > block.start)

    def _piece(self, block: Block, low: int, high: int) -> Piece:
        layout, bins = self.layout, (low, max(low, block.start), min(high, block.stop))
        first, begin, stop = np.searchsorted(self._bin_places(block.group), bins).tolist()
        begin_s, stop_s = (layout.start_s + b * layout.bin_s for b in bins[1:])
        return Piece(block.group, first, begin, stop, begin_s, stop_s)

    def _bin_places(self, group: int) -> np.ndarray:
        """``(E,)`` where events lie in bins; on an edge, up to rounding, they belong to the later bin, as in counts."""
        if ("places", group) not in self.memo:
            time = self.layout.recorded(group).spike_time
            assert time is not None
            self.memo["places", group] = (time - self.layout.start_s) / self.layout.bin_s + 1e-9
        return self.memo["places", group]

    def _stretches(self, group: int) -> list[tuple[int, int]]:
        """First bin and bin after the last of each stretch that was recorded without a gap."""
        known = np.isfinite(self.layout.recorded(group).count).any(1)
        edges = np.flatnonzero(np.diff(known, prepend=False, append=False))
        return list(zip(edges[::2].tolist(), edges[1::2].tolist()))

    def stretches(self, split: SplitName) -> list[Stretch]:
        """What the floor is fitted on: each piece with all of its stretch before it."""
        found = []
        for piece in self.pieces(split):
            if piece.rows:
                time, unit = self._events(piece.group, piece.first, piece.high)
                following = torch.cat([unit[1:], unit.new_full((1,), -1)])
                high = torch.cat([time[1:], time.new_full((1,), piece.stop_s)])
                exposed = (high - time.clamp_min(piece.begin_s)).clamp_min(0)
                before = torch.arange(len(time)) < piece.start - piece.first
                found.append(Stretch(time, unit, exposed.masked_fill(before, 0), following.masked_fill(before, -1)))
        return found

    def _events(self, group: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        held = self.layout.recorded(group)
        assert held.spike_time is not None
        assert held.spike_unit is not None
        time, unit = held.spike_time[first:last], held.spike_unit[first:last]
        return torch.from_numpy(time.copy()), torch.from_numpy(unit.copy())

    def _floor(self, group: int) -> np.ndarray:
        """``(E, N)`` log of 1/s after every event of a recording."""
        if ("floor", group) not in self.memo:
            assert self.floor is not None
            places = self._bin_places(group)
            rates = np.tile(self.floor.rate.log().float().numpy(), (len(places), 1))
            for bins in self._stretches(group):
                first, last = np.searchsorted(places, bins).tolist()
                if last > first:
                    time, unit = self._events(group, first, last)
                    rates[first:last] = self.floor.after(Stretch(time, unit, time, unit)).float().numpy()
            self.memo["floor", group] = rates
        return self.memo["floor", group]

    def sample(self, group: int, first: int, last: int, **attrs: float) -> xr.Dataset:
        """Events first ≤ i < last of a recording, and ``floor (spike, unit)`` after each."""
        time, unit = self._events(group, first, last)
        name = self.layout.store.meta.dataset
        data: dict[str, Any] = {"spike_time": ("spike", time.numpy(), {"units": "s"}),
                                "spike_unit": ("spike", unit.numpy(), {"units": "1"})}
        if self.floor is not None:
            data["floor"] = ("spike", "unit"), self._floor(group)[first:last]
        return xr.Dataset(data, coords={"unit": list(self.layout.units)}, attrs={
            "domain": "spikes", "dataset": name, "source": f"{name}/recording {group} event {first}", **attrs})


@dataclass(frozen=True)
class EventWindows:
    """`config.tokens` − `config.before` waits scored per window, the rest is context; the next window goes on where one
    ends. The wait that leads into a piece counts from the piece's start, the last one until its end. Training windows
    begin at any event."""

    source: EventSource
    pieces: tuple[Piece, ...]
    config: EventConfig
    train: bool

    @classmethod
    def of(cls, source: EventSource, split: SplitName, config: EventConfig, *, train: bool) -> EventWindows:
        """Raises `InputError` if no event of the split can be scored."""
        pieces = tuple(piece for piece in source.pieces(split) if piece.rows)
        if not sum(piece.scored for piece in pieces):
            raise InputError(source.layout.store.url, key=f"{split} split", found="no events", expected="spikes",
                             fix="choose another split of the recording")
        return cls(source, pieces, config, train)

    def __len__(self) -> int:
        return sum(self._counts())

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        counts = self._counts()
        ends = np.cumsum(counts)
        which = int(np.searchsorted(ends, index, side="right"))
        piece, within = self.pieces[which], index - int(ends[which]) + counts[which]
        first = piece.start + within * (1 if self.train else self.scored)
        stop = min(first + self.scored, piece.high)
        low = max(piece.first, first - self.config.before)
        attrs: dict[str, float] = {"scored_from": first - low}
        if within == 0:
            attrs["begin_s"] = piece.begin_s
        if stop == piece.high:
            attrs["stop_s"] = piece.stop_s
        return self.source.sample(piece.group, low, min(stop + 1, piece.high), **attrs)

    @property
    def scored(self) -> int:
        """Waits that a window scores at most."""
        return self.config.tokens - self.config.before

    @property
    def num_events(self) -> int:
        """Events that are scored."""
        return sum(piece.scored for piece in self.pieces)

    def _counts(self) -> list[int]:
        if self.train:
            return [max(1, piece.rows - self.scored + 1) for piece in self.pieces]
        return [-(-piece.rows // self.scored) for piece in self.pieces]


def events_of(sample: xr.Dataset, fit: Fitted, where: object) -> tuple[np.ndarray, np.ndarray]:
    """Times (s) and places among the fitted units ``(n,)``. Raises `InputError` on events that are out of order or
    beyond the end of the sample, unknown units, or missing variables."""
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
    stop = float(sample.attrs.get("stop_s", np.inf))
    if len(time) and stop < time[-1]:
        raise InputError(where, key="stop_s", found=f"{stop:g} s", expected=f"at least the last event's {time[-1]:g} s",
                         fix="say until when the recording went on")
    return time, members[unit]


def own_waits(time: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """``(n,)`` seconds since the same unit's last event; since the first event of all where there is none."""
    order = np.lexsort((time, unit))
    gaps = np.diff(time[order], prepend=time[0])
    begins = np.diff(unit[order], prepend=-1) != 0
    out = np.empty_like(time)
    out[order] = np.where(begins, time[order] - time[0], gaps)
    return out
