"""NIfTI in, NIfTI out: the header bit for bit, any orientation, windows and planes that change nothing, bad input."""

from __future__ import annotations

import gzip
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sciml.domains.volumes import geometry
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.config import Known
from sciml.errors import InputError
from sciml.handles.volumes import Calibration, calibrate, segment
from sciml.predictor import Predictor
from sciml.tokens import Cache, Outputs, TokenBatch
from tests.domains.volumes.balls import balls_store

nibabel = pytest.importorskip("nibabel", reason="nibabel is absent")
STRUCTURES = ("background", "front", "back")
LOOK = np.array([[2.0, 0, 0, -10], [0, 2.0, 0, 4], [0, 0, 3.0, 7], [0, 0, 0, 1]])


class Sided(nn.Module):
    """What is bright is a structure, which one its neighbours to the right tell; far off, where it is does too."""

    def __init__(self, adapter: Volumes, *, pointwise: bool) -> None:
        super().__init__()
        self.specs, self.pointwise = {adapter.name: adapter.spec()}, pointwise

    def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> Outputs:
        value = batch.values[..., 0]
        side = value if self.pointwise else torch.roll(value, -1, 1) - value
        return Outputs({"label": torch.stack([-value, value + side, value - side - 0.1], -1)})


def predictor_of(window: tuple[int, int, int] = (32, 32, 32), *, pointwise: bool = False,
                 modalities: tuple[str, ...] = ("mri",)) -> Predictor:
    known = Known(modalities=dict.fromkeys(modalities, "1"), structures=STRUCTURES)
    adapter = Volumes.create({"window": window})
    adapter = replace(adapter, datasets={"made": known},
                      task=replace(adapter.task, structures=STRUCTURES))  # type: ignore[type-var]
    return Predictor(Sided(adapter, pointwise=pointwise), {"volumes": adapter})  # type: ignore[arg-type]


