"""Fine-tuning, from a checkpoint and a store to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.analogy import start_by_analogy
from sciml import checkpoint, registry
from sciml.data.store import Store, open_store
from sciml.errors import InputError
from sciml.operator.convolution import Convolution
from sciml.plan import Plan, plan_of
from sciml.predictor import Predictor
from sciml.recipe import Recipe, check_budget, override, validate
from sciml.runs import begin
from sciml.train import Progress, Run, fit, open_sources

LEARNING_RATE_FACTOR = 0.5
STEPS = 300
STARTED = "started_as"
"""Of a checkpoint's provenance: new channel → the known one whose rows it began with."""


def finetune(source: Path, store_url: str, folder: Path, *, assignments: Sequence[str] = (), overwrite: bool = False,
             listen: Callable[[Progress], None] | None = None) -> Predictor:
    """Adapt a checkpoint to a store; goes on if the folder holds the same run."""
    predictor, recipe, store = prepare(source, store_url, assignments)
    run = begin(folder, recipe, predictor, [store], overwrite=overwrite)
    try:
        return fit(run, listen=listen)
    finally:
        run.ranks.leave()


def prepare(source: Path, store_url: str, assignments: Sequence[str]) -> tuple[Predictor, Recipe, Store]:
    """The checkpoint, extended for the store, and the recipe that adapts it; new channels start as known ones."""
    store = open_store(store_url).for_training()
    predictor = checkpoint.load(source)
    recipe = recipe_for(predictor, store, assignments, where=source)
    known = predictor.operator.specs.get(store.meta.domain)
    extend(predictor, store, recipe)
    if known is not None:
        found = start_by_analogy(predictor, open_sources(recipe, predictor, [store])[0], known.channels)
        before = predictor.provenance.get(STARTED, {})
        predictor.provenance = {**predictor.provenance, STARTED: {**before, **found}} if found else predictor.provenance
    return predictor, recipe, store


def default_folder(source: Path, store_url: str) -> Path:
    """``finetune/<dataset>`` inside the run that the checkpoint belongs to, else ``runs/finetune-<dataset>``."""
    dataset, folder = open_store(store_url).meta.dataset, checkpoint.resolve(source)
    inside = folder.parent.name == "checkpoints"
    return folder.parent.parent / "finetune" / dataset if inside else Path("runs") / f"finetune-{dataset}"


def dry_run(source: Path, store_url: str, assignments: Sequence[str]) -> Plan:
    """What the fine-tuning would cost, measured on a few steps; writes nothing."""
    predictor, recipe, store = prepare(source, store_url, assignments)
    return plan_of(Run(Path(), recipe, predictor, open_sources(recipe, predictor, [store]), ()), [store])


def recipe_for(predictor: Predictor, store: Store, assignments: Sequence[str], *, where: object) -> Recipe:
    """The checkpoint's recipe on the new store alone: 300 steps at 0.5 of its rates, unless assigned otherwise."""
    raw: dict[str, Any] = {**predictor.recipe}
    timed = any(assignment.startswith("train.minutes=") for assignment in assignments)
    train = {**raw["train"], "steps": None if timed else STEPS, "minutes": None, "weights": "all"}
    for name in ("learning_rate", "matrix_learning_rate"):
        train[name] = train[name] * LEARNING_RATE_FACTOR
    batch = next((e["batch"] for e in raw["data"] if e.get("store") == store.url), raw["data"][0]["batch"])
    data = [{"store": store.url, "batch": batch}]
    raw |= {"name": f"{raw['name']}-{store.meta.dataset}", "data": data, "train": train}
    recipe = validate(Recipe, override(raw, assignments), where=where)
    check_budget(recipe, where=where)
    return recipe


def extend(predictor: Predictor, store: Store, recipe: Recipe) -> None:
    """Let adapter and operator learn of the store: new names get rows of their own, known ones keep theirs; heads that
    the recipe doesn't ask for any more go."""
    domain = store.meta.domain
    adapter = predictor.adapters.get(domain)
    if adapter is None:
        adapter = registry.find("sciml.domains", domain, where=store.url).create(recipe.domains.get(domain, {}))
    elif recipe.domains.get(domain, {}) != predictor.recipe.get("domains", {}).get(domain, {}):
        adapter = adapter.reconfigured(recipe.domains.get(domain, {}))
    predictor.adapters[domain] = adapter = adapter.fit(store)
    spec, known = adapter.spec(), predictor.operator.specs.get(domain)
    if known is not None:
        try:
            merged = known.merge(spec)
            spec = replace(merged, heads={name: merged.heads[name] for name in spec.heads})
        except ValueError as error:
            raise InputError(store.url, key=domain, found=str(error), expected="the checkpoint's patch and pair bias",
                             fix="pretrain with this store, or choose a checkpoint that fits") from None
    torch.manual_seed(recipe.seed)
    before = {name: parameter.shape for name, parameter in predictor.operator.named_parameters()}
    predictor.operator.extend(spec)
    if recipe.train.weights == "new":
        _freeze(predictor.operator, before, store.url)
        return
    for module in predictor.operator.modules():
        if isinstance(module, Convolution):
            module.refresh()


def _freeze(operator: nn.Module, before: Mapping[str, torch.Size], where: object) -> None:
    """Keep what was there; a table that grew is trained whole. Raises `InputError` if nothing is new."""
    new = {name for name, parameter in operator.named_parameters() if before.get(name) != parameter.shape}
    if not new:
        raise InputError(where, key="train.weights", found="new, but the checkpoint has all weights for this store",
                         expected="a data set with new names", fix="set train.weights: all")
    for name, parameter in operator.named_parameters():
        parameter.requires_grad_(name in new)
