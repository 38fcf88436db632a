"""Chains: how far training goes on from its own answers before it is judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.workflow import new_predictor, pretrain
from sciml import registry
from sciml.adapter import DomainAdapter
from sciml.chains import CHAINS, Going, chain_of, cut, reach
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.evaluate import zero_outputs
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.recipe import Named, Recipe
from sciml.sampling import MicroBatches, Schedule
from sciml.tokens import Outputs, TokenBatch
from sciml.train import open_sources
from tests.e2e import tiny

NEEDED: dict[str, dict[str, Any]] = {"diverted": {"solver": "navier_stokes"}}
DRAWS: tuple[Any, Any] = (np.random.default_rng(0), np.random.default_rng(0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny.navier_stokes(tmp_path_factory.mktemp("chains") / "ns.zarr", name="ns")


def recipe(store: Store, chain: object = "direct", **train: Any) -> Recipe:
    plain = tiny.recipe(store.url, **train).model_dump(mode="json")
    plain["data"][0]["chain"] = chain
    plain["domains"] = {"fields": {**plain["domains"].get("fields", {}), "leads": [1, 2], "augment": []}}
    return Recipe.model_validate(plain)


@pytest.fixture(scope="module")
def predictor(store: Store) -> Predictor:
    """An operator that says something: heads start at zero."""
    made = new_predictor(recipe(store), [store])
    torch.manual_seed(0)
    for parameter in made.operator.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def links(store: Store, predictor: Predictor) -> Callable[..., tuple[TokenBatch, ...]]:
    def make(chain: Any) -> tuple[TokenBatch, ...]:
        adapter: Any = predictor.adapter("fields")
        windows = adapter.stretches(store, "train", reach(chain), spans=sorted({j - i for i, j in chain.links}))
        parts = [cut(windows.draw(i, *DRAWS), chain.links) for i in range(2)]
        return tuple(collate([adapter.encode(part) for part in link]) for link in zip(*parts))
    return make


def going(predictor: Predictor, answer: Callable[[TokenBatch], Outputs] | None = None, **options: Any) -> Going:
    adapter: DomainAdapter = predictor.adapter("fields")
    objective = registry.find("sciml.objectives", "mse")
    return Going(adapter, answer or (lambda batch: forward(adapter, predictor.operator, batch)), objective, **options)


def gradients(predictor: Predictor, losses: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(losses.mean(), list(predictor.operator.parameters()), allow_unused=True)
    return [slope for slope in found if slope is not None]


def made(name: str, **options: Any) -> Any:
    return chain_of(Named(name=name, options=options))


@pytest.mark.parametrize("name", registry.names(CHAINS))
def test_every_chain_judges_each_sample_and_has_a_gradient(predictor: Predictor, links: Any, name: str) -> None:
    chain = made(name, **NEEDED.get(name, {}))
    losses = chain.losses(links(chain), going(predictor))
    assert losses.shape == (2,)
    assert bool((losses > 0).all())
    assert any(bool((slope != 0).any()) for slope in gradients(predictor, losses))


def test_one_unrolled_step_is_direct(predictor: Predictor, links: Any) -> None:
    one, direct = made("unrolled", steps=1), made("direct")
    torch.testing.assert_close(one.losses(links(one), going(predictor)), direct.losses(links(direct), going(predictor)),
                               rtol=0, atol=0)


def test_unrolled_steps_are_those_of_a_rollout(store: Store, predictor: Predictor, links: Any) -> None:
    chain = made("unrolled", steps=3, discount=0.5)
    given = links(chain)
    adapter: Any = predictor.adapter("fields")
    rolled = [predictor.rollout(adapter.stretches(store, "train", 3).draw(i, *DRAWS), 3) for i in range(2)]
    scaling = adapter.datasets["ns"].states["vorticity"]
    expected = []
    for sample, frames in enumerate(rolled):
        answers = (frames["vorticity"].values - scaling.center) / scaling.scale
        truths = [link.targets["state"].value[sample, ..., 0].numpy() for link in given]
        each = [float(np.mean((answer - truth) ** 2)) for answer, truth in zip(answers, truths)]
        expected.append((each[0] + each[1] / 2 + each[2] / 4) / 1.75)
    with torch.no_grad():
        np.testing.assert_allclose(chain.losses(given, going(predictor)).numpy(), expected, rtol=2e-4)


def test_the_gradient_of_a_pushforward_is_that_of_its_last_step(predictor: Predictor, links: Any) -> None:
    chain = made("pushforward", steps=2)
    first, second = links(chain)
    on = going(predictor)
    with torch.no_grad():
        pushed = on.onward(first, on.forward(first), second)
    assert not torch.allclose(pushed.values, second.values)
    expected = gradients(predictor, on.objective(on.forward(pushed), pushed))
    for ours, theirs in zip(gradients(predictor, chain.losses((first, second), on)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_pushforward_with_a_solver_judges_its_last_step_by_it(predictor: Predictor, links: Any) -> None:
    chain = made("pushforward", steps=3, solver="navier_stokes")
    (start,) = links(chain)
    on = going(predictor)
    with torch.no_grad():
        first = on.onward(start, on.forward(start), start)
        pushed = on.told(on.onward(first, on.forward(first), first), start, chain.solver)
    expected = gradients(predictor, on.objective(on.forward(pushed), pushed))
    for ours, theirs in zip(gradients(predictor, chain.losses((start,), on)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("lost", [1e6, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["pushforward", "diverted"])
def test_a_state_that_the_model_lost_begins_anew(predictor: Predictor, links: Any, name: str, lost: float) -> None:
    """A solver would take for ever on it, or refuse it; the other samples go on as if nothing had been."""
    (start,) = links(made(name, steps=2, solver="navier_stokes"))
    asked: list[TokenBatch] = []

    def losing(batch: TokenBatch) -> Outputs:
        asked.append(batch)
        answer = 0.1 * torch.ones_like(batch.values)
        answer[0] = answer[0] if len(asked) > 1 else lost
        return Outputs({"state": answer})

    losses = made(name, steps=2, solver="navier_stokes").losses((start,), going(predictor, losing))
    assert len(asked) == 2
    assert torch.equal(asked[1].values[0], start.values[0])
    assert not torch.equal(asked[1].values[1], start.values[1])
    assert bool(torch.isfinite(losses[1]))
    truth = asked[1].targets["state"].value
    assert float((truth[0] - start.targets["state"].value[0]).norm() / truth[0].norm()) < 1e-3


def test_deeper_chains_are_drawn_as_seldom_as_told(predictor: Predictor) -> None:
    on = going(predictor, generator=torch.Generator().manual_seed(0))
    counts = np.bincount([on.drawn(3, 0.5) for _ in range(4000)], minlength=4)[1:]
    np.testing.assert_allclose(counts / 4000, [4 / 7, 2 / 7, 1 / 7], atol=0.03)
    assert {on.drawn(3, 0.0) for _ in range(50)} == {1}
    assert going(predictor).drawn(3, 0.5) == 3


def test_the_solver_itself_is_not_to_be_blamed_off_the_trajectory(predictor: Predictor, links: Any) -> None:
    """Started from a state that is none of the trajectory's, it misses that, and nothing of its own truth."""
    adapter: Any = predictor.adapter("fields")
    given = links(made("pushforward", steps=2))
    moved = tuple(adapter.restated(link, link.values + 0.5) for link in given)

    def solve(batch: TokenBatch) -> Outputs:
        target = batch.targets["state"]
        told = on.told(batch, batch, Named(name="navier_stokes")).targets["state"].value
        return Outputs({"state": (told - target.baseline) / target.scale})

    on = going(predictor, solve)
    own = made("pushforward", steps=2, solver="navier_stokes").losses(moved[:1], on)
    trajectory = made("pushforward", steps=2).losses(moved, on)
    assert float(own.max()) < 1e-8 < 1e-3 < float(trajectory.min())


