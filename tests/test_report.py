"""The page about a run: whole, offline, and honest about what is missing or no better than a baseline."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.errors import InputError
from sciml.report import build, machine, maps, scores
from sciml.report.bench import Bench, Row, load
from sciml.report.run import read_log


def vorticity(samples: int, steps: int, size: int, seed: int) -> np.ndarray:
    """Smooth periodic fields ``(sample, step, x, y)`` that drift."""
    rng = np.random.default_rng(seed)
    k = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(k[:, None], k)
    amplitude = np.where(radius > 0, radius / (1 + (radius / 4) ** 4), 0)
    noise = amplitude * np.exp(2j * np.pi * rng.random((samples, 1, size, size)))
    drift = rng.normal(0, 0.12, (size, size)) * np.arange(1, steps + 1)[:, None, None]
    field = np.fft.ifft2(noise * np.exp(1j * drift), norm="forward").real
    return (6 * field / field.std()).astype(np.float32)


def write_rollout(path: Path, *, samples: int = 2, steps: int = 6, size: int = 16) -> None:
    truth = vorticity(samples, steps, size, 0)
    noise = vorticity(samples, steps, size, 1)
    growth = np.linspace(0.01, 0.4, steps, dtype=np.float32)[:, None, None]
    x = np.arange(size) / size
    attrs = {"units": "1/s", "long_name": "vorticity"}
    dims = ("sample", "time", "x", "y")
    space = {"units": "1", "period": 1.0}
    xr.Dataset(
        {"vorticity": (dims, truth + growth * noise, attrs), "vorticity_truth": (dims, truth, attrs)},
        coords={"x": ("x", x, space), "y": ("y", x, space),
                "time": (("sample", "time"), np.tile(np.arange(1, steps + 1) * 0.5, (samples, 1)), {"units": "s"})},
    ).to_zarr(path, zarr_format=3, consolidated=False)


def write_forecast(path: Path, *, samples: int = 3, history: int = 60, horizon: int = 24) -> None:
    rng = np.random.default_rng(0)
    weeks = np.arange(history + horizon + 20 * samples)
    level = 3 + 2 * np.cos(weeks[:, None] * 2 * np.pi / 52 - np.arange(7)) + rng.normal(0, 0.15, (len(weeks), 7)).cumsum(0) / 3
    days = np.datetime64("2014-01-05", "ns") + weeks * np.timedelta64(7, "D")
    starts = np.arange(samples) * 20
    known = np.stack([level[s:s + history] for s in starts])
    truth = np.stack([level[s + history:s + history + horizon] for s in starts])
    dims = ("sample", "time", "variate")
    xr.Dataset(
        {"value": (dims, truth + rng.normal(0, 0.2, truth.shape), {"units": "%"}), "value_truth": (dims, truth),
         "value_baseline": (dims, truth + rng.normal(0, 0.5, truth.shape)),
         "history": (("sample", "history_time", "variate"), known)},
        coords={"variate": np.array([f"region_{i}" for i in range(7)], object),
                "variate_unit": ("variate", np.array(["%"] * 7, object)),
                "valid_time": (("sample", "time"), np.stack([days[s + history:s + history + horizon] for s in starts])),
                "past_time": (("sample", "history_time"), np.stack([days[s:s + history] for s in starts]))},
    ).to_zarr(path, zarr_format=3, consolidated=False)


def write_log(path: Path, steps: int = 200) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        losses = {"navier_stokes": 0.02 + np.exp(-step / 40), "ili": 0.4 + 0.5 * np.exp(-step / 20)}
        noisy = {name: float(value * np.exp(rng.normal(0, 0.2))) for name, value in losses.items()}
        lines.append({"step": step, "loss": sum(noisy.values()), "losses": noisy, "learning_rate": 1e-3,
                      "seconds": step * 0.9, "samples": 8})
        if step % 20 == 0:
            lines.append({"step": step, "validation": losses, "baseline": {"navier_stokes": 1.0, "ili": 0.47}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(question: str, metric: str, value: float, baseline: float, verdict: str, name: str = "persistence") -> dict[str, object]:
    margin = 0.1 * abs(value - baseline) if verdict in ("better", "worse") else 1.5 * abs(value - baseline)
    return {"domain": "fields", "dataset": "navier_stokes", "question": question, "metric": metric, "unit": "1", "samples": 48,
            "value": value, "baseline": baseline, "baseline_name": name, "ratio": value / baseline,
            "low": value - baseline - margin, "high": value - baseline + margin, "blocks": 12, "verdict": verdict}


def write_run(run: Path, *, size: int = 16, steps: int = 6) -> Path:
    """A run folder with everything but a checkpoint, and a fine-tuned one inside with little."""
    (run / "evaluation").mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: demo\nseed: 3\ndata:\n- store: runs/demo/navier_stokes.zarr\n- store: ili.zarr\n"
                                     "train:\n  steps: 200\n")
    write_log(run / "train.jsonl")
    curve = np.linspace(0.02, 0.5, steps)
    fields = {"rows": [row("one_step", "relative_l2", 0.0212, 0.241, "better"),
                       row("rollout", "gmean_relative_l2", 0.13, 0.77, "better"),
                       row("rollout", "correlation_time", 42.0, 38.0, "no difference seen")],
              "curves": {"rollout/relative_l2": {"step": list(range(1, steps + 1)), "ours": curve.tolist(),
                                                 "baseline": (0.24 + curve).tolist()}}}
    ridge = {"rows": [row("96", "mse", 0.471, 0.466, "too few independent blocks", "ridge"),
                      row("24", "mase", 1.92, 1.41, "worse", "ridge")], "curves": {}}
    (run / "evaluation" / "navier_stokes.json").write_text(json.dumps(fields))
    (run / "evaluation" / "ili.json").write_text(json.dumps(ridge))
    write_rollout(run / "rollout" / "navier_stokes.zarr", size=size, steps=steps)
    write_forecast(run / "forecast" / "ili.zarr")
    (run / "finetune").mkdir()
    (run / "finetune" / "recipe.yaml").write_text("name: viscous\ndata:\n- store: runs/demo/viscous.zarr\ntrain: {steps: 9}\n")
    return run
