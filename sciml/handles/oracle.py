"""The oracle in the loop: a model's own molecular dynamics, relabelled as it goes, beside the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.molecules import dynamics
from sciml.domains.molecules.elements import MASSES, symbols_of
from sciml.errors import InputError
from sciml.handles.bonds import bonds_of
from sciml.handles.distributions import Histogram, divergences, histograms
from sciml.handles.potential import at, molecules_of, pack, start
from sciml.handles.xtb import THEORY, Oracle, oracle_of, require_same_labels, require_theory
from sciml.predictor import Predictor
from sciml.rollout import BlowUp, rollout
from sciml.tokens import State

RECORD = 5
"""Distances are taken from every so many steps."""
CHECKED = 2
FRAMES = 20
"""Of the store's own frames, spread over the split, that the oracle labels beside the model."""


@dataclass(frozen=True)
class Plan:
    """steps of molecular dynamics of `replicas` copies with velocities of their own; every: steps between labels."""

    steps: int
    every: int
    replicas: int = 1


@dataclass(frozen=True)
class Motion:
    """places ``(F, R, n, 3)`` Å of every fifth step, and labelled: of every `every`-th, ``(L, R, n, 3)``; stopped: the
    step that was not finite."""

    places: np.ndarray
    labelled: np.ndarray
    stopped: int | None = None


