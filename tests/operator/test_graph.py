"""Points of a mesh through a latent lattice: laws of the graph stem and head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml import tokens
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.operator.scatter import corners_of, latent_of
from sciml.packing import collate
from sciml.tokens import Axis, Conditions, HeadSpec, Target, TokenBatch, TokenSpec

LENGTH = 0.2
CHANNELS = ("doc/u", "doc/v")
SPEC = TokenSpec("doc", CHANNELS, {"state": HeadSpec("graph", CHANNELS)}, lattice_conditions=("doc/force",),
                 vector_conditions=("doc/nu",), patch=2, patch_length=LENGTH, stem="graph")
CONFIG = OperatorConfig.model_validate({
    "levels": [{"width": 16, "depth": 1, "mixers": ["axial", "local"], "head_width": 8},
               {"width": 16, "depth": 1, "mixers": ["full"], "head_width": 8}], "stem_width": 8, "condition_width": 16})


@pytest.fixture(scope="module")
def operator() -> Operator:
    torch.manual_seed(0)
    made = Operator(CONFIG, {"doc": SPEC}).double()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def cloud(n: int, dims: int = 2, seed: int = 0, period: float | None = None) -> TokenBatch:
    rng = np.random.default_rng(seed)
    place, values = torch.from_numpy(rng.random((n, dims))), torch.from_numpy(rng.normal(size=(1, n, 2)))
    axis = Axis("point", "set", place[None], measure=torch.full((1, n), 1.0 / n, dtype=torch.float64),
                segment=torch.zeros(1, n, dtype=torch.long),
                period=None if period is None else torch.full((dims,), period, dtype=torch.float64))
    force = torch.from_numpy(rng.normal(size=(1, n)))
    return TokenBatch("doc", "doc", values, CHANNELS, (axis,),
                      conditions=Conditions({"doc/nu": torch.tensor([0.3], dtype=torch.float64)}, {"doc/force": force}))


def moved(batch: TokenBatch, **changes: Any) -> TokenBatch:
    return replace(batch, axes=(replace(batch.axes[0], **changes),))


def picked(batch: TokenBatch, index: Tensor) -> TokenBatch:
    axis, force = batch.axes[0], batch.conditions.lattice["doc/force"][:, index]
    own = replace(axis, coord=axis.coord[:, index], measure=axis.weights()[:, index],
                  segment=torch.zeros(1, len(index)).long())
    return replace(batch, values=batch.values[:, index], axes=(own,),
                   conditions=replace(batch.conditions, lattice={"doc/force": force}))


def answer(operator: Operator, batch: TokenBatch) -> Tensor:
    with torch.no_grad():
        found: Tensor = operator(batch)["state"]
    return found


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("period", [None, 1.0])
def test_an_answer_at_every_point(operator: Operator, dims: int, period: float | None) -> None:
    batch = cloud(40, dims, period=period)
    assert answer(operator, batch).shape == (1, 40, 2)
    pairs = corners_of(batch.axes[0], latent_of(batch.axes[0], LENGTH, 2))
    weights = torch.zeros(40, 1, dtype=torch.float64).index_add(0, pairs.point, pairs.hat)
    torch.testing.assert_close(weights, torch.ones_like(weights))


def test_the_order_of_points_says_nothing(operator: Operator) -> None:
    batch, order = cloud(30), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(answer(operator, picked(batch, order)), answer(operator, batch)[:, order])


def test_where_the_origin_is_says_nothing(operator: Operator) -> None:
    batch = cloud(30)
    torch.testing.assert_close(answer(operator, moved(batch, coord=batch.axes[0].coord + 7.3)), answer(operator, batch))


def test_a_whole_turn_around_a_periodic_box_says_nothing(operator: Operator) -> None:
    batch = cloud(30, period=1.0)
    turned = batch.axes[0].coord.clone()
    turned[0, :9, 0] += 1.0
    torch.testing.assert_close(answer(operator, moved(batch, coord=turned)), answer(operator, batch))


def test_packed_samples_are_each_alone(operator: Operator) -> None:
    """Lattices of a batch have one shape; these two have it alone as well."""
    first, second = cloud(30), cloud(45, seed=3)
    both = answer(operator, collate([first, second]))
    assert latent_of(first.axes[0], LENGTH, 2).counts == latent_of(second.axes[0], LENGTH, 2).counts
    torch.testing.assert_close(both[:, :30], answer(operator, first), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(both[:, 30:], answer(operator, second), rtol=1e-6, atol=1e-9)


def test_how_much_another_sample_says_is_not_heard(operator: Operator) -> None:
    """A node is faint beside those of its own sample, whatever is observed of the others in the batch."""
    first, second = cloud(30), cloud(45, seed=3)
    observed = torch.zeros(1, 45, 1, dtype=torch.bool)
    observed[:, :4] = True
    second = replace(second, observed=observed, values=second.values.masked_fill(~observed, 0.0))
    first = replace(first, observed=torch.ones(1, 30, 1, dtype=torch.bool))
    both = answer(operator, collate([first, second]))
    torch.testing.assert_close(both[:, :30], answer(operator, first), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(both[:, 30:], answer(operator, second), rtol=1e-6, atol=1e-9)


def test_a_query_changes_nothing_elsewhere(operator: Operator) -> None:
    """A point where nothing is observed is answered and doesn't speak."""
    batch = cloud(30)
    asked = collate([batch, cloud(1, seed=9)])
    inside = moved(asked, segment=torch.zeros(1, 31).long())
    observed = torch.ones(1, 31, 1, dtype=torch.bool)
    observed[:, -1] = False
    inside = replace(inside, observed=observed, num_segments=1, values=inside.values.masked_fill(~observed, 0.0),
                     conditions=replace(inside.conditions, vector=batch.conditions.vector))
    alone = replace(batch, observed=observed[:, :30])
    box = moved(alone, coord=alone.axes[0].coord)
    found = answer(operator, inside)
    torch.testing.assert_close(found[:, :30], answer(operator, box))
    assert bool((found[:, 30] != 0).any())


