"""Solvers of the equations behind data sets, as differentiable functions of torch: what a surrogate is measured against
and what a diverted chain asks for the truth.

A solver is a module here (or an entry point in the group ``sciml.solvers``) whose ``PLUGIN`` is a `Solver`, named after
the builder whose stores it goes on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sciml.errors import InputError

SOLVERS = "sciml.solvers"


@dataclass(frozen=True)
class Given:
    """A state of a data set in its own units: states and forcings ``(B, *space)``, parameters ``(B,)``, by variable;
    periods: of the axes, in the unit of their coordinates."""

    states: Mapping[str, Tensor]
    forcings: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    periods: tuple[float, ...]


class Solver(Protocol):
    """``solver(given, dt, **options)``: the states dt later, of the same names and shapes; differentiable in them."""

    def __call__(self, given: Given, dt: float, **options: Any) -> dict[str, Tensor]: ...


def need(given: Given, kind: str, *names: str) -> list[Tensor]:
    """The variables of these names. Raises `InputError` if the data set lacks one."""
    there: Mapping[str, Tensor] = getattr(given, kind)
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError("solver", key=missing[0], found=f"{kind} {sorted(there)}", expected=", ".join(names),
                         fix="choose the solver of the data set's builder")
    return [there[name] for name in names]


def unit_square(given: Given) -> None:
    """Raises `InputError` unless the periods are 1."""
    if any(abs(period - 1.0) > 1e-6 for period in given.periods):
        raise InputError("solver", key="period", found=given.periods, expected="the unit square",
                         fix="choose the solver of the data set's builder")
