"""What makes figures comparable: borders, whose scale it is, how many windows there are, and that all are scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.errors import InputError
from sciml.evaluate import BATCH, evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from tests.domains.series.test_agreement import store_of

ROOT = Path(__file__).resolve().parents[3]
ROWS, TRAIN, VALIDATION, TEST = 17420, 8640, 2880, 2880
WINDOWS = {"96": 2785, "192": 2689, "336": 2545, "720": 2161}
"""Of ETTh1's test split at look-back 96, one step apart, none dropped: 2880 − horizon + 1."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Other values under the source file of ETTh1: as many rows, the same options and split."""
    folder = tmp_path_factory.mktemp("protocol")
    raw = yaml.safe_load((ROOT / "datasets/etth1/source.yaml").read_text())
    rng, hours = np.random.default_rng(0), np.arange(ROWS)
    names = list(raw["options"]["units"])
    value = np.sin(2 * np.pi * hours[:, None] / 24 + np.arange(len(names))) + rng.normal(size=(ROWS, len(names)))
    frame = pd.DataFrame(value.round(4), columns=names)
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=ROWS, freq="h"))
    frame.to_csv(folder / "made.csv", index=False)
    source = SourceSpec.model_validate({**raw, "files": [str(folder / "made.csv")]})
    return build(source, folder / "etth1.zarr")


@pytest.fixture(scope="module")
def adapter(store: Store) -> Series:
    return Series.create({}).fit(store.for_training())


def test_borders_are_the_standard_ones(store: Store) -> None:
    splits, start = store.meta.splits, 0
    for split, length in ((splits.train, TRAIN), (splits.validation, VALIDATION), (splits.test, TEST)):
        block, = split
        assert (block.group, block.start, block.stop) == (0, start, start + length)
        start += length


def test_every_test_window_is_asked_once(adapter: Series, store: Store) -> None:
    time, rng = store.coord("time"), [np.random.default_rng(0)] * 2
    asked = adapter.questions(store, "test")
    assert {question.name: len(question.windows) for question in asked} == WINDOWS
    for question in asked:
        origins = [question.windows.draw(i, *rng)["time"].values[96] for i in (0, 1, len(question.windows) - 1)]
        first, last = TRAIN + VALIDATION, TRAIN + VALIDATION + TEST - int(question.name)
        np.testing.assert_array_equal(origins, time[[first, first + 1, last]])


def test_the_scale_is_that_of_training_alone(adapter: Series, store: Store) -> None:
    """The adapter was fitted to a store that gives nothing else."""
    known, value = adapter.datasets["etth1"], store.read("value", 0, 0, TRAIN).astype(np.float64)
    np.testing.assert_allclose(known.mean, value.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(known.std, value.std(0), rtol=1e-6)


def test_selection_cannot_see_the_test_split(adapter: Series, store: Store) -> None:
    held, rng, time = store.for_training(), [np.random.default_rng(0)] * 2, store.coord("time")
    windows = adapter.open(held, "validation")
    last = windows.draw(len(windows) - 1, *rng)
    assert last["time"].values[-1] == time[TRAIN + VALIDATION - 1]
    for question in adapter.questions(held, "test"):
        with pytest.raises(InputError, match="of the test split"):
            question.windows.draw(0, *rng)
    with pytest.raises(InputError, match="of the test split"):
        adapter.starts(held, "test")


def test_a_batch_that_is_not_full_is_scored_too(tmp_path: Path) -> None:
    """No `drop_last`: 81 windows are no whole number of batches."""
    store = store_of(tmp_path, "small", np.random.default_rng(0).normal(size=(400, 1)))
    adapter = Series.create({"look_back": 4, "horizons": [20], "patch": 4, "ridge": {"cycles": []}}).fit(store)
    small = {"levels": [{"width": 8, "depth": 1, "mixers": ["local"], "head_width": 8}], "stem_width": 8,
             "condition_width": 8}
    operator = Operator(validate(OperatorConfig, small, where="test"), {"series": adapter.spec()}).eval()
    found = evaluate(Predictor(operator, {"series": adapter}), store, "test")
    assert {row.samples for row in found.scores} == {100 - 20 + 1}
    assert (100 - 20 + 1) % BATCH
