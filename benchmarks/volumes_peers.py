"""What `benchmarks/volumes.py` trains side by side: ours and MONAI's networks, as operators of one adapter.

A peer sees the patches that ours sees, from the same augmentation, and its logits are trained by the same objective and
scored by the same evaluation, all on one clock. Sizes and settings are those of MONAI's own tutorials; a peer's input
is lengthened by zeros to the multiple that it needs, and its answer cut. MONAI is not a dependency: install it, or put
a folder that holds it on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.workflow import new_predictor
from sciml.adapter import DomainAdapter
from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.predictor import Predictor
from sciml.recipe import Recipe
from sciml.tokens import Outputs, TokenBatch

common = load_script(Path(__file__).with_name("common.py"))

DOMAIN, HEAD = "volumes", "label"
RATES, BATCHES = (3e-4, 1e-3, 3e-3), (2, 8)
"""Of AdamW and of the micro-batch; a peer's are chosen on validation."""
MULTIPLE = {"unet": 16, "segresnet": 8, "swinunetr": 32}
CLIP, EMA, DECAY = 10.0, 0.99, 1e-5
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


def validation(trainer: Any) -> float:
    """Mean Dice of validation volumes, of the averaged weights; 0 for a model that failed."""
    if trainer.failed:
        return 0.0
    found = evaluate(trainer.averaged(), trainer.store, "validation", max_windows=JUDGED).scores
    return next(row.value for row in found if row.metric == "dice")


def scores(trainer: Any) -> dict[str, tuple[float, str]]:
    """Test scores by metric with their units."""
    return {row.metric: (row.value, row.unit) for row in evaluate(trainer.averaged(), trainer.store, "test").scores}


def trainer(kind: str, setting: tuple[float, int] | None, recipe: Recipe, store: Store, seconds: float) -> Any:
    """setting: rate of AdamW and batch of a peer, in float32 (MONAI's UNet isn't finite after some thirty steps in
    bfloat16, and is no faster); None: the recipe's own optimizers, rates, batch and precision."""
    keep_freed()
    torch.set_num_threads(1)
    train, batch = recipe.train, recipe.data[0].batch
    if setting is not None:
        rate, batch = setting
        train = train.model_copy(update={"learning_rate": rate, "optimizer": "adamw", "clip": CLIP, "ema": EMA,
                                         "weight_decay": DECAY, "precision": "float32"})
    return common.Trainer(kind, make_predictor(kind, recipe, store), store, recipe, train, batch, seconds)
