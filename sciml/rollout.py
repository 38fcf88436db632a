"""Running an operator forward: a short generator over `Predictor.step`, and its streaming to disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sciml.adapter import DomainAdapter, Sample
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.data.units import seconds_per
from sciml.errors import InputError
from sciml.predictor import Predictor
from sciml.threads import fastest as fastest_threads
from sciml.tokens import State, Target


class BlowUp(RuntimeError):
    """A rollout step gave a value that is not finite; `step` names it."""

    def __init__(self, step: int, source: str) -> None:
        self.step, self.source = step, source
        super().__init__(f"rollout of {source} is not finite at step {step}")

    def __reduce__(self) -> tuple[Any, ...]:
        return BlowUp, (self.step, self.source)


def rollout(predictor: Predictor, initial: State, steps: int) -> Iterator[State]:
    """The states after 1, 2, … `steps` steps. Raises `BlowUp` at the first that is not finite."""
    state = initial
    for _ in range(steps):
        state = predictor.step(state)
        if not is_finite(state):
            raise BlowUp(state.step, ", ".join(state.batch.sources))
        yield state


def is_finite(state: State) -> bool:
    """Whether all values and places are."""
    return all(bool(torch.isfinite(t).all()) for t in (state.batch.values, *(a.coord for a in state.batch.axes)))


def rollout_dataset(predictor: Predictor, dataset: Sample, steps: int) -> xr.Dataset:
    """All states of a rollout from one sample, joined along ``time``; the attributes of the input are kept."""
    adapter = predictor.of(dataset)
    states = [frame(adapter.observe(state), dataset)
              for state in rollout(predictor, adapter.initial(dataset), steps)]
    joined = xr.concat(states, dim="time", data_vars="minimal", coords="minimal", compat="override", join="override")
    return joined.isel(sample=0, drop=True).assign_attrs({**dataset.attrs, **joined.attrs})


def frame(observed: xr.Dataset, sample: Sample) -> xr.Dataset:
    """What one sample's step brought, on the sample's own coordinates and clock: ``(sample, time, …)``."""
    own = [name for name, c in observed.coords.items() if name in sample.coords and name != "time"
           and c.sizes == sample[name].sizes]
    kept = {name: observed[name].assign_attrs({**sample[name].attrs, **observed[name].attrs})
            for name in map(str, observed.data_vars) if name in sample}
    observed = observed.assign(kept).assign_coords({name: sample[name] for name in own})
    if "valid_time" in observed.coords:
        observed = observed.assign_coords(time=observed["valid_time"].isel(sample=0, drop=True))
        return observed.drop_vars(["valid_time", "source"], errors="ignore")
    elapsed = observed["time"]
    clock = sample["time"] if "time" in sample.coords else xr.zeros_like(elapsed)
    unit, theirs = (str(time.attrs.get("units", elapsed.attrs.get("units", "1"))) for time in (elapsed, clock))
    start = float(clock.values.reshape(-1)[0])
    if theirs != unit:
        start *= seconds_per(theirs, where="dataset", key="time") / seconds_per(unit, where="checkpoint", key="time")
    attrs = {**clock.attrs, **elapsed.attrs}
    return observed.assign_coords(time=((), float(elapsed) + start, attrs)).expand_dims("time").transpose(
        "sample", "time", ...)


MOVING = ("coord", "ids", "segment", "measure", "period")  # what a step may change of an axis


def dump_state(state: State) -> tuple[str, dict[str, Tensor]]:
    """JSON and tensors from which `restore_state` and an equal initial state make this state again."""
    tensors: dict[str, Tensor] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [pack(v) for v in value]}
        if isinstance(value, dict):
            return {"dict": {k: pack(v) for k, v in value.items()}}
        return {"plain": value}

    batch = state.batch
    tree = {"step": pack(state.step), "elapsed": pack(state.elapsed), "cache": pack(state.cache),
            "rng": pack(state.rng), "extra": pack(dict(state.extra)), "values": pack(batch.values),
            "observed": pack(batch.observed),
            "axes": pack([{name: getattr(axis, name) for name in MOVING} for axis in batch.axes]),
            "vector": pack(dict(batch.conditions.vector)), "lattice": pack(dict(batch.conditions.lattice)),
            "targets": pack({head: {f.name: getattr(target, f.name) for f in fields(target)}
                             for head, target in batch.targets.items()})}
    return json.dumps(tree), tensors


def restore_state(initial: State, text: str, tensors: dict[str, Tensor]) -> State:
    """The state that `dump_state` took; `initial` gives what a rollout never changes."""
    def unpack(node: dict[str, Any]) -> Any:
        (kind, value), = node.items()
        if kind == "tensor":
            return tensors[value]
        if kind in ("tuple", "list"):
            items = [unpack(v) for v in value]
            return tuple(items) if kind == "tuple" else items
        return {k: unpack(v) for k, v in value.items()} if kind == "dict" else value

    tree = {name: unpack(node) for name, node in json.loads(text).items()}
    batch = replace(
        initial.batch, values=tree["values"], observed=tree["observed"],
        axes=tuple(replace(axis, **now) for axis, now in zip(initial.batch.axes, tree["axes"])),
        conditions=replace(initial.batch.conditions, vector=tree["vector"], lattice=tree["lattice"]),
        targets={head: Target(**parts) for head, parts in tree["targets"].items()})
    return State(batch, tree["step"], tree["elapsed"], tree["cache"], tree["rng"], tree["extra"])


def rollout_to_zarr(predictor: Predictor, store: Store, split: SplitName, out: str | Path, *, steps: int,
                    trajectories: int | None = None, overwrite: bool = False, save_every: int = 20,
                    progress: Callable[[int, int], None] | None = None) -> Path:
    """Roll the first state of every block of a split `steps` steps; stream to ``out`` (sample, time, …) as it comes.

    Constant memory. A killed rollout goes on where it stopped, step for step the same. One that blows up leaves NaN
    from that step on, and the attribute ``stopped`` names it. Where the store knows the truth it is written beside, as
    ``<name>_truth``. Raises `InputError` if `out` holds something else and not `overwrite`.
    """
    adapter, out = predictor.adapter(store.meta.domain), Path(out)
    starts = adapter.starts(store, split)
    count = len(starts) if trajectories is None else min(trajectories, len(starts))
    if not count:
        if store.meta.splits.of(split):
            raise InputError(store.url, key=f"split {split}", found="nothing that goes on in time",
                             expected="states to start from", fix="ask for the answer: predictor.predict(sample)")
        raise InputError(store.url, key=f"split {split}", found="no block", expected="at least one initial state",
                         fix="choose another split")
    plan = {"steps": steps, "samples": count, "split": split, "store": store.meta.split_identity(),
            "weights": fingerprint(predictor.operator)}
    group = _existing(out, plan, overwrite)
    if group is None:
        torch.set_num_threads(fastest_threads())
        group = _create(predictor, adapter, starts, out, plan)
    torch.set_num_threads(int(group.attrs["threads"]))

    def tick(number: int, step: int) -> None:
        if progress is not None:
            progress(number * steps + step, count * steps)

    for number in range(count):
        _roll_one(predictor, adapter, starts[number], number, group, out, save_every, partial(tick, number))
    group.attrs["complete"] = True
    shutil.rmtree(aside(out), ignore_errors=True)
    return out


def aside(out: Path) -> Path:
    """Where the states lie that an unfinished rollout goes on from: beside the output, which is nothing but Zarr."""
    return out.with_name(f".{out.name}.state")


def fingerprint(operator: nn.Module) -> str:
    """A hash of all weights."""
    total = hashlib.sha256()
    for name, value in operator.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _roll_one(predictor: Predictor, adapter: DomainAdapter, sample: Sample, number: int, group: Any, out: Path,
              save_every: int, progress: Callable[[int], Any]) -> None:
    """One sample from its initial or saved state to the end, or to the step where it blows up."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    saved, steps = aside(out) / f"{number}.safetensors", int(group.attrs["plan"]["steps"])
    done, stopped = dict(group.attrs["done"]), dict(group.attrs["stopped"])
    if str(number) in stopped or done.get(str(number), 0) >= steps:
        return
    state = adapter.initial(sample)
    if saved.exists():
        with safe_open(saved, framework="pt") as file:
            state = restore_state(state, file.metadata()["tree"], load_file(saved))
    arrays = dict(group.arrays())
    try:
        for now in rollout(predictor, state, steps - state.step):
            _write_step(arrays, number, now.step, frame(adapter.observe(now), sample))
            if now.step % save_every == 0 or now.step == steps:
                tree, tensors = dump_state(now)
                saved.parent.mkdir(exist_ok=True)
                temporary = saved.with_suffix(".part")
                save_file(tensors, temporary, metadata={"tree": tree})
                temporary.replace(saved)
                group.attrs["done"] = {**done, str(number): now.step}
            progress(now.step)
    except BlowUp as error:
        group.attrs["stopped"] = {**stopped, str(number): error.step}


