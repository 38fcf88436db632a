"""Segmentation: which structure every voxel is of, by labels that exclude one another or by regions that overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Sample
from sciml.data import bricks
from sciml.data.store import Store
from sciml.domains.volumes import geometry, overlap, surface
from sciml.domains.volumes.config import Known
from sciml.domains.volumes.encode import DOMAIN, Plain, asked
from sciml.domains.volumes.windows import LABEL
from sciml.errors import InputError
from sciml.recipe import Section, validate
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch, TokenSpec

ATLAS = 32
"""Points of the atlas along each axis of a volume."""
EACH = "per volume, then mean"
LEAST = 1e-3
"""Probability that an atlas gives at least: what no training volume has at a place is unlikely, not impossible."""


class SegmentConfig(Section):
    """regions: name → label values, where structures lie inside one another; each later one is cut out of those before,
    and each must have exactly one value that none of the later ones has. Without: one structure per label value.
    tolerance_mm: of the surface Dice. head: a name in ``sciml.operator.heads``. deep_supervision: in training the head
    `refined` also answers at every coarser resolution, whose losses weigh half as much from one to the next.
    """

    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    tolerance_mm: float = Field(default=1.0, gt=0)
    head: str = "refined"
    deep_supervision: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> SegmentConfig:
        own_values(self.regions)
        if self.deep_supervision and self.head != "refined":
            raise ValueError(f"deep_supervision is of the head refined, not of {self.head}")
        return self


def own_values(regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The label value that is written where a region is the last that holds.

    >>> own_values({"whole": (1, 2, 3), "core": (2, 3), "active": (3,)})
    {'whole': 1, 'core': 2, 'active': 3}
    """
    names, own = list(regions), {}
    for i, name in enumerate(names):
        later = {value for other in names[i + 1:] for value in regions[other]}
        mine = set(regions[name]) - later
        if len(mine) != 1:
            raise ValueError(f"regions: {name} has {sorted(mine) or 'no value'} that no later region has; order them "
                             "from the outermost inwards, each with one value of its own")
        own[name], = mine
    return own


