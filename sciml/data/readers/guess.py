"""What a file seems to be, what it lacks and what looks wrong, found from a bounded part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data import rhythm
from sciml.data.conventions import convention_of
from sciml.data.ragged import dims_of

if TYPE_CHECKING:
    import xarray as xr

SAMPLE_BYTES = 16 << 20
UNIFORM = 1e-3


@dataclass(frozen=True)
class VariableGuess:
    """One variable as the reader names it; `dims` and `shape` include the group dimension, unit None if not stated."""

    name: str
    role: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    unit: str | None


@dataclass(frozen=True)
class AxisGuess:
    """One dimension: kind as in `sciml.data.schema.AxisMeta`, or ragged; step None where it is not uniform."""

    kind: str
    size: int
    unit: str | None
    period: float | None = None
    first: str = ""
    last: str = ""
    step: float | None = None
    labels: tuple[str, ...] = ()
    label_units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guess:
    """What `sniff` and `recognise` return. missing: what the user has to add; suspicious: what to look at."""

    path: str
    format: str
    domain: str
    group_dim: str
    axes: Mapping[str, AxisGuess]
    variables: tuple[VariableGuess, ...]
    missing: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def unit_known(self, variable: VariableGuess) -> bool:
        """Whether a variable has a unit, or its members have (what those lack is listed by member)."""
        return bool(variable.unit) or any(self.axes[dim].label_units for dim in variable.dims)

    @property
    def dims(self) -> dict[str, int]:
        """Dimension → size."""
        return {name: axis.size for name, axis in self.axes.items()}

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (what, name, details) to print."""
        rows = [("format", self.format, f"domain {self.domain}, one group per {self.group_dim}")]
        rows += [("axis", name, _axis_text(axis)) for name, axis in self.axes.items()]
        rows += [("variable", v.name, f"{v.role}, {_shape_text(v)}, {v.dtype}, unit {v.unit or '?'}")
                 for v in self.variables]
        for what, texts in (("missing", self.missing), ("suspicious", self.suspicious), ("note", self.notes)):
            rows += [(what, "", text) for text in texts]
        return rows

    def json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**asdict(self), "dims": self.dims}

    def source_yaml(self, name: str = "my_data") -> str:
        """A starter source.yaml; what has to be filled in is marked ``FILL IN``."""
        from sciml.data.readers._starter import starter

        return starter(self, name)


def _axis_text(axis: AxisGuess) -> str:
    if axis.kind == "ragged":
        return f"ragged, {axis.size} rows in all"
    span = f", {axis.first} … {axis.last}" if axis.first else ""
    step = f" step {axis.step:g}" if axis.step is not None else ""
    period = f", period {axis.period:g}" if axis.period is not None else ""
    return f"{axis.kind}, {axis.size}{span}{step}, unit {axis.unit or '?'}{period}"


def _shape_text(variable: VariableGuess) -> str:
    return " × ".join(f"{dim} {n}" for dim, n in zip(variable.dims, variable.shape))


def guess(dataset: xr.Dataset, path: str, *, options: Mapping[str, Any] | None = None,
          limit_bytes: int = SAMPLE_BYTES) -> Guess:
    """A `Guess` from what a reader returned: metadata and coordinates in full, values from at most `limit_bytes`."""
    domain, group_dim = dataset.attrs["domain"], dataset.attrs["group_dim"]
    ragged = dims_of(dataset)
    axes = {str(dim): AxisGuess("ragged", dataset.sizes[dim], None) if dim in ragged else _axis(dataset, str(dim))
            for dim in dataset.sizes}
    variables = tuple(VariableGuess(str(name), v.attrs["role"], tuple(map(str, v.dims)), v.shape, str(v.dtype),
                                    v.attrs.get("units")) for name, v in dataset.data_vars.items())
    suspicious = [*dataset.attrs.get("suspicious", ()), *_look_at_axes(dataset, group_dim),
                  *_look_at_values(dataset, limit_bytes)]
    return Guess(path, dataset.attrs["format"], domain, group_dim, axes, variables,
                 (*dataset.attrs.get("missing", ()), *_missing(dataset, variables, axes, group_dim)),
                 tuple(suspicious), tuple(dataset.attrs.get("notes", ())), dict(options or {}))


def _axis(dataset: xr.Dataset, dim: str) -> AxisGuess:
    size = dataset.sizes[dim]
    if dim not in dataset.coords:
        return AxisGuess("set", size, "1")
    coord = dataset.coords[dim]
    if f"{dim}_unit" in dataset.coords:
        return AxisGuess("set", size, "1", labels=tuple(map(str, coord.values)),
                         label_units=tuple(map(str, dataset[f"{dim}_unit"].values)))
    kind = coord.attrs.get("kind", "set")
    values = coord.values
    first, last = (str(values[0]), str(values[-1])) if size else ("", "")
    step = None
    if size > 1 and values.dtype.kind in "fiuM":
        gaps = numbers(values)
        gaps = np.diff(gaps)
        if is_uniform(gaps, values):
            step = float(np.median(gaps))
    unit = "s" if values.dtype.kind == "M" else coord.attrs.get("units")
    return AxisGuess(kind, size, unit if kind != "set" else unit or "1", coord.attrs.get("period"), first, last, step)


