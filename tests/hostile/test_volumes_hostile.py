"""Volumes that are wrong, contradictory or made to harm: refused, saying what, where and how to mend it."""

from __future__ import annotations

import contextlib
import gzip
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.affines import refuse_bad_affine
from sciml.data.build import build
from sciml.data.readers import nifti, read, recognise
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.data.safety import Limits
from sciml.data.source import SourceSpec
from sciml.errors import InputError

nib = pytest.importorskip("nibabel", reason="needs nibabel (pip install sciml[volumes])")
pydicom = pytest.importorskip("pydicom", reason="needs pydicom (pip install sciml[volumes])")
nrrd = pytest.importorskip("nrrd", reason="needs pynrrd (pip install sciml[volumes])")

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
IMAGE = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
LABEL = (IMAGE > 0.5).astype(np.uint8)
SHEAR = AFFINE + np.array([[0, 0.1, 0, 0], *[[0.0] * 4] * 3])


def save(path: Path, array: np.ndarray = IMAGE, affine: Any = AFFINE, **header: Any) -> Path:
    """A NIfTI file whose header is changed afterwards, behind nibabel's back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    fields = image.header.structarr.dtype.fields
    for key, value in header.items():
        kind, at = fields[key][:2]
        raw[at:at + kind.itemsize] = np.asarray(value, kind.base).tobytes()
    path.write_bytes(gzip.compress(bytes(raw), 1) if path.suffix == ".gz" else bytes(raw))
    return path


def look(*paths: Path, missing: str = "refuse", **options: Any) -> Any:
    source = SourceSpec.model_validate({"name": "lab", "domain": "volumes", "files": [str(p) for p in paths],
                                        "options": options, "missing": missing})
    return read(source, [str(p) for p in paths]).compute()


def refused(words: str, call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert caught.value.fix
    assert caught.value.expected
    return caught.value


def lab(folder: Path, image: dict[str, Any] | None = None, label: dict[str, Any] | None = None) -> Path:
    """Two subjects with labels, the second one's changed."""
    save(folder / "images/a.nii.gz")
    save(folder / "labels/a.nii.gz", LABEL)
    save(folder / "images/b.nii.gz", **(image or {}))
    save(folder / "labels/b.nii.gz", **({"array": LABEL} | (label or {})))
    return folder


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[5, 3, 1] = value
    return changed


