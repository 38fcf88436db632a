"""Optimizers, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sciml.muon import Muon
from sciml.operator.operator import optimizer_groups
from sciml.recipe import TrainRecipe

Optimizers = dict[str, torch.optim.Optimizer]


def make_optimizers(operator: nn.Module, train: TrainRecipe) -> Optimizers:
    """Muon on the core's hidden matrices and AdamW on the rest, or AdamW on all; of weights that are trained."""
    matrices, rest = ([p for p in group if p.requires_grad] for group in optimizer_groups(operator))
    if train.optimizer == "adamw":
        matrices, rest = [], [*matrices, *rest]
    groups = [{"params": [p for p in rest if p.is_complex() == unfused], "fused": not unfused}
              for unfused in (False, True)]  # the fused kernel doesn't know complex weights
    made: Optimizers = {"adamw": torch.optim.AdamW([group for group in groups if group["params"]],
                                                   lr=train.learning_rate, betas=(0.9, 0.95),
                                                   weight_decay=train.weight_decay)}
    if matrices:
        made["muon"] = Muon(matrices, lr=train.matrix_learning_rate, weight_decay=train.weight_decay)
    return made


def scale_at(step: int, steps: int, train: TrainRecipe) -> float:
    """Factor of the learning rates: linear warm-up, then half a cosine down to `final_learning_rate`."""
    warmup = max(1, round(train.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return train.final_learning_rate + (1 - train.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * done))


def set_rates(optimizers: Optimizers, scale: float, train: TrainRecipe) -> None:
    rates = {"adamw": train.learning_rate, "muon": train.matrix_learning_rate}
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name] * scale


def dump(optimizers: Optimizers) -> dict[str, Tensor]:
    """All optimizer tensors under stable names; numbers become 0-d tensors."""
    tensors = {}
    for name, optimizer in optimizers.items():
        for index, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def restore(optimizers: Optimizers, tensors: Mapping[str, Tensor]) -> None:
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, index, field = key.split(".", 2) if key.count(".") >= 2 else ("", "", "")
            if owner == name:
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Average:
    """Exponential moving average of weights: a ← decay·a + (1 − decay)·w, with decay ≤ (1 + n)/(10 + n) early on."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)
