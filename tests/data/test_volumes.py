"""Folds, generated phantoms, and what `validate` finds in a store of volumes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from sciml.data import bricks
from sciml.data.affines import refuse_bad_affine
from sciml.data.builders.phantoms import Options, Phantom, build
from sciml.data.check import validate
from sciml.data.conventions import convention_of
from sciml.data.schema import Splits
from sciml.data.split_config import FoldSplit
from sciml.data.splits import make_splits, usual_split
from sciml.data.store import Store
from sciml.errors import InputError

SMALL = {"subjects": 4, "field_mm": [24.0, 28.0, 20.0], "spacing_mm": [1.5, 2.5], "brick": 8}


def groups(splits: Splits) -> list[list[int]]:
    return [[block.group for block in blocks] for blocks in (splits.train, splits.validation, splits.test)]


def fold(count: int, keys: np.ndarray | None = None, **given: Any) -> list[list[int]]:
    split = FoldSplit(by="fold", **given)
    return groups(make_splits(split, count, 1, group_dim="subject", where="t", keys=keys))


def test_every_fifth_group_is_test_the_next_validation_the_rest_training() -> None:
    assert fold(12) == [[2, 3, 4, 7, 8, 9], [1, 6, 11], [0, 5, 10]]
    assert [len(part) for part in fold(200)] == [120, 40, 40]
    assert fold(5, folds=3, test=2, validation=None) == [[0, 1, 3, 4], [], [2]]
    assert fold(7, np.array([9, 9, 4, 4, 9, 1, 1]), folds=3) == [[5, 6], [2, 3], [0, 1, 4]]
    with pytest.raises(InputError, match=r"\[split\]: found 2 subject, none to train"):
        fold(2)
    wrong: dict[str, Any]
    for wrong in ({"test": 1}, {"folds": 2}, {"validation": 5}, {"folds": 1}):
        with pytest.raises(ValidationError):
            FoldSplit.model_validate({"by": "fold", **wrong})


def test_subjects_of_one_person_stay_in_one_fold_without_being_told() -> None:
    data = xr.Dataset({"person": ("subject", [0.0, 0, 1, 2])})
    assert usual_split(FoldSplit(by="fold"), data, "volumes", None,
                       where="t").together == "person"  # type: ignore[union-attr]
    assert usual_split(FoldSplit(by="fold"), xr.Dataset(), "volumes", None,
                       where="t").together is None  # type: ignore[union-attr]
    assert convention_of("volumes").group_dim == "subject"


def test_a_phantom_depends_on_its_seed_and_number_alone_and_nests_its_structures() -> None:
    few, many = Options.model_validate(SMALL), Options.model_validate(SMALL | {"subjects": 9})
    for i in range(3):
        one, other = Phantom.of(few, i), Phantom.of(many, i)
        assert np.array_equal(one.affine, other.affine)
        assert np.array_equal(one.image(), other.image())
        refuse_bad_affine(one.affine, "phantom")
        label = one.label()
        assert set(np.unique(label)) == {0, 1, 2}
        assert label.shape == one.shape == one.image().shape
        assert np.isfinite(one.image()).all()
        assert (label > 0).mean() < 0.2
    assert not np.array_equal(Phantom.of(few, 0).image(), Phantom.of(few.model_copy(update={"seed": 1}), 0).image())
    wrong: dict[str, Any]
    for wrong in ({"spacing_mm": [2, 1]}, {"orientations": []}, {"orientations": ["RAX"]}, {"subject": 3}):
        with pytest.raises(InputError):
            build(SMALL | wrong)


def test_anatomy_is_the_same_on_another_grid_of_the_same_subject() -> None:
    options = Options.model_validate(SMALL | {"tilt_deg": 0, "spacing_mm": [1.0, 1.0], "decades": 0})
    ras, lps = (Phantom.of(options.model_copy(update={"orientations": (code,)}), 0) for code in ("RAS", "LPS"))
    assert np.array_equal(ras.label(), lps.label()[::-1, ::-1])


@pytest.fixture
def stored(built: Callable[..., Store]) -> Callable[..., Store]:
    counter = itertools.count()

    def make(change: Callable[[xr.Dataset], xr.Dataset] = lambda data: data, **options: Any) -> Store:
        data = change(build(SMALL | options).compute())
        return built(data, f"s{next(counter)}", split={"by": "fold", "folds": 4})
    return make


def found(store: Store) -> dict[str, str]:
    return {finding.key: finding.found for finding in validate(store)}


def test_a_sound_store_of_phantoms_is_valid_and_reads_back(stored: Callable[..., Store]) -> None:
    store = stored()
    assert found(store) == {}
    phantom = Phantom.of(Options.model_validate(SMALL), 2)
    assert np.array_equal(bricks.read(store, "mri", 2), phantom.image())
    assert np.array_equal(bricks.read(store, "label", 2, (2, 3, 4), (9, 8, 7)), phantom.label()[2:9, 3:8, 4:7])
    assert np.isnan(bricks.read(stored(labelled=3), "label", 3)).all()


def changed(name: str, value: float, at: Any = (5,)) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        values = data[name].values.copy()
        values[at] = value
        return data.assign({name: data[name].copy(data=values)})
    return change


def copied(data: xr.Dataset) -> xr.Dataset:
    """The second subject is the first again, and both are of one person."""
    rows = np.concatenate([[0], np.cumsum(data.voxel_count.values)])
    order = np.concatenate([np.arange(rows[0], rows[1]), np.arange(rows[0], rows[1]), np.arange(rows[2], rows[-1])])
    twice = {name: data[name].isel(subject=[0, 0, 2, 3]).variable
             for name in ("voxel_count", "size", "affine", "brick")}
    flat = {name: data[name].isel(voxel=order).variable for name in ("mri", "label")}
    person = {"person": ("subject", [0.0, 0.0, 1.0, 2.0], {"role": "parameter", "units": "1"})}
    return xr.Dataset({**twice, **flat, **person}, data.coords, data.attrs)


def all_of(*changes: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda data: functools.reduce(lambda made, change: change(made), changes, data)


@pytest.mark.parametrize(("change", "told"), [
    (all_of(changed("label", 3), changed("size", 3, (1, 0)), changed("brick", 0, (2,)),
            changed("affine", 0.0, (1, slice(0, 3), 2))),
     {"label": "1, first subject 0 (phantom_0), voxel 5 in bricks: 3", "size": "subject 1 (phantom_1): [3",
      "brick": "subject 2 (phantom_2): 0", "affine": "subject 1 (phantom_1): "}),
    (all_of(changed("label", 0.5), changed("affine", 900.0, (1, slice(0, 3), 2)), changed("mri", 7.0, (slice(None),))),
     {"label": "voxel 5 in bricks: 0.5", "affine": "degrees apart",
      "image constant": "4, first subject 0 (phantom_0), mri: 7"}),
    (lambda data: data.drop_vars("affine"), {"domain volumes": "no affine"}),
    (lambda data: data.assign(label=data.label.where(data.label < 2, 0).assign_attrs(data.label.attrs)),
     {"label": "no voxel of core in the training split"}),
])
def test_what_is_wrong_is_found_and_placed(stored: Callable[..., Store], change: Callable[..., xr.Dataset],
                                           told: dict[str, str]) -> None:
    findings = found(stored(change))
    assert all(words in findings[key] for key, words in told.items()), findings


def test_one_person_or_image_in_two_splits_is_found(stored: Callable[..., Store], built: Callable[..., Store]) -> None:
    data = copied(build(SMALL).compute())
    store = built(data, "leak", split={"by": "group", "counts": {"train": 1, "validation": 2, "test": 1}, "seed": None})
    told = found(store)
    assert "1 subjects of one person in two splits" in told["splits, person"]
    assert "1 equal images in two splits" in told["splits, images"]
    kept = built(data, "kept", split={"by": "fold", "folds": 3})
    assert groups(kept.meta.splits) == [[3], [2], [0, 1]]
    assert "splits, person" not in found(kept)
