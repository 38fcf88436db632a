"""A checkpoint: a folder of safetensors and JSON, whole or not there at all; loading it runs no code from it.

    model.safetensors     operator weights, stable names     config.json     recipe, token specs, adapters, provenance
    adapters.safetensors  statistics and baselines           README.md       model card
    training_state/       only where training can go on      manifest.json   schema version and SHA-256 of all files
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from sciml.tokens import HeadSpec, Slots, TokenSpec

CHECKPOINT_SCHEMA = 1
NAMESPACE = "/"
FILES = ("model.safetensors", "adapters.safetensors", "config.json")


@dataclass(frozen=True)
class TrainingState:
    """Optimizer tensors and the rest (step, history) that going on exactly needs."""

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any]


def save(path: Path, predictor: Predictor, training: TrainingState | None = None) -> Path:
    """Write a checkpoint folder atomically: a sibling first, then one rename. An existing `path` is replaced whole.

    Whatever fails or is killed leaves the old one; if that happens between two renames, `recover` puts it back.
    """
    recover(path)
    temporary, old = (path.with_name(f".{path.name}.{what}-{os.getpid()}") for what in ("part", "old"))
    temporary.mkdir(parents=True)
    try:
        with _full_disk(path):
            _write(temporary, predictor, training)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return path


def recover(path: Path) -> None:
    """Clear away what a killed `save` of `path` left: the half-written sibling goes, one moved aside comes back."""
    for left in path.parent.glob(f".{path.name}.*-*"):
        if left.name.startswith(f".{path.name}.old-") and not path.exists():
            left.rename(path)
        else:
            shutil.rmtree(left)


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """safetensors reports a failed write with an error of its own; here it is the `OSError` that it was."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever a damaged or foreign file makes its reader raise, as an `InputError` that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(file, found=" ".join(f"{type(error).__name__}: {error}".split())[:200],
                         expected="a file as sciml writes it",
                         fix="the checkpoint is damaged: copy it again, or take another step's") from None


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
    path = folder / "manifest.json"
    with _reading(path):
        manifest = json.loads(path.read_text())
        version = manifest["schema_version"]
        files = {str(k): str(v) for k, v in manifest["files"].items()}
    if version != CHECKPOINT_SCHEMA:
        newer = isinstance(version, int) and version > CHECKPOINT_SCHEMA
        raise InputError(path, key="schema_version", found=version, expected=str(CHECKPOINT_SCHEMA),
                         fix="use the version of sciml that wrote it: pip install -U sciml" if newer else "train again")
    return {"schema_version": version, "files": files}


def verify(path: str | Path) -> list[dict[str, str]]:
    """One finding per file that is missing, altered, unknown or outside the folder; empty if all is whole."""
    folder = resolve(path)
    listed = manifest_of(folder)["files"]
    findings = [{"file": name, "found": "not in the manifest", "expected": "its sha256"}
                for name in FILES if name not in listed]
    for name, digest in listed.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            findings.append({"file": name, "found": "a path outside the checkpoint", "expected": "a file inside"})
        elif not file.is_file():
            findings.append({"file": name, "found": "missing", "expected": digest})
        elif (found := sha256(file)) != digest:
            findings.append({"file": name, "found": found, "expected": digest})
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {"manifest.json"}
    findings += [{"file": name, "found": "a file the manifest doesn't list", "expected": "nothing"}
                 for name in sorted(present - set(listed))]
    return findings


def check(folder: Path, *, fix: str = "the checkpoint is damaged: copy it again, or take another step's") -> None:
    """Raises `InputError` that names the first file that isn't as it was written."""
    for finding in verify(folder)[:1]:
        raise InputError(folder / finding["file"], key="sha256", found=finding["found"], expected=finding["expected"],
                         fix=fix)


def inspect(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself: domains, channels, parameters, recipe, provenance. Loads no weights."""
    from safetensors import safe_open

    folder = resolve(path)
    config = _config(folder)
    with _reading(folder / "model.safetensors"), safe_open(folder / "model.safetensors", framework="numpy") as file:
        sizes = {name: int(np.prod(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
    with _reading(folder / "config.json"):
        domains = {name: {"channels": spec["channels"], "units": spec["units"],
                          "conditions": [*spec["vector_conditions"], *spec["lattice_conditions"]],
                          "identities": {k: len(v) for k, v in spec["identities"].items()}}
                   for name, spec in config["specs"].items()}
        return {"path": str(folder), "schema_version": CHECKPOINT_SCHEMA, "parameters": sum(sizes.values()),
                "core_parameters": sum(n for k, n in sizes.items() if k.startswith("levels.")), "domains": domains,
                "recipe": config["recipe"], "provenance": config["provenance"],
                "resumable": (folder / "training_state").is_dir()}


def load(path: str | Path) -> Predictor:
    """The predictor of a checkpoint, or of a run's selected one; every byte is held against the manifest first.

    Raises `InputError` if a file is missing or altered, or the schema is another.
    """
    from safetensors.numpy import load_file

    folder = resolve(path)
    check(folder)
    config = _config(folder)
    with _reading(folder / "config.json"):
        specs = {name: spec_of(raw) for name, raw in config["specs"].items()}
        operator = Operator(validate(OperatorConfig, config["operator"], where=folder / "config.json"), specs)
    with _reading(folder / "model.safetensors"):
        operator.load_state_dict(_tensors(folder / "model.safetensors"))
    with _reading(folder / "adapters.safetensors"):
        arrays = load_file(folder / "adapters.safetensors")
    adapters = {}
    for name, state in config["adapters"].items():
        own = {k.partition(NAMESPACE)[2]: v for k, v in arrays.items() if k.partition(NAMESPACE)[0] == name}
        make = registry.find("sciml.domains", name, where=folder / "config.json")
        with _reading(folder / "adapters.safetensors"):
            adapters[name] = make.restore(state, own)
    return Predictor(operator.eval(), adapters, config["recipe"], config["provenance"])


def load_training_state(folder: Path) -> TrainingState:
    """What going on needs, of a checkpoint that `check` found whole."""
    state = folder / "training_state"
    if not state.is_dir():
        raise InputError(folder, key="training_state", found="nothing", expected="the state of a run in training",
                         fix="resume from checkpoints/step-*, or fine-tune from this checkpoint instead")
    with _reading(state):
        return TrainingState(_tensors(state / "state.safetensors"), json.loads((state / "state.json").read_text()))


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _config(folder: Path) -> dict[str, Any]:
    with _reading(folder / "config.json"):
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return {key: config[key] for key in ("operator", "specs", "adapters", "recipe", "provenance")}


def spec_of(raw: Mapping[str, Any]) -> TokenSpec:
    """A TokenSpec from its JSON."""
    plain = dict(raw)
    plain["heads"] = {name: HeadSpec(**{**head, "outputs": tuple(head["outputs"])})
                      for name, head in raw["heads"].items()}
    plain["identities"] = {name: tuple(members) for name, members in raw["identities"].items()}
    for name in ("channels", "lattice_conditions", "vector_conditions"):
        plain[name] = tuple(raw[name])
    slots = raw.get("slots")
    plain["slots"] = None if slots is None else Slots(**{**slots, "own": tuple(slots["own"])})
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
