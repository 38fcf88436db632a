"""One step of molecular dynamics, of any number of packed configurations at once, in torch and differentiable.

Units: Å, fs, eV, amu. Places and velocities are float64 whatever the network computes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.domains.molecules.config import DynamicsConfig

ACCELERATION = 9.648533212331e-3
"""Å/fs² of 1 eV/Å on 1 amu: the elementary charge times Avogadro's number, CODATA 2018."""
BOLTZMANN = 8.617333262e-5
"""eV/K."""
NEAREST_ANGSTROM, FARTHEST_STEP_ANGSTROM = 0.3, 1.0


@dataclass(frozen=True)
class Motion:
    """position ``(n, 3)`` at time t; velocity ``(n, 3)`` half a kick before it (at the start: at it)."""

    position: Tensor
    velocity: Tensor


def step(motion: Motion, forces: Tensor, mass: Tensor, config: DynamicsConfig, *, first: bool,
         generator: torch.Generator | None = None) -> tuple[Motion, Tensor]:
    """The motion a step later and the velocities ``(n, 3)`` at its beginning, when the forces ``(n, 3)`` act.

    Velocity Verlet, kick–drift–kick, with the second kick done at the beginning of the following step, when its forces
    are known. With a thermostat a random turn stands in the middle of the drift: BAOAB (Leimkuhler and Matthews, Appl.
    Math. Res. eXpress 2013, 34), exact for free particles and harmonic oscillators' places.
    """
    kick = (0.5 * config.dt_fs * ACCELERATION) * forces / mass[:, None]
    now = motion.velocity if first else motion.velocity + kick
    velocity = now + kick
    position = motion.position + 0.5 * config.dt_fs * velocity
    if config.thermostat == "langevin":
        keep = math.exp(-config.friction_per_fs * config.dt_fs)
        noise = torch.randn(velocity.shape, generator=generator, dtype=velocity.dtype).to(velocity.device)
        velocity = keep * velocity + math.sqrt(1 - keep * keep) * thermal(mass, config.temperature_k) * noise
    return Motion(position + 0.5 * config.dt_fs * velocity, velocity), now


def is_broken(position: Tensor, before: Tensor, segment: Tensor, reach: float, *, periodic: bool) -> bool:
    """Whether places ``(n, 3)`` Å are no molecules any more: an atom moved by more than 1 Å since `before`; of samples
    that are not periodic, two atoms are nearer than 0.3 Å, or one has no other within `reach` Å."""
    if bool(((position - before).norm(dim=-1) > FARTHEST_STEP_ANGSTROM).any()):
        return True
    if periodic:
        return False
    from scipy.spatial import cKDTree

    for places in position.detach().cpu().split(segment.bincount().tolist()):
        if len(places) > 1 and bool(torch.isfinite(places).all()):
            nearest = cKDTree(places.numpy()).query(places.numpy(), k=2)[0][:, 1]
            if nearest.min() < NEAREST_ANGSTROM or nearest.max() > reach:
                return True
    return False


def thermal(mass: Tensor, temperature_k: float) -> Tensor:
    """``(n, 1)`` standard deviation of a velocity's components, Å/fs."""
    return (BOLTZMANN * temperature_k * ACCELERATION / mass).sqrt()[:, None]


def kinetic_energy(velocity: Tensor, mass: Tensor) -> Tensor:
    """``(n,)`` per atom, eV."""
    return 0.5 * mass * velocity.square().sum(-1) / ACCELERATION


def draw_velocities(mass: Tensor, segment: Tensor, temperature_k: float, generator: torch.Generator) -> Tensor:
    """``(n, 3)`` Maxwell–Boltzmann velocities, each configuration at rest as a whole."""
    drawn = torch.randn(len(mass), 3, generator=generator, dtype=mass.dtype) * thermal(mass, temperature_k)
    count = int(segment.max()) + 1
    momentum = drawn.new_zeros(count, 3).index_add(0, segment, drawn * mass[:, None])
    total = mass.new_zeros(count).index_add(0, segment, mass)
    return drawn - (momentum / total[:, None])[segment]
