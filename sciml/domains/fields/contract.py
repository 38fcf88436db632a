"""What the adapter learns of a store, and whether a sample keeps to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from sciml.data import units
from sciml.data.schema import Moments, StoreMeta, Variable
from sciml.data.store import Store
from sciml.domains.fields import mesh
from sciml.domains.fields.config import Contract, GridAxis, Leads, Scaling, allowed, described, shortest
from sciml.errors import InputError

Contracts = Mapping[str, Contract]


@cache
def factor(have: str, want: str) -> float | None:
    """What a number in `have` is multiplied by to be in `want`; None if no factor converts them.

    >>> round(factor("mm2 s-1", "m2/s"), 9)
    1e-06
    """
    if have == want:
        return 1.0
    parsed = [units.parse(unit, where="unit", key=unit) for unit in (have, want)]
    if not parsed[0].is_compatible_with(parsed[1]):
        return None
    zero, one = (float(units.registry().Quantity(x, parsed[0]).to(parsed[1]).magnitude) for x in (0.0, 1.0))
    return None if zero != 0 else one


def learn(store: Store, known: Contracts) -> Contract:
    """The contract of a store's data set: its own statistics, the known ones for variables that are known.

    Raises `InputError` if it is neither a uniform trajectory on a grid nor steady with something that its states follow
    from, or if a known name has a unit that doesn't convert.
    """
    meta, dims = store.meta, layout(store)
    axes = tuple(mesh.axis_of(store, name) for name in dims)
    if axes[0].places:
        side, spacing = mesh.extent(store, axes[0])
    else:
        place = store.coord(axes[0].name).astype(np.float64)
        spacing = float(np.mean(np.diff(place))) if len(place) > 1 else axes[0].period or 1.0
        side = spacing * len(place)
    steady, clock = meta.dt is None, meta.axes.get("time")
    dt, time_unit = meta.dt or 1.0, "1" if steady or clock is None else clock.unit
    length, time = _references(known, axes[0], side, time_unit, dt, steady)
    parameters = [n for role in ("parameter", "boundary") for n in meta.of_role(role)]

    def scalings(kind: str, names: Sequence[str]) -> dict[str, Scaling]:
        return {n: _scaling(store, known, kind, n, meta.variables[n], meta.moments[n]) for n in names}

    return Contract(axes=axes, dt=dt, time_unit=time_unit, length=length, time=time, spacing=spacing, steady=steady,
                    states=scalings("states", meta.of_role("state")),
                    forcings=scalings("forcings", given_cells(meta)),
                    parameters=scalings("parameters", parameters), masks=meta.of_role("mask"),
                    varying=tuple(name for name in given_cells(meta) if meta.evolves(name)))


def given_cells(meta: StoreMeta) -> tuple[str, ...]:
    """What is known of every cell: variables with the role of a forcing or covariate."""
    return *meta.of_role("forcing"), *meta.of_role("covariate")


def layout(store: Store) -> tuple[str, ...]:
    """The axes of space that a store's states are on. Raises `InputError` if they differ, or if there is neither a
    uniform time nor (steady) anything else than states."""
    meta = store.meta
    states, timed = meta.of_role("state"), "time" in meta.axes
    given = [n for role in ("forcing", "covariate", "parameter", "boundary", "mask") for n in meta.of_role(role)]
    if meta.domain != "fields" or not states or (meta.dt is None if timed else not given):
        raise InputError(store.url, key="dt", found=f"{meta.domain}, dt {meta.dt}, states {list(states)}, {given}",
                         expected="fields: states on a uniform time axis, or without time and what they follow from",
                         fix="resample in time (or drop a time axis of one time), give roles in source.yaml")
    dims = meta.variables[states[0]].dims
    for name in states:
        own = meta.variables[name].dims
        space = own[1:] if timed else own
        placed = len(space) == 1 and bool(meta.axes[space[0]].places)
        if own != dims or timed != (own[:1] == ("time",)) or not space or not (
                placed or all(meta.axes[d].kind == "space" for d in space)):
            raise InputError(store.url, key=name, found=f"dimensions {own}",
                             expected=f"({'time, ' * timed}space…) or ({'time, ' * timed}points with places), {dims}",
                             fix="split it into one variable per component on the common grid, in source.yaml")
    return dims[1:] if timed else dims


def _references(known: Contracts, axis: GridAxis, extent: float, time_unit: str, dt: float,
                steady: bool) -> tuple[float, float]:
    """Reference length and time in the data set's own units: the first data set's if its units convert. The time is
    the first one's that has any; a steady one is a reference time ahead."""
    length, time = axis.period or extent, dt
    for first in list(known.values())[:1]:
        space = factor(first.axes[0].unit, axis.unit)
        length = length if space is None else first.length * space
    for first in [contract for contract in known.values() if not contract.steady and not steady][:1]:
        clock = factor(first.time_unit, time_unit)
        time = time if clock is None else first.time * clock
    return length, time


