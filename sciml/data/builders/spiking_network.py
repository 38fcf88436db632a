"""Spike trains of a random network whose connections are known: the ground truth of connectivity and of in-silico
experiments. Dynamics, in NumPy and float64: `sciml.data.builders.spiking_dynamics`.

All recordings are of the same units and the same network. The network and its background drive depend on the seed, what
happens in a recording on the seed and the recording's number; a longer recording begins with the same spikes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from sciml.data.builders.spiking_dynamics import (
    Network,
    Neuron,
    Population,
    Wiring,
    draw_network,
    find_drive,
    slow_signals,
)
from sciml.recipe import Section, validate

SETTLING_S, CHUNK = 0.5, 1000
"""Left out before a recording; steps that are driven at once."""


class Shared(Section):
    """Common slow input: independent Ornstein–Uhlenbeck signals of correlation time time_ms, to which every unit
    listens with its own random weights; strength_mv: the usual standard deviation of their sum in one unit."""

    signals: int = Field(default=2, ge=0)
    strength_mv: float = Field(default=1.0, ge=0)
    time_ms: float = Field(default=100.0, gt=0)


class Stimulus(Section):
    """Known signals of unit variance with random tuning: in turn a sinusoid and an Ornstein–Uhlenbeck signal of 0.5 s.
    """

    signals: int = Field(default=0, ge=0)
    strength_mv: float = Field(default=1.5, ge=0)


class Trials(Section):
    """Trials of unequal length with gaps between, both drawn uniformly; the stimulus is on in trials only."""

    length_s: tuple[float, float] = (1.0, 2.0)
    gap_s: tuple[float, float] = (0.2, 0.5)

    @model_validator(mode="after")
    def _ordered(self) -> Trials:
        for name, (low, high) in (("length_s", self.length_s), ("gap_s", self.gap_s)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two positive times in order")
        return self


class Options(Section):
    """What to simulate. units: all that are simulated; the share `unobserved` of them is not in the output. rate_hz,
    rate_spread: mean over units of the rate aimed at, and standard deviation of its logarithm. behaviour: number of
    linear readouts of the common input. bin_ms: width of the bins of the `time` axis, a multiple of step_ms.
    calibration_s: length of the run that finds the background drive, not part of any recording."""

    units: int = Field(default=100, ge=1)
    recordings: int = Field(default=1, ge=1)
    duration_s: float = Field(default=60.0, gt=0)
    seed: int = Field(default=0, ge=0)
    step_ms: float = Field(default=1.0, gt=0)
    bin_ms: float = Field(default=5.0, gt=0)
    rate_hz: float = Field(default=5.0, gt=0)
    rate_spread: float = Field(default=0.4, ge=0)
    unobserved: float = Field(default=0.0, ge=0, lt=1)
    neuron: Neuron = Neuron()
    wiring: Wiring = Wiring()
    shared: Shared = Shared()
    stimulus: Stimulus = Stimulus()
    behaviour: int = Field(default=0, ge=0)
    trials: Trials | None = None
    calibration_s: float = Field(default=20.0, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Options:
        for name, ratio in (("bin_ms must be a multiple of step_ms", self.bin_ms / self.step_ms),
                            ("duration_s must be a multiple of bin_ms", 1000 * self.duration_s / self.bin_ms)):
            if abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
                raise ValueError(name)
        if self.observed < 1:
            raise ValueError("unobserved leaves no unit")
        if self.behaviour and not self.shared.signals:
            raise ValueError("behaviour is a readout of the common input: give shared signals")
        return self

    @property
    def observed(self) -> int:
        return self.units - round(self.unobserved * self.units)

    @property
    def bin_steps(self) -> int:
        return round(self.bin_ms / self.step_ms)

    @property
    def bins(self) -> int:
        return round(1000 * self.duration_s / self.bin_ms)


@dataclass(frozen=True)
class Recording:
    """time ``(spike,)`` float64 in s, the middle of the step; unit ``(spike,)`` int32, both of observed units. Per bin:
    behaviour ``(time, behaviour)``, stimulus ``(time, stimulus)``, trial ``(time,)``."""

    time: np.ndarray
    unit: np.ndarray
    behaviour: np.ndarray
    stimulus: np.ndarray
    trial: np.ndarray


@dataclass(frozen=True)
class Experiment:
    """A network and how its units are driven, from the options alone; `record` runs it.

    loading ``(shared, unit)`` and tuning ``(stimulus, unit)`` in mV, frequency ``(stimulus,)`` in Hz, readout
    ``(shared, behaviour)``, observed ``(observed,)`` ascending indices of units.
    """

    options: Options
    network: Network
    loading: np.ndarray
    tuning: np.ndarray
    frequency: np.ndarray
    readout: np.ndarray
    observed: np.ndarray
    target_hz: np.ndarray

    @classmethod
    def of(cls, options: Options) -> Experiment:
        rng = np.random.default_rng((options.seed, 0))
        units, shared, stimulus = options.units, options.shared, options.stimulus
        network = draw_network(options.wiring, units, options.step_ms, rng)
        spread = np.exp(options.rate_spread * rng.standard_normal(units))
        loading = (1 + rng.standard_normal((shared.signals, units))) * shared.strength_mv
        tuning = rng.standard_normal((stimulus.signals, units)) * stimulus.strength_mv
        frequency = rng.uniform(0.2, 2.0, stimulus.signals)
        readout = rng.standard_normal((shared.signals, options.behaviour)) / np.sqrt(max(1, shared.signals))
        observed = np.sort(rng.permutation(units)[:options.observed])
        return cls(options, network, loading / np.sqrt(2 * max(1, shared.signals)),
                   tuning / np.sqrt(max(1, stimulus.signals)), frequency, readout, observed,
                   options.rate_hz * spread / spread.mean())

    @cached_property
    def drive(self) -> np.ndarray:
        """Background drive ``(unit,)`` in mV. See `find_drive`."""
        chosen = self.options
        steps = round(1000 * chosen.calibration_s / chosen.step_ms)
        common, known, _ = self._signals(steps, (chosen.seed, 1))
        return find_drive(chosen.neuron, self.network, chosen.step_ms, self.target_hz,
                          common @ self.loading + known @ self.tuning, np.random.default_rng((chosen.seed, 1, 3)))

    def record(self, recording: int) -> Recording:
        """Recording number `recording`, whatever others there are."""
        chosen, key = self.options, (self.options.seed, 2, recording)
        steps, settling = chosen.bins * chosen.bin_steps, round(1000 * SETTLING_S / chosen.step_ms)
        common, known, trial = self._signals(settling + steps, key, settling)
        rng = np.random.default_rng((*key, 3))
        population = Population(chosen.neuron, self.network, chosen.step_ms)
        step, unit = [], []
        for first in range(0, settling + steps, CHUNK):
            part = slice(first, first + CHUNK)
            given = self.drive + common[part] @ self.loading + known[part] @ self.tuning
            at, who = population.advance(np.resize(given, (CHUNK, chosen.units)), rng)
            step.append(at + first)
            unit.append(who)
        steps_of, units_of = np.concatenate(step) - settling, np.concatenate(unit)
        index = np.full(chosen.units, -1, dtype=np.int32)
        index[self.observed] = np.arange(len(self.observed))
        kept = (steps_of >= 0) & (steps_of < steps) & (index[units_of] >= 0)
        middle = (steps_of[kept] + 0.5) * (chosen.step_ms / 1000)
        return Recording(middle, index[units_of[kept]], self._binned(common[settling:] @ self.readout),
                         self._binned(known[settling:]), trial[settling::chosen.bin_steps])

    def _signals(self, steps: int, key: tuple[int, ...], zero: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Common signals, stimulus and trial number of each step; step `zero` is at 0 s."""
        chosen = self.options
        common = slow_signals(steps, [chosen.shared.time_ms] * chosen.shared.signals, chosen.step_ms,
                              np.random.default_rng((*key, 0)))
        known = slow_signals(steps, [500.0] * chosen.stimulus.signals, chosen.step_ms, np.random.default_rng((*key, 1)))
        time = (np.arange(steps) - zero)[:, None] * (chosen.step_ms / 1000)
        known[:, ::2] = np.sqrt(2) * np.sin(2 * np.pi * self.frequency[::2] * time)
        trial = np.full(steps, -1.0)
        if chosen.trials is not None:
            trial[zero:] = _trials(chosen, steps - zero, np.random.default_rng((*key, 2)))
            known *= (trial >= 0)[:, None]
        return common, known, trial

    def _binned(self, signal: np.ndarray) -> np.ndarray:
        return signal.reshape(self.options.bins, self.options.bin_steps, signal.shape[1]).mean(axis=1)


