"""Frames of volumes as points of time: NIfTI, nnU-Net and NumPy into stores, what their checks find, phantoms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data import bricks
from sciml.data.build import build
from sciml.data.builders.phantoms import Options, Phantom
from sciml.data.builders.phantoms import build as phantoms
from sciml.data.check import validate
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.errors import InputError

nib = pytest.importorskip("nibabel", reason="nibabel is absent")
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.0, 0, -7], [0, 0, 2.0, 3], [0, 0, 0, 1]])
SHAPE = (9, 7, 5)
NAMES = ["background", "shell", "core"]
FILM = {"subjects": 4, "field_mm": [24.0, 28.0, 20.0], "spacing_mm": [2.0, 2.5], "brick": 8, "frames": 3}


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(50, 10, (*SHAPE, frames)).astype(np.float32)


def labels(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (*SHAPE, frames)).astype(np.uint8)


def nifti(path: Path, array: np.ndarray, step: float | None = 40.0, unit: str = "msec") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, AFFINE)
    if step is not None and array.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], step))
        image.header.set_xyzt_units("mm", unit)
    nib.save(image, path)
    return path


def stored(folder: Path, **options: Any) -> Store:
    given = {"frames": "time", "structures": NAMES, "brick": 4, **options}
    spec = {"name": "s", "domain": "volumes", "files": [str(folder)], "options": given, "licence": "us",
            "citation": "us", "split": {"by": "fold", "folds": 4}}
    return build(SourceSpec.model_validate(spec), folder.parent / "s.zarr", overwrite=True)


@pytest.mark.parametrize("moving", [True, False])
def test_frames_of_unequal_number_are_kept_with_their_times(tmp_path: Path, moving: bool) -> None:
    counts = {"a": 3, "b": 5, "c": 2, "d": 1}
    for name, count in counts.items():
        suffix = ".nii" if name == "b" else ".nii.gz"
        nifti(tmp_path / f"x/images/{name}{suffix}", noise(count, count))
        if name != "c":
            made = labels(count, count)
            nifti(tmp_path / f"x/labels/{name}{suffix}", made if moving else made[..., 0], None)
    store = stored(tmp_path / "x")
    assert validate(store) == []
    assert "3 with 2 to 5 frames, 0.04 to 0.04 s apart" in store.meta.notes
    assert store.meta.variables["label"].dims == (("voxel",) if moving else ("place",))
    for i, (name, count) in enumerate(counts.items()):
        np.testing.assert_allclose(bricks.times(store, i), 0.04 * np.arange(count))
        assert np.array_equal(bricks.read(store, "image", i), noise(count, count))
        box = bricks.read(store, "image", i, (1, 2, 0), (8, 7, 5), slice(1, 3))
        assert np.array_equal(box, noise(count, count)[1:8, 2:7, :, 1:3])
        label = bricks.read(store, "label", i)
        assert label.shape == ((*SHAPE, count) if moving else SHAPE)
        wanted = labels(count, count).astype(np.float32) if name != "c" else np.full((*SHAPE, count), np.nan)
        assert np.array_equal(label, wanted if moving else wanted[..., 0], equal_nan=True)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("boxes") / "files"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"s{i}.npy", noise(3 + i, i))
    return stored(folder, format="volume_npy", spacing_mm=[1, 1, 2], orientation="RAS", step_s=0.5)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_box_of_frames_is_the_slice_of_the_film(boxes: Store, data: st.DataObject) -> None:
    subject = data.draw(st.integers(0, 3))
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in (*SHAPE, 3 + subject)]
    low, high = zip(*bounds[:3], strict=True)
    found = bricks.read(boxes, "image", subject, low, high, slice(*bounds[3]))
    assert np.array_equal(found, noise(3 + subject, subject)[tuple(slice(*b) for b in bounds)])
    np.testing.assert_allclose(bricks.times(boxes, subject), 0.5 * np.arange(3 + subject))


def test_archives_hold_films_and_label_maps(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for i in range(4):
        np.savez_compressed(tmp_path / f"x/s{i}.npz", t1=noise(2, i), t2=noise(2, 9 + i), label=labels(2)[..., 0],
                            affine=AFFINE)
    store = stored(tmp_path / "x", format="volume_npy", step_s=2.0)
    assert np.array_equal(bricks.read(store, "t2", 3), noise(2, 12))
    assert bricks.read(store, "label", 1).shape == SHAPE
    assert bricks.times(store, 0).tolist() == [0, 2]


def test_raw_folders_of_nnunet_may_hold_films(tmp_path: Path) -> None:
    for i in range(4):
        for channel in range(2):
            nifti(tmp_path / f"raw/imagesTr/c{i}_{channel:04d}.nii.gz", noise(3, 2 * i + channel), 0.5, "sec")
        nifti(tmp_path / f"raw/labelsTr/c{i}.nii.gz", labels(3, i), None)
    about = {"channel_names": {"0": "MRI", "1": "T2"}, "labels": dict(zip(NAMES, range(3))), "numTraining": 4,
             "file_ending": ".nii.gz"}
    (tmp_path / "raw/dataset.json").write_text(json.dumps(about))
    given = {"frames": "time", "brick": 4}
    spec = {"name": "s", "domain": "volumes", "files": [str(tmp_path / "raw")], "options": given,
            "split": {"by": "fold", "folds": 4}}
    store = build(SourceSpec.model_validate(spec), tmp_path / "n.zarr")
    assert np.array_equal(bricks.read(store, "t2", 1), noise(3, 3))
    assert bricks.times(store, 0).tolist() == [0, 0.5, 1]
    spec["options"] = {"frames": "groups"}
    with pytest.raises(InputError, match=r"options.frames\]: found groups; expected time"):
        build(SourceSpec.model_validate(spec), tmp_path / "m.zarr")


def film_of(folder: Path, array: np.ndarray, step: float = 40.0, unit: str = "msec", **options: Any) -> Store:
    for i in range(4):
        nifti(folder / f"x/s{i}.nii", array, step, unit)
    return stored(folder / "x", **options)


@pytest.mark.parametrize(("step", "unit", "wanted"), [(2.5, "sec", 2.5), (40.0, "msec", 0.04), (500.0, "usec", 5e-4)])
def test_the_step_between_frames_is_that_of_the_header(tmp_path: Path, step: float, unit: str, wanted: float) -> None:
    np.testing.assert_allclose(bricks.times(film_of(tmp_path, noise(3), step, unit), 0), wanted * np.arange(3))


@pytest.mark.parametrize(("step", "unit", "told"), [
    (0.0, "sec", r"pixdim\[4\] 0, unit s"), (1.0, "unknown", r"pixdim\[4\] 1, unit unknown"),
    (3.0, "hz", r"pixdim\[4\] 3, unit Hz")])
def test_frames_that_nobody_says_when_are_refused_unless_the_source_does(tmp_path: Path, step: float, unit: str,
                                                                         told: str) -> None:
    with pytest.raises(InputError, match=rf"s0.nii \[time\]: found {told}; expected the time.*step_s"):
        film_of(tmp_path, noise(3), step, unit)
    store = film_of(tmp_path, noise(3), step, unit, step_s=0.3)
    assert bricks.times(store, 0).tolist() == [0, 0.3, 0.6]


def test_films_and_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "x/images/a.nii", noise(3))
    nifti(tmp_path / "x/labels/a.nii", labels(2))
    with pytest.raises(InputError, match=r"labels/a.nii \[shape\]: found 2 frames; expected 1 or 3"):
        stored(tmp_path / "x")
    nifti(tmp_path / "x/labels/a.nii", labels(3))
    nifti(tmp_path / "x/images/b.nii", noise(3))
    nifti(tmp_path / "x/labels/b.nii", labels(3)[..., 0])
    with pytest.raises(InputError, match=r"found 1 label maps of b; expected one for each frame of all subjects"):
        stored(tmp_path / "x")
    for name in "ab":
        nifti(tmp_path / f"y/{name}_t1.nii", noise(3))
        nifti(tmp_path / f"y/{name}_t2.nii", noise(3 if name == "a" else 2), 40.0 if name == "b" else 50.0)
    images = {"t1": "{subject}_t1.nii", "t2": "{subject}_t2.nii"}
    with pytest.raises(InputError, match=r"a_t2.nii \[time\]: found frames up to 0.1 s; expected 0.08 s"):
        stored(tmp_path / "y", images=images)
    nifti(tmp_path / "y/a_t2.nii", noise(3), 40.0, "unknown")
    with pytest.raises(InputError, match=r"a_t2.nii \[time\]: found pixdim\[4\] 40, unit unknown"):
        stored(tmp_path / "y", images=images)
    nifti(tmp_path / "y/a_t2.nii", noise(3))
    with pytest.raises(InputError, match="step_s is the step of frames that are points of time"):
        stored(tmp_path / "y", images=images, frames="groups", step_s=0.1)
    with pytest.raises(InputError, match=r"b_t2.nii \[shape\]: found 2 frames; expected 3"):
        stored(tmp_path / "y", images=images)


def test_phantoms_of_one_seed_beat_or_fill(built: Callable[..., Store]) -> None:
    beat = built(phantoms(FILM), "beat", split={"by": "fold", "folds": 4})
    fill = built(phantoms(FILM | {"course": "fill"}), "fill", split={"by": "fold", "folds": 4})
    assert [finding.level for store in (beat, fill) for finding in validate(store)] == []
    sizes = (bricks.read(beat, "label", 0) == 2).sum((0, 1, 2))
    assert sizes.max() > 1.5 * sizes.min() > 0
    assert np.array_equal(bricks.read(beat, "mri", 1)[..., 2], Phantom.of(Options.model_validate(FILM), 1).image(2))
    assert bricks.read(fill, "label", 0).ndim == 3
    whole = Phantom.of(Options.model_validate(FILM | {"course": "fill", "noise": 0.0, "frames": 12}), 0)
    full = [whole.image(t)[whole.label(0) == 2].mean() for t in range(12)]
    assert 2 <= int(np.argmax(full)) <= 5
    with pytest.raises(InputError, match="frames: at least 2"):
        phantoms(FILM | {"hollow": 0.5})


def test_core_and_twin_are_of_the_same_kind_in_a_single_frame() -> None:
    options = Options.model_validate(FILM | {"subjects": 200, "frames": 4})
    radii = np.array([[blob.radii.mean() for blob, _ in Phantom.of(options, i).pair(1)] for i in range(200)])
    assert abs(radii[:, 0].mean() / radii[:, 1].mean() - 1) < 0.05
    assert abs(radii[:, 0].std() / radii[:, 1].std() - 1) < 0.25
    later = [Phantom.of(options, i).pair(3) for i in range(5)]
    assert all(np.array_equal(later[i][1][0].radii, Phantom.of(options, i).pair(1)[1][0].radii) for i in range(5))


def test_wrong_times_and_sizes_of_films_are_found(built: Callable[..., Store]) -> None:
    data = phantoms(FILM).compute()
    assert isinstance(data, xr.Dataset)
    back = data["frame_time"].copy(data=data["frame_time"].values[[0, 2, 1, *range(3, 12)]])
    keys = {finding.key for finding in validate(built(data.assign(frame_time=back), "back", split={
        "by": "fold", "folds": 4}))}
    assert keys == {"frame_time"}
    size = data["size"].copy(data=data["size"].values + np.array([[1, 0, 0]] + [[0, 0, 0]] * 3))
    keys = {finding.key for finding in validate(built(data.assign(size=size), "size", split={
        "by": "fold", "folds": 4}))}
    assert "size" in keys
    count, first = data["frame_count"].copy(), int(data["voxel_count"].values[:3].sum())
    rows = data["voxel_count"].copy()
    count.values[3] = rows.values[3] = 0
    none = data.isel(frame=slice(9), voxel=slice(first)).assign(frame_count=count, voxel_count=rows)
    found = {finding.key: finding.found for finding in validate(built(none, "none", split={"by": "fold", "folds": 4}))}
    assert found["frame_time"] == "1, first subject 3 (phantom_3): []"
