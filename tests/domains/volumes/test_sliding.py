"""Windows over a lattice: what is pointwise is unchanged, whatever the window; what is known is cut with them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciml import tokens
from sciml.domains.volumes.sliding import blended, box, mirrored, planes, shares, starts, tiles, weights
from sciml.tokens import Conditions, Outputs, Target, TokenBatch

SIZES = st.tuples(*[st.integers(1, 9)] * 3)


def volume(lattice: tuple[int, ...], batch: int = 2) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, *lattice)
    axes = tuple(tokens.space(name, torch.linspace(-1.0, 2.0, n) if n > 1 else torch.zeros(1))
                 for name, n in zip("xyz", lattice))
    value = torch.randn(*shape, 2, generator=generator)
    target = Target(value, torch.ones(batch, *lattice, 1, dtype=torch.bool), torch.zeros(()), torch.ones(1))
    return TokenBatch("volumes", "made", torch.randn(*shape, 1, generator=generator), ("volumes/mri",), axes,
                      observed=torch.rand(*shape, 1, generator=generator) < 0.8,
                      conditions=Conditions(vector={"t": torch.zeros(batch)},
                                            lattice={"mask": torch.randn(*shape, generator=generator),
                                                     "slope": torch.randn(1, lattice[0], 1, 1, generator=generator)}),
                      targets={"label": target}, num_segments=batch)


def pointwise(batch: TokenBatch) -> Outputs:
    """Of all that belongs to a cell, its place included."""
    place = sum((i + 1.0) * axis.coord[:, :, 0].reshape(1, *(-1 if i == j else 1 for j in range(3)))
                for i, axis in enumerate(batch.axes))
    known = 0 if batch.observed is None else batch.observed[..., 0]
    cell = batch.values[..., 0] * known + batch.conditions.lattice["mask"] * batch.conditions.lattice["slope"] + place
    return Outputs({"label": torch.stack([cell, cell**2], -1), "class": batch.values.mean((1, 2, 3))})


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.sampled_from([0.0, 0.25, 0.5, 0.8]))
def test_windows_cover_everything_and_their_weights_sum_to_one(lattice: tuple[int, ...], window: tuple[int, ...],
                                                               overlap: float) -> None:
    total = torch.zeros(lattice)
    for tile, weight in weights(lattice, window, overlap):
        assert (weight > 0).all()
        assert [part.stop - part.start for part in tile] == [min(w, n) for w, n in zip(window, lattice)]
        total[tile] += weight
    torch.testing.assert_close(total, torch.ones(lattice))
    assert len(tiles(lattice, window, overlap)) == len(set(map(str, tiles(lattice, window, overlap))))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.floats(0, 0.95))
def test_neighbours_overlap_by_at_least_what_was_asked(size: int, window: int, overlap: float) -> None:
    begins = starts(size, window, overlap)
    gaps = [b - a for a, b in itertools.pairwise(begins)]
    assert begins[0] == 0
    assert begins[-1] == max(0, size - window)
    assert all(0 < gap <= max(1, window * (1 - overlap)) for gap in gaps)


def test_the_middle_of_a_window_weighs_more_than_its_end() -> None:
    first, second = shares(12, 8, 0.5)
    assert first[:4].tolist() == [1.0] * 4
    assert first[4] > first[5] > 0.5 > first[6] > first[7]
    torch.testing.assert_close(second, first.flip(0))


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.sampled_from([0.0, 0.5]), st.sets(st.sampled_from("xyz")))
def test_what_is_pointwise_is_not_changed_by_windows_and_mirrors(
        lattice: tuple[int, ...], window: tuple[int, ...], overlap: float, mirrors: set[str]) -> None:
    batch = volume(lattice)

    def operate(part: TokenBatch) -> Outputs:
        assert part.lattice == tuple(min(n, w) for n, w in zip(lattice, window))
        assert all(bool((axis.coord.diff(dim=1) > 0).all()) for axis in part.axes)
        return pointwise(part)

    whole = pointwise(batch)
    if not mirrors:
        torch.testing.assert_close(blended(batch, operate, window, overlap)["label"], whole["label"])
    even = replace(batch, axes=tuple(replace(axis, coord=torch.zeros_like(axis.coord)) for axis in batch.axes),
                   conditions=replace(batch.conditions, lattice={**batch.conditions.lattice,
                                                                 "slope": torch.ones(1, 1, 1, 1)}))
    found = blended(even, pointwise, window, overlap, mirrors)
    torch.testing.assert_close(found["label"], pointwise(even)["label"])


def test_a_volume_within_the_window_is_one_call() -> None:
    batch, seen = volume((4, 5, 3)), []
    blended(batch, lambda part: seen.append(part) or pointwise(part), (8, 8, 8))  # type: ignore[func-returns-value]
    assert seen == [batch]


def test_a_tile_takes_its_part_of_all_that_has_a_place() -> None:
    batch = volume((6, 5, 4))
    part = box(batch, (slice(1, 4), slice(0, 5), slice(2, 4)))
    inside = (slice(None), slice(1, 4), slice(0, 5), slice(2, 4))
    torch.testing.assert_close(part.values, batch.values[inside])
    torch.testing.assert_close(part.targets["label"].value, batch.targets["label"].value[inside])
    assert part.targets["label"].mask.shape == (2, 3, 5, 2, 1)
    assert part.targets["label"].scale.shape == (1,)
    torch.testing.assert_close(part.axes[2].coord, batch.axes[2].coord[:, 2:4])
    assert part.axes[0].measure is not None
    assert part.conditions.lattice["slope"].shape == (1, 3, 1, 1)
    assert part.conditions.vector is batch.conditions.vector


def test_pooled_heads_are_averaged_and_coarser_ones_left_out() -> None:
    batch = volume((8, 4, 4))

    def operate(part: TokenBatch) -> Outputs:
        return Outputs({**pointwise(part).heads, "deep": part.values[:, ::2, ::2, ::2]})

    found = blended(batch, operate, (4, 4, 4), 0.0)
    torch.testing.assert_close(found["class"], batch.values.mean((1, 2, 3)))
    assert set(found.heads) == {"label", "class"}
    assert set(blended(batch, operate, (8, 4, 4)).heads) == {"label", "class", "deep"}


def test_mirrors_make_an_operator_equivariant() -> None:
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 2, 3, padding=1)

    def operate(batch: TokenBatch) -> Outputs:
        return Outputs({"label": net(batch.values.movedim(-1, 1)).movedim(1, -1)})

    batch = volume((5, 4, 6))
    turned = replace(batch, values=batch.values.flip(1, 3))
    both = mirrored(operate, ("x", "z"))
    torch.testing.assert_close(both(turned)["label"], both(batch)["label"].flip(1, 3))
    assert not torch.allclose(operate(turned)["label"], operate(batch)["label"].flip(1, 3), atol=1e-2)
    with pytest.raises(ValueError, match="no axes"):
        mirrored(operate, ("w",))(batch)


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_planes_given_out_one_after_the_other_are_the_blend(lattice: tuple[int, ...], window: tuple[int, ...],
                                                            overlap: float) -> None:
    values = torch.randn(*lattice, 2, generator=torch.Generator().manual_seed(1))

    def run(tile: tuple[slice, ...]) -> Tensor:
        cut = values[tile]
        return cut + cut.mean((0, 1, 2))

    expected = torch.zeros(*lattice, 2)
    for tile, weight in weights(lattice, window, overlap):
        expected[tile] += weight[..., None] * run(tile)
    found, end = [], 0
    for part, output in planes(lattice, window, overlap, 2, run):
        assert part.start == end
        end = part.stop
        found.append(output.clone())
    torch.testing.assert_close(torch.cat(found, -2), expected)


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
def test_equal_to_monai_where_it_is_given_the_same_weights() -> None:
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is absent")
    net, values = torch.nn.Conv3d(1, 2, 5, padding=2), torch.randn(1, 1, 24, 20, 16)
    bell = torch.exp(-0.5 * (torch.arange(8) - 3.5) ** 2)
    with torch.no_grad():
        theirs = inferers.sliding_window_inference(
            values, (8, 8, 8), 1, net, overlap=0.5, roi_weight_map=bell[:, None, None] * bell[:, None] * bell)
        parts = planes((24, 20, 16), (8, 8, 8), 0.5, 2, lambda tile: net(values[:, :, *tile])[0].movedim(0, -1))
        ours = torch.cat([output.clone() for _, output in parts], -2).movedim(-1, 0)[None]
        torch.testing.assert_close(ours, theirs)
