"""Molecular dynamics as a check: does it conserve energy, does the molecule survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from sciml.cards import Entry, judged
from sciml.handles.bonds import bonds_of
from sciml.handles.potential import molecules_of, pack, start
from sciml.predictor import Predictor
from sciml.rollout import BlowUp, rollout

DRIFT_LIMIT = 0.02
BLOCKS = 10
STRETCH_ANGSTROM = 0.5
"""A bond that has changed by more is broken (as in Fu et al., "Forces are not enough", TMLR 2023, section 4)."""


@dataclass(frozen=True)
class Plan:
    """Step, temperature of the velocities that are drawn, seed."""

    dt_fs: float
    temperature_k: float
    seed: int


def with_dynamics(predictor: Predictor, **changes: Any) -> Predictor:
    """The same with other settings of `domains.molecules.dynamics`."""
    adapter = molecules_of(predictor)
    section = adapter.config.model_dump(mode="json")
    section["dynamics"] |= changes
    return replace(predictor, adapters={**predictor.adapters, adapter.name: adapter.reconfigured(section)})


def total_energies(predictor: Predictor, samples: Sequence[xr.Dataset], plan: Plan, steps: int) -> np.ndarray:
    """``(t, S)`` eV after 0, 1, … steps of velocity Verlet; shorter if it blew up."""
    moving = with_dynamics(predictor, thermostat="none", dt_fs=plan.dt_fs, temperature_k=plan.temperature_k,
                           seed=plan.seed)
    found = []
    try:
        for state in rollout(moving, start(moving, pack(moving, samples)), steps):
            found.append((state.extra["kinetic"] + state.extra["potential"]).numpy())
    except BlowUp:
        pass
    return np.array(found).reshape(-1, len(samples))


def conservation(predictor: Predictor, samples: Sequence[xr.Dataset], plan: Plan, length_ps: float) -> Entry:
    """Drift of the total energy at constant energy: the slope of a straight line, in the precision of the weights."""
    steps = max(BLOCKS, round(length_ps * 1e3 / plan.dt_fs))
    energies = total_energies(predictor, samples, plan, steps)
    name, unit = "drift at constant energy", "meV/atom/ps"
    if len(energies) < steps:
        return Entry(name, float("nan"), unit, DRIFT_LIMIT, "fails", f"blew up at step {len(energies)} of {steps}")
    atoms = np.array([sample.sizes["atom"] for sample in samples])
    slopes, errors = drift(1e3 * energies / atoms, plan.dt_fs * 1e-3)
    worst = int(np.argmax(np.abs(slopes)))
    value, error = float(abs(slopes[worst])), float(errors[worst])
    spread = float((1e3 * energies / atoms).std(0).max())
    entry = judged(name, value, unit, DRIFT_LIMIT, f"± {error:.1g} over {length_ps:g} ps at {plan.dt_fs:g} fs from "
                   f"{plan.temperature_k:g} K; standard deviation {spread:.2g} meV/atom")
    unsure = entry.verdict == "fails" and value - 2 * error <= DRIFT_LIMIT
    return replace(entry, verdict="open") if unsure else entry


def drift(energies: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Slopes ``(S,)`` of ``(t, S)`` in time, and their standard errors from the residuals of ten block means.

    >>> slopes, errors = drift(np.arange(100.0)[:, None] * 0.5, 0.1)
    >>> round(float(slopes[0]), 9), float(errors[0]) < 1e-9
    (5.0, True)
    """
    time = dt * np.arange(len(energies))
    blocks = [part.mean(0) for part in np.array_split(energies, BLOCKS)]
    middles = np.array([part.mean() for part in np.array_split(time, BLOCKS)])
    slopes, at_zero = np.polyfit(middles, np.array(blocks), 1)
    left = np.array(blocks) - slopes * middles[:, None] - at_zero
    spread = ((middles - middles.mean()) ** 2).sum()
    return slopes, np.sqrt((left**2).sum(0) / (BLOCKS - 2) / spread)


def survival(predictor: Predictor, samples: Sequence[xr.Dataset], plan: Plan, kelvin: float, length_ps: float,
             every: int = 5) -> Entry:
    """Time until a bond has become 0.5 Å longer or shorter (a proton may be transferred), or a value is not finite,
    with a Langevin thermostat."""
    moving = with_dynamics(predictor, thermostat="langevin", dt_fs=plan.dt_fs, temperature_k=kelvin, seed=plan.seed)
    packed = pack(moving, samples)
    bonds = bonds_of(moving, packed)
    steps, reached, why = max(1, round(length_ps * 1e3 / plan.dt_fs)), 0, ""
    try:
        for state in rollout(moving, start(moving, packed), steps):
            if state.step % every == 0 or state.step == steps:
                broken = bonds.broken(state.extra["position"].numpy(), STRETCH_ANGSTROM)
                if broken.size:
                    worst = int(broken[0])
                    why = f"the bond of atoms {bonds.first[worst]} and {bonds.second[worst]} changed by more than 0.5 Å"
                    break
            reached = state.step
    except BlowUp:
        why = "not finite"
    survived = reached * plan.dt_fs * 1e-3
    return judged(f"time to failure, {kelvin:g} K", survived, "ps", steps * plan.dt_fs * 1e-3,
                  why or f"no failure; {len(bonds.length)} bonds watched", least=True)
