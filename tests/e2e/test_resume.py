"""A run that is killed and goes on ends exactly as one that was never interrupted."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.workflow import pretrain
from sciml.data.store import Store
from sciml.errors import InputError
from tests.e2e import tiny

Job = Callable[..., int]
STEP = "sciml.train:train_step"
KILLS = {
    "at the first step": [STEP, 1],
    "before the first checkpoint": [STEP, 3],
    "after a checkpoint": [STEP, 4],
    "while validating": ["sciml.train:validation_losses", 2],
    "before the best is written": ["sciml.checkpoint:_write", 2],
    "in the middle of a checkpoint": ["sciml.checkpoint:sha256", 7],
    "before a checkpoint's manifest": ["sciml.checkpoint:os.fsync", 9],
    "before a checkpoint's rename": ["pathlib:Path.rename", 2],
    "while old checkpoints are removed": ["shutil:os.rmdir", 2],
    "in the log": ["sciml.trainlog:TrainingLog.write", 9],
    "at the last step": [STEP, 12],
}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without the clock."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(folder: Path) -> dict[str, str]:
    """Hashes of all that was learnt: the last step's and the best weights, the optimizers' state."""
    files = [*sorted(folder.glob("checkpoints/step-*"))[-1].rglob("*.safetensors"),
             folder / "checkpoints" / "best" / "model.safetensors"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def order(path: Path) -> dict[tuple[int, int], list[str]]:
    """Sources of the samples by step and micro-batch in it, as they were seen last."""
    return {(step, micro): sources for step, micro, _, sources in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def plan(stores: tuple[Store, ...]) -> dict[str, Any]:
    return tiny.recipe(*(store.url for store in stores)).model_dump(mode="json")


@pytest.fixture(scope="module")
def whole(run_job: Job, plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_job(do="train", recipe=plan, folder=str(folder), order=str(folder.parent / "order")) == 0
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    assert lines(folder) == lines(whole)
    assert weights(folder) == weights(whole)
    assert order(folder.parent / "order") == order(whole.parent / "order")
    left = [p.name for p in (folder / "checkpoints").iterdir() if not p.name.startswith("step-") and p.name != "best"]
    assert left == []


def test_two_runs_are_the_same(run_job: Job, plan: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    assert run_job(do="train", recipe=plan, folder=str(tmp_path / "run"), order=str(tmp_path / "order")) == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS.keys())
def test_killed_and_resumed_equals_uninterrupted(kill: list[Any], run_job: Job, plan: dict[str, Any], whole: Path,
                                                 tmp_path: Path) -> None:
    job = {"do": "train", "recipe": plan, "folder": str(tmp_path / "run"), "order": str(tmp_path / "order")}
    assert run_job(**job, kill=kill) == -signal.SIGKILL
    assert run_job(**job) == 0
    assert_same(tmp_path / "run", whole)


def test_killed_at_every_step(run_job: Job, plan: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    job = {"do": "train", "recipe": plan, "folder": str(tmp_path / "run"), "order": str(tmp_path / "order")}
    deaths = 0
    while run_job(**job, kill=[STEP, 4 + deaths % 2]) == -signal.SIGKILL:
        deaths += 1
    assert deaths >= 3
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_workers_change_nothing(run_job: Job, plan: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    job = {"do": "train", "folder": str(tmp_path / "run"), "order": str(tmp_path / "order")}
    two = {**plan, "train": {**plan["train"], "workers": 2}}
    assert run_job(**job, recipe=two, kill=[STEP, 5]) == -signal.SIGKILL
    assert run_job(**job, recipe=plan, kill=[STEP, 5]) == -signal.SIGKILL
    assert run_job(**job, recipe=two) == 0
    assert_same(tmp_path / "run", whole)


def test_a_finished_run_stays_as_it_is(stores: tuple[Store, ...], trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trained / "checkpoints").rglob("*")}
    log = lines(trained)
    pretrain(tiny.recipe(*(store.url for store in stores)), trained)
    assert {p: p.stat().st_mtime_ns for p in (trained / "checkpoints").rglob("*")} == before
    assert lines(trained) == log


def test_minutes_are_calibrated_once(stores: tuple[Store, ...], tmp_path: Path) -> None:
    """The calibration uses up no random numbers and no samples; what it found is not measured again."""
    quiet = {"checkpoint_every": 1000, "validate_every": 1000}
    timed = tiny.recipe(stores[0].url, steps=None, minutes=0.01, **quiet)
    pretrain(timed, tmp_path / "timed")
    steps = json.loads((tmp_path / "timed" / "budget.json").read_text())["steps"]
    pretrain(tiny.recipe(stores[0].url, steps=steps, **quiet), tmp_path / "counted")
    assert lines(tmp_path / "timed") == lines(tmp_path / "counted")
    pretrain(timed, tmp_path / "timed")
    assert json.loads((tmp_path / "timed" / "budget.json").read_text())["steps"] == steps


def test_another_recipe_is_refused(stores: tuple[Store, ...], trained: Path) -> None:
    log = (trained / "train.jsonl").read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        pretrain(tiny.recipe(stores[0].url, steps=3), trained)
    assert (trained / "train.jsonl").read_bytes() == log


def test_overwrite_replaces_a_run_and_nothing_else(stores: tuple[Store, ...], tmp_path: Path) -> None:
    folder, short = tmp_path / "run", {"steps": 1, "validate_every": 0}
    pretrain(tiny.recipe(stores[0].url, steps=2), folder)
    pretrain(tiny.recipe(stores[0].url, **short), folder, overwrite=True)
    assert max(row["step"] for row in lines(folder)) == 1
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"cat")
    with pytest.raises(InputError, match="not a run"):
        pretrain(tiny.recipe(stores[0].url, **short), other, overwrite=True)
    assert (other / "cat.png").read_bytes() == b"cat"


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(stores: tuple[Store, ...], whole: Path, plan: Any,
                                                               run_job: Job, tmp_path: Path) -> None:
    job = {"do": "train", "recipe": plan, "folder": str(tmp_path / "run"), "order": str(tmp_path / "order")}
    assert run_job(**job, kill=[STEP, 8]) == -signal.SIGKILL
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    state = newest / "training_state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match=r"state\.safetensors") as caught:
        pretrain(tiny.recipe(*(store.url for store in stores)), tmp_path / "run")
    assert "delete this folder" in caught.value.fix
    for file in sorted(newest.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    newest.rmdir()
    assert run_job(**job) == 0
    assert_same(tmp_path / "run", whole)
