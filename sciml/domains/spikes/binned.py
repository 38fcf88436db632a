"""Counts or traces in bins, on the lattice (unit: set, time): next bins, hidden cells and labels from one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Windows, arrays_of, joined
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.spikes.calibrate import next_bins
from sciml.domains.spikes.config import LABELLED, SpikesConfig, reconfigured
from sciml.domains.spikes.encode import (
    DISPERSION,
    Frame,
    Window,
    channel,
    covariates,
    encode_window,
    head_of,
    inputs,
    rate_target,
    window_of,
)
from sciml.domains.spikes.fitted import Fitted, fit_of, known, same_units
from sciml.domains.spikes.fitted import fit as fit_dataset
from sciml.domains.spikes.floors import NAMES
from sciml.domains.spikes.history import HistoryState
from sciml.domains.spikes.layout import Layout
from sciml.domains.spikes.noise import CountNoise, Noise, TraceNoise
from sciml.domains.spikes.noise import restore as restore_noise
from sciml.domains.spikes.scores import METRICS, normaliser
from sciml.domains.spikes.scores import score as score_windows
from sciml.domains.spikes.windows import Source, SpikeWindows, split_windows
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import HeadSpec, Outputs, Slots, State, TokenBatch, TokenSpec

DEPENDENT_S = 10.0
REFERENCE_BINS = 32
MOST_PER_BIN = 2
QUESTIONS = {"next": "next_bin"}


@dataclass(frozen=True)
class Binned:
    """Log-rates that correct each unit's mean rate (link space: log spikes per bin) or standardised traces;
    standardised behaviour, log-probabilities of states, places in an embedding.

    datasets: what is known of each, by name. reference_s: the time by which coordinates are divided, of the first data
    set fitted. noises: by data set, how bins scatter around what the trained operator expects of them. A rollout step
    draws one bin of all units given the past: together, as `calibrated` found them to scatter; before that, each by
    itself, counts Poisson and traces normal.
    """

    config: SpikesConfig
    datasets: Mapping[str, Fitted] = field(default_factory=dict)
    reference_s: float | None = None
    noises: Mapping[str, Noise] = field(default_factory=dict)
    name: str = "spikes"
    differentiate: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        return self.config.objective

    @property
    def baseline_name(self) -> str:
        return "glm" if self.config.floor == "glm" else "smoothed rate"

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(validate(SpikesConfig, dict(config), where="domains.spikes"))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        return replace(self, config=reconfigured(self.config, config))

    def fit(self, store: Store) -> Self:
        """Reads the training and validation splits only. See `sciml.domains.spikes.fitted.fit`. Raises `InputError` if
        the data set is known with other units: they are other rows."""
        fitted = fit_dataset(store, self.config)
        same_units(self.datasets, fitted, store.url)
        reference = self.reference_s or REFERENCE_BINS * fitted.bin_s
        return replace(self, datasets={**self.datasets, fitted.name: fitted}, reference_s=reference)

    def calibrated(self, forward: Callable[[TokenBatch], Outputs], windows: Windows) -> Self:
        """The same, with the noise of the data set that `windows` are of (`sciml.domains.spikes.noise`): it reads the
        training split of their store. Where next bins are not predicted, there is nothing to draw."""
        assert isinstance(windows, SpikeWindows)
        if "next" not in self.config.tasks:
            return self
        source = self._source(windows.source.layout.store)
        predicted, came = next_bins(self.encode, forward, source, self.config)
        noise = (TraceNoise.fit(predicted, came) if source.fit.signal == "trace"
                 else CountNoise.fit(predicted.double().exp(), came, _most(source.fit)))
        return replace(self, noises={**self.noises, source.fit.name: noise})

    def floor(self) -> Self:
        """The same adapter whose baseline is the classical predictor of each task."""
        return replace(self, config=self.config.model_copy(update={"corrects": "floor"}))

    def spec(self) -> TokenSpec:
        kind, frame = "members" if self.config.slots else "lattice", self.frame()
        own = frame.own_conditions
        fits = list(self.datasets.values())
        channels = tuple(dict.fromkeys(map(channel, fits)))
        heads = {}
        for fit in fits:
            for task in self.config.tasks:
                names = {"behaviour": frame.behaviours, "state": frame.states,
                         "embedding": tuple(f"axis_{i}" for i in range(frame.embedding.dims))}.get(task)
                logs = task == "state" or (names is None and fit.signal == "count")
                heads[head_of(fit, task)] = HeadSpec(kind if names is None else "along_time", names or (channel(fit),),
                                                     link="log" if logs else "identity")
            if frame.dispersed and fit.signal == "count":
                heads[DISPERSION] = HeadSpec(kind, (channel(fit),), link="log")
        return TokenSpec(
            domain=self.name, channels=channels, heads=heads, lattice_conditions=frame.lattice_conditions,
            identities={f"{name}/unit": fit.units for name, fit in self.datasets.items()}, patch=self.config.patch,
            stem="population" if self.config.slots else "",
            slots=Slots("unit", self.config.slots, own) if self.config.slots else None,
            units={channel(fit): fit.unit for fit in fits})

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> SpikeWindows:
        """Windows of all tasks for training, each batch with one of them; else of the first task."""
        tasks = list(self.config.tasks) if train else list(self.config.tasks)[:1]
        return split_windows(self._source(store), split, self.config, tasks, train=train)

    def starts(self, store: Store, split: SplitName) -> list[xr.Dataset]:
        """Every block of the split: its first bins to start from (as many as `tasks.next` sees before), then the
        truth."""
        source = self._source(store)
        before = self.config.tasks["next"].before if "next" in self.config.tasks else REFERENCE_BINS
        blocks = [b for b in source.layout.blocks(split) if b.stop - b.start > before]
        return [source.sample(b.group, b.start, b.stop).assign_attrs(look_back=before, task="next", causal=1)
                for b in blocks]

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        """Attributes: dataset, task (default: the first one configured), causal; scored_from and scored_to if only some
        bins are asked for. What a sample doesn't bring is not known."""
        fit = fit_of(self.datasets, sample)
        task: Any = str(sample.attrs.get("task", next(iter(self.config.tasks))))
        if task not in self.config.tasks:
            raise InputError(sample.attrs.get("source", "sample"), key="task", found=task,
                             expected=f"one of {', '.join(self.config.tasks)}", fix="train on that task first")
        if "causal" not in sample.attrs:
            sample = sample.assign_attrs(causal=int(self.config.tasks[task].causal))
        return encode_window(fit, self.frame(), sample, task)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """``count (sample, time, unit)``, expected per bin, or ``trace`` in its unit; ``behaviour_value (sample, time,
        behaviour)`` in its units; ``state_value (sample, time, state)``, probabilities; ``embedding (sample, time,
        axis)``.

        ``known``: where the batch holds a truth."""
        fit = known(self.datasets, batch.dataset, "batch")
        (head, target), = ((h, t) for h, t in batch.targets.items() if h != DISPERSION)
        value = predictions[head].detach().cpu().double()
        mask = target.mask.expand(value.shape).cpu().numpy()
        if head in LABELLED:
            return self._labels(fit, batch, head, value[:, 0], mask[:, 0])
        members, lattice = _members(batch), value[..., 0].numpy().swapaxes(1, 2)
        if fit.signal == "count":
            values = np.exp(lattice)
        else:
            centre, spread = (x.numpy()[members] for x in (fit.history.centre, fit.history.spread))
            values = lattice * spread + centre
        made = self._dataset(batch, fit.signal, "unit", values, mask[..., 0].swapaxes(1, 2))
        made[fit.signal].attrs["units"] = fit.unit
        return made.assign_coords(unit=[fit.units[i] for i in members])

    def _labels(self, fit: Fitted, batch: TokenBatch, task: str, value: Tensor, mask: np.ndarray) -> xr.Dataset:
        """Of ``(B, T, K)`` outputs of all names, those of the data set."""
        frame = self.frame()
        if task == "embedding":
            return self._dataset(batch, "embedding", "axis", value.numpy(), mask)
        own, names = (fit.behaviour, frame.behaviours) if task == "behaviour" else (fit.states, frame.states)
        place = [names.index(label) for label in own.labels]
        value, mask = value[..., place], mask[..., place]
        if task == "state":
            return self._dataset(batch, "state_value", "state", value.softmax(-1).numpy(), mask).assign_coords(
                state=list(own.labels))
        made = self._dataset(batch, "behaviour_value", "behaviour", value.numpy() * own.std + own.mean, mask)
        return made.assign_coords(behaviour=list(own.labels), behaviour_unit=("behaviour", list(own.units)))

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def initial(self, sample: xr.Dataset) -> State:
        """From the first `look_back` bins (attribute; default all); the truth after them is not used, but covariates
        are. Random numbers come from the seed of `sampling`, or the sample's attribute ``seed``."""
        if "next" not in self.config.tasks:
            raise InputError(sample.attrs.get("source", "sample"), key="tasks", found=", ".join(self.config.tasks),
                             expected="next among them", fix="train on tasks.next to generate activity")
        fit, frame = fit_of(self.datasets, sample), self.frame()
        steps = int(sample.attrs.get("look_back", sample.sizes["time"]))
        window = window_of(fit, frame, sample.isel(time=slice(0, steps)).assign_attrs(causal=1))
        ahead = covariates(sample, fit.stimulus.labels, "sample")[None, steps:]
        seed = int(sample.attrs.get("seed", self.config.sampling.seed))
        origin = float(sample["time"].values[0]) if "time" in sample.coords else 0.0
        batch, past = self._next(fit, window)
        extra = {"averages": past.averages, "recent": past.recent, "stimulus": ahead, "last": window.counts[:, -1],
                 "origin": torch.tensor(origin, dtype=torch.float64)}
        return State(batch, cache=[], rng=torch.Generator().manual_seed(seed).get_state(), extra=extra)

    def advance(self, state: State, outputs: Outputs) -> State:
        """One bin, drawn from the prediction for the bin after the last; time moves by the width of a bin."""
        fit = known(self.datasets, state.batch.dataset, "rollout")
        generator = torch.Generator()
        assert state.rng is not None
        generator.set_state(state.rng)
        batch, members = state.batch, _members(state.batch)
        head = head_of(fit, "next")
        mean = batch.targets[head].predict(outputs[head])[:, :, -1, 0]  # (B, N)
        drawn = self._noise(fit).draw(mean, members, self.config.sampling, generator)
        if fit.signal == "trace":
            spread, centre = (x[members].to(mean) for x in (fit.history.spread, fit.history.centre))
            drawn, expected = drawn * spread + centre, mean * spread + centre
        else:
            expected = mean.exp()
        first = round(float(batch.axes[1].coord[0, -1, 0]) * self.frame().reference_s / fit.bin_s) + 1
        ahead = state.extra["stimulus"]
        stimulus = ahead[:, :1] if ahead.shape[1] else drawn.new_full((len(drawn), 1, ahead.shape[2]), torch.nan)
        past = HistoryState(state.extra["recent"], state.extra["averages"])
        window = Window(drawn[:, None], past, stimulus, first, True, members, batch.sources)
        following, past = self._next(fit, window)
        extra = {"averages": past.averages, "recent": past.recent, "stimulus": ahead[:, 1:], "last": drawn,
                 "rate": expected, "origin": state.extra["origin"]}
        return replace(state, batch=following, step=state.step + 1, elapsed=(state.step + 1) * fit.bin_s,
                       rng=generator.get_state(), extra=extra)

    def observe(self, state: State) -> xr.Dataset:
        """The bin drawn last: ``count`` or ``trace (sample, time = 1, unit)`` and ``rate``, what was expected; before
        the first step, the last bin known."""
        fit, batch = known(self.datasets, state.batch.dataset, "rollout"), state.batch
        at = float(batch.axes[1].coord[0, -1, 0]) * self.frame().reference_s + float(state.extra["origin"])
        dims, attrs = ("sample", "time", "unit"), {"units": fit.unit}
        data = {name: (dims, state.extra[key].detach().cpu().double().numpy()[:, None], attrs)
                for name, key in ((fit.signal, "last"), ("rate", "rate")) if key in state.extra}
        when = np.full((batch.num_segments, 1), at)
        return xr.Dataset(data, coords={
            "valid_time": (("sample", "time"), when, {"units": "s"}), "unit": [fit.units[i] for i in _members(batch)],
            "source": ("sample", list(batch.sources))}, attrs={"domain": self.name, "dataset": fit.name})

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """One per task: `next_bin`, `masked` (the held-out units, if any are), `behaviour`, `state`, `embedding`."""
        source, result = self._source(store), []
        for task, window in self.config.tasks.items():
            windows = split_windows(source, split, self.config, [task])
            windows = replace(windows, train=False, blocks=source.layout.blocks(split))
            block = max(1, round(DEPENDENT_S / (window.scored * source.layout.bin_s)))
            result.append(Question(QUESTIONS.get(task, task), windows, block=block, options=normaliser(windows, task),
                                   baseline_name=NAMES[type(source.fit.floors[task])]))
        return result

    def metrics(self) -> tuple[Metric, ...]:
        return METRICS

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        return score_windows(dict(question.options), prediction, truth)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        datasets, arrays = joined({name: fit.state() for name, fit in self.datasets.items()})
        noises, more = joined({f"{name}/noise": noise.state() for name, noise in self.noises.items()})
        return {"config": self.config.model_dump(mode="json"), "reference_s": self.reference_s, "datasets": datasets,
                "noises": {name.removesuffix("/noise"): part for name, part in noises.items()}}, arrays | more

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        datasets = {name: Fitted.restore(name, part, arrays_of(name, arrays))
                    for name, part in config["datasets"].items()}
        noises = {name: restore_noise(part, arrays_of(f"{name}/noise", arrays))
                  for name, part in config["noises"].items()}
        return cls(validate(SpikesConfig, config["config"], where="checkpoint"), datasets, config["reference_s"],
                   noises)

    def _next(self, fit: Fitted, window: Window) -> tuple[TokenBatch, HistoryState]:
        """A causal batch whose every cell asks for the next bin, without a truth."""
        unknown = torch.full_like(window.counts, torch.nan)
        target = rate_target(fit, window.members, unknown, torch.zeros_like(unknown, dtype=torch.bool))
        return inputs(fit, self.frame(), window, {head_of(fit, "next"): target})

    def _noise(self, fit: Fitted) -> Noise:
        if fit.name in self.noises:
            return self.noises[fit.name]
        if fit.signal == "count":
            return CountNoise.poisson(len(fit.units), _most(fit))
        error = np.array(fit.floors["next"].provenance["validation_rmse"]) / fit.history.spread.numpy()
        return TraceNoise(torch.from_numpy(error), torch.eye(len(error), dtype=torch.float64))

    def _source(self, store: Store) -> Source:
        fit = known(self.datasets, store.meta.dataset, store.url)
        missing = [task for task in self.config.tasks if task not in fit.floors]
        if missing:
            raise InputError(store.url, key="tasks", found=f"{', '.join(missing)}, which {fit.name} was not fitted for",
                             expected=f"some of {', '.join(fit.floors)}",
                             fix="fit the data set for them first (sciml finetune)")
        return Source(Layout.of(store, self.config.bin_s, self.config.behaviours), fit)

    def frame(self) -> Frame:
        """What is common to all data sets that are known."""
        def union(name: str) -> tuple[str, ...]:
            return tuple(dict.fromkeys(n for fit in self.datasets.values() for n in getattr(fit, name).labels))
        config = self.config
        return Frame(self.reference_s or 1.0, config.slow_s, config.lags, union("behaviour"), union("states"),
                     union("stimulus"), config.corrects == "floor", config.embedding,
                     config.likelihood == "negative_binomial" and not {"next", "masked"}.isdisjoint(config.tasks))

    def _dataset(self, batch: TokenBatch, name: str, dim: str, values: np.ndarray, mask: np.ndarray) -> xr.Dataset:
        dims = ("sample", "time", dim)
        return xr.Dataset({name: (dims, values), "known": (dims, mask)},
                          coords={"source": ("sample", list(batch.sources))},
                          attrs={"domain": self.name, "dataset": batch.dataset})


def _members(batch: TokenBatch) -> np.ndarray:
    ids = batch.axes[0].ids
    assert ids is not None
    return ids[0].cpu().numpy()


def _most(fit: Fitted) -> int:
    """Counts that a bin can hold in generation: far beyond what the busiest unit's mean makes likely."""
    busiest = float(fit.history.rate.max())
    return int(8 + MOST_PER_BIN * busiest + 8 * busiest**0.5)
