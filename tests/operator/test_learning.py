"""One small operator learns any tiny domain by heart, and the same seed learns it the same way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_domains import atoms, events, grid, panel

from sciml import registry
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import forward
from sciml.testing.conformance import OPERATOR

TINY: dict[str, Any] = {"atoms": atoms, "events": events, "grid": grid, "panel": panel}


def losses(name: str, steps: int, rate: float = 1e-2) -> list[float]:
    """Of one batch of three samples, all weights under Adam."""
    store = TINY[name].make_store()
    adapter = TINY[name].PLUGIN().fit(store)
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {adapter.name: adapter.spec()}).train()
    windows = adapter.open(store, "train")
    batch = collate([adapter.encode(windows.draw(i, None, None)) for i in range(3)])
    objective = registry.find("sciml.objectives", adapter.objective)
    optimizer = torch.optim.Adam(operator.parameters(), lr=rate)
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss = objective(forward(adapter, operator, batch, create_graph=True), batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(operator.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", sorted(TINY))
def test_one_batch_can_be_learnt_by_heart(name: str) -> None:
    found = losses(name, 100)
    assert found[-1] < 0.1 * found[0], found[::20]


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_same_seed_gives_the_same_losses(name: str) -> None:
    assert losses(name, 3) == losses(name, 3)
