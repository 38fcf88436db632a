"""Checkpoints that were damaged, half copied or made to do harm: each is refused by name, and nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sciml import checkpoint
from sciml.cli import run
from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.tokens import HeadSpec, TokenSpec

LEVEL = {"width": 8, "depth": 1, "mixers": ["axial"], "head_width": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = TokenSpec("fields", ("fields/u",), {"state": HeadSpec("lattice", ("fields/u",))}, patch=2)
    config = OperatorConfig.model_validate({"levels": [LEVEL], "stem_width": 4, "condition_width": 8})
    predictor = Predictor(Operator(config, {"fields": spec}), {"fields": Fields.create({})}, {"name": "small"}, {})
    training = checkpoint.TrainingState({"weights/w": torch.ones(3)}, {"step": 1})
    return checkpoint.save(tmp_path / "checkpoint", predictor, training)


def seal(folder: Path) -> None:
    """A manifest that agrees with whatever the folder holds now, as an attacker would write it."""
    files = {p.relative_to(folder).as_posix(): checkpoint.sha256(p) for p in folder.rglob("*")
             if p.is_file() and p.name != "manifest.json"}
    manifest = {"schema_version": checkpoint.CHECKPOINT_SCHEMA, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


FILES = ("model.safetensors", "adapters.safetensors", "config.json", "README.md", "training_state/state.safetensors",
         "training_state/state.json")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_the_file_named(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(path)
    assert caught.value.key == "sha256"
    assert run(["checkpoint", "verify", str(folder)]) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match="missing") as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(folder / name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(folder / name)


def test_a_file_too_many_is_named(folder: Path) -> None:
    (folder / "training_state" / "extra.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="doesn't list") as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(folder / "training_state" / "extra.bin")


def test_no_manifest_is_no_checkpoint(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest"):
        checkpoint.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": 1, "files": [1]}',
                                  "\x00\xff", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin1")
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(folder / "manifest.json")


@pytest.mark.parametrize("name", ["model.safetensors", "adapters.safetensors", "config.json"])
def test_a_manifest_that_leaves_out_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    seal(folder)
    with pytest.raises(InputError, match="not in the manifest") as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(folder / name)


@pytest.mark.parametrize(("version", "fix"), [(2, "pip install -U"), ("1", "train again"), (None, "train again")])
def test_another_schema_is_refused_with_a_fix(folder: Path, version: Any, fix: str) -> None:
    edit(folder / "manifest.json", lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(InputError, match=fix) as caught:
        checkpoint.load(folder)
    assert caught.value.key == "schema_version"


@pytest.mark.parametrize("name", ["../secret", "training_state/../../secret", "/etc/hostname"])
def test_a_manifest_that_points_outside_is_refused(folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    secret.write_text("secret")
    target = (folder / name).resolve()
    edit(folder / "manifest.json", lambda manifest: manifest["files"].update({name: checkpoint.sha256(target)}))
    with pytest.raises(InputError, match="outside"):
        checkpoint.load(folder)


def test_a_link_that_points_outside_is_refused(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)
    with pytest.raises(InputError, match="outside") as caught:
        checkpoint.load(folder)
    assert caught.value.where == str(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "adapters.safetensors", "training_state/state.safetensors",
                                  "config.json", "pytorch_model.bin", "training_state/optimizer.pt"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_never_unpickled(folder: Path, name: str, writer: str) -> None:
    target = folder.parent / "pwned"
    if writer == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save(Bomb(target), folder / name)
    seal(folder)
    replaced = name in FILES and not name.startswith("training_state")
    if replaced:
        with pytest.raises(InputError) as caught:
            checkpoint.load(folder)
        assert caught.value.where == str(folder / name)
    else:
        checkpoint.load(folder)
    if name == "training_state/state.safetensors":
        with pytest.raises(InputError, match="training_state"):
            checkpoint.load_training_state(folder)
    assert run(["checkpoint", "inspect", str(folder)]) == (1 if name in ("model.safetensors", "config.json") else 0)
    assert not target.exists()


def wrong_shape(config: Any) -> None:
    config["operator"]["levels"][0]["width"] = 16


def unknown_mixer(config: Any) -> None:
    config["operator"]["levels"][0]["mixers"] = ["os.system"]


def unknown_domain(config: Any) -> None:
    config["adapters"]["../../evil"] = config["adapters"].pop("fields")


def unknown_stem(config: Any) -> None:
    config["operator"]["stem"] = "subprocess"


def no_specs(config: Any) -> None:
    del config["specs"]


def odd_spec(config: Any) -> None:
    config["specs"]["fields"] = {"channels": 3}


def odd_adapter(config: Any) -> None:
    config["adapters"]["fields"] = {"config": {"patch": "many"}}


@pytest.mark.parametrize("change", [wrong_shape, unknown_mixer, unknown_domain, unknown_stem, no_specs, odd_spec,
                                    odd_adapter])
def test_a_config_that_does_not_fit_is_refused(folder: Path, change: Callable[[Any], None]) -> None:
    edit(folder / "config.json", change)
    seal(folder)
    with pytest.raises(InputError):
        checkpoint.load(folder)
