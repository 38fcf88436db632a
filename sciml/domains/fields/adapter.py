"""The adapter of fields: physical states on a grid to tokens and back, one lead time ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.adapter import Arrays, Metric, Operate, Question, Sample
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.fields import contract as contracts
from sciml.domains.fields import scores, spectral
from sciml.domains.fields.baseline import Persistence
from sciml.domains.fields.config import Contract, FieldsConfig, Scaling
from sciml.domains.fields.windows import Blocks, Frame, Pairs, Stretches
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import Conditions, HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec

HEAD = "state"
LEAD = "lead_time"
SPECTRA = "spectra:"


@dataclass(frozen=True)
class Fields:
    """Fields on 1-D, 2-D and 3-D grids, periodic or not, several variables, persistence as the baseline.

    Link space: ``(x(t + lead) − center) / scale`` per variable; the operator gives what persistence misses, in units of
    the residual scale at that lead. datasets: data set → what is known of it; the first fixes the reference length and
    time of all that are measured in the same units.
    """

    config: FieldsConfig = field(default_factory=FieldsConfig)
    datasets: Mapping[str, Contract] = field(default_factory=dict)
    baseline: Persistence = field(default_factory=Persistence)
    spectra: Mapping[str, spectral.Curves] = field(default_factory=dict)
    name: str = "fields"
    differentiate: tuple[str, ...] = ()
    objective: str = "relative_l2"

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        chosen = validate(FieldsConfig, dict(config), where="domains.fields")
        return cls(chosen, objective=chosen.objective)

    @property
    def baseline_name(self) -> str:
        return "persistence"

    def floor(self) -> Self:
        return replace(self, spectra={}) if self.spectra else self

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        return replace(self, config=validate(FieldsConfig, dict(config), where="domains.fields"))

    def fit(self, store: Store) -> Self:
        """Learn a data set; one that is known keeps what is known of it."""
        meta = store.meta
        if meta.domain != self.name:
            raise InputError(store.url, key="domain", found=meta.domain, expected=self.name,
                             fix=f"use the adapter of {meta.domain}")
        if meta.dataset in self.datasets:
            return self
        learnt = contracts.learn(store, self.datasets)
        baseline = self.baseline.add(meta.dataset, contracts.curves(store, learnt), meta.split_identity())
        spectra = dict(self.spectra)
        if self.config.spectral and spectral.applies(store, learnt):
            spectra[meta.dataset] = spectral.fit_curves(store, learnt, self.config.leads)
        return replace(self, datasets={**self.datasets, meta.dataset: learnt}, baseline=baseline, spectra=spectra)

    def spec(self) -> TokenSpec:
        known = list(self.datasets.values())
        states = {f"fields/{n}": s.unit for c in reversed(known) for n, s in c.states.items()}
        channels = tuple(dict.fromkeys(f"fields/{n}" for c in known for n in c.states))
        first = known[0] if known else None
        length = self.config.patch * first.spacing / first.length if first and self.config.fixed_patch else None
        return TokenSpec(
            domain=self.name, channels=channels, heads={HEAD: HeadSpec("lattice", channels)},
            lattice_conditions=tuple(dict.fromkeys(f"fields/{n}" for c in known for n in (*c.forcings, *c.masks))),
            vector_conditions=tuple(dict.fromkeys([LEAD, *(f"fields/{n}" for c in known for n in c.parameters)])),
            patch=self.config.patch, patch_length=length, units=states)

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> Pairs:
        return Pairs.of(self._frame(store), store.meta.splits.of(split), self.config.leads, random=train,
                        shift=train and "shift" in self.config.augment)

    def starts(self, store: Store, split: SplitName) -> Blocks:
        return Blocks(self._frame(store), store.meta.splits.of(split))

    def _frame(self, store: Store) -> Frame:
        states = store.meta.of_role("state")
        if store.meta.domain != self.name or not states or store.meta.dt is None:
            raise InputError(store.url, key="domain", found=f"{store.meta.domain}, dt {store.meta.dt}",
                             expected="trajectories of fields with a uniform time step", fix="use a store of fields")
        return Frame.of(store, store.meta.variables[states[0]].dims[1:])

    def encode(self, sample: Sample) -> TokenBatch:
        """The state at the first time; asked for: the state one lead later, the truth where the sample has it.

        values ``(1, *space, C)``; conditions: lead in reference times and parameters per segment, forcings and masks on
        the lattice. What isn't finite or is masked is unobserved, and doesn't count in the target.
        """
        return self._encode(sample)[0]

    def _encode(self, sample: Sample) -> tuple[TokenBatch, dict[str, Tensor]]:
        dataset = contracts.resolve(self.datasets, sample)
        known = self.datasets[dataset]
        contracts.check_grid(known, sample)
        lead = contracts.lead_time(known, sample, self.config.leads, self.config.any_dt)
        inside = contracts.interior(known, sample)
        states = _standard(known, sample, "states", needed=False)
        stacked = np.stack(list(states.values()), -1)  # (time, *space, C)
        seen = np.isfinite(stacked) & inside[..., None]
        values = _tensor(np.where(seen, stacked, 0.0))
        forcings = {n: _tensor(f) for n, f in _standard(known, sample, "forcings", inside=inside).items()}
        later = {n: f for n, f in forcings.items() if f.ndim > inside.ndim}
        lattice = {n: (f[0] if n in later else f)[None] for n, f in forcings.items()}
        if known.masks:
            lattice |= {f"fields/{n}": _tensor(sample[n].transpose(*known.names).values)[None] for n in known.masks}
        vector = {n: _tensor(v.reshape(1)) for n, v in _standard(known, sample, "parameters").items()}
        batch = TokenBatch(
            domain=self.name, dataset=dataset, values=values[:1], channels=tuple(states),
            axes=tuple(_axis(sample.variables[name], known) for name in known.names),
            observed=None if seen[0].all() else torch.from_numpy(seen[:1]),
            conditions=Conditions({LEAD: _tensor(np.array([lead / known.time])), **vector}, lattice),
            sources=(str(sample.attrs.get("source", dataset)),))
        target = self._ask(batch, known, lead)
        if len(stacked) > 1:
            target = replace(target, value=values[1:2], mask=torch.from_numpy(seen[:1] & seen[1:2]))
        return replace(batch, targets={HEAD: target}), later

    def _ask(self, batch: TokenBatch, known: Contract, lead: float) -> Target:
        """The next state, unknown: the baseline and the scale of what it misses, per channel (and wavenumber)."""
        ones, count = (1,) * len(known.axes), len(batch.values)
        mask = torch.zeros((count, *ones, 1), dtype=torch.bool, device=batch.values.device)
        if batch.dataset in self.spectra and batch.observed is None:
            return self._ask_by_wavenumber(batch, known, lead, mask)
        scale = [self.baseline.scale(batch.dataset, n, lead) / s.scale for n, s in known.states.items()]
        return Target(value=batch.values, baseline=batch.values, mask=mask,
                      scale=batch.values.new_tensor(scale).view(1, *ones, -1).expand(count, *ones, -1))

    def _ask_by_wavenumber(self, batch: TokenBatch, known: Contract, lead: float, mask: Tensor) -> Target:
        periods = [float(axis.period.flatten()[0]) for axis in batch.axes if axis.period is not None]
        damping, gain = [], []
        for curves in self.spectra[batch.dataset].values():
            nearest = min(curves, key=lambda steps: abs(np.log(steps * known.dt / lead)))
            parts = spectral.gains(curves[nearest], batch.lattice, periods, self.config.spectral)
            damping.append(parts[0])
            gain.append(parts[1])
        keep, spectrum = (batch.values.new_tensor(np.stack(part, -1))[None] for part in (damping, gain))
        return Target(value=batch.values, baseline=tokens.filter_wavenumbers(batch.values, keep), mask=mask,
                      scale=batch.values.new_ones(mask.shape), spectrum=spectrum.expand(len(mask), *spectrum.shape[1:]))

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """``(sample, *space)`` in physical units; NaN where there is no truth or, unknown that, no observation."""
        known = self.datasets[batch.dataset]
        normal = predictions[HEAD].detach().cpu()
        asked = batch.targets[HEAD].mask if HEAD in batch.targets else None
        shown = asked if asked is not None and bool(asked.any()) else batch.observed
        if shown is not None:
            normal = normal.masked_fill(~shown.cpu(), torch.nan)
        coords = {}
        for a, axis in zip(known.axes, batch.axes):
            attrs: dict[str, Any] = {"units": a.unit}
            if axis.period is not None:
                attrs["period"] = float(axis.period.flatten()[0]) * known.length
            coords[a.name] = (a.name, axis.coord[0, :, 0].detach().cpu().double().numpy() * known.length, attrs)
        dims = ("sample", *known.names)
        states = {}
        for i, (name, s) in enumerate(known.states.items()):
            attrs = {"units": s.unit} | ({"long_name": s.long_name} if s.long_name else {})
            states[name] = (dims, (normal[..., i].double() * s.scale + s.center).to(normal.dtype).numpy(), attrs)
        return xr.Dataset(states, coords=coords, attrs={"domain": self.name, "dataset": batch.dataset})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def initial(self, sample: Sample) -> State:
        """The state at the sample's first time. Forcings that change in time must be given for all steps to come."""
        batch, later = self._encode(sample)
        known = self.datasets[batch.dataset]
        unknown = self._ask(batch, known, self._lead(batch))
        return State(replace(batch, targets={HEAD: unknown}), extra={n: f[None] for n, f in later.items()})

    def advance(self, state: State, outputs: Outputs) -> State:
        """The prediction becomes the state and time moves on by the lead; unobserved cells stay so."""
        batch = state.batch
        values = batch.targets[HEAD].predict(outputs[HEAD])
        if batch.observed is not None:
            values = values.masked_fill(~batch.observed, 0.0)
        step = state.step + 1
        lattice = dict(batch.conditions.lattice)
        for name, forcing in state.extra.items():
            if step >= forcing.shape[1]:
                raise InputError(batch.sources, key=name, found=f"{forcing.shape[1]} times", expected=f"step {step}",
                                 fix="give the forcing at every time of the rollout, or make fewer steps")
            lattice[name] = forcing[:, step]
        batch = replace(batch, values=values, conditions=replace(batch.conditions, lattice=lattice))
        lead = self._lead(batch)
        batch = replace(batch, targets={HEAD: self._ask(batch, self.datasets[batch.dataset], lead)})
        return replace(state, batch=batch, step=step, elapsed=state.elapsed + lead)

    def _lead(self, batch: TokenBatch) -> float:
        """In the data set's unit of time; whole steps exactly."""
        known = self.datasets[batch.dataset]
        leads = batch.conditions.vector[LEAD]
        if bool((leads != leads[0]).any()):
            raise InputError(batch.sources, key=LEAD, found=leads.tolist(), expected="one lead time in a rollout batch",
                             fix="roll out samples of different lead times in different batches")
        lead = float(leads[0]) * known.time
        steps = round(lead / known.dt)
        return steps * known.dt if steps and abs(lead / known.dt - steps) < 1e-5 * steps else lead

    def observe(self, state: State) -> xr.Dataset:
        """The state ``(sample, *space)`` with the time elapsed since the start as the coordinate ``time``."""
        known = self.datasets[state.batch.dataset]
        now = self.decode(state.batch, {HEAD: state.batch.values})
        return now.assign_coords(time=((), state.elapsed, {"units": known.time_unit}))

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """``one_step``: all pairs at the shortest lead. ``rollout_12``: stretches of that many steps, or what fits."""
        frame, blocks = self._frame(store), store.meta.splits.of(split)
        longest = max((block.stop - block.start for block in blocks), default=0)
        pairs = Pairs.of(frame, blocks, self.config.leads[:1])
        asked = [Question("one_step", pairs, block=max(1, longest - self.config.leads[0]), shown=0)]
        steps = min(self.config.rollout_steps, longest - 1)
        if self.config.leads[0] == 1 and steps > 1:
            asked.append(Question(f"rollout_{steps}", Stretches.of(frame, blocks, steps), steps=steps,
                                  block=max(1, (longest - 1) // steps)))
        return asked

    def metrics(self) -> tuple[Metric, ...]:
        states = {n: s.unit for c in self.datasets.values() for n, s in c.states.items()}
        times = {c.time_unit for c in self.datasets.values()}
        return scores.metrics(states, times.pop() if len(times) == 1 else "time")

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        dataset = contracts.resolve(self.datasets, truth)
        return scores.score(self.datasets[dataset], question.steps, prediction, truth)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        baseline, arrays = self.baseline.state()
        datasets = {name: known.model_dump(mode="json") for name, known in self.datasets.items()}
        arrays |= {f"{SPECTRA}{dataset}/{variable}/{lead}": curve for dataset, own in self.spectra.items()
                   for variable, leads in own.items() for lead, curve in leads.items()}
        return {"config": self.config.model_dump(mode="json"), "datasets": datasets, "baseline": baseline}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        chosen = validate(FieldsConfig, config["config"], where="checkpoint domains.fields")
        datasets = {name: validate(Contract, raw, where=f"checkpoint domains.fields.{name}")
                    for name, raw in config["datasets"].items()}
        plain = {name: array for name, array in arrays.items() if not name.startswith(SPECTRA)}
        spectra: dict[str, spectral.Curves] = {}
        for name in arrays.keys() - plain.keys():
            dataset, variable, lead = name.removeprefix(SPECTRA).split("/")
            spectra.setdefault(dataset, {}).setdefault(variable, {})[int(lead)] = np.asarray(arrays[name], np.float64)
        ordered = {d: {n: dict(sorted(own[n].items())) for n in datasets[d].states} for d, own in spectra.items()}
        baseline = Persistence.restore(config["baseline"], plain)
        return cls(chosen, datasets, baseline, ordered, objective=chosen.objective)


def _standard(known: Contract, sample: Sample, kind: str, *, needed: bool = True,
              inside: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The sample's variables of a kind, normalised, by channel name; zero outside `inside`."""
    scalings: dict[str, Scaling] = getattr(known, kind)
    result = {}
    for name, values in contracts.read(known, sample, kind).items():
        if inside is not None and known.masks:
            values = np.where(inside, values, scalings[name].center)
        result[f"fields/{name}"] = contracts.normalise(values, scalings[name], name=name, sample=sample, needed=needed)
    return result


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.get_default_dtype())


def _axis(coord: xr.Variable, known: Contract) -> tokens.Axis:
    period = coord.attrs.get("period")
    place, unit = np.asarray(coord.values, np.float64), str(coord.attrs.get("units", "1"))
    return _shared_axis(str(coord.dims[0]), place.tobytes(), unit, None if period is None else float(period),
                        known.length, torch.get_default_dtype())


@lru_cache(maxsize=64)
def _shared_axis(name: str, place: bytes, unit: str, period: float | None, length: float,
                 dtype: torch.dtype) -> tokens.Axis:
    """One axis object for all samples on the same grid: made once, and seen to be the same when they are stacked."""
    coord = torch.as_tensor(np.frombuffer(place, np.float64) / length, dtype=dtype)
    return tokens.space(name, coord, unit=unit, period=None if period is None else period / length)
