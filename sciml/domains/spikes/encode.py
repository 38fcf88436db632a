"""From a window of counts or traces to a `TokenBatch`: the same path for samples and for the steps of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.domains.spikes.config import EmbeddingConfig, LagConfig, Task
from sciml.domains.spikes.fitted import Columns, Fitted
from sciml.domains.spikes.floors import predict_floor
from sciml.domains.spikes.history import History, HistoryState
from sciml.errors import InputError
from sciml.tokens import Conditions, Target, TokenBatch, identity, time

TRACE_HEADS: Mapping[str, str] = {"next": "next_trace", "masked": "trace"}
COUNT_HEADS: Mapping[str, str] = {"next": "next", "masked": "rate"}
DISPERSION = "dispersion"
"""Head of the negative binomial's dispersions, in log, beside that of the rates."""


def channel(fit: Fitted) -> str:
    return f"spikes/{fit.signal}"


def head_of(fit: Fitted, task: str) -> str:
    """Rates and traces have heads of their own, as their outputs live in other link spaces."""
    return (COUNT_HEADS if fit.signal == "count" else TRACE_HEADS).get(task, task)


@dataclass(frozen=True)
class Frame:
    """What is common to all data sets: the reference time (s) of coordinates, time constants of the averages, names of
    behaviours, states and covariates in the order of the spec, whether a floor is corrected, the embedding, and whether
    counts have dispersions."""

    reference_s: float
    slow_s: tuple[float, ...]
    lags: LagConfig
    behaviours: tuple[str, ...]
    states: tuple[str, ...]
    stimuli: tuple[str, ...]
    corrects_floor: bool
    embedding: EmbeddingConfig
    dispersed: bool

    @property
    def lattice_conditions(self) -> tuple[str, ...]:
        return (*self.own_conditions, *self.stimuli)

    @property
    def own_conditions(self) -> tuple[str, ...]:
        """Those that every unit has of its own."""
        later = (f"later_{tau:g}s" for tau in self.slow_s if self.lags.averages)
        return (*(f"slow_{tau:g}s" for tau in self.slow_s), *later, *(f"count_{k:+d}" for k in self.offsets))

    @property
    def offsets(self) -> tuple[int, ...]:
        return (*range(-self.lags.before, 0), *range(1, self.lags.after + 1))


@dataclass(frozen=True)
class Window:
    """Counts ``(B, T, N)`` with NaN where not seen; before them, averages ``(B, N, S)`` and the standardised counts of
    recent bins ``(B, L, N)``; stimulus ``(B, T, P)``, all covariates in their own units; first: index of the first bin
    on the clock of coordinates; members: places among the data set's units."""

    counts: Tensor
    past: HistoryState
    stimulus: Tensor
    first: int
    causal: bool
    members: np.ndarray
    sources: tuple[str, ...]


def inputs(fit: Fitted, frame: Frame, window: Window,
           targets: Mapping[str, Target]) -> tuple[TokenBatch, HistoryState]:
    """The batch, and what of its past the bin after the last one needs. Cell t holds the count of bin t, standardised,
    its neighbours' and the averages up to and with it."""
    history, dtype = fit.history.of(window.members), window.counts.dtype
    z, excess = history.prepared(window.counts)
    averages = history.scan(excess, window.past.averages)[:, 1:]
    slow, last = history.logs(averages).permute(3, 0, 2, 1), averages[:, -1]  # (S, B, N, T), (B, N, S)
    lattice = {f"slow_{tau:g}s": slow[i] for i, tau in enumerate(frame.slow_s)}
    if frame.lags.averages:
        lattice |= _later(history, frame, excess, window.causal)
    recent = torch.cat([window.past.recent.to(z), z], 1) if window.past.recent.shape[1] else z
    if frame.offsets:
        longer = torch.nn.functional.pad(recent, (0, 0, frame.lags.before, frame.lags.after))
        place = frame.lags.before + window.past.recent.shape[1]
        for k in frame.offsets:
            shifted = longer[:, place + k:place + k + z.shape[1]].transpose(1, 2)
            lattice[f"count_{k:+d}"] = torch.zeros_like(shifted) if window.causal and k > 0 else shifted
    if frame.stimuli:
        mean, std = (torch.as_tensor(x, dtype=dtype) for x in (fit.stimulus.mean, fit.stimulus.std))
        known = ((window.stimulus - mean) / std).nan_to_num(0.0)
        none, column = torch.zeros_like(z[:, None, :, 0]), {name: i for i, name in enumerate(fit.stimulus.labels)}
        lattice |= {name: known[:, None, :, column[name]] if name in column else none for name in frame.stimuli}
    steps = window.counts.shape[1]
    coord = (torch.arange(steps, dtype=torch.float64) + window.first) * (fit.bin_s / frame.reference_s)
    axes = (identity("unit", torch.from_numpy(window.members), f"{fit.name}/unit"),
            time("time", coord.to(dtype), unit="s", causal=window.causal))
    batch = TokenBatch(
        domain="spikes", dataset=fit.name, values=z.transpose(1, 2)[..., None], channels=(channel(fit),), axes=axes,
        observed=torch.isfinite(window.counts).transpose(1, 2)[..., None], conditions=Conditions(lattice=lattice),
        targets=targets, num_segments=len(z), sources=window.sources)
    return batch, HistoryState(recent[:, recent.shape[1] - min(frame.lags.before, recent.shape[1]):], last)


