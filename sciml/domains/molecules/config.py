"""The recipe's section ``domains.molecules``. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sciml.recipe import Section

Kind = Literal["sum", "mean", "atoms", "dipole", "dipole_length"]
NUMBERS: tuple[Kind, ...] = ("sum", "mean")
DIPOLES: tuple[Kind, ...] = ("dipole", "dipole_length")


def _energy() -> dict[str, Kind]:
    return {"energy": "sum"}


class DynamicsConfig(Section):
    """A rollout step. thermostat: none (velocity Verlet: energy is conserved) or Langevin dynamics at `temperature_k`
    with `friction_per_fs`. Velocities that a sample doesn't bring are drawn at `temperature_k` with `seed`."""

    thermostat: Literal["none", "langevin"] = "none"
    dt_fs: float = Field(default=0.5, gt=0)
    temperature_k: float = Field(default=300.0, ge=0)
    friction_per_fs: float = Field(default=0.01, gt=0)
    seed: int = Field(default=0, ge=0)


class MoleculesConfig(Section):
    """mode: `geometric` (identities enter as tokens, places only through distances and directions: exact symmetries) or
    `cartesian` (places enter as coordinates, no graph; symmetries are learned).

    properties: labels to predict: per configuration the `sum` of atoms' parts (extensive) or their `mean`, a `dipole`
    (vector) or the `dipole_length` of one (QM9's mu); or a number for each of the `atoms` (charges). forces: the
    exact negative gradient of the energy, a head of their own (`direct`), or none. cutoff_angstrom: the reference
    length, beyond which atoms don't see each other directly. references: element energies that are subtracted, of
    isolated atoms (if the data have them) or by least squares. rotate: a random rotation of each training sample (null:
    in cartesian mode). frames: average over the four frames of the principal axes, cartesian mode.
    """

    mode: Literal["geometric", "cartesian"] = "geometric"
    cutoff_angstrom: float = Field(default=5.0, gt=0)
    properties: dict[str, Kind] = Field(default_factory=_energy, min_length=1)
    forces: Literal["gradient", "direct", "none"] = "gradient"
    references: Literal["isolated", "least_squares"] = "least_squares"
    rotate: bool | None = None
    frames: bool = False
    objective: str = "energy_forces"
    dynamics: DynamicsConfig = DynamicsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> MoleculesConfig:
        if self.forces != "none" and "energy" not in self.properties:
            raise ValueError("forces belong to an energy: name it in properties, or set forces: none")
        if self.properties.get("energy", "sum") != "sum":
            raise ValueError("properties.energy: sum; nothing else is extensive")
        if self.mode != "geometric" and {*self.properties.values()} - {*NUMBERS}:
            raise ValueError("properties of atoms and dipoles need mode: geometric, whose directions turn with atoms")
        if self.frames and self.mode != "cartesian":
            raise ValueError("frames: true needs mode: cartesian; geometric mode has exact symmetries")
        if self.frames and self.forces == "direct":
            raise ValueError("frames: true averages energies, not vectors; set forces: gradient")
        return self

    @property
    def rotates(self) -> bool:
        """Whether training samples are turned at random."""
        return self.mode == "cartesian" if self.rotate is None else self.rotate
