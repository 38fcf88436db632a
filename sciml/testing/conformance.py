"""What every domain must keep, whoever wrote it. Each check raises an `AssertionError` that says what to do."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import checkpoint, registry
from sciml.adapter import Baseline, DomainAdapter, Sample
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate, unpack
from sciml.predictor import Predictor, forward, predictions, truths
from sciml.recipe import validate
from sciml.rollout import dump_state, restore_state, rollout
from sciml.testing.compare import close, difference, of_one_shape, own_heads, widened
from sciml.testing.parameters import stir, unusable
from sciml.tokens import Outputs, State, TokenBatch, TokenSpec, map_tensors

OPERATOR: dict[str, Any] = {
    "stem_width": 16, "condition_width": 16,
    "levels": [{"width": 32, "depth": 1, "depth_up": 1, "mixers": ["axial", "local"], "head_width": 16},
               {"width": 48, "depth": 1, "mixers": ["axial"], "head_width": 16}]}
SAMPLES = 3
SELECTED_ON: tuple[SplitName, ...] = ("train", "validation")


@dataclass(frozen=True)
class Subject:
    """A domain under examination: its class, the adapter fitted on all stores, a few samples and their batches.

    groups: the samples of one store that can be batched. unused: parameter → why the domain cannot use it.
    """

    domain: type[DomainAdapter]
    adapter: DomainAdapter
    stores: Sequence[Store]
    groups: Sequence[Sequence[Sample]]
    predictor: Predictor
    unused: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def samples(self) -> list[Sample]:
        return [sample for group in self.groups for sample in group]

    @property
    def spec(self) -> TokenSpec:
        return self.predictor.operator.specs[self.name]

    def hold(self, truth: object, message: str, fix: str) -> None:
        """Raise unless `truth`."""
        if not truth:
            raise AssertionError(f"domain {self.name}: {message}. Fix: {fix}")

    def equal(self, one: Any, two: Any, message: str, fix: str) -> None:
        found = difference(one, two)
        self.hold(found is None, f"{message} (at {found})", fix)

    def rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([0, *key])


def check_domain(domain: str | type[DomainAdapter], stores: Sequence[Store], *, config: Mapping[str, Any] | None = None,
                 operator: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Hold a domain against every promise of `sciml.adapter.DomainAdapter`, with a small operator.

    domain: its name in the group ``sciml.domains``, or its class. stores: small ones of that domain, one per data set,
    each with at least three samples of equal shape in its training split. config: its section of a recipe. operator:
    the section `operator`, if the domain needs other mixers. Returns the parameters it cannot use, each with the
    reason. Raises `AssertionError` with what is wrong and how to mend it.
    """
    subject = prepare(domain, stores, config=config, operator=operator)
    for check in CHECKS:
        check(subject)
    return subject.unused


def prepare(domain: str | type[DomainAdapter], stores: Sequence[Store], *, config: Mapping[str, Any] | None = None,
            operator: Mapping[str, Any] | None = None) -> Subject:
    """What the checks of `CHECKS` are called with."""
    cls = registry.find("sciml.domains", domain, where="check_domain") if isinstance(domain, str) else domain
    adapter = cls.create(dict(config or {}))
    for store in stores:
        adapter = adapter.fit(store)
    groups = []
    for number, store in enumerate(stores):
        windows = adapter.open(store, "train")
        groups.append(of_one_shape(adapter, windows, number, SAMPLES))
    torch.manual_seed(0)
    chosen = validate(OperatorConfig, dict(operator or OPERATOR), where="check_domain operator")
    made = Operator(chosen, {adapter.name: adapter.spec()})
    stir(made)
    return Subject(cls, adapter, stores, groups, Predictor(made.eval(), {adapter.name: adapter}))


