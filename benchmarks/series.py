"""ETTh1 beside the closed-form ridge: look-back 96, standard borders, scaled units, one set of weights, four horizons.

    SCIML_MIRROR=folder/with/etth1 sciml bench series

Everything is selected on validation: ridge strength, the cycle of the baseline, the training step (the untrained
operator, which is the baseline, is among the candidates). The test split is read once per seed. The peer is the plain
ridge without cycle. ``…_low`` and ``…_high`` bound the paired difference of the first seed: 95 %, blocks of look-back +
horizon; ``…_blocks`` says how many there are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from pretrain.workflow import pretrain
from sciml.assets import config, dataset
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import open_store
from sciml.evaluate import evaluate
from sciml.recipe import load_recipe
from sciml.report.bench import Bench, Row

SEEDS = (0, 1, 2)
STORE = Path("stores/etth1.zarr")
WINDOWS = {"96": 2785, "192": 2689, "336": 2545, "720": 2161}


def run() -> Bench:
    bench = Bench.load_or_new("series", seeds=SEEDS)
    store = open_store(STORE) if STORE.exists() else build(read_source(dataset("etth1")), str(STORE))
    rows: list[dict[str, dict[str, Any]]] = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            recipe = load_recipe(config("etth1"), [f"seed={seed}", f"data.0.store={STORE}"])
            predictor = pretrain(recipe, Path(folder) / "run")
            found = evaluate(predictor, store, "test").rows
        rows.append({f"{row['question']}/{row['metric']}": row for row in found})
        click.echo(f"seed {seed}: " + ", ".join(f"{k} {v['value']:.4f}" for k, v in rows[-1].items()), err=True)
    for horizon, count in WINDOWS.items():
        assert rows[0][f"{horizon}/mse"]["samples"] == count, "the standard borders give another number of windows"
        for metric in ("mse", "mae"):
            name = f"{horizon}/{metric}"
            ours = [row[name]["value"] for row in rows]
            add(bench, f"etth1/{name}", float(np.mean(ours)), rows[0][name]["baseline"])
            add(bench, f"etth1/{name}_std", float(np.std(ours)))
        for bound in ("low", "high", "blocks"):
            add(bench, f"etth1/{horizon}/mse_{bound}", float(rows[0][f"{horizon}/mse"][bound]))
    means = [np.mean([row[f"{h}/mse"][which] for h in WINDOWS for row in rows]) for which in ("value", "baseline")]
    add(bench, "etth1/mean/mse", float(means[0]), float(means[1]))
    return bench


def add(bench: Bench, metric: str, ours: float, peer: float | None = None) -> None:
    unit = "windows" if metric.endswith("blocks") else "1"
    bench.add(Row(metric=metric, unit=unit, ours=ours, peer=peer, peer_name=None if peer is None else "ridge"))
