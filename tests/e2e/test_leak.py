"""Reading the test split in training or selection raises, through the workflows that users call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.workflow import finetune
from pretrain.workflow import pretrain
from sciml.data.store import Store, open_store
from sciml.domains.fields.adapter import Fields
from sciml.domains.series.adapter import Series
from sciml.errors import InputError
from tests.e2e import tiny


def draws(adapter: Any, store: Store, split: Any) -> None:
    windows = adapter.open(store, split)
    windows.draw(len(windows) - 1, *[np.random.default_rng(0)] * 2)


def fits_on_test(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Callable[..., Any] = domain.fit

    def fit(self: Any, store: Store) -> Any:
        fitted = honest(self, store)
        draws(fitted, store, "test")
        return fitted

    monkeypatch.setattr(domain, "fit", fit)


def selects_on_test(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Callable[..., Any] = domain.open

    def opened(self: Any, store: Store, split: Any, *, train: bool = False) -> Any:
        return honest(self, store, "test" if split == "validation" else split, train=train)

    monkeypatch.setattr(domain, "open", opened)


def looks_ahead(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation windows whose truth is as far ahead as the store goes."""
    honest: Callable[..., Any] = domain.open

    def opened(self: Any, store: Store, split: Any, *, train: bool = False) -> Any:
        windows = honest(self, store, split, train=train)
        if split == "validation":
            block = windows.blocks[0]
            object.__setattr__(windows, "blocks", (block.model_copy(update={"stop": block.stop + 1}),))
        return windows

    monkeypatch.setattr(domain, "open", opened)


@pytest.mark.parametrize(("domain", "which", "cheats"), [
    (Fields, 0, fits_on_test), (Series, 2, fits_on_test), (Fields, 0, selects_on_test), (Series, 2, selects_on_test),
    (Series, 2, looks_ahead)])
def test_a_cheat_is_refused(domain: Any, which: int, cheats: Callable[..., None], stores: tuple[Store, ...],
                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheats(domain, monkeypatch)
    with pytest.raises(InputError, match="of the test split"):
        pretrain(tiny.recipe(stores[which].url, steps=1, micro_batches=1), tmp_path / "run")


def test_fine_tuning_is_guarded_and_evaluation_is_not(stores: tuple[Store, ...], trained: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from sciml.checkpoint import load

    draws(load(trained).adapter("series"), open_store(stores[2].url), "test")
    fits_on_test(Series, monkeypatch)
    with pytest.raises(InputError, match="of the test split"):
        finetune(trained, stores[2].url, tmp_path / "run", assignments=["train.steps=1"])
