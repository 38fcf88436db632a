"""What `benchmarks/series.py` trains side by side on ETTh1: ours and neuralforecast's networks as operators of one
adapter.

A peer gets the standardised look-backs that ours gets, from the same windows, learns the same squared error and is
scored by the same evaluation. It has one horizon, so there is a model of each for every horizon, and each of these has
the seconds that ours has for all of them. Sizes are those of the papers for ETTh1. neuralforecast is not a dependency:
install it, or put a folder that holds it on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.workflow import new_predictor
from sciml.adapter import DomainAdapter
from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.evaluate import evaluate
from sciml.packing import collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.recipe import Recipe
from sciml.tokens import Outputs, TokenBatch

common = load_script(Path(__file__).with_name("common.py"))

DOMAIN, HEAD = "series", "value"
KINDS = ("itransformer", "patchtst", "dlinear")
RATES, BATCHES = (2e-4, 1e-3, 5e-3), (32, 128)
"""Of AdamW and of the micro-batch; a peer's are chosen on validation."""
JUDGED = 64
"""Validation windows of a horizon that settings and the moment to stop are chosen on."""


def network(kind: str, look_back: int, horizon: int, variates: int, seed: int = 0) -> nn.Module:
    """One of neuralforecast's: sizes of Liu et al., "iTransformer", ICLR 2024; Nie et al., "PatchTST", ICLR 2023; Zeng
    et al., "DLinear", AAAI 2023, for ETTh1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
        models: Any = importlib.import_module("neuralforecast.models")
        given: dict[str, Any] = {"h": horizon, "input_size": look_back, "random_seed": seed}
        if kind == "itransformer":
            width = 256 if horizon < 300 else 512
            made = models.iTransformer(**given, n_series=variates, hidden_size=width, d_ff=width, n_heads=8, e_layers=2,
                                       dropout=0.1, use_norm=True)
        elif kind == "patchtst":
            made = models.PatchTST(**given, encoder_layers=3, n_heads=4, hidden_size=16, linear_hidden_size=128,
                                   dropout=0.3, fc_dropout=0.3, patch_len=16, stride=8, revin=True)
        else:
            made = models.DLinear(**given, moving_avg_window=25)
    net: nn.Module = made
    return net


def absent(kind: str) -> str:
    """Why a peer can't be trained here; empty if it can."""
    try:
        network(kind, 96, 4, 2)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


class PeerOperator(nn.Module):
    """A network of neuralforecast in the operator's place: what it says less the baseline, in units of the scale."""

    def __init__(self, kind: str, net: nn.Module, adapter: DomainAdapter) -> None:
        super().__init__()
        self.net, self.together, self.specs = net, kind == "itransformer", {adapter.name: adapter.spec()}

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        target = batch.targets[HEAD]
        past = int((batch.axes[1].coord[0, :, 0] <= 1e-6).sum())
        history = target.value[..., :past, 0]
        if self.together:
            forecast: Tensor = self.net({"insample_y": history.mT}).mT
        else:
            forecast = self.net({"insample_y": history.flatten(0, 1)[..., None]}).view(*history.shape[:2], -1)
        baseline = target.baseline.expand_as(target.value)[..., past:, 0]
        output = (forecast - baseline) / target.scale.expand_as(target.value)[..., past:, 0]
        return Outputs({HEAD: nn.functional.pad(output, (past, 0))[..., None]})


def plainly(batch: TokenBatch) -> TokenBatch:
    """The batch without baseline and scale: a peer's objective is its error in standardised units."""
    target = batch.targets[HEAD]
    plain = replace(target, baseline=torch.zeros_like(target.baseline), scale=torch.ones_like(target.scale))
    return replace(batch, targets={**batch.targets, HEAD: plain})


def make_predictor(kind: str, recipe: Recipe, store: Store) -> Predictor:
    """Ours (``sciml``) from the recipe, or a peer with the same adapter; weights by the recipe's seed."""
    ours = new_predictor(recipe, [store])
    if kind == "sciml":
        return ours
    adapter: Any = ours.adapter(DOMAIN)
    config = adapter.config
    net = network(kind, config.look_back_of(store.meta.dataset), config.horizons_of(store.meta.dataset)[-1],
                  len(store.members("variate")), recipe.seed)
    return Predictor(PeerOperator(kind, net, adapter), {DOMAIN: adapter})  # type: ignore[arg-type]


@dataclass
class Judge:
    """Validation windows of a trainer's horizons, encoded once, and the weights that did best on them.

    best: mean squared error in standardised units, mean over horizons. at: CPU seconds of training until then.
    """

    trainer: Any
    batches: list[TokenBatch] = field(init=False)
    best: float = float("inf")
    at: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        adapter, rng = self.trainer.adapter, np.random.default_rng(0)
        self.batches = []
        for question in adapter.questions(self.trainer.store, "validation"):
            places = np.unique(np.linspace(0, len(question.windows) - 1, JUDGED).round().astype(int))
            self.batches.append(collate([adapter.encode(question.windows.draw(int(i), rng, rng)) for i in places]))
        self.look()

    def look(self) -> None:
        """Judge the averaged weights as they are; training goes on from the others."""
        trainer = self.trainer
        if trainer.failed:
            return
        operator = trainer.predictor.operator
        others = {name: value.detach().clone() for name, value in operator.state_dict().items()}
        found = self._error(trainer.averaged())
        if found < self.best:
            self.best, self.at = found, trainer.used
            self.weights = {name: value.clone() for name, value in trainer.average.weights.items()}
        operator.load_state_dict(others)

    def _error(self, predictor: Predictor) -> float:
        errors = []
        with evaluating(predictor.operator):
            for batch in self.batches:
                target = batch.targets[HEAD]
                said = target.predict(forward(self.trainer.adapter, predictor.operator, batch)[HEAD].detach())
                mask = target.mask.expand_as(target.value)
                errors.append(float((said - target.value)[mask].square().mean()))
        return float(np.mean(errors))

    def scores(self) -> dict[str, float]:
        """Test scores ``horizon/mse`` and ``horizon/mae`` of the best weights."""
        self.trainer.predictor.operator.load_state_dict(self.weights)
        rows = evaluate(self.trainer.predictor, self.trainer.store, "test").scores
        return {f"{row.question}/{row.metric}": row.value for row in rows if row.metric in ("mse", "mae")}


def trainer(kind: str, setting: tuple[float, int] | None, recipe: Recipe, store: Store, seconds: float) -> Any:
    """setting: rate of AdamW and batch of a peer; None: the recipe's own optimizers, rates and batch."""
    torch.set_num_threads(1)
    train, batch = recipe.train, recipe.data[0].batch
    if setting is not None:
        rate, batch = setting
        train = train.model_copy(update={"learning_rate": rate, "optimizer": "adamw", "weight_decay": 1e-4})
    return common.Trainer(kind, make_predictor(kind, recipe, store), store, recipe, train, batch, seconds,
                          common.same if kind == "sciml" else plainly)


def trained(trainers: Sequence[Any]) -> list[Judge]:
    """All to the end of their budgets in turns, each judged after every turn."""
    judges = {id(each): Judge(each) for each in trainers}
    common.train_together(trainers, lambda each: judges[id(each)].look())
    return list(judges.values())
