"""A run with compiled blocks learns what an eager one learns, and its checkpoint is no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import sciml
from pretrain.workflow import pretrain
from sciml.data.store import Store
from tests.e2e.test_precision import losses, recipe


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_training_equals_eager_training(stores: tuple[Store, ...], tmp_path: Path, precision: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    for compiled in (False, True):
        plan = recipe(stores[0], ("radial", "axial"), precision, steps=10, compile=compiled)
        pretrain(plan, tmp_path / str(compiled))
    close = 1e-4 if precision == "float32" else 1e-2
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=close)
    eager, other = (sciml.load(tmp_path / name).operator.state_dict() for name in ("False", "True"))
    assert eager.keys() == other.keys()
    assert any((tmp_path / "cache").rglob("*.so")), "nothing was compiled"
