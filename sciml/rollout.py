"""Running an operator forward: a short generator over `Predictor.step`, and its streaming to disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Sample
from sciml.errors import InputError
from sciml.predictor import Predictor
from sciml.tokens import State


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
    states = [adapter.observe(state) for state in rollout(predictor, adapter.initial(dataset), steps)]
    joined = xr.concat(states, dim="time", data_vars="minimal", coords="minimal", compat="override", join="override")
    joined = joined.isel(sample=0, drop=True) if joined.sizes.get("sample") == 1 else joined
    return joined.assign_attrs({**dataset.attrs, **joined.attrs})


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
            "observed": pack(batch.observed), "coords": pack([axis.coord for axis in batch.axes]),
            "vector": pack(dict(batch.conditions.vector)), "lattice": pack(dict(batch.conditions.lattice)),
            "targets": pack({head: {f.name: getattr(target, f.name) for f in fields(target)}
                             for head, target in batch.targets.items()})}
    return json.dumps(tree), tensors


def restore_state(initial: State, text: str, tensors: dict[str, Tensor]) -> State:
    """The state that `dump_state` took; `initial` gives what a rollout never changes."""
    from sciml.tokens import Target

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
        axes=tuple(replace(a, coord=c) for a, c in zip(initial.batch.axes, tree["coords"])),
        conditions=replace(initial.batch.conditions, vector=tree["vector"], lattice=tree["lattice"]),
        targets={head: Target(**parts) for head, parts in tree["targets"].items()})
    return State(batch, tree["step"], tree["elapsed"], tree["cache"], tree["rng"], tree["extra"])


def rollout_to_zarr(predictor: Predictor, samples: list[Sample], out: str | Path, *, steps: int, save_every: int = 20,
                    progress: Callable[[int, int], None] | None = None) -> Path:
    """Roll every sample `steps` steps and stream the states to ``out`` (sample, time, …), in constant memory.

    A killed run goes on where it stopped. A rollout that blows up leaves NaN from that step on, and the attribute
    ``stopped`` names sample and step. Raises `InputError` if `out` holds something else.
    """
    from safetensors.torch import load_file, save_file

    out = Path(out)
    plan = {"steps": steps, "samples": [str(s.attrs.get("source", i)) for i, s in enumerate(samples)]}
    group = _open_output(predictor, samples, out, plan)
    stopped = dict(group.attrs["stopped"])
    done = dict(group.attrs["done"])
    for number, sample in enumerate(samples):
        adapter, saved = predictor.of(sample), out / f"state-{number}.safetensors"
        state = initial = adapter.initial(sample)
        if done.get(str(number), 0) and saved.exists():
            from safetensors import safe_open

            with safe_open(saved, framework="pt") as file:
                state = restore_state(initial, file.metadata()["tree"], load_file(saved))
        if str(number) in stopped or state.step >= steps:
            continue
        try:
            for state in rollout(predictor, state, steps - state.step):
                _write_step(group, number, state.step, adapter.observe(state))
                if state.step % save_every == 0 or state.step == steps:
                    tree, tensors = dump_state(state)
                    temporary = saved.with_suffix(".part")
                    save_file(tensors, temporary, metadata={"tree": tree})
                    temporary.replace(saved)
                    done[str(number)] = state.step
                    group.attrs["done"] = done
                if progress is not None:
                    progress(number * steps + state.step, len(samples) * steps)
        except BlowUp as error:
            stopped[str(number)] = error.step
            group.attrs["stopped"] = stopped
    group.attrs["complete"] = True
    for saved in out.glob("state-*.safetensors"):
        saved.unlink()
    return out


def _open_output(predictor: Predictor, samples: list[Sample], out: Path, plan: dict[str, Any]) -> Any:
    import zarr

    if out.exists():
        group = zarr.open_group(out, mode="r+")
        if group.attrs.get("plan") != plan:
            raise InputError(out, key="plan", found=group.attrs.get("plan"), expected=f"{plan}",
                             fix="choose another output, or remove this one")
        return group
    adapter = predictor.of(samples[0])
    first = adapter.observe(predictor.step(adapter.initial(samples[0])))
    length = first.sizes["time"]
    shape = {name: (len(samples), plan["steps"] * length, *first[name].isel(sample=0).shape[1:])
             for name in first.data_vars}
    group = zarr.create_group(out)
    for name, size in shape.items():
        variable = first[name]
        array = group.create_array(str(name), shape=size, chunks=(1, length, *size[2:]), dtype=str(variable.dtype),
                                   fill_value=np.nan, dimension_names=[str(d) for d in variable.dims])
        array.attrs.update({k: v for k, v in variable.attrs.items() if isinstance(v, str | int | float)})
    _write_coords(group, first, samples, plan["steps"] * length)
    group.attrs.update({"plan": plan, "done": {}, "stopped": {}, "complete": False,
                        "domain": adapter.name, "provenance": dict(predictor.provenance)})
    return group


def _write_coords(group: Any, first: xr.Dataset, samples: list[Sample], length: int) -> None:
    for name, coord in first.coords.items():
        if name in ("time", "sample") or coord.dtype.kind not in "fiU":
            continue
        values = coord.to_numpy()
        array = group.create_array(str(name), shape=values.shape, dtype=values.dtype if values.dtype.kind != "U" else str,
                                   dimension_names=[str(d) for d in coord.dims])
        array[...] = values
        array.attrs.update({k: v for k, v in coord.attrs.items() if isinstance(v, str | int | float)})
    kind = first["time"].dtype
    time = group.create_array("time", shape=(len(samples), length), dtype="int64" if kind.kind == "M" else "float64",
                              fill_value=0, dimension_names=["sample", "time"])
    if kind.kind == "M":
        time.attrs.update({"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"})
    else:
        time.attrs.update({k: v for k, v in first["time"].attrs.items() if isinstance(v, str | int | float)})


def _write_step(group: Any, number: int, step: int, observed: xr.Dataset) -> None:
    length = observed.sizes["time"]
    part = slice((step - 1) * length, step * length)
    for name in observed.data_vars:
        group[str(name)][number, part] = observed[name].isel(sample=0).to_numpy()
    time = observed["time"].to_numpy().reshape(-1)[:length]
    group["time"][number, part] = time.astype("datetime64[s]").astype("int64") if time.dtype.kind == "M" else time