def _later(history: History, frame: Frame, excess: Tensor, causal: bool) -> dict[str, Tensor]:
    """Averages ``(B, N, T)`` of the window's bins after each, from its end on; 0 where time is causal."""
    start = excess.new_zeros(len(excess), excess.shape[-1], len(frame.slow_s))
    later = history.logs(history.scan(excess.flip(1), start)[:, :-1]).flip(1).permute(3, 0, 2, 1)  # (S, B, N, T)
    return {f"later_{tau:g}s": torch.zeros_like(later[i]) if causal else later[i] for i, tau in enumerate(frame.slow_s)}


def rate_target(fit: Fitted, members: np.ndarray, count: Tensor, mask: Tensor,
                log_rate: Tensor | None = None) -> Target:
    """Of counts (or traces) ``(B, T, N)`` where ``mask`` and known; log_rate ``(B, T, N)``: what is corrected (default,
    and where it isn't known: the mean). Traces are standardised."""
    known, place = torch.isfinite(count) & mask, torch.from_numpy(members)
    base = (fit.log_rate[place].to(count) if fit.signal == "count" else count.new_zeros(())).expand(count.shape)
    if fit.signal == "trace":
        mean, spread = (x[place].to(count) for x in (fit.history.centre, fit.history.spread))
        count, log_rate = (count - mean) / spread, None if log_rate is None else (log_rate - mean) / spread
    if log_rate is not None:
        base = torch.where(torch.isfinite(log_rate), log_rate, base)
    lattice = [t.transpose(1, 2)[..., None] for t in (count.nan_to_num(0.0), known, base)]
    return Target(lattice[0], lattice[1], lattice[2], torch.ones_like(lattice[0]))


def rate_targets(fit: Fitted, frame: Frame, head: str, target: Target, members: np.ndarray) -> dict[str, Target]:
    """By head: the target of the rates, and the dispersions beside them, whose truth would be none. Raises `InputError`
    if they were not fitted."""
    if not frame.dispersed or fit.signal == "trace":
        return {head: target}
    if fit.dispersion is None:
        raise InputError(fit.name, key="domains.spikes.likelihood", found="a data set fitted without dispersions",
                         expected="their fit", fix="fit the data set under this likelihood first (sciml finetune)")
    log = torch.from_numpy(fit.dispersion[members]).log().to(target.value)[None, :, None, None]
    none = torch.zeros_like(target.value)
    return {head: target, DISPERSION: Target(none, target.mask, log.expand(none.shape), target.scale)}


def label_target(own: Columns, names: Sequence[str], values: Tensor, mask: Tensor, base: Tensor) -> Target:
    """Of ``(B, T, K)`` columns that a data set has, in the place of their names among all; others don't count. A bin
    counts if all its columns are known."""
    place = [names.index(name) for name in own.labels]
    shape = (len(values), 1, values.shape[1], len(names))
    value, known, baseline = (values.new_zeros(shape, dtype=kind) for kind in (values.dtype, torch.bool, values.dtype))
    value[:, 0, :, place] = values.nan_to_num(0.0)
    known[:, 0, :, place] = torch.isfinite(values) & mask[..., None]
    baseline[:, 0, :, place] = base.nan_to_num(0.0).expand(values.shape)
    return Target(value, known, baseline, torch.ones_like(value))


