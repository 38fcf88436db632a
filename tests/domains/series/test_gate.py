"""Where variates inform each other the gate opens, of those that it serves, and forecasts win by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.workflow import pretrain
from sciml.cards.series import openness
from sciml.predictor import Predictor
from sciml.recipe import Recipe
from tests.domains.series.test_agreement import store_of

LAG = 12


def errors(predictor: Predictor, samples: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error of each variate, ours and the ridge's: ``(V,)`` twice."""
    adapter: Any = predictor.adapter("series")
    found: list[list[np.ndarray]] = [[], []]
    for sample in samples:
        batch, truth = adapter.encode(sample), sample["value"].values[-LAG:]
        plain = adapter.decode(batch, {"value": batch.targets["value"].baseline})
        for kept, said in zip(found, (predictor.predict(sample), plain)):
            kept.append(np.square(said["value"].values[0] - truth).mean(0))
    return np.mean(found[0], 0), np.mean(found[1], 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gate_opens_for_a_variate_that_follows_another(tmp_path: Path) -> None:
    """The second variate repeats the first, twelve hours late and with a little noise: its next twelve hours are known,
    but not from its own past. The first goes by nothing but its past."""
    rng = np.random.default_rng(0)
    noise, lead = rng.normal(size=6000 + LAG), np.zeros(6000 + LAG)
    for t in range(1, len(lead)):
        lead[t] = 0.6 * lead[t - 1] + 0.8 * noise[t]
    follow = lead[:-LAG] + 0.2 * rng.normal(size=6000)
    store = store_of(tmp_path, "followers", np.stack([lead[LAG:], follow], 1))

    def trained(mixers: list[str]) -> Predictor:
        return pretrain(Recipe.model_validate({
            "name": "followers", "data": [{"store": store.url, "batch": 32}],
            "domains": {"series": {"look_back": 48, "horizons": [LAG], "patch": LAG, "ridge": {"cycles": []}}},
            "operator": {"levels": [{"width": 32, "depth": 2, "mixers": mixers, "head_width": 16}], "stem_width": 16,
                         "condition_width": 16},
            "train": {"steps": 300, "learning_rate": 3e-3, "matrix_learning_rate": 1.5e-2, "ema": 0.9,
                      "validate_every": 60, "validation_windows": 64}}), tmp_path / mixers[0])

    gated, alone = trained(["variate_gate", "local"]), trained(["local"])
    windows = gated.adapter("series").questions(store, "test")[0].windows
    samples = [windows.draw(i, *[np.random.default_rng(0)] * 2) for i in range(0, len(windows), 7)]
    (ours, ridge), (without, _) = errors(gated, samples), errors(alone, samples)
    assert ours[1] < 0.7 * ridge[1]
    assert ours[1] < 0.7 * without[1]
    assert ours[0] < 1.25 * ridge[0]  # what nothing can be known of isn't improved, nor lost
    opened = openness(gated, samples[:8]).max("block")
    assert float(opened[1]) > 0.9
    assert float(opened[1] - opened[0]) > 0.2
