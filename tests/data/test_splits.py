"""What is split by what where a source doesn't say, and that nothing of one split lies in or beside another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.source import read_source
from sciml.data.split_config import GroupSplit, TimeSplit
from sciml.data.splits import Clock, check_leak, make_splits, together, usual_split
from sciml.errors import InputError

Make = Callable[..., Any]


def test_the_usual_split_of_spikes_is_blocks_of_time_a_second_apart(built: Make, spikes: Make, tmp_path: Path) -> None:
    splits = built(spikes()).meta.splits
    assert splits.gap == 50
    assert [(b.group, b.start, b.stop) for name in ("train", "validation", "test") for b in splits.of(name)][::3] == [
        (0, 0, 210), (0, 260, 290), (0, 340, 400)]
    assert check_leak(splits) == []
    assert built(spikes(), "g", split={"by": "group", "seed": None}).meta.splits.key == "recording, in order"
    assert built(spikes(), "n", split={"by": "time", "gap": 0}).meta.splits.gap == 0
    none = xr.Dataset()
    assert usual_split(None, none, "spikes", Clock(2.0, "s"), where="t").gap == 1  # type: ignore[union-attr]
    assert usual_split(None, none, "spikes", Clock(1.0, "ms"), where="t").gap == 1000  # type: ignore[union-attr]
    timed = usual_split(TimeSplit(by="time"), none, "fields", Clock(0.1, "s"), where="t")
    assert timed.gap == 0  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"\[split.gap\]: found no uniform time step"):
        usual_split(None, none, "spikes", None, where="t")
    (tmp_path / "source.yaml").write_text(json.dumps(
        {"name": "toy", "domain": "spikes", "builder": "toy", "split": {"gap": 7}}))
    assert read_source(tmp_path / "source.yaml").split == TimeSplit(by="time", gap=7)


def test_configurations_of_one_molecule_stay_in_one_split_and_trajectories_of_a_few_in_order() -> None:
    molecule = np.repeat(np.arange(20), 3)[np.random.default_rng(0).permutation(60)]
    many = xr.Dataset({"molecule": ("configuration", molecule)})
    split = usual_split(None, many, "molecules", None, where="t")
    cut = make_splits(split, 60, 1, group_dim="configuration", where="t",
                      keys=together(split, many, "configuration", where="t"))
    found = [{int(molecule[b.group]) for b in cut.of(name)} for name in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert [len(f) for f in found] == [16, 2, 2]
    assert len(set.union(*found)) == 20
    assert sum(len(cut.of(name)) for name in ("train", "validation", "test")) == 60  # type: ignore[arg-type]
    few = many.assign(molecule=many["molecule"] * 0)
    assert usual_split(None, few, "molecules", None, where="t").seed is None  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"split.together.*found mass: no such variable"):
        together(GroupSplit(together="mass"), few, "configuration", where="t")


@pytest.mark.parametrize("split", [{"by": "shuffle"}, {"by": "random"}, {"by": "time", "shuffle": True},
                                   {"by": "window"}])
def test_windows_are_never_drawn_into_splits(tmp_path: Path, split: dict[str, Any]) -> None:
    (tmp_path / "source.yaml").write_text(json.dumps(
        {"name": "toy", "domain": "spikes", "builder": "toy", "split": split}))
    with pytest.raises(InputError, match=r"\[split\].*contiguous blocks with a gap.*those beside a training window"):
        read_source(tmp_path / "source.yaml")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(40, 90), st.integers(1, 3))
def test_splits_made_here_never_leak_and_moved_ones_do(gap: int, steps: int, groups: int) -> None:
    cut = make_splits(TimeSplit(by="time", gap=gap), groups, steps, group_dim="g", where="t")
    assert check_leak(cut) == []
    first = cut.validation[0]
    moved = cut.model_copy(update={"validation": (first.model_copy(update={"start": first.start - gap - 1}),)})
    assert [(leak.splits, leak.steps) for leak in check_leak(moved)] == [(("train", "validation"), -1)]
    if gap:
        near = cut.model_copy(update={"test": (cut.test[0].model_copy(update={"start": cut.test[0].start - 1}),)})
        assert [(leak.splits, leak.steps) for leak in check_leak(near)] == [(("validation", "test"), gap - 1)]
