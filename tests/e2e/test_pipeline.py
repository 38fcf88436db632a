"""The commands one after the other, as a user calls them: pretrain, look, evaluate, roll out, fine-tune, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from sciml.cli import run
from sciml.data.store import Store
from tests.e2e import tiny

Run = tuple[int, str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """``call(*arguments)`` → what the command printed to stdout; it must have ended with `code`."""
    def invoke(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        found = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert found == code, captured.err
        return captured.err if code else captured.out
    return invoke


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def pretrained(folder: Path, stores: tuple[Store, ...]) -> Path:
    """A run made by the command, from a file, with an assignment."""
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny.recipe(stores[0].url, stores[2].url).model_dump(mode="json")))
    assert run(["pretrain", str(config), "train.steps=6", "--run", str(folder / "run"), "--json"]) == 0
    return folder / "run"


def test_pretrain(call: Any, pretrained: Path, folder: Path) -> None:
    """Called again, a finished run is only told of."""
    config = folder / "tiny.yaml"
    found = json.loads(call("pretrain", config, "train.steps=6", "--run", pretrained, "--json"))
    assert found["steps"] == 6
    assert set(found["validation"]) == set(found["baseline"]) == {"ns_a", "panel"}
    text = call("pretrain", config, "train.steps=6", "--run", pretrained)
    assert f"next: sciml evaluate {pretrained}" in text
    assert "--overwrite" in call("pretrain", config, "train.steps=7", "--run", pretrained, code=1)


def test_pretrain_dry_run(call: Any, pretrained: Path, folder: Path, tmp_path: Path,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = json.loads(call("pretrain", folder / "tiny.yaml", "--dry-run", "--json"))
    assert set(plan) == {"parameters", "samples_per_step", "tokens_per_step", "memory_mib", "steps_per_s", "steps",
                         "minutes", "reader_speedup", "read_amplification"}
    assert plan["steps"] == 12
    assert all(value > 0 for value in plan.values())
    assert "steps per s" in call("pretrain", folder / "tiny.yaml", "--dry-run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("assignments", "key"), [
    (("train.minutes=1",), "train"), (("train.optimizer=sgd",), "train.optimizer"),
    (("data.0.batch=0",), "data.0.batch"),
    (("operator.levels.0.mixers=[telepathy]",), "telepathy"), (("domains.fields.patch=many",), "patch"),
    (("train.precision=float16",), "train.precision"), (("typo=1",), "typo")])
def test_a_wrong_assignment_is_named(call: Any, pretrained: Path, folder: Path, assignments: tuple[str, ...], key: str,
                                     tmp_path: Path) -> None:
    error = call("pretrain", folder / "tiny.yaml", *assignments, "--run", tmp_path / "run", code=1)
    assert key in error
    assert "Fix:" in error
    assert not (tmp_path / "run").exists()


def test_checkpoint(call: Any, pretrained: Path) -> None:
    found = json.loads(call("checkpoint", "inspect", pretrained, "--json"))
    assert set(found["domains"]) == {"fields", "series"}
    assert found["recipe"]["train"]["steps"] == 6
    assert json.loads(call("checkpoint", "verify", pretrained, "--json"))["ok"]


def test_evaluate(call: Any, pretrained: Path, stores: tuple[Store, ...]) -> None:
    for store in (stores[0], stores[2]):
        found = json.loads(call("evaluate", pretrained, "--data", store.url, "--max-windows", 4, "--json"))
        assert found["rows"]
        assert all(row["dataset"] == store.meta.dataset for row in found["rows"])
        assert (pretrained / "evaluation" / f"{store.meta.dataset}.json").is_file()
    assert "persistence" in call("evaluate", pretrained, "--data", stores[0].url, "--max-windows", 2)


def test_rollout(call: Any, pretrained: Path, stores: tuple[Store, ...]) -> None:
    out = pretrained / "rollout" / "ns_a.zarr"
    out.parent.mkdir()
    text = call("rollout", pretrained, "--from", stores[0].url, "-o", out, "--steps", 4)
    assert "next: sciml" in text
    result = xr.open_zarr(out, consolidated=False)
    assert dict(result["vorticity"].sizes) == {"sample": 1, "time": 4, "x": 16, "y": 16}
    assert np.isfinite(result["vorticity"]).all()
    assert "--overwrite" in call("rollout", pretrained, "--from", stores[0].url, "-o", out, "--steps", 5, code=1)


def test_finetune(call: Any, pretrained: Path, stores: tuple[Store, ...]) -> None:
    arguments = ("finetune", pretrained, "train.steps=2", "--data", stores[1].url)
    assert json.loads(call(*arguments, "--dry-run", "--json"))["steps"] == 2
    found = json.loads(call(*arguments, "--json"))
    assert Path(found["run"]) == pretrained / "finetune" / "ns_b"
    assert set(found["validation"]) == {"ns_b"}
    inspected = json.loads(call("checkpoint", "inspect", found["run"], "--json"))
    assert set(inspected["provenance"]["stores"]) == {"ns_a", "ns_b", "panel"}


def test_report(call: Any, pretrained: Path) -> None:
    call("report", pretrained)
    page = (pretrained / "report.html").read_text()
    assert "ns_a" in page
    assert "panel" in page


def test_what_is_not_there_is_said(call: Any, tmp_path: Path, stores: tuple[Store, ...]) -> None:
    error = call("evaluate", tmp_path / "nothing", "--data", stores[0].url, code=1)
    assert "nothing there" in error
    assert "sciml pretrain" in error
    assert "Fix:" in call("pretrain", tmp_path / "no.yaml", code=2)
