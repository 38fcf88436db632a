"""The cluster expansion: invariants of the density around points in space, however the points are packed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_laws import assert_equals_reference
from torch import Tensor

from sciml.mixers import cluster
from sciml.mixers.cluster import Cluster, radial_basis
from sciml.mixers.geometry import Geometry
from sciml.mixers.harmonics import harmonics, lebedev
from sciml.mixers.neighbours import find_neighbours
from sciml.tokens import Axis

WIDTH = 6


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(seed: int = 0) -> Cluster:
    torch.manual_seed(seed)
    return Cluster(WIDTH, 1, radial=3, pairs=4, triples=2)


def points(*sizes: int, spread: float = 0.8, seed: int = 0, cells: Tensor | None = None) -> Axis:
    generator = torch.Generator().manual_seed(seed)
    coord = torch.rand(1, sum(sizes), 3, generator=generator) * spread
    segment = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return Axis("atom", "set", coord, segment=segment[None], period=cells)


def run(mixer: Cluster, axis: Axis, x: Tensor) -> Tensor:
    return mixer(x, Geometry((axis,)))[0]


def tokens(axis: Axis, seed: int = 1) -> Tensor:
    return torch.randn(1, axis.size, WIDTH, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int = 3) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))
    return q * torch.linalg.det(q)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_packs_of_any_sizes_equal_the_reference(sizes: list[int], seed: int) -> None:
    axis = points(*sizes, seed=seed)
    assert_equals_reference(make(), tokens(axis), Geometry((axis,)))


@pytest.mark.parametrize("kind", ["cell", "large", "rows", "shared", "beside", "one"])
def test_every_way_of_computing_equals_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    axis = points(4, 3)
    if kind == "cell":
        slanted = torch.tensor([[0.9, 0, 0], [0.2, 1.1, 0], [0, 0.3, 0.8]])
        axis = replace(axis, period=torch.stack([slanted, torch.zeros(3, 3)]))
    if kind == "large":
        monkeypatch.setattr(cluster, "MOST_DENSE", 2)
    axes, x = (axis,), tokens(axis)
    if kind in ("rows", "shared"):
        axis = Axis("point", "set", torch.rand(3 if kind == "rows" else 1, 5, 3) * 0.8)
        axes, x = (axis,), torch.randn(3, 5, WIDTH)
    if kind == "beside":
        other = Axis("time", "time", torch.arange(2.0)[None, :, None])
        axes, x = (other, axis), torch.randn(1, 2, 7, WIDTH)
    if kind == "one":
        axis = points(1)
        axes, x = (axis,), tokens(axis)
    slopes = assert_equals_reference(make(), x, Geometry(axes))
    assert all(bool(s.isfinite().all()) for s in slopes)


def test_derivatives_by_places_equal_differences_twice() -> None:
    mixer, axis = make(), points(3, 2)
    x = tokens(axis)

    def energy(coord: Tensor) -> Tensor:
        return run(mixer, replace(axis, coord=coord), x).square().sum()

    coord = axis.coord.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, coord)
    assert torch.autograd.gradgradcheck(energy, coord)


def test_rotation_reflection_and_translation_change_nothing() -> None:
    mixer, axis = make(), points(5, 4)
    x = tokens(axis)
    moved = replace(axis, coord=axis.coord @ rotation().T * -1 + 7.0)
    torch.testing.assert_close(run(mixer, moved, x), run(mixer, axis, x), rtol=1e-10, atol=1e-10)


def test_chirality_of_four_neighbours_is_not_seen_but_the_angle_of_two_is() -> None:
    """Body order 4 in scalars that are even under reflection; degree 1 alone tells angles apart."""
    mixer, x = make(), torch.ones(1, 3, WIDTH)
    bent, straight = (Axis("a", "set", torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], place]]))
                      for place in ([0.0, 0.5, 0.0], [-0.5, 0.0, 0.0]))
    assert not torch.allclose(run(mixer, bent, x)[:, 0], run(mixer, straight, x)[:, 0], rtol=1e-3)


def test_what_is_beyond_reach_adds_nothing_and_comes_in_twice_differentiably() -> None:
    mixer, axis = make(), points(4)
    far = replace(points(4, 1), segment=torch.zeros(1, 5, dtype=torch.long),
                  coord=torch.cat([axis.coord, axis.coord[:, :1] + 5.0], 1))
    x = tokens(far)
    torch.testing.assert_close(run(mixer, far, x)[:, :4], run(mixer, axis, x[:, :4]))
    r = torch.tensor([1.0 - 1e-4, 1.0 + 1e-4], requires_grad=True)
    value = radial_basis(r, 4)
    first, = torch.autograd.grad(value.sum(), r, create_graph=True)
    second, = torch.autograd.grad(first.sum(), r)
    for derivative, size in ((value, 1e-10), (first, 1e-6), (second, 1e-2)):
        assert float(derivative.detach().abs().max()) < size


def test_a_supercell_has_the_tokens_of_the_cell() -> None:
    mixer, cell = make(), torch.diag(torch.tensor([1.2, 0.9, 0.7]))[None]
    one = points(3, spread=0.7, cells=cell)
    two = replace(points(6), segment=torch.zeros(1, 6, dtype=torch.long), period=cell * torch.tensor([[2.0], [1], [1]]),
                  coord=torch.cat([one.coord, one.coord + cell[0, 0]], 1))
    x = tokens(one)
    torch.testing.assert_close(run(mixer, two, x.repeat(1, 2, 1)), run(mixer, one, x).repeat(1, 2, 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 99))
def test_neighbours_across_faces_are_all_found(count: int, periodic: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cell = torch.eye(3) * 0.7 + 0.3 * torch.rand(3, 3, generator=generator)
    cell = cell * torch.tensor(periodic)[:, None]
    axis = points(count, spread=1.5, seed=seed, cells=cell[None])
    found = find_neighbours(axis)
    reach = [range(-6, 7) if p else range(1) for p in periodic]
    images = torch.cartesian_prod(*(torch.tensor(list(r)) for r in reach)).double()
    apart = axis.coord[0][None, :, None] + (images @ cell)[None, None] - axis.coord[0][:, None, None]
    distance = apart.norm(dim=-1)
    itself = torch.eye(count, dtype=torch.bool)[..., None] & (images == 0).all(1)
    expected = distance[(distance < 1) & ~itself]
    torch.testing.assert_close(found.distance.sort()[0], expected.sort()[0])


def test_harmonics_are_orthogonal_on_the_sphere_and_so_are_their_products() -> None:
    grid, weight = lebedev()
    y = harmonics(grid, 2)
    torch.testing.assert_close(y.T @ (weight[:, None] * y), torch.eye(9))
    turned = harmonics(grid @ rotation().T, 2)
    triple = torch.einsum("g,ga,gb,gc->abc", weight, y, y, y)
    mix = torch.linalg.lstsq(y, turned).solution  # turned = y @ mix
    again = torch.einsum("g,ga,gb,gc->abc", weight, turned, turned, turned)
    torch.testing.assert_close(torch.einsum("abc,ax,by,cz->xyz", triple, mix, mix, mix), again)
