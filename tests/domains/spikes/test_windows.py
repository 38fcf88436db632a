"""Windows: which bins are scored and how often, what may be seen of other splits, and what is random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.windows import SpikeWindows
from sciml.errors import InputError

Stores = Callable[..., Store]
AROUND = {"before": 5, "scored": 24, "after": 7}
TASKS: dict[str, Any] = {"next": {"before": 8, "scored": 24}, "masked": AROUND, "behaviour": AROUND, "state": AROUND}
CONFIG: dict[str, Any] = {"floor": "smoothed", "slow_s": [0.5, 5.0, 60.0], "tasks": TASKS,
                          "lags": {"before": 2, "after": 2},
                          "masks": {"held_out": 2, "dropout": 0.5}}


def rngs(seed: int = 0) -> tuple[np.random.Generator, np.random.Generator]:
    return np.random.default_rng(seed), np.random.default_rng(seed)


def fitted(store: Store, **config: Any) -> Binned:
    return Binned.create({**CONFIG, **config}).fit(store)


def asked(adapter: Binned, store: Store, split: Any, task: str) -> SpikeWindows:
    names = {"next": "next_bin"}
    question, = (q for q in adapter.questions(store, split) if q.name == names.get(task, task))
    assert isinstance(question.windows, SpikeWindows)
    return question.windows


@pytest.mark.parametrize("task", TASKS)
def test_every_bin_of_a_split_is_scored_once(task: str, population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    adapter = fitted(store)
    for split, low, high in (("train", 0, 680), ("validation", 690, 790), ("test", 800, 1000)):
        windows, seen = asked(adapter, store, split, task), np.zeros(1000, int)
        for i in range(len(windows)):
            sample = windows.draw(i, *rngs())
            target, = adapter.encode(sample).targets.values()
            place = np.round((sample["time"].values - 5.0) / 0.1).astype(int)[1 if task == "next" else 0:]
            known = target.mask.any(-1).any(1)[0].numpy()
            assert (place[known] >= 0).all()
            seen[place[known]] += 1
        expected = np.zeros(1000, int)
        expected[low:high] = 1
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("task", TASKS)
def test_what_follows_a_block_is_not_seen(task: str, population_store: Stores) -> None:
    """Bins after the validation block change nothing of its batches, floor included."""
    store = population_store("whole", states=True, lfp=True)

    def change(data: dict[str, Any]) -> None:
        for values in data.values():
            values[790:] = values[790:] * 3 + 1

    adapter = fitted(store).floor()
    other = population_store("whole", states=True, lfp=True, change=change)
    windows, changed = (asked(adapter, s, "validation", task) for s in (store, other))
    assert len(windows) == 5
    for i in range(5):
        one, two = (adapter.encode(w.draw(i, *rngs())) for w in (windows, changed))
        assert torch.equal(one.values, two.values)
        for name, value in one.conditions.lattice.items():
            assert torch.equal(value, two.conditions.lattice[name]), name
        for head, target in one.targets.items():
            assert torch.equal(target.mask, two.targets[head].mask)
            assert torch.equal(target.baseline, two.targets[head].baseline)
            assert bool(torch.isfinite(target.baseline).all())


def test_training_windows_lie_in_the_training_blocks_and_labelled_ones_in_the_labelled_part(
        population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    adapter = fitted(store, labelled=0.2, labelled_seed=3)
    windows = adapter.open(store, "train", train=True)
    ranges: dict[str, list[int]] = {}
    for seed in range(120):
        sample = windows.draw(seed * len(windows) // 120, *rngs(seed))
        place = np.round((sample["time"].values[[0, -1]] - 5.0) / 0.1).astype(int)
        ranges.setdefault(sample.attrs["task"], []).extend(place.tolist())
    assert set(ranges) == set(TASKS)
    for task, places in ranges.items():
        assert min(places) >= 0
        assert max(places) < 680
        assert (max(places) - min(places) < 136) == (task in ("behaviour", "state")), task


def test_statistics_and_the_floor_of_labels_come_from_the_labelled_part(population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    part = fitted(store, labelled=0.2, labelled_seed=3)
    blocks = asked(part, store, "train", "behaviour").source.layout.blocks("train")
    first = int(np.random.default_rng(3).integers(0, 680 - 136 + 1))

    def change(data: dict[str, Any]) -> None:
        for name in ("behaviour_value", "state_value"):
            keep = data[name][first:first + 136].copy()
            data[name][:680] = np.nan
            data[name][first:first + 136] = keep

    assert len(blocks) == 1
    other = fitted(population_store("whole", states=True, lfp=True, change=change), labelled=0.2, labelled_seed=3)
    one, two = (a.datasets["whole"] for a in (part, other))
    np.testing.assert_array_equal(one.behaviour.mean, two.behaviour.mean)
    floors: Any = (one.floors, two.floors)
    for task in ("behaviour", "state"):
        torch.testing.assert_close(floors[0][task].weights, floors[1][task].weights)
    assert not np.allclose(one.behaviour.mean, fitted(store).datasets["whole"].behaviour.mean)


@pytest.mark.parametrize("low", [0, 1, 63, 64, 65, 500, 999])
def test_averages_before_a_window_are_those_of_a_run_over_the_whole(low: int, population_store: Stores) -> None:
    store = population_store("torn", gaps=True)
    adapter = fitted(store, tasks={"next": TASKS["next"]})
    windows = adapter.open(store, "train")
    history = adapter.datasets["torn"].history
    counts = torch.from_numpy(store.read("count", 0)).double()
    whole = history.averages(history.prepared(counts)[1], history.start(dtype=torch.float64).averages)[0][low]
    sample = windows.source.sample(0, low, min(low + 10, 1000))
    np.testing.assert_allclose(sample["averages"], whole, atol=1e-5)
    assert sample.indexes["time"].size == sample.sizes["time"]
    assert sample.sel(unit="u2")["count"].dims == ("time",)


def test_held_out_units_are_hidden_always_and_others_in_training_only(population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    masks = {"held_out": ["u1", "u4"], "time": 0.5, "cell": 0, "unit": 0}
    adapter = fitted(store, tasks={"masked": AROUND}, masks=masks)
    held = [1, 4]
    sample = asked(adapter, store, "test", "masked").draw(0, *rngs())
    assert np.flatnonzero(sample["hidden"].all("time")).tolist() == held
    assert not sample["hidden"].isel(unit=[0, 2, 3, 5]).any()
    train = adapter.open(store, "train", train=True)
    drawn = [train.draw(i, *rngs(i))["hidden"].values for i in range(40)]
    assert all(h[:, held].all() for h in drawn)
    assert 0.4 < np.mean([h[:, 0].mean() for h in drawn]) < 0.6
    assert all((h[:, 0] == h[:, 2]).all() for h in drawn)


def test_masks_of_units_and_cells_have_their_share(population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    for kind in ("unit", "cell"):
        masks = {"time": 0.0, "unit": 0.0, "cell": 0.0, kind: 0.4}
        train = fitted(store, tasks={"masked": AROUND}, masks=masks).open(store, "train", train=True)
        drawn = np.stack([train.draw(i, *rngs(i))["hidden"].values for i in range(60)])
        assert drawn.mean() == pytest.approx(0.4, abs=0.05)
        assert (drawn.all(1) | ~drawn.any(1)).all() == (kind == "unit")


def test_the_same_keys_draw_the_same_and_the_batch_agrees_on_its_task(population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    windows = fitted(store).open(store, "train", train=True)
    assert windows.draw(3, *rngs(1)).identical(windows.draw(3, *rngs(1)))
    batch = [windows.draw(i, np.random.default_rng(i), np.random.default_rng(9)).attrs["task"] for i in range(6)]
    assert len(set(batch)) == 1
    assert len({windows.draw(0, *rngs(i)).attrs["task"] for i in range(40)}) == len(TASKS)
    with pytest.raises(IndexError, match="window -1"):
        windows.draw(-1, *rngs())


def test_a_split_without_room_is_refused(population_store: Stores) -> None:
    store = population_store("whole", states=True, lfp=True)
    with pytest.raises(InputError, match=r"found blocks of at most 680 bins; expected room for 8 \+ 900 \+ 0"):
        fitted(store, tasks={"next": {"before": 8, "scored": 900}}).open(store, "train", train=True)


def test_recordings_of_one_store_have_windows_of_their_own(network_store: Stores) -> None:
    """Floors are fitted on all recordings; averages never run from one into the next."""
    store = network_store("twice", recordings=2)
    adapter = Binned.create({"floor": "smoothed", "slow_s": [0.2, 2.0], "tasks": {
        "next": {"before": 8, "scored": 24}, "behaviour": {"before": 4, "scored": 24, "after": 4}}}).fit(store)
    assert {b.group for b in asked(adapter, store, "train", "next").blocks} == {0, 1}
    source = asked(adapter, store, "train", "next").source
    for group in (0, 1):
        np.testing.assert_array_equal(source.sample(group, 0, 20)["averages"], 0)
        assert source.sample(group, 300, 320)["averages"].any()
    rates = [float(source.layout.recorded(g).count.mean()) for g in (0, 1)]
    assert np.isfinite(rates).all()
    for question in adapter.questions(store, "test"):
        assert isinstance(question.windows, SpikeWindows)
        assert len(question.windows) == sum(-(-(b.stop - b.start) // 24) for b in question.windows.blocks)