def check_promises(subject: Subject) -> None:
    """Every member of the protocol is there; the objective exists; the spec survives JSON."""
    members = [name for name in vars(DomainAdapter) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(subject.adapter, name)]
    subject.hold(not missing, f"the adapter has no {', '.join(missing)}", "write them, see sciml.adapter.DomainAdapter")
    registry.find("sciml.objectives", subject.adapter.objective, where=f"domain {subject.name}")
    spec = subject.adapter.spec()
    again = checkpoint.spec_of(json.loads(json.dumps(asdict(spec))))
    subject.equal(replace(spec, heads=dict(spec.heads)), again, "spec() does not survive JSON",
                  "use str, int, float, tuple and dict only")
    few = [store.meta.dataset for store, group in zip(subject.stores, subject.groups) if len(group) < SAMPLES]
    subject.hold(not few, f"fewer than {SAMPLES} training windows in {few}", "hand check_domain a larger store")


def check_pickles(subject: Subject) -> None:
    """Adapter and windows work in another process as here."""
    copied: DomainAdapter = pickle.loads(pickle.dumps(subject.adapter))  # noqa: S301
    for sample in subject.samples:
        subject.equal(subject.adapter.encode(sample), copied.encode(sample), "a pickled adapter encodes differently",
                      "keep all state in the dataclass's fields")
    for number, store in enumerate(subject.stores):
        windows = subject.adapter.open(store, "train", train=True)
        other = pickle.loads(pickle.dumps(windows))  # noqa: S301
        drawn = [w.draw(1, subject.rng(number), subject.rng(number)) for w in (windows, other)]
        subject.hold(drawn[0].identical(drawn[1]), "the same keys draw different samples from pickled windows",
                     "take all that is random from rng and batch_rng")


def check_encoding(subject: Subject) -> None:
    """A batch of one, finite, that names only what spec() does."""
    spec = subject.spec
    for sample in subject.samples:
        batch, where = subject.adapter.encode(sample), f"{sample.attrs.get('source', '?')}: "
        subject.hold(batch.num_segments == 1 and len(batch.sources) == 1, where + "not one sample with its source",
                     "return a batch of one, sources=(sample.attrs['source'],)")
        for path, tensor in _floats(batch):
            subject.hold(bool(torch.isfinite(tensor).all()), f"{where}{path} is not finite",
                         "put 0 and observed = False where nothing is known")
        given = {"channels": set(batch.channels) - set(spec.channels),
                 "vector_conditions": set(batch.conditions.vector) - set(spec.vector_conditions),
                 "lattice_conditions": set(batch.conditions.lattice) - set(spec.lattice_conditions)}
        for what, unknown in given.items():
            subject.hold(not unknown, f"{where}{what} {sorted(unknown)} are not in spec()", "name them there")
        for axis in batch.axes:
            if axis.namespace is not None and axis.ids is not None:
                rows = len(spec.identities.get(axis.namespace, ()))
                subject.hold(int(axis.ids.max()) < rows, f"{where}axis {axis.name} has id {int(axis.ids.max())}, "
                             f"{axis.namespace} {rows} members", "name all members in spec().identities")


def _floats(batch: TokenBatch) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = [("values", batch.values)]
    found += [(f"axis {axis.name}", axis.coord) for axis in batch.axes]
    found += [(f"condition {k}", v) for k, v in (*batch.conditions.vector.items(), *batch.conditions.lattice.items())]
    for head, target in batch.targets.items():
        found += [(f"target {head}", t) for t in (target.value, target.baseline, target.scale)]
    return found


def check_truth(subject: Subject) -> None:
    """Outputs at the truth decode to the sample's values and bring the loss to its floor, 0."""
    objective = registry.find("sciml.objectives", subject.adapter.objective)
    for sample in subject.samples:
        batch = subject.adapter.encode(sample)
        subject.hold(any(bool(t.mask.any()) for t in batch.targets.values()), "a training window has no truth",
                     "encode the sample's later values as targets, mask True where they are known")
        # a gain per wavenumber may be zero, hence has no inverse: the truth is held against the plain scale
        batch = replace(batch, targets={h: replace(t, spectrum=None) for h, t in batch.targets.items()})
        best = truths(subject.spec, batch)
        outputs = Outputs({h: (best[h] - t.baseline) / t.scale for h, t in batch.targets.items()})
        loss = float(objective(outputs, batch).abs().max())
        subject.hold(loss <= 1e-4, f"the loss at the truth is {loss:g}, not 0",
                     "make value, baseline and scale of the target agree, and HeadSpec.link with the objective")
        _same_values(subject, subject.adapter.decode(batch, predictions(batch, outputs)), sample)


