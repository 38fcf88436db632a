"""The population stem and what reads members and behaviour back from its slots."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sciml import tokens
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.tokens import Conditions, HeadSpec, Slots, TokenBatch, TokenSpec

UNITS = tuple(f"u{i}" for i in range(5))
CONFIG = OperatorConfig.model_validate({
    "stem_width": 8, "condition_width": 8, "levels": [{"width": 16, "depth": 2, "head_width": 8}]})


def spec(slots: int = 2, units: tuple[str, ...] = UNITS, patch: int = 1) -> TokenSpec:
    return TokenSpec(
        "crowd", ("crowd/count",), {"rate": HeadSpec("members", ("crowd/count",), link="log"),
                                "behaviour": HeadSpec("along_time", ("crowd/vx", "crowd/vy"))},
        lattice_conditions=("drift", "light"), identities={"a/unit": units}, stem="population",
        slots=Slots("unit", slots, ("drift",)), patch=patch)


def batch(num_units: int = 5, steps: int = 7, causal: bool = True, order: torch.Tensor | None = None) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, num_units, steps, 1, generator=generator)
    drift, light = (torch.rand(2, n, steps, generator=generator) for n in (num_units, 1))
    ids = torch.arange(num_units) if order is None else order
    values, drift = values[:, ids], drift[:, ids]
    observed = torch.ones_like(values, dtype=torch.bool)
    observed[:, ids == 1, 3] = False
    axes = (tokens.identity("unit", ids, "a/unit"), tokens.time("time", torch.arange(steps) / 4.0, causal=causal))
    return TokenBatch("crowd", "a", values, ("crowd/count",), axes, observed=observed, num_segments=2,
                      conditions=Conditions(lattice={"drift": drift, "light": light}))


def make(slots: int = 2, patch: int = 1) -> Operator:
    torch.manual_seed(1)
    operator = Operator(CONFIG, {"crowd": spec(slots, patch=patch)})
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return operator.eval()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_outputs_have_the_cells_of_units_and_of_time(patch: int) -> None:
    outputs = make(patch=patch)(batch(causal=False))
    assert outputs["rate"].shape == (2, 5, 7, 1)
    assert outputs["behaviour"].shape == (2, 1, 7, 2)


def test_a_permutation_of_the_units_permutes_the_rates_and_leaves_the_behaviour() -> None:
    operator, order = make(), torch.tensor([3, 0, 4, 1, 2])
    one, two = operator(batch()), operator(batch(order=order))
    torch.testing.assert_close(one["rate"][:, order], two["rate"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one["behaviour"], two["behaviour"], atol=1e-5, rtol=1e-5)


def test_the_past_does_not_see_the_future() -> None:
    operator, given = make(), batch()
    later = replace(given, values=torch.cat([given.values[:, :, :4], given.values[:, :, 4:] + 1], 2))
    one, two = operator(given), operator(later)
    assert torch.equal(one["rate"][:, :, :4], two["rate"][:, :, :4])
    assert not torch.equal(one["rate"][:, :, 4:], two["rate"][:, :, 4:])


def test_the_cost_in_tokens_is_that_of_the_slots() -> None:
    operator = make(slots=3)
    axes = operator.ports["crowd"].stem.axes(batch().axes, (1, 1))
    assert [axis.size for axis in axes] == [3, 7]


def test_new_units_get_rows_and_nothing_else_changes() -> None:
    operator = make()
    before = {name: p.detach().clone() for name, p in operator.named_parameters()}
    seen = operator(batch())
    operator.extend(spec(units=(*UNITS, "u5")))
    torch.testing.assert_close(operator(batch())["rate"], seen["rate"], atol=0, rtol=0)
    changed = {n for n, p in operator.named_parameters() if p.shape != before[n].shape}
    assert changed
    assert all(".stem.members." in n or ".heads.rate.rows." in n for n in changed)
    assert operator(batch(6))["rate"].shape[1] == 6


def test_members_start_at_the_baseline() -> None:
    operator = Operator(CONFIG, {"crowd": spec()})
    assert not operator(batch())["rate"].detach().any()
    assert not operator(batch())["behaviour"].detach().any()
