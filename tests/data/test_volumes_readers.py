"""Readers of volumes: NIfTI, nnU-Net folders, DICOM, NRRD, NumPy; values, affines, names, labels, frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data import bricks
from sciml.data.build import build
from sciml.data.readers import read, recognise
from sciml.data.source import SourceSpec, read_source

nib = pytest.importorskip("nibabel", reason="needs nibabel (pip install sciml[volumes])")
pydicom = pytest.importorskip("pydicom", reason="needs pydicom (pip install sciml[volumes])")
nrrd = pytest.importorskip("nrrd", reason="needs pynrrd (pip install sciml[volumes])")

AFFINE = np.array([[-1.5, 0, 0, 10], [0, 0, 3, -4.25], [0, 2, 0, 7], [0, 0, 0, 1.0]])
SHAPE = (9, 7, 5)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE, kind: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(kind)


def labels(seed: int = 0, most: int = 2, kind: Any = np.uint8, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most + 1, shape).astype(kind)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, *, kind: type = nib.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def spec(*paths: Path, missing: str = "refuse", **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "volumes", "files": [str(p) for p in paths],
                                      "options": options, "missing": missing})


def look(*paths: Path, **options: Any) -> xr.Dataset:
    return read(spec(*paths, **options), [str(p) for p in paths])


def volume(data: xr.Dataset, name: str, subject: int = 0) -> np.ndarray:
    ends = np.cumsum([0, *data.voxel_count.values])
    flat = data[name].values[ends[subject]:ends[subject + 1]]
    return bricks.unpack(flat, data["size"].values[subject].astype(int), int(data.brick.values[subject]))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("kind", "form"), [(nib.Nifti1Image, "int16"), (nib.Nifti2Image, ">f4"),
                                              (nib.Nifti1Image, "float64"), (nib.Nifti2Image, "uint8")])
def test_nifti_values_and_affine_are_those_of_the_file(tmp_path: Path, suffix: str, kind: type, form: str) -> None:
    array = np.abs(noise()).astype(form) if form == "uint8" else noise().astype(form)
    path = nifti(tmp_path / f"a{suffix}", array, kind=kind)
    data = look(path, brick=4)
    assert np.array_equal(volume(data, "image"), nib.load(path).get_fdata(dtype=np.float32))
    assert np.array_equal(data.affine.values[0], nib.load(path).affine)
    assert data.image.dtype == np.float32
    assert data.subject.values.tolist() == ["a"]


def test_slope_and_intercept_are_applied_and_those_of_0_and_nan_mean_none(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), AFFINE)
    for name, slope, wanted in (("a", 0.5, noise() * 0.5 - 3), ("b", 0.0, noise()), ("c", np.nan, noise())):
        image.header["scl_slope"], image.header["scl_inter"] = slope, -3
        raw = image.header.binaryblock + bytes(4) + noise().tobytes(order="F")
        (tmp_path / f"{name}.nii").write_bytes(raw[:108] + np.float32(352).tobytes() + raw[112:])
        assert np.array_equal(volume(look(tmp_path / f"{name}.nii"), "image"), wanted.astype(np.float32))


def test_folders_of_images_and_labels_belong_together_by_name_in_sorted_order(tmp_path: Path) -> None:
    for i, kind in ((10, np.uint8), (9, np.float32), (2, np.int32)):
        nifti(tmp_path / f"images/case{i}.nii.gz", noise(i))
        if i != 2:
            nifti(tmp_path / f"labels/case{i}.nii.gz", labels(i, kind=kind))
    (tmp_path / "images/._case10.nii.gz").write_bytes(b"of a Mac")
    names = {"structures": ["background", "shell", "core"], "modality": "mri"}
    data = look(tmp_path, **names)
    assert data.subject.values.tolist() == ["case10", "case2", "case9"]
    assert data.structure.values.tolist() == names["structures"]
    assert np.array_equal(volume(data, "label", 0), labels(10))
    assert np.isnan(volume(data, "label", 1)).all()
    assert np.array_equal(volume(data, "mri", 2), noise(9))
    assert "1 subjects have no labels: NaN" in data.attrs["notes"]
    apart = look(tmp_path / "images", tmp_path / "labels", **names)
    assert np.array_equal(apart.label.values, data.label.values, equal_nan=True)
    assert look(tmp_path, **names, select={"subject": [1, 3]}).subject.values.tolist() == ["case2", "case9"]
    mapped = look(tmp_path, structures={0: "none", 2: "core"}, ignore=1)
    assert mapped.structure.values.tolist() == ["none", "label_1", "core"]
    assert np.array_equal(np.isnan(volume(mapped, "label")), labels(10) == 1)


def test_patterns_find_modalities_persons_and_labels_and_what_lies_beside_is_left_alone(tmp_path: Path) -> None:
    for person in ("p1", "p2"):
        for visit in ("a", "b"):
            for n, name in enumerate(("t1", "t2", "seg")):
                array = noise(n) if name != "seg" else labels()
                nifti(tmp_path / f"{person}/anat/{person}_{visit}_{name}.nii.gz", array)
            nifti(tmp_path / f"{person}/other/{person}_{visit}_t1.nii.gz", noise(5))
    data = look(tmp_path, images={"t1": "{person}/anat/{subject}_t1.nii.gz", "t2": "{person}/anat/{subject}_t2.nii.gz"},
                labels="*/anat/{subject}_seg.nii.gz", structures=["no", "a", "b"], unit={"t2": "ms"})
    assert data.subject.values.tolist() == ["p1_a", "p1_b", "p2_a", "p2_b"]
    assert data.person.values.tolist() == [0, 0, 1, 1]
    assert [data[name].attrs["units"] for name in ("t1", "t2", "label")] == ["1", "ms", "1"]
    assert np.array_equal(volume(data, "t2", 3), noise(1))
    flat = look(tmp_path / "p1/anat", images={"t1": "*_t1.nii.gz"}, labels="*_seg.nii.gz", structures=["n", "a", "b"])
    assert flat.subject.values.tolist() == ["p1_a", "p1_b"]


def test_planes_have_a_third_axis_and_frames_are_subjects_of_a_person_or_modalities(tmp_path: Path) -> None:
    plane = look(nifti(tmp_path / "plane/a.nii.gz", noise()[:, :, 0]))
    assert plane["size"].values.tolist() == [[9, 7, 1]]
    assert np.array_equal(volume(plane, "image")[:, :, 0], noise()[:, :, 0])
    film = np.stack([noise(i) for i in range(3)], -1)
    for name in ("film/b.nii.gz", "film/c.nii"):
        nifti(tmp_path / name, film)
    data = look(tmp_path / "film", frames="groups")
    assert data.subject.values.tolist() == [f"{n}_t{i:03d}" for n in "bc" for i in range(3)]
    assert data.person.values.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(np.array_equal(volume(data, "image", i), noise(i % 3)) for i in range(6))
    source = {"name": "f", "domain": "volumes", "files": [str(tmp_path / "film")], "options": {"frames": "groups"},
              "split": {"by": "fold", "folds": 2, "validation": None}}
    store = build(SourceSpec.model_validate(source), tmp_path / "f.zarr")
    assert [b.group for b in store.meta.splits.test] == [0, 1, 2]
    assert [b.group for b in store.meta.splits.train] == [3, 4, 5]
    parts = look(tmp_path / "film", frames=["t1", "t2", "flair"])
    assert parts.subject.values.tolist() == ["b", "c"]
    assert np.array_equal(volume(parts, "flair", 1), noise(2))


def test_nnunet_and_decathlon_folders_are_read_as_they_are(tmp_path: Path) -> None:
    raw, task = tmp_path / "Dataset007_Toy", tmp_path / "Task01_Toy"
    for name in ("x_002", "x_001"):
        for channel in range(2):
            nifti(raw / f"imagesTr/{name}_{channel:04d}.nii.gz", noise(channel))
        nifti(raw / f"labelsTr/{name}.nii.gz", labels(most=3))
        nifti(task / f"imagesTr/{name}.nii.gz", np.stack([noise(0), noise(1)], -1))
        nifti(task / f"labelsTr/{name}.nii.gz", labels(most=2))
    nifti(raw / "imagesTs/x_003_0000.nii.gz", noise())
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT", "1": "PET suv"}, "file_ending": ".nii.gz", "numTraining": 2,
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}))
    (task / "dataset.json").write_text(json.dumps({
        "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema", "2": "tumour"}}))
    assert recognise(raw).format == recognise(task).format == "nnunet"
    data = look(raw)
    assert data.subject.values.tolist() == ["x_001", "x_002"]
    assert data.structure.values.tolist() == ["background", "label_1", "core"]
    assert (data.ct.attrs["units"], data.pet_suv.attrs["units"]) == ("HU", "1")
    assert np.array_equal(np.isnan(volume(data, "label")), labels(most=3) == 3)
    told = {"region whole: labels 1, 2", "1 files of imagesTs have no labels and are left out"}
    assert told <= set(data.attrs["notes"])
    parts = look(task)
    assert np.array_equal(volume(parts, "t1w", 1), noise(1))
    assert parts.structure.values.tolist() == ["background", "edema", "tumour"]


def series(folder: Path, array: np.ndarray, *, step: float = 2.5, uid: str = "1.2.3", **changed: Any) -> list[Path]:
    """An axial CT series of ``(row, column, slice)`` at (10, 20, 30) mm, file names in random order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(1).permutation(array.shape[2])
    paths = []
    for k in range(array.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{k + 1}"
        one = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.Modality, one.SeriesInstanceUID, one.PatientName = "CT", uid, "Nobody"
        one.Rows, one.Columns = array.shape[:2]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelSpacing, one.ImageOrientationPatient = [0.5, 0.75], [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [10, 20, 30 + step * k]
        one.RescaleSlope, one.RescaleIntercept = 2, -1024
        one.PixelData = np.ascontiguousarray(array[:, :, k]).astype("<i2").tobytes()
        for key, value in changed.items():
            setattr(one, key, value(k) if callable(value) else value)
        paths.append(folder / f"IM{names[k]:03d}")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def test_a_dicom_series_is_sorted_by_place_in_hounsfield_units_and_ras(tmp_path: Path) -> None:
    array = noise(3, (7, 9, 5))
    series(tmp_path / "scans/patient", array)
    (tmp_path / "scans/patient/notes.txt").write_text("not an image")
    data = look(tmp_path / "scans")
    assert data.subject.values.tolist() == ["patient"]
    assert np.array_equal(volume(data, "ct"), (array.transpose(1, 0, 2) * 2.0 - 1024).astype(np.float32))
    wanted = np.diag([-0.75, -0.5, 2.5, 1.0])
    wanted[:3, 3] = [-10, -20, 30]
    assert np.array_equal(data.affine.values[0], wanted)
    assert data.ct.attrs["units"] == "HU"
    nifti(tmp_path / "scans/labels/patient.nii.gz", labels(shape=(9, 7, 5)), wanted)
    told = look(tmp_path / "scans", structures=["no", "liver", "tumour"])
    assert np.array_equal(volume(told, "label"), labels(shape=(9, 7, 5)))
    assert recognise(tmp_path / "scans").options["modality"] == "ct"


def test_slices_from_head_to_feet_and_tilted_ones_keep_their_place(tmp_path: Path) -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    array = noise(3, (4, 5, 6))
    series(tmp_path / "p", array, ImageOrientationPatient=[1, 0, 0, 0, c, s],
           ImagePositionPatient=lambda k: [0.0, -s * 3 * (5 - k), c * 3 * (5 - k)])
    data = look(tmp_path / "p")
    assert np.array_equal(volume(data, "ct"), (array.transpose(1, 0, 2)[:, :, ::-1] * 2.0 - 1024).astype(np.float32))
    assert np.allclose(data.affine.values[0, :3, 2], [0, s * 3, c * 3])


def test_nrrd_spaces_encodings_and_numpy_arrays_with_a_spacing(tmp_path: Path) -> None:
    header = {"space": "left-posterior-superior", "space directions": np.diag([1.0, 2, 3]), "space origin": [1, 2, 3]}
    for encoding in ("raw", "gzip"):
        nrrd.write(str(tmp_path / f"{encoding}.nrrd"), noise(), header | {"encoding": encoding})
    data = look(tmp_path, brick=4)
    for i in range(2):
        assert np.array_equal(volume(data, "image", i), noise())
        assert np.array_equal(data.affine.values[i], [[-1, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 3], [0, 0, 0, 1]])
    np.save(tmp_path / "a.npy", np.asfortranarray(noise()))
    array = look(tmp_path / "a.npy", format="volume_npy", spacing_mm=[1, 2, 3], orientation="LPS")
    assert np.array_equal(volume(array, "image"), noise())
    assert np.array_equal(array.affine.values[0], np.diag([-1.0, -2, 3, 1]))
    np.savez_compressed(tmp_path / "b.npz", ct=noise(), label=labels(), affine=AFFINE)
    archive = look(tmp_path / "b.npz", format="volume_npy", structures=["a", "b", "c"], unit="m")
    assert np.array_equal(volume(archive, "label"), labels())
    assert np.array_equal(archive.affine.values[0], AFFINE)
    told = look(tmp_path / "a.npy", format="volume_npy", spacing_mm=[1, 1, 1]).attrs["notes"]
    assert any("orientation not given, taken as RAS" in note for note in told)


def test_what_sniff_writes_of_a_file_and_of_folders_can_be_built(tmp_path: Path) -> None:
    for i in range(3):
        nifti(tmp_path / f"lab/images/s{i}.nii.gz", noise(i))
        nifti(tmp_path / f"lab/labels/s{i}.nii.gz", labels(i))
    nifti(tmp_path / "film.nii", np.stack([noise(i) for i in range(3)], -1))
    for name, wanted in (("lab", ["background", "structure_1", "structure_2"]), ("film.nii", None)):
        found = recognise(tmp_path / name)
        assert (found.format, found.domain) == ("nifti", "volumes")
        text = found.source_yaml("mine").replace("by: fold, folds: 5", "by: fold, folds: 3")
        text = text if wanted else text.replace("split: {by: fold, folds: 3, test: 0, validation: 1}",
                                                "split: {by: fold, folds: 2, test: null, validation: null}")
        (tmp_path / f"{name}.yaml").write_text(text)
        store = build(read_source(tmp_path / f"{name}.yaml"), tmp_path / f"{name}.zarr")
        assert store.meta.groups == 3
        assert "structure" not in store.meta.axes or list(store.members("structure")) == wanted
        assert any("options.structures" in text for text in found.missing) == bool(wanted)
        assert any("frames: time makes them points of time" in text for text in found.notes) == (name == "film.nii")


def test_a_file_without_orientation_is_read_as_the_options_say(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, tmp_path / "a.nii.gz")
    assert "  orientation: null  # FILL IN" in recognise(tmp_path / "a.nii.gz").source_yaml()
    data = look(tmp_path / "a.nii.gz", orientation="LPI")
    assert np.array_equal(data.affine.values[0], np.diag([-1.0, -2, -3, 1]))
    assert any("orientation taken from the options" in note for note in data.attrs["notes"])