def _existing(out: Path, plan: dict[str, Any], overwrite: bool) -> Any:
    """The group of a rollout that goes on, or None where one is to be made; what a killed beginning left goes."""
    import zarr

    for left in out.parent.glob(f".{out.name}.part-*"):
        shutil.rmtree(left)
    if not out.exists():
        shutil.rmtree(aside(out), ignore_errors=True)
        return None
    try:
        group = zarr.open_group(out, mode="r+")
        found = group.attrs.get("plan")
    except (OSError, ValueError, KeyError):
        found = None
    if not isinstance(found, dict):
        raise InputError(out, found="something that is no rollout", expected="a new path, or a rollout",
                         fix="choose another output; this will not be deleted")
    if overwrite:
        shutil.rmtree(aside(out), ignore_errors=True)
        shutil.rmtree(out)
        return None
    if found != plan:
        other = ", ".join(key for key in plan if found.get(key) != plan[key])
        raise InputError(out, key="plan", found=f"a rollout of other {other}", expected="the same rollout, to go on",
                         fix="choose another output, or pass --overwrite")
    return group


def _create(predictor: Predictor, adapter: DomainAdapter, starts: Sequence[Sample], out: Path,
            plan: dict[str, Any]) -> Any:
    """The output with its coordinates and the truth, no step taken; it appears at `out` when it is whole."""
    import zarr

    sample = starts[0]
    first = frame(adapter.observe(predictor.step(adapter.initial(sample))), sample)
    length = first.sizes["time"]
    temporary = out.with_name(f".{out.name}.part-{os.getpid()}")
    group = zarr.create_group(temporary)
    for name in map(str, first.data_vars):
        variable = first[name]
        size = (plan["samples"], plan["steps"] * length, *variable.isel(sample=0).shape[1:])
        knows = name in sample and sample.sizes.get("time", 1) > 1
        for each in [name, f"{name}_truth"] if knows else [name]:
            array = group.create_array(each, shape=size, chunks=(1, length, *size[2:]), dtype=str(variable.dtype),
                                       fill_value=np.nan, dimension_names=[str(d) for d in variable.dims])
            array.attrs.update(plain(variable.attrs))
    _write_coords(group, first, plan["samples"], plan["steps"] * length)
    sources = []
    for number in range(plan["samples"]):
        sources.append(str(starts[number].attrs.get("source", number)))
        _write_truth(group, first, starts[number], number)
    group.attrs.update({"plan": plan, "sources": sources, "done": {}, "stopped": {}, "complete": False,
                        "domain": adapter.name, "dataset": str(first.attrs.get("dataset", "")),
                        "checkpoint": dict(predictor.provenance), "threads": torch.get_num_threads()})
    temporary.rename(out)
    return zarr.open_group(out, mode="r+")


