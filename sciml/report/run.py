"""What a run folder holds, read without running anything. Every part may be absent.

    recipe.yaml                what was asked for
    train.jsonl                a line per logged step, and per validation
    checkpoints/               the selected checkpoint describes itself
    evaluation/DATASET.json    scores beside baselines, curves over rollout steps
    rollout/DATASET.zarr       (sample, time, *space), truth under NAME_truth, NaN where it isn't known
    forecast/DATASET.zarr      value, value_truth, value_baseline (sample, time, variate), look-back under history
    finetune/                  a run of the same layout that started from this one
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sciml.errors import InputError
from sciml.recipe import read_yaml

Points = tuple[np.ndarray, np.ndarray]
"""Steps and values, both ``(n,)``."""


@dataclass(frozen=True)
class Log:
    """``train.jsonl``: losses, validation and its baseline by data set; seconds and samples in all, the last step."""

    losses: Mapping[str, Points]
    validation: Mapping[str, Points]
    baseline: Mapping[str, Points]
    learning_rate: Points
    seconds: float
    samples: int
    steps: int


@dataclass(frozen=True)
class Run:
    """One run folder. checkpoint: what the selected checkpoint says of itself; note: why it could not be read."""

    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    log: Log | None = None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_note: str = ""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rollouts: Mapping[str, Path] = field(default_factory=dict)
    forecasts: Mapping[str, Path] = field(default_factory=dict)
    children: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", self.path.resolve().name))


def read_run(path: Path) -> Run:
    """Read a run folder. Raises `InputError` if it is none, or nothing in it can be shown."""
    if not path.is_dir():
        raise InputError(path, found="no such folder", expected="the folder of a run", fix="check the path; see runs/")
    run = _read(path)
    if not (run.log or run.evaluations or run.rollouts or run.forecasts or run.children or run.recipe):
        raise InputError(path, found="none of recipe.yaml, train.jsonl, evaluation/, rollout/, forecast/",
                         expected="the folder of a run", fix="give the folder that `sciml pretrain` wrote")
    return run


def _read(path: Path) -> Run:
    recipe = path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    checkpoint, note = _checkpoint(path)
    return Run(
        path, recipe=read_yaml(recipe) if text else {}, recipe_text=text, log=read_log(path / "train.jsonl"),
        checkpoint=checkpoint, checkpoint_note=note,
        evaluations={file.stem: _json(file) for file in sorted((path / "evaluation").glob("*.json"))},
        rollouts=_stores(path / "rollout"), forecasts=_stores(path / "forecast"),
        children=tuple(_read(folder.parent) for pattern in ("finetune/recipe.yaml", "finetune/*/recipe.yaml")
                       for folder in sorted(path.glob(pattern))))


def _stores(folder: Path) -> dict[str, Path]:
    return {store.stem: store for store in sorted(folder.glob("*.zarr"))}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(path, key=f"line {error.lineno}", found=error.msg, expected="JSON",
                         fix="delete the file and evaluate again") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise InputError(path, found=type(found).__name__, expected="an object with `rows`",
                         fix="delete the file and evaluate again")
    return found


def _checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    if not (path / "checkpoints").is_dir():
        return {}, "The run holds no checkpoint."
    from sciml import checkpoint

    try:
        folder = checkpoint.resolve(path)
        found = {**checkpoint.inspect(folder), "files": checkpoint.manifest_of(folder)["files"]}
        altered = [finding["file"] for finding in checkpoint.verify(folder)]
        return found, f"Altered or missing in the checkpoint: {', '.join(altered)}." if altered else ""
    except InputError as error:
        return {}, f"The checkpoint can't be read: {error}"


def read_log(path: Path) -> Log | None:
    """``train.jsonl`` as curves, None if there is none; a step that is logged twice counts as it was the last time.

    seconds are counted from the start of the process, so they begin again at a resume; the parts are added. A last
    line that was cut off by a kill is left out; any other broken line raises `InputError`.
    """
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    train: dict[int, dict[str, Any]] = {}
    validation: dict[int, dict[str, Any]] = {}
    seconds, before = 0.0, 0.0
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise InputError(path, key=f"line {number}", found=error.msg, expected="one JSON object a line",
                             fix="remove the line") from None
        (validation if "validation" in entry else train)[int(entry["step"])] = entry
        now = float(entry.get("seconds", before))
        seconds, before = seconds + (now - before if now >= before else now), now
    logged = [train[step] for step in sorted(train)]
    checked = [validation[step] for step in sorted(validation)]
    return Log(losses=_by_name(logged, "losses"), validation=_by_name(checked, "validation"),
               baseline=_by_name(checked, "baseline"), learning_rate=_points(logged, "learning_rate"),
               seconds=seconds, samples=sum(int(entry.get("samples", 0)) for entry in logged),
               steps=max(train, default=0))


def _by_name(entries: list[dict[str, Any]], key: str) -> dict[str, Points]:
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for name, value in (entry.get(key) or {}).items():
            if value is not None:
                found.setdefault(name, []).append((entry["step"], float(value)))
    return {name: _arrays(points) for name, points in found.items()}


def _points(entries: list[dict[str, Any]], key: str) -> Points:
    return _arrays([(entry["step"], float(entry[key])) for entry in entries if entry.get(key) is not None])


def _arrays(points: list[tuple[int, float]]) -> Points:
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