def _trials(options: Options, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Trial number of each step, −1 between trials; trials begin and end with bins."""
    assert options.trials is not None
    trial = np.full(steps, -1.0)
    start, number = 0, 0
    while start < steps:
        gap, length = (max(1, round(1000 * rng.uniform(*bounds) / options.bin_ms)) * options.bin_steps
                       for bounds in (options.trials.gap_s, options.trials.length_s))
        if start + gap + length > steps:
            break
        trial[start + gap:start + gap + length] = number
        start, number = start + gap + length, number + 1
    return trial


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """Spikes as events, simulated now, one recording after another, because their number isn't known before.

    spike_time (spike) in s, spike_unit (spike), spike_count (recording); the truth weight (recording, unit, source) in
    mV (signed peak of the postsynaptic potential, 0 without a link) and, if there is any link, delay (recording, unit,
    source) in s (NaN without a link); time in s, the left edges of bins. If asked for: behaviour_value (recording,
    time, behaviour), stimulus_value (recording, time, stimulus), trial (recording, time). Raises `InputError` naming
    the wrong option.
    """
    chosen = validate(Options, dict(options), where="spiking_network options")
    experiment = Experiment.of(chosen)
    made = [experiment.record(i) for i in range(chosen.recordings)]
    units = _labels("u", chosen.observed)
    hidden = chosen.units - chosen.observed
    notes = [f"{hidden} of {chosen.units} simulated units are not in the data"] if hidden else []
    dataset = xr.Dataset(
        {"spike_time": ("spike", np.concatenate([r.time for r in made]),
                        {"units": "s", "long_name": "time of spike", "role": "event"}),
         "spike_unit": ("spike", np.concatenate([r.unit for r in made]),
                        {"units": "1", "long_name": "index of the unit that fired", "role": "event"}),
         "spike_count": ("recording", np.array([len(r.time) for r in made], dtype=np.int64),
                         {"units": "1", "long_name": "number of spikes", "role": "rows", "sample_dimension": "spike"})},
        coords={"time": ("time", np.arange(chosen.bins) * chosen.bin_ms / 1000, {"units": "s"}),
                "unit": ("unit", units, {"kind": "set"}), "source": ("source", units, {"kind": "set"})},
        attrs={"domain": "spikes", "group_dim": "recording", "unobserved_units": hidden, "notes": notes})
    return _with_truth(_with_signals(dataset, chosen, made), experiment)


def _with_truth(dataset: xr.Dataset, experiment: Experiment) -> xr.Dataset:
    seen, network = np.ix_(experiment.observed, experiment.observed), experiment.network
    weight, steps = network.weight[seen].astype(np.float32), network.delay[seen]
    delay = np.where(steps > 0, steps * experiment.options.step_ms / 1000, np.nan).astype(np.float32)
    dims, shape = ("recording", "unit", "source"), (dataset.sizes["recording"], *weight.shape)
    dataset["weight"] = (dims, np.broadcast_to(weight, shape),
                         {"units": "mV", "long_name": "peak postsynaptic potential", "role": "parameter"})
    if np.isfinite(delay).any():
        dataset["delay"] = (dims, np.broadcast_to(delay, shape),
                            {"units": "s", "long_name": "delay of the link", "role": "parameter"})
    return dataset


def _with_signals(dataset: xr.Dataset, options: Options, made: list[Recording]) -> xr.Dataset:
    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(r, name) for r in made]).astype(np.float32)

    if options.behaviour:
        labels = _labels("readout", options.behaviour)
        dataset = dataset.assign_coords(behaviour=("behaviour", labels, {"kind": "set"}),
                                        behaviour_unit=("behaviour", np.array(["1"] * len(labels))))
        dataset["behaviour_value"] = (("recording", "time", "behaviour"), stacked("behaviour"),
                                {"units": "1", "long_name": "readout of the common input", "role": "label"})
    if options.stimulus.signals:
        labels = _labels("stimulus", options.stimulus.signals)
        dataset = dataset.assign_coords(stimulus=("stimulus", labels, {"kind": "set"}),
                                        stimulus_unit=("stimulus", np.array(["1"] * len(labels))))
        dataset["stimulus_value"] = (("recording", "time", "stimulus"), stacked("stimulus"),
                               {"units": "1", "long_name": "stimulus", "role": "covariate"})
    if options.trials is not None:
        dataset["trial"] = (("recording", "time"), stacked("trial"),
                            {"units": "1", "long_name": "trial number, -1 between trials", "role": "covariate"})
    return dataset


def _labels(prefix: str, count: int) -> np.ndarray:
    return np.array([f"{prefix}{i:0{len(str(count - 1))}d}" for i in range(count)])


PLUGIN = build
