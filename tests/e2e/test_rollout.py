"""Rollouts: xarray in and out, streamed to Zarr, the same after a kill, stopped where they blow up."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import sciml
from sciml import checkpoint
from sciml.data.store import Store, open_store
from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError
from sciml.predictor import Predictor
from sciml.rollout import BlowUp, dump_state, restore_state, rollout, rollout_to_zarr
from sciml.testing.compare import difference
from sciml.tokens import Outputs, State
from tests.e2e import tiny

Job = Callable[..., int]
STEPS = 9


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return sciml.load(str(trained))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The data set of the first store with more frames and three test trajectories."""
    from sciml.data.build import build
    from sciml.data.source import SourceSpec

    folder = tmp_path_factory.mktemp("several")
    store = tiny.navier_stokes(folder / "a.zarr", trajectories=5, frames=7)
    options = dict(store.meta.provenance.options)
    source = SourceSpec.model_validate({
        "name": "ns_a", "domain": "fields", "builder": "navier_stokes", "options": options,
        "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 3}}})
    return build(source, folder / "b.zarr")


@pytest.fixture
def state(several: Store) -> xr.Dataset:
    """An initial state as a user has one: opened with xarray, one trajectory, one time, attributes of its own."""
    dataset = xr.open_zarr(several.url, chunks=None).isel(trajectory=3, time=[2], drop=True)
    dataset["vorticity"].attrs["standard_name"] = "atmosphere_relative_vorticity"
    dataset["x"].attrs["note"] = "eastward"
    dataset = dataset.assign_coords(mask=(("x", "y"), np.arange(256).reshape(16, 16)))
    return dataset.assign_attrs(domain="fields", dataset="ns_a", experiment="17")


class Growing(Fields):
    """Fields of size 1e8 at the first step, 1e16 at the second, until float32 ends at the fifth."""

    def advance(self, state: State, outputs: Outputs) -> State:
        advanced = super().advance(state, outputs)
        values = (advanced.batch.values + 1) * 10.0 ** (8 * advanced.step)
        return replace(advanced, batch=replace(advanced.batch, values=values))


def explosive(predictor: Predictor) -> Predictor:
    config, arrays = predictor.adapters["fields"].state()
    return replace(predictor, adapters={"fields": Growing.restore(config, arrays)})


def other_weights(predictor: Predictor) -> Predictor:
    other = replace(predictor, operator=copy.deepcopy(predictor.operator))
    with torch.no_grad():
        next(other.operator.parameters()).view(-1)[0] += 1e-3
    return other


def test_xarray_in_xarray_out(predictor: Predictor, state: xr.Dataset) -> None:
    future = predictor.rollout(state, steps=3)
    assert future["vorticity"].dims == ("time", "x", "y")
    assert future["vorticity"].dtype == np.float32
    assert future["vorticity"].attrs == state["vorticity"].attrs
    assert future["vorticity"].attrs["units"] == "1/s"
    assert future.attrs == state.attrs
    for name in ("x", "y"):
        xr.testing.assert_identical(future[name].variable, state[name].variable)
    np.testing.assert_allclose(future["time"], float(state["time"][0]) + 0.5 * np.arange(1, 4))
    assert future["time"].attrs["units"] == "s"
    assert np.isfinite(future["vorticity"]).all()
    assert not np.allclose(future["vorticity"][0], future["vorticity"][2])


def test_the_clock_keeps_its_own_units(predictor: Predictor, state: xr.Dataset) -> None:
    slow = state.assign_coords(time=("time", state["time"].values / 60, {"units": "min"}))
    np.testing.assert_allclose(predictor.rollout(slow, steps=2)["time"], predictor.rollout(state, steps=2)["time"])


def test_the_input_is_not_changed(predictor: Predictor, state: xr.Dataset) -> None:
    before = state.copy(deep=True)
    predictor.rollout(state, steps=2)
    xr.testing.assert_identical(state, before)


def test_what_does_not_fit_is_refused(predictor: Predictor, state: xr.Dataset) -> None:
    with pytest.raises(InputError, match="vorticity"):
        predictor.rollout(state.rename(vorticity="omega"), steps=1)
    with pytest.raises(InputError, match="any_dt: true"):
        predictor.rollout(state.assign_attrs(dt=0.25), steps=1)
    with pytest.raises(InputError, match="spikes"):
        predictor.rollout(state.assign_attrs(domain="spikes"), steps=1)
    with pytest.raises(InputError, match="unit"):
        predictor.rollout(state.assign(vorticity=state["vorticity"].assign_attrs(units="kg")), steps=1)


def test_m_steps_after_n_steps_are_n_plus_m(predictor: Predictor, state: xr.Dataset) -> None:
    adapter = predictor.of(state)
    straight = list(rollout(predictor, adapter.initial(state), 5))
    first = list(rollout(predictor, adapter.initial(state), 2))
    second = list(rollout(predictor, first[-1], 3))
    assert [s.step for s in (*first, *second)] == [1, 2, 3, 4, 5]
    for one, two in zip(straight, (*first, *second)):
        assert difference(one, two) is None
    half = predictor.rollout(state, steps=2)
    rest = predictor.rollout(state.drop_vars("time").assign(vorticity=half["vorticity"][[1]]), steps=3)
    whole = predictor.rollout(state, steps=5)
    np.testing.assert_allclose(rest["vorticity"], whole["vorticity"][2:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rest["time"], whole["time"][2:])


def test_a_state_on_disk_goes_on_the_same(predictor: Predictor, state: xr.Dataset, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = predictor.of(state)
    initial = adapter.initial(state)
    now: State = list(rollout(predictor, initial, 2))[-1]
    tree, tensors = dump_state(now)
    save_file(tensors, tmp_path / "state")
    back = restore_state(adapter.initial(state), tree, load_file(tmp_path / "state"))
    assert difference(now, back) is None
    ends = [list(rollout(predictor, s, 2))[-1] for s in (now, back)]
    assert difference(*ends) is None


def opened(path: Path) -> xr.Dataset:
    return xr.open_zarr(path, consolidated=False, chunks=None).load()


def test_streamed_is_what_rollout_gives_with_the_truth_beside(predictor: Predictor, several: Store,
                                                             tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = rollout_to_zarr(predictor, several, "test", tmp_path / "out.zarr", steps=STEPS, save_every=4,
                          progress=lambda done, total: seen.append((done, total)))
    result = opened(out)
    assert result["vorticity"].dims == ("sample", "time", "x", "y")
    assert seen[-1] == (27, 27)
    assert result.attrs["complete"]
    assert result.attrs["stopped"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    for number, block in enumerate(several.meta.splits.test):
        sample = predictor.adapters["fields"].starts(several, "test")[number]
        expected = predictor.rollout(sample, steps=STEPS)
        np.testing.assert_array_equal(result["vorticity"][number], expected["vorticity"])
        np.testing.assert_array_equal(result["time"][number], expected["time"])
        truth = several.read("vorticity", block.group)[1:]
        np.testing.assert_array_equal(result["vorticity_truth"][number, :6], truth)
        assert np.isnan(result["vorticity_truth"][number, 6:]).all()
        assert f"trajectory {block.group}" in result.attrs["sources"][number]
    assert result["vorticity"].attrs["units"] == "1/s"
    assert result["x"].attrs["units"] == "m"
    np.testing.assert_array_equal(result["x"], several.coord("x"))


def test_trajectories_limits_how_many(predictor: Predictor, several: Store, tmp_path: Path) -> None:
    out = rollout_to_zarr(predictor, several, "test", tmp_path / "out.zarr", steps=2, trajectories=2)
    assert opened(out).sizes["sample"] == 2


@pytest.mark.parametrize("kill", [
    ["sciml.rollout:_write_step", 3], ["sciml.rollout:_write_step", 7], ["sciml.rollout:_write_step", 14],
    ["sciml.rollout:dump_state", 2], ["pathlib:Path.replace", 40], ["sciml.rollout:_write_truth", 2]])
def test_killed_and_resumed_is_the_same(kill: list[Any], run_job: Job, trained: Path, several: Store,
                                        tmp_path: Path, predictor: Predictor) -> None:
    job = {"do": "rollout", "checkpoint": str(trained), "store": several.url, "split": "test", "steps": STEPS,
           "save_every": 4, "out": str(tmp_path / "killed.zarr")}
    assert run_job(**job, kill=kill) == -signal.SIGKILL
    assert run_job(**job) == 0
    assert run_job(**{**job, "out": str(tmp_path / "whole.zarr")}) == 0
    xr.testing.assert_identical(opened(tmp_path / "killed.zarr"), opened(tmp_path / "whole.zarr"))
    files = [{p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*") if p.suffix != ".partial"}
             for name in ("killed.zarr", "whole.zarr")]
    assert files[0] == files[1]


def test_a_blow_up_stops_and_names_the_step(predictor: Predictor, several: Store, state: xr.Dataset,
                                            tmp_path: Path) -> None:
    wild = explosive(predictor)
    with pytest.raises(BlowUp, match="not finite at step") as caught:
        wild.rollout(state, steps=20)
    assert caught.value.step == 5
    out = rollout_to_zarr(wild, several, "test", tmp_path / "out.zarr", steps=20)
    result = opened(out)
    assert result.attrs["stopped"] == {"0": 5, "1": 5, "2": 5}
    for number, step in result.attrs["stopped"].items():
        assert np.isfinite(result["vorticity"][int(number), : step - 1]).all()
        assert np.isnan(result["vorticity"][int(number), step - 1:]).all()
    before = json.loads((out / "zarr.json").read_text())
    rollout_to_zarr(wild, several, "test", out, steps=20)
    assert json.loads((out / "zarr.json").read_text()) == before


def test_another_rollout_is_not_mixed_in(predictor: Predictor, several: Store, tmp_path: Path) -> None:
    out = rollout_to_zarr(predictor, several, "test", tmp_path / "out.zarr", steps=2)
    for model, steps in ((predictor, 3), (other_weights(predictor), 2)):
        with pytest.raises(InputError, match="--overwrite"):
            rollout_to_zarr(model, several, "test", out, steps=steps)
    rollout_to_zarr(predictor, several, "test", out, steps=3, overwrite=True)
    assert opened(out).sizes["time"] == 3


def test_a_folder_that_is_no_rollout_is_not_deleted(predictor: Predictor, several: Store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    for target in (tmp_path / "photos", Path(several.url)):
        with pytest.raises(InputError, match="not be deleted"):
            rollout_to_zarr(predictor, several, "test", target, steps=2, overwrite=True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"
    assert open_store(several.url).meta == several.meta


MEMORY = """
import resource, sys
import sciml
from sciml.data.store import open_store
from sciml.rollout import rollout_to_zarr
predictor, store = sciml.load(sys.argv[1]), open_store(sys.argv[2])
rollout_to_zarr(predictor, store, "test", sys.argv[3] + "/warm", steps=60, trajectories=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rollout_to_zarr(predictor, store, "test", sys.argv[3] + "/long", steps=1200, trajectories=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_constant(trained: Path, tmp_path: Path) -> None:
    """1200 steps of 64² are 19 MiB a copy; twenty times the steps may not take 8 MiB more."""
    store = tiny.navier_stokes(tmp_path / "big.zarr", name="ns_a", resolution=64, trajectories=3, frames=3)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(trained), store.url, str(tmp_path)], check=True,
                          capture_output=True, text=True)
    assert float(done.stdout) < 8


def test_weights_decide_the_fingerprint(predictor: Predictor, tmp_path: Path) -> None:
    from sciml.rollout import fingerprint

    checkpoint.save(tmp_path / "copy", predictor)
    assert fingerprint(checkpoint.load(tmp_path / "copy").operator) == fingerprint(predictor.operator)
    assert fingerprint(other_weights(predictor).operator) != fingerprint(predictor.operator)
