"""What `benchmarks/molecules.py` trains: ours and the peers as operators of one adapter, on one clock of CPU seconds.

A peer gets elements, places and which atom is whose from the batch that ours gets, and its output goes the same way:
scaled, element references added, forces as the exact negative gradient, the same loss. All pairs of atoms within its
cutoff are handed to it; nothing is compiled. `mace` needs mace-torch, which asks for versions of its own: install it
aside (``pip install --no-deps --target FOLDER …``) and put the folder on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.workflow import new_predictor
from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.domains.molecules.adapter import Molecules
from sciml.domains.molecules.elements import SYMBOLS
from sciml.evaluate import evaluate
from sciml.memory import keep_freed
from sciml.packing import collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.recipe import Recipe
from sciml.tokens import Outputs, TokenBatch

common = load_script(Path(__file__).with_name("common.py"))

PEER_RATES = (5e-4, 1e-3, 2e-3)
SIZES = {"small": (64, 3), "default": (128, 6)}
"""Channels and layers of SchNet and ViSNet; the second are those of torch-geometric."""
CUTOFFS = {"schnet": 10.0, "visnet": 5.0, "mace": 5.0}
MACE_CHANNELS = 32
CLIP, EMA = 10.0, 0.99


def pairs(pos: Tensor, segment: Tensor, cutoff: float, loops: bool = False) -> tuple[Tensor, Tensor]:
    """``(2, P)`` senders and receivers within the cutoff in the same molecule, and ``(P, 3)`` from receiver to sender.
    """
    with torch.no_grad():
        near = torch.cdist(pos, pos, compute_mode="donot_use_mm_for_euclid_dist") < cutoff
        near &= segment[:, None] == segment[None]
        if not loops:
            near.fill_diagonal_(False)
        receiver, sender = near.nonzero(as_tuple=True)
    return torch.stack([sender, receiver]), pos[sender] - pos[receiver]


class Distances(nn.Module):
    """Edges and distances, as torch-geometric's SchNet asks for them; with vectors and loops, as its ViSNet does."""

    def __init__(self, cutoff: float, vectors: bool) -> None:
        super().__init__()
        self.cutoff, self.vectors = cutoff, vectors

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, ...]:
        edges, vector = pairs(pos, batch, self.cutoff, loops=self.vectors)
        if not self.vectors:
            return edges, vector.norm(dim=-1)
        loop = edges[0] == edges[1]
        distance = torch.where(loop[:, None], 1.0, vector).norm(dim=-1)
        return edges, torch.where(loop, 0.0, distance), vector


def schnet(channels: int, layers: int, mean: bool = False) -> nn.Module:
    models: Any = importlib.import_module("torch_geometric.nn.models")
    cutoff = CUTOFFS["schnet"]
    net: nn.Module = models.SchNet(
        hidden_channels=channels, num_filters=channels, num_interactions=layers, cutoff=cutoff,
        interaction_graph=Distances(cutoff, False), readout="mean" if mean else "add")
    return net


def visnet(channels: int, layers: int) -> nn.Module:
    models: Any = importlib.import_module("torch_geometric.nn.models")
    cutoff = CUTOFFS["visnet"]
    net: nn.Module = models.ViSNet(hidden_channels=channels, num_layers=layers, cutoff=cutoff)
    inner: Any = net.representation_model
    inner.distance = Distances(cutoff, True)
    return net


def mace(elements: Sequence[int], neighbours: float, channels: int = MACE_CHANNELS) -> nn.Module:
    """Two layers, channels × 0e + 1o, correlation 3, as MACE's paper for small molecules, with fewer channels."""
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn reads constants of its own package
    e3nn: Any = importlib.import_module("e3nn")
    modules: Any = importlib.import_module("mace.modules")
    irreps = importlib.import_module("e3nn.o3").Irreps
    e3nn.set_optimization_defaults(jit_script_fx=False)
    block: Any = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    net: nn.Module = modules.MACE(
        r_max=CUTOFFS["mace"], num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block,
        interaction_cls_first=block, num_interactions=2, num_elements=len(elements),
        hidden_irreps=irreps(f"{channels}x0e + {channels}x1o"), MLP_irreps=irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)), avg_num_neighbors=neighbours, atomic_numbers=list(elements),
        correlation=3, gate=nn.functional.silu)
    return net


def atomic_numbers(adapter: Molecules) -> list[int]:
    return [SYMBOLS.index(symbol) for symbol in adapter.frame().elements]


