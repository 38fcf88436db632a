"""Training: one loop in plain torch, exactly resumable. From file to loss in six hops:

    adapter.open(store, split) → windows.draw → adapter.encode → collate → operator → objective
    `open_sources`               `MicroBatches.__getitem__`               `micro_losses`
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sciml import checkpoint, optim, registry
from sciml.adapter import Calibrated, Chained, DomainAdapter, Windows, equal_states
from sciml.chains import Chain, Going, chain_of, cut, reach
from sciml.chains.direct import Direct
from sciml.data.store import Store
from sciml.distributed import Ranks
from sciml.errors import InputError
from sciml.evaluate import zero_outputs
from sciml.memory import keep_freed
from sciml.operator.compiled import compile_blocks, prepare_compiler
from sciml.packing import alike, collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.recipe import Recipe, TrainRecipe
from sciml.sampling import MicroBatch, MicroBatches, Schedule, Source, loader
from sciml.tokens import Outputs, TokenBatch
from sciml.traced import TracedGradients, form_of
from sciml.trainlog import TrainingLog

MAX_SKIPPED = 10
CHAIN = 15  # what the stream of random numbers is for, as in sciml.sampling
KEPT_CHECKPOINTS = 2


class Diverged(RuntimeError):
    """Ten updates in a row were not finite; the message names step and samples."""


@dataclass
class Progress:
    """What a listener is told after every step."""

    step: int
    steps: int
    loss: float
    line: Mapping[str, Any]


@dataclass
class Run:
    """A run in training: the pieces that a step changes, and the plan that it doesn't."""

    folder: Path
    recipe: Recipe
    predictor: Predictor
    sources: tuple[Source, ...]
    validation: tuple[Source, ...]
    ranks: Ranks = field(default_factory=Ranks)
    steps: int = 0
    step: int = 0
    skipped: int = 0
    best: float = math.inf

    def __post_init__(self) -> None:
        self.predictor.operator.to(self.recipe.train.device)
        keep_freed()
        self.traced = traced_gradients(self) if self.recipe.train.compile else {}
        if self.dtype == torch.float64:
            _double(self.predictor.operator)
        self.optimizers = optim.make_optimizers(self.predictor.operator, self.recipe.train)
        self.average = optim.Average(self.predictor.operator, self.recipe.train.ema) if self.recipe.train.ema else None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and batches; the precision policy may compute in less."""
        return torch.float64 if self.recipe.train.precision == "float64" else torch.float32

    def place(self, batch: TokenBatch) -> TokenBatch:
        return batch.to(device=self.recipe.train.device, dtype=self.dtype)


def traced_gradients(run: Run) -> dict[Any, TracedGradients]:
    """What is compiled of a run: the blocks or, of sources whose outputs are derivatives, the whole gradient, by the
    form of a batch of samples as large as the first one. Other batches run eagerly, and so do all under torchrun."""
    if not all(adapter.differentiate for adapter in run.predictor.adapters.values()):
        compile_blocks(run.predictor.operator)
    prepare_compiler()
    made: dict[Any, TracedGradients] = {}
    for source in run.sources:
        if not source.adapter.differentiate or source.chain != Direct() or run.ranks.world > 1 or (
                run.recipe.train.precision == "bfloat16"):
            continue
        sample = source.windows.draw(0, *(np.random.default_rng([0, 0]) for _ in range(2)))
        form = form_of(run.place(collate([source.adapter.encode(sample)] * source.batch)))
        if form is not None:
            objective = registry.find("sciml.objectives", source.adapter.objective)
            made[form] = TracedGradients(source.adapter, run.predictor.operator, objective)
    return made


def add_gradients(run: Run, operator: nn.Module, micro: MicroBatch, generator: torch.Generator) -> Tensor:
    """Add a micro-batch's share to the gradients; returns its mean loss."""
    share = 1 / run.recipe.train.micro_batches
    source = run.sources[micro.source]
    traced = run.traced.get(form_of(micro.links[0])) if run.traced and source.chain == Direct() else None
    if traced is not None:
        return traced(micro.links[0], share)
    loss = micro_losses(run, source, operator, micro.links, run.step / max(run.steps, 1), generator).mean()
    (loss * share).backward()
    return loss.detach()


