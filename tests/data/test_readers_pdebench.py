"""Every layout of PDEBench, with the names, ranks and attributes that its own writers give: read, built, validated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.readers import read
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

N, T, X, Y, Z = 3, 4, 6, 4, 5
Arrays = dict[str, np.ndarray]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def spec(path: Path, **more: object) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "fields", "files": [str(path)], **more})


def grid(file: h5py.File, *, surplus: int = 1, **sizes: int) -> None:
    for name, n in sizes.items():
        file[f"{name}-coordinate"] = np.linspace(0, 1, n + (surplus if name == "t" else 0), dtype=np.float32)


def scalar(**attrs: float) -> Callable[[h5py.File], Arrays]:
    def write(file: h5py.File) -> Arrays:
        file["tensor"] = normal(N, T, X)
        grid(file, t=T, x=X)
        file.attrs.update(attrs)
        return {"tensor": file["tensor"][()], **{name: np.full(N, value) for name, value in attrs.items()}}
    return write


def fluid(*space: int) -> Callable[[h5py.File], Arrays]:
    """Compressible Navier–Stokes; the Mach number is written in 2-D and 3-D only."""
    def write(file: h5py.File) -> Arrays:
        names = {"density": "density", "pressure": "pressure",
                 **{f"V{axis}": f"velocity_{axis}" for axis, _ in zip("xyz", space)}}
        for key in names:
            file[key] = normal(N, T, *space)
        grid(file, t=T, **dict(zip("xyz", space)))
        file.attrs.update({"eta": 0.1, "zeta": 0.1} | ({"M": 1.0} if len(space) > 1 else {}))
        return {name: file[key][()] for key, name in names.items()} | {"eta": np.full(N, 0.1)}
    return write


def grouped(*space: int, channels: int) -> Callable[[h5py.File], Arrays]:
    def write(file: h5py.File) -> Arrays:
        values = normal(N, T, *space, channels)
        for seed in range(N):
            file[f"{seed:04d}/data"] = values[seed]
            for name, n in zip("txy", (T, *space)):
                file[f"{seed:04d}/grid/{name}"] = np.linspace(-2.5, 2.5, n, dtype=np.float32)
            file[f"{seed:04d}"].attrs["config"] = "sim: {}"
        return {"data": values[..., 0]} if channels == 1 else {f"data_{i}": values[..., i] for i in range(channels)}
    return write


def darcy(file: h5py.File) -> Arrays:
    file["nu"], file["tensor"] = normal(N, X, Y), normal(N, 1, X, Y)
    grid(file, x=X, y=Y)
    file.attrs["beta"] = 0.1
    return {"nu": file["nu"][()], "tensor": file["tensor"][:, 0], "beta": np.full(N, 0.1)}


def incompressible(file: h5py.File) -> Arrays:
    file["velocity"], file["force"] = normal(N, T, X, Y, 2), normal(N, X, Y, 2)
    file["particles"] = normal(N, T, X, Y, 1)
    file["t"] = np.broadcast_to(np.arange(T, dtype=np.float32) * 0.05, (N, T))
    file.attrs.update({"config": "sim_name: ns_sim_2d", "latestIndex": T - 1})
    arrays = {f"{key}_{axis}": file[key][..., i] for key in ("velocity", "force") for i, axis in enumerate("xy")}
    return {**arrays, "particles": file["particles"][..., 0]}


def vorticity(file: h5py.File) -> Arrays:
    for axis in "xyz":
        file[f"omega_{axis}"] = normal(N, T, X, Y, Z)
    grid(file, t=T, x=X, y=Y, z=Z)
    return {f"vorticity_{axis}": file[f"omega_{axis}"][()] for axis in "xyz"}


LAYOUTS = {"advection": scalar(beta=0.4), "burgers": scalar(Nu=0.01), "reaction diffusion 1-D": scalar(Nu=0.5, rho=1.0),
           "sorption": grouped(X, channels=1), "fluid 1-D": fluid(X), "fluid 2-D": fluid(X, Y),
           "fluid 3-D": fluid(X, Y, Z), "darcy": darcy, "reaction diffusion 2-D": grouped(X, Y, channels=2),
           "dam break": grouped(X, Y, channels=1), "incompressible": incompressible, "vorticity": vorticity}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_told_and_read(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        arrays = LAYOUTS[name](file)
    guess = sniff(tmp_path / "a.hdf5")
    assert guess.format == "pdebench"
    data = read(spec(tmp_path / "a.hdf5"), [tmp_path / "a.hdf5"]).load(scheduler="synchronous")
    for key, values in arrays.items():
        np.testing.assert_array_equal(data[key].values, values, err_msg=key)
        component = key.partition("_")[0] in ("velocity", "vorticity", "force")
        assert bool(data[key].attrs.get("vector")) == component
    assert ("time" not in data.dims) == (name == "darcy")


@pytest.mark.parametrize("name", ["darcy", "incompressible"])
def test_layouts_are_built(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        arrays = LAYOUTS[name](file)
    text = sniff(tmp_path / "a.hdf5").source_yaml("lab").replace("unit: null", 'unit: "1"')
    (tmp_path / "source.yaml").write_text(text, encoding="utf-8")
    store = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr")
    for key, values in arrays.items():
        np.testing.assert_array_equal(store.dataset()[key].values, values, err_msg=key)
    assert (store.meta.dt is None) == (name == "darcy") == ("time" not in store.meta.axes)
    assert [finding for finding in validate(store) if finding.level == "error"] == []


def test_what_is_known_of_incompressible_flow(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        incompressible(file)
    data = read(spec(tmp_path / "a.h5"), [tmp_path / "a.h5"])
    assert data["force_y"].dims == ("trajectory", "x", "y")
    assert {name: data[name].attrs["role"] for name in ("force_x", "velocity_x", "particles")} == {
        "force_x": "forcing", "velocity_x": "state", "particles": "state"}
    assert (data["force_y"].attrs["vector"], data["force_y"].attrs["along"]) == ("force", "y")
    np.testing.assert_allclose(data["time"].values, np.arange(T) * 0.05, rtol=1e-6)
    assert "latestIndex" not in data


def test_a_simulation_that_did_not_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        incompressible(file)
        file.attrs["latestIndex"] = 1
    assert any("frames from 2 on of 4" in text for text in sniff(tmp_path / "a.h5").suspicious)
    with pytest.raises(InputError, match=r"latestIndex.*select: {time: \[0, 2\]"):
        read(spec(tmp_path / "a.h5"), [tmp_path / "a.h5"])
    data = read(spec(tmp_path / "a.h5", options={"select": {"time": [0, 2]}}), [tmp_path / "a.h5"])
    assert data.sizes["time"] == 2


def test_incompressible_flow_that_contradicts_itself(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        incompressible(file)
        file["t"][1] *= 2
    with pytest.raises(InputError, match=r"\[t\].*trajectory 1"):
        read(spec(tmp_path / "a.h5"), [tmp_path / "a.h5"])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["force"]
        file["force"] = normal(N, Y, X, 2)
    with pytest.raises(InputError, match=r"\[force\].*shape \(3, 4, 6, 2\).*\(3, 6, 4, 2\)"):
        read(spec(tmp_path / "a.h5"), [tmp_path / "a.h5"])