def _same_values(subject: Subject, decoded: xr.Dataset, sample: Sample) -> None:
    """A decoded variable is the end of the sample's of that name (the look-back comes before)."""
    shared = [str(name) for name in decoded.data_vars if name in sample.data_vars]
    subject.hold(shared, f"decode gives {list(decoded.data_vars)}, none a variable of the sample",
                 "name decoded variables as the sample does")
    for name in shared:
        found, truth = decoded[name], sample[name]
        subject.hold(found.dims[:1] == ("sample",), f"{name} has dims {found.dims}", "put `sample` first")
        found = found.isel(sample=0)
        for dim, size in truth.sizes.items():
            truth = truth.isel({dim: slice(size - found.sizes[dim], None)} if dim in found.dims else {dim: -1})
        unit = truth.attrs.get("units")
        subject.hold(unit is None or found.attrs.get("units") == unit,
                     f"{name} is decoded in {found.attrs.get('units')!r}, the sample has {unit!r}",
                     "keep attrs['units']")
        a, b = found.transpose(*truth.dims).to_numpy().astype(float), truth.to_numpy().astype(float)
        counted = np.isfinite(a) & np.isfinite(b)
        subject.hold(counted.any(), f"{name} is decoded to nothing finite", "decode what the mask says is known")
        off = np.abs(a - b)[counted].max() / max(np.abs(b[counted]).max(), 1e-12)
        subject.hold(off <= 1e-4, f"{name} decodes to other values than the sample has (off by {off:.2g})",
                     "make decode the inverse of encode's normalisation")


def check_packing(subject: Subject) -> None:
    """unpack ∘ collate is the identity."""
    for group in subject.groups:
        single = [subject.adapter.encode(sample) for sample in group]
        for one, back in zip(single, unpack(collate(single)), strict=True):
            subject.equal(widened(one), widened(back), "unpack(collate(batches)) is not batches",
                          "give every sample the same axes, conditions and heads; pack ragged ones by segment")


def check_batching(subject: Subject) -> None:
    """A sample's outputs don't depend on what it is batched with."""
    for group in subject.groups:
        single = [subject.adapter.encode(sample) for sample in group]
        together = collate(single)
        outputs = subject.predictor.forward(together)
        for i, batch in enumerate(single):
            for head, y in subject.predictor.forward(batch).heads.items():
                off = close(own_heads(outputs, together, subject.spec.heads, i)[head], y, 1e-4)
                subject.hold(off is None, f"{head} of a sample changes by {off} in a batch",
                             "don't let encode or derive mix samples; per-segment conditions are (S,)")


def check_gradients(subject: Subject) -> None:
    """Every weight the domain can use gets a finite gradient that isn't zero; the others are listed in `unused`."""
    operator = copy.deepcopy(subject.predictor.operator).train()
    objective = registry.find("sciml.objectives", subject.adapter.objective)
    batches = [collate([subject.adapter.encode(sample) for sample in group]) for group in subject.groups]
    for batch in batches:
        outputs = forward(subject.adapter, operator, batch, create_graph=True)
        objective(outputs, batch).mean().backward()
    subject.unused.update(unusable(operator, subject.spec, batches))
    for name, parameter in operator.named_parameters():
        if name in subject.unused:
            continue
        gradient = parameter.grad
        subject.hold(gradient is not None, f"{name} gets no gradient",
                     "spec() promises a channel, condition, identity or head that no sample uses: leave it out")
        assert gradient is not None
        subject.hold(bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite",
                     "look for a division by zero, or a root at zero, in encode's scales or the objective")
        subject.hold(bool((gradient != 0).any()), f"the gradient of {name} is zero everywhere",
                     "a channel or condition is zero in all samples: hand check_domain others, or leave it out")


