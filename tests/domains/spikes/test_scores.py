"""What is scored of hidden cells, and the command line on a checkpoint that only decodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pretrain.workflow import pretrain
from sciml.cli import cli
from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.windows import SpikeWindows
from sciml.recipe import Recipe, validate

Stores = Callable[..., Store]
AROUND = {"before": 5, "scored": 24, "after": 7}


@pytest.mark.parametrize("kind", ["time", "unit", "cell"])
def test_the_normaliser_counts_the_cells_that_an_evaluation_hides(kind: str, population_store: Stores) -> None:
    masks = {"time": 0.0, "unit": 0.0, "cell": 0.0, kind: 0.4}
    store = population_store("whole", states=True, lfp=True)
    adapter = Binned.create({"floor": "smoothed", "tasks": {"masked": AROUND}, "masks": masks}).fit(store)
    question, = adapter.questions(store, "test")
    windows = question.windows
    assert isinstance(windows, SpikeWindows)
    asked = 0
    for i in range(len(windows)):
        sample = windows.draw(i, np.random.default_rng([0, i]), np.random.default_rng([0, 0]))
        asked += int(adapter.encode(sample).targets["rate"].mask.sum())
    assert asked > 0
    assert question.options["cells"] * len(windows) == pytest.approx(asked)


def test_a_checkpoint_that_only_decodes_is_evaluated(population_store: Stores, tmp_path: Path) -> None:
    store = population_store("whole", states=True, lfp=True)
    raw: dict[str, Any] = {
        "name": "decoder", "data": [{"store": store.url, "batch": 2}],
        "domains": {"spikes": {"tasks": {"behaviour": AROUND}, "slow_s": []}},
        "operator": {"levels": [{"width": 16, "depth": 1, "head_width": 8, "mixers": []}], "stem_width": 8},
        "train": {"steps": 2, "threads": 1}}
    pretrain(validate(Recipe, raw, where="test"), tmp_path / "run")
    result = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run"), "--data", store.url, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["question"], row["metric"], row["baseline_name"]) for row in rows] == [("behaviour", "r2", "ridge")]
    assert list((tmp_path / "run/forecast").glob("*.zarr"))
