"""What builders of fields have in common: draws in blocks, axes, and the canonical data set that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import dask
import dask.array as da
import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from sciml.recipe import Section

PERIODIC, OPEN, WALL, DIRICHLET, NEUMANN = 2, 1, 0, 3, 4
"""Codes of the role boundary: one per trajectory and end of an axis. A wall is without slip or flux."""
BOUNDARIES = {"wall": WALL, "open": OPEN, "periodic": PERIODIC, "dirichlet": DIRICHLET, "neumann": NEUMANN}

Variables = Mapping[str, tuple[tuple[str, ...], Any, dict[str, Any]]]


class Draws(Section):
    """Independent draws, each a pure function of (seed, its number), saved on `resolution` cells per side.

    solve_resolution: of the solver (default: the same), from which what is saved is filtered down. block: how many
    are solved together, in one dask task.
    """

    trajectories: int = Field(default=16, ge=1)
    resolution: int = Field(default=64, ge=8, multiple_of=2)
    solve_resolution: int | None = Field(default=None, ge=8, multiple_of=2)
    seed: int = Field(default=0, ge=0)
    block: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _fine_enough(self) -> Draws:
        if self.grid < self.resolution:
            raise ValueError("solve_resolution must not be below resolution")
        return self

    @property
    def grid(self) -> int:
        return self.solve_resolution or self.resolution


def check_whole_cells(options: Draws) -> None:
    """Raises ValueError unless a saved cell is a whole number of the solver's: what is saved are means of them."""
    if options.grid % options.resolution:
        raise ValueError("solve_resolution must be a multiple of resolution")


D = TypeVar("D", bound=Draws)
Task = Callable[[D, int, int], Mapping[str, np.ndarray]]


def lazy(task: Task[D], options: D, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, da.Array]:
    """``task(options, start, stop)`` of every block of trajectories as float32 dask arrays ``(trajectories, *shape)``,
    one for each name in `shapes`; the arrays of a block come from one run of `task`, which can be run again alone."""
    run = dask.delayed(_run, pure=True)
    given, step, count = options.model_dump(), options.block, options.trajectories
    bounds = [(start, min(start + step, count)) for start in range(0, count, step)]
    blocks = [run(task, type(options), given, start, stop) for start, stop in bounds]
    return {name: da.concatenate([da.from_delayed(block[name], (stop - start, *shape), np.float32)
                                  for block, (start, stop) in zip(blocks, bounds, strict=True)])
            for name, shape in shapes.items()}


def _run(task: Task[D], kind: type[D], given: dict[str, Any], start: int, stop: int) -> dict[str, np.ndarray]:
    made = task(kind.model_validate(given), start, stop)
    for name, values in made.items():
        if not np.isfinite(values).all():
            raise FloatingPointError(f"{name} isn't finite in trajectories {start} to {stop - 1}")
    return {name: values.astype(np.float32) for name, values in made.items()}


def canonical(variables: Variables, space: Mapping[str, tuple[np.ndarray, dict[str, Any]]],
              times: tuple[np.ndarray, str] | None) -> xr.Dataset:
    """The data set of a builder of fields. variables: name → dims after ``trajectory``, values, attributes; space: axis
    → coordinate and its attributes; times: frames and their unit, None if steady."""
    coords: dict[str, Any] = {name: (name, values, dict(attrs)) for name, (values, attrs) in space.items()}
    if times is not None:
        coords["time"] = ("time", times[0], {"units": times[1]})
    return xr.Dataset({name: (("trajectory", *dims), values, attrs) for name, (dims, values, attrs)
                       in variables.items()}, coords, {"domain": "fields", "group_dim": "trajectory"})


def axis(cells: int, length: float, unit: str, *, periodic: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """A coordinate and its attributes: point i at ``i · length / cells`` of a period, else the middle of cell i.

    >>> axis(4, 2.0, "m", periodic=True)
    (array([0. , 0.5, 1. , 1.5]), {'units': 'm', 'period': 2.0})
    >>> axis(4, 2.0, "m", periodic=False)[0].tolist()
    [0.25, 0.75, 1.25, 1.75]
    """
    if periodic:
        return np.arange(cells) * length / cells, {"units": unit, "period": length}
    return (np.arange(cells) + 0.5) * length / cells, {"units": unit}


def boundaries(axis_name: str, low: str, high: str, trajectories: int) -> Variables:
    """The codes of both ends of an axis, by the names in `BOUNDARIES`; of a periodic axis, none."""
    if "periodic" in (low, high):
        return {}
    return {f"boundary_{axis_name}_{end}": ((), np.full(trajectories, BOUNDARIES[kind], np.int8), {
        "units": "1", "role": "boundary", "long_name": f"boundary at the {end} end of {axis_name}"})
        for end, kind in (("low", low), ("high", high))}


def state(unit: str, long_name: str) -> dict[str, Any]:
    """Attributes of a variable that is predicted."""
    return {"units": unit, "long_name": long_name, "role": "state"}


def parameter(values: np.ndarray, unit: str, long_name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """A variable with one number for each trajectory."""
    return (), values, {"units": unit, "long_name": long_name, "role": "parameter"}


def cycled(values: float | Sequence[float], start: int, stop: int) -> np.ndarray:
    """Entry ``i % n`` of a list for each trajectory i, float64.

    >>> cycled((1.0, 2.0), 1, 4).tolist()
    [2.0, 1.0, 2.0]
    """
    listed = np.atleast_1d(np.asarray(values, np.float64))
    return listed[np.arange(start, stop) % len(listed)]


def cell_means(field: np.ndarray, resolution: int) -> np.ndarray:
    """Means over the cells of a coarser grid of fields ``(…, n, n)``; n is a multiple of `resolution`."""
    factor = field.shape[-1] // resolution
    shape = (*field.shape[:-2], resolution, factor, resolution, factor)
    means: np.ndarray = field.reshape(shape).mean(axis=(-3, -1))
    return means
