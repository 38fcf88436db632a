"""The objective of populations: floors of 0, known values, gradients, what is masked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import tokens
from sciml.domains.spikes.dispersion import nb_log_likelihood
from sciml.losses import poisson
from sciml.objectives.population import LEAST, cross_entropy, negative_binomial, neighbourhoods, objective
from sciml.tokens import Outputs, Target, TokenBatch


def batch(**targets: Target) -> TokenBatch:
    axes = (tokens.identity("unit", torch.arange(2), "a/unit"), tokens.time("time", torch.arange(3.0)))
    return TokenBatch("spikes", "a", torch.zeros(2, 2, 3, 1), ("spikes/count",), axes, targets=targets, num_segments=2)


def target(value: torch.Tensor, mask: torch.Tensor | None = None) -> Target:
    mask = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
    return Target(value, mask, torch.zeros_like(value), torch.ones_like(value))


def test_terms_of_several_heads_add_up() -> None:
    count, behaviour = torch.ones(2, 2, 3, 1), torch.ones(2, 1, 3, 2)
    both = batch(next=target(count), behaviour=target(behaviour))
    outputs = Outputs({"next": torch.ones(2, 2, 3, 1), "behaviour": torch.zeros(2, 1, 3, 2)})
    assert objective(outputs, both).tolist() == pytest.approx([math.e - 1 - 1 + 1.0] * 2)
    assert objective(Outputs({"next": torch.zeros(2, 2, 3, 1), "behaviour": behaviour}), both).tolist() == [0.0, 0.0]


def test_traces_are_held_to_squared_error() -> None:
    value = torch.randn(2, 2, 3, 1)
    found = objective(Outputs({"next_trace": value + 2}), batch(next_trace=target(value)))
    torch.testing.assert_close(found, torch.full((2,), 4.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_cross_entropy_is_torchs_and_at_least_that_of_the_shares(seed: int, classes: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(2, 1, 4, classes, dtype=torch.float64, requires_grad=True)
    truth = torch.randint(classes, (2, 1, 4))
    shares = torch.nn.functional.one_hot(truth, classes).double()
    found = cross_entropy(logits, shares, torch.ones_like(shares, dtype=torch.bool))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, -2), truth.flatten(), reduction="none").view(2, -1)
    torch.testing.assert_close(found, expected.mean(1))
    soft = torch.rand_like(shares).softmax(-1)
    assert (cross_entropy(logits, soft, torch.ones_like(shares, dtype=torch.bool)) >= 0).all()
    perfect = cross_entropy(soft.log() + 3.0, soft, torch.ones_like(shares, dtype=torch.bool))
    torch.testing.assert_close(perfect, torch.zeros_like(perfect), atol=1e-12, rtol=0)


def test_classes_that_are_masked_have_no_probability_and_cells_no_weight() -> None:
    shares = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]])
    mask = torch.tensor([[[[True, True, False], [False, False, False]]]])
    logits = torch.zeros(1, 1, 2, 3, requires_grad=True)
    loss = cross_entropy(logits, shares, mask)
    assert loss.item() == pytest.approx(math.log(2))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[..., 1, :].tolist() == [[[0.0] * 3]]
    assert logits.grad[0, 0, 0].tolist() == pytest.approx([-0.5, 0.5, 0.0])
    assert cross_entropy(logits, shares, torch.zeros_like(mask)).tolist() == [0.0]


def test_neighbourhoods_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(1, 1, 5, 3, dtype=torch.float64), torch.randn(1, 1, 5, 3, dtype=torch.float64)
    mask = torch.ones_like(y, dtype=torch.bool)
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        p, q = (torch.softmax(torch.stack([-(x[0, 0, i] - x[0, 0, j]).square().sum() / 2 for j in others]), 0)
                for x in (y, z))
        total += float((p * (p / q).log()).sum())
    assert neighbourhoods(z, y, mask).item() == pytest.approx(total / 5)


def test_neighbourhoods_don_t_care_where_the_embedding_lies_and_ignore_unknown_cells() -> None:
    torch.manual_seed(1)
    y = torch.randn(2, 1, 6, 3, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[1, 0, 2:] = False
    moved = (y @ turn + 4).requires_grad_()
    found = neighbourhoods(moved, torch.where(mask, y, 99.0), mask)
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64), atol=1e-10, rtol=0)
    wrong = torch.randn(y.shape, dtype=torch.float64).requires_grad_()
    neighbourhoods(wrong, y, mask).sum().backward()
    assert wrong.grad is not None
    assert not wrong.grad[1, 0, 2:].any()
    assert wrong.grad[0].abs().min() > 0
    none = neighbourhoods(wrong, y, torch.zeros_like(mask))
    assert none.tolist() == [0.0, 0.0]
    assert torch.autograd.gradcheck(lambda z: neighbourhoods(z, y, mask), wrong)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-9, 3))
def test_negative_binomial_is_the_likelihood_and_poissons_in_the_limit(seed: int, log_dispersion: float) -> None:
    rng = np.random.default_rng(seed)
    y, log_rate = torch.from_numpy(rng.poisson(1.5, (1, 40)).astype(float)), torch.from_numpy(rng.normal(size=(1, 40)))
    mask = torch.from_numpy(rng.random((1, 40)) < 0.7)
    found = negative_binomial(log_rate, torch.full_like(y, log_dispersion), y, mask)
    seen = y.masked_fill(~mask, torch.nan)[0, :, None].numpy()
    likelihood = nb_log_likelihood(log_rate[0].exp()[:, None], math.exp(log_dispersion), seen)[0]
    best = (torch.xlogy(y, y) - y - torch.lgamma(y + 1))[mask].sum()
    assert float(found) == pytest.approx((float(best) - likelihood) / float(mask.sum()), abs=1e-6)
    limit = negative_binomial(log_rate, torch.full_like(y, -30.0), y, mask)
    first_order = math.exp(LEAST) / 2 * (y - (y - log_rate.exp()) ** 2)[mask].mean()  # of the least dispersion there is
    theirs = poisson(log_rate[..., None], y[..., None], mask[..., None])
    torch.testing.assert_close(limit, theirs + first_order, atol=1e-6, rtol=0)


def test_dispersions_go_with_the_rates_of_a_batch() -> None:
    count, log = torch.full((2, 2, 3, 1), 3.0), torch.zeros(2, 2, 3, 1)
    both = batch(next=target(count), dispersion=target(torch.zeros_like(count)))
    outputs = Outputs({"next": count.log(), "dispersion": log.requires_grad_()})
    loss = objective(outputs, both)
    torch.testing.assert_close(loss, negative_binomial(count.log(), log, count, count > 0))
    loss.sum().backward()
    assert log.grad is not None
    assert bool((log.grad > 0).all()), "counts at their rates ask for less dispersion"
