"""Restoration: the image that a noisy, blurred, undersampled or sparse measurement came from, by a cascade of steps
that know what was measured (`sciml.domains.volumes.cascade`). Measurements are the sample's own, or simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Sample
from sciml.data import bricks
from sciml.data.store import Store
from sciml.domains.volumes import cascade, geometry, images, measured
from sciml.domains.volumes.config import Known
from sciml.domains.volumes.encode import DOMAIN, INTENSITY, SPACING, Plain, asked, tensor
from sciml.domains.volumes.references import least_squares
from sciml.domains.volumes.simulate import reference
from sciml.errors import InputError
from sciml.observations.contract import Observation
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch, TokenSpec

HEAD = "image"
SCALE, LEFT, PHASE = "image_scale", "steps", "phase"
"""Names in `TokenBatch.kept`: ``(S, 2)`` scale and offset from link space to the image's unit; ``(S,)`` the steps that
a forward makes; ``(S, [T,] X, Y, Z, 2)`` `measured.Start.phase`, where there is one."""
FITTED_ON = 8
"""Training volumes by whose baseline the head's scale is set."""
WINDOW = 11
"""Voxels of the structural similarity's window, fewer where a volume has fewer."""


class RestoreConfig(Section):
    """measurement: what was done to the image; options: of its simulation in `sciml.domains.volumes.simulate`, of which
    `noise` may be a list of levels. cascades: steps; step: of their gradient, over 1 / ‖A‖². modality: what is
    restored, empty for the first. imaginary: the variable with the image's imaginary part; without, images are
    magnitudes, and a scan's phase is simulated. weights: of total variation over the size of the noise; the one that is
    best on training volumes makes the image that is corrected; none: least squares. head: a name in
    ``sciml.operator.heads``.
    """

    measurement: Literal["noise", "blur", "scan", "projections"] = "noise"
    options: dict[str, Any] = Field(default_factory=dict)
    cascades: int = Field(default=1, ge=1)
    step: float = Field(default=1.0, gt=0, lt=2)
    modality: str = ""
    imaginary: str = ""
    weights: tuple[float, ...] = ()
    head: str = "refined"
    objective: str = "relative_l2"

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not all(weight > 0 for weight in weights):
            raise ValueError("weights: positive numbers")
        return weights

    @property
    def told(self) -> bool:
        """Whether the operator reads the gradient of the likelihood, which is not zero where it starts."""
        return self.cascades > 1 or bool(self.weights)


