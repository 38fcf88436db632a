"""The schema of a store: what its attributes say. Torch-free.

A store is one Zarr v3 group that ``xarray.open_zarr`` reads: variables ``(group_dim, *dims)`` with CF attributes and a
role, coordinate variables for every dimension, and under the group attribute ``sciml`` the JSON of `StoreMeta`. Where
groups have unequal numbers of something (spikes, atoms), its dimension is ragged (CF conventions 9.3.3, contiguous
ragged array): variables ``(ragged_dim, *dims)`` hold the groups' rows one after the other, and a variable
``(group_dim,)`` of role rows, attribute ``sample_dimension``, says how many each has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sciml.recipe import Section

STORE_SCHEMA = 1

Role = Literal["state", "forcing", "parameter", "covariate", "mask", "boundary", "event", "label", "rows"]
SplitName = Literal["train", "validation", "test"]


class Variable(Section):
    """One variable. state: evolves and is predicted; forcing, covariate: on the lattice and known (covariates also in
    the future); parameter: constant in a group; mask: 1 inside the domain; boundary: one code per group; event: of
    something that happens at a time; label: to be decoded from the rest; rows: how many rows of a ragged dimension.

    A component of a vector or tensor names it in `vector`, and in `along` the axes it is along: ``("x",)`` of a
    velocity, ``("x", "y")`` of a stress."""

    role: Role
    unit: str
    dims: tuple[str, ...]
    long_name: str = ""
    vector: str = ""
    along: tuple[str, ...] = ()


class AxisMeta(Section):
    """A dimension: its unit and, if periodic, the period in that unit. kind as in ``sciml.tokens.Axis``. places: of a
    set of points the coordinates along it that say where they are, in this unit; its members then have no identity."""

    kind: Literal["space", "time", "set"]
    unit: str
    period: float | None = None
    places: tuple[str, ...] = ()


class Block(Section):
    """Time indices ``start ≤ t < stop`` of one group (trajectory, series); targets of a split lie inside its blocks.
    In a store without a time axis they are rows of the group (`paced`), or 0 to 1."""

    group: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(gt=0)


class Splits(Section):
    """Train, validation and test by independent group, or by contiguous blocks of time; `key` says by what, `gap` how
    many steps lie between blocks of different splits at least."""

    key: str
    gap: int = Field(default=0, ge=0)
    train: tuple[Block, ...]
    validation: tuple[Block, ...]
    test: tuple[Block, ...]

    def of(self, name: SplitName) -> tuple[Block, ...]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


class Moments(Section):
    """Statistics over the training split, accumulated in float64, in the variable's own unit."""

    mean: float
    std: float
    minimum: float
    maximum: float
    count: int
    missing: int = 0


class Tendency(Section):
    """Standard deviation of x(t + lead) − x(t) over the training split, for leads in steps, ascending."""

    lead: tuple[int, ...]
    std: tuple[float, ...]


class Provenance(Section):
    """Where the data came from: files with SHA-256, builder and its options, versions, the command, UTC time."""

    files: dict[str, str] = Field(default_factory=dict)
    builder: str
    options: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    created: str = ""


class StoreMeta(Section):
    """All that a store says of itself. `moments` and `tendency` are keyed by variable, or ``variable/member`` where a
    variable has one identity dimension (kind set): ``value/HUFL``. dt: the uniform time step in the time axis's unit,
    None if there is no time axis or it is not uniform. ragged: ragged dimension → its variable of role rows; it has no
    coordinate and is no axis."""

    schema_version: Literal[1] = 1
    domain: str
    dataset: str = Field(pattern=r"^[a-z0-9_]+$")
    group_dim: str
    groups: int
    variables: dict[str, Variable]
    axes: dict[str, AxisMeta]
    ragged: dict[str, str] = Field(default_factory=dict)
    dt: float | None
    splits: Splits
    moments: dict[str, Moments]
    tendency: dict[str, Tendency] = Field(default_factory=dict)
    provenance: Provenance
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()

    def split_identity(self) -> str:
        """A hash of what was split, by what key and how: two stores with equal identity share their test set."""
        content = {"dataset": self.dataset, "files": sorted(self.provenance.files.values()),
                   "options": self.provenance.options, "splits": self.splits.model_dump(exclude={"gap"})}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def evolves(self, variable: str) -> bool:
        """Whether a variable has a time axis (it is then the first of its dims)."""
        return evolves(self.variables[variable], self.axes)

    def of_role(self, role: Role) -> tuple[str, ...]:
        return tuple(name for name, variable in self.variables.items() if variable.role == role)


def evolves(variable: Variable, axes: Mapping[str, AxisMeta]) -> bool:
    """Whether a variable has a time axis (it is then the first of its dims)."""
    return bool(variable.dims) and variable.dims[0] in axes and axes[variable.dims[0]].kind == "time"


def paced(variables: Mapping[str, Variable], axes: Mapping[str, AxisMeta], ragged: Mapping[str, str]) -> str | None:
    """The ragged dimension whose rows are a group's own steps of time, which blocks then count: without a time axis
    the one of events.

    >>> variables = {"step_time": Variable(role="event", unit="ns", dims=("step",))}
    >>> paced(variables, {}, {"step": "step_count"})
    'step'
    """
    if any(axis.kind == "time" for axis in axes.values()):
        return None
    found = {v.dims[0] for v in variables.values() if v.role == "event" and v.dims[:1] and v.dims[0] in ragged}
    return found.pop() if len(found) == 1 else None


def identity_dim(variable: Variable, axes: Mapping[str, AxisMeta]) -> str | None:
    """The dimension whose members have statistics of their own: the set dimension, if there is exactly one and it isn't
    one of points.

    >>> axes = {name: AxisMeta(kind="set", unit="1") for name in ("unit", "source")}
    >>> count, weight = (Variable(role="state", unit="1", dims=dims) for dims in (("unit",), ("unit", "source")))
    >>> identity_dim(count, axes), identity_dim(weight, axes)
    ('unit', None)
    """
    sets = [dim for dim in variable.dims if dim in axes and axes[dim].kind == "set" and not axes[dim].places]
    return sets[0] if len(sets) == 1 else None


def array_dims(variable: Variable, group_dim: str, ragged: Mapping[str, str]) -> tuple[str, ...]:
    """All dimensions of a variable's array: the group dimension leads unless a ragged one does."""
    return variable.dims if variable.dims[:1] and variable.dims[0] in ragged else (group_dim, *variable.dims)
