"""What a recipe may say about fields, and what a fitted adapter remembers of a data set. Torch-free."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator

from sciml.recipe import Section


class FieldsConfig(Section):
    """The section ``domains.fields`` of a recipe.

    patch: cells of an axis that make one token; with fixed_patch the token keeps its physical length on other grids.
    leads: lead times in steps of the data, of which training draws one per sample. augment: ``shift`` rolls a sample by
    random whole cells along its periodic axes. any_dt: accept leads and steps that were not trained. spectral: on grids
    that are periodic throughout and not masked, the baseline is persistence damped per wavenumber, and what it misses
    is scaled per wavenumber, by the training split's own size to this power (0: plain persistence, one scale; 1: the
    operator's output is white).
    """

    patch: int = Field(default=4, ge=1)
    fixed_patch: bool = True
    leads: tuple[int, ...] = Field(default=(1,), min_length=1)
    augment: tuple[Literal["shift"], ...] = ("shift",)
    objective: str = "relative_l2"
    rollout_steps: int = Field(default=12, ge=1)
    any_dt: bool = False
    spectral: float = Field(default=0.0, ge=0, le=1)

    @field_validator("leads")
    @classmethod
    def _ascending(cls, leads: tuple[int, ...]) -> tuple[int, ...]:
        if leads[0] < 1 or any(b <= a for a, b in pairwise(leads)):
            raise ValueError("leads must be positive and ascending")
        return leads


class GridAxis(Section):
    """A spatial axis of a data set: name, unit and, if periodic, the period in that unit."""

    name: str
    unit: str
    period: float | None = None

    @property
    def kind(self) -> tuple[str, str, bool]:
        """What two grids must agree on; sizes and extents are free."""
        return self.name, self.unit, self.period is not None


class Scaling(Section):
    """``(transform(x) − center) / scale`` of one variable in its own unit."""

    unit: str
    center: float = 0.0
    scale: float = 1.0
    transform: Literal["identity", "log10"] = "identity"
    long_name: str = ""


class Contract(Section):
    """One data set as the adapter knows it. length and time: the reference length and time in its own units; dt: its
    time step; spacing: distance of neighbouring points of its first axis; lead_times ascending, in the unit of dt."""

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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)