@dataclass(frozen=True)
class Restore:
    """Images over the 99th percentile of what the measurement gives at once (a CT: attenuation over that of water).
    Floor: total variation, else the noisy image; then as many steps of least squares as the cascade has."""

    config: RestoreConfig = field(default_factory=RestoreConfig)
    modality: str = ""
    residual: float = 0.1
    weight: float = 0.0
    labelled: bool = False

    @property
    def objective(self) -> str:
        return self.config.objective

    @property
    def iterated(self) -> bool:
        return self.config.cascades > 1

    @property
    def baseline_name(self) -> str:
        if self.config.weights:
            return "total variation"
        return "noisy image" if self.config.measurement == "noise" else "least squares"

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(RestoreConfig, dict(options), where="domains.volumes.task.restore"))

    @property
    def channels(self) -> tuple[str, ...]:
        real = f"{DOMAIN}/{self.modality}"
        return (real, f"{real}.imaginary") if self.config.measurement == "scan" else (real,)

    def fit(self, store: Store, known: Known) -> Self:
        """The best weight of total variation, and the size of what the baseline then misses over `Start.error`, in a
        few training volumes."""
        modality = self.config.modality or next(iter(known.modalities))
        absent = {modality, self.config.imaginary} - {*known.modalities, ""}
        if absent:
            raise InputError(store.url, key="modality", found=", ".join(known.modalities),
                             expected=", ".join(sorted(absent)), fix="restore a modality that the store has")
        made, train, rng = replace(self, modality=modality), store.meta.splits.train, np.random.default_rng(0)
        drawn = []
        for i in np.unique(np.linspace(0, len(train) - 1, FITTED_ON).astype(int)):
            group = train[i].group
            sample = geometry.dataset_of(
                {name: bricks.read(store, name, group) for name in {modality, self.config.imaginary} - {""}},
                bricks.affine(store, group), {"source": f"{store.url} {group}"}, units=known.modalities,
                times=bricks.times(store, group))
            drawn.append(made.draw(sample, rng, train=False))
        tried = [replace(made, weight=weight) for weight in self.config.weights or (0.0,)]
        missed = [float(np.sqrt(np.mean([each._missed(sample) for sample in drawn]))) for each in tried]
        best = int(np.argmin(missed))
        return replace(tried[best], residual=missed[best] or 1.0)

    def _missed(self, sample: xr.Dataset) -> float:
        """The mean square of what the baseline lacks, per channel, over that of `Start.error`."""
        start, steps = self._start(sample), self.config.cascades if self.config.cascades > 1 else 0
        base = least_squares(start.observation, start.measurement, start.image, steps, start.step)
        gap = (self._truth(sample, start) - _bare(sample, base))[np.isfinite(sample[self.modality].values)]
        return float(np.mean(np.abs(gap / start.error) ** 2) / len(self.channels))

    def floor(self) -> Self:
        return self

    def spec(self, spec: TokenSpec, known: Mapping[str, Known]) -> TokenSpec:
        unit = next((k.modalities[self.modality] for k in known.values() if self.modality in k.modalities), "1")
        told = self.config.told
        return replace(spec, channels=self.channels, units=dict.fromkeys(self.channels, unit),
                       heads={HEAD: HeadSpec(self.config.head, self.channels)},
                       lattice_conditions=cascade.gradient_names(self.channels) if told else (),
                       vector_conditions=(cascade.PROGRESS,) if told else ())

    def draw(self, sample: Sample, rng: np.random.Generator, *, train: bool) -> Sample:
        """In RAS order, with a measurement."""
        return measured.simulated(geometry.ras(sample), self.modality, self.config.measurement, self.config.options,
                                  rng, self.config.imaginary)

    def _start(self, sample: xr.Dataset) -> measured.Start:
        return measured.start_of(sample, self.modality, self.config.measurement, self.config.options, self.config.step,
                                 self.weight)

    def _truth(self, sample: xr.Dataset, start: measured.Start) -> np.ndarray:
        """In link space."""
        truth = measured.truth_of(sample, self.modality, self.config.measurement) / start.scale
        return truth if start.phase is None else truth / _bare(sample, start.phase)

    def encode(self, plain: Plain) -> TokenBatch:
        """values ``(1, [T,] X, Y, Z, 1 or 2)``: the image that the measurement gives at once. Raises `InputError` where
        tokens are on another grid than the measured image."""
        if plain.batch.lattice != plain.lattice:
            raise InputError(plain.batch.sources, key="spacing_mm", found=plain.batch.lattice,
                             expected=f"the grid that was measured, {plain.lattice}",
                             fix="leave spacing_mm out to restore")
        start, known = self._start(plain.sample), np.isfinite(plain.sample[self.modality].values)
        counts = torch.from_numpy(known)[None, ..., None]
        truth = tensor(_parts(self._truth(plain.sample, start), len(self.channels)))[None]
        hounsfield = (1000.0, -1000.0) if self.config.measurement == "projections" else (start.scale, 0.0)
        film = len(plain.lattice) > len(geometry.NAMES)
        batch = replace(
            plain.batch, values=_whole(cascade.values_of(start.image), film), channels=self.channels,
            observed=None if known.all() else counts, targets={HEAD: asked(truth * counts, counts)},
            kept={**{name: value for name, value in plain.batch.kept.items() if name != INTENSITY},
                  **cascade.kept_of(start.observation, start.measurement, start.step, frames=film),
                  **({} if start.phase is None else {PHASE: _whole(torch.view_as_real(start.phase), film)}),
                  LEFT: torch.tensor([self.config.cascades]), SCALE: torch.tensor([hounsfield], dtype=torch.float64)})
        batch = cascade.asked(batch, HEAD, start.observation, self.config.cascades, self.residual * start.error)
        if not self.config.told:
            return batch
        return replace(batch, conditions=cascade.told(batch, HEAD, start.observation, 0.0).conditions)

    def _observation(self, batch: TokenBatch) -> Observation:
        mm = [float(side) for side in batch.kept[SPACING][0]]
        return cascade.observation_of(batch, measured.KINDS[self.config.measurement][0], measured.options_of(
            self.config.measurement, self.config.options, batch.lattice[-len(mm):], mm))

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """The whole cascade; of a rollout's state one step."""
        return cascade.cascade(batch, operate, HEAD, self._observation(batch), int(batch.kept[LEFT][0]))

    def initial(self, batch: TokenBatch) -> TokenBatch:
        """What a rollout of single steps starts from."""
        one = replace(batch, kept={**batch.kept, LEFT: torch.ones_like(batch.kept[LEFT])})
        return cascade.told(one, HEAD, self._observation(batch), 0.0)

    def advance(self, state: State, outputs: Outputs) -> State:
        """One step of the cascade; time counts them."""
        share = min(1.0, (state.step + 1) / self.config.cascades)
        batch = cascade.advanced(state.batch, outputs, HEAD, self._observation(state.batch), share)
        return replace(state, batch=batch, step=state.step + 1, elapsed=state.elapsed + 1.0)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """The image in its unit, a magnitude unless its imaginary part was measured; and its baseline as
        ``<modality>_baseline``. NaN off the volume."""
        found = {}
        for suffix, values in (("", predictions[HEAD]), ("_baseline", batch.targets[HEAD].baseline)):
            scale, offset = (batch.kept[SCALE][:, i].view(-1, *[1] * len(batch.axes)) for i in (0, 1))
            image = cascade.image_of(values.double())
            if PHASE in batch.kept:
                image = image * cascade.image_of(batch.kept[PHASE].double())
            real = image.real if self.config.imaginary else image.abs() if image.is_complex() else image
            parts = {self.modality: real} | ({self.config.imaginary: image.imag} if self.config.imaginary else {})
            for name, part in parts.items():
                unit = (part * scale + offset).float()
                if batch.observed is not None:
                    unit = unit.masked_fill(~batch.observed[..., 0], torch.nan)
                found[f"{name}{suffix}"] = unit, "1"
        return found

    def metrics(self) -> tuple[Metric, ...]:
        where = "per volume, over the 99th percentile of the true magnitude, then mean"
        return (Metric("psnr", "dB", where, higher=True), Metric("ssim", "1", where, higher=True))

    def score(self, prediction: xr.Dataset, truth: xr.Dataset, mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Of one volume, magnitudes; off the volume both are 0."""
        ours, known = (self._magnitude(x) for x in (prediction, truth))
        known, ours = np.nan_to_num(known), np.where(np.isfinite(known), ours, 0.0)
        whole = reference(known)
        ours, known = ours.squeeze(), known.squeeze()
        window = min(WINDOW, min(known.shape) - 1 + min(known.shape) % 2)
        return {"psnr": np.array([images.psnr(ours, known, whole)]),
                "ssim": np.array([images.ssim(ours, known, whole, window=window)])}

    def _magnitude(self, x: xr.Dataset) -> np.ndarray:
        real = x[self.modality].values[0].astype(np.float64)
        return np.hypot(real, x[self.config.imaginary].values[0]) if self.config.imaginary else real

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"modality": self.modality, "residual": self.residual, "weight": self.weight}, {}

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        return replace(self, modality=str(config["modality"]), residual=float(config["residual"]),
                       weight=float(config["weight"]))


def _bare(sample: xr.Dataset, images: Tensor) -> np.ndarray:
    """``(n, X, Y, Z)`` images as arrays of a sample: frames, or one without the first dimension."""
    return images.numpy() if geometry.TIME in sample.dims else images.numpy()[0]


def _whole(images: Tensor, film: bool) -> Tensor:
    """``(n, …)`` as a batch of one: frames get a dimension before them."""
    return images[None] if film else images


def _parts(image: np.ndarray, count: int) -> np.ndarray:
    """``(…, count)``: real and imaginary part of a complex image."""
    return np.stack([image.real, image.imag], -1) if count == 2 else image.real[..., None]


PLUGIN = Restore
