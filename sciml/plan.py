"""What a run costs, measured on a few steps of it, and the budget that is frozen from that."""

from __future__ import annotations

import copy
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml.data.store import Store
from sciml.kernels import dispatch
from sciml.operator.operator import count_parameters
from sciml.predictor import Predictor
from sciml.threads import fastest as fastest_threads
from sciml.train import Run, micro_batches, train_step

CALIBRATION_STEPS = 12


@dataclass(frozen=True)
class Speed:
    """What a few steps on a throw-away copy cost; `reader_seconds` is the part before the operator, per step."""

    seconds_per_step: float
    reader_seconds: float
    tokens_per_step: float
    samples_per_step: float


def measure_speed(run: Run, steps: int = CALIBRATION_STEPS) -> Speed:
    """Run some steps of the real schedule on a copy of everything that a step changes."""
    trial = copy.copy(run)
    trial.predictor = Predictor(copy.deepcopy(run.predictor.operator), run.predictor.adapters, run.predictor.recipe)
    trial.steps = max(steps, 1)
    trial.__post_init__()
    trial.predictor.operator.train()
    data = micro_batches(trial)
    micro = run.recipe.train.micro_batches
    operator, tokens, samples, taken = run.ranks.wrap(trial.predictor.operator), 0, 0, np.zeros((steps, 2))
    for step in range(steps):
        began = time.perf_counter()
        own = [data[step * micro + m] for m in range(micro)]
        read = time.perf_counter()
        train_step(trial, operator, iter(own))
        taken[step] = time.perf_counter() - began, read - began
        tokens += sum(b.values[..., 0].numel() for each in own for b in each.links)
        samples += sum(each.links[0].num_segments for each in own)
    whole, reading = taken[steps // 4:].mean(0)
    return Speed(float(whole), float(reading), tokens / steps, samples / steps)


def calibrated_steps(run: Run) -> int:
    """Steps that fit into the recipe's minutes, measured once; the schedule is frozen with them."""
    assert run.recipe.train.minutes is not None
    began = time.perf_counter()
    speed = measure_speed(run)
    left = run.recipe.train.minutes * 60 - (time.perf_counter() - began)
    return run.ranks.agree(max(1, int(left / speed.seconds_per_step)))


@dataclass(frozen=True)
class Plan:
    """What a run would cost, measured on a few steps of it. tokens: cells of the lattice; memory: peak resident;
    reader_speedup: how many times faster samples are made than used; read_amplification: bytes decoded over asked for.
    """

    parameters: int
    samples_per_step: float
    tokens_per_step: float
    memory_mib: float
    steps_per_s: float
    steps: int
    minutes: float
    reader_speedup: float
    read_amplification: float


def plan_of(run: Run, stores: Sequence[Store]) -> Plan:
    """The plan of a run that was prepared and not begun."""
    torch.set_num_threads(run.recipe.train.threads or fastest_threads())
    speed = measure_speed(run)
    train = run.recipe.train
    steps = train.steps or max(1, int((train.minutes or 0) * 60 / speed.seconds_per_step))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Plan(count_parameters(run.predictor.operator), speed.samples_per_step, speed.tokens_per_step, peak,
                1 / speed.seconds_per_step, steps, steps * speed.seconds_per_step / 60,
                (speed.seconds_per_step - speed.reader_seconds) / max(speed.reader_seconds, 1e-9),
                max(store.amplification for store in stores))


def freeze_budget(run: Run) -> None:
    """Fix steps, threads and kernels of a run: measured where the recipe leaves them open, then frozen in
    ``budget.json``."""
    path, train = run.folder / "budget.json", run.recipe.train
    if path.exists():
        frozen = json.loads(path.read_text())
    else:
        threads = train.threads or run.ranks.agree(fastest_threads())
        torch.set_num_threads(threads)
        dispatch.set_table(None)
        frozen = {"steps": run.steps or train.steps or calibrated_steps(run), "minutes": train.minutes,
                  "threads": threads, "kernels": dict(dispatch.table())}
        run.ranks.barrier()
        if run.ranks.first:
            write_json(path, frozen)
    run.steps = int(frozen["steps"])
    torch.set_num_threads(int(frozen["threads"]))
    dispatch.set_table(frozen.get("kernels", {}))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
