"""What a source says of files that don't: vectors and boundaries of plain NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.readers import read
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.errors import InputError

N, T, X, Y = 4, 3, 6, 5
LISTED: dict[str, Any] = {"u": {"unit": "m/s", "vector": "velocity", "along": ["x"]},
                          "v": {"unit": "m/s", "vector": "velocity", "along": ["y"]},
                          "sxy": {"unit": "Pa", "vector": "stress", "along": ["x", "y"]}, "p": {"unit": "Pa"}}
CODES: dict[str, Any] = {f"boundary_{dim}_{side}": {} for dim in "xy" for side in ("low", "high")}


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {"velocity": rng.normal(size=(N, T, 2, X, Y)), "stress": rng.normal(size=(N, T, X, Y)),
             "p": rng.normal(size=(N, T, X, Y))}
    np.savez(tmp_path / "a.npz", **found)  # type: ignore[arg-type]
    return found


def made(folder: Path, variables: dict[str, Any] | None = None, **options: Any) -> Store:
    layout = {"velocity": ["trajectory", "time", "channel", "x", "y"], "stress": ["trajectory", "time", "x", "y"],
              "p": ["trajectory", "time", "x", "y"]}
    listed = LISTED | (variables or {})
    listed["sxy"] = {"key": "stress", **listed["sxy"]}
    return build(SourceSpec.model_validate({
        "name": "lab", "domain": "fields", "files": [str(folder / "a.npz")], "variables": listed,
        "options": {"format": "numpy", "layout": layout, "channels": ["u", "v"], **options},
        "axes": {"x": {"unit": "m"}, "y": {"unit": "m"}, "time": {"unit": "s"}},
        "split": {"by": "group", "counts": {"train": 2, "validation": 1, "test": 1}}}), folder / "lab.zarr")


def test_vectors_of_plain_arrays(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    store = made(tmp_path)
    np.testing.assert_array_equal(store.dataset()["v"].values, arrays["velocity"][:, :, 1])
    found = {name: (variable.vector, variable.along) for name, variable in store.meta.variables.items()}
    assert found == {"u": ("velocity", ("x",)), "v": ("velocity", ("y",)), "sxy": ("stress", ("x", "y")), "p": ("", ())}


@pytest.mark.usefixtures("arrays")
def test_a_vector_along_no_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lab \[v\].*vector 'velocity' along \('z',\)"):
        made(tmp_path, {"v": {"unit": "m/s", "vector": "velocity", "along": ["z"]}})


@pytest.mark.usefixtures("arrays")
@pytest.mark.parametrize("listed", [CODES, {}], ids=["listed", "unlisted"])
def test_boundaries_of_plain_arrays(tmp_path: Path, listed: dict[str, Any]) -> None:
    """Stated once, whether the source lists variables or not."""
    store = made(tmp_path, listed, boundaries={"x": "wall", "y": ["open", "dirichlet"]})
    found = {name: float(store.read(name, 0)) for name in store.meta.of_role("boundary")}
    assert found == {"boundary_x_low": 0, "boundary_x_high": 0, "boundary_y_low": 1, "boundary_y_high": 3}
    assert [finding for finding in validate(store) if finding.level == "error"] == []


@pytest.mark.usefixtures("arrays")
@pytest.mark.parametrize(("variables", "boundaries", "words"), [
    (CODES, {"x": "periodic"}, r"options\.boundaries\.x.*'periodic'.*wall, open, dirichlet, neumann.*period: …"),
    (CODES, {"q": "wall"}, r"options\.boundaries\.q.*an axis among x, y"),
    (CODES, {"x": ["wall"]}, r"options\.boundaries\.x.*two for its low and high end")])
def test_boundaries_that_make_no_sense(tmp_path: Path, variables: dict[str, Any], boundaries: dict[str, Any],
                                       words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(tmp_path, variables, boundaries=boundaries)
    assert not (tmp_path / "lab.zarr").exists()


def lab(path: Path, *, start: float = 0.0, dt: float = 0.1, turned: bool = False, **attrs: dict[str, Any]) -> str:
    """A NetCDF file of velocities and a pressure whose units it states."""
    usual = {"u": {"units": "m/s", "vector": "velocity", "along": "x"}, "p": {"units": "Pa"}, "x": {"units": "m"}}
    rng, dims = np.random.default_rng(0), ("trajectory", "time", "x")
    place = np.arange(X)[::-1] if turned else np.arange(X)
    xr.Dataset({name: (dims, rng.normal(size=(N, T, X)), usual[name] | attrs.get(name, {})) for name in "up"},
               {"x": ("x", place / X, usual["x"] | attrs.get("x", {})),
                "time": ("time", start + dt * np.arange(T), {"units": "s"})}).to_netcdf(path)
    return str(path)


@pytest.mark.parametrize(("second", "words"), [
    ({"p": {"units": "kPa"}}, r"b\.nc \[p, units\]: found 'kPa'; expected 'Pa'"),
    ({"u": {"units": "Pa"}, "p": {"units": "m/s"}}, r"b\.nc \[u, units\].*channels are swapped.*keys exchanged"),
    ({"x": {"units": "cm"}}, r"b\.nc \[x, units\]: found 'cm'; expected 'm'"),
    ({"turned": True}, r"b\.nc \[x\]: found another grid \(6 points, 0\.83.* 0\.0\).*whose axis runs another way"),
    ({"start": 0.3, "dt": 0.2}, r"b\.nc \[time\]: found steps of 0\.2; expected 0\.1.*one store per time step")])
def test_files_that_contradict_the_first_one_are_refused(tmp_path: Path, second: Any, words: str) -> None:
    paths = [lab(tmp_path / "a.nc"), lab(tmp_path / "b.nc", **second)]
    spec = SourceSpec(name="lab", domain="fields", files=paths)
    with pytest.raises(InputError, match=words):
        read(spec, paths)


def test_files_that_say_the_same_in_other_words_are_joined(tmp_path: Path) -> None:
    paths = [lab(tmp_path / "a.nc"), lab(tmp_path / "b.nc", u={"units": "m s-1"})]
    assert read(SourceSpec(name="lab", domain="fields", files=paths), paths).sizes["trajectory"] == 2 * N
    later = [paths[0], lab(tmp_path / "c.nc", start=0.3, dt=0.2)]
    uneven = SourceSpec.model_validate({"name": "lab", "domain": "fields", "files": later,
                                        "axes": {"time": {"uniform": False}}})
    assert read(uneven, later).sizes["time"] == 2 * T