def _scaling(store: Store, known: Contracts, kind: str, name: str, variable: Variable, own: Moments) -> Scaling:
    for contract in known.values():
        old: Scaling | None = getattr(contract, kind).get(name)
        if old is not None:
            ratio = _convert(store.url, name, old.unit, variable.unit)
            own_terms = {"unit": variable.unit, "vector": variable.vector, "along": variable.along}
            if old.transform == "log10":
                return old.model_copy(update={**own_terms, "center": old.center + math.log10(ratio)})
            return old.model_copy(update={**own_terms, "center": old.center * ratio, "scale": old.scale * ratio})
    common: dict[str, Any] = {"unit": variable.unit, "long_name": variable.long_name, "vector": variable.vector,
                              "along": variable.along}
    if kind == "parameters" and own.minimum > 0:
        return Scaling(center=math.log10(own.mean), transform="log10", **common)
    return Scaling(center=own.mean, scale=own.std if own.std > 0 else 1.0, **common)


def _convert(where: object, name: str, have: str, want: str) -> float:
    ratio = factor(have, want)
    if ratio is None:
        raise InputError(where, key=name, found=f"unit {want!r}", expected=f"a unit that converts to {have!r}",
                         fix="correct the unit, or rename the variable if it is another quantity")
    return ratio


def curves(store: Store, contract: Contract) -> dict[str, np.ndarray]:
    """Variable → ``(2, n)`` lead times and residual scales; a state that never changes gets 1e-6 of its deviation."""
    result = {}
    for name, scaling in contract.states.items():
        tendency = store.meta.tendency.get(name)
        if tendency is None or not tendency.lead:
            raise InputError(store.url, key=name, found="no tendency statistics", expected="at least two times",
                             fix="build the store anew from trajectories of two or more frames")
        lead = np.asarray(tendency.lead, np.float64) * contract.dt
        result[name] = np.stack([lead, np.maximum(tendency.std, 1e-6 * scaling.scale)])
    return result


def resolve(contracts: Contracts, sample: xr.Dataset) -> str:
    """The data set whose contract a sample is under: its own, else the first that knows all its variables."""
    named = sample.attrs.get("dataset")
    names = {str(name) for name in sample.data_vars}
    known = {d: [*c.states, *c.forcings, *c.parameters, *c.masks] for d, c in contracts.items()}
    for dataset in [str(named)] if named in contracts else contracts:
        if names <= set(known[dataset]):
            return dataset
    raise InputError(_where(sample), key="variables", found=f"{sorted(names)} of data set {named!r}",
                     expected=f"variables of one of {known}",
                     fix="fine-tune on a store of these data (sciml finetune CHECKPOINT --data STORE), or rename them")


def lead_time(contract: Contract, sample: xr.Dataset, leads: Leads, any_dt: bool) -> float:
    """From the first to the second time of a sample, or its attribute ``lead_time``, or the shortest lead in its dt; in
    the contract's unit of time. One reference time where there is no time."""
    if contract.steady:
        return contract.time
    where = _where(sample)
    clock = sample.variables.get("time")
    times = np.zeros(1) if clock is None else np.atleast_1d(clock.values)
    if not np.issubdtype(times.dtype, np.number):
        raise InputError(where, key="time", found=f"type {times.dtype}", expected="numbers with units",
                         fix="store time since the start, as numbers in the unit of the attribute `units`")
    unit = contract.time_unit if clock is None else str(clock.attrs.get("units", contract.time_unit))
    ratio = _convert(where, "time", unit, contract.time_unit)
    dt = float(sample.attrs["dt"]) * ratio if "dt" in sample.attrs else contract.dt
    lead = float(sample.attrs["lead_time"]) * ratio if "lead_time" in sample.attrs else dt * shortest(leads)
    lead = float(times[1] - times[0]) * ratio if len(times) > 1 else lead
    if lead <= 0:
        raise InputError(where, key="time", found=times[:3].tolist(), expected="ascending times", fix="sort by time")
    if not any_dt:
        check_lead(contract, lead, leads, where)
    return lead


def check_lead(contract: Contract, lead: float, leads: Leads, where: object) -> None:
    """Raises `InputError` for a lead, in the contract's unit of time, that wasn't trained."""
    steps = lead / contract.dt
    nearest = min(leads, key=lambda n: abs(steps - n)) if isinstance(leads, tuple) else max(round(steps), 1)
    if abs(steps - nearest) > 1e-3 * max(steps, 1) or not allowed(leads, nearest):
        raise InputError(where, key="time", found=f"a lead of {lead:g} {contract.time_unit}",
                         expected=f"{described(leads)} of {contract.dt:g} {contract.time_unit}",
                         fix="resample in time, train with that lead (domains.fields.leads), or set any_dt: true")


