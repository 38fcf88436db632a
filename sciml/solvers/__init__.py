"""Solvers of the equations behind data sets, as differentiable functions of torch: what a surrogate is measured against
and what a diverted chain asks for the truth.

A solver is a module here (or an entry point in the group ``sciml.solvers``) whose ``PLUGIN`` is a `Solver`, named after
the builder whose stores it goes on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from sciml.data.builders._blocks import BOUNDARIES
from sciml.errors import InputError

SOLVERS = "sciml.solvers"
FIX = "choose the solver of the data set's builder"


@dataclass(frozen=True)
class Given:
    """A state of a data set in its own units on a grid: states and forcings ``(B, *space)``, parameters and codes of
    boundaries ``(B,)``, by variable; lengths: of the box along its axes, in the unit of their coordinates; periodic:
    whether each of them is, by default all; uneven: the coordinates of cells along the axes that are, by index."""

    states: Mapping[str, Tensor]
    forcings: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    lengths: tuple[float, ...]
    periodic: tuple[bool, ...] = ()
    uneven: Mapping[int, Tensor] = field(default_factory=dict)


class Solver(Protocol):
    """``solver(given, dt, **options)``: the states dt later, of the same names and shapes; differentiable in them.

    Raises `InputError` for data that it doesn't solve (`need`, `even`, `periods`, `unit_square`, `ends`, `one`)."""

    def __call__(self, given: Given, dt: float, **options: Any) -> dict[str, Tensor]: ...


def need(given: Given, kind: str, *names: str) -> list[Tensor]:
    """The variables of these names. Raises `InputError` if the data set lacks one."""
    there: Mapping[str, Tensor] = getattr(given, kind)
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError("solver", key=missing[0], found=f"{kind} {sorted(there)}", expected=", ".join(names), fix=FIX)
    return [there[name] for name in names]


def even(given: Given) -> tuple[float, ...]:
    """The lengths of all axes. Raises `InputError` if the grid is uneven along one of them."""
    if given.uneven:
        axis, place = next(iter(given.uneven.items()))
        raise InputError("solver", key="xyz"[axis], found=f"uneven spacings of {len(place)} cells",
                         expected="an even grid", fix=FIX)
    return given.lengths


def periods(given: Given) -> tuple[float, ...]:
    """Of all axes. Raises `InputError` if one of them has ends or uneven spacings."""
    if not all(given.periodic):
        raise InputError("solver", key="period", found="an axis with ends", expected="periodic axes", fix=FIX)
    return even(given)


def unit_square(given: Given) -> None:
    """Raises `InputError` unless the periods are 1."""
    if any(abs(period - 1.0) > 1e-6 for period in periods(given)):
        raise InputError("solver", key="period", found=given.lengths, expected="the unit square", fix=FIX)


def ends(given: Given, *known: str) -> tuple[tuple[str, str], ...]:
    """What is at the low and at the high end of each axis, by the names in `BOUNDARIES`. Raises `InputError` where that
    isn't said, differs within the batch or isn't among the `known`."""
    codes = {code: name for name, code in BOUNDARIES.items()}
    periodic = given.periodic or (True,) * len(given.lengths)
    found = []
    for axis, wraps in zip("xyz", periodic):
        if wraps:
            found.append(("periodic", "periodic"))
            continue
        names = [f"boundary_{axis}_{end}" for end in ("low", "high")]
        low, high = (codes.get(round(one(given, name)), "") for name in names)
        if not {low, high} <= set(known):
            raise InputError("solver", key=f"boundary_{axis}", found=f"{low or 'unknown'}, {high or 'unknown'}",
                             expected=f"each one of {', '.join(known)}", fix=FIX)
        found.append((low, high))
    return tuple(found)


def one(given: Given, name: str) -> float:
    """A parameter that is the same in the whole batch. Raises `InputError` if it isn't."""
    (values,) = need(given, "parameters", name)
    low, high = float(values.detach().min()), float(values.detach().max())
    if high - low > 1e-5 * max(abs(high), abs(low)):
        raise InputError("solver", key=name, found=f"{low:g} to {high:g} in one batch", expected="one value",
                         fix="train with batch: 1, or split the data set by it")
    return (low + high) / 2
