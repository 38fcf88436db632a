"""The part `restore` of `benchmarks/volumes.py`: denoising at two levels and four-fold undersampled MRI of hippocampi.

Ours are the recipes ``hippocampus_denoise`` and ``hippocampus_mri`` for half of the budget each. Beside them, on the
very same simulated measurements of the 40 test volumes: the noisy or zero-filled image, least squares by gradient
descent, total variation (`sciml.domains.volumes.references`) and scikit-image's non-local means. Their settings are
chosen by PSNR on every tenth validation volume. References of denoising are told the noise level and given the image
without its Rician bias; ours is not told. PSNR and SSIM of magnitudes over the 99th percentile of the truth.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import xarray as xr

from pretrain.workflow import pretrain
from sciml.assets import config, dataset
from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import Store, open_store
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.measured import Start, start_of
from sciml.domains.volumes.references import least_squares, total_variation
from sciml.domains.volumes.simulate import reference
from sciml.domains.volumes.tasks.restore import Restore
from sciml.domains.volumes.windows import Whole
from sciml.predictor import Predictor
from sciml.recipe import load_recipe
from sciml.report.bench import Bench, Row

DATA = "hippocampus"
LEVELS = (0.05, 0.1)
SEED, CALIBRATION, EVERY = 11, 16, 10
TV_STEPS, LEAST_SQUARES_STEPS = 60, 20
Setting = Mapping[str, Any]
Method = Callable[[xr.Dataset, Restore, Setting], np.ndarray]


def measure(bench: Bench, seconds: float, runs: Path) -> None:
    """Rows ``hippocampus/denoise_0.05/psnr`` beside each reference, likewise ``denoise_0.1`` and ``mri_4x``, and
    SSIM."""
    place = Path(f"stores/{DATA}.zarr")
    store = open_store(place) if place.exists() else build(read_source(dataset(DATA)), str(place))
    for recipe in (f"{DATA}_denoise", f"{DATA}_mri"):
        predictor = trained(bench, recipe, seconds / 2, runs / recipe)
        bench.add(Row(metric=f"{DATA}/{recipe.removeprefix(f'{DATA}_')}/parameters", unit="1",
                      ours=sum(p.numel() for p in predictor.operator.parameters())))
        for name, adapter in questions(predictor).items():
            compare(bench, f"{DATA}/{name}", Predictor(predictor.operator, {"volumes": adapter}), adapter, store)


def questions(predictor: Predictor) -> dict[str, Volumes]:
    """One level of noise each, or the scan that the recipe trains."""
    adapter = predictor.adapters["volumes"]
    assert isinstance(adapter, Volumes)
    assert isinstance(adapter.task, Restore)
    if adapter.task.config.measurement == "scan":
        return {"mri_4x": adapter}
    return {f"denoise_{level:g}": with_options(adapter, noise=level) for level in LEVELS}


def with_options(adapter: Volumes, **options: Any) -> Volumes:
    assert isinstance(adapter.task, Restore)
    asked = adapter.task.config.model_copy(update={"options": {**adapter.task.config.options, **options}})
    return replace(adapter, task=replace(adapter.task, config=asked))


def trained(bench: Bench, name: str, seconds: float, folder: Path) -> Predictor:
    """By the recipe, for as many steps as take that many CPU seconds; frozen at the first attempt, gone on with
    later."""
    metric = f"{DATA}/{name.removeprefix(f'{DATA}_')}/steps"
    frozen = next((row for row in bench.results.rows if row.metric == metric), None)
    if frozen is None:
        clock: list[float] = []
        pretrain(load_recipe(config(name), paced(CALIBRATION)), folder.with_name(f"{folder.name}_calibration"),
                 overwrite=True, listen=lambda progress: clock.append(time.process_time()))
        per_step = float(np.median(np.diff(clock)))
        frozen = Row(metric=metric, unit="steps", ours=max(20, int(0.9 * seconds / per_step)))
        bench.add(frozen)
    say(f"{name}: {frozen.ours:g} steps in {seconds:g} CPU s")
    return pretrain(load_recipe(config(name), paced(int(frozen.ours))), folder, overwrite=False)


def paced(steps: int) -> list[str]:
    """Validated three times, a calibration only at its end."""
    every = max(CALIBRATION, steps // 3)
    return ["train.threads=1", "train.minutes=null", f"train.steps={steps}", f"train.validate_every={every}",
            "train.validation_windows=4", f"train.checkpoint_every={every}"]


def compare(bench: Bench, label: str, ours: Predictor, adapter: Volumes, store: Store) -> None:
    """Every reference at its best setting on validation, then all on the test split."""
    assert isinstance(adapter.task, Restore)
    task, scan = adapter.task, adapter.task.config.measurement == "scan"
    methods = SCAN if scan else NOISE
    if all(bench.has(f"{label}/psnr", name) for name in methods):
        return
    picked = samples(adapter, store, "validation")[::EVERY]
    chosen: dict[str, Setting] = {}
    for name, (method, settings) in methods.items():
        means = [np.mean([scores(task, s, method(s, task, setting))[0] for s in picked]) for setting in settings]
        chosen[name] = settings[int(np.argmax(means))]
        say(f"{label}: {name} {dict(chosen[name])}, validation {max(means):.3f} dB")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *methods)}
    for sample in samples(adapter, store, "test"):
        found["ours"].append(scores(task, sample, ours.predict(sample)[task.modality].values[0]))
        for name, (method, _) in methods.items():
            found[name].append(scores(task, sample, method(sample, task, chosen[name])))
    mean = {name: np.mean(rows, axis=0) for name, rows in found.items()}
    for name in methods:
        for i, (measure_name, unit) in enumerate((("psnr", "dB"), ("ssim", "1"))):
            bench.add(Row(metric=f"{label}/{measure_name}", unit=unit, ours=float(mean["ours"][i]),
                          peer=float(mean[name][i]), peer_name=name))
    say(f"{label}: " + "; ".join(f"{name} {psnr:.2f} dB {ssim:.4f}" for name, (psnr, ssim) in mean.items()))


def samples(adapter: Volumes, store: Store, split: Any) -> Sequence[xr.Dataset]:
    """All volumes of a split with the measurements that every method gets."""
    windows = adapter.open(store, split)
    assert isinstance(windows, Whole)
    return [windows.draw(i, *(np.random.default_rng([SEED, i]) for _ in range(2))) for i in range(len(windows))]


def scores(task: Restore, sample: xr.Dataset, image: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM of a magnitude ``(x, y, z)``."""
    truth = sample[[task.modality]].expand_dims("sample")
    given = truth.assign({task.modality: (truth[task.modality].dims, image[None])})
    found = task.score(given, truth, (1.0, 1.0, 1.0))
    return float(found["psnr"][0]), float(found["ssim"][0])