def whole_steps(lead: float, dt: float) -> float:
    """`lead`, or the whole number of steps that it is up to the precision of a float32."""
    steps = round(lead / dt)
    return steps * dt if steps and abs(lead / dt - steps) < 1e-5 * steps else lead


def check_grid(contract: Contract, sample: xr.Dataset) -> None:
    """Axes by name, unit and periodicity, ascending coordinates; sizes are free. Raises `InputError`."""
    where = _where(sample)
    for axis in contract.axes:
        if axis.places:
            continue  # `mesh.points` reads them
        coord = sample.variables.get(axis.name)
        if coord is None or axis.name not in sample.coords:
            raise InputError(where, key=axis.name, found=f"coordinates {[str(c) for c in sample.coords]}",
                             expected=f"axes {list(contract.names)}", fix="name the axes as the checkpoint does")
        period = coord.attrs.get("period")
        found = GridAxis(name=axis.name, unit=coord.attrs.get("units", axis.unit), period=period)
        if found.kind != axis.kind:
            raise InputError(where, key=axis.name, found=f"unit {found.unit!r}, period {period}",
                             expected=f"unit {axis.unit!r}, {'not periodic' if axis.period is None else 'periodic'}",
                             fix="set the attributes `units` and `period`, or fine-tune on a store of this grid")
        if coord.size > 1 and not bool(np.all(np.diff(coord.values) > 0)):
            raise InputError(where, key=axis.name, found="values that don't ascend", expected="ascending coordinates",
                             fix=f"sample.sortby({axis.name!r})")


def read(contract: Contract, sample: xr.Dataset, kind: str) -> dict[str, np.ndarray]:
    """The sample's variables of a kind (``states``, ``forcings``, ``parameters``), float64 in the contract's units.

    States ``(1 or 2, *space)``, the first times; forcings ``(time?, *space)``; parameters numbers. Raises `InputError`
    if one is missing or has other dimensions.
    """
    where, result = _where(sample), {}
    for name, scaling in getattr(contract, kind).items():
        if name not in sample and kind == "states" and contract.steady:
            sizes = (sample.sizes[axis] for axis in contract.names)
            result[name] = np.full((1, *sizes), np.nan)  # what is asked for
            continue
        if name not in sample:
            raise InputError(where, key=name, found=f"variables {[str(v) for v in sample.data_vars]}",
                             expected=f"{kind[:-1]} {name!r} [{scaling.unit}]", fix="add it, on the same grid")
        array: xr.Variable = sample.variables[name]
        if kind == "states":
            array = array.isel(time=slice(2)) if "time" in array.dims else array.set_dims({"time": 1, **array.sizes})
        wanted = () if kind == "parameters" else (*(("time",) if "time" in array.dims else ()), *contract.names)
        if set(array.dims) != set(wanted):
            raise InputError(where, key=name, found=f"dimensions {array.dims}", expected=f"{wanted}",
                             fix="select one trajectory, and name dimensions as the checkpoint does")
        unit = str(array.attrs.get("units", scaling.unit))
        ratio = _convert(where, name, unit, scaling.unit)
        values = np.asarray(array.values if array.dims == wanted else array.transpose(*wanted).values, np.float64)
        result[name] = values if ratio == 1.0 else values * ratio
    return result


def interior(contract: Contract, sample: xr.Dataset) -> np.ndarray:
    """True where every mask of the data set says that a cell is inside, ``(*space)``."""
    inside = np.ones([sample.sizes[name] for name in contract.names], dtype=bool)
    for name in contract.masks:
        if name not in sample:
            raise InputError(_where(sample), key=name, found="no such variable", expected="the mask of the data set",
                             fix="add it: 1 inside, 0 outside")
        inside &= sample.variables[name].transpose(*contract.names).values > 0
    return inside


def normalise(values: np.ndarray, scaling: Scaling, *, name: str, sample: xr.Dataset,
              needed: bool = True) -> np.ndarray:
    """``(transform(x) − center) / scale``; if `needed`, raises `InputError` on what isn't finite, or has no log."""
    log = scaling.transform == "log10"
    bad = ~np.isfinite(values) | (values <= 0 if log else False)
    if needed and bad.any():
        raise InputError(_where(sample), key=name, found=f"{values[bad].flat[0]:g} ({int(bad.sum())} such values)",
                         expected="positive numbers" if log else "finite numbers", fix="correct or drop the sample")
    return ((np.log10(values) if log else values) - scaling.center) / scaling.scale


def _where(sample: xr.Dataset) -> str:
    return str(sample.attrs.get("source", "sample"))
