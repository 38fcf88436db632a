"""Axial integral attention: its two forms against the reference, and the laws of an integral."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mixer_laws import (
    assert_a_cell_may_be_cut,
    assert_a_permuted_set_is_permuted,
    assert_autocast_is_near,
    assert_equals_reference,
    assert_only_relative_coordinates_matter,
    assert_padding_is_not_seen,
)
from torch import Tensor

from sciml.mixers.contract import make_mixer
from sciml.mixers.geometry import Geometry
from sciml.mixers.integral import Integral
from sciml.tokens import Axis, space

WIDTH, HEADS = 16, 2  # rows of at least 2 · 8 keys are applied as q (kᵀ v)


def make(chained: bool = False, width: int = WIDTH) -> Integral:
    torch.manual_seed(0)
    return Integral(width, HEADS, chained=chained)


def uneven(name: str, n: int, period: float | None = None) -> Axis:
    """`n` points of [0, 0.5], closer together on the left; finer ones include coarser ones."""
    t = torch.linspace(0, 1, n)
    return space(name, 0.5 * t * (0.5 + 0.5 * t), period=period)


def smooth(*axes: Axis) -> Tensor:
    """A smooth field ``(1, *lattice, WIDTH)``."""
    generator = torch.Generator().manual_seed(7)
    phase, total = torch.rand(WIDTH, generator=generator), torch.zeros(1, *[1] * len(axes), WIDTH)
    for place, axis in enumerate(axes):
        frequency = 2 * torch.rand(WIDTH, generator=generator)
        view = [-1 if p == place else 1 for p in range(len(axes))]
        total = total + axis.coord[0, :, 0].view(1, *view, 1) * frequency
    return (2 * math.pi * (total + phase)).sin()


def mixed_lattice() -> tuple[Tensor, tuple[Axis, ...]]:
    """A long row, a set, a short row; own coordinates and weights per sample, and padding."""
    generator = torch.Generator().manual_seed(1)
    long = Axis("x", "space", torch.rand(2, 19, 1, generator=generator).cumsum(1),
                measure=torch.rand(2, 19, generator=generator))
    variates = Axis("variate", "set", torch.zeros(1, 3, 0), measure=torch.tensor([[1.0, 0.5, 0.0]]))
    return torch.randn(2, 19, 3, 4, WIDTH, generator=generator), (long, variates, space("y", torch.arange(4) / 4))


@pytest.mark.parametrize("chained", [False, True])
def test_both_forms_of_a_kernel_equal_the_reference_and_so_do_gradients(chained: bool) -> None:
    mixer, (x, axes) = make(chained), mixed_lattice()
    slopes = assert_equals_reference(mixer, x, Geometry(axes), 1e-10)
    assert all((slope != 0).any() for slope in slopes), "every parameter is used"


@pytest.mark.parametrize("chained", [False, True])
def test_second_derivatives_of_both_forms(chained: bool) -> None:
    mixer = make(chained, width=4)  # heads of width 2: rows of 5 take one form, rows of 2 the other
    axes = (space("x", torch.arange(5) / 5, period=1.0), uneven("y", 2))
    x = torch.randn(1, 5, 2, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: mixer(t, Geometry(axes))[0], x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: mixer(t, Geometry(axes))[0], x, fast_mode=True)


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_converges_with_second_order_as_uneven_axes_are_refined(chained: bool, rank: int) -> None:
    mixer, sizes = make(chained), (17, 33, 65)
    def at_coarse(n: int) -> Tensor:
        axes = tuple(uneven(name, n) for name in "xy"[:rank])
        step = (n - 1) // 16
        return mixer(smooth(*axes), Geometry(axes))[0][(slice(None), *[slice(None, None, step)] * rank)].detach()
    exact = at_coarse(257)
    errors = [float((at_coarse(n) - exact).norm() / exact.norm()) for n in sizes]
    slope = -math.log(errors[-1] / errors[0]) / math.log((sizes[-1] - 1) / (sizes[0] - 1))
    assert 1.8 < slope < 2.4
    assert errors[-1] < 0.01


def test_without_quadrature_weights_it_would_not_converge() -> None:
    """The law above can fail: equal weights on the same uneven points have another limit."""
    mixer, fine = make(), uneven("x", 257)
    equal = replace(fine, measure=None)
    right, wrong = (mixer(smooth(axis), Geometry((axis,)))[0] for axis in (fine, equal))
    assert (right - wrong).norm() / right.norm() > 0.03


@pytest.mark.parametrize("n", [4, 20])
def test_one_axis_alone_is_the_same_in_parallel_and_chained(n: int) -> None:
    parallel, chained, axis = make(), make(chained=True), uneven("x", n)
    x = torch.randn(2, n, WIDTH)
    torch.testing.assert_close(chained(x, Geometry((axis,)))[0], parallel(x, Geometry((axis,)))[0])


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("width", [0, 1, 3])
def test_a_permuted_set_gives_a_permuted_result(chained: bool, width: int) -> None:
    points = Axis("points", "set", torch.rand(1, 20, width), measure=torch.rand(1, 20))
    assert_a_permuted_set_is_permuted(make(chained), points, WIDTH, (uneven("y", 3),))


@pytest.mark.parametrize("chained", [False, True])
def test_cells_of_measure_zero_are_not_seen(chained: bool) -> None:
    axes = (uneven("x", 16), uneven("y", 3))
    assert_padding_is_not_seen(make(chained), torch.randn(1, 16, 3, WIDTH), axes, 4)


@pytest.mark.parametrize("chained", [False, True])
def test_a_cell_cut_into_two_of_half_the_measure_changes_nothing(chained: bool) -> None:
    assert_a_cell_may_be_cut(make(chained), WIDTH, (uneven("y", 3),))


@pytest.mark.parametrize("width", [1, 3])
def test_only_relative_coordinates_matter(width: int) -> None:
    points = Axis("points", "set", torch.rand(2, 5, width))
    assert_only_relative_coordinates_matter(make(), torch.randn(2, 5, WIDTH), points)


def test_a_shift_on_a_periodic_axis_shifts_the_result() -> None:
    mixer, axes = make(), (space("x", torch.arange(18) / 18 * 2, period=2.0), uneven("y", 3))
    x = torch.randn(1, 18, 3, WIDTH)
    torch.testing.assert_close(mixer(x.roll(5, 1), Geometry(axes))[0], mixer(x, Geometry(axes))[0].roll(5, 1))


def test_axes_of_other_roles_are_told_apart() -> None:
    mixer, axes = make(), (space("x", torch.arange(6) / 6, period=1.0), space("y", torch.arange(6) / 6, period=1.0))
    x = torch.randn(1, 6, 6, WIDTH)
    y, crossed = mixer(x, Geometry(axes))[0], mixer(x.transpose(1, 2), Geometry(axes))[0].transpose(1, 2)
    assert (y - crossed).norm() / y.norm() > 0.1


@pytest.mark.parametrize("apart", ["causal", "packed"])
def test_indices_of_causal_and_packed_axes_are_lattices_of_their_own(apart: str) -> None:
    mixer = make()
    row = replace(uneven("x", 5), coord=torch.rand(1, 5, 1))
    other = Axis("t", "time", torch.rand(1, 4, 1), causal=True) if apart == "causal" else Axis(
        "atoms", "set", torch.rand(1, 4, 3), segment=torch.tensor([[0, 0, 0, 1]]))
    x = torch.randn(1, 5, 4, WIDTH)
    together, state = mixer(x, Geometry((row, other)), ())
    assert state == ()
    for t in range(4):
        torch.testing.assert_close(together[:, :, t], mixer(x[:, :, t], Geometry((row,)))[0])
    assert (mixer(x[:, 0], Geometry((other,)))[0] == 0).all(), "no axis to act along"


def test_the_size_of_the_result_does_not_depend_on_the_size_of_the_lattice_or_of_its_measure() -> None:
    mixer = make()
    sizes = []
    for n, unit in ((9, 1.0), (65, 1.0), (65, 1e6)):
        axes = tuple(replace(a, measure=a.weights() * unit) for a in (uneven("x", n), uneven("y", n)))
        x = smooth(*axes)
        sizes.append(float(mixer(x, Geometry(axes))[0].detach().square().mean() / x.square().mean()) ** 0.5)
    assert sizes[1] == pytest.approx(sizes[2])
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert 0.05 < sizes[1] < 5


def test_autocast_is_close_and_options_come_from_a_recipe() -> None:
    mixer = make_mixer("integral", {"chained": True}, 32, 2).float()
    assert isinstance(mixer, Integral)
    assert mixer.chained
    axes = tuple(space(n, (torch.arange(40) / 40).float()) for n in "xy")
    assert_autocast_is_near(mixer, torch.randn(1, 40, 40, 32, dtype=torch.float32), axes)
