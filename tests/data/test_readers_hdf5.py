"""The Well's and PDEBench's layouts, each written here as its specification says, read back and compared."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.readers import read, recognise
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

B, T, X, Y = 5, 4, 8, 6


def spec(path: Path | str, **more: object) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "fields", "files": [str(path)], **more})


def look(path: Path | str, **more: object) -> xr.Dataset:
    return read(spec(path, **more), [path])


def is_lazy(dataset: xr.Dataset, *names: str) -> bool:
    return all(isinstance(dataset[name].data, da.Array) for name in names)


def fill_in(text: str) -> str:
    """What a user does to a starter: every open unit becomes 1."""
    return text.replace("unit: null", 'unit: "1"')


def round_trip(path: Path | str, folder: Path) -> xr.Dataset:
    """Starter source.yaml, filled in, built, read back."""
    source = folder / "source.yaml"
    source.write_text(fill_in(sniff(path).source_yaml("lab")), encoding="utf-8")
    return build(read_source(source), folder / "lab.zarr").dataset()


def well_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"density": rng.normal(size=(B, T, X, Y)), "ground": rng.normal(size=(B, X, Y)),
            "profile": rng.normal(size=(B, T, X)), "sponge": rng.normal(size=(X, Y)),
            "velocity": rng.normal(size=(B, T, X, Y, 2)), "stress": rng.normal(size=(B, T, X, Y, 2, 2))}


def write_well(path: Path, *, bare: bool = False) -> dict[str, np.ndarray]:
    """A 2-D file as in the_well/docs/data_format.md; `bare` leaves out every optional attribute."""
    arrays = {name: value.astype(np.float32) for name, value in well_arrays().items()}
    varying = {"density": (1, 1, [1, 1]), "ground": (1, 0, [1, 1]), "profile": (1, 1, [1, 0]),
               "sponge": (0, 0, [1, 1]), "velocity": (1, 1, [1, 1]), "stress": (1, 1, [1, 1])}
    groups = {"t0_fields": ["density", "ground", "profile", "sponge"], "t1_fields": ["velocity"],
              "t2_fields": ["stress"]}
    if bare:
        groups = {"t0_fields": ["density", "ground"], "t1_fields": ["velocity"], "t2_fields": []}
    with h5py.File(path, "w") as file:
        if not bare:
            file.attrs.update({"dataset_name": "lab", "grid_type": "cartesian", "n_spatial_dims": 2,
                               "n_trajectories": B, "simulation_parameters": ["Re", "Gravity"], "Re": 100.0,
                               "Gravity": 9.81})
        dims = file.create_group("dimensions")
        if not bare:
            dims.attrs["spatial_dims"] = ["x", "y"]
        for name, values in (("time", np.arange(T) * 0.5), ("x", np.arange(X) / X), ("y", np.linspace(-1, 1, Y))):
            dims[name] = values.astype(np.float32)
            dims[name].attrs["sample_varying"] = False
        for group, names in groups.items():
            folder = file.create_group(group)
            if not bare:
                folder.attrs["field_names"] = names
            for name in names:
                folder[name] = arrays[name]
                if not bare:
                    sample, time, space = varying[name]
                    folder[name].attrs.update({"sample_varying": bool(sample), "time_varying": bool(time),
                                               "dim_varying": np.array(space, dtype=bool)})
        if bare:
            return arrays
        file["t2_fields/stress"].attrs.update({"symmetric": True, "antisymmetric": False})
        scalars = file.create_group("scalars")
        scalars.attrs["field_names"] = ["Re", "inflow"]
        for name, values, sample, time in (("Re", np.arange(B) + 100.0, True, False),
                                           ("inflow", np.arange(T), False, True)):
            scalars[name] = values.astype(np.float32)
            scalars[name].attrs.update({"sample_varying": sample, "time_varying": time})
        for dim, n, kind in (("x", X, "periodic"), ("y", Y, "wall")):
            edge = file.create_group(f"boundary_conditions/{dim}_boundary")
            edge.attrs.update({"bc_type": kind, "associated_dims": [dim], "associated_fields": []})
            mask = np.zeros(n, dtype=bool)
            mask[[0, -1]] = True
            edge["mask"] = mask
    return arrays


def test_the_well_values_roles_and_laziness(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.hdf5")
    data = look(tmp_path / "a.hdf5")
    assert data["density"].dims == ("trajectory", "time", "x", "y")
    assert is_lazy(data, "density", "velocity_x", "stress_xy", "ground", "profile")
    np.testing.assert_array_equal(data["density"].values, arrays["density"])
    np.testing.assert_array_equal(data["velocity_y"].values, arrays["velocity"][..., 1])
    np.testing.assert_array_equal(data["stress_xy"].values, arrays["stress"][..., 0, 1])
    assert "stress_yx" not in data
    assert (data["velocity_x"].attrs["vector"], data["velocity_x"].attrs["along"]) == ("velocity", "x")
    assert (data["stress_xy"].attrs["vector"], data["stress_xy"].attrs["along"]) == ("stress", "x y")
    assert data["ground"].dims == ("trajectory", "x", "y")
    assert data["ground"].attrs["role"] == "forcing"
    np.testing.assert_array_equal(data["profile"].values, np.broadcast_to(arrays["profile"][..., None], (B, T, X, Y)))
    np.testing.assert_array_equal(data["sponge"].values, np.broadcast_to(arrays["sponge"], (B, X, Y)))


def test_the_well_parameters_and_boundaries(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5")
    data = look(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(data["Re"].values, np.arange(B) + 100.0)
    np.testing.assert_allclose(data["Gravity"].values, np.full(B, 9.81))
    assert data["Gravity"].attrs["role"] == "parameter"
    np.testing.assert_array_equal(data["inflow"].isel(trajectory=2, x=1, y=1).values, np.arange(T))
    assert data["inflow"].attrs["role"] == "forcing"
    assert math.isclose(data["x"].attrs["period"], 1.0, rel_tol=1e-6)
    assert "period" not in data["y"].attrs
    np.testing.assert_array_equal(data["boundary_y_low"].values, np.zeros(B))
    assert "boundary_x_low" not in data


def test_the_well_without_optional_attributes(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.hdf5", bare=True)
    data = look(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(data["density"].values, arrays["density"])
    np.testing.assert_array_equal(data["ground"].values, arrays["ground"])
    np.testing.assert_array_equal(data["velocity_x"].values, arrays["velocity"][..., 0])


def test_the_well_attribute_that_contradicts_its_array(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["t0_fields/density"].attrs["time_varying"] = False
    with pytest.raises(InputError, match=r"density.*shape"):
        look(tmp_path / "a.hdf5")


def test_the_well_time_that_differs_between_trajectories(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["dimensions/time"]
        starts = np.arange(B)[:, None] * 10.0 + np.arange(T) * 0.5
        file["dimensions/time"] = starts
    data = look(tmp_path / "a.hdf5")
    np.testing.assert_allclose(data["time"].values, np.arange(T) * 0.5)
    assert any("start at different times" in note for note in data.attrs["notes"])
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["dimensions/time"][3] *= 2
    with pytest.raises(InputError, match="trajectory 3"):
        look(tmp_path / "a.hdf5")


def test_several_files_are_joined_along_trajectories(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.hdf5")
    write_well(tmp_path / "b.hdf5")
    data = read(spec(tmp_path / "a.hdf5"), [tmp_path / "a.hdf5", tmp_path / "b.hdf5"])
    assert data.sizes["trajectory"] == 2 * B
    np.testing.assert_array_equal(data["density"].values[B:], arrays["density"])
    np.testing.assert_array_equal(data["trajectory"].values, np.arange(2 * B))
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        file["dimensions/x"][...] *= 2
    with pytest.raises(InputError, match=r"b\.hdf5 \[x, period\]: found 2\.0"):
        read(spec(tmp_path / "a.hdf5"), [tmp_path / "a.hdf5", tmp_path / "b.hdf5"])


def test_the_well_round_trip(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.hdf5")
    built = round_trip(tmp_path / "a.hdf5", tmp_path)
    np.testing.assert_array_equal(built["velocity_x"].values, arrays["velocity"][..., 0])
    assert math.isclose(built["x"].attrs["period"], 1.0, rel_tol=1e-6)


def write_scalar(path: Path, *, surplus: bool = True) -> np.ndarray:
    tensor = np.random.default_rng(1).normal(size=(B, T, X)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["tensor"], file["x-coordinate"] = tensor, (np.arange(X, dtype=np.float32) + 0.5) / X
        file["t-coordinate"] = np.arange(T + surplus, dtype=np.float32) * 0.01
        file.attrs["Nu"] = 0.001
    return tensor


def write_cfd(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    arrays = {key: rng.normal(size=(B, T, X, Y)).astype(np.float32) for key in ("density", "pressure", "Vx", "Vy")}
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
        file["x-coordinate"], file["y-coordinate"] = np.linspace(0, 1, X), np.linspace(0, 2, Y)
        file["t-coordinate"] = np.arange(T + 1) * 0.05
        file.attrs.update({"eta": 0.01, "zeta": 0.01, "M": 0.1})
    return arrays


def write_grouped(path: Path, channels: int = 2) -> np.ndarray:
    data = np.random.default_rng(3).normal(size=(B, T, X, Y, channels)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for seed in range(B):
            file.create_dataset(f"{seed:04d}/data", data=data[seed], compression="lzf")
            for key, n in (("t", T), ("x", X), ("y", Y)):
                file[f"{seed:04d}/grid/{key}"] = np.linspace(0, 1, n).astype(np.float32)
            file[f"{seed:04d}"].attrs["config"] = "sim: {}"
    return data


def write_darcy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    nu, tensor = rng.random((B, X, Y)).astype(np.float32), rng.random((B, 1, X, Y)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["nu"], file["tensor"] = nu, tensor
        file["x-coordinate"], file["y-coordinate"] = np.linspace(0, 1, X), np.linspace(0, 1, Y)
        file.attrs["beta"] = 1.0
    return nu, tensor


@pytest.mark.parametrize("surplus", [False, True])
def test_pdebench_scalar(tmp_path: Path, surplus: bool) -> None:
    tensor = write_scalar(tmp_path / "a.hdf5", surplus=surplus)
    data = look(tmp_path / "a.hdf5")
    assert is_lazy(data, "tensor")
    assert data["tensor"].dims == ("trajectory", "time", "x")
    np.testing.assert_array_equal(data["tensor"].values, tensor)
    np.testing.assert_allclose(data["time"].values, np.arange(T) * 0.01, rtol=1e-6)
    np.testing.assert_array_equal(data["Nu"].values, np.full(B, 0.001))
    assert any("one entry more" in note for note in data.attrs["notes"]) == surplus


def test_pdebench_cfd(tmp_path: Path) -> None:
    arrays = write_cfd(tmp_path / "a.hdf5")
    data = look(tmp_path / "a.hdf5")
    assert is_lazy(data, "density", "velocity_x")
    np.testing.assert_array_equal(data["velocity_y"].values, arrays["Vy"])
    assert (data["velocity_y"].attrs["vector"], data["velocity_y"].attrs["along"]) == ("velocity", "y")
    np.testing.assert_array_equal(data["pressure"].values, arrays["pressure"])
    assert set(data.data_vars) == {"density", "pressure", "velocity_x", "velocity_y", "eta", "zeta", "M"}


def test_pdebench_grouped(tmp_path: Path) -> None:
    values = write_grouped(tmp_path / "a.h5")
    data = look(tmp_path / "a.h5")
    assert is_lazy(data, "data_0")
    np.testing.assert_array_equal(data["data_1"].values, values[..., 1])
    write_grouped(tmp_path / "b.h5", channels=1)
    assert set(look(tmp_path / "b.h5").data_vars) == {"data"}
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["0002/grid/x"][0] = -1
    with pytest.raises(InputError, match="0002/grid/x"):
        look(tmp_path / "a.h5")


def test_pdebench_darcy_is_steady(tmp_path: Path) -> None:
    nu, tensor = write_darcy(tmp_path / "a.hdf5")
    data = look(tmp_path / "a.hdf5")
    assert data["tensor"].attrs["role"] == "state"
    assert data["nu"].attrs["role"] == "forcing"
    assert data["nu"].dims == data["tensor"].dims == ("trajectory", "x", "y")
    np.testing.assert_array_equal(data["tensor"].values, tensor[:, 0])
    np.testing.assert_array_equal(data["nu"].values, nu)
    assert "time" not in data.sizes
    assert not [text for text in sniff(tmp_path / "a.hdf5").missing if "time" in text]


def test_pdebench_half_written(tmp_path: Path) -> None:
    write_cfd(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["Vy"]
        file["Vy"] = np.zeros((B, 2, X, Y), dtype=np.float32)
    with pytest.raises(InputError, match="half-written"):
        look(tmp_path / "a.hdf5")


@pytest.mark.parametrize(("write", "name"), [(write_scalar, "tensor"), (write_cfd, "velocity_x"),
                                             (write_grouped, "data_0"), (write_darcy, "tensor")])
def test_pdebench_round_trip(tmp_path: Path, write: object, name: str) -> None:
    write(tmp_path / "a.hdf5")  # type: ignore[operator]
    guess = sniff(tmp_path / "a.hdf5")
    assert guess.format == "pdebench"
    assert any(f"unit of variable {name}" in text for text in guess.missing)
    assert any("periodicity of axis x" in text for text in guess.missing)
    truth = look(tmp_path / "a.hdf5")[name].values
    np.testing.assert_array_equal(round_trip(tmp_path / "a.hdf5", tmp_path)[name].values, truth)


def test_an_unfilled_starter_is_refused(tmp_path: Path) -> None:
    write_scalar(tmp_path / "a.hdf5")
    (tmp_path / "source.yaml").write_text(sniff(tmp_path / "a.hdf5").source_yaml("lab"), encoding="utf-8")
    with pytest.raises(InputError, match="no unit"):
        build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr")
    assert not (tmp_path / "lab.zarr").exists()


def test_file_names_do_not_matter(tmp_path: Path) -> None:
    write_scalar(tmp_path / "a.hdf5")
    shutil.copy(tmp_path / "a.hdf5", tmp_path / "a.csv")
    assert recognise(tmp_path / "a.csv").format == "pdebench"


def test_hdf5_of_no_known_layout_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["stuff"] = np.zeros(3)
    with pytest.raises(InputError, match="HDF5 file of no layout"):
        recognise(tmp_path / "a.h5")


def test_hdf5_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    arrays = write_cfd(tmp_path / "a.hdf5")
    memory = fsspec.filesystem("memory")
    memory.pipe("/hdf5_through_fsspec/a.hdf5", (tmp_path / "a.hdf5").read_bytes())
    for url in ("memory://hdf5_through_fsspec/a.hdf5", f"file://{tmp_path}/a.hdf5"):
        np.testing.assert_array_equal(look(url)["density"].values, arrays["density"])
        assert sniff(url).format == "pdebench"


def test_source_renames_selects_and_orders(tmp_path: Path) -> None:
    arrays = write_cfd(tmp_path / "a.hdf5")
    data = look(tmp_path / "a.hdf5", variables={"p": {"key": "pressure", "dims": ["time", "y", "x"]}},
                options={"select": {"trajectory": [1, 3]}})
    assert list(data.data_vars) == ["p"]
    np.testing.assert_array_equal(data["p"].values, arrays["pressure"][1:3].swapaxes(2, 3))
    with pytest.raises(InputError, match="no variable 'vorticity'"):
        look(tmp_path / "a.hdf5", variables={"vorticity": {}})
    with pytest.raises(InputError, match=r"options\.colour"):
        look(tmp_path / "a.hdf5", options={"colour": 1})
    with pytest.raises(InputError, match=r"options\.select\.time"):
        look(tmp_path / "a.hdf5", options={"select": {"time": [0, 99]}})
