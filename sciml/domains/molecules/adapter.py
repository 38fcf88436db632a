"""The domain `molecules`: atoms packed on one axis with 3-D coordinates, energies, forces and other properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, arrays_of, joined
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.molecules import dynamics
from sciml.domains.molecules.config import NUMBERS, MoleculesConfig
from sciml.domains.molecules.derive import derive_outputs
from sciml.domains.molecules.elements import MASSES, SYMBOLS
from sciml.domains.molecules.encode import (
    CHARGES,
    DOMAIN,
    ELEMENT,
    FORCES,
    PUSHES,
    STRESS,
    Frame,
    encode_configuration,
)
from sciml.domains.molecules.fitted import Fitted, fit_dataset
from sciml.domains.molecules.scores import metrics_of, score_labels
from sciml.domains.molecules.windows import UNITS, Layout, MoleculeWindows
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch, TokenSpec

DIMS = {FORCES: ("sample", "atom", "xyz"), STRESS: ("sample", "voigt"), "sum": ("sample",), "mean": ("sample",),
        "atoms": ("sample", "atom"), "dipole": ("sample", "xyz"), "dipole_length": ("sample",)}
DEPENDENT_FRAMES = 10
PARITY = 100
"""Configurations whose energies and forces are drawn against the truth."""
MOST_STARTS = 16


@dataclass(frozen=True)
class Molecules:
    """Energies that correct element references (link space: eV), forces in eV/Å. datasets: what is known of each, by
    name. elements: those that had rows of the embedding before, in their order. A rollout step is one of molecular
    dynamics."""

    config: MoleculesConfig
    datasets: Mapping[str, Fitted] = field(default_factory=dict)
    elements: tuple[str, ...] = ()
    name: str = DOMAIN

    @property
    def objective(self) -> str:
        return self.config.objective

    @property
    def differentiate(self) -> tuple[str, ...]:
        return ("coord",) if self.config.forces == "gradient" else ()

    @property
    def baseline_name(self) -> str:
        return "element references"

    @property
    def notes(self) -> list[str]:
        """What an evaluation has to say of what was fitted."""
        return [note for fit in self.datasets.values() for note in fit.notes]

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(validate(MoleculesConfig, dict(config), where="domains.molecules"))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        """Raises `InputError` for another mode or reference length: the weights belong to them."""
        made = validate(MoleculesConfig, dict(config), where="domains.molecules")
        for key in ("mode", "cutoff_angstrom"):
            if getattr(made, key) != getattr(self.config, key):
                raise InputError("domains.molecules", key=key, found=getattr(made, key),
                                 expected=getattr(self.config, key), fix="pretrain another checkpoint")
        return replace(self, config=made)

    def fit(self, store: Store) -> Self:
        fitted = fit_dataset(store, self.config)
        return replace(self, datasets={**self.datasets, fitted.name: fitted}, elements=self.frame().elements)

    def floor(self) -> Self:
        return self

    def spec(self) -> TokenSpec:
        frame, heads = self.frame(), {}
        for name, kind in self.config.properties.items():
            if kind == "sum" or kind == "mean":
                heads[name] = HeadSpec("pooled", (f"{DOMAIN}/{name}",), reduction=kind)
            elif kind == "atoms":
                heads[name] = HeadSpec("tied", namespace=ELEMENT)
            else:
                heads[f"{name}{CHARGES}"] = HeadSpec("tied", namespace=ELEMENT)
                heads[f"{name}{PUSHES}"] = HeadSpec("pushes", (f"{DOMAIN}/{name}",))
        if self.config.forces == "direct":
            heads[FORCES] = HeadSpec("pushes", (f"{DOMAIN}/{FORCES}",))
        units = {f"{DOMAIN}/{k}": u for fit in self.datasets.values() for k, u in fit.units.items()}
        stem, bias = ("points", "radial") if self.config.mode == "geometric" else ("cartesian", None)
        return TokenSpec(self.name, (), heads, vector_conditions=frame.conditions,
                         identities={ELEMENT: frame.elements}, units=units, stem=stem, pair_bias=bias)

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> MoleculeWindows:
        self.known(store.meta.dataset, store.url)
        layout = Layout.of(store)
        return MoleculeWindows(layout, layout.members(split), train and self.config.rotates)

    def starts(self, store: Store, split: SplitName) -> list[xr.Dataset]:
        """The first configuration of every different molecule of the split, at most 16."""
        windows = self.open(store, split)
        if "molecule" in store.meta.variables:
            molecule = windows.layout.of_groups("molecule", windows.groups)
        else:
            molecule = np.zeros(len(windows))
        _, first = np.unique(molecule, return_index=True)
        return [windows.layout.sample(int(windows.groups[i])) for i in np.sort(first)[:MOST_STARTS]]

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        """Labels that the sample doesn't bring are not known. Attribute: dataset, unless only one is fitted."""
        name = sample.attrs.get("dataset", next(iter(self.datasets), "") if len(self.datasets) == 1 else "")
        return encode_configuration(self.known(name, sample.attrs.get("source", "sample")), self.frame(), sample)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """Properties ``(sample)`` with their references, those of atoms ``(sample, atom)``, dipoles ``(sample, xyz)``;
        ``forces (sample, atom, xyz)``, NaN beyond a sample's atoms; ``stress (sample, voigt)``; and ``<name>_known``,
        where the batch holds a truth."""
        fit = self.known(batch.dataset, "batch")
        counts = self._counts(batch, fit)
        data: dict[str, Any] = {}
        for name, value in predictions.items():
            found = value.detach().cpu().double().numpy()
            known = batch.targets[name].mask.expand(value.shape).cpu().numpy()
            kind = self.config.properties.get(name)
            dims: tuple[str, ...] = DIMS[name if kind is None else kind]
            if kind == "dipole_length" or kind in NUMBERS:
                found, known = found[:, 0], known[:, 0]
                found = found + fit.references[name].predict(counts) if kind in NUMBERS else found
            elif kind == "atoms":
                found = found[0, :, 0] + self.atom_references(batch, fit, name)
                found, known = padded(found, batch, np.nan), padded(known[0, :, 0], batch, False)
            elif name == FORCES:
                found, known = (padded(part[0], batch, fill) for part, fill in ((found, np.nan), (known, False)))
            data |= {name: (dims, found, {"units": fit.units.get(name) or UNITS[name]}), f"{name}_known": (dims, known)}
        return xr.Dataset(data, coords={"source": ("sample", list(batch.sources))},
                          attrs={"domain": self.name, "dataset": batch.dataset})

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return derive_outputs(self.config, self.known(batch.dataset, "batch"), batch, operate, create_graph)

    def initial(self, sample: xr.Dataset) -> State:
        """From ``position`` and, if it is there, ``velocity (atom, xyz)`` Å/fs; otherwise velocities are drawn."""
        if self.config.forces == "none":
            raise InputError("domains.molecules", key="forces", found="none", expected="gradient or direct",
                             fix="train a checkpoint with forces for molecular dynamics")
        return self.motion_of(self.encode(sample), torch.as_tensor(sample["position"].values, dtype=torch.float64),
                              _velocity(sample))

    def motion_of(self, batch: TokenBatch, position: Tensor, velocity: Tensor | None = None) -> State:
        """The state that configurations of a batch start from at the places ``(n, 3)`` Å; whatever truth it holds is
        dropped."""
        blind = {k: replace(t, value=torch.zeros_like(t.value), mask=torch.zeros_like(t.mask))
                 for k, t in batch.targets.items()}
        config, generator = self.config.dynamics, torch.Generator().manual_seed(self.config.dynamics.seed)
        axis = batch.axes[0]
        assert axis.segment is not None
        if velocity is None:
            velocity = dynamics.draw_velocities(self._mass(batch).cpu(), axis.segment[0].cpu(), config.temperature_k,
                                                generator).to(position.device)
        centre = position - axis.coord[0].double() * self.config.cutoff_angstrom
        return State(replace(batch, targets=blind), rng=generator.get_state(),
                     extra={"position": position, "velocity": velocity, "centre": centre})

    def advance(self, state: State, outputs: Outputs) -> State:
        """One step of `sciml.domains.molecules.dynamics.step`; elapsed is in fs. What has flown apart or coincides
        gets places that are not finite."""
        batch, config, first = state.batch, self.config.dynamics, state.step == 0
        generator = torch.Generator()
        assert state.rng is not None
        generator.set_state(state.rng)
        forces = batch.targets[FORCES].predict(outputs[FORCES])[0].double()
        mass = self._mass(batch)
        motion = dynamics.Motion(state.extra["position"], state.extra["velocity"])
        moved, velocity = dynamics.step(motion, forces, mass, config, first=first, generator=generator)
        axis, centre = batch.axes[0], state.extra["centre"]
        coord = ((moved.position - centre) / self.config.cutoff_angstrom).to(axis.coord.dtype)
        assert axis.segment is not None
        if dynamics.is_broken(moved.position, motion.position, axis.segment[0], 2 * self.config.cutoff_angstrom,
                              periodic=axis.period is not None):
            coord = torch.full_like(coord, torch.nan)  # what a rollout stops at
        extra = {"position": moved.position, "velocity": moved.velocity, "centre": centre,
                 "kinetic": self._per_segment(batch, dynamics.kinetic_energy(velocity, mass)),
                 "potential": self._potential(batch, outputs)}
        return replace(state, batch=replace(batch, axes=(replace(axis, coord=coord[None]),)), step=state.step + 1,
                       elapsed=(state.step + 1) * config.dt_fs, rng=generator.get_state(), extra=extra)

    def observe(self, state: State) -> xr.Dataset:
        """``position (sample, atom, xyz)`` and ``number``; and of the configuration a step before, ``potential_energy``
        and ``kinetic_energy (sample)``, which belong to one time. Before the first step, places alone."""
        batch = state.batch
        data: dict[str, Any] = {}
        places = padded(state.extra["position"].detach().cpu().numpy(), batch, np.nan)
        data["position"] = (("sample", "atom", "xyz"), places, {"units": "angstrom"})
        for name in ("potential", "kinetic"):
            if name in state.extra:
                data[f"{name}_energy"] = (("sample",), state.extra[name].detach().cpu().numpy(), {
                    "units": "eV", "long_name": "of the configuration one step before"})
        period = batch.axes[0].period
        if period is not None:
            cell = (period.double() * self.config.cutoff_angstrom).cpu().numpy()
            data["cell"] = (("sample", "lattice", "xyz"), cell, {"units": "angstrom"})
        assert batch.axes[0].ids is not None
        elements = np.array([float(SYMBOLS.index(e)) for e in self.frame().elements])
        numbers = elements[batch.axes[0].ids[0].cpu().numpy()]
        data["number"] = (("sample", "atom"), padded(numbers, batch, np.nan), {"units": "1"})
        return xr.Dataset(data, coords={"time": ((), state.elapsed, {"units": "fs"})},
                          attrs={"domain": self.name, "dataset": batch.dataset})

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        windows = self.open(store, split)
        one = "molecule" not in store.meta.variables or len(np.unique(
            windows.layout.of_groups("molecule", np.arange(store.meta.groups)))) == 1
        return [Question("configurations", windows, block=DEPENDENT_FRAMES if one else 1, shown=PARITY)]

    def metrics(self) -> tuple[Metric, ...]:
        return metrics_of(self._units())

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        return score_labels(self._units(), prediction, truth)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        datasets, arrays = joined({name: fit.state() for name, fit in self.datasets.items()})
        return {"config": self.config.model_dump(mode="json"), "elements": list(self.frame().elements),
                "datasets": datasets}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        datasets = {name: Fitted.restore(name, part, arrays_of(name, arrays))
                    for name, part in config["datasets"].items()}
        return cls(validate(MoleculesConfig, config["config"], where="checkpoint"), datasets,
                   tuple(config.get("elements", ())))

    def frame(self) -> Frame:
        """What is common to all data sets that are known; rows of elements never change places."""
        elements = dict.fromkeys((*self.elements, *(e for fit in self.datasets.values() for e in fit.elements)))
        conditions = dict.fromkeys(c for fit in self.datasets.values() for c in fit.conditions)
        return Frame(self.config, tuple(elements), tuple(conditions))

    def known(self, name: str, where: object) -> Fitted:
        """What is known of a data set. Raises `InputError` for one that wasn't fitted."""
        if name not in self.datasets:
            raise InputError(where, key="dataset", found=repr(name), expected=f"one of {', '.join(self.datasets)}",
                             fix="set attrs['dataset'], or fine-tune the checkpoint on it")
        return self.datasets[name]

    def atom_references(self, batch: TokenBatch, fit: Fitted, name: str) -> np.ndarray:
        """``(n,)`` what the elements alone say of a number of atoms."""
        ids, own = batch.axes[0].ids, dict(zip(fit.references[name].elements, fit.references[name].values))
        assert ids is not None
        return np.array([own.get(element, 0.0) for element in self.frame().elements])[ids[0].cpu().numpy()]

    def _units(self) -> dict[str, str]:
        units = {k: u for fit in self.datasets.values() for k, u in fit.units.items()}
        if self.config.forces != "none":
            units[FORCES] = UNITS[FORCES]
        return units | ({STRESS: UNITS[STRESS]} if self.config.forces == "gradient" else {})

    def _mass(self, batch: TokenBatch) -> Tensor:
        table = torch.tensor([MASSES[SYMBOLS.index(e)] for e in self.frame().elements], dtype=torch.float64)
        ids = batch.axes[0].ids
        assert ids is not None
        return table.to(ids.device)[ids[0]]

    def _counts(self, batch: TokenBatch, fit: Fitted) -> np.ndarray:
        """``(S, E)`` atoms of each of the data set's elements."""
        axis, elements = batch.axes[0], self.frame().elements
        assert axis.ids is not None
        assert axis.segment is not None
        counts = np.zeros((batch.num_segments, len(elements)))
        np.add.at(counts, (axis.segment[0].cpu().numpy(), axis.ids[0].cpu().numpy()), 1.0)
        return counts[:, [elements.index(e) for e in fit.elements]]

    def _potential(self, batch: TokenBatch, outputs: Outputs) -> Tensor:
        """``(S,)`` eV, float64, references included."""
        fit = self.known(batch.dataset, "rollout")
        references = torch.from_numpy(fit.references["energy"].predict(self._counts(batch, fit)))
        energy = batch.targets["energy"].predict(outputs["energy"])[:, 0].double()
        return energy + references.to(energy.device)

    def _per_segment(self, batch: TokenBatch, values: Tensor) -> Tensor:
        segment = batch.axes[0].segment
        assert segment is not None
        return values.new_zeros(batch.num_segments).index_add(0, segment[0], values)


def padded(rows: np.ndarray, batch: TokenBatch, fill: Any) -> np.ndarray:
    """``(n, …)`` of packed atoms → ``(sample, atom, …)`` of the largest sample, filled up."""
    segment = batch.axes[0].segment
    assert segment is not None
    counts = segment[0].bincount(minlength=batch.num_segments).tolist()
    made = np.full((len(counts), max(counts), *rows.shape[1:]), fill, dtype=rows.dtype)
    start = 0
    for i, count in enumerate(counts):
        made[i, :count] = rows[start: start + count]
        start += count
    return made


def _velocity(sample: xr.Dataset) -> Tensor | None:
    return torch.as_tensor(sample["velocity"].values, dtype=torch.float64) if "velocity" in sample else None


PLUGIN = Molecules
