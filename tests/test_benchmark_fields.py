"""The harness of the fields benchmark. No accuracy is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.workflow import new_predictor
from sciml.cli.bench import load_script
from sciml.recipe import Named
from tests.e2e import tiny

HERE = Path(__file__).parents[1] / "benchmarks"


def test_looking_at_averaged_weights_leaves_training_where_it_was(tmp_path: Path) -> None:
    """A curve of validation errors mustn't change what it is a curve of."""
    store = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=3)
    recipe = tiny.recipe(store.url, steps=1)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"ema": 0.9})})
    common, peers = (load_script(HERE / f"{name}.py") for name in ("common", "fields_peers"))
    trainer: Any = common.Trainer("sciml", new_predictor(recipe, [store]), store, recipe, recipe.train, 1, 1.0)
    operator = trainer.predictor.operator
    silent = peers.validation(trainer, 2)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.1
    own = {name: value.clone() for name, value in operator.state_dict().items()}
    assert peers.validation(trainer, 2) == pytest.approx(silent)
    assert all(torch.equal(value, own[name]) for name, value in operator.state_dict().items())


def test_a_peer_is_trained_on_single_steps_and_one_on_the_chain_of_the_recipe(tmp_path: Path) -> None:
    """Ours and `fno_chained` are led by their own answers, the other peers are trained as they are published."""
    peers = load_script(HERE / "fields_peers.py")
    store = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=4)
    recipe = tiny.recipe(store.url, steps=1)
    assert peers.kinds_for(recipe) == peers.KINDS
    entry = recipe.data[0].model_copy(update={"chain": Named(name="pushforward", options={"steps": 2})})
    recipe = recipe.model_copy(update={"data": (entry,)})
    assert peers.kinds_for(recipe) == (*peers.KINDS, peers.CHAINED)
    links = {kind: len(next(peers.trainer(kind, (1e-3, 2), recipe, store, 1.0).batches))
             for kind in ("sciml", "fno", peers.CHAINED)}
    assert links == {"sciml": 2, "fno": 1, peers.CHAINED: 2}


def test_a_model_on_a_chain_learns_from_the_state_that_it_led_to(tmp_path: Path) -> None:
    """Of `pushforward` the last step alone is judged: its state isn't the true one, and the weights move."""
    common = load_script(HERE / "common.py")
    store = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=4)
    recipe = tiny.recipe(store.url, steps=1)
    entry = recipe.data[0].model_copy(update={"chain": Named(name="pushforward", options={"steps": 3})})
    recipe = recipe.model_copy(update={"data": (entry,)})
    trainer: Any = common.Trainer("sciml", new_predictor(recipe, [store]), store, recipe, recipe.train, 1, 30.0)
    seen: list[torch.Tensor] = []
    judge = trainer.objective

    def objective(outputs: Any, batch: Any) -> torch.Tensor:
        seen.append(batch.values)
        loss: torch.Tensor = judge(outputs, batch)
        return loss

    trainer.objective = objective
    links, own = [], trainer.batches

    def noted() -> Any:
        for each in own:
            links.append(each)
            yield each

    trainer.batches = noted()
    while trainer.step < 6:
        trainer.advance(0.01)
    assert len(seen) == 6  # one answer of each chain is judged
    true = [any(torch.equal(values, link.values) for link in each) for each, values in zip(links, seen)]
    assert any(true)  # where one step was drawn
    assert not all(true)


def test_weights_are_kept_by_what_of_a_recipe_reaches_them(tmp_path: Path) -> None:
    """Our operator is no matter of a peer's, the chain no matter of a peer on single steps."""
    peers = load_script(HERE / "fields_peers.py")
    store = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=4)
    recipe = tiny.recipe(store.url, steps=1)
    kinds = ("sciml", "fno", peers.CHAINED)

    def changed(other: Any) -> set[str]:
        one, two = (peers.kept_in("case", each, store, 1.0) for each in (recipe, other))
        return {kind for kind in kinds if one.name(kind) != two.name(kind)}

    assert changed(recipe.model_copy(update={"name": "other", "seed": 1})) == set()
    assert changed(recipe.model_copy(update={"operator": {**recipe.operator, "norm": "sample"}})) == {"sciml"}
    told = {**recipe.domains, "fields": {**recipe.domains["fields"], "spectral": 0.3, "detail": True}}
    assert changed(recipe.model_copy(update={"domains": told})) == {"sciml"}
    told = {**recipe.domains, "fields": {**recipe.domains["fields"], "augment": ["flip"]}}
    assert changed(recipe.model_copy(update={"domains": told})) == set(kinds)
    for name, value in (("warmup", 0.5), ("ema", 0.5)):  # ours alone is averaged
        other = recipe.model_copy(update={"train": recipe.train.model_copy(update={name: value})})
        assert changed(other) == (set(kinds) if name == "warmup" else {"sciml"})
    entry = recipe.data[0].model_copy(update={"chain": Named(name="pushforward", options={"steps": 2})})
    assert changed(recipe.model_copy(update={"data": (entry,)})) == {"sciml", peers.CHAINED}


def test_settings_are_chosen_once_for_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = load_script(HERE / "fields_peers.py")
    monkeypatch.setattr(peers, "RUNS", tmp_path / "runs")
    store = tiny.navier_stokes(tmp_path / "ns.zarr", trajectories=3, frames=4)
    asked: list[tuple[str, ...]] = []

    def choose(kinds: Any) -> Any:
        asked.append(tuple(kinds))
        return dict.fromkeys(kinds, (1e-3, len(asked)))

    kept = peers.kept_in("case", tiny.recipe(store.url, steps=1), store, 1.0)
    assert kept.settings(("sciml", "fno"), choose) == {"sciml": (1e-3, 1), "fno": (1e-3, 1)}
    assert kept.settings(("sciml", "fno", "unet"), choose) == {"sciml": (1e-3, 1), "fno": (1e-3, 1), "unet": (1e-3, 2)}
    assert asked == [("sciml", "fno"), ("unet",)]
