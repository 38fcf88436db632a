"""The harness of the fields benchmark. No accuracy is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.workflow import new_predictor
from sciml.cli.bench import load_script
from tests.e2e import tiny

HERE = Path(__file__).parents[1] / "benchmarks"


def test_looking_at_averaged_weights_leaves_training_where_it_was(tmp_path: Path) -> None:
    """A curve of validation errors mustn't change what it is a curve of."""
    store = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=3)
    recipe = tiny.recipe(store.url, steps=1)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"ema": 0.9})})
    common, peers = (load_script(HERE / f"{name}.py") for name in ("common", "fields_peers"))
    trainer: Any = common.Trainer("sciml", new_predictor(recipe, [store]), store, recipe, recipe.train, 1, 1.0)
    operator = trainer.predictor.operator
    silent = peers.validation(trainer, 2)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.1
    own = {name: value.clone() for name, value in operator.state_dict().items()}
    assert peers.validation(trainer, 2) == pytest.approx(silent)
    assert all(torch.equal(value, own[name]) for name, value in operator.state_dict().items())
