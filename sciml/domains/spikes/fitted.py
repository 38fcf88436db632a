"""What the adapter knows of one data set, learnt from its store: units, clock, statistics and classical baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.data.schema import Block
from sciml.data.store import Store
from sciml.domains.spikes.config import LABELLED, SpikesConfig, Task
from sciml.domains.spikes.dispersion import nb_dispersion
from sciml.domains.spikes.floors import KINDS, Floor, fit_floor, predict_floor
from sciml.domains.spikes.history import Basis, History, Recording
from sciml.domains.spikes.layout import Layout
from sciml.errors import InputError

LEAST_DISPERSION = 1e-3
"""Where counts vary as Poisson's or less: the likelihood hardly differs, and the logarithm is finite."""


@dataclass(frozen=True)
class Columns:
    """Named series beside the spikes: labels, units, training mean and standard deviation ``(K,)``."""

    labels: tuple[str, ...]
    units: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, labels: Sequence[str], units: Sequence[str], values: np.ndarray) -> Columns:
        """Of ``(T, K)`` training values; NaN is unknown."""
        known = np.isfinite(values)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, values, 0.0).sum(0, dtype=np.float64) / count
        std = np.sqrt(np.square(np.where(known, values - mean, 0.0), dtype=np.float64).sum(0) / count)
        return cls(tuple(labels), tuple(units), mean, np.where(std > 0, std, 1.0))

    def state(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "units": list(self.units), "mean": self.mean.tolist(),
                "std": self.std.tolist()}

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> Columns:
        return cls(tuple(config["labels"]), tuple(config["units"]), np.array(config["mean"], np.float64),
                   np.array(config["std"], np.float64))


