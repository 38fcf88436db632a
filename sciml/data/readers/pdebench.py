"""PDEBench's HDF5 layouts (pdebench/PDEBench, Takamoto et al. 2022), told apart by content.

- **scalar**: ``tensor (trajectory, time, x[, y[, z]])`` with ``x-coordinate``, ``t-coordinate``: state ``tensor``.
- **cfd**: ``density``, ``pressure``, ``Vx``, ``Vy``, ``Vz`` of that shape: states, velocities ``velocity_x`` and so on.
- **grouped**: ``0000/data (time, x[, y], channel)`` and ``0000/grid/{t, x, y}``: states ``data`` or ``data_0, data_1``.
- **darcy**: ``nu (trajectory, x, y)`` and ``tensor (trajectory, 1, x, y)``: steady. The solution is the state
  ``tensor (trajectory, x, y)``, the coefficient the forcing ``nu``; there is no time, and no initial state is invented.
- **incompressible**: ``velocity (trajectory, time, x, y, 2)``, ``particles (…, 1)``, ``force (trajectory, x, y, 2)``
  and ``t (trajectory, time)``: states ``velocity_x``, ``velocity_y``, ``particles``, forcings ``force_x``, ``force_y``.
- **vorticity**: ``omega_x``, ``omega_y``, ``omega_z``, as ``velocity2vorticity`` derives them: the states
  ``vorticity_x`` and so on, each the antisymmetric component along the other two axes.

``t-coordinate`` may have one entry more than there are frames (PDEBench writes the ends of all steps); the surplus last
one is dropped. Numeric root attributes (``Nu``, ``beta``) are parameters. PDEBench states no units and no boundaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from sciml.data.files import head
from sciml.data.readers import _lattice as lattice
from sciml.data.readers._combine import combine, options_of
from sciml.data.readers._lattice import is_netcdf4
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, limits_of, open_hdf5
from sciml.errors import InputError

GROUP = "trajectory"
SPACE = ("x", "y", "z")
VECTORS = {"Vx": ("velocity", "x"), "Vy": ("velocity", "y"), "Vz": ("velocity", "z"), "omega_x": ("vorticity", "y z"),
           "omega_y": ("vorticity", "z x"), "omega_z": ("vorticity", "x y")}
ARRAYS = {"scalar": {"tensor": "tensor"}, "darcy": {"tensor": "tensor"},
          "cfd": {"density": "density", "pressure": "pressure", "Vx": "velocity_x", "Vy": "velocity_y",
                  "Vz": "velocity_z"},
          "vorticity": {f"omega_{axis}": f"vorticity_{axis}" for axis in SPACE}}
"""Layout → array → variable."""
LAST_FRAME = "latestIndex"


@dataclass(frozen=True)
class PDEBench:
    """Reads PDEBench's files; one trajectory (or seed) is one group."""

    options: frozenset[str] = frozenset()

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        if head(path, 8) != HDF5_MAGIC:
            return None
        with open_hdf5(path) as file:
            if is_netcdf4(file) or layout_of(file) is None:
                return None
        return guess(self.read([path], None), path, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """State ``(trajectory, time, x[, y[, z]])``, forcing ``(trajectory, x, y)``, parameters, lazily."""
        return combine([_read(str(path), source) for path in paths], paths, source)


PLUGIN = PDEBench()


def layout_of(file: Any) -> str | None:
    """``scalar``, ``darcy``, ``cfd``, ``vorticity``, ``incompressible``, ``grouped`` or None, from names and ranks."""
    import h5py

    def rank(name: str) -> int:
        item = file.get(name)
        return item.ndim if isinstance(item, h5py.Dataset) else 0

    if "tensor" in file and "nu" in file and rank("tensor") - 1 == rank("nu") >= 2:
        return "darcy"
    if rank("tensor") >= 3:
        return "scalar"
    if "density" in file and "Vx" in file and rank("density") >= 3:
        return "cfd"
    if all(rank(f"omega_{axis}") == 5 for axis in SPACE):
        return "vorticity"
    if rank("velocity") >= 4 and rank("velocity") == rank("particles") and rank("t") == 2:
        return "incompressible"
    groups = [name for name in file if isinstance(file[name], h5py.Group)]
    if groups and all("data" in file[name] and "grid" in file[name] for name in groups):
        return "grouped"
    return None


def _read(url: str, source: Any) -> xr.Dataset:
    with open_hdf5(url, limits_of(options_of(source), url)) as file:
        layout = layout_of(file)
        if layout is None:
            raise InputError(url, found=f"objects {', '.join(list(file)[:8])}", expected="a layout of PDEBench",
                             fix="see docs/formats.md, or let sciml data sniff tell the format")
        if layout == "grouped":
            return _grouped(url, file)
        return _incompressible(url, file, source) if layout == "incompressible" else _arrays(url, file, layout)


def _arrays(url: str, file: Any, layout: str) -> xr.Dataset:
    names, steady = {key: name for key, name in ARRAYS[layout].items() if key in file}, layout == "darcy"
    shape = file[next(iter(names))].shape
    dims = (GROUP, "time", *SPACE[: len(shape) - 2])
    if len(shape) - 2 > len(SPACE):
        raise InputError(url, key=next(iter(names)), found=f"shape {shape}", expected="at most three space axes",
                         fix="see docs/formats.md")
    variables = {}
    for key, name in names.items():
        if file[key].shape != shape:
            raise InputError(url, key=key, found=f"shape {file[key].shape}", expected=f"{shape}, as the others",
                             fix="the file is damaged or half-written: copy it again")
        extra = dict(zip(("vector", "along"), VECTORS[key])) if key in VECTORS else {}
        array = lattice.lazy(lattice.h5_array(url, file[key]), where=url, key=key)
        variables[name] = lattice.variable(dims, array, "state", **extra)
    if steady:
        if file["nu"].shape != (shape[0], *shape[2:]) or shape[1] != 1:
            raise InputError(url, key="nu", found=f"shape {file['nu'].shape} beside tensor {shape}",
                             expected="nu (n, x, y) beside tensor (n, 1, x, y)", fix="see docs/formats.md")
        nu = lattice.lazy(lattice.h5_array(url, file["nu"]), where=url, key="nu")
        variables = {"nu": lattice.variable((GROUP, *dims[2:]), nu, "forcing"),
                     "tensor": variables["tensor"].isel(time=0)}
    variables.update(_parameters(file, shape[0]))
    keys = {dim: "t-coordinate" if dim == "time" else f"{dim}-coordinate" for dim in dims[1:]}
    coords, missing, notes = _coordinates(url, file, keys, shape)
    if steady:
        del coords["time"]
        missing = [text for text in missing if "axis time" not in text]
        notes = ["steady: no time; the coefficient nu is forcing"]
    data = lattice.canonical(variables, coords, domain="fields", format="pdebench", group_dim=GROUP, missing=missing,
                             notes=[f"PDEBench layout: {layout}", *notes])
    return data.assign_attrs(steady=steady)


def _incompressible(url: str, file: Any, source: Any) -> xr.Dataset:
    """Velocity, particles and force of the incompressible Navier–Stokes data, which have one time axis a trajectory."""
    shape = file["velocity"].shape[:-1]
    groups, steps, space = shape[0], shape[1], SPACE[: len(shape) - 2]
    wanted = {"velocity": (*shape, len(space)), "particles": (*shape, 1), "t": shape[:2],
              "force": (groups, *shape[2:], len(space))}
    variables: dict[str, xr.Variable] = {}
    for key, expected in wanted.items():
        if key in file and file[key].shape != expected:
            raise InputError(url, key=key, found=f"shape {file[key].shape}", expected=f"{expected}, beside velocity",
                             fix="the file is damaged or half-written: copy it again")
        if key not in file or key == "t":
            continue
        array = lattice.lazy(lattice.h5_array(url, file[key]), where=url, key=key)
        dims = (GROUP, *(() if key == "force" else ("time",)), *space)
        if key == "particles":
            variables[key] = lattice.variable(dims, array[..., 0], "state")
            continue
        for i, axis in enumerate(space):
            variables[f"{key}_{axis}"] = lattice.variable(dims, array[..., i], "forcing" if key == "force" else "state",
                                                          vector=key, along=axis)
    variables.update(_parameters(file, groups))
    times = np.asarray(file["t"][()])
    if (times != times[0]).any():
        row = int((times != times[0]).any(1).argmax())
        raise InputError(url, key="t", found=f"other times in trajectory {row} than in trajectory 0",
                         expected="one time axis for all trajectories of a store",
                         fix="build one store per time axis: options: {select: {trajectory: [start, stop]}}")
    coords = {GROUP: lattice.coordinate(GROUP, np.arange(groups), "set"),
              "time": lattice.coordinate("time", times[0], "time")}
    coords |= {dim: lattice.coordinate(dim, np.arange(n), "space") for dim, n in zip(space, shape[2:])}
    written = int(np.asarray(file.attrs.get(LAST_FRAME, steps - 1)).reshape(-1)[0]) + 1
    unwritten = f"frames from {written} on of {steps} (attribute {LAST_FRAME} is {written - 1}): the run didn't end"
    if source is not None and options_of(source).get("select", {}).get("time", (0, steps))[-1] > written:
        raise InputError(url, key=LAST_FRAME, found=unwritten, expected=f"{steps} frames",
                         fix=f"options: {{select: {{time: [0, {written}]}}}}")
    return lattice.canonical(variables, coords, domain="fields", format="pdebench", group_dim=GROUP,
                             missing=[f"coordinates of axis {dim}: counted 0, 1, …" for dim in space],
                             notes=["PDEBench layout: incompressible"], suspicious=[unwritten] * (written < steps))


def _coordinates(url: str, file: Any, keys: Mapping[str, str],
                 shape: Sequence[int]) -> tuple[dict[str, xr.Variable], list[str], list[str]]:
    """Coordinates from dimension → name in the file, what is missing, and notes."""
    coords, missing, notes = {GROUP: lattice.coordinate(GROUP, np.arange(shape[0]), "set")}, [], []
    for (dim, key), size in zip(keys.items(), shape[1:]):
        kind = "time" if dim == "time" else "space"
        if key not in file:
            missing.append(f"coordinates of axis {dim}: counted 0, 1, …")
            coords[dim] = lattice.coordinate(dim, np.arange(size), kind)
            continue
        values = np.asarray(file[key][()]).reshape(-1)
        if dim == "time" and len(values) == size + 1:
            values = values[:-1]
            notes.append("t-coordinate has one entry more than there are frames: the last one is dropped")
        if len(values) != size:
            raise InputError(url, key=key, found=f"{len(values)} coordinates", expected=f"{size}",
                             fix="the file is damaged or half-written: copy it again")
        coords[dim] = lattice.coordinate(dim, values, kind)
    return coords, missing, notes


def _parameters(file: Any, groups: int) -> dict[str, xr.Variable]:
    found = {}
    for name, value in file.attrs.items():
        value = np.asarray(value)
        if name != LAST_FRAME and value.size == 1 and value.dtype.kind in "iuf":
            found[name] = lattice.variable((GROUP,), np.full(groups, float(value.reshape(()))), "parameter")
    return found


def _grouped(url: str, file: Any) -> xr.Dataset:
    seeds = sorted(file)
    first = file[seeds[0]]
    shape, dtype = first["data"].shape, first["data"].dtype
    space = [dim for dim in SPACE if dim in first["grid"]]
    if len(shape) != 2 + len(space):
        raise InputError(url, key=f"{seeds[0]}/data", found=f"shape {shape} beside grid {', '.join(first['grid'])}",
                         expected=f"(time, {', '.join(space) or 'x'}, channel)", fix="see docs/formats.md")
    parts = []
    for seed in seeds:
        item = file[seed]["data"]
        if item.shape != shape or item.dtype != dtype:
            raise InputError(url, key=f"{seed}/data", found=f"shape {item.shape} of {item.dtype}",
                             expected=f"{shape} of {dtype}, as in {seeds[0]}",
                             fix="the file is damaged or half-written: copy it again, or remove the group")
        for key in ("t", *space):
            if key in first["grid"] and not np.array_equal(file[seed]["grid"][key][()], first["grid"][key][()]):
                raise InputError(url, key=f"{seed}/grid/{key}", found="other coordinates than the first group",
                                 expected="one grid and time axis for all groups", fix="one store per grid")
        parts.append(lattice.lazy(lattice.h5_array(url, item), where=url, key=f"{seed}/data", lead=0))
    data = da.stack(parts)
    names = ["data"] if shape[-1] == 1 else [f"data_{i}" for i in range(shape[-1])]
    dims = (GROUP, "time", *space)
    variables = {name: lattice.variable(dims, data[..., i], "state") for i, name in enumerate(names)}
    keys = {"time": f"{seeds[0]}/grid/t", **{dim: f"{seeds[0]}/grid/{dim}" for dim in space}}
    coords, missing, notes = _coordinates(url, file, keys, (len(seeds), *shape[:-1]))
    return lattice.canonical(variables, coords, domain="fields", format="pdebench", group_dim=GROUP, missing=missing,
                             notes=["PDEBench layout: grouped", *notes])
