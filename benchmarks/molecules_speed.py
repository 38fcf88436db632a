"""Times of `benchmarks/molecules.py`: a step of molecular dynamics, and packed against padded batches.

All are medians of CPU seconds of one thread, taken in turns. SchNet is called bare, with its neighbour list made once
outside the clock; ours as a rollout calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from sciml import registry
from sciml.cli.bench import load_script
from sciml.handles.potential import at, moved, pack
from sciml.packing import collate
from sciml.predictor import Predictor, forward
from sciml.report.bench import Bench, Row
from sciml.tokens import TokenBatch
from sciml.traced import compile_forward, record

peers = load_script(Path(__file__).with_name("molecules_peers.py"))
Run = Callable[[], object]
REPLICAS = (1, 32)
MOLECULES = 16
SPACING_ANGSTROM = 1.3
GHOSTS_ANGSTROM = 50.0


def interleaved(runs: Mapping[str, Run], turns: int) -> dict[str, float]:
    """Median CPU seconds of each after two calls that don't count, one call a turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 2):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn >= 2:
                taken[name].append(time.process_time() - began)
    return {name: float(np.median(times)) for name, times in taken.items()}


class Given(nn.Module):
    """The neighbour list of SchNet, made once."""

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        self.edges = edges

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        sender, receiver = self.edges
        return self.edges, (pos[sender] - pos[receiver]).norm(dim=-1)


def bare_schnet(size: str, numbers: Tensor, pos: Tensor, segment: Tensor) -> Run:
    """Energy and forces of packed molecules by torch-geometric's SchNet alone."""
    net: Any = peers.schnet(*peers.SIZES[size]).eval()
    net.interaction_graph = Given(peers.pairs(pos, segment, peers.CUTOFFS["schnet"])[0])

    def run() -> Tensor:
        place = pos.clone().requires_grad_()
        slope, = torch.autograd.grad(net(numbers, place, segment).sum(), place)
        return -slope

    return run


class Total(nn.Module):
    """SchNet's sum over the atoms of one molecule, without asking the batch how many there are."""

    def forward(self, x: Tensor, batch: Tensor, dim: int = 0) -> Tensor:
        return x.sum(dim, keepdim=True)


