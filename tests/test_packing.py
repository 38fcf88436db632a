"""Batches of samples: stacked grids, packed sets, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import tokens
from sciml.errors import InputError
from sciml.packing import alike, collate, unpack
from sciml.testing.compare import difference, widened
from sciml.tokens import Conditions, Target, TokenBatch


def grid(seed: int, *, observed: bool = False, uneven: bool = False, context: bool = False) -> TokenBatch:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 4, 3, 2, generator=g)
    x = torch.arange(4.0) if not uneven else torch.rand(4, generator=g).sort().values
    axes = (tokens.space("x", x), tokens.space("y", torch.arange(3.0), period=3.0))
    target = Target(values + 1, torch.ones(1, 1, 1, 1, dtype=torch.bool), values, torch.full((1, 1, 1, 2), 0.5))
    conditions = Conditions({"lead": torch.rand(1, generator=g)}, {"f": torch.rand(1, 4, 1, generator=g)},
                            grid(seed + 100) if context else None)
    seen = torch.rand(1, 4, 3, 1, generator=g) < 0.5 if observed else None
    return TokenBatch("d", "s", values, ("d/a", "d/b"), axes, seen, conditions, {"state": target},
                      sources=(f"grid {seed}",))


def atoms(seed: int, count: int, *, frames: int = 0, observed: bool = False) -> TokenBatch:
    """`frames` adds a time axis beside the packed one."""
    g = torch.Generator().manual_seed(seed)
    shape = (1, count, frames, 1) if frames else (1, count, 1)
    axis = tokens.identity("atom", torch.randint(0, 3, (count,), generator=g), "element",
                           coord=torch.randn(count, 3, generator=g), segment=torch.zeros(count, dtype=torch.long))
    axes = (axis, tokens.time("t", torch.arange(float(frames)))) if frames else (axis,)
    values = torch.randn(shape, generator=g)
    yes = torch.ones((1,) * len(shape), dtype=torch.bool)
    targets = {"energy": Target(torch.randn(1, 1, generator=g), yes.view(1, 1), torch.zeros(1, 1), torch.ones(1, 1)),
               "cells": Target(values * 2, yes, values, yes * 0.5)}
    seen = torch.rand(shape, generator=g) < 0.7 if observed else None
    return TokenBatch("d", "s", values, ("d/a",), axes, seen, Conditions({"charge": torch.rand(1, generator=g)}, {
        "f": torch.rand(shape[:-1], generator=g)}), targets, sources=(f"atoms {seed}",))


def assert_round_trip(batches: list[TokenBatch]) -> TokenBatch:
    together = collate(batches)
    back = unpack(together)
    assert len(back) == len(batches)
    for one, two in zip(batches, back):
        assert difference(widened(one), widened(two)) is None
    return together


@settings(max_examples=30, deadline=None, derandomize=True)
@given(count=st.integers(1, 4), flags=st.lists(st.booleans(), min_size=4, max_size=4), uneven=st.booleans(),
       context=st.booleans())
def test_grids_stack_and_come_back(count: int, flags: list[bool], uneven: bool, context: bool) -> None:
    together = assert_round_trip([grid(i, observed=flags[i], uneven=uneven, context=context) for i in range(count)])
    assert together.values.shape == (count, 4, 3, 2)
    assert together.axes[0].coord.shape[0] == (count if uneven and count > 1 else 1)
    assert together.num_segments == count
    assert together.sources == tuple(f"grid {i}" for i in range(count))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), frames=st.sampled_from([0, 3]),
       observed=st.booleans())
def test_sets_pack_and_come_back(sizes: list[int], frames: int, observed: bool) -> None:
    batches = [atoms(i, n, frames=frames, observed=observed and i % 2 == 0) for i, n in enumerate(sizes)]
    together = assert_round_trip(batches)
    assert together.values.shape[:2] == (1, sum(sizes))
    expected = [i for i, n in enumerate(sizes) for _ in range(n)]
    assert together.axes[0].segment.tolist() == [expected]  # type: ignore[union-attr]
    assert together.targets["energy"].value.shape == (len(sizes), 1)
    assert together.targets["cells"].value.shape == together.values.shape
    assert together.conditions.vector["charge"].shape == (len(sizes),)


def test_packing_packed_batches_counts_segments_on() -> None:
    pairs = [collate([atoms(0, 2), atoms(1, 3)]), collate([atoms(2, 1), atoms(3, 2)])]
    assert collate(pairs).axes[0].segment.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]  # type: ignore[union-attr]
    for one, two in zip([atoms(0, 2), atoms(1, 3), atoms(2, 1), atoms(3, 2)], unpack(collate(pairs))):
        assert difference(widened(one), widened(two)) is None


def test_what_does_not_fit_is_refused_with_both_sources() -> None:
    other = grid(1)
    smaller = replace(other, values=other.values[:, :2], axes=(tokens.space("x", torch.arange(2.0)), other.axes[1]))
    renamed = replace(other, channels=("d/a", "d/c"))
    elsewhere = replace(other, domain="e")
    for wrong in (smaller, renamed, elsewhere):
        with pytest.raises(InputError, match=r"grid 0.*grid 1"):
            collate([grid(0), wrong])


def test_other_conditions_are_refused() -> None:
    with pytest.raises(InputError, match="same conditions"):
        collate([grid(0), replace(grid(1), conditions=Conditions({}, grid(1).conditions.lattice))])
    with pytest.raises(InputError, match="same conditions"):
        collate([grid(0, context=True), grid(1)])


def test_samples_scaled_by_wavenumber_and_others_are_batched_apart() -> None:
    axis = tokens.space("x", torch.arange(4.0), period=4.0)
    one = torch.ones(1, 4, 1)
    plain = TokenBatch("doc", "doc", one, ("doc/u",), (axis,), targets={"state": Target(one, one.bool(), one, one)})
    spectral = replace(plain, targets={"state": Target(one, one.bool(), one, one, torch.ones(1, 3, 1))})
    unknown = replace(plain, targets={"state": Target(one, torch.zeros(1, 1, 1).bool(), one, one)})
    assert [len(group) for group in alike([plain, plain, spectral, spectral, unknown])] == [2, 2, 1]
