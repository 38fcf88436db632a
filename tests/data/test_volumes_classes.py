"""Classes of subjects from a table beside the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.data.builders.phantoms import PLUGIN as phantoms
from sciml.data.readers.nifti import PLUGIN as nifti
from sciml.data.source import FileSource, SourceSpec
from sciml.errors import InputError

nibabel = pytest.importorskip("nibabel")


def read(folder: Path, classes: object) -> xr.Dataset:
    source = SourceSpec(name="scans", domain="volumes", builder="file", files=(FileSource(path=str(folder)),),
                        options={"modality": "mri", "classes": classes})
    return nifti.read([str(folder)], source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (3, 1, 2):
        image = nibabel.Nifti1Image(np.full((4, 3, 2), number, np.float32), np.eye(4))
        nibabel.save(image, tmp_path / f"sub-{number}.nii.gz")
    return tmp_path


TSV = "participant_id\tage\tdiagnosis\nsub-2\t61\tpatient\nsub-1\t60\tcontrol\nsub-3\tn/a\tcontrol\n"


def test_subjects_find_their_class_by_name(folder: Path) -> None:
    (folder / "participants.tsv").write_text(TSV)
    found = read(folder, {"table": "participants.tsv", "column": "diagnosis"})
    assert found["subject"].values.tolist() == ["sub-1", "sub-2", "sub-3"]
    assert found["class"].values.tolist() == ["control", "patient"]
    assert found["category"].values.tolist() == [0, 1, 0]
    assert found["category"].attrs["role"] == "label"


def test_a_column_of_files_and_other_separators_do_too(folder: Path) -> None:
    (folder / "classes.csv").write_text("\ufefffile;class\nscans/sub-1.nii.gz;b\nsub-2.nii.gz;a\nsub-3.nii.gz;b\n")
    assert read(folder, "classes.csv")["category"].values.tolist() == [1, 0, 1]


def test_frames_have_the_class_of_their_subject(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 2), np.float32), np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 2), np.float32), np.eye(4)), tmp_path / "b.nii")
    (tmp_path / "t.csv").write_text("subject,class\na,ill\nb,well\n")
    source = SourceSpec(name="s", domain="volumes", builder="file", files=(FileSource(path=str(tmp_path)),),
                        options={"classes": "t.csv", "frames": "groups"})
    assert nifti.read([str(tmp_path)], source)["category"].values.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("text", "classes", "message"), [
    (TSV, "participants.tsv", "options.classes.column"),
    (TSV, {"table": "participants.tsv", "column": "sex"}, "a column sex"),
    (TSV, {"table": "other.tsv", "column": "diagnosis"}, "no such file"),
    (TSV.replace("sub-3\tn/a\tcontrol", "sub-3\t60\tn/a"), {"table": "participants.tsv", "column": "diagnosis"},
     "no class of sub-3"),
    (TSV + "sub-1\t60\tpatient\n", {"table": "participants.tsv", "column": "diagnosis"}, "before control"),
    ("participant_id\tdiagnosis\n", {"table": "participants.tsv", "column": "diagnosis"}, "no row"),
    ("participant_id\tdiagnosis\nsub-1\n", {"table": "participants.tsv", "column": "diagnosis"}, "no class of sub-1")])
def test_tables_that_leave_something_open_are_refused(folder: Path, text: str, classes: object, message: str) -> None:
    (folder / "participants.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(folder, classes)


def test_hollow_phantoms_have_no_core_and_say_so() -> None:
    options = {"subjects": 6, "field_mm": [24, 24, 24], "spacing_mm": [2.0, 3.0], "seed": 1}
    found = phantoms({**options, "hollow": 0.5})
    assert found["class"].values.tolist() == ["cored", "hollow"]
    ends = np.cumsum(found["voxel_count"].values).astype(int)
    labels = np.split(found["label"].values, ends[:-1])
    assert [label.max() < 2 for label in labels] == found["category"].values.astype(bool).tolist()
    plain = phantoms(options)
    assert "category" not in plain
    whole = np.split(plain["mri"].values, ends[:-1])
    for image, same, hollow in zip(np.split(found["mri"].values, ends[:-1]), whole, found["category"].values):
        assert np.array_equal(image, same) != bool(hollow)
