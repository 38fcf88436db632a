"""What a recipe may say about fields, and what a fitted adapter remembers of a data set. Torch-free."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sciml.recipe import Section

Leads = tuple[int, ...] | int | Literal["all"]
"""Lead times in steps of the data: those listed, all up to a number, or all that a trajectory is long enough for."""
SYMMETRY = re.compile(r"(shift|flip|rotate)(:\w+(,\w+)*)?")


def fitting(leads: Leads, longest: int) -> tuple[int, ...]:
    """The lead times that are not above `longest`, ascending.

    >>> fitting((1, 2, 4), 3), fitting(4, 3), fitting("all", 3)
    ((1, 2), (1, 2, 3), (1, 2, 3))
    """
    if isinstance(leads, tuple):
        return tuple(lead for lead in leads if lead <= longest)
    return tuple(range(1, 1 + (longest if leads == "all" else min(leads, longest))))


def allowed(leads: Leads, lead: int) -> bool:
    """Whether a model with these leads was trained with this one."""
    return lead in leads if isinstance(leads, tuple) else lead >= 1 and (leads == "all" or lead <= leads)


def shortest(leads: Leads) -> int:
    """The first lead: the step of a rollout."""
    return leads[0] if isinstance(leads, tuple) else 1


def described(leads: Leads) -> str:
    """In words, in steps.

    >>> described((1, 2)), described(8)
    ('1 or 2 steps', 'any number of steps up to 8')
    """
    if isinstance(leads, tuple):
        return f"{' or '.join(map(str, leads))} steps"
    return "any number of steps" + ("" if leads == "all" else f" up to {leads}")


class Project(Section):
    """What holds of every prediction: vectors without divergence, on grids periodic throughout; variables (or vectors)
    whose mean over space stays what it was at the start."""

    divergence_free: tuple[str, ...] = ()
    mean: tuple[str, ...] = ()


class FieldsConfig(Section):
    """The section ``domains.fields`` of a recipe.

    patch: cells of an axis that make one token; with fixed_patch the token keeps its physical length on other grids.
    leads: lead times in steps of the data, a list, a number (all up to it) or ``all``, of which training draws one per
    sample, uniformly over all pairs of states; asked: longer ones that an evaluation asks for directly, too. augment:
    symmetries of the equations, each with the axes it is about (default: all that allow it): ``shift`` rolls a sample
    by random whole cells along periodic axes, ``flip`` mirrors it, ``rotate`` turns it by 90° in planes of equal axes;
    components of vectors change sign and place with it. detail: whether cells exchange what tokens say of them before
    it is the answer (stem and head `cells`), so that there are no seams between patches. resolutions: shares of the
    stored cells along every axis, of which training draws one per batch and filters its states to that grid;
    evaluations are on the stored one. damped: the baseline is the training mean and, of the deviation from it, the
    share that is left on average after the lead (but where `spectral` applies); from plain persistence long rollouts of
    a statistically steady flow may drift away. any_dt: accept leads and steps that were not trained. spectral: on even
    grids without masks, the baseline is persistence damped per wavenumber (of cosines along an axis with ends), and
    what it misses is scaled per wavenumber, by the training split's own size to this power (0: plain persistence, one
    scale; 1: the operator's output is white).
    """

    patch: int = Field(default=4, ge=1)
    fixed_patch: bool = True
    leads: Leads = (1,)
    asked: tuple[int, ...] = ()
    augment: tuple[str, ...] = ("shift",)
    detail: bool = False
    resolutions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    objective: str = "relative_l2"
    rollout_steps: int = Field(default=12, ge=1)
    any_dt: bool = False
    damped: bool = False
    spectral: float = Field(default=0.0, ge=0, le=1)
    project: Project = Project()

    @field_validator("leads", "asked")
    @classmethod
    def _ascending(cls, leads: Leads) -> Leads:
        listed = leads if isinstance(leads, tuple) else (1 if leads == "all" else leads,)
        if any(lead < 1 for lead in listed) or any(b <= a for a, b in pairwise(listed)):
            raise ValueError("leads must be positive and ascending")
        return leads

    @field_validator("leads")
    @classmethod
    def _some(cls, leads: Leads) -> Leads:
        if leads == ():
            raise ValueError("at least one lead")
        return leads

    @model_validator(mode="after")
    def _whole_tokens(self) -> FieldsConfig:
        if not self.resolutions or len(set(self.resolutions)) < len(self.resolutions):
            raise ValueError("resolutions: at least one, none twice")
        parts = [self.patch * share for share in self.resolutions] if self.fixed_patch else []
        if any(abs(cells - max(round(cells), 1)) > 1e-6 for cells in parts):
            raise ValueError(f"resolutions: tokens of {', '.join(f'{cells:g}' for cells in parts)} cells, of which "
                             "only whole ones keep their length; choose other shares or patch, or fixed_patch: false")
        return self

    @model_validator(mode="after")
    def _trained(self) -> FieldsConfig:
        unknown = [lead for lead in self.asked if not (self.any_dt or allowed(self.leads, lead))]
        if unknown:
            raise ValueError(f"asked: {unknown} are not among the leads, nor is any_dt set")
        return self

    @field_validator("augment")
    @classmethod
    def _symmetries(cls, augment: tuple[str, ...]) -> tuple[str, ...]:
        for entry in augment:
            if not SYMMETRY.fullmatch(entry):
                raise ValueError("shift, flip or rotate, each with axes if not all are meant: flip:x or rotate:x,y")
        return augment


class GridAxis(Section):
    """A spatial axis of a data set: name, unit and, if periodic, the period in that unit. places: of scattered points
    the coordinates that say where they are; periods: of the box that these are in, 0 where it has ends."""

    name: str
    unit: str
    period: float | None = None
    places: tuple[str, ...] = ()
    periods: tuple[float, ...] = ()

    @property
    def kind(self) -> tuple[str, str, bool]:
        """What two grids must agree on; sizes and extents are free."""
        return self.name, self.unit, self.period is not None


class Scaling(Section):
    """``(transform(x) − center) / scale`` of one variable in its own unit; vector, along: as in
    `sciml.data.schema.Variable`."""

    unit: str
    center: float = 0.0
    scale: float = 1.0
    transform: Literal["identity", "log10"] = "identity"
    long_name: str = ""
    vector: str = ""
    along: tuple[str, ...] = ()


class Contract(Section):
    """One data set as the adapter knows it. length and time: the reference length and time in its own units; dt: its
    time step; spacing: distance of neighbouring points of its first axis. steady: it has no time, and its states follow
    from what else is known of a sample, one reference time ahead. varying: the forcings that change in time."""

    axes: tuple[GridAxis, ...]
    dt: float = Field(gt=0)
    time_unit: str
    length: float = Field(gt=0)
    time: float = Field(gt=0)
    spacing: float = Field(gt=0)
    states: dict[str, Scaling]
    forcings: dict[str, Scaling] = Field(default_factory=dict)
    parameters: dict[str, Scaling] = Field(default_factory=dict)
    masks: tuple[str, ...] = ()
    steady: bool = False
    varying: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def scattered(self) -> bool:
        """Whether it lies on points that have places and no order."""
        return any(axis.places for axis in self.axes)

    @property
    def periodic(self) -> bool:
        """Whether it is throughout."""
        return all(axis.period is not None for axis in self.axes)

    @property
    def vectors(self) -> dict[str, dict[str, str]]:
        """Vector → axis → the state that is its component along it; tensors are left out."""
        found: dict[str, dict[str, str]] = {}
        for name, scaling in self.states.items():
            if len(scaling.along) == 1:
                found.setdefault(scaling.vector, {})[scaling.along[0]] = name
        return found
