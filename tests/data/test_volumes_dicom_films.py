"""DICOM series with several slices at every place: points of time by what their headers say, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sciml.data import bricks
from sciml.data.build import build
from sciml.data.readers import recognise
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.errors import InputError
from tests.data.test_volumes_readers import labels, nifti, noise, series

SHAPE, COUNT = (5, 6, 4), 3


def film(folder: Path, *, count: int = COUNT, copies: int = 1, **clocks: Any) -> Path:
    """Frames of a series in one folder, files of the last frame first; clocks: attribute → value of (frame, slice)."""
    for subject in range(copies):
        place = folder / f"p{subject}"
        place.mkdir(parents=True)
        for t in range(count):
            told = {key: (lambda k, value=value, t=t: value(t, k)) for key, value in clocks.items()}
            for path in series(folder.parent / f"parts{subject}_{t}", noise(10 * subject + t, SHAPE), **told):
                path.rename(place / f"{count - t}_{path.name}")
    return folder


def stored(folder: Path, **options: Any) -> Store:
    spec = {"name": "s", "domain": "volumes", "files": [str(folder)], "split": {"by": "fold", "folds": 3},
            "options": {"format": "dicom", "frames": "time", "brick": 4, **options}}
    return build(SourceSpec.model_validate(spec), folder.parent / "s.zarr", overwrite=True)


@pytest.mark.parametrize(("clocks", "options", "step"), [
    ({"TriggerTime": lambda t, k: 40.0 * t + k}, {}, 0.04),
    ({"FrameReferenceTime": lambda t, k: 5000.0 * t}, {}, 5.0),
    ({"AcquisitionTime": lambda t, k: f"1259{30 + 10 * t:02d}.{k}"}, {}, 10.0),
    ({"TemporalPositionIdentifier": lambda t, k: t + 1}, {"step_s": 0.5}, 0.5),
    ({"TemporalPositionIdentifier": lambda t, k: t + 1, "TriggerTime": lambda t, k: 0.0,
      "AcquisitionTime": lambda t, k: f"12000{2 * t}"}, {}, 2.0)],
    ids=["trigger", "reference", "time of day", "number", "number and time of day"])
def test_slices_of_one_place_are_points_of_time(clocks: dict[str, Any], options: dict[str, Any], step: float,
                                                tmp_path: Path) -> None:
    store = stored(film(tmp_path / "scans", copies=3, **clocks), **options)
    assert store.meta.groups == 3
    for subject in range(3):
        np.testing.assert_allclose(bricks.times(store, subject), step * np.arange(COUNT), atol=1e-9)
        wanted = np.stack([noise(10 * subject + t, SHAPE).transpose(1, 0, 2) for t in range(COUNT)], -1)
        assert np.array_equal(bricks.read(store, "ct", subject), (wanted * 2.0 - 1024).astype(np.float32))


def test_frames_of_a_series_have_label_maps_or_are_subjects(tmp_path: Path) -> None:
    folder = film(tmp_path / "scans", copies=3, TriggerTime=lambda t, k: 40.0 * t)
    found = recognise(folder)
    assert found.options["frames"] == "groups"
    assert stored(folder, frames="groups").members("subject")[:4] == ("p0_t000", "p0_t001", "p0_t002", "p1_t000")
    affine = bricks.affine(stored(folder), 0)
    for subject in range(3):
        nifti(folder / f"labels/p{subject}.nii.gz", np.stack([labels(t, shape=(6, 5, 4)) for t in range(COUNT)], -1),
              affine)
    label = bricks.read(stored(folder, structures=["no", "liver", "tumour"]), "label", 1)
    assert np.array_equal(label[..., 2], labels(2, shape=(6, 5, 4)))


def test_slices_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    folder = film(tmp_path / "a/scans")
    with pytest.raises(InputError, match=r"the same place as .*frames: time.* if the headers say"):
        stored(folder)
    folder = film(tmp_path / "b/scans", AcquisitionTime=lambda t, k: ("235950", "000000", "000010")[t])
    with pytest.raises(InputError, match="the same place as"):
        stored(folder)
    folder = film(tmp_path / "c/scans", TemporalPositionIdentifier=lambda t, k: t + 1)
    with pytest.raises(InputError, match=r"p0 \[time\]: found nothing; expected the time between frames.*step_s"):
        stored(folder)
    next((folder / "p0").iterdir()).unlink()
    with pytest.raises(InputError, match=r"found 2 slices at its place; expected 3, as at that of"):
        stored(folder, step_s=1.0)
    folder = film(tmp_path / "d/scans", TriggerTime=lambda t, k: 40.0 * t)
    with pytest.raises(InputError, match=r"the same place as .*frames: time"):
        stored(folder, frames=None)
