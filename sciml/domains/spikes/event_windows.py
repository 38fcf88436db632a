"""Windows over events: every event of a split is scored once, with the events before it as context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.data.schema import Block, SplitName
from sciml.domains.spikes.config import EventConfig
from sciml.domains.spikes.encode import covariates
from sciml.domains.spikes.event_exposure import ROUNDING, After, Clock, no_clock
from sciml.domains.spikes.event_floor import RenewalRate, Stretch
from sciml.domains.spikes.event_stimulus import Drive, Driven
from sciml.domains.spikes.fitted import Fitted, groups_of, recordings_of
from sciml.domains.spikes.layout import Layout, covariate_dims
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
    """Stretches of events of one store; floor, drive: what is known of each unit's rate after every event."""

    layout: Layout
    floor: RenewalRate | None = None
    drive: Drive | None = None
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
            self.memo["places", group] = (time - self.layout.start_s) / self.layout.bin_s + ROUNDING
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
                high = torch.cat([time[1:], time.new_full((1,), piece.stop_s)]) - time
                before = torch.arange(len(time)) < piece.start - piece.first
                low = torch.where(before, high, torch.minimum((piece.begin_s - time).clamp_min(0), high))
                found.append(Stretch(time, unit, low, high, following.masked_fill(before, -1), self.clock(piece.group)))
        return found

    def _events(self, group: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        held = self.layout.recorded(group)
        assert held.spike_time is not None
        assert held.spike_unit is not None
        time, unit = held.spike_time[first:last], held.spike_unit[first:last]
        return torch.from_numpy(time.copy()), torch.from_numpy(unit.copy())

    def clock(self, group: int) -> Clock:
        """What the known signals of a recording do to its units."""
        if ("clock", group) not in self.memo:
            signals = self.layout.recorded(group).stimulus
            gain = None if self.drive is None else self.drive.gain(signals)
            self.memo["clock", group] = (no_clock(len(self.layout.units)) if gain is None
                                         else Clock(self.layout.start_s, self.layout.bin_s, gain))
        return self.memo["clock", group]

    def after(self, group: int, first: int, last: int) -> After:
        """What the floor says after events first ≤ i < last of a recording, from all before them in their stretch."""
        assert self.floor is not None
        if ("after", group) not in self.memo:
            places = self._bin_places(group)
            log_rate = self.floor.rate.log().float().repeat(len(places), 1)
            age = torch.zeros_like(log_rate)
            for bins in self._stretches(group):
                part = slice(*np.searchsorted(places, bins).tolist())
                if part.stop > part.start:
                    found = self.floor.after(still(*self._events(group, part.start, part.stop), self.clock(group)))
                    log_rate[part], age[part] = found.log_rate.float(), found.age.float()
            self.memo["after", group] = log_rate, age
        log_rate, age = (kept[first:last].double() for kept in self.memo["after", group])
        time, _ = self._events(group, first, last)
        return After(time, log_rate, age, self.floor.renewal, self.clock(group))

    def sample(self, group: int, first: int, last: int, ahead_s: float = 0.0, **attrs: float) -> xr.Dataset:
        """Events first ≤ i < last of a recording; ``floor (spike, unit)``, log of 1/s, and ``age (spike, unit)``, s,
        after each; known signals from the first of them until `ahead_s` after the last or ``stop_s``, and ``drive
        (time, unit)``, what they do."""
        time, unit = self._events(group, first, last)
        name, held = self.layout.store.meta.dataset, self.layout.recorded(group)
        data: dict[str, Any] = {"spike_time": ("spike", time.numpy(), {"units": "s"}),
                                "spike_unit": ("spike", unit.numpy(), {"units": "1"})}
        coords: dict[str, Any] = {"unit": list(self.layout.units)}
        if self.floor is not None:
            after = self.after(group, first, last)
            data |= {key: (("spike", "unit"), x.numpy()) for key, x in (("floor", after.log_rate), ("age", after.age))}
        if self.layout.labels["stimulus"] and len(time):
            ends = float(time[0]), float(attrs.get("stop_s", time[-1])) + ahead_s
            places = [(end - self.layout.start_s) / self.layout.bin_s + ROUNDING for end in ends]
            bins = np.arange(max(int(places[0]), 0), min(int(places[1]) + 1, len(held.stimulus)))
            coords["time"] = "time", self.layout.start_s + self.layout.bin_s * bins, {"units": "s"}
            at = 0
            for dim in covariate_dims(self.layout.store):
                coords[dim] = list(self.layout.store.members(dim))
                data[f"{dim}_value"] = ("time", dim), held.stimulus[bins, at:at + len(coords[dim])]
                at += len(coords[dim])
            if len(self.clock(group).gain):
                data["drive"] = ("time", "unit"), self.clock(group).gain.numpy()[bins]
        return xr.Dataset(data, coords=coords, attrs={
            "domain": "spikes", "dataset": name, "source": f"{name}/recording {group} event {first}", **attrs})


def still(time: torch.Tensor, unit: torch.Tensor, clock: Clock) -> Stretch:
    """Events of which nothing is fitted."""
    none = torch.zeros_like(time)
    return Stretch(time, unit, none, none, torch.full_like(unit, -1), clock)


@dataclass(frozen=True)
class EventWindows:
    """`config.tokens` − `config.before` waits scored per window, the rest is context; the next window goes on where one
    ends. The wait that leads into a piece counts from the piece's start, the last one until its end. Training windows
    begin at any event. ahead_s: how far beyond the last event known signals are told."""

    source: EventSource
    pieces: tuple[Piece, ...]
    config: EventConfig
    train: bool
    ahead_s: float = 0.0

    @classmethod
    def of(cls, source: EventSource, split: SplitName, config: EventConfig, *, train: bool,
           ahead_s: float = 0.0) -> EventWindows:
        """Raises `InputError` if no event of the split can be scored."""
        pieces = tuple(piece for piece in source.pieces(split) if piece.rows)
        if not sum(piece.scored for piece in pieces):
            raise InputError(source.layout.store.url, key=f"{split} split", found="no events", expected="spikes",
                             fix="choose another split of the recording")
        return cls(source, pieces, config, train, ahead_s)

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
        return self.source.sample(piece.group, low, min(stop + 1, piece.high), self.ahead_s, **attrs)

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


def waits_of(sample: xr.Dataset, time: torch.Tensor, unit: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a sample asks after each event ``(E,)``: from which wait on, until which, in s, and the unit of the event
    that ended it, −1 where none did or none is asked for (then the wait is empty)."""
    end = torch.tensor([float(sample.attrs.get("stop_s", time[-1]))], dtype=time.dtype)
    high = torch.cat([time[1:], end]) - time
    low = torch.minimum((float(sample.attrs.get("begin_s", time[0])) - time).clamp_min(0.0), high)
    came, first = torch.cat([unit[1:], unit.new_full((1,), -1)]), int(sample.attrs.get("scored_from", 0))
    low[:first], came[:first] = high[:first], -1
    return low, high, came


def clock_of(sample: xr.Dataset, fit: Fitted, drive: Drive) -> Clock:
    """From ``drive (time, unit)``, or from the known signals that the sample brings. Raises `InputError` if they are in
    other bins than those fitted."""
    if "time" not in sample.sizes or not drive.weight.shape[1]:
        return no_clock(len(fit.units))
    time = np.asarray(sample["time"].values, np.float64)
    if len(time) > 1 and np.abs(np.diff(time) / fit.bin_s - 1).max() > 1e-3:
        raise InputError(sample.attrs.get("source", "sample"), key="time", found=f"bins of {np.diff(time)[0]:g} s",
                         expected=f"known signals in bins of {fit.bin_s:g} s, as fitted", fix="bin them at that width")
    if "drive" in sample:
        gain = torch.zeros(len(time), len(fit.units))
        members = fit.members([str(u) for u in sample["unit"].values], where="sample")
        gain[:, members] = torch.from_numpy(sample["drive"].transpose("time", "unit").values)
    else:
        gain = drive.gain(covariates(sample, fit.stimulus.labels, "sample").numpy())
    return Clock(float(time[0]), fit.bin_s, gain) if len(time) else no_clock(len(fit.units))


def driven(layout: Layout) -> list[Driven]:
    """The recordings that training or validation are in."""
    found = []
    for group, recording in zip(groups_of(layout), recordings_of(layout)):
        num = len(recording.counts)
        found.append(Driven(layout.recorded(group).stimulus[:num], recording.counts.numpy(), recording.train.numpy(),
                            recording.validation.numpy()))
    return found


def mean_rate(fit: Fitted) -> torch.Tensor:
    """``(N,)`` float64 mean training rates in 1/s."""
    return fit.log_rate.double().exp() / fit.bin_s


def own_waits(time: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """``(n,)`` seconds since the same unit's last event; since the first event of all where there is none."""
    order = np.lexsort((time, unit))
    gaps = np.diff(time[order], prepend=time[0])
    begins = np.diff(unit[order], prepend=-1) != 0
    out = np.empty_like(time)
    out[order] = np.where(begins, time[order] - time[0], gaps)
    return out