def check_advance(subject: Subject) -> None:
    """A step moves time by exactly one dt, k steps by k, and can be differentiated; of an adapter that says it is
    `uneven` (a step is an event), it moves time. One that starts nothing isn't asked."""
    uneven = getattr(subject.adapter, "uneven", False)
    for store in subject.stores:
        sample = next(iter(subject.adapter.starts(store, "train")), None)
        if sample is None:
            continue
        state = subject.adapter.initial(sample)
        first = 0.0
        for step in (1, 2, 3):
            predicted = subject.predictor.forward(state.batch, state.cache)
            free = {k: v.detach().clone().requires_grad_() for k, v in predicted.heads.items()}
            advanced = subject.adapter.advance(state, Outputs(free, predicted.cache))
            _check_slope(subject, advanced, free)
            state = replace(map_tensors(advanced, torch.Tensor.detach), cache=predicted.cache)
            subject.hold(state.step == step, f"after {step} steps State.step is {state.step}", "add 1 in advance")
            first = first or state.elapsed
            if store.meta.dt is not None and not uneven:
                subject.hold(abs(state.elapsed - step * first) <= 1e-9 * step * first,
                             f"{step} steps move time by {state.elapsed!r}, one by {first!r}",
                             "add dt to State.elapsed, a float64 that no float32 tensor was part of")
        subject.hold(first > 0, "advance does not move State.elapsed", "add dt to it")
        if store.meta.dt is not None and not uneven:
            ratio = first / store.meta.dt
            subject.hold(abs(ratio - round(ratio)) <= 1e-6 * ratio, f"a step is {ratio} dt of the store",
                         "elapsed is in the store's unit of time, a step a whole number of dt")


def _check_slope(subject: Subject, advanced: State, free: dict[str, Tensor]) -> None:
    reached: list[Tensor] = []

    def collect(t: Tensor) -> Tensor:
        reached.extend([t] if t.requires_grad else [])
        return t

    map_tensors(advanced, collect)
    subject.hold(reached, "nothing in the state that advance returns depends differentiably on the outputs",
                 "stay in torch: no .item(), .numpy() or detach() on the way from outputs to state")
    total = torch.stack([t.double().square().sum() for t in reached]).sum()
    slopes = [g for g in torch.autograd.grad(total, list(free.values()), allow_unused=True) if g is not None]
    subject.hold(all(bool(torch.isfinite(g).all()) for g in slopes) and any(bool((g != 0).any()) for g in slopes),
                 "the derivative of advance is zero or not finite", "stay in torch from outputs to state")


def check_rollout(subject: Subject) -> None:
    """rollout(n + m) = rollout(m) ∘ rollout(n), also when the state was written to disk in between."""
    for store in subject.stores:
        sample = next(iter(subject.adapter.starts(store, "train")), None)
        if sample is None:
            continue
        initial = subject.adapter.initial(sample)
        states = list(rollout(subject.predictor, initial, 3))
        again = list(rollout(subject.predictor, states[0], 2))
        subject.equal(states[2], again[-1], "3 steps are not 1 step and 2 more",
                      "keep all that a step needs in State; draw random numbers from State.rng")
        saved = restore_state(initial, *dump_state(states[0]))
        resumed = list(rollout(subject.predictor, saved, 2))
        subject.equal(states[2], resumed[-1], "a rollout resumed from a saved state goes another way",
                      "keep what a step changes in values, axes, conditions, targets, cache, rng and extra")
        observed = subject.adapter.observe(states[2])
        subject.hold("time" in observed.coords or "valid_time" in observed.coords, "observe gives no time",
                     "give the coordinate `time` (elapsed) or `valid_time (sample, time)`")