class PeerOperator(nn.Module):
    """A peer in the operator's place: packed atoms → ``{head: (S, 1)}``."""

    def __init__(self, kind: str, net: nn.Module, adapter: Molecules) -> None:
        super().__init__()
        self.kind, self.net, self.specs = kind, net, {adapter.name: adapter.spec()}
        self.length, (self.head,) = adapter.config.cutoff_angstrom, tuple(adapter.config.properties)
        self.numbers = torch.tensor(atomic_numbers(adapter))

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        axis = batch.axes[0]
        assert axis.segment is not None
        assert axis.ids is not None
        ids, segment, pos = axis.ids[0], axis.segment[0], axis.coord[0] * self.length
        if self.kind == "mace":
            value = self._mace(ids, pos, segment, batch.num_segments)
        else:
            value = self.net(self.numbers[ids], pos, segment)
        value = value[0] if isinstance(value, tuple) else value
        return Outputs({self.head: value.view(-1, 1)})

    def _mace(self, ids: Tensor, pos: Tensor, segment: Tensor, number: int) -> Tensor:
        edges, _ = pairs(pos.detach(), segment, CUTOFFS["mace"])
        counts = segment.bincount(minlength=number)
        shifts = pos.new_zeros(edges.shape[1], 3)
        attributes = nn.functional.one_hot(ids, len(self.numbers)).to(pos.dtype)
        found: Any = self.net({
            "positions": pos, "node_attrs": attributes, "edge_index": edges, "shifts": shifts, "unit_shifts": shifts,
            "batch": segment, "ptr": nn.functional.pad(counts.cumsum(0), (1, 0)),
            "cell": pos.new_zeros(3 * number, 3)}, training=True, compute_force=False)
        energy: Tensor = found["energy"]
        return energy


def make_predictor(kind: str, size: str, recipe: Recipe, store: Store) -> Predictor:
    """Ours (``sciml``) from the recipe, or a peer with the same adapter; weights by the recipe's seed."""
    ours = new_predictor(recipe, [store])
    if kind == "sciml":
        return ours
    torch.manual_seed(recipe.seed)
    adapter: Any = ours.adapter("molecules")
    reduction, = adapter.config.properties.values()
    if kind == "schnet":
        net = schnet(*SIZES[size], mean=reduction == "mean")
    elif kind == "visnet":
        net = visnet(*SIZES[size])
    else:
        net = mace(atomic_numbers(adapter), float(store.rows("atom").mean()) - 1)
    peer: Any = PeerOperator(kind, net, adapter)
    return Predictor(peer, {adapter.name: adapter})


def channels(kind: str, size: str) -> int:
    return MACE_CHANNELS if kind == "mace" else SIZES[size][0]


def absent(kind: str) -> str:
    """Why a peer can't be trained here; empty if it can."""
    try:
        if kind == "mace":
            mace([1, 6, 8], 8.0, 4)
        elif kind != "sciml":
            importlib.import_module("torch_geometric.nn.models")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def validation(trainer: Any) -> float:
    """Mean objective over the validation split, of the averaged weights; infinite for a model that failed."""
    if trainer.failed:
        return float("inf")
    predictor = trainer.averaged()
    adapter, found = predictor.adapter("molecules"), []
    windows, rng = adapter.open(trainer.store, "validation"), np.random.default_rng(0)
    places = np.unique(np.linspace(0, len(windows) - 1, 100).round().astype(int))
    with evaluating(predictor.operator):
        for part in np.array_split(places, max(1, len(places) // 16)):
            batch = collate([adapter.encode(windows.draw(int(i), rng, rng)) for i in part])
            found.append(trainer.objective(forward(adapter, predictor.operator, batch), batch).detach())
    return float(torch.cat(found).mean())


def scores(trainer: Any) -> dict[str, float]:
    """Test scores by metric: energies of QM9 in meV too."""
    rows = evaluate(trainer.averaged(), trainer.store, "test").scores
    return {row.metric: row.value * (1e3 if row.unit == "eV" else 1) for row in rows}


def trainer(kind: str, size: str, rate: float | None, recipe: Recipe, store: Store, seconds: float) -> Any:
    """rate: of AdamW; None: the recipe's own optimizers and rates."""
    keep_freed()
    torch.set_num_threads(1)
    train = recipe.train
    if rate is not None:
        train = train.model_copy(update={"learning_rate": rate, "optimizer": "adamw", "clip": CLIP, "ema": EMA})
    return common.Trainer(kind, make_predictor(kind, size, recipe, store), store, recipe, train, recipe.data[0].batch,
                          seconds)
