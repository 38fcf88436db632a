"""Attention in windows, in strided groups, and to pooled windows: references, reach, seams, padding, kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_laws import (
    FLASH,
    Ops,
    assert_equals_reference,
    assert_only_relative_coordinates_matter,
    assert_second_derivatives_equal,
    lengthened,
)
from torch import Tensor

from sciml.errors import InputError
from sciml.mixers.contract import Mixer, make_mixer
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis, space, time

WIDTH, HEADS = 8, 2
CASES: list[tuple[str, dict[str, Any]]] = [("window", {}), ("window", {"shift": True}), ("dilated", {}), ("pooled", {})]
IDS = ["window", "shifted", "dilated", "pooled"]
every = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)


def make(name: str, size: int, **options: Any) -> Mixer:
    torch.manual_seed(0)
    return make_mixer(name, {"size": size, **options}, WIDTH, HEADS)


def line(n: int, periodic: bool = False, name: str = "x") -> Axis:
    return space(name, torch.arange(n) / n, period=1.0 if periodic else None)


def influence(mixer: Mixer, geometry: Geometry) -> Tensor:
    """``(N, N)`` |∂ output of token i / ∂ input of token j| over the flattened lattice."""
    sizes = [axis.size for axis in geometry.axes]
    x = torch.randn(1, *sizes, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = mixer(x, geometry)[0].flatten(0, -2).square().sum(-1)
    return torch.stack([torch.autograd.grad(one, x, retain_graph=True)[0].flatten(0, -2).abs().amax(-1) for one in y])


@st.composite
def lattices(draw: st.DrawFn) -> tuple[Tensor, Geometry]:
    """Axes longer than a group or not, with periods, weights, padding that fills whole groups, own coordinates."""
    rank, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    axes = []
    for i in range(rank):
        n, kind = draw(st.integers(1, 9 - 2 * rank)), draw(st.sampled_from(["space", "space", "time", "set"]))
        own = batch if draw(st.booleans()) else 1
        coord = torch.rand(own, n, 1, generator=generator).cumsum(1)
        period = torch.full((1,), 7.0) if kind == "space" and draw(st.booleans()) else None
        measure = None
        if draw(st.booleans()):
            measure = 0.2 + torch.rand(own, n, generator=generator)
            measure[:, n - draw(st.integers(0, n - 1)):] = 0.0
        causal = kind == "time" and draw(st.booleans())
        axes.append(Axis(f"axis{i}", kind, coord, period=period, causal=causal, measure=measure))
    x = torch.randn(batch, *(a.size for a in axes), WIDTH, generator=generator)
    return x, Geometry(tuple(axes))


@every
@pytest.mark.parametrize("size", [2, 3])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(lattice=lattices())
def test_many_groups_equal_the_reference_and_so_do_gradients(name: str, options: dict[str, Any], size: int,
                                                             lattice: tuple[Tensor, Geometry]) -> None:
    assert_equals_reference(make(name, size, **options), *lattice)


@every
@pytest.mark.parametrize("periodic", [True, False])
def test_second_derivatives_equal_the_references(name: str, options: dict[str, Any], periodic: bool) -> None:
    geometry = Geometry((line(5, periodic), line(4, name="y")), second_order=True)
    x = torch.randn(2, 5, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    assert_second_derivatives_equal(make(name, 2, **options), x, geometry)


@every
@pytest.mark.parametrize("periodic", [True, False])
def test_one_group_that_covers_the_lattice_is_full_attention(name: str, options: dict[str, Any],
                                                             periodic: bool) -> None:
    mixer, full = make(name, 6, **options), make_mixer("full", {}, WIDTH, HEADS)
    full.load_state_dict(mixer.state_dict())
    geometry = Geometry((line(6, periodic), line(5, name="y")))
    x = torch.randn(2, 6, 5, WIDTH)
    torch.testing.assert_close(mixer(x, geometry)[0], full(x, geometry)[0])


@pytest.mark.parametrize(("size", "periodic", "shift", "windows"), [
    (4, False, False, "00001111"), (4, False, True, "00111122"), (4, True, False, "00001111"),
    (4, True, True, "00111100"), (4, False, False, "0000111"), (4, False, True, "0011112"), (4, True, True, "0011110"),
    (4, False, False, "0000111122"), (8, False, False, "000001111"), (3, False, True, "011122233"),
    (3, True, True, "011122200"), (9, False, True, "00000000")])
def test_a_token_sees_its_window_and_around_the_end_only_where_periodic(size: int, periodic: bool, shift: bool,
                                                                        windows: str) -> None:
    seen = influence(make("window", size, shift=shift), Geometry((line(len(windows), periodic),))) > 0
    assert seen.tolist() == [[one == other for other in windows] for one in windows]


def test_the_seam_of_one_axis_does_not_close_another() -> None:
    """Shifted windows of a lattice that is periodic in x only: joined around x, cut between the ends of y."""
    seen = influence(make("window", 2, shift=True), Geometry((line(4, True), line(4, name="y")))) > 0
    seen = seen.view(4, 4, 4, 4)
    assert seen[0, 1, 3, 2]
    assert not seen[0, 0, 0, 3]
    assert not seen[0, 0, 3, 3]
    assert seen[0, 0, 3, 0]


def test_the_four_corners_that_a_roll_joins_stay_apart() -> None:
    seen = influence(make("window", 2, shift=True), Geometry((line(4), line(4, name="y")))) > 0
    corners = seen.view(4, 4, 4, 4)[::3, ::3, ::3, ::3].reshape(4, 4)
    assert torch.equal(corners, torch.eye(4, dtype=torch.bool))


def test_windows_connect_only_if_some_are_shifted() -> None:
    geometry = Geometry((line(8), line(6, True, "y")))
    plain, moved = ((influence(make("window", 4, shift=s), geometry) > 0).double() for s in (False, True))
    assert torch.equal((plain @ plain > 0).double(), plain), "without a shift they stay apart in any depth"
    assert (plain @ moved @ plain > 0).all()


@pytest.mark.parametrize(("name", "options", "by"), [("window", {}, 4), ("window", {"shift": True}, 4),
                                                     ("pooled", {}, 4), ("dilated", {}, 1)])
def test_a_shift_by_whole_groups_commutes_on_a_periodic_lattice(name: str, options: dict[str, Any], by: int) -> None:
    mixer, geometry = make(name, 4, **options), Geometry((line(8, True), line(12, True, "y")))
    x = torch.randn(1, 8, 12, WIDTH)
    moved = mixer(x.roll((by, -by), (1, 2)), geometry)[0]
    torch.testing.assert_close(moved, mixer(x, geometry)[0].roll((by, -by), (1, 2)))
    if name != "dilated":
        assert not torch.allclose(mixer(x.roll(1, 1), geometry)[0], mixer(x, geometry)[0].roll(1, 1))


@pytest.mark.parametrize("n", [4, 7, 8, 10, 16])
def test_strided_groups_partition_the_axis_and_reach_along_it(n: int) -> None:
    seen = influence(make("dilated", 4), Geometry((line(n),))) > 0
    groups = {tuple(row.nonzero().flatten().tolist()) for row in seen}
    assert sorted(i for group in groups for i in group) == list(range(n))
    stride = -(-n // 4)
    assert len(groups) == stride
    for group in groups:
        assert len(group) <= 4
        assert group[-1] - group[0] > n - 2 * stride


def test_strided_groups_and_windows_as_long_as_the_stride_reach_everything() -> None:
    geometry = Geometry((line(9), line(6, name="y")))  # strides 3 and 2, windows of 3 × 3
    apart, near = ((influence(make(name, 3), geometry) > 0).double() for name in ("dilated", "window"))
    assert (apart @ near > 0).all()
    assert not (apart @ apart > 0).all()


@pytest.mark.parametrize("periodic", [True, False])
def test_pooled_has_an_influence_from_every_token(periodic: bool) -> None:
    assert (influence(make("pooled", 3), Geometry((line(8, periodic), line(5, name="y")))) > 0).all()


def test_pooled_is_full_attention_where_regions_are_constant() -> None:
    """Keys equal within a region (same place, same value): the mean key says it all, whatever the measures are."""
    mixer, full = make("pooled", 3), make_mixer("full", {}, WIDTH, HEADS)
    full.load_state_dict(mixer.state_dict())
    coord = (torch.arange(9) // 3).double()[None, :, None] * 0.2
    axis = Axis("x", "space", coord, measure=0.1 + torch.rand(1, 9))
    x = torch.randn(2, 3, WIDTH).repeat_interleave(3, 1)
    torch.testing.assert_close(mixer(x, Geometry((axis,)))[0], full(x, Geometry((axis,)))[0])
    finer = x + 0.3 * torch.randn(2, 9, WIDTH)
    assert not torch.allclose(mixer(finer, Geometry((axis,)))[0], full(finer, Geometry((axis,)))[0])


def test_pooled_converges_to_full_attention_as_regions_shrink() -> None:
    """A smooth field: the error of one mean key per region is the variance of the logits in it, so second order."""
    errors, axis = [], line(64, True)
    x = torch.sin(2 * torch.pi * (axis.coord + torch.arange(WIDTH) / WIDTH) * torch.tensor([1, 2] * (WIDTH // 2)))
    for size in (16, 8, 4, 2):
        mixer, full = make("pooled", size), make_mixer("full", {}, WIDTH, HEADS)
        full.load_state_dict(mixer.state_dict())
        exact = full(x, Geometry((axis,)))[0]
        errors.append(((mixer(x, Geometry((axis,)))[0] - exact).norm() / exact.norm()).item())
    order = torch.tensor(errors).log2().diff().neg()
    assert order[-1] > 1.7


@every
@pytest.mark.parametrize("more", [4, 8])
def test_padding_is_not_seen_even_where_it_fills_groups(name: str, options: dict[str, Any], more: int) -> None:
    mixer, axes = make(name, 4, **options), (line(8), line(3, name="y"))
    longer, x = lengthened(axes[0], more), torch.randn(2, 8, 3, WIDTH)
    one, two = (mixer(torch.cat([x, torch.randn(2, more, 3, WIDTH)], 1), Geometry((longer, axes[1])))[0]
                for _ in range(2))
    assert one.isfinite().all()
    torch.testing.assert_close(one[:, :8], two[:, :8])
    if name != "dilated":  # there the stride is that of the longer axis
        torch.testing.assert_close(one[:, :8], mixer(x, Geometry(axes))[0])
    leaf = torch.cat([x, torch.randn(2, more, 3, WIDTH)], 1).requires_grad_()
    slope, = torch.autograd.grad(mixer(leaf, Geometry((longer, axes[1])))[0][:, :8].square().sum(), leaf)
    assert slope.isfinite().all()
    assert (slope[:, 8:] == 0).all()


@every
def test_a_sample_without_any_weight_is_mixed_as_if_all_weighed_the_same(name: str, options: dict[str, Any]) -> None:
    mixer, axis = make(name, 3, **options), line(7)
    measure = torch.stack([torch.zeros(7), 0.1 + torch.rand(7)])
    x = torch.randn(2, 7, 2, WIDTH)
    geometry = Geometry((replace(axis, measure=measure), line(2, name="y")))
    together = mixer(x, geometry)[0]
    torch.testing.assert_close(together, mixer.reference(x, geometry))
    for b, own in enumerate((torch.ones(1, 7), measure[1:])):
        alone = Geometry((replace(axis, measure=own), line(2, name="y")))
        torch.testing.assert_close(together[[b]], mixer(x[[b]], alone)[0])


@every
def test_a_cell_cut_into_two_of_half_the_measure_changes_nothing(name: str, options: dict[str, Any]) -> None:
    """Both halves stay in the group of the whole: another token of the same group gives way to them."""
    mixer = make(name, 4, **options)
    n = 8
    axis = Axis("x", "space", torch.rand(1, n, 1).cumsum(1), measure=0.1 + torch.rand(1, n))
    twin = {"dilated": (2, 4)}.get(name, (4, 5))  # of one group, shifted or not
    axis = replace(axis, coord=axis.coord.index_copy(1, torch.tensor([twin[1]]), axis.coord[:, [twin[0]]]))
    x = torch.randn(1, n, WIDTH)
    x[:, twin[1]] = x[:, twin[0]]
    split, whole = axis.measure.clone(), axis.measure.clone()  # type: ignore[union-attr]
    total = split[:, twin[0]] + split[:, twin[1]]
    split[:, twin[0]], split[:, twin[1]] = 0.5 * total, 0.5 * total
    whole[:, twin[0]], whole[:, twin[1]] = total, 0.0
    results = [mixer(x, Geometry((replace(axis, measure=m),)))[0] for m in (split, whole)]
    torch.testing.assert_close(*results)


@every
def test_only_relative_coordinates_matter(name: str, options: dict[str, Any]) -> None:
    assert_only_relative_coordinates_matter(make(name, 3, **options), torch.randn(1, 7, WIDTH), line(7))


@every
def test_sets_and_causal_axes_join_the_batch(name: str, options: dict[str, Any]) -> None:
    mixer, axis = make(name, 2, **options), line(5)
    sensors = Axis("sensor", "set", torch.rand(1, 3, 2), segment=torch.tensor([[0, 0, 1]]))
    steps = time("t", torch.arange(2.0), causal=True)
    x = torch.randn(1, 3, 5, 2, WIDTH)
    together, state = mixer(x, Geometry((sensors, axis, steps)), ())
    assert state == ()
    for s in range(3):
        for t in range(2):
            torch.testing.assert_close(together[:, s, :, t], mixer(x[:, s, :, t], Geometry((axis,)))[0])
    assert (mixer(x[:, :, 0, 0], Geometry((sensors,)))[0] == 0).all()


@every
@pytest.mark.parametrize("kind", ["periodic", "seam", "indivisible", "padded", "own weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_kernel_is_taken(name: str, options: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    mixer, first = make(name, 3, **options), line(8 if kind == "indivisible" else 6, kind == "periodic")
    if kind == "padded":
        first = replace(first, measure=torch.tensor([[1.0, 1, 1, 0, 0, 0]]))
    if kind == "own weights":
        first = replace(first, measure=0.1 + torch.rand(2, 6))
    geometry = Geometry((first, line(4, True, "y")))
    x = torch.randn(2, first.size, 4, WIDTH).requires_grad_()
    mixer.prepare(geometry)
    known = set(geometry.memo)
    with Ops() as ops:
        y, _ = mixer(x, geometry)
        y.sum().backward()
    assert set(geometry.memo) == known, "every table is made beforehand"
    assert {FLASH, f"{FLASH}_backward"} <= ops.names
    assert not any("scaled_dot_product" in n and "flash" not in n for n in ops.names)
    assert not any("softmax" in n for n in ops.names)


@every
def test_options_are_checked(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="size"):
        make(name, 1, **options)
    assert {k: v.shape for k, v in make(name, 2, **options).state_dict().items()} == {
        k: v.shape for k, v in make(name, 64, **options).state_dict().items()}
