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
from sciml.domains.spikes.config import SpikesConfig
from sciml.domains.spikes.event_windows import EventSource, EventWindows, events_of, own_waits
from sciml.domains.spikes.fitted import Fitted, fit_of, known
from sciml.domains.spikes.fitted import fit as fit_dataset
from sciml.domains.spikes.hazard import draw_event, exposure, make_edges, place
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.scores import METRICS
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import Conditions, HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec, identity

CHANNEL, OWN = "spikes/wait", "own_wait"
HEAD = "hazard"
REFERENCE_WAITS = 64
LONGEST_WAITS = 30.0
DEPENDENT_WINDOWS = 8


@dataclass(frozen=True)
class Events:
    """Log-hazards that correct each unit's mean rate (link space: log expected events per unit and interval).

    scale_s: the mean time between events of the first data set fitted, by which waits and coordinates are divided and
    on which the edges of the hazard stand. A rollout step draws one event; it takes as long as the wait.
    """

    config: SpikesConfig
    datasets: Mapping[str, Fitted] = field(default_factory=dict)
    scale_s: float | None = None
    name: str = "spikes"
    differentiate: tuple[str, ...] = ()
    uneven: bool = True

    @property
    def objective(self) -> str:
        return "poisson"

    @property
    def baseline_name(self) -> str:
        return "mean rates"

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(validate(SpikesConfig, dict(config), where="domains.spikes"))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        made = validate(SpikesConfig, dict(config), where="domains.spikes")
        if made.tokens != self.config.tokens:
            raise InputError("domains.spikes", key="tokens", found=made.tokens, expected=self.config.tokens,
                             fix="pretrain another checkpoint: bins and events have other tokens")
        return replace(self, config=made)

    def fit(self, store: Store) -> Self:
        """Mean rates of the training split; nothing of test is read. Raises `InputError` on a store without events."""
        layout = Layout.of(store, self.config.bin_s)
        if not layout.has_events:
            raise InputError(store.url, key="spike_time", found="counts only", expected="times of spikes",
                             fix="set domains.spikes.tokens: bins")
        quick = self.config.model_copy(update={"tasks": {}})
        fitted = fit_dataset(store, quick)
        rate = float(fitted.history.rate.sum()) / fitted.bin_s
        return replace(self, datasets={**self.datasets, fitted.name: fitted}, scale_s=self.scale_s or 1 / rate)

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
            self.name, (CHANNEL,), {HEAD: HeadSpec("hazard", intervals, link="log")}, lattice_conditions=(OWN,),
            identities={f"{name}/unit": fit.units for name, fit in self.datasets.items()}, units={CHANNEL: "s"})

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> EventWindows:
        """Every event of the split is scored in one window; a full one goes on in the next."""
        source = EventSource(Layout.of(store, self.config.bin_s))
        known(self.datasets, store.meta.dataset, store.url)
        return EventWindows.of(source, split, self.config.events, train=train)

    def starts(self, store: Store, split: SplitName) -> list[xr.Dataset]:
        """The first events of every block, as many as a window has of context, then the truth."""
        source, before = EventSource(Layout.of(store, self.config.bin_s)), max(self.config.events.before, 2)
        samples = [source.block(b) for b in source.layout.blocks(split)]
        return [s.assign_attrs(look_back=before) for s in samples if s.sizes["spike"] > before]

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        """Attributes: dataset; begin_s, before which nothing is scored; stop_s, until when the recording is known to go
        on without another event."""
        fit, where = fit_of(self.datasets, sample), sample.attrs.get("source", "sample")
        time, unit = events_of(sample, fit, where)
        if not len(time):
            raise InputError(where, key="spike_time", found="no event", expected="at least one to start from",
                             fix="choose a longer stretch")
        following = np.append(time[1:], sample.attrs.get("stop_s", time[-1])) - time
        later, first = np.append(unit[1:], -1), int(sample.attrs.get("scored_from", 0))
        low = np.clip(sample.attrs.get("begin_s", time[0]) - time, 0.0, None)
        low[:first], later[:first] = following[:first], -1
        target = self._target(fit, torch.tensor(low), torch.tensor(following), torch.from_numpy(later))
        waits = np.diff(time, prepend=time[0])
        return self._batch(fit, torch.tensor(time - time[0]), torch.from_numpy(unit), torch.tensor(waits),
                           torch.tensor(own_waits(time, unit)), target, (str(where),))

    def _target(self, fit: Fitted, low: Tensor, high: Tensor, unit: Tensor) -> Target:
        """Of times since each event, low … high in seconds ``(n,)``, that ended with an event of `unit` (−1: with none)."""
        edges = self.edges.double()
        time_in = exposure(low, high, edges)  # (n, J)
        value = time_in.new_zeros(len(low), len(fit.units), len(edges))
        ended = unit >= 0
        rows = torch.arange(len(low))[ended]
        last = place(high, edges)
        value[rows, unit[ended], last[ended]] = 1.0
        counted = (time_in > 0)[:, None, :] | (value > 0)
        rate = (fit.log_rate.double() - np.log(fit.bin_s))[:, None]
        base = rate + time_in.clamp_min(1e-12).log()[:, None, :]
        parts = (value.float(), counted, torch.where(counted, base, 0.0).float(), torch.ones_like(value).float())
        return Target(*(t[None] for t in parts))

    def _batch(self, fit: Fitted, time: Tensor, unit: Tensor, wait: Tensor, own: Tensor, target: Target,
               sources: tuple[str, ...]) -> TokenBatch:
        """time, wait, own in seconds ``(n,)``; own: since the same unit's last event."""
        scale, segment = self.scale_s or 1.0, torch.zeros(len(unit), dtype=torch.long)
        coord = (time / (REFERENCE_WAITS * scale)).float()[:, None]
        axis = identity("event", unit, f"{fit.name}/unit", coord=coord, unit="s", causal=True, segment=segment)
        values = torch.log1p(wait / scale).float()[None, :, None]
        lattice = {OWN: torch.log1p(own / (scale * len(fit.units))).float()[None]}
        return TokenBatch(self.name, fit.name, values, (CHANNEL,), (axis,), conditions=Conditions(lattice=lattice),
                          targets={HEAD: target}, sources=sources)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """Of what follows each event: ``spike_unit (sample, spike)`` the likeliest unit; ``gain (sample, token)`` in nats,
        the log-likelihood of what came less that of the mean rates; NaN where nothing was known."""
        target, x = batch.targets[HEAD], predictions[HEAD].detach().double()
        base, came = target.baseline.double(), target.value.double()
        mean, null = (torch.where(target.mask, t.exp(), 0.0).sum((2, 3))[0] for t in (x, base))  # (n,) each
        gain = (came * (x - base)).sum((2, 3))[0]  # log intensity less that of the mean rate
        happened, counted = came.sum((2, 3))[0] > 0, target.mask.flatten(2).any(-1)[0]
        unit = torch.where(target.mask, x.exp(), 0.0).sum(-1).argmax(-1)[0].double()
        columns = {"spike_unit": torch.where(happened, unit, torch.nan), "gain": torch.where(counted, gain - mean + null,
                                                                                             torch.nan)}
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
        """From the first `look_back` events (attribute; default all)."""
        fit, where = fit_of(self.datasets, sample), sample.attrs.get("source", "sample")
        time, unit = (part[:int(sample.attrs.get("look_back", len(sample["spike_time"])))]
                      for part in events_of(sample, fit, where))
        batch = self.encode(xr.Dataset({"spike_time": ("spike", time), "spike_unit": ("spike", unit)},
                                       coords={"unit": list(fit.units)}, attrs={"dataset": fit.name, "source": where}))
        last = np.full(len(fit.units), time[0] - time[-1])
        np.maximum.at(last, unit, time - time[-1])
        blind = replace(batch.targets[HEAD], mask=torch.zeros_like(batch.targets[HEAD].mask))
        seed = int(sample.attrs.get("seed", self.config.sampling.seed))
        return State(replace(batch, targets={HEAD: blind}), cache=[],
                     rng=torch.Generator().manual_seed(seed).get_state(), extra={
                         "since": -torch.tensor(last), "at": torch.tensor(time[-1]),
                         "place": torch.tensor(time[-1] - time[0])})

    def advance(self, state: State, outputs: Outputs) -> State:
        """The next event: its wait and unit drawn from the hazard after the last one."""
        fit = known(self.datasets, state.batch.dataset, "rollout")
        generator = torch.Generator()
        assert state.rng is not None
        generator.set_state(state.rng)
        rate = (fit.log_rate.double() - np.log(fit.bin_s))[:, None]
        log_hazard = (rate + outputs[HEAD][0, -1].double()).clamp(-30.0, 12.0)
        wait, unit = draw_event(log_hazard, self.edges.double(), self.config.sampling, generator)
        since = state.extra["since"] + wait
        own = since[unit]
        where = state.extra["place"] + wait
        none = torch.zeros(1, dtype=torch.float64)
        target = self._target(fit, none, none, torch.full((1,), -1))
        batch = self._batch(fit, where, unit, wait, own, target, state.batch.sources)
        since = since.index_fill(0, unit, 0.0)
        at = state.extra["at"] + wait[0]
        return replace(state, batch=batch, step=state.step + 1, elapsed=state.elapsed + float(wait.detach()),
                       rng=generator.get_state(), extra={"since": since, "at": at, "place": where[0]})

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
        windows = replace(self.open(store, split), train=False)
        return [Question("next_event", windows, block=DEPENDENT_WINDOWS,
                         options={"events": windows.num_events / max(len(windows), 1)})]

    def metrics(self) -> tuple[Metric, ...]:
        return METRICS[:1]

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        """bits/spike over homogeneous Poisson units at their training rates, per window as a share of the split's."""
        gain = np.nansum(prediction["gain"].values, 1)
        return {"bits_per_spike": gain / (question.options["events"] * np.log(2))}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts = {name: fit.state() for name, fit in self.datasets.items()}
        config = {"config": self.config.model_dump(mode="json"), "scale_s": self.scale_s,
                  "datasets": {name: part[0] for name, part in parts.items()}}
        return config, {f"{name}/{key}": array for name, part in parts.items() for key, array in part[1].items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        datasets = {}
        for name, part in config["datasets"].items():
            own = {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}
            datasets[name] = Fitted.restore(name, part, own)
        return cls(validate(SpikesConfig, config["config"], where="checkpoint"), datasets, config["scale_s"])
