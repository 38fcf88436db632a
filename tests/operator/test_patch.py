"""Patches, padding and coarsening: shapes, round trips, and what refinement must keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import tokens
from sciml.operator.lattice import cells_per_token, coarsen, crop, pad, spacing
from sciml.operator.patch import Merge, Split, Taps, average, fold, resample, unfold
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


@pytest.mark.parametrize("sizes", [(2,), (2, 3), (1, 2)], ids=str)
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


@settings(max_examples=30, deadline=None, derandomize=True)
@given(patch=st.integers(1, 6), size=st.integers(2, 12))
def test_taps_on_another_grid(patch: int, size: int) -> None:
    taps = torch.randn(patch, 2, 2, dtype=torch.float64)
    assert torch.equal(resample(taps, patch), taps)
    assert torch.equal(average(taps, patch), taps)
    assert resample(taps, size).shape == average(taps, size).shape == (size, 2, 2)
    torch.testing.assert_close(average(taps, size).mean(0), taps.mean(0))
    torch.testing.assert_close(resample(taps, size)[0], taps[0])
    same = torch.ones(patch, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(resample(same, size), torch.ones(size, 1, 1, dtype=torch.float64))


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