def test_an_operator_that_says_nothing_is_consistent(predictor: Predictor, links: Any) -> None:
    """Persistence: a jump of two lead times is two jumps of one."""
    silent, given = going(predictor, zero_outputs), links(made("semigroup"))
    heavy, none = (made("semigroup", weight=w).losses(given, silent) for w in (1.0, 0.0))
    torch.testing.assert_close(heavy, none, rtol=0, atol=0)
    ours = going(predictor)
    assert bool((made("semigroup", weight=1.0).losses(given, ours) > made("semigroup", weight=0.0).losses(given, ours))
                .all())


def test_noise_is_drawn_in_training_alone(predictor: Predictor, links: Any) -> None:
    chain, clean = made("direct", noise=0.5), made("direct")
    given = links(chain)

    def losses(chain: Any, seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        found: Tensor = chain.losses(given, going(predictor, generator=generator)).detach()
        return found

    assert torch.equal(losses(chain, None), losses(clean, 1))
    assert torch.equal(losses(chain, 1), losses(chain, 1))
    assert not torch.equal(losses(chain, 1), losses(chain, 2))


def test_a_perturbed_state_is_asked_about_the_same_truth(predictor: Predictor, links: Any) -> None:
    """With a silent operator the loss of persistence grows by the variance of the noise: noise² in residual scales."""
    (batch,) = links(made("direct"))
    on = going(predictor, zero_outputs, generator=torch.Generator().manual_seed(0))
    moved = on.perturbed(batch, 0.5)
    assert torch.equal(moved.targets["state"].value, batch.targets["state"].value)
    added = ((moved.values - batch.values) / batch.targets["state"].scale).std()
    assert abs(float(added) - 0.5) < 0.05
    torch.testing.assert_close(moved.targets["state"].baseline, moved.values)


def test_scales_are_drawn_per_sample_and_for_chains_alone(predictor: Predictor, links: Any) -> None:
    given = links(made("direct"))
    on = going(predictor, generator=torch.Generator().manual_seed(0))
    factors = []
    for _ in range(200):
        moved = on.scaled(given[0], 1.5)
        ratio = (moved.values / given[0].values).flatten(1)
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=0)
        torch.testing.assert_close(moved.targets["state"].baseline, moved.values)
        factors += ratio[:, 0].log().tolist()
    drawn = np.asarray(factors) / np.log(1.5)
    assert np.abs(drawn).max() < 1 + 1e-3
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 3**-0.5], atol=0.08)
    assert torch.equal(going(predictor).scaled(given[0], 1.5).values, given[0].values), "validation isn't scaled"
    one, plain = made("pushforward", steps=1, solver="navier_stokes", scales=1.5), made("pushforward", steps=1)
    assert torch.equal(one.losses(given, on), plain.losses(given, on))


