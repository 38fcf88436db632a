"""The data sets of Poseidon (PDEgym; Herde et al. 2024, arXiv 2405.19101), as they lie on the hub or assembled.

A file has no coordinates, channel names or times: they are those of its family, which ``options: {family: NS-Sines}``
names, or else the file's or one of its folders' name. Chunks (``velocity_0.nc … velocity_13.nc``) are one data set, in
numeric order: the paper's last trajectories are its test set. Everything is nondimensional. Arrays are (trajectory,
time, channel, x, y) in HDF5 or NetCDF-4; steady families have no time; Helmholtz has a group per sample. Where the
sources disagree on the time between frames (Wave-*) frames are counted, unless ``dt`` gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.files import head
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, limits_of, open_hdf5
from sciml.errors import InputError

GROUP, PLANE = "trajectory", ("x", "y")
FLOW = ("density", "velocity_x", "velocity_y", "pressure")


@dataclass(frozen=True)
class Family:
    """How the files of one equation and distribution are laid out.

    array: its rank and `channels` (of which files may lack the last) tell the layout. step: time between frames, None
    where sources disagree. given: array → variable of what is known beside it. still: channels that are known and
    don't change. transposed: arrays are (…, y, x)."""

    array: str
    channels: tuple[str, ...]
    step: float | None = 0.05
    edge: str = "periodic"
    extent: tuple[float, float] = (0.0, 1.0)
    steady: bool = False
    given: Mapping[str, str] | None = None
    still: tuple[str, ...] = ()
    transposed: bool = False

    @property
    def rank(self) -> int:
        return 3 + (not self.steady) + (len(self.channels) > 1)


_FLUID = Family("velocity", ("velocity_x", "velocity_y", "tracer"))
_GAS = Family("data", (*FLOW, "energy"))
_WAVE = Family("solution", ("displacement",), step=None, edge="open", given={"c": "wave_speed"})
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("NS-Sines", "NS-Gauss", "NS-PwC", "NS-SVS", "NS-BB"), _FLUID),
    "NS-SL": Family("velocity", ("velocity_x", "velocity_y"), transposed=True),
    "FNS-KF": Family("solution", ("velocity_x", "velocity_y")),
    **dict.fromkeys(("CE-RP", "CE-CRP", "CE-KH", "CE-Gauss", "CE-RPUI"), _GAS),
    "CE-RM": Family("solution", (*FLOW, "tracer"), step=0.1),
    "GCE-RT": Family("solution", (*FLOW, "tracer", "potential"), step=0.5, extent=(-0.5, 0.5), still=("potential",)),
    "Wave-Layer": _WAVE, "Wave-Gauss": _WAVE,
    "ACE": Family("solution", ("concentration",), step=2e-4 / 19),
    "SE-AF": Family("solution", ("airfoil", "density"), edge="open", extent=(-0.75, 1.75), steady=True,
                    still=("airfoil",)),
    "Poisson-Gauss": Family("solution", ("solution",), edge="dirichlet", steady=True, given={"source": "source"}),
    "Helmholtz": Family("u", ("solution",), edge="dirichlet", steady=True, given={"a": "medium"})}
NOTES = {"FNS-KF": "forced by 0.1 sin(2π(x + y)), which is in no file",
         "GCE-RT": "the potential doesn't change: the first frame's is the forcing"}


