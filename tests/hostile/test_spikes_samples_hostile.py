"""Samples and stores of recordings that don't fit what was fitted: refused, saying what, where and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.spikes.binned import Binned
from sciml.errors import InputError

CONFIG: dict[str, Any] = {"floor": "smoothed", "slow_s": [1.0], "tasks": {
    "next": {"before": 4, "scored": 8}, "behaviour": {"before": 2, "scored": 8, "after": 2}}}


def store_of(folder: Path, counts: np.ndarray, dt: float | None = 0.1, **variables: tuple[str, np.ndarray]) -> Store:
    steps, units = counts.shape
    data = {"count": (("recording", "time", "unit"), counts[None].astype(np.float32)), **{
        name: (("recording", "time", dim), x[None].astype(np.float32)) for name, (dim, x) in variables.items()}}
    described = {"count": Variable(role="state", unit="1", dims=("time", "unit")), **{
        name: Variable(role="label", unit="1", dims=("time", dim)) for name, (dim, _) in variables.items()}}
    axes = {"time": AxisMeta(kind="time", unit="s"), "unit": AxisMeta(kind="set", unit="1"), **{
        dim: AxisMeta(kind="set", unit="1") for dim, _ in variables.values()}}
    coords = {"time": np.arange(steps) * (dt or 0.1), "unit": [f"u{i}" for i in range(units)], **{
        dim: [f"{dim}{i}" for i in range(x.shape[1])] for dim, x in variables.values()}}
    cuts = ((0, int(0.6 * steps)), (int(0.6 * steps), int(0.8 * steps)), (int(0.8 * steps), steps))
    splits = Splits(key="time", **{name: (Block(group=0, start=a, stop=b),)
                                   for name, (a, b) in zip(("train", "validation", "test"), cuts)})  # type: ignore[arg-type]
    draft = StoreDraft(domain="spikes", dataset="lab", group_dim="recording", groups=1, variables=described, axes=axes,
                       dt=dt, splits=splits, provenance=Provenance(builder="test"))
    return write_store(xr.Dataset(data, coords=coords), draft, folder / "lab.zarr", overwrite=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Binned, Store, xr.Dataset]:
    rng = np.random.default_rng(0)
    store = store_of(tmp_path_factory.mktemp("lab"), rng.poisson(1.0, (200, 4)),
                     behaviour_value=("behaviour", rng.normal(size=(200, 2))))
    adapter = Binned.create(CONFIG).fit(store)
    rngs = np.random.default_rng(0), np.random.default_rng(0)
    return adapter, store, adapter.open(store, "test").draw(0, *rngs)


CHANGES: list[tuple[Callable[[xr.Dataset], xr.Dataset], str]] = [
    (lambda s: s.drop_vars("count"), r"\[count\]: found none; expected a variable count \(time, unit\)"),
    (lambda s: s.transpose("unit", ...), r"\[count\]: found \('unit', 'time'\)"),
    (lambda s: s.assign_coords(unit=["u0", "u1", "u2", "x9"]), r"\[unit\]: found x9; expected some of the 4 units"),
    (lambda s: s.assign_coords(time=s["time"] * 2), r"\[time\]: found bins of 0.2 s.*expected bins of 0.1 s"),
    (lambda s: s.assign_coords(time=("time", np.sort(np.random.default_rng(0).random(12)))), r"\[time\].*uneven"),
    (lambda s: s.assign_attrs(dataset="other"), r"\[dataset\]: found other; expected one of lab"),
    (lambda s: s.assign_attrs(task="decode"), r"\[task\]: found decode; expected one of next, behaviour"),
    (lambda s: s.assign_attrs(task="behaviour").assign_coords(behaviour=["behaviour0", "speed"]),
     r"\[behaviour\]: found speed; expected some of behaviour0, behaviour1"),
    (lambda s: s.assign_attrs(task="behaviour").drop_vars("behaviour"), r"\[behaviour\]: found no labels"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_sample_that_does_not_fit_is_refused(change: Callable[[xr.Dataset], xr.Dataset], words: str,
                                               lab: tuple[Binned, Store, xr.Dataset]) -> None:
    adapter, _, sample = lab
    with pytest.raises(InputError, match=words) as caught:
        adapter.encode(change(sample))
    assert caught.value.fix


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -3.0, 1e30])
def test_broken_counts_do_not_reach_the_operator_as_such(value: float, lab: tuple[Binned, Store, xr.Dataset]) -> None:
    adapter, _, sample = lab
    broken = sample.copy(deep=True)
    broken["count"].values[3, 1] = value
    batch = adapter.encode(broken)
    assert bool(torch.isfinite(batch.values).all())
    assert all(bool(torch.isfinite(x).all()) for x in batch.conditions.lattice.values())


def test_an_empty_or_short_sample_says_so(lab: tuple[Binned, Store, xr.Dataset]) -> None:
    adapter, _, sample = lab
    for steps, task in ((0, "next"), (1, "next"), (0, "behaviour")):
        with pytest.raises(InputError, match=rf"\[time\]: found {steps} bins; expected more, for the task {task}"):
            adapter.encode(sample.isel(time=slice(0, steps)).assign_attrs(task=task))
    assert adapter.encode(sample.isel(time=slice(0, 2)).drop_vars("floor")).values.shape[2] == 1


def test_stores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(1.0, (200, 4))
    with pytest.raises(InputError, match=r"\[time\]: found uneven bins"):
        Binned.create(CONFIG).fit(store_of(tmp_path, counts, dt=None))
    plain = store_of(tmp_path, counts)
    with pytest.raises(InputError, match=r"tasks.behaviour\]: found a store without behaviour"):
        Binned.create(CONFIG).fit(plain)
    only = {**CONFIG, "tasks": {"next": {"before": 4, "scored": 8}}}
    for changed, words in (({"bin_s": 0.25}, r"bin_s\]: found 0.25; expected a multiple of the store's bins of 0.1 s"),
                           ({"bin_s": 0.05}, "expected a multiple"),
                           ({"behaviours": ["vx"]}, r"behaviours\]: found vx; expected some of none"),
                           ({"masks": {"held_out": 4}}, r"held_out\]: found 4; expected fewer than the 4 units"),
                           ({"masks": {"held_out": ["u9"]}}, r"held_out\]: found u9")):
        with pytest.raises(InputError, match=words):
            Binned.create({**only, **changed}).fit(plain)
    negative = store_of(tmp_path, counts - 1)
    with pytest.raises(InputError, match=r"\[counts\]: found -1.0; expected counts ≥ 0"):
        Binned.create(only).fit(negative)
    with pytest.raises(InputError, match=r"count/u0\]: found no finite value"):
        store_of(tmp_path, np.full((200, 4), np.nan))


@pytest.mark.parametrize(("config", "words"), [
    ({"tasks": {}}, "tasks"), ({"tasks": {"next": {"before": 4, "scored": 8, "after": 1}}}, "looks ahead"),
    ({"tasks": {"masked": {}}, "masks": {"time": 0, "unit": 0, "cell": 0}}, "hides nothing"),
    ({"embedding": {"width": 0}}, "width"), ({"tokens": "words"}, "tokens"), ({"labelled": 0}, "labelled")])
def test_sections_that_contradict_themselves_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Binned.create(config)