def _double(operator: nn.Module) -> None:
    for name, parameter in operator.named_parameters():
        if parameter.is_complex():
            raise InputError("recipe", key="train.precision", found="float64",
                             expected=f"real weights, {name} is complex",
                             fix="leave out the mixer spectral, or train in float32")
    operator.double()


def open_sources(recipe: Recipe, predictor: Predictor, stores: Sequence[Store],
                 split: str = "train") -> tuple[Source, ...]:
    """The recipe's stores as sources of one split; training windows come with augmentation and random leads."""
    sources = []
    for entry, store in zip(recipe.data, stores):
        adapter, chain = predictor.adapter(store.meta.domain), chain_of(entry.chain)
        windows = _windows(adapter, store, split, chain)
        if not len(windows):
            raise InputError(store.url, key=f"splits.{split}", found="no sample", expected=f"at least one of {split}",
                             fix="give the part longer blocks, or ask for less: look-back, horizon, lead, chain")
        sources.append(Source(store.meta.dataset, adapter, windows, entry.batch, entry.weight, chain))
    return tuple(sources)


def _windows(adapter: DomainAdapter, store: Store, split: Any, chain: Chain) -> Windows:
    train = split == "train"
    if reach(chain) == 1:
        return adapter.open(store, split, train=train)
    if not isinstance(adapter, Chained):
        raise InputError("recipe", key="data.chain", found=type(chain).__name__.lower(),
                         expected=f"direct: {adapter.name} is not trained along its own steps", fix="leave chain out")
    return adapter.stretches(store, split, reach(chain), train=train, spans=sorted({j - i for i, j in chain.links}))


def micro_losses(run: Run, source: Source, operator: nn.Module, links: Sequence[TokenBatch], progress: float = 1.0,
                 generator: torch.Generator | None = None) -> Tensor:
    """``(S,)``: operator, derived heads, objective, along the source's chain."""
    answer = partial(answered, run.recipe.train, source.adapter, operator)
    return source.chain.losses(links, Going(source.adapter, answer, objective_of(source), progress, generator))


def answered(train: TrainRecipe, adapter: DomainAdapter, operator: nn.Module, batch: TokenBatch) -> Outputs:
    """Operator and derived heads in the recipe's precision, returned in that of the batch."""
    with autocast(train):
        outputs = forward(adapter, operator, batch, create_graph=torch.is_grad_enabled())
    return Outputs({name: head.to(batch.values.dtype) for name, head in outputs.heads.items()})


def objective_of(source: Source) -> Callable[[Outputs, TokenBatch], Tensor]:
    return registry.find("sciml.objectives", source.adapter.objective)


def train_step(run: Run, operator: nn.Module, batches: Iterator[MicroBatch]) -> dict[str, Any]:
    """Accumulate over the step's micro-batches, clip, update; returns the line to log. Not finite: no update."""
    train, seed = run.recipe.train, run.recipe.seed
    torch.manual_seed(hash_seed(seed, run.step, run.ranks.rank))
    optim.set_rates(run.optimizers, optim.scale_at(run.step, run.steps, train), train)
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    losses: dict[str, list[float]] = {}
    samples = 0
    sources: tuple[str, ...] = ()
    generator = torch.Generator().manual_seed(hash_seed(CHAIN, run.recipe.seed, run.step))
    for _ in range(train.micro_batches):
        micro = next(batches)
        micro = MicroBatch(micro.source, tuple(map(run.place, micro.links)))
        batch = micro.links[0]
        loss = add_gradients(run, operator, micro, generator)
        losses.setdefault(batch.dataset, []).append(run.ranks.mean(float(loss)))
        samples += batch.num_segments * run.ranks.world
        sources += batch.sources
    norm = nn.utils.clip_grad_norm_(run.predictor.operator.parameters(), train.clip)
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    finite = bool(torch.isfinite(norm)) and all(map(math.isfinite, means.values()))
    _guard(run, finite, sources)
    if finite:
        for optimizer in run.optimizers.values():
            optimizer.step()
        if run.average is not None:
            run.average.update(run.predictor.operator)
    run.step += 1
    loss_mean = float(np.mean([v for values in losses.values() for v in values]))
    return {"step": run.step, "loss": loss_mean, "losses": means, "samples": samples, "skipped": not finite,
            "learning_rate": next(iter(run.optimizers.values())).param_groups[0]["lr"]}