def behaviour_target(fit: Fitted, frame: Frame, values: Tensor, mask: Tensor, floor: Tensor | None = None) -> Target:
    """Of behaviour ``(B, T, K)`` in its own units, standardised."""
    mean, std = (torch.as_tensor(x, dtype=values.dtype) for x in (fit.behaviour.mean, fit.behaviour.std))
    base = values.new_zeros(()) if floor is None else (floor - mean) / std
    return label_target(fit.behaviour, frame.behaviours, (values - mean) / std, mask, base)


def state_target(fit: Fitted, frame: Frame, values: Tensor, mask: Tensor, floor: Tensor | None = None) -> Target:
    """Of shares of states ``(B, T, C)``, whose log-probabilities (up to a constant) correct the logs of the training
    shares."""
    known = torch.isfinite(values).all(-1, keepdim=True)
    shares = torch.as_tensor(fit.states.mean, dtype=values.dtype).clamp_min(1e-3).log()
    return label_target(fit.states, frame.states, torch.where(known, values, torch.nan), mask,
                        shares if floor is None else floor)


def embedding_target(fit: Fitted, frame: Frame, values: Tensor, mask: Tensor, floor: Tensor) -> Target:
    """Behaviour ``(B, T, K)`` as a place in the embedding: standardised, over its width and √K, zero along further
    axes. Bins count of which all components are known. What is corrected is the place of the decoded behaviour: were
    all bins at one place, no gradient would lead away from it."""
    mean, std = (torch.as_tensor(x, dtype=values.dtype) for x in (fit.behaviour.mean, fit.behaviour.std))
    further = (0, frame.embedding.dims - values.shape[-1])
    scale = std * frame.embedding.width * len(mean) ** 0.5
    value, base = (torch.nn.functional.pad((x - mean) / scale, further)[:, None] for x in (values, floor))
    known = (torch.isfinite(values).all(-1) & mask)[:, None, :, None].expand(value.shape)
    value = torch.where(known, value, 0.0)
    return Target(value, known, base.nan_to_num(0.0).expand(value.shape), torch.ones_like(value))


def window_of(fit: Fitted, frame: Frame, sample: xr.Dataset) -> Window:
    """A sample's counts with what is hidden or dropped made unknown. Raises `InputError` on other units or bins."""
    where, held = sample.attrs.get("source", "sample"), sample.variables
    array = held.get(fit.signal)
    if array is None or array.dims != ("time", "unit"):
        raise InputError(where, key=fit.signal, found="none" if array is None else str(array.dims),
                         expected=f"a variable {fit.signal} (time, unit)",
                         fix="name the variable and its dimensions so")
    members = fit.members([str(u) for u in held["unit"].values], where=where)
    _check_bins(fit, sample, where)
    counts = torch.tensor(array.values, dtype=torch.float32)
    averages = (torch.tensor(held["averages"].values, dtype=torch.float32) if "averages" in held
                else fit.history.of(members).start().averages)
    if "hidden" in held:
        hidden = torch.from_numpy(held["hidden"].values)
        counts = torch.where(hidden, torch.nan, counts)
        averages = torch.where(hidden.all(0)[:, None], 0.0, averages)
    if "dropped" in held:
        dropped = torch.from_numpy(held["dropped"].values)
        counts = torch.where(dropped, torch.nan, counts)
        averages = torch.where(dropped[:, None], 0.0, averages)
    stimulus = covariates(sample, fit.stimulus.labels, where)
    past = HistoryState(counts.new_zeros(1, 0, len(members)), averages[None])
    return Window(counts[None], past, stimulus[None], 0, bool(sample.attrs.get("causal", 1)), members,
                  (str(where),))


def _check_bins(fit: Fitted, sample: xr.Dataset, where: object) -> None:
    if "time" in sample.variables and len(sample.variables["time"]) > 1:
        steps = np.diff(sample.variables["time"].values.astype(np.float64))
        if np.abs(steps / fit.bin_s - 1).max() > 1e-3:
            raise InputError(where, key="time", found=f"bins of {float(np.median(steps)):g} s, or uneven ones",
                             expected=f"bins of {fit.bin_s:g} s, as fitted", fix="bin the spikes at that width")