PAIRS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"array": LABEL[:5]}, r"labels/b.nii.gz \[shape\]: found 5 × 7 × 8 voxels; expected 6 × 7 × 8, as .*images/b"),
    ({}, {"affine": np.diag([1.0, 1.0, 2.5, 1.0])},
     r"labels/b.nii.gz \[affine\]: found .*2.5.*expected .* as .*images/b"),
    ({}, {"affine": np.diag([-1.0, 1.0, 3.0, 1.0])}, r"labels/b.nii.gz \[affine\].*copy the image's header"),
    ({}, {"array": with_value(LABEL, 2)}, r"labels/b.nii.gz \[voxel \(5, 3, 1\)\]: found 2,.*one of 0 no, 1 tumour"),
    ({}, {"array": with_value(LABEL, -1)}, r"labels/b.nii.gz \[voxel \(5, 3, 1\)\]: found -1,"),
    ({}, {"array": with_value(LABEL, 0.5)}, r"found 0.5,.*expected whole numbers.*nearest neighbour"),
    ({}, {"array": with_value(LABEL, np.nan)}, r"labels/b.nii.gz \[voxel \(5, 3, 1\)\]: found nan"),
    ({"array": with_value(IMAGE, np.nan)}, {}, r"images/b.nii.gz \[voxel \(5, 3, 1\)\]: found nan.*missing: mask"),
    ({"array": with_value(IMAGE, -np.inf)}, {}, r"images/b.nii.gz \[voxel \(5, 3, 1\)\]: found -inf"),
    ({"affine": SHEAR}, {"affine": SHEAR}, r"images/b.nii.gz \[affine\]: found axes 84.3 degrees apart.*no shear"),
    ({"pixdim": [1, 1, 0, 3, 0, 0, 0, 0]}, {},
     r"images/b.nii.gz \[pixdim\]: found 1 × 0 × 3; expected spacings above 0"),
    ({"srow_y": [0, 0, 0, 0]}, {}, r"images/b.nii.gz \[spacing\]: found 1 × 0 × 3 mm"),
    ({"srow_x": [np.nan, 0, 0, 0]}, {}, r"images/b.nii.gz \[affine\]: found .*nan"),
    ({"array": np.stack([IMAGE] * 4, -1)}, {}, r"images/b.nii.gz \[dim\]: found 4-D, 6 × 7 × 8 × 4.*frames: groups"),
    ({"array": IMAGE[:, :, :, None, None] * np.ones(2, np.float32)}, {}, r"\[dim\]: found 5-D.*3-D files"),
    ({"scl_slope": np.inf}, {}, r"images/b.nii.gz \[scl_slope, scl_inter\]: found inf"),
    ({"scl_slope": 2, "scl_inter": np.nan}, {}, r"\[scl_slope, scl_inter\]: found 2.0, nan"),
    ({"xyzt_units": 1}, {}, r"images/b.nii.gz \[xyzt_units\]: found metres; expected mm"),
    ({"sform_code": 0, "qform_code": 0}, {}, r"\[sform_code, qform_code\].*options: {orientation: RAS}"),
    ({"array": IMAGE.astype(np.complex64)}, {}, r"images/b.nii.gz \[type\]: found complex64"),
    ({"magic": b"ni1"}, {}, r"images/b.nii.gz: found a file that starts with"),
    ({"dim": [3, 6, 7, -8, 1, 1, 1, 1]}, {}, r"images/b.nii.gz \[(shape|header)\]"),
    ({"dim": [3, 6, 0, 8, 1, 1, 1, 1]}, {}, r"images/b.nii.gz \[shape\]: found 6 × 0 × 8"),
    ({"dim": [99, 6, 7, 8, 1, 1, 1, 1]}, {}, r"images/b.nii.gz \[(header|dim)\]"),
    ({"datatype": 7777}, {}, r"images/b.nii.gz \[header\]"),
    ({"vox_offset": 1e30}, {}, r"images/b.nii.gz \[vox_offset\]"),
]


@pytest.mark.parametrize(("image", "label", "words"), PAIRS, ids=[str(i) for i in range(len(PAIRS))])
def test_images_and_labels_that_are_wrong_are_refused(tmp_path: Path, image: dict[str, Any], label: dict[str, Any],
                                                      words: str) -> None:
    refused(words, lambda: look(lab(tmp_path, image, label), format="nifti", structures=["no", "tumour"]))


@pytest.mark.parametrize("pair", [0, 3, 7, 9])
def test_nothing_is_written_of_what_is_refused(tmp_path: Path, pair: int) -> None:
    image, label, words = PAIRS[pair]
    source = SourceSpec.model_validate({"name": "lab", "domain": "volumes",
                                        "files": [str(lab(tmp_path / "lab", image, label))],
                                        "options": {"format": "nifti", "structures": ["no", "tumour"]},
                                        "split": {"by": "fold", "folds": 2, "validation": None}})
    (tmp_path / "out").mkdir()
    refused(words, lambda: build(source, tmp_path / "out/x.zarr"))
    assert list((tmp_path / "out").iterdir()) == []


def test_voxels_that_are_not_finite_stay_if_the_source_says_so(tmp_path: Path) -> None:
    made = look(save(tmp_path / "a.nii.gz", with_value(IMAGE, np.nan)), missing="mask")
    assert np.isnan(made.image.values).sum() == 1


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97, -4, -1])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, name: str, keep: float) -> None:
    path = save(tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(keep * len(whole)) if keep > 0 else int(keep)])
    refused(rf"{name}.*copy it again", lambda: look(path, format="nifti"))


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii.gz")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    error = refused(r"a.nii.gz: found nibabel is not installed", lambda: look(path, format="nifti"))
    assert error.fix == 'pip install "sciml[volumes]"'


