"""Clusters of atoms that hold together by one Morse potential: a store with its exact labels, and the potential itself
in the operator's place, so that what is around a network can be held against figures that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.molecules.adapter import Molecules
from sciml.mixers.neighbours import find_neighbours
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.testing.parameters import stir
from sciml.tokens import Cache, Outputs, TokenBatch

DEPTH_EV, STEEPNESS, LENGTH, CUTOFF = 1.0, 2.0, 1.2, 5.0
NUMBERS = np.array([8, 6, 1, 1])
TETRAHEDRON = LENGTH / np.sqrt(8) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
REFERENCE_EV = {1: -13.0, 6: -1030.0, 8: -2040.0}
NETWORK = {"levels": [{"width": 16, "depth": 1, "mixers": ["cluster"], "head_width": 8}], "stem_width": 8,
           "condition_width": 8}


class Morse(nn.Module):
    """Σ over pairs of D[(1 − exp(−a(r − r₀)))² − 1] times the smooth envelope; in the place of an operator."""

    def __init__(self, adapter: Molecules) -> None:
        super().__init__()
        self.specs = {adapter.name: adapter.spec()}
        self.depth = nn.Parameter(torch.tensor(DEPTH_EV))
        self.scale_ev = next(iter(adapter.datasets.values())).scales["energy"] if adapter.datasets else 1.0

    def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> Outputs:
        axis = batch.axes[0]
        pairs = find_neighbours(axis)
        stretch = 1 - torch.exp(-STEEPNESS * (CUTOFF * pairs.distance - LENGTH))
        each = 0.5 * self.depth * (stretch.square() - 1) * pairs.envelope
        assert axis.segment is not None
        owner = axis.segment[0][pairs.receiver]
        energy = each.new_zeros(batch.num_segments).index_add(0, owner, each)
        return Outputs({"energy": energy[:, None] / self.scale_ev})


def morse(position: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) without references and forces of one cluster, by the operator above."""
    from sciml import tokens

    coord = torch.as_tensor(position / CUTOFF, dtype=torch.float64).requires_grad_()
    zeros = torch.zeros(len(position), dtype=torch.long)
    axis = tokens.identity("atom", zeros, "element", coord=coord, segment=zeros)
    operator = Morse(Molecules.create({})).double()
    batch = TokenBatch("molecules", "toy", torch.zeros(1, len(position), 0), (), (axis,))
    energy = operator(batch)["energy"].sum()
    slope, = torch.autograd.grad(energy, [coord])
    return energy.item(), -slope.numpy() / CUTOFF


def store(path: Path, configurations: int = 12, theory: str = "") -> Store:
    """Displaced tetrahedra of four atoms; a third of them has lost one atom."""
    rng, rows = np.random.default_rng(0), []
    for i in range(configurations):
        size = 3 if i % 3 == 2 else 4
        position = TETRAHEDRON[:size] + rng.normal(0, 0.08, (size, 3))
        energy, forces = morse(position)
        rows.append((NUMBERS[:size], position, energy + sum(REFERENCE_EV[z] for z in NUMBERS[:size]), forces))
    return write_molecules(path, rows, theory=theory)


def write_molecules(path: Path, rows: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]], *, name: str = "toy",
                    theory: str = "") -> Store:
    """A store of (numbers, position, energy, forces); two thirds to train on."""
    number, position, energy, forces = zip(*rows)
    molecule = np.unique([len(z) for z in number], return_inverse=True)[1].astype(np.int64)
    counts = np.array([len(z) for z in number])
    data = xr.Dataset({
        "number": ("atom", np.concatenate(number).astype(np.int32)),
        "position": (("atom", "xyz"), np.concatenate(position)),
        "atom_count": ("configuration", counts, {"role": "rows", "sample_dimension": "atom"}),
        "energy": ("configuration", np.array(energy)), "forces": (("atom", "xyz"), np.concatenate(forces)),
        "molecule": ("configuration", molecule)},
        coords={"xyz": ["x", "y", "z"], "configuration": np.arange(len(rows))})

    def variable(role: Any, unit: str, *dims: str) -> Variable:
        return Variable(role=role, unit=unit, dims=dims)

    def part(start: int, stop: int) -> tuple[Block, ...]:
        return tuple(Block(group=g, start=0, stop=1) for g in range(start, stop))

    sixth, size = len(rows) // 6, len(rows)
    draft = StoreDraft(
        domain="molecules", dataset=name, group_dim="configuration", groups=len(rows),
        variables={"number": variable("parameter", "1", "atom"),
                   "position": variable("state", "angstrom", "atom", "xyz"),
                   "atom_count": variable("rows", "1"), "energy": variable("label", "eV"),
                   "forces": variable("label", "eV/angstrom", "atom", "xyz"), "molecule": variable("parameter", "1")},
        axes={"xyz": AxisMeta(kind="set", unit="1")}, ragged={"atom": "atom_count"}, dt=None,
        splits=Splits(key="configuration", train=part(0, size - 2 * sixth), test=part(size - sixth, size),
                      validation=part(size - 2 * sixth, size - sixth)),
        provenance=Provenance(builder="toy", options={"level_of_theory": theory} if theory else {}))
    return write_store(data, draft, path)


def adapter_of(made: Store, **config: Any) -> Molecules:
    return Molecules.create({"cutoff_angstrom": CUTOFF, **config}).fit(made)


def exact(made: Store, **config: Any) -> Predictor:
    """The Morse potential as a predictor, in float32."""
    adapter = adapter_of(made, **config)
    return Predictor(Morse(adapter), {adapter.name: adapter})  # type: ignore[arg-type]


def network(made: Store, **config: Any) -> Predictor:
    """A network with stirred weights."""
    adapter = adapter_of(made, **config)
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, NETWORK, where="toy"), {adapter.name: adapter.spec()})
    stir(operator, size=0.05)
    return Predictor(operator, {adapter.name: adapter},
                     {"name": "toy", "domains": {adapter.name: adapter.config.model_dump(mode="json")}})