@dataclass(frozen=True)
class Fitted:
    """One data set. history: how the operator is given the past of each unit, with the training rates. columns:
    ``behaviour``, ``state`` (the means are the shares of the classes) and ``stimulus`` (all covariates). floors: by
    task, the classical predictor that scores are printed beside. held_out: units that `masked` never shows. unit: of
    what is recorded, 1 of counts. dispersion: ``(N,)`` of the negative binomial around the floor's training rates, if
    that is the likelihood."""

    name: str
    units: tuple[str, ...]
    bin_s: float
    history: History
    columns: Mapping[str, Columns]
    held_out: tuple[int, ...]
    floors: Mapping[str, Floor]
    unit: str = "1"
    dispersion: np.ndarray | None = None

    @property
    def behaviour(self) -> Columns:
        return self.columns["behaviour"]

    @property
    def states(self) -> Columns:
        return self.columns["state"]

    @property
    def stimulus(self) -> Columns:
        return self.columns["stimulus"]

    @property
    def signal(self) -> str:
        """``count`` or ``trace``."""
        return "trace" if self.history.basis.signed else "count"

    @property
    def log_rate(self) -> Tensor:
        """``(N,)`` log of the mean training count per bin, float32; of a silent unit, of half a spike in training."""
        return self.history.rate.clamp_min(1e-6).log().float()

    def members(self, labels: Sequence[str], *, where: object) -> np.ndarray:
        """Places of these labels among the units. Raises `InputError` on one that was not fitted."""
        if tuple(labels) == self.units:
            return np.arange(len(self.units))
        unknown = [label for label in labels if label not in self.units]
        if unknown:
            raise InputError(where, key="unit", found=", ".join(unknown[:5]),
                             expected=f"some of the {len(self.units)} units fitted",
                             fix="a new session has new units: fit it under its own name (sciml finetune)")
        return np.array([self.units.index(label) for label in labels])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        history, arrays = self.history.state()
        arrays = {f"history/{key}": value for key, value in arrays.items()}
        floors = {}
        for task, floor in self.floors.items():
            floors[task], parts = floor.state()
            arrays |= {f"{task}/{key}": value for key, value in parts.items()}
        if self.dispersion is not None:
            arrays["dispersion"] = self.dispersion
        return {"units": list(self.units), "bin_s": self.bin_s, "history": history, "floors": floors,
                "columns": {key: columns.state() for key, columns in self.columns.items()},
                "held_out": list(self.held_out), "unit": self.unit}, arrays

    @classmethod
    def restore(cls, name: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Fitted:
        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{prefix}/"): v for k, v in arrays.items() if k.startswith(f"{prefix}/")}
        floors = {task: KINDS[saved["kind"]].restore(saved, part(task)) for task, saved in config["floors"].items()}
        return cls(name, tuple(config["units"]), float(config["bin_s"]),
                   History.restore(config["history"], part("history")),
                   {key: Columns.restore(saved) for key, saved in config["columns"].items()},
                   tuple(config["held_out"]), floors, str(config["unit"]), arrays.get("dispersion"))


def known(datasets: Mapping[str, Fitted], name: str, where: object) -> Fitted:
    """Raises `InputError` on a data set that was not fitted."""
    if name not in datasets:
        raise InputError(where, key="dataset", found=name, expected=f"one of {', '.join(datasets) or 'none yet'}",
                         fix="fit the adapter to its store first (sciml finetune)")
    return datasets[name]


def same_units(datasets: Mapping[str, Fitted], fitted: Fitted, where: object) -> None:
    """Raises `InputError` if the data set is known with other units: they are other rows."""
    old = datasets.get(fitted.name, fitted)
    if (old.units, old.signal) != (fitted.units, fitted.signal):
        raise InputError(where, key="unit", found=f"{len(fitted.units)} units of {fitted.signal}",
                         expected=f"the {len(old.units)} units of {old.signal} that {fitted.name} was fitted with",
                         fix="a new session is a data set of its own: give its store another name")


def fit_of(datasets: Mapping[str, Fitted], sample: xr.Dataset) -> Fitted:
    """By the sample's attribute ``dataset``, or the only one there is."""
    where = sample.attrs.get("source", "sample")
    if "dataset" not in sample.attrs and len(datasets) != 1:
        raise InputError(where, key="dataset", found="no attribute", expected=f"one of {', '.join(datasets)}",
                         fix="set dataset.attrs['dataset']")
    return known(datasets, str(sample.attrs.get("dataset", next(iter(datasets), ""))), where)


def fit(store: Store, config: SpikesConfig) -> Fitted:
    """Statistics and floors from training, their hyper-parameters from validation; nothing of test is read.

    Raises `InputError` if a task needs what the store doesn't hold.
    """
    layout = Layout.of(store, config.bin_s, config.behaviours)
    recordings = recordings_of(layout)
    basis = Basis(1, 0, 0.5, config.slow_s, signed=layout.signal == "trace")
    labelled = labelled_blocks(layout.blocks("train"), config)
    columns = {name: Columns.fit(layout.labels[name], units, _rows(layout, blocks, name)) for name, units, blocks in (
        ("behaviour", layout.behaviour_units, labelled), ("state", ("1",) * len(layout.labels["state"]), labelled),
        ("stimulus", ("1",) * len(layout.labels["stimulus"]), layout.blocks("train")))}
    _check_labels(store, config, columns)
    made = Fitted(store.meta.dataset, layout.units, layout.bin_s, History.fit(recordings, basis, layout.bin_s),
                  columns, held_out_of(layout, config), {}, layout.unit)
    made = replace(made, floors={task: _floor(task, layout, recordings, made, config, labelled)
                                 for task in config.tasks})
    asked = [task for task in config.tasks if task not in LABELLED]
    if config.likelihood == "poisson" or layout.signal == "trace" or not asked:
        return made
    return replace(made, dispersion=_dispersion(asked[0], layout, recordings, made))


def _dispersion(task: Task, layout: Layout, recordings: Sequence[Recording], made: Fitted) -> np.ndarray:
    """``(N,)`` of training bins around the floor of a task, between `LEAST_DISPERSION` and 10."""
    rates, counts = [], []
    for group, r in zip(groups_of(layout), recordings):
        stimulus = torch.from_numpy(layout.recorded(group).stimulus[:len(r.counts)])
        rates.append(predict_floor(task, made, r.counts, stimulus)[r.train].double().exp().numpy())
        counts.append(r.counts[r.train].double().numpy())
    found = nb_dispersion(np.concatenate(rates), np.concatenate(counts))
    return np.clip(np.nan_to_num(found), LEAST_DISPERSION, 10.0)


def _floor(task: Task, layout: Layout, recordings: Sequence[Recording], made: Fitted, config: SpikesConfig,
           labelled: Sequence[Block]) -> Floor:
    pairs = list(zip(groups_of(layout), recordings))

    def beside(name: str) -> list[Tensor]:
        return [torch.from_numpy(getattr(layout.recorded(g), name)[:len(r.counts)]) for g, r in pairs]

    if task in LABELLED:
        seen = [replace(r, train=_inside([b for b in labelled if b.group == g], len(r.counts))) for g, r in pairs]
        return fit_floor(task, seen, made, config, labels=beside("state" if task == "state" else "behaviour"))
    return fit_floor(task, recordings, made, config, stimuli=beside("stimulus") if made.stimulus.labels else None)


def _check_labels(store: Store, config: SpikesConfig, columns: Mapping[str, Columns]) -> None:
    for task in LABELLED:
        name = "state" if task == "state" else "behaviour"
        if task in config.tasks and not columns[name].labels:
            raise InputError(store.url, key=f"domains.spikes.tasks.{task}", found=f"a store without {name}",
                             expected=f"{name}_value (recording, time, {name})", fix="leave the task out")
    if "embedding" in config.tasks and config.embedding.dims < len(columns["behaviour"].labels):
        raise InputError(store.url, key="domains.spikes.embedding.dims", found=config.embedding.dims,
                         expected=f"at least the {len(columns['behaviour'].labels)} components of behaviour",
                         fix="give it more, or choose fewer behaviours")


def groups_of(layout: Layout) -> list[int]:
    """The recordings that training or validation are in."""
    return sorted({b.group for b in (*layout.blocks("train"), *layout.blocks("validation"))})


def recordings_of(layout: Layout) -> list[Recording]:
    """Of `groups_of`, each until the end of its last training or validation bin."""
    found = []
    for group in groups_of(layout):
        train, valid = ([b for b in part if b.group == group]
                        for part in (layout.blocks("train"), layout.blocks("validation")))
        counts = torch.from_numpy(layout.recorded(group).count[:max(b.stop for b in (*train, *valid))])
        found.append(Recording(counts, *(_inside(part, len(counts)) for part in (train, valid))))
    return found


def _inside(blocks: Sequence[Block], steps: int) -> Tensor:
    mask = torch.zeros(steps, dtype=torch.bool)
    for block in blocks:
        mask[block.start:block.stop] = True
    return mask


def labelled_blocks(blocks: Sequence[Block], config: SpikesConfig) -> tuple[Block, ...]:
    """The part of the training blocks whose behaviour may be used: contiguous, its place drawn by a seed."""
    if config.labelled >= 1:
        return tuple(blocks)
    total = sum(b.stop - b.start for b in blocks)
    size = max(1, round(config.labelled * total))
    first = int(np.random.default_rng(config.labelled_seed).integers(0, total - size + 1))
    kept, passed = [], 0
    for b in blocks:
        low, high = max(first, passed), min(first + size, passed + b.stop - b.start)
        if high > low:
            kept.append(Block(group=b.group, start=b.start + low - passed, stop=b.start + high - passed))
        passed += b.stop - b.start
    return tuple(kept)


def _rows(layout: Layout, blocks: Sequence[Block], name: str) -> np.ndarray:
    parts = [getattr(layout.recorded(b.group), name)[b.start:b.stop] for b in blocks]
    return np.concatenate(parts) if parts else np.zeros((0, len(layout.labels[name])), np.float32)


def held_out_of(layout: Layout, config: SpikesConfig) -> tuple[int, ...]:
    wanted = config.masks.held_out
    if isinstance(wanted, int):
        if wanted >= len(layout.units):
            raise InputError(layout.store.url, key="masks.held_out", found=wanted,
                             expected=f"fewer than the {len(layout.units)} units", fix="hold out fewer")
        drawn = np.random.default_rng(config.masks.held_out_seed).permutation(len(layout.units))[:wanted]
        return tuple(sorted(int(i) for i in drawn))
    unknown = [label for label in wanted if label not in layout.units]
    if unknown:
        raise InputError(layout.store.url, key="masks.held_out", found=", ".join(unknown),
                         expected=f"some of {', '.join(layout.units[:8])} …", fix="correct the labels")
    return tuple(sorted(layout.units.index(label) for label in wanted))
