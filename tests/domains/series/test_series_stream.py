"""A stream is read once: steps with a cache equal one pass, and what is kept doesn't grow with what came before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.domains.series.layout import Layout
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from tests.test_conformance import series_store

CONFIG = {"look_back": 24, "horizons": [6, 12], "patch": 6, "task": "stream", "inputs": {"spread": True}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return series_store(tmp_path_factory.mktemp("stream"))


def predictor(store: Store, mixers: list[Any]) -> Predictor:
    adapter = Series.create(CONFIG).fit(store)
    torch.manual_seed(0)
    level = {"width": 32, "depth": 2, "head_width": 16, "mixers": mixers}
    config = OperatorConfig.model_validate({"levels": [level], "stem_width": 16})
    operator = Operator(config, {"series": adapter.spec()})
    for name, weight in operator.named_parameters():
        if "heads" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return Predictor(operator.eval(), {"series": adapter})


@pytest.mark.parametrize("mixers", [["gated", {"variate_gate": {"own": False}}], ["variate_gate", "local"], ["scan"]],
                         ids=["gated", "attention", "scan"])
def test_steps_with_a_cache_equal_one_pass(store: Store, mixers: list[Any]) -> None:
    model, layout = predictor(store, mixers), Layout.of(store)
    adapter = model.adapter("series")
    state, made = adapter.initial(layout.sample(0, 0, 60, look_back=60)), []
    for _ in range(3):
        state = model.step(state)
        made.append(adapter.observe(state))
    whole = layout.sample(0, 0, 78, look_back=72).copy(deep=True)
    for i, part in enumerate(made):
        whole["value"][60 + 6 * i:66 + 6 * i] = part["value"].values[0]
        np.testing.assert_array_equal(part["valid_time"].values[0], whole["time"].values[60 + 6 * i:66 + 6 * i])
    batch = adapter.encode(whole)
    again = batch.targets["next"].predict(model.forward(batch)["next"])[:, :, -3:].flatten(2)
    truth = batch.targets["next"].value[:, :, -3:].flatten(2)
    torch.testing.assert_close(again, truth, rtol=1e-3, atol=1e-3)


def test_what_is_kept_does_not_grow_with_the_look_back(store: Store) -> None:
    model, layout = predictor(store, ["gated", {"variate_gate": {"own": False}}]), Layout.of(store)

    def kept(look_back: int) -> int:
        state = model.step(model.adapter("series").initial(layout.sample(0, 0, look_back, look_back=look_back)))
        found: list[torch.Tensor] = [state.batch.values, *state.extra.values()]
        places: list[Any] = list(state.cache or [])
        while places:
            one = places.pop()
            if isinstance(one, torch.Tensor):
                found.append(one)
            elif isinstance(one, tuple | list):
                places.extend(one)
        return sum(t.numel() for t in found)

    assert kept(24) == kept(240)


def test_a_stream_survives_json_and_needs_its_past(store: Store) -> None:
    adapter = Series.create(CONFIG).fit(store)
    stored, arrays = adapter.state()
    again = Series.restore(json.loads(json.dumps(stored)), arrays)
    assert again.spec() == adapter.spec()
    sample = adapter.questions(store, "test")[0].windows.draw(0, np.random.default_rng(0), np.random.default_rng(0))
    a, b = (each.encode(sample) for each in (adapter, again))
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.targets["next"].baseline, b.targets["next"].baseline)
    with pytest.raises(InputError, match="at least 24"):
        adapter.encode(sample.isel(time=slice(12, None)).assign_attrs(look_back=12))


def test_a_look_back_of_no_whole_patches_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a divisor of the look-back 24"):
        Series.create({**CONFIG, "patch": 7}).fit(store)
