"""4-D NIfTI in, NIfTI out: a label map of each frame or one of all, the header bit for bit, windows, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sciml.data import bricks
from sciml.domains.volumes import geometry
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.config import Known
from sciml.errors import InputError
from sciml.handles.volumes import Calibration, calibrate, segment
from sciml.predictor import Predictor
from sciml.tokens import Cache, Outputs, TokenBatch
from tests.domains.volumes.films import films_store

nibabel = pytest.importorskip("nibabel", reason="nibabel is absent")
STRUCTURES = ("background", "front", "back")
LOOK = np.array([[0, 2.0, 0, -10], [-2.0, 0, 0, 4], [0, 0, 3.0, 7], [0, 0, 0, 1]])
STEP_S = 0.04


class Bright(nn.Module):
    """What is bright is a structure, which one time tells; every voxel of every frame by itself."""

    def __init__(self, adapter: Volumes) -> None:
        super().__init__()
        self.specs = {adapter.name: adapter.spec()}

    def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> Outputs:
        value = batch.values[..., 0]
        when = batch.axes[0].coord.view(1, -1, 1, 1, 1) * value.abs() if value.ndim == 5 else 0.01
        return Outputs({"label": torch.stack([-value, value + when, value - when], -1)})


def predictor_of(window: tuple[int, ...] = (32, 32, 32), *, frames: bool = True, moving: bool = True) -> Predictor:
    known = Known(modalities={"mri": "1"}, structures=STRUCTURES, frames=frames, moving=moving)
    adapter = Volumes.create({"window": window, "reference_s": 0.1})
    adapter = replace(adapter, datasets={"made": known},
                      task=replace(adapter.task, structures=STRUCTURES))  # type: ignore[type-var]
    return Predictor(Bright(adapter), {"volumes": adapter})  # type: ignore[arg-type]


def image(shape: tuple[int, ...] = (9, 7, 6, 5)) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 40, shape).astype(np.int16)


def written(path: Path, values: np.ndarray, unit: str = "msec") -> Path:
    made = nibabel.Nifti1Image(values, LOOK)
    made.header.set_zooms((*made.header.get_zooms()[:3], *[1e3 * STEP_S][:values.ndim - 3]))
    made.header.set_xyzt_units("mm", unit)
    made.set_qform(LOOK, 4)
    nibabel.save(made, path)
    return path


def expected(predictor: Predictor, values: np.ndarray) -> np.ndarray:
    """Of the whole array at once, in RAS order, time first."""
    times = STEP_S * np.arange(values.shape[3]) if values.ndim == 4 else None
    return np.asarray(predictor.predict(geometry.dataset_of({"mri": values.astype(np.float32)}, LOOK, times=times))
                      ["label"].values[0])


@pytest.mark.parametrize("window", [(32, 32, 32), (4, 3, 5, 3), (3, 16, 4)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_frame_has_a_label_map_where_structures_move(tmp_path: Path, suffix: str,
                                                           window: tuple[int, ...]) -> None:
    given, values = written(tmp_path / f"a{suffix}", image()), image()
    found = segment(predictor_of(window), given, tmp_path / f"b{suffix}", mirrors=("x",))
    old, new = nibabel.load(given), nibabel.load(tmp_path / f"b{suffix}")
    for key in ("pixdim", "dim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
                "qoffset_x", "srow_x", "srow_y", "srow_z"):
        assert old.header[key].tobytes() == new.header[key].tobytes(), key
    labels = np.asarray(new.dataobj)
    assert (labels.shape, new.get_data_dtype()) == (values.shape, np.uint8)
    canonical = np.asarray(nibabel.as_closest_canonical(new).dataobj)
    truth = expected(predictor_of(), values)
    np.testing.assert_array_equal(np.moveaxis(canonical, -1, 0), truth)
    assert np.unique(truth).tolist() == [0, 1, 2]
    assert (truth[0] != truth[-1]).any()
    assert [(one.time_s, one.structure) for one in found[:3]] == [(0.0, "front"), (0.0, "back"), (STEP_S, "front")]
    for one in found:
        frame = round((one.time_s or 0) / STEP_S)
        assert one.volume_mm3 == pytest.approx(12.0 * (labels[..., frame] == STRUCTURES.index(one.structure)).sum())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_one_answer_for_all_frames_is_written_in_3d(tmp_path: Path) -> None:
    given = written(tmp_path / "a.nii.gz", image())
    found = segment(predictor_of((4, 3, 5, 2), moving=False), given, tmp_path / "b.nii.gz")
    old, new = nibabel.load(given), nibabel.load(tmp_path / "b.nii.gz")
    assert new.shape == old.shape[:3]
    for key in ("pixdim", "xyzt_units", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_d"):
        assert old.header[key].tobytes() == new.header[key].tobytes(), key
    labels = np.asarray(nibabel.as_closest_canonical(new).dataobj)
    np.testing.assert_array_equal(labels, expected(predictor_of(moving=False), image()))
    assert [one.time_s for one in found] == [None, None]


def test_a_volume_is_one_frame_to_a_checkpoint_that_knows_time(tmp_path: Path) -> None:
    values = image((9, 7, 6))
    segment(predictor_of(), written(tmp_path / "a.nii", values), tmp_path / "b.nii")
    labels = nibabel.as_closest_canonical(nibabel.load(tmp_path / "b.nii"))
    truth = expected(predictor_of(frames=False, moving=False), values)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), truth)


def test_frames_are_refused_where_none_were_seen_or_nobody_says_when(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.nii \[dim\]: found 4-D, 9 × 7 × 6 × 5; expected 2-D or 3-D"):
        segment(predictor_of(frames=False), written(tmp_path / "a.nii", image()), tmp_path / "b.nii")
    with pytest.raises(InputError, match=r"a.nii \[time\]: found pixdim\[4\] 40, unit unknown.*set_xyzt_units"):
        segment(predictor_of(), written(tmp_path / "a.nii", image(), "unknown"), tmp_path / "b.nii")
    told = segment(predictor_of(), tmp_path / "a.nii", tmp_path / "b.nii", step_s=0.5)
    assert sorted({one.time_s for one in told}) == [0.0, 0.5, 1.0, 1.5, 2.0]
    (tmp_path / "b.nii").unlink()
    broken = image().astype(np.float32)
    broken[2, 3, 4, 1] = np.nan
    with pytest.raises(InputError, match=r"voxel \(2, 3, 4, 1\)"):
        segment(predictor_of(), written(tmp_path / "a.nii", broken), tmp_path / "b.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_misses_are_those_of_the_worst_frame(tmp_path: Path) -> None:
    store = films_store(tmp_path)
    adapter = Volumes.create({"window": (8, 8, 8), "reference_s": 0.1}).fit(store)
    predictor = Predictor(Bright(adapter), {"volumes": adapter})  # type: ignore[arg-type]
    made = calibrate(predictor, store)
    truth = np.moveaxis(bricks.read(store, "label", 1), -1, 0)
    ours = predictor.predict(adapter.open(store, "validation")[0])["label"].values[0]
    each = [(truth[t] == 1).sum() / max((ours[t] == 1).sum(), 1e-9) for t in range(4)]
    worst = max(abs(np.log(ratio)) for ratio in each)
    assert isinstance(made, Calibration)
    assert made.misses["shell"] == [pytest.approx(worst) if worst < 20 else None]
