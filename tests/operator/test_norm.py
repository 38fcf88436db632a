"""What a block divides by: `sciml.operator.norm`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciml.kernels.fused import scaled_norm
from sciml.mixers.geometry import Geometry
from sciml.operator.norm import BOUND, Norm, bound, normed, unit
from sciml.tokens import Axis, space, time

pytestmark = pytest.mark.usefixtures("double")
WIDTH = 5


@pytest.fixture(name="double")
def _double() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def some(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    return normed(x, torch.ones(WIDTH), torch.zeros(WIDTH), Geometry(axes), "sample")


def grid(n: int) -> Axis:
    return space("x", torch.arange(n) / n, period=1.0)


def test_a_sample_has_mean_square_one_and_keeps_its_proportions() -> None:
    x = some(3, 8, 6)
    y = plain(x, (grid(8), grid(6)))
    torch.testing.assert_close(y.square().mean((1, 2, 3)), torch.ones(3), rtol=1e-5, atol=0)
    ratio = y / x
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(x))


def test_other_samples_of_a_batch_do_not_matter() -> None:
    x, axes = some(2, 8), (grid(8),)
    louder = torch.stack([x[0], 100 * x[1]])
    assert torch.equal(plain(x, axes)[0], plain(louder, axes)[0])


def test_token_is_the_norm_of_before() -> None:
    x, scale, shift = some(2, 8), some(2, 1, seed=1), some(2, 1, seed=2)
    geometry = Geometry((grid(8),))
    assert torch.equal(normed(x, scale, shift, geometry, "token"), scaled_norm(x, scale, shift))
    torch.testing.assert_close(unit(x, geometry, "token"), torch.nn.functional.rms_norm(x, (WIDTH,)))


def test_where_time_has_a_direction_what_comes_later_does_not_matter() -> None:
    """Along a causal axis every token is divided by what is at its own time."""
    axes = (time("t", torch.arange(4.0), causal=True), grid(6))
    x = some(1, 4, 6)
    later = x.clone()
    later[:, 2:] *= 10
    assert torch.equal(plain(x, axes)[:, :2], plain(later, axes)[:, :2])
    torch.testing.assert_close(plain(x, axes).square().mean((2, 3)), torch.ones(1, 4), rtol=1e-5, atol=0)


def test_of_a_lattice_without_a_line_every_token_is_on_its_own() -> None:
    members = Axis("unit", "set", torch.zeros(1, 4, 0))
    x = some(2, 4)
    torch.testing.assert_close(plain(x, (members,)), scaled_norm(x, torch.ones(WIDTH), torch.zeros(WIDTH)))


def test_cells_count_by_their_width_and_padding_does_not() -> None:
    """A grid refined in one half has the norm of the even one, and cells of no measure don't enter."""
    edges = torch.cat([torch.arange(4) / 8, 0.5 + torch.arange(8) / 16])
    widths = torch.cat([torch.full((4,), 1 / 8), torch.full((8,), 1 / 16)])
    uneven = replace(grid(12), coord=edges[None, :, None], measure=widths[None])
    even, coarse = grid(8), some(1, 8)
    fine = torch.cat([coarse[:, :4], coarse[:, 4:].repeat_interleave(2, 1)], 1)
    torch.testing.assert_close(plain(fine, (uneven,))[:, :4], plain(coarse, (even,))[:, :4])
    padded = replace(even, measure=torch.cat([torch.full((6,), 1 / 6), torch.zeros(2)])[None])
    loud = coarse.clone()
    loud[:, 6:] = 1e3
    torch.testing.assert_close(plain(loud, (padded,))[:, :6], plain(coarse[:, :6], (grid(6),)))


def test_where_nothing_is_divided_what_is_added_is_bounded() -> None:
    x, scale, shift, geometry = some(2, 8), some(2, 1, seed=1), some(2, 1, seed=2), Geometry((grid(8),))
    torch.testing.assert_close(normed(x, scale, shift, geometry, "bounded"), x * scale + shift)
    assert torch.equal(unit(x, geometry, "bounded"), x)
    torch.testing.assert_close(bound(1e-6 * x, "bounded"), 1e-6 * x, rtol=1e-9, atol=0)
    torch.testing.assert_close(bound(1e6 * x, "bounded").square().mean(-1), torch.full((2, 8), BOUND**2))
    louder = torch.cat([x[:, :4], 100 * x[:, 4:]], 1)
    assert torch.equal(bound(louder, "bounded")[:, :4], bound(x, "bounded")[:, :4]), "tokens are on their own"
    assert bound(x, "sample") is x


@pytest.mark.parametrize("norm", ["sample", "bounded"])
def test_gradients_are_those_of_the_formula(norm: Norm) -> None:
    geometry = Geometry((grid(4), grid(3)))
    x, scale, shift = (t.requires_grad_() for t in (some(2, 4, 3), some(2, 1, 1, seed=1), some(2, 1, 1, seed=2)))

    def formula(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return bound(normed(x, scale, shift, geometry, norm), norm)

    assert torch.autograd.gradcheck(formula, (x, scale, shift))
    assert torch.autograd.gradgradcheck(formula, (x, scale, shift))