def test_a_scaled_state_has_a_truth_of_its_own(predictor: Predictor, links: Any) -> None:
    """The solver misses nothing of it, wherever it starts."""
    chain = made("pushforward", steps=2, solver="navier_stokes", scales=1.5, discount=1.0)
    given = links(chain)

    def solve(batch: TokenBatch) -> Outputs:
        target = batch.targets["state"]
        told = on.told(batch, batch, Named(name="navier_stokes")).targets["state"].value
        return Outputs({"state": (told - target.baseline) / target.scale})

    on = going(predictor, solve, generator=torch.Generator().manual_seed(0))
    assert max(float(chain.losses(given, on).max()) for _ in range(6)) < 1e-8


def test_a_curriculum_begins_with_one_step(predictor: Predictor, links: Any) -> None:
    grown, direct = made("unrolled", steps=3, curriculum=0.5), made("direct")
    given = links(grown)
    early = grown.losses(given, going(predictor, progress=0.0))
    torch.testing.assert_close(early, direct.losses(given[:1], going(predictor)), rtol=0, atol=0)
    late = grown.losses(given, going(predictor, progress=0.5))
    assert torch.equal(late, made("unrolled", steps=3).losses(given, going(predictor)))


@pytest.mark.parametrize(("chain", "message"), [
    ("unroled", r"found 'unroled'; expected one of: .*unrolled"),
    ({"unrolled": {"steps": 0}}, r"chain.unrolled.*steps: a whole number of at least 1"),
    ({"unrolled": {"depth": 2}}, r"chain.unrolled.*unexpected keyword argument 'depth'"),
    ({"diverted": {"solver": "burger"}}, r"chain.diverted.*found 'burger'; expected one of: .*burgers"),
    ({"pushforward": {"solver": "burger"}},
     r"^recipe, chain.pushforward \[sciml.solvers\]: found 'burger'; expected one of"),
    ({"pushforward": {"discount": 1.5}}, r"chain.pushforward.*discount: a number from 0 to 1"),
    ({"pushforward": {"scales": 0.5, "solver": "navier_stokes"}}, r"chain.pushforward.*scales: a number from 1 to 10"),
    ({"pushforward": {"scales": 1.5}}, r"chain.pushforward.*scales other than 1 need a solver"),
    ({"direct": {"noise": 3}}, r"chain.direct.*noise: a number from 0 to 1"),
    ({"unrolled": {"steps": 40}}, r"expected 40 equal steps"),
])
def test_a_wrong_chain_is_refused(store: Store, predictor: Predictor, chain: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_sources(recipe(store, chain), predictor, [store])


def test_a_run_that_can_not_start_claims_no_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 40 equal steps"):
        pretrain(recipe(store, {"unrolled": {"steps": 40}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_domain_without_stretches_says_so(tmp_path: Path) -> None:
    panel = tiny.panel(tmp_path)
    plain = tiny.recipe(panel.url).model_dump(mode="json")
    plain["data"][0]["chain"] = {"unrolled": {"steps": 2}}
    chosen = Recipe.model_validate(plain)
    with pytest.raises(InputError, match="series is not trained along its own steps"):
        open_sources(chosen, new_predictor(chosen, [panel]), [panel])


def test_micro_batches_of_a_chain_have_its_links(store: Store, predictor: Predictor) -> None:
    sources = open_sources(recipe(store, {"unrolled": {"steps": 2}}), predictor, [store])
    micro = MicroBatches(sources, Schedule.make(0, [1.0], 4), 0)[1]
    assert len(micro.links) == 2
    first, second = micro.links
    truth = first.targets["state"].value
    assert first.sources != second.sources or len(truth) == len(second.values)
    assert torch.equal(truth, second.values)


def test_training_along_a_chain_is_exactly_repeatable(store: Store, tmp_path: Path) -> None:
    chosen = recipe(store, {"unrolled": {"steps": 2, "noise": 0.1, "curriculum": 0.5}}, steps=4)
    states = []
    for name in ("a", "b"):
        pretrain(chosen, tmp_path / name)
        states.append((tmp_path / name / "train.jsonl").read_text())
    strip = [[line.split('"seconds"')[0] for line in text.splitlines()] for text in states]
    assert strip[0] == strip[1]


def test_a_part_without_samples_is_refused(store: Store, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(predictor.adapter("fields")), "open", lambda *args, **options: [])
    with pytest.raises(InputError, match=r"\[splits.train\]: found no sample; expected at least one of train"):
        open_sources(recipe(store), predictor, [store])


def test_every_sample_has_a_noise_of_its_own_on_whichever_rank(store: Store, predictor: Predictor) -> None:
    """Two ranks with one seed draw, sample by sample, what one rank draws that has all of them."""
    sources = open_sources(recipe(store, {"direct": {"noise": 0.5}}), predictor, [store])
    schedule = Schedule.make(0, [1.0], 4)

    def noise(rank: int, world: int) -> Tensor:
        (batch,) = MicroBatches(sources, schedule, 0, rank, world)[1].links
        on = going(predictor, generator=torch.Generator().manual_seed(5))
        moved = on.perturbed(batch, 0.5), on.perturbed(batch, 0.5)
        assert not torch.equal(moved[0].values, moved[1].values)
        return torch.cat([(again.values - batch.values) / batch.targets["state"].scale for again in moved], -1)

    whole, parts = noise(0, 1), [noise(rank, 2) for rank in range(2)]
    assert not torch.allclose(parts[0], parts[1], atol=0.1)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