def test_a_damaged_gzip_stream_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 0xFF
    path.write_bytes(whole)
    refused(r"a.nii.gz \[gzip\]: found CRC check failed", lambda: look(path, format="nifti"))


BOMBS: list[tuple[str, dict[str, Any], str]] = [
    ("a.nii.gz", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, r"\[header\]: found a compressed volume of shape"),
    ("a.nii.gz", {"dim": [3, 600, 600, 600, 1, 1, 1, 1]}, r"bytes declared, .* stored; expected a ratio"),
    ("a.nii", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, r"\[header\]: found .*copy it again|at most"),
    ("a.nii", {"dim": [3, 600, 600, 600, 1, 1, 1, 1]}, r"\[header\]: found .* bytes; expected 864000352"),
    ("a.nii.gz", {"dim": [4, 6, 7, 8, 32767, 1, 1, 1]}, r"\[dim\]: found (4-D|32767 frames)"),
    ("a.nii.gz", {"dim": [4, 6, 7, 8, 9999, 1, 1, 1]}, r"\[dim\]: found 4-D|\[gzip\]: found .*bytes of voxels"),
    ("a.nii.gz", {"vox_offset": 9e8}, r"\[gzip\]: found .*ended before the voxels"),
]


@pytest.mark.parametrize(("name", "header", "words"), BOMBS)
def test_headers_that_declare_gigantic_sizes_are_refused_before_memory_is_taken(
        tmp_path: Path, name: str, header: dict[str, Any], words: str) -> None:
    path = save(tmp_path / name, **header)
    tracemalloc.start()
    refused(words, lambda: look(path, format="nifti"))
    if "dim" in header and header["dim"][0] == 4:
        refused(words, lambda: nifti.scans(str(path), VolumeOptions(frames="groups"), Limits())[0].open())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_stream_of_zeros_is_held_against_the_limit_of_one_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros((100, 100, 100), np.uint8))
    error = refused(r"\[header\]: found a compressed volume of shape \(100, 100, 100\), 1000000 bytes",
                    lambda: look(path, format="nifti", limits={"chunk_bytes": 1 << 19}))
    assert "options.limits" in error.fix


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 351), value=st.integers(0, 255), more=st.binary(max_size=3))
def test_a_header_of_which_bytes_were_changed_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int,
                                                                 value: int, more: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    raw = bytearray(save(folder / "good.nii", IMAGE[:2, :2, :2]).read_bytes())
    raw[at:at + 1 + len(more)] = bytes([value]) + more
    path = folder / "fuzz.nii"
    path.write_bytes(raw)
    with contextlib.suppress(InputError):
        for scan in nifti.scans(str(path), VolumeOptions(), Limits()):
            refuse_bad_affine(scan.affine, scan.path)
            assert scan.values(scan.open()[:], 0).shape == scan.shape


LAYOUTS: list[tuple[dict[str, Any], str]] = [
    ({}, r"\[options.structures\]: found labels without names.*structures: \[background, structure_1\]"),
    ({"structures": ["no", "tumour"], "images": {"t1": "{subject}_t1.nii.gz"}},
     r"\[options.images.t1\]: found no file"),
    ({"structures": ["no", "tumour"], "labels": "masks"}, r"\[options.labels\]: found no file fits 'masks'"),
    ({"structures": ["no"]}, r"found 1, one of .*expected one of 0 no"),
    ({"structures": {"no": 0}}, r"\[structures\]"),
    ({"frames": "each"}, r"\[frames"), ({"modality": "1"}, r"\[modality\]"), ({"brick": 1}, r"\[brick\]"),
    ({"orientaton": "RAS"}, r"\[options.orientaton\].*an option of nifti"),
    ({"structures": ["no", "tumour"], "select": {"subject": [0, 3]}}, r"\[options.select.subject\]"),
    ({"structures": ["no", "tumour"], "frames": ["t1", "t2"]},
     r"\[shape\]: found 1 frames; expected one frame per name"),
]


