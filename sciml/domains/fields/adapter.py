"""The adapter of fields: physical states on a grid to tokens and back, one lead time ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Sample, Windows
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.fields import contract as contracts
from sciml.domains.fields import damping as damped
from sciml.domains.fields import project, scores, solving, spectral, trust
from sciml.domains.fields.asking import Fitted, ask
from sciml.domains.fields.baseline import MEANS, Mean, Persistence, fit_means, mean_arrays, means_of
from sciml.domains.fields.config import Contract, FieldsConfig, allowed, fitting, shortest
from sciml.domains.fields.damping import Damping, fit_damping
from sciml.domains.fields.encode import DOMAIN, HEAD, LEAD, Encoded, encoded, physical
from sciml.domains.fields.trust import SPLIT
from sciml.domains.fields.windows import Blocks, Cases, Frame, Pairs, Stretches
from sciml.errors import InputError
from sciml.recipe import Named, validate
from sciml.tokens import HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec

FITTED = (spectral.PREFIX, damped.PREFIX, MEANS)
"""How the names of arrays begin that are not of plain persistence."""


@dataclass(frozen=True)
class Fields:
    """Fields on 1-D, 2-D and 3-D grids, periodic or not, several variables, persistence as the baseline; of steady data
    the training mean.

    Link space: ``(x(t + lead) − center) / scale`` per variable; the operator gives what the baseline misses, in units
    of the residual scale at that lead. datasets: data set → what is known of it; the first fixes the reference length
    and time of all that are measured in the same units.
    """

    config: FieldsConfig = field(default_factory=FieldsConfig)
    datasets: Mapping[str, Contract] = field(default_factory=dict)
    baseline: Persistence = field(default_factory=Persistence)
    spectra: Mapping[str, spectral.Curves] = field(default_factory=dict)
    name: str = DOMAIN
    differentiate: tuple[str, ...] = ()
    objective: str = "relative_l2"
    means: Mapping[str, Mapping[str, Mean]] = field(default_factory=dict)
    damping: Mapping[str, Damping] = field(default_factory=dict)

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        chosen = validate(FieldsConfig, dict(config), where="domains.fields")
        return cls(chosen, objective=chosen.objective)

    @property
    def baseline_name(self) -> str:
        return "persistence"

    def floor(self) -> Self:
        return replace(self, spectra={}, damping={}) if self.spectra or self.damping else self

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        chosen = validate(FieldsConfig, dict(config), where="domains.fields")
        return replace(self, config=chosen, objective=chosen.objective, spectra=self.spectra if chosen.spectral else {},
                       damping=self.damping if chosen.damped else {})

    def fit(self, store: Store) -> Self:
        """Learn a data set; one that is known keeps what is known of it, and is fitted what another configuration asks
        for beside."""
        meta = store.meta
        if meta.domain != self.name:
            raise InputError(store.url, key="domain", found=meta.domain, expected=self.name,
                             fix=f"use the adapter of {meta.domain}")
        old = self.datasets.get(meta.dataset)
        learnt = old or contracts.learn(store, self.datasets)
        if learnt.scattered and not self.config.fixed_patch:
            raise InputError(store.url, key="domains.fields.fixed_patch", found="false, of scattered points",
                             expected="true: points have places, and no cells to be counted",
                             fix="leave fixed_patch out")
        if learnt.scattered and self.config.detail:
            raise InputError(store.url, key="domains.fields.detail", found="true, of scattered points",
                             expected="false: neighbours of points are not those of cells", fix="leave detail out")
        project.checked(store, learnt, self.config.project)
        spectra, (means, damping) = self._with_spectra(store, learnt), self._with_damping(store, learnt)
        if old is not None:
            same = spectra is self.spectra and damping is self.damping
            return self if same else replace(self, spectra=spectra, means=means, damping=damping)
        datasets = {**self.datasets, meta.dataset: learnt}
        if learnt.steady:
            return replace(self, datasets=datasets, means={**self.means, meta.dataset: fit_means(store, learnt)})
        baseline = self.baseline.add(meta.dataset, contracts.curves(store, learnt), meta.split_identity())
        return replace(self, datasets=datasets, baseline=baseline, spectra=spectra, means=means, damping=damping)

    def _with_spectra(self, store: Store, known: Contract) -> Mapping[str, spectral.Curves]:
        dataset = store.meta.dataset
        if known.steady or not self.config.spectral or dataset in self.spectra or not spectral.applies(store, known):
            return self.spectra
        return {**self.spectra, dataset: spectral.fit_curves(store, known, self.config.leads)}

    def _with_damping(self, store: Store, known: Contract) -> tuple[Mapping[str, Mapping[str, Mean]],
                                                                    Mapping[str, Damping]]:
        dataset = store.meta.dataset
        if known.steady or not self.config.damped or dataset in self.damping:
            return self.means, self.damping
        if known.scattered:
            raise InputError(store.url, key="domains.fields.damped", found="true, of scattered points",
                             expected="a grid, of which there is a mean", fix="leave damped out")
        means = fit_means(store, known)
        damping = fit_damping(store, known, means, self.config.leads)
        return {**self.means, dataset: means}, {**self.damping, dataset: damping}

    def spec(self) -> TokenSpec:
        known = list(self.datasets.values())
        project.check_names(self.datasets, self.config.project)
        states = {f"fields/{n}": s.unit for c in reversed(known) for n, s in c.states.items()}
        channels = tuple(dict.fromkeys(f"fields/{n}" for c in known for n in c.states))
        first = known[0] if known else None
        length = self.config.patch * first.spacing / first.length if first and self.config.fixed_patch else None
        meshes = any(contract.scattered for contract in known)
        kind = "graph" if meshes else "cells" if self.config.detail else "lattice"
        return TokenSpec(
            domain=self.name, channels=channels, heads={HEAD: HeadSpec(kind, channels)},
            stem="" if kind == "lattice" else kind,
            lattice_conditions=tuple(dict.fromkeys(f"fields/{n}" for c in known for n in (*c.forcings, *c.masks))),
            vector_conditions=tuple(dict.fromkeys([LEAD, *(f"fields/{n}" for c in known for n in c.parameters)])),
            patch=self.config.patch, patch_length=length, units=states)

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> Windows:
        frame, blocks = self._frame(store), store.meta.splits.of(split)
        augment, resolutions = (self.config.augment, self.config.resolutions) if train else ((), (1.0,))
        if frame.clock is None:
            return Cases.of(frame, blocks, augment, resolutions)
        return Pairs.of(frame, blocks, self.config.leads, random=train, augment=augment, resolutions=resolutions)

    def stretches(self, store: Store, split: SplitName, steps: int, *, train: bool = False,
                  spans: Sequence[int] = (1,)) -> Windows:
        """Windows of `steps` + 1 states at equal spacing, a lead of the recipe's; `train`: drawn and augmented as pairs
        are. spans: multiples of the spacing that are asked about, all of which have to be leads.

        Raises `InputError` where no lead or no trajectory of the split is long enough."""
        frame, blocks, leads = self._frame(store), store.meta.splits.of(split), self.config.leads
        varying = [name for name in contracts.given_cells(store.meta) if store.meta.evolves(name)]
        if varying and max(spans) > 1:
            raise InputError(store.url, key=varying[0], found="a forcing that changes in time",
                             expected="an autonomous equation", fix="choose a chain of single steps")
        longest = 0 if frame.clock is None else max((block.stop - block.start for block in blocks), default=0)
        usable = tuple(n for n in fitting(leads, (longest - 1) // steps) if all(allowed(leads, n * k) for k in spans))
        if not usable:
            raise InputError(store.url, key=f"split {split}", found=f"leads {leads}, at most {longest} states",
                             expected=f"{steps} equal steps, of which {list(spans)} at a time are a lead",
                             fix="chain fewer steps, add leads (domains.fields.leads), or use longer trajectories")
        augment, resolutions = (self.config.augment, self.config.resolutions) if train else ((), (1.0,))
        return Pairs.of(frame, blocks, usable if train else usable[:1], steps=steps, random=train, augment=augment,
                        resolutions=resolutions)

    def starts(self, store: Store, split: SplitName) -> Blocks:
        frame = self._frame(store)
        return Blocks(frame, () if frame.clock is None else store.meta.splits.of(split))

    def _frame(self, store: Store) -> Frame:
        return Frame.of(store, contracts.layout(store))

    def encode(self, sample: Sample) -> TokenBatch:
        """The state at the first time; asked for: the state one lead later, the truth where the sample has it.

        values ``(1, *space, C)``; what isn't finite or is masked is unobserved, and doesn't count in the target. The
        sample's attribute ``split``: the answer in two jumps is asked for, too (`sciml.domains.fields.trust`), which
        raises `InputError` where half the lead wasn't trained.
        """
        given, known = self._encoded(sample)
        batch, target = given.batch, self._ask(given.batch)
        if given.truth is not None:
            target = replace(target, value=given.truth[0], mask=given.truth[1])
        asked = {HEAD: target}
        if sample.attrs.get(SPLIT):
            if known.steady or given.later:
                raise InputError(batch.sources, key=SPLIT, found="no time, or forcings that vary in it",
                                 expected="an autonomous equation", fix="ask for the direct answer alone")
            if not self.config.any_dt:
                contracts.check_lead(known, self._leads(batch)[0] / 2, self.config.leads, batch.sources)
            asked[SPLIT] = replace(target, baseline=batch.values, scale=torch.ones_like(target.scale), spectrum=None)
        return replace(batch, targets=asked)

    def _encoded(self, sample: Sample) -> tuple[Encoded, Contract]:
        dataset = contracts.resolve(self.datasets, sample)
        known = self.datasets[dataset]
        contracts.check_grid(known, sample)
        lead = contracts.lead_time(known, sample, self.config.leads, self.config.any_dt)
        given = encoded(known, dataset, sample, lead)
        return replace(given, batch=project.keeping(given.batch, self.config.project)), known

    def _ask(self, batch: TokenBatch) -> Target:
        """The next state, unknown."""
        dataset = batch.dataset
        fitted = Fitted(self.baseline, self.spectra.get(dataset), self.config.spectral, self.means.get(dataset, {}),
                        self.damping.get(dataset))
        return ask(batch, self.datasets[dataset], self._leads(batch), fitted)

    def restated(self, batch: TokenBatch, values: Tensor) -> TokenBatch:
        """The same question about another present state, normalised ``(B, *space, C)``. Raises `InputError` for steady
        data, which have none."""
        if self.datasets[batch.dataset].steady:
            raise InputError(batch.sources, key="chain.noise", found=f"a steady data set, {batch.dataset}",
                             expected="a trajectory, whose states can be perturbed", fix="leave the noise out")
        batch, truth = replace(batch, values=values), batch.targets[HEAD]
        return replace(batch, targets={HEAD: replace(self._ask(batch), value=truth.value, mask=truth.mask)})

    def solved(self, batch: TokenBatch, solver: Named) -> Tensor:
        """`sciml.domains.fields.solving.solved` at the batch's own lead times."""
        return solving.solved(self.datasets[batch.dataset], batch, self._leads(batch), solver)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """``(sample, *space)`` in physical units; NaN where there is no truth or, unknown that, no observation (of
        steady data, where it is outside). ``<name>_split``: the answer in two jumps."""
        known = self.datasets[batch.dataset]
        asked = batch.targets[HEAD].mask if HEAD in batch.targets else None
        shown = asked if asked is not None and bool(asked.any()) else batch.observed
        if shown is batch.observed and known.scattered:
            shown = None  # points where nothing is observed are queries
        if shown is batch.observed and known.steady:
            inside = [batch.conditions.lattice[f"{DOMAIN}/{name}"] > 0 for name in known.masks]
            shown = torch.stack(inside).all(0)[..., None] if inside else None
        parts = []
        for head, normal in predictions.items():
            normal = normal.detach().cpu()
            normal = normal if shown is None else normal.masked_fill(~shown.cpu(), torch.nan)
            parts.append(physical(known, batch, normal, "" if head == HEAD else f"_{head}"))
        return parts[0].assign({name: array for part in parts[1:] for name, array in part.data_vars.items()})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """Projected (`sciml.domains.fields.project`), and where asked for, the answer in two jumps."""
        outputs = self._projected(batch, operate(batch))
        if SPLIT in batch.targets:
            half = replace(batch, conditions=replace(batch.conditions, vector={
                **batch.conditions.vector, LEAD: batch.conditions.vector[LEAD] / 2}))
            for _ in range(2):
                half = replace(half, targets={HEAD: self._ask(half)})
                values = half.targets[HEAD].predict(self._projected(half, operate(half))[HEAD])
                half = replace(half, values=self._kept_unknown(half, values))
            target = batch.targets[SPLIT]
            outputs = Outputs({**outputs.heads, SPLIT: (half.values - target.baseline) / target.scale}, outputs.cache)
        return outputs

    def _projected(self, batch: TokenBatch, outputs: Outputs) -> Outputs:
        chosen = self.config.project
        if not (chosen.divergence_free or chosen.mean):
            return outputs
        output = project.projected(outputs[HEAD], batch.targets[HEAD], batch, self.datasets[batch.dataset], chosen)
        return Outputs({**outputs.heads, HEAD: output}, outputs.cache)

    def _kept_unknown(self, batch: TokenBatch, values: Tensor) -> Tensor:
        return values if batch.observed is None else values.masked_fill(~batch.observed, 0.0)

    def initial(self, sample: Sample) -> State:
        """The state at the sample's first time. Forcings that change in time must be given for all steps to come."""
        given, known = self._encoded(sample)
        if known.steady:
            raise InputError(given.batch.sources, key="time", found="a steady data set", expected="a trajectory",
                             fix="ask for its solution: predictor.predict(sample)")
        state = replace(given.batch, targets={HEAD: self._ask(given.batch)})
        return State(state, extra={n: f[None] for n, f in given.later.items()})

    def advance(self, state: State, outputs: Outputs) -> State:
        """The prediction becomes the state and time moves on by the lead; unobserved cells stay so. Where samples of a
        batch have leads of their own, the time elapsed is NaN."""
        batch, step = state.batch, state.step + 1
        values = self._kept_unknown(batch, batch.targets[HEAD].predict(outputs[HEAD]))
        lattice = dict(batch.conditions.lattice)
        for name, forcing in state.extra.items():
            if step >= forcing.shape[1]:
                raise InputError(batch.sources, key=name, found=f"{forcing.shape[1]} times", expected=f"step {step}",
                                 fix="give the forcing at every time of the rollout, or make fewer steps")
            lattice[name] = forcing[:, step]
        batch = replace(batch, values=values, conditions=replace(batch.conditions, lattice=lattice))
        leads = self._leads(batch)
        moved = replace(batch, targets={HEAD: self._ask(batch)})
        elapsed = state.elapsed + leads[0] if len(set(leads)) == 1 else math.nan
        return replace(state, batch=moved, step=step, elapsed=elapsed)

    def _leads(self, batch: TokenBatch) -> list[float]:
        """``(B,)`` in the data set's unit of time; whole steps exactly."""
        known = self.datasets[batch.dataset]
        return [contracts.whole_steps(lead * known.time, known.dt) for lead in batch.conditions.vector[LEAD].tolist()]

    def observe(self, state: State) -> xr.Dataset:
        """The state ``(sample, *space)`` with the time elapsed since the start as the coordinate ``time``.

        Raises `InputError` for a batch of several lead times: it has no one time."""
        known = self.datasets[state.batch.dataset]
        if len(set(self._leads(state.batch))) > 1:
            raise InputError(state.batch.sources, key=LEAD, found=state.batch.conditions.vector[LEAD].tolist(),
                             expected="one lead time in a rollout batch",
                             fix="roll out samples of different lead times in different batches")
        now = self.decode(state.batch, {HEAD: state.batch.values})
        return now.assign_coords(time=((), state.elapsed, {"units": known.time_unit}))

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """``steady``: all cases. Else ``one_step``: all pairs at the shortest lead; ``direct_<n>``: at the leads asked
        for; ``trust``: a jump beside two, where several leads were trained; ``rollout_12``: stretches of that many
        steps, or what fits."""
        frame, blocks, config = self._frame(store), store.meta.splits.of(split), self.config
        if frame.clock is None:
            return [Question("steady", Cases.of(frame, blocks), baseline_name="training_mean", shown=0)]
        longest, first = max((block.stop - block.start for block in blocks), default=0), shortest(config.leads)

        def direct(name: str, lead: int) -> Question:
            return Question(name, Pairs.of(frame, blocks, (lead,)), block=max(1, longest - lead), shown=0)

        asked = [direct("one_step", first)]
        asked += [direct(f"direct_{lead}", lead) for lead in config.asked if first < lead < longest]
        half = trust.splittable(config.leads, blocks)
        if half is not None and not any(store.meta.evolves(n) for n in contracts.given_cells(store.meta)):
            jumps = direct("trust", 2 * half)
            asked.append(replace(jumps, windows=trust.Halved(jumps.windows)))
        steps = min(config.rollout_steps, longest - 1)
        if first == 1 and steps > 1:
            asked.append(Question(f"rollout_{steps}", Stretches.of(frame, blocks, steps), steps=steps,
                                  block=max(1, (longest - 1) // steps)))
        return asked

    def metrics(self) -> tuple[Metric, ...]:
        return scores.metrics(self.datasets)

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        halved = [str(name) for name in truth.data_vars if str(name).endswith(f"_{SPLIT}")]
        known = self.datasets[contracts.resolve(self.datasets, truth.drop_vars(halved))]
        return scores.score(known, question.steps, prediction, truth)

    def across(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With the correlation of an estimated error with the true one, of the question ``trust``."""
        return trust.across(scores)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        baseline, arrays = self.baseline.state()
        arrays = {**arrays, **spectral.arrays(self.spectra), **mean_arrays(self.means), **damped.arrays(self.damping)}
        datasets = {name: known.model_dump(mode="json") for name, known in self.datasets.items()}
        return {"config": self.config.model_dump(mode="json"), "datasets": datasets, "baseline": baseline}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        chosen = validate(FieldsConfig, config["config"], where="checkpoint domains.fields")
        datasets = {name: validate(Contract, raw, where=f"checkpoint domains.fields.{name}")
                    for name, raw in config["datasets"].items()}
        plain = {name: array for name, array in arrays.items() if not name.startswith(FITTED)}
        states = {name: tuple(known.states) for name, known in datasets.items()}
        return cls(chosen, datasets, Persistence.restore(config["baseline"], plain), spectral.of(arrays, states),
                   objective=chosen.objective, means=means_of(arrays), damping=damped.of(arrays))