def compiled_schnet(size: str, numbers: Tensor, pos: Tensor, segment: Tensor) -> Run:
    """The same of one molecule as a program recorded and compiled as ours are."""
    net: Any = peers.schnet(*peers.SIZES[size]).eval()
    net.interaction_graph = Given(peers.pairs(pos, segment, peers.CUTOFFS["schnet"])[0])
    net.readout = Total()

    def forces(place: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaf = place.detach().requires_grad_()
            slope, = torch.autograd.grad(net(numbers, leaf, segment).sum(), leaf)
        return [-slope]

    program = record(forces, (pos,))
    return lambda: program(pos)


def measure_dynamics(bench: Bench, predictor: Predictor, sample: xr.Dataset, turns: int) -> None:
    """ms of energy and forces of one ethanol and of 32 at once, eager and compiled (``calculator(…, compile=True)``);
    `handle` is what an ASE calculator pays. SchNet runs eagerly, as torch-geometric has it, and of one molecule also
    compiled by our own recorder: torch doesn't compile what is differentiated."""
    adapter: Any = predictor.adapter("molecules")
    for replicas in REPLICAS:
        packed = pack(predictor, [sample] * replicas)
        numbers = torch.from_numpy(np.tile(sample["number"].values, replicas).astype(np.int64))
        fast = compile_forward(predictor, packed.batch)
        runs: dict[str, Run] = {
            "compiled": lambda packed=packed, fast=fast: fast.forward(  # type: ignore[misc]
                moved(adapter, packed, packed.position)),
            "ours": lambda packed=packed: predictor.forward(moved(adapter, packed, packed.position)),  # type: ignore[misc]
            "handle": lambda packed=packed: at(predictor, packed, packed.position)}  # type: ignore[misc]
        runs |= {f"schnet_{size}": bare_schnet(size, numbers, packed.position.float(), packed.segment)
                 for size in peers.SIZES}
        if replicas == 1:
            runs |= {f"schnet_{size}_compiled": compiled_schnet(size, numbers, packed.position.float(), packed.segment)
                     for size in peers.SIZES}
        taken = interleaved(runs, turns)
        for name, seconds in taken.items():
            for metric, own in (("md_step", "ours"), ("compiled_md_step", "compiled")):
                if name not in ("ours", "compiled") or (name, own) == ("ours", "compiled"):
                    bench.add(Row(metric=f"ethanol/speed/{metric}_of_{replicas}", unit="ms", ours=1e3 * taken[own],
                                  peer=1e3 * seconds, peer_name="eager" if name == "ours" else name))


def molecule(size: int, rng: np.random.Generator) -> xr.Dataset:
    """Atoms of H, C and O on a jittered lattice, no energy, forces of about 1 eV/Å."""
    side = int(np.ceil(size ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:size]
    return xr.Dataset({
        "number": ("atom", rng.choice([1, 6, 8], size)),
        "position": (("atom", "xyz"), SPACING_ANGSTROM * (grid + rng.uniform(-0.1, 0.1, (size, 3)))),
        "energy": ((), 0.0), "forces": (("atom", "xyz"), rng.normal(size=(size, 3)))})


def filled(sample: xr.Dataset, size: int) -> xr.Dataset:
    """With hydrogens far from everything up to that many atoms, whose forces are not known: padding that computes the
    same, but for the energies of lone atoms."""
    ghosts = size - sample.sizes["atom"]
    far = np.zeros((ghosts, 3))
    far[:, 0] = GHOSTS_ANGSTROM * (1 + np.arange(ghosts))
    return xr.concat([sample, xr.Dataset({
        "number": ("atom", np.ones(ghosts, np.int64)), "position": (("atom", "xyz"), far),
        "forces": (("atom", "xyz"), np.full((ghosts, 3), np.nan))})], dim="atom", data_vars="minimal",
        coords="minimal", compat="override", join="override")


def encoded(predictor: Predictor, samples: Sequence[xr.Dataset]) -> TokenBatch:
    adapter = predictor.adapter("molecules")
    return collate([adapter.encode(sample) for sample in samples])


def gradient(predictor: Predictor, batch: TokenBatch) -> Run:
    """Loss on energies and forces and its gradient: a training step without the update, which costs both the same."""
    adapter, operator = predictor.adapter("molecules"), predictor.operator.train()
    objective = registry.find("sciml.objectives", adapter.objective)

    def run() -> None:
        operator.zero_grad(set_to_none=True)
        objective(forward(adapter, operator, batch, create_graph=True), batch).mean().backward()

    return run


def log_uniform(shortest: int) -> list[int]:
    """Sizes from `shortest` to five times that, as many between equal ratios."""
    return [int(n) for n in np.geomspace(shortest, 5 * shortest, MOLECULES).round()]


def mixes(qm9_sizes: Sequence[int]) -> dict[str, list[int]]:
    """Sizes of molecules of QM9; spread evenly over a factor of five; all alike but one that is five times as large."""
    rng = np.random.default_rng(0)
    return {"qm9": [int(n) for n in rng.choice(qm9_sizes, MOLECULES)], "5_to_25": log_uniform(5),
            "18_to_90": log_uniform(18), "9_and_45": [9] * (MOLECULES - 1) + [45]}


def measure_packing(bench: Bench, predictor: Predictor, qm9_sizes: Sequence[int], turns: int) -> None:
    """A training step on a batch of mixed sizes, packed beside filled up to its largest molecule."""
    for name, sizes in mixes(qm9_sizes).items():
        rng = np.random.default_rng(1)
        samples = [molecule(n, rng) for n in sizes]
        runs = {"packed": gradient(predictor, encoded(predictor, samples)),
                "padded": gradient(predictor, encoded(predictor, [filled(s, max(sizes)) for s in samples]))}
        taken = interleaved(runs, max(5, turns // 4))
        bench.add(Row(metric=f"mixed/{name}/train_step", unit="ms", ours=1e3 * taken["packed"],
                      peer=1e3 * taken["padded"], peer_name="padded"))
        bench.add(Row(metric=f"mixed/{name}/atoms", unit="1", ours=float(sum(sizes)),
                      peer=float(max(sizes) * len(sizes)), peer_name="padded"))