def image(shape: tuple[int, ...] = (9, 7, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 40, shape).astype(np.int16)


def written(path: Path, values: np.ndarray, affine: np.ndarray = LOOK) -> Path:
    """With a qform that is another than the sform, and other codes."""
    made = nibabel.Nifti1Image(values, affine)
    turned = affine.copy()
    turned[:3, 3] += 1e-3
    made.set_sform(affine, 2)
    made.set_qform(turned, 4)
    made.header["descrip"] = b"of the scanner"
    nibabel.save(made, path)
    return path


def expected(predictor: Predictor, values: np.ndarray, affine: np.ndarray = LOOK) -> np.ndarray:
    """Of the whole array at once, in RAS order."""
    sample = geometry.dataset_of({"mri": values.astype(np.float32)}, affine)
    return np.asarray(predictor.predict(sample)["label"].values[0])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_where_voxels_are_is_copied_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    given = written(tmp_path / f"a{suffix}", image())
    found = segment(predictor_of(), given, tmp_path / f"b{suffix}")
    old, new = nibabel.load(given), nibabel.load(tmp_path / f"b{suffix}")
    for key in ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim", "descrip"):
        assert old.header[key].tobytes() == new.header[key].tobytes(), key
    assert np.array_equal(old.affine, new.affine)
    assert (new.dataobj.slope, new.dataobj.inter) == (1, 0)
    assert new.get_data_dtype() == np.uint8
    labels = np.asarray(new.dataobj)
    assert set(np.unique(labels)) == {0, 1, 2}
    for value, one in zip((1, 2), found):
        assert one.volume_mm3 == pytest.approx(12.0 * (labels == value).sum())
        assert (one.structure, one.low_mm3) == (STRUCTURES[value], None)
    np.testing.assert_array_equal(labels, expected(predictor_of(), image()))


def test_every_orientation_gives_the_same_answer_in_its_own_order(tmp_path: Path) -> None:
    values, predictor = image(), predictor_of()
    truth = expected(predictor, values)
    original = nibabel.Nifti1Image(values, LOOK)
    for order, signs in itertools.product(itertools.permutations(range(3)), ((1, 1, 1), (-1, 1, -1), (-1, -1, 1))):
        turned = original.as_reoriented(np.array(list(zip(order, signs)), float))
        segment(predictor, written(tmp_path / "a.nii", np.asarray(turned.dataobj), turned.affine), tmp_path / "b.nii")
        back = nibabel.as_closest_canonical(nibabel.load(tmp_path / "b.nii"))
        np.testing.assert_array_equal(np.asarray(back.dataobj), truth)


@pytest.mark.parametrize("window", [(4, 3, 5), (3, 16, 2), (16, 16, 4)])
def test_windows_and_planes_do_not_change_what_is_pointwise(tmp_path: Path, window: tuple[int, int, int]) -> None:
    values = image((9, 7, 11))
    turned = LOOK[:, [2, 0, 1, 3]] * np.array([-1, 1, 1, 1.0])
    given = written(tmp_path / "a.nii", values, turned)
    seen: list[tuple[int, int]] = []
    segment(predictor_of(window, pointwise=True), given, tmp_path / "b.nii.gz", mirrors=("x", "z"),
            progress=lambda done, total: seen.append((done, total)))
    whole = np.asarray(nibabel.as_closest_canonical(nibabel.load(tmp_path / "b.nii.gz")).dataobj)
    np.testing.assert_array_equal(whole, expected(predictor_of(pointwise=True), values, turned))
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert len(seen) > 2


def test_mirrors_make_left_and_right_one(tmp_path: Path) -> None:
    given = written(tmp_path / "a.nii", image())
    segment(predictor_of(), given, tmp_path / "plain.nii")
    segment(predictor_of(), given, tmp_path / "both.nii", mirrors=("x",))
    flipped = nibabel.Nifti1Image(image()[::-1], LOOK)
    segment(predictor_of(), written(tmp_path / "c.nii", np.asarray(flipped.dataobj)), tmp_path / "turned.nii",
            mirrors=("x",))
    plain, both, turned = (np.asarray(nibabel.load(tmp_path / f"{name}.nii").dataobj)
                           for name in ("plain", "both", "turned"))
    np.testing.assert_array_equal(both, turned[::-1])
    assert (plain != both).any()


def test_a_big_endian_scaled_image_with_many_structures(tmp_path: Path) -> None:
    names = tuple(f"s{i}" for i in range(300))
    adapter = Volumes.create({"window": (8, 8, 8)})
    adapter = replace(adapter, task=replace(adapter.task, structures=names),  # type: ignore[type-var]
                      datasets={"made": Known(modalities={"mri": "1"}, structures=names)})

    class Last(nn.Module):
        specs = {"volumes": adapter.spec()}  # noqa: RUF012

        def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> Outputs:
            logits: Tensor = torch.zeros(*batch.values.shape[:-1], 300)
            logits[..., 299] = batch.values[..., 0]
            return Outputs({"label": logits})

    header = nibabel.Nifti1Header(endianness=">")
    made = nibabel.Nifti1Image(image((5, 4, 3)), LOOK, header)
    made.header.set_slope_inter(0.5, 3.0)
    nibabel.save(made, tmp_path / "a.nii")
    segment(Predictor(Last(), {"volumes": adapter}), tmp_path / "a.nii", tmp_path / "b.nii")  # type: ignore[arg-type]
    found = nibabel.load(tmp_path / "b.nii")
    assert set(np.unique(np.asarray(found.dataobj))) == {0, 299}
    assert found.header.endianness == ">"


def test_bad_input_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    values = image().astype(np.float32)
    values[2, 3, 4] = np.nan
    holed, out = written(tmp_path / "holed.nii", values), tmp_path / "out"
    with pytest.raises(InputError, match=r"holed.nii \[voxel \(2, 3, 4\)\]: found NaN"):
        segment(predictor_of((4, 4, 4)), holed, out / "a.nii.gz")
    whole = written(tmp_path / "whole.nii.gz", image((20, 20, 20)))
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(InputError, match="gzip"):
        segment(predictor_of(), tmp_path / "cut.nii.gz", out / "a.nii.gz")
    with pytest.raises(InputError, match="4-D"):
        segment(predictor_of(), written(tmp_path / "four.nii", image((4, 4, 4, 2))), out / "a.nii.gz")
    with pytest.raises(InputError, match=r"expected FILE.nii or"):
        segment(predictor_of(), whole, out / "a.mgz")
    two = predictor_of(modalities=("t1", "t2"))
    with pytest.raises(InputError, match="another grid"):
        segment(two, {"t1": whole, "t2": written(tmp_path / "b.nii", image((20, 20, 20)), 1.5 * LOOK)}, out / "a.nii")
    with pytest.raises(InputError, match="modalities"):
        segment(two, whole, out / "a.nii")
    assert not list(out.glob("*")) if out.exists() else True


def test_two_modalities_are_read_on_one_grid(tmp_path: Path) -> None:
    paths = {"t2": written(tmp_path / "t2.nii", image(seed=1)), "t1": written(tmp_path / "t1.nii.gz", image())}
    segment(predictor_of(modalities=("t1", "t2")), paths, tmp_path / "both.nii")
    segment(predictor_of(), tmp_path / "t1.nii.gz", tmp_path / "one.nii")
    both, one = (np.asarray(nibabel.load(tmp_path / f"{name}.nii").dataobj) for name in ("both", "one"))
    np.testing.assert_array_equal(both, one)


def test_intervals_cover_what_they_say() -> None:
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        misses = np.abs(rng.normal(0, 0.1, 20))
        factor = Calibration(dataset="made", subjects=19, misses={"a": list(misses[:19])}).factor("a", 0.8)
        assert factor is not None
        inside.append(math.log(factor) >= misses[19])
    assert np.mean(inside) == pytest.approx(0.8, abs=0.06)
    missed = Calibration(dataset="made", subjects=9, misses={"a": [0.1] * 8 + [None]})
    assert missed.factor("a") is None
    assert missed.factor("a", 0.8) == pytest.approx(math.exp(0.1))
    assert missed.factor("b") is None


def test_misses_are_those_of_validation_volumes(tmp_path: Path) -> None:
    store = balls_store(tmp_path, subjects=10)
    predictor = predictor_of()
    seen: list[tuple[int, int]] = []
    found = calibrate(predictor, store, lambda done, total: seen.append((done, total)))
    adapter = predictor.adapter("volumes")
    windows = adapter.open(store, "validation")
    for i in range(2):
        sample = windows.draw(i, *[np.random.default_rng(0)] * 2)
        ours = predictor.predict(sample)["label"].values
        true, guessed = (int((labels == 1).sum()) for labels in (sample["label"].values, ours))
        assert found.misses["front"][i] == pytest.approx(abs(math.log(true / guessed)))
    assert (found.dataset, found.subjects, seen) == ("balls", 2, [(1, 2), (2, 2)])


def test_a_calibrated_volume_has_an_interval(tmp_path: Path) -> None:
    made = Calibration(dataset="made", subjects=9, misses={"front": [0.1] * 9, "back": [0.1]})
    front, back = segment(predictor_of(), written(tmp_path / "a.nii", image()), tmp_path / "b.nii", calibration=made)
    assert front.low_mm3 == pytest.approx(front.volume_mm3 * math.exp(-0.1))
    assert front.high_mm3 == pytest.approx(front.volume_mm3 * math.exp(0.1))
    assert back.volume_mm3 > 0
    assert back.high_mm3 is None


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    given = written(tmp_path / "a.nii.gz", image())
    for name in ("b.nii.gz", "c.nii.gz"):
        segment(predictor_of(), given, tmp_path / name)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "b.nii.gz").read_bytes())[:4] == (348).to_bytes(4, "little")