def _write_truth(group: Any, first: xr.Dataset, sample: Sample, number: int) -> None:
    """What a sample knows of the times to come."""
    for name in map(str, first.data_vars):
        if f"{name}_truth" in group and name in sample:
            later = sample[name].transpose("time", *[d for d in first[name].dims if d not in ("sample", "time")])
            array = group[f"{name}_truth"]
            known = later[int(sample.attrs.get("look_back", 1)):][: array.shape[1]].to_numpy()
            array[number, : len(known)] = known


def _write_coords(group: Any, first: xr.Dataset, samples: int, length: int) -> None:
    for name, coord in first.coords.items():
        if name in ("time", "sample") or coord.dtype.kind not in "fiUO":
            continue
        values = coord.to_numpy()
        text = values.dtype.kind in "UO"
        array = group.create_array(str(name), shape=values.shape, dtype=str if text else values.dtype,
                                   dimension_names=[str(d) for d in coord.dims])
        array[...] = values.astype(object) if text else values
        array.attrs.update(plain(coord.attrs))
    dates = first["time"].dtype.kind == "M"
    time = group.create_array("time", shape=(samples, length), dtype="int64" if dates else "float64",
                              chunks=(1, length), fill_value=0, dimension_names=["sample", "time"])
    time.attrs.update({"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"} if dates
                      else plain(first["time"].attrs))


def plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """The attributes that JSON can hold."""
    return {str(k): v for k, v in attrs.items() if isinstance(v, str | int | float)}


def _write_step(arrays: Mapping[str, Any], number: int, step: int, observed: xr.Dataset) -> None:
    length = observed.sizes["time"]
    part = slice((step - 1) * length, step * length)
    for name in map(str, observed.data_vars):
        values, array = observed[name].isel(sample=0).to_numpy(), arrays[name]
        largest = tuple(max(sizes) for sizes in zip(array.shape[2:], values.shape[1:]))
        if largest != array.shape[2:]:  # samples of different size
            array.resize((*array.shape[:2], *largest))
        array[(number, part, *map(slice, values.shape[1:]))] = values
    time = observed["time"].to_numpy().reshape(-1)[:length]
    arrays["time"][number, part] = time.astype("datetime64[s]").astype("int64") if time.dtype.kind == "M" else time
