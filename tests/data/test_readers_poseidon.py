"""Poseidon's families, written here as its loaders read them: names, axes, times and boundaries of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.readers import read
from sciml.data.readers.poseidon import FAMILIES, FLOW
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

N, T, X, Y = 4, 3, 6, 5
SHAPES = {"NS-SL": (N, T, 2, X, Y), "FNS-KF": (N, T, 2, X, Y), "CE-RM": (N, T, 5, X, Y), "GCE-RT": (N, T, 6, X, Y),
          "ACE": (N, T, X, Y), "Wave-Layer": (N, T, X, Y), "Wave-Gauss": (N, T, X, Y), "SE-AF": (N, 2, X, Y),
          "Poisson-Gauss": (N, X, Y)}
RNG = np.random.default_rng(0)


def spec(*paths: Path, **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "fields", "files": list(map(str, paths)),
                                      "options": options})


def look(*paths: Path, **options: Any) -> xr.Dataset:
    return read(spec(*paths, **options), paths)


def write(path: Path, name: str, *, form: str = "hdf5") -> dict[str, np.ndarray]:
    """A file of a family; form netcdf4 has named dimensions without coordinates, as on the hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[name]
    if name == "Helmholtz":
        arrays = {key: RNG.normal(size=(N, X, Y)) for key in ("a", "u")} | {"bc": RNG.random(N)}
        with h5py.File(path, "w") as file:
            for i in range(N):
                for key, values in arrays.items():
                    file[f"Sample_{i}/{key}"] = values[i]
        return arrays
    shape = SHAPES.get(name, (N, T, 5 if family.array == "data" else 3, X, Y))
    arrays = {family.array: RNG.normal(size=shape).astype(np.float32)}
    arrays |= {key: RNG.normal(size=(N, X, Y)).astype(np.float32) for key in family.given or ()}
    if name == "SE-AF":
        arrays["solution"][:, 0] = arrays["solution"][:, 0] > 0
    if form == "hdf5":
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file[key] = values
        return arrays
    names = {5: ("sample", "time", "channel", "x", "y"), 4: ("sample", "time", "x", "y"), 3: ("sample", "x", "y")}
    xr.Dataset({key: (names[values.ndim], values) for key, values in arrays.items()}).to_netcdf(path)
    return arrays


