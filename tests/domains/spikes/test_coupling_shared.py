"""What a model says that units share: from the others alone, on the clock asked for, as bold as validation allows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml import checkpoint, cli
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.coupling_shared import reads_shared_input, shared_log_rate
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.tokens import Outputs, TokenBatch

UNITS, SECONDS = 12, 6.0
MASKED: dict[str, Any] = {"before": 4, "scored": 40, "after": 4}
CONFIG: dict[str, Any] = {"floor": "smoothed", "slots": 1, "slow_s": [], "bin_s": 0.004, "tasks": {"masked": MASKED},
                          "masks": {"time": 0.0, "cell": 0.0, "unit": 0.3}}
SMALL = {"stem_width": 8, "levels": [{"width": 16, "depth": 0, "head_width": 8}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    spec = validate(SourceSpec, {
        "name": "net", "domain": "spikes", "builder": "spiking_network", "missing": "mask", "licence": "CC0-1.0",
        "options": {"units": UNITS, "duration_s": SECONDS, "rate_hz": 10.0, "bin_ms": 1.0, "calibration_s": 6.0,
                    "shared": {"strength_mv": 3.0}},
        "split": {"by": "time", "gap": 0, "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}}}, where="test")
    return build(spec, tmp_path_factory.mktemp("shared") / "net.zarr")


@pytest.fixture(scope="module")
def adapter(store: Store) -> Binned:
    return Binned.create(CONFIG).fit(store)


def others(gain: float, seen: list[TokenBatch] | None = None) -> Any:
    """A model that adds what the units it sees do on average, within a tenth of a second, times a gain."""

    def forward(batch: TokenBatch) -> Outputs:
        if seen is not None:
            seen.append(batch)
        mean = torch.nn.functional.avg_pool1d((batch.values * batch.observed).mean(1).mT, 25, 1, 12).mT
        return Outputs({"rate": gain * mean[:, None].expand(batch.values.shape)})

    return forward


def test_units_are_told_from_the_others_alone(adapter: Binned, store: Store) -> None:
    seen: list[TokenBatch] = []
    windows = adapter.open(store, "train")
    (found,) = shared_log_rate(others(3.0, seen), adapter, windows, (0,), 0.001)
    assert found.shape == (round(SECONDS / 0.001), UNITS)
    np.testing.assert_array_equal(found[0::4], found[3::4])
    for batch in seen:
        assert batch.observed is not None
        target = batch.targets["rate"]
        assert not (batch.observed & target.mask).any()
        assert bool(target.mask[:, :, 10:-10].any(1).all())
    count, of = windows.source.layout.recorded(0).count, windows.source.fit.history
    z = of.prepared(torch.from_numpy(count))[0].numpy()
    for n in (0, 5):
        rest = np.convolve(np.delete(z, n, 1).mean(1), np.ones(25) / 25, "same")
        assert np.corrcoef(found[::4][:, n], rest)[0, 1] > 0.8


def test_what_is_too_bold_is_scaled_down(adapter: Binned, store: Store) -> None:
    windows = adapter.open(store, "train")
    (bold,), (bolder,), (wrong,) = (shared_log_rate(others(gain), adapter, windows, (0,), 0.004)
                                    for gain in (10.0, 20.0, -3.0))
    np.testing.assert_allclose(bolder, bold, rtol=0.3)
    assert bold.std() > 0
    assert (wrong == 0).all(), "a signal of the wrong sign is worth nothing"


def test_mistakes_are_named(adapter: Binned, store: Store) -> None:
    windows, forward = adapter.open(store, "train"), others(1.0)
    assert reads_shared_input(adapter)
    with pytest.raises(InputError, match="multiple of the store"):
        shared_log_rate(forward, adapter, windows, (0,), 0.003)
    for config in ({"slots": 0}, {"tasks": {"masked": {**MASKED, "after": 0}}}, {"tasks": {"next": {}}}):
        other = replace(adapter, config=Binned.create({**CONFIG, **config}).config)
        assert not reads_shared_input(other)
        with pytest.raises(InputError, match=r"tasks\.masked"):
            shared_log_rate(forward, other, windows, (0,), 0.001)


@pytest.mark.parametrize("also", [False, True])
def test_the_command_prints_links(also: bool, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    tasks = {"masked": MASKED, **({"next": {"before": 8, "scored": 40}} if also else {})}
    own = Binned.create({**CONFIG, "tasks": tasks}).fit(store)
    operator = Operator(validate(OperatorConfig, SMALL, where="test"), {"spikes": own.spec()})
    checkpoint.save(tmp_path / "model", Predictor(operator, {"spikes": own}))
    arguments = ["connectivity", str(tmp_path / "model"), "--data", store.url, "--contexts", "2", "--lags", "6"]
    assert cli.run([*arguments, "--json", "--links", "5", "-o", str(tmp_path / "links.npz")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in said["scores"]] == ["links", *(["impulse response", "ablation"] if also else [])]
    chances = [row["probability"] for row in said["links"]]
    assert chances == sorted(chances, reverse=True)
    assert len(chances) == 5
    assert ("response" in said["links"][0]) == also
    with np.load(tmp_path / "links.npz", allow_pickle=False) as saved:
        assert saved["probability"].shape == saved["link_delay"].shape == (UNITS, UNITS)
    assert cli.run([*arguments, "-o", str(tmp_path / "links.png")]) == 0
    assert "probability" in capsys.readouterr().out
    assert (tmp_path / "links.png").stat().st_size > 5000


def test_a_model_that_answers_neither_is_refused(store: Store, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    own = Binned.create({**CONFIG, "tasks": {"masked": {**MASKED, "after": 0}}}).fit(store)
    operator = Operator(validate(OperatorConfig, SMALL, where="test"), {"spikes": own.spec()})
    checkpoint.save(tmp_path / "model", Predictor(operator, {"spikes": own}))
    assert cli.run(["connectivity", str(tmp_path / "model"), "--data", store.url]) == 1
    assert "tasks.masked" in capsys.readouterr().err