@dataclass(frozen=True)
class Segment:
    """Logits of structures (background first), or of regions without one; of several frames, for each where labels of
    the data set differ between them, else one answer, their mean. Floor: the mean atlas, how often each
    structure is found at a relative place of the training volumes, whatever the image shows."""

    config: SegmentConfig = field(default_factory=SegmentConfig)
    structures: tuple[str, ...] = ()
    atlas: np.ndarray | None = None
    floored: bool = False
    baseline_name: str = "mean atlas"
    labelled: bool = True
    iterated: bool = False

    @property
    def objective(self) -> str:
        return "dice_cross_entropy_regions" if self.config.regions else "dice_cross_entropy"

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Self:
        return cls(validate(SegmentConfig, dict(options), where="domains.volumes.task.segment"))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(f"{DOMAIN}/{name}" for name in self.config.regions or self.structures)

    def fit(self, store: Store, known: Known) -> Self:
        if not known.structures:
            raise InputError(store.url, key=LABEL, found="no labels",
                             expected="labels and the names of their structures",
                             fix="build the store with labels, or use another task (masked, restore)")
        for name, values in self.config.regions.items():
            if not set(values) < set(range(len(known.structures))):
                raise InputError("domains.volumes.task.segment", key=f"regions.{name}", found=list(values),
                                 expected=f"label values of {store.meta.dataset}: {dict(enumerate(known.structures))}",
                                 fix="correct them")
        made = replace(self, structures=known.structures)
        return replace(made, atlas=made._atlas(store)) if self.atlas is None else made

    def _atlas(self, store: Store) -> np.ndarray:
        """``(ATLAS, ATLAS, ATLAS, outputs)`` mean over the training volumes at equal relative places, RAS."""
        total, count = np.zeros((ATLAS, ATLAS, ATLAS, len(self.outputs))), 0
        for block in store.meta.splits.train:
            label = bricks.read(store, LABEL, block.group)
            if not np.isfinite(label).any():
                continue
            turned = geometry.ras(geometry.dataset_of({LABEL: label}, bricks.affine(store, block.group),
                                                      times=np.arange(*label.shape[3:]) if label.ndim > 3 else None)
                                  )[LABEL].values
            shares = np.moveaxis(overlap.masks(turned, self._values()), 0, -1)
            if turned.ndim == 4:
                shares = shares[np.isfinite(turned).any((1, 2, 3))].mean(0)
            where = [np.minimum(((np.arange(ATLAS) + 0.5) / ATLAS * n).astype(int), n - 1) for n in turned.shape[-3:]]
            total, count = total + shares[np.ix_(*where)].astype(np.float64), count + 1
        if not count:
            raise InputError(store.url, key=LABEL, found="no labelled volume in the training split",
                             expected="at least one", fix="label some, or change the split")
        return np.asarray(total / count, np.float32)

    def _values(self) -> list[int | tuple[int, ...]]:
        """Label values of each output."""
        return list(self.config.regions.values()) or list(range(len(self.structures)))

    def floor(self) -> Self:
        return replace(self, floored=True)

    def spec(self, spec: TokenSpec, known: Mapping[str, Known]) -> TokenSpec:
        kind = self.config.head + "_deep" * self.config.deep_supervision
        return replace(spec, heads={LABEL: HeadSpec(kind, self.outputs, link="logit")})

    def draw(self, sample: Sample, rng: np.random.Generator, *, train: bool) -> Sample:
        return sample

    def encode(self, plain: Plain) -> TokenBatch:
        """value ``(1, [T,] X, Y, Z, outputs)``: 1 for each output that holds; voxels without a label do not count."""
        if LABEL in plain.sample:
            label = plain.sample[LABEL].values
            known = np.isfinite(label)
            value = np.moveaxis(overlap.masks(label, self._values()), 0, -1)
        else:
            lattice = plain.lattice if plain.known.moving else plain.lattice[-3:]
            known = np.zeros(lattice, bool)
            value = np.zeros((*lattice, len(self.outputs)), bool)
        given = torch.from_numpy(value)[None].to(plain.batch.values.dtype)
        target = asked(given, torch.from_numpy(known)[None, ..., None])
        if self.floored:
            prior = self._prior(plain.lattice[-3:]).to(given)
            target = replace(target, baseline=prior if value.ndim == 4 else prior[:, None])
        return replace(plain.batch, targets={LABEL: target})

    def _prior(self, lattice: tuple[int, ...]) -> Tensor:
        """Log-odds (regions) or log-probabilities of the atlas on a lattice."""
        assert self.atlas is not None
        fine = [(np.arange(n) + 0.5) / n for n in lattice]
        coarse = [(np.arange(ATLAS) + 0.5) / ATLAS] * 3
        p = np.clip(geometry.regridded(self.atlas.astype(np.float64), coarse, fine), LEAST, 1 - LEAST)
        return torch.from_numpy(np.log(p / (1 - p)) if self.config.regions else np.log(p))[None]

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def labels(self, logits: Tensor) -> Tensor:
        """``(…, outputs)`` logits → ``(…)`` label values, int64: the largest, or the last region that is likelier
        than not."""
        if not self.config.regions:
            return logits.argmax(-1)
        found = logits.new_zeros(logits.shape[:-1], dtype=torch.int64)
        for i, value in enumerate(own_values(self.config.regions).values()):
            found = torch.where(logits[..., i] > 0, value, found)
        return found

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """``label`` (NaN where the truth isn't known) and, to look at, ``image``: the first modality as the operator
        sees it, where tokens are on the image's own grid."""
        label, target = self.labels(predictions[LABEL]).to(torch.float32), batch.targets[LABEL]
        if bool(target.mask.any()):
            label = label.masked_fill(~target.mask[..., 0], torch.nan)
        image = batch.values[..., 0]
        if image.ndim > label.ndim:
            image = image.mean(1)
        return {LABEL: (label, "1"), **({"image": (image, "1")} if image.shape == label.shape else {})}

    @property
    def judged(self) -> dict[str, int | tuple[int, ...]]:
        """Name → label values of what is scored: all but the background."""
        return dict(self.config.regions) or {name: i for i, name in enumerate(self.structures) if i}

    def metrics(self) -> tuple[Metric, ...]:
        made = [Metric("dice", "1", "per volume, mean over structures, then mean", higher=True, null=0.0)]
        for name in self.judged:
            made += [Metric(f"dice_{name}", "1", EACH, higher=True, null=0.0),
                     Metric(f"hd95_{name}", "mm", f"{EACH}; the diagonal where one is empty", higher=False),
                     Metric(f"surface_dice_{name}", "1", f"{EACH}; within {self.config.tolerance_mm:g} mm", higher=True,
                            null=0.0),
                     Metric(f"volume_similarity_{name}", "1", EACH, higher=True, null=0.0)]
        return tuple(made)

    def score(self, prediction: xr.Dataset, truth: xr.Dataset, mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        """Of one volume. A Hausdorff distance to what is empty is the volume's diagonal."""
        label, values = truth[LABEL].values[0], list(self.judged.values())
        known, found = np.isfinite(label), {}
        ours, theirs = (overlap.masks(x, values) & known for x in (prediction[LABEL].values[0], label))
        diagonal = float(np.linalg.norm(np.array(label.shape) * mm))
        for name, p, t in zip(self.judged, ours, theirs):
            found[f"dice_{name}"] = float(overlap.dice(p, t))
            found[f"hd95_{name}"] = min(surface.hausdorff(p, t, mm), diagonal)
            found[f"surface_dice_{name}"] = surface.surface_dice(p, t, mm, self.config.tolerance_mm)
            found[f"volume_similarity_{name}"] = float(overlap.volume_similarity(p, t))
        found["dice"] = float(np.mean([found[f"dice_{name}"] for name in self.judged]))
        return {name: np.array([value]) for name, value in found.items()}

    def initial(self, batch: TokenBatch) -> TokenBatch:
        raise InputError("volumes", key="task", found="segment", expected="a task that is a cascade of steps: restore",
                         fix="use predict, or sciml segment")

    def advance(self, state: State, outputs: Outputs) -> State:
        return replace(state, batch=self.initial(state.batch))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"structures": list(self.structures)}, {} if self.atlas is None else {"atlas": self.atlas}

    def restored(self, config: Mapping[str, Any], arrays: Arrays) -> Self:
        atlas = np.asarray(arrays["atlas"]) if "atlas" in arrays else None
        return replace(self, structures=tuple(config["structures"]), atlas=atlas)


PLUGIN = Segment