def expected(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    family = FAMILIES[name]
    if name == "Helmholtz":
        return {"medium": arrays["a"], "solution": arrays["u"], "boundary_value": arrays["bc"]}
    values = arrays[family.array]
    if len(family.channels) == 1:
        found = {family.channels[0]: values}
    else:
        found = {channel: values[..., i, :, :] for i, channel in enumerate(family.channels) if i < values.shape[-3]}
    if family.transposed:
        found = {key: value.swapaxes(-1, -2) for key, value in found.items()}
    if name == "GCE-RT":
        found["potential"] = found["potential"][:, 0]
    if name == "SE-AF":
        found["mask"] = 1 - found["airfoil"]
    return found | {own: arrays[key] for key, own in (family.given or {}).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(tmp_path: Path, name: str) -> None:
    arrays = write(tmp_path / "a.h5", name)
    data, truth = look(tmp_path / "a.h5", format="poseidon", family=name).load(scheduler="synchronous"), expected(
        name, arrays)
    for key, values in truth.items():
        np.testing.assert_array_equal(data[key].values, values, err_msg=key)
    assert set(truth) == {str(key) for key in data.data_vars if not str(key).startswith("boundary_x_")
                          and not str(key).startswith("boundary_y_")}
    family = FAMILIES[name]
    assert ("time" in data.dims) != family.steady
    assert ("period" in data["x"].attrs) == (family.edge == "periodic") != ("boundary_x_low" in data)
    assert all(item.attrs["units"] == "1" for item in data.data_vars.values())
    roles = {key: data[key].attrs["role"] for key in truth}
    known = {"wave_speed", "source", "medium", "potential", "airfoil"}
    assert {key for key, role in roles.items() if role == "forcing"} == known & set(truth)


def test_times_places_and_vectors(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", "GCE-RT")
    data = look(tmp_path / "a.h5", family="GCE-RT")
    np.testing.assert_allclose(data["time"].values, [0, 0.5, 1.0])
    np.testing.assert_allclose(data["x"].values, -0.5 + np.arange(X) / X)
    assert (data["velocity_y"].attrs["vector"], data["velocity_y"].attrs["along"]) == ("velocity", "y")
    assert [name for name in data.data_vars if data[name].attrs["role"] == "state"] == [*FLOW, "tracer"]
    write(tmp_path / "b.h5", "Wave-Layer")
    waves = look(tmp_path / "b.h5", family="Wave-Layer")
    assert waves["time"].values.tolist() == [0, 1, 2]
    assert any("options.dt" in text for text in waves.attrs["missing"])
    np.testing.assert_allclose(look(tmp_path / "b.h5", family="Wave-Layer", dt=0.05)["time"].values, [0, 0.05, 0.1])
    assert float(waves["boundary_x_low"][0]) == 1
    with pytest.raises(InputError, match=r"options\.dt.*above 0"):
        look(tmp_path / "b.h5", family="Wave-Layer", dt=-1)


def test_chunks_are_one_data_set_in_numeric_order(tmp_path: Path) -> None:
    files = [tmp_path / f"NS-Sines/velocity_{i}.nc" for i in (0, 1, 2, 10)]
    values = [write(path, "NS-Sines", form="netcdf4")["velocity"] for path in files]
    data = look(files[3], files[1], files[0], files[2])
    np.testing.assert_array_equal(data["velocity_x"].values, np.concatenate(values)[:, :, 0])
    assert data.sizes["trajectory"] == 4 * N


def test_sniffed_built_and_valid(tmp_path: Path) -> None:
    arrays = write(tmp_path / "CE-RP.nc", "CE-RP", form="netcdf4")
    guess = sniff(tmp_path / "CE-RP.nc")
    assert (guess.format, guess.options) == ("poseidon", {"family": "CE-RP"})
    (tmp_path / "source.yaml").write_text(guess.source_yaml("lab"), encoding="utf-8")
    store = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr")
    np.testing.assert_array_equal(store.dataset()["pressure"].values, arrays["data"][:, :, 3])
    assert store.meta.dt == 0.05
    assert [finding for finding in validate(store) if finding.level == "error"] == []


def test_a_file_without_a_family_name_asks_for_it(tmp_path: Path) -> None:
    write(tmp_path / "flow.nc", "NS-PwC", form="netcdf4")
    guess = sniff(tmp_path / "flow.nc")
    assert (guess.format, guess.options) == ("poseidon", {"family": None})
    assert any("family" in text and "NS-BB" in text for text in guess.missing)
    assert "family: null  # FILL IN" in guess.source_yaml("lab")
    with pytest.raises(InputError, match=r"options\.family.*none, and none in the path.*NS-Sines.*Helmholtz"):
        look(tmp_path / "flow.nc", format="poseidon")
    with pytest.raises(InputError, match=r"options\.family.*'NS-Cosines'.*one of NS-Sines"):
        look(tmp_path / "flow.nc", format="poseidon", family="NS-Cosines")


def test_a_wrong_family_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", "CE-KH")
    with pytest.raises(InputError, match=r"\[velocity\].*data \(4, 3, 5, 6, 5\).*velocity of rank 5.*NS-Sines"):
        look(tmp_path / "a.h5", format="poseidon", family="NS-Sines")
    write(tmp_path / "b.h5", "Wave-Layer")
    with h5py.File(tmp_path / "b.h5", "a") as file:
        del file["c"]
        file["c"] = np.zeros((N, Y, X))
    with pytest.raises(InputError, match=r"\[c\].*shape \(4, 5, 6\).*\(4, 6, 5\)"):
        look(tmp_path / "b.h5", family="Wave-Layer")


def test_netcdf_of_other_people_stays_netcdf(tmp_path: Path) -> None:
    values = RNG.normal(size=(N, T, X, Y))
    xr.Dataset({"solution": (("sample", "time", "x", "y"), values)}).to_netcdf(tmp_path / "a.nc")
    assert sniff(tmp_path / "a.nc").format == "netcdf"