def measured(sample: xr.Dataset, task: Restore) -> Start:
    return start_of(sample, task.modality, task.config.measurement, task.config.options, 1.0)


def unchanged(sample: xr.Dataset, task: Restore, setting: Setting) -> np.ndarray:
    """The noisy image, or the zero-filled one."""
    start = measured(sample, task)
    return np.asarray(start.observation.adjoint(start.measurement)[0].abs() * start.scale)


def descent(sample: xr.Dataset, task: Restore, setting: Setting) -> np.ndarray:
    start = measured(sample, task)
    image = start.observation.adjoint(start.measurement)
    steps = int(setting["steps"])
    image = least_squares(start.observation, start.measurement, image, steps, start.step)
    return np.asarray(image[0].abs() * start.scale)


def total_variation_of(sample: xr.Dataset, task: Restore, setting: Setting) -> np.ndarray:
    start, y, weight = measured(sample, task), None, setting["weight"]
    if task.config.measurement == "noise":
        y, weight = torch.from_numpy(unbiased(sample, task, start))[None], weight * level(sample, task, start)
    found = total_variation(start.observation, start.measurement if y is None else y, weight, iterations=TV_STEPS)
    return np.asarray(found.image[0].abs() * start.scale)


def non_local_means(sample: xr.Dataset, task: Restore, setting: Setting) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    start = measured(sample, task)
    noise = level(sample, task, start)
    image = denoise_nl_means(unbiased(sample, task, start), patch_size=3, patch_distance=4,
                             h=setting["weight"] * noise, sigma=noise, fast_mode=True)
    return np.asarray(image * start.scale)


def level(sample: xr.Dataset, task: Restore, start: Start) -> float:
    """The standard deviation that the noise has in link space, from the truth."""
    return float(task.config.options["noise"]) * reference(sample[task.modality].values) / start.scale


def unbiased(sample: xr.Dataset, task: Restore, start: Start) -> np.ndarray:
    """√(m² − 2 σ²), whose square has the mean x² under Rician noise."""
    image = start.measurement[0].numpy()
    return np.sqrt(np.maximum(image**2 - 2 * level(sample, task, start) ** 2, 0.0))


def grid(**choices: Sequence[float]) -> list[Setting]:
    return [dict(zip(choices, each)) for each in itertools.product(*choices.values())]


def say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", err=True)


NOISE: dict[str, tuple[Method, list[Setting]]] = {
    "noisy": (unchanged, [{}]), "total_variation": (total_variation_of, grid(weight=(0.2, 0.3, 0.4, 0.5, 0.6)))}
if importlib.util.find_spec("skimage"):
    NOISE["non_local_means"] = (non_local_means, grid(weight=(0.3, 0.4, 0.5)))
SCAN: dict[str, tuple[Method, list[Setting]]] = {
    "zero_filled": (unchanged, [{}]), "least_squares": (descent, grid(steps=(5, 10, LEAST_SQUARES_STEPS))),
    "total_variation": (total_variation_of, grid(weight=(0.001, 0.002, 0.003, 0.004, 0.006)))}
