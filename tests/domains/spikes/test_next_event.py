"""What comes next, told by hazards or by classes: integrals are exact, densities sum to one, draws follow them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from sciml.data.store import Store
from sciml.domains.spikes.config import SamplingConfig
from sciml.domains.spikes.event_classes import Classes
from sciml.domains.spikes.event_exposure import (
    AGE_EDGES_S,
    After,
    Clock,
    Renewal,
    cut,
    exposure,
    interval,
    marks,
    no_clock,
)
from sciml.domains.spikes.hazard import Hazard, make_edges
from sciml.objectives.next_class import surprise
from sciml.testing import check_domain

EDGES = make_edges(0.01, 0.3, 4)
KINDS: dict[str, Hazard | Classes] = {"hazard": Hazard(EDGES), "categorical": Classes(EDGES)}
UNITS = 3


def situation(seed: int, events: int = 1, signals: bool = True) -> After:
    """Events of three units, with refractoriness and known signals until 0.5 s after the first."""
    rng = np.random.default_rng(seed)
    gain = torch.from_numpy(rng.normal(0, 0.7, (UNITS, len(AGE_EDGES_S))))
    clock = Clock(1.0, 0.02, torch.from_numpy(rng.normal(0, 0.7, (30, UNITS)))) if signals else no_clock(UNITS)
    return After(torch.from_numpy(1.1 + rng.exponential(0.02, events).cumsum()),
                 torch.from_numpy(rng.normal(1.5, 0.5, (events, UNITS))),
                 torch.from_numpy(rng.exponential(0.02, (events, UNITS))), Renewal.of(gain), clock)


def intensity(told: Hazard | Classes, after: After, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """``(T, N)`` at waits ``(T,)`` after one event, by a difference of integrals."""
    rows, width = torch.zeros(len(at), dtype=torch.long), 1e-7
    return told.integrated(after.at(rows), x.expand(len(at), *x.shape[1:]), at, at + width) / width


@pytest.mark.parametrize("seed", range(3))
def test_exposure_is_an_integral(seed: int) -> None:
    after = situation(seed, events=4)
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(rng.choice([0.0, 0.03], 4))
    high = low + torch.from_numpy(rng.exponential(0.2, 4))
    found = exposure(after, low, high, EDGES)
    for i in range(4):
        at = low[i] + (torch.arange(20_000) + 0.5) / 20_000 * (high[i] - low[i])
        row = after.at(torch.full((len(at),), i))
        weight = (row.log_hazard(at) - row.log_rate).exp() * (high[i] - low[i]) / len(at)
        wanted = weight.new_zeros(4, UNITS).index_add(0, interval(at, EDGES), weight)
        np.testing.assert_allclose(found[i].T.numpy(), wanted.numpy(), rtol=5e-3, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=6),
       st.lists(st.floats(-1, 5), max_size=6))
def test_cuts_tile_the_waits(spans: list[tuple[float, float]], grid: list[float]) -> None:
    low, length = (torch.tensor(part, dtype=torch.float64) for part in zip(*spans))
    high, none = low + length, torch.zeros(len(spans), dtype=torch.float64)
    parts = cut(low, high, marks(low, high, torch.tensor(sorted(grid), dtype=torch.float64), none))
    total = none.index_add(0, parts.event, parts.high - parts.low)
    torch.testing.assert_close(total, high - low)
    for edge in grid:
        assert not ((parts.low < edge) & (parts.high > edge)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_densities_sum_to_one(kind: str) -> None:
    """Over all units and times, of what may come after one event; and the outcome that nothing came by then."""
    told, after, num = KINDS[kind], situation(2), 4000
    x = 0.5 * torch.randn(1, UNITS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edges = torch.cat([torch.logspace(-5, math.log10(2.0), num, dtype=torch.float64)])
    edges = torch.cat([edges.new_zeros(1), edges])
    middle, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    rows, none = torch.zeros(num, dtype=torch.long), torch.zeros(num, dtype=torch.float64)
    total = 0.0
    for unit in range(UNITS):
        came = torch.full((num,), unit)
        target = told.target(after.at(rows), none, middle, came)
        chance = told.floor_likelihood(after.at(rows), none, middle, came) + told.gain(
            target, target.baseline.double() + x)
        total += float((chance.exp() * width).sum())
    nothing = torch.full((1,), -1)
    target = told.target(after, none[:1], edges[-1:], nothing)
    left = told.floor_likelihood(after, none[:1], edges[-1:], nothing) + told.gain(
        target, target.baseline.double() + x)
    assert total + float(left.exp()) == pytest.approx(1, abs=5e-3)
    survival = torch.exp(-told.integrated(after, x, none[:1], edges[-1:]).sum())
    assert float(survival) == pytest.approx(float(left.exp()), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_events_follow_what_was_told(kind: str) -> None:
    """Waits are exponential in the integrated intensity, units in proportion to their intensities."""
    told, after = KINDS[kind], situation(1)
    x = 0.5 * torch.randn(1, UNITS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    generator, num = torch.Generator().manual_seed(0), 800
    drawn = [told.draw(after, x[0], SamplingConfig(), generator) for _ in range(num)]
    wait, unit = (torch.cat(part) for part in zip(*drawn))
    rows = torch.zeros(num, dtype=torch.long)
    rescaled = told.integrated(after.at(rows), x.expand(num, -1, -1), torch.zeros_like(wait), wait)
    assert kstest(rescaled.sum(1).numpy(), "expon").pvalue > 0.01
    share = intensity(told, after, x, wait)
    share = share / share.sum(1, keepdim=True)
    for j in range(4):
        inside = interval(wait, EDGES) == j
        expected = share[inside].sum(0)
        if float(expected.min()) > 5:
            assert chisquare(torch.bincount(unit[inside], minlength=UNITS), expected.numpy()).pvalue > 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_wait(kind: str) -> None:
    x = torch.randn(UNITS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def wait(output: torch.Tensor) -> torch.Tensor:
        return KINDS[kind].draw(situation(3), output, SamplingConfig(), torch.Generator().manual_seed(4))[0]

    assert torch.autograd.gradcheck(wait, x.requires_grad_())


def test_classes_without_output_are_the_floor() -> None:
    """Chances of classes are the floor's, by its own integrals; a hazard's and the classes' shares of units agree."""
    after, (hazard, classes) = situation(4, events=3), KINDS.values()
    assert isinstance(classes, Classes)
    chance = classes.prior(after).exp()
    torch.testing.assert_close(chance.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    zero = torch.zeros(3, UNITS, 4, dtype=torch.float64)
    none = torch.zeros(3, dtype=torch.float64)
    survival = [torch.exp(-hazard.integrated(after, zero, none, none + e).sum(1)) for e in EDGES]
    for k in range(3):
        torch.testing.assert_close(chance[:, :, k].sum(1), survival[k] - survival[k + 1])
    torch.testing.assert_close(chance[:, :, 3].sum(1), survival[3])


def test_likelihood_of_a_wait_that_is_seen_in_part() -> None:
    """From 20 ms on, given that nothing came before: a quotient of chances, for either way of telling."""
    after, low, high = situation(5), torch.tensor([0.02]).double(), torch.tensor([0.25]).double()
    for told in KINDS.values():
        for unit in (-1, 1):
            came = torch.tensor([unit])
            part = told.floor_likelihood(after, low, high, came)
            whole = told.floor_likelihood(after, 0 * low, high, came)
            before = told.floor_likelihood(after, 0 * low, low, torch.tensor([-1]))
            torch.testing.assert_close(part, whole - before, rtol=1e-5, atol=1e-5)


def test_conformance_of_classes(network_store: Callable[..., Store]) -> None:
    check_domain("spikes", [network_store()], config={
        "tokens": "events", "events": {"tokens": 24, "before": 8, "edges": 4, "dt": "categorical"}})


def test_surprise_is_cross_entropy_and_leaves_out_what_does_not_count() -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value, mask = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2, dtype=torch.bool)
    value[0, 0, 1, 0] = value[0, 1, 0, 1] = 1
    mask[0, 1, :, 0] = False
    mask[0, 2] = False
    loss = surprise(logits, value, mask)
    rows = logits[0].detach().flatten(1).log_softmax(-1)[0, 2], logits[0, 1, :, 1].detach().log_softmax(-1)[0]
    assert float(loss.detach()) == pytest.approx(-float(rows[0] + rows[1]) / 2, rel=1e-5)
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0, 2] == 0).all()
    half = torch.full((1, 1, 2, 2), 0.5)
    assert float(surprise(torch.zeros(1, 1, 2, 2), half, mask[:, :1])) == pytest.approx(0, abs=1e-6)
