"""The conservation card of a potential: what molecular dynamics takes for granted, measured.

Figures with "float32" or "float64" hold for weights in that precision; relative errors of forces are root mean squares
over that of the forces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import xarray as xr
from pydantic import Field

from sciml.cards import Entry, Progress
from sciml.cards.molecules_derivatives import derivatives, smoothness
from sciml.cards.molecules_motion import Plan, conservation, survival
from sciml.cards.molecules_symmetry import Precision, symmetries
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.molecules.adapter import Molecules
from sciml.errors import InputError
from sciml.handles.potential import in_float64, molecules_of
from sciml.predictor import Predictor
from sciml.recipe import Section, override, validate

Part = Literal["symmetry", "derivatives", "smoothness", "energy", "failure"]
PARTS: tuple[Part, ...] = ("symmetry", "derivatives", "smoothness", "energy", "failure")


class CardConfig(Section):
    """configurations: how many different molecules of the split. energy_ps: length of the run at constant energy, from
    velocities of `temperature_k`; failure_ps: of those with a thermostat at each of `failure_k`. atoms: at most so many
    are displaced for the Jacobian of the forces. parts: what is measured."""

    configurations: int = Field(default=1, ge=1)
    energy_ps: float = Field(default=1.0, gt=0)
    failure_ps: float = Field(default=0.5, gt=0)
    dt_fs: float = Field(default=0.5, gt=0)
    temperature_k: float = Field(default=300.0, gt=0)
    failure_k: tuple[float, ...] = (300.0, 500.0)
    atoms: int = Field(default=16, ge=2)
    parts: tuple[Part, ...] = PARTS
    seed: int = Field(default=0, ge=0)


def conservation_card(predictor: Predictor, store: Store, split: SplitName, assignments: Sequence[str] = (),
                      progress: Progress | None = None) -> list[Entry]:
    """Of the first configuration of each of the split's first molecules; empty for a model without forces."""
    raw = override(CardConfig().model_dump(mode="json"), assignments)
    config = validate(CardConfig, raw, where="command line")
    known = predictor.adapter(store.meta.domain)
    if isinstance(known, Molecules) and known.config.forces == "none":
        return []  # perhaps without an energy, too
    adapter = molecules_of(predictor)
    samples = adapter.starts(store, split)[: config.configurations]
    if not samples:
        raise InputError(store.url, key=f"split {split}", found="no configuration", expected="at least one",
                         fix="choose another split")
    entries: list[Entry] = []
    for done, made in enumerate(_parts(predictor, samples, config), 1):
        entries += made
        if progress is not None:
            progress(done, len(config.parts))
    return entries


def _parts(predictor: Predictor, samples: Sequence[xr.Dataset], config: CardConfig) -> Iterator[list[Entry]]:
    double = in_float64(predictor)
    plan = Plan(config.dt_fs, config.temperature_k, config.seed)
    for part in config.parts:
        if part == "symmetry":
            yield [entry for each, precision in ((predictor, Precision("float32", 1e-5, 1e-5)),
                                                 (double, Precision("float64", 1e-10, 1e-5)))
                   for entry in symmetries(each, samples, precision, config.seed)]
        elif part == "derivatives":
            yield derivatives(double, samples, config.atoms, config.seed)
        elif part == "smoothness":
            yield smoothness(double, samples[0])
        elif part == "energy":
            yield [conservation(predictor, samples, plan, config.energy_ps)]
        else:
            yield [survival(predictor, samples, plan, kelvin, config.failure_ps) for kelvin in config.failure_k]


PLUGIN = conservation_card
