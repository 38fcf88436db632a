"""A run folder: what a workflow begins, goes on with after a kill, and leaves behind.

    recipe.yaml   train.jsonl   checkpoints/{best,step-*}   evaluation/<dataset>.json   rollout/<dataset>.zarr
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sciml import checkpoint
from sciml.data.store import Store, open_store
from sciml.distributed import Ranks
from sciml.errors import InputError
from sciml.plan import freeze_budget
from sciml.predictor import Predictor
from sciml.recipe import Recipe, read_yaml
from sciml.train import Run, open_sources, resume

VALIDATION = "validation"
FREE = ("workers", "checkpoint_every")
"""Options of training that may change when a run goes on: not one bit of the result depends on them."""


def open_stores(recipe: Recipe) -> list[Store]:
    """The recipe's stores, opened and checked, without their test splits. Raises `InputError` naming the entry."""
    return [open_store(entry.store).for_training() for entry in recipe.data]


def begin(folder: Path, recipe: Recipe, predictor: Predictor, stores: Sequence[Store], *,
          overwrite: bool = False) -> Run:
    """A run that starts, or goes on from its newest whole checkpoint.

    Raises `InputError` if the folder holds a run of another recipe and not `overwrite`.
    """
    ranks = Ranks.join()
    raw = recipe.model_dump(mode="json")
    sources, validation = open_sources(recipe, predictor, stores), _validation(recipe, predictor, stores)
    if ranks.first:
        _claim(folder, raw, overwrite)
    ranks.barrier()
    predictor.recipe = raw
    predictor.provenance = {**predictor.provenance, **provenance(predictor, stores)}
    run = Run(folder, recipe, predictor, sources, validation, ranks)
    resume(run)
    freeze_budget(run)
    return run


def _validation(recipe: Recipe, predictor: Predictor, stores: Sequence[Store]) -> tuple[Any, ...]:
    held_out = [store for store in stores if store.meta.splits.validation]
    entries = [entry for entry, store in zip(recipe.data, stores) if store.meta.splits.validation]
    return open_sources(recipe.model_copy(update={"data": tuple(entries)}), predictor, held_out, VALIDATION)


def _claim(folder: Path, raw: dict[str, Any], overwrite: bool) -> None:
    path = folder / "recipe.yaml"
    if overwrite and folder.exists():
        if any(folder.iterdir()) and not path.exists():
            raise InputError(folder, found="files, but no recipe.yaml", expected="a run folder to replace",
                             fix="choose another folder; this one is not a run and will not be deleted")
        aside = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        folder.rename(aside)
        shutil.rmtree(aside)
    if path.exists() and (old := bound(read_yaml(path))) != (new := bound(raw)):
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        raise InputError(folder, key=", ".join(changed), found="a run of another recipe", expected="the same recipe",
                         fix="choose another --run, or replace it with --overwrite")
    checkpoint.recover(folder / "checkpoints" / "best")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".recipe.yaml.part"
    temporary.write_text(yaml.safe_dump(raw, sort_keys=False))
    temporary.replace(path)


def bound(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that a run is bound to.

    >>> bound({"seed": 1, "train": {"steps": 5, "workers": 2}})
    {'seed': 1, 'train': {'steps': 5}}
    """
    return {**raw, "train": {key: value for key, value in raw["train"].items() if key not in FREE}}


def provenance(predictor: Predictor, stores: Sequence[Store]) -> dict[str, Any]:
    """Data sets with the identity of their splits, versions, machine and date."""
    seen = dict(predictor.provenance.get("stores", {}))
    seen |= {store.meta.dataset: store.meta.split_identity() for store in stores}
    return {"stores": seen, "machine": f"{platform.machine()} {platform.system()}",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("sciml", "torch", "numpy", "xarray", "zarr")}}
