"""What `benchmarks/volumes.py` trains side by side: ours and MONAI's networks, as operators of one adapter.

A peer sees the patches that ours sees, from the same augmentation, and its logits are trained by the same objective and
scored by the same evaluation, all on one clock. Sizes and settings are those of MONAI's own tutorials; a peer's input
is lengthened by zeros to the multiple that it needs, and its answer cut. MONAI is not a dependency: install it, or put
a folder that holds it on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import itertools
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.workflow import new_predictor
from sciml import optim, registry
from sciml.adapter import DomainAdapter
from sciml.data.store import Store
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.predictor import Predictor, forward
from sciml.recipe import Recipe, TrainRecipe
from sciml.sampling import MicroBatches, Schedule, Source
from sciml.tokens import Outputs, TokenBatch
from sciml.train import autocast

DOMAIN, HEAD = "volumes", "label"
RATES, BATCHES = (3e-4, 1e-3, 3e-3), (2, 8)
"""Of AdamW and of the micro-batch; a peer's are chosen on validation."""
MULTIPLE = {"unet": 16, "segresnet": 8, "swinunetr": 32}
CLIP, EMA, DECAY = 10.0, 0.99, 1e-5
SLICE_S = 10.0
JUDGED = 20
"""Validation volumes that settings are chosen on."""


def network(kind: str, channels: int, outputs: int) -> nn.Module:
    """One of MONAI's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets: Any = importlib.import_module("monai.networks.nets")
    if kind == "unet":
        net = nets.UNet(3, channels, outputs, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    elif kind == "segresnet":
        net = nets.SegResNet(3, 16, channels, outputs, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), dropout_prob=0.2)
    else:
        net = nets.SwinUNETR(in_channels=channels, out_channels=outputs, feature_size=24)
    for module in net.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_floating_point():  # tables of indices, of which there is no average
                module.register_buffer(name, buffer, persistent=False)
    made: nn.Module = net
    return made


def absent(kind: str) -> str:
    """Why a peer can't be trained here; empty if it can."""
    try:
        network(kind, 1, 2)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


class PeerOperator(nn.Module):
    """A network of channels first in the operator's place: ``(B, X, Y, Z, modalities)`` → ``{label: (B, X, Y, Z, K)}``.
    """

    def __init__(self, net: nn.Module, adapter: DomainAdapter, multiple: int = 1) -> None:
        super().__init__()
        self.net, self.multiple, self.specs = net, multiple, {adapter.name: adapter.spec()}

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        x, y, z = batch.lattice
        more = [n for size in (z, y, x) for n in (0, -size % self.multiple)]
        logits: Tensor = self.net(nn.functional.pad(batch.values.movedim(-1, 1), more))
        return Outputs({HEAD: logits[:, :, :x, :y, :z].movedim(1, -1)})


def make_predictor(kind: str, recipe: Recipe, store: Store) -> Predictor:
    """Ours (``sciml``) from the recipe, or a peer with the same adapter; weights by the recipe's seed."""
    ours = new_predictor(recipe, [store])
    if kind == "sciml":
        return ours
    torch.manual_seed(recipe.seed)
    adapter = ours.adapter(DOMAIN)
    spec = adapter.spec()
    net = network(kind, len(spec.channels), len(spec.heads[HEAD].outputs))
    return Predictor(PeerOperator(net, adapter, MULTIPLE[kind]), {DOMAIN: adapter})  # type: ignore[arg-type]


def parameters(predictor: Predictor) -> int:
    return sum(p.numel() for p in predictor.operator.parameters())


@dataclass
class Trainer:
    """A model on its own clock of CPU seconds: rates follow the share of the budget; the averaged weights count."""

    name: str
    predictor: Predictor
    store: Store
    recipe: Recipe
    train: TrainRecipe
    batch: int
    seconds: float
    used: float = 0.0
    step: int = 0
    failed: bool = False
    batches: Iterator[TokenBatch] = field(init=False)

    def __post_init__(self) -> None:
        adapter = self.predictor.adapter(DOMAIN)
        source = Source(self.name, adapter, adapter.open(self.store, "train", train=True), self.batch, 1.0)
        data = MicroBatches((source,), Schedule.make(self.recipe.seed, [1.0], 200_000), self.recipe.seed)
        self.batches = (data[i] for i in itertools.count())
        self.optimizers = optim.make_optimizers(self.predictor.operator, self.train)
        self.average = optim.Average(self.predictor.operator, self.train.ema)
        self.objective = registry.find("sciml.objectives", adapter.objective)

    def advance(self, seconds: float) -> None:
        """Train so many CPU seconds more, data included; a model that isn't finite any more has failed."""
        operator, adapter = self.predictor.operator.train(), self.predictor.adapter(DOMAIN)
        until = min(self.seconds, self.used + seconds)
        while self.used < until and not self.failed:
            began = time.process_time()
            share = optim.scale_at(int(1e4 * self.used / self.seconds), 10_000, self.train)
            optim.set_rates(self.optimizers, share, self.train)
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            batch = next(self.batches)
            with autocast(self.train):
                outputs = forward(adapter, operator, batch, create_graph=True)
            outputs = Outputs({name: head.to(batch.values.dtype) for name, head in outputs.heads.items()})
            loss = self.objective(outputs, batch).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(operator.parameters(), self.train.clip)
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.average.update(operator)
            self.failed = not bool(torch.isfinite(loss))
            self.step += 1
            self.used += time.process_time() - began

    def averaged(self) -> Predictor:
        """The predictor, from now on with the averaged weights."""
        self.predictor.operator.load_state_dict(self.average.weights)
        return self.predictor

    def validation(self) -> float:
        """Mean Dice of validation volumes, of the averaged weights; 0 for a model that failed."""
        if self.failed:
            return 0.0
        found = evaluate(self.averaged(), self.store, "validation", max_windows=JUDGED).scores
        return next(row.value for row in found if row.metric == "dice")

    def scores(self) -> dict[str, tuple[float, str]]:
        """Test scores by metric with their units."""
        return {row.metric: (row.value, row.unit) for row in evaluate(self.averaged(), self.store, "test").scores}


def trainer(kind: str, setting: tuple[float, int] | None, recipe: Recipe, store: Store, seconds: float) -> Trainer:
    """setting: rate of AdamW and batch of a peer, in float32 (MONAI's UNet isn't finite after some thirty steps in
    bfloat16, and is no faster); None: the recipe's own optimizers, rates, batch and precision."""
    keep_freed()
    torch.set_num_threads(1)
    train, batch = recipe.train, recipe.data[0].batch
    if setting is not None:
        rate, batch = setting
        train = train.model_copy(update={"learning_rate": rate, "optimizer": "adamw", "clip": CLIP, "ema": EMA,
                                         "weight_decay": DECAY, "precision": "float32"})
    return Trainer(kind, make_predictor(kind, recipe, store), store, recipe, train, batch, seconds)


def train_together(trainers: Sequence[Trainer]) -> None:
    """All to the end of their budgets, in turns, so that a machine that slows down slows all."""
    while any(each.used < each.seconds and not each.failed for each in trainers):
        for each in trainers:
            each.advance(min(SLICE_S, each.seconds / 10))
