"""NetCDF and Zarr with CF names: dimensions are told by name and attribute, whatever their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.readers import read
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

T, X, Y = 6, 5, 4


def weather() -> xr.Dataset:
    """(lat, lon, time): the wrong order, a descending latitude, packed integers, an auxiliary coordinate and bounds."""
    values = np.random.default_rng(0).normal(size=(Y, X, T)).astype(np.float32)
    data = xr.Dataset({"t2m": (("lat", "lon", "time"), values, {"units": "K"}),
                       "orography": (("lat", "lon"), values[..., 0], {"units": "m"}),
                       "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"})},
                      {"time": ("time", pd.date_range("2020-01-01", periods=T, freq="6h")),
                       "lat": ("lat", np.linspace(60, 45, Y), {"units": "degrees_north", "axis": "Y"}),
                       "lon": ("lon", np.arange(X) * 72.0, {"units": "degrees_east", "standard_name": "longitude"}),
                       "label": ("time", np.arange(T) * 2)})
    data["time"].encoding["units"] = "hours since 2020-01-01"
    data["t2m"].encoding["_FillValue"] = np.float32(-999)
    return data


def spec(path: Path | str, **more: object) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "fields", "files": [str(path)], **more})


def look(path: Path | str, **more: object) -> xr.Dataset:
    return read(spec(path, **more), [path])


def write(data: xr.Dataset, path: Path, form: str) -> Path:
    if form.startswith("zarr"):
        data.to_zarr(path, zarr_format=int(form[-1]), consolidated=form == "zarr2")
        return path
    engines: dict[str, Any] = {"netcdf3": {"engine": "netcdf4", "format": "NETCDF3_64BIT"},
                               "netcdf4": {"engine": "netcdf4"}, "h5netcdf": {"engine": "h5netcdf"}}
    data.to_netcdf(path, **engines[form])
    return path


FORMS = ["netcdf3", "netcdf4", "h5netcdf", "zarr2", "zarr3"]


@pytest.mark.parametrize("form", FORMS)
def test_values_by_name_not_position(tmp_path: Path, form: str) -> None:
    data = weather()
    found = look(write(data, tmp_path / "a", form))
    assert found["t2m"].dims == ("trajectory", "time", "lon", "lat")
    assert isinstance(found["t2m"].data, da.Array)
    np.testing.assert_allclose(found["t2m"].values[0], data["t2m"].transpose("time", "lon", "lat").values)
    np.testing.assert_allclose(found["orography"].values[0], data["orography"].values.T)
    assert found["orography"].attrs["role"] == "forcing"
    np.testing.assert_allclose(found["time"].values, np.arange(T) * 6.0)
    assert found["time"].attrs["units"] == "h"
    assert set(found.data_vars) == {"t2m", "orography"}
    assert any("crs" in note for note in found.attrs["notes"])


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(tmp_path: Path, form: str) -> None:
    data = weather()
    path = write(data, tmp_path / "a", form)
    guess = sniff(path)
    assert guess.format == ("zarr" if "zarr" in form else "netcdf")
    assert guess.domain == "fields"
    assert "axis lat is reversed (descending)" in guess.suspicious
    assert any("periodicity of axis lon" in text for text in guess.missing)
    text = guess.source_yaml("lab").replace('lon: {kind: space, unit: "degrees_east", period: null}',
                                            'lon: {kind: space, unit: "degrees_east", period: 360}')
    (tmp_path / "source.yaml").write_text(text, encoding="utf-8")
    built = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr").dataset()
    np.testing.assert_allclose(built["t2m"].values[0], data["t2m"].sortby("lat").transpose("time", "lon", "lat").values)
    assert built["lon"].attrs["period"] == 360


def test_trajectories_and_parameters(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(T, 3, X)).astype(np.float32)
    xr.Dataset({"u": (("time", "member", "x"), values), "nu": (("member",), np.array([1.0, 2.0, 3.0]))},
               {"time": np.arange(T) * 0.1, "x": np.arange(X) * 1.0}).to_netcdf(tmp_path / "a.nc")
    found = look(tmp_path / "a.nc")
    np.testing.assert_array_equal(found["u"].values, values.swapaxes(0, 1))
    assert found["nu"].attrs["role"] == "parameter"
    np.testing.assert_array_equal(found["nu"].values, [1, 2, 3])


def test_series_from_stations(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).normal(size=(T, 2))
    xr.Dataset({"flow": (("time", "station"), flow, {"units": "m3 s-1"})},
               {"time": pd.date_range("2020-01-01", periods=T), "station": ["a", "b"]}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=r"station.*unknown meaning"):
        look(tmp_path / "a.nc", domain="series")
    found = look(tmp_path / "a.nc", domain="series", axes={"station": {"kind": "set"}})
    np.testing.assert_array_equal(found["value"].values[0], flow)
    assert list(found["variate"].values) == ["a", "b"]
    assert list(found["variate_unit"].values) == ["m3 s-1"] * 2
    assert found["time"].dtype.kind == "M"
    guess = sniff(tmp_path / "a.nc")
    assert any("station" in text for text in guess.missing)


def test_missing_values_and_declared_fill(tmp_path: Path) -> None:
    data = weather()
    data["t2m"][0, 0, 0] = np.nan
    data["t2m"][1, 1, 1] = np.inf
    data.to_netcdf(tmp_path / "a.nc")
    found = look(tmp_path / "a.nc")
    assert int(np.isnan(found["t2m"].values).sum()) == 1
    suspicious = sniff(tmp_path / "a.nc").suspicious
    assert any("t2m: 1 NaN" in text for text in suspicious)
    assert any("t2m: 1 Inf" in text for text in suspicious)
    assert any("declared fill -999" in text for text in suspicious)


def test_steady_netcdf_follows_darcy(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, X, Y)).astype(np.float32)
    dims = ("sample", "x", "y")
    xr.Dataset({"k": (dims, values), "p": (dims, values * 2)}).to_netcdf(tmp_path / "a.nc")
    found = look(tmp_path / "a.nc", variables={"k": {"role": "forcing"}, "p": {"role": "state"}})
    assert found["k"].dims == ("trajectory", "x", "y")
    assert found["p"].dims == ("trajectory", "time", "x", "y")
    assert any("steady" in text for text in sniff(tmp_path / "a.nc").missing)


def test_two_times_in_one_file_are_joined_in_order(tmp_path: Path) -> None:
    data = weather().drop_vars(["crs", "label"])
    data.isel(time=slice(3, 6)).to_netcdf(tmp_path / "a.nc", encoding={"time": {"units": "hours since 2020-01-01"}})
    data.isel(time=slice(0, 3)).to_netcdf(tmp_path / "b.nc", encoding={"time": {"units": "hours since 2020-01-01"}})
    found = read(spec(tmp_path / "a.nc"), [tmp_path / "a.nc", tmp_path / "b.nc"])
    np.testing.assert_allclose(found["time"].values, np.arange(T) * 6.0)
    np.testing.assert_allclose(found["t2m"].values[0], data["t2m"].transpose("time", "lon", "lat").values)


@pytest.mark.parametrize("form", ["netcdf3", "netcdf4", "zarr2", "zarr3"])
def test_through_fsspec(tmp_path: Path, form: str) -> None:
    data, path = weather(), write(weather(), tmp_path / "a", form)
    memory, target = fsspec.filesystem("memory"), f"/cf_through_fsspec_{form}/a"
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        inside = "" if path.is_file() else f"/{file.relative_to(path)}"
        memory.pipe(f"{target}{inside}", file.read_bytes())
    for url in (f"memory:/{target}", f"file://{path}"):
        np.testing.assert_allclose(look(url)["t2m"].values[0], data["t2m"].transpose("time", "lon", "lat").values)
        assert sniff(url).domain == "fields"


def test_zarr_without_dimension_names_is_named(tmp_path: Path) -> None:
    import zarr

    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.create_array("u", data=np.zeros((3, 4), dtype=np.float32))
    with pytest.raises(InputError, match="dimension"):
        look(tmp_path / "a.zarr")
