"""Losses of fields: floors, gradients, and what each of them is made to see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciml import losses, registry
from sciml.errors import InputError
from sciml.tokens import Axis, Outputs, Target, TokenBatch, space

NAMES = ("relative_l1", "relative_h1", "spectral", "relative_l2", "relative_change", "mse")
DOUBLE = torch.float64


def grid(*sizes: int, periodic: bool = True, stretch: float = 0.0) -> tuple[Axis, ...]:
    axes = []
    for name, n in zip("xyz", sizes):
        even = torch.arange(n, dtype=DOUBLE) / n
        place = even + stretch * torch.sin(2 * math.pi * even) / 7
        axes.append(space(name, place, period=1.0 if periodic else None))
    return tuple(axes)


def batch_of(value: Tensor, axes: tuple[Axis, ...], mask: Tensor | None = None) -> TokenBatch:
    ones = torch.ones_like(value[:1, ..., :1])
    known = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
    target = Target(value=value, mask=known, baseline=torch.zeros_like(value), scale=ones)
    return TokenBatch("fields", "doc", torch.zeros_like(value), tuple("ab"[: value.shape[-1]]), axes,
                      targets={"state": target}, num_segments=len(value))


def loss(name: str, output: Tensor, batch: TokenBatch) -> Tensor:
    return registry.find("sciml.objectives", name)(Outputs({"state": output}), batch)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "walls"])
@pytest.mark.parametrize("name", NAMES)
def test_the_floor_is_zero_and_gradients_are_right(name: str, periodic: bool) -> None:
    batch = batch_of(random(2, 5, 4, 2), grid(5, 4, periodic=periodic))
    if name == "spectral" and not periodic:
        with pytest.raises(InputError, match="no periodic axis"):
            loss(name, batch.values, batch)
        return
    at_truth = batch.targets["state"].value.clone().requires_grad_()
    floor = loss(name, at_truth, batch)
    torch.testing.assert_close(floor, torch.zeros(2, dtype=DOUBLE), atol=1e-12, rtol=0)
    floor.sum().backward()
    assert at_truth.grad is not None
    assert bool(torch.isfinite(at_truth.grad).all())
    off = random(2, 5, 4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(name, x, batch), (off,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_judged_alone_and_only_where_it_counts(name: str) -> None:
    mask = torch.ones(2, 8, 6, 2, dtype=torch.bool)
    mask[1, 3, 2] = False
    batch, output = batch_of(random(2, 8, 6, 2), grid(8, 6), mask), random(2, 8, 6, 2, seed=1)
    both = loss(name, output, batch)
    for i in range(2):
        target = batch.targets["state"]
        alone = replace(batch, values=batch.values[i: i + 1], num_segments=1, targets={
            "state": replace(target, value=target.value[i: i + 1], mask=mask[i: i + 1],
                             baseline=target.baseline[i: i + 1])})
        torch.testing.assert_close(loss(name, output[i: i + 1], alone), both[i: i + 1])
    if name != "spectral":
        torch.testing.assert_close(loss(name, output.masked_fill(~mask, 9.0), batch), both)


@pytest.mark.parametrize("name", ["relative_h1", "spectral"])
def test_points_without_order_have_neither_slopes_nor_a_spectrum(name: str) -> None:
    """Not even in a periodic box: along their axis neighbours are strangers."""
    box = Axis("point", "set", torch.rand(1, 9, 2, dtype=DOUBLE), period=torch.ones(2, dtype=DOUBLE))
    batch = batch_of(random(1, 9, 1), (box,))
    with pytest.raises(InputError, match="choose relative_l2"):
        loss(name, batch.values, batch)


@given(sizes=st.lists(st.integers(4, 9), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_slopes_of_waves_are_exact_on_even_periodic_axes(sizes: list[int], seed: int) -> None:
    axes = grid(*sizes)
    places = torch.meshgrid(*(axis.coord[0, :, 0] for axis in axes), indexing="ij")
    phase = 2 * math.pi * torch.stack(places).sum(0) + seed
    x, known = torch.sin(phase)[None, ..., None], torch.ones(1, *sizes, 1, dtype=torch.bool)
    for dim, axis in enumerate(axes):
        expected = 2 * math.pi * torch.cos(phase)[None, ..., None]
        torch.testing.assert_close(losses.slope(x, known, dim + 1, axis), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("periodic", [True, False], ids=["periodic", "walls"])
def test_slopes_between_uneven_neighbours_converge_to_second_order(periodic: bool) -> None:
    errors = []
    for n in (32, 64, 128):
        (axis,) = grid(n, periodic=periodic, stretch=0.8)
        x = axis.coord[0, :, 0]
        wave, known = torch.sin(2 * math.pi * x).view(1, n, 1), torch.ones(1, n, 1, dtype=torch.bool)
        error = losses.slope(wave, known, 1, axis)[0, :, 0] - 2 * math.pi * torch.cos(2 * math.pi * x)
        errors.append(float((error if periodic else error[1:-1]).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.8).all(), orders


def test_h1_sees_small_scales_that_l2_does_not() -> None:
    axes = grid(32)
    x = 2 * math.pi * axes[0].coord[0, :, 0]
    truth = torch.sin(x).view(1, -1, 1)
    batch = batch_of(truth, axes)
    smooth, rough = (truth + 0.1 * torch.sin(k * x).view(1, -1, 1) for k in (2, 12))
    assert float(loss("relative_l2", smooth, batch)) == pytest.approx(float(loss("relative_l2", rough, batch)))
    expected = {k: 0.1 * math.sqrt((1 + (2 * math.pi * k) ** 2) / (1 + (2 * math.pi) ** 2)) for k in (2, 12)}
    assert float(loss("relative_h1", smooth, batch)) == pytest.approx(expected[2])
    assert float(loss("relative_h1", rough, batch)) == pytest.approx(expected[12])


def test_the_spectrum_is_blind_to_place_and_sees_what_is_missing() -> None:
    axes, truth = grid(16, 16), random(1, 16, 16, 1)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    moved = torch.roll(truth, (3, 5), (1, 2))
    assert float(losses.log_spectrum(moved, truth, mask, axes)) < 1e-12
    assert float(losses.log_spectrum(2 * truth, truth, mask, axes)) == pytest.approx(math.log(4) ** 2, rel=1e-6)
    wall = (axes[0], replace(axes[1], period=None))
    assert float(losses.log_spectrum(torch.roll(truth, 3, 1), truth, mask, wall)) < 1e-12
    with pytest.raises(ValueError, match="periodic"):
        losses.log_spectrum(2 * truth, truth, mask, (wall[1], wall[1]))


def test_relative_l1_weighs_one_large_error_less_than_squares_do() -> None:
    truth = torch.ones(1, 100, 1, dtype=DOUBLE)
    spike = truth.clone()
    spike[0, 0] = 11.0
    batch = batch_of(truth, grid(100))
    assert float(loss("relative_l1", spike, batch)) == pytest.approx(0.1)
    assert float(loss("relative_l2", spike, batch)) == pytest.approx(1.0)


def test_relative_change_is_one_at_the_baseline_whatever_the_state_is_besides() -> None:
    change, mean = random(2, 8, 6, 2), 50.0 + random(2, 1, 1, 2, seed=1)
    batch = batch_of(mean + change, grid(8, 6))
    target = replace(batch.targets["state"], baseline=mean.expand_as(change), scale=torch.full((1, 1, 1, 2), 0.1))
    batch = replace(batch, targets={"state": target})
    torch.testing.assert_close(loss("relative_change", torch.zeros_like(change), batch), torch.ones(2, dtype=DOUBLE))
    torch.testing.assert_close(loss("relative_change", 5 * change, batch), torch.full((2,), 0.5, dtype=DOUBLE))
