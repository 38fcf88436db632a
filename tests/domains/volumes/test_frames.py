"""3-D + time: frames are treated alike, one frame is a volume, answers of each frame or of all, windows of time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.workflow import extend
from pretrain.workflow import new_predictor
from sciml.data import bricks
from sciml.domains.volumes import geometry
from sciml.domains.volumes.augment import changed
from sciml.domains.volumes.encode import over_frames
from sciml.domains.volumes.sliding import blended, box
from sciml.domains.volumes.windows import in_time
from sciml.errors import InputError
from sciml.evaluate import evaluate, examples
from sciml.objectives.dice_cross_entropy import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import Recipe, validate
from sciml.testing import check_domain
from sciml.tokens import Outputs, TokenBatch
from tests.domains.volumes.balls import AFFINE, balls_store
from tests.domains.volumes.films import STEP_S, film, films_store
from tests.domains.volumes.test_adapter import OPERATOR, PLAIN, fitted_to, predictor_of, rng, turned

FINE: dict[str, Any] = {"task": "segment", "stem": "convolution", "patch": 2}
TIMES = STEP_S * np.arange(4)


def sample_of(image: np.ndarray, affine: np.ndarray = AFFINE, times: Any = TIMES) -> xr.Dataset:
    return geometry.dataset_of({"mri": image}, affine, times=times)


@pytest.mark.parametrize(("task", "moving"), [
    ({"segment": {"head": "lattice"}}, True), ({"segment": {"head": "lattice"}}, False),
    ({"masked": {"head": "lattice", "scales": [2]}}, True),
    ({"restore": {"head": "lattice", "measurement": "scan", "cascades": 2,
                  "options": {"acceleration": 2, "coils": 2, "centre": 0.1}}}, True),
    ({"restore": {"head": "lattice", "measurement": "projections", "cascades": 2, "options": {"angles": 9}}}, True)],
    ids=["segment", "segment_one_answer", "masked", "restore_scan", "restore_projections"])
def test_every_task_keeps_the_contract_with_frames(task: dict[str, Any], moving: bool, tmp_path: Path) -> None:
    store = films_store(tmp_path, moving=moving, unit="HU")
    check_domain("volumes", [store], config={**PLAIN, "task": task}, operator=OPERATOR)


def test_time_is_an_axis_in_seconds_that_is_not_merged(tmp_path: Path) -> None:
    store = films_store(tmp_path)
    adapter = fitted_to(store, reference_s=0.5)
    batch = adapter.encode(adapter.open(store, "test")[0])
    time = batch.axes[0]
    assert [axis.name for axis in batch.axes] == ["time", "x", "y", "z"]
    assert (time.kind, time.unit, time.causal, time.coarsen) == ("time", "s", False, False)
    torch.testing.assert_close(time.coord[0, :, 0].diff(), torch.full((3,), 0.5))
    assert batch.lattice == (4, 8, 6, 5)
    label = adapter.decode(batch, {"label": batch.targets["label"].value})["label"]
    assert label.dims == ("sample", "time", "x", "y", "z")
    assert label["time"].values.tolist() == TIMES.tolist()
    assert label["time"].attrs["units"] == "s"
    np.testing.assert_array_equal(label.values[0], np.moveaxis(film((8, 6, 5), 4)[1], -1, 0))


@pytest.mark.parametrize("config", [PLAIN, FINE], ids=["patch", "convolution"])
@pytest.mark.parametrize(("order", "flips"), [([2, 0, 1], (True, False, True)), ([1, 0, 2], (False, True, False))])
def test_predictions_follow_the_array(tmp_path: Path, config: dict[str, Any], order: list[int],
                                      flips: tuple[bool, bool, bool]) -> None:
    adapter = fitted_to(films_store(tmp_path), **config)
    predictor, image = predictor_of(adapter), film((8, 6, 5), 4)[0]
    moved, affine = turned(image[..., 0], AFFINE, order, flips)
    moved = np.stack([turned(image[..., t], AFFINE, order, flips)[0] for t in range(4)], -1)
    plain, other = (predictor.forward(adapter.encode(sample))["label"]
                    for sample in (sample_of(image), sample_of(moved, affine)))
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, FINE], ids=["patch", "convolution"])
def test_one_frame_is_a_volume(tmp_path: Path, config: dict[str, Any]) -> None:
    adapter = fitted_to(films_store(tmp_path), **config)
    predictor, image = predictor_of(adapter), film((8, 6, 5), 1)[0]
    whole = predictor.predict(geometry.dataset_of({"mri": image[..., 0]}, AFFINE))
    xr.testing.assert_identical(predictor.predict(sample_of(image, times=[0.0])), whole)
    xr.testing.assert_identical(predictor.predict(sample_of(image[..., [0, 0]], times=[0.0, 1.0]).isel(time=[0])),
                                whole)


def test_weights_of_volumes_go_on_with_frames(tmp_path: Path) -> None:
    still, films = balls_store(tmp_path, (8, 6, 5)), films_store(tmp_path)
    section = {**PLAIN, **FINE, "window": [8, 6, 6]}
    raw = {"schema_version": 1, "name": "balls", "seed": 0, "data": [{"store": still.url, "batch": 1}],
           "train": {"steps": 1}, "operator": OPERATOR, "domains": {"volumes": section}}
    predictor = new_predictor(validate(Recipe, raw, where="test"), [still])
    predictor.recipe = raw
    with torch.no_grad():
        for parameter in predictor.operator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    sample = geometry.dataset_of({"mri": film((8, 6, 5), 1)[0][..., 0]}, AFFINE, {"dataset": "balls"})
    with pytest.raises(InputError, match=r"4-D, 4 frames; expected 3-D.*one frame at a time.*frames: time"):
        predictor.predict(sample_of(film((8, 6, 5), 4)[0]))
    before = predictor.predict(sample)
    shapes = {name: weight.shape for name, weight in predictor.operator.state_dict().items()}
    extend(predictor, films, validate(Recipe, raw, where="test"))
    assert {name: weight.shape for name, weight in predictor.operator.state_dict().items()} == shapes
    after = predictor.predict(sample)
    np.testing.assert_array_equal(before["label"].values, after["label"].values)
    assert predictor.predict(sample_of(film((8, 6, 5), 4)[0])).sizes["time"] == 4


def test_the_stem_sees_every_frame_alike(tmp_path: Path) -> None:
    adapter = fitted_to(films_store(tmp_path), **FINE)
    stem: Any = predictor_of(adapter).operator.ports["volumes"].stem
    batch = adapter.encode(sample_of(film((8, 6, 4), 4)[0]))
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        tokens, fine = stem(batch, [1, 2, 2, 2])
        mixed, _ = stem(replace(batch, values=batch.values[:, order]), [1, 2, 2, 2])
        alone, _ = stem(replace(batch, values=batch.values[:, 1], axes=batch.axes[1:]), [2, 2, 2])
    assert tokens.shape == (1, 4, 4, 3, 2, 16)
    assert fine[0].shape[:2] == (4, 8)
    torch.testing.assert_close(mixed, tokens[:, order])
    torch.testing.assert_close(alone, tokens[:, 1])


def test_frames_know_of_one_another(tmp_path: Path) -> None:
    adapter = fitted_to(films_store(tmp_path), **FINE)
    predictor, image = predictor_of(adapter), film((8, 6, 5), 4)[0]
    other = image.copy()
    other[..., 3] = other[::-1, ..., 3]
    one, two = (predictor.forward(adapter.encode(sample_of(x)))["label"][0, 0] for x in (image, other))
    assert not torch.allclose(one, two, atol=1e-4)


def test_one_answer_is_the_mean_over_frames_that_were_seen(tmp_path: Path) -> None:
    adapter = fitted_to(films_store(tmp_path, moving=False))
    batch = adapter.encode(adapter.open(films_store(tmp_path, moving=False, name="more"), "test")[0])
    assert batch.targets["label"].value.shape == (1, 8, 6, 5, 3)
    head = torch.randn(1, 4, 8, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    found = adapter.derive(batch, lambda given: Outputs({"label": head}), False)["label"]
    torch.testing.assert_close(found, head.mean(1))
    seen = torch.ones(1, 4, 8, 6, 5, 1, dtype=torch.bool)
    seen[:, 2:] = False
    torch.testing.assert_close(over_frames(replace(batch, observed=seen), head), head[:, :2].mean(1))
    answer = adapter.decode(batch, {"label": found})
    assert answer["label"].dims == ("sample", "x", "y", "z") == answer["image"].dims
    assert "time" not in answer.coords


def test_the_class_is_that_of_the_whole_film(tmp_path: Path) -> None:
    store = balls_store(tmp_path, classes=("cored", "hollow"))
    adapter = fitted_to(store, task="classify", window=[8, 6, 6, 2], overlap=0.0)
    adapter = replace(adapter, datasets={"balls": adapter.datasets["balls"].model_copy(update={"frames": True})})
    predictor, image = predictor_of(adapter), film((8, 6, 5), 4)[0]
    found = predictor.predict(sample_of(image))
    assert found["category"].dims == ("sample",)
    assert found["probability"].dims == ("sample", "class")
    batch = adapter.encode(sample_of(image))
    with torch.no_grad():
        parts = [predictor.operator(box(batch, (slice(a, a + 2), *[slice(None)] * 3)))["class"] for a in (0, 2)]
    assert not torch.equal(*parts)
    torch.testing.assert_close(predictor.forward(batch)["class"], (parts[0] + parts[1]) / 2)


def test_a_store_of_films_is_refused_by_a_model_of_volumes(tmp_path: Path) -> None:
    adapter = fitted_to(balls_store(tmp_path))
    with pytest.raises(InputError, match=r"films/s0 \[dims\]: found 4-D, 4 frames; expected 3-D"):
        evaluate(predictor_of(adapter), films_store(tmp_path), "test")


def test_films_of_unequal_length_are_evaluated_and_shown(tmp_path: Path) -> None:
    store = films_store(tmp_path, (3, 4, 1, 2, 5, 2, 3, 4, 1, 2))
    assert [len(bricks.times(store, i)) for i in range(5)] == [3, 4, 1, 2, 5]
    predictor = predictor_of(fitted_to(store, window=[8, 6, 6, 2]))
    result = {row.metric: row for row in evaluate(predictor, store, "train").scores}
    assert result["dice"].samples == 6
    assert np.isfinite(result["dice"].value)
    shown = examples(predictor, store, "test")
    assert shown is not None
    assert shown["label"].dims == ("sample", "time", "x", "y", "z")


def test_scores_are_means_over_the_frames_that_are_known(tmp_path: Path) -> None:
    adapter = fitted_to(films_store(tmp_path))
    question, label = adapter.questions(films_store(tmp_path, name="more"), "test")[0], film((8, 6, 5), 4)[1]
    truth = sample_of(label).rename(mri="label").expand_dims("sample").transpose("sample", "time", "x", "y", "z")
    truth["spacing"] = (("sample", "world"), [[1.0, 1.5, 2.0]])
    ours = truth.copy(deep=True)
    ours["label"][0, 1] = ours["label"][0, 1, ::-1].values
    ours["label"][0, 2] = 0.0
    each = [adapter.task.score(ours.isel(time=t), truth.isel(time=t), (1.0, 1.5, 2.0)) for t in range(4)]
    found = adapter.score(question, ours, truth)
    for name, value in found.items():
        assert value == pytest.approx(np.mean([one[name] for one in each]))
    truth["label"][0, 2:] = np.nan
    assert adapter.score(question, ours, truth)["dice"] == pytest.approx(np.mean([one["dice"] for one in each[:2]]))


def test_windows_of_time_cover_all_frames_and_change_nothing_that_is_pointwise(tmp_path: Path) -> None:
    store = films_store(tmp_path, (7, 7, 7, 7, 7), (9, 6, 5))
    adapter = fitted_to(store, window=[4, 6, 6, 3], overlap=0.5)
    batch, seen = adapter.encode(adapter.open(store, "test")[0]), []

    def operate(part: TokenBatch) -> Outputs:
        seen.append(part.lattice)
        return Outputs({"label": torch.cat([part.values, part.values**2, part.values * part.axes[0].coord.view(
            1, -1, 1, 1, 1, 1)], -1)})

    found = adapter.derive(batch, operate, False)["label"]
    assert set(seen) == {(3, 4, 6, 5)}
    torch.testing.assert_close(found, operate(batch)["label"])
    seen.clear()
    whole = fitted_to(store, window=[9, 6, 6])
    whole.derive(batch, operate, False)
    assert seen == [(7, 9, 6, 5)]
    mirrored = blended(batch, operate, (7, 9, 6, 5), mirrors=("x", "z"))["label"]
    torch.testing.assert_close(mirrored, found)


def test_a_patch_holds_frames_that_follow_one_another(tmp_path: Path) -> None:
    store = films_store(tmp_path, (9, 2, 6, 2, 9), (20, 18, 9))
    adapter = fitted_to(store, window=[8, 6, 6, 4], patches={"augment": None, "foreground": 1.0, "per_volume": 4})
    patches, whole = adapter.open(store, "train", train=True), adapter.open(store, "train")
    for i in range(6):
        patch, volume = patches.draw(i, rng(i), rng(0)), whole[i % 3]
        assert {name: patch.sizes[name] for name in ("x", "y", "z", "time")} == {"x": 8, "y": 6, "z": 6, "time": 4}
        assert np.allclose(np.diff(patch["time"].values), STEP_S)
        known = patch.dropna("time", how="all").dropna("x", how="all").dropna("y", how="all").dropna("z", how="all")
        assert known.sizes["time"] == min(4, volume.sizes["time"])
        assert (known["label"] > 0).any()
        same = volume.sel({name: known[name] for name in ("x", "y", "z", "time")}, method="nearest", tolerance=1e-6)
        np.testing.assert_array_equal(known["mri"].values, same["mri"].transpose(*known["mri"].dims).values)
        batch = adapter.encode(patch)
        assert batch.lattice == (4, 8, 6, 6)
        if volume.sizes["time"] < 4:
            assert batch.observed is not None
            assert not bool(batch.observed[:, 2:].any() | batch.targets["label"].mask[:, 2:].any())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 11), st.integers(0, 99))
def test_frames_are_drawn_around_the_one_that_was_chosen(total: int, count: int, frame: int, seed: int) -> None:
    frames, times = in_time(STEP_S * np.arange(total), count, min(frame, total - 1), np.random.default_rng(seed))
    chosen = range(total)[frames]
    assert len(times) == count
    assert len(chosen) == min(count, total)
    assert min(frame, total - 1) in chosen
    np.testing.assert_allclose(times[:len(chosen)], STEP_S * np.array(chosen))
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_frames_are_augmented_alike(strength: float) -> None:
    image, label = film((12, 10, 8), 1, 3)
    arrays = {"mri": image[..., 0], "label": label[..., 0]}
    for seed in range(6):
        still, moved = changed(arrays, AFFINE, (8, 8, 6), rng(seed), {"strength": strength})
        one, where = changed({name: array[..., None] for name, array in arrays.items()}, AFFINE, (8, 8, 6), rng(seed),
                             {"strength": strength})
        np.testing.assert_array_equal(moved, where)
        for name, array in still.items():
            np.testing.assert_array_equal(one[name][..., 0], array)
    options = {"strength": 0.0, "spatial": 1.0, "thick": 1.0}
    twice, _ = changed({name: np.stack([array] * 3, -1) for name, array in arrays.items()}, AFFINE, (8, 8, 6), rng(1),
                       options)
    for array in twice.values():
        assert array.shape == (8, 8, 6, 3)
        np.testing.assert_array_equal(array, array[..., :1].repeat(3, -1))


@pytest.mark.parametrize(("arrays", "times", "told"), [
    ({"mri": np.zeros((3, 3, 3, 2))}, None, r"\(3, 3, 3, 2\).*times of its frames"),
    ({"mri": np.zeros((3, 3, 3, 2))}, [0, 1, 2], r"or \(i, j, k, 3\)")])
def test_frames_without_times_are_refused(arrays: dict[str, np.ndarray], times: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        geometry.dataset_of(arrays, np.eye(4), times=times)


def test_a_modality_without_frames_beside_one_with_them_is_refused(tmp_path: Path) -> None:
    adapter = fitted_to(films_store(tmp_path))
    known = adapter.datasets["films"].model_copy(update={"modalities": {"mri": "1", "t2": "1"}})
    both = geometry.dataset_of({"mri": np.zeros((3, 3, 3, 2)), "t2": np.zeros((3, 3, 3))}, np.eye(4), times=[0, 1])
    with pytest.raises(InputError, match="frames of mri alone"):
        replace(adapter, datasets={"films": known}).encode(both)


def blinking(subject: int) -> tuple[np.ndarray, np.ndarray]:
    """``(4, 8, 2, 4)`` and ``(4, 8, 2)``: two boxes, one bright in the first half of the frames, the other in the
    second; label 2 is the one that was first. In any frame alone nothing tells them apart."""
    rng = np.random.default_rng([11, subject])
    image, label = np.zeros((4, 8, 2, 4)), np.zeros((4, 8, 2))
    first, second = ([1, 5], [5, 1])[int(rng.integers(2))]
    label[1:3, first:first + 2], label[1:3, second:second + 2] = 2, 1
    image[1:3, first:first + 2, :, :2] = 1.0
    image[1:3, second:second + 2, :, 2:] = 1.0
    return (100 + 50 * image + 2 * rng.standard_normal(image.shape)).astype(np.float32), label.astype(np.float32)


def samples_of(frames: bool) -> list[list[xr.Dataset]]:
    """Of 40 subjects, whole or frame by frame."""
    made = []
    for image, label in map(blinking, range(40)):
        parts = [(image, TIMES)] if frames else [(image[..., t], None) for t in range(4)]
        made.append([geometry.dataset_of({"mri": part, "label": label}, AFFINE, times=when) for part, when in parts])
    return made


def test_time_tells_what_no_frame_alone_can(tmp_path: Path) -> None:
    """One network, as many steps on as many voxels: with frames together, and with each by itself."""
    wrong = {}
    for frames in (True, False):
        store = films_store(tmp_path, (4,) * 5, moving=False) if frames else balls_store(tmp_path)
        adapter = fitted_to(store, window=[4, 8, 2])
        torch.manual_seed(0)
        network = {"stem_width": 8, "levels": [{"width": 16, "depth": 2, "mixers": ["local"], "head_width": 8}]}
        operator = Operator(validate(OperatorConfig, network, where="test"), {"volumes": adapter.spec()})
        batches = [[adapter.encode(sample) for sample in few] for few in samples_of(frames)]
        adam = torch.optim.Adam(operator.parameters(), lr=1e-2)
        for step in range(120):
            batch = collate([one for few in batches[step % 4 * 8:][:8] for one in few])
            loss = objective(forward(adapter, operator, batch, create_graph=True), batch).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        predictor, missed = Predictor(operator.eval(), {"volumes": adapter}), []
        for few in batches[32:]:
            found = torch.stack([predictor.forward(batch)["label"] for batch in few]).mean(0).argmax(-1)
            truth = few[0].targets["label"].value.argmax(-1)
            missed.append(float((found != truth)[truth > 0].float().mean()))
        wrong[frames] = np.mean(missed)
    assert wrong[True] < 0.1
    assert wrong[False] > 0.3
