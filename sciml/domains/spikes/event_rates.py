"""Intensities of an event model, integrated: expected counts in bins, and rescaled time at events.

In bins, events are compared with models of counts: the intensity of a bin is the hazard after the last event before the
bin's start, whatever happens inside it. Between events the integral is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.spikes.event_exposure import ROUNDING, After
from sciml.domains.spikes.event_windows import Piece
from sciml.domains.spikes.events import HEAD, Events
from sciml.domains.spikes.layout import Layout
from sciml.tokens import Outputs, TokenBatch

Forward = Callable[[TokenBatch], Outputs]
PART = 2048
"""Waits that are integrated at once."""


class Told(NamedTuple):
    """After each of n events, which lie in `piece` but for the first, the last before it if there is one: what the
    floor says, the outputs ``(n, N, J)``, and which units they were of ``(n,)``."""

    piece: Piece
    after: After
    output: Tensor
    unit: Tensor

    def integrated(self, adapter: Events, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``(M, N)`` expected events from low to high seconds ``(M,)`` after the events `rows`."""
        made = [adapter.next_event.integrated(self.after.at(rows[part]), self.output[rows[part]].double(), low[part],
                                              high[part])
                for part in torch.arange(len(rows)).split(PART)]
        return torch.cat(made) if made else low.new_zeros(0, self.output.shape[1])


def told(adapter: Events, forward: Forward, store: Store, split: SplitName) -> Iterator[Told]:
    """Of every stretch of a split; `forward` is that of a `Predictor`."""
    windows, rng = adapter.open(store, split), np.random.default_rng(0)
    for piece in windows.pieces:
        parts = []
        one = replace(windows, pieces=(piece,))
        for index in range(len(one)):
            sample = one.draw(index, rng, rng)
            first = int(sample.attrs["scored_from"])
            with torch.no_grad():
                parts.append(forward(adapter.encode(sample))[HEAD][0, first:first + one.scored])
        unit = windows.source.layout.recorded(piece.group).spike_unit
        assert unit is not None
        yield Told(piece, windows.source.after(piece.group, piece.start, piece.high), torch.cat(parts)[:piece.rows],
                   torch.from_numpy(unit[piece.start:piece.high].copy()))


def event_rates(adapter: Events, forward: Forward, store: Store, split: SplitName,
                bin_s: float | None = None) -> dict[int, np.ndarray]:
    """Recording → ``(T, N)`` expected counts per bin of bin_s (null: the store's), NaN outside the split and where the
    recording has shown no event yet."""
    layout = Layout.of(store, bin_s)
    rates: dict[int, np.ndarray] = {}
    for found in told(adapter, forward, store, split):
        group, time = found.piece.group, found.after.time
        if group not in rates:
            rates[group] = np.full(layout.recorded(group).count.shape, np.nan)
        bins = _bins(layout, found.piece)
        row = np.searchsorted((time.numpy() - layout.start_s) / layout.bin_s + ROUNDING, bins) - 1
        bins, rows = bins[row >= 0], torch.from_numpy(row[row >= 0])
        since = (torch.from_numpy(layout.start_s + bins * layout.bin_s) - time[rows]).clamp_min(0)
        rates[group][bins] = found.integrated(adapter, rows, since, since + layout.bin_s).numpy()
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
    made: list[list[np.ndarray]] = []
    for found in told(adapter, forward, store, split):
        time = found.after.time
        low, high = (found.piece.begin_s - time[:-1]).clamp_min(0), time.diff()
        rows = torch.arange(len(high))
        total = found.integrated(adapter, rows, torch.minimum(low, high), high).cumsum(0).numpy()
        unit = found.unit[1:].numpy()
        made = made or [[] for _ in range(total.shape[1])]
        for n, kept in enumerate(made):
            kept.append(np.diff(total[unit == n, n], prepend=0.0))
    return [np.concatenate(kept) for kept in made]