def check_baseline(subject: Subject) -> None:
    """Silent heads (all outputs zero) score exactly what the baseline scores, in every question."""
    if isinstance(baseline := getattr(subject.adapter, "baseline", None), Baseline):
        again = type(baseline).restore(*baseline.state())
        subject.hold(_plain(again.state()) == _plain(baseline.state()), "restore(state()) gives another baseline",
                     "let state() return all that restore() needs")
    silent = copy.deepcopy(subject.predictor.operator)
    with torch.no_grad():
        for name, parameter in silent.named_parameters():
            if name.startswith(f"ports.{subject.name}.heads."):
                parameter.zero_()
    plain = Predictor(silent, {subject.name: subject.adapter.floor()})
    for store in subject.stores:
        rows = evaluate(plain, store, "validation", max_windows=4).scores
        subject.hold(rows, "questions() asks nothing of the validation split", "ask at least one, with metrics()")
        for row in rows:
            subject.hold(np.isfinite(row.value) and np.isclose(row.value, row.baseline, rtol=1e-5, atol=1e-9),
                         f"{row.question}/{row.metric} with silent heads is {row.value:g}, not {row.baseline:g}",
                         "decode what target.baseline says; keep no second path to the baseline")


def check_restore(subject: Subject) -> None:
    """restore(state()) encodes as before; state() is JSON and arrays."""
    config, arrays = subject.adapter.state()
    again = subject.domain.restore(json.loads(json.dumps(config)), {k: np.array(v) for k, v in arrays.items()})
    for sample in subject.samples:
        subject.equal(subject.adapter.encode(sample), again.encode(sample), "restore(state()) encodes differently",
                      "let state() return config, statistics and baseline whole")
    subject.equal(_comparable(subject.adapter.spec()), _comparable(again.spec()), "restore(state()) has another spec()",
                  "let state() return what spec() is made of")


def check_checkpoint(subject: Subject) -> None:
    """A saved checkpoint loads, by the domain's name alone, to equal outputs."""
    known = registry.names("sciml.domains")
    subject.hold(subject.name in known, f"it is not registered ({', '.join(known)} are): no checkpoint can be loaded",
                 f'install its package with [project.entry-points."sciml.domains"] {subject.name} = "package:PLUGIN"')
    with tempfile.TemporaryDirectory() as folder:
        loaded = checkpoint.load(checkpoint.save(Path(folder) / "checkpoint", subject.predictor))
    for sample in subject.samples:
        before = subject.predictor.forward(subject.adapter.encode(sample))
        after = loaded.forward(loaded.adapter(subject.name).encode(sample))
        subject.equal(before.heads, after.heads, "a loaded checkpoint predicts differently",
                      "let state() and spec() carry all that encode and the operator need")


def _plain(state: tuple[Any, Mapping[str, np.ndarray]]) -> Any:
    return json.dumps(state[0], sort_keys=True), {k: np.asarray(v).tolist() for k, v in sorted(state[1].items())}


def _comparable(spec: TokenSpec) -> str:
    return json.dumps(asdict(spec), sort_keys=True)


def check_withheld(subject: Subject) -> None:
    """What training opens reads nothing of the test split: `fit`, and windows of training and validation."""
    for store in subject.stores:
        if not isinstance(store, Store):
            continue  # samples in memory, without splits to be read
        held = store.for_training()
        try:
            adapter = subject.adapter.fit(held)
            for split in SELECTED_ON:
                windows = adapter.open(held, split)
                for i in {0, len(windows) - 1}:
                    windows.draw(i, subject.rng(), subject.rng())
        except InputError as error:
            raise AssertionError(f"domain {subject.name}: training reads the test split ({error}). Fix: read blocks of "
                                 "train and validation by `Store.read`, see `Store.visible`") from error


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_promises, check_pickles, check_encoding, check_truth, check_packing, check_batching, check_gradients,
    check_advance, check_rollout, check_baseline, check_withheld, check_restore, check_checkpoint)