@pytest.mark.parametrize(("options", "words"), LAYOUTS)
def test_options_that_fit_nothing_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    refused(words, lambda: look(lab(tmp_path), **{"format": "nifti", **options}))


def test_subjects_that_are_ambiguous_or_incomplete_are_refused(tmp_path: Path) -> None:
    folder = lab(tmp_path / "lab")
    save(folder / "labels/c.nii.gz", LABEL)
    refused(r"labels/c.nii.gz \[label\]: found no image of c", lambda: look(folder, structures=["no", "tumour"]))
    for person in "pq":
        save(tmp_path / f"bids/{person}/t1.nii.gz")
    refused(r"\[subject\]: found t1 twice, also .*bids/p/t1.nii.gz", lambda: look(tmp_path / "bids"))
    save(tmp_path / "two/a_t1.nii.gz")
    save(tmp_path / "two/a_t2.nii.gz")
    save(tmp_path / "two/b_t1.nii.gz")
    images = {"t1": "{subject}_t1.nii.gz", "t2": "{subject}_t2.nii.gz"}
    refused(r"b_t1.nii.gz \[subject\]: found b with t1; expected t1, t2, as a has",
            lambda: look(tmp_path / "two", images=images))
    (tmp_path / "empty").mkdir()
    refused(r"empty: found no file", lambda: look(tmp_path / "empty", format="nifti"))
    save(tmp_path / "film/x.nii", np.stack([IMAGE] * 3, -1))
    save(tmp_path / "film/labels/x.nii", LABEL)
    refused(r"labels/x.nii \[shape\]: found 1 frames; expected 3", lambda: look(
        tmp_path / "film", frames="groups", structures=["no", "tumour"]))


def slices(folder: Path, count: int = 5, **changed: Any) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(count):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = changed.get("syntax", pydicom.uid.ExplicitVRLittleEndian)
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{k + 1}"
        one = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        usual = {"Modality": "CT", "SeriesInstanceUID": "1.2.3", "Rows": 4, "Columns": 3, "SamplesPerPixel": 1,
                 "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
                 "PixelRepresentation": 1, "PixelSpacing": [1, 1], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                 "ImagePositionPatient": [0, 0, 2 * k], "PixelData": bytes(24), "RescaleSlope": 1}
        for key, value in (usual | changed).items():
            value = value(k) if callable(value) else value
            if key != "syntax" and value is not None:
                setattr(one, key, value)
        paths.append(folder / f"IM{k}")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def at(k: int, special: Any, usual: Any) -> Callable[[int], Any]:
    return lambda i: special if i == k else usual


