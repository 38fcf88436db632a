"""States of fields advanced by a solver of their equation (`sciml.solvers`): to physical units, a step, and back."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from sciml import registry
from sciml.domains.fields.config import Contract, Scaling
from sciml.domains.fields.encode import DOMAIN
from sciml.domains.fields.grids import is_even
from sciml.errors import InputError
from sciml.recipe import Named
from sciml.solvers import SOLVERS, Given, Solver
from sciml.tokens import Axis, TokenBatch


def solved(known: Contract, batch: TokenBatch, leads: Sequence[float], solver: Named) -> Tensor:
    """``(B, *space, C)`` normalised, `leads` ``(B,)`` later in the data set's unit of time; solved in float64.

    Raises `InputError` for an unknown solver or options that it doesn't have, for steady or partly unknown data,
    points, and what the solver itself refuses.
    """
    made: Solver = registry.find(SOLVERS, solver.name, where=batch.dataset)
    if known.steady or batch.observed is not None or known.scattered:
        raise InputError(batch.sources, key=solver.name, found="steady or masked data, or points",
                         expected="complete states on a grid", fix="train this data set without a solver")
    if known.varying:
        raise InputError(batch.sources, key=solver.name, found=f"{', '.join(known.varying)} changing in time",
                         expected="forcings that are steady", fix="train this data set without a solver")
    _check_options(made, solver)
    values = torch.empty_like(batch.values)
    for lead in sorted(set(leads)):
        rows = torch.tensor([i for i, own in enumerate(leads) if own == lead], device=values.device)
        later = made(_given(known, batch, rows), lead, **solver.options)
        normal = [(later[name] - s.center) / s.scale for name, s in known.states.items()]
        values = values.index_put((rows,), torch.stack(normal, -1).to(values.dtype))
    return values


def _check_options(made: Solver, solver: Named) -> None:
    try:
        inspect.signature(made).bind(None, 0.0, **solver.options)
    except TypeError as error:
        raise InputError("recipe", key=f"solver.{solver.name}", found=dict(solver.options), expected=str(error),
                         fix="correct the options") from None


def _given(known: Contract, batch: TokenBatch, rows: Tensor) -> Given:
    conditions = batch.conditions
    states = {name: _physical(batch.values[rows][..., i], s) for i, (name, s) in enumerate(known.states.items())}
    forcings = {name: _physical(_rows(conditions.lattice[f"{DOMAIN}/{name}"], rows), s)
                for name, s in known.forcings.items()}
    parameters = {name: _physical(conditions.vector[f"{DOMAIN}/{name}"][rows], s)
                  for name, s in known.parameters.items()}
    places = [axis.coord[0, :, 0].double() * known.length for axis in batch.axes]
    uneven = {i: place for i, place in enumerate(places) if not is_even(place.cpu())}
    return Given(states, forcings, parameters,
                 tuple(_length(axis, place, known.length) for axis, place in zip(batch.axes, places)),
                 tuple(axis.period is not None for axis in batch.axes), uneven)


def _length(axis: Axis, place: Tensor, unit: float) -> float:
    """Of the box: the period, or as many spacings as there are cells."""
    if axis.period is not None:
        return float(axis.period.flatten()[0]) * unit
    return float(place.diff().mean()) * len(place)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values.expand(len(rows), *values.shape[1:]) if len(values) == 1 else values[rows]


def _physical(values: Tensor, scaling: Scaling) -> Tensor:
    plain = values.double() * scaling.scale + scaling.center
    return torch.pow(10.0, plain) if scaling.transform == "log10" else plain
