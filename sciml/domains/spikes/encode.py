"""From a window of counts to a `TokenBatch`: the same path for samples and for the steps of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.domains.spikes.config import LagConfig
from sciml.domains.spikes.fitted import Fitted
from sciml.domains.spikes.history import HistoryState
from sciml.domains.spikes.windows import floor_of
from sciml.errors import InputError
from sciml.tokens import Conditions, Target, TokenBatch, identity, time

CHANNEL = "spikes/count"
HEADS: Mapping[str, str] = {"next": "next", "masked": "rate", "behaviour": "behaviour"}


@dataclass(frozen=True)
class Frame:
    """What is common to all data sets: the reference time (s) of coordinates, time constants of the averages, names of
    behaviour and stimulus in the order of the spec, and whether a floor is corrected."""

    reference_s: float
    slow_s: tuple[float, ...]
    lags: LagConfig
    behaviours: tuple[str, ...]
    stimuli: tuple[str, ...]
    corrects_floor: bool

    @property
    def lattice_conditions(self) -> tuple[str, ...]:
        return (*self.own_conditions, *(f"stimulus_{name}" for name in self.stimuli))

    @property
    def own_conditions(self) -> tuple[str, ...]:
        """Those that every unit has of its own."""
        return (*(f"slow_{tau:g}s" for tau in self.slow_s), *(f"count_{k:+d}" for k in self.offsets))

    @property
    def offsets(self) -> tuple[int, ...]:
        return (*range(-self.lags.before, 0), *range(1, self.lags.after + 1))


@dataclass(frozen=True)
class Window:
    """Counts ``(B, T, N)`` with NaN where not seen; before them, averages ``(B, N, S)`` and the standardised counts of
    recent bins ``(B, L, N)``; stimulus ``(B, T, P)`` in its own units; first: index of the first bin on the clock of
    coordinates; members: places among the data set's units."""

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
    recent = torch.cat([window.past.recent.to(z), z], 1)
    longer = torch.nn.functional.pad(recent, (0, 0, frame.lags.before, frame.lags.after))
    place = frame.lags.before + window.past.recent.shape[1]
    for k in frame.offsets:
        shifted = longer[:, place + k:place + k + z.shape[1]].transpose(1, 2)
        lattice[f"count_{k:+d}"] = torch.zeros_like(shifted) if window.causal and k > 0 else shifted
    lattice |= {name: torch.zeros_like(z[:, None, :, 0]) for name in frame.lattice_conditions if name not in lattice}
    if fit.stimulus.labels:
        mean, std = (torch.as_tensor(x, dtype=dtype) for x in (fit.stimulus.mean, fit.stimulus.std))
        known = ((window.stimulus - mean) / std).nan_to_num(0.0)
        lattice |= {f"stimulus_{name}": known[:, None, :, i] for i, name in enumerate(fit.stimulus.labels)}
    steps = window.counts.shape[1]
    coord = (torch.arange(steps, dtype=torch.float64) + window.first) * (fit.bin_s / frame.reference_s)
    axes = (identity("unit", torch.from_numpy(window.members), f"{fit.name}/unit"),
            time("time", coord.to(dtype), unit="s", causal=window.causal))
    batch = TokenBatch(
        domain="spikes", dataset=fit.name, values=z.transpose(1, 2)[..., None], channels=(CHANNEL,), axes=axes,
        observed=torch.isfinite(window.counts).transpose(1, 2)[..., None], conditions=Conditions(lattice=lattice),
        targets=targets, num_segments=len(z), sources=window.sources)
    return batch, HistoryState(recent[:, recent.shape[1] - min(frame.lags.before, recent.shape[1]):], last)


def rate_target(fit: Fitted, members: np.ndarray, count: Tensor, mask: Tensor, log_rate: Tensor | None = None) -> Target:
    """Of counts ``(B, T, N)`` where ``mask`` and known; log_rate ``(B, T, N)``: what is corrected (default: the mean)."""
    known = torch.isfinite(count) & mask
    mean = fit.log_rate[torch.from_numpy(members)].to(count).expand(count.shape) if log_rate is None else log_rate
    lattice = [t.transpose(1, 2)[..., None] for t in (count.nan_to_num(0.0), known, mean)]
    return Target(lattice[0], lattice[1], lattice[2], torch.ones_like(lattice[0]))


def behaviour_target(fit: Fitted, frame: Frame, values: Tensor, mask: Tensor, floor: Tensor | None = None) -> Target:
    """Of behaviour ``(B, T, K)`` in its own units, standardised; names that the data set lacks don't count."""
    place = [frame.behaviours.index(name) for name in fit.behaviour.labels]
    mean, std = (torch.as_tensor(x, dtype=values.dtype) for x in (fit.behaviour.mean, fit.behaviour.std))
    value = values.new_zeros(len(values), 1, values.shape[1], len(frame.behaviours))
    known, base = torch.zeros_like(value, dtype=torch.bool), torch.zeros_like(value)
    scaled = (values - mean) / std
    value[:, 0, :, place] = scaled.nan_to_num(0.0)
    known[:, 0, :, place] = torch.isfinite(scaled) & mask[..., None]
    if floor is not None:
        base[:, 0, :, place] = (floor - mean) / std
    return Target(value, known, base, torch.ones_like(value))


