"""`sciml segment`: a folder of images to a folder of label maps, volumes with intervals, calls that are wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sciml import checkpoint
from sciml.cli import cli, run
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.config import Known
from sciml.handles.volumes import Calibration
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.testing.parameters import stir

nibabel = pytest.importorskip("nibabel", reason="nibabel is absent")
STRUCTURES = ("background", "front", "back")
NETWORK = {"stem_width": 4, "levels": [{"width": 8, "depth": 1, "mixers": ["local"], "head_width": 8}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint of stirred weights."""
    adapter = Volumes.create({"window": (16, 16, 16), "patch": 2})
    adapter = replace(adapter, task=replace(adapter.task, structures=STRUCTURES),  # type: ignore[type-var]
                      datasets={"made": Known(modalities={"mri": "1"}, structures=STRUCTURES)})
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate(NETWORK), {"volumes": adapter.spec()})
    stir(operator, size=0.3)
    folder = tmp_path_factory.mktemp("run")
    recipe = {"name": "made", "domains": {"volumes": adapter.config.model_dump(mode="json")}, "operator": NETWORK}
    (folder / "checkpoints").mkdir()
    checkpoint.save(folder / "checkpoints" / "best", Predictor(operator, {"volumes": adapter}, recipe))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, shape in (("a", (12, 10, 9)), ("b", (9, 14, 20))):
        nibabel.save(nibabel.Nifti1Image(rng.normal(100, 30, shape).astype(np.int16), np.diag([1, 1, 2, 1])),
                     tmp_path / "images" / f"{name}.nii.gz")
    return tmp_path / "images"


def test_a_folder_of_images_becomes_a_folder_of_label_maps(made: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = CliRunner().invoke(cli, ["segment", str(made), str(images), "-o", str(out), "--mirror", "x,z"])
    assert found.exit_code == 0, found.output
    assert "next: sciml segment" in found.output
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    labels = np.asarray(nibabel.load(out / "b.nii.gz").dataobj)
    assert labels.shape == (9, 14, 20)
    assert set(np.unique(labels)) <= {0, 1, 2}
    again = CliRunner().invoke(cli, ["segment", str(made), str(images), "-o", str(out)])
    assert again.exit_code != 0
    assert "--overwrite" in str(again.exception)


def test_volumes_of_a_calibrated_run_have_intervals(made: Path, images: Path, tmp_path: Path) -> None:
    kept = made / "calibration" / "volumes.json"
    kept.parent.mkdir()
    misses: dict[str, list[float | None]] = {"front": [0.2] * 9, "back": [0.1] * 9}
    kept.write_text(Calibration(dataset="made", subjects=9, misses=misses).model_dump_json(), encoding="utf-8")
    try:
        found = CliRunner().invoke(cli, ["segment", str(made), str(images / "a.nii.gz"), "-o",
                                         str(tmp_path / "labels.nii"), "--json"])
        assert found.exit_code == 0, found.output
        (one,) = json.loads(found.stdout)
        labels = np.asarray(nibabel.load(tmp_path / "labels.nii").dataobj)
        for value, row in enumerate(one["volumes"], 1):
            assert row["volume_mm3"] == pytest.approx(2.0 * (labels == value).sum())
            if row["volume_mm3"]:
                assert row["high_mm3"] == pytest.approx(row["volume_mm3"] * math.exp(misses[row["structure"]][0] or 0))
        kept.write_text("{", encoding="utf-8")
        assert run(["segment", str(made), str(images / "a.nii.gz"), "-o", str(tmp_path / "x.nii")]) == 1
    finally:
        kept.unlink()
        kept.parent.rmdir()


@pytest.mark.parametrize(("options", "told"), [
    (["{images}", "-o", "{out}/a.nii"], "a folder"), (["{images}", "-o", "{images}"], "image of the input"),
    (["{images}/none.nii", "-o", "{out}"], "nothing there"), (["{images}", "-o", "{out}", "--mirror", "w"], "x,y,z"),
    (["{images}", "-o", "{out}", "--image", "ct=a"], "MODALITY=PATTERN"),
    (["{images}", "-o", "{out}", "--image", "mri={{subject}}.mgz"], "no file fits")])
def test_a_wrong_call_says_what_is_wrong(made: Path, images: Path, tmp_path: Path, options: list[str], told: str,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    filled = [option.format(images=images, out=tmp_path / "out") for option in options]
    assert run(["segment", str(made), *filled]) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
