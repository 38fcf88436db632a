"""Deep supervision of segmentations: what is asked in training, and that answers don't know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml import registry
from sciml.domains.volumes.adapter import Volumes
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import forward, predictions
from sciml.recipe import validate
from sciml.testing.parameters import stir
from sciml.tokens import TokenBatch
from tests.domains.volumes.balls import balls_store

OPERATOR = {"stem_width": 8, "condition_width": 8, "levels": [
    {"width": 16, "depth": 1, "mixers": ["local"], "head_width": 8}]}
REGIONS = {"regions": {"ball": [1, 2], "core": [2]}}


def adapter(folder: Path, **options: Any) -> tuple[Volumes, Any]:
    store = balls_store(folder)
    config = {"task": {"segment": {"deep_supervision": True, **options}}, "patch": 4, "window": [8, 8, 8],
              "spacing_mm": [2.0, 2.0, 2.0], "patches": {"augment": None}}
    return Volumes.create(config).fit(store), store


def batch_of(made: Volumes, store: Any) -> TokenBatch:
    rng = np.random.default_rng(0)
    return made.encode(made.open(store, "train").draw(0, rng, rng))


def operator_of(made: Volumes) -> Operator:
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, OPERATOR, where="test"), {"volumes": made.spec()})
    stir(operator)
    return operator


@pytest.mark.parametrize("options", [{}, REGIONS])
def test_training_asks_three_resolutions_and_answers_have_one(options: dict[str, Any], tmp_path: Path) -> None:
    """Also on a grid that is not the image's; the loss is the weighted mean over resolutions."""
    made, store = adapter(tmp_path, **options)
    operator, batch = operator_of(made), batch_of(made, store)
    count = len(made.spec().heads["label"].outputs)
    objective = registry.find("sciml.objectives", made.objective)
    outputs = forward(made, operator.train(), batch, create_graph=True)
    assert outputs["label"].shape == (*batch.targets["label"].value.shape[:-1], 3 * count)
    loss = objective(outputs, batch)
    parts = [objective(type(outputs)({"label": part}), batch) for part in outputs["label"].split(count, -1)]
    torch.testing.assert_close(loss, (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)
    loss.sum().backward()
    coarse = [p for name, p in operator.named_parameters() if ".coarse" in name]
    assert len(coarse) == 4 * count
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in coarse)
    assert predictions(batch, forward(made, operator.eval(), batch))["label"].shape[-1] == count
    assert made.decode(batch, predictions(batch, forward(made, operator, batch)))["label"].ndim == 4


def test_training_lowers_the_loss_of_every_resolution(tmp_path: Path) -> None:
    made, store = adapter(tmp_path)
    operator, batch = operator_of(made).train(), batch_of(made, store)
    objective, count = registry.find("sciml.objectives", made.objective), len(made.structures)
    optimizer = torch.optim.Adam(operator.parameters(), 1e-2)

    def losses() -> list[float]:
        outputs = forward(made, operator, batch, create_graph=True)
        return [float(objective(type(outputs)({"label": part.detach()}), batch))
                for part in outputs["label"].split(count, -1)]

    before = losses()
    for _ in range(15):
        optimizer.zero_grad()
        objective(forward(made, operator, batch, create_graph=True), batch).sum().backward()
        optimizer.step()
    assert all(after < 0.8 * first for after, first in zip(losses(), before))


def test_it_is_of_the_head_refined_alone() -> None:
    with pytest.raises(InputError, match="deep_supervision is of the head refined, not of lattice"):
        Volumes.create({"task": {"segment": {"deep_supervision": True, "head": "lattice"}}})
