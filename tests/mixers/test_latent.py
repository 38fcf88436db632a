"""Latent attention, with and without groups: against its reference, and the laws of sets, quadrature and position."""

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
    assert_packed_samples_are_apart,
    lengthened,
    noise,
    random,
)
from torch import Tensor

from sciml.errors import InputError
from sciml.mixers.contract import make_mixer
from sciml.mixers.geometry import Geometry
from sciml.mixers.latent import Latent
from sciml.tokens import Axis, space

WIDTH, HEADS = 16, 2
GROUPS = (0, 2, 3)


def make(groups: int, num_latents: int = 3) -> Latent:
    torch.manual_seed(0)
    return Latent(WIDTH, HEADS, num_latents=num_latents, groups=groups)


def lattice(kind: str) -> tuple[Tensor, tuple[Axis, ...]]:
    line = Axis("x", "space", random(1, 5, 1).cumsum(1), measure=random(1, 5) + 0.1)
    own = Axis("y", "time", random(2, 4, 1).cumsum(1), measure=random(2, 4) + 0.1)
    wave = space("z", torch.arange(6) / 6, period=1.0)
    axes: tuple[Axis, ...] = {
        "line": (line,), "plane": (line, own), "cube": (line, wave, own),
        "padded": (replace(wave, measure=torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0, 0.0]])), own),
        "set": (Axis("variate", "set", torch.zeros(1, 5, 0)), wave),
        "packed": (line, Axis("atoms", "set", random(1, 4, 3), segment=torch.tensor([[0, 0, 2, 2]]))),
        "packed padded": (Axis("atoms", "set", random(1, 4, 3), segment=torch.tensor([[1, 1, 1, 2]])),
                          replace(wave, measure=torch.tensor([[1.0, 2.0, 1.0, 0.0, 0.0, 0.0]]))),
        "causal": (Axis("t", "time", random(1, 3, 1).cumsum(1), causal=True), line, own),
    }[kind]
    return noise(axes, WIDTH), axes


KINDS = ("line", "plane", "cube", "padded", "set", "packed", "packed padded", "causal")


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_reference_and_its_gradients_do(kind: str, groups: int) -> None:
    mixer, (x, axes) = make(groups), lattice(kind)
    slopes = assert_equals_reference(mixer, x, Geometry(axes))
    assert all((slope != 0).any() for slope in slopes), "every parameter is used"


@pytest.mark.parametrize("groups", GROUPS)
def test_second_derivatives_with_groups(groups: int) -> None:
    torch.manual_seed(0)
    mixer = Latent(4, 1, num_latents=2, groups=groups)
    axes = (space("x", torch.arange(5) / 5, period=1.0), space("y", torch.arange(2.0)))
    x = torch.randn(1, 5, 2, 4, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: mixer(t, Geometry(axes, second_order=True))[0], x, fast_mode=True)


def test_a_permuted_set_gives_a_permuted_result_whatever_the_groups() -> None:
    points = Axis("points", "set", random(1, 7, 3), measure=random(1, 7, seed=1))
    for groups in GROUPS:
        assert_a_permuted_set_is_permuted(make(groups), points, WIDTH, (space("x", torch.arange(5.0)),))


@pytest.mark.parametrize("groups", GROUPS)
def test_cells_of_measure_zero_are_not_seen(groups: int) -> None:
    mixer, axes = make(groups), (space("x", torch.tensor([0.0, 0.2, 0.5, 0.9])), space("y", torch.arange(3.0)))
    x = torch.randn(1, 4, 3, WIDTH)
    longer = Geometry((lengthened(axes[0], 5), axes[1]))
    outputs = [mixer(torch.cat([x, torch.randn(1, 5, 3, WIDTH)], 1), longer)[0] for _ in range(2)]
    assert all(y.isfinite().all() for y in outputs)
    torch.testing.assert_close(outputs[0][:, :4], outputs[1][:, :4])
    if groups in (0, 2):  # 3 does not divide 4: then a group gets other members
        torch.testing.assert_close(outputs[0][:, :4], mixer(x, Geometry(axes))[0])


def test_a_cell_cut_into_two_of_half_the_measure_changes_nothing() -> None:
    assert_a_cell_may_be_cut(make(0), WIDTH)


def test_converges_with_second_order_as_an_uneven_axis_is_refined() -> None:
    mixer = make(0)
    def at_coarse(n: int) -> Tensor:
        t = torch.linspace(0, 1, n)
        axis = space("x", t * (0.5 + 0.5 * t))
        x = (axis.coord * torch.linspace(1, 5, WIDTH) + torch.linspace(0, 6, WIDTH)).sin()
        return mixer(x, Geometry((axis,)))[0][:, ::(n - 1) // 8].detach()
    exact = at_coarse(1025)
    errors = [float((at_coarse(n) - exact).norm() / exact.norm()) for n in (9, 17, 33)]
    assert -math.log(errors[-1] / errors[0]) / math.log(4) > 1.8


@pytest.mark.parametrize("groups", GROUPS)
def test_packed_samples_do_not_see_each_other(groups: int) -> None:
    assert_packed_samples_are_apart(make(groups), WIDTH, (space("x", torch.arange(4.0)),))


def test_groups_know_relative_positions_only() -> None:
    axis = Axis("x", "space", random(2, 7, 1).cumsum(1))
    assert_only_relative_coordinates_matter(make(3), torch.randn(2, 7, WIDTH), axis)


def test_a_shift_by_a_group_on_a_periodic_axis_shifts_the_result() -> None:
    mixer, axes = make(2), (space("x", torch.arange(6) / 3, period=2.0), space("y", torch.arange(3.0)))
    x = torch.randn(1, 6, 3, WIDTH)
    y = mixer(x, Geometry(axes))[0]
    torch.testing.assert_close(mixer(x.roll(2, 1), Geometry(axes))[0], y.roll(2, 1))
    assert not torch.allclose(mixer(x.roll(1, 1), Geometry(axes))[0], y.roll(1, 1))


@pytest.mark.parametrize("groups", GROUPS)
def test_every_token_reaches_every_other(groups: int) -> None:
    mixer, axes = make(groups), (space("x", torch.arange(5.0)), space("y", torch.arange(4.0)))
    x = torch.randn(1, 5, 4, WIDTH, requires_grad=True)
    slope, = torch.autograd.grad(mixer(x, Geometry(axes))[0][0, 0, 0].square().sum(), x)
    assert (slope[0].norm(dim=-1) > 0).all()


def test_a_causal_axis_is_left_alone() -> None:
    mixer, (x, axes) = make(2), lattice("causal")
    together = mixer(x, Geometry(axes))[0]
    for t in range(3):
        torch.testing.assert_close(together[:, t], mixer(x[:, t], Geometry(axes[1:]))[0])
    assert (mixer(x[:, :, 0, 0], Geometry(axes[:1]))[0] == 0).all(), "no axis to act along"


def test_options_are_checked_and_autocast_is_close() -> None:
    with pytest.raises(InputError, match="num_latents"):
        make_mixer("latent", {"num_latents": 0}, 16, 2)
    mixer = make_mixer("latent", {"num_latents": 8, "groups": 4}, 32, 2).float()
    axes = tuple(space(n, (torch.arange(10) / 10).float()) for n in "xy")
    assert_autocast_is_near(mixer, torch.randn(1, 10, 10, 32, dtype=torch.float32), axes)