def window_of(fit: Fitted, frame: Frame, sample: xr.Dataset) -> Window:
    """A sample's counts with what is hidden or dropped made unknown. Raises `InputError` on other units or bins."""
    where = sample.attrs.get("source", "sample")
    array = sample.get("count")
    if array is None or array.dims != ("time", "unit"):
        raise InputError(where, key="count", found="none" if array is None else str(array.dims),
                         expected="a variable count (time, unit)", fix="name the variable and its dimensions so")
    members = fit.members([str(u) for u in sample["unit"].values], where=where)
    _check_bins(fit, sample, where)
    counts = torch.tensor(array.values, dtype=torch.float32)
    averages = (torch.tensor(sample["averages"].values, dtype=torch.float32) if "averages" in sample
                else fit.history.of(members).start().averages)
    if "hidden" in sample:
        hidden = torch.from_numpy(sample["hidden"].values)
        counts = torch.where(hidden, torch.nan, counts)
        averages = torch.where(hidden.all(0)[:, None], 0.0, averages)
    if "dropped" in sample:
        dropped = torch.from_numpy(sample["dropped"].values)
        counts = torch.where(dropped, torch.nan, counts)
        averages = torch.where(dropped[:, None], 0.0, averages)
    stimulus = columns(sample, "stimulus", fit.stimulus.labels, where)
    past = HistoryState(counts.new_zeros(1, 0, len(members)), averages[None])
    return Window(counts[None], past, stimulus[None], 0, bool(sample.attrs.get("causal", 1)), members,
                  (str(where),))


def _check_bins(fit: Fitted, sample: xr.Dataset, where: object) -> None:
    if sample.sizes["time"] > 1 and "time" in sample.coords:
        steps = np.diff(sample["time"].values.astype(np.float64))
        if not np.allclose(steps, fit.bin_s, rtol=1e-3):
            raise InputError(where, key="time", found=f"bins of {float(np.median(steps)):g} s, or uneven ones",
                             expected=f"bins of {fit.bin_s:g} s, as fitted", fix="bin the spikes at that width")


def columns(sample: xr.Dataset, name: str, labels: Sequence[str], where: object) -> Tensor:
    """``(T, K)`` of the variable ``<name>_value`` by its labels; NaN where the sample doesn't have it."""
    steps = sample.sizes["time"]
    variable = f"{name}_value"
    if variable not in sample:
        return torch.full((steps, len(labels)), torch.nan)
    array = sample[variable].transpose("time", name)
    unknown = [label for label in map(str, array[name].values) if label not in labels]
    if unknown:
        raise InputError(where, key=name, found=", ".join(unknown), expected=f"some of {', '.join(labels)}",
                         fix="rename them, or fit the data set first (sciml finetune)")
    out = torch.full((steps, len(labels)), torch.nan)
    out[:, [labels.index(str(label)) for label in array[name].values]] = torch.tensor(array.values,
                                                                                      dtype=torch.float32)
    return out


def encode_window(fit: Fitted, frame: Frame, sample: xr.Dataset, task: str) -> TokenBatch:
    """A sample as a batch of one with the target of `task`. The next bin is asked of every bin but the last."""
    window, where = window_of(fit, frame, sample), sample.attrs.get("source", "sample")
    truth = torch.tensor(sample["count"].values, dtype=torch.float32)
    steps = len(truth)
    inside = torch.zeros(steps, dtype=torch.bool)
    inside[int(sample.attrs.get("scored_from", 0)):int(sample.attrs.get("scored_to", steps))] = True
    floor = _floor(fit, sample, task) if frame.corrects_floor else None
    if task == "behaviour":
        values = columns(sample, "behaviour", fit.behaviour.labels, where)
        target = behaviour_target(fit, frame, values[None], inside[None], None if floor is None else floor[None])
        return inputs(fit, frame, window, {"behaviour": target})[0]
    log_rate = None if floor is None else floor[None][..., window.members]
    mask = inside[:, None].expand(truth.shape)
    if task == "masked":
        hidden = sample["hidden"].values if "hidden" in sample else ~np.isfinite(sample["count"].values)
        mask = mask & torch.from_numpy(hidden)
        target = rate_target(fit, window.members, truth[None], mask[None], log_rate)
        return inputs(fit, frame, window, {"rate": target})[0]
    later = None if log_rate is None else log_rate[:, 1:]
    target = rate_target(fit, window.members, truth[None, 1:], mask[None, 1:], later)
    known = Window(window.counts[:, :-1], window.past, window.stimulus[:, :-1], 0, True, window.members,
                   window.sources)
    return inputs(fit, frame, known, {"next": target})[0]


def _floor(fit: Fitted, sample: xr.Dataset, task: str) -> Tensor:
    """``(T, N)`` log-rates or ``(T, K)`` behaviour of the classical predictor; from the sample's own counts if it doesn't
    bring them."""
    if "floor" in sample:
        return torch.tensor(sample["floor"].values, dtype=torch.float32)
    stimulus = columns(sample, "stimulus", fit.stimulus.labels, "sample").numpy()
    count = np.full((sample.sizes["time"], len(fit.units)), np.nan, np.float32)
    count[:, fit.members([str(u) for u in sample["unit"].values], where="sample")] = sample["count"].values
    return torch.from_numpy(floor_of(fit.floors[task], fit, count, stimulus))  # type: ignore[index]
