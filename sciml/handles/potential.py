"""A checkpoint as a potential: configurations are encoded once and then moved, without xarray in between."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import DomainAdapter
from sciml.domains.molecules.adapter import Molecules
from sciml.domains.molecules.config import DIPOLES, NUMBERS
from sciml.domains.molecules.encode import DOMAIN, FORCES, STRESS, cell_of
from sciml.domains.molecules.fitted import count_elements
from sciml.errors import InputError
from sciml.mixers.cluster import Cluster
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.tokens import State, TokenBatch


@dataclass(frozen=True)
class Packed:
    """Configurations on one axis, ready to be moved. position ``(n, 3)``, centre ``(n, 3)`` Å float64: the place that
    is coordinate zero; cell ``(S, 3, 3)`` Å, zero where not periodic, or None; base: what the elements alone say of
    every property ``(S,)``."""

    batch: TokenBatch
    position: Tensor
    centre: Tensor
    cell: Tensor | None
    base: Mapping[str, np.ndarray]

    @property
    def segment(self) -> Tensor:
        """``(n,)`` whose atom it is."""
        segment = self.batch.axes[0].segment
        assert segment is not None
        return segment[0]


@dataclass(frozen=True)
class Evaluated:
    """Of S packed configurations, float64: energy ``(S,)`` eV as labels have it; residual ``(S,)`` eV, what is left of
    it without element references; forces ``(n, 3)`` eV/Å; stress ``(S, 6)`` eV/Å³, Voigt order xx, yy, zz, yz, xz, xy,
    positive under tension, where there is a cell; properties ``(S,)`` by name, the energy among them; dipoles
    ``(S, 3)`` and numbers of atoms ``(n,)`` by name, in the units of their labels."""

    properties: Mapping[str, np.ndarray]
    residual: np.ndarray
    forces: np.ndarray | None
    stress: np.ndarray | None
    dipoles: Mapping[str, np.ndarray] = field(default_factory=dict)
    atoms: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def energy(self) -> np.ndarray:
        return self.properties["energy"]


def molecules_of(predictor: Predictor, where: object = "checkpoint") -> Molecules:
    """The adapter of the domain `molecules`. Raises `InputError` if the checkpoint has none, or knows no energy."""
    adapter: DomainAdapter = predictor.adapter(DOMAIN)
    if not isinstance(adapter, Molecules) or "energy" not in adapter.config.properties:
        raise InputError(where, key="properties", found="no energy",
                         expected="a checkpoint that was trained on energies",
                         fix="name energy in domains.molecules.properties and train")
    return adapter


def opened(checkpoint: Predictor | str | Path) -> Predictor:
    """A checkpoint by its folder, or a predictor as it is."""
    if isinstance(checkpoint, Predictor):
        return checkpoint
    from sciml.checkpoint import load

    return load(checkpoint)


def dataset_of(adapter: Molecules, dataset: str | None) -> str:
    """The data set whose references are meant. Raises `InputError` if it is unknown, or one of several isn't named."""
    if dataset is None and len(adapter.datasets) != 1:
        raise InputError("checkpoint", key="dataset", found=f"{len(adapter.datasets)} data sets, none named",
                         expected=f"one of {', '.join(adapter.datasets)}", fix="say whose level of theory: dataset=…")
    name = next(iter(adapter.datasets)) if dataset is None else dataset
    return adapter.known(name, "checkpoint").name


def in_float64(predictor: Predictor) -> Predictor:
    """The same with weights of its own in double precision."""
    return replace(predictor, operator=copy.deepcopy(predictor.operator).double())


