"""Running an operator forward: a short generator over `Predictor.step`, and its streaming to disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import DomainAdapter, Sample
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.predictor import Predictor
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
        if not bool(torch.isfinite(state.batch.values).all()):
            raise BlowUp(state.step, ", ".join(state.batch.sources))
        yield state


def rollout_dataset(predictor: Predictor, dataset: Sample, steps: int) -> xr.Dataset:
    """All states of a rollout from one sample, joined along ``time``; the attributes of the input are kept."""
    adapter = predictor.of(dataset)
    states = [frame(adapter.observe(state), dataset)
              for state in rollout(predictor, adapter.initial(dataset), steps)]
    joined = xr.concat(states, dim="time", data_vars="minimal", coords="minimal", compat="override", join="override")
    return joined.isel(sample=0, drop=True).assign_attrs({**dataset.attrs, **joined.attrs})


def frame(observed: xr.Dataset, sample: Sample) -> xr.Dataset:
    """What one sample's step brought, with the dimension ``time`` on the sample's own clock."""
    if "valid_time" in observed.coords:
        observed = observed.assign_coords(time=observed["valid_time"].isel(sample=0, drop=True))
        return observed.drop_vars(["valid_time", "source"], errors="ignore")
    own = [name for name, c in observed.coords.items() if name in sample.coords and name != "time"
           and c.sizes == sample[name].sizes]
    observed = observed.assign_coords({name: sample[name] for name in own})
    elapsed = observed["time"]
    start = float(sample["time"].values.reshape(-1)[0]) if "time" in sample.coords else 0.0
    observed = observed.assign_coords(time=((), float(elapsed) + start, elapsed.attrs))
    return observed.expand_dims("time").transpose("sample", "time", ...)


MOVING = ("coord", "ids", "segment", "measure")  # what a step may change of an axis


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
    samples = adapter.starts(store, split)[:trajectories]
    if overwrite and out.exists():
        shutil.rmtree(out)
    plan = {"steps": steps, "samples": [str(s.attrs.get("source", i)) for i, s in enumerate(samples)]}
    group = _open_output(predictor, adapter, samples, out, plan)
    for number, sample in enumerate(samples):
        _roll_one(predictor, adapter, sample, number, group, out, steps, save_every,
                  lambda step, n=number: progress and progress(n * steps + step, len(samples) * steps))
    group.attrs["complete"] = True
    for saved in out.glob("state-*.safetensors"):
        saved.unlink()
    return out


def _roll_one(predictor: Predictor, adapter: DomainAdapter, sample: Sample, number: int, group: Any, out: Path,
              steps: int, save_every: int, progress: Callable[[int], Any]) -> None:
    """One sample from its initial or saved state to the end, or to the step where it blows up."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    saved = out / f"state-{number}.safetensors"
    state = initial = adapter.initial(sample)
    done, stopped = dict(group.attrs["done"]), dict(group.attrs["stopped"])
    if str(number) in stopped or done.get(str(number), 0) >= steps:
        return
    if str(number) in done and saved.exists():
        with safe_open(saved, framework="pt") as file:
            state = restore_state(initial, file.metadata()["tree"], load_file(saved))
    try:
        for state in rollout(predictor, state, steps - state.step):
            _write_step(group, number, state.step, frame(adapter.observe(state), sample))
            if state.step % save_every == 0 or state.step == steps:
                tree, tensors = dump_state(state)
                temporary = saved.with_suffix(".part")
                save_file(tensors, temporary, metadata={"tree": tree})
                temporary.replace(saved)
                group.attrs["done"] = {**done, str(number): state.step}
            progress(state.step)
    except BlowUp as error:
        group.attrs["stopped"] = {**stopped, str(number): error.step}


def _open_output(predictor: Predictor, adapter: DomainAdapter, samples: list[Sample], out: Path,
                 plan: dict[str, Any]) -> Any:
    import zarr

    if out.exists():
        group = zarr.open_group(out, mode="r+")
        if group.attrs.get("plan") != plan:
            raise InputError(out, key="plan", found=group.attrs.get("plan"), expected=f"{plan}",
                             fix="choose another output, or pass --overwrite")
        return group
    if not samples:
        raise InputError(out, key="samples", found="none", expected="at least one initial state in the split",
                         fix="choose another split")
    first = frame(adapter.observe(predictor.step(adapter.initial(samples[0]))), samples[0])
    length = first.sizes["time"]
    temporary = out.with_name(f".{out.name}.part-{os.getpid()}")
    group = zarr.create_group(temporary)
    for name in map(str, first.data_vars):
        variable = first[name]
        size = (len(samples), plan["steps"] * length, *variable.isel(sample=0).shape[1:])
        names = [name, f"{name}_truth"] if any(name in s and s.sizes.get("time", 1) > 1 for s in samples) else [name]
        for each in names:
            array = group.create_array(each, shape=size, chunks=(1, length, *size[2:]), dtype=str(variable.dtype),
                                       fill_value=np.nan, dimension_names=[str(d) for d in variable.dims])
            array.attrs.update(plain(variable.attrs))
    _write_coords(group, first, samples, plan["steps"] * length)
    _write_truth(group, first, samples)
    group.attrs.update({"plan": plan, "done": {}, "stopped": {}, "complete": False, "domain": adapter.name,
                        "dataset": str(first.attrs.get("dataset", "")), "checkpoint": dict(predictor.provenance)})
    temporary.rename(out)
    return zarr.open_group(out, mode="r+")


def _write_truth(group: Any, first: xr.Dataset, samples: list[Sample]) -> None:
    """What a sample knows of the times to come."""
    for number, sample in enumerate(samples):
        for name in map(str, first.data_vars):
            if f"{name}_truth" in group and name in sample and sample.sizes.get("time", 1) > 1:
                later = sample[name].transpose("time", *[d for d in first[name].dims if d not in ("sample", "time")])
                array = group[f"{name}_truth"]
                known = later.to_numpy()[int(sample.attrs.get("look_back", 1)):][: array.shape[1]]
                array[number, : len(known)] = known


def _write_coords(group: Any, first: xr.Dataset, samples: list[Sample], length: int) -> None:
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
    time = group.create_array("time", shape=(len(samples), length), dtype="int64" if dates else "float64",
                              chunks=(1, length), fill_value=0, dimension_names=["sample", "time"])
    time.attrs.update({"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"} if dates
                      else plain(first["time"].attrs))


def plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """The attributes that JSON can hold."""
    return {str(k): v for k, v in attrs.items() if isinstance(v, str | int | float)}


def _write_step(group: Any, number: int, step: int, observed: xr.Dataset) -> None:
    length = observed.sizes["time"]
    part = slice((step - 1) * length, step * length)
    for name in observed.data_vars:
        group[str(name)][number, part] = observed[name].isel(sample=0).to_numpy()
    time = observed["time"].to_numpy().reshape(-1)[:length]
    group["time"][number, part] = time.astype("datetime64[s]").astype("int64") if time.dtype.kind == "M" else time
