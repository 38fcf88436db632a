"""Windows of a split: bins that are scored inside its blocks, and what is seen around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.data.schema import Block, SplitName
from sciml.domains.spikes.config import LABELLED, MaskConfig, SpikesConfig, Task, WindowConfig
from sciml.domains.spikes.fitted import Fitted, labelled_blocks
from sciml.domains.spikes.floors import predict_floor
from sciml.domains.spikes.history import CHUNK
from sciml.domains.spikes.layout import Layout, covariate_dims
from sciml.errors import InputError

PIECE = 64 * CHUNK
BEFORE_FLOOR = 2048
"""Bins before a window that a floor sees which has to be computed for it alone."""


class Memo(dict[Any, Any]):
    """What can be computed again; not pickled, never makes two objects differ."""

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


@dataclass(frozen=True)
class Source:
    """Samples of one store as its data set was fitted: any stretch of any recording, with what came before it."""

    layout: Layout
    fit: Fitted
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def sample(self, group: int, low: int, high: int) -> xr.Dataset:
        """Bins low ≤ t < high; those beyond the recording are not recorded. ``averages (unit, scale)``: of each unit's
        counts before the first bin."""
        made = self.dataset(self.columns(group, low, high), low, {"source": self.name(group, low)})
        for name in made.coords:
            made = made.set_xindex(str(name))
        return made

    def name(self, group: int, low: int) -> str:
        return f"{self.fit.name}/recording {group} @ {low}"

    def columns(self, group: int, low: int, high: int) -> dict[str, xr.Variable]:
        held = self.layout.recorded(group)
        data = {self.fit.signal: xr.Variable(("time", "unit"), _rows(held.count, low, high), {"units": self.fit.unit}),
                "averages": xr.Variable(("unit", "scale"), self._averages(group, max(low, 0)))}
        for name, values in (("behaviour", held.behaviour), ("state", held.state)):
            if values.shape[1]:
                data[f"{name}_value"] = xr.Variable(("time", name), _rows(values, low, high))
        first = 0
        for dim, labels in self.covariates.items():
            part = held.stimulus[:, first:first + len(labels)]
            data[f"{dim}_value"] = xr.Variable(("time", dim), _rows(part, low, high))
            first += len(labels)
        return data

    def dataset(self, data: Mapping[str, xr.Variable], low: int, attrs: Mapping[str, Any]) -> xr.Dataset:
        """With labels and times, not indexed: indices would be half the cost of a sample."""
        if "labels" not in self.memo:
            labels = {"unit": self.fit.units, "behaviour": self.fit.behaviour.labels, "state": self.fit.states.labels,
                      **self.covariates}
            self.memo["labels"] = {name: xr.Variable((name,), np.array(x, str)) for name, x in labels.items() if x}
        bins = np.arange(low, low + data[self.fit.signal].shape[0])
        when = xr.Variable(("time",), self.layout.start_s + self.fit.bin_s * bins, {"units": "s"})
        coords = xr.Coordinates({**self.memo["labels"], "time": when}, indexes={})
        return xr.Dataset(data, coords, {"domain": "spikes", "dataset": self.fit.name, **attrs})

    @property
    def covariates(self) -> Mapping[str, tuple[str, ...]]:
        """Labels by dimension, in the order of their columns."""
        if "covariates" not in self.memo:
            store = self.layout.store
            self.memo["covariates"] = {dim: store.members(dim) for dim in covariate_dims(store)}
        found: Mapping[str, tuple[str, ...]] = self.memo["covariates"]
        return found

    def floor(self, task: Task, group: int, low: int, high: int, stop: int) -> np.ndarray:
        """``(high − low, ·)`` what the classical predictor says, from bins before `stop`; NaN from there on."""
        if (task, group, stop) not in self.memo:
            held = self.layout.recorded(group)
            counts, stimulus = (torch.from_numpy(x[:stop]) for x in (held.count, held.stimulus))
            self.memo[task, group, stop] = predict_floor(task, self.fit, counts, stimulus).numpy()
        return _rows(self.memo[task, group, stop], low, high)

    def blind_floor(self, task: Task, group: int, low: int, shown: np.ndarray) -> np.ndarray:
        """The same from `BEFORE_FLOOR` bins before the window and what it shows ``(T, N)`` alone."""
        held, first = self.layout.recorded(group), max(low - BEFORE_FLOOR, 0)
        counts = torch.from_numpy(np.concatenate([_rows(held.count, first, max(low, first)), shown]))
        stimulus = torch.from_numpy(_rows(held.stimulus, first, first + len(counts)))
        return np.asarray(predict_floor(task, self.fit, counts, stimulus)[-len(shown):].numpy())

    def _averages(self, group: int, low: int) -> np.ndarray:
        """``(N, S)`` before bin `low`."""
        history = self.fit.history
        counts = torch.from_numpy(self.layout.recorded(group).count)
        if ("averages", group) not in self.memo:
            state, kept = history.start().averages, []
            for first in range(0, len(counts), PIECE):
                before, state = history.averages(history.prepared(counts[first:first + PIECE])[1], state)
                kept.append(before[::CHUNK].contiguous())
            self.memo["averages", group] = torch.cat(kept)
        known = self.memo["averages", group]
        place = min(low // CHUNK, len(known) - 1)
        excess = history.prepared(counts[place * CHUNK:low])[1]
        return np.asarray(history.carry(excess, known[place]).numpy())


def _rows(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Rows low … high − 1, NaN beyond either end."""
    out = np.full((high - low, *values.shape[1:]), np.nan, np.float32)
    first, last = max(low, 0), min(high, len(values))
    if last > first:
        out[first - low:last - low] = values[first:last]
    return out


