"""Masked reconstruction at several scales, with noise: what an unlabelled volume teaches before few are labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Sample
from sciml.data.store import Store
from sciml.domains.volumes.config import Known
from sciml.domains.volumes.encode import DOMAIN, INTENSITY, Plain, asked
from sciml.errors import InputError
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch, TokenSpec

HEAD = "image"
HIDDEN, GIVEN = "hidden", "given_"


class MaskedConfig(Section):
    """share: of voxels that are hidden, in cubes of `scales` voxels (and as many frames, where there are several), one
    scale drawn for each sample. noise: standard deviation of what is added to the rest, in those of the volume; where
    it isn't 0, all voxels are asked for."""

    share: float = Field(default=0.6, gt=0, lt=1)
    scales: tuple[int, ...] = Field(default=(4, 8, 16), min_length=1)
    noise: float = Field(default=0.0, ge=0)
    head: str = "refined"


@dataclass(frozen=True)
class Masked:
    """Numbers of order one (link space) of the voxels that were hidden. Floor: the volume's mean."""

    config: MaskedConfig = field(default_factory=MaskedConfig)
    objective: str = "mse"
    baseline_name: str = "mean of the volume"
    labelled: bool = False
    iterated: bool = False

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(MaskedConfig, dict(options), where="domains.volumes.task.masked"))

    def fit(self, store: Store, known: Known) -> Self:
        return self

    def floor(self) -> Self:
        return self

    def spec(self, spec: TokenSpec, known: Mapping[str, Known]) -> TokenSpec:
        return replace(spec, heads={HEAD: HeadSpec(self.config.head, spec.channels)})

    def draw(self, sample: Sample, rng: np.random.Generator, *, train: bool) -> Sample:
        """With ``hidden`` and, of each modality, what is shown in its place."""
        dims = sample[next(iter(sample.data_vars))].dims
        hidden = cubes(tuple(sample.sizes[d] for d in dims), self.config.share,
                       int(self.config.scales[int(rng.integers(len(self.config.scales)))]), rng)
        shown: dict[str, xr.DataArray] = {}
        for name, numbers in sample.attrs["intensity"].items():
            values = sample[name].values
            if self.config.noise:
                noise = rng.standard_normal(values.shape) * (self.config.noise * numbers[3])
                values = values + noise.astype(values.dtype)
            given = f"{GIVEN}{name}"
            shown[given] = sample[name].copy(data=np.where(hidden, np.nan, values))
            shown[name] = sample[name].assign_attrs(given=given)
        return sample.assign({**shown, HIDDEN: (dims, hidden)})

    def encode(self, plain: Plain) -> TokenBatch:
        """value ``(1, [T,] X, Y, Z, modalities)``; hidden voxels count, and all that are known where there is noise."""
        numbers, sample = plain.batch.kept[INTENSITY][0], plain.sample
        truth = np.stack([(sample[name].values.astype(np.float64) - float(numbers[i, 2])) / float(numbers[i, 3])
                          for i, name in enumerate(plain.known.modalities)], -1)
        counts = np.isfinite(truth)
        if HIDDEN in sample and not self.config.noise:
            counts &= sample[HIDDEN].values.astype(bool)[..., None]
        value = torch.from_numpy(np.where(counts, truth, 0.0))[None].to(plain.batch.values.dtype)
        return replace(plain.batch, targets={HEAD: asked(value, torch.from_numpy(counts)[None])})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """Modalities in their own unit, NaN where nothing was asked."""
        numbers, mask = batch.kept[INTENSITY], batch.targets[HEAD].mask
        found = {}
        for i, channel in enumerate(batch.channels):
            lattice = [1] * (predictions[HEAD].ndim - 2)
            centre, scale = (numbers[:, i, j].double().view(-1, *lattice) for j in (2, 3))
            value = predictions[HEAD][..., i].double() * scale + centre
            found[channel.removeprefix(f"{DOMAIN}/")] = (value.masked_fill(~mask[..., i], torch.nan).float(), "1")
        return found

    def metrics(self) -> tuple[Metric, ...]:
        return (Metric("relative_mse", "1", "of hidden voxels over their variance, per volume, then mean", higher=False,
                       null=1.0),)

    def score(self, prediction: xr.Dataset, truth: xr.Dataset, mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        ratios = []
        for name in [n for n in prediction.data_vars if n != "spacing"]:
            ours, known = (x[name].values.astype(np.float64) for x in (prediction, truth))
            power = float(np.nanvar(known))
            ratios.append(float(np.nanmean((ours - known) ** 2)) / power if power else 0.0)
        return {"relative_mse": np.array([np.mean(ratios)])}

    def initial(self, batch: TokenBatch) -> TokenBatch:
        raise InputError("volumes", key="task", found="masked", expected="a task that is a cascade of steps: restore",
                         fix="use predict")

    def advance(self, state: State, outputs: Outputs) -> State:
        return replace(state, batch=self.initial(state.batch))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {}

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return self


def cubes(shape: tuple[int, ...], share: float, scale: int, rng: np.random.Generator) -> np.ndarray:
    """bool ``shape``: about that share of its cubes of `scale` cells, at least one of several, not all.

    >>> hidden = cubes((8, 8, 1), 0.5, 4, np.random.default_rng(0))
    >>> int(hidden.sum()), hidden.shape
    (32, (8, 8, 1))
    """
    counts = [-(-n // scale) for n in shape]
    total = int(np.prod(counts))
    chosen = np.zeros(total, bool)
    chosen[rng.permutation(total)[:min(max(1, round(share * total)), max(total - 1, 1))]] = True
    grid = chosen.reshape(counts)
    for axis, n in enumerate(shape):
        grid = np.repeat(grid, scale, axis).take(range(n), axis)
    return grid


PLUGIN = Masked
