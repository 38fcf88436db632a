"""Spikes as events: (unit, time) tokens on one packed causal axis, exact times, and a hazard of what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Question
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.spikes.config import SpikesConfig, reconfigured
from sciml.domains.spikes.event_windows import EventSource, EventWindows, events_of, own_waits
from sciml.domains.spikes.fitted import Fitted, fit_of, known, same_units
from sciml.domains.spikes.fitted import fit as fit_dataset
from sciml.domains.spikes.hazard import HeldRate, Stretch, draw_event, exposure, make_edges, place
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.scores import METRICS
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import Conditions, HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec, identity

CHANNEL = "spikes/wait"
OWN, OWN_GAIN, POPULATION_GAIN = "own_wait", "own_gain", "population_gain"
HEAD = "hazard"
REFERENCE_WAITS = 64
LONGEST_WAITS = 30.0
DEPENDENT_WINDOWS = 8
TINY_S = 1e-12
"""Stands for no time at all in a logarithm."""


@dataclass(frozen=True)
class Events:
    """Log-hazards that correct each unit's `HeldRate` (link space: log expected events per unit and interval).

    scale_s: the mean time between events of the first data set fitted, by which waits and coordinates are divided and
    on which the edges of the hazard stand. A rollout step draws one event; it takes as long as the wait.
    """

    config: SpikesConfig
    datasets: Mapping[str, Fitted] = field(default_factory=dict)
    floors: Mapping[str, HeldRate] = field(default_factory=dict)
    scale_s: float | None = None
    name: str = "spikes"
    differentiate: tuple[str, ...] = ()
    uneven: bool = True

    @property
    def objective(self) -> str:
        return "poisson"

    @property
    def baseline_name(self) -> str:
        return "renewal with drift"

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(validate(SpikesConfig, dict(config), where="domains.spikes"))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        return replace(self, config=reconfigured(self.config, config))

    def fit(self, store: Store) -> Self:
        """Rates and floor of the training split; nothing of test is read. Raises `InputError` without events."""
        layout = Layout.of(store, self.config.bin_s)
        if not layout.has_events:
            raise InputError(store.url, key="spike_time", found="counts only", expected="times of spikes",
                             fix="set domains.spikes.tokens: bins")
        quick = self.config.model_copy(update={"tasks": {}})
        fitted = fit_dataset(store, quick)
        same_units(self.datasets, fitted, store.url)
        rate = mean_rate(fitted)
        floor = HeldRate.fit(EventSource(layout).stretches("train"), rate, self.config.slow_s)
        name, scale = fitted.name, self.scale_s or 1 / float(rate.sum())
        return replace(self, datasets={**self.datasets, name: fitted}, floors={**self.floors, name: floor},
                       scale_s=scale)

    def floor(self) -> Self:
        return self

    @property
    def edges(self) -> Tensor:
        """``(J,)`` left edges of the intervals of the hazard, s."""
        scale = self.scale_s or 1.0
        return make_edges(scale / 30, scale * LONGEST_WAITS, self.config.events.edges)

    def spec(self) -> TokenSpec:
        intervals = tuple(f"interval_{j}" for j in range(self.config.events.edges))
        return TokenSpec(
            self.name, (CHANNEL,), {HEAD: HeadSpec("hazard", intervals, link="log")},
            lattice_conditions=(OWN, OWN_GAIN, POPULATION_GAIN),
            identities={f"{name}/unit": fit.units for name, fit in self.datasets.items()}, units={CHANNEL: "s"})

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> EventWindows:
        """Every event of the split is scored in one window; a full one goes on in the next."""
        return EventWindows.of(self.source(store), split, self.config.events, train=train)

    def source(self, store: Store) -> EventSource:
        known(self.datasets, store.meta.dataset, store.url)
        return EventSource(Layout.of(store, self.config.bin_s), self.floors[store.meta.dataset])

    def starts(self, store: Store, split: SplitName) -> list[xr.Dataset]:
        """The first events of every block, as many as a window has of context, then the truth."""
        source, before = self.source(store), max(self.config.events.before, 2)
        return [source.sample(p.group, p.low, p.high, stop_s=p.stop_s, look_back=before)
                for p in source.pieces(split) if p.high - p.low > before]

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        """Attributes: dataset; begin_s, before which nothing is scored; stop_s, until when the recording is known to go
        on without another event. ``floor (spike, unit)``: log of 1/s after each event; without it, from these alone."""
        fit, where = fit_of(self.datasets, sample), sample.attrs.get("source", "sample")
        time, unit = events_of(sample, fit, where)
        if not len(time):
            raise InputError(where, key="spike_time", found="no event", expected="at least one to start from",
                             fix="choose a longer stretch")
        following = np.append(time[1:], sample.attrs.get("stop_s", time[-1])) - time
        later, first = np.append(unit[1:], -1), int(sample.attrs.get("scored_from", 0))
        low = np.clip(sample.attrs.get("begin_s", time[0]) - time, 0.0, None)
        low[:first], later[:first] = following[:first], -1
        rate = self._rates(fit, sample, torch.tensor(time), torch.from_numpy(unit))
        target = self._target(rate, torch.tensor(low), torch.tensor(following), torch.from_numpy(later))
        waits = np.diff(time, prepend=time[0])
        return self._batch(fit, torch.tensor(time - time[0]), torch.from_numpy(unit), torch.tensor(waits),
                           torch.tensor(own_waits(time, unit)), rate, target, (str(where),))

    def _rates(self, fit: Fitted, sample: xr.Dataset, time: Tensor, unit: Tensor) -> Tensor:
        """``(n, N)`` log of 1/s of the floor after each event."""
        floor = self.floors[fit.name]
        if "floor" not in sample:
            return floor.after(Stretch(time, unit, time, unit))
        rates = floor.rate.log().repeat(len(time), 1)
        rates[:, fit.members([str(u) for u in sample["unit"].values], where="sample")] = torch.tensor(
            sample["floor"].transpose("spike", "unit").values, dtype=torch.float64)
        return rates

    def _target(self, rate: Tensor, low: Tensor, high: Tensor, unit: Tensor) -> Target:
        """Of times since each event, low … high in seconds ``(n,)``, that ended with an event of `unit` (−1: none).

        rate: ``(n, N)`` log of 1/s, which is corrected. All intervals count of an event that is scored, so that the
        loss is the likelihood over a number that doesn't depend on what happened."""
        edges = self.edges.double()
        time_in = exposure(low, high, edges)  # (n, J)
        value = torch.zeros(*rate.shape, len(edges), dtype=torch.float32)
        ended = unit >= 0
        rows = torch.arange(len(low))[ended]
        value[rows, unit[ended], place(high, edges)[ended]] = 1.0
        scored = (ended | (time_in.sum(-1) > 0))[:, None, None].expand(value.shape)
        base = rate[:, :, None] + time_in.clamp_min(TINY_S).log()[:, None, :]
        parts = (value, scored, torch.where(scored, base, 0.0).float(), torch.ones_like(value))
        return Target(*(t[None] for t in parts))

    def _batch(self, fit: Fitted, time: Tensor, unit: Tensor, wait: Tensor, own: Tensor, rate: Tensor, target: Target,
               sources: tuple[str, ...]) -> TokenBatch:
        """time, wait, own in seconds ``(n,)``, own: since the same unit's last event; rate: ``(n, N)`` of the floor."""
        scale, segment = self.scale_s or 1.0, torch.zeros(len(unit), dtype=torch.long)
        usual = self.floors[fit.name].rate.log()
        gain = rate.gather(1, unit[:, None])[:, 0] - usual[unit]
        both = rate.logsumexp(1) - usual.logsumexp(0)
        coord = (time / (REFERENCE_WAITS * scale)).float()[:, None]
        axis = identity("event", unit, f"{fit.name}/unit", coord=coord, unit="s", causal=True, segment=segment)
        values = torch.log1p(wait / scale).float()[None, :, None]
        lattice = {OWN: torch.log1p(own / (scale * len(fit.units))).float()[None], OWN_GAIN: gain.float()[None],
                   POPULATION_GAIN: both.float()[None]}
        return TokenBatch(self.name, fit.name, values, (CHANNEL,), (axis,), conditions=Conditions(lattice=lattice),
                          targets={HEAD: target}, sources=sources)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """Of what follows each event: ``spike_unit (sample, spike)`` the likeliest unit; ``gain (sample, token)`` in
        nats, the log-likelihood of what came less that of the floor; NaN where nothing was known."""
        target, x = batch.targets[HEAD], predictions[HEAD].detach().double()
        base, came = target.baseline.double(), target.value.double()
        mean, null = (torch.where(target.mask, t.exp(), 0.0).sum((2, 3))[0] for t in (x, base))  # (n,) each
        gain = (came * (x - base)).sum((2, 3))[0]
        happened, counted = came.sum((2, 3))[0] > 0, target.mask.flatten(2).any(-1)[0]
        unit = torch.where(target.mask, x.exp(), 0.0).sum(-1).argmax(-1)[0].double()
        columns = {"spike_unit": torch.where(happened, unit, torch.nan),
                   "gain": torch.where(counted, gain - mean + null, torch.nan)}
        segment = batch.axes[0].segment
        assert segment is not None
        made = {name: torch.nn.utils.rnn.pad_sequence([c[segment[0] == i] for i in range(batch.num_segments)],
                                                      batch_first=True, padding_value=torch.nan).numpy()
                for name, c in columns.items()}
        return xr.Dataset({"spike_unit": (("sample", "spike"), made["spike_unit"][:, :-1], {"units": "1"}),
                           "gain": (("sample", "token"), made["gain"], {"units": "nat"})},
                          coords={"source": ("sample", list(batch.sources))},
                          attrs={"domain": self.name, "dataset": batch.dataset})

    def derive(self, batch: TokenBatch, outputs: Outputs, create_graph: bool) -> Outputs:
        return outputs

    def initial(self, sample: xr.Dataset) -> State:
        """From the first `look_back` events (attribute; default all). Random numbers come from the seed of `sampling`,
        or the sample's attribute ``seed``."""
        fit, where = fit_of(self.datasets, sample), sample.attrs.get("source", "sample")
        steps = int(sample.attrs.get("look_back", sample.sizes["spike"]))
        known_part = sample.isel(spike=slice(0, steps))
        attrs = {"dataset": fit.name, "source": where}
        time, unit = (torch.from_numpy(part) for part in events_of(known_part.assign_attrs(stop_s=np.inf), fit, where))
        batch = self.encode(known_part.drop_attrs().assign_attrs(attrs))
        blind = replace(batch.targets[HEAD], mask=torch.zeros_like(batch.targets[HEAD].mask))
        floor, stretch = self.floors[fit.name], Stretch(time, unit, time, unit)
        averages, since = zip(*((a[-1], age[-1]) for a, age in (floor.past(stretch, n) for n in range(len(fit.units)))))
        seed = int(sample.attrs.get("seed", self.config.sampling.seed))
        return State(replace(batch, targets={HEAD: blind}), cache=[],
                     rng=torch.Generator().manual_seed(seed).get_state(), extra={
                         "averages": torch.stack(averages), "since": torch.stack(since), "at": time[-1],
                         "place": time[-1] - time[0]})

    def advance(self, state: State, outputs: Outputs) -> State:
        """The next event: its wait and unit drawn from the hazard after the last one."""
        fit = known(self.datasets, state.batch.dataset, "rollout")
        floor, generator = self.floors[fit.name], torch.Generator()
        assert state.rng is not None
        generator.set_state(state.rng)
        averages, since = state.extra["averages"], state.extra["since"]
        log_hazard = floor.log_rate(averages, since)[:, None] + outputs[HEAD][0, -1].double()
        wait, unit = draw_event(log_hazard.clamp(-30.0, 12.0), self.edges.double(), self.config.sampling, generator)
        averages, since = floor.advance(averages, wait, unit), since + wait
        own, where = since[unit], state.extra["place"] + wait
        since = since.index_fill(0, unit, 0.0)
        none = torch.zeros(1, dtype=torch.float64)
        rate = floor.log_rate(averages, since)[None]
        target = self._target(rate, none, none, torch.full((1,), -1))
        batch = self._batch(fit, where, unit, wait, own, rate, target, state.batch.sources)
        return replace(state, batch=batch, step=state.step + 1, elapsed=state.elapsed + float(wait.detach()),
                       rng=generator.get_state(), extra={
                           "averages": averages, "since": since, "at": state.extra["at"] + wait[0], "place": where[0]})

    def observe(self, state: State) -> xr.Dataset:
        """The event drawn last: ``spike_unit (sample, time = 1)`` at ``valid_time`` in seconds."""
        axis, fit = state.batch.axes[0], known(self.datasets, state.batch.dataset, "rollout")
        assert axis.ids is not None
        when = state.extra["at"].detach().double().numpy().reshape(1, 1)
        return xr.Dataset({"spike_unit": (("sample", "time"), axis.ids[:, -1:].double().numpy(), {"units": "1"})},
                          coords={"valid_time": (("sample", "time"), when, {"units": "s"}), "unit": list(fit.units),
                                  "source": ("sample", list(state.batch.sources))},
                          attrs={"domain": self.name, "dataset": fit.name})

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """One, `next_event`: the likelihood of all events of the split in continuous time."""
        windows, gains = replace(self.open(store, split), train=False), {}
        usual, rng = self.floors[store.meta.dataset].rate.log(), np.random.default_rng(0)
        for index in range(len(windows)):
            sample = windows.draw(index, rng, rng)
            target = self.encode(sample).targets[HEAD]
            constant = sample.assign(floor=xr.zeros_like(sample["floor"]) + usual.numpy())
            null = self.encode(constant).targets[HEAD].baseline.double()
            gain = target.value * (target.baseline - null) - target.baseline.double().exp() + null.exp()
            gains[str(sample.attrs["source"])] = float(torch.where(target.mask, gain, 0.0).sum())
        return [Question("next_event", windows, block=DEPENDENT_WINDOWS, options={
            "events": windows.num_events / max(len(windows), 1), "floor": gains})]

    def metrics(self) -> tuple[Metric, ...]:
        return METRICS[:1]

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        """bits/spike over homogeneous Poisson units at their training rates, per window as a share of the split's."""
        floor = np.array([question.options["floor"][str(name)] for name in prediction["source"].values])
        gain = np.nansum(prediction["gain"].values, 1) + floor
        return {"bits_per_spike": gain / (question.options["events"] * np.log(2))}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts = {name: fit.state() for name, fit in self.datasets.items()}
        config = {"config": self.config.model_dump(mode="json"), "scale_s": self.scale_s,
                  "datasets": {name: part[0] for name, part in parts.items()},
                  "floor_slow_s": {name: list(floor.slow_s) for name, floor in self.floors.items()}}
        arrays = {f"{name}/{key}": array for name, part in parts.items() for key, array in part[1].items()}
        return config, arrays | {f"{name}/floor/{key}": array for name, floor in self.floors.items()
                                 for key, array in floor.state().items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        chosen = validate(SpikesConfig, config["config"], where="checkpoint")
        datasets, floors = {}, {}
        for name, part in config["datasets"].items():
            own = {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}
            datasets[name] = Fitted.restore(name, part, own)
            rate, weight = (np.asarray(own[f"floor/{key}"], np.float64) for key in ("rate", "weight"))
            slow_s = tuple(config["floor_slow_s"][name])
            floors[name] = HeldRate(slow_s, torch.tensor(rate), torch.tensor(weight))
        return cls(chosen, datasets, floors, config["scale_s"])


def mean_rate(fit: Fitted) -> Tensor:
    """``(N,)`` float64 mean training rates in 1/s."""
    return fit.log_rate.double().exp() / fit.bin_s