@dataclass(frozen=True)
class SpikeWindows:
    """The windows of some blocks. Training: any window inside a block (of `labelled` ones, where the task needs
    labels), each batch with one of the tasks and something hidden. Otherwise the one task's windows that tile the
    blocks and score each bin once; they see bins before their block, none after it. floor: samples bring what the
    classical predictor says; an embedding's always do."""

    source: Source
    blocks: tuple[Block, ...]
    tasks: Mapping[Task, WindowConfig]
    masks: MaskConfig
    train: bool = False
    floor: bool = True
    labelled: tuple[Block, ...] = ()

    def __len__(self) -> int:
        return max(sum(self._counts(task)) for task in self.tasks)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        names = list(self.tasks)
        task = names[int(batch_rng.integers(len(names)))] if len(names) > 1 else names[0]
        window = self.tasks[task]
        block, first, scored = self._place(task, index * sum(self._counts(task)) // len(self))
        low, high = first - window.before, first + window.scored + window.after
        data = self.source.columns(block.group, low, high)
        attrs: dict[str, Any] = {"task": task, "causal": int(window.causal),
                                 "source": self.source.name(block.group, low)}
        if not self.train:
            _blind(data, block.stop - low)
            attrs |= {"scored_from": scored - low, "scored_to": first + window.scored - low}
        hide(data, task, self.masks, self.source.fit, rng, self.train)
        if self.floor or task == "embedding":
            data["floor"] = xr.Variable(("time", "target"), self._floor(data, task, block, low))
        return self.source.dataset(data, low, attrs)

    def _floor(self, data: Mapping[str, xr.Variable], task: Task, block: Block, low: int) -> np.ndarray:
        signal = data[self.source.fit.signal].values
        if task == "masked" and not self.source.fit.held_out:
            return self.source.blind_floor(task, block.group, low, np.where(data["hidden"].values, np.nan, signal))
        recorded = len(self.source.layout.recorded(block.group).count)
        stop = recorded if self.tasks[task].causal else block.stop
        return self.source.floor(task, block.group, low, low + len(signal), stop)

    def asked(self) -> list[np.ndarray]:
        """Per block ``(T, N)``: the cells that the windows of an evaluation hide and score, with its random numbers."""
        (window,), place = self.tasks.values(), {id(b): i for i, b in enumerate(self.blocks)}
        units, span = len(self.source.fit.units), window.before + window.scored + window.after
        found = [np.zeros((b.stop - b.start, units), bool) for b in self.blocks]
        for index in range(len(self)):
            block, first, scored = self._place("masked", index)
            mask = _mask(span, units, self.masks, np.random.default_rng([0, index]))
            own = mask[scored - first + window.before:window.before + window.scored]
            found[place[id(block)]][scored - block.start:scored - block.start + len(own)] = own
        return found

    def blocks_of(self, task: Task) -> tuple[Block, ...]:
        return self.labelled if self.train and task in LABELLED else self.blocks

    def _counts(self, task: Task) -> list[int]:
        window = self.tasks[task]
        if self.train:
            span = window.before + window.scored + window.after
            return [max(0, b.stop - b.start - span + 1) for b in self.blocks_of(task)]
        return [-(-(b.stop - b.start) // window.scored) for b in self.blocks]

    def _place(self, task: Task, place: int) -> tuple[Block, int, int]:
        """Block, first bin of the scored stretch, and the first bin of it that no earlier window has scored."""
        counts, window = self._counts(task), self.tasks[task]
        ends = np.cumsum(counts)
        which = int(np.searchsorted(ends, place, side="right"))
        block, within = self.blocks_of(task)[which], place - int(ends[which]) + counts[which]
        if self.train:
            first = block.start + window.before + within
            return block, first, first
        fresh = block.start + within * window.scored
        return block, min(fresh, block.stop - window.scored), fresh


def split_windows(source: Source, split: SplitName, config: SpikesConfig, tasks: Sequence[Task], *,
                  train: bool = False) -> SpikeWindows:
    """Windows of a split for these tasks. Raises `InputError` if no block has room for one."""
    blocks = source.layout.blocks(split)
    windows = SpikeWindows(source, blocks, {task: config.tasks[task] for task in tasks}, config.masks,
                           train or split == "train", not train or config.corrects == "floor",
                           labelled_blocks(blocks, config) if split == "train" else blocks)
    for task, window in windows.tasks.items():
        if not sum(windows._counts(task)):
            longest = max((b.stop - b.start for b in windows.blocks_of(task)), default=0)
            raise InputError(source.layout.store.url, key=f"{split} split", found=f"blocks of at most {longest} bins",
                             expected=f"room for {window.before} + {window.scored} + {window.after} bins",
                             fix=f"shorten domains.spikes.tasks.{task}")
    return windows


def _blind(data: Mapping[str, xr.Variable], stop: int) -> None:
    """Bins after the block are those of another split: not seen."""
    for variable in data.values():
        if variable.dims[0] == "time":
            variable.values[max(stop, 0):] = np.nan


def hide(data: dict[str, xr.Variable], task: Task, masks: MaskConfig, fit: Fitted, rng: np.random.Generator,
         train: bool) -> None:
    """Adds ``hidden (time, unit)``: cells that `masked` asks for; ``dropped (unit)``: units taken as not recorded."""
    steps, units = data[fit.signal].shape
    if task == "masked":
        hidden = np.zeros((steps, units), bool)
        hidden[:, list(fit.held_out)] = True
        if train or not fit.held_out:
            hidden |= _mask(steps, units, masks, rng)
        data["hidden"] = xr.Variable(("time", "unit"), hidden)
    if train and masks.dropout:
        data["dropped"] = xr.Variable(("unit",), rng.random(units) < rng.random() * masks.dropout)


def _mask(steps: int, units: int, masks: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    kinds = [kind for kind in ("time", "unit", "cell") if getattr(masks, kind)]
    if not kinds:
        return np.zeros((steps, units), bool)
    kind = kinds[int(rng.integers(len(kinds)))]
    share = getattr(masks, kind)
    if kind == "cell":
        return np.asarray(rng.random((steps, units)) < share)
    if kind == "unit":
        return np.broadcast_to(rng.random(units) < share, (steps, units))
    spans = rng.random(-(-steps // masks.span) + 1) < share
    shift = int(rng.integers(masks.span))
    return np.broadcast_to(np.repeat(spans, masks.span)[shift:shift + steps, None], (steps, units))
