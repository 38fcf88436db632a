"""Pinball and Student's t: zero at the truth, gradients as by finite differences, optima where the textbooks have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sciml import losses, registry, tokens
from sciml.objectives import mse_pinball
from sciml.tokens import Outputs, Target, TokenBatch

LEVELS = (0.05, 0.5, 0.8)
VARIATES, TIMES = 3, 5
FLOOR = (losses.LEAST_LOG_SCALE, losses.MOST_LOG_DF)


def asked(head: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Target:
    """Two samples of a lattice (variate, time) whose first two cells of time, a look-back, don't count."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, VARIATES, TIMES, 1, generator=generator, dtype=dtype)
    mask = torch.rand(value.shape, generator=generator) < 0.8
    mask[:, :, :2] = False
    baseline = torch.randn(value.shape, generator=generator, dtype=dtype)
    if head == "quantiles":
        value = value.expand(-1, -1, -1, len(LEVELS))
    if head == "student_t":
        rest = torch.tensor(FLOOR, dtype=dtype).expand(*value.shape[:-1], 2)
        value = torch.cat([value, rest], -1)
    return Target(value, mask, baseline, torch.full_like(baseline, 0.5))


def batch(**targets: Target) -> TokenBatch:
    axes = (tokens.identity("variate", torch.arange(VARIATES), "a/variate"),
            tokens.time("time", torch.arange(TIMES) / 4))
    kind = next(iter(targets.values())).value.dtype
    return TokenBatch("series", "a", torch.zeros(2, VARIATES, TIMES, 1, dtype=kind), ("series/value",), axes,
                      num_segments=2, targets=targets, kept={"levels": torch.tensor([LEVELS] * 2, dtype=kind)})


OBJECTIVES = {"mse_pinball": "quantiles", "student_t": "student_t"}


@pytest.mark.parametrize(("name", "head"), OBJECTIVES.items())
def test_the_truth_costs_nothing_and_anything_else_something(name: str, head: str) -> None:
    objective = registry.find("sciml.objectives", name)
    given = batch(value=asked("value", dtype=torch.float32), **{head: asked(head, dtype=torch.float32)})
    truth = Outputs({h: (t.value - t.baseline) / t.scale for h, t in given.targets.items()})
    found = objective(truth, given)
    assert found.shape == (2,)
    assert found.abs().max() < 1e-3 if name == "student_t" else found.abs().max() < 1e-6
    for each in given.targets:
        moved = Outputs({h: y + 1.0 if h == each else y for h, y in truth.heads.items()})
        assert (objective(moved, given) > found + 0.01).all()
    alone = batch(value=given.targets["value"])
    torch.testing.assert_close(objective(Outputs({"value": truth["value"] + 1}), alone), torch.full((2,), 0.25))


@pytest.mark.parametrize(("name", "head"), OBJECTIVES.items())
def test_gradients_are_those_of_finite_differences(name: str, head: str) -> None:
    objective = registry.find("sciml.objectives", name)
    given = batch(**{head: asked(head)})
    y = torch.randn(2, VARIATES, TIMES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: objective(Outputs({head: x}), given), y.requires_grad_(), eps=1e-6)
    objective(Outputs({head: y}), given).sum().backward()
    assert y.grad is not None
    counted = given.targets[head].mask.expand_as(y)
    assert (y.grad[counted] != 0).all()
    assert not y.grad[~counted].any()


def minimised(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()


def test_pinball_is_least_at_the_quantiles_of_what_was_seen() -> None:
    seen = torch.from_numpy(np.random.default_rng(0).gamma(2.0, size=(1, 2000, 1)))
    levels, there = torch.tensor(LEVELS, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.bool)

    def at(points: np.ndarray) -> float:
        return mse_pinball.pinball(torch.from_numpy(points).expand(1, 2000, 3), seen, there, levels).item()

    best = np.quantile(seen.numpy(), LEVELS)
    for step in (-0.05, 0.05):
        for which in np.eye(3):
            assert at(best + step * which) > at(best)


def test_sorting_crossed_quantiles_never_costs() -> None:
    crossed = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(2))
    seen = torch.randn(4, 50, 1, generator=torch.Generator().manual_seed(3))
    there = torch.ones(1, 1, 1, dtype=torch.bool)
    before, after = (mse_pinball.pinball(p, seen, there, torch.tensor(LEVELS))
                     for p in (crossed, crossed.sort(-1).values))
    assert (after < before).all()


def test_students_likelihood_is_scipys_and_its_optimum_the_fit() -> None:
    rng = np.random.default_rng(1)
    df, loc, scale = 5.0, 1.5, 0.4
    seen = stats.t.rvs(df, loc, scale, size=4000, random_state=rng)
    value, there = torch.from_numpy(seen)[None, :, None], torch.ones(1, 1, 1, dtype=torch.bool)

    def cost(x: Tensor) -> Tensor:
        return losses.student_t_surprise(x.expand(1, len(seen), 3), value, there).sum()

    point = torch.tensor([loc, math.log(scale), math.log(df - 2)], dtype=torch.float64)
    least = stats.t.logpdf(0.0, 2 + math.exp(FLOOR[1])) - FLOOR[0]
    expected = least - stats.t.logpdf(seen, df, loc, scale).mean()
    assert cost(point).item() == pytest.approx(expected, rel=1e-9)
    found = minimised(cost, torch.zeros(3, dtype=torch.float64))
    fitted = stats.t.fit(seen)
    np.testing.assert_allclose([found[0], found[1].exp(), 2 + found[2].exp()], [fitted[1], fitted[2], fitted[0]],
                               rtol=5e-3)


def test_no_distribution_is_cheaper_than_the_floor() -> None:
    wild = torch.randn(3, 200, 3, generator=torch.Generator().manual_seed(4)) * torch.tensor([1.0, 20.0, 20.0])
    there = torch.ones(1, 1, 1, dtype=torch.bool)
    cells = torch.stack([losses.student_t_surprise(wild[:, i:i + 1], wild[:, i:i + 1, :1], there) for i in range(200)])
    assert cells.isfinite().all()
    assert cells.min() >= 0
