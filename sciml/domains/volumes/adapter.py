"""The domain `volumes`: images in millimetres to tokens and back. What is asked of them is the task's to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, cast

import numpy as np
import xarray as xr
from torch import Tensor

from sciml import registry
from sciml.adapter import Arrays, Comparing, Metric, Operate, Question, Sample
from sciml.data import bricks
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.volumes import geometry
from sciml.domains.volumes.config import CATEGORY, CLASS, Known, VolumesConfig
from sciml.domains.volumes.encode import DOMAIN, FRAMES, GRID, SPACING, onto_grid, plain_batch
from sciml.domains.volumes.geometry import TIME
from sciml.domains.volumes.sliding import blended
from sciml.domains.volumes.tasks import TASKS, Task
from sciml.domains.volumes.windows import LABEL, Patches, Whole, subjects_of
from sciml.errors import InputError
from sciml.recipe import Named, validate
from sciml.tokens import Outputs, State, TokenBatch, TokenSpec


@dataclass(frozen=True)
class Volumes:
    """Images of one or several modalities, 2-D (one slice), 3-D or 3-D with frames (points of time), in any orientation
    and spacing.

    Link space and what is predicted are the task's (`sciml.domains.volumes.tasks`). Numbers of each volume are made of
    order one by its own percentiles, or by fixed limits. Lattices are RAS; an answer is on the image's own grid.
    """

    config: VolumesConfig
    task: Task
    datasets: Mapping[str, Known] = field(default_factory=dict)
    name: str = DOMAIN
    differentiate: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        return self.task.objective

    @property
    def baseline_name(self) -> str:
        return self.task.baseline_name

    @property
    def structures(self) -> tuple[str, ...]:
        """Names by label value; empty where nothing is labelled."""
        return next((known.structures for known in self.datasets.values() if known.structures), ())

    @property
    def classes(self) -> tuple[str, ...]:
        """Of subjects, by number; empty where none has one."""
        return next((known.classes for known in self.datasets.values() if known.classes), ())

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of channels, of all data sets."""
        return tuple(dict.fromkeys(name for known in self.datasets.values() for name in known.modalities))

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        chosen = validate(VolumesConfig, dict(config), where="domains.volumes")
        return cls(chosen, make_task(chosen.task))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        """Raises `InputError` for another reference length, or time where there were frames: the weights belong to it.
        """
        chosen = validate(VolumesConfig, dict(config), where="domains.volumes")
        belongs = ["reference_mm", *(["reference_s"] if any(k.frames for k in self.datasets.values()) else [])]
        for key in belongs:
            if getattr(chosen, key) != getattr(self.config, key):
                raise InputError("domains.volumes", key=key, found=getattr(chosen, key),
                                 expected=f"{getattr(self.config, key)}, as pretrained", fix="leave it as it was")
        task = self.task if chosen.task == self.config.task else make_task(chosen.task)
        return replace(self, config=chosen, task=task)

    def fit(self, store: Store) -> Self:
        meta = store.meta
        if meta.domain != DOMAIN or not meta.of_role("state"):
            raise InputError(store.url, key="domain", found=meta.domain, expected="volumes with at least one modality",
                             fix=f"use the adapter of {meta.domain}")
        structures, classes = (store.members(names) if name in meta.variables and names in meta.axes else ()
                               for name, names in ((LABEL, "structure"), (CATEGORY, CLASS)))
        known = Known(modalities={name: meta.variables[name].unit for name in meta.of_role("state")},
                      structures=structures, classes=classes, split=meta.split_identity(),
                      frames=bricks.FRAME in meta.ragged, moving=bool(structures) and bricks.timed(store, LABEL))
        for key, found, before in (("structure", structures, self.structures), (CLASS, classes, self.classes)):
            if found and before and found != before:
                raise InputError(store.url, key=key, found=", ".join(found), expected=", ".join(before),
                                 fix="train on data sets that name the same ones")
        return replace(self, task=self.task.fit(store, known), datasets={**self.datasets, meta.dataset: known})

    def floor(self) -> Self:
        return replace(self, task=self.task.floor())

    def spec(self) -> TokenSpec:
        units = {f"{DOMAIN}/{n}": unit for known in self.datasets.values() for n, unit in known.modalities.items()}
        plain = TokenSpec(DOMAIN, tuple(f"{DOMAIN}/{name}" for name in self.modalities), {}, patch=self.config.patch,
                          stem=self.config.stem, units=units)
        return self.task.spec(plain, self.datasets)

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> Patches | Whole:
        subjects = subjects_of(store, self._known(store), self.config)
        if train:
            return Patches(subjects, subjects.groups(split), self.task, self.config.patches.augment)
        return Whole(subjects, subjects.groups(split), self.task)

    def starts(self, store: Store, split: SplitName) -> Whole:
        """Every volume of the split where the task is a cascade of steps, else none."""
        subjects = subjects_of(store, self._known(store), self.config)
        return Whole(subjects, subjects.groups(split) if self.task.iterated else (), self.task)

    def _known(self, store: Store) -> Known:
        if store.meta.dataset in self.datasets:
            return self.datasets[store.meta.dataset]
        mine = [k for k in self.datasets.values() if set(k.modalities) == set(store.meta.of_role("state"))]
        if not mine:
            raise InputError(store.url, key="dataset", found=store.meta.dataset,
                             expected=f"one of {', '.join(self.datasets)}, or their modalities",
                             fix="fine-tune the checkpoint on it")
        return mine[0]

    def encode(self, sample: Sample) -> TokenBatch:
        """``(1, X, Y, Z, modalities)`` in RAS order, of several frames ``(1, T, X, Y, Z, modalities)``; what is asked
        is on the image's own grid."""
        given = {str(name): str(a.attrs["given"]) for name, a in sample.data_vars.items() if "given" in a.attrs}
        return self.task.encode(plain_batch(sample, self.datasets, self.config, given=given))

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """Variables ``(sample, x, y, z)`` on the image's own grid in RAS order, or ``(sample, time, x, y, z)``, of
        whole subjects ``(sample,)`` and ``(sample, class)``, and ``spacing (sample, world)`` in mm. Positions and times
        are the image's where all samples share them, else mm and s from the first of the first."""
        places = {name: batch.kept[key].detach().cpu().double().numpy()
                  for name, key in zip((*geometry.NAMES, geometry.TIME), (*GRID, FRAMES)) if key in batch.kept}
        shared = all((place == place[0]).all() for place in places.values())
        coords: dict[str, Any] = {
            name: (name, place[0] if shared else place[0] - place[0][0], {"units": "s" if name == TIME else "mm"})
            for name, place in places.items()}
        dims = {1: ("sample",), 2: ("sample", CLASS), 4: ("sample", *geometry.NAMES),
                5: ("sample", TIME, *geometry.NAMES)}
        units = self.datasets[batch.dataset].modalities
        decoded = self.task.decode(batch, predictions)
        data: dict[str, Any] = {name: (dims[value.ndim], value.detach().cpu().numpy(), {"units": units.get(name, unit)})
                                for name, (value, unit) in decoded.items()}
        if any(value.ndim == 2 for value, _ in decoded.values()):
            coords[CLASS] = list(self.classes)
        data["spacing"] = (("sample", "world"), batch.kept[SPACING].cpu().numpy(), {"units": "mm"})
        still = {TIME} - {dim for used, *_ in data.values() for dim in used}
        return xr.Dataset(data, coords=coords, attrs={"domain": DOMAIN, "dataset": batch.dataset}).drop_vars(
            still, errors="ignore")

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """Outputs of the task; windows of a larger lattice are blended, flipped ones averaged, but not in training."""
        tiled = operate if create_graph else cast(Operate, partial(
            blended, operate=operate, window=self.config.tile(batch.lattice), overlap=self.config.overlap,
            mirrors=self.config.mirrors))
        return onto_grid(batch, self.task.derive(batch, tiled, create_graph), self.config.reference_mm)

    def initial(self, sample: Sample) -> State:
        return State(self.task.initial(self.encode(sample)))

    def advance(self, state: State, outputs: Outputs) -> State:
        return self.task.advance(state, outputs)

    def observe(self, state: State) -> xr.Dataset:
        """What the cascade has come to, with the number of its steps as the coordinate ``time``; points of time are the
        dimension ``frame``."""
        now = self.decode(state.batch, {name: target.baseline for name, target in state.batch.targets.items()})
        now = now.rename({TIME: "frame"}) if TIME in now.dims else now
        return now.assign_coords(time=((), state.elapsed, {"units": "1"}))

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """``volumes``: every volume of the split, whole."""
        return [Question("volumes", self.open(store, split))]

    def metrics(self) -> tuple[Metric, ...]:
        return self.task.metrics()

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        """Of each sample; the mean over its frames, those left out of which nothing is known."""
        parts = []
        for i in range(truth.sizes["sample"]):
            x, y, z = (float(mm) for mm in truth["spacing"].values[i])
            ours, known = (each.isel(sample=slice(i, i + 1)) for each in (prediction, truth))
            seen = known_frames(known)
            frames = [self.task.score(ours.isel(at), known.isel(at), (x, y, z)) for at in seen]
            parts.append({name: np.mean([frame[name] for frame in frames], 0) if len(seen) > 1 else frames[0][name]
                          for name in frames[0]})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def across(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores of all samples of a question, where the task has any that compare samples."""
        return self.task.across(scores) if isinstance(self.task, Comparing) else dict(scores)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        fitted, arrays = self.task.state()
        return {"config": self.config.model_dump(mode="json"), "task": fitted,
                "datasets": {name: known.model_dump(mode="json") for name, known in self.datasets.items()}}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        chosen = validate(VolumesConfig, config["config"], where="checkpoint domains.volumes")
        datasets = {name: validate(Known, raw, where=f"checkpoint domains.volumes.{name}")
                    for name, raw in config["datasets"].items()}
        return cls(chosen, make_task(chosen.task).restored(config["task"], arrays), datasets)


def known_frames(truth: xr.Dataset) -> list[dict[str, int]]:
    """Of one sample: the frames in which all that is asked in every one is known anywhere, all of them if there is none
    such; ``[{}]`` where nothing is asked in every frame."""
    asked = [array for array in truth.data_vars.values() if TIME in array.dims and array.dtype.kind == "f"]
    if not asked:
        return [{}]
    counts = range(truth.sizes[TIME])
    seen = [t for t in counts if all(np.isfinite(array.isel({TIME: t}).values).any() for array in asked)]
    return [{TIME: t} for t in seen or counts]


def make_task(config: Named) -> Task:
    """The task of that name. Raises `InputError` naming the ones that exist, or the option that it doesn't have."""
    task: Task = registry.find(TASKS, config.name, where="domains.volumes.task").create(config.options)
    return task
