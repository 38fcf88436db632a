"""Two gloo processes train as one does: the same losses at equal global batch, the same data in every micro-step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sciml.data.store import Store
from tests.e2e import tiny

Job = Callable[..., int]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def seen(path: Path) -> list[list[Any]]:
    """[step, micro-step, data set, sources] of all micro-batches."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def plan(stores: tuple[Store, ...]) -> dict[str, Any]:
    return tiny.recipe(*(store.url for store in stores)).model_dump(mode="json")


def test_two_ranks_train_as_one(run_job: Job, plan: dict[str, Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_job(do="train", recipe=plan, folder=str(one), order=str(tmp_path / "alone")) == 0
    assert run_job(do="train", recipe=plan, folder=str(two), order=str(tmp_path / "rank"), ranks=2) == 0
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    alone, first, second = (seen(tmp_path / name) for name in ("alone", "rank-0", "rank-1"))
    assert [row[:3] for row in first] == [row[:3] for row in second] == [row[:3] for row in alone]
    assert {row[2] for row in first} == {"ns_a", "ns_b", "panel"}
    assert [a[3] + b[3] for a, b in zip(first, second)] == [row[3] for row in alone]


def test_two_ranks_train_a_chain_as_one(run_job: Job, plan: dict[str, Any], tmp_path: Path) -> None:
    """Several calls of the wrapped operator before one backward pass."""
    chained = {**plan, "data": [{**plan["data"][0], "chain": {"unrolled": {"steps": 3}}}],
               "train": {**plan["train"], "steps": 4}}
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_job(do="train", recipe=chained, folder=str(one), order=str(tmp_path / "alone")) == 0
    assert run_job(do="train", recipe=chained, folder=str(two), order=str(tmp_path / "rank"), ranks=2) == 0
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


def test_two_ranks_go_on_after_a_kill(run_job: Job, plan: dict[str, Any], tmp_path: Path) -> None:
    short = {**plan, "train": {**plan["train"], "steps": 6}}
    job = {"do": "train", "recipe": short, "ranks": 2}
    assert run_job(**job, folder=str(tmp_path / "whole"), order=str(tmp_path / "a")) == 0
    killed = {**job, "folder": str(tmp_path / "killed"), "order": str(tmp_path / "b")}
    assert run_job(**killed, kill=["sciml.train:train_step", 5]) < 0
    assert run_job(**killed) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_batch_that_does_not_divide_is_refused(run_job: Job, plan: dict[str, Any], tmp_path: Path) -> None:
    odd = {**plan, "data": [{**entry, "batch": 3} for entry in plan["data"]]}
    assert run_job(do="train", recipe=odd, folder=str(tmp_path / "run"), order=str(tmp_path / "order"), ranks=2) == 1
    assert not (tmp_path / "run" / "train.jsonl").exists()


@pytest.mark.slow
def test_torchrun_of_the_command_line(plan: dict[str, Any], tmp_path: Path) -> None:
    short = {**plan, "train": {**plan["train"], "steps": 4}}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(short))
    sciml = str(Path(sys.executable).with_name("sciml"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", "--"]
    for folder, prefix in ((tmp_path / "one", []), (tmp_path / "two", launch)):
        subprocess.run([*prefix, sciml, "pretrain", str(config), "--run", str(folder)], check=True,
                       capture_output=True, timeout=110)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