def columns(sample: xr.Dataset, name: str, labels: Sequence[str], where: object) -> Tensor:
    """``(T, K)`` of the variable ``<name>_value`` by its labels; NaN where the sample doesn't have it."""
    steps, variable = sample.sizes["time"], f"{name}_value"
    if variable not in sample.variables:
        return torch.full((steps, len(labels)), torch.nan)
    found = [str(label) for label in sample.variables[name].values] if name in sample.variables else []
    array = sample.variables[variable].transpose("time", name)
    unknown = [label for label in found if label not in labels]
    if unknown or len(found) != array.shape[1]:
        raise InputError(where, key=name, found=", ".join(unknown) or "no labels",
                         expected=f"some of {', '.join(labels)}",
                         fix="rename them, or fit the data set first (sciml finetune)")
    out = torch.full((steps, len(labels)), torch.nan)
    out[:, [labels.index(label) for label in found]] = torch.tensor(array.values, dtype=torch.float32)
    return out


def covariates(sample: xr.Dataset, labels: Sequence[str], where: object) -> Tensor:
    """``(T, P)`` of all variables ``<dim>_value (time, <dim>)`` whose columns are named ``<dim>_<label>``."""
    out = torch.full((sample.sizes["time"], len(labels)), torch.nan)
    if not labels:
        return out
    for name in map(str, sample.data_vars):
        dim = name.removesuffix("_value")
        if dim in (name, "behaviour", "state") or dim not in sample.variables:
            continue
        own = [label.removeprefix(f"{dim}_") for label in labels if label.startswith(f"{dim}_")]
        out[:, [labels.index(f"{dim}_{label}") for label in own]] = columns(sample, dim, own, where)
    return out


def encode_window(fit: Fitted, frame: Frame, sample: xr.Dataset, task: Task) -> TokenBatch:
    """A sample as a batch of one with the target of `task`. The next bin is asked of every bin but the last. Raises
    `InputError` on a sample without bins for the task."""
    window, where = window_of(fit, frame, sample), sample.attrs.get("source", "sample")
    steps = window.counts.shape[1]
    if steps <= (task == "next"):
        raise InputError(where, key="time", found=f"{steps} bins", expected=f"more, for the task {task}",
                         fix="give a longer sample")
    inside = torch.zeros(steps, dtype=torch.bool)
    inside[int(sample.attrs.get("scored_from", 0)):int(sample.attrs.get("scored_to", steps))] = True
    floor = _floor(fit, sample, task)[None] if frame.corrects_floor or task == "embedding" else None
    head = head_of(fit, task)
    if task in ("behaviour", "state", "embedding"):
        name, own = ("state", fit.states) if task == "state" else ("behaviour", fit.behaviour)
        values = columns(sample, name, own.labels, where)[None]
        make: Any = {"behaviour": behaviour_target, "state": state_target, "embedding": embedding_target}[task]
        return inputs(fit, frame, window, {head: make(fit, frame, values, inside[None], floor)})[0]
    truth = torch.tensor(sample.variables[fit.signal].values, dtype=torch.float32)
    log_rate = None if floor is None else floor[..., window.members]
    mask = inside[:, None].expand(truth.shape)
    if task == "masked":
        hidden = sample["hidden"].values if "hidden" in sample else ~np.isfinite(truth.numpy())
        mask = mask & torch.from_numpy(hidden)
        target = rate_target(fit, window.members, truth[None], mask[None], log_rate)
        return inputs(fit, frame, window, rate_targets(fit, frame, head, target, window.members))[0]
    later = None if log_rate is None else log_rate[:, 1:]
    target = rate_target(fit, window.members, truth[None, 1:], mask[None, 1:], later)
    known = Window(window.counts[:, :-1], window.past, window.stimulus[:, :-1], 0, True, window.members,
                   window.sources)
    return inputs(fit, frame, known, rate_targets(fit, frame, head, target, window.members))[0]


def _floor(fit: Fitted, sample: xr.Dataset, task: Task) -> Tensor:
    """``(T, ·)`` what the classical predictor says; from what the sample shows if it doesn't bring it."""
    if "floor" in sample.variables:
        return torch.tensor(sample.variables["floor"].values, dtype=torch.float32)
    count = torch.full((sample.sizes["time"], len(fit.units)), torch.nan)
    place = fit.members([str(u) for u in sample["unit"].values], where="sample")
    shown = sample[fit.signal].where(~sample["hidden"]) if "hidden" in sample else sample[fit.signal]
    count[:, place] = torch.tensor(shown.values, dtype=torch.float32)
    return predict_floor(task, fit, count, covariates(sample, fit.stimulus.labels, "sample"))
