"""Pretraining, from a recipe to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sciml import registry
from sciml.adapter import DomainAdapter
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.plan import Plan, plan_of
from sciml.predictor import Predictor
from sciml.recipe import Recipe, validate
from sciml.runs import begin, open_stores
from sciml.train import Progress, Run, fit, open_sources


def pretrain(recipe: Recipe, folder: Path, *, overwrite: bool = False,
             listen: Callable[[Progress], None] | None = None) -> Predictor:
    """Fit adapters on the stores, make the operator, train it; goes on if the folder holds the same run."""
    if recipe.train.weights != "all":
        raise InputError("recipe", key="train.weights", found=recipe.train.weights, expected="all",
                         fix="only fine-tuning has weights that are not new")
    stores = open_stores(recipe)
    predictor = new_predictor(recipe, stores)
    run = begin(folder, recipe, predictor, stores, overwrite=overwrite)
    try:
        return fit(run, listen=listen)
    finally:
        run.ranks.leave()


def new_predictor(recipe: Recipe, stores: Sequence[Store]) -> Predictor:
    """Adapters that know the stores' statistics and baselines, and an operator with random weights for them."""
    adapters: dict[str, DomainAdapter] = {}
    for store in stores:
        domain = store.meta.domain
        if domain not in adapters:
            make = registry.find("sciml.domains", domain, where=store.url)
            adapters[domain] = make.create(recipe.domains.get(domain, {}))
        adapters[domain] = adapters[domain].fit(store)
    config = validate(OperatorConfig, recipe.operator, where="recipe: operator")
    torch.manual_seed(recipe.seed)
    return Predictor(Operator(config, {name: adapter.spec() for name, adapter in adapters.items()}), adapters)


def dry_run(recipe: Recipe) -> Plan:
    """Measure a few steps of a recipe without writing anything."""
    stores = open_stores(recipe)
    predictor = new_predictor(recipe, stores)
    return plan_of(Run(Path(), recipe, predictor, open_sources(recipe, predictor, stores), ()), stores)