def pack(predictor: Predictor, samples: Sequence[xr.Dataset]) -> Packed:
    """Encode samples for the precision that the weights have. Raises `InputError` on what can't be atoms, on elements
    that the checkpoint doesn't know, and on a charge or spin that it wasn't told of in training."""
    adapter = molecules_of(predictor)
    batches = []
    for sample in samples:
        made = adapter.encode(sample)
        batches.append(replace(made, targets={k: t for k, t in made.targets.items() if k != STRESS}))
    batch = collate(batches).to(dtype=next(predictor.operator.parameters()).dtype)
    position = torch.from_numpy(np.concatenate([np.asarray(s["position"].values, np.float64) for s in samples]))
    centre = torch.cat([torch.as_tensor(s["position"].values, dtype=torch.float64).mean(0, keepdim=True).expand(
        s.sizes["atom"], 3) for s in samples])
    cells = [cell_of(s, s.attrs.get("source", "sample")) for s in samples]
    cell = None
    if any(c is not None for c in cells):
        cell = torch.from_numpy(np.stack([np.zeros((3, 3)) if c is None else c for c in cells]))
    if exact_places(predictor):
        axis = batch.axes[0]
        batch = replace(batch, axes=(replace(axis, coord=axis.coord.double()),))
    packed = Packed(batch, position, centre, cell, base_of(adapter, batch.dataset, samples))
    return replace(packed, batch=moved(adapter, packed, position, cell))


def exact_places(predictor: Predictor) -> bool:
    """Whether all that reads places takes their differences before it rounds them to the weights' precision: then they
    are handed over in float64, and a molecule 100 Å from the origin keeps 1e-5 Å that float32 would cost it."""
    adapter, blocks = molecules_of(predictor), getattr(predictor.operator, "blocks", None)
    return (blocks is not None and adapter.config.mode == "geometric" and adapter.config.forces != "direct"
            and not {*adapter.config.properties.values()} & {*DIPOLES}
            and all(isinstance(mixer, Cluster) for block in blocks for mixer in block.mixers))


def base_of(adapter: Molecules, dataset: str, samples: Sequence[xr.Dataset]) -> dict[str, np.ndarray]:
    """What the elements alone say of every property that is one number ``(S,)``: of a dipole's length, nothing."""
    fit = adapter.known(dataset, "checkpoint")
    numbers = [np.asarray(s["number"].values, np.int64) for s in samples]
    counts = count_elements(np.concatenate(numbers), np.array([len(n) for n in numbers]), fit.elements)
    kinds = adapter.config.properties.items()
    return {name: fit.references[name].predict(counts) if kind in NUMBERS else np.zeros(len(samples))
            for name, kind in kinds if kind in NUMBERS or kind == "dipole_length"}


def moved(adapter: Molecules, packed: Packed, position: Tensor, cell: Tensor | None = None) -> TokenBatch:
    """The batch with its atoms at ``(n, 3)`` Å and, where given, other cells ``(S, 3, 3)`` Å."""
    axis, length = packed.batch.axes[0], adapter.config.cutoff_angstrom
    axis = replace(axis, coord=((position - packed.centre) / length).to(axis.coord.dtype)[None])
    if cell is not None:
        axis = replace(axis, period=(cell / length).to(axis.coord.dtype))
    return replace(packed.batch, axes=(axis,))


def at(predictor: Predictor, packed: Packed, position: Tensor | None = None, cell: Tensor | None = None) -> Evaluated:
    """Energies, forces and the rest at places ``(n, 3)`` Å (None: where they were packed)."""
    adapter = molecules_of(predictor)
    batch = packed.batch if position is None else moved(adapter, packed, position, cell)
    fit, heads = adapter.known(batch.dataset, "checkpoint"), predictor.forward(batch).heads
    double = {name: head.detach().double().cpu().numpy() for name, head in heads.items()}
    values = {name: double[name][:, 0] * fit.scales[name] for name in packed.base}
    forces = double[FORCES][0] * fit.force_scale if FORCES in double else None
    stress = double.get(STRESS)
    kinds = adapter.config.properties
    atoms = {name: double[name][0, :, 0] * fit.scales[name] + adapter.atom_references(batch, fit, name)
             for name, kind in kinds.items() if kind == "atoms"}
    dipoles = {name: double[name] * fit.scales[name] for name, kind in kinds.items() if kind == "dipole"}
    return Evaluated({name: value + packed.base[name] for name, value in values.items()}, values["energy"], forces,
                     stress, dipoles, atoms)


def start(predictor: Predictor, packed: Packed, velocity: Tensor | None = None) -> State:
    """The state of molecular dynamics that starts from packed configurations; see `Molecules.motion_of`."""
    return molecules_of(predictor).motion_of(packed.batch, packed.position, velocity)
