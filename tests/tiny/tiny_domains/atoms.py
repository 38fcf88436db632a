"""(c) Packed atoms with 3-D coordinates: energy, and forces by differentiating it. Baseline: element energies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.adapter import Operate
from sciml.tokens import HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec
from tiny_domains.common import Arrays, MemoryStore, Tiny, memory_store, tensor

ELEMENTS, MASSES = ("H", "C", "O"), np.array([1.0, 12.0, 16.0])
LENGTH, DT = 4.0, 0.1
CHANNEL, ENERGY, FORCES = "tiny_atoms/mass", "energy", "forces"


def true_energy(position: Tensor, element: np.ndarray) -> Tensor:
    """Reference energies plus a Gaussian attraction of every pair, in eV for positions in Å."""
    i, j = torch.triu_indices(len(position), len(position), 1)
    distance = (position[i] - position[j]).norm(dim=-1)
    return -float((1.0 + MASSES[element]).sum()) - (-((distance - 1.5) ** 2)).exp().sum()


def make_store(groups: int = 8) -> MemoryStore:
    """Molecules of 3 to 6 atoms about 1.5 Å apart."""
    rng = np.random.default_rng(11)
    samples = []
    for i in range(groups):
        count = 3 + i % 4
        element = rng.integers(0, 3, count)
        position = torch.tensor(rng.normal(0, 1.2, (count, 3)), requires_grad=True)
        energy = true_energy(position, element)
        forces, = torch.autograd.grad(-energy, position)
        samples.append(xr.Dataset(
            {"energy": ((), energy.item(), {"units": "eV"}),
             "forces": (("atom", "xyz"), forces.numpy(), {"units": "eV/angstrom"}),
             "position": (("atom", "xyz"), position.detach().numpy(), {"units": "angstrom"})},
            coords={"element": ("atom", np.array(ELEMENTS)[element])}))
    return memory_store("tiny_atoms", samples, state="position", unit="angstrom", dt=DT)


@dataclass(frozen=True)
class Atoms(Tiny):
    differentiate: tuple[str, ...] = ("coord",)
    objective: str = "energy_forces_mse"
    name: str = "tiny_atoms"

    def fit(self, store: MemoryStore) -> Atoms:
        """Least squares of the energies on the counts of the elements; residual scales of energy and forces."""
        samples = store.of("train")
        counts = np.stack([(s["element"].values[:, None] == np.array(ELEMENTS)).sum(0) for s in samples]).astype(float)
        energy = np.array([float(s["energy"]) for s in samples])
        reference = np.linalg.lstsq(counts, energy, rcond=None)[0]
        forces = np.concatenate([s["forces"].values.ravel() for s in samples])
        return replace(self, dataset=store.meta.dataset, baseline=Arrays("element energies", {
            "reference": reference, "scale": np.array([np.std(energy - counts @ reference), forces.std()])}))

    def spec(self) -> TokenSpec:
        return TokenSpec(self.name, (CHANNEL,), {ENERGY: HeadSpec("pooled", ("tiny_atoms/energy",))},
                         identities={"element": ELEMENTS}, pair_bias="radial", units={"tiny_atoms/energy": "eV"})

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        element = np.array([ELEMENTS.index(e) for e in sample["element"].values])
        known = "energy" in sample
        forces = tensor(sample["forces"].values)[None] if known else torch.zeros(1, len(element), 3)
        energy_scale, force_scale = (float(s) for s in self.baseline["scale"])
        one = torch.ones(1, 1, dtype=torch.bool)
        targets = {
            ENERGY: Target(tensor([[float(sample["energy"]) if known else 0.0]]), one & known,
                           tensor([[self.baseline["reference"][element].sum()]]), tensor([[energy_scale]])),
            FORCES: Target(forces, one[..., None] & known, torch.zeros(1, 1, 1), tensor([[[force_scale]]]))}
        axis = tokens.identity("atom", torch.as_tensor(element), "element", unit="angstrom",
                               coord=tensor(sample["position"].values / LENGTH),
                               segment=torch.zeros(len(element), dtype=torch.long))
        mass = tensor(np.log(MASSES[element]) / 3)[None, :, None]
        return TokenBatch(self.name, self.dataset, mass, (CHANNEL,), (axis,), targets=targets,
                          sources=(sample.attrs["source"],))

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        """F = −∂E/∂r in eV/Å, in units of its residual scale."""
        energy_scale, force_scale = (float(s) for s in self.baseline["scale"])
        coord = batch.axes[0].coord.detach().requires_grad_()
        outputs = operate(replace(batch, axes=(replace(batch.axes[0], coord=coord),)))
        slope, = torch.autograd.grad(outputs[ENERGY].sum(), coord, create_graph=create_graph)
        heads = outputs.heads if create_graph else {k: v.detach() for k, v in outputs.heads.items()}
        return replace(outputs, heads={**heads, FORCES: -slope * (energy_scale / LENGTH / force_scale)})

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """forces ``(sample, atom, xyz)``, NaN beyond the atoms of a sample."""
        energy, rows = predictions[ENERGY][:, 0], predictions[FORCES][0]
        segment = batch.axes[0].segment[0]
        own = [rows[segment == i] for i in range(batch.num_segments)]
        forces = torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=torch.nan)
        return xr.Dataset({
            "energy": (("sample",), energy.detach().double().numpy(), {"units": "eV"}),
            "forces": (("sample", "atom", "xyz"), forces.detach().double().numpy(), {"units": "eV/angstrom"})})

    def initial(self, sample: xr.Dataset) -> State:
        batch = self.encode(sample)
        blind = {k: replace(t, value=torch.zeros_like(t.value), mask=torch.zeros_like(t.mask))
                 for k, t in batch.targets.items()}
        return State(replace(batch, targets=blind), extra={"velocity": torch.zeros_like(batch.axes[0].coord)})

    def advance(self, state: State, outputs: Outputs) -> State:
        """Symplectic Euler: velocities in Å per unit of time, then positions."""
        axis = state.batch.axes[0]
        mass = tensor(MASSES).to(axis.coord)[axis.ids][..., None]
        velocity = state.extra["velocity"] + DT * state.batch.targets[FORCES].predict(outputs[FORCES]) / mass
        moved = replace(axis, coord=axis.coord.detach() + DT * velocity / LENGTH)
        return replace(state, batch=replace(state.batch, axes=(moved,)), step=state.step + 1,
                       elapsed=(state.step + 1) * DT, extra={"velocity": velocity})

    def observe(self, state: State) -> xr.Dataset:
        axis = state.batch.axes[0]
        position = (axis.coord.detach().double() * LENGTH).numpy()
        return xr.Dataset({"position": (("sample", "atom", "xyz"), position, {"units": "angstrom"})},
                          coords={"element": ("atom", np.array(ELEMENTS)[axis.ids[0]]),
                                  "time": ((), state.elapsed, {"units": "1"})})


PLUGIN = Atoms
