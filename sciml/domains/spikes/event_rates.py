"""Intensities of an event model, integrated: expected counts in bins, and rescaled time at events.

In bins, events are compared with models of counts: the intensity of a bin is the hazard after the last event before the
bin's start, whatever happens inside it. Between events the integral is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.spikes.event_windows import Piece
from sciml.domains.spikes.events import HEAD, Events
from sciml.domains.spikes.hazard import exposure
from sciml.domains.spikes.layout import Layout
from sciml.tokens import Outputs, TokenBatch

Forward = Callable[[TokenBatch], Outputs]


@dataclass(frozen=True)
class Hazards:
    """Log-hazards ``(n, N, J)`` in log of 1/s after each of n events at `time` (s), which lie in `piece`, but for the
    first, which is the last before it if there is one."""

    piece: Piece
    time: Tensor
    unit: Tensor
    log_hazard: Tensor


def hazards(adapter: Events, forward: Forward, store: Store, split: SplitName) -> Iterator[Hazards]:
    """Of every stretch of a split; `forward` is that of a `Predictor`."""
    windows, rng = adapter.open(store, split), np.random.default_rng(0)
    for piece in windows.pieces:
        parts = []
        one = replace(windows, pieces=(piece,))
        for index in range(len(one)):
            sample = one.draw(index, rng, rng)
            first = int(sample.attrs["scored_from"])
            with torch.no_grad():
                output = forward(adapter.encode(sample))[HEAD][0].double()
            floor = torch.tensor(sample["floor"].values, dtype=torch.float64)
            parts.append((floor[:, :, None] + output)[first:first + one.scored])
        held = windows.source.layout.recorded(piece.group)
        assert held.spike_time is not None
        assert held.spike_unit is not None
        rows = slice(piece.start, piece.high)
        yield Hazards(piece, torch.from_numpy(held.spike_time[rows].copy()),
                      torch.from_numpy(held.spike_unit[rows].copy()), torch.cat(parts)[:piece.rows])


def event_rates(adapter: Events, forward: Forward, store: Store, split: SplitName,
                bin_s: float | None = None) -> dict[int, np.ndarray]:
    """Recording → ``(T, N)`` expected counts per bin of bin_s (null: the store's), NaN outside the split and where the
    recording has shown no event yet."""
    layout, edges = Layout.of(store, bin_s), adapter.edges.double()
    rates: dict[int, np.ndarray] = {}
    for found in hazards(adapter, forward, store, split):
        group = found.piece.group
        if group not in rates:
            rates[group] = np.full(layout.recorded(group).count.shape, np.nan)
        bins = _bins(layout, found.piece)
        starts = layout.start_s + bins * layout.bin_s
        row = np.searchsorted((found.time.numpy() - layout.start_s) / layout.bin_s + 1e-9, bins) - 1
        bins, starts, row = bins[row >= 0], starts[row >= 0], row[row >= 0]
        since = torch.from_numpy(starts) - found.time[row]
        spent = exposure(since.clamp_min(0), since + layout.bin_s, edges)  # (bins, J)
        for part in torch.arange(len(row)).split(4096):
            made = (found.log_hazard[row[part.numpy()]].exp() * spent[part, None]).sum(-1)
            rates[group][bins[part.numpy()]] = made.numpy()
    return rates


def _bins(layout: Layout, piece: Piece) -> np.ndarray:
    """Whole bins of a layout that lie in a piece."""
    first = np.ceil((piece.begin_s - layout.start_s) / layout.bin_s - 1e-6)
    stop = np.floor((piece.stop_s - layout.start_s) / layout.bin_s + 1e-6)
    return np.arange(int(first), int(stop))


def rescaled_intervals(adapter: Events, forward: Forward, store: Store, split: SplitName) -> list[np.ndarray]:
    """Per unit, the intervals between its events measured in its own integrated intensity: independent and exponential
    with mean 1 if the model is right (`sciml.domains.spikes.rescaling`). The first of each stretch counts from where
    scoring begins."""
    edges = adapter.edges.double()
    found: list[list[np.ndarray]] = []
    for each in hazards(adapter, forward, store, split):
        begin = torch.tensor(each.piece.begin_s, dtype=torch.float64)
        low = (begin - each.time[:-1]).clamp_min(0)
        spent = exposure(low, each.time.diff(), edges)  # (n − 1, J)
        total = torch.stack([(h.exp() * s).sum(-1) for h, s in zip(each.log_hazard[:-1], spent)]).cumsum(0).numpy()
        unit = each.unit[1:].numpy()
        found = found or [[] for _ in range(total.shape[1])]
        for n, kept in enumerate(found):
            kept.append(np.diff(total[unit == n, n], prepend=0.0))
    return [np.concatenate(kept) for kept in found]
