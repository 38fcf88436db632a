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
from sciml.data.check import validate
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
    assert not any("periodicity" in text for text in guess.missing)
    (tmp_path / "source.yaml").write_text(guess.source_yaml("lab"), encoding="utf-8")
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


def test_steady_netcdf_has_no_time(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, X, Y)).astype(np.float32)
    dims = ("sample", "x", "y")
    xr.Dataset({"k": (dims, values), "p": (dims, values * 2)}).to_netcdf(tmp_path / "a.nc")
    found = look(tmp_path / "a.nc", variables={"k": {"role": "forcing"}, "p": {"role": "state"}})
    assert found["k"].dims == found["p"].dims == ("trajectory", "x", "y")
    assert "time" not in found.dims
    np.testing.assert_array_equal(found["p"].values, values * 2)
    missing = sniff(tmp_path / "a.nc").missing
    assert [text for text in missing if "time" in text] == [
        "time axis: none, so read as steady: give what is known the role forcing, the solution state"]


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


def globe(*, descending: bool = False) -> xr.Dataset:
    """As WeatherBench2 has it: (time, level, longitude, latitude), surface and static variables, components by name."""
    rng = np.random.default_rng(0)
    longitude, latitude = np.arange(8) * 45.0, np.linspace(-67.5, 67.5, 4)
    shape = {"time": T, "level": 3, "longitude": 8, "latitude": 4}

    def field(*dims: str, **attrs: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        return dims, rng.normal(size=[shape[dim] for dim in dims]).astype(np.float32), attrs

    data = xr.Dataset(
        {"geopotential": field("time", "level", "longitude", "latitude", units="m**2 s**-2"),
         "u_component_of_wind": field("time", "level", "longitude", "latitude", units="m s**-1"),
         "v_component_of_wind": field("time", "level", "longitude", "latitude", units="m s**-1"),
         "2m_temperature": field("time", "longitude", "latitude", units="K"),
         "10m_u_component_of_wind": field("time", "longitude", "latitude", units="m s**-1"),
         "10m_v_component_of_wind": field("time", "longitude", "latitude", units="m s**-1"),
         "snow_depth": field("time", "longitude", "latitude", units="m of water equivalent"),
         "land_sea_mask": field("longitude", "latitude", units="(0 - 1)")},
        {"time": pd.date_range("2020-01-01", periods=T, freq="6h"), "level": ("level", [250, 500, 850],
                                                                              {"units": "hPa"}),
         "longitude": ("longitude", longitude, {"units": "degrees_east", "long_name": "longitude"}),
         "latitude": ("latitude", latitude[::-1] if descending else latitude, {"units": "degrees_north"})})
    return data.transpose("time", "level", "latitude", "longitude") if descending else data


def test_weather_by_name(tmp_path: Path) -> None:
    data = globe()
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    found = look(tmp_path / "a.zarr")
    assert found["geopotential"].dims == ("trajectory", "time", "longitude", "latitude", "level")
    np.testing.assert_array_equal(found["geopotential"].values[0], data["geopotential"].transpose(
        "time", "longitude", "latitude", "level").values)
    assert found["land_sea_mask"].attrs["role"] == "forcing"
    assert found["land_sea_mask"].attrs["units"] == "1"
    assert found["snow_depth"].attrs["units"] == "m"
    assert found["longitude"].attrs["period"] == 360
    assert found["u_component_of_wind"].attrs["vector"] == found["v_component_of_wind"].attrs["vector"] == "wind"
    assert found["10m_v_component_of_wind"].attrs["vector"] == "10m_wind"
    assert found["10m_v_component_of_wind"].attrs["along"] == "latitude"


@pytest.mark.parametrize("descending", [False, True])
def test_levels_as_variables_and_descending_latitude(tmp_path: Path, descending: bool) -> None:
    data = globe(descending=descending)
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    told: dict[str, Any] = {"options": {"flatten": "level"}, "licence": "CC-BY-4.0", "citation": "us",
                            "split": {"by": "time", "counts": {"train": 4, "validation": 1, "test": 1}}}
    if descending:
        with pytest.raises(InputError, match=r"latitude.*descending.*reverse: true"):
            build(spec(tmp_path / "a.zarr", **told), tmp_path / "lab.zarr")
        told["axes"] = {"latitude": {"reverse": True}}
    store = build(spec(tmp_path / "a.zarr", **told), tmp_path / "lab.zarr")
    built = store.dataset()
    assert len(store.meta.of_role("state")) == 3 * 3 + 4
    assert {store.meta.variables[name].dims for name in store.meta.of_role("state")} == {
        ("time", "longitude", "latitude")}
    np.testing.assert_array_equal(built["geopotential_500"].values[0], data["geopotential"].sel(level=500).transpose(
        "time", "longitude", "latitude").sortby("latitude").values)
    assert store.meta.variables["v_component_of_wind_850"].vector == "wind_850"
    assert [finding for finding in validate(store) if finding.level == "error"] == []


@pytest.mark.parametrize("form", ["zarr2", "netcdf4"])
def test_a_starter_makes_variables_of_levels_that_not_all_fields_have(tmp_path: Path, form: str) -> None:
    path = write(globe(descending=True).transpose("level", "latitude", "time", "longitude"), tmp_path / "era5", form)
    guess = sniff(path)
    assert dict(guess.options) == {"flatten": "level"}
    assert {v.dims[1:] for v in guess.variables if v.role == "state"} == {("time", "longitude", "latitude")}
    assert any("not all fields have level" in note for note in guess.notes)
    (tmp_path / "source.yaml").write_text(guess.source_yaml("lab"))
    assert "FILL IN period" not in guess.source_yaml()
    assert "split: {by: time, fractions: {train: 0.6, validation: 0.2, test: 0.2}}" in guess.source_yaml()
    store = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr")
    assert store.meta.variables["v_component_of_wind_850"].vector == "wind_850"
    levels = sniff(write(globe()[["geopotential", "land_sea_mask"]], tmp_path / "upper", form))
    assert levels.dims["level"] == 3
    assert not levels.options


def test_a_longitude_that_repeats_its_start_is_not_periodic_by_itself(tmp_path: Path) -> None:
    data = globe().isel(longitude=[0, 1, 2, 3, 4, 5, 6, 7, 0])
    data["longitude"] = ("longitude", np.arange(9) * 45.0, {"units": "degrees_east"})
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    assert "period" not in look(tmp_path / "a.zarr")["longitude"].attrs
    told = {"axes": {"longitude": {"period": 360}}, "options": {"flatten": ["level"]}}
    with pytest.raises(InputError, match=r"longitude.*endpoint that repeats the first point"):
        build(spec(tmp_path / "a.zarr", **told), tmp_path / "lab.zarr")
    with pytest.raises(InputError, match=r"options\.flatten.*'levels'"):
        look(tmp_path / "a.zarr", options={"flatten": "levels"})


def test_components_by_standard_name(tmp_path: Path) -> None:
    data = globe()[["u_component_of_wind", "10m_u_component_of_wind", "2m_temperature"]]
    data = data.rename({"u_component_of_wind": "ua", "10m_u_component_of_wind": "uas"})
    data["ua"].attrs["standard_name"] = data["uas"].attrs["standard_name"] = "eastward_wind"
    data.to_netcdf(tmp_path / "a.nc")
    found = look(tmp_path / "a.nc", options={"flatten": "level"})
    assert {name: found[name].attrs.get("vector") for name in found.data_vars} == {
        "ua_250": "wind_250", "ua_500": "wind_500", "ua_850": "wind_850", "uas": "wind", "2m_temperature": None}
    data["vas"] = data["uas"]
    data.to_netcdf(tmp_path / "b.nc")
    assert "vector" not in look(tmp_path / "b.nc", options={"flatten": "level"})["vas"].attrs
