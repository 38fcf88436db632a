"""The harness of APEBench's scenarios. No accuracy is asserted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.assets import config
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.errors import InputError
from sciml.recipe import load_recipe

HERE = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(HERE / "fields_apebench.py")


def test_ours_steps_from_apebench_arrays_and_answers_in_their_layout(script: Any, tmp_path: Path) -> None:
    """An untrained model says persistence: a step leaves every channel and place as it was."""
    states = np.random.default_rng(0).normal(size=(8, 4, 2, 8, 8)).astype(np.float32)
    np.save(tmp_path / "train.npy", states)
    store = build(script.described("tiny", tmp_path / "train.npy", states), str(tmp_path / "store.zarr"))
    assert store.meta.variables["u_1"].along == ("y",)
    recipe = load_recipe(config("apebench_2d"))
    fields = {**recipe.domains["fields"], "spectral": 0.0}
    recipe = recipe.model_copy(update={"domains": {"fields": fields}})
    ours = script.Ours(script.peers.trainer("sciml", (1e-3, 2), recipe, store, 1.0, 0))
    with torch.no_grad():
        for parameter in ours.trainer.predictor.operator.parameters():
            parameter.zero_()
    rolled = ours.roll(states[:3, 0], 2)
    assert rolled.shape == (3, 2, 2, 8, 8)
    np.testing.assert_allclose(rolled, np.repeat(states[:3, :1], 2, 1), atol=1e-5)


def test_without_apebench_the_command_that_installs_it_is_named(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apebench", None)
    with pytest.raises(InputError, match="pip install"):
        script.apebench()
