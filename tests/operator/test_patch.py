"""Patches, padding and coarsening: shapes, round trips, and what refinement must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import tokens
from sciml.operator.lattice import cells_per_token, coarsen, crop, pad, spacing
from sciml.operator.patch import Merge, Split, Taps, fold, regrid, unfold
from sciml.tokens import Conditions, TokenBatch, TokenSpec

SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(axes=SIZES, channels=st.integers(1, 3))
def test_unfold_undoes_fold(axes: list[tuple[int, int]], channels: int) -> None:
    counts, sizes = [n for n, _ in axes], [p for _, p in axes]
    x = torch.randn(2, *(n * p for n, p in axes), channels)
    folded = fold(x, sizes)
    assert folded.shape == (2, *counts, channels * torch.tensor(sizes).prod().item())
    assert torch.equal(unfold(folded, sizes, channels), x)
    first = x[(slice(None), *(slice(0, p) for p in sizes))]
    assert torch.equal(folded[(slice(None), *[0] * len(sizes))], first.reshape(2, -1))


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (2, 2, 2), (2, 1), (1,), (1, 2, 1)], ids=str)
def test_merge_and_split_halve_and_double_with_the_same_weights(sizes: tuple[int, ...]) -> None:
    merge, split = Merge(4, 6), Split(6, 4)
    x = torch.randn(2, *(3 * p for p in sizes), 4)
    down = merge(x, sizes)
    assert down.shape == (2, *[3] * len(sizes), 6)
    assert split(down, sizes).shape == x.shape


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (1, 2)], ids=str)
def test_merge_is_the_sum_over_the_places_of_a_patch(sizes: tuple[int, ...]) -> None:
    merge = Merge(4, 6)
    kernel = merge.taps.kernel(sizes)
    x = torch.randn(1, *sizes, 4)
    expected = sum(merge.widen.weight @ tap @ cell for tap, cell in zip(kernel, x.reshape(-1, 4)))
    torch.testing.assert_close(merge(x, sizes).flatten(), expected / len(kernel) ** 0.5 + merge.widen.bias)


def test_the_kernel_of_a_patch_is_a_product_that_tells_axes_apart() -> None:
    taps = Taps(3, 2)
    kernel = taps.kernel((2, 2)).view(2, 2, 3, 3)
    torch.testing.assert_close(kernel[1, 0], taps.weight[1] @ taps.weight[0])
    assert not torch.allclose(kernel[1, 0], kernel[0, 1])


def axes_of(cells: Sequence[int], period: float | None = 1.0) -> tuple[tokens.Axis, ...]:
    return tuple(tokens.space(name, torch.arange(n, dtype=torch.float64) / n, period=period)
                 for name, n in zip("xyz", cells))


def smooth(cells: Sequence[int], first: float = 0.0) -> torch.Tensor:
    """Waves that fit 1 to 3 times, ``(1, *cells, 2)``; first: of the points, in cells."""
    x, y = torch.meshgrid(*((torch.arange(n, dtype=torch.float64) + first) * (2 * torch.pi / n) for n in cells),
                          indexing="ij")
    return torch.stack([(3 * x - 2 * y).sin() + 1, (2 * x).cos() * y.sin()], -1)[None]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(have=st.tuples(st.integers(1, 6), st.integers(1, 6)), want=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_periodic_waves_are_the_same_function_on_every_grid_that_resolves_them(
        have: tuple[int, int], want: tuple[int, int]) -> None:
    """Seven patches along each axis: at least 7 points, for waves that fit 3 times."""
    cells, others = [7 * n for n in have], [7 * n for n in want]
    found = regrid(smooth(cells), axes_of(cells), have, want, True)
    torch.testing.assert_close(found, smooth(others), atol=1e-12, rtol=0)


@pytest.mark.parametrize("finer", [True, False])
def test_waves_beyond_the_other_grid_are_cut_or_not_there(finer: bool) -> None:
    x = torch.randn(1, 12, 1, dtype=torch.float64)
    y = regrid(x, axes_of([12]), [2], [4 if finer else 1], True)
    there, here = torch.fft.rfft(y[0, :, 0], norm="forward"), torch.fft.rfft(x[0, :, 0], norm="forward")
    kept = 6 if finer else 3
    torch.testing.assert_close(there[:kept], here[:kept])
    assert there[kept + 1 if finer else kept:].abs().max() < 1e-12
    if finer:
        torch.testing.assert_close(y[:, ::2], x)


@pytest.mark.parametrize(("period", "whole"), [(1.0, False), (None, True)], ids=["missing cells", "ends"])
def test_elsewhere_the_error_falls_with_the_third_power_of_the_spacing(period: float | None, whole: bool) -> None:
    """In the interior; first points are the same on a periodic axis, else the middles of first cells."""
    for have, want in ((2, 3), (4, 2), (3, 3 * 5)):
        errors = []
        for patches in (16, 32):
            cells, others = [have * patches] * 2, [want * patches] * 2
            first = 0.0 if period else 0.5
            found = regrid(smooth(cells, first), axes_of(cells, period), [have] * 2, [want] * 2, whole)
            missed = (found - smooth(others, first))[:, want * 4: -want * 4, want * 4: -want * 4]
            errors.append(float(missed.abs().max()))
        power = 1.8 if want < have else 2.5  # averaged over cells, which are means of a curved function
        assert errors[1] < errors[0] / 2**power
        assert errors[0] < 0.1


@pytest.mark.parametrize("period", [1.0, None])
def test_constants_stay_and_so_does_what_has_the_cells(period: float | None) -> None:
    found = regrid(torch.full((2, 6, 8, 1), 1.5), axes_of((6, 8), period), (3, 2), (2, 5), False)
    torch.testing.assert_close(found, torch.full((2, 4, 20, 1), 1.5, dtype=torch.float64))
    same = torch.randn(2, 6, 8, 1)
    assert regrid(same, axes_of((6, 8), period), (3, 2), (3, 2), True) is same


def batch(shape: tuple[int, ...], periodic: bool) -> TokenBatch:
    axes = tuple(tokens.space(n, torch.arange(size) / size, period=1.0 if periodic else None)
                 for n, size in zip("xyz", shape))
    return TokenBatch("d", "s", torch.randn(2, *shape, 1), ("d/a",), axes,
                      conditions=Conditions({}, {"f": torch.randn(1, *shape), "g": torch.randn(2, *[1] * len(shape))}))


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 8), (3, 6, 4)], ids=str)
def test_padding_adds_cells_of_no_measure_and_crop_takes_them_off(shape: tuple[int, ...], periodic: bool) -> None:
    small = batch(shape, periodic)
    large = pad(small, [4] * len(shape))
    assert large.lattice == tuple(-(-n // 4) * 4 for n in shape)
    assert torch.equal(crop(large.values, shape), small.values)
    assert torch.equal(crop(large.conditions.lattice["f"], shape), small.conditions.lattice["f"])
    assert large.conditions.lattice["g"].shape == small.conditions.lattice["g"].shape
    for before, after in zip(small.axes, large.axes):
        torch.testing.assert_close(after.weights().sum(), before.weights().sum())
        assert (after.weights()[:, before.size:] == 0).all()
        torch.testing.assert_close(after.coord.diff(dim=1), torch.full_like(after.coord.diff(dim=1), spacing(before)))
    if periodic:
        assert large.observed is None
        longer = crop(large.values, (large.lattice[0], *shape[1:]))
        assert torch.equal(longer[:, -1], small.values[:, (large.lattice[0] - 1) % shape[0]])
    else:
        assert large.observed is not None
        assert int(large.observed.sum()) == small.values[:1, ..., 0].numel() * large.observed.shape[0]


def test_padding_a_whole_number_of_patches_changes_nothing() -> None:
    whole = batch((4, 8), True)
    assert pad(whole, [4, 4]) is whole


def test_coarser_axes_keep_their_measure_and_centre() -> None:
    axis = tokens.space("x", torch.tensor([0.0, 0.1, 0.5, 0.7, 0.8, 1.0]))
    same, coarse = coarsen((axis, axis), (1, 3))
    assert same is axis
    assert coarse.size == 2
    torch.testing.assert_close(coarse.coord[0, :, 0], torch.tensor([0.2, 2.5 / 3]))
    torch.testing.assert_close(coarse.weights().sum(), axis.weights().sum())


def test_a_patch_keeps_its_length_if_it_has_one() -> None:
    spec = TokenSpec("d", ("d/a",), {}, patch=4)
    fixed = replace(spec, patch_length=1 / 16)
    for n, expected in [(64, 4), (48, 3), (96, 6), (8, 1)]:
        axes = batch((n,), True).axes
        assert cells_per_token(axes, spec) == [4]
        assert cells_per_token(axes, fixed) == [expected]
    members = tokens.identity("v", torch.arange(3), "x/v")
    assert cells_per_token((members, tokens.time("t", torch.arange(4.0), causal=True)), spec) == [1, 1]
