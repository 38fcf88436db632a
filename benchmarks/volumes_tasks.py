"""Parts of `benchmarks/volumes.py` that ask something else of a trained model: thick slices, few labelled volumes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from finetune.workflow import extend
from pretrain.workflow import new_predictor
from sciml import checkpoint
from sciml.data.store import Store
from sciml.domains.volumes import geometry
from sciml.domains.volumes.overlap import dice, masks
from sciml.evaluate import evaluate
from sciml.predictor import Predictor, predictions
from sciml.recipe import Recipe
from sciml.runs import begin
from sciml.train import fit

LABEL, IMAGE, AXIS = "label", "mri", "z"


def thick(image: np.ndarray, place: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices along the last axis averaged `factor` at a time, as a thicker slice would have been measured, and where
    they are; what is left over at the end is lengthened by its last slice.

    >>> made, where = thick(np.arange(4.0)[None, None], np.arange(4.0), 3)
    >>> made[0, 0].tolist(), where.tolist()
    ([1.0, 3.0], [1.0, 4.0])
    """
    left = -image.shape[-1] % factor
    whole = np.concatenate([image, np.repeat(image[..., -1:], left, -1)], -1)
    step = place[1] - place[0]
    centres = place[0] + step * (np.arange(whole.shape[-1] // factor) * factor + (factor - 1) / 2)
    return whole.reshape(*image.shape[:-1], -1, factor).mean(-1), centres


def thickened(sample: xr.Dataset, factor: int) -> xr.Dataset:
    """A sample of the image alone with thicker slices along z, RAS."""
    turned = geometry.ras(sample)
    place = turned[AXIS].values.astype(np.float64)
    image, centres = thick(turned[IMAGE].values, place, factor)
    affine = np.diag([*geometry.spacing(turned), 1.0])
    affine[2, 2] *= factor
    affine[:3, 3] = [turned["x"].values[0], turned["y"].values[0], centres[0]]
    kept = {key: value for key, value in sample.attrs.items() if key not in ("affine", "intensity")}
    return geometry.dataset_of({IMAGE: image.astype(np.float32)}, affine, kept)


def labels_of(predictor: Predictor, sample: xr.Dataset, truth: xr.Dataset) -> np.ndarray:
    """Label values of what is predicted for `sample` on the grid of `truth`: logits moved there, linear along z."""
    adapter: Any = predictor.adapter("volumes")
    batch = adapter.encode(sample)
    logits = predictions(batch, predictor.forward(batch))[LABEL][0].numpy()
    old, new = (geometry.ras(each)[AXIS].values.astype(np.float64) for each in (sample, truth))
    weights = geometry.hat_weights(old, new)
    moved = np.moveaxis(np.tensordot(weights, logits, ([1], [2])), 0, 2)
    found: np.ndarray = adapter.task.labels(torch.from_numpy(moved)).numpy()
    return found


def thick_scores(predictor: Predictor, store: Store, factor: int,
                 split: Any = "test") -> tuple[dict[str, float], dict[str, float]]:
    """Mean Dice by structure of the volumes as they are, and with slices that much thicker, interpolated back to the
    grid on which both are scored."""
    adapter: Any = predictor.adapter("volumes")
    windows, rng = adapter.open(store, split), np.random.default_rng(0)
    values = list(adapter.task.judged.values())
    plain: list[np.ndarray] = []
    thicker: list[np.ndarray] = []
    for i in range(len(windows)):
        sample = windows.draw(i, rng, rng)
        truth = masks(geometry.ras(sample)[LABEL].values, values)
        for given, into in ((sample, plain), (interpolated(thickened(sample, factor), sample), thicker)):
            into.append(dice(masks(labels_of(predictor, given, sample), values), truth, keep=1))
    return tuple({name: float(score) for name, score in zip(adapter.task.judged, np.mean(found, 0))}  # type: ignore[return-value]
                 for found in (plain, thicker))


def interpolated(given: xr.Dataset, like: xr.Dataset) -> xr.Dataset:
    """A sample's images on the grid of another of the same extent, linear along each axis."""
    coarse, fine = geometry.ras(given), geometry.ras(like)
    old, new = ([each[name].values for name in geometry.NAMES] for each in (coarse, fine))
    moved = {name: (geometry.NAMES, geometry.regridded(array.values.astype(np.float64), old, new).astype(np.float32))
             for name, array in coarse.data_vars.items() if name != LABEL}
    return xr.Dataset(moved, coords={name: fine[name] for name in geometry.NAMES}, attrs=dict(given.attrs))


def few(store: Store, count: int, seed: int) -> Store:
    """The store with that many of its training subjects, drawn by the seed; validation and test stay."""
    splits = store.meta.splits
    drawn = np.sort(np.random.default_rng([seed, count]).permutation(len(splits.train))[:count])
    made = copy.copy(store)
    chosen = splits.model_copy(update={"train": tuple(splits.train[int(i)] for i in drawn)})
    made.meta = store.meta.model_copy(update={"splits": chosen})
    return made


def train_few(recipe: Recipe, store: Store, folder: Path, masked: Path | None) -> Predictor:
    """Train a recipe on a store that is open, from scratch or from the weights of a run; goes on after a stop."""
    if masked is None:
        predictor = new_predictor(recipe, [store])
    else:
        predictor = checkpoint.load(masked)
        extend(predictor, store, recipe)
    run = begin(folder, recipe, predictor, [store])
    try:
        return fit(run)
    finally:
        run.ranks.leave()


def test_dice(predictor: Predictor, store: Store) -> float:
    return next(row.value for row in evaluate(predictor, store, "test").scores if row.metric == "dice")


def mean_error(dices: Sequence[float]) -> float:
    """1 − Dice."""
    return float(1 - np.mean(dices))