def _guard(run: Run, finite: bool, sources: Sequence[str]) -> None:
    run.skipped = 0 if finite else run.skipped + 1
    if run.skipped >= MAX_SKIPPED:
        raise Diverged(f"{MAX_SKIPPED} updates in a row were not finite, last at step {run.step} on "
                       f"{', '.join(sources)}; lower train.learning_rate, or look at these samples: "
                       "sciml data validate STORE")


def hash_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0])


def autocast(train: TrainRecipe) -> torch.autocast:
    """The precision policy: bfloat16 where the recipe says so (matrix products; softmax and norms stay float32)."""
    return torch.autocast(torch.device(train.device).type, torch.bfloat16, enabled=train.precision == "bfloat16")


def fit(run: Run, *, listen: Callable[[Progress], None] | None = None) -> Predictor:
    """Train until the recipe's steps are done, from wherever the run is; the predictor then holds the selected weights.

    Writes ``train.jsonl`` (a line per step), ``checkpoints/step-*`` (resumable) and ``checkpoints/best``.
    """
    train = run.recipe.train
    data = micro_batches(run)
    batches = loader(data, run.step * train.micro_batches, run.steps * train.micro_batches, train.workers)
    operator = run.ranks.wrap(run.predictor.operator)
    every = train.validate_every or max(1, run.steps // 10)
    started = time.perf_counter()
    run.predictor.operator.train()
    with closing(TrainingLog(run.folder / "train.jsonl", run.step, run.ranks.first)) as log:
        if run.step == 0:
            _select(run, log)  # the untrained operator is the baseline, and may stay the best there is
        while run.step < run.steps:
            line = train_step(run, operator, batches)
            line["seconds"] = log.seconds + time.perf_counter() - started
            log.write(line)
            if listen is not None:
                listen(Progress(run.step, run.steps, line["loss"], line))
            if run.step % every == 0 or run.step == run.steps:
                _select(run, log)
            if run.step % train.checkpoint_every == 0 or run.step == run.steps:
                save_step(run)
    run.ranks.barrier()
    return calibrate(run, checkpoint.load(run.folder))


def calibrate(run: Run, predictor: Predictor) -> Predictor:
    """Adapters that draw learn how the selected operator misses on the training data; ``checkpoints/best`` keeps it."""
    drawing = [source for source in run.sources if isinstance(source.adapter, Calibrated)]
    before = {source.adapter.name: predictor.adapter(source.adapter.name).state() for source in drawing}
    for source in drawing:
        adapter = predictor.adapter(source.adapter.name)
        assert isinstance(adapter, Calibrated)
        predictor.adapters[source.adapter.name] = adapter.calibrated(predictor.forward, source.windows)
    changed = any(not equal_states(state, predictor.adapter(name).state()) for name, state in before.items())
    if changed and run.ranks.first:
        checkpoint.save(run.folder / "checkpoints" / "best", predictor)
    run.ranks.barrier()
    return predictor


def micro_batches(run: Run) -> MicroBatches:
    micro_steps = run.steps * run.recipe.train.micro_batches
    schedule = Schedule.make(run.recipe.seed, [source.weight for source in run.sources], micro_steps)
    for source in run.sources:
        run.ranks.check_divides(source.batch, source.name)
    return MicroBatches(run.sources, schedule, run.recipe.seed, run.ranks.rank, run.ranks.world)


@torch.no_grad()
def validation_losses(run: Run, source: Source, count: int) -> tuple[float, float]:
    """Mean loss of the source's chain over `count` windows spread evenly over the validation split, and the baseline's.
    """
    indices = np.unique(np.linspace(0, len(source.windows) - 1, count).round().astype(int))
    ours, floor = [], []
    with evaluating(run.predictor.operator):
        for start in range(0, len(indices), source.batch):
            rng = [np.random.default_rng([0, 0]) for _ in range(2)]
            parts = [cut(source.windows.draw(int(i), *rng), source.chain.links)
                     for i in indices[start: start + source.batch]]
            for some in zip(*(alike([source.adapter.encode(part) for part in link]) for link in zip(*parts))):
                links = [run.place(collate(link)) for link in some]
                with torch.set_grad_enabled(bool(source.adapter.differentiate)):
                    ours.append(micro_losses(run, source, run.predictor.operator, links).detach())
                floor.append(baseline_losses(source, links))
    return float(torch.cat(ours).mean()), float(torch.cat(floor).mean())


def baseline_losses(source: Source, links: Sequence[TokenBatch]) -> Tensor:
    """``(S,)``: the chain's loss where every head says zero, which is the baseline's prediction."""
    return source.chain.losses(links, Going(source.adapter, zero_outputs, objective_of(source)))


def _select(run: Run, log: TrainingLog) -> None:
    """Validate with the averaged weights and keep them as ``checkpoints/best`` if they are the best so far."""
    if not run.validation:
        if run.step == run.steps and run.ranks.first:
            with averaged(run):
                checkpoint.save(run.folder / "checkpoints" / "best", run.predictor)
        return
    with averaged(run):
        both = {s.name: validation_losses(run, s, run.recipe.train.validation_windows) for s in run.validation}
        score = float(np.mean([ours / max(floor, 1e-12) for ours, floor in both.values()]))
        better = score < run.best if run.recipe.train.keep_best else run.step == run.steps
        log.write({"step": run.step, "validation": {k: v[0] for k, v in both.items()},
                   "baseline": {k: v[1] for k, v in both.items()}, "score": score, "best": better})
        if better:
            run.best = score
            if run.ranks.first:
                checkpoint.save(run.folder / "checkpoints" / "best", run.predictor)


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    """The operator with the averaged weights inside, its own outside."""
    if run.average is None:
        yield
        return
    own = {k: v.detach().clone() for k, v in run.predictor.operator.state_dict().items()}
    run.predictor.operator.load_state_dict(run.average.weights)
    try:
        yield
    finally:
        run.predictor.operator.load_state_dict(own)


def save_step(run: Run) -> None:
    """``checkpoints/step-N`` with all that going on exactly needs; older ones are removed."""
    if not run.ranks.first:
        return
    tensors = {f"weights/{k}": v.detach().clone() for k, v in run.predictor.operator.state_dict().items()}
    tensors |= {f"optimizer/{k}": v for k, v in optim.dump(run.optimizers).items()}
    info = {"step": run.step, "steps": run.steps, "best": run.best, "skipped": run.skipped, "updates": 0}
    if run.average is not None:
        tensors |= {f"average/{k}": v for k, v in run.average.weights.items()}
        info["updates"] = run.average.updates
    with averaged(run):
        checkpoint.save(run.folder / "checkpoints" / f"step-{run.step:08d}", run.predictor,
                        checkpoint.TrainingState(tensors, info))
    for old in sorted((run.folder / "checkpoints").glob("step-*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def resume(run: Run) -> bool:
    """Continue from the newest ``checkpoints/step-*``; False if there is none. Raises `InputError` if it is damaged."""
    folders = sorted((run.folder / "checkpoints").glob("step-*"))
    if not folders:
        return False
    checkpoint.check(folders[-1], fix="delete this folder; the run then goes on from the one before it to the same end")
    state = checkpoint.load_training_state(folders[-1])

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.clone() for k, v in state.tensors.items() if k.startswith(prefix)}

    run.predictor.operator.load_state_dict(part("weights/"))
    optim.restore(run.optimizers, part("optimizer/"))
    if run.average is not None:
        own = {k: v.to(run.recipe.train.device) for k, v in part("average/").items()}
        run.average.weights, run.average.updates = own, int(state.info["updates"])
    run.step, run.steps = int(state.info["step"]), int(state.info["steps"])
    run.best, run.skipped = float(state.info["best"]), int(state.info["skipped"])
    return True