@dataclass(frozen=True)
class Poseidon:
    """Reads Poseidon's files; one trajectory (or sample of a steady problem) is one group."""

    options: frozenset[str] = frozenset({"family", "dt"})

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if head(path, 8) != HDF5_MAGIC:
            return None
        with open_hdf5(path) as file:
            fitting = [name for name, family in FAMILIES.items() if _fits(file, family)]
        told = _in_path(path)
        plain = fitting == ["ACE"]
        if not fitting or (told not in fitting and plain):
            return None
        options = {"family": told if told in fitting else None}
        found = self.read([path], None) if told in fitting else _read(path, {"family": fitting[0]}, "")
        if told not in fitting:
            found.attrs["missing"] = (f"family: files don't name it; one of {', '.join(fitting)}",
                                      *found.attrs["missing"])
        return guess(found, path, options=options, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """State ``(trajectory, time, x, y)``, or ``(trajectory, x, y)`` if steady, forcings, boundary codes, lazily."""
        ordered = sorted(map(str, paths), key=_numeric)
        where = "" if source is None else source.name
        return combine([_read(path, options_of(source), where) for path in ordered], ordered, source)


PLUGIN = Poseidon()


def _numeric(path: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _in_path(path: str) -> str | None:
    """The family that the file, or the nearest folder, is named after."""
    for part in reversed(PurePath(path).parts):
        named = [name for name in FAMILIES if re.search(rf"(?<![A-Za-z0-9]){name}(?![A-Za-z0-9])", part, re.IGNORECASE)]
        if named:
            return max(named, key=len)
    return None


def _shape(file: Any, name: str) -> tuple[int, ...]:
    import h5py

    item = file.get(name)
    return tuple(item.shape) if isinstance(item, h5py.Dataset) and item.shape is not None else ()


def _samples(file: Any) -> list[str]:
    return sorted((name for name in file if re.fullmatch(r"Sample_\d+", name)), key=_numeric)


def _fits(file: Any, family: Family) -> bool:
    if family.array == "u":
        samples = _samples(file)
        return bool(samples) and {"a", "bc", "u"} <= set(file[samples[0]])
    shape, count = _shape(file, family.array), len(family.channels)
    some = range(min(2, count), count + 1) if family.array == "velocity" else range(count, count + 1)
    given = all(len(_shape(file, name)) == 3 for name in family.given or ())
    return len(shape) == family.rank and given and (count == 1 or shape[-3] in some)


def _read(path: str, options: Mapping[str, Any], where: str) -> xr.Dataset:
    told = options.get("family") or _in_path(path)
    if told not in FAMILIES:
        raise InputError(where or path, key="options.family", found="none, and none in the path" if told is None else
                         repr(told), expected=f"one of {', '.join(FAMILIES)}", fix="options: {family: NS-Sines}")
    family = FAMILIES[told]
    with open_hdf5(path, limits_of(options, path)) as file:
        if not _fits(file, family):
            have = ", ".join(f"{name} {_shape(file, name)}" for name in list(file)[:6])
            raise InputError(path, key=family.array, found=have or "nothing", expected=f"{family.array} of rank "
                             f"{family.rank}{', ' if family.given else ''}{', '.join(family.given or ())}, as {told} "
                             "has", fix="correct options.family, or copy the file again")
        if family.array == "u":
            variables, shape = _helmholtz(path, file)
        else:
            variables, shape = dict(_arrays(path, file, family)), _shape(file, family.array)
    side = (shape[-1], shape[-2]) if family.transposed else shape[-2:]
    coords = {GROUP: lattice.coordinate(GROUP, np.arange(shape[0]), "set")}
    coords |= {axis: _points(axis, n, family) for axis, n in zip(PLANE, side)}
    missing = []
    if not family.steady:
        step = options.get("dt", family.step)
        if step is None:
            missing.append("options.dt: the time between frames, on which the sources disagree; frames are counted")
        times = np.arange(shape[1]) * (1.0 if step is None else _positive(step, where or path))
        coords["time"] = lattice.coordinate("time", times, "time", "1")
    if family.edge != "periodic":
        for axis in PLANE:
            variables |= lattice.edge_codes(axis, (family.edge, family.edge), GROUP, shape[0])
    found = lattice.canonical(variables, coords, domain="fields", format="poseidon", group_dim=GROUP, missing=missing,
                              notes=[f"Poseidon family {told}", *([NOTES[told]] if told in NOTES else [])])
    return found.assign_attrs(steady=family.steady)


def _positive(step: Any, where: str) -> float:
    if not isinstance(step, int | float) or not step > 0:
        raise InputError(where, key="options.dt", found=repr(step), expected="a number above 0", fix="correct it")
    return float(step)


def _points(axis: str, n: int, family: Family) -> xr.Variable:
    """Points i·L/n of a periodic axis, cell centres of another."""
    low, high = family.extent
    wraps = family.edge == "periodic"
    values = low + (high - low) * (np.arange(n) + (0.0 if wraps else 0.5)) / n
    extra = {} if wraps else {"bounded": family.edge}
    return lattice.coordinate(axis, values, "space", "1", period=high - low if wraps else None, **extra)


def _arrays(path: str, file: Any, family: Family) -> Iterator[tuple[str, xr.Variable]]:
    item = file[family.array]
    array = lattice.lazy(lattice.h5_array(path, item), where=path, key=family.array)
    dims = (GROUP, *(() if family.steady else ("time",)), *PLANE)
    for i, name in enumerate(family.channels[: item.shape[-3]] if len(family.channels) > 1 else family.channels):
        values = array[..., i, :, :] if len(family.channels) > 1 else array
        values = da.swapaxes(values, -1, -2) if family.transposed else values
        extra = {"vector": "velocity", "along": name[-1]} if name.startswith("velocity_") else {}
        if name not in family.still:
            yield name, lattice.variable(dims, values, "state", "1", **extra)
            continue
        still = values if family.steady else values[:, 0]
        yield name, lattice.variable((GROUP, *PLANE), still, "forcing", "1")
        if name == "airfoil":
            yield "mask", lattice.variable((GROUP, *PLANE), (still != 1).astype(still.dtype), "mask", "1")
    for key, name in (family.given or {}).items():
        if file[key].shape != (item.shape[0], *item.shape[-2:]):
            raise InputError(path, key=key, found=f"shape {file[key].shape} beside {family.array} {item.shape}",
                             expected=f"{(item.shape[0], *item.shape[-2:])}", fix="copy the file again")
        known = lattice.lazy(lattice.h5_array(path, file[key]), where=path, key=key)
        yield name, lattice.variable((GROUP, *PLANE), known, "forcing", "1")


def _helmholtz(path: str, file: Any) -> tuple[dict[str, xr.Variable], tuple[int, ...]]:
    samples = _samples(file)
    shape, values = _shape(file[samples[0]], "u"), np.zeros(len(samples))
    parts: dict[str, list[da.Array]] = {"a": [], "u": []}
    for i, sample in enumerate(samples):
        for key, arrays in parts.items():
            if _shape(file[sample], key) != shape or len(shape) != 2:
                raise InputError(path, key=f"{sample}/{key}", found=f"shape {_shape(file[sample], key)}",
                                 expected=f"{shape}, as of {samples[0]}", fix="copy the file again")
            arrays.append(lattice.lazy(lattice.h5_array(path, file[sample][key]), where=path, key=f"{sample}/{key}",
                                       lead=0))
        values[i] = float(np.asarray(file[sample]["bc"][()]).reshape(-1)[0])
    dims = (GROUP, *PLANE)
    return {"medium": lattice.variable(dims, da.stack(parts["a"]), "forcing", "1"),
            "solution": lattice.variable(dims, da.stack(parts["u"]), "state", "1"),
            "boundary_value": lattice.variable((GROUP,), values, "parameter", "1")}, (len(samples), *shape)
