"""A checkpoint: a folder of safetensors and JSON, whole or not there at all; loading it runs no code from it.

    model.safetensors     operator weights, stable names     config.json     recipe, token specs, adapters, provenance
    adapters.safetensors  statistics and baselines           README.md       model card
    training_state/       only where training can go on      manifest.json   schema version and SHA-256 of all files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sciml import registry
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator, count_parameters
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.tokens import HeadSpec, TokenSpec

CHECKPOINT_SCHEMA = 1
NAMESPACE = "/"


@dataclass(frozen=True)
class TrainingState:
    """Optimizer tensors and the rest (step, history) that going on exactly needs."""

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any]


def save(path: Path, predictor: Predictor, training: TrainingState | None = None) -> Path:
    """Write a checkpoint folder atomically: a sibling first, then one rename. An existing `path` is replaced whole."""
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(temporary, predictor, training)
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _write(folder: Path, predictor: Predictor, training: TrainingState | None) -> None:
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    weights = {k: v.detach().contiguous().cpu() for k, v in predictor.operator.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    arrays: dict[str, np.ndarray] = {}
    adapters: dict[str, Any] = {}
    for name, adapter in predictor.adapters.items():
        adapters[name], own = adapter.state()
        arrays |= {f"{name}{NAMESPACE}{key}": np.ascontiguousarray(value) for key, value in own.items()}
    save_arrays(arrays, folder / "adapters.safetensors")
    config = {"operator": predictor.operator.config.model_dump(mode="json"),
              "specs": {name: asdict(spec) for name, spec in predictor.operator.specs.items()},
              "adapters": adapters, "recipe": predictor.recipe, "provenance": predictor.provenance}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "README.md").write_text(model_card(predictor))
    if training is not None:
        (folder / "training_state").mkdir()
        save_file({k: v.detach().contiguous().cpu() for k, v in training.tensors.items()},
                  folder / "training_state" / "state.safetensors")
        (folder / "training_state" / "state.json").write_text(json.dumps(training.info))
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {"schema_version": CHECKPOINT_SCHEMA,
                "files": {p.relative_to(folder).as_posix(): sha256(p) for p in files}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in [*files, folder / "manifest.json"]:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def resolve(path: str | Path) -> Path:
    """The checkpoint folder that a path means: itself, or of a run the selected one (best, else the newest)."""
    path = Path(path)
    if (path / "manifest.json").is_file():
        return path
    for folder in (path / "checkpoints" / "best", *sorted((path / "checkpoints").glob("step-*"), reverse=True)):
        if (folder / "manifest.json").is_file():
            return folder
    raise InputError(path, found="no manifest.json, and no checkpoints/ with one" if path.exists() else "nothing there",
                     expected="a checkpoint folder, or a run folder that has one",
                     fix="check the path, or train first: sciml pretrain demo")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, its schema checked. Raises `InputError`."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version = manifest["schema_version"]
        files = {str(k): str(v) for k, v in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(folder / "manifest.json", found=repr(error), expected="a manifest of a checkpoint",
                         fix="the checkpoint is damaged; take another one") from None
    if version != CHECKPOINT_SCHEMA:
        raise InputError(folder / "manifest.json", key="schema_version", found=version, expected=str(CHECKPOINT_SCHEMA),
                         fix="use the version of sciml that wrote it" if version > CHECKPOINT_SCHEMA else "train again")
    return {"schema_version": version, "files": files}


def verify(path: str | Path) -> list[dict[str, str]]:
    """One finding per file that is missing, altered or unknown; empty if the checkpoint is whole."""
    folder = resolve(path)
    listed = manifest_of(folder)["files"]
    findings = []
    for name, digest in listed.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            findings.append({"file": name, "found": "missing", "expected": digest})
        elif (found := sha256(file)) != digest:
            findings.append({"file": name, "found": found, "expected": digest})
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    findings += [{"file": name, "found": "a file the manifest doesn't list", "expected": "nothing"}
                 for name in sorted(present - set(listed))]
    return findings


def inspect(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself: domains, channels, parameters, recipe, provenance. Loads no weights."""
    from safetensors import safe_open

    folder = resolve(path)
    config = _config(folder)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        sizes = {name: int(np.prod(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
    return {"path": str(folder), "schema_version": CHECKPOINT_SCHEMA, "parameters": sum(sizes.values()),
            "core_parameters": sum(n for k, n in sizes.items() if k.startswith("levels.")),
            "domains": {name: {"channels": spec["channels"], "units": spec["units"],
                               "conditions": [*spec["vector_conditions"], *spec["lattice_conditions"]],
                               "identities": {k: len(v) for k, v in spec["identities"].items()}}
                        for name, spec in config["specs"].items()},
            "recipe": config["recipe"], "provenance": config["provenance"],
            "resumable": (folder / "training_state").is_dir()}


def load(path: str | Path) -> Predictor:
    """The predictor of a checkpoint, or of a run's selected one; every byte is held against the manifest first.

    Raises `InputError` if a file is missing or altered, or the schema is another.
    """
    folder = resolve(path)
    findings = verify(folder)
    if findings:
        first = findings[0]
        raise InputError(folder / first["file"], key="sha256", found=first["found"], expected=first["expected"],
                         fix="the checkpoint is damaged: copy it again, or take another step's")
    config = _config(folder)
    specs = {name: spec_of(raw) for name, raw in config["specs"].items()}
    operator = Operator(validate(OperatorConfig, config["operator"], where=folder / "config.json"), specs)
    operator.load_state_dict(_tensors(folder / "model.safetensors"))
    from safetensors.numpy import load_file

    arrays = load_file(folder / "adapters.safetensors")
    adapters = {}
    for name, state in config["adapters"].items():
        own = {k.partition(NAMESPACE)[2]: v for k, v in arrays.items() if k.partition(NAMESPACE)[0] == name}
        adapters[name] = registry.find("sciml.domains", name, where=folder / "config.json").restore(state, own)
    return Predictor(operator.eval(), adapters, config["recipe"], config["provenance"])


def load_training_state(folder: Path) -> TrainingState:
    state = folder / "training_state"
    if not state.is_dir():
        raise InputError(folder, key="training_state", found="nothing", expected="the state of a run in training",
                         fix="resume from checkpoints/step-*, or fine-tune from this checkpoint instead")
    return TrainingState(_tensors(state / "state.safetensors"), json.loads((state / "state.json").read_text()))


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(folder / "config.json", found=repr(error), expected="the configuration of a checkpoint",
                         fix="the checkpoint is damaged; take another one") from None


def spec_of(raw: Mapping[str, Any]) -> TokenSpec:
    """A TokenSpec from its JSON."""
    plain = dict(raw)
    plain["heads"] = {name: HeadSpec(**{**head, "outputs": tuple(head["outputs"])})
                      for name, head in raw["heads"].items()}
    plain["identities"] = {name: tuple(members) for name, members in raw["identities"].items()}
    for name in ("channels", "lattice_conditions", "vector_conditions"):
        plain[name] = tuple(raw[name])
    plain["context"] = None if raw["context"] is None else spec_of(raw["context"])
    return TokenSpec(**plain)


def model_card(predictor: Predictor) -> str:
    """Markdown: what the model is, what it was trained on, how to use it."""
    lines = [f"# {predictor.recipe.get('name', 'sciml checkpoint')}", "",
             f"A sciml operator with {count_parameters(predictor.operator):,} parameters.", ""]
    for name, spec in predictor.operator.specs.items():
        channels = ", ".join(f"{c} ({spec.units.get(c, 'no unit')})" for c in spec.channels)
        lines.append(f"- **{name}**: {channels}")
    stores = predictor.provenance.get("stores", {})
    lines += ["", "Trained on: " + (", ".join(f"{k} (split {v})" for k, v in stores.items()) or "nothing yet"), "",
              "    import sciml", '    predictor = sciml.load("this folder")',
              "    future = predictor.rollout(dataset, steps=100)", ""]
    return "\n".join(lines)