def consult(predictor: Predictor, store: Store, split: SplitName, plan: Plan,
            progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Run the model's dynamics from the split's first configuration, label its frames, run the oracle's dynamics from
    the same places, velocities and noise; JSON of errors over time and of distributions, and of what the oracle and the
    model say of the store's own frames.

    Raises `InputError` unless the data set's labels are GFN2-xTB's, by name and by what they are.
    """
    adapter = molecules_of(predictor)
    require_theory(adapter.known(store.meta.dataset, store.url))
    windows = adapter.open(store, split)
    rng = np.random.default_rng(0)
    samples = [windows.draw(i, rng, rng) for i in range(min(CHECKED, len(windows)))]
    if not samples:
        raise InputError(store.url, key=f"split {split}", found="no configuration", expected="at least one",
                         fix="choose another split")
    require_same_labels(store, samples)
    first, total, done = samples[0], 2 * plan.steps + plan.steps // plan.every, 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    frames = _store_frames(predictor, store, split)
    packed = pack(predictor, [first] * plan.replicas)
    begun, oracle = start(predictor, packed), oracle_of(first)
    ours = _model_motion(predictor, begun, plan, tick)
    errors = _errors(predictor, first, ours.labelled, oracle, tick)
    theirs = _oracle_motion(predictor, begun, first, plan, tick)
    bonds = bonds_of(predictor, packed)
    own = bonds.segment == 0
    pairs = np.stack([bonds.first[own], bonds.second[own]], -1)
    config = adapter.config.dynamics
    return {"theory": THEORY, "dataset": store.meta.dataset, "source": str(first.attrs.get("source", "")),
            "steps": plan.steps, "every": plan.every, "replicas": plan.replicas, "dt_fs": config.dt_fs,
            "thermostat": config.thermostat, "temperature_k": config.temperature_k, "stopped": ours.stopped,
            "store": frames,
            "errors": {"time_fs": [plan.every * config.dt_fs * (i + 1) for i in range(len(ours.labelled))], **errors},
            "distributions": _distributions(ours.places, theirs, first, pairs)}


def _store_frames(predictor: Predictor, store: Store, split: SplitName) -> dict[str, Any]:
    """Differences from the store's labels of up to 20 frames spread over the split that have forces: the oracle's and
    the model's, forces in meV/Å, energies in meV per configuration."""
    windows, rng = molecules_of(predictor).open(store, split), np.random.default_rng(0)
    places = np.unique(np.linspace(0, len(windows) - 1, FRAMES).round().astype(int))
    samples = [s for s in (windows.draw(int(i), rng, rng) for i in places)
               if "forces" in s and np.isfinite(s["forces"].values).all()]
    found: dict[str, Any] = {"frames": len(samples)}
    if not samples:
        return found
    truth = np.concatenate([s["forces"].values for s in samples])
    energies = np.array([float(s["energy"]) if "energy" in s else np.nan for s in samples])
    labels = [oracle_of(s).label(s["position"].values) for s in samples]
    model = at(predictor, pack(predictor, samples))
    for who, force, energy in (("oracle", np.concatenate([f for _, f in labels]), np.array([e for e, _ in labels])),
                               ("model", model.forces, model.energy)):
        apart = 1e3 * (energy - energies)
        found[who] = {"force_mae": 1e3 * float(np.abs(force - truth).mean()),
                      "force_rmse": 1e3 * float(np.sqrt(((force - truth) ** 2).mean())),
                      "energy_mae": float(np.nanmean(np.abs(apart))) if np.isfinite(apart).any() else None}
    return found


def _model_motion(predictor: Predictor, begun: State, plan: Plan, tick: Callable[[], None]) -> Motion:
    places, labelled, stopped = [], [], None
    try:
        for state in rollout(predictor, begun, plan.steps):
            position = state.extra["position"].numpy().reshape(plan.replicas, -1, 3)
            if state.step % RECORD == 0:
                places.append(position)
            if state.step % plan.every == 0:
                labelled.append(position)
            tick()
    except BlowUp as error:
        stopped = error.step
    atoms = begun.extra["position"].shape[0] // plan.replicas
    return Motion(np.array(places).reshape(-1, plan.replicas, atoms, 3),
                  np.array(labelled).reshape(-1, plan.replicas, atoms, 3), stopped)


def _errors(predictor: Predictor, sample: xr.Dataset, frames: np.ndarray, oracle: Oracle,
            tick: Callable[[], None]) -> dict[str, list[float]]:
    """Over frames ``(L, R, n, 3)``: errors of forces (meV/Å) and of energies (meV per configuration)."""
    found: dict[str, list[float]] = {"force_mae": [], "force_rmse": [], "energy_mae": []}
    packed = pack(predictor, [sample] * frames.shape[1])
    for frame in frames:
        ours = at(predictor, packed, torch.from_numpy(frame.reshape(-1, 3)))
        labels = [oracle.label(place) for place in frame]
        assert ours.forces is not None
        force = 1e3 * (ours.forces.reshape(frame.shape) - np.stack([forces for _, forces in labels]))
        energy = 1e3 * (ours.energy - np.array([energy for energy, _ in labels]))
        found["force_mae"].append(float(np.abs(force).mean()))
        found["force_rmse"].append(float(np.sqrt((force**2).mean())))
        found["energy_mae"].append(float(np.abs(energy).mean()))
        tick()
    return found


def _oracle_motion(predictor: Predictor, begun: State, sample: xr.Dataset, plan: Plan,
                   tick: Callable[[], None]) -> np.ndarray:
    """``(F, R, n, 3)`` Å: the same integrator, places, velocities and noise with the oracle's forces."""
    config = molecules_of(predictor).config.dynamics
    oracles = [oracle_of(sample) for _ in range(plan.replicas)]
    mass = torch.from_numpy(np.tile(MASSES[np.asarray(sample["number"].values, np.int64)], plan.replicas))
    generator = torch.Generator()
    assert begun.rng is not None
    generator.set_state(begun.rng)
    motion = dynamics.Motion(begun.extra["position"], begun.extra["velocity"])
    places = []
    for index in range(1, plan.steps + 1):
        parts = motion.position.numpy().reshape(plan.replicas, -1, 3)
        forces = np.concatenate([oracle.label(part)[1] for oracle, part in zip(oracles, parts)])
        motion, _ = dynamics.step(motion, torch.from_numpy(forces), mass, config, first=index == 1,
                                  generator=generator)
        if index % RECORD == 0:
            places.append(motion.position.numpy().reshape(plan.replicas, -1, 3).copy())
        tick()
    return np.array(places).reshape(-1, *shape_of(begun, plan))


def shape_of(begun: State, plan: Plan) -> tuple[int, int, int]:
    """Replicas, atoms, 3."""
    return plan.replicas, begun.extra["position"].shape[0] // plan.replicas, 3


def _distributions(ours: np.ndarray, theirs: np.ndarray, sample: xr.Dataset, bonds: np.ndarray) -> list[dict[str, Any]]:
    """One of every kind: densities and the divergence in bits, beside that of the oracle's two halves."""
    symbols = symbols_of(np.asarray(sample["number"].values, np.int64), sample.attrs.get("source", "sample"))

    def made(places: np.ndarray) -> dict[str, Histogram]:
        return histograms(places.reshape(-1, len(symbols), 3), symbols, bonds)

    model, oracle = made(ours), made(theirs)
    half = len(theirs) // 2
    apart, floor = divergences(model, oracle), divergences(made(theirs[:half]), made(theirs[half:]))
    rows = []
    for name, mine in model.items():
        used = np.flatnonzero(mine.counts + oracle[name].counts)
        kept = slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2) if len(used) else slice(0, 1)
        rows.append({"name": name, "divergence_bits": apart[name], "floor_bits": floor[name],
                     "edges": mine.edges[kept.start: kept.stop + 1].round(6).tolist(),
                     "model": mine.density[kept].tolist(), "oracle": oracle[name].density[kept].tolist()})
    return rows


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A table: errors over the first and the last quarter of the frames, divergences beside their floor."""
    rows, count = [], max(1, len(found["errors"]["time_fs"]) // 4)
    for name, unit in (("force_mae", "meV/angstrom"), ("force_rmse", "meV/angstrom"), ("energy_mae", "meV")):
        values = found["errors"][name]
        if values:
            first, last, whole = (float(np.mean(part)) for part in (values[:count], values[-count:], values))
            rows.append({"figure": name, "unit": unit, "first_quarter": first, "last_quarter": last, "whole": whole,
                         "floor": None})
    for who in ("oracle", "model"):
        for name, value in found["store"].get(who, {}).items():
            rows.append({"figure": f"{who}'s {name} on {found['store']['frames']} frames of the store",
                         "unit": "meV" if name == "energy_mae" else "meV/angstrom", "first_quarter": None,
                         "last_quarter": None, "whole": value, "floor": None})
    for one in found["distributions"]:
        rows.append({"figure": f"divergence of distances, {one['name']}", "unit": "bit", "first_quarter": None,
                     "last_quarter": None, "whole": one["divergence_bits"], "floor": one["floor_bits"]})
    return rows