SERIES: list[tuple[dict[str, Any], str]] = [
    ({"ImagePositionPatient": lambda k: [0, 0, 2 * (k + (k > 1))]},
     r"IM2 \[ImagePositionPatient\]: found 4 mm behind IM1: 1 slices missing; expected 2 mm"),
    ({"ImagePositionPatient": lambda k: [0, 0, 2 * (k + 10 * (k > 2))]}, r"IM3 .*: 10 slices missing"),
    ({"ImagePositionPatient": lambda k: [0, 0, 2 * min(k, 3)]}, r"IM4 .*the same place as IM3"),
    ({"ImagePositionPatient": lambda k: [5 * (k == 2), 0, 2 * k]}, r"IM2 .*found 5 mm beside the line"),
    ({"ImagePositionPatient": lambda k: [0, 1.2 * k, 2 * k]}, r"\[affine\]: found axes .* degrees apart"),
    ({"ImageOrientationPatient": at(3, [0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0])},
     r"IM3 \[ImageOrientationPatient\].*as IM0 has.*mixed orientations"),
    ({"SeriesInstanceUID": at(3, "9.9", "1.2.3")},
     r"IM3 \[SeriesInstanceUID\]: found 9.9;.*series: …}, one of 1.2.3, 9.9"),
    ({"Rows": at(1, 2, 4), "Columns": at(1, 6, 3)},
     r"IM1 \[Rows, Columns\]: found \(2, 6\); expected \(4, 3\), as IM0"),
    ({"PixelSpacing": at(4, [1, 2], [1, 1])}, r"IM4 \[PixelSpacing\]"),
    ({"PixelSpacing": [0, 1]}, r"IM0 \[PixelSpacing\]: found \[0.0, 1.0\]; expected above 0 mm"),
    ({"PixelSpacing": None}, r"IM0 \[PixelSpacing\]: found none"),
    ({"ImagePositionPatient": None}, r"IM0 \[ImagePositionPatient\]: found none"),
    ({"PixelData": at(2, bytes(10), bytes(24))}, r"IM2 \[PixelData\]"),
    ({"RescaleSlope": 0}, r"IM0 \[RescaleSlope, RescaleIntercept\]: found 0.0"),
    ({"NumberOfFrames": 3, "PixelData": bytes(72)}, r"IM0 \[NumberOfFrames, SamplesPerPixel\]"),
    ({"syntax": pydicom.uid.DeflatedExplicitVRLittleEndian}, r"IM0: found ValueError: a deflated data set"),
    ({"Rows": 65535, "Columns": 65535}, r"\[series\]: found a series of shape \(65535, 65535, 5\)"),
]


@pytest.mark.parametrize(("changed", "words"), SERIES, ids=[str(i) for i in range(len(SERIES))])
def test_dicom_series_that_are_no_volume_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    slices(tmp_path / "p", **changed)
    refused(words, lambda: look(tmp_path / "p", format="dicom"))


def test_one_series_of_several_can_be_chosen_and_files_cut_short_are_refused(tmp_path: Path) -> None:
    paths = slices(tmp_path / "p", SeriesInstanceUID=lambda k: "9.9" if k == 4 else "1.2.3")
    assert look(tmp_path / "p", format="dicom", series="1.2.3")["size"].values.tolist() == [[3, 4, 4]]
    refused(r"\[series\]: found no slice of 7", lambda: look(tmp_path / "p", format="dicom", series="7"))
    refused(r"IM0: found one DICOM file; expected the folder", lambda: recognise(paths[0]))
    paths[2].write_bytes(paths[2].read_bytes()[:-9])
    refused(r"IM2 \[PixelData\]", lambda: look(tmp_path / "p", format="dicom", series="1.2.3"))


GOOD = {"type": "short", "dimension": "3", "sizes": "2 3 4", "encoding": "raw", "endian": "little",
        "space": "left-posterior-superior", "space directions": "(1,0,0) (0,1,0) (0,0,1)", "space origin": "(0,0,0)"}
NRRDS: list[tuple[dict[str, str | None], str]] = [
    ({"data file": "/etc/passwd"}, r"\[data file\]: found /etc/passwd; expected voxels behind the header"),
    ({"encoding": "bzip2"}, r"\[encoding\]: found bzip2"),
    ({"encoding": "gzip"}, r"\[encoding\]: found voxels that are no gzip stream"),
    ({"sizes": "20000 30000 40000"}, r"\[header\]"), ({"sizes": "2 3 40"}, r"\[header\]: found .* expected"),
    ({"sizes": "2 -3 4"}, r"\[sizes\]"), ({"sizes": None}, r"\[sizes\]"),
                                                  ({"dimension": "4", "sizes": "2 3 2 2"}, "4-D"),
    ({"type": "block"}, r"\[type\]: found block"), ({"endian": "middle"}, r"\[endian\]"),
    ({"space": "scanner-xyz"}, r"\[space\]"), ({"space": None},
                                               r"\[space\]"), ({"space origin": None}, r"\[space origin\]"),
    ({"space directions": "(1,0,0) (0.5,1,0) (0,0,1)"}, r"\[affine\]: found axes"),
    ({"space directions": "(1,0,0) (0,0,0) (0,0,1)"}, r"\[spacing\]"),
                                                  ({"space directions": None}, r"orientation: RAS"),
    ({"space units": '"m" "m" "m"'}, r"\[space\].*'m'"), ({"line skip": "3"}, r"\[line skip\]"),
]


