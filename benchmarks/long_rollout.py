"""A 200-step rollout of forced turbulence after nine minutes of training: is it finite, and has it the right spectrum?

    sciml bench long_rollout

`configs/navier_stokes.yaml` through the same workflow as `sciml pretrain`, one seed; then eight test trajectories are
rolled 200 steps, and the mean energy spectrum of the second half stands beside that of the solver from the same states.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np

from pretrain.workflow import pretrain
from sciml import assets
from sciml.cli.bench import load_script
from sciml.data.store import open_store
from sciml.evaluate import evaluate
from sciml.metrics import energy_spectrum
from sciml.recipe import load_recipe
from sciml.report.bench import Bench, Row
from sciml.rollout import rollout

MINUTES = 9
TRAJECTORIES = 8


def run() -> Bench:
    fields = load_script(assets.benchmark("fields"))
    bench, steps = Bench.load_or_new("long_rollout"), fields.LONG
    store = open_store(fields.STORE)
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(assets.config("navier_stokes"), [f"train.minutes={MINUTES}",
                                                              f"data.0.store={fields.STORE}"])
        predictor = pretrain(recipe, Path(folder) / "run")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "train.jsonl").read_text().splitlines()]
    seconds = max(line.get("seconds", 0.0) for line in lines)
    add(bench, "training_minutes", "min", seconds / 60)
    for row in evaluate(predictor, store, "test").rows:
        if row["metric"] in ("relative_l2", "gmean_relative_l2") and row["question"].startswith(("one", "rollout")):
            name = f"navier_stokes_64_long/{row['question']}/{row['metric']}"
            bench.add(Row(metric=name, unit="1", ours=row["value"], peer=row["baseline"], peer_name="persistence"))
    adapter, spectra = predictor.adapter("fields"), []
    for sample in adapter.starts(store, "test")[:TRAJECTORIES]:
        states = list(rollout(predictor, adapter.initial(sample), steps))[steps // 2:]
        frames = np.concatenate([adapter.observe(state)["vorticity"].values for state in states])
        spectra.append(energy_spectrum(frames, (1.0, 1.0))[1].mean(0))
    add(bench, "finite_steps", "steps", float(steps))
    reference = fields.solver_spectrum(store.url, TRAJECTORIES)
    ratio = (np.mean(spectra, axis=0) / reference)[1: (len(reference) - 1) // 2 + 1]
    click.echo(f"spectrum over the solver's by wavenumber: {np.round(ratio, 2).tolist()}", err=True)
    add(bench, "spectrum_ratio", "1", float(np.maximum(ratio, 1 / ratio).max()))
    return bench


def add(bench: Bench, name: str, unit: str, value: float) -> None:
    bench.add(Row(metric=f"navier_stokes_64_long/rollout_200/{name}", unit=unit, ours=value))