def test_a_point_counts_as_often_as_it_weighs(operator: Operator) -> None:
    """Points are quadrature points: two halves of one say what it says."""
    batch = cloud(30)
    twice = torch.cat([torch.arange(30), torch.arange(30)])
    doubled = picked(batch, twice)
    doubled = moved(doubled, measure=doubled.axes[0].weights() / 2)
    torch.testing.assert_close(answer(operator, doubled)[:, :30], answer(operator, batch))


def test_an_answer_is_continuous_where_a_point_changes_its_cell(operator: Operator) -> None:
    batch = cloud(30)
    latent = latent_of(batch.axes[0], LENGTH, 2)
    node = latent.origin[0] + 2 * latent.spacing
    found = []
    for shift in (-1e-9, 1e-9):
        place = batch.axes[0].coord.clone()
        inner = int(((place[0] - 0.5).abs().amax(1)).argmin())
        place[0, inner] = node + shift
        found.append(answer(operator, moved(batch, coord=place)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_the_same_weights_answer_on_a_grid(operator: Operator) -> None:
    line = torch.arange(8, dtype=torch.float64) / 8
    axes = tuple(tokens.space(name, line, period=1.0) for name in ("x", "y"))
    values = torch.randn(2, 8, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = TokenBatch("doc", "doc", values, CHANNELS, axes, num_segments=2, conditions=Conditions(
        {"doc/nu": torch.tensor([0.3, 0.3], dtype=torch.float64)}, {"doc/force": values[..., 0]}))
    assert answer(operator, grid).shape == (2, 8, 8, 2)


def test_gradients(operator: Operator) -> None:
    """Of the loss by places and values of the points, against differences."""
    batch = cloud(6)

    def loss(values: Tensor, coord: Tensor) -> Tensor:
        given = replace(moved(batch, coord=coord), values=values)
        target = Target(torch.ones_like(values), torch.ones(1, 1, 1).bool(), values, torch.ones_like(values))
        return (target.predict(operator(given)["state"]) ** 2).mean()

    coord = batch.axes[0].coord.clone()
    latent = latent_of(batch.axes[0], LENGTH, 2)
    relative = (coord[0] - latent.origin) / latent.spacing
    coord[0] = latent.origin + latent.spacing * (relative.floor() + relative.frac().clamp(0.2, 0.8))
    values = batch.values.clone()
    assert torch.autograd.gradcheck(lambda v: loss(v, coord), (values.requires_grad_(),), eps=1e-6, atol=1e-6)


def test_points_without_a_place_are_refused(operator: Operator) -> None:
    batch = cloud(5)
    with pytest.raises(InputError, match="found 0 coordinates"):
        operator(moved(batch, coord=batch.axes[0].coord[..., :0]))