@pytest.mark.parametrize(("changed", "words"), NRRDS, ids=[str(i) for i in range(len(NRRDS))])
def test_nrrd_headers_that_lack_or_contradict_something_are_refused(tmp_path: Path, changed: dict[str, str | None],
                                                                   words: str) -> None:
    fields = {key: value for key, value in (GOOD | changed).items() if value is not None}
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + bytes(48))
    refused(rf"a.nrrd.*({words})", lambda: look(tmp_path / "a.nrrd", format="nrrd"))


def test_numpy_volumes_without_a_place_pickles_and_sizes_that_lie_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE)
    for options, words in (({}, r"\[spacing_mm\]: found none"), ({"spacing_mm": [1, 0, 1]}, r"\[spacing_mm\].*above 0"),
                           ({"spacing_mm": [1, 1, 1], "affine": AFFINE.tolist()}, r"found spacing_mm and affine"),
                           ({"affine": SHEAR.tolist()}, r"a.npy \[affine\]: found axes"),
                           ({"spacing_mm": [1, 1]}, r"spacing_mm")):
        refused(words, lambda options=options: look(tmp_path / "a.npy", format="volume_npy",
                                                    **options))  # type: ignore[misc]
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused("a pickle", lambda: look(tmp_path / "p.npy", format="volume_npy", spacing_mm=[1, 1, 1]))
    np.save(tmp_path / "f.npy", np.zeros((2, 2, 2, 2)))
    refused("one array per frame", lambda: look(tmp_path / "f.npy", format="volume_npy", spacing_mm=[1, 1, 1]))
    np.savez_compressed(tmp_path / "z.npz", ct=np.zeros((60, 60, 60)), spacing_mm=np.ones(3))
    refused("a compressed volume", lambda: look(tmp_path / "z.npz", format="volume_npy",
                                                limits={"chunk_bytes": 1 << 18}))


FOLDERS: list[tuple[str, str]] = [
    ("{", r"dataset.json: found .*expected JSON"), ("[]", r"found list; expected an object"),
    ('{"labels": {"background": 0}}', r"\[channel_names\]: found None"),
    ('{"channel_names": {"0": "CT", "1": "ct"}, "labels": {}}', r"\[channel_names\]"),
    ('{"channel_names": {"0": "CT"}, "labels": {"a": "b"}}', r"\[labels\]"),
    ('{"channel_names": {"0": "CT"}, "file_ending": ".png"}', r"\[file_ending\]: found .png"),
    ('{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}', r"a_0001.nii.gz \[channel\]"),
    ('{"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "a": 1}}',
     r"labelsTr/z.nii.gz.*no image of z"),
    ('{"channel_names": {"0": "CT"}, "dataset": {"a": {}}}', r"\[dataset\]"),
]


@pytest.mark.parametrize(("text", "words"), FOLDERS, ids=[str(i) for i in range(len(FOLDERS))])
def test_nnunet_folders_that_contradict_themselves_are_refused(tmp_path: Path, text: str, words: str) -> None:
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "labelsTr/z"):
        save(tmp_path / f"{name}.nii.gz", LABEL)
    (tmp_path / "dataset.json").write_text(text)
    refused(words, lambda: look(tmp_path, format="nnunet"))
