"""Checkpoints: what is saved comes back, all of it or nothing; `load` finds the selected one of a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sciml
from sciml import checkpoint
from sciml.checkpoint import TrainingState
from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.tokens import HeadSpec, TokenSpec

LEVEL = {"width": 8, "depth": 1, "mixers": ["axial", "spectral"], "head_width": 4}


def make(seed: int = 0) -> Predictor:
    """A small predictor with random weights, of one domain."""
    torch.manual_seed(seed)
    spec = TokenSpec(domain="fields", channels=("fields/u", "fields/p.x"), heads={
        "state": HeadSpec("lattice", ("fields/u",))}, vector_conditions=("lead_time",), identities={"a/b": ("x", "y")},
        patch=2, units={"fields/u": "m/s"}, context=TokenSpec("fields", ("fields/c",), {}))
    config = OperatorConfig.model_validate({"levels": [LEVEL], "stem_width": 4, "condition_width": 8})
    return Predictor(Operator(config, {"fields": spec}), {"fields": Fields.create({"patch": 2})},
                     {"name": "small", "seed": seed}, {"stores": {"waves": "0123"}})


def weights(predictor: Predictor) -> Mapping[str, torch.Tensor]:
    return predictor.operator.state_dict()


def assert_equal(one: Predictor, two: Predictor) -> None:
    assert weights(one).keys() == weights(two).keys()
    assert all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())
    assert one.operator.specs == two.operator.specs
    assert (one.recipe, one.provenance) == (two.recipe, two.provenance)
    assert {name: adapter.state()[0] for name, adapter in one.adapters.items()} == {
        name: adapter.state()[0] for name, adapter in two.adapters.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = make()
    checkpoint.save(tmp_path / "one", saved)
    assert_equal(sciml.load(str(tmp_path / "one")), saved)
    assert checkpoint.verify(tmp_path / "one") == []
    assert not sciml.load(str(tmp_path / "one")).operator.training


def test_saved_twice_is_the_same_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one", make())
    checkpoint.save(tmp_path / "two", checkpoint.load(tmp_path / "one"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_training_state_comes_back(tmp_path: Path) -> None:
    tensors = {"optimizer/a.0.step": torch.tensor(3.0), "weights/w": torch.randn(2, 3, dtype=torch.float64)}
    checkpoint.save(tmp_path / "one", make(), TrainingState(tensors, {"step": 3, "best": float("inf")}))
    state = checkpoint.load_training_state(tmp_path / "one")
    assert state.info == {"step": 3, "best": float("inf")}
    assert state.tensors.keys() == tensors.keys()
    assert all(torch.equal(state.tensors[name], value) for name, value in tensors.items())
    checkpoint.save(tmp_path / "two", make())
    with pytest.raises(InputError, match="training_state"):
        checkpoint.load_training_state(tmp_path / "two")


def test_an_existing_one_is_replaced_whole(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one", make(0), TrainingState({"w": torch.ones(1)}, {}))
    checkpoint.save(tmp_path / "one", make(1))
    assert_equal(checkpoint.load(tmp_path / "one"), make(1))
    assert not (tmp_path / "one" / "training_state").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@dataclass
class Failing:
    """Calls through, and raises at the n-th call."""

    function: Any
    error: BaseException
    at: int
    calls: list[int] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(1)
        if len(self.calls) == self.at:
            raise self.error
        return self.function(*args, **kwargs)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full disk", "interrupt"])
@pytest.mark.parametrize(("owner", "name", "count"), [
    (os, "fsync", 5), (Path, "write_text", 3), (Path, "rename", 2), (checkpoint, "sha256", 4)])
def test_a_failure_leaves_the_old_one(owner: Any, name: str, count: int, error: BaseException, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "one", make(0))
    before = contents(tmp_path / "one")
    for at in range(1, count + 1):
        failing = Failing(getattr(owner, name), error, at)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, call=failing, **kwargs: call(*args, **kwargs))
            with pytest.raises(type(error)):
                checkpoint.save(tmp_path / "one", make(1))
        assert len(failing.calls) >= at
        assert contents(tmp_path / "one") == before
        assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_full_disk_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors wraps the system's error in one of its own; the caller gets the `OSError`."""
    from safetensors import SafetensorError
    from safetensors import torch as safetensors_torch

    checkpoint.save(tmp_path / "one", make(0))
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(safetensors_torch, "save_file", Failing(None, error, 1))
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(tmp_path / "one", make(1))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "one"))
    assert_equal(checkpoint.load(tmp_path / "one"), make(0))


def test_what_a_killed_save_left_is_put_right(tmp_path: Path) -> None:
    """Killed between the two renames: the old one stands aside, the new one is whole under its temporary name."""
    checkpoint.save(tmp_path / "one", make(0))
    (tmp_path / "one").rename(tmp_path / ".one.old-77")
    checkpoint.save(tmp_path / "two", make(1)).rename(tmp_path / ".one.part-77")
    with pytest.raises(InputError, match="nothing there"):
        checkpoint.load(tmp_path / "one")
    checkpoint.recover(tmp_path / "one")
    assert_equal(checkpoint.load(tmp_path / "one"), make(0))
    (tmp_path / ".one.part-78").mkdir()
    checkpoint.save(tmp_path / "one", make(2))
    assert_equal(checkpoint.load(tmp_path / "one"), make(2))
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_run_means_its_selected_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder / "step-00000010", make(1))
    checkpoint.save(folder / "step-00000020", make(2))
    assert checkpoint.resolve(tmp_path) == folder / "step-00000020"
    checkpoint.save(folder / "best", make(3))
    assert checkpoint.resolve(tmp_path) == folder / "best"
    assert_equal(checkpoint.load(tmp_path), make(3))
    with pytest.raises(InputError, match="sciml pretrain"):
        checkpoint.resolve(tmp_path / "nowhere")


def test_inspect_tells_what_is_inside(tmp_path: Path) -> None:
    predictor = make()
    checkpoint.save(tmp_path / "one", predictor)
    found = checkpoint.inspect(tmp_path / "one")
    assert found["parameters"] == sum(p.numel() for p in predictor.operator.parameters())
    assert found["domains"]["fields"]["channels"] == ["fields/u", "fields/p.x"]
    assert found["domains"]["fields"]["identities"] == {"a/b": 2}
    assert found["provenance"]["stores"] == {"waves": "0123"}
    assert not found["resumable"]
    card = (tmp_path / "one" / "README.md").read_text()
    assert "fields/u (m/s)" in card
    assert "waves (split 0123)" in card


def test_arrays_of_adapters_come_back(tmp_path: Path) -> None:
    """Bit for bit, and to the right adapter."""
    predictor = make()
    adapter = predictor.adapters["fields"]
    assert isinstance(adapter, Fields)
    curve = np.array([[0.5, 1.0], [0.1, 0.3]])
    known = Fields(adapter.config, {}, adapter.baseline.add("waves", {"u": curve}, "0123"))
    checkpoint.save(tmp_path / "one", Predictor(predictor.operator, {"fields": known}))
    config, arrays = checkpoint.load(tmp_path / "one").adapters["fields"].state()
    assert config == known.state()[0]
    assert arrays.keys() == known.state()[1].keys()
    assert all(np.array_equal(value, known.state()[1][name]) for name, value in arrays.items())