def numbers(values: np.ndarray) -> np.ndarray:
    """Coordinates as float64, dates as seconds."""
    if values.dtype.kind == "M":
        return values.astype("datetime64[ns]").astype(np.int64) / 1e9
    return values.astype(np.float64)


def is_uniform(gaps: np.ndarray, values: np.ndarray) -> bool:
    """All gaps equal within a thousandth, or within what the coordinate's own precision resolves."""
    if not len(gaps):
        return True
    step = float(np.median(gaps))
    resolution = float(np.finfo(values.dtype).eps * np.abs(values).max() * 4) if values.dtype.kind == "f" else 0.0
    return bool(step != 0 and np.all(np.abs(gaps - step) <= max(UNIFORM * abs(step), resolution)))


def _missing(dataset: xr.Dataset, variables: tuple[VariableGuess, ...], axes: Mapping[str, AxisGuess],
             group_dim: str) -> Iterator[str]:
    own = any(v.attrs["role"] == "event" for v in dataset.data_vars.values())
    steady = dataset.attrs.get("steady", False)
    if "time" not in axes and not own and not steady and convention_of(dataset.attrs["domain"]).timed:
        yield "time axis: none found"
    for name, axis in axes.items():
        if name == group_dim or axis.kind in ("set", "ragged"):
            continue
        if axis.unit is None:
            yield f"unit of axis {name}"
        if axis.kind == "space" and axis.period is None and "bounded" not in dataset[name].attrs:
            yield f"periodicity of axis {name}: give its period if it wraps around, else options.boundaries"
    for dim in ("variate", "covariate", "static"):
        if f"{dim}_unit" in dataset.coords:
            for label, unit in zip(dataset[dim].values, dataset[f"{dim}_unit"].values):
                if not unit:
                    yield f"unit of {dim} {label}"
    for variable in variables:
        if variable.unit is None and not any(axes[dim].label_units for dim in variable.dims):
            yield f"unit of variable {variable.name}"


def _look_at_axes(dataset: xr.Dataset, group_dim: str) -> Iterator[str]:
    for dim in dataset.sizes:
        coord = dataset.coords.get(dim)
        if dim == group_dim or coord is None or coord.dtype.kind not in "fiuM" or coord.size < 2:
            continue
        values = numbers(coord.values)
        if not np.isfinite(values).all():
            yield f"axis {dim}: {int((~np.isfinite(values)).sum())} coordinates are not finite"
            continue
        gaps = np.diff(values)
        wrong = np.flatnonzero(gaps <= 0)
        if (gaps < 0).all():
            yield f"axis {dim} is reversed (descending)"
        elif len(wrong):
            at = int(wrong[0]) + 1
            yield f"axis {dim} is not monotonic: {coord.values[at]} at index {at} after {coord.values[at - 1]}"
        elif not is_uniform(gaps, coord.values) and not rhythm.calendar(coord.values):
            at = int(np.argmax(np.abs(gaps - np.median(gaps)))) + 1
            yield f"axis {dim} is not uniform: step {gaps[at - 1]:g} before index {at}, median step {np.median(gaps):g}"


def _look_at_values(dataset: xr.Dataset, limit_bytes: int) -> Iterator[str]:
    variables = dataset.data_vars
    share = limit_bytes // max(len(variables), 1)
    for name, variable in variables.items():
        sample = _sample(variable, share)
        if not sample.size or sample.dtype.kind != "f":
            continue
        part = "all" if sample.size == variable.size else f"{sample.size} of {variable.size}"
        for what, count in (("NaN", np.isnan(sample).sum()), ("Inf", np.isinf(sample).sum())):
            if count:
                yield f"{name}: {int(count)} {what} in {part} values"
        fill = variable.attrs.get("fill")
        if fill is not None and np.isnan(sample).any():
            yield f"{name}: NaN include values at the declared fill {fill}"
        yield from _constant(dataset, str(name), sample)


def _constant(dataset: xr.Dataset, name: str, sample: np.ndarray) -> Iterator[str]:
    variable = dataset[name]
    if variable.attrs["role"] not in ("state", "covariate", "label") or sample.size < 2:
        return
    if "variate" in variable.dims:
        for label, column in zip(dataset["variate"].values, np.moveaxis(sample, -1, 0)):
            if np.isfinite(column).any() and np.nanmin(column) == np.nanmax(column):
                yield f"{name}/{label} is constant in the part examined ({np.nanmax(column):g})"
    elif np.isfinite(sample).any() and np.nanmin(sample) == np.nanmax(sample):
        yield f"{name} is constant in the part examined ({np.nanmax(sample):g})"


def _sample(variable: xr.DataArray, limit_bytes: int) -> np.ndarray:
    """At most `limit_bytes` of values: whole frames of the first and last groups, else a corner of one."""
    picked = variable
    for dim in variable.dims:
        if picked.nbytes <= limit_bytes:
            break
        size = picked.sizes[dim]
        keep = max(1, min(size, int(size * limit_bytes // picked.nbytes)))
        index = np.unique(np.linspace(0, size - 1, keep).astype(int)) if keep > 1 and dim != variable.dims[-1] else \
            slice(0, keep)
        picked = picked.isel({dim: index})
    return np.asarray(picked.values)
