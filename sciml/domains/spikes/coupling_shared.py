"""Shared input as a trained operator sees it: what it predicts of each unit from all others, before and after.

A few slots read the whole population, so what is predicted of a unit is what it has in common with many, not what one
source does to it: the low-rank part of a model whose sparse part is `sciml.domains.spikes.coupling_links`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.windows import Source, SpikeWindows
from sciml.errors import InputError
from sciml.packing import collate
from sciml.tokens import Outputs, TokenBatch

FOLDS, TILE = 8, 512
"""Parts of the units that are hidden in turn; bins that are asked for at once."""
SCALES = np.linspace(0.0, 1.2, 25)

Forward = Callable[[TokenBatch], Outputs]


def reads_shared_input(adapter: Binned) -> bool:
    """Whether the model is one that `shared_log_rate` can ask: slots, and hidden units from both sides of time."""
    task = adapter.config.tasks.get("masked")
    return task is not None and not task.causal and adapter.config.slots > 0


def shared_log_rate(forward: Forward, adapter: Binned, windows: SpikeWindows, groups: Sequence[int],
                    bin_s: float) -> list[np.ndarray]:
    """``(time, unit)`` per recording in bins of `bin_s`, float32: log-rate over each unit's mean, its counts hidden.

    What a short recording teaches is too bold: it is scaled by one factor, the likeliest on the bins of validation.
    Raises `InputError` unless the model predicts hidden units from both sides through slots, on traces, on bins of
    another clock, and if there are no bins of validation.
    """
    if not reads_shared_input(adapter):
        raise InputError("checkpoint", key="tasks.masked, slots", found=f"{', '.join(adapter.config.tasks)}, "
                         f"slots: {adapter.config.slots}", expected="tasks.masked with bins after, slots ≥ 1",
                         fix="train a recipe with domains.spikes.tasks.masked, masks.unit and slots")
    source = windows.source
    if source.fit.signal != "count":
        raise InputError("connectivity", key="signal", found=source.fit.signal, expected="spike counts",
                         fix="give a store of spikes: links are read from their times")
    ratio = source.fit.bin_s / bin_s
    if ratio < 1 - 1e-6 or abs(ratio - round(ratio)) > 1e-6 * ratio:
        raise InputError("connectivity", key="bin_s", found=f"{1e3 * bin_s:g} ms",
                         expected=f"the model's {1e3 * source.fit.bin_s:g} ms divided by a whole number",
                         fix="train on bins that are a multiple of the store's")
    found = {group: _predicted(forward, adapter, source, group) for group in groups}
    scale = _likeliest(source, found)
    store = source.layout.store
    steps = round(len(store.coord("time")) * (store.meta.dt or bin_s) / bin_s)
    return [_fine(scale * rate, round(ratio), steps) for rate in found.values()]


def _predicted(forward: Forward, adapter: Binned, source: Source, group: int) -> np.ndarray:
    """``(time, unit)`` of a whole recording, tile by tile, a part of the units hidden at a time."""
    own = adapter.config.tasks["masked"]
    steps, units = source.layout.recorded(group).count.shape
    fold = np.random.default_rng(0).permutation(units) % min(FOLDS, units)
    made, base = np.zeros((steps, units), np.float32), source.fit.log_rate.numpy()
    for low in range(0, steps, TILE):
        high = min(low + TILE, steps)
        sample = source.sample(group, low - own.before, high + own.after)
        hidden = [np.broadcast_to(fold == k, (sample.sizes["time"], units)).copy() for k in range(fold.max() + 1)]
        batch = collate([adapter.encode(sample.assign(hidden=(("time", "unit"), h)).assign_attrs(
            task="masked", causal=0)) for h in hidden])
        head, target = next(iter(batch.targets.items()))
        said = target.predict(forward(batch)[head])[..., own.before:own.before + high - low, 0].numpy()
        for k, rate in enumerate(said):
            made[low:high, fold == k] = rate[fold == k].T - base[fold == k]
    return made


def _likeliest(source: Source, found: dict[int, np.ndarray]) -> float:
    """The factor with the greatest Poisson likelihood of the bins of validation, each unit at its best mean rate."""
    blocks = [b for b in source.layout.blocks("validation") if b.group in found]
    if not blocks:
        raise InputError(source.layout.store.url, key="validation", found="no bin", expected="bins to scale on",
                         fix="build the store with a share for validation")
    score = np.zeros(len(SCALES))
    rate = np.concatenate([found[b.group][b.start:b.stop] for b in blocks]).astype(np.float64)
    count = np.concatenate([source.layout.recorded(b.group).count[b.start:b.stop] for b in blocks])
    known, spikes = np.isfinite(count), np.nan_to_num(count)
    for i, scale in enumerate(SCALES):
        mean = (np.exp(scale * rate) * known).sum(0) / np.maximum(known.sum(0), 1)
        score[i] = scale * (spikes * rate).sum() - (spikes.sum(0) * np.log(np.maximum(mean, 1e-9))).sum()
    return float(SCALES[score.argmax()])


def _fine(rate: np.ndarray, ratio: int, steps: int) -> np.ndarray:
    """Every bin as `ratio` of them; those at the end that fill no bin of the model are as the last one."""
    fine = np.repeat(rate, ratio, axis=0)
    return np.pad(fine, ((0, steps - len(fine)), (0, 0)), mode="edge")
