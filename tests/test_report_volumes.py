"""Outlines and restored images of a forecast store."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.report import volumes


def forecast(path: Path, name: str, *, domain: str = "volumes") -> Path:
    """Two samples of unequal size, the smaller one lengthened by NaN, voxels of 1 × 1 × 3 mm."""
    rng, dims = np.random.default_rng(0), ("sample", "x", "y", "z")
    image = rng.normal(size=(2, 16, 20, 12)).astype(np.float32)
    label = np.zeros_like(image)
    label[:, 4:12, 6:14, 3:9] = 1
    label[:, 6:9, 8:11, 4:7] = 2
    moved = np.roll(label, 1, 1)
    for values in (image, label, moved):
        values[1, 10:] = np.nan
    found = {"label": {"label": moved, "label_truth": label, "label_baseline": 0 * label, "image": image,
                       "image_truth": image, "image_baseline": image},
             "mri": {"mri": image, "mri_truth": image + 0.1, "mri_baseline": image + rng.random(image.shape)}}[name]
    spacing = ("sample", "world"), np.array([[1.0, 1.0, 3.0]] * 2)
    made = xr.Dataset({**{key: (dims, values) for key, values in found.items()}, "spacing": spacing},
                      attrs={"domain": domain})
    made.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def test_structures_are_outlined_on_three_slices(tmp_path: Path) -> None:
    (picture,) = volumes.pictures("made", forecast(tmp_path / "made.zarr", "label"))
    assert picture.svg.count("<image") == 2 * 4
    assert all(f"var(--{colour})" in picture.svg for colour in ("ours", "baseline"))
    assert "sagittal, 5 of 16" in picture.svg
    assert "2 volumes" in picture.caption
    shell = 8 * 8 * 6 - 27
    dice = re.search(r"Dice by structure: ([\d.]+) / ([\d.]+);", picture.caption)
    assert dice is not None
    both = 8 * 7 * 6 - 27 - 9
    assert [float(x) for x in dice.groups()] == pytest.approx([both / shell, 2 / 3], abs=2e-3)


def test_what_was_restored_stands_beside_the_truth(tmp_path: Path) -> None:
    (picture,) = volumes.pictures("made", forecast(tmp_path / "made.zarr", "mri"))
    assert picture.svg.count("<image") == 2 * 4
    assert all(words in picture.svg for words in ("without the model", "truth", "model less truth"))
    assert picture.title == "Restored: mri, made"


def test_a_volume_without_structures_is_cut_in_the_middle(tmp_path: Path) -> None:
    assert volumes.centre(np.full((5, 4, 3), np.nan)) == (2, 2, 1)


def test_of_films_a_frame_is_shown_whose_truth_is_known(tmp_path: Path) -> None:
    still = xr.open_zarr(forecast(tmp_path / "still.zarr", "label"), consolidated=False).load()
    empty = still.copy(deep=True)
    empty["label_truth"][:] = np.nan
    film = xr.concat([empty, still, still], "time", data_vars=[name for name in map(str, still) if name != "spacing"],
                     coords="minimal", compat="override", join="override")
    film.transpose("sample", "time", ...).to_zarr(tmp_path / "film.zarr", zarr_format=3, consolidated=False)
    (picture,), (wanted,) = (volumes.pictures("made", tmp_path / f"{name}.zarr") for name in ("film", "still"))
    assert picture.title == "Segmented, made, frame 2 of 3"
    assert picture.caption == wanted.caption
