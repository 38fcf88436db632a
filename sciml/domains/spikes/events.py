"""Spikes as events: (unit, time) tokens on one packed causal axis, exact times, and a hazard of what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, arrays_of
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.spikes.encode import covariates
from sciml.domains.spikes.event_classes import Classes
from sciml.domains.spikes.event_config import EventsConfig, reconfigured
from sciml.domains.spikes.event_exposure import KNOTS_S, After, Clock
from sciml.domains.spikes.event_floor import RenewalRate
from sciml.domains.spikes.event_stimulus import NO_SIGNALS, Drive
from sciml.domains.spikes.event_windows import (
    EventSource,
    EventWindows,
    clock_of,
    driven,
    events_of,
    mean_rate,
    own_waits,
    still,
    waits_of,
)
from sciml.domains.spikes.fitted import Fitted, fit_of, known, same_units
from sciml.domains.spikes.fitted import fit as fit_dataset
from sciml.domains.spikes.hazard import Hazard, make_edges
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.scores import METRICS
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import Conditions, HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec, identity

CHANNEL = "spikes/wait"
OWN, OWN_GAIN, POPULATION_GAIN = "own_wait", "own_gain", "population_gain"
HEAD = "next_event"
REFERENCE_WAITS = 64
LONGEST_WAITS = 30.0
DEPENDENT_WINDOWS = 8


@dataclass(frozen=True)
class Events:
    """Corrections of each unit's `RenewalRate`, of its hazard or of the chances of the next event's classes.

    drives: what known signals do to the rates. scale_s: the mean time between events of the first data set fitted, by
    which waits and coordinates are divided and on which the edges of the hazard stand. A rollout step draws one event;
    it takes as long as the wait.
    """

    config: EventsConfig
    datasets: Mapping[str, Fitted] = field(default_factory=dict)
    floors: Mapping[str, RenewalRate] = field(default_factory=dict)
    drives: Mapping[str, Drive] = field(default_factory=dict)
    scale_s: float | None = None
    name: str = "spikes"
    differentiate: tuple[str, ...] = ()
    uneven: bool = True

    @property
    def objective(self) -> str:
        return self.next_event.objective

    @property
    def baseline_name(self) -> str:
        return "renewal with drift"

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(validate(EventsConfig, dict(config), where="domains.spikes"))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        return replace(self, config=reconfigured(self.config, config))

    def fit(self, store: Store) -> Self:
        """Rates, drive and floor of the training split, whether a unit is driven from validation; nothing of test is
        read. Raises `InputError` without events."""
        layout = Layout.of(store, self.config.bin_s)
        if not layout.has_events:
            raise InputError(store.url, key="spike_time", found="counts only", expected="times of spikes",
                             fix="set domains.spikes.tokens: bins")
        fitted = fit_dataset(store, self.config.model_copy(update={"tasks": {}}))
        same_units(self.datasets, fitted, store.url)
        rate, name = mean_rate(fitted), fitted.name
        signals = fitted.stimulus if self.config.events.stimulus else NO_SIGNALS
        drive = Drive.fit(driven(layout), signals, layout.bin_s, rate, self.config.events.stimulus_s)
        floor = RenewalRate.fit(EventSource(layout, drive=drive).stretches("train"), rate, self.config.slow_s)
        return replace(self, datasets={**self.datasets, name: fitted}, floors={**self.floors, name: floor},
                       drives={**self.drives, name: drive}, scale_s=self.scale_s or 1 / float(rate.sum()))

    def floor(self) -> Self:
        return self

    @property
    def next_event(self) -> Hazard | Classes:
        """How the next event is told, over log-spaced times since the last one."""
        scale = self.scale_s or 1.0
        edges = make_edges(scale / 30, scale * LONGEST_WAITS, self.config.events.edges)
        return Hazard(edges) if self.config.events.dt == "hazard" else Classes(edges)

    @property
    def stimuli(self) -> tuple[str, ...]:
        """Known signals of all data sets, if they are given."""
        if not self.config.events.stimulus:
            return ()
        return tuple(dict.fromkeys(label for fit in self.datasets.values() for label in fit.stimulus.labels))

    def spec(self) -> TokenSpec:
        intervals = tuple(f"interval_{j}" for j in range(self.config.events.edges))
        link = "log" if self.config.events.dt == "hazard" else "logit"
        return TokenSpec(
            self.name, (CHANNEL,), {HEAD: HeadSpec("hazard", intervals, link=link)},  # type: ignore[arg-type]
            lattice_conditions=(OWN, OWN_GAIN, POPULATION_GAIN, *self.stimuli),
            identities={f"{name}/unit": fit.units for name, fit in self.datasets.items()}, units={CHANNEL: "s"})

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> EventWindows:
        """Every event of the split is scored in one window; a full one goes on in the next."""
        ahead = float(self.next_event.edges[-1])
        return EventWindows.of(self.source(store), split, self.config.events, train=train, ahead_s=ahead)

    def source(self, store: Store) -> EventSource:
        name = known(self.datasets, store.meta.dataset, store.url).name
        return EventSource(Layout.of(store, self.config.bin_s), self.floors[name], self.drives[name])

    def starts(self, store: Store, split: SplitName) -> list[xr.Dataset]:
        """The first events of every block, as many as a window has of context, then the truth, event by event along
        ``time`` as a rollout goes (known signals along ``bin``)."""
        source, before = self.source(store), max(self.config.events.before, 2)
        made = (source.sample(p.group, p.low, p.high, stop_s=p.stop_s, look_back=before)
                for p in source.pieces(split) if p.high - p.low > before)
        return [sample.rename(time="bin").rename_dims(spike="time") if "time" in sample.dims
                else sample.rename_dims(spike="time") for sample in made]

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        """Attributes: dataset; begin_s, before which nothing is scored; stop_s, until when the recording is known to go
        on without another event. ``floor`` and ``age (spike, unit)`` after each event, ``drive (time, unit)``; without
        them, from the sample alone."""
        fit, where = fit_of(self.datasets, sample), sample.attrs.get("source", "sample")
        sample = by_spike(sample)
        time, unit = (torch.from_numpy(part) for part in events_of(sample, fit, where))
        if not len(time):
            raise InputError(where, key="spike_time", found="no event", expected="at least one to start from",
                             fix="choose a longer stretch")
        after = self._after(fit, sample, time, unit)
        target = self.next_event.target(after, *waits_of(sample, time, unit))
        signals = torch.from_numpy(self._signals(fit, sample, time.numpy()))
        own = torch.from_numpy(own_waits(time.numpy(), unit.numpy()))
        waits = torch.cat([time[:1] * 0, time.diff()])
        return self._batch(fit, (time - time[0], unit, waits, own), after, signals, target, (str(where),))

    def _after(self, fit: Fitted, sample: xr.Dataset, time: Tensor, unit: Tensor) -> After:
        """The floor after each event; units that aren't in the sample are held to have been silent for long."""
        floor = self.floors[fit.name]
        clock = clock_of(sample, fit, self.drives[fit.name])
        if "floor" not in sample:
            return floor.after(still(time, unit, clock))
        log_rate = floor.rate.log().repeat(len(time), 1)
        age = torch.full_like(log_rate, KNOTS_S[-1])
        members = fit.members([str(u) for u in sample["unit"].values], where="sample")
        for made, name in ((log_rate, "floor"), (age, "age")):
            made[:, members] = torch.tensor(sample[name].transpose("spike", "unit").values, dtype=torch.float64)
        return After(time, log_rate, age, floor.renewal, clock)

    def _signals(self, fit: Fitted, sample: xr.Dataset, when: np.ndarray) -> np.ndarray:
        """``(E, P)`` float32 standardised values of the data set's known signals at times (s); 0 where not known."""
        out = np.zeros((len(when), len(fit.stimulus.labels)), np.float32)
        if not self.stimuli or not out.shape[1] or "time" not in sample.sizes:
            return out
        values = self.drives[fit.name].standardised(covariates(sample, fit.stimulus.labels, "sample").numpy())
        place = np.floor((when - float(sample["time"][0])) / fit.bin_s + 1e-9).astype(np.int64)
        inside = (place >= 0) & (place < len(values))
        out[inside] = values[place[inside]]
        return out

    def _batch(self, fit: Fitted, events: tuple[Tensor, Tensor, Tensor, Tensor], after: After, signals: Tensor,
               target: Target, sources: tuple[str, ...]) -> TokenBatch:
        """events: times since the first, units, waits, and times since the same unit's last event, ``(n,)`` in s."""
        (time, unit, wait, own), scale = events, self.scale_s or 1.0
        usual, now = self.floors[fit.name].rate.log(), after.log_hazard(torch.zeros_like(after.time))
        gain = after.log_rate.gather(1, unit[:, None])[:, 0] - usual[unit]
        both = now.logsumexp(1) - usual.logsumexp(0)
        coord = (time / (REFERENCE_WAITS * scale)).float()[:, None]
        axis = identity("event", unit, f"{fit.name}/unit", coord=coord, unit="s", causal=True,
                        segment=torch.zeros(len(unit), dtype=torch.long))
        lattice = {OWN: torch.log1p(own / (scale * len(fit.units))), OWN_GAIN: gain, POPULATION_GAIN: both}
        column = {label: signals[:, i] for i, label in enumerate(fit.stimulus.labels)}
        lattice |= {label: column.get(label, torch.zeros_like(wait)) for label in self.stimuli}
        return TokenBatch(self.name, fit.name, torch.log1p(wait / scale).float()[None, :, None], (CHANNEL,), (axis,),
                          conditions=Conditions(lattice={k: v.float()[None] for k, v in lattice.items()}),
                          targets={HEAD: target}, sources=sources)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """Of what follows each event: ``spike_unit (sample, spike)`` the likeliest unit; ``gain (sample, token)`` in
        nats, the log-likelihood of what came less that of the floor; NaN where nothing was known."""
        target, x, told = batch.targets[HEAD], predictions[HEAD].detach().double(), self.next_event
        cells, counted = target.value.flatten(2)[0], target.mask.flatten(2).any(-1)[0]
        happened = ((cells > 0).sum(-1) == 1) & (cells == 1).any(-1)
        columns = {"spike_unit": torch.where(happened, told.likely(target, x).double(), torch.nan),
                   "gain": torch.where(counted, told.gain(target, x), torch.nan)}
        segment = batch.axes[0].segment
        assert segment is not None
        made = {name: torch.nn.utils.rnn.pad_sequence([c[segment[0] == i] for i in range(batch.num_segments)],
                                                      batch_first=True, padding_value=torch.nan).numpy()
                for name, c in columns.items()}
        return xr.Dataset({"spike_unit": (("sample", "spike"), made["spike_unit"][:, :-1], {"units": "1"}),
                           "gain": (("sample", "token"), made["gain"], {"units": "nat"})},
                          coords={"source": ("sample", list(batch.sources))},
                          attrs={"domain": self.name, "dataset": batch.dataset})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def initial(self, sample: xr.Dataset) -> State:
        """From the first `look_back` events (attribute; default all); known signals are followed as far as the sample
        brings them. Random numbers come from the seed of `sampling`, or the sample's attribute ``seed``."""
        fit, where, sample = fit_of(self.datasets, sample), sample.attrs.get("source", "sample"), by_spike(sample)
        steps = int(sample.attrs.get("look_back", sample.sizes["spike"]))
        past = sample.isel(spike=slice(0, steps)).drop_attrs().assign_attrs(dataset=fit.name, source=where)
        batch, clock = self.encode(past), clock_of(sample, fit, self.drives[fit.name])
        time, unit = (torch.from_numpy(part) for part in events_of(past, fit, where))
        blind = replace(batch.targets[HEAD], mask=torch.zeros_like(batch.targets[HEAD].mask))
        floor, stretch = self.floors[fit.name], still(time, unit, clock)
        averages = torch.stack([floor.past(stretch, n)[0][-1] for n in range(len(fit.units))])
        seed = int(sample.attrs.get("seed", self.config.sampling.seed))
        edges = clock.edges[:-1].numpy()
        signals = torch.from_numpy(self._signals(fit, sample, edges + fit.bin_s / 2))
        return State(replace(batch, targets={HEAD: blind}), cache=[],
                     rng=torch.Generator().manual_seed(seed).get_state(), extra={
                         "averages": averages, "since": self._after(fit, past, time, unit).age[-1], "at": time[-1],
                         "place": time[-1] - time[0], "drive": clock.gain, "signals": signals,
                         "start": torch.tensor(clock.start_s, dtype=torch.float64)})

    def advance(self, state: State, outputs: Outputs) -> State:
        """The next event: its wait and unit drawn given the last one."""
        fit = known(self.datasets, state.batch.dataset, "rollout")
        floor, generator, extra = self.floors[fit.name], torch.Generator(), state.extra
        assert state.rng is not None
        generator.set_state(state.rng)
        clock = Clock(float(extra["start"]), fit.bin_s, extra["drive"])
        after = After(extra["at"][None], floor.log_rate(extra["averages"])[None], extra["since"][None], floor.renewal,
                      clock)
        wait, unit = self.next_event.draw(after, outputs[HEAD][0, -1].double(), self.config.sampling, generator)
        averages, since = floor.advance(extra["averages"], wait, unit), extra["since"] + wait
        at, place = extra["at"] + wait, extra["place"] + wait
        own = torch.minimum(since[unit], place)  # as `own_waits`, which knows of the sample alone
        since, none = since.index_fill(0, unit, 0.0), torch.zeros(1, dtype=torch.float64)
        after = After(at, floor.log_rate(averages)[None], since[None], floor.renewal, clock)
        target = self.next_event.target(after, none, none, torch.full((1,), -1))
        signals = torch.cat([extra["signals"], extra["signals"].new_zeros(1, len(fit.stimulus.labels))])
        signals = signals[clock.bins(at)] if len(clock.gain) else signals[-1:]
        batch = self._batch(fit, (place, unit, wait, own), after, signals, target, state.batch.sources)
        return replace(state, batch=batch, step=state.step + 1, elapsed=state.elapsed + float(wait.detach()),
                       rng=generator.get_state(), extra={**extra, "averages": averages, "since": since, "at": at[0],
                                                         "place": place[0]})

    def observe(self, state: State) -> xr.Dataset:
        """The event drawn last: ``spike_time`` in s and ``spike_unit (sample, time = 1)``, at ``valid_time``."""
        axis, fit = state.batch.axes[0], known(self.datasets, state.batch.dataset, "rollout")
        assert axis.ids is not None
        when, dims = state.extra["at"].detach().double().numpy().reshape(1, 1), ("sample", "time")
        return xr.Dataset({"spike_time": (dims, when, {"units": "s"}),
                           "spike_unit": (dims, axis.ids[:, -1:].double().numpy(), {"units": "1"})},
                          coords={"valid_time": (dims, when, {"units": "s"}), "unit": list(fit.units),
                                  "source": ("sample", list(state.batch.sources))},
                          attrs={"domain": self.name, "dataset": fit.name})

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """One, `next_event`: the likelihood of all events of the split in continuous time."""
        windows, gains = replace(self.open(store, split), train=False), {}
        fit, rng = self.datasets[store.meta.dataset], np.random.default_rng(0)
        usual = self.floors[fit.name].rate
        for index in range(len(windows)):
            sample = windows.draw(index, rng, rng)
            time, unit = (torch.from_numpy(part) for part in events_of(sample, fit, "sample"))
            low, high, came = waits_of(sample, time, unit)
            floor = self.next_event.floor_likelihood(self._after(fit, sample, time, unit), low, high, came)
            null = torch.where(came >= 0, usual.log()[came], 0.0) - usual.sum() * (high - low)
            gains[str(sample.attrs["source"])] = float(torch.where((came >= 0) | (high > low), floor - null, 0.0).sum())
        return [Question("next_event", windows, block=DEPENDENT_WINDOWS, shown=0, options={
            "events": windows.num_events / max(len(windows), 1), "floor": gains})]

    def metrics(self) -> tuple[Metric, ...]:
        return METRICS[:1]

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        """bits/spike over homogeneous Poisson units at their training rates, per window as a share of the split's."""
        floor = np.array([question.options["floor"][str(name)] for name in prediction["source"].values])
        gain = np.nansum(prediction["gain"].values, 1) + floor
        return {"bits_per_spike": gain / (question.options["events"] * np.log(2))}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config: dict[str, Any] = {"config": self.config.model_dump(mode="json"), "scale_s": self.scale_s}
        config["datasets"] = {}
        arrays: dict[str, np.ndarray] = {}
        for name, fit in self.datasets.items():
            floor, drive = self.floors[name], self.drives[name]
            part, own = fit.state()
            config["datasets"][name] = {**part, "floor_slow_s": list(floor.slow_s), "drive_slow_s": list(drive.slow_s)}
            own |= {f"floor/{key}": array for key, array in floor.state().items()} | {"drive": drive.weight.numpy()}
            arrays |= {f"{name}/{key}": array for key, array in own.items()}
        return config, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        chosen = validate(EventsConfig, config["config"], where="checkpoint")
        datasets, floors, drives = {}, {}, {}
        for name, part in config["datasets"].items():
            own = arrays_of(name, arrays)
            fit = datasets[name] = Fitted.restore(name, part, own)
            rate, weight, drive = (torch.tensor(np.asarray(own[key], np.float64))
                                   for key in ("floor/rate", "floor/weight", "drive"))
            floors[name] = RenewalRate(tuple(part["floor_slow_s"]), rate, weight)
            drives[name] = Drive(fit.stimulus, fit.bin_s, tuple(part["drive_slow_s"]), drive)
        return cls(chosen, datasets, floors, drives, config["scale_s"])


def by_spike(sample: xr.Dataset) -> xr.Dataset:
    """Events along ``spike`` and known signals along ``time``, as in a store, also of a sample such as a rollout goes
    on: events along ``time``, known signals along ``bin``."""
    if "spike_time" in sample and sample["spike_time"].dims == ("time",):
        sample = sample.drop_vars("time", errors="ignore").rename_dims(time="spike")
        sample = sample.rename(bin="time") if "bin" in sample.dims else sample
    return sample
