"""The precision policy: bfloat16 where it is faster, float32 where it isn't, float64 for references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.workflow import pretrain
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.kernels import attend as attention
from sciml.recipe import Recipe
from sciml.train import Progress
from tests.e2e import tiny


def recipe(store: Store, mixers: tuple[str, ...], precision: str, **train: Any) -> Recipe:
    raw = tiny.recipe(store.url, precision=precision, validate_every=30, checkpoint_every=100, **train)
    changed = raw.model_dump(mode="json")
    changed["operator"]["levels"][0]["mixers"] = list(mixers)
    return Recipe.model_validate(changed)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_every_precision_trains_to_about_the_same_loss(stores: tuple[Store, ...], tmp_path: Path, device: str,
                                                       precision: str) -> None:
    for name in ("float32", precision):
        pretrain(recipe(stores[0], ("axial", "local", "full"), name, steps=30, device=device), tmp_path / name)
    one, two = losses(tmp_path / "float32"), losses(tmp_path / precision)
    assert len(one) == len(two) == 30
    close = 5e-3 if precision == "bfloat16" else 2e-3
    assert two == pytest.approx(one, rel=close)
    assert two != one


@pytest.mark.parametrize("mixer", ["spectral", "radial"])
def test_bfloat16_with_mixers_that_transform(stores: tuple[Store, ...], tmp_path: Path, device: str,
                                             mixer: str) -> None:
    for name in ("float32", "bfloat16"):
        pretrain(recipe(stores[0], (mixer, "local"), name, steps=10, device=device), tmp_path / name)
    assert losses(tmp_path / "bfloat16") == pytest.approx(losses(tmp_path / "float32"), rel=5e-3)


def test_float64_weights_are_saved(stores: tuple[Store, ...], tmp_path: Path, device: str) -> None:
    from sciml.checkpoint import load_training_state

    pretrain(recipe(stores[0], ("axial",), "float64", steps=4, device=device), tmp_path / "run")
    state = load_training_state(tmp_path / "run" / "checkpoints" / "step-00000004")
    assert {v.dtype for k, v in state.tensors.items() if k.startswith(("weights/", "average/"))} == {torch.float64}


def test_complex_weights_have_no_float64(stores: tuple[Store, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spectral"):
        pretrain(recipe(stores[0], ("spectral",), "float64", steps=1), tmp_path / "run")


def test_a_run_goes_on_in_its_precision(stores: tuple[Store, ...], tmp_path: Path, device: str) -> None:
    """Stopped and gone on with in this process; the averaged weights come back to the device."""
    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Stopped

    for precision in ("bfloat16", "float64"):
        whole, halves = tmp_path / f"{precision}-whole", tmp_path / f"{precision}-halves"
        plan = recipe(stores[0], ("axial", "local"), precision, steps=8, device=device)
        plan = plan.model_copy(update={"train": plan.train.model_copy(update={"checkpoint_every": 2})})
        pretrain(plan, whole)
        with pytest.raises(Stopped):
            pretrain(plan, halves, listen=stop)
        pretrain(plan, halves)
        assert losses(halves) == losses(whole)


@pytest.mark.parametrize(("keys", "used"), [
    (attention.SHORT_ROW, torch.float32), (attention.SHORT_ROW + 1, torch.bfloat16)])
@pytest.mark.parametrize("plain", [False, True])
def test_short_rows_of_attention_stay_in_float32(keys: int, used: torch.dtype, plain: bool) -> None:
    linear = nn.Linear(8, 8)
    x = torch.randn(1, 2, keys, 8)
    with torch.autocast("cpu", torch.bfloat16):
        q = linear(x)
        assert q.dtype == torch.bfloat16
        y = attention.attend(q, q, q, second_order=plain)
        assert linear(y).dtype == torch.bfloat16
    assert y.dtype == used
    exact = attention.attend_plain(q.double(), q.double(), q.double())
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2 if used == torch.bfloat16 else 1e-5)


def test_without_autocast_nothing_is_cast() -> None:
    x = torch.randn(1, 2, 16, 8, dtype=torch.float64)
    assert attention.attend(x, x, x).dtype == torch.float64
