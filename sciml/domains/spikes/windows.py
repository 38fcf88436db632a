"""Windows of a split: bins that are scored inside its blocks, and what is seen around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.data.schema import Block, SplitName
from sciml.domains.spikes.config import MaskConfig, SpikesConfig, Task, WindowConfig
from sciml.domains.spikes.decoders import RidgeDecoder
from sciml.domains.spikes.fitted import Fitted, labelled_blocks
from sciml.domains.spikes.layout import Layout
from sciml.errors import InputError

STRIDE = 64
PIECE = 64 * STRIDE


class Memo(dict[Any, np.ndarray]):
    """What can be computed again; not pickled, never makes two objects differ."""

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


@dataclass(frozen=True)
class Source:
    """Samples of one store as its data set was fitted: any stretch of any recording, with what came before it."""

    layout: Layout
    fit: Fitted
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def sample(self, group: int, low: int, high: int, *, floor: Task | None = None) -> xr.Dataset:
        """Bins low ≤ t < high; those beyond the recording are not recorded. ``averages (unit, scale)``: of each unit's
        counts before the first bin. floor: add that task's classical prediction."""
        held, fit = self.layout.recorded(group), self.fit
        time = self.layout.start_s + fit.bin_s * np.arange(low, high)
        data: dict[str, Any] = {"count": (("time", "unit"), _rows(held.count, low, high), {"units": "1"}),
                                "averages": (("unit", "scale"), self._averages(group, max(low, 0)))}
        for name, values in (("behaviour", held.behaviour), ("stimulus", held.stimulus)):
            if values.shape[1]:
                data[f"{name}_value"] = ("time", name), _rows(values, low, high)
        if floor is not None:
            data["floor"] = ("time", "target"), _rows(self._floor(group, floor), low, high)
        name = self.layout.store.meta.dataset
        return xr.Dataset(data, coords={
            "time": ("time", time, {"units": "s"}), "unit": list(fit.units), "behaviour": list(fit.behaviour.labels),
            "stimulus": list(fit.stimulus.labels)}, attrs={
                "domain": "spikes", "dataset": name, "source": f"{name}/recording {group} @ {low}"})

    def _averages(self, group: int, low: int) -> np.ndarray:
        """``(N, S)`` before bin `low`."""
        history = self.fit.history
        counts = torch.from_numpy(self.layout.recorded(group).count)
        if ("averages", group) not in self.memo:
            state, kept = history.start().averages, []
            for first in range(0, len(counts), PIECE):
                before, state = history.averages(history.prepared(counts[first:first + PIECE])[1], state)
                kept.append(before[::STRIDE])
            self.memo["averages", group] = torch.cat(kept).numpy()
        known = self.memo["averages", group]
        place = min(low // STRIDE, len(known) - 1)
        state = torch.from_numpy(known[place])
        excess = history.prepared(counts[place * STRIDE:low])[1]
        return np.asarray(history.carry(excess, state).numpy())

    def _floor(self, group: int, task: Task) -> np.ndarray:
        """``(T, N)`` log-rates, or ``(T, K)`` behaviour, of a whole recording."""
        if (task, group) not in self.memo:
            held, model = self.layout.recorded(group), self.fit.floors[task]
            self.memo[task, group] = floor_of(model, self.fit, held.count, held.stimulus)
        return self.memo[task, group]


def floor_of(model: Any, fit: Fitted, count: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """What a classical predictor says of all bins of ``count (T, N)``: ``(T, N)`` log-rates, the mean rate of units it
    doesn't predict; or ``(T, K)`` behaviour."""
    counts = torch.from_numpy(count)
    if isinstance(model, RidgeDecoder):
        return np.asarray(model.predict(counts).float().numpy())
    rates = fit.log_rate.expand(len(counts), -1).clone()
    targets = getattr(model, "targets", range(len(fit.units)))
    if hasattr(model, "covariates") and stimulus.shape[1]:
        rates[:, list(targets)] = model.log_rates(counts, torch.from_numpy(stimulus))
    else:
        rates[:, list(targets)] = model.log_rates(counts)
    return np.asarray(rates.numpy())


def _rows(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Rows low … high − 1, NaN beyond either end."""
    out = np.full((high - low, *values.shape[1:]), np.nan, np.float32)
    first, last = max(low, 0), min(high, len(values))
    if last > first:
        out[first - low:last - low] = values[first:last]
    return out


@dataclass(frozen=True)
class SpikeWindows:
    """The windows of some blocks. Training: any window inside a block, each batch with one of the tasks and something
    hidden. Otherwise the one task's windows that tile the blocks, scored bins of each bin once; they see bins before
    their block, none after it."""

    source: Source
    blocks: tuple[Block, ...]
    tasks: Mapping[Task, WindowConfig]
    masks: MaskConfig
    train: bool = False
    floor: bool = True

    def __len__(self) -> int:
        return max(sum(self._counts(window)) for window in self.tasks.values())

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        names = list(self.tasks)
        task = names[int(batch_rng.integers(len(names)))] if len(names) > 1 else names[0]
        window = self.tasks[task]
        block, first, scored = self._place(window, index * sum(self._counts(window)) // len(self))
        low, high = first - window.before, first + window.scored + window.after
        sample = self.source.sample(block.group, low, high, floor=task if self.floor else None)
        sample.attrs |= {"task": task, "causal": int(window.causal)}
        if not self.train:
            sample = _blind_after(sample, block.stop - low)
            sample.attrs |= {"scored_from": scored - low, "scored_to": first + window.scored - low}
        return hide(sample, task, self.masks, self.source.fit.held_out, rng, self.train)

    def total(self) -> int:
        """Bins that are scored."""
        return sum(b.stop - b.start for b in self.blocks)

    def _counts(self, window: WindowConfig) -> list[int]:
        if self.train:
            span = window.before + window.scored + window.after
            return [max(0, b.stop - b.start - span + 1) for b in self.blocks]
        return [-(-(b.stop - b.start) // window.scored) for b in self.blocks]

    def _place(self, window: WindowConfig, place: int) -> tuple[Block, int, int]:
        """Block, first bin of the scored stretch, and the first bin of it that no earlier window has scored."""
        counts = self._counts(window)
        ends = np.cumsum(counts)
        which = int(np.searchsorted(ends, place, side="right"))
        block, within = self.blocks[which], place - int(ends[which]) + counts[which]
        if self.train:
            first = block.start + window.before + within
            return block, first, first
        fresh = block.start + within * window.scored
        return block, min(fresh, block.stop - window.scored), fresh


def split_windows(source: Source, split: SplitName, config: SpikesConfig, tasks: Sequence[Task], *,
                  train: bool = False) -> SpikeWindows:
    """Windows of a split for these tasks. Raises `InputError` if no block has room for one."""
    blocks = source.layout.blocks(split)
    chosen = {task: config.tasks[task] for task in tasks}
    if split == "train" and tuple(tasks) == ("behaviour",):
        blocks = labelled_blocks(blocks, config)
    windows = SpikeWindows(source, blocks, chosen, config.masks, train or split == "train",
                           not train or config.corrects == "floor")
    for task, window in chosen.items():
        if not sum(windows._counts(window)):
            longest = max((b.stop - b.start for b in blocks), default=0)
            raise InputError(source.layout.store.url, key=f"{split} split", found=f"blocks of at most {longest} bins",
                             expected=f"room for {window.before} + {window.scored} + {window.after} bins",
                             fix=f"shorten domains.spikes.tasks.{task}")
    return windows


def _blind_after(sample: xr.Dataset, stop: int) -> xr.Dataset:
    """Bins after the block are those of another split: not seen."""
    if stop >= sample.sizes["time"]:
        return sample
    blind = {}
    for name in ("count", "behaviour_value", "stimulus_value"):
        if name in sample:
            values = sample[name].values
            values[stop:] = np.nan
            blind[name] = (sample[name].dims, values, sample[name].attrs)
    return sample.assign(blind)


def hide(sample: xr.Dataset, task: Task, masks: MaskConfig, held_out: Sequence[int], rng: np.random.Generator,
         train: bool) -> xr.Dataset:
    """``hidden (time, unit)``: cells that `masked` asks for; ``dropped (unit)``: units taken as not recorded."""
    steps, units = sample["count"].shape
    if task == "masked":
        hidden = np.zeros((steps, units), bool)
        hidden[:, list(held_out)] = True
        if train or not held_out:
            hidden |= _mask(steps, units, masks, rng)
        sample["hidden"] = ("time", "unit"), hidden
    if train and masks.dropout:
        sample["dropped"] = ("unit",), rng.random(units) < rng.random() * masks.dropout
    return sample


def _mask(steps: int, units: int, masks: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    kinds = [kind for kind in ("time", "unit", "cell") if getattr(masks, kind)]
    kind = kinds[int(rng.integers(len(kinds)))]
    share = getattr(masks, kind)
    if kind == "cell":
        return np.asarray(rng.random((steps, units)) < share)
    if kind == "unit":
        return np.broadcast_to(rng.random(units) < share, (steps, units))
    spans = rng.random(-(-steps // masks.span) + 1) < share
    shift = int(rng.integers(masks.span))
    return np.broadcast_to(np.repeat(spans, masks.span)[shift:shift + steps, None], (steps, units))
