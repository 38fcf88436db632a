"""Grids in millimetres: orientation, spacing, patches, tasks of the adapter of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data import bricks
from sciml.domains.volumes import geometry
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.tasks.segment import own_values
from sciml.errors import InputError
from sciml.evaluate import evaluate, examples
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.testing.parameters import stir
from tests.domains.volumes.balls import AFFINE, balls_store

OPERATOR = {"stem_width": 8, "condition_width": 8, "levels": [
    {"width": 16, "depth": 1, "depth_up": 1, "mixers": ["axial", "local"], "head_width": 8},
    {"width": 16, "depth": 1, "mixers": ["axial"], "head_width": 8}]}
PLAIN = {"task": {"segment": {"head": "lattice"}}, "stem": "patch", "window": [8, 6, 6], "patches": {"augment": None}}


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([1, *key])


def predictor_of(adapter: Volumes) -> Predictor:
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, OPERATOR, where="test"), {"volumes": adapter.spec()})
    stir(operator)
    return Predictor(operator.eval(), {"volumes": adapter})


def fitted_to(store: Any, **changes: Any) -> Volumes:
    return Volumes.create({**PLAIN, **changes}).fit(store)


AXES = st.permutations([0, 1, 2])
FLIPS = st.tuples(st.booleans(), st.booleans(), st.booleans())


def turned(array: np.ndarray, affine: np.ndarray, order: list[int], flips: tuple[bool, ...]) -> Any:
    """The array with its axes in another order and direction, and the affine that says so."""
    moved, columns = np.transpose(array, order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            moved = np.flip(moved, axis)
            columns[:3, 3] += columns[:3, axis] * (moved.shape[axis] - 1)
            columns[:3, axis] *= -1
    return moved, columns


@settings(deadline=None, max_examples=25)
@given(AXES, FLIPS)
def test_orientation_does_not_matter(order: list[int], flips: tuple[bool, ...]) -> None:
    array = np.random.default_rng(0).normal(size=(4, 3, 2))
    one = geometry.dataset_of({"mri": array}, AFFINE)
    other = geometry.dataset_of(dict(zip(["mri"], turned(array, AFFINE, order, flips)[:1])),
                                turned(array, AFFINE, order, flips)[1])
    xr.testing.assert_allclose(geometry.ras(one).drop_attrs(), geometry.ras(other).drop_attrs())
    assert geometry.spacing(other) == pytest.approx((1.0, 1.5, 2.0))


@pytest.mark.parametrize(("order", "flips"), [([2, 0, 1], (True, False, True)), ([1, 0, 2], (False, True, False))])
def test_predictions_follow_the_array(tmp_path: Path, order: list[int], flips: tuple[bool, bool, bool]) -> None:
    store = balls_store(tmp_path)
    adapter = fitted_to(store)
    predictor = predictor_of(adapter)
    array = bricks.read(store, "mri", 4)
    moved, affine = turned(array, AFFINE, order, flips)
    plain, other = (predictor.forward(adapter.encode(geometry.dataset_of({"mri": a}, m)))["label"]
                    for a, m in ((array, AFFINE), (moved, affine)))
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)


def test_oblique_arrays_keep_their_own_grid() -> None:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, 1.0, 3.0])
    sample = geometry.dataset_of({"mri": np.zeros((3, 2, 2))}, affine)
    assert sample["mri"].dims == ("x", "y", "z")
    assert np.diff(sample["x"].values) == pytest.approx(-2.0)
    assert geometry.spacing(sample) == pytest.approx((2.0, 1.0, 3.0))


def test_positions_are_millimetres(tmp_path: Path) -> None:
    store = balls_store(tmp_path)
    batch = fitted_to(store, reference_mm=10.0).encode(fitted_to(store).open(store, "test")[0])
    assert [float(axis.coord[0, 1] - axis.coord[0, 0]) for axis in batch.axes] == pytest.approx([0.1, 0.15, 0.2])


def test_scores_of_the_floor_and_of_the_truth(tmp_path: Path) -> None:
    store = balls_store(tmp_path, grow=1)
    predictor = predictor_of(fitted_to(store))
    result = evaluate(predictor, store, "test")
    by_name = {row.metric: row for row in result.scores}
    assert by_name["dice_core"].baseline > 0.5
    assert by_name["dice_core"].value < by_name["dice_core"].baseline
    assert by_name["hd95_shell"].unit == "mm"
    shown = examples(predictor, store, "train")
    assert shown is not None
    assert shown["label"].dims == ("sample", "x", "y", "z")
    assert shown.sizes["x"] == 10  # of the largest
    assert np.isnan(shown["label_truth"].values[0, -1]).all()


def test_answers_are_on_the_images_own_grid(tmp_path: Path) -> None:
    store = balls_store(tmp_path, (8, 6, 5))
    adapter = fitted_to(store, spacing_mm=[2.0, 1.5, 1.0])
    sample = adapter.open(store, "test")[0]
    batch = adapter.encode(sample)
    assert batch.lattice == (4, 6, 10)
    assert predictor_of(adapter).forward(batch)["label"].shape == (1, 8, 6, 5, 3)
    drawn = adapter.open(store, "train", train=True).draw(0, rng(0), rng(0))
    assert geometry.spacing(drawn) == pytest.approx((2.0, 1.5, 1.0))
    assert adapter.encode(drawn).targets["label"].value.shape[1:-1] == (8, 6, 6)


def test_patches_lie_around_structures_and_hold_what_the_volume_holds(tmp_path: Path) -> None:
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    store = balls_store(tmp_path, (20, 18, 9), affine=flipped)
    adapter = fitted_to(store, patches={"augment": None, "foreground": 1.0, "per_volume": 4})
    windows, whole = adapter.open(store, "train", train=True), adapter.open(store, "train")
    assert len(windows) == 12
    for i in range(6):
        patch, volume = windows.draw(i, rng(i), rng(0)), whole[i % 3]
        assert {name: patch.sizes[name] for name in "xyz"} == dict(zip("xyz", (8, 6, 6)))
        known = patch.dropna("x", how="all").dropna("y", how="all").dropna("z", how="all")
        assert (known["label"] > 0).any()
        same = volume.sel({name: known[name] for name in "xyz"}, method="nearest", tolerance=1e-6)
        np.testing.assert_array_equal(known["mri"].values, same["mri"].transpose(*known["mri"].dims).values)


def test_regions_are_written_from_the_outermost_inwards(tmp_path: Path) -> None:
    store = balls_store(tmp_path)
    regions = {"whole": [1, 2], "core": [2]}
    adapter = fitted_to(store, task={"segment": {"head": "lattice", "regions": regions}})
    batch = adapter.encode(adapter.open(store, "test")[0])
    truth = batch.targets["label"].value
    assert truth.shape[-1] == 2
    labels = adapter.task.labels(truth * 2 - 1)
    assert torch.equal(labels, torch.from_numpy(bricks.read(store, "label", 4).astype(np.int64))[None])
    with pytest.raises(ValueError, match="outermost inwards"):
        own_values({"core": (2,), "whole": (2, 1), "other": (1, 2)})


def test_hidden_voxels_are_not_shown(tmp_path: Path) -> None:
    store = balls_store(tmp_path, (16, 12, 8))
    adapter = fitted_to(store, task={"masked": {"head": "lattice", "scales": [4]}}, window=[16, 12, 8])
    batch = adapter.encode(adapter.open(store, "train", train=True).draw(0, rng(0), rng(0)))
    asked = batch.targets["image"].mask[..., 0]
    assert batch.observed is not None
    assert not bool((batch.observed[..., 0] & asked).any())
    assert bool((batch.values[..., 0][asked] == 0).all())
    assert float(asked.float().mean()) == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(("sample", "message"), [
    ({"t2": np.zeros((4, 3, 2))}, "modalities"), ({}, "x, y and z")])
def test_strangers_are_refused(tmp_path: Path, sample: Mapping[str, np.ndarray], message: str) -> None:
    adapter = fitted_to(balls_store(tmp_path))
    made = geometry.dataset_of(sample, AFFINE) if sample else xr.Dataset({"mri": ("a", np.zeros(3))})
    with pytest.raises(InputError, match=message):
        adapter.encode(made)


@pytest.mark.parametrize(("affine", "message"), [
    (np.diag([1.0, 0.0, 1, 1]), "spacing"), (np.eye(4) + np.eye(4, k=1) * [0, 0.2, 0, 0], "shear"),
    (np.full((4, 4), np.nan), "finite"), (np.eye(3), "4 × 4")])
def test_bad_affines_are_refused(affine: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        geometry.dataset_of({"mri": np.zeros((2, 2, 2))}, affine)


def test_a_constant_volume_has_no_infinite_numbers(tmp_path: Path) -> None:
    adapter = fitted_to(balls_store(tmp_path))
    batch = adapter.encode(geometry.dataset_of({"mri": np.full((4, 4, 4), 7.0)}, AFFINE))
    assert bool(torch.isfinite(batch.values).all())
