"""A new channel starts as the known one that fits: `finetune.analogy`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import analogy, workflow
from pretrain.workflow import pretrain
from sciml import checkpoint, cli
from sciml.data.store import Store, StoreDraft, write_store
from sciml.evaluate import evaluate
from sciml.operator.named import key
from tests.e2e import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    folder = tmp_path_factory.mktemp("analogy")
    store = tiny.navier_stokes(folder / "a.zarr", frames=6)
    pretrain(tiny.recipe(store.url, steps=40, learning_rate=4e-3, validate_every=0), folder / "run")
    return folder / "run", store


def renamed(store: Store, folder: Path, name: str, *, beside: bool = False, noise: float = 0.0) -> Store:
    """The store with its vorticity under another name; `beside`: with both; noise: instead of the state."""
    meta, data = store.meta, store.dataset()
    states = {n: v for n, v in meta.variables.items() if n != "vorticity" or beside}
    data[name] = data["vorticity"]
    if noise:
        data[name] = data["vorticity"].copy(data=noise * np.random.default_rng(0).normal(size=data["vorticity"].shape))
    draft = StoreDraft.model_validate({
        **meta.model_dump(include=set(StoreDraft.model_fields)), "dataset": name,
        "variables": {**states, name: meta.variables["vorticity"]}})
    kept = data if beside else data.drop_vars("vorticity")
    return write_store(kept, draft, folder / f"{name}.zarr")


def one_step(predictor: object, store: Store) -> float:
    rows = evaluate(predictor, store, "validation", questions=["one_step"]).scores  # type: ignore[arg-type]
    return next(row.value for row in rows if row.metric == "relative_l2")


def test_a_known_quantity_under_a_new_name_is_predicted_as_before(trained: tuple[Path, Store], tmp_path: Path) -> None:
    run, store = trained
    other = renamed(store, tmp_path, "spin")
    predictor, _, _ = workflow.prepare(run, other.url, ())
    assert predictor.provenance[workflow.STARTED] == {"fields/spin": "fields/vorticity"}
    rows = predictor.operator.ports["fields"].stem.values.rows  # type: ignore[union-attr]
    assert torch.equal(rows[key("fields/spin")], rows[key("fields/vorticity")])  # type: ignore[index]
    assert one_step(predictor, other) == pytest.approx(one_step(checkpoint.load(run), store), rel=1e-4)


def test_where_no_analogy_holds_training_starts_at_the_baseline(trained: tuple[Path, Store], tmp_path: Path) -> None:
    """Noise has no next step: the head of the new channel stays zero, its stem rows are a known one's."""
    run, store = trained
    predictor, _, _ = workflow.prepare(run, renamed(store, tmp_path, "hiss", noise=1.0).url, ())
    port = predictor.operator.ports["fields"]
    assert not port.heads["state"].outputs.rows[key("fields/hiss")].any()  # type: ignore[index,union-attr]


def test_a_channel_beside_a_known_one_does_not_spoil_its_answer(trained: tuple[Path, Store], tmp_path: Path) -> None:
    """Loss of both together is at most that of the untouched start."""
    run, store = trained
    both = renamed(store, tmp_path, "echo", beside=True)
    predictor, recipe, visible = workflow.prepare(run, both.url, ())
    plain = checkpoint.load(run)
    workflow.extend(plain, visible, recipe)
    assert one_step(predictor, both) <= one_step(plain, both) * 1.0001


def test_the_command_says_what_a_new_channel_began_as(trained: tuple[Path, Store], tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    run, store = trained
    other = renamed(store, tmp_path, "swirl")
    assert cli.run(["finetune", str(run), "--data", other.url, "--run", str(tmp_path / "run"), "train.steps=2",
                    "train.validate_every=0"]) == 0
    assert "fields/swirl as fields/vorticity" in " ".join(capsys.readouterr().out.split())
    made = checkpoint.inspect(tmp_path / "run")["provenance"]
    assert made[workflow.STARTED] == {"fields/swirl": "fields/vorticity"}


def test_of_many_channels_fewer_samples_are_asked(trained: tuple[Path, Store], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers stay about as many as `TRIES`, however many channels there are."""
    run, store = trained
    asked: list[int] = []
    monkeypatch.setattr(analogy, "TRIES", 3)
    monkeypatch.setattr(analogy, "_loss", lambda *given: float(bool(asked.append(len(given[2])))))
    workflow.prepare(run, renamed(store, tmp_path, "eddy").url, ())
    assert set(asked) == {3}
