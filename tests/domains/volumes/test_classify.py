"""Classes of whole volumes: scores by their definition, windows averaged, what can't be learned refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.workflow import extend
from pretrain.workflow import new_predictor
from sciml.data.store import Store
from sciml.domains.volumes import classes
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.sliding import box
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.recipe import Recipe, validate
from sciml.testing import check_domain
from tests.domains.volumes.balls import balls_store
from tests.domains.volumes.test_adapter import OPERATOR, predictor_of

PLAIN: dict[str, Any] = {"task": "classify", "window": [8, 6, 6], "patches": {"augment": None}}


def store_of(folder: Path, **options: Any) -> Store:
    return balls_store(folder, **{"classes": ("cored", "hollow"), **options})


def test_it_keeps_every_promise(tmp_path: Path) -> None:
    check_domain("volumes", [store_of(tmp_path)], config={**PLAIN, "task": {"classify": {"smoothing": 0.1}}})


def test_an_answer_is_the_class_and_its_probability(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    adapter = Volumes.create(PLAIN).fit(store)
    assert adapter.classes == ("cored", "hollow")
    batch = adapter.encode(adapter.open(store, "train")[1])
    assert batch.targets["class"].value.tolist() == [[0, 1]]
    found = adapter.decode(batch, {"class": torch.tensor([[0.0, np.log(3)]])})
    assert found["category"].values.tolist() == [1]
    np.testing.assert_allclose(found["probability"].values, [[0.25, 0.75]])
    assert found["probability"].sel({"class": "hollow"}).dims == ("sample",)


def test_the_floor_is_how_often_a_class_occurs(tmp_path: Path) -> None:
    store = store_of(tmp_path, subjects=10)  # six to train on, three of each
    rows = {row.metric: row for row in evaluate(predictor_of(Volumes.create(PLAIN).fit(store)), store, "test").scores}
    assert rows["log_loss"].baseline == pytest.approx(np.log(2))
    assert rows["accuracy"].baseline == 0.5
    store = store_of(tmp_path, subjects=5, dataset="odd")  # three: cored, hollow, cored
    batch = Volumes.create(PLAIN).fit(store).encode(Volumes.create(PLAIN).fit(store).open(store, "test")[0])
    np.testing.assert_allclose(batch.targets["class"].baseline.exp(), [[3 / 5, 2 / 5]], rtol=1e-6)


def test_classes_of_another_store_go_by_their_names(tmp_path: Path) -> None:
    adapter = Volumes.create(PLAIN).fit(store_of(tmp_path))
    other = store_of(tmp_path, classes=("burst", "hollow", "cored"), dataset="other")
    for index in range(3):
        assert float(adapter.open(other, "train")[index]["category"]) == index % 2
    strange = Volumes.create(PLAIN).fit(balls_store(tmp_path, classes=("cored", "hollow"), dataset="two"))
    renamed = replace(strange, datasets={"two": strange.datasets["two"].model_copy(update={"classes": ("a", "b")})})
    with pytest.raises(InputError, match="found cored; expected one of a, b"):
        renamed.open(other, "train")[0]


def test_of_a_larger_volume_windows_are_averaged(tmp_path: Path) -> None:
    store = store_of(tmp_path, shape=(12, 6, 5))
    adapter = Volumes.create({**PLAIN, "overlap": 0.5}).fit(store)
    predictor, batch = predictor_of(adapter), adapter.encode(adapter.open(store, "test")[0])
    with torch.no_grad():
        parts = [predictor.operator(box(batch, (slice(a, a + 8), slice(0, 6), slice(0, 5))))["class"] for a in (0, 4)]
    assert not torch.equal(*parts)
    torch.testing.assert_close(predictor.forward(batch)["class"], (parts[0] + parts[1]) / 2)


def test_a_subject_without_a_class_is_predicted_and_not_scored(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    adapter = Volumes.create(PLAIN).fit(store)
    sample = adapter.open(store, "test")[0].drop_vars("category")
    batch = adapter.encode(sample)
    assert not bool(batch.targets["class"].mask.any())
    answer = predictor_of(adapter).predict(sample)
    assert np.isfinite(answer["category"].values).all()
    known = adapter.open(store, "test")[0]
    truth = adapter.decode(adapter.encode(known), {"class": torch.tensor([[9.0, 0.0]])})
    question = adapter.questions(store, "test")[0]
    assert len(adapter.score(question, answer, truth)["log_loss"]) == 1
    truth["category"][:] = np.nan
    assert len(adapter.score(question, answer, truth)["log_loss"]) == 0


def test_stores_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no classes of subjects.*participants\.tsv"):
        Volumes.create(PLAIN).fit(balls_store(tmp_path))
    with pytest.raises(InputError, match="no hollow in the training split"):
        Volumes.create(PLAIN).fit(store_of(tmp_path, subjects=3, dataset="few"))


def test_it_goes_on_from_masked_pretraining_with_a_new_head(tmp_path: Path) -> None:
    store = store_of(tmp_path, shape=(8, 8, 8))
    raw = {"schema_version": 1, "name": "balls", "seed": 0, "data": [{"store": store.url, "batch": 1}],
           "train": {"steps": 1}, "operator": OPERATOR, "domains": {"volumes": {**PLAIN, "task": "masked"}}}
    predictor = new_predictor(validate(Recipe, raw, where="test"), [store])
    predictor.recipe = raw
    before = {name: value.clone() for name, value in predictor.operator.state_dict().items()}
    extend(predictor, store, validate(Recipe, {**raw, "domains": {"volumes": PLAIN}}, where="test"))
    after = predictor.operator.state_dict()
    kept = [name for name in before if ".heads." not in name]
    assert kept
    for name in kept:  # kernels whose size a norm takes away get that of new ones
        unit = torch.nn.functional.normalize if "kernel_matrix" in name else torch.as_tensor
        torch.testing.assert_close(unit(before[name]), unit(after[name]))
    assert {name.split(".")[3] for name in after if ".heads." in name} == {"class"}
    adapter = predictor.adapter("volumes")
    assert predictor.forward(adapter.encode(adapter.open(store, "test")[0]))["class"].shape == (1, 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 4), st.booleans())
def test_the_area_is_the_share_of_pairs_in_the_right_order(seed: int, count: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    category = np.concatenate([np.arange(count), rng.integers(count, size=9)])
    share = rng.dirichlet(np.ones(count), len(category))
    share = np.round(share, 1) if tied else share
    areas = []
    for value in range(count):
        pairs = [0.5 * (float(a > b) + float(a >= b)) for a in share[category == value, value]
                 for b in share[category != value, value]]
        areas.append(np.mean(pairs))
    assert classes.auc(share, category).mean() == pytest.approx(np.mean(areas))


def test_the_spread_of_the_area_is_delongs() -> None:
    """Standard error of the mean of the numbers against the spread of the area over fresh samples."""
    rng = np.random.default_rng(0)
    category = np.repeat([0, 1], 60)

    def drawn() -> np.ndarray:
        p = 1 / (1 + np.exp(-rng.normal(category * 1.0)))
        return classes.auc(np.stack([1 - p, p], 1), category)

    numbers = [drawn() for _ in range(300)]
    told = np.mean([each.std() / len(each) ** 0.5 for each in numbers])
    assert told == pytest.approx(np.std([each.mean() for each in numbers]), rel=0.15)


def test_balanced_accuracy_is_the_mean_recall_and_is_said_beside_the_rest() -> None:
    share = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = classes.across(classes.scores(share, np.array([0, 0, 0, 1])))
    assert found["accuracy"].mean() == 0.75
    assert found["balanced_accuracy"].mean() == 0.5
    assert found["auc"].mean() == 1.0
    assert set(found) == {metric.name for metric in classes.metrics(2)}
    alone = classes.across(classes.scores(share, np.zeros(4, int)))
    assert "auc" not in alone
