"""Axial attention's options, and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.mixers.contract import Mixer, make_mixer
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis, space, time

VARIANTS: list[dict[str, Any]] = [{"chained": True}, {"projections": "separate"},
                                  {"chained": True, "projections": "separate"}]
WIDTH, HEADS = 16, 2


def make(options: dict[str, Any]) -> Mixer:
    torch.manual_seed(0)
    return make_mixer("axial", options, WIDTH, HEADS)


def plane() -> tuple[Tensor, Geometry]:
    axes = (space("x", torch.arange(4) / 4, period=1.0), space("y", torch.tensor([0.0, 0.1, 0.4, 0.8, 0.9])))
    return torch.randn(2, 4, 5, WIDTH), Geometry(axes, second_order=True)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_options_equal_their_reference_to_the_second_derivative(options: dict[str, Any]) -> None:
    mixer, (x, geometry) = make(options), plane()
    used = [p for n, p in mixer.named_parameters() if n in mixer.parameters_of(geometry.axes)]
    both = []
    for run in (lambda t: mixer(t, geometry)[0], lambda t: mixer.reference(t, geometry)):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        first = torch.autograd.grad(y.square().sum(), [leaf, *used], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [leaf, *used], materialize_grads=True, allow_unused=True)
        both.append((y, *first, *second))
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one / two.abs().max(), two / two.abs().max())


def test_one_axis_makes_no_chain() -> None:
    x, axis = torch.randn(2, 6, WIDTH), space("x", torch.arange(6) / 6, period=1.0)
    torch.testing.assert_close(make({"chained": True})(x, Geometry((axis,)))[0], make({})(x, Geometry((axis,)))[0])


def test_a_chain_reaches_every_token_where_the_sum_reaches_a_cross() -> None:
    x, geometry = plane()
    for options, reached in (({"chained": True}, 20), ({}, 8)):
        leaf = x.clone().requires_grad_()
        slope, = torch.autograd.grad(make(options)(leaf, geometry)[0][0, 0, 0].square().sum(), leaf)
        assert int((slope[0].abs().sum(-1) > 0).sum()) == reached


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_chain_with_memory_equals_the_training_form(options: dict[str, Any]) -> None:
    mixer, coord = make(options), torch.rand(7).cumsum(0)
    variate, x = Axis("variate", "set", torch.zeros(1, 3, 0)), torch.randn(2, 3, 7, WIDTH)
    whole = mixer(x, Geometry((variate, time("time", coord, causal=True))))[0]
    state: Any = ()
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        y, state = mixer(x[:, :, part], Geometry((variate, time("time", coord[part], causal=True))), state)
        torch.testing.assert_close(y, whole[:, :, part])


def test_projections_of_roles_that_a_lattice_lacks_are_listed() -> None:
    mixer = make({"projections": "separate"})
    _, geometry = plane()
    used = mixer.parameters_of(geometry.axes)
    y = mixer(torch.randn(1, 4, 5, WIDTH), geometry)[0]
    slopes = torch.autograd.grad(y.sum(), list(mixer.parameters()), allow_unused=True)
    assert used == {name for (name, _), slope in zip(mixer.named_parameters(), slopes) if slope is not None}
    assert 0 < len(used) < len(slopes)


@pytest.mark.parametrize("options", [{"chaned": True}, {"projections": "some"}, {"chained": "perhaps"}])
def test_wrong_options_are_refused_with_the_right_ones(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="keys of mixer axial: chained, projections"):
        make(options)
